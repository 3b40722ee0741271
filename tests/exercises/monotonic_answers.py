"""Answers to chapter 10's exercises: wrong ones, as students write them, and right ones."""

import itertools
import math
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from attn_course.exercises import monotonic_cases as cases
from attn_course.exercises import monotonic_mistakes as mistakes
from attn_course.exercises import tl, triton
from attn_course.monotonic import (
    count_paths,
    enumerate_paths,
    expected_alignment,
    serial_backward,
    serial_forward,
)
from tests.exercises.answers import Table, new_answers

WRONG, RIGHT, wrong = new_answers()


# 10.1 --------------------------------------------------------------------------------

many = wrong("10.1", "count_many")
one = wrong("10.1", "count_one")


def _by_sizes(formula: Callable[[int, int], Any]) -> Callable[[int, int], Any]:
    def count(rows, columns):
        return formula(rows, columns)

    return count


def _choose(n, k):
    return math.factorial(n) // math.factorial(k) // math.factorial(n - k) if 0 <= k <= n else 0


@cache
def _with_diagonals(rows, columns):
    if rows == 1 or columns == 1:
        return 1
    return (
        _with_diagonals(rows - 1, columns)
        + _with_diagonals(rows, columns - 1)
        + _with_diagonals(rows - 1, columns - 1)
    )


for _name, _fragment, _formula in (
    ("C(m + n, m)", "rows and columns are counted as steps: these", lambda r, c: _choose(r + c, r)),
    (
        "one step too many",
        "one of the two directions has a step",
        lambda r, c: _choose(r + c - 1, r),
    ),
    ("the other", "one of the two directions has a step", lambda r, c: _choose(r + c - 1, c)),
    ("I of I + J - 2", "one of the two directions has a step", lambda r, c: _choose(r + c - 2, r)),
    ("diagonal steps", "diagonal steps are counted as well", _with_diagonals),
    ("free steps", "each step is free to go right or down", lambda r, c: 2 ** (r + c - 2)),
    (
        "all that end at an edge",
        "paths that end anywhere are counted",
        lambda r, c: len(enumerate_paths(r, c, end="edge")),
    ),
    (
        "all ends",
        "paths that end anywhere are counted",
        lambda r, c: sum(count_paths(i + 1, j + 1) for i in range(r) for j in range(c)),
    ),
    ("nodes", "these are the nodes of the grid, or of a path. In how many o", lambda r, c: r * c),
    (
        "length",
        "these are the nodes of the grid, or of a path. In how many o",
        lambda r, c: r + c - 1,
    ),
    (
        "steps told apart",
        "exchanging two steps down",
        lambda r, c: math.factorial(r + c - 2) // math.factorial(r - 1),
    ),
    ("orders of all", "exchanging two steps down", lambda r, c: math.factorial(r + c - 2)),
    (
        "one-to-many",
        "this counts the paths of the one-to-many model",
        lambda r, c: _choose(r - 1, c - 1),
    ),
    (
        "one-to-many, transposed",
        "this counts the paths of the one-to-many model",
        lambda r, c: _choose(c - 1, r - 1),
    ),
    ("twice", "every path is counted twice", lambda r, c: 2 * _choose(r + c - 2, r - 1)),
    ("the paths themselves", "it returned a list; expected a number", enumerate_paths),
    ("nothing", "is the `return` missing", lambda r, c: None),
    ("rounded", "in a way that this check does not know", lambda r, c: round(1.3 ** (r * c))),
    ("a factorial of -1", "your code raised ValueError", lambda r, c: math.factorial(-r)),
):
    many(_name, _fragment)(_by_sizes(_formula))


@many("neighbours that are 0", "the count is 0 wherever there is a step")
def _(rows, columns):
    table = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            table[i][j] = table[i - 1][j] + table[i][j - 1]
    return table[rows][columns]


@many("only the first node", "the count is 0 wherever there is a step")
def _(rows, columns):
    table = [[0] * columns for _ in range(rows)]
    table[0][0] = 1
    for i in range(1, rows):
        for j in range(1, columns):
            table[i][j] = table[i - 1][j] + table[i][j - 1]
    return table[-1][-1]


for _name, _fragment, _formula in (
    ("transposed", "the grid is transposed: each step", lambda r, c: _choose(c - 1, r - 1)),
    (
        "many-to-many",
        "this counts the paths of the many-to-many model",
        lambda r, c: _choose(r + c - 2, r - 1),
    ),
    ("I over J", "rows or columns are counted as steps. With 7", lambda r, c: _choose(r, c)),
    (
        "one column too many",
        "rows or columns are counted as steps. With 7",
        lambda r, c: _choose(r - 1, c),
    ),
    ("any end", "paths that end in any column are counted", lambda r, c: 2 ** (r - 1)),
    (
        "any column",
        "paths that end in any column are counted",
        lambda r, c: sum(_choose(r - 1, j) for j in range(c)),
    ),
    ("columns skipped", "columns may be skipped here", lambda r, c: _choose(r + c - 1, c - 1)),
    (
        "more columns than rows",
        "with more columns than rows there are said",
        lambda r, c: _choose(max(r, c) - 1, min(r, c) - 1),
    ),
    ("always on", "every step goes on to the next column", lambda r, c: int(r == c)),
    ("told apart", "exchanging two that go on", lambda r, c: math.perm(r - 1, c - 1)),
    ("three kinds", "steps down, right and diagonal", _with_diagonals),
    (
        "nodes, one-to-many",
        "these are the nodes of the grid, or of a path. In how many w",
        lambda r, c: r * c,
    ),
    (
        "length, one-to-many",
        "these are the nodes of the grid, or of a path. In how many w",
        lambda r, c: r,
    ),
    (
        "negative factorials",
        "your code raised ValueError",
        lambda r, c: math.factorial(r - 1) // math.factorial(c - 1) // math.factorial(r - c),
    ),
):
    one(_name, _fragment)(_by_sizes(_formula))


def count_many_listed(rows, columns):
    return len(enumerate_paths(rows, columns))


def count_many_table(rows, columns):
    row = [1] * columns
    for _ in range(rows - 1):
        row = list(itertools.accumulate(row))
    return row[-1]


def count_many_recursive(rows, columns):
    if rows == 1 or columns == 1:
        return 1
    return count_many_recursive(rows - 1, columns) + count_many_recursive(rows, columns - 1)


def count_many_by_coins(rows, columns):
    """A fair coin at each node: all paths have the same probability."""
    phi = serial_forward(torch.full((rows, columns), 0.5, dtype=torch.float64))
    return (phi[-1, -1] * 2 ** (rows + columns - 2)).round()


def count_one_listed(rows, columns):
    return len(enumerate_paths(rows, columns, model="one_to_many"))


def count_one_table(rows, columns):
    ways = torch.zeros(columns, dtype=torch.long)
    ways[0] = 1
    for _ in range(rows - 1):
        ways[1:] += ways[:-1].clone()
    return ways[-1]


def count_one_subsets(rows, columns):
    return sum(1 for _ in itertools.combinations(range(rows - 1), columns - 1))


RIGHT["10.1"] = [
    ("listed", [count_many_listed, count_one_listed]),
    ("tables", [count_many_table, count_one_table]),
    ("recursion and subsets", [count_many_recursive, count_one_subsets]),
    ("by probabilities", [count_many_by_coins, count_one_subsets]),
]


# 10.2 --------------------------------------------------------------------------------

visits = wrong("10.2", "visit_many")
others = wrong("10.2", "visit_one")


def _fill(p, way, start=1.0):
    """A table in which ``way(phi, p, i, j)`` says what comes to a node."""
    phi = torch.zeros_like(p)
    phi[0, 0] = start
    for i in range(p.shape[0]):
        for j in range(p.shape[1]):
            if i or j:
                phi[i, j] = way(phi, p, i, j)
    return phi


def _at(x, i, j):
    return x[i, j] if i >= 0 and j >= 0 else torch.tensor(0.0)


def _many_way(phi, p, i, j):
    return _at(phi * p, i, j - 1) + _at(phi * (1 - p), i - 1, j)


def _one_way(phi, p, i, j):
    return _at(phi * p, i - 1, j) + _at(phi * (1 - p), i - 1, j - 1)


def _table_by(way, then=lambda phi, p: phi, start=1.0, before=lambda p: p):
    def visit(p):
        return then(_fill(before(p), way, start), p)

    return visit


def _keep_in(p):
    p = p.clone()
    p[:, -1] = 0
    p[-1, :] = 1
    return p


