"""The public operations: validation, and the choice between implementations."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from attn_course import _triton
from attn_course._masks import check_mask, check_valid_lens, combine
from attn_course._padding import disarm_checked
from attn_course._precision import wide_dtype
from attn_course._validation import (
    broadcast_batch,
    check_choice,
    check_floating,
    check_need_weights,
    check_positive,
    check_query_key_value,
    check_rank,
)
from attn_course.kernel_regression import reference

IMPLEMENTATIONS = ("auto", "reference", "blocked", "triton")

#: Above this many numbers a pair (coordinates and values), the GPU kernel, which multiplies
#: without tensor cores, gives way to PyTorch in blocks. Reasoned, not yet measured on a GPU.
_KERNEL_WIDTH_LIMIT = 128

#: Up to this many weights, storing them all is the faster way on a CPU.
_STORED_PAIRS = 1 << 20


@overload
def kernel_regression(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kernel: str = ...,
    width: float | Tensor = ...,
    valid_lens: Tensor | None = ...,
    mask: Tensor | None = ...,
    impl: str = ...,
    need_weights: Literal[False] = ...,
) -> Tensor: ...


@overload
def kernel_regression(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kernel: str = ...,
    width: float | Tensor = ...,
    valid_lens: Tensor | None = ...,
    mask: Tensor | None = ...,
    impl: str = ...,
    need_weights: Literal[True],
) -> tuple[Tensor, Tensor]: ...


@overload
def kernel_regression(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kernel: str = ...,
    width: float | Tensor = ...,
    valid_lens: Tensor | None = ...,
    mask: Tensor | None = ...,
    impl: str = ...,
    need_weights: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...


def kernel_regression(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kernel: str = "gaussian",
    width: float | Tensor = 1.0,
    valid_lens: Tensor | None = None,
    mask: Tensor | None = None,
    impl: str = "auto",
    need_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Nadaraya-Watson kernel regression: look up values by the nearness of keys.

    Each output is the average of the values, weighted by a kernel of the scaled
    distance ``d = ||(query - key) / width||_2``. A query with no key in its window gets
    zeros, and so do its gradients. Differentiable in query, key, value and width.
    At distance zero, where the triangular kernel has a kink, its gradient is zero.

    Args:
        query: Where to predict, ``[..., query_len, dim]``.
        key: Where values are known, ``[..., key_len, dim]``; at least one.
        value: What is known there, ``[..., key_len, value_dim]``. Leading
            dimensions of the three broadcast.
        kernel: ``"gaussian"``: ``exp(-d^2/2)``; ``"boxcar"``: 1 where ``d < 1``;
            ``"constant"``: 1; ``"triangular"``: ``max(0, 1 - d)``; or
            ``"epanechnikov"``: ``max(0, 3/4 (1 - d^2))``.
        width: In the units of the keys: a positive number, a tensor with one
            element, or one width for each coordinate, ``[dim]``.
        valid_lens: How many leading keys count, ``[batch]`` or
            ``[batch, query_len]`` (``batch``: the first leading dimension).
        mask: ``True`` = may attend; broadcasts to ``[..., query_len, key_len]``.
        impl: Which implementation:

            ============= ======================================================
            ``reference`` PyTorch; holds all weights
            ``blocked``   PyTorch, a block of queries at a time; O(n + m) memory
            ``triton``    GPU kernel (interpreted where there is no GPU: slow)
            ``auto``      ``reference`` with ``need_weights``, or up to ``2^20``
                          pairs on a CPU; on CUDA ``triton`` up to
                          dim + value_dim = 128; else ``blocked``
            ============= ======================================================

        need_weights: Return the weights as well. ``reference`` alone can.

    Returns:
        The output ``[..., query_len, value_dim]``, or with ``need_weights`` the
        pair of output and weights ``[..., query_len, key_len]``. Half-precision
        inputs are computed in float32 and rounded at the end.

    Raises:
        TypeError: A tensor has the wrong kind of numbers.
        ValueError: A shape, a width, a name or a combination is out of place.
        RuntimeError: ``impl="triton"`` cannot be had here; the message says why.

    Reference:
        Nadaraya (1964), On estimating regression; Watson (1964), Smooth
        regression analysis.

    Example:
        >>> key = torch.tensor([[0.0], [1.0], [4.0]])
        >>> value = torch.tensor([[10.0], [20.0], [30.0]])
        >>> kernel_regression(torch.tensor([[0.5], [9.0]]), key, value, kernel="boxcar")
        tensor([[15.],
                [ 0.]])
    """
    check_query_key_value(query, key, value)
    dim, key_len = query.shape[-1], key.shape[-2]
    check_choice("kernel", kernel, reference.KERNELS)
    check_choice("impl", impl, IMPLEMENTATIONS)
    check_positive("width", width)
    if isinstance(width, Tensor) and tuple(width.shape) not in ((), (1,), (dim,)):
        raise ValueError(f"width must have shape [] or [{dim}], got {list(width.shape)}.")
    check_need_weights(need_weights, impl)
    batch_shape = broadcast_batch(query=query, key=key, value=value)
    shape_and_place = (batch_shape, query.shape[-2], key_len, query.device)
    lens = check_valid_lens(valid_lens, *shape_and_place)
    mask = check_mask(mask, *shape_and_place)
    if impl == "auto":
        impl = _fastest(query, key, value, batch_shape, need_weights)
    elif impl == "triton":
        _triton.require(query.device)

    dtype = query.dtype
    compute = wide_dtype(dtype)
    query, key, value = query.to(compute), key.to(compute), value.to(compute)
    if isinstance(width, Tensor):
        width = width.to(query)
    query, key = query / width, key / width
    query, key, value = disarm_checked(query, key, value, lens, mask)

    if impl == "triton":
        from attn_course.kernel_regression import kernel as gpu

        return gpu.nadaraya_watson(query, key, value, kernel=kernel, lens=lens, mask=mask).to(dtype)
    if impl == "blocked":
        return reference.nadaraya_watson_blocked(
            query, key, value, kernel=kernel, lens=lens, mask=mask
        ).to(dtype)
    allowed = combine(lens, mask, key_len)
    output, weights = reference.nadaraya_watson(query, key, value, kernel=kernel, allowed=allowed)
    return (output.to(dtype), weights.to(dtype)) if need_weights else output.to(dtype)


