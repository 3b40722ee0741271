"""Pooled attention weights: n queries, n keys, 64 coordinates, a picture of 128 x 128.

Three cases: every query sees every key, the keys up to its own, or those in a window.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from attn_course.benchmarks.cases import FORWARD, Case, Function, Peer, random_inputs
from attn_course.benchmarks.peers import kernel_peer, matrices
from attn_course.heatmaps import pooled_weights

DIM = 64

#: Queries that the two-pass form answers at a time.
CHUNK = 4096

ALL, CAUSAL, WINDOWED = "all", "causal", "windowed"


def bins_of(size: int) -> int:
    """How many bins the picture has each way; they divide the sizes measured."""
    return min(128, size // 8)


def window_of(size: int) -> int:
    """How many keys a windowed query sees to each side."""
    return min(256, size // 4)


def inputs(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Normally distributed queries and keys."""
    query, key = random_inputs([(size, DIM)] * 2, device, seed=size)
    return query, key


def expected(inputs: tuple[Tensor, ...], rows: Tensor, mask: str) -> Tensor:
    """Some rows of the picture, each from the exact weights of its queries."""
    query, key = inputs
    bins = bins_of(len(query))
    places = torch.arange(len(query)).unflatten(0, (bins, -1))[rows]  # [rows, queries a bin]
    return torch.stack(
        [_pool(_scores(query[i], key, i, mask).softmax(-1), bins).squeeze(0) for i in places]
    )


def _scores(query: Tensor, key: Tensor, places: Tensor, mask: str) -> Tensor:
    """Of the queries at some places with all keys, -inf where the mask hides."""
    scores = query @ key.mT / DIM**0.5
    if mask == ALL:
        return scores
    ahead = torch.arange(len(key), device=key.device) - places[:, None]
    hidden = ahead > 0 if mask == CAUSAL else ahead.abs() > window_of(len(key))
    return scores.masked_fill(hidden, -torch.inf)


def _pool(weights: Tensor, bins: int) -> Tensor:
    """Mean over a bin's queries of the sum over a bin's keys; here one bin of queries."""
    return weights.mean(0, keepdim=True).unflatten(1, (bins, -1)).sum(2)


def full_matrix(device: torch.device, mask: str) -> Function:
    """All weights, stored, and then pooled."""

    def pooled(query: Tensor, key: Tensor) -> Tensor:
        bins = bins_of(len(query))
        weights = _scores(query, key, torch.arange(len(query), device=device), mask).softmax(-1)
        return weights.unflatten(0, (bins, -1)).mean(1).unflatten(1, (bins, -1)).sum(2)

    return pooled


def two_pass_chunk(
    query: Tensor, key: Tensor, places: Tensor, mask: str, bins: int, group: int
) -> Tensor:
    """First the normaliser of each query of a chunk, then its weights, pooled."""
    scores = _scores(query, key, places, mask)  # [chunk, key_len]
    weights = torch.exp(scores - torch.logsumexp(scores, 1, keepdim=True))
    return weights.unflatten(1, (bins, -1)).sum(2).unflatten(0, (-1, group)).mean(1)


def two_pass(device: torch.device, mask: str) -> Function:
    """``two_pass_chunk`` through torch.compile, over chunks of the queries."""
    torch.compiler.reset()
    chunk = torch.compile(two_pass_chunk, fullgraph=True, dynamic=False)

    def pooled(query: Tensor, key: Tensor) -> Tensor:
        bins = bins_of(len(query))
        group = len(query) // bins  # divides CHUNK: both are powers of two
        places = torch.arange(len(query), device=device)
        parts = zip(query.split(CHUNK), places.split(CHUNK), strict=True)
        return torch.cat([chunk(part, key, mine, mask, bins, group) for part, mine in parts])

    return pooled


def ours(device: torch.device, mask: str, impl: str) -> Function:
    """The package's function, through one implementation."""

    def pooled(query: Tensor, key: Tensor) -> Tensor:
        n = len(query)
        options: dict[str, Any] = {"is_causal": mask == CAUSAL}
        if mask == WINDOWED:
            options["window"] = (window_of(n), window_of(n))
        return pooled_weights(query, key, bins=bins_of(n), impl=impl, **options)

    return pooled


def flops(size: int, direction: str, mask: str) -> int:
    """A pair costs 2 d for its score and 2 to normalise and pool; the exponential is extra.

    What does not store the scores computes them twice.
    """
    width = window_of(size)
    pairs = {
        ALL: size * size,
        CAUSAL: size * (size + 1) // 2,
        WINDOWED: size * (2 * width + 1) - width * (width + 1),
    }
    return pairs[mask] * (2 * DIM + 2)


def bytes_moved(size: int, direction: str) -> int:
    """Query and key read, the picture written."""
    return 4 * (2 * size * DIM + bins_of(size) ** 2)


def case(name: str, what: str, mask: str, sizes: dict[str, tuple[int, ...]]) -> Case:
    """One of the three; they differ in what a query may see."""
    return Case(
        name=name,
        title=f"Pooled attention weights, n queries and n keys in 64 dimensions{what}",
        inputs=inputs,
        expected=partial(expected, mask=mask),
        peers=(
            Peer("auto", partial(ours, mask=mask, impl="auto"), ours=True, devices=("cpu",)),
            kernel_peer(partial(ours, mask=mask, impl="triton")),
            Peer("full matrix", partial(full_matrix, mask=mask), need=partial(matrices, 3, 3)),
            Peer("torch.compile, two passes", partial(two_pass, mask=mask), devices=("cuda",)),
        ),
        sizes={device: {FORWARD: some} for device, some in sizes.items()},
        quick_sizes={FORWARD: (256,)},
        flops=partial(flops, mask=mask),
        bytes_moved=bytes_moved,
        rows=bins_of,
        max_rows=4,
        tiny=32,
    )


_CUDA = {"cuda": (1 << 14, 1 << 16)}
CASE = case("heatmaps", "", ALL, {"cpu": (1024, 4096, 8192), **_CUDA})
MORE = (
    case("heatmaps_causal", ", causal", CAUSAL, {"cpu": (4096, 1 << 14), **_CUDA}),
    case("heatmaps_windowed", ", 256 each way", WINDOWED, {"cpu": (4096, 1 << 14), **_CUDA}),
)
