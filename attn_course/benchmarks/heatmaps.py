"""Pooled attention weights: n queries, n keys, 64 coordinates, a picture of 128 x 128."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from attn_course.benchmarks.cases import FORWARD, Case, Function, Peer, random_inputs
from attn_course.benchmarks.kernel_regression import interpreted, matrices, no_triton
from attn_course.heatmaps import pooled_weights

DIM = 64

#: Queries that the two-pass form answers at a time.
CHUNK = 4096


def bins_of(size: int) -> int:
    """How many bins the picture has each way; they divide the sizes measured."""
    return min(128, size // 8)


def inputs(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Normally distributed queries and keys."""
    query, key = random_inputs([(size, DIM)] * 2, device, seed=size)
    return query, key


def expected(inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """Some rows of the picture, each from the exact weights of its queries."""
    query, key = inputs
    bins = bins_of(len(query))
    groups = query.unflatten(0, (bins, -1))[rows]  # [rows, queries a bin, dim]
    return torch.stack([_pool(_weights(group, key), bins).squeeze(0) for group in groups])


def _weights(query: Tensor, key: Tensor) -> Tensor:
    return torch.softmax(query @ key.mT / DIM**0.5, -1)


def _pool(weights: Tensor, bins: int) -> Tensor:
    """Mean over a bin's queries of the sum over a bin's keys; here one bin of queries."""
    return weights.mean(0, keepdim=True).unflatten(1, (bins, -1)).sum(2)


def full_matrix(query: Tensor, key: Tensor) -> Tensor:
    """All weights, stored, and then pooled."""
    bins = bins_of(len(query))
    weights = _weights(query, key)
    return weights.unflatten(0, (bins, -1)).mean(1).unflatten(1, (bins, -1)).sum(2)


def two_pass_chunk(query: Tensor, key: Tensor, bins: int, group: int) -> Tensor:
    """First the normaliser of each query of a chunk, then its weights, pooled."""
    scores = query @ key.mT / DIM**0.5  # [chunk, key_len]
    weights = torch.exp(scores - torch.logsumexp(scores, 1, keepdim=True))
    return weights.unflatten(1, (bins, -1)).sum(2).unflatten(0, (-1, group)).mean(1)


def two_pass(device: torch.device) -> Function:
    """``two_pass_chunk`` through torch.compile, over chunks of the queries."""
    torch.compiler.reset()
    chunk = torch.compile(two_pass_chunk, fullgraph=True, dynamic=False)

    def pooled(query: Tensor, key: Tensor) -> Tensor:
        bins = bins_of(len(query))
        group = len(query) // bins  # divides CHUNK: both are powers of two
        return torch.cat([chunk(part, key, bins, group) for part in query.split(CHUNK)])

    return pooled


def ours(device: torch.device, impl: str) -> Function:
    """The package's function, through one implementation."""

    def pooled(query: Tensor, key: Tensor) -> Tensor:
        return pooled_weights(query, key, bins=bins_of(len(query)), impl=impl)

    return pooled


def flops(size: int, direction: str) -> int:
    """A pair costs 2 d for its score and 2 to normalise and pool; the exponential is extra.

    What does not store the scores computes them twice.
    """
    return size * size * (2 * DIM + 2)


def bytes_moved(size: int, direction: str) -> int:
    """Query and key read, the picture written."""
    return 4 * (2 * size * DIM + bins_of(size) ** 2)


CASE = Case(
    name="heatmaps",
    title="Pooled attention weights, n queries and n keys in 64 dimensions",
    inputs=inputs,
    expected=expected,
    peers=(
        Peer("auto", partial(ours, impl="auto"), ours=True, devices=("cpu",)),
        Peer(
            "triton",
            partial(ours, impl="triton"),
            ours=True,
            why_not=no_triton,
            why_untimed=interpreted,
        ),
        Peer("full matrix", lambda device: full_matrix, need=partial(matrices, 3, 3)),
        Peer("torch.compile, two passes", two_pass, devices=("cuda",)),
    ),
    sizes={
        "cpu": {FORWARD: (1024, 4096, 8192)},
        "cuda": {FORWARD: (1 << 14, 1 << 16)},
    },
    quick_sizes={FORWARD: (256,)},
    flops=flops,
    bytes_moved=bytes_moved,
    rows=bins_of,
    max_rows=4,
    tiny=32,
)
