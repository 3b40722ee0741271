"""Kernel regression in plain PyTorch, in the order of the chapter's equations.

``nadaraya_watson`` is the oracle that everything else is held against. It stores
the whole matrix of weights. ``nadaraya_watson_blocked`` does the same for one
block of queries at a time, so that its memory does not grow with
``query_len * key_len``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attn_course._validation import combine

#: The kernels, as functions of the scaled distance d = ||(q - k) / width||.
KERNELS = ("gaussian", "boxcar", "constant", "triangular", "epanechnikov")

#: How many weights ``nadaraya_watson_blocked`` holds at a time.
BLOCK_ELEMENTS = 1 << 18


def kernel_value(distance: Tensor, kernel: str = "gaussian") -> Tensor:
    """The unnormalised weight that a kernel gives to a scaled distance.

    ``gaussian`` exp(-d^2/2); ``boxcar`` 1 where d < 1; ``constant`` 1;
    ``triangular`` max(0, 1 - d); ``epanechnikov`` max(0, 3/4 (1 - d^2)).

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
        # exp(-d^2/2) is 0 in floating point from d = 14 on. Dividing numerator and
        # denominator by the largest value first keeps the nearest key alive.
        logit = -distance.square() / 2
        if allowed is not None:
            logit = logit.masked_fill(~allowed, -torch.inf)
        largest = logit.amax(-1, keepdim=True).detach()
        weight = torch.exp(logit - largest.masked_fill(largest == -torch.inf, 0))
    else:
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
    block_elements: int = BLOCK_ELEMENTS,
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
        block_elements: How many weights to hold at a time.

    Returns:
        ``[..., query_len, value_dim]``.
    """
    query_len, key_len = query.shape[-2], key.shape[-2]
    batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    rows = max(1, block_elements // max(1, batch.numel() * key_len))

    def block(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
        return nadaraya_watson(query, key, value, kernel=kernel, allowed=allowed)[0]

    outputs = []
    for start in range(0, max(query_len, 1), rows):
        part = query[..., start : start + rows, :]
        some_lens = lens if lens is None or lens.shape[-1] == 1 else lens[..., start : start + rows]
        some_mask = mask
        if mask is not None and mask.shape[-2] > 1:
            some_mask = mask[..., start : start + rows, :]
        allowed = combine(some_lens, some_mask, key_len)
        if torch.is_grad_enabled():
            outputs.append(checkpoint(block, part, key, value, allowed, use_reentrant=False))
        else:
            outputs.append(block(part, key, value, allowed))
    return torch.cat(outputs, -2)
