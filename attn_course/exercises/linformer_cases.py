"""Chapter 9's exercises: what answers are tried on, and the right ones, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_course.exercises.framework import Case


def _random(seed: int) -> Callable[..., Tensor]:
    """Normal numbers in float32, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


# 9.1 ---------------------------------------------------------------------------------


def _linformer(query: Tensor, key: Tensor, value: Tensor, E: Tensor, F_: Tensor) -> Tensor:
    """Query by query: what each slot weighs, and what that makes of each position."""
    slots = torch.einsum("sj,jd->sd", E, key)
    answers = []
    for q in query:
        weights = torch.stack([q @ slot for slot in slots]).div(len(q) ** 0.5).softmax(0)
        answers.append((weights @ F_) @ value)
    return torch.stack(answers)


def _projected(
    name: str, m: int, n: int, k: int, d: int, c: int, seed: int, scale: float = 1.0
) -> Case:
    random = _random(seed)
    inputs = {"query": scale * random(m, d), "key": random(n, d), "value": random(n, c)}
    return Case(name, inputs | {"E": random(k, n), "F_": random(k, n)})


def _identical(name: str, n: int, seed: int) -> Case:
    case = _projected(name, n, n, n, 3, 2, seed)
    return Case(name, case.inputs | {"E": torch.eye(n), "F_": torch.eye(n)})


# In the first all sizes are alike: nothing raises there.
_LINFORMER_CASES = (
    _projected("as many slots as positions, queries and columns", 4, 4, 4, 4, 4, 10),
    _projected("nine positions in three slots", 5, 9, 3, 6, 2, 11),
    _identical("as many slots as positions, E and F the identity", 5, 12),
    _projected("one slot", 3, 7, 1, 4, 4, 13),
    _projected("one query", 1, 8, 3, 2, 5, 14),
    _projected("one position", 2, 1, 1, 3, 3, 15),
    _projected("large scores", 4, 6, 3, 5, 2, 16, scale=30.0),
)


# 9.2 ---------------------------------------------------------------------------------


def _padded(
    query: Tensor, key: Tensor, value: Tensor, E: Tensor, F_: Tensor, lens: Tensor
) -> Tensor:
    """Item by item, each cut to its length."""
    answers = []
    for q, k, v, count in zip(query, key, value, lens.tolist(), strict=True):
        answers.append(_linformer(q, k[:count], v[:count], E[:, :count], F_[:, :count]))
    return torch.stack(answers)


def _batch(
    name: str, lens: list[int], sizes: tuple[int, ...], seed: int, padding: float | None = None
) -> Case:
    """Padding holds other numbers, or all of it ``padding``."""
    random, (m, n, k, d, c) = _random(seed), sizes
    key, value = random(len(lens), n, d), random(len(lens), n, c)
    for item, count in enumerate(lens):
        for x in (key, value):
            x[item, count:] = 2 * x[item, count:] + 1 if padding is None else padding
    inputs = {"query": random(len(lens), m, d), "key": key, "value": value}
    return Case(name, inputs | {"E": random(k, n), "F_": random(k, n), "lens": torch.tensor(lens)})


# In the first some lengths are below the number of slots, and none is alike.
_PADDED_CASES = (
    _batch("lengths 6, 3, 1 and 2 of 7", [6, 3, 1, 2], (3, 7, 4, 4, 4), 20),
    _batch("one whole sequence and one shorter one", [9, 4], (2, 9, 3, 5, 2), 21),
    _batch("nothing padded", [5, 5, 5], (4, 5, 2, 3, 3), 22),
    _batch("NaN in the padding", [4, 2, 6], (3, 6, 3, 4, 2), 23, padding=torch.nan),
    _batch("infinity in the padding", [3, 5], (2, 5, 2, 4, 3), 24, padding=torch.inf),
    _batch("an item of padding alone", [0, 3], (3, 4, 2, 2, 2), 25),
    _batch("one item", [2], (2, 6, 3, 3, 4), 26),
)


# 9.3 ---------------------------------------------------------------------------------

_WIDTH = 16

#: The layers of 9.3, and what is to be said of each.
_SUSPECTS = {
    "A": "own block",
    "B": "triangle on n x k",
    "C": "one step ahead",
    "D": "causal",
}


