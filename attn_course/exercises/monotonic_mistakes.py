"""Chapter 10's exercises: the likely mistakes, and what is said of each.

A mistake is the formula that it computes, and the message that names it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attn_course.exercises.framework import Mistake
from attn_course.exercises.kernels import Words
from attn_course.exercises.monotonic_cases import (
    MANY,
    ONE,
    Asked,
    Steps,
    Weights,
    _arriving,
    _moved,
    _other_numbers,
    _random,
    _swept,
    _table,
)

# 10.1 --------------------------------------------------------------------------------


def _counted(formula: Callable[[int, int], float]) -> Callable[..., Tensor]:
    def answer(rows: int, columns: int) -> Tensor:
        return torch.tensor(float(formula(rows, columns)), dtype=torch.float64)

    return answer


def _comb(n: int, k: int) -> int:
    """0 where nothing can be chosen."""
    return math.comb(n, k) if 0 <= k <= n else 0


def _delannoy(rows: int, columns: int) -> int:
    """Steps to the right, down, and both at once."""
    down, right = rows - 1, columns - 1
    return sum(_comb(down, k) * _comb(right, k) * 2**k for k in range(down + 1))


_COUNT_MANY_MISTAKES = (
    Mistake(
        "rows and columns are counted as steps: these are the paths of a grid that has a row and a "
        "column more. From the first of 4 rows to the last, how many steps go down?",
        (_counted(lambda r, c: math.comb(r + c, r)),),
    ),
    Mistake(
        "one of the two directions has a step too many. From the first of 4 rows to the last, how "
        "many steps go down? And from the first of 5 columns to the last?",
        (
            _counted(lambda r, c: _comb(r + c - 1, r)),
            _counted(lambda r, c: _comb(r + c - 1, c)),
            _counted(lambda r, c: _comb(r + c - 2, r)),
            _counted(lambda r, c: _comb(r + c - 2, c)),
        ),
    ),
    Mistake(
        "diagonal steps are counted as well. In this model p goes right and q goes down: where "
        "would (0, 0) have to send a path for it to be at (1, 1) next?",
        (_counted(_delannoy),),
    ),
    Mistake(
        "each step is free to go right or down, so that most of these paths leave the grid before "
        "they get to the corner. How many of the steps must go down?",
        (_counted(lambda r, c: 2 ** (r + c - 2)), _counted(lambda r, c: 2 ** (r + c - 1))),
    ),
    Mistake(
        "paths that end anywhere are counted: on the last row or column, from which the next step "
        "may leave, or at any node. Which of them get to the far corner?",
        (
            _counted(lambda r, c: math.comb(r + c, r) - math.comb(r + c - 2, r - 1)),
            _counted(lambda r, c: math.comb(r + c, r) - 1),
        ),
    ),
    Mistake(
        "these are the nodes of the grid, or of a path. In how many orders can its steps come?",
        (
            _counted(lambda r, c: r * c),
            _counted(lambda r, c: r + c - 1),
            _counted(lambda r, c: r + c - 2),
            _counted(lambda r, c: (r - 1) * (c - 1)),
        ),
    ),
    Mistake(
        "steps of one kind are told apart: exchanging two steps down makes no other path. Divide "
        "by the orders that look alike, for both kinds.",
        (
            _counted(lambda r, c: math.factorial(r + c - 2)),
            _counted(lambda r, c: math.factorial(r + c - 2) // math.factorial(r - 1)),
            _counted(lambda r, c: math.factorial(r + c - 2) // math.factorial(c - 1)),
        ),
    ),
    Mistake(
        "this counts the paths of the one-to-many model. Here each step goes right *or* down.",
        (_counted(lambda r, c: _comb(r - 1, c - 1)), _counted(lambda r, c: _comb(c - 1, r - 1))),
    ),
    Mistake(
        "the count is 0 wherever there is a step to take: a sum of neighbours that are all 0. How "
        "many paths lead along the first row?",
        (_counted(lambda r, c: 0), _counted(lambda r, c: r == c == 1)),
    ),
    Mistake(
        "every path is counted twice: once for each direction? It has one.",
        (_counted(lambda r, c: 2 * math.comb(r + c - 2, r - 1)),),
    ),
)

_COUNT_ONE_MISTAKES = (
    Mistake(
        "the grid is transposed: each step goes to the next *row*, and stays in its column or "
        "moves to the next. Of which steps are there enough to choose among?",
        (_counted(lambda r, c: _comb(c - 1, r - 1)),),
    ),
    Mistake(
        "this counts the paths of the many-to-many model. Here a step to the right goes down as "
        "well: how long is a path?",
        (_counted(lambda r, c: math.comb(r + c - 2, r - 1)),),
    ),
    Mistake(
        "rows or columns are counted as steps. With 7 rows, how many steps are there; and how many "
        "of them must go on to the next of 4 columns?",
        (
            _counted(lambda r, c: _comb(r, c)),
            _counted(lambda r, c: _comb(r - 1, c)),
            _counted(lambda r, c: _comb(r, c - 1)),
        ),
    ),
    Mistake(
        "paths that end in any column are counted, or even outside the grid. How many of the steps "
        "must go on to the next column to end in the last?",
        (
            _counted(lambda r, c: 2 ** (r - 1)),
            _counted(lambda r, c: sum(_comb(r - 1, j) for j in range(c))),
        ),
    ),
    Mistake(
        "columns may be skipped here. A step goes on by one column at most, so that a path visits "
        "all of them.",
        (
            _counted(lambda r, c: _comb(r + c - 1, c - 1)),
            _counted(lambda r, c: _comb(r + c - 3, c - 1) if r > 1 else c == 1),
        ),
    ),
    Mistake(
        "with more columns than rows there are said to be paths. How many columns can a path have "
        "passed after all of its steps?",
        (_counted(lambda r, c: _comb(max(r, c) - 1, min(r, c) - 1)),),
    ),
    Mistake(
        "every step goes on to the next column. Which step keeps its column?",
        (_counted(lambda r, c: r == c), _counted(lambda r, c: c >= r)),
    ),
    Mistake(
        "steps of one kind are told apart: exchanging two that go on makes no other path.",
        (
            _counted(lambda r, c: math.perm(r - 1, c - 1)),
            _counted(lambda r, c: math.factorial(r - 1)),
        ),
    ),
    Mistake(
        "steps down, right and diagonal are all counted. In this model there are two kinds of "
        "step, and both go to the next row.",
        (_counted(_delannoy),),
    ),
    Mistake(
        "these are the nodes of the grid, or of a path. In how many ways can its steps be chosen?",
        (
            _counted(lambda r, c: r * c),
            _counted(lambda r, c: r),
            _counted(lambda r, c: r - 1),
            _counted(lambda r, c: (r - 1) * (c - 1)),
        ),
    ),
)


# 10.2 --------------------------------------------------------------------------------


def _tabled(
    steps: Steps,
    *,
    first: Callable[[Tensor], Tensor] = lambda p: p,
    q: Callable[[Tensor], Tensor] = lambda p: 1 - p,
    there: bool = False,
    start: Callable[[float], float] = lambda p: 1.0,
    join: Callable[[list[float]], float] = sum,
    then: Callable[[Tensor], Tensor] = lambda phi: phi,
) -> Callable[..., Tensor]:
    """The recurrence with something else for one of its parts.

    Args:
        steps: Where p and q lead.
        first: What is done to p,
        q: and what q is made of.
        there: Whether p and q are read where a step arrives.
        start: phi of the first node, from its p.
        join: What is made of the contributions to a node.
        then: What is done to phi.
    """

    def answer(p: Tensor) -> Tensor:
        (rows, columns), p = p.shape, first(p)
        chances = p.tolist(), q(p).tolist()
        phi = [[0.0] * columns for _ in range(rows)]
        for i, j in itertools.product(range(rows), range(columns)):
            parts = [start(chances[0][0][0])] if i == j == 0 else []
            for chance, (down, right) in zip(chances, steps, strict=True):
                if i >= down and j >= right:
                    at = (i, j) if there else (i - down, j - right)
                    parts.append(phi[i - down][j - right] * chance[at[0]][at[1]])
            phi[i][j] = join(parts) if parts else 0.0
        return then(_table(phi))

    return answer


def _with_p(steps: Steps, of: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """What becomes of phi, and of p once more."""
    return lambda p: of(_swept(p, 1 - p, steps), p)


def _kept_inside(p: Tensor) -> Tensor:
    """Nobody leaves: down in the last column, right in the last row."""
    p = p.clone()
    p[:, -1], p[-1] = 0, 1
    return p


def _kept_in_column(p: Tensor) -> Tensor:
    p = p.clone()
    p[:, -1] = 1
    return p


def _sliced(phi: Tensor) -> Tensor:
    """Anti-diagonals that sum to 1."""
    rows, columns = phi.shape
    slices = torch.arange(rows)[:, None] + torch.arange(columns)
    sums = torch.zeros(rows + columns - 1, dtype=phi.dtype)
    sums.index_add_(0, slices.flatten(), phi.flatten())
    return phi / sums[slices]


def _shared_out(phi: Tensor, dim: int | None = None) -> Tensor:
    return phi / (phi.sum() if dim is None else phi.sum(dim, keepdim=True))


def _each_row_anew(p: Tensor) -> Tensor:
    """Products along each row, as if every row began with 1."""
    return torch.cat([torch.ones_like(p[:, :1]), p[:, :-1].cumprod(1)], 1)


def _edged(p: Tensor, along: Tensor, down: Tensor) -> Tensor:
    """The recurrence inside; products of other numbers along the first row, and down."""
    phi = torch.ones_like(p)
    phi[0, 1:], phi[1:, 0] = along[0, :-1].cumprod(0), down[:-1, 0].cumprod(0)
    for i, j in itertools.product(range(1, p.shape[0]), range(1, p.shape[1])):
        phi[i, j] = phi[i, j - 1] * p[i, j - 1] + phi[i - 1, j] * (1 - p[i - 1, j])
    return phi


def _given_arrival(steps: Steps) -> Callable[..., Tensor]:
    def answer(p: Tensor) -> Tensor:
        ahead = _arriving(p, 1 - p, steps)
        return _swept(p, 1 - p, steps) * ahead / ahead[0, 0]

    return answer


_VISIT_MANY_MISTAKES = (
    Mistake(
        "the destination's p is taken: the p of the node where a step arrives. Who decides where a "
        "path goes next, the node it is at or the one it comes to?",
        (_tabled(MANY, there=True),),
    ),
    Mistake(
        "p and 1 - p are swapped: here p goes down and q goes right.",
        (_tabled(MANY, first=lambda p: 1 - p),),
    ),
    Mistake(
        "rows are normalised to sum to 1, as if they were a softmax. A row may be visited at "
        "several keys, or at none: what does its sum count?",
        (
            _tabled(MANY, then=lambda phi: _shared_out(phi, 1)),
            _tabled(MANY, then=lambda phi: phi.softmax(1)),
        ),
    ),
    Mistake(
        "columns, anti-diagonals or the whole are normalised. Mass that has left the grid is lost: "
        "phi is what the recurrence gives, and nothing is divided.",
        (
            _tabled(MANY, then=lambda phi: _shared_out(phi, 0)),
            _tabled(MANY, then=_shared_out),
            _tabled(MANY, then=_sliced),
        ),
    ),
    Mistake(
        "both kinds of step have the probability p. What is left for the step down?",
        (_tabled(MANY, q=lambda p: p), _tabled(MANY, first=lambda p: 1 - p, q=lambda p: p)),
    ),
    Mistake(
        "the larger of the two contributions is taken: that is the best way to get there. A node "
        "is visited by whoever comes, from the left and from above.",
        (_tabled(MANY, join=max),),
    ),
    Mistake(
        "the contributions are multiplied. A path comes from the left *or* from above: what does "
        "one do with probabilities of things of which only one can happen?",
        (_tabled(MANY, join=math.prod),),
    ),
    Mistake(
        "this is the one-to-many model: p goes down, and q goes down and right at once.",
        (_tabled(ONE), _tabled(ONE, first=lambda p: 1 - p)),
    ),
    Mistake(
        "nobody leaves the grid here: in the last row and in the last column all go on towards the "
        "corner. The source of the chapter says so of its paths; its recurrence, which is this "
        "one, uses p of every node alike.",
        (_tabled(MANY, first=_kept_inside),),
    ),
    Mistake(
        "the first node has not the probability 1. Where do all paths begin?",
        (
            _tabled(MANY, start=lambda p: p),
            _tabled(MANY, start=lambda p: 1 - p),
            _tabled(MANY, start=lambda p: 0.0),
        ),
    ),
    Mistake(
        "each row begins anew with 1. From where does a path come into row 2?",
        (_each_row_anew, lambda p: _each_row_anew(p) * p),
    ),
    Mistake(
        "p is taken for a logit. It is a probability already: what would a sigmoid do to it?",
        (_tabled(MANY, first=torch.sigmoid),),
    ),
    Mistake(
        "the first row or the first column is not what the recurrence gives: it is left out, or "
        "all ones, or has the wrong kind of step. Along the first row only p leads, along the "
        "first column only 1 - p.",
        (
            lambda p: _edged(p, torch.zeros_like(p), torch.zeros_like(p)),
            lambda p: _edged(p, torch.ones_like(p), torch.ones_like(p)),
            lambda p: _edged(p, p, p),
            lambda p: _edged(p, 1 - p, 1 - p),
            lambda p: _edged(p, 1 - p, p),
            lambda p: _edged(p, p, torch.zeros_like(p)),
            lambda p: _edged(p, torch.zeros_like(p), 1 - p),
        ),
    ),
    Mistake(
        "the result is transposed: phi[i][j] belongs to row i and column j.",
        (_tabled(MANY, then=lambda phi: phi.T),),
    ),
    Mistake(
        "an index wraps: -1 is the last row or column, and nothing comes from there. In a grid of "
        "one row that is the row itself. What comes from outside the grid?",
        (lambda p: _wrapping(p, True, True), lambda p: _wrapping(p, True, False)),
    ),
    Mistake(
        "this is the probability that a path turns here, phi q, or goes on, phi p. phi itself is "
        "that it comes by.",
        (_with_p(MANY, lambda phi, p: phi * (1 - p)), _with_p(MANY, lambda phi, p: phi * p)),
    ),
    Mistake(
        "only the paths that arrive at the far corner are counted, and shared out among them: that "
        "is the posterior. phi counts those that leave elsewhere, too.",
        (_given_arrival(MANY),),
    ),
)


def _wrapping(p: Tensor, above: bool, left: bool) -> Tensor:
    """Contributions added one after the other, also from index -1, as Python has it."""
    phi = torch.zeros_like(p)
    phi[0, 0] = 1
    for i, j in itertools.product(*map(range, p.shape)):
        if i or j:
            if j or left:
                phi[i, j] += phi[i, j - 1] * p[i, j - 1]
            if i or above:
                phi[i, j] += phi[i - 1, j] * (1 - p[i - 1, j])
    return phi


def _without_first_column(p: Tensor) -> Tensor:
    stay = torch.cat([torch.zeros_like(p[:, :1]), p[:, 1:]], 1)
    return _swept(stay, 1 - p, ONE)


def _round_the_edge(p: Tensor) -> Tensor:
    """One-to-many on a ring of columns."""
    phi = [torch.eye(len(p[0]), dtype=p.dtype)[0]]
    for row in p[:-1]:
        phi.append(phi[-1] * row + (phi[-1] * (1 - row)).roll(1))
    return torch.stack(phi)


_VISIT_ONE_MISTAKES = (
    Mistake(
        "in the one-to-many model, too, p belongs to the node that a step comes from. Which p "
        "stands beside phi[i - 1, j - 1]?",
        (_tabled(ONE, there=True),),
    ),
    Mistake(
        "p and 1 - p have changed places: p keeps the column, q goes on to the next.",
        (_tabled(ONE, first=lambda p: 1 - p),),
    ),
    Mistake(
        "nothing was changed: this is still the many-to-many model. To which row does every step "
        "go?",
        (_tabled(MANY), _tabled(MANY, first=lambda p: 1 - p)),
    ),
    Mistake(
        "both kinds of step have the same probability. What is left for the step to the next "
        "column?",
        (_tabled(ONE, q=lambda p: p), _tabled(ONE, first=lambda p: 1 - p, q=lambda p: p)),
    ),
    Mistake(
        "whoever is in the last column is kept there, so that rows sum to 1 to the end. Its q "
        "leads out of the grid like any other: that mass is lost.",
        (_tabled(ONE, first=_kept_in_column),),
    ),
    Mistake(
        "something is normalised. Rows sum to 1 by themselves until a path can have left; from "
        "then on they sum to less.",
        (
            _tabled(ONE, then=lambda phi: _shared_out(phi, 1)),
            _tabled(ONE, then=lambda phi: phi.softmax(1)),
            _tabled(ONE, then=lambda phi: _shared_out(phi, 0).nan_to_num()),
        ),
    ),
    Mistake(
        "an index wraps: j - 1 is -1 in the first column, and that is the last one. What comes "
        "into the first column from the left?",
        (_round_the_edge,),
    ),
    Mistake(
        "the first column is left out: only 0 comes from its left, and what is there may stay.",
        (_without_first_column,),
    ),
    Mistake(
        "the first row is not 1 and then zeros. After no step, where are all paths?",
        (
            _tabled(ONE, start=lambda p: p),
            _tabled(ONE, start=lambda p: 0.0),
            lambda p: _everywhere(p),
        ),
    ),
    Mistake(
        "the larger of the two contributions is taken, not their sum.", (_tabled(ONE, join=max),)
    ),
    Mistake(
        "rows and columns have changed roles: each step goes to the next *row* here. Do your loops "
        "or your indices take rows for columns?",
        (
            _tabled(ONE, then=lambda phi: phi.T),
            _tabled(((0, 1), (1, 1))),
            _tabled(((0, 1), (1, 1)), first=lambda p: 1 - p),
        ),
    ),
)


def _everywhere(p: Tensor) -> Tensor:
    """All of the first row is 1."""
    phi = [torch.ones_like(p[0])]
    for row in p[:-1]:
        moved = torch.cat([torch.zeros_like(row[:1]), (phi[-1] * (1 - row))[:-1]])
        phi.append(phi[-1] * row + moved)
    return torch.stack(phi)


# 10.3 --------------------------------------------------------------------------------


def _single(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What comes out in float32, as the inputs were."""

    def answer(**inputs: Tensor) -> Tensor:
        return formula(*(x.float() for x in inputs.values())).double()

    return answer