for _name, _fragment, _function in (
    (
        "the destination's p",
        "the destination's p is taken",
        _table_by(
            lambda phi, p, i, j: _at(phi, i, j - 1) * p[i, j] + _at(phi, i - 1, j) * (1 - p[i, j])
        ),
    ),
    (
        "swapped",
        "p and 1 - p are swapped",
        _table_by(lambda phi, p, i, j: _at(phi * (1 - p), i, j - 1) + _at(phi * p, i - 1, j)),
    ),
    (
        "rows normalised",
        "rows are normalised to sum to 1",
        _table_by(_many_way, lambda phi, p: phi / phi.sum(1, keepdim=True)),
    ),
    (
        "softmax",
        "rows are normalised to sum to 1",
        _table_by(_many_way, lambda phi, p: phi.softmax(1)),
    ),
    (
        "columns normalised",
        "columns, anti-diagonals or the whole are normalised",
        _table_by(_many_way, lambda phi, p: phi / phi.sum(0)),
    ),
    (
        "all normalised",
        "columns, anti-diagonals or the whole are normalised",
        _table_by(_many_way, lambda phi, p: phi / phi.sum()),
    ),
    (
        "twice p",
        "both kinds of step have the probability p. What",
        _table_by(lambda phi, p, i, j: _at(phi * p, i, j - 1) + _at(phi * p, i - 1, j)),
    ),
    (
        "the larger",
        "that is the best way to get there",
        _table_by(
            lambda phi, p, i, j: torch.maximum(_at(phi * p, i, j - 1), _at(phi * (1 - p), i - 1, j))
        ),
    ),
    ("diagonal steps", "this is the one-to-many model", _table_by(_one_way)),
    ("nobody leaves", "nobody leaves the grid here", _table_by(_many_way, before=_keep_in)),
    (
        "starts with p",
        "the first node has not the probability 1",
        lambda p: _fill(p, _many_way) * p[0, 0],
    ),
    ("starts with 0", "the first node has not the probability 1", _table_by(_many_way, start=0.0)),
    (
        "transposed",
        "the result is transposed: phi[i][j]",
        _table_by(_many_way, lambda phi, p: phi.T),
    ),
    (
        "stops",
        "this is the probability that a path turns here",
        _table_by(_many_way, lambda phi, p: phi * (1 - p)),
    ),
    ("a list", "it returned a list; expected a tensor", lambda p: _fill(p, _many_way).tolist()),
    ("one row", "Which axis was summed over", lambda p: _fill(p, _many_way)[0]),
    (
        "p written over",
        "it changes its argument `p`",
        lambda p: p.copy_(_fill(p.clone(), _many_way)),
    ),
):
    visits(_name, _fragment)(_function)


@visits("anti-diagonals normalised", "columns, anti-diagonals or the whole are normalised")
def _(p):
    phi = _fill(p, _many_way)
    time = torch.arange(p.shape[0])[:, None] + torch.arange(p.shape[1])
    for t in range(int(time.max()) + 1):
        phi[time == t] /= phi[time == t].sum()
    return phi


@visits("multiplied", "the contributions are multiplied")
def _(p):
    phi = torch.zeros_like(p)
    for i, j in itertools.product(*map(range, p.shape)):
        parts = [torch.tensor(1.0)] if i == j == 0 else []
        if j:
            parts.append(phi[i, j - 1] * p[i, j - 1])
        if i:
            parts.append(phi[i - 1, j] * (1 - p[i - 1, j]))
        phi[i, j] = torch.stack(parts).prod()
    return phi


@visits("rows anew", "each row begins anew with 1")
def _(p):
    phi = torch.ones_like(p)
    for j in range(1, p.shape[1]):
        phi[:, j] = phi[:, j - 1] * p[:, j - 1]
    return phi


@visits("logits", "p is taken for a logit. It is a probability")
def _(p):
    return _fill(p.sigmoid(), _many_way)


@visits("loops from 1", "the first row or the first column is not what")
def _(p):
    phi = torch.zeros_like(p)
    phi[0, 0] = 1
    for i in range(1, p.shape[0]):
        for j in range(1, p.shape[1]):
            phi[i, j] = phi[i, j - 1] * p[i, j - 1] + phi[i - 1, j] * (1 - p[i - 1, j])
    return phi


@visits("ones at the edges", "the first row or the first column is not what")
def _(p):
    phi = torch.ones_like(p)
    for i in range(1, p.shape[0]):
        for j in range(1, p.shape[1]):
            phi[i, j] = phi[i, j - 1] * p[i, j - 1] + phi[i - 1, j] * (1 - p[i - 1, j])
    return phi


@visits("given that it arrives", "that is the posterior")
def _(p):
    back = torch.zeros(p.shape[0] + 1, p.shape[1] + 1)
    back[-2, -2] = 1
    for i, j in itertools.product(*(reversed(range(size)) for size in p.shape)):
        if (i + 1, j + 1) != tuple(p.shape):
            back[i, j] = p[i, j] * back[i, j + 1] + (1 - p[i, j]) * back[i + 1, j]
    return _fill(p, _many_way) * back[:-1, :-1] / back[0, 0]


@visits("past the edge", "your code raised IndexError")
def _(p):
    return _fill(p, lambda phi, p, i, j: phi[i, j] * p[i + 1, j + 1])


for _name, _fragment, _function in (
    (
        "the destination's p, one-to-many",
        "in the one-to-many model, too, p belongs",
        _table_by(
            lambda phi, p, i, j: (
                _at(phi, i - 1, j) * p[i, j] + _at(phi, i - 1, j - 1) * (1 - p[i, j])
            )
        ),
    ),
    (
        "swapped, one-to-many",
        "p and 1 - p have changed places: p keeps",
        _table_by(lambda phi, p, i, j: _at(phi * (1 - p), i - 1, j) + _at(phi * p, i - 1, j - 1)),
    ),
    ("unchanged", "nothing was changed: this is still", _table_by(_many_way)),
    (
        "q stays in its row",
        "rows and columns have changed roles",
        _table_by(lambda phi, p, i, j: _at(phi * p, i, j - 1) + _at(phi * (1 - p), i - 1, j - 1)),
    ),
    (
        "twice p, one-to-many",
        "both kinds of step have the same probability",
        _table_by(lambda phi, p, i, j: _at(phi * p, i - 1, j) + _at(phi * p, i - 1, j - 1)),
    ),
    (
        "rows normalised, one-to-many",
        "something is normalised. Rows sum to 1",
        _table_by(_one_way, lambda phi, p: phi / phi.sum(1, keepdim=True)),
    ),
    (
        "starts with p, one-to-many",
        "the first row is not 1 and then zeros",
        lambda p: _fill(p, _one_way) * p[0, 0],
    ),
    (
        "the larger, one-to-many",
        "the larger of the two contributions is taken, not their sum",
        _table_by(
            lambda phi, p, i, j: torch.maximum(
                _at(phi * p, i - 1, j), _at(phi * (1 - p), i - 1, j - 1)
            )
        ),
    ),
    (
        "result transposed",
        "rows and columns have changed roles",
        _table_by(_one_way, lambda phi, p: phi.T),
    ),
):
    others(_name, _fragment)(_function)


@others("kept in the last column", "whoever is in the last column is kept there")
def _(p):
    p = p.clone()
    p[:, -1] = 1
    return _fill(p, _one_way)


@others("ones in the first row", "the first row is not 1 and then zeros")
def _(p):
    phi = torch.ones_like(p)
    for i in range(1, len(p)):
        phi[i] = phi[i - 1] * p[i - 1]
        phi[i, 1:] += phi[i - 1, :-1] * (1 - p[i - 1, :-1])
    return phi


@others("columns for rows", "rows and columns have changed roles")
def _(p):
    return _fill(p.T, _one_way).T


@others("lengths mixed up", "your code raised RuntimeError")
def _(p):
    return p[:, 1:] * p[:, :-1].T + p


def visit_many_lists(p):
    rows = p.tolist()
    phi: list[list[float]] = []
    for i, row in enumerate(rows):
        new = []
        for j in range(len(row)):
            x = 1.0 if i == j == 0 else 0.0
            x += new[j - 1] * row[j - 1] if j else 0.0
            x += phi[-1][j] * (1 - rows[i - 1][j]) if i else 0.0
            new.append(x)
        phi.append(new)
    return torch.tensor(phi)


@visits("an index that wraps", "an index wraps: -1 is the last row or column")
def _(p):
    phi = torch.zeros_like(p)
    phi[0, 0] = 1
    for i, j in itertools.product(*map(range, p.shape)):
        if i or j:
            phi[i, j] += phi[i, j - 1] * p[i, j - 1]
            phi[i, j] += phi[i - 1, j] * (1 - p[i - 1, j])
    return phi


@others("an index that wraps", "an index wraps: j - 1 is -1 in the first column")
def _(p):
    phi = torch.zeros_like(p)
    phi[0, 0] = 1
    for i, j in itertools.product(range(1, p.shape[0]), range(p.shape[1])):
        phi[i, j] = phi[i - 1, j] * p[i - 1, j] + phi[i - 1, j - 1] * (1 - p[i - 1, j - 1])
    return phi


@others("the first column left out", "the first column is left out")
def _(p):
    phi = torch.zeros_like(p)
    phi[0, 0] = 1
    for i, j in itertools.product(*(range(1, size) for size in p.shape)):
        phi[i, j] = phi[i - 1, j] * p[i - 1, j] + phi[i - 1, j - 1] * (1 - p[i - 1, j - 1])
    return phi


def visit_many_padded(p):
    phi = torch.zeros(p.shape[0] + 1, p.shape[1] + 1)
    q, p = F.pad(1 - p, (1, 0, 1, 0)), F.pad(p, (1, 0, 1, 0))
    for i in range(1, phi.shape[0]):
        for j in range(1, phi.shape[1]):
            phi[i, j] = phi[i, j - 1] * p[i, j - 1] + phi[i - 1, j] * q[i - 1, j]
            phi[1, 1] = 1
    return phi[1:, 1:]


