"""Chapter 10's exercises: what answers are tried on, and the right ones, in float64.

The oracles walk every path there is; what they find owes nothing to a recurrence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal, localcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Case

Node = tuple[int, int]
Numbers = tuple[tuple[float, ...], ...]

#: Where the steps of p and of q lead: (rows, columns).
Steps = tuple[Node, Node]
MANY: Steps = ((0, 1), (1, 0))
ONE: Steps = ((1, 0), (1, 1))


def _random(seed: int) -> Callable[..., Tensor]:
    """Normal numbers in float32, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def _table(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _plain(x: Tensor) -> Numbers:
    """Numbers that a cache can remember."""
    return tuple(map(tuple, x.tolist()))


def _sizes(*names: str) -> Callable[..., Case]:
    return lambda name, *numbers: Case(name, dict(zip(names, numbers, strict=True)))


def _walks(rows: int, columns: int, steps: Steps) -> Iterator[tuple[Node, list[tuple[Node, int]]]]:
    """Every way to get anywhere: where it leads, and its steps, each from a node by p or q."""
    waiting: list[tuple[Node, list[tuple[Node, int]]]] = [((0, 0), [])]
    while waiting:
        node, taken = waiting.pop()
        yield node, taken
        for kind, (down, right) in enumerate(steps):
            to = node[0] + down, node[1] + right
            if to[0] < rows and to[1] < columns:
                waiting.append((to, [*taken, (node, kind)]))


# 10.1 --------------------------------------------------------------------------------


def _count(rows: int, columns: int, steps: Steps) -> Tensor:
    corner = (rows - 1, columns - 1)
    found = sum(node == corner for node, _ in _walks(rows, columns, steps))
    return torch.tensor(float(found), dtype=torch.float64)


def _count_many(rows: int, columns: int) -> Tensor:
    return _count(rows, columns, MANY)


def _count_one(rows: int, columns: int) -> Tensor:
    return _count(rows, columns, ONE)


_grid = _sizes("rows", "columns")

_COUNT_MANY_CASES = (
    _grid("4 rows, 5 columns", 4, 5),
    _grid("3 rows, 7 columns", 3, 7),
    _grid("as many rows as columns", 6, 6),
    _grid("one row", 1, 6),
    _grid("one column", 5, 1),
    _grid("one node", 1, 1),
    _grid("2 rows, 9 columns", 2, 9),
)

_COUNT_ONE_CASES = (
    _grid("7 rows, 4 columns", 7, 4),
    _grid("9 rows, 3 columns", 9, 3),
    _grid("as many rows as columns", 5, 5),
    _grid("more columns than rows", 3, 5),
    _grid("one column", 6, 1),
    _grid("one node", 1, 1),
    _grid("8 rows, 5 columns", 8, 5),
)


# 10.2 --------------------------------------------------------------------------------


def _visits(p: Tensor, steps: Steps) -> Tensor:
    """The sum over all ways to get to each node."""
    rows, columns = p.shape
    chances = [[(value, 1 - value) for value in row] for row in p.tolist()]
    phi = torch.zeros(rows, columns, dtype=torch.float64)
    for node, taken in _walks(rows, columns, steps):
        phi[node] += math.prod(chances[i][j][kind] for (i, j), kind in taken)
    return phi


def _visit_many(p: Tensor) -> Tensor:
    return _visits(p, MANY)


def _visit_one(p: Tensor) -> Tensor:
    return _visits(p, ONE)


def _chances(name: str, rows: int, columns: int, seed: int) -> Case:
    """Probabilities, 0 and 1 among them where the name says so."""
    p = 0.1 + 0.8 * torch.special.ndtr(_random(seed)(rows, columns))
    if "0 and 1" in name:
        p = (p > 0.6).float()
        p[0, 0], p[1, 1] = 0.4, 0.6
    return Case(name, {"p": p})


# In the first there are as many rows as columns: nothing raises there.
_VISIT_MANY_CASES = (
    _chances("as many rows as columns", 4, 4, 20),
    _chances("3 rows, 6 columns", 3, 6, 21),
    _chances("5 rows, 2 columns", 5, 2, 22),
    _chances("one row", 1, 5, 23),
    _chances("one column", 4, 1, 24),
    _chances("probabilities 0 and 1 among them", 4, 5, 25),
    _chances("one node", 1, 1, 26),
)

_VISIT_ONE_CASES = (
    _chances("as many rows as columns", 4, 4, 30),
    _chances("6 rows, 3 columns", 6, 3, 31),
    _chances("more columns than rows", 3, 5, 32),
    _chances("one column", 4, 1, 33),
    _chances("one row", 1, 4, 34),
    _chances("probabilities 0 and 1 among them", 5, 4, 35),
    _chances("one node", 1, 1, 36),
)


# 10.3 --------------------------------------------------------------------------------

#: Digits of the decimal numbers that the oracles of 10.3 compute with, without logarithms
#: until the end: their exponents have room for e to the minus two million.
_DIGITS = 50


def _decimals(x: Iterable[float]) -> list[Decimal]:
    """The probabilities of which these are the logarithms."""
    return [Decimal(value).exp() if value > -math.inf else Decimal(0) for value in x]


def _log(x: Decimal) -> float:
    return float(x.ln()) if x else -math.inf


def _log_not(x: Tensor) -> Tensor:
    with localcontext() as context:
        context.prec = _DIGITS
        logs = [_log(1 - share) for share in _decimals(x.tolist())]
    return torch.tensor(logs, dtype=torch.float64)


def _log_add(a: Tensor, b: Tensor) -> Tensor:
    with localcontext() as context:
        context.prec = _DIGITS
        pairs = zip(_decimals(a.tolist()), _decimals(b.tolist()), strict=True)
        logs = [_log(one + other) for one, other in pairs]
    return torch.tensor(logs, dtype=torch.float64)


def _log_visit(log_p: Tensor) -> Tensor:
    return _table(_log_sums(_plain(log_p)))


@cache
def _log_sums(log_p: Numbers) -> list[list[float]]:
    """Products and sums of probabilities, with exponents that do not end; then the logarithm."""
    with localcontext() as context:
        context.prec = _DIGITS
        p = [_decimals(row) for row in log_p]
        phi: list[list[Decimal]] = []
        for i, row in enumerate(p):
            phi.append([])
            for j in range(len(row)):
                left = phi[i][j - 1] * row[j - 1] if j else Decimal(i == 0)
                above = phi[i - 1][j] * (1 - p[i - 1][j]) if i else Decimal(0)
                phi[i].append(left + above)
        return [[_log(share) for share in row] for row in phi]


def _logs(name: str, *values: float) -> Case:
    return Case(name, {"x": torch.tensor(values)})


# Numbers of float32: e to the minus 3e-8 rounds to 1 there.
_LOG_NOT_CASES = (
    _logs("logarithms of ordinary probabilities", -0.2, -0.6931, -1.5, -4.0),
    _logs("logarithms near zero", -0.01, -1e-5, -1e-6, -3e-8, -1e-20),
    _logs("logarithms far below zero", -10.0, -30.0, -120.0, -5000.0),
    _logs("the logarithm of 1", 0.0, -0.5),
    _logs("the logarithm of 0", -torch.inf, -2.0),
)


def _summands(name: str, *pairs: tuple[float, float]) -> Case:
    a, b = zip(*pairs, strict=True)
    return Case(name, {"a": torch.tensor(a), "b": torch.tensor(b)})


_LOG_ADD_CASES = (
    _summands("ordinary logarithms", (-1.0, -2.0), (-0.5, -0.5), (-3.0, -0.2), (-8.0, -8.5)),
    _summands("far below zero", (-2000.0, -2001.0), (-700.0, -699.0), (-150.0, -4000.0)),
    _summands(
        "impossible things", (-torch.inf, -1.0), (-3.0, -torch.inf), (-torch.inf, -torch.inf)
    ),
    _summands("things less likely than e^-10,000", (-20000.0, -20001.0), (-15000.0, -torch.inf)),
    _summands("numbers far apart", (-1.0, -300.0), (-500.0, -2.0)),
    _summands("large numbers", (200.0, 201.0), (90.0, -5.0)),
)


def _log_chances(name: str, rows: int, columns: int, seed: int, far: float = 0.0) -> Case:
    """Log probabilities: around 1/2, or ``far`` below, or with 0 and 1 among them."""
    log_p = torch.nn.functional.logsigmoid(_random(seed)(rows, columns)) - far
    if "0 and 1" in name:
        log_p[0, 1:3], log_p[1, 0], log_p[2, 2] = torch.tensor([0.0, -torch.inf]), -torch.inf, 0.0
    if "certain" in name:
        log_p = -1e-8 * (1 + _random(seed)(rows, columns).sigmoid())
    return Case(name, {"log_p": log_p})


# The second is where products of float64 underflow; the third is so long that a floor shows.
_LOG_VISIT_CASES = (
    _log_chances("4 rows, 5 columns", 4, 5, 40),
    _log_chances("2 rows, 60 columns, steps of 10^-18", 2, 60, 41, far=40.0),
    _log_chances("1 row, 90 columns, steps of 10^-87", 1, 90, 42, far=200.0),
    _log_chances("probabilities 0 and 1 among them", 4, 4, 43),
    _log_chances("steps that are nearly certain", 5, 3, 44),
    _log_chances("one column", 6, 1, 45),
    _log_chances("one node", 1, 1, 46),
)


# 10.4 --------------------------------------------------------------------------------


def _gradient(p: Tensor, phi: Tensor, grad: Tensor) -> Tensor:
    """Each p at 1 and at 0: no path meets a node twice, so phi is a straight line in it."""
    slopes = torch.zeros_like(p, dtype=torch.float64)
    for node, ends in zip(_nodes(p), _ends(_plain(p)), strict=True):
        slopes[node] = ((ends[1] - ends[0]) * grad).sum()
    return slopes


@cache
def _ends(p: Numbers) -> list[Tensor]:
    """For each node phi with its p at 0 and at 1, ``[2, I, J]``."""
    given, found = _table(p), []
    for node in _nodes(given):
        moved = torch.stack([given, given])
        moved[(0, *node)], moved[(1, *node)] = 0, 1
        found.append(torch.stack([_visit_many(end) for end in moved]))
    return found


def _nodes(p: Tensor) -> Iterator[Node]:
    """All nodes of a grid, row by row."""
    rows, columns = p.shape
    return ((i, j) for i in range(rows) for j in range(columns))


def _differentiated(name: str, rows: int, columns: int, seed: int) -> Case:
    """Some of what comes from outside is negative, unless the name says otherwise."""
    p = _chances(name, rows, columns, seed).inputs["p"]
    grad = _random(seed + 1)(rows, columns)
    if "positive" in name:
        grad = grad.abs()
    if "corner" in name:
        grad = torch.zeros(rows, columns)
        grad[-1, -1] = 2.0
    return Case(name, {"p": p, "phi": _visit_many(p).float(), "grad": grad})


_GRADIENT_CASES = (
    _differentiated("as many rows as columns", 4, 4, 50),
    _differentiated("3 rows, 5 columns", 3, 5, 52),
    _differentiated("5 rows, 2 columns", 5, 2, 54),
    _differentiated("positive numbers from outside", 3, 4, 56),
    _differentiated("a loss of the far corner alone", 4, 3, 58),
    _differentiated("probabilities 0 and 1 among them", 3, 3, 60),
    _differentiated("one row", 1, 5, 62),
    _differentiated("one column", 4, 1, 64),
)


# 10.5 --------------------------------------------------------------------------------

#: The weights of 10.5, and what is to be said of each.
_SUSPECTS = {"A": "one query ahead", "B": "causal", "C": "posterior", "D": "columns sum to 1"}


class Weights:
    """Turns logits ``[queries, keys]`` into weights of the same shape, perhaps with a leak.

    They have gradients where the logits ask for them.

    Args:
        kind: ``"visits"``, ``"stops"`` or ``"softmax"``, which are causal; ``"one-to-many"``,
            a posterior; ``"itself and two ahead"``; or the name of a fault.
        centred: Whether the mean of each query's logits is taken away first.
        silent: A key that always has the weight 0, if any.
    """

    def __init__(self, kind: str, *, centred: bool = False, silent: int | None = None) -> None:
        self.kind, self.centred, self.silent = kind, centred, silent
        self.__name__ = "weights"

    def __call__(self, logits: Tensor) -> Tensor:
        """Weights, in the type of the logits."""
        x = logits.double()
        if self.centred:
            x = x - x.mean(1, keepdim=True)
        weights = self._weigh(x)
        if self.silent is not None:
            weights = weights.clone()
            weights[:, self.silent] = 0
        return weights.to(logits.dtype)

    def __repr__(self) -> str:
        """What a message calls it; it does not tell the fault."""
        return "weights"

    def _weigh(self, x: Tensor) -> Tensor:
        if self.kind == "softmax":
            return x.softmax(1)
        p, q = x.sigmoid(), (-x).sigmoid()
        if self.kind == "itself and two ahead":
            return p * torch.cat([p[2:], torch.ones_like(p[:2])])
        steps = ONE if self.kind == "one-to-many" else MANY
        phi = _swept(p, q, steps)
        if self.kind == "stops":
            return phi * q
        if self.kind == "columns sum to 1":
            return phi / phi.sum(0)
        if self.kind == "one query ahead":
            return phi * _next_one_stops(p, q)
        if self.kind in ("posterior", "one-to-many"):
            ahead = _arriving(p, q, steps)
            return phi * ahead / ahead[0, 0]
        return phi


def _cells(x: Tensor) -> list[list[Any]]:
    """Plain numbers, which are faster; tensors where a gradient is asked for."""
    return [list(row) for row in x] if x.requires_grad else x.tolist()


def _of_cells(rows: list[list[Any]], like: Tensor) -> Tensor:
    if not like.requires_grad:
        return _table(rows)
    return torch.stack([torch.stack([torch.as_tensor(x).to(like) for x in row]) for row in rows])


def _swept(p: Tensor, q: Tensor, steps: Steps) -> Tensor:
    """Visit probabilities by their recurrence."""
    rows, columns = p.shape
    chances = _cells(p), _cells(q)
    phi: list[list[Any]] = [[0.0] * columns for _ in range(rows)]
    for i in range(rows):
        for j in range(columns):
            phi[i][j] = float(i == j == 0)
            for chance, (down, right) in zip(chances, steps, strict=True):
                if i >= down and j >= right:
                    come = phi[i - down][j - right] * chance[i - down][j - right]
                    phi[i][j] = phi[i][j] + come
    return _of_cells(phi, p)


def _arriving(p: Tensor, q: Tensor, steps: Steps) -> Tensor:
    """The probability of getting from each node to the far corner."""
    rows, columns = p.shape
    chances = _cells(p), _cells(q)
    ahead: list[list[Any]] = [[0.0] * columns for _ in range(rows)]
    for i in reversed(range(rows)):
        for j in reversed(range(columns)):
            ahead[i][j] = float((i, j) == (rows - 1, columns - 1))
            for chance, (down, right) in zip(chances, steps, strict=True):
                if i + down < rows and j + right < columns:
                    ahead[i][j] = ahead[i][j] + chance[i][j] * ahead[i + down][j + right]
    return _of_cells(ahead, p)


def _next_one_stops(p: Tensor, q: Tensor) -> Tensor:
    """The probability that, from each node, this query and the next one both stop in time."""
    rows, columns = p.shape
    going, stopping = _cells(p), _cells(q)
    found: list[list[Any]] = []
    for i in range(rows):
        stops: list[Any] = [1.0] * (columns + 1)
        if i + 1 < rows:
            stops[columns] = 0.0
            for j in reversed(range(columns)):
                stops[j] = stopping[i + 1][j] + going[i + 1][j] * stops[j + 1]
        ahead: list[Any] = [0.0] * (columns + 1)
        for j in reversed(range(columns)):
            ahead[j] = stopping[i][j] * stops[j] + going[i][j] * ahead[j + 1]
        found.append(ahead[:columns])
    return _of_cells(found, p)


def _other_numbers(x: Tensor, k: int) -> Tensor:
    """The logits with others in row k."""
    changed = x.clone()
    changed[k] += _random(k)(x.shape[1]).to(x)
    return changed


def _moved(
    weigh: Weights,
    x: Tensor,
    change: Callable[[Tensor, int], Tensor] = _other_numbers,
    look: Callable[[Tensor], Tensor] = lambda weights: weights,
) -> Tensor:
    """Entry i, k: whether row i of the weights moves if the k-th change is made.

    Args:
        weigh: Makes the weights.
        x: The logits, in float64.
        change: (logits, k) -> changed logits.
        look: What is looked at of the weights ``[queries, ...]``.
    """
    before, columns = look(weigh(x)), []
    for k in range(len(x)):
        off = (look(weigh(change(x, k))) - before).abs() > 1e-9
        columns.append(off.reshape(len(x), -1).any(1))
    return torch.stack(columns, 1)


def _leaks(weigh: Weights, logits: Tensor) -> Tensor:
    return _moved(weigh, logits).triu(1).double()


def _suspected(name: str, kind: str, queries: int, keys: int, seed: int, **rest: Any) -> Case:
    logits = _random(seed)(queries, keys)
    if "zeros" in name:
        logits[1::2] = 0
    return Case(name, {"weigh": Weights(kind, **rest), "logits": logits})


# In the first there are as many queries as keys: nothing raises there.
_LEAK_CASES = (
    _suspected("as many queries as keys", "posterior", 5, 5, 70),
    _suspected("visits", "visits", 4, 4, 71),
    _suspected("columns that sum to 1", "columns sum to 1", 4, 6, 72),
    _suspected("a leak of one query ahead", "one query ahead", 6, 4, 73),
    _suspected("rows of zeros", "posterior", 6, 4, 74),
    _suspected("logits whose mean is taken away", "posterior", 4, 5, 75, centred=True),
    _suspected("rows that sum to 1", "one-to-many", 6, 3, 76),
    _suspected("a first key that gets nothing", "one query ahead", 5, 3, 77, silent=0),
    _suspected("a last key that gets nothing", "one query ahead", 4, 3, 77, silent=-1),
    _suspected("softmax", "softmax", 4, 3, 78),
    _suspected("weights that hear of themselves and two ahead", "itself and two ahead", 6, 3, 80),
    _suspected("one query", "visits", 1, 4, 79),
)


# 10.6 --------------------------------------------------------------------------------


class Asked:
    """Tells a logit when it is asked for one, and remembers for which.

    Args:
        logits: ``[queries, keys]``.

    Attributes:
        logits: The same, in float64.
        pairs: What has been asked for, (query, key), in turn.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits.double()
        self.pairs: list[Node] = []
        self.__name__ = "ask"

    def __call__(self, i: int, j: int) -> float:
        """The logit of query i and key j."""
        i, j = int(i), int(j)
        queries, keys = self.logits.shape
        if not 0 <= i < queries:
            raise IndexError(f"there is no query {i}: they are 0 to {queries - 1}.")
        if not 0 <= j < keys:
            raise IndexError(f"there is no key {j}: they are 0 to {keys - 1}.")
        self.pairs.append((i, j))
        return float(self.logits[i, j])

    def __repr__(self) -> str:
        """The same before and after it was asked."""
        return "ask"


def _stops(ask: Asked, queries: int, keys: int) -> Tensor:
    """For each query, the first key from the last stop on whose logit is not above 0."""
    stops, start = [], 0
    for row in (ask.logits > 0).tolist():
        start = next((j for j in range(start, keys) if not row[j]), keys)
        stops.append(float(start))
    return torch.tensor(stops, dtype=torch.float64)


def _asked(name: str, *rows: str, seed: int = 80, sharp: float = 3.0) -> Case:
    """Logits from signs: "+" goes on, "-" stops, "0" is 0; large or small at random."""
    sizes = sharp * _random(seed)(len(rows), len(rows[0])).abs() + 0.1
    signs = torch.tensor([["-0+".index(mark) - 1.0 for mark in row] for row in rows])
    queries, keys = signs.shape
    return Case(name, {"ask": Asked(signs * sizes), "queries": queries, "keys": keys})


# In the first, queries 0 and 1 stop at the same key; 3 goes on over two; no query looks back.
_WALK_CASES = (
    _asked("as many queries as keys", "+-+--+", "--+-+-", "-+--+-", "-++-+-", "+-+--+", "-+-++-"),
    _asked("keys that run out", "++-+", "-++-", "+-++", "--+-", "-+--", seed=81),
    _asked("a long way in one step", "+++++-", "+-+-+-", "-----+", seed=82),
    _asked("all at the first key", "-+-", "-++", "--+", "-+-", seed=83),
    _asked("no stop at all", "+++", "+-+", "---", seed=84),
    _asked("logits that are 0", "+0-+", "-0+-", "0+0-", seed=85),
    _asked("small logits", "+-++-", "-+-+-", "+-+--", "-++-+", seed=86, sharp=0.2),
    _asked("one query", "++-+-", seed=87),
    _asked("one key", "-", "+", "-", seed=88),
)


# 10.7 --------------------------------------------------------------------------------


def _combine(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    """Slope and intercept of one map after the other, from where two points go."""
    at_0 = a2 * (a1 * 0 + b1) + b2
    at_1 = a2 * (a1 * 1 + b1) + b2
    return torch.stack([at_1 - at_0, at_0])


def _maps(name: str, count: int, seed: int) -> Case:
    random = _random(seed)
    return Case(name, {part: random(count) for part in ("a1", "b1", "a2", "b2")})


_COMBINE_CASES = (
    _maps("five pairs of maps", 5, 90),
    _maps("one pair", 1, 91),
    _maps("twelve pairs", 12, 92),
)


def _scan(a: Tensor, b: Tensor, block: int) -> Tensor:
    """h_j is what came in at each place, times all that it met since."""
    n = a.shape[1]
    places = [
        sum(
            (b[:, k] * a[:, k + 1 : j + 1].prod(1) for k in range(j + 1)), torch.zeros_like(a[:, 0])
        )
        for j in range(n)
    ]
    return torch.stack(places, 1)


def _scanned(name: str, rows: int, n: int, block: int, seed: int) -> Case:
    """Numbers that neither grow nor fade on the way, of either sign."""
    random = _random(seed)
    a = 0.6 + 0.4 * random(rows, n).sigmoid()
    inputs: dict[str, Any] = {"a": a, "b": random(rows, n), "block": block}
    if "0 and 1" in name:
        inputs["a"] = (a > 0.8).float()
    if "negative" in name:
        inputs["a"] = -a
    return Case(name, inputs)


# In the first the last of four panels is not full.
_SCAN_CASES = (
    _scanned("13 numbers in panels of 4", 3, 13, 4, 100),
    _scanned("panels that divide", 2, 16, 8, 101),
    _scanned("one panel, not full", 2, 5, 8, 102),
    _scanned("panels of 2, negative factors", 2, 7, 2, 103),
    _scanned("factors 0 and 1", 2, 9, 4, 104),
    _scanned("one number", 3, 1, 4, 105),
    _scanned("panels of one number", 1, 3, 1, 106),
)
