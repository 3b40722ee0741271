"""Which outputs depend on which inputs, measured through the gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attn_course._validation import check_floating


@torch.enable_grad()
def influence_map(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Measure how strongly each output position depends on each input position.

    Entry (i, j) is the Frobenius norm of the block d output_i / d input_j of the
    Jacobian, at ``inputs``. It is zero where output i cannot see input j, whatever
    the architecture between them, so a mask that leaks shows.

    Runs one backward pass for each element of the output. Gradients that parameters
    have collected are left as they are.

    Args:
        function: Maps ``[n, d_in]`` or ``[n]`` to ``[m, d_out]`` or ``[m]``. Put
            models with dropout in evaluation mode first.
        inputs: Where to measure, ``[n, d_in]`` or ``[n]``.

    Returns:
        ``[m, n]``, detached, of the dtype of ``inputs``.

    Raises:
        TypeError: The inputs, or what the function returns, are no floating-point
            tensors.
        ValueError: The inputs or the outputs have neither one nor two dimensions.

    Example:
        >>> influence_map(lambda x: x.cumsum(0), torch.zeros(3))
        tensor([[1., 0., 0.],
                [1., 1., 0.],
                [1., 1., 1.]])
    """
    check_floating("inputs", inputs)
    if inputs.ndim not in (1, 2):
        raise ValueError(f"inputs must have shape [n, d_in] or [n], got {list(inputs.shape)}.")
    leaf = inputs.detach().clone().requires_grad_(True)
    outputs = function(leaf)
    check_floating("function's output", outputs)
    if outputs.ndim not in (1, 2):
        raise ValueError(
            f"function must return shape [m, d_out] or [m], got {list(outputs.shape)}."
        )
    squares = torch.zeros(
        len(outputs),
        len(inputs),
        dtype=torch.promote_types(inputs.dtype, torch.float32),  # half precision overflows at 256
        device=inputs.device,
    )
    if not outputs.requires_grad:
        return squares.to(inputs.dtype)  # a constant
    for i, row in enumerate(outputs.reshape(len(outputs), -1)):
        for element in row:
            (gradient,) = torch.autograd.grad(element, leaf, retain_graph=True, allow_unused=True)
            if gradient is not None:
                squares[i] += gradient.reshape(len(inputs), -1).to(squares).square().sum(1)
    return squares.sqrt().to(inputs.dtype)
