"""The additive layer: what it learns, what it promises a decoder, and d2l's."""

import importlib.util

import pytest
import torch
from torch import nn

from attn_course import _d2l
from attn_course.scoring import AdditiveAttention, additive_attention

needs_d2l = pytest.mark.skipif(
    importlib.util.find_spec("d2l") is None,
    reason="d2l is not installed: python -m attn_course.install_d2l",
)


def inputs():
    return torch.randn(2, 3, 4), torch.randn(2, 5, 6), torch.randn(2, 5, 7)


def test_the_layer_is_the_operation() -> None:
    query, key, value = inputs()
    layer = AdditiveAttention(4, 6, 8)
    lens, mask = torch.tensor([5, 2]), torch.rand(3, 5) > 0.3
    output, weights = layer(query, key, value, valid_lens=lens, mask=mask, need_weights=True)
    expected = additive_attention(
        query @ layer.W_q.weight.T,
        key @ layer.W_k.weight.T,
        value,
        layer.w_v,
        valid_lens=lens,
        mask=mask,
        need_weights=True,
    )
    torch.testing.assert_close((output, weights), expected)
    assert {name for name, _ in layer.named_parameters()} == {"w_v", "W_q.weight", "W_k.weight"}
    assert "weighted=True" in repr(layer)


def test_keys_can_be_projected_once() -> None:
    query, key, value = inputs()
    layer = AdditiveAttention(4, 6, 8)
    lens = torch.tensor([5, 2])
    projected = layer.project_keys(key)
    assert projected.shape == (2, 5, 8)
    steps = [layer.attend(query[:, [t]], projected, value, valid_lens=lens) for t in range(3)]
    torch.testing.assert_close(torch.cat(steps, 1), layer(query, key, value, valid_lens=lens))


def test_without_v_every_hidden_unit_counts_one() -> None:
    query, key, value = inputs()
    layer = AdditiveAttention(4, 6, 8, weighted=False)
    assert {name for name, _ in layer.named_parameters()} == {"W_q.weight", "W_k.weight"}
    assert layer.w_v.tolist() == [1.0] * 8 and layer.double().w_v.dtype == torch.float64
    twin = AdditiveAttention(4, 6, 8).double()
    twin.load_state_dict(layer.state_dict() | {"w_v": torch.ones(8)})
    query, key, value = query.double(), key.double(), value.double()
    torch.testing.assert_close(layer(query, key, value), twin(query, key, value))


def test_dropout_is_for_training() -> None:
    query, key, value = inputs()
    layer = AdditiveAttention(4, 6, 8, dropout=0.5)
    trained = [layer(query, key, value) for _ in range(2)]
    assert not torch.equal(*trained)
    layer.eval()
    assert torch.equal(layer(query, key, value), layer(query, key, value))


def test_padding_cannot_reach_the_parameters() -> None:
    query, key, value = inputs()
    layer = AdditiveAttention(4, 6, 8)
    lens = torch.tensor([5, 0])
    for tensor in (query, key, value):
        tensor[1] = torch.nan
    output = layer(query, key, value, valid_lens=lens)
    assert output.isfinite().all() and (output[1] == 0).all()
    gradients = torch.autograd.grad(output.sin().sum(), layer.parameters())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_it_learns_to_look_a_key_up() -> None:
    """Each query is the code of one key: the output should be that key's value."""
    layer = AdditiveAttention(4, 4, 16)
    codes = torch.eye(4)
    value = torch.tensor([[1.0], [-2.0], [3.0], [-4.0]])
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(layer(codes, codes, value), value)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 < 5 < losses[0]


@needs_d2l
@pytest.mark.parametrize("per_query", [False, True])
def test_equals_d2l_with_the_same_weights(per_query: bool) -> None:
    query, key, value = inputs()
    theirs = _d2l.load().AdditiveAttention(num_hiddens=8, dropout=0.0)
    lens = torch.randint(1, 6, (2, 3) if per_query else (2,))
    expected = theirs(query, key, value, lens)  # also makes its lazy parameters
    ours = AdditiveAttention(4, 6, 8)
    ours.load_state_dict(
        {
            "W_q.weight": theirs.W_q.weight,
            "W_k.weight": theirs.W_k.weight,
            "w_v": theirs.w_v.weight[0],
        }
    )
    output, weights = ours(query, key, value, valid_lens=lens, need_weights=True)
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weights, theirs.attention_weights, rtol=1e-6, atol=1e-6)


@needs_d2l
def test_d2l_lets_padding_leak_and_we_do_not() -> None:
    query, key, value = inputs()
    value[1, 2:] = torch.nan
    lens = torch.tensor([5, 2])
    theirs = _d2l.load().AdditiveAttention(num_hiddens=8, dropout=0.0)
    assert theirs(query, key, value, lens)[1].isnan().all()
    assert AdditiveAttention(4, 6, 8)(query, key, value, valid_lens=lens).isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdditiveAttention(0, 6, 8), "query_dim must be an integer of at least 1, got 0"),
        (lambda: AdditiveAttention(4, 0, 8), "key_dim must be an integer of at least 1, got 0"),
        (lambda: AdditiveAttention(4, 6, 0), "hidden_dim must be an integer of at least 1, got 0"),
        (lambda: AdditiveAttention(4, 6, 8, dropout=-0.1), r"dropout must lie in \[0, 1\)"),
        (lambda: AdditiveAttention(4, 6, 8, impl="sdpa"), "impl must be one of"),
    ],
)
def test_constructors_refuse(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
