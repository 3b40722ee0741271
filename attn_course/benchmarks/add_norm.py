"""Add & norm: n tokens of 512 numbers, and an update to each."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from attn_course import _d2l
from attn_course.benchmarks.cases import BOTH, FORWARD, Case, Function, Peer, random_inputs
from attn_course.benchmarks.peers import kernel_peer, no_d2l
from attn_course.transformer import add_norm

#: Of Vaswani et al.'s base model.
DIM = 512

EPS = 1e-5


def inputs(size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Tokens, their updates, and the scale and shift of each column."""
    return random_inputs([(size, DIM), (size, DIM), (DIM,), (DIM,)], device, seed=size)


def expected(inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """The formula, for some of the tokens."""
    x, update, weight, bias = inputs
    total = x[rows] + update[rows]
    variance, mean = torch.var_mean(total, -1, correction=0, keepdim=True)
    return (total - mean) / (variance + EPS).sqrt() * weight + bias


def plain(x: Tensor, update: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What one writes by hand."""
    return F.layer_norm(x + update, (DIM,), weight, bias, EPS)


def compiled(device: torch.device) -> Function:
    """``plain`` through torch.compile, forgetting what it compiled for other sizes."""
    torch.compiler.reset()
    return torch.compile(plain, fullgraph=True, dynamic=False)


def d2l(device: torch.device) -> Function:
    """Zhang et al.'s module, with the scale and shift that are given."""
    module: nn.Module = _d2l.load().AddNorm(DIM, dropout=0.0)

    def call(x: Tensor, update: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        output: Tensor = functional_call(
            module, {"ln.weight": weight, "ln.bias": bias}, (x, update)
        )
        return output

    return call


def ours(device: torch.device, impl: str) -> Function:
    """The package's function, through one implementation."""
    return partial(add_norm, eps=EPS, impl=impl)


def flops(size: int, direction: str) -> int:
    """A number costs the sum, 4 for mean and variance, 3 to be placed; 13 more to go back."""
    return size * DIM * (8 if direction == FORWARD else 8 + 13)


def bytes_moved(size: int, direction: str) -> int:
    """Token and update read, the output written.

    Backward: these two read again, or their sum written and read, the gradient read, and one
    written that serves both.
    """
    return 4 * size * DIM * (3 if direction == FORWARD else 3 + 4)


CASE = Case(
    name="add_norm",
    title="Add & norm, n tokens of 512 numbers",
    inputs=inputs,
    expected=expected,
    peers=(
        Peer("auto", partial(ours, impl="auto"), ours=True, devices=("cpu",)),
        kernel_peer(partial(ours, impl="triton")),
        Peer("reference", partial(ours, impl="reference"), ours=True),
        Peer("x + u, layer_norm", lambda device: plain),
        Peer("torch.compile", compiled, devices=("cuda",)),
        Peer("d2l", d2l, devices=("cpu",), why_not=no_d2l),
    ),
    sizes={
        "cpu": {FORWARD: (512, 4096, 1 << 15), BOTH: (512, 4096, 1 << 15)},
        "cuda": {
            FORWARD: (1 << 12, 1 << 14, 1 << 16, 1 << 18),
            BOTH: (1 << 12, 1 << 14, 1 << 16),
        },
    },
    quick_sizes={FORWARD: (256,), BOTH: (256,)},
    flops=flops,
    bytes_moved=bytes_moved,
)