class Suspect(nn.Module):
    """Self-attention of one head with random weights, and perhaps a leak.

    Args:
        kind: ``"causal"``; ``"blocks"``, which is causal too; or the name of a fault.
        n: Positions.
        seed: Chooses the weights.
        dropout: Of the output, while training.
        centred: Whether the mean of each position's columns is taken away first.
        silent: Whether the first column of the output is always 0.
        balanced: Whether each output's last eight columns are the first eight, negative.
    """

    def __init__(
        self,
        kind: str,
        n: int,
        seed: int,
        *,
        dropout: float = 0.0,
        centred: bool = False,
        silent: bool = False,
        balanced: bool = False,
    ) -> None:
        super().__init__()
        random = _random(seed)
        self.kind, self.dropout, self.centred = kind, dropout, centred
        self.silent, self.balanced = silent, balanced
        self.maps = [random(_WIDTH, _WIDTH).double() / _WIDTH**0.5 for _ in range(3)]
        self.slots = max(1, n // 2)
        self.E = random(self.slots, n).double()
        self.e = random(2, 4).double()  # two slots for each block of four
        self.eval()
        self.__name__ = "a layer"

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[n, 16]`` from inputs of the same shape."""
        given = x.double()
        if self.centred:
            given = given - given.mean(1, keepdim=True)
        q, k, v = (given @ W for W in self.maps)
        place = torch.arange(len(x))
        seen = place <= place[:, None]
        if self.kind == "one step ahead":
            seen = place <= place[:, None] + 1
        elif self.kind == "itself and two ahead":
            seen = (place == place[:, None]) | (place == place[:, None] + 2)
        elif self.kind == "triangle on n x k":
            seen = torch.arange(self.slots) <= place[:, None]
            k, v = self.E @ k, self.E @ v
        elif self.kind in ("blocks", "own block"):
            whole = len(x) // 4
            block = torch.arange(whole).repeat_interleave(2)
            late = 1 if self.kind == "own block" else 0
            before = block < place[:, None] // 4 + late
            own = seen & (place // 4 == place[:, None] // 4)
            seen = torch.cat([before, own], 1)
            k, v = (
                torch.cat([*(self.e @ piece for piece in y[: 4 * whole].split(4)), y])
                if whole
                else y
                for y in (k, v)
            )
        scores = (q @ k.T / _WIDTH**0.5).masked_fill(~seen, -torch.inf)
        output = scores.softmax(1) @ v
        if self.silent:
            output = output * (torch.arange(_WIDTH) > 0)
        if self.balanced:
            half = output[:, : _WIDTH // 2]
            output = torch.cat([half, -half], 1)
        return F.dropout(output, self.dropout, self.training).to(x.dtype)

    def __repr__(self) -> str:
        """What a message calls it; it does not tell the fault."""
        return "a layer"


def _draw(n: int, seed: int) -> Tensor:
    """Inputs whose sums and means have no rounding errors, ``[n, 16]``."""
    return (64 * _random(seed)(n, _WIDTH)).round() / 64


def _moved(
    layer: Suspect,
    x: Tensor,
    change: Callable[[Tensor, int], Tensor],
    look: Callable[[Tensor], Tensor] = lambda output: output,
) -> Tensor:
    """Entry i, j: whether output i moves if input j is changed; without dropout.

    Args:
        layer: Maps ``[n, 16]`` to ``[n, 16]``.
        x: Its inputs.
        change: (inputs, j) -> changed inputs.
        look: What is looked at of how far the outputs have moved, ``[n, ...]``.
    """
    training = layer.training
    layer.eval()
    before, columns = layer(x), []
    for j in range(len(x)):
        off = look(layer(change(x, j)) - before).abs() > 1e-9
        columns.append(off.reshape(len(x), -1).any(1))
    layer.train(training)
    return torch.stack(columns, 1)


def _anything(x: Tensor, j: int) -> Tensor:
    """The input with other numbers in row j."""
    changed = x.clone()
    changed[j] += _random(j)(_WIDTH).to(x)
    return changed


def _leaks(layer: Suspect, x: Tensor) -> Tensor:
    return _moved(layer, x, _anything).triu(1).double()


def _suspected(name: str, kind: str, n: int, seed: int, train: bool = False, **rest: Any) -> Case:
    layer = Suspect(kind, n, seed, **rest).train(train)
    x = _draw(n, seed + 100)
    if "zeros" in name:
        x[1::2] = 0
    return Case(name, {"layer": layer, "x": x})


_LEAK_CASES = (
    _suspected("a causal layer in training, with dropout", "causal", 6, 30, True, dropout=0.5),
    _suspected("a triangle on n x k", "triangle on n x k", 6, 31),
    _suspected("causal attention by blocks", "blocks", 8, 32),
    _suspected("attention to the slots of its own block", "own block", 8, 33),
    _suspected("attention one step ahead", "one step ahead", 6, 34),
    _suspected("one step ahead, inputs that are zeros", "one step ahead", 7, 35),
    _suspected("a norm, then one step ahead", "one step ahead", 5, 36, centred=True),
    _suspected("a leak, first columns that stay 0", "one step ahead", 5, 37, silent=True),
    _suspected("a leak, in training", "own block", 8, 38, True, dropout=0.5),
    _suspected("a plain causal layer", "causal", 5, 39),
    _suspected("a layer that sees itself and two ahead", "itself and two ahead", 6, 41),
    _suspected("a leak, columns that cancel", "one step ahead", 5, 42, balanced=True),
    _suspected("one position", "causal", 1, 40),
)


# 9.4 ---------------------------------------------------------------------------------


def _sizes(*names: str) -> Callable[..., Case]:
    return lambda name, *numbers: Case(name, dict(zip(names, numbers, strict=True)))


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@cache
def _spread(k: int, n: int) -> Tensor:
    """From the density of chi-squared with k degrees of freedom, by a sum."""
    t = torch.linspace(0, 12, 200001, dtype=torch.float64)[1:]  # the share of the length
    log_p = (k / 2 - 1) * t.log() - k * t / 2
    p = (log_p - log_p.max()).exp()
    mean = (p * t).sum() / p.sum()
    return ((p * (t - mean) ** 2).sum() / p.sum()).sqrt()


_spread_of = _sizes("k", "n")

_SPREAD_CASES = (
    _spread_of("eight slots for 20 positions", 8, 20),
    _spread_of("the same for 500 positions", 8, 500),
    _spread_of("128 slots", 128, 4096),
    _spread_of("50 slots", 50, 64),
    _spread_of("more slots than positions", 12, 3),
    _spread_of("three slots", 3, 10),
)


def _slots_needed(points: int, n: int, error: float, failure: float) -> Tensor:
    """One slot more after another, until the bound is met."""
    pairs = sum(range(points))
    k = 1
    while pairs * 2 * math.exp(-(error**2 - error**3) * k / 4) > failure:
        k += 1
    return _number(float(k))


_needed = _sizes("points", "n", "error", "failure")

_NEEDED_CASES = (
    _needed("thirty points of 1,000 numbers", 30, 1000, 0.5, 0.1),
    _needed("the same, of 64 numbers", 30, 64, 0.5, 0.1),
    _needed("a hundred points", 100, 512, 0.3, 0.01),
    _needed("two points", 2, 100, 0.25, 0.05),
    _needed("many points", 4096, 4096, 0.5, 0.5),
    _needed("a small error", 10, 50, 0.1, 0.2),
    _needed("two points, and a large error", 2, 30, 0.7, 0.85),
)


def _ratio(k: int) -> Tensor:
    """Mean and spread of what becomes of a squared distance."""
    return torch.stack([_number(1.0), _spread(k, 0)])


def _measured(x: Tensor, y: Tensor, k: int, draws: int) -> Tensor:
    return _ratio(k)


def _points(name: str, n: int, k: int, seed: int, draws: int = 1500) -> Case:
    random = _random(seed)
    x, y = random(n) + 1, random(n) + 1
    if "x the origin" in name:
        x = torch.zeros(n)
    if "y the origin" in name:
        y = torch.zeros(n)
    if "opposite" in name:
        y = -x
    return Case(name, {"x": x, "y": y, "k": k, "draws": draws})


# Those with the same k differ in their points alone.
_MEASURED_CASES = (
    _points("20 numbers in 8", 20, 8, 50),
    _points("60 numbers in 5", 60, 5, 51),
    _points("7 numbers in 16", 7, 16, 52),
    _points("12 numbers in 8, x the origin", 12, 8, 53),
    _points("12 numbers in 8, y the origin", 12, 8, 54),
    _points("12 numbers in 8, y opposite to x", 12, 8, 55),
)


# 9.5 ---------------------------------------------------------------------------------


def _weights(query: Tensor, key: Tensor) -> Tensor:
    """Attention's weights, ``[heads, n, n]``."""
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)


