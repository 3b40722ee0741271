"""Masked softmax: n queries and n keys, each query with a valid length of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from attn_course import _d2l
from attn_course.benchmarks.cases import BOTH, FORWARD, Case, Function, Peer, random_inputs
from attn_course.benchmarks.peers import kernel_peer, matrices, no_d2l
from attn_course.scoring import masked_softmax


@lru_cache
def lens_of(size: int, device: torch.device) -> Tensor:
    """From 1 to n keys for each query; not 0, for which not every peer gives zeros."""
    generator = torch.Generator().manual_seed(size)
    return torch.randint(1, size + 1, (size,), generator=generator).to(device)


def inputs(size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Normally distributed scores."""
    return random_inputs([(size, size)], device, seed=size)


def expected(inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """Exponentials over their sum, where a key counts, for some of the queries."""
    (scores,) = inputs
    counts = torch.arange(len(scores)) < lens_of(len(scores), scores.device)[rows].unsqueeze(-1)
    exponentials = scores[rows].exp() * counts
    return exponentials / exponentials.sum(-1, keepdim=True)


def fill(scores: Tensor, lens: Tensor) -> Tensor:
    """What one writes by hand."""
    masked = torch.arange(scores.shape[-1], device=scores.device) >= lens.unsqueeze(-1)
    return scores.masked_fill(masked, -torch.inf).softmax(-1)


def with_lens(function: Callable[..., Tensor]) -> Function:
    """A function of scores and lengths as one of the scores."""
    return lambda scores: function(scores, lens_of(len(scores), scores.device))


def compiled(device: torch.device) -> Function:
    """``fill`` through torch.compile, forgetting what it compiled for other sizes."""
    torch.compiler.reset()
    return with_lens(torch.compile(fill, fullgraph=True, dynamic=False))


def d2l(device: torch.device) -> Function:
    """Zhang et al.'s function, on a copy of the scores, since it changes them."""
    function = _d2l.load().masked_softmax
    return with_lens(lambda scores, lens: function(scores.clone()[None], lens[None])[0])


def ours(device: torch.device, impl: str) -> Function:
    """The package's function, through one implementation."""
    return with_lens(partial(masked_softmax, impl=impl))


def flops(size: int, direction: str) -> int:
    """A weight costs a maximum, a difference, a sum and a product; 4 more to go back."""
    return size * size * (4 if direction == FORWARD else 8)


def bytes_moved(size: int, direction: str) -> int:
    """Scores read where they count, which is half of them, and weights written.

    Backward: weights and their gradient read there, and the scores' gradient written.
    """
    return 4 * size * size * (3 if direction == FORWARD else 3 + 4) // 2


CASE = Case(
    name="masked_softmax",
    title="Masked softmax, n queries and n keys, half of them masked",
    inputs=inputs,
    expected=expected,
    peers=(
        Peer("auto", partial(ours, impl="auto"), ours=True, devices=("cpu",)),
        kernel_peer(partial(ours, impl="triton")),
        Peer("masked_fill, softmax", lambda device: with_lens(fill), need=partial(matrices, 3, 5)),
        Peer("torch.compile", compiled, devices=("cuda",), need=partial(matrices, 2, 4)),
        Peer("d2l", d2l, devices=("cpu",), why_not=no_d2l, need=partial(matrices, 4, 6)),
    ),
    sizes={
        "cpu": {FORWARD: (512, 1024, 4096), BOTH: (512, 1024, 4096)},
        "cuda": {FORWARD: (1024, 4096, 1 << 14, 1 << 15), BOTH: (1024, 4096, 1 << 14)},
    },
    quick_sizes={FORWARD: (256,), BOTH: (256,)},
    flops=flops,
    bytes_moved=bytes_moved,
)
