"""The layers whose scores are dot products."""

import importlib.util
import math

import pytest
import torch

from attn_course import _d2l
from attn_course.dot_product import (
    BilinearAttention,
    CosineAttention,
    DotProductAttention,
    dot_product_attention,
)

needs_d2l = pytest.mark.skipif(
    importlib.util.find_spec("d2l") is None,
    reason="d2l is not installed: python -m attn_course.install_d2l",
)
LAYERS = {
    "dot": lambda **kwargs: DotProductAttention(**kwargs),
    "bilinear": lambda **kwargs: BilinearAttention(4, 4, **kwargs),
    "cosine": lambda **kwargs: CosineAttention(**kwargs),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def inputs(key_dim=4, dtype=torch.float64):
    shapes = ((2, 3, 4), (2, 5, key_dim), (2, 5, 7))
    return [torch.randn(*shape, dtype=dtype) for shape in shapes]


def test_dot_product_is_the_operation() -> None:
    query, key, value = inputs()
    mask = torch.rand(3, 5) > 0.3
    for scale in (None, 0.7):
        actual = DotProductAttention(scale=scale)(query, key, value, mask=mask, need_weights=True)
        expected = dot_product_attention(
            query, key, value, mask=mask, scale=scale, need_weights=True
        )
        torch.testing.assert_close(actual, expected)
    assert not list(DotProductAttention().parameters())
    assert "scale=0.7" in repr(DotProductAttention(scale=0.7))


@pytest.mark.parametrize("scale", [None, 1.0])
def test_bilinear_scores_are_a_bilinear_form(scale: float | None) -> None:
    query, key, value = inputs(key_dim=6)
    layer = BilinearAttention(4, 6, scale=scale).double()
    _, weights = layer(query, key, value, need_weights=True)
    scores = torch.einsum("bid,de,bje->bij", query, layer.M, key) * (scale or 0.5)
    torch.testing.assert_close(weights, scores.softmax(-1))
    assert [name for name, _ in layer.named_parameters()] == ["M"]


def test_bilinear_scores_start_with_unit_variance() -> None:
    layer = BilinearAttention(64, 400)
    projected = layer.project_keys(torch.randn(100, 400))
    assert 0.9 < projected.std().item() < 1.1


def test_cosine_scores_are_cosines_over_the_temperature() -> None:
    query, key, value = inputs()
    layer = CosineAttention(temperature=0.3).double()
    _, weights = layer(query, key, value, need_weights=True)
    cosine = torch.nn.functional.cosine_similarity(query.unsqueeze(-2), key.unsqueeze(-3), dim=-1)
    torch.testing.assert_close(weights, (cosine / 0.3).softmax(-1), rtol=1e-6, atol=1e-8)
    larger = layer(100 * query, 1e-3 * key, value)
    torch.testing.assert_close(larger, layer(query, key, value))
    assert "temperature=0.3" in repr(layer)


def test_cosine_learns_its_temperature() -> None:
    layer = CosineAttention(temperature=0.1)
    assert layer.temperature.item() == pytest.approx(0.1)
    query, key, value = inputs(dtype=torch.float32)
    for output in (layer(query, key, value), layer(query, key, value, need_weights=True)[0]):
        (grad,) = torch.autograd.grad(output.square().sum(), layer.log_temperature)
        assert grad.isfinite() and grad != 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_vector_of_zeros_has_cosine_zero(dtype: torch.dtype) -> None:
    query, key, value = inputs(dtype=dtype)
    query[0, 0], key[1, 1] = 0, 0
    query.requires_grad_(), key.requires_grad_()
    layer = CosineAttention(temperature=0.5).to(dtype)
    output, weights = layer(query, key, value, need_weights=True)
    torch.testing.assert_close(weights[0, 0], torch.full((5,), 0.2, dtype=dtype))
    scores = weights.log()[1] - weights.log()[1, :, [1]]  # against the key of zeros: cos / 0.5
    assert scores.abs().max() <= 2 + 0.01
    for grad in torch.autograd.grad(output.float().square().sum(), (query, key)):
        assert grad.isfinite().all() and grad.abs().max() < 1e3


def test_cosine_of_large_half_precision_vectors() -> None:
    query = torch.full((1, 64), 6e4, dtype=torch.float16)  # its length overflows float16
    output = CosineAttention().half()(query, torch.cat([query, -query]), torch.eye(2).half()[:, :1])
    assert output.item() == pytest.approx(1.0, abs=1e-3)


@each_layer
def test_keys_can_be_projected_once(make) -> None:
    query, key, value = inputs()
    layer = make().double()
    lens = torch.tensor([5, 2])
    projected = layer.project_keys(key)
    steps = [layer.attend(query[:, [t]], projected, value, valid_lens=lens) for t in range(3)]
    torch.testing.assert_close(torch.cat(steps, 1), layer(query, key, value, valid_lens=lens))


@each_layer
def test_implementations_agree(make) -> None:
    torch.manual_seed(0)
    query, key, value = inputs()
    lens = torch.tensor([[5, 0, 2], [1, 5, 0]])
    results = []
    for impl in ("reference", "sdpa"):
        torch.manual_seed(1)
        layer = make(impl=impl).double()
        results.append(layer(query, key, value, valid_lens=lens))
    torch.testing.assert_close(*results)


@each_layer
def test_dropout_is_for_training(make) -> None:
    query, key, value = inputs()
    layer = make(dropout=0.5).double()
    assert not torch.equal(layer(query, key, value), layer(query, key, value))
    layer.eval()
    assert torch.equal(layer(query, key, value), layer(query, key, value))


@each_layer
@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_padding_cannot_leak(make, impl: str) -> None:
    """Not into the parameters either, whose gradient the keys are a factor of."""
    layer = make(impl=impl).double()
    lens = torch.tensor([5, 0])
    leaves = inputs()
    for tensor in leaves:
        tensor[1] = torch.nan
        tensor.requires_grad_()
    output = layer(*leaves, valid_lens=lens)
    assert output.isfinite().all() and (output[1] == 0).all()
    gradients = torch.autograd.grad(output.sin().sum(), [*leaves, *layer.parameters()])
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert all(bool((gradient[1] == 0).all()) for gradient in gradients[:3])


@pytest.mark.parametrize("layer", [DotProductAttention(), CosineAttention()], ids=["dot", "cosine"])
def test_different_widths_point_to_bilinear_attention(layer) -> None:
    with pytest.raises(ValueError, match="width of query, 4, got 6: BilinearAttention takes"):
        layer(*inputs(key_dim=6, dtype=torch.float32))


@needs_d2l
@pytest.mark.parametrize("per_query", [False, True])
def test_equals_d2l(per_query: bool) -> None:
    query, key, value = inputs(dtype=torch.float32)
    lens = torch.randint(1, 6, (2, 3) if per_query else (2,))
    theirs = _d2l.load().DotProductAttention(dropout=0.0)
    expected = theirs(query, key, value, lens)
    output, weights = DotProductAttention()(query, key, value, valid_lens=lens, need_weights=True)
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weights, theirs.attention_weights, rtol=1e-6, atol=1e-6)