def _energy(query: Tensor, key: Tensor) -> Tensor:
    """From the eigenvalues of W^T W, head by head."""
    shares = []
    for weights in _weights(query, key):
        squares = torch.linalg.eigvalsh(weights.T @ weights).flip(0).clamp_min(0)
        shares.append(squares.cumsum(0) / squares.sum())
    return torch.stack(shares).mean(0)


def _heads(name: str, heads: int, n: int, d: int, seed: int, sharp: float = 1.5) -> Case:
    random = _random(seed)
    # Heads differ: the first is the sharpest.
    each = 2 * sharp / torch.arange(1, heads + 1)[:, None, None] ** 3
    return Case(name, {"query": each * random(heads, n, d), "key": sharp * random(heads, n, d)})


def _copying(name: str, n: int) -> Case:
    eye = 20 * torch.eye(n)[None]
    return Case(name, {"query": eye, "key": eye})


_ENERGY_CASES = (
    _heads("three heads of six positions", 3, 6, 4, 60),
    _heads("two heads, more positions than columns", 2, 12, 3, 61, sharp=3.0),
    _heads("one head", 1, 5, 7, 62),
    _copying("a head that copies", 5),
    _heads("heads that look at everything alike", 2, 6, 3, 63, sharp=0.0),
    _heads("one position", 2, 1, 3, 64),
)


