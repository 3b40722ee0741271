"""Which outputs depend on which inputs, measured through the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attn_course._validation import check_floating
from attn_course.data import Pair


@torch.enable_grad()
def influence_map(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Measure how strongly each output position depends on each input position.

    Entry (i, j) is the Frobenius norm of the block ``d output_i / d input_j`` of the
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


def influence_through(module: nn.Module, function: Callable[[], Tensor]) -> Tensor:
    """Measure how strongly a model's output depends on what one of its modules puts out.

    Where the inputs are tokens, nothing can be moved by a little: the embeddings can.

    Args:
        module: Part of the model, e.g. its embedding: called once by ``function``, and
            returning ``[1, n, d]`` or ``[n, d]``.
        function: Calls the model and returns ``[m, d_out]`` or ``[m]``. Put models with
            dropout in evaluation mode first.

    Returns:
        ``[m, n]``, as in ``influence_map``.

    Raises:
        TypeError: ``module`` is no module, or as in ``influence_map``.
        ValueError: ``function`` does not call the module exactly once, or a shape is
            another one.

    Example:
        >>> from torch import nn
        >>> words, ids = nn.Embedding(9, 2), torch.tensor([[3, 4, 5]])
        >>> moved = influence_through(words, lambda: words(ids)[0].cumsum(0))
        >>> (moved > 0).int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}.")
    given: list[Tensor] = []
    with module.register_forward_hook(lambda *call: given.append(call[2])), torch.no_grad():
        function()
    if len(given) != 1:
        raise ValueError(f"function must call the module exactly once, got {len(given)} calls.")
    (output,) = given
    check_floating("module's output", output)
    single = output.ndim == 3 and len(output) == 1
    if not single and output.ndim != 2:
        raise ValueError(
            f"module must return shape [1, n, d] or [n, d], got {list(output.shape)}: "
            "call the model with one sequence."
        )

    def moved(x: Tensor) -> Tensor:
        with module.register_forward_hook(lambda *_: x[None] if single else x):
            return function()

    return influence_map(moved, output[0] if single else output)


def word_influence(translator: Any, pair: Pair, *, minus: str | None = None) -> Tensor:
    """Measure how the logit of each right word depends on each word of the source.

    Args:
        translator: A ``Translator`` in evaluation mode, whose encoder begins with an
            embedding of the words.
        pair: A sentence and its translation, which the decoder reads as it goes.
        minus: Another word of the target's vocabulary: measure each right word's lead
            over it.

    Returns:
        ``[target_len, source_len]``; both lengths count ``<eos>``.

    Raises:
        TypeError: The translator's encoder has no embedding.
        ValueError: A word is unknown, or ``minus`` is not one word.

    Example:
        >>> from attn_course.data import SIGNPOST
        >>> from attn_course.seq2seq import load_translator
        >>> moved = word_influence(load_translator(), SIGNPOST)
        >>> SIGNPOST.source.split()[moved[SIGNPOST.target.split().index("chat")].argmax()]
        'cat'
    """
    layers = translator.model.encoder.modules()
    table = next((layer for layer in layers if isinstance(layer, nn.Embedding)), None)
    if table is None:
        raise TypeError("translator must have an encoder with an nn.Embedding, got none.")
    rival = None
    if minus is not None:
        ids = translator.target.encode(minus)
        if len(ids) != 1:
            raise ValueError(f"minus must be one word, got {minus!r}.")
        rival = ids[0]
    (one,) = translator.batches([pair])

    def right() -> Tensor:
        logits: Tensor = translator.model(**one.inputs)[0]  # [target_len, vocabulary]
        found = logits.gather(1, one.labels[0][:, None])[:, 0]
        return found if rival is None else found - logits[:, rival]

    return influence_through(table, right)
