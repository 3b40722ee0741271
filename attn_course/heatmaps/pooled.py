r"""A picture of an attention matrix that is too large to store.

With s_ij the score of query i and key j, and a_ij = exp(s_ij) / sum_j exp(s_ij) its
attention weight, the picture of B_q x B_k bins is

    P_bc = 1/|Q_b| sum_{i in Q_b} sum_{j in K_c} a_ij:

the mean over the bin's queries, so that a bin speaks for its queries, of the sum over
the bin's keys, so that each row of the picture still sums to one. Bin b of B over n
positions covers floor(b n / B), ..., floor((b+1) n / B) - 1: contiguous, and no two
sizes differ by more than one.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from attn_course import _triton
from attn_course._validation import (
    broadcast_batch,
    check_choice,
    check_floating,
    check_positive,
    check_rank,
    check_together,
    check_valid_lens,
)

SCORES = ("dot", "gaussian", "additive")
IMPLEMENTATIONS = ("auto", "reference", "triton")

#: How many weights the reference holds at a time (or one row, if that is more).
BLOCK_ELEMENTS = 1 << 20


def bin_edges(length: int, bins: int) -> list[int]:
    """Where bins begin, and where the last one ends.

    Example:
        >>> bin_edges(10, 4)
        [0, 2, 5, 7, 10]
    """
    return [b * length // bins for b in range(bins + 1)]


def pooled_weights_reference(
    query: Tensor,
    key: Tensor,
    *,
    bins: tuple[int, int],
    score: str,
    weight: Tensor | None = None,
    lens: Tensor | None = None,
    block_elements: int = BLOCK_ELEMENTS,
) -> Tensor:
    """The picture, from the exact softmax of a few queries at a time.

    Args:
        query: ``[..., n, d]``, already multiplied by the scale or divided by the width.
        key: ``[..., m, d]``, divided by the width likewise.
        bins: Of the queries and of the keys.
        score: One of ``SCORES``.
        weight: ``[d]``, of the additive score.
        lens: How many leading keys count; broadcasts to ``[..., n]``.
        block_elements: How many weights to hold at a time; of the additive score, how
            many hidden numbers.

    Returns:
        ``[..., q_bins, k_bins]``.
    """
    q_bins, k_bins = bins
    batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    # Keys, bin by bin, the shorter bins filled up to the longest: then a sum over
    # a bin is a sum over an axis.
    edges = torch.tensor(bin_edges(key.shape[-2], k_bins), device=key.device)
    longest = -(-key.shape[-2] // k_bins)
    place = (edges[:-1, None] + torch.arange(longest, device=key.device)).flatten()
    inside = place < edges[1:].repeat_interleave(longest)  # [k_bins * longest]
    place = place.clamp_max(key.shape[-2] - 1)
    key = key[..., place, :]

    wide = 1 if weight is None else len(weight)
    rows = max(1, block_elements // max(1, batch.numel() * len(place) * wide))
    picture = query.new_zeros(*batch, q_bins, k_bins)
    for b, (first, last) in enumerate(pairwise(bin_edges(query.shape[-2], q_bins))):
        for start in range(first, last, rows):
            stop = min(start + rows, last)
            scores = _scores(query[..., start:stop, :], key, score, weight)
            allowed = inside
            if lens is not None:
                some = lens if lens.shape[-1] == 1 else lens[..., start:stop]
                allowed = inside & (place < some.unsqueeze(-1))
            weights = _softmax(scores.masked_fill(~allowed, -torch.inf))
            weights = weights.unflatten(-1, (k_bins, longest))
            picture[..., b, :] += weights.sum((-3, -1))
        picture[..., b, :] /= last - first
    return picture


def _scores(query: Tensor, key: Tensor, score: str, weight: Tensor | None) -> Tensor:
    if score == "dot":
        return query @ key.mT
    if weight is not None:
        return (query.unsqueeze(-2) + key.unsqueeze(-3)).tanh_() @ weight
    # From differences: expanding the square would cancel near zero.
    distance = torch.cdist(query, key, compute_mode="donot_use_mm_for_euclid_dist")
    return -distance.square() / 2


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the keys; a row in which nothing is allowed is zero."""
    largest = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - largest.masked_fill(largest == -torch.inf, 0))
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1)


