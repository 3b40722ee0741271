"""Additive attention: n queries and n keys, 128 hidden units, values of 128."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from attn_course import _d2l
from attn_course.benchmarks.cases import BOTH, FORWARD, Case, Function, Peer, random_inputs
from attn_course.benchmarks.peers import kernel_peer, no_d2l
from attn_course.scoring import additive_attention

HIDDEN, VALUE_DIM = 128, 128


def inputs(size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Normally distributed; the weight small enough that scores have a spread of about 1."""
    shapes: list[tuple[int, ...]] = [(size, HIDDEN)] * 2 + [(size, VALUE_DIM), (HIDDEN,)]
    query, key, value, weight = random_inputs(shapes, device, seed=size)
    return query, key, value, weight * HIDDEN**-0.5


def expected(inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """The formula, for some of the queries."""
    query, key, value, weight = inputs
    return eager(query[rows], key, value, weight)


def eager(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """With all hidden numbers stored, and kept for the backward pass."""
    hidden = torch.tanh(query.unsqueeze(1) + key)  # [n, n, hidden]
    return torch.softmax(hidden @ weight, -1) @ value


def fusible(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """The same, with a sum that a compiler can merge with what is summed."""
    scores = (torch.tanh(query.unsqueeze(1) + key) * weight).sum(-1)
    return torch.softmax(scores, -1) @ value


def compiled(device: torch.device) -> Function:
    """``fusible`` through torch.compile, forgetting what it compiled for other sizes."""
    torch.compiler.reset()
    return torch.compile(fusible, fullgraph=True, dynamic=False)


class _Weigh(nn.Module):
    """In the place of d2l's last layer: the weight, as an argument."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weigh = weight

    def forward(self, hidden: Tensor) -> Tensor:
        return (hidden @ self.weigh).unsqueeze(-1)


def d2l(device: torch.device) -> Function:
    """Zhang et al.'s layer, without the projections, since ours come projected."""
    layer = _d2l.load().AdditiveAttention(HIDDEN, dropout=0.0)
    layer.W_q, layer.W_k = nn.Identity(), nn.Identity()

    def attend(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        layer.w_v = _Weigh(weight)
        output: Tensor = layer(query[None], key[None], value[None], None)[0]
        return output

    return attend


def ours(device: torch.device, impl: str) -> Function:
    """The package's function, through one implementation."""
    return partial(additive_attention, impl=impl)


def hidden_axis(count: int, count_backward: int, size: int, direction: str) -> int:
    """Bytes of as many float32 tensors of n x n x hidden."""
    return 4 * size * size * HIDDEN * (count if direction == FORWARD else count_backward)


def flops(size: int, direction: str) -> int:
    """A pair costs 3 for each hidden unit and 2 v; tanh is extra.

    Backward: the score again (3 for each unit), e = p (g.v - g.o) (2 v), the sums for query,
    key and weight (5, 1 and 2 for each unit, with tanh' = 1 - tanh^2) and for the value (2 v).
    """
    forward = 3 * HIDDEN + 2 * VALUE_DIM
    backward = (3 + 8) * HIDDEN + 4 * VALUE_DIM
    return size * size * (forward if direction == FORWARD else forward + backward)


def bytes_moved(size: int, direction: str) -> int:
    """Query, key and value read, the output written; backward reads all and their gradients."""
    tensors = 4 * size * (2 * HIDDEN + 2 * VALUE_DIM)
    return tensors if direction == FORWARD else 3 * tensors


CASE = Case(
    name="additive_attention",
    title="Additive attention, n queries and n keys, 128 hidden units, values of 128",
    inputs=inputs,
    expected=expected,
    peers=(
        Peer("auto", partial(ours, impl="auto"), ours=True, devices=("cpu",)),
        kernel_peer(partial(ours, impl="triton")),
        Peer("blocked", partial(ours, impl="blocked"), ours=True, devices=("cuda",)),
        Peer("eager", lambda device: eager, need=partial(hidden_axis, 2, 3)),
        Peer("torch.compile", compiled, devices=("cuda",)),
        Peer("d2l", d2l, devices=("cpu",), why_not=no_d2l, need=partial(hidden_axis, 2, 3)),
    ),
    # From 256 on, which is 2^23 hidden numbers, "auto" means blocks on a CPU.
    sizes={
        "cpu": {FORWARD: (256, 512, 1024, 2048), BOTH: (256, 512, 1024)},
        "cuda": {FORWARD: (1024, 4096, 1 << 14), BOTH: (1024, 4096, 1 << 14)},
    },
    quick_sizes={FORWARD: (256,), BOTH: (256,)},
    flops=flops,
    bytes_moved=bytes_moved,
    max_rows=32,
    tiny=32,
)
