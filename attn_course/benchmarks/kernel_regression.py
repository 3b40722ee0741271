"""Kernel regression with a Gaussian: n queries, n keys, 3 coordinates, 1 value."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from attn_course.benchmarks.cases import BOTH, FORWARD, Case, Function, Peer, random_inputs
from attn_course.benchmarks.peers import kernel_peer, matrices
from attn_course.kernel_regression import kernel_regression

DIM, VALUE_DIM = 3, 1

#: Of the Gaussian; keys fill the unit cube, so that every query has near keys.
WIDTH = 0.1


def inputs(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys in the unit cube, and a wave with noise to look up."""
    query, key = random_inputs([(size, DIM)] * 2, device, seed=size, uniform=True)
    (noise,) = random_inputs([(size, VALUE_DIM)], device, seed=size + 1)
    return query, key, torch.sin(6 * key.sum(-1, keepdim=True)) + 0.1 * noise


def expected(inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """The formula, for some of the queries."""
    query, key, value = inputs
    difference = (query[rows].unsqueeze(1) - key) / WIDTH  # [rows, key_len, dim]
    return torch.softmax(-difference.square().sum(-1) / 2, -1) @ value


def naive(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The matrix of distances, its exponential, its rows divided by their sums."""
    weights = torch.exp(-((torch.cdist(query, key) / WIDTH) ** 2) / 2)
    return weights / weights.sum(1, keepdim=True) @ value


def fusible(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same, as sums that a compiler can merge into one loop over the keys."""
    difference = (query.unsqueeze(1) - key) / WIDTH
    weights = torch.exp(-difference.square().sum(-1) / 2)
    return (weights * value.mT).sum(1, keepdim=True) / weights.sum(1, keepdim=True)


def keops(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Charlier et al. (2021): numerator and denominator in one symbolic reduction."""
    from pykeops.torch import LazyTensor

    rows = LazyTensor((query / WIDTH).unsqueeze(1).contiguous())
    columns = LazyTensor((key / WIDTH).unsqueeze(0).contiguous())
    weights = (-((rows - columns) ** 2).sum(-1) / 2).exp()
    sums = weights @ torch.cat([value, torch.ones_like(value[:, :1])], 1)
    return sums[:, :-1] / sums[:, -1:]


def ours(device: torch.device, impl: str) -> Function:
    """The package's function, through one implementation."""
    return partial(kernel_regression, width=WIDTH, impl=impl)


def compiled(device: torch.device) -> Function:
    """``fusible`` through torch.compile, forgetting what it compiled for other sizes."""
    torch.compiler.reset()
    return torch.compile(fusible, fullgraph=True, dynamic=False)


def no_keops(device: torch.device) -> str:
    """Why KeOps cannot run."""
    return "" if find_spec("pykeops") else "not installed"


def flops(size: int, direction: str) -> int:
    """A pair costs 3 d + 2 v; with the backward pass 10 d + 6 v + 2; the exponential is extra.

    Backward: the distance again (3 d), e = g.v - g.o (2 v) and its two factors (2), and the
    sums for query, key and value (2 d, 2 d and 2 v).
    """
    forward = 3 * DIM + 2 * VALUE_DIM
    backward = 7 * DIM + 4 * VALUE_DIM + 2
    return size * size * (forward if direction == FORWARD else forward + backward)


def bytes_moved(size: int, direction: str) -> int:
    """Query, key and value read, the output written; backward reads all and their gradients."""
    tensors = 4 * size * (2 * DIM + 2 * VALUE_DIM)
    return tensors if direction == FORWARD else 3 * tensors


CASE = Case(
    name="kernel_regression",
    title="Kernel regression, n queries and n keys in 3 dimensions, Gaussian",
    inputs=inputs,
    expected=expected,
    peers=(
        Peer("auto", partial(ours, impl="auto"), ours=True, devices=("cpu",)),
        kernel_peer(partial(ours, impl="triton")),
        Peer("blocked", partial(ours, impl="blocked"), ours=True, devices=("cuda",)),
        Peer("naive", lambda device: naive, need=partial(matrices, 3, 8)),
        Peer(
            "torch.compile",
            compiled,
            devices=("cuda",),
            need=partial(matrices, 0, 3),
        ),
        Peer("KeOps", lambda device: keops, why_not=no_keops),
    ),
    sizes={
        "cpu": {FORWARD: (1024, 4096, 20_000), BOTH: (1024, 4096)},
        "cuda": {FORWARD: (1 << 14, 1 << 16, 1 << 18, 1 << 20), BOTH: (1 << 14, 1 << 16)},
    },
    quick_sizes={FORWARD: (256,), BOTH: (256,)},
    flops=flops,
    bytes_moved=bytes_moved,
)
