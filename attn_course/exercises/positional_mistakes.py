"""Chapter 5's exercises: the likely mistakes, and what is said of each.

A mistake is the formula that it computes, and the message that names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Mistake
from attn_course.exercises.kernels import Words
from attn_course.exercises.positional_cases import (
    _FROM,
    _MECHANISMS,
    _angles,
    _encodings,
    _frequencies,
    _half_turned,
    _heads,
    _moved,
    _path_length,
    _rotary,
    _scores,
    _self_attention,
    _sinusoids,
    _turn,
    _turned,
)

# 5.1 ---------------------------------------------------------------------------------

#: No turning round, no moving along, no exchange of two: and not its own inverse.
_ORDER = torch.tensor([3, 7, 0, 8, 5, 9, 1, 2, 6, 4])


def _test_that(
    compare: Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]],
) -> Callable[..., Tensor]:
    """What a test says that compares these two tensors."""

    def answer(attend: Any, x: Tensor) -> Tensor:
        one, other = compare(lambda tokens: attend.attend(tokens, tokens, tokens), x)
        return torch.tensor(float(torch.allclose(one, other, atol=1e-5)))

    return answer


def _with_order(order: list[int]) -> Callable[..., Tensor]:
    return _test_that(lambda f, x: (f(x[order]), f(x)[order]))


def _only(says: bool, *names: str) -> tuple[Callable[..., Tensor], ...]:
    """Formulas that have an opinion on one mechanism each."""

    def of(name: str) -> Callable[..., Tensor]:
        def answer(attend: Any, x: Tensor) -> Tensor:
            if attend.name != name:
                raise IndexError
            return torch.tensor(float(says))

        return answer

    return tuple(of(name) for name in names)


_TEST_MISTAKES = (
    Mistake(
        "the other way round: True means that another order of the tokens gives the same outputs "
        "in that other order.",
        (lambda attend, x: torch.tensor(float(not attend.equivariant)),),
    ),
    Mistake(
        "it says the same of every mechanism. What does it compare, and how large a difference "
        "does it let pass?",
        (
            lambda attend, x: torch.tensor(1.0),
            lambda attend, x: torch.tensor(0.0),
        ),
    ),
    Mistake(
        "this tests *in*variance: that the outputs stay where they were. But output i belongs to "
        "token i. When a token moves, where should its output go?",
        (_test_that(lambda f, x: (f(x[_ORDER]), f(x))),),
    ),
    Mistake(
        "tokens and outputs are put in different orders; most likely the one is the inverse of the "
        "other. `x[order]` puts token `order[i]` in place i: from which place of `f(x)` must the "
        "output in place i then come? (An exchange of two would have hidden it: it is its own "
        "inverse.)",
        (_test_that(lambda f, x: (f(x[_ORDER]), f(x)[_ORDER.argsort()])),),
    ),
    Mistake(
        "turning the sequence round is a permutation with a symmetry: tokens keep their distances, "
        "and neighbours stay neighbours. A mechanism that looks at those alone gets through. Which "
        "permutation has no symmetry?",
        (_with_order([9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),),
    ),
    Mistake(
        "moving the tokens along in a circle leaves nearly all neighbours together, and a "
        "mechanism that goes round in a circle notices nothing. Which permutation has no symmetry?",
        (
            _with_order([9, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
            _with_order([8, 9, 0, 1, 2, 3, 4, 5, 6, 7]),
        ),
    ),
    Mistake(
        "tokens that change places in pairs are not every permutation: where both lie in one "
        "window, a mechanism that works in windows notices nothing. Which permutation has no such "
        "pattern?",
        (
            _with_order([1, 0, 2, 3, 4, 5, 6, 7, 8, 9]),
            _with_order([0, 2, 1, 3, 4, 5, 6, 7, 8, 9]),
            _with_order([9, 1, 2, 3, 4, 5, 6, 7, 8, 0]),
        ),
    ),
    Mistake(
        "sums or means of outputs are compared, and they hide which output belongs to which token. "
        "Outputs can be compared one by one.",
        (
            _test_that(lambda f, x: (f(x[_ORDER]).sum(0), f(x).sum(0))),
            _test_that(lambda f, x: (f(x[_ORDER]).sum(), f(x).sum())),
        ),
    ),
    Mistake(
        "it says that order matters to a mechanism that takes no notice of it. Sums that are added "
        "up in another order differ in the seventh digit: that is rounding. How large a difference "
        "should count?",
        _only(False, *(m.name for m in _MECHANISMS if m.equivariant)),
    ),
    Mistake(
        "it does not notice that order matters to the mechanism. Does your permutation move "
        "every token, and are all outputs compared, each with its own?",
        _only(True, *(m.name for m in _MECHANISMS if not m.equivariant)),
    ),
)

#: What is said of the calls that a wrong test makes.
_NOT_CALLED = "`attend` is never called. Without asking it, what can you know of it?"
_SAME_ORDER = (
    "every call of `attend` gets the tokens in the same order. What can you learn of another one?"
)
_VALUES_STAY = (
    "queries and keys are put in another order, and the values stay where they were: each key then "
    "speaks for another token's value. Self-attention is `attend(x, x, x)`; which three go with a "
    "sequence in another order?"
)
_APART = (
    "a call gets the tokens in one order as queries, and in another as keys. Self-attention has "
    "one sequence for all three, `attend(x, x, x)`, whatever its order."
)
_OTHER_TOKENS = (
    "a call gets other tokens, not the same ones in another order. Along which axis of x [n, d] do "
    "the tokens lie?"
)


# 5.2 ---------------------------------------------------------------------------------


def _angle(length: int, dim: int, base: float, first: int = 0, power: float = 1.0) -> Tensor:
    """The angles of another first position, of another power of the frequencies."""
    return _angles(range(first, first + length), _frequencies(dim, base) ** power)


def _interleaved(one: Tensor, other: Tensor) -> Tensor:
    return torch.stack([one, other], -1).flatten(-2)


def _waves(angle: Tensor) -> Tensor:
    return _interleaved(angle.sin(), angle.cos())


def _frequency_each(length: int, dim: int, base: float) -> Tensor:
    """Columns do not share their frequencies."""
    angle = _angles(range(length), _frequencies(2 * dim, base))
    return _interleaved(angle[:, 0::2].sin(), angle[:, 1::2].cos())


_SINUSOID_MISTAKES = (
    Mistake(
        "the first row is that of position 1. Python counts from 0, and so do positions here: what "
        "is the sine of 0?",
        (lambda length, dim, base: _waves(_angle(length, dim, base, first=1)),),
    ),
    Mistake(
        "sines stand in the first half of the columns and cosines in the second. The numbers are "
        "right; in the table that was asked for, they alternate.",
        (
            lambda length, dim, base: torch.cat(
                [_angle(length, dim, base).sin(), _angle(length, dim, base).cos()], 1
            ),
            lambda length, dim, base: torch.cat(
                [_angle(length, dim, base).cos(), _angle(length, dim, base).sin()], 1
            ),
        ),
    ),
    Mistake(
        "pairs are counted from 1. The first pair has j = 0: by how much does it turn from one "
        "position to the next?",
        (lambda length, dim, base: _waves(_angle(length, dim, base) * base ** (-2 / dim)),),
    ),
    Mistake(
        "the exponents run up to 1. Some programs do so, and divide by dim - 2; here they are 2j / "
        "dim, and the last is a little less.",
        (lambda length, dim, base: _waves(_angle(length, dim, base, power=dim / max(dim - 2, 1))),),
    ),
    Mistake(
        "only sines, or only cosines: one of them alone does not tell where on the circle it is.",
        (
            lambda length, dim, base: _interleaved(*2 * [_angle(length, dim, base).sin()]),
            lambda length, dim, base: _interleaved(*2 * [_angle(length, dim, base).cos()]),
        ),
    ),
    Mistake(
        "the exponents are whole numbers: 2j is not divided by dim, or what is left of it after "
        "the division is cut off. How do `/` and `//` differ?",
        (
            lambda length, dim, base: _waves(_angle(length, dim, base, power=dim)),
            lambda length, dim, base: _waves(_angle(length, dim, base, power=0)),
        ),
    ),
    Mistake(
        "the exponents are halved: they run only to 1/2, and the slowest columns are not slow. The "
        "exponent is 2j / dim, and j counts pairs of columns: how large is it for the last pair?",
        (lambda length, dim, base: _waves(_angle(length, dim, base, power=0.5)),),
    ),
    Mistake(
        "the exponents are doubled: j counts pairs of columns, and 2j columns. Which of the two "
        "does your range count?",
        (lambda length, dim, base: _waves(_angle(length, dim, base, power=2.0)),),
    ),
    Mistake(
        "each column has a frequency of its own. A sine and the cosine beside it share one angle: "
        "only then do they make a point on a circle.",
        (_frequency_each,),
    ),
    Mistake(
        "sine and cosine have changed places: which of the two has the even columns, 0, 2, ...?",
        (
            lambda length, dim, base: (
                _waves(_angle(length, dim, base)).unflatten(1, (-1, 2)).flip(2).flatten(1)
            ),
        ),
    ),
    Mistake(
        "later columns turn faster than the first. Is the position multiplied by base^(2j/dim), or "
        "divided?",
        (lambda length, dim, base: _waves(_angle(length, dim, base, power=-1.0)),),
    ),
    Mistake(
        "the base is always 10,000, whatever was asked for.",
        (lambda length, dim, base: _sinusoids(length, dim, 10000.0),),
    ),
    Mistake(
        "the table lies on its side: each position has a row.",
        (lambda length, dim, base: _sinusoids(length, dim, base).T,),
    ),
)


# 5.3 ---------------------------------------------------------------------------------


def _matrix_of(matrix: Callable[[int, int, float], Tensor]) -> Callable[..., Tensor]:
    """What a matrix makes of the encodings."""

    def answer(delta: int, dim: int, base: float) -> Tensor:
        return _encodings(dim, base) @ matrix(delta, dim, base).T

    return answer


def _blocks(angle: Tensor, signs: tuple[int, int] = (1, -1), halves: bool = False) -> Tensor:
    """Blocks [[cos, +-sin], [+-sin, cos]] on pairs of columns, adjacent or a half apart."""
    pairs = len(angle)
    first = torch.arange(pairs) * (1 if halves else 2)
    second = first + (pairs if halves else 1)
    matrix = torch.zeros(2 * pairs, 2 * pairs, dtype=torch.float64)
    matrix[first, first] = matrix[second, second] = angle.cos()
    matrix[first, second], matrix[second, first] = signs[0] * angle.sin(), signs[1] * angle.sin()
    return matrix


def _exchanged(*signs: int) -> Callable[[int, int, float], Tensor]:
    """Sines where cosines belong, and cosines where sines do, with these signs."""
    return lambda delta, dim, base: _blocks(
        math.pi / 2 - delta * _frequencies(dim, base), (signs[0], signs[1])
    )


def _row(position: int, dim: int, base: float) -> Tensor:
    return _waves(_angles([position], _frequencies(dim, base)))[0]


def _projection(position: int) -> Callable[..., Tensor]:
    """Right for one position: everything is projected on it."""

    def matrix(delta: int, dim: int, base: float) -> Tensor:
        before, after = _row(position, dim, base), _row(position + delta, dim, base)
        return torch.outer(after, before) / (before @ before)

    return _matrix_of(matrix)


def _ratio(position: int) -> Callable[..., Tensor]:
    """Right for one position: each number is multiplied by what it lacks."""

    def matrix(delta: int, dim: int, base: float) -> Tensor:
        return (_row(position + delta, dim, base) / _row(position, dim, base)).diag()

    return _matrix_of(matrix)


_SHIFT_MISTAKES = (
    Mistake(
        "it turns the wrong way: P[i] becomes P[i - delta]. Write down sin(a + b), as a row times "
        "the column (sin a, cos a). Which of the four numbers is negative, and is it M @ P[i] that "
        "you wrote?",
        (lambda delta, dim, base: _moved(-delta, dim, base),),
    ),
    Mistake(
        "it depends on a position: it is right for one i and for no other. One matrix has to move "
        "all of them. In the formulas for sin(a + b) and cos(a + b), what is the same for every i?",
        tuple(of(position) for of in (_projection, _ratio) for position in (0, 1, 2, 3)),
    ),
    Mistake(
        "the wrong columns are paired, j with j + dim/2. In this table a sine and its cosine are "
        "neighbours: where does that put the 2 x 2 blocks?",
        (
            _matrix_of(
                lambda delta, dim, base: _blocks(delta * _frequencies(dim, base), halves=True)
            ),
        ),
    ),
    Mistake(
        "this is a reflection: the two sines of a block have the same sign. What is the derivative "
        "of cosine, and so the sign in cos(a + b)?",
        (
            _matrix_of(lambda delta, dim, base: _blocks(delta * _frequencies(dim, base), (1, 1))),
            _matrix_of(lambda delta, dim, base: _blocks(delta * _frequencies(dim, base), (-1, -1))),
        ),
    ),
    Mistake(
        "all pairs turn alike. Each has its own frequency: by which angle does pair j turn in "
        "delta positions?",
        (_matrix_of(lambda delta, dim, base: _blocks(delta * torch.ones(dim // 2).double())),),
    ),
    Mistake(
        "the exponents of the frequencies are halved, or doubled: pair j turns by base^(-2j/dim) a "
        "position.",
        (
            _matrix_of(lambda delta, dim, base: _blocks(delta * _frequencies(dim, base) ** 0.5)),
            _matrix_of(lambda delta, dim, base: _blocks(delta * _frequencies(dim, base) ** 2)),
        ),
    ),
    Mistake(
        "it always moves by one position: where does delta come in?",
        (lambda delta, dim, base: _moved(1, dim, base),),
    ),
    Mistake(
        "nothing moves: M @ P[i] is P[i].",
        (lambda delta, dim, base: _encodings(dim, base),),
    ),
    Mistake(
        "it moves forward, whatever the sign of delta: what becomes of a sine, and of a cosine, "
        "when the sign of its angle changes?",
        (lambda delta, dim, base: _moved(abs(delta), dim, base),),
    ),
    Mistake(
        "the base is always 10,000, whatever was asked for.",
        (_matrix_of(lambda delta, dim, base: _blocks(delta * _frequencies(dim, 10000.0))),),
    ),
    Mistake(
        "later pairs turn faster than the first: is delta multiplied by base^(2j/dim), or divided?",
        (_matrix_of(lambda delta, dim, base: _blocks(delta / _frequencies(dim, base))),),
    ),
    Mistake(
        "the matrix is diagonal: then a new sine is made of the old sine alone. What else stands "
        "in the theorem?",
        (
            _matrix_of(
                lambda delta, dim, base: (
                    (delta * _frequencies(dim, base)).cos().repeat_interleave(2).diag()
                )
            ),
            _matrix_of(lambda delta, dim, base: _row(delta, dim, base).diag()),
        ),
    ),
    Mistake(
        "sine and cosine have changed places in the blocks: what should stand there for delta = 0?",
        tuple(_matrix_of(_exchanged(*signs)) for signs in ((1, -1), (1, 1), (-1, 1))),
    ),
)

_SHIFT_NOTE = f"(Row r of these numbers is M @ P[i] for the r-th of the positions {list(_FROM)}.)"


# 5.4 ---------------------------------------------------------------------------------


def _pairs(x: Tensor, halves: bool) -> tuple[Tensor, Tensor]:
    return x.chunk(2, -1) if halves else (x[..., 0::2], x[..., 1::2])  # type: ignore[return-value]


def _joined(first: Tensor, second: Tensor, halves: bool) -> Tensor:
    return torch.cat([first, second], -1) if halves else _interleaved(first, second)


def _turn_of(
    angle: Callable[[int, int, float], Tensor] = _angle,
    *,
    read: bool = False,
    written: bool = False,
    turned: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = _turned,
) -> Callable[..., Tensor]:
    """Another angle, other pairs (True: halves), another way to turn."""

    def answer(x: Tensor, base: float) -> Tensor:
        return _joined(*turned(*_pairs(x, read), angle(len(x), x.shape[1], base)), written)

    return answer


def _first_overwritten(first: Tensor, second: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    first = first * angle.cos() - second * angle.sin()
    return first, first * angle.sin() + second * angle.cos()


def _second_overwritten(first: Tensor, second: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    second = first * angle.sin() + second * angle.cos()
    return first * angle.cos() - second * angle.sin(), second


def _reflected(first: Tensor, second: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    first_, second_ = first * angle.cos(), second * angle.cos()
    return first_ + second * angle.sin(), second_ + first * angle.sin()


def _added(x: Tensor, base: float) -> Tensor:
    return x + _sinusoids(len(x), x.shape[1], base)


_half_turn = _turn_of(read=True, written=True)
_back = _turn_of(lambda length, dim, base: -_angle(length, dim, base))


_TURN_MISTAKES = (
    Mistake(
        "it turns the wrong way. If queries and keys both do, scores still depend on the distance "
        "alone; but what is ahead is then taken for what is behind. Which of the two sines is "
        "negative?",
        (_back,),
    ),
    Mistake(
        "columns j and j + d/2 are paired. Many trained models do so, and it is as good; but it is "
        "another function, and here neighbours belong together, 2j and 2j + 1.",
        (_half_turn,),
    ),
    Mistake(
        "columns are taken from one place and put back in another: pairs are read as neighbours "
        "and written as halves, or the other way round. Where does the second of a pair belong?",
        (_turn_of(read=False, written=True), _turn_of(read=True, written=False)),
    ),
    Mistake(
        "the second formula gets what the first has computed already. Both want the numbers from "
        "before the turn: was one overwritten?",
        (_turn_of(turned=_first_overwritten), _turn_of(turned=_second_overwritten)),
    ),
    Mistake(
        "both sines have the same sign, and a pair changes its length. A rotation keeps it: which "
        "sign is negative?",
        (_turn_of(turned=_reflected),),
    ),
    Mistake(
        "the first token is turned already, as if it stood at position 1. Scores would not notice; "
        "a token that is added later, at a position of its own, would.",
        (_turn_of(lambda length, dim, base: _angle(length, dim, base, first=1)),),
    ),
    Mistake(
        "all pairs turn alike, by one radian a position: where do the frequencies come in?",
        (_turn_of(lambda length, dim, base: _angle(length, dim, base, power=0.0)),),
    ),
    Mistake(
        "the exponents of the frequencies are halved, or doubled: pair j turns by base^(-2j/d) a "
        "position.",
        (
            _turn_of(lambda length, dim, base: _angle(length, dim, base, power=0.5)),
            _turn_of(lambda length, dim, base: _angle(length, dim, base, power=2.0)),
        ),
    ),
    Mistake(
        "the base is always 10,000, whatever was asked for.",
        (lambda x, base: _turn(x, 10000.0),),
    ),
    Mistake(
        "x comes back as it was: what is to become of it from row to row?",
        (_turn_of(lambda length, dim, base: _angle(length, dim, base) * 0),),
    ),
    Mistake(
        "later pairs turn faster than the first: the exponent has a sign.",
        (_turn_of(lambda length, dim, base: _angle(length, dim, base, power=-1.0)),),
    ),
    Mistake(
        "pairs are counted from 1. The first pair has j = 0, and turns by one radian a position.",
        (_turn_of(lambda length, dim, base: _angle(length, dim, base) * base ** (-2 / dim)),),
    ),
    Mistake(
        "every row turns by the same angle: where does its position come in?",
        (_turn_of(lambda length, dim, base: _frequencies(dim, base).expand(length, -1)),),
    ),
    Mistake(
        "the two of a pair have changed places.",
        (lambda x, base: _turn(x, base).unflatten(1, (-1, 2)).flip(2).flatten(1),),
    ),
    Mistake(
        "sinusoids are added. Here nothing is added: each pair of columns is multiplied by a "
        "rotation.",
        (_added,),
    ),
)


def _rotary_of(
    query: Callable[..., Tensor] = _turn,
    key: Callable[..., Tensor] = _turn,
    value: Callable[..., Tensor] = lambda value, base: value,
) -> Callable[..., Tensor]:
    """Attention to what these make of queries, keys and values."""

    def answer(**given: Any) -> Tensor:
        base = given["base"]
        return _self_attention(
            query(given["query"], base), key(given["key"], base), value(given["value"], base)
        )

    return answer


def _as_it_is(x: Tensor, base: float) -> Tensor:
    return x


def _scored(
    formula: Callable[[Tensor, Tensor], Tensor],
) -> Callable[..., Tensor]:
    """A formula of turned queries and keys, instead of weights."""

    def answer(query: Tensor, key: Tensor, value: Tensor, base: float) -> Tensor:
        return formula(_turn(query, base), _turn(key, base)) @ value

    return answer


def _begun(first: Callable[[int, int], tuple[int, int]]) -> Callable[..., Tensor]:
    """Queries and keys that begin elsewhere, by how many there are of each."""

    def later(place: int) -> Callable[..., Tensor]:
        return _turn_of(lambda length, dim, base: _angle(length, dim, base, first=place))

    def answer(query: Tensor, key: Tensor, value: Tensor, base: float) -> Tensor:
        i, k = first(len(query), len(key))
        return _self_attention(later(i)(query, base), later(k)(key, base), value)

    return answer


_ROTARY_MISTAKES = (
    Mistake(
        "the values are turned too. The rotation is there for the dot product of a query with a "
        "key, in which only the difference of two angles is left. What is left of it in a sum of "
        "values?",
        (_rotary_of(value=_turn), _rotary_of(value=_half_turn)),
    ),
    Mistake(
        "only the queries are turned, or only the keys. The score of a pair then changes when both "
        "move along together. Whose angle is to be subtracted from whose?",
        (
            _rotary_of(key=_as_it_is),
            _rotary_of(query=_as_it_is),
        ),
    ),
    Mistake(
        "the pairings are mixed: one of queries and keys has its pairs in neighbouring columns, "
        "the other in halves. Shapes fit, and nothing complains; but pair j of the one meets other "
        "columns of the other.",
        (_rotary_of(key=_half_turn), _rotary_of(query=_half_turn)),
    ),
    Mistake(
        "columns j and j + d/2 are paired, for queries and keys alike. The scores depend on i - j "
        "alone, as they should; but these are not the pairs of `turn`.",
        (_rotary_of(query=_half_turn, key=_half_turn),),
    ),
    Mistake(
        "queries and keys turn against each other: the angles add up, and scores depend on i + j. "
        "Does a dot product add angles, or subtract them?",
        (_rotary_of(key=_back), _rotary_of(query=_back)),
    ),
    Mistake(
        "queries and keys are both turned backwards. The scores depend on the distance alone, but "
        "ahead and behind have changed places. Is this your `turn`?",
        (_rotary_of(query=_back, key=_back),),
    ),
    Mistake(
        "nothing is turned: this is plain attention, blind to order.",
        (_rotary_of(query=_as_it_is, key=_as_it_is),),
    ),
    Mistake(
        "sinusoids are added to queries and keys, as to the first layer's tokens. Turn them "
        "instead.",
        (
            _rotary_of(
                query=_added,
                key=_added,
            ),
        ),
    ),
    Mistake(
        "the scores are not divided by the root of d.",
        (_scored(lambda query, key: (query @ key.T).softmax(1)),),
    ),
    Mistake(
        "the weights sum to one over the queries, not over the keys: check the axis.",
        (_scored(lambda query, key: _scores(query, key).softmax(0)),),
    ),
    Mistake(
        "the scores are divided by something else than the root of d, the width of a query.",
        (
            _scored(lambda query, key: (query @ key.T / query.shape[1]).softmax(1)),
            _scored(lambda query, key: (query @ key.T / len(key) ** 0.5).softmax(1)),
        ),
    ),
    Mistake(
        "the scores are used as weights as they are. What do the weights of a query sum to?",
        (_scored(_scores),),
    ),
    Mistake(
        "what comes out is turned. Scores need positions; the average of the values is the answer.",
        (lambda **given: _turn(_rotary(**given), given["base"]),),
    ),
    Mistake(
        "queries and keys do not both begin at position 0: were they turned as one sequence, or "
        "set so that their ends meet?",
        (_begun(lambda n, m: (0, n)), _begun(lambda n, m: (m, 0)), _begun(lambda n, m: (m - n, 0))),
    ),
    Mistake(
        "the base does not arrive where the turning is done.",
        (lambda query, key, value, base: _rotary(query, key, value, 10000.0),),
    ),
)


# 5.5 ---------------------------------------------------------------------------------

_Count = Callable[[int, int], float]


def _of(*pairs: tuple[str, _Count]) -> tuple[Callable[..., Tensor], ...]:
    """Formulas of n and k, each for one kind of layer; no opinion on the others."""

    def formula(kind: str, count: _Count) -> Callable[..., Tensor]:
        def answer(**given: Any) -> Tensor:
            if given["kind"] != kind:
                raise IndexError
            return torch.tensor(float(count(given["n"], given["k"])))

        return answer

    return tuple(formula(kind, count) for kind, count in pairs)


def _logarithm(n: int, k: int) -> float:
    return _path_length("dilated convolution", n, k).item()


_WIDE = ("convolution", "restricted attention")

_PATH_MISTAKES = (
    Mistake(
        "a logarithm, for a convolution without dilation: a lecture says so, and it is wrong. A "
        "logarithm needs layers that reach k times as far as the layers before them. How much "
        "further does the second of two equal layers reach?",
        _of(
            *(
                ("convolution", count)
                for count in (
                    _logarithm,
                    lambda n, k: math.log(n, k),
                    lambda n, k: math.ceil(math.log(n, k)),
                )
            )
        ),
    ),
    Mistake(
        "these are operations, not steps: how much is computed, not how far a token is away. Work "
        "that is done at the same time makes no path longer.",
        _of(
            ("self-attention", lambda n, k: n * n),
            ("self-attention", lambda n, k: n * n * k),
            ("self-attention", lambda n, k: n * n / 2),
            ("recurrent", lambda n, k: n * k),
            ("recurrent", lambda n, k: n * n),
            *((kind, lambda n, k: n * k) for kind in (*_WIDE, "dilated convolution")),
            *((kind, lambda n, k: n * k * k) for kind in (*_WIDE, "dilated convolution")),
        ),
    ),
    Mistake(
        "one, for a recurrent network: one *layer*, yes. But its state goes from token to token, "
        "and what the last one knows of the first has been through all states between.",
        _of(("recurrent", lambda n, k: 1)),
    ),
    Mistake(
        "tokens are counted, and moves were asked for. How many moves lead from the first of two "
        "tokens to the second?",
        _of(
            *((kind, lambda n, k: n) for kind in ("recurrent", "self-attention", *_WIDE)),
        ),
    ),
    Mistake(
        "a recurrent network reads one token after another, whatever k is.",
        _of(
            ("recurrent", lambda n, k: math.ceil((n - 1) / (k - 1))),
            ("recurrent", lambda n, k: math.ceil(n / k)),
        ),
    ),
    Mistake(
        "one, for attention that sees k tokens only: what lies further away has to be handed on. "
        "Attention is one step from everything if it may look at everything.",
        _of(("restricted attention", lambda n, k: 1)),
    ),
    Mistake(
        "a logarithm, for restricted attention: all its layers look equally far. What does the "
        "second add to the reach of the first?",
        _of(("restricted attention", _logarithm)),
    ),
    Mistake(
        "each layer is taken to reach k tokens further. One of the k that it sees is the token "
        "itself: how far back does the last one stand?",
        _of(
            *(
                (kind, count)
                for kind in _WIDE
                for count in (
                    lambda n, k: math.ceil(n / k),
                    lambda n, k: math.ceil((n - 1) / k),
                    lambda n, k: n // k,
                    lambda n, k: n / k,
                    lambda n, k: (n - 1) // k,
                )
            )
        ),
    ),
    Mistake(
        "the last layer is lost where it is not needed whole, or comes in parts: is there half a "
        "layer?",
        _of(
            *((kind, lambda n, k: (n - 1) // (k - 1)) for kind in _WIDE),
            *((kind, lambda n, k: (n - 1) / (k - 1)) for kind in _WIDE),
            *((kind, lambda n, k: round((n - 1) / (k - 1))) for kind in _WIDE),
            ("dilated convolution", lambda n, k: int(math.log(n, k))),
            ("dilated convolution", lambda n, k: math.floor(math.log(n, k) + 1e-9)),
            ("dilated convolution", lambda n, k: math.log(n, k)),
            ("dilated convolution", lambda n, k: round(math.log(n, k))),
        ),
    ),
    Mistake(
        "the logarithm is right on paper, and rounded on a computer: where n is a power of k it "
        "may be 3.0000000000000004, which is rounded up to 4. Can you count in integers?",
        _of(
            ("dilated convolution", lambda n, k: math.ceil(math.log(n, k))),
            ("dilated convolution", lambda n, k: math.ceil(math.log10(n) / math.log10(k))),
            ("dilated convolution", lambda n, k: math.ceil(math.log2(n) / math.log2(k))),
        ),
    ),
    Mistake(
        "a logarithm to the base 2: by which factor does each layer reach further than the one "
        "before?",
        _of(("dilated convolution", lambda n, k: math.ceil(math.log2(n)))),
    ),
    Mistake(
        "one layer too few, where n is one more than a power of k: L layers reach from 0 to how "
        "many tokens back, exactly?",
        _of(
            ("dilated convolution", lambda n, k: _logarithm(n - 1, k)),
            ("dilated convolution", lambda n, k: max(1, _logarithm(n - 1, k))),
        ),
    ),
    Mistake(
        "one more layer than needed, everywhere: they begin at l = 0. Of which layer is your l?",
        _of(("dilated convolution", lambda n, k: _logarithm(n, k) + 1)),
    ),
    Mistake(
        "one layer too many, where the reach is just enough: the first token is n - 1 tokens back. "
        "Which number is to be rounded up?",
        _of(
            *((kind, lambda n, k: (n - 1) // (k - 1) + 1) for kind in _WIDE),
            *((kind, lambda n, k: -(-n // (k - 1))) for kind in _WIDE),
        ),
    ),
    Mistake(
        "half of the window is taken to lie ahead. Look at the table again: which way does a "
        "token look here?",
        _of(
            *((kind, lambda n, k: -(-(n - 1) // (k // 2))) for kind in _WIDE),
            *((kind, lambda n, k: math.ceil(2 * (n - 1) / (k - 1))) for kind in _WIDE),
        ),
    ),
    Mistake(
        "one token a layer: that is a recurrent network's step. How far back does a layer reach "
        "that reads k tokens?",
        _of(*((kind, lambda n, k: n - 1) for kind in (*_WIDE, "dilated convolution"))),
    ),
    Mistake(
        "one layer, for layers that read k tokens: what lies further away has to be handed on.",
        _of(("convolution", lambda n, k: 1), ("dilated convolution", lambda n, k: 1)),
    ),
    Mistake(
        "where n is a power of k, one layer too many is counted: which distances do L dilated "
        "layers reach, from 0 to what?",
        _of(("dilated convolution", lambda n, k: math.floor(math.log(n, k) + 1e-9) + 1)),
    ),
    Mistake(
        "the dilation makes no difference to this count. Layer l skips: it reaches (k - 1) k^l "
        "tokens back. How far do they reach together?",
        _of(
            ("dilated convolution", lambda n, k: math.ceil((n - 1) / (k - 1))),
            ("dilated convolution", lambda n, k: math.ceil(n / k)),
        ),
    ),
    Mistake(
        "self-attention needs one look to see any token, however far.",
        _of(
            ("self-attention", lambda n, k: n - 1),
            ("self-attention", lambda n, k: 0),
            ("self-attention", _logarithm),
            ("self-attention", lambda n, k: math.ceil((n - 1) / (k - 1))),
        ),
    ),
)


# 5.6 ---------------------------------------------------------------------------------


def _rows_of(
    sign: int,
    positions: Callable[[int, int, int], list[int]] = lambda h, n, block: list(range(n)),
    *,
    halves: bool = True,
    frequencies: Callable[[int], Tensor] = lambda dim: _frequencies(dim, 10000.0),
    turned: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = _turned,
) -> Callable[..., Tensor]:
    """Other positions of head h's rows, other pairs, another way to turn."""

    def answer(memory: Tensor, shape: Any, strides: Any, block: int) -> Tensor:
        heads = []
        for h, x in enumerate(_heads(memory, shape, strides)):
            angle = _angles(
                positions(h, shape[1], block),
                sign * frequencies(shape[2]),
            )
            heads.append(_joined(*turned(*_pairs(x, halves), angle), halves))
        return torch.stack(heads)

    return answer