_LOG_NOT_MISTAKES = (
    Mistake(
        "near zero the digits are gone: e to a very small negative number rounds to 1, and 1 - 1 "
        "has none left. `torch.expm1(x)` is e^x - 1, computed without that rounding.",
        (_single(lambda x: (1 - x.exp()).log()), _single(lambda x: torch.log1p(-x.exp()))),
    ),
    Mistake(
        "a small number keeps the logarithm from ending in minus infinity, and changes everything "
        "near it. The probability 1 leaves exactly 0 for the other step: what is its logarithm?",
        (
            *(
                _single(lambda x, tiny=tiny: (1 - x.exp() + tiny).log())
                for tiny in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12)
            ),
            *(
                _single(lambda x, tiny=tiny: (1 - x.exp()).clamp_min(tiny).log())
                for tiny in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12, 1e-20, 1e-30)
            ),
            *(
                _single(lambda x, tiny=tiny: (-torch.expm1(x)).clamp_min(tiny).log())
                for tiny in (1e-6, 1e-7, 1e-8, 1e-10, 1e-12, 1e-20, 1e-30)
            ),
            *(
                _single(lambda x, tiny=tiny: (-torch.expm1(x) + tiny).log())
                for tiny in (1e-6, 1e-7, 1e-8, 1e-10, 1e-12, 1e-20, 1e-30)
            ),
        ),
    ),
    Mistake(
        "the answer is NaN: the logarithm of a negative number. e^x - 1 is negative here: which "
        "sign has what is wanted?",
        (lambda x: torch.expm1(x).log(), lambda x: (x.exp() - 1).log()),
    ),
    Mistake(
        "the number that comes in is a logarithm already: 1 - p is not 1 minus the *logarithm* of "
        "p. How does one get from log p to p?",
        (lambda x: 1 - x, lambda x: (1 - x).log(), lambda x: torch.log1p(-x), lambda x: -x),
    ),
    Mistake(
        "this is 1 - p itself, and its logarithm is asked for.",
        (lambda x: 1 - x.exp(), lambda x: -torch.expm1(x)),
    ),
    Mistake(
        "this takes a logit for a logarithm: with x = log p, 1 - p is not sigmoid(-x).",
        (lambda x: torch.nn.functional.logsigmoid(-x), lambda x: torch.nn.functional.logsigmoid(x)),
    ),
    Mistake(
        "log(1 - p) is taken for -p, which is near it only while p is small.", (lambda x: -x.exp(),)
    ),
)