def _fastest(
    query: Tensor, key: Tensor, value: Tensor, batch_shape: tuple[int, ...], need_weights: bool
) -> str:
    """The table of ``kernel_regression``'s docstring."""
    if need_weights:
        return "reference"
    if query.device.type == "cuda":
        narrow = query.shape[-1] + value.shape[-1] <= _KERNEL_WIDTH_LIMIT
        return "triton" if _triton.AVAILABLE and narrow else "blocked"
    pairs = torch.Size(batch_shape).numel() * query.shape[-2] * key.shape[-2]
    return "blocked" if pairs > _STORED_PAIRS else "reference"


def leave_one_out(
    key: Tensor,
    value: Tensor,
    *,
    kernel: str = "gaussian",
    width: float | Tensor = 1.0,
    impl: str = "auto",
) -> Tensor:
    """Predict every value from all the others: each key asks, and may not see itself.

    Args:
        key: Where values are known, ``[..., key_len, dim]``; at least two.
        value: What is known there, ``[..., key_len, value_dim]``.
        kernel: As in ``kernel_regression``.
        width: As in ``kernel_regression``.
        impl: As in ``kernel_regression``.

    Returns:
        Predictions ``[..., key_len, value_dim]``; zeros where no other key is near.

    Raises:
        ValueError: There are fewer than two keys, or ``kernel_regression`` refuses.

    Example:
        >>> leave_one_out(torch.tensor([[0.0], [0.1]]), torch.tensor([[1.0], [2.0]]))
        tensor([[2.],
                [1.]])
    """
    check_floating("key", key)
    check_rank("key", key, 2, "[..., key_len, dim]")
    count = key.shape[-2]
    if count < 2:
        raise ValueError(f"key must hold at least two keys to leave one out, got {count}.")
    others = ~torch.eye(count, dtype=torch.bool, device=key.device)
    return kernel_regression(key, key, value, kernel=kernel, width=width, mask=others, impl=impl)
