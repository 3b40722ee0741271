"""Chapter 8's exercises: what answers are tried on, and the right ones, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_course.exercises.framework import Case
from attn_course.long_sequences import memory_ledger


def _random(seed: int) -> Callable[..., Tensor]:
    """Normal numbers in float32, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


# 8.1 ---------------------------------------------------------------------------------


def _attend(x: Tensor, states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One item of the batch after the other."""
    answers = []
    for item in range(x.shape[1]):
        scores = F.linear(x[:, item], weight, bias) @ x[:, item].T
        answers.append(scores.softmax(1) @ states[:, item])
    return torch.stack(answers, 1)


def _sequence(
    name: str, steps: int, batch: int, width: int, hidden: int, seed: int, scale: float = 1.0
) -> Case:
    random = _random(seed)
    inputs = {
        "x": random(steps, batch, width),
        "states": random(steps, batch, hidden),
        "weight": scale * random(width, width),
        "bias": random(width),
    }
    return Case(name, inputs)


# In the first all sizes but that of the states are alike: nothing raises there.
_ATTEND_CASES = (
    _sequence("as many steps as items", 4, 4, 4, 4, 10),
    _sequence("seven steps of three items", 7, 3, 4, 5, 11),
    _sequence("two steps of five items", 2, 5, 3, 6, 12),
    _sequence("one item", 6, 1, 3, 4, 13),
    _sequence("one step", 1, 3, 2, 4, 14),
    _sequence("large scores", 5, 2, 6, 3, 15, scale=30.0),
)


# 8.2 ---------------------------------------------------------------------------------


class Network(nn.Module):
    """A GRU that computes in float64, whatever it is given, and counts its calls.

    Args:
        width: Of its input and of its states.
        seed: Chooses its weights.

    Attributes:
        calls: How often it has been called.
    """

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        random = _random(seed)
        self.gru = nn.GRU(width, width).double()
        with torch.no_grad():
            for parameter in self.gru.parameters():
                parameter.copy_(random(*parameter.shape))
        self.requires_grad_(False)
        self.calls, self.__name__ = 0, f"nn.GRU({width}, {width})"

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As ``nn.GRU``: all states and the last one, from a sequence and a first state."""
        self.calls += 1
        first = None if hidden is None else hidden.double()
        states, last = self.gru(x.double(), first)
        return states.to(x), last.to(x)


def _loop(memory: Tensor, rnn2: Network, weight: Tensor) -> Tensor:
    """As posted, step by step and item by item."""
    hidden, answers = None, []
    for step in memory:
        state, hidden = rnn2(step[None], hidden)
        found = []
        for item, query in enumerate(state[0]):
            weights = (memory[:, item] @ query).softmax(0)
            found.append(weights @ memory[:, item])
        answers.append((torch.cat((state[0], torch.stack(found)), 1) @ weight.T).tanh())
    return torch.stack(answers)


def _recurrent(name: str, steps: int, batch: int, width: int, seed: int) -> Case:
    random = _random(seed)
    inputs = {
        "memory": 1.5 * random(steps, batch, width),
        "rnn2": Network(width, seed + 100),
        "weight": 0.7 * random(width, 2 * width),
    }
    return Case(name, inputs)


# In the first as many steps as items: nothing raises there.
_UNLOOP_CASES = (
    _recurrent("as many steps as items", 5, 5, 4, 20),
    _recurrent("seven steps of three items", 7, 3, 4, 21),
    _recurrent("fourteen steps of three items", 14, 3, 4, 22),
    _recurrent("one item", 6, 1, 3, 23),
    _recurrent("two steps", 2, 4, 5, 24),
    _recurrent("one step", 1, 2, 3, 25),
)

#: Two of the cases that differ in the number of steps alone.
_SHORT, _LONG = _UNLOOP_CASES[1:3]


# 8.3 ---------------------------------------------------------------------------------

#: What ``((H @ M.mT).softmax(-1) @ M)`` has to do with, in this order.
TENSORS = ("H", "M", "scores", "weights", "output")

_DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


@cache
def _attention_bytes(batch: int, queries: int, keys: int, width: int, size: int) -> Tensor:
    """What the ledger says, tensor by tensor."""
    dtype = _DTYPES[size]
    H = torch.zeros(batch, queries, width, dtype=dtype, requires_grad=True)
    M = torch.zeros(batch, keys, width, dtype=dtype, requires_grad=True)
    with torch.enable_grad(), memory_ledger() as ledger:
        scores = H @ M.mT
        weights = scores.softmax(-1)
        output = weights @ M
        loss = output.sum()
    kept = {(row.op, row.bytes) for row in ledger.rows if row.kind == "activation"}
    before = sorted(row.bytes for row in ledger.rows if row.kind == "input")
    del loss
    assert kept == {("softmax", weights.nbytes)} and before == sorted((H.nbytes, M.nbytes))
    return torch.tensor([H.nbytes, M.nbytes, 0, weights.nbytes, 0], dtype=torch.float64)


@cache
def _stack_bytes(batch: int, steps: int, width: int, layers: int, size: int) -> Tensor:
    """What the ledger says of layers that were run."""
    dtype = _DTYPES[size]
    x = torch.zeros(batch, steps, width, dtype=dtype)
    maps = [nn.Parameter(torch.zeros(width, width, dtype=dtype)) for _ in range(layers)]
    with torch.enable_grad(), memory_ledger() as ledger:
        for W in maps:
            h = x @ W
            x = ((h @ h.mT).softmax(-1) @ h).relu()
        loss = x.sum()
    total = ledger.total
    del loss
    return torch.tensor(total, dtype=torch.float64)


def _sizes(*names: str) -> Callable[..., Case]:
    return lambda name, *numbers: Case(name, dict(zip(names, numbers, strict=True)))


_kept = _sizes("batch", "queries", "keys", "width", "size")

# In the first no two numbers have a product in common that would hide a mistake.
_LEDGER_CASES = (
    _kept("sizes that differ", 3, 5, 7, 11, 4),
    _kept("as many queries as keys", 4, 8, 8, 6, 4),
    _kept("one sequence", 1, 9, 4, 3, 4),
    _kept("double precision", 2, 6, 5, 7, 8),
    _kept("half precision", 2, 6, 5, 7, 2),
    _kept("one query", 5, 1, 6, 2, 4),
    _kept("a long sequence", 2, 200, 200, 4, 4),
)

_stacked = _sizes("batch", "steps", "width", "layers", "size")

_STACK_CASES = (
    _stacked("three layers", 3, 5, 7, 3, 4),
    _stacked("one layer", 2, 7, 5, 1, 4),
    _stacked("one sequence", 1, 6, 11, 2, 4),
    _stacked("double precision", 2, 4, 3, 2, 8),
    _stacked("half precision", 2, 4, 3, 4, 2),
    _stacked("a long sequence", 2, 60, 3, 2, 4),
)


# 8.4 ---------------------------------------------------------------------------------


def _read(path: Sequence[int]) -> list[int]:
    """What a path says: the first step of each run, but those of blanks."""
    before = [None, *path]
    return [step for step, last in zip(path, before, strict=False) if step not in (last, 0)]


def _labels(label: Sequence[int], room: int) -> Tensor:
    """Labels as a tensor ``[room]``; -1 where there are no more."""
    return torch.tensor([*label, *[-1] * room][:room], dtype=torch.float64)


def _collapse(path: list[int]) -> Tensor:
    return _labels(_read(path), len(path))


def _path(name: str, *path: int) -> Case:
    return Case(name, {"path": list(path)})


_COLLAPSE_CASES = (
    _path("a character twice, a blank between", 1, 1, 1, 0, 1, 2, 2, 0, 0, 3),
    _path("blanks at both ends", 0, 0, 2, 2, 0, 1, 0, 0),
    _path("a character that comes back", 1, 2, 1, 1, 3, 2),
    _path("a run at the end", 3, 0, 3, 3, 3, 3),
    _path("blanks alone", 0, 0, 0),
    _path("one character", 4, 4, 4, 4),
    _path("one step", 2),
    _path("labels out of order", 5, 0, 3, 3, 0, 0, 4, 1, 1),
)


def _paths(steps: int, classes: int) -> list[tuple[int, ...]]:
    return list(itertools.product(range(classes), repeat=steps))


def _probability(probs: Tensor, label: list[int]) -> Tensor:
    """By chapter 8's recursion: the label with blanks around, and sums over ways to get there."""
    places = [0]
    for number in label:
        places += [number, 0]
    sums = [probs.new_ones(()), *[probs.new_zeros(())] * len(places)]  # the first: not begun
    for p in probs:
        after = [probs.new_zeros(())]
        for s, number in enumerate(places, 1):
            ways = sums[s] + sums[s - 1]
            # From one character to a different one, or from nowhere to the first one.
            if s >= 2 and number != 0 and (s == 2 or number != places[s - 3]):
                ways = ways + sums[s - 2]
            after.append(p[number] * ways)
        sums = after
    return sums[-1] + (sums[-2] if label else 0)


def _said(name: str, steps: int, classes: int, label: list[int], seed: int) -> Case:
    probs = _random(seed)(steps, classes).softmax(1)
    return Case(name, {"probs": probs, "label": label})


# Small enough that all paths can be walked: 4^5 at most.
_PROBABILITY_CASES = (
    _said("the same character twice", 5, 3, [1, 1], 40),
    _said("two characters", 4, 3, [2, 1], 41),
    _said("one character", 4, 3, [1], 42),
    _said("three characters", 5, 4, [3, 1, 3], 43),
    _said("no character", 2, 3, [], 44),
    _said("a label that just fits", 3, 3, [2, 2], 45),
    _said("a label that does not fit", 2, 3, [1, 1], 46),
    _said("one step", 1, 3, [2], 47),
)


# 8.5 ---------------------------------------------------------------------------------


def _sliding(n: int, window: int, dilation: int) -> Tensor:
    """Step by step to both sides: 1 where a query sees a key."""
    table = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for step in range(-window, window + 1):
            if 0 <= (j := i + step * dilation) < n:
                table[i, j] = 1
    return table


def _blocks(n: int, size: int) -> Tensor:
    table = torch.zeros(n, n, dtype=torch.float64)
    for start in range(0, n, size):
        table[start : start + size, start : start + size] = 1
    return table


def _reached(mask: Tensor, layers: int) -> Tensor:
    """For each query, who it hears of: layer by layer, from the top."""
    n = len(mask)
    sees = [{j for j in range(n) if row[j]} for row in mask.tolist()]
    table = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        heard = {i}
        for _ in range(layers):
            heard = set().union(*(sees[step] for step in heard))
        table[i, list(heard)] = 1
    return table


def _causal(n: int, window: int) -> Tensor:
    return _sliding(n, window, 1).tril()


_steps = _sizes("n", "window", "dilation")

_SLIDING_CASES = (
    _steps("a dilated window", 15, 2, 3),
    _steps("a plain window", 12, 3, 1),
    _steps("a wide dilation", 20, 2, 7),
    _steps("one step to each side", 6, 1, 1),
    _steps("a window of its own step", 5, 0, 1),
    _steps("a window wider than the sequence", 4, 6, 1),
    _steps("one step in all", 1, 2, 2),
)

_pieces = _sizes("n", "size")

_BLOCK_CASES = (
    _pieces("a last block that is shorter", 14, 4),
    _pieces("blocks that divide", 12, 3),
    _pieces("one block", 5, 5),
    _pieces("blocks of one", 4, 1),
    _pieces("a block longer than the sequence", 3, 8),
)


def _stack_of(name: str, mask: Tensor, layers: int) -> Case:
    return Case(name, {"mask": mask.bool(), "layers": layers})


# The first is not symmetric: who sees whom matters.
_REACH_CASES = (
    _stack_of("causal windows, three layers", _causal(14, 2), 3),
    _stack_of("sliding windows, two layers", _sliding(13, 2, 1), 2),
    _stack_of("dilated windows, two layers", _sliding(16, 1, 3), 2),
    _stack_of("blocks, four layers", _blocks(10, 4), 4),
    _stack_of("one layer", _sliding(8, 2, 1), 1),
    _stack_of("windows to the right, four layers", _causal(12, 1).T, 4),
    _stack_of("enough layers for all", _sliding(6, 2, 1), 5),
)


# 8.6 ---------------------------------------------------------------------------------


def _near(n: int, left: int, right: int) -> Tensor:
    """Whether query i sees key j."""
    ahead = torch.arange(n) - torch.arange(n)[:, None]
    return (ahead >= -left) & (ahead <= right)


def _window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    left: int,
    right: int,
    block_m: int,
    block_n: int,
) -> Tensor:
    scores = query @ key.T / query.shape[1] ** 0.5
    return scores.masked_fill(~_near(len(query), left, right), -torch.inf).softmax(1) @ value