def visit_many_pushed(p):
    """Each node hands on what it has."""
    phi = torch.zeros(p.shape[0] + 1, p.shape[1] + 1, dtype=torch.float64)
    phi[0, 0] = 1
    for i in range(p.shape[0]):
        for j in range(p.shape[1]):
            phi[i, j + 1] += phi[i, j] * p[i, j]
            phi[i + 1, j] += phi[i, j] * (1 - p[i, j])
    return phi[:-1, :-1]


def visit_many_package(p):
    return serial_forward(p)


def visit_one_pushed(p):
    phi = torch.zeros(p.shape[0] + 1, p.shape[1] + 1)
    phi[0, 0] = 1
    for i in range(p.shape[0]):
        phi[i + 1, :-1] += phi[i, :-1] * p[i]
        phi[i + 1, 1:] += phi[i, :-1] * (1 - p[i])
    return phi[:-1, :-1]


def visit_one_matrices(p):
    """A row times a matrix of steps."""
    state = F.one_hot(torch.tensor(0), p.shape[1]).float()
    rows = [state]
    for row in p[:-1]:
        state = state @ (torch.diag(row) + torch.diag(1 - row[:-1], 1))
        rows.append(state)
    return torch.stack(rows)


def visit_one_package(p):
    return serial_forward(p, model="one_to_many")


RIGHT["10.2"] = [
    ("lists, and what nodes hand on", [visit_many_lists, visit_one_pushed]),
    ("padding, and matrices", [visit_many_padded, visit_one_matrices]),
    ("what nodes hand on, and the package", [visit_many_pushed, visit_one_package]),
    ("the package", [visit_many_package, visit_one_package]),
]


# 10.3 --------------------------------------------------------------------------------

nots = wrong("10.3", "log_not")
adds = wrong("10.3", "log_add")
logs = wrong("10.3", "log_visit")


def _element_wise(formula):
    def log_not(x):
        return formula(x)

    return log_not


for _name, _fragment, _formula in (
    ("1 - exp", "near zero the digits are gone", lambda x: torch.log(1 - torch.exp(x))),
    ("log1p alone", "near zero the digits are gone", lambda x: torch.log1p(-torch.exp(x))),
    ("an epsilon", "keeps the logarithm from ending", lambda x: torch.log(1 - x.exp() + 1e-6)),
    ("clamped", "keeps the logarithm from ending", lambda x: (1 - x.exp()).clamp(min=1e-8).log()),
    ("no minus", "the answer is NaN: the logarithm of a negative", lambda x: x.expm1().log()),
    ("no exponential", "the number that comes in is a logarithm already", lambda x: 1 - x),
    (
        "a logarithm twice",
        "the number that comes in is a logarithm already",
        lambda x: (1 - x).log(),
    ),
    ("no logarithm", "this is 1 - p itself, and its logarithm", lambda x: -x.expm1()),
    ("logits", "this takes a logit for a logarithm", lambda x: F.logsigmoid(-x)),
    ("first order", "log(1 - p) is taken for -p", lambda x: -x.exp()),
    ("an integer", "expected floating-point numbers", lambda x: x.exp().long()),
    ("its sum", "Which axis was summed over", lambda x: (-x.expm1()).log().sum()),
):
    nots(_name, _fragment)(_element_wise(_formula))


@nots("in place", "it changes its argument `x`")
def _(x):
    return x.expm1_().neg_().log_()


def _two(formula):
    def log_add(a, b):
        return formula(a, b)

    return log_add


for _name, _fragment, _formula in (
    ("no maximum", "there is no maximum: the exponentials", lambda a, b: (a.exp() + b.exp()).log()),
    (
        "inf - inf",
        "the answer is NaN where both are minus infinity",
        lambda a, b: (
            torch.maximum(a, b)
            + ((a - torch.maximum(a, b)).exp() + (b - torch.maximum(a, b)).exp()).log()
        ),
    ),
    (
        "inf - inf, otherwise",
        "the answer is NaN where both are minus infinity",
        lambda a, b: torch.maximum(a, b) + torch.log1p(torch.exp(-(a - b).abs())),
    ),
    (
        "the first taken out",
        "the smaller of the two, or always the same one",
        lambda a, b: a + (b - a).exp().log1p(),
    ),
    (
        "the minimum",
        "the smaller of the two, or always the same one",
        lambda a, b: (
            torch.minimum(a, b)
            + ((a - torch.minimum(a, b)).exp() + (b - torch.minimum(a, b)).exp()).log()
        ),
    ),
    (
        "not put back",
        "the maximum is taken out and not put back",
        lambda a, b: torch.log1p(torch.exp(-(a - b).abs())),
    ),
    (
        "one maximum for all",
        "one number is taken out of all pairs",
        lambda a, b: (
            torch.maximum(a, b).max()
            + ((a - torch.maximum(a, b).max()).exp() + (b - torch.maximum(a, b).max()).exp()).log()
        ),
    ),
    ("the larger", "this is the larger of the two", torch.maximum),
    ("a product", "the logarithms are added: that multiplies", lambda a, b: a + b),
    (
        "a floor",
        "a floor stands where nothing is small enough",
        lambda a, b: torch.logaddexp(a.clamp(min=-1e4), b.clamp(min=-1e4)),
    ),
    (
        "no logarithm",
        "this is the sum of the probabilities, and its",
        lambda a, b: a.exp() + b.exp(),
    ),
    (
        "a mean",
        "this is the sum of the probabilities, and its",
        lambda a, b: torch.stack([a, b]).logsumexp(0) - math.log(2),
    ),
    (
        "base two",
        "the base has changed on the way",
        lambda a, b: (
            torch.maximum(a, b).clamp(min=-1e30)
            + (
                (a - torch.maximum(a, b).clamp(min=-1e30)).exp()
                + (b - torch.maximum(a, b).clamp(min=-1e30)).exp()
            ).log2()
        ),
    ),
):
    adds(_name, _fragment)(_two(_formula))


@adds("NaN replaced", "NaN is replaced afterwards: by 0")
def _(a, b):
    return _nan_add(a, b).nan_to_num(0.0)


@adds("both", "Which axis was summed over")
def _(a, b):
    return torch.stack([a, b])


def _safe_add(a, b):
    return torch.logaddexp(torch.as_tensor(a), torch.as_tensor(b))


def _log_table(log_p, log_q=None, add=_safe_add, start=0.0, outside=-math.inf, there=False):
    log_q = torch.log(-torch.expm1(log_p)) if log_q is None else log_q
    table = torch.full_like(log_p, -math.inf)
    for i, j in itertools.product(*map(range, log_p.shape)):
        if i == j == 0:
            table[0, 0] = start
            continue
        at = (i, j) if there else None
        left = table[i, j - 1] + log_p[at or (i, j - 1)] if j else torch.tensor(outside)
        above = table[i - 1, j] + log_q[at or (i - 1, j)] if i else torch.tensor(outside)
        table[i, j] = add(left, above)
    return table


def _nan_add(a, b):
    m = torch.maximum(a, b)
    return m + ((a - m).exp() + (b - m).exp()).log()


@logs("multiplied after all", "probabilities are multiplied, and the logarithm is taken")
def _(log_p):
    return _fill(log_p.exp(), _many_way).log()


@logs("multiplied in double precision", "probabilities are multiplied, and the logarithm is taken")
def _(log_p):
    return serial_forward(log_p.double().exp()).log()


@logs("for logits", "log p is taken for a logit: sigmoids")
def _(log_p):
    return _log_table(F.logsigmoid(log_p), F.logsigmoid(-log_p))


@logs("a table of zeros", "what comes from outside the grid has the logarithm 0")
def _(log_p):
    table, log_q = torch.zeros_like(log_p), (-log_p.expm1()).log()
    for i, j in itertools.product(*map(range, log_p.shape)):
        if j:
            table[i, j] += table[i, j - 1] + log_p[i, j - 1]
        if i:
            table[i, j] = torch.logaddexp(table[i, j], table[i - 1, j] + log_q[i - 1, j])
    return table


@logs("exp and log at each node", "probabilities are multiplied, and the logarithm is taken")
def _(log_p):
    return _log_table(log_p, add=lambda a, b: (a.exp() + b.exp()).log())


@logs("the source's listing", "these are probabilities: phi, and log phi")
def _(log_p):
    return _fill(log_p.exp(), _many_way)


@logs("starts with 1", "the first node is set to 1. The table")
def _(log_p):
    return _log_table(log_p, start=1.0)


@logs("q from a rounded p", "where p is nearly 1, log q has lost its digits")
def _(log_p):
    return _log_table(log_p, (1 - log_p.exp()).log())


@logs("1 minus the logarithm", "log q is not made of q = 1 - p")
def _(log_p):
    def add(a, b):
        m = torch.maximum(a, b)
        m = m.where(m > -torch.inf, 0.0)
        return m + ((a - m).exp() + (b - m).exp()).log()

    return _log_table(log_p, 1 - log_p, add=add)


