"""The layers that say where a token stands."""

from typing import Any

import pytest
import torch
from torch import nn

from attn_course.positional import (
    LearnedEncoding,
    RotaryEmbedding,
    SinusoidalEncoding,
    add_sinusoid,
    rotate,
)
from tests.launches import interpreted

LAYERS: dict[str, Any] = {
    "sinusoidal": lambda: SinusoidalEncoding(6),
    "learned": lambda: LearnedEncoding(12, 6),
    "rotary": lambda: RotaryEmbedding(6),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def test_layers_are_the_operations() -> None:
    x = torch.randn(2, 5, 6)
    layer = SinusoidalEncoding(6, base=50.0, impl="reference")
    assert torch.equal(layer(x, 3), add_sinusoid(x, offset=3, base=50.0))
    turn = RotaryEmbedding(6, base=50.0, pairs="halves", impl="reference")
    assert torch.equal(turn(x, offset=3), rotate(x, offset=3, base=50.0, pairs="halves"))
    learned = LearnedEncoding(9, 6)
    assert torch.equal(learned(x, 3), x + learned.weight[3:8])
    assert not [*layer.parameters(), *turn.parameters(), *layer.buffers(), *turn.buffers()]
    assert "base=50.0" in repr(layer) and "'halves'" in repr(turn) and "max_len=9" in repr(learned)


@interpreted
@pytest.mark.triton
def test_layers_pass_the_implementation_on() -> None:
    x = torch.randn(2, 5, 6)
    for make in (SinusoidalEncoding, RotaryEmbedding):
        kernel, plain = make(6, impl="triton")(x), make(6, impl="reference")(x)
        torch.testing.assert_close(kernel, plain, rtol=1e-6, atol=1e-6)


@each_layer
def test_pieces_equal_the_whole(make: Any) -> None:
    """What a decoder does with an offset, token by token or in chunks."""
    layer, x = make(), torch.randn(2, 9, 6)
    whole = layer(x)
    for sizes in ([1] * 9, [4, 1, 4], [9]):
        starts = torch.tensor([0, *sizes[:-1]]).cumsum(0).tolist()
        pieces = [layer(x[:, s : s + n], offset=s) for s, n in zip(starts, sizes, strict=True)]
        assert torch.equal(torch.cat(pieces, 1), whole)


@pytest.mark.parametrize("make", [SinusoidalEncoding, lambda *a, **k: LearnedEncoding(9, *a, **k)])
def test_dropout_is_for_training(make: Any) -> None:
    layer, x = make(6, dropout=0.5), torch.randn(2, 9, 6)
    dropped = layer(x)
    layer.eval()
    kept = layer(x)
    assert bool(((dropped == 0) | torch.isclose(dropped, 2 * kept)).all())
    assert 0.2 < (dropped == 0).float().mean() < 0.8


def test_only_the_vectors_that_are_used_get_gradients() -> None:
    layer = LearnedEncoding(8, 3)
    layer(torch.zeros(4, 2, 3), offset=5).sum().backward()
    expected = torch.zeros(8, 3)
    expected[5:7] = 4  # one for each of the batch
    assert torch.equal(layer.weight.grad, expected)
    assert layer.weight.std() < 0.05


def test_learned_encodings_keep_half_precision() -> None:
    assert LearnedEncoding(8, 4)(torch.zeros(1, 2, 4).half()).dtype == torch.float16


@pytest.mark.parametrize(("offset", "length"), [(0, 13), (12, 1), (10, 3)])
def test_a_length_beyond_the_learned_table_is_named(offset: int, length: int) -> None:
    message = (
        rf"12 positions that were learned \(max_len\), got .* {offset} to {offset + length - 1}"
    )
    with pytest.raises(ValueError, match=message):
        LearnedEncoding(12, 6)(torch.zeros(1, length, 6), offset)
    for layer in (SinusoidalEncoding(6), RotaryEmbedding(6)):  # which have no end
        assert layer(torch.zeros(1, length, 6), offset).shape == (1, length, 6)


@each_layer
def test_bad_input_is_named(make: Any) -> None:
    layer: nn.Module = make()
    with pytest.raises(ValueError, match=r"x must have shape \[\.\.\., len, 6\], got \[1, 2, 5\]"):
        layer(torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match=r"x must have shape .* got \[6\]"):
        layer(torch.zeros(6))
    with pytest.raises(TypeError, match="x must hold floating-point numbers"):
        layer(torch.zeros(1, 2, 6).long())
    with pytest.raises(ValueError, match="offset must be at least 0, got -1"):
        layer(torch.zeros(1, 2, 6), offset=-1)
    with pytest.raises(TypeError, match="offset must be an integer"):
        layer(torch.zeros(1, 2, 6), offset=torch.tensor(1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SinusoidalEncoding(0), ValueError, "dim must be at least 1"),
        (lambda: SinusoidalEncoding(6.0), TypeError, "dim must be an integer"),
        (lambda: SinusoidalEncoding(6, base=0), ValueError, "base must be at least 1"),
        (lambda: SinusoidalEncoding(6, dropout=1), ValueError, r"dropout must lie in \[0, 1\)"),
        (lambda: SinusoidalEncoding(6, impl="x"), ValueError, "impl must be one of"),
        (lambda: LearnedEncoding(0, 6), ValueError, "max_len must be at least 1"),
        (lambda: LearnedEncoding(4, True), TypeError, "dim must be an integer"),
        (lambda: LearnedEncoding(4, 6, dropout=-1), ValueError, "dropout must lie in"),
        (lambda: RotaryEmbedding(5), ValueError, "dim must be even"),
        (lambda: RotaryEmbedding(6, base=0.1), ValueError, "base must be at least 1"),
        (lambda: RotaryEmbedding(6, pairs="both"), ValueError, "pairs must be one of"),
        (lambda: RotaryEmbedding(6, impl="sdpa"), ValueError, "impl must be one of"),
    ],
)
def test_bad_construction_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