#: Numbers that stand for minus infinity.
_FLOORS = (-1e4, -1e5, -1e6, -1e8, -1e9, -1e10, -1e20, -1e30)


def _no_maximum(a: Tensor, b: Tensor) -> Tensor:
    return (a.exp() + b.exp()).log()


def _about(m: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return m + ((a - m).exp() + (b - m).exp()).log()


def _bounded(a: Tensor, b: Tensor) -> Tensor:
    """The logarithm of 1 + e to the minus difference; of nothing, where both are impossible."""
    m = torch.maximum(a, b)
    m = m.where(m > -math.inf, 0.0)
    return ((a - m).exp() + (b - m).exp()).log()


_LOG_ADD_MISTAKES = (
    Mistake(
        "there is no maximum: the exponentials of both numbers are 0, or infinite, before they are "
        "added. What can be taken out of both, so that the larger of them becomes e^0?",
        (_single(_no_maximum),),
    ),
    Mistake(
        "the answer is NaN where both are minus infinity: (-inf) - (-inf). Two impossible things "
        "are impossible together: which number may be taken out where the maximum is -inf?",
        (
            lambda a, b: _about(torch.maximum(a, b), a, b),
            lambda a, b: torch.maximum(a, b) + (-(a - b).abs()).exp().log1p(),
        ),
    ),
    Mistake(
        "NaN is replaced afterwards: by 0, which is the logarithm of a certainty. What is the sum "
        "of two impossible things?",
        (
            _single(lambda a, b: _about(torch.maximum(a, b), a, b).nan_to_num(0.0)),
            _single(
                lambda a, b: _about(torch.maximum(a, b), a, b).nan_to_num(0.0, neginf=-math.inf)
            ),
        ),
    ),
    Mistake(
        "the smaller of the two, or always the same one, is taken out: the other exponential is "
        "then infinite where they are far apart, or its own difference is NaN.",
        (
            _single(lambda a, b: _about(torch.minimum(a, b), a, b)),
            _single(lambda a, b: _about(a, a, b)),
            _single(lambda a, b: _about(b, a, b)),
            _single(lambda a, b: a + (b - a).exp().log1p()),
            _single(lambda a, b: b + (a - b).exp().log1p()),
        ),
    ),
    Mistake(
        "one number is taken out of all pairs: what is far below *it* is 0 again. Each pair has "
        "its own maximum.",
        (
            _single(lambda a, b: _about(torch.maximum(a, b).max(), a, b)),
            _single(lambda a, b: _about(a.max(), a, b)),
            _single(lambda a, b: _about(b.max(), a, b)),
        ),
    ),
    Mistake(
        "the maximum is taken out and not put back.",
        (lambda a, b: _about(torch.maximum(a, b), a, b) - torch.maximum(a, b), _bounded),
    ),
    Mistake(
        "this is the larger of the two. With two equal probabilities the sum is twice as much: "
        "what is its logarithm?",
        (lambda a, b: torch.maximum(a, b),),
    ),
    Mistake("the logarithms are added: that multiplies the probabilities.", (lambda a, b: a + b,)),
    Mistake(
        "a floor stands where nothing is small enough to need one: what is less likely than it "
        "becomes as likely as it. In a long sequence everything is.",
        tuple(
            lambda a, b, floor=floor: torch.logaddexp(a.clamp_min(floor), b.clamp_min(floor))
            for floor in (-1e2, -1e3, -5e3, *_FLOORS)
        ),
    ),
    Mistake(
        "this is the sum of the probabilities, and its logarithm is asked for; or it is their "
        "mean.",
        (_single(lambda a, b: a.exp() + b.exp()), lambda a, b: torch.logaddexp(a, b) - math.log(2)),
    ),
    Mistake(
        "the base has changed on the way: `torch.log` and `torch.exp` belong together.",
        (lambda a, b: _based(a, b, torch.log2), lambda a, b: _based(a, b, torch.log10)),
    ),
)


def _based(a: Tensor, b: Tensor, log: Callable[[Tensor], Tensor]) -> Tensor:
    m = torch.maximum(a, b)
    m = m.where(m > -math.inf, 0.0)
    return m + log((a - m).exp() + (b - m).exp())


def _pair_sum(a: float, b: float) -> float:
    """Without a guard: (-inf) - (-inf) is NaN."""
    m = max(a, b)
    return float(m + np.log(np.exp(a - m) + np.exp(b - m)))


def _guarded_sum(a: float, b: float) -> float:
    """With the guard of hint 2, which infinity passes: inf - inf is NaN."""
    m = max(a, b) if max(a, b) > -math.inf else 0.0
    return float(m + np.log(np.exp(np.subtract(a, m)) + np.exp(np.subtract(b, m))))


def _logged(
    steps: Steps = MANY,
    *,
    p: Callable[[Tensor], Tensor] = lambda log_p: log_p,
    q: Callable[[Tensor], Tensor] = lambda log_p: (-log_p.expm1()).log(),
    there: bool = False,
    start: float = 0.0,
    outside: tuple[float, float] = (-math.inf, -math.inf),
    add: Callable[[float, float], float] = lambda a, b: float(np.logaddexp(a, b)),
    then: Callable[[Tensor], Tensor] = lambda log_phi: log_phi,
) -> Callable[..., Tensor]:
    """The recurrence in log space with something else for one of its parts.

    Args:
        steps: Where p and q lead.
        p: What is taken for log p,
        q: and for log q.
        there: Whether they are read where a step arrives.
        start: log phi of the first node.
        outside: What comes from outside the grid, by p and by q.
        add: What is made of the two ways to a node.
        then: What is done to log phi.
    """

    def answer(log_p: Tensor) -> Tensor:
        logs = p(log_p).tolist(), q(log_p).tolist()
        rows, columns = log_p.shape
        table = [[start] * columns for _ in range(rows)]
        for i, j in itertools.product(range(rows), range(columns)):
            parts = []
            for chance, (down, right), nothing in zip(logs, steps, outside, strict=True):
                if i >= down and j >= right:
                    at = (i, j) if there else (i - down, j - right)
                    parts.append(table[i - down][j - right] + chance[at[0]][at[1]])
                else:
                    parts.append(nothing)
            if i or j:
                with np.errstate(all="ignore"):
                    table[i][j] = add(*parts)
        return then(_table(table))

    return answer


def _through_probabilities(dtype: type) -> Callable[..., Tensor]:
    """Products of probabilities in this precision, and the logarithm in the end."""

    def answer(log_p: Tensor) -> Tensor:
        with np.errstate(all="ignore"):
            p = np.exp(log_p.numpy().astype(dtype))
            phi = np.zeros_like(p)
            for i, j in itertools.product(*map(range, p.shape)):
                left = phi[i, j - 1] * p[i, j - 1] if j else dtype(i == 0)
                above = phi[i - 1, j] * (1 - p[i - 1, j]) if i else dtype(0)
                phi[i, j] = left + above
            return torch.from_numpy(np.log(phi)).double()

    return answer


def _added_as_they_are(a: float, b: float) -> float:
    return float(np.log(np.exp(np.float32(a)) + np.exp(np.float32(b))))


def _clamped(floor: float) -> Callable[[Tensor], Tensor]:
    return lambda table: table.clamp_min(floor)


def _floored(floor: float) -> Callable[[float, float], float]:
    return lambda a, b: max(float(np.logaddexp(a, b)), floor)


_LOG_VISIT_MISTAKES = (
    Mistake(
        "probabilities are multiplied, and the logarithm is taken in the end, or of each sum: what "
        "has become 0 on the way stays -inf. What does a product become in log space?",
        (
            _through_probabilities(np.float32),
            _through_probabilities(np.float64),
            _logged(add=_added_as_they_are),
        ),
    ),
    Mistake(
        "these are probabilities: phi, and log phi is asked for. (The listing under the heading "
        '"log-space forward pass" in the chapter\'s source does the same.)',
        (_logged(then=torch.exp),),
    ),
    Mistake(
        "the first node is set to 1. The table holds *logarithms*: what is that of a certainty?",
        (_logged(start=1.0),),
    ),
    Mistake(
        "where p is nearly 1, log q has lost its digits: 1 - p is computed from a p that has "
        "rounded. You have written a function for that.",
        (
            _logged(q=lambda log_p: (1 - log_p.float().exp()).log()),
            _logged(q=lambda log_p: (-log_p.float().exp()).log1p()),
        ),
    ),
    Mistake(
        "the logarithms of the two ways are added, which multiplies their probabilities. A path "
        "comes from the left or from above.",
        (_logged(add=lambda a, b: a + b, outside=(0.0, 0.0)),),
    ),
    Mistake(
        "the likelier of the two ways is taken: that is the best path's probability, and not the "
        "sum over all paths.",
        (_logged(add=max),),
    ),
    Mistake(
        "the table is NaN at nodes where no path leads: (-inf) - (-inf). You have written a "
        "function that knows better.",
        (_logged(add=_pair_sum),),
    ),
    Mistake(
        "there is a floor: what is less likely than it becomes as likely, and impossible steps "
        "become possible ones. Long paths are less likely than any floor; -inf is a number.",
        tuple(
            answer
            for floor in (-1e3, -5e3, *_FLOORS)
            for answer in (
                _logged(outside=(floor, floor)),
                _logged(add=_floored(floor)),
                _logged(then=_clamped(floor)),
            )
        ),
    ),
    Mistake(
        "what comes from outside the grid has the logarithm 0, as a certainty has. Which one has "
        "what never happens?",
        tuple(_logged(outside=ends) for ends in ((0.0, 0.0), (0.0, -math.inf), (-math.inf, 0.0))),
    ),
    Mistake(
        "log p is taken for a logit: sigmoids have been taken of what is the logarithm of a "
        "probability already.",
        (
            _logged(
                p=torch.nn.functional.logsigmoid,
                q=lambda log_p: torch.nn.functional.logsigmoid(-log_p),
            ),
        ),
    ),
    Mistake(
        "log q is not made of q = 1 - p. If log p is -0.5, what is p, what is q, and what is log "
        "q?",
        tuple(
            _logged(q=q, add=add)
            for add in (lambda a, b: float(np.logaddexp(a, b)), _guarded_sum)
            for q in (
                lambda log_p: -log_p,
                lambda log_p: 1 - log_p,
                lambda log_p: (1 - log_p).log(),
                lambda log_p: 1 - log_p.exp(),
                lambda log_p: log_p,
            )
        ),
    ),
    Mistake(
        "the step's own p is not the one that is used: log p belongs to the node where the step "
        "begins.",
        (_logged(there=True),),
    ),
    Mistake(
        "log p and log q have changed places: p goes on in its row.", (_logged(((1, 0), (0, 1))),)
    ),
    Mistake("these are the steps of the one-to-many model.", (_logged(ONE),)),
)


# 10.4 --------------------------------------------------------------------------------


def _led_to(
    p: Tensor,
    grad: Tensor,
    *,
    q: Callable[[Tensor], Tensor] = lambda p: 1 - p,
    steps: Steps = MANY,
    there: bool = False,
) -> Tensor:
    """G, with a row and a column of zeros behind: ``[I + 1, J + 1]``, twice if steps overlap.

    Args:
        p: Of the nodes.
        grad: What comes from outside.
        q: Of p.
        steps: Where p and q lead.
        there: Whether p and q are those of the node that a step leads to.
    """
    rows, columns = p.shape
    chances = p.tolist(), q(p).tolist()
    outside = grad.tolist()
    later = [[0.0] * (columns + 1) for _ in range(rows + 1)]
    for i, j in itertools.product(reversed(range(rows)), reversed(range(columns))):
        total = outside[i][j]
        for chance, (down, right) in zip(chances, steps, strict=True):
            to = i + down, j + right
            if to[0] < rows and to[1] < columns:
                at = to if there else (i, j)
                total += chance[at[0]][at[1]] * later[to[0]][to[1]]
        later[i][j] = total
    return _table(later)


def _to_p(
    of: Callable[..., Tensor] = lambda p, phi, right, down: phi * (right - down),
    *,
    grad: Callable[[Tensor], Tensor] = lambda grad: grad,
    later: Callable[..., Tensor] = _led_to,
    **rest: Any,
) -> Callable[..., Tensor]:
    """The gradient with something else for one of its parts.

    Args:
        of: (p, phi, G to the right, G below) -> the gradient.
        grad: What is done to what comes from outside.
        later: Makes G, zeros behind.
        rest: For ``later``.
    """

    def answer(p: Tensor, phi: Tensor, **given: Tensor) -> Tensor:
        total = later(p, grad(given["grad"]), **rest)
        return of(p, phi, total[:-1, 1:], total[1:, :-1])

    return answer


def _padded(p: Tensor, grad: Tensor) -> Tensor:
    """What comes from outside, in G's place."""
    return torch.nn.functional.pad(grad, (0, 1, 0, 1))


def _one_step(p: Tensor, grad: Tensor) -> Tensor:
    """G of nodes whose successors have not been added up yet."""
    g = _padded(p, grad)
    return torch.nn.functional.pad(grad + p * g[:-1, 1:] + (1 - p) * g[1:, :-1], (0, 1, 0, 1))


def _in_order(up: bool, leftwards: bool, at_once: bool) -> Callable[..., Tensor]:
    """Loops in another order; what is not yet there is 0.

    Args:
        up: Whether rows are gone through from the last one,
        leftwards: and columns.
        at_once: Whether the gradient is computed in the same loop as G.
    """

    def answer(p: Tensor, phi: Tensor, grad: Tensor) -> Tensor:
        rows, columns = p.shape
        G, found = p.new_zeros(rows + 1, columns + 1), torch.zeros_like(p)
        for i in reversed(range(rows)) if up else range(rows):
            for j in reversed(range(columns)) if leftwards else range(columns):
                G[i, j] = grad[i, j] + p[i, j] * G[i, j + 1] + (1 - p[i, j]) * G[i + 1, j]
                found[i, j] = phi[i, j] * (G[i, j + 1] - G[i + 1, j])
        return found if at_once else phi * (G[:-1, 1:] - G[1:, :-1])

    return answer


def _inner_led_to(p: Tensor, grad: Tensor) -> Tensor:
    """G whose last row and column are what came from outside."""
    G = _padded(p, grad)
    for i, j in itertools.product(*(reversed(range(size - 1)) for size in p.shape)):
        G[i, j] += p[i, j] * G[i, j + 1] + (1 - p[i, j]) * G[i + 1, j]
    return G


def _wrapped(p: Tensor, grad: Tensor) -> Tensor:
    """G whose last row and column are followed by the first ones, as index -1 has it."""
    total = _led_to(p, grad)
    total[-1], total[:, -1] = total[0], total[:, 0].clone()
    return total


def _plus_in_the_last_column(right: Tensor, down: Tensor) -> Tensor:
    return right - torch.cat([down[:, :-1], -down[:, -1:]], 1)


def _inner(p: Tensor, phi: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Zeros in the last row and column."""
    found = phi * (right - down)
    found[-1], found[:, -1] = 0, 0
    return found


_GRADIENT_MISTAKES = (
    Mistake(
        "the negative term is missing: a larger p sends more to the right, and that is taken away "
        "from below. With q = 1 - p, what is the derivative of q by p?",
        (
            _to_p(lambda p, phi, right, down: phi * (right + down)),
            _to_p(lambda p, phi, right, down: phi * right),
            _to_p(lambda p, phi, right, down: phi * _plus_in_the_last_column(right, down)),
        ),
    ),
    Mistake(
        "only the positive term is missing: what goes to the right grows with p.",
        (_to_p(lambda p, phi, right, down: -phi * down),),
    ),
    Mistake(
        "gradients are consumed before they are accumulated: this uses what came from outside to "
        "the neighbours, and not all that they lead to. In which order must the nodes be gone "
        "through, so that both neighbours are complete?",
        (
            _to_p(later=_padded),
            _to_p(later=_one_step),
            *(
                answer
                for up, leftwards in ((False, False), (True, False), (False, True))
                for answer in (_in_order(up, leftwards, True), _in_order(up, leftwards, False))
            ),
        ),
    ),
    Mistake(
        "the answer is NaN: the logarithm of a negative gradient. In log space positive and "
        "negative parts have to travel apart; here nothing needs a logarithm.",
        (
            _to_p(grad=lambda grad: grad.log().exp()),
            _to_p(
                lambda p, phi, right, down: (
                    (phi.log() + right.log()).exp() - (phi.log() + down.log()).exp()
                )
            ),
        ),
    ),
    Mistake(
        "negative gradients are lost, or made positive. What comes from outside may have any sign.",
        (_to_p(grad=lambda grad: grad.clamp_min(0)), _to_p(grad=lambda grad: grad.abs())),
    ),
    Mistake(
        "the sign is wrong: a larger p makes what lies to the right likelier.",
        (_to_p(lambda p, phi, right, down: phi * (down - right)),),
    ),
    Mistake(
        "phi is missing: how much there is to send one way or the other depends on how likely a "
        "path is to come by.",
        (
            _to_p(lambda p, phi, right, down: right - down),
            _to_p(lambda p, phi, right, down: (phi > 0) * (right - down)),
        ),
    ),
    Mistake(
        "this is G, what the loss gains by a path's being at a node. dL/dp is what it gains by its "
        "going right rather than down from there.",
        (
            lambda p, phi, grad: _led_to(p, grad)[:-1, :-1],
            lambda p, phi, grad: phi * _led_to(p, grad)[:-1, :-1],
        ),
    ),
    Mistake(
        "the terms are weighed by p and q once more. They are factors in G; in the derivative *by* "
        "p one of them has gone, and the other is -1.",
        (
            _to_p(lambda p, phi, right, down: phi * (p * right - (1 - p) * down)),
            _to_p(lambda p, phi, right, down: phi * (p * right + (1 - p) * down)),
        ),
    ),
    Mistake(
        "this is the gradient by the logit x, with its factor p q. p is asked for.",
        (_to_p(lambda p, phi, right, down: phi * p * (1 - p) * (right - down)),),
    ),
    Mistake(
        "p and q have changed places in G: what lies to the right is reached with p.",
        (
            _to_p(later=lambda p, grad: _led_to(1 - p, grad)),
            _to_p(
                lambda p, phi, right, down: phi * (down - right),
                later=lambda p, grad: _led_to(1 - p, grad),
            ),
        ),
    ),
    Mistake(
        "G uses the p of the node that a step leads to. Whose coin decided that step?",
        (_to_p(there=True),),
    ),
    Mistake(
        "G of the neighbours lacks what comes to them from outside: only what comes from behind "
        "them is passed on, or it is passed on without any weight.",
        (
            _to_p(
                of=lambda p, phi, right, down: phi * (right - down),
                later=lambda p, grad: _led_to(p, grad) - _padded(p, grad),
            ),
            _to_p(later=lambda p, grad: _led_to(torch.ones_like(p), grad, q=lambda p: p)),
        ),
    ),
    Mistake(
        "phi of the neighbours is taken. The share that p directs is the one that is *here*.",
        (
            _to_p(
                lambda p, phi, right, down: _shifted(phi, 0, 1) * right - _shifted(phi, 1, 0) * down
            ),
        ),
    ),
    Mistake(
        "at the last row and column the neighbours are those of the other end: an index that goes "
        "round. Nothing lies behind them: G is 0 there.",
        (_to_p(later=_wrapped),),
    ),
    Mistake(
        "the last row and the last column are left out. In the last column a step down still stays "
        "in the grid: which node alone has no gradient?",
        (
            _to_p(_inner),
            _to_p(_inner, later=_inner_led_to),
            _to_p(later=_inner_led_to),
            _to_p(lambda p, phi, right, down: _without(phi * (right - down), -1, None)),
            _to_p(lambda p, phi, right, down: _without(phi * (right - down), None, -1)),
        ),
    ),
    Mistake(
        "these are the steps of the one-to-many model: both of them go to the next row.",
        (lambda p, phi, grad: _one_to_many_slopes(p, phi, grad),),
    ),
)


def _shifted(x: Tensor, down: int, right: int) -> Tensor:
    """What lies that far behind each node; zeros outside."""
    rows, columns = x.shape
    return torch.nn.functional.pad(x, (0, right, 0, down))[down:, right:][:rows, :columns]


def _without(x: Tensor, row: int | None, column: int | None) -> Tensor:
    if row is not None:
        x[row] = 0
    if column is not None:
        x[:, column] = 0
    return x


def _one_to_many_slopes(p: Tensor, phi: Tensor, grad: Tensor) -> Tensor:
    total = _led_to(p, grad, steps=ONE)
    return phi * (total[1:, :-1] - total[1:, 1:])


# 10.5 --------------------------------------------------------------------------------


def _to_zero(x: Tensor, k: int) -> Tensor:
    changed = x.clone()
    changed[k] = 0
    return changed


def _one_more(x: Tensor, k: int) -> Tensor:
    changed = x.clone()
    changed[k] += 1
    return changed


def _other_keys(x: Tensor, k: int) -> Tensor:
    """The logits with others in column k."""
    changed = x.clone()
    changed[:, k] += _random(k)(len(x)).to(x)
    return changed


def _piled(x: Tensor, k: int) -> Tensor:
    """Rows 0 to k are other ones."""
    for i in range(k + 1):
        x = _other_numbers(x, i)
    return x


def _from_there_on(x: Tensor, k: int) -> Tensor:
    """Row k and all later ones are other ones."""
    for i in range(k, len(x)):
        x = _other_numbers(x, i)
    return x


def _part(of: Callable[[Tensor], Tensor], **rest: Any) -> Callable[..., Tensor]:
    """Another part of what moves what; or what moves it otherwise, or seen otherwise."""
    return lambda weigh, logits: of(_moved(weigh, logits, **rest)).double()


def _later(moved: Tensor) -> Tensor:
    return moved.triu(1)


def _only(row: int | None = None, column: int | None = None) -> Callable[..., Tensor]:
    """One row or column of the table; the rest is False."""

    def answer(weigh: Weights, logits: Tensor) -> Tensor:
        moved = _moved(weigh, logits).triu(1).double()
        table = torch.zeros_like(moved)
        place = (slice(None), column) if row is None else (row, slice(None))
        table[place] = moved[place]
        return table

    return answer


_LEAK_MISTAKES = (
    Mistake(
        "sources are perturbed: a key was changed, and every query may know every key. Which axis "
        "of the logits holds the queries?",
        (_part(_later, change=_other_keys), _part(lambda moved: moved, change=_other_keys)),
    ),
    Mistake(
        "nothing is found, in whatever weights. Is the last row the only one that is looked at, or "
        "the first query the only one that is changed? After the last query none comes: whom can a "
        "leak tell something, and of whom?",
        (lambda weigh, logits: torch.zeros(len(logits), len(logits)),),
    ),
    Mistake(
        "one row of the weights is the only one that is looked at. Which queries have later ones?",
        (_only(row=0), _only(row=1)),
    ),
    Mistake(
        "the last query is the only one that is changed, or some other one alone. A leak may reach "
        "no further than to the next.",
        (_only(column=-1), _only(column=1)),
    ),
    Mistake(
        "earlier queries are what is looked for: that a path's past moves its present is no leak. "
        "On which side of the diagonal does the future lie?",
        (_part(lambda moved: moved.tril(-1)), _part(lambda moved: moved.tril(0))),
    ),
    Mistake(
        "all that moves is marked, the past and the query itself as well. Those a query may know: "
        "which entries of the table are leaks?",
        (_part(lambda moved: moved), _part(lambda moved: moved.triu(0))),
    ),
    Mistake(
        "the table lies on its side: rows are queries whose weights move, columns those that were "
        "changed.",
        (
            _part(lambda moved: moved.triu(1).T),
            _part(lambda moved: moved.T),
            _part(lambda moved: moved.T.triu(1)),
            _part(lambda moved: moved.T.triu(0)),
        ),
    ),
    Mistake(
        "changes pile up: a query is changed while those before it still are. Their change moves "
        "the weights, too, and may: does each round begin with the logits as they were given?",
        (_part(_later, change=_piled),),
    ),
    Mistake(
        "query k and all after it are changed: whose change did query i hear? One round, one "
        "query.",
        (_part(_later, change=_from_there_on),),
    ),
    Mistake(
        "rows are set to 0 or multiplied. Where there are zeros nothing changes: which change is "
        "one for any numbers?",
        (
            _part(_later, change=_to_zero),
            _part(_later, change=lambda x, k: _multiplied(x, k, 2.0)),
            _part(_later, change=lambda x, k: _multiplied(x, k, -1.0)),
        ),
    ),
    Mistake(
        "the same number is added to all logits of a query. Weights that take the mean away first "
        "do not see that.",
        (_part(_later, change=_one_more), _part(_later, change=lambda x, k: _added(x, k, 10.0))),
    ),
    Mistake(
        "only sums of rows are compared. A row that always sums to 1 tells nothing by its sum.",
        (_part(_later, look=lambda weights: weights.sum(1)),),
    ),
    Mistake(
        "only one key of each row is looked at, the first or the last. A leak may move weight "
        "among the others.",
        (
            _part(_later, look=lambda weights: weights[:, 0]),
            _part(_later, look=lambda weights: weights[:, -1]),
        ),
    ),
    Mistake(
        "everything later is marked, in weights that are causal as well: the table does not depend "
        "on the weights.",
        (lambda weigh, logits: torch.ones(len(logits), len(logits)).triu(1),),
    ),
    Mistake(
        "entries say where nothing moves: True is for a leak.",
        (
            lambda weigh, logits: 1 - _moved(weigh, logits).triu(1).double(),
            lambda weigh, logits: (~_moved(weigh, logits)).triu(1).double(),
        ),
    ),
)


def _multiplied(x: Tensor, k: int, by: float) -> Tensor:
    changed = x.clone()
    changed[k] *= by
    return changed


def _added(x: Tensor, k: int, number: float) -> Tensor:
    changed = x.clone()
    changed[k] += number
    return changed


_ONE_ANSWER = (
    "it returned {}, one answer for everything. How well a model does in training, or whether its "
    "decisions stay, says nothing of *whom* a query has heard: for {} queries a table [{}, {}] of "
    "booleans is asked for."
)
_NOT_A_TABLE = (
    "it returned {}; expected booleans. How far a weight has moved depends on the change: what is "
    "asked is whether it has."
)
_MISSED = (
    "leaks are missed: a weight has moved, and its row is not marked. A leak may move little, and "
    "no decision; a change of few logits may move nothing; infinite ones leave one path alone. "
    "Change all of a query's logits to other ordinary numbers, and compare all weights of a row."
)
_KEYS_FOR_QUERIES = (
    "it returned shape {}, with a row or a column for each *key*. Sources may be known to all; "
    "a leak is what a query knows of later queries. Which axis of the logits holds them?"
)
_CLUES = {
    "causal": "Its table is empty.",
    "posterior": "In its table all later queries are marked, for every query: whoever knows that "
    "the path will arrive knows something of all its steps.",
    "columns sum to 1": "In its table all later queries are marked; and of its weights the sum "
    "over queries, `weights.sum(0)`, is the same number for every key.",
    "one query ahead": "In its table there is one line, beside the diagonal.",
}


# 10.6 --------------------------------------------------------------------------------


def _walked(
    *,
    go: Callable[[float], bool] = lambda x: x > 0,
    start: Callable[[int, int], int] = lambda last, keys: last,
    most: int | None = None,
    said: Callable[[int, int, int], float] = lambda stop, first, keys: stop,
    row: Callable[[int], int] = lambda i: i,
) -> Callable[..., Tensor]:
    """The walk with something else for one of its parts.

    Args:
        go: Whether a logit lets a query go on.
        start: Where a query begins, from where the last one stopped.
        most: How many keys a query may pass; None for any number.
        said: What is returned for a query, from its stop and its start.
        row: Whose logits a query asks for.
    """

    def answer(ask: Asked, queries: int, keys: int) -> Tensor:
        found, stop = [], 0
        rows = ask.logits.tolist()
        for i in range(queries):
            first = stop = start(stop, keys) if i else 0
            last = keys if most is None else min(keys, first + most)
            while stop < last and go(rows[row(i)][stop]):
                stop += 1
            found.append(float(said(stop, first, keys)))
        return torch.tensor(found, dtype=torch.float64)

    return answer


def _from_logits(of: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """What is read from all logits at once."""
    return lambda ask, queries, keys: of(ask.logits).double()


def _never_back(places: Tensor) -> Tensor:
    return places.cummax(0).values


def _stopping(x: Tensor) -> Tensor:
    """The probability that a query stops at a key."""
    return _swept(x.sigmoid(), (-x).sigmoid(), MANY) * (-x).sigmoid()


def _stays_behind(said: Callable[[int, int], int]) -> Callable[..., Tensor]:
    """A query that stops nowhere leaves the position where it found it."""

    def answer(ask: Asked, queries: int, keys: int) -> Tensor:
        found, position = [], 0
        for row in ask.logits.tolist():
            stop = next((j for j in range(position, keys) if not row[j] > 0), keys)
            found.append(float(said(stop, position) if stop == keys else stop))
            position = position if stop == keys else stop
        return torch.tensor(found, dtype=torch.float64)

    return answer


def _least_of_the_rest(ask: Asked, queries: int, keys: int) -> Tensor:
    """The lowest logit from the last stop on."""
    stops = [0]
    for row in ask.logits:
        stops.append(stops[-1] + int(row[stops[-1] :].argmin()))
    return torch.tensor(stops[1:], dtype=torch.float64)


def _key_by_key(ask: Asked, queries: int, keys: int) -> Tensor:
    """One key a query at most, one query a key at most: how far the walk is after each query."""
    stops, j = [], 0
    for i in range(queries):
        stops.append(float(j))
        if j < keys and bool(ask.logits[i, j] > 0):
            j += 1
    return torch.tensor(stops, dtype=torch.float64)


def _likeliest(ask: Asked, queries: int, keys: int) -> Tensor:
    """The stops of the path that is likeliest as a whole, its step out of the grid included."""
    log_p = torch.nn.functional.logsigmoid(ask.logits).tolist()
    log_q = torch.nn.functional.logsigmoid(-ask.logits).tolist()
    best: dict[tuple[int, int], tuple[float, list[int]]] = {}
    for i, j in itertools.product(reversed(range(queries + 1)), reversed(range(keys + 1))):
        if i == queries or j == keys:
            best[i, j] = (0.0, [keys] * (queries - i))
            continue
        onwards, (down, rest) = best[i, j + 1], best[i + 1, j]
        stops = (down + log_q[i][j], [j, *rest])
        best[i, j] = max((onwards[0] + log_p[i][j], onwards[1]), stops)
    return torch.tensor(best[0, 0][1], dtype=torch.float64)


_WALK_MISTAKES = (
    Mistake(
        "every query restarts at key 0. What lies behind the last stop has been passed for good: "
        "where does query i begin?",
        (_walked(start=lambda last, keys: 0),),
    ),
    Mistake(
        "this takes the argmax or the argmin of each row. A query stops at the *first* key that "
        "holds it, and has not seen those behind: what would it have to know to choose the best?",
        (
            _from_logits(lambda x: x.argmax(1)),
            _from_logits(lambda x: x.argmin(1)),
            _from_logits(lambda x: _never_back(x.argmax(1))),
            _from_logits(lambda x: _never_back(x.argmin(1))),
            _least_of_the_rest,
        ),
    ),
    Mistake(
        "this takes the most likely key of each row by the expected alignment. That is a sum over "
        "all paths; the path that is walked is one of them.",
        (
            _from_logits(lambda x: _stopping(x).argmax(1)),
            _from_logits(lambda x: _swept(x.sigmoid(), (-x).sigmoid(), MANY).argmax(1)),
            _from_logits(lambda x: _never_back(_stopping(x).argmax(1))),
        ),
    ),
    Mistake(
        "no key can be repeated here: each query begins one key behind the last stop. Two queries "
        "may stop at the same key: what asks whether the second goes on?",
        (
            _walked(start=lambda last, keys: last + 1),
            _walked(start=lambda last, keys: min(last + 1, keys)),
            _walked(start=lambda last, keys: min(last + 1, keys - 1)),
        ),
    ),
    Mistake(
        "p and q are swapped: this goes on where the logit is below 0. p = sigmoid(x) is the "
        "probability of going *on*.",
        (_walked(go=lambda x: x < 0), _walked(go=lambda x: x <= 0)),
    ),
    Mistake(
        "logits are compared with a probability. p > 1/2 says the same as x > what?",
        (_walked(go=lambda x: x > 0.5), _walked(go=lambda x: x > 1)),
    ),
    Mistake(
        "where the logit is exactly 0 this goes on. Both steps are equally likely then: the "
        "exercise lets a query go on only *above* 0.",
        (_walked(go=lambda x: x >= 0),),
    ),
    Mistake(
        "what is returned is the key after the stop, or the number of keys that were passed.",
        (
            _walked(said=lambda stop, first, keys: stop + 1),
            _walked(said=lambda stop, first, keys: min(stop + 1, keys)),
            _walked(said=lambda stop, first, keys: stop - first),
            _walked(said=lambda stop, first, keys: stop - first + 1),
            _walked(said=lambda stop, first, keys: first),
        ),
    ),
    Mistake(
        "who runs past the last key is put back on it, or anywhere else. That query stops nowhere: "
        "say `keys`; and so do all that come after it.",
        (
            _walked(said=lambda stop, first, keys: min(stop, keys - 1)),
            _walked(start=lambda last, keys: min(last, keys - 1)),
            _walked(
                start=lambda last, keys: min(last, keys - 1),
                said=lambda stop, first, keys: min(stop, keys - 1),
            ),
            _walked(said=lambda stop, first, keys: -1 if stop == keys else stop),
            _stays_behind(lambda stop, first: first),
            _stays_behind(lambda stop, first: stop),
        ),
    ),
    Mistake(
        "once the keys have run out, the next query begins again at key 0.",
        (
            _walked(start=lambda last, keys: last % keys),
            _walked(
                start=lambda last, keys: last % keys,
                said=lambda stop, first, keys: min(stop, keys - 1),
            ),
        ),
    ),
    Mistake(
        "a query passes one key at most. `while`, not `if`: it goes on until a logit holds it.",
        (_walked(most=1), _key_by_key),
    ),
    Mistake(
        "the logits of another query are asked for, the one before or the one after.",
        (
            _walked(row=lambda i: max(i - 1, 0)),
            lambda ask, queries, keys: _walked(row=lambda i: min(i + 1, queries - 1))(
                ask, queries, keys
            ),
        ),
    ),
    Mistake(
        "this is the path that is likeliest as a whole. To find it one has to look at all logits, "
        "later queries' too: online, each step is decided when it comes.",
        (_likeliest,),
    ),
    Mistake(
        "every query stops where the first one did: is where it starts changed, and kept?",
        (lambda ask, queries, keys: _walked()(ask, queries, keys)[:1].expand(queries),),
    ),
)

_LOOKS_BACK = (
    "the stops are right, but query {} asks about key {}, and the query before it stopped at {}: "
    "what has been passed need not be looked at again, and keys need not be kept."
)
_LOOKS_AHEAD = (
    "the stops are right, but query {} asks about key {} and stops at {}: keys behind the stop may "
    "not have been heard yet. Can the walk be decided without them?"
)
_OUT_OF_ORDER = (
    "the stops are right, but query {} is asked about after query {}: queries come one at a time, "
    "and none comes back."
)
_NO_STOPS = "it returned {}; expected a list of {} integers, a stop for each query."


# 10.7 --------------------------------------------------------------------------------


def _joined(
    of: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Callable[..., Tensor]:
    return lambda a1, b1, a2, b2: torch.stack(of(a1, b1, a2, b2))


_COMBINE_MISTAKES = (
    Mistake(
        "the order is wrong: this is the second map first. h goes through a1 and b1, and what "
        "comes out goes through a2 and b2: which of the factors does b1 meet?",
        (_joined(lambda a1, b1, a2, b2: (a1 * a2, a1 * b2 + b1)),),
    ),
    Mistake(
        "this is the elementwise product only: what is added is multiplied as well. Put a1 h + b1 "
        "in place of h in a2 h + b2, and multiply out.",
        (_joined(lambda a1, b1, a2, b2: (a1 * a2, b1 * b2)),),
    ),
    Mistake(
        "what is added meets no factor: b1 comes first, and goes through the second map.",
        (_joined(lambda a1, b1, a2, b2: (a1 * a2, b1 + b2)),),
    ),
    Mistake(
        "the factors are added. (They are where they are logarithms.) What is a2 times a1 h?",
        (
            _joined(lambda a1, b1, a2, b2: (a1 + a2, a2 * b1 + b2)),
            _joined(lambda a1, b1, a2, b2: (a1 + a2, b1 + b2)),
        ),
    ),
    Mistake(
        "the factor is that of one map alone. One after the other in turn that would do; but an "
        "operator of a scan is given *joined* maps as well, and their factors must be joined, too.",
        (
            _joined(lambda a1, b1, a2, b2: (a2, a2 * b1 + b2)),
            _joined(lambda a1, b1, a2, b2: (a1, a2 * b1 + b2)),
        ),
    ),
    Mistake(
        "the first map is lost: this is the second one alone, or the first.",
        (_joined(lambda a1, b1, a2, b2: (a2, b2)), _joined(lambda a1, b1, a2, b2: (a1, b1))),
    ),
    Mistake(
        "b2 goes through a2 as well. It is added after a2 has multiplied.",
        (_joined(lambda a1, b1, a2, b2: (a1 * a2, a2 * (b1 + b2))),),
    ),
    Mistake(
        "b1 meets its own factor a1. That one multiplies h, before b1 is added.",
        (
            _joined(lambda a1, b1, a2, b2: (a1 * a2, a1 * b1 + b2)),
            _joined(lambda a1, b1, a2, b2: (a1 * a2, a1 * a2 * b1 + b2)),
        ),
    ),
    Mistake(
        "factor and summand have changed places: return a first, then b.",
        (_joined(lambda a1, b1, a2, b2: (a2 * b1 + b2, a1 * a2)),),
    ),
    Mistake(
        "the sign is wrong: nothing is subtracted in a2 (a1 h + b1) + b2.",
        (
            _joined(lambda a1, b1, a2, b2: (a1 * a2, a2 * b1 - b2)),
            _joined(lambda a1, b1, a2, b2: (a1 * a2, b2 - a2 * b1)),
        ),
    ),
)


#: (A, B, a, b, h before) -> h, all of a panel; (h, A, B, h before) -> what the next panel gets.
Join = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
Carry = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _panelled(
    join: Join = lambda A, B, a, b, before: A * before + B,
    carry: Carry = lambda h, A, B, before: h[:, -1:],
    *,
    begin: float = 0.0,
    operator: Callable[..., tuple[Tensor, Tensor]] = lambda a1, b1, a2, b2: (a1 * a2, a2 * b1 + b2),
    turned: bool = False,
) -> Callable[..., Tensor]:
    """The scan by panels with something else for one of its parts.

    Args:
        join: What is made of a panel's own scan and of what came before it.
        carry: What is handed on.
        begin: What comes before the first panel.
        operator: What joins two maps.
        turned: Whether each panel is scanned from its end.
    """

    def answer(a: Tensor, b: Tensor, block: int) -> Tensor:
        before = torch.full_like(a[:, :1], begin)
        found = []
        for start in range(0, a.shape[1], block):
            ours, theirs = a[:, start : start + block], b[:, start : start + block]
            if turned:
                ours, theirs = ours.flip(1), theirs.flip(1)
            maps = [(ours[:, 0], theirs[:, 0])]
            for lane in range(1, ours.shape[1]):
                maps.append(operator(*maps[-1], ours[:, lane], theirs[:, lane]))
            A, B = (torch.stack(parts, 1) for parts in zip(*maps, strict=True))
            h = join(A, B, ours, theirs, before)
            before = carry(h, A, B, before)
            found.append(h.flip(1) if turned else h)
        return torch.cat(found, 1)

    return answer


def _moved_on(h: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)


def _in_turn(a: Tensor, b: Tensor) -> Tensor:
    h = [b[:, 0]]
    for j in range(1, a.shape[1]):
        h.append(a[:, j] * h[-1] + b[:, j])
    return torch.stack(h, 1)


def _with_first_row(of_a: bool, of_b: bool) -> Callable[..., Tensor]:
    """Every row is computed from the first one's numbers, or half of it."""

    def answer(a: Tensor, b: Tensor, block: int) -> Tensor:
        first_a, first_b = a[:1].expand_as(a), b[:1].expand_as(b)
        return _in_turn(first_a if of_a else a, first_b if of_b else b)

    return answer


_SCAN_MISTAKES = (
    Mistake(
        "every program reads the first row, of a, of b or of both: where does row i begin in "
        "memory?",
        tuple(_with_first_row(*which) for which in ((True, True), (True, False), (False, True))),
    ),
    Mistake(
        "only what comes in is kept, A times the h before the panel: what the panel itself adds, "
        "B, is lost, and nothing ever comes in.",
        (_panelled(lambda A, B, a, b, before: A * before),),
    ),
    Mistake(
        "the carry is lost: every panel begins anew. What is h before the first number of the "
        "second panel?",
        (_panelled(lambda A, B, a, b, before: B),),
    ),
    Mistake(
        "the carry is added as it is. On its way to lane 3 it has met four factors: which of the "
        "two results of the scan is their product?",
        (_panelled(lambda A, B, a, b, before: B + before),),
    ),
    Mistake(
        "the carry is multiplied by each lane's own a. On its way it meets those of all lanes "
        "before, too: which result of the scan is their product?",
        (
            _panelled(lambda A, B, a, b, before: a * before + B),
            _panelled(lambda A, B, a, b, before: A[:, :1] * before + B),
        ),
    ),
    Mistake(
        "the carry is not the last lane's h: the last lane's B lacks what came into the panel; the "
        "first lane's h lacks the others; a sum or a maximum over lanes is something else.",
        (
            _panelled(carry=lambda h, A, B, before: B[:, -1:]),
            _panelled(carry=lambda h, A, B, before: h[:, :1]),
            _panelled(carry=lambda h, A, B, before: h.sum(1, keepdim=True)),
            _panelled(carry=lambda h, A, B, before: h.amax(1, keepdim=True)),
            _panelled(carry=lambda h, A, B, before: A[:, -1:]),
            _panelled(carry=lambda h, A, B, before: before + h[:, -1:]),
            _panelled(carry=lambda h, A, B, before: before + B[:, -1:]),
            _panelled(carry=lambda h, A, B, before: B.sum(1, keepdim=True)),
        ),
    ),
    Mistake("h begins with 1: before the first number it is 0.", (_panelled(begin=1.0),)),
    Mistake(
        "the first and the second map have changed places in the scan. The operator gets what is "
        "joined so far, and then the next one.",
        (
            _panelled(operator=lambda a1, b1, a2, b2: (a1 * a2, a1 * b2 + b1)),
            _panelled(
                lambda A, B, a, b, before: B,
                operator=lambda a1, b1, a2, b2: (a1 * a2, a1 * b2 + b1),
            ),
        ),
    ),
    Mistake(
        "this is a running sum of b: no factor is met. `tl.cumsum` knows one operation, and it is "
        "not this one.",
        (
            lambda a, b, block: b.cumsum(1),
            _panelled(operator=lambda a1, b1, a2, b2: (a1 * a2, b1 + b2)),
            _panelled(
                lambda A, B, a, b, before: B, operator=lambda a1, b1, a2, b2: (a1 * a2, b1 + b2)
            ),
            lambda a, b, block: (a * b).cumsum(1),
        ),
    ),
    Mistake(
        "products alone are scanned: what is added on the way is not, or is multiplied.",
        (
            lambda a, b, block: a.cumprod(1),
            lambda a, b, block: a.cumprod(1) * b,
            _panelled(operator=lambda a1, b1, a2, b2: (a1 * a2, b1 * b2)),
            _panelled(lambda A, B, a, b, before: A),
            _panelled(lambda A, B, a, b, before: A * before, begin=1.0),
        ),
    ),
    Mistake(
        "a and b have changed places: a multiplies what came before, and b is added.",
        (lambda a, b, block: _in_turn(b, a),),
    ),
    Mistake(
        "there is no scan: each number is computed from its own a and b, or from those of the one "
        "neighbour.",
        (
            lambda a, b, block: a * b,
            lambda a, b, block: a + b,
            lambda a, b, block: b,
            lambda a, b, block: a * _moved_on(b) + b,
        ),
    ),
    Mistake(
        "results are one place late: the scan includes each lane's own a and b.",
        (lambda a, b, block: _moved_on(_in_turn(a, b)),),
    ),
    Mistake(
        "a is one place off: h_j is a_j times what stood one place before it, plus b_j.",
        (
            lambda a, b, block: _in_turn(_moved_on(a), b),
            lambda a, b, block: _in_turn(_moved_on(a.flip(1)).flip(1), b),
            lambda a, b, block: _in_turn(a, a * b),
        ),
    ),
    Mistake(
        "the scan runs from the end to the beginning.",
        (
            lambda a, b, block: _in_turn(a.flip(1), b.flip(1)).flip(1),
            _panelled(turned=True),
            _panelled(turned=True, join=lambda A, B, a, b, before: B),
        ),
    ),
)

_READS_BACK = (
    "a program reads what it has stored. Interpreted, that is there; on a GPU the threads of a "
    "program write when they come to it, and another one may read before. What one panel hands on "
    "to the next can stay in a register: which lane holds it?"
)
_SERIAL = (
    "the numbers are right, but every load brings one number: the panel is walked, not scanned. "
    "Load BLOCK of them at once; `tl.associative_scan` joins them in log2(BLOCK) rounds."
)
_NO_SCAN = (
    "the numbers are right, but nothing is scanned: `tl.associative_scan` is not called. Where "
    "each step waits for the one before it, a panel takes BLOCK rounds; maps that are joined in "
    "pairs, and pairs of pairs, take log2(BLOCK)."
)
_SCAN_WORDS = Words(
    outside="a load reads past the end of a or b. On a GPU that is somebody else's memory. Which "
    "lanes of the last panel exist?",
    foreign="On a GPU all programs run at once: what would be left in that slot? Where does row i "
    "begin, and which lanes of its last panel exist?",
    nan="Lanes that a load leaves out hold anything, NaN here: what does `other=` say of them, and "
    "what is made of them?",
    missing="Do the panels go on to the end of the row? A last one that is not full is one, too.",
)