@logs("sums of logarithms", "which multiplies their probabilities. A path")
def _(log_p):
    zero = torch.tensor(0.0)
    log_q = (-log_p.expm1()).log()
    table = torch.zeros_like(log_p)
    for i, j in itertools.product(*map(range, log_p.shape)):
        left = table[i, j - 1] + log_p[i, j - 1] if j else zero
        above = table[i - 1, j] + log_q[i - 1, j] if i else zero
        table[i, j] = left + above
    return table


@logs("the best path", "that is the best path's probability")
def _(log_p):
    return _log_table(log_p, add=torch.maximum)


@logs("NaN where nobody comes", "the table is NaN at nodes where no path leads")
def _(log_p):
    return _log_table(log_p, add=_nan_add)


@logs("a floor outside", "there is a floor: what is less likely")
def _(log_p):
    return _log_table(log_p, outside=-1e4)


@logs("-10^9 outside", "there is a floor: what is less likely")
def _(log_p):
    return _log_table(log_p.nan_to_num(neginf=-1e9)).clamp(min=-1e9)


@logs("zeros outside", "what comes from outside the grid has the logarithm 0")
def _(log_p):
    return _log_table(log_p, outside=0.0)


@logs("a floor in the end", "there is a floor: what is less likely")
def _(log_p):
    return _log_table(log_p).clamp(min=-1e4)


@logs("minus log p", "log q is not made of q = 1 - p")
def _(log_p):
    return _log_table(log_p, -log_p)


@logs("1 minus log p", "log q is not made of q = 1 - p")
def _(log_p):
    return _log_table(log_p, 1 - log_p)


@logs("where it arrives", "the step's own p is not the one that is used")
def _(log_p):
    return _log_table(log_p, there=True)


@logs("p down", "log p and log q have changed places")
def _(log_p):
    return _log_table((-log_p.expm1()).log(), log_p)


@logs("one-to-many steps", "these are the steps of the one-to-many model.")
def _(log_p):
    return serial_forward(log_p.double().exp(), model="one_to_many").log()


@logs("a table of lists", "it returned a list; expected a tensor")
def _(log_p):
    return _log_table(log_p).tolist()


def log_not_two_sides(x):
    return torch.where(x > -math.log(2), (-x.expm1()).log(), (-x.exp()).log1p())


def log_not_wide(x):
    return (-x.double().expm1()).log()


def log_not_logistic(x):
    """log(1 - e^x) = log(e^-x - 1) + x; for large -x that is -e^x."""
    return torch.where(x > -20, x + torch.expm1(-x).log(), -x.exp())


def log_add_pytorch(a, b):
    return torch.logaddexp(a, b)


def log_add_sorted(a, b):
    high, low = torch.maximum(a, b), torch.minimum(a, b)
    apart = (low - high).nan_to_num(0.0, neginf=-math.inf)
    return high + apart.exp().log1p()


def log_add_stacked(a, b):
    return torch.stack([a, b]).logsumexp(0)


def log_visit_padded(log_p):
    return _log_table(log_p)


def log_visit_rows(log_p):
    """Row by row; along a row, sums of logarithms are taken out of a cumulative sum."""
    x = log_p.double()
    log_q = (-x.expm1()).log()
    table = [F.pad(x[0, :-1].cumsum(0), (1, 0))]
    for i in range(1, len(x)):
        above = table[-1] + log_q[i - 1]
        row = [above[0]]
        for j in range(1, x.shape[1]):
            row.append(torch.logaddexp(row[-1] + x[i, j - 1], above[j]))
        table.append(torch.stack(row))
    return torch.stack(table)


def log_visit_diagonals(log_p):
    """All nodes of an anti-diagonal at once."""
    rows, columns = log_p.shape
    log_q = F.pad((-log_p.expm1()).log(), (1, 0, 1, 0), value=-math.inf)
    log_p = F.pad(log_p, (1, 0, 1, 0), value=-math.inf)
    table = torch.full_like(log_p, -math.inf)
    table[1, 1] = 0
    for t in range(1, rows + columns - 1):
        i = torch.arange(max(0, t - columns + 1), min(t + 1, rows)) + 1
        j = t + 2 - i
        table[i, j] = torch.logaddexp(
            table[i, j - 1] + log_p[i, j - 1], table[i - 1, j] + log_q[i - 1, j]
        )
    return table[1:, 1:]


RIGHT["10.3"] = [
    ("both sides, PyTorch's sum", [log_not_two_sides, log_add_pytorch, log_visit_padded]),
    ("double precision, row by row", [log_not_wide, log_add_stacked, log_visit_rows]),
    ("anti-diagonals", [log_not_logistic, log_add_sorted, log_visit_diagonals]),
]


# 10.4 --------------------------------------------------------------------------------

slopes = wrong("10.4", "gradient")


def _behind(p, grad, q=None, there=False):
    """G with a row and a column of zeros behind."""
    q = 1 - p if q is None else q
    G = torch.zeros(p.shape[0] + 1, p.shape[1] + 1)
    P, Q = (F.pad(x, (0, 1, 0, 1)) for x in (p, q))
    for i, j in itertools.product(*(reversed(range(size)) for size in p.shape)):
        to_right = P[i, j + 1] if there else P[i, j]
        to_below = Q[i + 1, j] if there else Q[i, j]
        G[i, j] = grad[i, j] + to_right * G[i, j + 1] + to_below * G[i + 1, j]
    return G


def _forwards(p, phi, grad):
    """From the first corner, in a table of zeros."""
    G, found = torch.zeros(p.shape[0] + 1, p.shape[1] + 1), torch.zeros_like(p)
    for i, j in itertools.product(*map(range, p.shape)):
        G[i, j] = grad[i, j] + p[i, j] * G[i, j + 1] + (1 - p[i, j]) * G[i + 1, j]
        found[i, j] = phi[i, j] * (G[i, j + 1] - G[i + 1, j])
    return found


def _rows_upwards_only(p, grad):
    G = torch.zeros(p.shape[0] + 1, p.shape[1] + 1)
    for i, j in itertools.product(reversed(range(p.shape[0])), range(p.shape[1])):
        G[i, j] = grad[i, j] + p[i, j] * G[i, j + 1] + (1 - p[i, j]) * G[i + 1, j]
    return G


def _edges_skipped(p, phi, grad):
    G, found = grad.clone(), torch.zeros_like(p)
    for i, j in itertools.product(*(reversed(range(size - 1)) for size in p.shape)):
        G[i, j] += p[i, j] * G[i, j + 1] + (1 - p[i, j]) * G[i + 1, j]
        found[i, j] = phi[i, j] * (G[i, j + 1] - G[i + 1, j])
    return found


def _right_down(G):
    return G[:-1, 1:], G[1:, :-1]


def _slope(formula, sweep=_behind):
    def gradient(p, phi, grad):
        return formula(p, phi, *_right_down(sweep(p, grad)))

    return gradient


for _name, _fragment, _function in (
    (
        "plus",
        "the negative term is missing: a larger p",
        _slope(lambda p, phi, right, down: phi * (right + down)),
    ),
    (
        "right only",
        "the negative term is missing: a larger p",
        _slope(lambda p, phi, right, down: phi * right),
    ),
    (
        "down only",
        "only the positive term is missing",
        _slope(lambda p, phi, right, down: -phi * down),
    ),
    (
        "from outside only",
        "gradients are consumed before they are accumulated",
        _slope(
            lambda p, phi, right, down: phi * (right - down),
            lambda p, grad: F.pad(grad, (0, 1, 0, 1)),
        ),
    ),
    ("forwards", "gradients are consumed before they are accumulated", _forwards),
    (
        "rows from the last, columns from the first",
        "gradients are consumed before they are accumulated",
        _slope(lambda p, phi, right, down: phi * (right - down), _rows_upwards_only),
    ),
    ("edges skipped", "the last row and the last column are left out", _edges_skipped),
    (
        "a logarithm of gradients",
        "the answer is NaN: the logarithm of a negative gradient",
        _slope(
            lambda p, phi, right, down: phi * (right - down),
            lambda p, grad: _behind(p, grad.log().exp()),
        ),
    ),
    (
        "negative ones cut",
        "negative gradients are lost, or made positive",
        _slope(
            lambda p, phi, right, down: phi * (right - down),
            lambda p, grad: _behind(p, grad.clamp(min=0)),
        ),
    ),
    (
        "absolute",
        "negative gradients are lost, or made positive",
        _slope(
            lambda p, phi, right, down: phi * (right - down), lambda p, grad: _behind(p, grad.abs())
        ),
    ),
    (
        "the sign",
        "the sign is wrong: a larger p makes",
        _slope(lambda p, phi, right, down: phi * (down - right)),
    ),
    (
        "no phi",
        "phi is missing: how much there is to send",
        _slope(lambda p, phi, right, down: right - down),
    ),
    ("G itself", "this is G, what the loss gains", lambda p, phi, grad: _behind(p, grad)[:-1, :-1]),
    (
        "phi times G",
        "this is G, what the loss gains",
        lambda p, phi, grad: phi * _behind(p, grad)[:-1, :-1],
    ),
    (
        "weighed again",
        "the terms are weighed by p and q once more",
        _slope(lambda p, phi, right, down: phi * (p * right - (1 - p) * down)),
    ),
    (
        "by the logit",
        "this is the gradient by the logit x",
        _slope(lambda p, phi, right, down: phi * p * (1 - p) * (right - down)),
    ),
    (
        "p and q in G",
        "p and q have changed places in G",
        _slope(
            lambda p, phi, right, down: phi * (right - down), lambda p, grad: _behind(1 - p, grad)
        ),
    ),
    (
        "the neighbour's p",
        "G uses the p of the node that a step leads to",
        _slope(
            lambda p, phi, right, down: phi * (right - down),
            lambda p, grad: _behind(p, grad, there=True),
        ),
    ),
    (
        "without what comes from outside",
        "G of the neighbours lacks what comes to them from outside",
        _slope(
            lambda p, phi, right, down: phi * (right - down),
            lambda p, grad: _behind(p, grad) - F.pad(grad, (0, 1, 0, 1)),
        ),
    ),
    (
        "unweighted",
        "G of the neighbours lacks what comes to them from outside",
        _slope(
            lambda p, phi, right, down: phi * (right - down),
            lambda p, grad: _behind(torch.ones_like(p), grad, torch.ones_like(p)),
        ),
    ),
    (
        "the neighbours' phi",
        "phi of the neighbours is taken",
        lambda p, phi, grad: (
            F.pad(phi, (0, 1))[:, 1:] * _behind(p, grad)[:-1, 1:]
            - F.pad(phi, (0, 0, 0, 1))[1:] * _behind(p, grad)[1:, :-1]
        ),
    ),
    (
        "one-to-many steps",
        "these are the steps of the one-to-many model: both",
        lambda p, phi, grad: serial_backward(p, phi, grad, model="one_to_many"),
    ),
):
    slopes(_name, _fragment)(_function)


