"""Chapter 1's exercises: the likely mistakes, and what is said of each.

A mistake is the formula that it computes, and the message that names it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attn_course.exercises.framework import Mistake
from attn_course.exercises.kernel_regression_cases import (
    _attend,
    _boxcar,
    _difference,
    _everything,
    _gap,
    _gaussian,
    _held_out,
    _inside,
    _nearest,
    _over,
    _rank,
    _same_person,
    _scaled,
    _score,
    _slope,
    _squared_error,
    _top_k,
)
from attn_course.exercises.kernels import Words

# 1.1 ---------------------------------------------------------------------------------


def _boxcar_nan(query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
    weights = _inside(query, key, width)
    return (weights @ value) / weights.sum(1)


def _boxcar_uniform(query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
    empty = _inside(query, key, width).sum(1) == 0
    return torch.where(empty, value.mean(), _boxcar(query, key, value, width))


def _boxcar_of(weights: Callable[[Tensor, float], Tensor]) -> Callable[..., Tensor]:
    """The boxcar estimate with another idea of which keys are inside."""

    def answer(query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
        return _over(weights(_gap(query, key), width).double(), 1) @ value

    return answer


_BOXCAR_MISTAKES = (
    Mistake(
        "a query without a key inside its window comes out as NaN: there, your code divides "
        "zero by zero. What does the docstring promise for such a query, and which number "
        "could you divide by instead?",
        (_boxcar_nan,),
    ),
    Mistake(
        "a query without a key inside its window gets the mean of all values. That is the "
        "answer of someone who knows nothing and does not say so: which of these keys is near?",
        (_boxcar_uniform,),
    ),
    Mistake(
        "the weights sum to one over the queries, not over the keys. Each query shares out "
        "its own attention: along which axis of [n, m] do its weights lie?",
        (
            lambda query, key, value, width: _over(_inside(query, key, width), 0) @ value,
            lambda query, key, value, width: (
                (_inside(query, key, width) / _inside(query, key, width).sum(0)) @ value
            ),
        ),
    ),
    Mistake(
        "the values inside the window are added up, not averaged. What do the weights of a "
        "query have to sum to?",
        (lambda query, key, value, width: _inside(query, key, width) @ value,),
    ),
    Mistake(
        "the sum over the window is divided by the number of all keys. How many of them took part?",
        (lambda query, key, value, width: _inside(query, key, width) @ value / len(key),),
    ),
    Mistake(
        "every key on one side of the query counts, however far it is. What is the sign of "
        "query - key there?",
        (_boxcar_of(lambda gap, width: gap < width), _boxcar_of(lambda gap, width: -gap < width)),
    ),
    Mistake(
        "the window is half as wide as it should be: it reaches one whole width to either "
        "side of the query.",
        (_boxcar_of(lambda gap, width: gap.abs() < width / 2),),
    ),
    Mistake(
        "a squared distance is compared with the width. In which units is each of the two?",
        (_boxcar_of(lambda gap, width: gap.square() < width),),
    ),
    Mistake(
        "the keys outside the window count, and those inside do not: look at the comparison.",
        (_boxcar_of(lambda gap, width: gap.abs() >= width),),
    ),
)


# 1.2 ---------------------------------------------------------------------------------


_WEIGHT_MISTAKES = (
    Mistake(
        "the width stands where its square belongs: sigma for sigma squared. The exponent "
        "must be a number without units: with keys in metres, what is (q - k)^2, and what "
        "is sigma?",
        (
            lambda query, key, width: (-_gap(query, key).square() / (2 * width)).softmax(1),
            lambda query, key, width: (-_gap(query, key).square() / width).softmax(1),
        ),
    ),
    Mistake(
        "the kernel is narrower than it should be: compare your exponent with -d^2 / 2, "
        "factor by factor.",
        (lambda query, key, width: (-_gap(query, key).square() / width**2).softmax(1),),
    ),
    Mistake(
        "the weights sum to one over the queries, not over the keys: check the axis.",
        (lambda query, key, width: (-_gap(query, key).square() / (2 * width**2)).softmax(0),),
    ),
    Mistake(
        "these are kernel values, not yet weights. What does a row have to sum to?",
        (lambda query, key, width: torch.exp(-_gap(query, key).square() / (2 * width**2)),),
    ),
    Mistake(
        "the farther a key is, the more it counts: look at the sign of the exponent.",
        (lambda query, key, width: (_gap(query, key).square() / (2 * width**2)).softmax(1),),
    ),
    Mistake(
        "the distance is not squared in the exponent. Which shape has the curve at zero: a "
        "bell, or a tent?",
        (
            lambda query, key, width: (-_gap(query, key).abs() / (2 * width**2)).softmax(1),
            lambda query, key, width: (-_gap(query, key).abs() / width / 2).softmax(1),
            lambda query, key, width: (-_gap(query, key).abs() / width).softmax(1),
        ),
    ),
)

_NARROW_MISTAKES = (
    Mistake(
        "this is the mean of all values: the limits are exchanged. When sigma shrinks, which "
        "keys can still keep up with the largest weight?",
        (_everything,),
    ),
    Mistake(
        "this is a key, not a value: the right place, but which tensor holds what was seen there?",
        (lambda query, key, value: key[_gap(query, key).abs().argmin(1)],),
    ),
    Mistake(
        "this is zero. Every kernel value does shrink to zero, but the weights are ratios of "
        "them: what does a row sum to, for every sigma above zero?",
        (lambda query, key, value: torch.zeros(len(query)),),
    ),
    Mistake(
        "this is the value of the farthest key: look at the sign of what you take the "
        "largest or smallest of.",
        (lambda query, key, value: value[_gap(query, key).abs().argmax(1)],),
    ),
    Mistake(
        "without its sign, query - key would be a distance. Is it one here?",
        (
            lambda query, key, value: value[_gap(query, key).argmin(1)],
            lambda query, key, value: value[_gap(query, key).argmax(1)],
        ),
    ),
)

_WIDE_MISTAKES = (
    Mistake(
        "this is the value of the nearest key: the limits are exchanged. When sigma grows, "
        "what happens to every d = (q - k) / sigma?",
        (_nearest,),
    ),
    Mistake(
        "this is the sum of the values, not their average. Each kernel value tends to 1; what "
        "does each weight tend to?",
        (lambda query, key, value: value.sum().expand(len(query)),),
    ),
    Mistake(
        "the sum is divided by the number of queries: how many values were summed?",
        (lambda query, key, value: (value.sum() / len(query)).expand(len(query)),),
    ),
    Mistake(
        "this is zero. Do the weights really vanish, or do they become equal?",
        (lambda query, key, value: torch.zeros(len(query)),),
    ),
)


# 1.3 ---------------------------------------------------------------------------------


def _only_self_hidden(key: Tensor, value: Tensor, person: Tensor, width: float) -> Tensor:
    return _held_out(key, value, torch.arange(len(key)), width)


def _not_renormalised(key: Tensor, value: Tensor, person: Tensor, width: float) -> Tensor:
    weights = _score(key, width).softmax(1).masked_fill(_same_person(person), 0)
    return _squared_error(weights, value)


def _score_zeroed(key: Tensor, value: Tensor, person: Tensor, width: float) -> Tensor:
    return _squared_error(_score(key, width).masked_fill(_same_person(person), 0).softmax(1), value)


def _others_hidden(key: Tensor, value: Tensor, person: Tensor, width: float) -> Tensor:
    hidden = ~_same_person(person)
    return _squared_error(_score(key, width).masked_fill(hidden, -torch.inf).softmax(1), value)


_HELD_OUT_MISTAKES = (
    Mistake(
        "this is the training error: nobody's measurements are hidden, and a measurement "
        "that may look at itself predicts itself. Who must not help?",
        (lambda key, value, person, width: _squared_error(_score(key, width).softmax(1), value),),
    ),
    Mistake(
        "only the measurement itself is hidden. Its person's other measurements still help: "
        "would you have those, for somebody new?",
        (_only_self_hidden,),
    ),
    Mistake(
        "the hidden weights are set to zero, and the rest no longer sum to one. Who shares "
        "out the attention that the hidden ones gave up?",
        (_not_renormalised,),
    ),
    Mistake(
        "the hidden *scores* are set to zero, before the exponential. What is e^0, and is any "
        "weight larger?",
        (_score_zeroed,),
    ),
    Mistake(
        "each person is predicted from their own measurements alone: the mask is the wrong "
        "way round. What does True mean in yours?",
        (_others_hidden,),
    ),
    Mistake(
        "the squared errors are added up, not averaged.",
        (lambda key, value, person, width: _held_out(key, value, person, width) * len(key),),
    ),
    Mistake(
        "this is the root of the mean squared error; the docstring asks for the mean itself.",
        (lambda key, value, person, width: _held_out(key, value, person, width).sqrt(),),
    ),
)


# 1.4 ---------------------------------------------------------------------------------


def _parts(query: Tensor, key: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Weights and squared distances."""
    return _gaussian(query, key, width), _gap(query, key).square()