@needs_d2l
def test_d2l_averages_values_where_the_length_is_zero() -> None:
    query, key, value = inputs(dtype=torch.float32)
    lens = torch.tensor([5, 0])
    theirs = _d2l.load().DotProductAttention(dropout=0.0)(query, key, value, lens)
    torch.testing.assert_close(theirs[1], value[1].mean(0).expand(3, 7))
    assert (DotProductAttention()(query, key, value, valid_lens=lens)[1] == 0).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DotProductAttention(scale="1"), TypeError, "scale must be a number"),
        (lambda: DotProductAttention(scale=math.inf), ValueError, "scale must be finite"),
        (lambda: DotProductAttention(dropout=1.0), ValueError, r"dropout must lie in \[0, 1\)"),
        (lambda: DotProductAttention(impl="x"), ValueError, "impl must be one of"),
        (
            lambda: BilinearAttention(0, 4),
            ValueError,
            "query_dim must be an integer of at least 1, got 0",
        ),
        (
            lambda: BilinearAttention(4, 0),
            ValueError,
            "key_dim must be an integer of at least 1, got 0",
        ),
        (lambda: CosineAttention(temperature=0.0), ValueError, "temperature must be positive"),
        (lambda: CosineAttention(temperature="x"), TypeError, "temperature must be a number"),
    ],
)
def test_constructors_refuse(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