def _lying(
    sign: int, strides_of: Callable[[Any, Any], tuple[int, int, int]]
) -> Callable[..., Tensor]:
    """Memory taken to have other strides; NaN behind its end."""

    def answer(memory: Tensor, shape: Any, strides: Any, block: int) -> Tensor:
        other = strides_of(shape, strides)
        last = sum((size - 1) * stride for size, stride in zip(shape, other, strict=True))
        longer = torch.cat([memory, memory.new_full((last + 1,), torch.nan)])
        return _half_turned(_heads(longer, shape, other), sign)

    return answer


def _quarter_on(first: Tensor, second: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return _turned(first, second, math.pi / 2 - angle)


def _quarter_back(first: Tensor, second: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine exchanged in the formulas, their signs kept."""
    return (
        first * angle.sin() - second * angle.cos(),
        first * angle.cos() + second * angle.sin(),
    )


def _second_elsewhere(sign: int, far: Callable[[int, int], int]) -> Callable[..., Tensor]:
    """The second of a pair so many numbers behind the first, by half the width and the stride."""

    def answer(memory: Tensor, shape: Any, strides: Any, block: int) -> Tensor:
        half = shape[2] // 2
        longer = torch.cat([memory, memory.new_full((memory.numel(),), torch.nan)])
        first = longer.as_strided((*shape[:2], half), strides)
        second = longer[far(half, strides[2]) :].as_strided((*shape[:2], half), strides)
        angle = _angles(range(shape[1]), sign * _frequencies(shape[2], 10000.0))
        return torch.cat(_turned(first, second, angle), -1)

    return answer


def _frequency_on(sign: int) -> Callable[..., Tensor]:
    """The second half's frequencies go on where the first half's end."""

    def answer(memory: Tensor, shape: Any, strides: Any, block: int) -> Tensor:
        first, second = _heads(memory, shape, strides).chunk(2, -1)
        both = sign * _frequencies(2 * shape[2], 10000.0) ** 2
        one, other = (_angles(range(shape[1]), part) for part in both.chunk(2))
        upper, _ = _turned(first, second, one)
        _, lower = _turned(first, second, other)
        return torch.cat([upper, lower], -1)

    return answer


def _strided_mistakes(sign: int) -> tuple[Mistake, ...]:
    """Of a kernel that turns forward, or back."""
    wrong_way = (
        "it turns the wrong way: which of the two sines is negative, forwards?"
        if sign > 0
        else "this is the forward pass again. dL/dx is the *transposed* rotation of dL/dy: what "
        "becomes of the angle?"
    )
    return (
        Mistake(wrong_way, (_rows_of(-sign),)),
        Mistake(
            "positions begin anew in each tile: the first row of a later tile is not at position "
            "0. Which rows are your program's, counted from the beginning of the sequence?",
            (_rows_of(sign, lambda h, n, block: [i % block for i in range(n)]),),
        ),
        Mistake(
            "positions begin at 1: the first row of the sequence stands at position 0.",
            (_rows_of(sign, lambda h, n, block: list(range(1, n + 1))),),
        ),
        Mistake(
            "the exponents of the frequencies are halved, or doubled: `frequency(pairs, HALF)` "
            "wants the numbers of the pairs, and how many pairs there are.",
            (
                _rows_of(sign, frequencies=lambda dim: _frequencies(dim, 10000.0) ** 0.5),
                _rows_of(sign, frequencies=lambda dim: _frequencies(dim, 10000.0) ** 2),
            ),
        ),
        Mistake(
            "nothing is turned: the numbers come out as they went in.",
            (_rows_of(sign, lambda h, n, block: [0] * n),),
        ),
        Mistake(
            "sine and cosine have changed places: what should come out at position 0, where the "
            "angle is 0?",
            (_rows_of(sign, turned=_quarter_on), _rows_of(sign, turned=_quarter_back)),
        ),
        Mistake(
            "every head reads the first one: which of the strides leads from head to head?",
            (_lying(sign, lambda shape, strides: (0, *strides[1:])),),
        ),
        Mistake(
            "the second of a pair is read from a wrong place. HALF columns further is how many "
            "numbers further?",
            (
                _second_elsewhere(sign, lambda half, stride: half),
                _second_elsewhere(sign, lambda half, stride: stride),
            ),
        ),
        Mistake(
            "positions go on from head to head. Each head reads the same sequence: at which "
            "position does it begin?",
            (_rows_of(sign, lambda h, n, block: [h * n + i for i in range(n)]),),
        ),
        Mistake(
            "the input is overwritten: what the second formula reads has been turned already. Both "
            "want the numbers from before.",
            (
                _rows_of(sign, turned=_first_overwritten),
                _rows_of(sign, turned=_second_overwritten),
            ),
        ),
        Mistake(
            "both sines have the same sign, and a pair changes its length. A rotation keeps it, "
            "forwards and backwards.",
            (_rows_of(sign, turned=_reflected), _rows_of(-sign, turned=_reflected)),
        ),
        Mistake(
            "neighbouring columns are paired, 2j and 2j + 1. Here pair j is columns j and "
            "j + HALF.",
            (_rows_of(sign, halves=False),),
        ),
        Mistake(
            "the input is read as if its numbers lay without gaps, head after head, row after row. "
            "What does a stride say, and are all three used?",
            (
                _lying(sign, lambda shape, strides: (shape[1] * shape[2], shape[2], 1)),
                _lying(sign, lambda shape, strides: (strides[0], shape[2], 1)),
                _lying(sign, lambda shape, strides: (strides[0], shape[2], strides[2])),
                _lying(sign, lambda shape, strides: (shape[1] * shape[2], *strides[1:])),
            ),
        ),
        Mistake(
            "the columns are taken to be neighbours in memory. Usually they are: `stride_d` says "
            "when they are not.",
            (_lying(sign, lambda shape, strides: (strides[0], strides[1], 1)),),
        ),
        Mistake(
            "rows and columns have each other's stride.",
            (_lying(sign, lambda shape, strides: (strides[0], strides[2], strides[1])),),
        ),
        Mistake(
            "the two columns of a pair turn by different angles. They make one point in the plane: "
            "which number of a pair belongs to both?",
            (_frequency_on(sign),),
        ),
    )


_STRIDED_MISTAKES = _strided_mistakes(1)
_STRIDED_BACKWARD_MISTAKES = _strided_mistakes(-1)

_STRIDED_WORDS = Words(
    outside="a load reads past the end of its tensor. On a GPU that is somebody else's memory. "
    "Which rows of the last tile exist, and which pairs? Tell `tl.load`, with mask=; and where "
    "does the number in row i and column c of head h lie?",
    foreign="On a GPU all programs run at once: what would be left in that slot? A program owns "
    "BLOCK rows of one head. The output is contiguous, whatever the input is: where do they begin?",
    missing="Each program has BLOCK rows and two halves to store.",
)
