"""Rollout and distance against loops, and what they must be on attention that one can read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course.testing import assert_close, assert_unchanged
from attn_course.vision import attention_distance, attention_rollout, class_rollout


def random_weights(
    batch: int = 2, layers: int = 3, heads: int = 2, tokens: int = 5, sharp: float = 3.0
) -> Tensor:
    scores = sharp * torch.randn(batch, layers, heads, tokens, tokens, dtype=torch.float64)
    return scores.softmax(-1)


def rollout_by_paths(weights: Tensor, residual: float) -> Tensor:
    """The sum over all paths from an output to an input, one step a layer."""
    batch, layers, heads, tokens, _ = weights.shape
    found = torch.zeros(batch, tokens, tokens, dtype=torch.float64)
    for b in range(batch):
        steps = weights[b].tolist()
        for path in itertools.product(range(tokens), repeat=layers + 1):  # from the output down
            share = 1.0
            for layer, (i, j) in zip(reversed(range(layers)), pairwise(path), strict=True):
                read = sum(steps[layer][h][i][j] for h in range(heads)) / heads
                share *= (1 - residual) * read + residual * (i == j)
            found[b, path[0], path[-1]] += share
    return found


@pytest.mark.parametrize("residual", [0.5, 0.0, 0.3, 1.0])
def test_rollout_is_the_sum_over_paths(residual: float) -> None:
    weights = random_weights()
    expected = rollout_by_paths(weights, residual)
    with assert_unchanged(weights=weights):
        assert_close(attention_rollout(weights, residual=residual), expected)
        assert_close(class_rollout(weights, residual=residual), expected[:, 0])
    default = rollout_by_paths(weights, 0.5)
    assert_close(attention_rollout(weights), default)


def test_each_row_of_a_rollout_sums_to_one() -> None:
    weights = random_weights(layers=12, tokens=17)
    for rollout in (attention_rollout(weights), class_rollout(weights)):
        torch.testing.assert_close(rollout.sum(-1), torch.ones_like(rollout[..., 0]))
        assert bool((rollout >= 0).all())


def test_the_order_of_layers_matters() -> None:
    """Token 0 reads 1 in the last layer, and 1 reads 2 in the first: 0 has 2's input."""
    layers = torch.eye(3).repeat(2, 1, 1)
    layers[0, 1], layers[1, 0] = torch.eye(3)[2], torch.eye(3)[1]
    rollout = attention_rollout(layers[None, :, None], residual=0.0)
    assert rollout[0, 0].tolist() == [0, 0, 1]
    assert class_rollout(layers[None, :, None], residual=0.0).tolist() == [[0, 0, 1]]
    backwards = attention_rollout(layers.flip(0)[None, :, None], residual=0.0)
    assert backwards[0, 0].tolist() == [0, 1, 0]


def test_one_layer_is_its_mean_over_heads() -> None:
    weights = random_weights(layers=1)
    torch.testing.assert_close(attention_rollout(weights, residual=0.0), weights[:, 0].mean(1))


@pytest.mark.parametrize("function", [attention_rollout, class_rollout])
def test_half_precision_is_rounded_at_the_end(function: Callable[..., Tensor]) -> None:
    weights = random_weights(layers=12).half()
    exact = function(weights.double()).half()
    assert function(weights).dtype == torch.float16
    torch.testing.assert_close(function(weights), exact, rtol=1e-3, atol=1e-5)