@slopes("forwards", "gradients are consumed before they are accumulated")
def _(p, phi, grad):
    """Goes through the nodes in the order of the forward pass."""
    rows, columns = p.shape
    G = F.pad(grad, (0, 1, 0, 1))
    found = torch.zeros_like(p)
    for i, j in itertools.product(range(rows), range(columns)):
        found[i, j] = phi[i, j] * (G[i, j + 1] - G[i + 1, j])
        G[i, j] += p[i, j] * G[i, j + 1] + (1 - p[i, j]) * G[i + 1, j]
    return found


@slopes("a plus in the last column", "the negative term is missing: a larger p")
def _(p, phi, grad):
    """Edges have rules of their own."""
    (rows, columns), G = p.shape, _behind(p, grad)
    found = torch.zeros_like(p)
    for i, j in itertools.product(range(rows), range(columns)):
        if i < rows - 1 and j < columns - 1:
            found[i, j] = phi[i, j] * (G[i, j + 1] - G[i + 1, j])
        elif j < columns - 1:
            found[i, j] = phi[i, j] * G[i, j + 1]
        elif i < rows - 1:
            found[i, j] = phi[i, j] * G[i + 1, j]
    return found


@slopes("round the edge", "an index that goes round")
def _(p, phi, grad):
    G = _behind(p, grad)[:-1, :-1]
    return phi * (G.roll(-1, 1) - G.roll(-1, 0))


@slopes("inner nodes", "the last row and the last column are left out")
def _(p, phi, grad):
    G = _behind(p, grad)
    found = torch.zeros_like(p)
    for i in range(p.shape[0] - 1):
        for j in range(p.shape[1] - 1):
            found[i, j] = phi[i, j] * (G[i, j + 1] - G[i + 1, j])
    return found


@slopes("added to what was given", "it changes its argument `grad`")
def _(p, phi, grad):
    rows, columns = p.shape
    found = torch.zeros_like(p)
    for i, j in itertools.product(reversed(range(rows)), reversed(range(columns))):
        right = grad[i, j + 1] if j + 1 < columns else 0
        down = grad[i + 1, j] if i + 1 < rows else 0
        found[i, j] = phi[i, j] * (right - down)
        grad[i, j] += p[i, j] * right + (1 - p[i, j]) * down
    return found


@slopes("past the edge", "your code raised IndexError")
def _(p, phi, grad):
    return torch.stack([phi[i] * grad[i + 1] for i in range(len(p))])


@slopes("one number", "Which axis was summed over")
def _(p, phi, grad):
    return serial_backward(p, phi, grad).sum()


def gradient_package(p, phi, grad):
    return serial_backward(p, phi, grad)


def gradient_differences(p, phi, grad):
    """Exact, since phi is a straight line in each p."""
    found = torch.zeros_like(p)
    for i, j in itertools.product(*map(range, p.shape)):
        ends = torch.stack([p, p])
        ends[0, i, j], ends[1, i, j] = 0, 1
        low, high = (serial_forward(ends) * grad).sum((1, 2))
        found[i, j] = high - low
    return found


def gradient_autograd(p, phi, grad):
    with torch.enable_grad():
        leaf = p.clone().requires_grad_()
        return torch.autograd.grad((serial_forward(leaf) * grad).sum(), leaf)[0]


def gradient_pushed(p, phi, grad):
    """Each complete node sends its gradient back to the two that lead to it."""
    total, found = grad.double().clone(), torch.zeros_like(p, dtype=torch.float64)
    for i, j in itertools.product(*(reversed(range(size)) for size in p.shape)):
        if j:
            total[i, j - 1] += p[i, j - 1] * total[i, j]
            found[i, j - 1] += phi[i, j - 1] * total[i, j]
        if i:
            total[i - 1, j] += (1 - p[i - 1, j]) * total[i, j]
            found[i - 1, j] -= phi[i - 1, j] * total[i, j]
    return found


RIGHT["10.4"] = [
    ("the package", [gradient_package]),
    ("steps from 0 to 1", [gradient_differences]),
    ("autograd", [gradient_autograd]),
    ("sent back by each node", [gradient_pushed]),
]


# 10.5 --------------------------------------------------------------------------------

testers = wrong("10.5", "leaks")
finders = wrong("10.5", "diagnosis")


def _other(x, k):
    x = x.clone()
    x[k] += torch.randn(x.shape[1])
    return x


def _table_of(weigh, logits, change=_other, look=lambda w: w, pile=False):
    before, columns, x = look(weigh(logits)), [], logits
    for k in range(len(logits)):
        changed = change(x, k)
        if pile:
            x = changed
        off = (look(weigh(changed)) - before).abs() > 1e-6
        columns.append(off.reshape(len(logits), -1).any(1))
    return torch.stack(columns, 1)


def _put(x, k, row):
    x = x.clone()
    x[k] = row
    return x


@testers("sources changed", "sources are perturbed: a key was changed")
def _(weigh, logits):
    def change(x, k):
        x = x.clone()
        x[:, k] += torch.randn(len(x))
        return x

    return _table_of(weigh, logits, change).triu(1)


@testers("a table of keys", "with a row or a column for each *key*")
def _(weigh, logits):
    if len(logits) == logits.shape[1]:  # where the shape does not tell
        return _table_of(weigh, logits).triu(1)
    before, columns = weigh(logits), []
    for j in range(logits.shape[1]):
        x = logits.clone()
        x[:, j] += torch.randn(len(x))
        columns.append(((weigh(x) - before).abs() > 1e-6).any(1))
    return torch.stack(columns, 1)


@testers("the last row", "nothing is found, in whatever weights")
def _(weigh, logits):
    table = _table_of(weigh, logits).triu(1)
    table[:-1] = False
    return table


@testers("the first row", "one row of the weights is the only one")
def _(weigh, logits):
    table = _table_of(weigh, logits).triu(1)
    table[1:] = False
    return table


@testers("the last query changed", "the last query is the only one that is changed")
def _(weigh, logits):
    table = torch.zeros(len(logits), len(logits), dtype=torch.bool)
    table[:, -1] = ((weigh(_other(logits, -1)) - weigh(logits)).abs() > 1e-6).any(1)
    return table.triu(1)


@testers("the past", "earlier queries are what is looked for")
def _(weigh, logits):
    return _table_of(weigh, logits).tril(-1)


@testers("all that moves", "all that moves is marked, the past and")
def _(weigh, logits):
    return _table_of(weigh, logits)


@testers("itself too", "all that moves is marked, the past and")
def _(weigh, logits):
    return _table_of(weigh, logits).triu()


@testers("transposed", "the table lies on its side: rows are queries")
def _(weigh, logits):
    return _table_of(weigh, logits).triu(1).T


@testers("on its side", "the table lies on its side: rows are queries")
def _(weigh, logits):
    return _table_of(weigh, logits).T


@testers("on its side, above the diagonal", "the table lies on its side: rows are queries")
def _(weigh, logits):
    return _table_of(weigh, logits).T.triu(1)


@testers("all that come after, too", "query k and all after it are changed")
def _(weigh, logits):
    def change(x, k):
        return torch.cat([x[:k], torch.randn(len(x) - k, x.shape[1])])

    return _table_of(weigh, logits, change).triu(1)


@testers("piled up", "changes pile up: a query is changed while")
def _(weigh, logits):
    return _table_of(weigh, logits, pile=True).triu(1)


@testers("set to zero", "rows are set to 0 or multiplied")
def _(weigh, logits):
    return _table_of(weigh, logits, lambda x, k: _put(x, k, 0.0)).triu(1)