def _slope_without_normaliser(query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
    weights, squared = _parts(query, key, width)
    return (weights * squared) @ value / width**3


def _slope_of_numerator(query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
    squared = _gap(query, key).square()
    return (torch.exp(-squared / (2 * width**2)) * squared) @ value / width**3


def _slope_times(factor: Callable[[float], float]) -> Callable[..., Tensor]:
    def answer(query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
        return factor(width) * _slope(query, key, value, width)

    return answer


def _power(exponent: int) -> Callable[[float], float]:
    return lambda width: float(width**exponent)


_SLOPE_MISTAKES = (
    Mistake(
        "the normaliser is treated as a constant. It holds sigma too: which term does the "
        "quotient rule add? (A test without code: if all values are equal, how far can the "
        "average move?)",
        (_slope_without_normaliser, _slope_of_numerator),
    ),
    Mistake(
        "right, but for the sign. What is the derivative of -1 / (2 sigma^2) by sigma?",
        (_slope_times(lambda width: -1),),
    ),
    Mistake(
        "right, but for one power of sigma: sigma^-2 where sigma^-3 belongs. Check the units: "
        "the answer is in units of value, per unit of width.",
        (_slope_times(lambda width: width),),
    ),
    Mistake(
        "right, but for a power of sigma. Check the units: the answer is in units of value, "
        "per unit of width. Is your squared distance divided by sigma^2 already?",
        tuple(_slope_times(_power(p)) for p in (-2, -1, 2, 3)),
    ),
    Mistake(
        "right, but for a factor of two: what becomes of the 2 in the exponent?",
        (_slope_times(lambda width: 2), _slope_times(lambda width: 0.5)),
    ),
    Mistake(
        "this is the prediction itself, not how it moves with sigma.",
        (lambda query, key, value, width: _gaussian(query, key, width) @ value,),
    ),
)


# 1.5 ---------------------------------------------------------------------------------


_SCALED_MISTAKES = (
    Mistake(
        "wrong axis: the widths run along the queries or the keys, not along the coordinates. "
        "Which axis of [n, m, d] has a width of its own for each entry?",
        (
            lambda query, key, width: (_difference(query, key) / width[:, None]).square().sum(-1),
            lambda query, key, width: (
                (_difference(query, key) / width[:, None, None]).square().sum(-1)
            ),
            lambda query, key, width: _difference(query, key).square().sum(-1) / width**2,
            lambda query, key, width: (
                _difference(query, key).square().sum(-1) / width[:, None] ** 2
            ),
        ),
    ),
    Mistake(
        "wrong axis: the sum runs over the queries or the keys. What has to be gone from "
        "[n, m, d] when you are done?",
        (
            lambda query, key, width: (_difference(query, key) / width).square().sum(0),
            lambda query, key, width: (_difference(query, key) / width).square().sum(1),
        ),
    ),
    Mistake(
        "the differences are multiplied by the widths, not divided. A coordinate with a large "
        "width should matter less: does it?",
        (lambda query, key, width: _scaled(query, key, 1 / width),),
    ),
    Mistake(
        "something is squared twice: the difference or the width enters with its fourth "
        "power. Square each scaled difference once.",
        (
            lambda query, key, width: (_difference(query, key) / width).pow(4).sum(-1),
            lambda query, key, width: _scaled(query, key, width).square(),
            lambda query, key, width: _scaled(query, key, width.square()),
        ),
    ),
    Mistake(
        "the squared difference is divided by the width, not by its square: divide first, or "
        "square both.",
        (lambda query, key, width: _scaled(query, key, width.sqrt()),),
    ),
    Mistake(
        "this is the distance; the squared distance was asked for.",
        (lambda query, key, width: _scaled(query, key, width).sqrt(),),
    ),
    Mistake(
        "the squares are averaged over the coordinates; a squared length is their sum.",
        (lambda query, key, width: _scaled(query, key, width) / len(width),),
    ),
    Mistake(
        "summed first, squared afterwards: differences of opposite sign cancel.",
        (lambda query, key, width: (_difference(query, key) / width).sum(-1).square(),),
    ),
)


# 1.6 ---------------------------------------------------------------------------------


def _naive_top_k(distance: Tensor, k: int) -> Tensor:
    values = torch.exp(-distance.square() / 2) * (_rank(distance) < k)
    return values / values.sum(1, keepdim=True)


_TOP_K_MISTAKES = (
    Mistake(
        "these are the k farthest keys. `topk` looks for the largest numbers unless told "
        "otherwise: what are they here?",
        (lambda distance, k: _attend(distance, _rank(-distance) < k),),
    ),
    Mistake(
        "the weights of the k nearest keys no longer sum to one. In the reference, what "
        "comes first: who is allowed, or the division by the total?",
        (
            lambda distance, k: (
                (-distance.square() / 2).softmax(1).masked_fill(_rank(distance) >= k, 0)
            ),
        ),
    ),
    Mistake(
        "the scores of the other keys are set to zero, and e^0 = 1 is the largest weight there "
        "is. Which score has an exponential of zero?",
        (
            lambda distance, k: (
                (-distance.square() / 2).masked_fill(_rank(distance) >= k, 0).softmax(1)
            ),
        ),
    ),
    Mistake(
        "for queries far from every key the answer is NaN, or zero: all kernel values are "
        "zero in floating point, and so is their sum. How does the reference keep the "
        "nearest key alive?",
        (
            _naive_top_k,
            lambda distance, k: _naive_top_k(distance, k).nan_to_num(nan=0.0),
        ),
    ),
    Mistake(
        "each key picks its k nearest queries: check the axis of your choice.",
        (
            lambda distance, k: _attend(distance, _rank(distance, 0) < k),
            lambda distance, k: _attend(distance, _rank(distance, 0) < k).nan_to_num(nan=0.0),
        ),
    ),
    Mistake(
        "the k nearest keys share the attention equally. Among themselves, near ones should "
        "still count more.",
        (lambda distance, k: _over((_rank(distance) < k).double(), 1),),
    ),
    Mistake(
        "every key still counts: where does k come in?",
        (lambda distance, k: (-distance.square() / 2).softmax(1),),
    ),
    Mistake(
        "one key too few, or one too many: is the k-th nearest itself among the k nearest?",
        (
            lambda distance, k: _top_k(distance, k - 1).nan_to_num(nan=0.0),
            lambda distance, k: _top_k(distance, k - 1),
            lambda distance, k: _top_k(distance, min(k, distance.shape[1]) - 1),
            lambda distance, k: _top_k(distance, k + 1),
        ),
    ),
)


# 1.7 ---------------------------------------------------------------------------------


def _sums(
    query: Tensor, key: Tensor, value: Tensor, width: float, block: int
) -> tuple[Tensor, Tensor]:
    """Numerators and denominators of each tile: ``[n, tiles]``."""
    s = torch.exp(-_gap(query, key).square() / (2 * width**2))
    starts = range(0, len(key), block)
    top = [s[:, a : a + block] @ value[a : a + block] for a in starts]
    return torch.stack(top, 1), torch.stack([s[:, a : a + block].sum(1) for a in starts], 1)


def _stream_of(combine: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def answer(query: Tensor, key: Tensor, value: Tensor, width: float, block: int) -> Tensor:
        return combine(*_sums(query, key, value, width, block))

    return answer


def _tail(weight: Callable[[Tensor, float], Tensor]) -> Callable[..., Tensor]:
    """With the lanes past the last key taking part."""

    def answer(query: Tensor, key: Tensor, value: Tensor, width: float, block: int) -> Tensor:
        top, bottom = _sums(query, key, value, width, block)
        return top.sum(1) / (bottom.sum(1) + (-len(key) % block) * weight(query, width))

    return answer


_STREAM_MISTAKES = (
    Mistake(
        "the last tile reaches past the last key, and its empty lanes weigh something: they "
        "make the denominator too large. A masked load fills a lane with a number, and "
        "e^0 = 1: what weight should a lane without a key get?",
        (
            _tail(lambda query, width: torch.exp(-query.square() / (2 * width**2))),
            _tail(lambda query, width: torch.ones_like(query)),
        ),
    ),
    Mistake(
        "each tile is averaged by itself, and the averages are averaged. Does a tile of far "
        "keys deserve the same say as a tile of near ones? What should be carried from tile "
        "to tile?",
        (_stream_of(lambda top, bottom: (top / bottom).mean(1)),),
    ),
    Mistake(
        "only the last tile counts: what happens to the sums of the tile before, when the "
        "loop comes round?",
        (_stream_of(lambda top, bottom: top[:, -1] / bottom[:, -1]),),
    ),
    Mistake(
        "only the first tile counts: which keys does the second round of the loop load?",
        (_stream_of(lambda top, bottom: top[:, 0] / bottom[:, 0]),),
    ),
    Mistake(
        "the tiles' averages are added up. What should be carried from tile to tile?",
        (_stream_of(lambda top, bottom: (top / bottom).sum(1)),),
    ),
    Mistake(
        "this is the numerator: by what is it to be divided, and when?",
        (_stream_of(lambda top, bottom: top.sum(1)),),
    ),
    Mistake(
        "the numerator holds the last tile alone, or the denominator does: do both of them "
        "grow in the loop?",
        (
            _stream_of(lambda top, bottom: top[:, -1] / bottom.sum(1)),
            _stream_of(lambda top, bottom: top.sum(1) / bottom[:, -1]),
        ),
    ),
    Mistake(
        "the exponent is not -d^2 / 2 with d = (query - key) / width: compare factor by factor.",
        (
            lambda query, key, value, width, block: _gaussian(query, key, width / 2**0.5) @ value,
            lambda query, key, value, width, block: _gaussian(query, key, width**0.5) @ value,
            lambda query, key, value, width, block: _gaussian(query, key, 1.0) @ value,
        ),
    ),
)

_STREAM_WORDS = Words(
    outside="a load reads past the end of the keys or the values. On a GPU that is somebody "
    "else's memory. Which lanes of the last tile hold a key, and where do you tell `tl.load`?",
    foreign="On a GPU all programs run at once: what would be left in that slot? Each program "
    "owns the output of its own query.",
    nan="The check puts NaN behind the end of keys and values, and into the output before the "
    "launch: a lane without a key takes part, or the old output does.",
)
