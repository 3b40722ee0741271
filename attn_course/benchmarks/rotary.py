"""Rotary positions: 8 heads of 64 columns, n positions."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor

from attn_course.benchmarks.cases import BOTH, FORWARD, Case, Function, Peer, random_inputs
from attn_course.benchmarks.peers import kernel_peer
from attn_course.positional import rotate, sinusoid

HEADS, DIM = 8, 64


def inputs(size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Normally distributed queries, or keys, ``[n, heads * dim]``."""
    return random_inputs([(size, HEADS * DIM)], device, seed=size)


def expected(inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """Each pair times a matrix of cosines and sines, for some of the positions."""
    (x,) = inputs
    angle = rows[:, None] * 10000.0 ** (-torch.arange(0, DIM, 2, dtype=x.dtype) / DIM)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))  # [rows, pairs, 2, 2]
    pairs = x[rows].unflatten(-1, (HEADS, DIM // 2, 2))
    return torch.einsum("npij,nhpj->nhpi", turn, pairs).flatten(1)


def on_heads(function: Function) -> Function:
    """A function of ``[heads, n, dim]``, as attention has it, as one of the inputs."""

    def call(x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (HEADS, DIM)).transpose(0, 1)
        return function(heads).transpose(0, 1).flatten(1)

    return call


def ours(device: torch.device, impl: str) -> Function:
    """The package's function, through one implementation."""
    return on_heads(partial(rotate, impl=impl))


@lru_cache(maxsize=1)
def table(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sines and cosines of n positions, ``[n, pairs]`` each: made once, read at every call."""
    both = sinusoid(n, DIM, device=device)
    return both[:, 0::2].contiguous(), both[:, 1::2].contiguous()


def turn(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """What one writes by hand."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def from_table(device: torch.device) -> Function:
    """``turn``, with a table."""
    return on_heads(lambda x: turn(x, *table(x.shape[-2], x.device)))


def compiled(device: torch.device) -> Function:
    """``turn`` with a table through torch.compile, forgetting what it compiled before."""
    torch.compiler.reset()
    function = torch.compile(turn, fullgraph=True, dynamic=False)
    return on_heads(lambda x: function(x, *table(x.shape[-2], x.device)))


def as_complex(device: torch.device) -> Function:
    """A pair is a complex number, and to turn it is to multiply it by another; with a table."""

    def multiply(x: Tensor) -> Tensor:
        sin, cos = table(x.shape[-2], x.device)
        numbers = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(numbers * torch.complex(cos, sin)).flatten(-2)

    return on_heads(multiply)


def flops(size: int, direction: str) -> int:
    """Four products and two sums a pair; as many to go back."""
    return 3 * size * HEADS * DIM * (1 if direction == FORWARD else 2)


def bytes_moved(size: int, direction: str) -> int:
    """Each number read and written; to go back, its gradient too."""
    return 4 * size * HEADS * DIM * (2 if direction == FORWARD else 4)


CASE = Case(
    name="rotary",
    title="Rotary positions, 8 heads of 64 columns, n positions",
    inputs=inputs,
    expected=expected,
    peers=(
        Peer("auto", partial(ours, impl="auto"), ours=True, devices=("cpu",)),
        kernel_peer(partial(ours, impl="triton")),
        Peer("table", from_table),
        Peer("complex, table", as_complex),
        Peer("torch.compile, table", compiled, devices=("cuda",)),
    ),
    sizes={
        "cpu": {FORWARD: (1024, 4096, 16384), BOTH: (1024, 4096, 16384)},
        "cuda": {
            FORWARD: (1 << 12, 1 << 15, 1 << 18),
            BOTH: (1 << 12, 1 << 15, 1 << 18),
        },
    },
    quick_sizes={FORWARD: (256,), BOTH: (256,)},
    flops=flops,
    bytes_moved=bytes_moved,
)
