"""Checks of chapter 1's exercises.

Each check hands a student's function small inputs and holds what comes back against an
oracle in float64. Below every oracle stand the likely mistakes, as the formula that each
of them computes, and the message that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_course import _triton
from attn_course.data import sine_points
from attn_course.exercises.framework import (
    Attempt,
    Case,
    Mistake,
    Outcome,
    Skipped,
    exercise,
)
from attn_course.exercises.launches import watch

__all__ = [
    "NoisyPoints",
    "check_boxcar",
    "check_held_out_error",
    "check_limits",
    "check_noise",
    "check_streaming_kernel",
    "check_top_k",
    "check_width_slope",
    "noisy_points",
]


def _points(query_len: int, key_len: int, seed: int, **rest: Any) -> dict[str, Any]:
    """Queries and keys in [0, 5), values around 3."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "query": 5 * torch.rand(query_len, generator=generator),
        "key": 5 * torch.rand(key_len, generator=generator),
        "value": 3 + 2 * torch.randn(key_len, generator=generator),
        **rest,
    }


def _given(query: list[float], key: list[float], value: list[float], **rest: Any) -> dict[str, Any]:
    named = {"query": query, "key": key, "value": value}
    return {name: torch.tensor(numbers) for name, numbers in named.items()} | rest


def _gap(query: Tensor, key: Tensor) -> Tensor:
    """Signed differences of queries and keys on a line: ``[n, m]``."""
    return query[:, None] - key[None, :]


def _over(weights: Tensor, axis: int) -> Tensor:
    """Weights divided by their sums along an axis; zero where the sum is."""
    total = weights.sum(axis, keepdim=True)
    return weights / total.masked_fill(total == 0, 1)


# 1.1 ---------------------------------------------------------------------------------


def _inside(query: Tensor, key: Tensor, width: float) -> Tensor:
    return (_gap(query, key).abs() < width).double()