@testers("doubled", "rows are set to 0 or multiplied")
def _(weigh, logits):
    return _table_of(weigh, logits, lambda x, k: _put(x, k, 2 * x[k])).triu(1)


@testers("one more", "the same number is added to all logits of a query")
def _(weigh, logits):
    return _table_of(weigh, logits, lambda x, k: _put(x, k, x[k] + 1)).triu(1)


@testers("sums of rows", "only sums of rows are compared")
def _(weigh, logits):
    return _table_of(weigh, logits, look=lambda w: w.double().sum(1)).triu(1)


@testers("the first key", "only one key of each row is looked at")
def _(weigh, logits):
    return _table_of(weigh, logits, look=lambda w: w[:, 0]).triu(1)


@testers("decisions only", "leaks are missed: a weight has moved")
def _(weigh, logits):
    return _table_of(weigh, logits, look=lambda w: w.argmax(1, keepdim=True).float()).triu(1)


@testers("large moves only", "leaks are missed: a weight has moved")
def _(weigh, logits):
    before = weigh(logits)
    moves = [(weigh(_other(logits, k)) - before).abs().amax(1) for k in range(len(logits))]
    return (torch.stack(moves, 1) > 0.1).triu(1)


@testers("infinite logits", "leaks are missed: a weight has moved")
def _(weigh, logits):
    return _table_of(weigh, logits, lambda x, k: _put(x, k, torch.inf)).triu(1)


@testers("nothing found", "nothing is found, in whatever weights")
def _(weigh, logits):
    return torch.zeros(len(logits), len(logits), dtype=torch.bool)


@testers("everything found", "everything later is marked")
def _(weigh, logits):
    return torch.ones(len(logits), len(logits), dtype=torch.bool).triu(1)


@testers("what stays", "entries say where nothing moves")
def _(weigh, logits):
    return (~_table_of(weigh, logits)).triu(1)


@testers("training accuracy", "it returned True, one answer for everything")
def _(weigh, logits):
    """Whether the decisions stay the same."""
    changed = weigh(logits + 0.1 * torch.randn(logits.shape))
    return bool((changed.argmax(1) == weigh(logits).argmax(1)).float().mean() > 0.5)


@testers("how far", "How far a weight has moved depends on")
def _(weigh, logits):
    before = weigh(logits)
    moves = [(weigh(_other(logits, k)) - before).abs().amax(1) for k in range(len(logits))]
    return torch.stack(moves, 1).triu(1)


@testers("logits in place", "it changes its argument `logits`")
def _(weigh, logits):
    before, columns = weigh(logits), []
    for k in range(len(logits)):
        logits[k] += torch.randn(logits.shape[1])
        columns.append(((weigh(logits) - before).abs() > 1e-6).any(1))
    return torch.stack(columns, 1).triu(1)


@testers("no weights called", "your code raised")
def _(weigh, logits):
    return weigh.weight - logits


for _name, _fragment, _said in (
    ("A is causal", "In its table there is one line, beside the diagonal.", "causal posterior"),
    ("C and D exchanged", "whoever knows that the path will arrive", "ahead columns"),
    ("D a posterior", "and of its weights the sum over queries", "ahead posterior posterior"),
    ("B a posterior", "Its table is empty.", "ahead not"),
):

    def _diagnosis(said=_said):
        first, second, *third = said.split()
        return {
            "A": "one query ahead" if first == "ahead" else "causal",
            "B": "posterior" if second == "not" else "causal",
            "C": "columns sum to 1" if second == "columns" else "posterior",
            "D": "posterior" if third or second == "columns" else "columns sum to 1",
        }

    finders(_name, _fragment)(_diagnosis)


@finders("its own words", "expected one of")
def _():
    return {"A": "leaks", "B": "causal", "C": "posterior", "D": "columns sum to 1"}


@finders("one of four", "expected a dict with the keys A, B, C, D")
def _():
    return {"B": "causal"}


def leaks_by_gradient(weigh, logits):
    """By small differences of each logit, in double precision."""
    x = logits.double()
    table = torch.zeros(len(x), len(x))
    for k in range(len(x)):
        for j in range(x.shape[1]):
            moved = x.clone()
            moved[k, j] += 1e-3
            off = (weigh(moved) - weigh(x)).abs().sum(1) > 1e-9
            table[:, k] += off
    return (table > 0).triu(1)


def leaks_by_jacobian(weigh, logits):
    slopes = torch.autograd.functional.jacobian(weigh, logits)
    return (slopes.abs().sum((1, 3)) > 1e-6).triu(1)


def leaks_swapped(weigh, logits):
    """Other numbers in place of a row, several times."""
    n = len(logits)
    table = torch.zeros(n, n, dtype=torch.bool)
    for _ in range(3):
        for k in range(1, n):
            x = logits.clone()
            x[k] = 2 * torch.randn(x.shape[1])
            table[:k, k] |= (~torch.isclose(weigh(x), weigh(logits), atol=1e-6)).any(1)[:k]
    return table


def leaks_cut(weigh, logits):
    """Compared up to the change only; 0 and 1."""
    n = len(logits)
    table = torch.zeros(n, n)
    for k in range(n):
        x = torch.cat([logits[:k], torch.randn(1, logits.shape[1]), logits[k + 1 :]])
        table[:k, k] = (weigh(x)[:k] != weigh(logits)[:k]).any(1).float()
    return table


def diagnosis():
    return dict(
        zip("DCBA", ("columns sum to 1", "posterior", "causal", "one query ahead"), strict=True)
    )


RIGHT["10.5"] = [
    ("small differences", [leaks_by_gradient, diagnosis]),
    ("a Jacobian", [leaks_by_jacobian, diagnosis]),
    ("other rows, several times", [leaks_swapped, diagnosis]),
    ("up to the change", [leaks_cut, diagnosis]),
]


# 10.6 --------------------------------------------------------------------------------

walks = wrong("10.6", "walk")


def _all_of(ask, queries, keys):
    return torch.tensor([[ask(i, j) for j in range(keys)] for i in range(queries)])


def _walk(ask, queries, keys, start=lambda last: last, go=lambda x: x > 0):
    position, stops = 0, []
    for i in range(queries):
        position = start(position) if i else 0
        while position < keys and go(ask(i, position)):
            position += 1
        stops.append(position)
    return stops


@walks("restarts at zero", "every query restarts at key 0")
def _(ask, queries, keys):
    return _walk(ask, queries, keys, start=lambda last: 0)


@walks("argmax", "this takes the argmax or the argmin of each row")
def _(ask, queries, keys):
    return _all_of(ask, queries, keys).argmax(1).tolist()


@walks("argmin", "this takes the argmax or the argmin of each row")
def _(ask, queries, keys):
    return _all_of(ask, queries, keys).argmin(1).tolist()


@walks("argmin that never turns back", "this takes the argmax or the argmin of each row")
def _(ask, queries, keys):
    return _all_of(ask, queries, keys).argmin(1).cummax(0).values.tolist()


@walks("argmin of the rest", "this takes the argmax or the argmin of each row")
def _(ask, queries, keys):
    x, position, stops = _all_of(ask, queries, keys), 0, []
    for i in range(queries):
        position += int(x[i, position:].argmin())
        stops.append(position)
    return stops


@walks("the likeliest of each row", "the most likely key of each row by the expected alignment")
def _(ask, queries, keys):
    return expected_alignment(_all_of(ask, queries, keys), validate=False).argmax(1).tolist()


@walks("cannot repeat", "no key can be repeated here")
def _(ask, queries, keys):
    return _walk(ask, queries, keys, start=lambda last: last + 1)


@walks("cannot repeat, kept inside", "no key can be repeated here")
def _(ask, queries, keys):
    return _walk(ask, queries, keys, start=lambda last: min(last + 1, keys))


@walks("swapped", "p and q are swapped: this goes on where")
def _(ask, queries, keys):
    return _walk(ask, queries, keys, go=lambda x: x < 0)


@walks("one half", "logits are compared with a probability")
def _(ask, queries, keys):
    return _walk(ask, queries, keys, go=lambda x: x > 0.5)


@walks("at least 0", "where the logit is exactly 0 this goes on")
def _(ask, queries, keys):
    return _walk(ask, queries, keys, go=lambda x: x >= 0)


@walks("one behind", "what is returned is the key after the stop")
def _(ask, queries, keys):
    return [stop + 1 for stop in _walk(ask, queries, keys)]


@walks("how many", "what is returned is the key after the stop")
def _(ask, queries, keys):
    stops = _walk(ask, queries, keys)
    return [stop - last for stop, last in zip(stops, [0, *stops], strict=False)]


@walks("put back on the last key", "who runs past the last key is put back on it")
def _(ask, queries, keys):
    return [min(stop, keys - 1) for stop in _walk(ask, queries, keys)]


@walks("held at the last key", "who runs past the last key is put back on it")
def _(ask, queries, keys):
    position, stops = 0, []
    for i in range(queries):
        while position < keys - 1 and ask(i, position) > 0:
            position += 1
        stops.append(position)
    return stops


@walks("for without else", "who runs past the last key is put back on it")
def _(ask, queries, keys):
    position, stops = 0, []
    for i in range(queries):
        for j in range(position, keys):
            if ask(i, j) <= 0:
                position = j
                break
        stops.append(position)
    return stops


