"""Positions where they are used: in the heads of attention."""

from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course.multi_head import KeyValueCache, MultiHeadAttention
from attn_course.positional import (
    RotaryEmbedding,
    SinusoidalEncoding,
    linear_biases,
    linear_slopes,
)

DIM, HEADS, LENGTH = 12, 3, 7
POSITIONS: dict[str, Any] = {
    "adjacent": RotaryEmbedding(4, base=100.0),
    "halves": RotaryEmbedding(4, base=100.0, pairs="halves"),
    "slopes": linear_slopes(HEADS),
}
each_position = pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)


@pytest.fixture
def layer() -> MultiHeadAttention:
    return MultiHeadAttention(DIM, HEADS).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, LENGTH, DIM, dtype=torch.float64)


@each_position
def test_order_matters(layer: MultiHeadAttention, x: Tensor, position: Any) -> None:
    order = torch.randperm(LENGTH)
    moved = layer(x[:, order], position=position)
    assert not torch.allclose(moved, layer(x, position=position)[:, order])
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])


def test_order_matters_to_sinusoids(layer: MultiHeadAttention, x: Tensor) -> None:
    encode, order = SinusoidalEncoding(DIM), torch.randperm(LENGTH)
    assert not torch.allclose(layer(encode(x[:, order])), layer(encode(x))[:, order])


@each_position
def test_where_a_sequence_starts_does_not_matter(
    layer: MultiHeadAttention, x: Tensor, position: Any
) -> None:
    """Relative positions: the same words further right, with the rest hidden."""
    shifted = torch.cat([torch.randn(2, 5, DIM).double(), x], 1)
    seen = torch.arange(LENGTH + 5) >= 5
    output = layer(shifted, position=position, mask=seen[None])
    torch.testing.assert_close(output[:, 5:], layer(x, position=position))
    sinusoidal = SinusoidalEncoding(DIM)  # absolute ones are not like that
    absolute = layer(sinusoidal(shifted), mask=seen[None])
    assert not torch.allclose(absolute[:, 5:], layer(sinusoidal(x)))


@each_position
@pytest.mark.parametrize("sizes", [[1] * LENGTH, [3, 4]], ids=str)
def test_a_cache_goes_on_counting(
    layer: MultiHeadAttention, x: Tensor, position: Any, sizes: list[int]
) -> None:
    cache = KeyValueCache()
    pieces = [
        layer(piece, is_causal=True, cache=cache, position=position) for piece in x.split(sizes, 1)
    ]
    expected = layer(x, is_causal=True, position=position)
    torch.testing.assert_close(torch.cat(pieces, 1), expected)


@each_position
@pytest.mark.parametrize("training", [True, False])
def test_the_future_does_not_matter_bit_for_bit(x: Tensor, position: Any, training: bool) -> None:
    layer = MultiHeadAttention(DIM, HEADS, dropout=0.3).double().train(training)
    changed = x.clone()
    changed[:, 4:] = 10 * torch.randn_like(x[:, 4:])
    results = []
    for tokens in (x, changed):
        torch.manual_seed(1)
        results.append(layer(tokens, is_causal=True, position=position))
    assert torch.equal(results[0][:, :4], results[1][:, :4])
    assert not torch.allclose(results[0][:, 4:], results[1][:, 4:])


def test_linear_biases_are_what_attention_adds(layer: MultiHeadAttention, x: Tensor) -> None:
    slopes = linear_slopes(HEADS).double()
    _, weights = layer(x, position=slopes, need_weights=True)
    _, plain = layer(x, need_weights=True)
    expected = (plain.log() + linear_biases(slopes, LENGTH, LENGTH)).softmax(-1)
    torch.testing.assert_close(weights, expected)


def test_the_wrong_width_is_named(layer: MultiHeadAttention, x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"x must have shape \[\.\.\., len, 6\], got \[2, 3, 7, 4"):
        layer(x, position=RotaryEmbedding(6))