def _directions(held: Tensor, share: float) -> Tensor:
    """Count up until the share is held."""
    for count, much in enumerate(held.tolist(), 1):
        if much >= share:
            return _number(float(count))
    raise AssertionError("never held")


def _held(name: str, share: float, *held: float) -> Case:
    return Case(name, {"held": torch.tensor(held), "share": share})


# Quarters and eighths have no rounding errors.
_DIRECTIONS_CASES = (
    _held("a share that is passed", 0.7, 0.25, 0.5, 0.625, 0.875, 0.9375, 1.0),
    _held("a share that is held exactly", 0.5, 0.25, 0.5, 0.75, 1.0),
    _held("all in the first", 0.9, 1.0, 1.0, 1.0),
    _held("all that there is", 1.0, 0.5, 0.75, 1.0),
    _held("one direction", 0.9, 1.0),
    _held("a small share", 0.125, 0.25, 0.375, 0.5, 1.0),
)


# 9.6 ---------------------------------------------------------------------------------

PARTS = 4


def _project(matrix: Tensor, x: Tensor, block_k: int, block_n: int) -> Tensor:
    return torch.einsum("kn,nd->kd", matrix, x)


def _summed(
    name: str, k: int, n: int, d: int, blocks: tuple[int, int], seed: int, *, half: bool = False
) -> Case:
    random = _random(seed)
    matrix, x = random(k, n), random(n, d)
    if half:  # large parts with a small sum; no rounding but that of parts
        matrix, x = ((16 * y).round() / 64 for y in (matrix, x))
        first = 1 + matrix[:, : n // 2].abs()
        matrix, x = torch.cat([first, -first], 1).half(), (16 + x).half()
    inputs = {"matrix": matrix, "x": x, "block_k": blocks[0], "block_n": blocks[1]}
    return Case(name, inputs)


# In the first neither the stretch nor the length is a multiple of a tile.
_SPLIT_CASES = (
    _summed("37 positions", 5, 37, 3, (4, 4), 70),
    _summed("half precision, parts that cancel", 3, 40, 2, (4, 4), 71, half=True),
    _summed("stretches that are tiles", 4, 32, 4, (4, 8), 72),
    _summed("more slots than a tile", 11, 18, 5, (4, 4), 73),
    _summed("a stretch that is empty", 3, 5, 2, (4, 4), 74),
    _summed("tiles larger than a stretch", 4, 22, 3, (8, 16), 75),
    _summed("three positions", 2, 3, 2, (4, 4), 76),
)
