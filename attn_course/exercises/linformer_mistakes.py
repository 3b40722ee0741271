"""Chapter 9's exercises: the likely mistakes, and what is said of each.

A mistake is the formula that it computes, and the message that names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Mistake
from attn_course.exercises.linformer_cases import (
    PARTS,
    Suspect,
    _anything,
    _leaks,
    _moved,
    _number,
    _spread,
    _weights,
)

# 9.1 ---------------------------------------------------------------------------------


def _left(matrix: Tensor, x: Tensor) -> Tensor:
    return matrix @ x


def _turned(matrix: Tensor, x: Tensor) -> Tensor:
    return matrix.mT @ x


def _unchanged(matrix: Tensor, x: Tensor) -> Tensor:
    return x


def _columns(matrix: Tensor, x: Tensor) -> Tensor:
    return x @ matrix.mT


def _columns_turned(matrix: Tensor, x: Tensor) -> Tensor:
    return x @ matrix


Way = Callable[[Tensor, Tensor], Tensor]


def _attended(
    keys: Way = _left,
    values: Way = _left,
    queries: Way = _unchanged,
    *,
    use: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda E, F_: (E, F_),
    scale: Callable[..., float] = lambda d, n, k, c: d**-0.5,
    axis: int = 1,
) -> Callable[..., Tensor]:
    """Linformer with something else for one of its parts."""

    def answer(query: Tensor, key: Tensor, value: Tensor, E: Tensor, F_: Tensor) -> Tensor:
        (k, n), d = E.shape, query.shape[1]
        first, second = use(E, F_)
        scores = queries(first, query) @ keys(first, key).T * scale(d, n, k, value.shape[1])
        return scores.softmax(axis) @ values(second, value)

    return answer


def _after_softmax(query: Tensor, key: Tensor, value: Tensor, E: Tensor, F_: Tensor) -> Tensor:
    weights = _weights(query[None], key[None])[0]  # [m, n]
    return weights @ E.T @ (F_ @ value)


_LINFORMER_MISTAKES = (
    Mistake(
        "E and F_ mix the columns of keys and values: that is the feature axis, and there are as "
        "many keys as before. Which axis counts positions, and on which side of `key` must E stand "
        "to mix those?",
        (
            _attended(_columns, _columns),
            _attended(_columns_turned, _columns_turned),
            _attended(_columns, _left),
        ),
    ),
    Mistake(
        "a projection is transposed. Its row s says what slot s takes of each position: which "
        "index of E is summed over, and which one is left?",
        (
            _attended(_turned, _turned),
            _attended(_turned, _left),
            _attended(_left, _turned),
        ),
    ),
    Mistake(
        "the queries are projected, too. Every query gets an answer of its own: how many rows "
        "should come out, and what could be left out if queries were mixed?",
        (
            _attended(queries=_left),
            _attended(queries=_turned),
        ),
    ),
    Mistake(
        "only one of the two is projected. A weight belongs to a slot: which value does slot s "
        "hand on, and which key did it compare?",
        (_attended(values=_unchanged), _attended(keys=_unchanged)),
    ),
    Mistake(
        "one matrix does the work of both, or they have changed places: E makes slots of keys, and "
        "F_ of values.",
        (
            _attended(use=lambda E, F_: (E, E)),
            _attended(use=lambda E, F_: (F_, F_)),
            _attended(use=lambda E, F_: (F_, E)),
        ),
    ),
    Mistake(
        "the scale is another one. What is summed over in a score of a query and a slot: columns, "
        "positions or slots? And are they the columns of values?",
        (
            _attended(scale=lambda d, n, k, c: 1.0),
            _attended(scale=lambda d, n, k, c: k**-0.5),
            _attended(scale=lambda d, n, k, c: n**-0.5),
            _attended(scale=lambda d, n, k, c: c**-0.5),
        ),
    ),
    Mistake(
        "softmax runs over the queries. Each query shares out 1 among the slots: which axis of "
        "[m, k] is that?",
        (_attended(axis=0),),
    ),
    Mistake(
        "the weights of all keys are computed, and projected afterwards. The n weights are then "
        "there, which is what was to be avoided: what must be projected before softmax?",
        (_after_softmax,),
    ),
    Mistake(
        "nothing is projected: this is full attention, as it was given.",
        (_attended(_unchanged, _unchanged),),
    ),
)


# 9.2 ---------------------------------------------------------------------------------

#: What to do with keys or values ``[n, d]`` of an item that has so many.
Clear = Callable[[Tensor, int], Tensor]


def _clear(x: Tensor, count: int) -> Tensor:
    return _filled(0.0)(x, count)


def _keep(x: Tensor, count: int) -> Tensor:
    return x


def _filled(number: float) -> Clear:
    return lambda x, count: torch.where(torch.arange(len(x))[:, None] < count, x, number)


def _multiplied(x: Tensor, count: int) -> Tensor:
    return x * (torch.arange(len(x)) < count)[:, None]


def _shifted(by: int) -> Clear:
    return lambda x, count: _clear(x, count + by)


def _the_other_part(x: Tensor, count: int) -> Tensor:
    return torch.where(torch.arange(len(x))[:, None] >= count, x, 0.0)


def _from_the_end(x: Tensor, count: int) -> Tensor:
    return torch.where(torch.arange(len(x))[:, None] >= len(x) - count, x, 0.0)


def _item_by_item(
    keys: Clear = _clear,
    values: Clear = _clear,
    *,
    slot_keys: Clear = _keep,
    slot_values: Clear = _keep,
    hidden: Callable[[int, int, int], int] = lambda count, n, k: k,
    lengths: Callable[[Tensor], Tensor] = lambda lens: lens,
    axis: int = 1,
) -> Callable[..., Tensor]:
    """Linformer with something else done to padding.

    Args:
        keys: To keys,
        values: and to values before they are projected;
        slot_keys: to slots of keys,
        slot_values: and of values, as if they were positions.
        hidden: Slots from this one on are hidden from softmax.
        lengths: What the lengths are taken for.
        axis: Of the softmax, of ``[m, k]``.
    """

    def answer(
        query: Tensor, key: Tensor, value: Tensor, E: Tensor, F_: Tensor, lens: Tensor
    ) -> Tensor:
        k, n = E.shape
        answers = []
        for q, one, other, count in zip(query, key, value, lengths(lens).tolist(), strict=True):
            slots = slot_keys(E @ keys(one, count), count)
            scores = q @ slots.T / q.shape[1] ** 0.5
            seen = torch.arange(k) < hidden(count, n, k)
            weights = scores.masked_fill(~seen, -torch.inf).softmax(axis)
            answers.append(weights @ slot_values(F_ @ values(other, count), count))
        return torch.stack(answers)

    return answer


_PADDED_MISTAKES = (
    Mistake(
        "the lengths are not used: padding is in every slot. What must be true of it before it is "
        "projected?",
        (_item_by_item(_keep, _keep),),
    ),
    Mistake(
        "slots are cleared after the projection, as if slot s were position s. By then padding is "
        "in all of them: at which moment are its rows still rows of their own?",
        (
            _item_by_item(_keep, _keep, slot_keys=_clear, slot_values=_clear),
            _item_by_item(slot_keys=_clear, slot_values=_clear),
            _item_by_item(_keep, _keep, slot_values=_clear),
        ),
    ),
    Mistake(
        "slots are masked by length: hidden from softmax from a number on. Every slot holds "
        "something of every position: what does hiding one throw away?",
        tuple(
            _item_by_item(how, how, hidden=hidden)
            for how in (_keep, _clear)
            for hidden in (
                lambda count, n, k: count,
                lambda count, n, k: -(-count * k // n),
                lambda count, n, k: count * k // n,
            )
        ),
    ),
    Mistake(
        "keys only: the padding of the values is still there, and each slot hands some of it on.",
        (_item_by_item(values=_keep),),
    ),
    Mistake(
        "values only: the padding of the keys is still in the slots, and so in the scores.",
        (_item_by_item(_keep),),
    ),
    Mistake(
        "rows of padding are filled with minus infinity. That hides a *score*; what does a key of "
        "it do to the sums that E makes? Which number adds nothing?",
        (
            _item_by_item(_filled(-torch.inf), _filled(-torch.inf)),
            _item_by_item(_filled(-torch.inf)),
            _item_by_item(_filled(-1e9), _filled(-1e9)),
            _item_by_item(_filled(-1e9)),
        ),
    ),
    Mistake(
        "padding is multiplied by 0. What is 0 times NaN, or 0 times infinity? Padding may hold "
        "anything: put a 0 *there* in place of what stands there.",
        (
            _item_by_item(_multiplied, _multiplied),
            _item_by_item(_multiplied),
            _item_by_item(values=_multiplied),
        ),
    ),
    Mistake(
        "one position too many counts, or one too few. With length 3, which are the positions "
        "that count, from 0 on?",
        (
            _item_by_item(_shifted(1), _shifted(1)),
            _item_by_item(_shifted(-1), _shifted(-1)),
        ),
    ),
    Mistake(
        "all items are taken to be as long as one of them. Where does the batch's axis go when "
        "positions are compared with `lens`?",
        (
            _item_by_item(lengths=lambda lens: lens.max().expand_as(lens)),
            _item_by_item(lengths=lambda lens: lens.min().expand_as(lens)),
            _item_by_item(lengths=lambda lens: lens[:1].expand_as(lens)),
            _item_by_item(lengths=lambda lens: lens[-1:].expand_as(lens)),
        ),
    ),
    Mistake(
        "the wrong part is cleared: the padding is kept, and the text is gone; or padding is "
        "taken to stand in front.",
        (
            _item_by_item(_the_other_part, _the_other_part),
            _item_by_item(_from_the_end, _from_the_end),
        ),
    ),
    Mistake(
        "softmax runs over the queries: with a batch in front, slots are the *last* axis of "
        "[batch, m, k], and not axis 1.",
        (
            _item_by_item(axis=0),
            _item_by_item(_keep, _keep, axis=0),
            _item_by_item(_multiplied, _multiplied, axis=0),
        ),
    ),
)


# 9.3 ---------------------------------------------------------------------------------


def _to_zero(x: Tensor, j: int) -> Tensor:
    changed = x.clone()
    changed[j] = 0
    return changed


def _one_more(x: Tensor, j: int) -> Tensor:
    changed = x.clone()
    changed[j] += 1
    return changed


def _piled(x: Tensor, j: int) -> Tensor:
    """Rows 0 to j are other ones."""
    for i in range(j + 1):
        x = _anything(x, i)
    return x


def _piled_later(x: Tensor, j: int) -> Tensor:
    """Rows 1 to j are other ones."""
    for i in range(1, j + 1):
        x = _anything(x, i)
    return x


def _from_there_on(x: Tensor, j: int) -> Tensor:
    """Rows j and all later ones are other ones."""
    for i in range(j, len(x)):
        x = _anything(x, i)
    return x


def _seen_from(
    change: Callable[[Tensor, int], Tensor], look: Callable[[Tensor], Tensor] = lambda off: off
) -> Callable[..., Tensor]:
    return lambda layer, x: _moved(layer, x, change, look).triu(1)


def _part(of: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Another part of what moves what."""
    return lambda layer, x: of(_moved(layer, x, _anything))