@walks("else, and left behind", "who runs past the last key is put back on it")
def _(ask, queries, keys):
    position, stops = 0, []
    for i in range(queries):
        for j in range(position, keys):
            if ask(i, j) <= 0:
                position = j
                stops.append(j)
                break
        else:
            stops.append(keys)
    return stops


@walks("-1 for nowhere", "who runs past the last key is put back on it")
def _(ask, queries, keys):
    return [-1 if stop == keys else stop for stop in _walk(ask, queries, keys)]


@walks("from the start again", "once the keys have run out, the next query begins again")
def _(ask, queries, keys):
    return _walk(ask, queries, keys, start=lambda last: last % keys)


@walks("if for while", "a query passes one key at most")
def _(ask, queries, keys):
    position, stops = 0, []
    for i in range(queries):
        if position < keys and ask(i, position) > 0:
            position += 1
        stops.append(position)
    return stops


@walks("the query before", "the logits of another query are asked for")
def _(ask, queries, keys):
    return _walk(lambda i, j: ask(max(i - 1, 0), j), queries, keys)


@walks("the best path", "this is the path that is likeliest as a whole")
def _(ask, queries, keys):
    x = _all_of(ask, queries, keys).double()
    log_p, log_q = F.logsigmoid(x), F.logsigmoid(-x)

    @cache
    def best(i, j):
        if i == queries or j == keys:
            return 0.0, (keys,) * (queries - i)
        go, stop = best(i, j + 1), best(i + 1, j)
        onwards = (float(log_p[i, j]) + go[0], go[1])
        return max(onwards, (float(log_q[i, j]) + stop[0], (j, *stop[1])))

    return list(best(0, 0)[1])


@walks("never leaves the first stop", "every query stops where the first one did")
def _(ask, queries, keys):
    position = 0
    while position < keys and ask(0, position) > 0:
        position += 1
    return [position] * queries


@walks("all logits first", "keys behind the stop may not have been heard yet")
def _(ask, queries, keys):
    x = [[ask(i, j) for j in range(keys)] for i in range(queries)]
    return _walk(lambda i, j: x[i][j], queries, keys)


@walks("searched from the start", "what has been passed need not be looked at again")
def _(ask, queries, keys):
    position, stops = 0, []
    for i in range(queries):
        for j in range(position):
            ask(i, j)
        while position < keys and ask(i, position) > 0:
            position += 1
        stops.append(position)
    return stops


@walks("the queries backwards", "queries come one at a time, and none comes back")
def _(ask, queries, keys):
    stops = _walk(ask, queries, keys)
    for i in reversed(range(queries)):
        if stops[i] < keys:
            ask(i, stops[i])
    return stops


@walks("one look ahead", "keys behind the stop may not have been heard yet")
def _(ask, queries, keys):
    position, stops = 0, []
    for i in range(queries):
        while position < keys and ask(i, position) > 0:
            position += 1
        if position + 1 < keys:
            ask(i, position + 1)
        stops.append(position)
    return stops


@walks("past the end", "there is no key")
def _(ask, queries, keys):
    position, stops = 0, []
    for i in range(queries):
        while ask(i, position) > 0:
            position += 1
        stops.append(position)
    return stops


@walks("booleans", "a stop for each query.")
def _(ask, queries, keys):
    stops = _walk(ask, queries, keys)
    return [[j == stop for j in range(keys)] for stop in stops]


@walks("the last one", "a stop for each query.")
def _(ask, queries, keys):
    return _walk(ask, queries, keys)[-1]


@walks("nothing", "is the `return` missing")
def _(ask, queries, keys):
    _walk(ask, queries, keys)


def walk_one_loop(ask, queries, keys):
    """A finger on the grid: right or down."""
    i = j = 0
    stops: list[int] = []
    while i < queries and j < keys:
        if ask(i, j) > 0:
            j += 1
        else:
            stops.append(j)
            i += 1
    return stops + [keys] * (queries - i)


def walk_next(ask, queries, keys):
    stops = torch.zeros(queries, dtype=torch.long)
    start = 0
    for i in range(queries):
        start = next((j for j in range(start, keys) if not ask(i, j) > 0), keys)
        stops[i] = start
    return stops


def walk_recursive(ask, queries, keys, i=0, j=0):
    if i == queries:
        return ()
    if j == keys:
        return (keys, *walk_recursive(ask, queries, keys, i + 1, j))
    if ask(i, j) > 0:
        return walk_recursive(ask, queries, keys, i, j + 1)
    return (j, *walk_recursive(ask, queries, keys, i + 1, j))


def walk_twice(ask, queries, keys):
    """Asks again and again about the same pair."""
    position, stops = 0, []
    for i in range(queries):
        while position < keys:
            if 1 / (1 + math.exp(-ask(i, position))) <= 0.5 or not ask(i, position) > 0:
                break
            position += 1
        stops.append(np.int64(position).item())
    return stops


RIGHT["10.6"] = [
    ("one loop over steps", [walk_one_loop]),
    ("the next stop of each, a tensor", [walk_next]),
    ("recursive, a tuple", [walk_recursive]),
    ("asked twice", [walk_twice]),
]


# 10.7 --------------------------------------------------------------------------------

joins = wrong("10.7", "combine")


def _maps(formula):
    def combine(a1, b1, a2, b2):
        return formula(a1, b1, a2, b2)

    return combine


for _name, _fragment, _formula in (
    (
        "the order",
        "the order is wrong: this is the second map first",
        lambda a1, b1, a2, b2: (a1 * a2, a1 * b2 + b1),
    ),
    (
        "products only",
        "this is the elementwise product only",
        lambda a1, b1, a2, b2: (a1 * a2, b1 * b2),
    ),
    ("a plain sum", "what is added meets no factor", lambda a1, b1, a2, b2: (a1 * a2, b1 + b2)),
    (
        "factors added",
        "the factors are added. (They are where",
        lambda a1, b1, a2, b2: (a1 + a2, a2 * b1 + b2),
    ),
    (
        "the last factor",
        "the factor is that of one map alone",
        lambda a1, b1, a2, b2: (a2, a2 * b1 + b2),
    ),
    (
        "the second map",
        "the first map is lost: this is the second one",
        lambda a1, b1, a2, b2: (a2.clone(), b2.clone()),
    ),
    (
        "b2 multiplied",
        "b2 goes through a2 as well",
        lambda a1, b1, a2, b2: (a1 * a2, a2 * (b1 + b2)),
    ),
    (
        "its own factor",
        "b1 meets its own factor a1",
        lambda a1, b1, a2, b2: (a1 * a2, a1 * b1 + b2),
    ),
    (
        "summand first",
        "factor and summand have changed places",
        lambda a1, b1, a2, b2: (a2 * b1 + b2, a1 * a2),
    ),
    (
        "minus",
        "the sign is wrong: nothing is subtracted",
        lambda a1, b1, a2, b2: (a1 * a2, a2 * b1 - b2),
    ),
    ("one tensor", "expected two tensors, the factor", lambda a1, b1, a2, b2: a2 * b1 + b2),
    (
        "the sum of all",
        "Which axis was summed over",
        lambda a1, b1, a2, b2: (a1 * a2, (a2 * b1 + b2).sum()),
    ),
    ("nothing", "is the `return` missing", lambda a1, b1, a2, b2: None),
):
    joins(_name, _fragment)(_maps(_formula))


@joins("in place", "it changes its argument `b1`")
def _(a1, b1, a2, b2):
    return a1 * a2, b1.mul_(a2).add_(b2)


@triton.jit
def _right(a1, b1, a2, b2):
    return a1 * a2, a2 * b1 + b2


@triton.jit
def _turned(a1, b1, a2, b2):
    return a1 * a2, a1 * b2 + b1


@triton.jit
def _plain_sum(a1, b1, a2, b2):
    return a1 * a2, b1 + b2


@triton.jit
def _products(a1, b1, a2, b2):
    return a1 * a2, b1 * b2