def _boxcar(query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
    return _over(_inside(query, key, width), 1) @ value


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


_BOXCAR_CASES = (
    Case(
        "all queries near a key, all keys near a query",
        _given([0.0, 1.0, 2.0], [0.25, 0.75, 1.5, 2.5], [4.0, 8.0, 1.0, 6.0], width=0.8),
    ),
    Case("more queries than keys", _points(9, 4, 3, width=1.9)),
    Case("more keys than queries", _points(4, 11, 4, width=0.4)),
    Case("one far query", _given([1.0, 50.0], [0.5, 1.2, 1.9], [2.0, 4.0, 9.0], width=0.6)),
    Case("no query near any key", _given([-9.0, 40.0], [0.5, 1.2], [2.0, 4.0], width=1.0)),
    Case("one query and one key", _given([1.0], [1.5], [7.0], width=2.0)),
)

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


@exercise("1.1")
def check_boxcar(attempt: Attempt, boxcar_regression: Callable[..., Tensor]) -> None:
    """Check 1.1, a boxcar by hand.

    Args:
        attempt: Given by the decorator.
        boxcar_regression: (query ``[n]``, key ``[m]``, value ``[m]``, width) -> ``[n]``.
    """
    attempt.verify(boxcar_regression, _BOXCAR_CASES, _boxcar, _BOXCAR_MISTAKES)


# 1.2 ---------------------------------------------------------------------------------


def _gaussian(query: Tensor, key: Tensor, width: float) -> Tensor:
    return (-_gap(query, key).square() / (2 * width**2)).softmax(1)


def _nearest(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return value[_gap(query, key).abs().argmin(1)]


def _everything(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return value.mean().expand(len(query))


_WEIGHT_CASES = tuple(
    Case(name, {k: v for k, v in inputs.items() if k != "value"})
    for name, inputs in (
        ("a narrow kernel", _points(3, 5, 11, width=0.5)),
        ("a wide kernel", _points(6, 4, 12, width=2.0)),
        ("one key", _points(3, 1, 13, width=0.7)),
    )
)

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

_LIMIT_CASES = (
    Case("two queries", _given([0.9, 3.6], [0.0, 1.0, 4.0], [10.0, 20.0, 60.0])),
    Case("more queries than keys", _points(7, 4, 14)),
    Case("more keys than queries", _points(3, 8, 15)),
    Case("one key", _given([2.0, 9.0], [1.0], [5.0])),
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


@exercise("1.2")
def check_limits(
    attempt: Attempt,
    gaussian_weights: Callable[..., Tensor],
    narrow_limit: Callable[..., Tensor],
    wide_limit: Callable[..., Tensor],
) -> None:
    """Check 1.2, the two ends of the width.

    Args:
        attempt: Given by the decorator.
        gaussian_weights: (query ``[n]``, key ``[m]``, width) -> ``[n, m]``.
        narrow_limit: (query ``[n]``, key ``[m]``, value ``[m]``) -> ``[n]``.
        wide_limit: Likewise.
    """
    attempt.verify(gaussian_weights, _WEIGHT_CASES, _gaussian, _WEIGHT_MISTAKES)
    attempt.verify(narrow_limit, _LIMIT_CASES, _nearest, _NARROW_MISTAKES)
    attempt.verify(wide_limit, _LIMIT_CASES, _everything, _WIDE_MISTAKES)


# 1.3 ---------------------------------------------------------------------------------


def _score(key: Tensor, width: float) -> Tensor:
    return -_gap(key, key).square() / (2 * width**2)


def _same_person(person: Tensor) -> Tensor:
    return person[:, None] == person[None, :]


def _squared_error(weights: Tensor, value: Tensor) -> Tensor:
    return (weights @ value - value).square().mean()


def _held_out(key: Tensor, value: Tensor, person: Tensor, width: float) -> Tensor:
    hidden = _same_person(person)
    return _squared_error(_score(key, width).masked_fill(hidden, -torch.inf).softmax(1), value)


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


def _persons(key_len: int, people: int, seed: int, width: float) -> dict[str, Any]:
    inputs = _points(1, key_len, seed)
    generator = torch.Generator().manual_seed(seed)
    numbers = 3 + 4 * torch.arange(people)  # neither consecutive nor from zero
    order = torch.randperm(key_len, generator=generator)
    person = numbers[torch.arange(key_len) % people][order]
    return {"key": inputs["key"], "value": inputs["value"], "person": person, "width": width}


_HELD_OUT_CASES = (
    Case("one measurement a person", _persons(6, 6, 21, width=0.8)),
    Case("three people", _persons(9, 3, 22, width=0.7)),
    Case("two people", _persons(5, 2, 23, width=1.5)),
    Case("many people", _persons(24, 8, 24, width=0.6)),
)

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


@exercise("1.3")
def check_held_out_error(attempt: Attempt, held_out_error: Callable[..., Tensor]) -> None:
    """Check 1.3, leave one person out.

    Args:
        attempt: Given by the decorator.
        held_out_error: (key ``[m]``, value ``[m]``, person ``[m]``, width) -> ``[]``.
    """
    attempt.verify(held_out_error, _HELD_OUT_CASES, _held_out, _HELD_OUT_MISTAKES)


# 1.4 ---------------------------------------------------------------------------------


def _slope(query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
    """By automatic differentiation: it owes nothing to a formula on paper."""
    sigma = torch.tensor(width, dtype=torch.float64).expand(len(query)).clone().requires_grad_()
    with torch.enable_grad():
        score = -_gap(query, key).square() / (2 * sigma[:, None] ** 2)
        output = score.softmax(1) @ value
        (slope,) = torch.autograd.grad(output.sum(), sigma)
    return slope


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


def _double(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if isinstance(v, Tensor) else v for k, v in inputs.items()}


_SLOPE_CASES = (
    Case("three keys", _double(_given([1.0, 2.0], [0.0, 1.5, 3.0], [1.0, 5.0, 2.0], width=0.8))),
    Case("a narrow kernel", _double(_points(5, 9, 31, width=0.6))),
    Case("a wide kernel", _double(_points(4, 6, 32, width=2.5))),
    Case("one key, where nothing can move", _double(_points(3, 1, 33, width=1.7))),
)

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


@exercise("1.4")
def check_width_slope(attempt: Attempt, width_slope: Callable[..., Tensor]) -> None:
    """Check 1.4, how the answer moves with the width.

    Args:
        attempt: Given by the decorator.
        width_slope: (query ``[n]``, key ``[m]``, value ``[m]``, width) -> ``[n]``.
    """
    attempt.verify(width_slope, _SLOPE_CASES, _slope, _SLOPE_MISTAKES, atol=1e-3)


# 1.5 ---------------------------------------------------------------------------------


class NoisyPoints(NamedTuple):
    """Points on a curve, with coordinates that have nothing to do with it.

    Attributes:
        key: The first coordinate places the point on the curve, the others are noise,
            ``[m, 1 + noise]``.
        value: What was seen there, ``[m, 1]``.
    """

    key: Tensor
    value: Tensor


def noisy_points(noise: int, *, m: int = 80, seed: int = 0) -> NoisyPoints:
    """Points of ``sine_points`` with noise coordinates: random numbers of the same range.

    Args:
        noise: How many noise coordinates.
        m: How many points.
        seed: The same seed gives the same points.

    Returns:
        Keys and values.

    Example:
        >>> key, value = noisy_points(4)
        >>> key.shape, value.shape
        (torch.Size([80, 5]), torch.Size([80, 1]))
    """
    points = sine_points(m, noise=0.3, seed=seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    others = 5 * torch.rand(m, noise, generator=generator)
    return NoisyPoints(torch.cat([points.x_train[:, None], others], 1), points.y_train[:, None])


def _difference(query: Tensor, key: Tensor) -> Tensor:
    return query[:, None, :] - key[None, :, :]


def _scaled(query: Tensor, key: Tensor, width: Tensor) -> Tensor:
    return (_difference(query, key) / width).square().sum(-1)


def _vectors(query_len: int, key_len: int, dim: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "query": torch.randn(query_len, dim, generator=generator),
        "key": torch.randn(key_len, dim, generator=generator),
        "width": 0.5 + 2 * torch.rand(dim, generator=generator),
    }


# The square comes first: there, a width along the wrong axis raises nothing.
_SCALED_CASES = (
    Case("as many queries and keys as coordinates", _vectors(4, 4, 4, 41)),
    Case("more keys than coordinates", _vectors(3, 7, 2, 42)),
    Case("more coordinates than keys", _vectors(2, 3, 6, 43)),
    Case("one coordinate", _vectors(3, 5, 1, 44)),
)

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


def _curve_error(key: Tensor, value: Tensor, width: Tensor) -> float:
    """Root of the mean squared leave-one-out error."""
    key, value = key.double(), value.double()
    score = -_scaled(key, key, width) / 2
    weights = score.fill_diagonal_(-torch.inf).softmax(1)
    return (weights @ value - value).square().mean().sqrt().item()


@exercise("1.5")
def check_noise(
    attempt: Attempt,
    scaled_distance_squared: Callable[..., Tensor],
    repaired_widths: Callable[..., Tensor],
) -> None:
    """Check 1.5, coordinates that do not matter.

    Args:
        attempt: Given by the decorator.
        scaled_distance_squared: (query ``[n, d]``, key ``[m, d]``, width ``[d]``) ->
            ``[n, m]``.
        repaired_widths: (noise) -> ``[1 + noise]``, widths for ``noisy_points(noise)``.
    """
    attempt.verify(scaled_distance_squared, _SCALED_CASES, _scaled, _SCALED_MISTAKES)
    for noise, seed in ((4, 0), (8, 1), (0, 2)):
        inputs = {"noise": noise}
        result = attempt.call(repaired_widths, inputs)
        width = attempt.tensor(repaired_widths, result, [1 + noise], f"noise = {noise}")
        _judge_widths(attempt, repaired_widths, width, noise, seed)


def _judge_widths(attempt: Attempt, function: object, width: Tensor, noise: int, seed: int) -> None:
    """Fail unless the noise coordinates no longer matter, and the first one does."""

    def fail(message: str) -> None:
        shown = ", ".join(f"{w:.4g}" for w in width.tolist())
        attempt.fail(f"{message}\nSeen with noise = {noise}: widths [{shown}].{numbers}", function)

    numbers = ""
    if not bool((width > 0).all()):  # NaN too
        fail("a width must be a positive number.")
    key, value = noisy_points(noise, seed=seed)
    clean = key[:, :1]
    goal = min(_curve_error(clean, value, torch.tensor([s / 20])) for s in range(2, 21))
    error = _curve_error(key, value, width)
    if error <= 1.4 * goal:
        return
    numbers = (
        f" Leave-one-out error {error:.2f}; with the first coordinate alone it can be {goal:.2f}."
    )
    first, others = width[0], width[1:]
    if _curve_error(clean, value, width[:1]) > 1.4 * goal:
        fail(
            "the width of the first coordinate, the one that matters, does not suit the curve. "
            "Which width did it have where nothing was broken yet?"
        )
    if bool((others < first).any()):
        fail(
            "the noise coordinates have the smaller widths, and so they count more, not less. "
            "What does a small width do to a difference?"
        )
    if bool((others == first).any()):
        fail(
            "all coordinates have the same width, and the noise counts as much as the curve. "
            "Which differences should stop mattering?"
        )
    fail("the noise coordinates still matter: what would make their differences vanish?")


# 1.6 ---------------------------------------------------------------------------------


def _rank(distance: Tensor, axis: int = 1) -> Tensor:
    return distance.argsort(axis).argsort(axis)


def _attend(distance: Tensor, allowed: Tensor) -> Tensor:
    return (-distance.square() / 2).masked_fill(~allowed, -torch.inf).softmax(1)


def _top_k(distance: Tensor, k: int) -> Tensor:
    return _attend(distance, _rank(distance) < k)


def _naive_top_k(distance: Tensor, k: int) -> Tensor:
    values = torch.exp(-distance.square() / 2) * (_rank(distance) < k)
    return values / values.sum(1, keepdim=True)


def _distances(query_len: int, key_len: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + 3 * torch.rand(query_len, key_len, generator=generator)


_TOP_K_CASES = (
    Case("three of six keys", {"distance": _distances(4, 6, 51), "k": 3}),
    Case("the nearest key alone", {"distance": _distances(5, 4, 52), "k": 1}),
    Case("two of nine keys", {"distance": _distances(3, 9, 53), "k": 2}),
    Case("all keys", {"distance": _distances(3, 5, 54), "k": 5}),
    Case("queries far from every key", {"distance": _distances(2, 5, 55, shift=60.0), "k": 2}),
    Case("k larger than the number of keys", {"distance": _distances(2, 3, 56), "k": 7}),
)

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
            lambda distance, k: _top_k(distance, k + 1),
        ),
    ),
)


@exercise("1.6")
def check_top_k(attempt: Attempt, top_k_weights: Callable[..., Tensor]) -> None:
    """Check 1.6, only the k nearest.

    Args:
        attempt: Given by the decorator.
        top_k_weights: (distance ``[n, m]``, k) -> ``[n, m]``.
    """
    attempt.verify(top_k_weights, _TOP_K_CASES, _top_k, _TOP_K_MISTAKES)


# 1.7 ---------------------------------------------------------------------------------


def _stream(query: Tensor, key: Tensor, value: Tensor, width: float, block: int) -> Tensor:
    return _gaussian(query, key, width) @ value


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


_STREAM_CASES = (
    Case("a tail of one key", _points(7, 13, 61, width=1.2, block=4)),
    Case("keys that fill their tiles", _points(5, 16, 62, width=0.9, block=8)),
    Case("fewer keys than a tile", _points(4, 7, 63, width=1.5, block=16)),
    Case("many tiles", _points(9, 40, 64, width=0.8, block=16)),
)

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


def _guarded(tensor: Tensor, device: str) -> Tensor:
    """The tensor, with NaN behind its end: who reads on, shows it."""
    behind = torch.full((64,), torch.nan)
    return torch.cat([tensor, behind]).to(device)[: len(tensor)]


@exercise("1.7")
def check_streaming_kernel(attempt: Attempt, kernel: Any) -> None:
    """Check 1.7, a kernel that streams.

    Args:
        attempt: Given by the decorator.
        kernel: A ``@triton.jit`` function (query_ptr, key_ptr, value_ptr, output_ptr,
            width, KEY_LEN, BLOCK); program i writes the i-th output.
    """
    if not _triton.AVAILABLE:
        raise Skipped(f"needs triton: {_triton.REASON}.")
    if not hasattr(kernel, "fn"):
        attempt.fail("it is not a kernel: is `@triton.jit` still above it?", kernel)
    device = "cpu" if _triton.INTERPRETED else "cuda"
    outcomes = []
    for case in _STREAM_CASES:
        inputs = case.inputs
        tensors = {k: _guarded(inputs[k], device) for k in ("query", "key", "value")}
        n, m = len(inputs["query"]), len(inputs["key"])
        buffer = torch.full((n + 64,), torch.nan, device=device)
        seen = f"Seen with {n} programs, {m} keys, BLOCK = {inputs['block']}."
        with attempt.watching(kernel, inputs), watch() as accesses:
            kernel[(n,)](
                *tensors.values(),
                buffer[:n],
                inputs["width"],
                m,
                inputs["block"],
            )
        if accesses.outside(*tensors.values(), buffer):
            attempt.fail(
                "a load reads past the end of the keys or the values. On a GPU that is "
                "somebody else's memory. Which lanes of the last tile hold a key, and where "
                f"do you tell `tl.load`?\n{seen}",
                kernel,
            )
        writers = accesses.writers(buffer)
        foreign = [i for i in range(n + 64) if any(p != (i, 0, 0) for p in writers[i])]
        if foreign or not bool(buffer[n:].isnan().all()):
            what = (
                f"Program {writers[foreign[0]][-1][0]} wrote output {foreign[0]}. "
                if foreign
                else ""
            )
            attempt.fail(
                f"a program writes an output that is not its own. {what}On a GPU all programs "
                "run at once: what would be left in that slot? Each program owns the output "
                f"of its own query.\n{seen}",
                kernel,
            )
        if accesses.recorded and not all(writers[:n]):
            attempt.fail(
                f"output {writers[:n].index([])} is never written: where does the program "
                f"store its answer?\n{seen}",
                kernel,
            )
        got = buffer[:n].cpu().double()
        if bool(got.isnan().any()):
            attempt.fail(
                "the answer is NaN. The check puts NaN behind the end of keys and values, "
                "and into the output before the launch: a lane without a key takes part, or "
                f"the old output does.\n{seen}",
                kernel,
            )
        outcomes.append(Outcome.of(case, _stream, got))
    attempt.judge(kernel, outcomes, _STREAM_MISTAKES)
