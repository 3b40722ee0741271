r"""A picture of an attention matrix that is too large to store.

With s_ij the score of query i and key j, and a_ij = exp(s_ij) / sum_j exp(s_ij) its
attention weight, the picture of B_q x B_k bins is

    P_bc = 1/|Q_b| sum_{i in Q_b} sum_{j in K_c} a_ij:

the mean over the bin's queries, so that a bin speaks for its queries, of the sum over
the bin's keys, so that each row of the picture still sums to one. Bin b of B over n
positions covers floor(b n / B), ..., floor((b+1) n / B) - 1: contiguous, and no two
sizes differ by more than one.

What hides keys leaves each query a span of them, begin_i, ..., end_i - 1: valid lengths cut
it on the right, a causal mask and a window follow the query. Two numbers a query say all,
and keys outside the spans of a block of queries are not even looked at.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from attn_course import _triton
from attn_course._masks import check_valid_lens, check_window
from attn_course._precision import wide_dtype
from attn_course._validation import (
    broadcast_batch,
    check_choice,
    check_floating,
    check_positive,
    check_rank,
    check_slopes,
    check_together,
)

SCORES = ("dot", "gaussian", "additive")
IMPLEMENTATIONS = ("auto", "reference", "triton")

#: How many weights the reference holds at a time (or one row, if that is more).
BLOCK_ELEMENTS = 1 << 20

#: How many keys to the left and to the right of a query's position it may see.
Window: TypeAlias = tuple[int | None, int | None]

#: The first key that each query may see, ``[n]``, and the one after the last, ``[..., n]``.
Spans: TypeAlias = tuple[Tensor, Tensor]


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
    spans: Spans | None = None,
    slopes: Tensor | None = None,
    block_elements: int = BLOCK_ELEMENTS,
) -> Tensor:
    """The picture, from the exact softmax of a few queries at a time.

    Args:
        query: ``[..., n, d]``, already multiplied by the scale or divided by the width.
        key: ``[..., m, d]``, divided by the width likewise.
        bins: Of the queries and of the keys.
        score: One of ``SCORES``.
        weight: ``[d]``, of the additive score.
        spans: Which keys each query may see; ``None``: all.
        slopes: ``[heads]``, of the bias -slope * distance.
        block_elements: How many weights to hold at a time; of the additive score, how
            many hidden numbers.

    Returns:
        ``[..., q_bins, k_bins]``.
    """
    n, m, (q_bins, k_bins) = query.shape[-2], key.shape[-2], bins
    batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    picture = query.new_zeros(*batch, q_bins, k_bins)
    if not picture.numel():
        return picture
    begins, ends = [0] * n, [m] * n
    if spans is not None:  # of all batch items together
        begins, ends = spans[0].tolist(), spans[1].reshape(-1, n).amax(0).tolist()
    wide = batch.numel() * (1 if weight is None else len(weight))
    longest = max(end - begin for begin, end in zip(begins, ends, strict=True))
    rows = _rows(block_elements // wide, max(1, longest), m)
    places = torch.arange(m, device=key.device)

    # The keys of each bin, shorter bins filled up: a sum over a bin is then one over an axis.
    edges = torch.tensor(bin_edges(m, k_bins), device=key.device)
    grid = edges[:-1, None] + places[: -(-m // k_bins)]
    inside, grid = grid < edges[1:, None], grid.clamp_max(m - 1)  # [k_bins, keys of a bin]

    for b, (first, last) in enumerate(pairwise(bin_edges(n, q_bins))):
        received = query.new_zeros(*batch, m)  # by each key, of the weights of the bin's queries
        for start in range(first, last, rows):
            mine = slice(start, min(start + rows, last))
            seen = slice(begins[start], max(ends[mine]))
            if seen.start >= seen.stop:
                continue
            scores = _scores(query[..., mine, :], key[..., seen, :], score, weight)
            if slopes is not None:
                distance = places[seen] - torch.arange(n, device=key.device)[mine, None]
                scores = scores - slopes[:, None, None] * distance.abs()
            if spans is not None:
                begin, end = (x[..., mine, None] for x in spans)
                hidden = (places[seen] < begin) | (places[seen] >= end)
                scores = scores.masked_fill(hidden, -torch.inf)
            received[..., seen] += _softmax(scores).sum(-2)
        picture[..., b, :] = (received[..., grid] * inside).sum(-1) / (last - first)
    return picture


def _rows(budget: int, longest: int, m: int) -> int:
    """How many queries at a time, so that their weights fit the budget.

    r neighbours with spans of at most w keys see r + w - 1 keys together, and at most m. In
    narrow windows they are few, or most of their block would be hidden.
    """
    rows = max(budget // m, (math.isqrt(longest**2 + 4 * budget) - longest) // 2)
    if 2 * longest < m:
        rows = min(rows, max(64, longest))
    return max(1, rows)


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
    is_causal: bool = False,
    window: Window | None = None,
    bias_slopes: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Attention weights, pooled into bins without storing the matrix.

    Mean over a bin's queries, sum over a bin's keys: each row of the picture sums to
    one. A query that may attend to nothing counts as a row of zeros. What may be seen is
    what ``valid_lens``, ``is_causal`` and ``window`` all allow; the rest of the matrix is
    skipped. Memory is O(query_len + key_len), besides the picture. No gradients: it is a
    picture.

    Args:
        query: ``[..., query_len, dim]``.
        key: ``[..., key_len, dim]``. Leading dimensions broadcast.
        bins: Of queries and keys, one number for both or ``(q_bins, k_bins)``. Bin b
            covers floor(b n / bins) to floor((b + 1) n / bins), exclusive.
        score: ``"dot"``: ``q.k * scale``; ``"gaussian"``: ``-||(q - k) / width||^2 / 2``, or
            ``"additive"`` weight . tanh(q + k), of queries and keys already projected.
        scale: Of the dot product; ``1 / sqrt(dim)`` by default.
        width: Of the Gaussian: a positive number, a tensor with one element, or
            one width for each coordinate, ``[dim]``.
        weight: Of the additive score, ``[dim]``, which needs it.
        valid_lens: How many leading keys count, ``[batch]`` or ``[batch, query_len]``
            (``batch``: the first leading dimension).
        is_causal: Query i may see keys 0 to i.
        window: ``(left, right)``: query i may see keys i - ``left`` to i + ``right``;
            ``None``: as many as there are.
        bias_slopes: Of dot products: for each head, the last leading dimension, a number,
            ``[heads]``. -slope * |i - j| is added to the scores (ALiBi).
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
        TypeError: A tensor has the wrong kind of numbers, or ``window`` the wrong type.
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
        >>> pooled_weights(position, position, bins=2, scale=0.0, is_causal=True)
        tensor([[1.0000, 0.0000],
                [0.6167, 0.3833]])
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
    spans = _spans(query_len, key_len, lens, is_causal, window, query.device)
    if impl == "auto":
        impl = "triton" if query.device.type == "cuda" and _triton.AVAILABLE else "reference"
    elif impl == "triton":
        _triton.require(query.device)

    compute = wide_dtype(query.dtype)
    weight = _check_weight(weight, query, score)
    slopes = _check_slopes(bias_slopes, batch_shape, query, score)
    query, key = _fold(query.to(compute), key.to(compute), score, scale, width)
    if impl == "triton":
        from attn_course.heatmaps import kernel as gpu

        pool = gpu.pool
    else:
        pool = pooled_weights_reference
    return pool(query, key, bins=both, score=score, weight=weight, spans=spans, slopes=slopes)


def _spans(
    query_len: int,
    key_len: int,
    lens: Tensor | None,
    is_causal: bool,
    window: Window | None,
    device: torch.device,
) -> Spans | None:
    """Which keys each query may see; ``None`` where it is all of them."""
    left, right = check_window(window)
    right = 0 if is_causal else right
    if lens is None and left is None and right is None:
        return None
    position = torch.arange(query_len, device=device)
    begin, end = torch.zeros_like(position), torch.full_like(position, key_len)
    if left is not None:
        begin = (position - min(left, query_len)).clamp_min(0)
    if right is not None:
        end = (position + min(right, key_len) + 1).clamp_max(key_len)
    return begin, end if lens is None else torch.minimum(end, lens)


def _check_slopes(
    slopes: Tensor | None, batch_shape: tuple[int, ...], query: Tensor, score: str
) -> Tensor | None:
    """The slopes, in the precision of the computation."""
    if slopes is None:
        return None
    if score != "dot":
        raise ValueError(f"bias_slopes is for score='dot', got one with score={score!r}.")
    check_slopes(slopes, batch_shape, query.device)
    return slopes.to(wide_dtype(query.dtype))


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
    return weight.to(wide_dtype(query.dtype))


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