def test_rollouts_can_be_differentiated() -> None:
    weights = random_weights(1, 2, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(attention_rollout, weights)
    assert torch.autograd.gradcheck(class_rollout, weights)


# Distance


def distance_by_loops(
    weights: Tensor, grid: tuple[int, int], patch: tuple[int, int], has_class: bool
) -> Tensor:
    batch, layers, heads = weights.shape[:3]
    count = grid[0] * grid[1]
    found = torch.zeros(layers, heads, dtype=torch.float64)
    for layer in range(layers):
        for head in range(heads):
            distances = []
            for b in range(batch):
                for i in range(count):
                    row = weights[b, layer, head, i + has_class].tolist()[int(has_class) :]
                    y, x = divmod(i, grid[1])
                    total = 0.0
                    for j in range(count):
                        v, u = divmod(j, grid[1])
                        apart = math.hypot((y - v) * patch[0], (x - u) * patch[1])
                        total += row[j] / sum(row) * apart
                    distances.append(total)
            found[layer, head] = sum(distances) / len(distances)
    return found


@pytest.mark.parametrize("has_class", [True, False])
@pytest.mark.parametrize(("grid", "patch"), [((2, 3), (4, 4)), ((3, 2), (2, 5)), ((1, 4), (1, 1))])
def test_distance_equals_loops(
    grid: tuple[int, int], patch: tuple[int, int], has_class: bool
) -> None:
    weights = random_weights(tokens=grid[0] * grid[1] + has_class)
    with assert_unchanged(weights=weights):
        found = attention_distance(weights, grid, patch)
    assert_close(found, distance_by_loops(weights, grid, patch, has_class))


def test_distance_of_attention_that_one_can_read() -> None:
    own = torch.eye(12).expand(2, 1, 1, 12, 12)
    assert attention_distance(own, (3, 4), 7).tolist() == [[0.0]]
    # Each patch reads the one on its right, the last of a row nothing: it does not count.
    right = torch.zeros(12, 12)
    for i in range(12):
        if i % 4 < 3:
            right[i, i + 1] = 1
    assert attention_distance(right.expand(2, 1, 1, 12, 12), (3, 4), (5, 7)).tolist() == [[7.0]]
    below = torch.eye(12).roll(4, 1).clone()
    below[8:] = 0
    assert attention_distance(below.expand(2, 1, 1, 12, 12), (3, 4), (5, 7)).tolist() == [[5.0]]


def test_distance_leaves_the_class_token_out() -> None:
    """However much the patches give to it, and whatever it reads itself."""
    weights = random_weights(tokens=7)
    expected = attention_distance(weights, (2, 3))
    other = weights.clone()
    other[..., 1:, 0] = 0.9
    other[..., 1:, 1:] *= 0.1
    other[..., 0, :] = torch.rand(7)
    torch.testing.assert_close(attention_distance(other, (2, 3)), expected)


def test_distance_without_anything_to_read() -> None:
    weights = torch.zeros(1, 1, 2, 5, 5)
    weights[..., 1, :, 0] = 1  # all on the class token
    assert bool(attention_distance(weights, (2, 2)).isnan().all())


def test_distance_of_half_precision() -> None:
    weights = random_weights(tokens=7).half()
    found = attention_distance(weights, (2, 3), 16)
    assert found.dtype == torch.float16
    exact = attention_distance(weights.double(), (2, 3), 16)
    torch.testing.assert_close(found, exact.half(), rtol=1e-3, atol=1e-3)


# Bad input

A = torch.full((1, 2, 3, 5, 5), 0.2)
BAD: list[tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    *(
        (function, (weights, *more), {}, error, message)
        for function, more in (
            (attention_rollout, ()), (class_rollout, ()), (attention_distance, ((2, 2),)),
        )
        for weights, error, message in (
            (A[0], ValueError, r"weights .*\[batch, layers, heads, tokens, tokens\], got \[2, 3"),
            (A[..., :4], ValueError, r"weights must have shape .* got \[1, 2, 3, 5, 4\]"),
            (A[:, :0], ValueError, r"weights must have shape .* got \[1, 0, 3, 5, 5\]"),
            (A.long(), TypeError, "weights must hold floating-point"),
            ([0.2], TypeError, "weights must be a torch.Tensor, got list"),
        )
    ),
    (attention_rollout, (A,), {"residual": 1.5}, ValueError, r"residual must be .*\[0, 1\], got 1"),
    (class_rollout, (A,), {"residual": -0.1}, ValueError, r"residual must be a number in \[0, 1\]"),
    (class_rollout, (A,), {"residual": math.nan}, ValueError, "residual must be a number"),
    (class_rollout, (A,), {"residual": "half"}, ValueError, "residual must be a number"),
    (attention_distance, (A, (2, 3)), {}, ValueError, "of 6 tokens, for a grid of 2 x 3, or of"),
    (attention_distance, (A, (3, 1)), {}, ValueError, "of 3 tokens.* class token, got 5"),
    (attention_distance, (A, 2.0), {}, TypeError, "grid must be an integer or"),
    (attention_distance, (A, 2, 0), {}, ValueError, "patch_size must be an integer of at least 1"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "kwargs", "error", "message"), BAD)
def test_bad_input_is_named(
    function: Any, arguments: Any, kwargs: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(*arguments, **kwargs)


def test_an_empty_batch_has_no_rollout() -> None:
    assert attention_rollout(A[:0]).shape == (0, 5, 5)
    assert class_rollout(A[:0]).shape == (0, 5)