@torch.no_grad()
def pooled_weights(
    query: Tensor,
    key: Tensor,
    *,
    bins: int | tuple[int, int],
    score: str = "dot",
    scale: float | None = None,
    width: float | Tensor = 1.0,
    weight: Tensor | None = None,
    valid_lens: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Attention weights, pooled into bins without storing the matrix.

    Mean over a bin's queries, sum over a bin's keys: each row of the picture sums to
    one. A query that may attend to nothing counts as a row of zeros. Memory is
    O(query_len + key_len), besides the picture. No gradients: it is a picture.

    Args:
        query: ``[..., query_len, dim]``.
        key: ``[..., key_len, dim]``. Leading dimensions broadcast.
        bins: Of queries and keys, one number for both or ``(q_bins, k_bins)``. Bin b
            covers floor(b n / bins) to floor((b + 1) n / bins), exclusive.
        score: ``"dot"`` q.k * scale, ``"gaussian"`` -||(q - k) / width||^2 / 2, or
            ``"additive"`` weight . tanh(q + k), of queries and keys already projected.
        scale: Of the dot product; 1 / sqrt(dim) by default.
        width: Of the Gaussian: a positive number, a tensor with one element, or
            one width for each coordinate, ``[dim]``.
        weight: Of the additive score, ``[dim]``, which needs it.
        valid_lens: How many leading keys count, ``[batch]`` or ``[batch, query_len]``
            (``batch``: the first leading dimension).
        impl: Which implementation:

            ============= ======================================================
            ``reference`` PyTorch, a few queries at a time
            ``triton``    GPU kernel (interpreted where there is no GPU: slow)
            ``auto``      on CUDA ``triton`` if it is installed, else ``reference``
            ============= ======================================================

    Returns:
        The picture, ``[..., q_bins, k_bins]``, float64 for float64 inputs and
        float32 for all others.

    Raises:
        TypeError: A tensor has the wrong kind of numbers.
        ValueError: A shape, a number of bins, a name or a combination is out of place.
        RuntimeError: ``impl="triton"`` cannot be had here; the message says why.

    Reference:
        Recomputing weights from what normalises them is from FlashAttention
        (Dao et al., 2022).

    Example:
        >>> position = torch.arange(6.0).unsqueeze(-1)
        >>> pooled_weights(position, position, bins=3, score="gaussian", width=0.05)
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]])
    """
    check_floating("query", query)
    check_floating("key", key)
    check_rank("query", query, 2, "[..., query_len, dim]")
    check_rank("key", key, 2, "[..., key_len, dim]")
    check_together(query=query, key=key)
    query_len, key_len, dim = query.shape[-2], key.shape[-2], query.shape[-1]
    if key.shape[-1] != dim or dim == 0:
        raise ValueError(
            f"query and key must have the same number of columns, at least one, "
            f"got {dim} and {key.shape[-1]}."
        )
    both = _check_bins(bins, query_len, key_len)
    check_choice("score", score, SCORES)
    check_choice("impl", impl, IMPLEMENTATIONS)
    batch_shape = broadcast_batch(query=query, key=key)
    lens = check_valid_lens(
        valid_lens,
        batch_shape=batch_shape,
        query_len=query_len,
        key_len=key_len,
        device=query.device,
    )
    if impl == "auto":
        impl = "triton" if query.device.type == "cuda" and _triton.AVAILABLE else "reference"
    elif impl == "triton":
        _triton.require(query.device)

    compute = torch.float64 if query.dtype == torch.float64 else torch.float32
    weight = _check_weight(weight, query, score)
    query, key = _fold(query.to(compute), key.to(compute), score, scale, width)
    if impl == "triton":
        from attn_course.heatmaps import kernel as gpu

        return gpu.pool(query, key, bins=both, score=score, weight=weight, lens=lens)
    return pooled_weights_reference(query, key, bins=both, score=score, weight=weight, lens=lens)


def _check_weight(weight: Tensor | None, query: Tensor, score: str) -> Tensor | None:
    """The weight of the additive score, in the precision of the computation."""
    if score != "additive":
        if weight is not None:
            raise ValueError(f"weight is for score='additive', got one with score={score!r}.")
        return None
    if weight is None:
        raise ValueError("score='additive' needs weight, one number for each column, got None.")
    check_floating("weight", weight)
    check_together(query=query, weight=weight)
    if tuple(weight.shape) != query.shape[-1:]:
        raise ValueError(
            f"weight must have shape [{query.shape[-1]}], the columns of query, "
            f"got {list(weight.shape)}."
        )
    return weight.to(torch.float64 if query.dtype == torch.float64 else torch.float32)


def _check_bins(bins: int | tuple[int, int], query_len: int, key_len: int) -> tuple[int, int]:
    both = tuple(bins) if isinstance(bins, tuple | list) else (bins, bins)
    if len(both) != 2 or any(isinstance(b, bool) or not isinstance(b, int) for b in both):
        raise ValueError(f"bins must be an integer or (q_bins, k_bins), got {bins!r}.")
    for count, length, what in zip(both, (query_len, key_len), ("queries", "keys"), strict=True):
        if not 1 <= count <= length:
            raise ValueError(
                f"bins must lie in [1, {length}], the number of {what}, got {count}: "
                "every bin needs at least one."
            )
    return both


def _fold(
    query: Tensor, key: Tensor, score: str, scale: float | None, width: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Multiply the scale, or divide the width, into query and key."""
    dim = query.shape[-1]
    if score != "gaussian" and (isinstance(width, Tensor) or width != 1.0):
        raise ValueError(f"width is for score='gaussian', got {width} with score={score!r}.")
    if score != "dot" and scale is not None:
        raise ValueError(f"scale is for score='dot', got {scale} with score={score!r}.")
    if score == "additive":
        return query, key
    if score == "dot":
        if scale is not None and not math.isfinite(scale):
            raise ValueError(f"scale must be finite, got {scale}.")
        return query * (dim**-0.5 if scale is None else scale), key
    check_positive("width", width)
    if isinstance(width, Tensor):
        if tuple(width.shape) not in ((), (1,), (dim,)):
            raise ValueError(f"width must have shape [] or [{dim}], got {list(width.shape)}.")
        width = width.to(query)
    return query / width, key / width
