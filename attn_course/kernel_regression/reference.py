"""Kernel regression in plain PyTorch, in the order of the chapter's equations.

``nadaraya_watson`` is the oracle that everything else is held against. It stores
the whole matrix of weights. ``nadaraya_watson_blocked`` does the same for one
block of queries at a time, so that its memory does not grow with
``query_len * key_len``.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from attn_course._masks import combine

#: The names of the kernels: functions of the scaled distance d = ||(q - k) / width||.
KERNELS = ("gaussian", "boxcar", "constant", "triangular", "epanechnikov")

#: Some queries, and the lengths and the mask that are theirs.
_Block: TypeAlias = tuple[slice, Tensor | None, Tensor | None]

#: How many weights ``nadaraya_watson_blocked`` holds at a time.
BLOCK_ELEMENTS = 1 << 17


def kernel_value(distance: Tensor, kernel: str = "gaussian") -> Tensor:
    """The unnormalised weight that a kernel gives to a scaled distance.

    ``gaussian``: ``exp(-d^2/2)``; ``boxcar``: 1 where ``d < 1``; ``constant``: 1;
    ``triangular``: ``max(0, 1 - d)``; ``epanechnikov``: ``max(0, 3/4 (1 - d^2))``.

    Args:
        distance: Scaled distances d >= 0, any shape.
        kernel: One of ``KERNELS``.

    Returns:
        Weights of the shape of ``distance``.

    Raises:
        ValueError: The kernel is unknown.

    Reference:
        Epanechnikov (1969) for the last one.

    Example:
        >>> kernel_value(torch.tensor([0.0, 0.5, 2.0]), "triangular")
        tensor([1.0000, 0.5000, 0.0000])
    """
    if kernel == "gaussian":
        return torch.exp(-distance.square() / 2)
    if kernel == "boxcar":
        return torch.sign(1 - distance).clamp_min(0)  # a step: its gradient is 0, not absent
    if kernel == "constant":
        return torch.sign(1 + distance)  # 1, likewise
    if kernel == "triangular":
        return (1 - distance).clamp_min(0)
    if kernel == "epanechnikov":
        return 0.75 * (1 - distance.square()).clamp_min(0)
    raise ValueError(f"kernel must be one of {KERNELS}, got {kernel!r}.")


def attention_weights(distance: Tensor, kernel: str, allowed: Tensor | None) -> Tensor:
    """Kernel values, normalised over the keys; a row without any weight is zero.

    Args:
        distance: Scaled distances, ``[..., query_len, key_len]``.
        kernel: One of ``KERNELS``.
        allowed: Which pairs count, broadcast to the distances; ``None`` for all.

    Returns:
        Weights, ``[..., query_len, key_len]``.
    """
    if kernel == "gaussian":
        # exp(-d^2/2) is 0 in floating point from d = 14 on. softmax divides numerator and
        # denominator by the largest value first, which keeps the nearest key alive.
        logit = distance.square() * -0.5
        if allowed is None:
            return logit.softmax(-1)
        logit = logit.masked_fill(~allowed, -torch.inf)
        empty = logit.amax(-1, keepdim=True) == -torch.inf
        return logit.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)
    weight = kernel_value(distance, kernel)
    if allowed is not None:
        weight = weight.masked_fill(~allowed, 0)
    total = weight.sum(-1, keepdim=True)
    return weight / total.masked_fill(total == 0, 1)


def nadaraya_watson(
    query: Tensor, key: Tensor, value: Tensor, *, kernel: str, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Average the values, weighted by how near each key is to the query.

    Args:
        query: ``[..., query_len, dim]``, already divided by the width.
        key: ``[..., key_len, dim]``, likewise.
        value: ``[..., key_len, value_dim]``.
        kernel: One of ``KERNELS``.
        allowed: Booleans that broadcast to ``[..., query_len, key_len]``.

    Returns:
        The output ``[..., query_len, value_dim]`` and the weights
        ``[..., query_len, key_len]``.

    Reference:
        Nadaraya (1964); Watson (1964).
    """
    # Distances from differences: expanding the square would cancel near zero.
    distance = torch.cdist(query, key, compute_mode="donot_use_mm_for_euclid_dist")
    weights = attention_weights(distance, kernel, allowed)
    return weights @ value, weights


def nadaraya_watson_blocked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kernel: str,
    lens: Tensor | None = None,
    mask: Tensor | None = None,
    block_elements: int | None = None,
) -> Tensor:
    """The output of ``nadaraya_watson``, a block of queries at a time.

    Queries do not see each other, so a block of them can be answered alone. The
    backward pass computes each block's weights again instead of keeping them.

    Args:
        query: As in ``nadaraya_watson``.
        key: As in ``nadaraya_watson``.
        value: As in ``nadaraya_watson``.
        kernel: One of ``KERNELS``.
        lens: How many leading keys count; broadcasts to ``[..., query_len]``.
        mask: ``True`` = may attend; broadcasts to ``[..., query_len, key_len]``.
        block_elements: How many weights to hold at a time; ``BLOCK_ELEMENTS`` by default.

    Returns:
        ``[..., query_len, value_dim]``.
    """
    query_len, key_len = query.shape[-2], key.shape[-2]
    batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    elements = block_elements or BLOCK_ELEMENTS
    rows = max(1, elements // max(1, batch.numel() * key_len))

    blocks = []
    for start in range(0, query_len, rows):
        here = slice(start, start + rows)
        some_lens = lens if lens is None or lens.shape[-1] == 1 else lens[..., here]
        some_mask = mask if mask is None or mask.shape[-2] == 1 else mask[..., here, :]
        blocks.append((here, some_lens, some_mask))
    output: Tensor = _Blocked.apply(query, key, value, kernel, blocks)
    return output


class _Blocked(torch.autograd.Function):
    """Blocks one after the other, forward and backward, each written where it belongs.

    Nothing small is left lying between the large temporaries, so the memory of one block
    serves the next.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, kernel: str, blocks: list[_Block]
    ) -> Tensor:
        batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
        output = query.new_empty(*batch, query.shape[-2], value.shape[-1])
        for here, lens, mask in blocks:
            allowed = combine(lens, mask, key.shape[-2])
            output[..., here, :] = nadaraya_watson(
                query[..., here, :], key, value, kernel=kernel, allowed=allowed
            )[0]
        ctx.save_for_backward(query, key, value)
        ctx.kernel, ctx.blocks = kernel, blocks
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        dquery, dkey, dvalue = (torch.zeros_like(tensor) for tensor in (query, key, value))
        for here, lens, mask in ctx.blocks:
            allowed = combine(lens, mask, key.shape[-2])
            with torch.enable_grad():
                part = query[..., here, :].detach().requires_grad_()
                output, _ = nadaraya_watson(part, key, value, kernel=ctx.kernel, allowed=allowed)
            some = torch.autograd.grad(output, (part, key, value), grad[..., here, :])
            dquery[..., here, :] = some[0]
            dkey += some[1]
            dvalue += some[2]
        return dquery, dkey, dvalue, None, None