@triton.jit
def _flexible(a_ptr, b_ptr, h_ptr, LENGTH: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr):
    """The kernel with one of several faults."""
    program = tl.program_id(0)
    row = program * LENGTH
    if KIND == "wrong rows":
        row = program * ((LENGTH + BLOCK - 1) // BLOCK * BLOCK)
    if KIND == "the same row":
        row = program * 0
    source = row
    if KIND == "the first row read":
        source = program * 0
    lanes = tl.arange(0, BLOCK)
    before = 1.0 if KIND == "begins with 1" else 0.0
    panels = (LENGTH + BLOCK - 1) // BLOCK
    if KIND == "floor":
        panels = LENGTH // BLOCK
    if KIND == "first panel":
        panels = 1
    for number in range(0, panels):
        first = number * BLOCK
        inside = first + lanes < LENGTH
        places = row + first + lanes
        read = inside | (lanes >= 0) if KIND == "unmasked loads" else inside
        if KIND == "NaN in the tail":
            a = tl.load(a_ptr + places, mask=read)
            b = tl.load(b_ptr + places, mask=read)
            b = tl.where(lanes == 0, tl.sum(b * 0.0, 0) + b, b)
        else:
            a = tl.load(a_ptr + source + first + lanes, mask=read, other=0.0)
            b = tl.load(b_ptr + source + first + lanes, mask=read, other=0.0)
        if KIND == "a one place late":
            a = tl.load(a_ptr + places - 1, mask=inside & (first + lanes > 0), other=0.0)
        if KIND == "exchanged":
            A, B = tl.associative_scan((b, a), 0, _right)
        elif KIND == "turned operator":
            A, B = tl.associative_scan((a, b), 0, _turned)
        elif KIND == "running sum" or KIND == "running sum, carried":
            A, B = tl.associative_scan((a, b), 0, _plain_sum)
        elif KIND == "running product":
            A, B = tl.associative_scan((a, b), 0, _products)
        elif KIND == "backwards":
            A, B = tl.associative_scan((a, b), 0, _right, reverse=True)
        else:
            A, B = tl.associative_scan((a, b), 0, _right)
        h = A * before + B
        if KIND == "carry lost" or KIND == "running sum" or KIND == "backwards":
            h = B
        if KIND == "carry added":
            h = B + before
        if KIND == "carry by its own lane":
            h = a * before + B
        if KIND == "summands lost":
            h = A * before
        if KIND == "factors":
            h = A
        if KIND == "no scan":
            h = a * b
        stored = h
        if KIND == "one place late":
            stored = (h - b) / a
        writes = inside | (lanes >= 0) if KIND == "whole panels" else inside
        if KIND == "one lane less":
            writes = inside & (lanes < BLOCK - 1)
        if KIND == "over b":
            tl.store(b_ptr + places, stored, mask=writes)
        tl.store(h_ptr + places, stored, mask=writes)
        last = lanes == BLOCK - 1
        if KIND == "read back":
            before = tl.load(
                h_ptr + row + first + BLOCK - 1, mask=first + BLOCK <= LENGTH, other=0.0
            )
        elif KIND == "summand carried":
            before = tl.sum(tl.where(last, B, 0.0), 0)
        elif KIND == "first lane carried":
            before = tl.sum(tl.where(lanes == 0, h, 0.0), 0)
        elif KIND == "sum carried":
            before = tl.sum(tl.where(inside, h, 0.0), 0)
        elif KIND == "maximum carried":
            before = tl.max(h, 0)
        elif KIND == "factor carried":
            before = tl.sum(tl.where(last, A, 0.0), 0)
        else:
            before = tl.sum(tl.where(last, h, 0.0), 0)


@triton.jit
def _walking(a_ptr, b_ptr, h_ptr, LENGTH: tl.constexpr, BLOCK: tl.constexpr):
    """One number after the other."""
    row = tl.program_id(0) * LENGTH
    h = 0.0
    for j in range(0, LENGTH):
        h = tl.load(a_ptr + row + j) * h + tl.load(b_ptr + row + j)
        tl.store(h_ptr + row + j, h)


class _Kernel:
    """A kernel launched with one more constant: a fault."""

    def __init__(self, kind: str) -> None:
        self.__name__, self.kind = "scan_kernel", kind
        self.fn = SimpleNamespace(__name__="scan_kernel")

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return lambda *given: _flexible[grid](*given, KIND=self.kind)


class _Walking(_Kernel):
    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return _walking[grid]


WRONG["10.7"] += [
    (kind, _Kernel(kind), fragment)
    for kind, fragment in {
        "carry lost": "the carry is lost: every panel begins anew",
        "carry added": "the carry is added as it is",
        "carry by its own lane": "the carry is multiplied by each lane's own a",
        "summand carried": "the carry is not the last lane's h",
        "first lane carried": "the carry is not the last lane's h",
        "sum carried": "the carry is not the last lane's h",
        "maximum carried": "the carry is not the last lane's h",
        "factor carried": "the carry is not the last lane's h",
        "begins with 1": "h begins with 1: before the first number",
        "exchanged": "a and b have changed places",
        "turned operator": "the first and the second map have changed places in the scan",
        "running sum": "this is a running sum of b: no factor is met",
        "running sum, carried": "this is a running sum of b: no factor is met",
        "running product": "products alone are scanned",
        "summands lost": "only what comes in is kept",
        "the first row read": "every program reads the first row",
        "factors": "products alone are scanned",
        "no scan": "there is no scan: each number is computed",
        "one place late": "results are one place late",
        "a one place late": "a is one place off",
        "backwards": "the scan runs from the end to the beginning",
        "the same row": "an output that is not its own",
        "wrong rows": "a load reads past the end of a or b",
        "unmasked loads": "a load reads past the end of a or b",
        "NaN in the tail": "the answer is NaN. Lanes that a load leaves out",
        "whole panels": "an output that is not its own",
        "floor": "is never written",
        "first panel": "is never written",
        "one lane less": "is never written",
        "over b": "an input is not what it was before",
        "read back": "a program reads what it has stored",
    }.items()
]
WRONG["10.7"].append(("walked", _Walking(""), "the panel is walked, not scanned"))


def combine_points(a1, b1, a2, b2):
    """From where 0 and 1 go."""
    at_0 = a2 * b1 + b2
    return a2 * (a1 + b1) + b2 - at_0, at_0


def combine_matrices(a1, b1, a2, b2):
    """Maps as matrices: the second one stands to the left."""

    def matrix(a, b):
        rows = torch.stack([a, b], -1), torch.tensor([0.0, 1.0]).expand(*a.shape, 2)
        return torch.stack(rows, -2)

    both = matrix(a2, b2) @ matrix(a1, b1)
    return [both[..., 0, 0], both[..., 0, 1]]


@triton.jit
def scan_first_lane(a_ptr, b_ptr, h_ptr, LENGTH: tl.constexpr, BLOCK: tl.constexpr):
    """What comes in is put into the first lane's summand."""
    row = tl.program_id(0) * LENGTH
    before = tl.sum(tl.zeros([BLOCK], tl.float32), 0)
    for first in range(0, LENGTH, BLOCK):
        j = first + tl.arange(0, BLOCK)
        a = tl.load(a_ptr + row + j, mask=j < LENGTH, other=1.0)
        b = tl.load(b_ptr + row + j, mask=j < LENGTH, other=0.0)
        b = tl.where(j == first, a * before + b, b)
        _, h = tl.associative_scan((a, b), 0, _right)
        tl.store(h_ptr + row + j, h, mask=j < LENGTH)
        before = tl.sum(tl.where(j == first + BLOCK - 1, h, 0.0), 0)


@triton.jit
def _lane_by_lane(a_ptr, b_ptr, h_ptr, LENGTH: tl.constexpr, BLOCK: tl.constexpr):
    """Within a panel that lies in registers."""
    row = tl.program_id(0) * LENGTH
    lanes = tl.arange(0, BLOCK)
    h = tl.sum(tl.zeros([BLOCK], tl.float32), 0)
    for first in range(0, LENGTH, BLOCK):
        inside = first + lanes < LENGTH
        a = tl.load(a_ptr + row + first + lanes, mask=inside, other=0.0)
        b = tl.load(b_ptr + row + first + lanes, mask=inside, other=0.0)
        out = tl.zeros([BLOCK], tl.float32)
        for lane in range(0, BLOCK):
            here = lanes == lane
            h = tl.sum(tl.where(here, a, 0.0), 0) * h + tl.sum(tl.where(here, b, 0.0), 0)
            out = tl.where(here, h, out)
        tl.store(h_ptr + row + first + lanes, out, mask=inside)


class _LaneByLane(_Kernel):
    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return _lane_by_lane[grid]


WRONG["10.7"].append(("lane by lane", _LaneByLane(""), "but nothing is scanned"))

RIGHT["10.7"] = [
    ("from points; into the first lane", [combine_points, scan_first_lane]),
    ("matrices", [combine_matrices, scan_first_lane]),
    ("as the solution", [combine_points, _Kernel("")]),
]


# The formulas of known mistakes ------------------------------------------------------

TABLES: list[Table] = [
    (cases._COUNT_MANY_CASES, cases._count_many, mistakes._COUNT_MANY_MISTAKES),
    (cases._COUNT_ONE_CASES, cases._count_one, mistakes._COUNT_ONE_MISTAKES),
    (cases._VISIT_MANY_CASES, cases._visit_many, mistakes._VISIT_MANY_MISTAKES),
    (cases._VISIT_ONE_CASES, cases._visit_one, mistakes._VISIT_ONE_MISTAKES),
    (cases._LOG_NOT_CASES, cases._log_not, mistakes._LOG_NOT_MISTAKES),
    (cases._LOG_ADD_CASES, cases._log_add, mistakes._LOG_ADD_MISTAKES),
    (cases._LOG_VISIT_CASES, cases._log_visit, mistakes._LOG_VISIT_MISTAKES),
    (cases._GRADIENT_CASES, cases._gradient, mistakes._GRADIENT_MISTAKES),
    (cases._LEAK_CASES, cases._leaks, mistakes._LEAK_MISTAKES),
    (cases._WALK_CASES, cases._stops, mistakes._WALK_MISTAKES),
    (cases._COMBINE_CASES, cases._combine, mistakes._COMBINE_MISTAKES),
    (cases._SCAN_CASES, cases._scan, mistakes._SCAN_MISTAKES),
]