def _with_dropout(rest: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Every output of a layer in training is another one each time."""

    def answer(layer: Suspect, x: Tensor) -> Tensor:
        moved = _moved(layer, x, _anything)
        return rest(torch.ones_like(moved) if layer.training else moved)

    return answer


def _only_column(which: Callable[[int], int]) -> Callable[..., Tensor]:
    """Only one position is changed."""

    def answer(layer: Suspect, x: Tensor) -> Tensor:
        table = torch.zeros(len(x), len(x))
        j = which(len(x))
        table[:, j] = _leaks(layer, x)[:, j]
        return table

    return answer


def _only_row(which: Callable[[int], int]) -> Callable[..., Tensor]:
    return lambda layer, x: _only_column(which)(layer, x) if len(x) == 1 else _row(layer, x, which)


def _row(layer: Suspect, x: Tensor, which: Callable[[int], int]) -> Tensor:
    table = torch.zeros(len(x), len(x))
    i = which(len(x))
    table[i] = _leaks(layer, x)[i].float()
    return table


_LEAK_MISTAKES = (
    Mistake(
        "the layer was in training, and dropout on: its output is another one at each call, "
        "whatever you change. Which mode has no dropout?",
        (
            _with_dropout(lambda moved: moved.triu(1)),
            _with_dropout(lambda moved: moved),
        ),
    ),
    Mistake(
        "the last position only is changed, or some other one alone. A leak may reach one step "
        "ahead, and there it would not be seen: which positions can an output be told of?",
        (
            _only_column(lambda n: n - 1),
            _only_column(lambda n: n // 2),
            _only_column(lambda n: min(1, n - 1)),
        ),
    ),
    Mistake(
        "one output only is looked at. Which outputs lie before the position that was changed?",
        (_only_row(lambda n: 0), _only_row(lambda n: n // 2), _only_row(lambda n: max(n - 2, 0))),
    ),
    Mistake(
        "the past is perturbed: what moves an output from earlier on is no leak. On which side of "
        "the diagonal do inputs lie that come later than the output?",
        (
            _part(lambda moved: moved.tril(-1)),
            _part(lambda moved: moved.tril(0)),
        ),
    ),
    Mistake(
        "all that moves is marked, past and present too: a causal layer may know those. Which "
        "entries of the table are leaks?",
        (_part(lambda moved: moved), _part(lambda moved: moved.triu(0))),
    ),
    Mistake(
        "the table lies on its side: rows are outputs, columns are the inputs that were changed.",
        (
            _part(lambda moved: moved.triu(1).T),
            _part(lambda moved: moved.T),
            _part(lambda moved: moved.T.triu(1)),
            _part(lambda moved: moved.T.triu(0)),
        ),
    ),
    Mistake(
        "changes pile up: position j is changed, and those before it still are. An output may see "
        "*them*. Does each round begin with the input as it was given?",
        (_seen_from(_piled), _seen_from(_piled_later)),
    ),
    Mistake(
        "position j and all after it are changed: whose change did output i hear? One round, one "
        "position.",
        (_seen_from(_from_there_on),),
    ),
    Mistake(
        "a position is set to 0 or multiplied, and where zeros stand already nothing changes. "
        "Which change is one for any numbers?",
        (_seen_from(_to_zero),),
    ),
    Mistake(
        "the same number is added to all columns of a position. A layer that takes away the mean "
        "first, as LayerNorm does, cannot see that: what could be added in its place?",
        (_seen_from(_one_more),),
    ),
    Mistake(
        "one column of the outputs is looked at, and here it is always 0. An output has moved if "
        "any of its columns has.",
        (_seen_from(_anything, lambda off: off[:, 0]),),
    ),
    Mistake(
        "only sums of columns are compared: what one column gains another may lose. An output has "
        "moved if any of its columns has.",
        (
            _seen_from(_anything, lambda off: off.sum(1)),
            _seen_from(_one_more, lambda off: off.sum(1)),
        ),
    ),
    Mistake(
        "nothing leaks, says the table, whichever layer it is. Is the change there when the layer "
        "is called, and large enough for the comparison?",
        (lambda layer, x: torch.zeros(len(x), len(x)),),
    ),
    Mistake(
        "the other way round: True is to stand where an output *moves*.",
        (
            _part(lambda moved: (~moved).triu(1)),
            _part(lambda moved: ~moved),
            _part(lambda moved: ~moved.triu(1)),
        ),
    ),
)

_ONE_ANSWER = (
    "it returned one answer, {}, for the whole layer; expected a table, [{n}, {n}]: which output "
    "moves with which input? Whether a layer is causal is then `not table.any()`."
)
_NOT_A_TABLE = "it returned {}; expected booleans, [{n}, {n}], True where something leaks."
_LEFT = (
    "the table is right, and the layer is {} when you are done, where it was {} before. A caller's "
    "layer is the caller's: in which mode did you find it?"
)

#: Fault -> what to say to someone who has found another one, or none.
_CLUES = {
    "causal": "Its table is empty: what would you change about that?",
    "triangle on n x k": "In its table outputs move with inputs as far ahead as there are any: "
    "what does the first slot hold?",
    "own block": "In its table there are small triangles along the diagonal, and nothing "
    "between them. Which positions are in one of them together?",
    "one step ahead": "In its table one line beside the diagonal is marked. How far ahead is that?",
}


# 9.4 ---------------------------------------------------------------------------------


def _formula(of: Callable[[int, int], float]) -> Callable[..., Tensor]:
    return lambda k, n: _number(of(k, n))


_SPREAD_MISTAKES = (
    Mistake(
        "this is the variance. The spread is its root, in the units of the ratio itself.",
        (_formula(lambda k, n: 2 / k),),
    ),
    Mistake(
        "a square of a normal number is taken to have the variance 1. With E[g^4] = 3 and "
        "E[g^2] = 1, what is the variance of g^2?",
        (_formula(lambda k, n: (1 / k) ** 0.5), _formula(lambda k, n: 1 / k)),
    ),
    Mistake(
        "the square of the mean is not taken off: E[g^4] = 3 is no variance yet.",
        (_formula(lambda k, n: (3 / k) ** 0.5), _formula(lambda k, n: 3 / k)),
    ),
    Mistake(
        "the spread grows with k. The ratio is a *mean* of k squares: what becomes of the variance "
        "of a sum when it is divided by k?",
        (
            _formula(lambda k, n: (2 * k) ** 0.5),
            _formula(lambda k, n: 2**0.5),
            _formula(lambda k, n: 2 * k),
        ),
    ),
    Mistake(
        "the number of positions is in it. A row of R times z is one normal number, however long "
        "z is: where would n come from?",
        (
            _formula(lambda k, n: (2 / n) ** 0.5),
            _formula(lambda k, n: (2 * n / k) ** 0.5),
            _formula(lambda k, n: (2 * k / n) ** 0.5),
            _formula(lambda k, n: (n / k) ** 0.5),
            _formula(lambda k, n: 2 / n),
        ),
    ),
)


def _bound(
    terms: Callable[[int], float] = lambda points: points * (points - 1),
    *,
    log: Callable[[float], float] = math.log,
    rate: Callable[[float], float] = lambda error: (error**2 - error**3) / 4,
    whole: Callable[[float], float] = math.ceil,
) -> Callable[..., Tensor]:
    """The least k with terms(points) exp(-rate k) <= failure, in other words."""

    def answer(points: int, n: int, error: float, failure: float) -> Tensor:
        return _number(float(whole(log(terms(points) / failure) / rate(error))))

    return answer


_NEEDED_MISTAKES = (
    Mistake(
        "this is enough for one pair, and all pairs are to keep their distance at once. How many "
        "pairs are there, and at most how likely is it that any of them fails?",
        (_bound(lambda points: 2), _bound(lambda points: 1)),
    ),
    Mistake(
        "points are counted where pairs belong. It is a *distance* that may go wrong.",
        (_bound(lambda points: 2 * points), _bound(lambda points: points)),
    ),
    Mistake(
        "pairs are counted twice, or a point with itself as well.",
        (
            _bound(lambda points: 2 * points * (points - 1)),
            _bound(lambda points: points**2),
            _bound(lambda points: 2 * points**2),
            _bound(lambda points: points * (points + 1)),
        ),
    ),
    Mistake(
        "the 2 before the exponential is forgotten: a distance may come out too long, or too "
        "short.",
        (_bound(lambda points: points * (points - 1) / 2),),
    ),
    Mistake(
        "k is not rounded: there are no half slots. Which whole number is the least for which the "
        "bound holds?",
        (_bound(whole=lambda k: k),),
    ),
    Mistake(
        "k is rounded down. Does the bound still hold there?",
        (_bound(whole=math.floor), _bound(whole=round)),
    ),
    Mistake(
        "the logarithm is of another base: which one undoes exp?",
        (_bound(log=math.log2), _bound(log=math.log10)),
    ),
    Mistake(
        "the exponent is another one: (error^2 - error^3) k / 4, as given.",
        (
            _bound(rate=lambda error: error**2 / 4),
            _bound(rate=lambda error: error**2 - error**3),
            _bound(rate=lambda error: error**2),
            _bound(rate=lambda error: (error - error**2) / 4),
            _bound(rate=lambda error: (error**2 + error**3) / 4),
            _bound(rate=lambda error: (error**2 / 2 - error**3 / 3) / 4),
        ),
    ),
)

_DEPENDS_ON_N = (
    "for points of {} numbers it says {:g}, and for as many points of {} numbers {:g}: k grows "
    "with n, all else alike. Where is n in the bound?"
)


def _found(
    mean: Callable[[int, int, float, float], float],
    spread: Callable[[int, int, float, float], float] | None = None,
) -> Callable[..., Tensor]:
    """Mean and spread that come out, of k, n, ||x - y||^2 and ||x||^2 + ||y||^2.

    Without ``spread`` the ratio is multiplied by the mean.
    """

    def answer(x: Tensor, y: Tensor, k: int, draws: int) -> Tensor:
        sizes = (k, len(x), float((x - y).square().sum()), float((x**2 + y**2).sum()))
        first = mean(*sizes)
        second = first * float(_spread(k, 0)) if spread is None else spread(*sizes)
        return torch.tensor([first, second], dtype=torch.float64)

    return answer


def _rooted(k: int) -> float:
    """The mean of the root of the mean of k squares."""
    return math.sqrt(2 / k) * math.exp(math.lgamma((k + 1) / 2) - math.lgamma(k / 2))


def _of(z: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """What becomes of the length of z, with the ratio 0/0 if it has none."""

    def answer(x: Tensor, y: Tensor, k: int, draws: int) -> Tensor:
        nothing = torch.full((2,), torch.nan, dtype=torch.float64)
        return torch.stack([_number(1.0), _spread(k, 0)]) if z(x, y).any() else nothing

    return answer


_MEASURED_MISTAKES = (
    Mistake(
        "this is what becomes of the length of *one* of the points: that is 1 on average, too, "
        "until the point is the origin. Whose length is a distance?",
        (_of(lambda x, y: x), _of(lambda x, y: y)),
    ),
    Mistake(
        "the points are added: where y = -x nothing is left, and they are far apart. Whose length "
        "is a distance?",
        (_of(lambda x, y: x + y),),
    ),
    Mistake(
        "the entries of R have variance 1/n. Then distances shrink by k/n, on average: how many "
        "squares are added up in the length of Rz, and what must each be worth?",
        (_found(lambda k, n, apart, both: k / n),),
    ),
    Mistake(
        "the entries of R are not scaled, or by k where the root of k belongs: distances come out "
        "k times too large, or too small, on average.",
        (
            _found(lambda k, n, apart, both: k),
            _found(lambda k, n, apart, both: 1 / k),
        ),
    ),
    Mistake(
        "distances are not squared. On average they come out a little short: a root of a mean is "
        "not the mean of roots.",
        (
            _found(
                lambda k, n, apart, both: _rooted(k),
                lambda k, n, apart, both: math.sqrt(1 - _rooted(k) ** 2),
            ),
        ),
    ),
    Mistake(
        "x and y are projected by different matrices. What is R(x - y), if R is one?",
        (_found(lambda k, n, apart, both: both / apart),),
    ),
    Mistake(
        "the projected distance is not divided by the one before: a ratio is asked for.",
        (_found(lambda k, n, apart, both: apart),),
    ),
    Mistake(
        "the variance is returned, as the second number: the standard deviation is asked for.",
        (_found(lambda k, n, apart, both: 1.0, lambda k, n, apart, both: 2 / k),),
    ),
    Mistake(
        "this is how much the *mean* of the draws would vary, and it falls with their number. How "
        "much does a single draw?",
        (
            lambda x, y, k, draws: torch.tensor(
                [1.0, float(_spread(k, 0)) / draws**0.5], dtype=torch.float64
            ),
        ),
    ),
)

_NOT_DRAWN = (
    "two pairs of points gave the same two numbers, to the last digit. What chance says is never "
    "twice the same: is R drawn at all? `measured` is to find out what `spread` derives."
)
_ONE_DRAW = (
    "all the draws gave the same number: R is drawn once. Then chance was asked once, too: which "
    "line belongs inside of the loop?"
)


# 9.5 ---------------------------------------------------------------------------------


def _spectrum(
    weights: Callable[[Tensor, Tensor], Tensor] = _weights,
    power: int = 2,
    *,
    sums: Callable[[Tensor], Tensor] = lambda sizes: sizes.cumsum(-1),
    total: Callable[[Tensor], Tensor] = lambda sizes: sizes.sum(-1, keepdim=True),
    together: Callable[[Tensor], Tensor] = lambda sizes: sizes,
) -> Callable[..., Tensor]:
    """Energy held, of other matrices or of other numbers.

    Args:
        weights: The matrices ``[heads, n, n]``.
        power: Of the singular values.
        sums: What is held, from the powers ``[heads, n]``,
        total: of how much.
        together: Puts heads together before shares are taken.
    """

    def answer(query: Tensor, key: Tensor) -> Tensor:
        sizes = together(torch.linalg.svdvals(weights(query, key)) ** power)
        return (sums(sizes) / total(sizes)).mean(0)

    return answer


def _scores(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.mT / query.shape[-1] ** 0.5


_ENERGY_MISTAKES = (
    Mistake(
        "these are the scores, before softmax. Their rank is at most the number of columns of a "
        "head, whatever they say; which matrix multiplies the values?",
        (_spectrum(_scores), _spectrum(lambda query, key: query @ key.mT)),
    ),
    Mistake(
        "the matrices are averaged first, and then one spectrum is taken. Two heads that look in "
        "different directions have a mean of which neither is one: what is to be averaged?",
        (_spectrum(lambda query, key: _weights(query, key).mean(0, keepdim=True)),),
    ),
    Mistake(
        "the singular values are not squared. What is ||A||^2, in terms of them?",
        (_spectrum(power=1), _spectrum(power=4)),
    ),
    Mistake(
        "this is what each direction holds by itself. What do the first two hold together?",
        (_spectrum(sums=lambda sizes: sizes),),
    ),
    Mistake(
        "the energy is not divided by all there is: a share ends at 1.",
        (_spectrum(total=torch.ones_like),),
    ),
    Mistake(
        "the smallest directions come first.",
        (_spectrum(sums=lambda sizes: sizes.flip(-1).cumsum(-1)),),
    ),
    Mistake(
        "this is what the first directions *miss*.",
        (_spectrum(sums=lambda sizes: sizes.sum(-1, keepdim=True) - sizes.cumsum(-1)),),
    ),
    Mistake(
        "the energies of the heads are added up before shares are taken, and a head with large "
        "weights counts more than others. What is to be averaged?",
        (_spectrum(together=lambda sizes: sizes.mean(0, keepdim=True)),),
    ),
    Mistake(
        "softmax runs over the queries, or the scores are not scaled by the root of the width.",
        (
            _spectrum(lambda query, key: _scores(query, key).softmax(-2)),
            _spectrum(lambda query, key: (query @ key.mT).softmax(-1)),
        ),
    ),
)


def _counted(of: Callable[[Tensor, float], Any]) -> Callable[..., Tensor]:
    return lambda held, share: _number(float(of(held, share)))


def _needs(held: Tensor, share: float) -> int:
    return int((held < share).sum()) + 1


_DIRECTIONS_MISTAKES = (
    Mistake(
        "one too few: an index counts from 0, and directions from 1.",
        (_counted(lambda held, share: _needs(held, share) - 1),),
    ),
    Mistake(
        "one too many.",
        (_counted(lambda held, share: _needs(held, share) + 1),),
    ),
    Mistake(
        "a share that is held exactly is held: is it `>` or `>=`?",
        (
            _counted(lambda held, share: int((held <= share).sum()) + 1),
            _counted(lambda held, share: min(int((held <= share).sum()) + 1, len(held))),
        ),
    ),
    Mistake(
        "these are the directions that are *not* needed, or those at which enough is held already.",
        (
            _counted(lambda held, share: int((held >= share).sum())),
            _counted(lambda held, share: int((held > share).sum())),
        ),
    ),
    Mistake(
        "this is a share of the directions: how many are they?",
        (_counted(lambda held, share: _needs(held, share) / len(held)),),
    ),
)


# 9.6 ---------------------------------------------------------------------------------


def _over(
    positions: Callable[[int, int, int, int], Iterable[int]],
    stretch: Callable[[int], int] = lambda n: -(-n // PARTS),
    together: Callable[[Tensor], Tensor] = lambda parts: parts.sum(0),
) -> Callable[..., Tensor]:
    """Parts that add up other positions, or are put together otherwise.

    Args:
        positions: (part, stretch, length, positions of a tile) -> what the part adds up.
        stretch: Positions of a part, of the length.
        together: Of the parts ``[4, k, d]``.
    """

    def answer(matrix: Tensor, x: Tensor, block_k: int, block_n: int) -> Tensor:
        n = len(x)
        parts = []
        for part in range(PARTS):
            chosen = [i for i in positions(part, stretch(n), n, block_n) if 0 <= i < n]
            parts.append(matrix[:, chosen] @ x[chosen])
        return together(torch.stack(parts))

    return answer


def _own(part: int, stretch: int, n: int, bn: int) -> Iterable[int]:
    return range(part * stretch, min((part + 1) * stretch, n))


_HALF = (
    "parts are kept in half precision. A part can be much larger than the sum of all, and its "
    "rounding error is of *its* size: which type should the parts have, whatever E and x have?"
)

_SPLIT_MISTAKES = (
    Mistake(
        "the last positions are lost: the length is divided by four and rounded down. With 37 "
        "positions in four parts, how long must a part be, so that none is left over?",
        (_over(_own, lambda n: n // PARTS), _over(_own, lambda n: max(n // PARTS, 1))),
    ),
    Mistake(
        "positions at the end of a stretch are added up twice: by the part that they belong to, "
        "and by the one before it, whose last tile reaches over. Which positions does a mask at "
        "LENGTH let through, and where does a part end?",
        (
            _over(
                lambda part, stretch, n, bn: range(
                    part * stretch, part * stretch + -(-stretch // bn) * bn
                )
            ),
        ),
    ),
    Mistake(
        "the last tile of a stretch is lost where it is not full: short tiles have positions, too.",
        (
            _over(
                lambda part, stretch, n, bn: range(
                    part * stretch,
                    part * stretch
                    + (min((part + 1) * stretch, n) - min(part * stretch, n)) // bn * bn,
                )
            ),
        ),
    ),
    Mistake(
        "every part begins with the first position. Where does the stretch of part 2 begin?",
        (
            _over(lambda part, stretch, n, bn: range(min(stretch, n))),
            _over(lambda part, stretch, n, bn: range(min((part + 1) * stretch, n))),
            _over(lambda part, stretch, n, bn: range(n)),
        ),
    ),
    Mistake(
        "parts go on to the end of the sequence: where does the stretch of part 0 end?",
        (_over(lambda part, stretch, n, bn: range(part * stretch, n)),),
    ),
    Mistake(
        "one tile of each stretch is added up. What takes a program from one tile to the next?",
        (
            _over(
                lambda part, stretch, n, bn: range(
                    part * stretch, min(part * stretch + bn, (part + 1) * stretch, n)
                )
            ),
        ),
    ),
    Mistake(
        "only the last tile of each stretch is in its part: a sum that is overwritten in the loop "
        "is none.",
        (
            _over(
                lambda part, stretch, n, bn: range(
                    part * stretch
                    + max(min((part + 1) * stretch, n) - part * stretch - 1, 0) // bn * bn,
                    min((part + 1) * stretch, n),
                )
            ),
        ),
    ),
    Mistake(
        "the parts are averaged: they are sums over different positions.",
        (_over(_own, together=lambda parts: parts.mean(0)),),
    ),
    Mistake(
        "one part is returned. What is done with the others?",
        (
            _over(_own, together=lambda parts: parts[0]),
            _over(_own, together=lambda parts: parts[-1]),
        ),
    ),
    Mistake(
        _HALF,
        (
            _over(_own, together=lambda parts: parts.half().double().sum(0)),
            _over(_own, together=lambda parts: parts.half().sum(0)),
        ),
    ),
)

_RACE = (
    "two programs write to the same place: program {0} and program {1}. Here they run one after "
    "another, and it may come out right. On a GPU they run at once: with `tl.store` one of the "
    "two sums is lost, and with `tl.atomic_add` the order of the additions changes from run to "
    "run, and with it the last digits. Which place could be each program's own?"
)
_REACHES_PAST = (
    "a tile reaches past its last slot, or past its last column: program {0} and program {1} write "
    "to the same place, which is one's own and the other's overhang. Does the store have a mask?"
)
_NOTHING_STORED = "nothing is stored: is the kernel launched, and does it store its part?"
_READS_PAST = (
    "a load reads past the end of a tensor. On a GPU that is somebody else's memory. Which slots, "
    "positions and columns of a tile exist?"
)
_WRITES_PAST = (
    "a program writes past the end of a tensor: which slots and columns of its tile exist, and "
    "where do you tell `tl.store`?"
)
_FROM_NAN = (
    "the answer is NaN. The check fills with NaN what `torch.empty` hands out: is a part added up "
    "that no program wrote? A program whose stretch is empty has something to say, too."
)
_ALONE = (
    "the numbers may be right, and program {0} reads {1} of the {2} positions: one program adds "
    "up what four should share. Which of its two coordinates says which part is its own?"
)
_PYTORCH = (
    "PyTorch multiplies E and x. That is the kernel's part; what PyTorch is to do is to add up "
    "the parts."
)
_APART = (
    "it returned shape {}: the parts, still apart. What is the sum of the whole, and over which "
    "axis?"
)
_DTYPE = "it returned {} for inputs in {}: an answer has the type of what came in."
