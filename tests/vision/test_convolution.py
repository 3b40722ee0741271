"""Attention that acts as a convolution, against the convolution."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.testing import assert_close, assert_unchanged
from attn_course.vision import attention_convolution

WINDOWS = [(3, 3), (1, 1), (1, 3), (5, 3)]


def make(window: tuple[int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 6, 7).to(dtype), torch.randn(4, 3, *window).to(dtype)


def same_size(images: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(images, weight, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_sharp_heads_convolve(window: tuple[int, int]) -> None:
    """At the border too: the padding can be attended to."""
    images, weight = make(window)
    with assert_unchanged(images=images, weight=weight):
        found = attention_convolution(images, weight, sharpness=50.0)
    assert_close(found, same_size(images, weight))
    single = attention_convolution(images.float(), weight.float(), sharpness=50.0)
    torch.testing.assert_close(single.double(), same_size(images, weight), rtol=1e-5, atol=1e-5)


def test_blunt_heads_do_not_and_the_error_falls() -> None:
    images, weight = make((3, 3))
    errors = [
        (attention_convolution(images, weight, sharpness=s) - same_size(images, weight)).abs().max()
        for s in (0.5, 2.0, 8.0, 16.0)
    ]
    assert errors[0] > 0.5 and errors[-1] < 1e-4
    assert all(a > b for a, b in pairwise(errors))


@pytest.mark.parametrize("sharpness", [0.3, 2.0])
def test_weights_are_the_softmax_of_distances(sharpness: float) -> None:
    images, weight = make((5, 3))
    output, weights = attention_convolution(images, weight, sharpness=sharpness, need_weights=True)
    assert weights.shape == (2, 15, 42, 10 * 9)
    for head, pixel in ((0, 0), (7, 20), (14, 41), (3, 13)):
        aim = torch.tensor([pixel // 7 + head // 3 - 2, pixel % 7 + head % 3 - 1])
        rows, columns = torch.arange(-2, 8), torch.arange(-1, 8)
        apart = (rows[:, None] - aim[0]) ** 2 + (columns - aim[1]) ** 2
        expected = (-sharpness * apart.double().flatten()).softmax(0)
        assert_close(weights[1, head, pixel].double(), expected)
    padded = F.pad(images, (1, 1, 2, 2)).flatten(2)  # [batch, channels, keys]
    expected = torch.einsum("bhqk,bck,och->boq", weights, padded, weight.flatten(2))
    assert_close(output, expected.unflatten(2, (6, 7)))
    assert_close(attention_convolution(images, weight, sharpness=sharpness), output)


def test_a_sharp_head_reads_the_pixel_at_its_offset() -> None:
    images, weight = make((3, 3), torch.float32)
    _, weights = attention_convolution(images, weight, sharpness=50.0, need_weights=True)
    read = weights[0].argmax(-1)  # [heads, pixels], in the padded image of 9 columns
    rows, columns = torch.arange(42) // 7, torch.arange(42) % 7
    for head in range(9):
        expected = (rows + head // 3) * 9 + columns + head % 3
        assert torch.equal(read[head], expected)


def test_gradients_are_the_convolutions() -> None:
    images, weight = (t.requires_grad_() for t in make((3, 3)))
    g = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    ours = torch.autograd.grad(
        attention_convolution(images, weight, sharpness=60.0), (images, weight), g
    )
    theirs = torch.autograd.grad(same_size(images, weight), (images, weight), g)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Squares of places are no half-precision numbers from 2048 or 256 on."""
    images, weight = torch.randn(1, 1, 3, 60).to(dtype), torch.randn(2, 1, 1, 3).to(dtype)
    found = attention_convolution(images, weight, sharpness=50.0)
    assert found.dtype == dtype
    torch.testing.assert_close(found, same_size(images.double(), weight.double()).to(dtype))


def test_no_images() -> None:
    images, weight = make((3, 3))
    assert attention_convolution(images[:0], weight, sharpness=1.0).shape == (0, 4, 6, 7)


X, W = torch.zeros(2, 3, 6, 7), torch.zeros(4, 3, 3, 3)
BAD: list[tuple[Any, Any, Any, type[Exception], str]] = [
    (X[0], W, 1.0, ValueError, r"images must have shape \[batch, channels, height, width\]"),
    (X.int(), W, 1.0, TypeError, "images must hold floating-point"),
    (X, W.int(), 1.0, TypeError, "weight must hold floating-point"),
    (X, W[0], 1.0, ValueError, r"weight must have shape .* got \[3, 3, 3\]"),
    (X, W[..., :2], 1.0, ValueError, r"the last two odd, got \[4, 3, 3, 2\]"),
    (X, W[:, :, :2], 1.0, ValueError, r"the last two odd, got \[4, 3, 2, 3\]"),
    (X[:, :2], W, 1.0, ValueError, "images must have 3 channels, as weight has, got 2"),
    (X, W.double(), 1.0, ValueError, "weight must have the dtype of images"),
    (X, W, 0.0, ValueError, "sharpness must be positive and finite, got 0.0"),
    (X, W, -1, ValueError, "sharpness must be positive and finite, got -1"),
    (X, W, "1", TypeError, "sharpness must be a number"),
    (X, W, torch.tensor(1.0), TypeError, "sharpness must be a number, got a tensor"),
]


@pytest.mark.parametrize(("images", "weight", "sharpness", "error", "message"), BAD)
def test_bad_input_is_named(
    images: Any, weight: Any, sharpness: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        attention_convolution(images, weight, sharpness=sharpness)
