"""Checks of chapter 1's exercises.

Each check hands a student's function small inputs and holds what comes back against an
oracle in float64 and against what the likely mistakes would answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_course.data import sine_points
from attn_course.exercises.framework import Attempt, Outcome, exercise
from attn_course.exercises.kernel_regression_cases import (
    _BOXCAR_CASES,
    _HELD_OUT_CASES,
    _LIMIT_CASES,
    _SCALED_CASES,
    _SLOPE_CASES,
    _STREAM_CASES,
    _TOP_K_CASES,
    _WEIGHT_CASES,
    _boxcar,
    _everything,
    _gaussian,
    _held_out,
    _nearest,
    _scaled,
    _slope,
    _stream,
    _top_k,
)
from attn_course.exercises.kernel_regression_mistakes import (
    _BOXCAR_MISTAKES,
    _HELD_OUT_MISTAKES,
    _NARROW_MISTAKES,
    _SCALED_MISTAKES,
    _SLOPE_MISTAKES,
    _STREAM_MISTAKES,
    _STREAM_WORDS,
    _TOP_K_MISTAKES,
    _WEIGHT_MISTAKES,
    _WIDE_MISTAKES,
)
from attn_course.exercises.kernels import blank, device_for, guard, look
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


# 1.1 ---------------------------------------------------------------------------------


@exercise("1.1")
def check_boxcar(attempt: Attempt, boxcar_regression: Callable[..., Tensor]) -> None:
    """Check 1.1, a boxcar by hand.

    Args:
        attempt: Given by the decorator.
        boxcar_regression: (query ``[n]``, key ``[m]``, value ``[m]``, width) -> ``[n]``.
    """
    attempt.verify(boxcar_regression, _BOXCAR_CASES, _boxcar, _BOXCAR_MISTAKES)


# 1.2 ---------------------------------------------------------------------------------


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


@exercise("1.3")
def check_held_out_error(attempt: Attempt, held_out_error: Callable[..., Tensor]) -> None:
    """Check 1.3, leave one person out.

    Args:
        attempt: Given by the decorator.
        held_out_error: (key ``[m]``, value ``[m]``, person ``[m]``, width) -> ``[]``.
    """
    attempt.verify(held_out_error, _HELD_OUT_CASES, _held_out, _HELD_OUT_MISTAKES)


# 1.4 ---------------------------------------------------------------------------------


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


@exercise("1.6")
def check_top_k(attempt: Attempt, top_k_weights: Callable[..., Tensor]) -> None:
    """Check 1.6, only the k nearest.

    Args:
        attempt: Given by the decorator.
        top_k_weights: (distance ``[n, m]``, k) -> ``[n, m]``.
    """
    attempt.verify(top_k_weights, _TOP_K_CASES, _top_k, _TOP_K_MISTAKES)


# 1.7 ---------------------------------------------------------------------------------


@exercise("1.7")
def check_streaming_kernel(attempt: Attempt, kernel: Any) -> None:
    """Check 1.7, a kernel that streams.

    Args:
        attempt: Given by the decorator.
        kernel: A ``@triton.jit`` function (query_ptr, key_ptr, value_ptr, output_ptr,
            width, KEY_LEN, BLOCK); program i writes the i-th output.
    """
    device = device_for(attempt, kernel)
    outcomes = []
    for case in _STREAM_CASES:
        inputs = case.inputs
        given = {k: guard(inputs[k], device) for k in ("query", "key", "value")}
        n, m = len(inputs["query"]), len(inputs["key"])
        output = blank([n], device)
        with attempt.watching(kernel, inputs), watch() as accesses:
            kernel[(n,)](
                *(guarded.tensor for guarded in given.values()),
                output.tensor,
                inputs["width"],
                m,
                inputs["block"],
            )
        got = look(
            attempt,
            kernel,
            accesses,
            list(given.values()),
            output,
            owner=lambda place: (place, 0, 0),
            words=_STREAM_WORDS,
            seen=f"Seen with {n} programs, {m} keys, BLOCK = {inputs['block']}.",
        )
        outcomes.append(Outcome.of(case, _stream, got))
    attempt.judge(kernel, outcomes, _STREAM_MISTAKES)