@cache
def _span(tile: int, n: int, left: int, right: int, block_m: int, block_n: int) -> tuple[int, int]:
    """The first tile of keys that a tile of queries needs, and the one after the last."""
    near = _near(n, left, right)[tile * block_m : (tile + 1) * block_m].any(0).nonzero()
    return int(near.min()) // block_n, int(near.max()) // block_n + 1


def _window_tiles(**given: Any) -> Tensor:
    """How many tiles of keys each program needs."""
    n, block_m = len(given["query"]), given["block_m"]
    rest = (given["left"], given["right"], block_m, given["block_n"])
    spans = [_span(tile, n, *rest) for tile in range(-(-n // block_m))]
    return torch.tensor([stop - start for start, stop in spans], dtype=torch.float64)


def _windowed(
    name: str, n: int, dim: int, window: tuple[int, int], blocks: tuple[int, int], seed: int
) -> Case:
    random = _random(seed)
    inputs = {part: 1.5 * random(n, dim) for part in ("query", "key", "value")}
    left, right = window
    block_m, block_n = blocks
    rest = {"left": left, "right": right, "block_m": block_m, "block_n": block_n}
    return Case(name, {**inputs, **rest})


# In the first the edges of a window fall on those of tiles: who is one key short, loses a key.
_WINDOW_CASES = (
    _windowed("edges on the edges of tiles", 18, 4, (5, 1), (4, 4), 60),
    _windowed("tiles of queries that are the larger ones", 18, 2, (3, 6), (8, 4), 61),
    _windowed("tiles of keys that are the larger ones", 19, 2, (9, 3), (4, 8), 62),
    _windowed("a causal window", 14, 2, (6, 0), (4, 4), 63),
    _windowed("a window that looks ahead only", 10, 2, (0, 5), (4, 4), 64),
    _windowed("the page's forty tokens", 40, 2, (5, 2), (16, 8), 65),
    _windowed("a window wider than the sequence", 9, 2, (40, 40), (4, 4), 66),
    _windowed("one tile, not full", 7, 4, (2, 2), (16, 16), 67),
)
