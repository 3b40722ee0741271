"""Packed sequences: there and back, and attention that keeps them apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course.multi_head import KeyValueCache, MultiHeadAttention, Packing, packing, split_heads
from attn_course.positional import RotaryEmbedding, linear_slopes

DIM, HEADS, LENGTH = 8, 2, 5
LENS = torch.tensor([5, 0, 3, 1])
PADDING = torch.arange(LENGTH) >= LENS[:, None]
POSITIONS = {"none": None, "rotary": RotaryEmbedding(DIM // HEADS), "linear": linear_slopes(HEADS)}
each_position = pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)


@pytest.fixture(params=["long", "short"])
def length(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to attend, whatever the length."""
    monkeypatch.setattr(packing, "_LONG", 1 if request.param == "long" else 1 << 20)
    name: str = request.param
    return name


def randn(length: int = LENGTH, width: int = DIM) -> Tensor:
    return torch.randn(len(LENS), length, width, dtype=torch.float64)


def make(**options: Any) -> MultiHeadAttention:
    layer = MultiHeadAttention(DIM, HEADS, **options).double()
    for linear in (layer.W_q, layer.W_k, layer.W_v, layer.W_o):
        torch.nn.init.normal_(linear.bias)
    return layer


# There and back


def test_real_tokens_stand_side_by_side() -> None:
    made, x = Packing(LENS, LENGTH), randn()
    rows = made.pack(x)
    assert made.tokens == 9 and rows.shape == (1, 9, DIM)
    assert torch.equal(rows[0], x[~PADDING])
    assert torch.equal(made.unpack(rows), x.masked_fill(PADDING[..., None], 0))
    assert torch.equal(made.split_heads(rows, HEADS), split_heads(made.unpack(rows), HEADS))
    assert torch.equal(made.merge_heads(made.split_heads(rows, HEADS)), rows)
    alone = made.split(rows)
    assert [part.shape for part in alone] == [(1, n, DIM) for n in LENS.tolist()]
    assert all(torch.equal(part[0], x[i, : LENS[i]]) for i, part in enumerate(alone))


def test_padding_is_never_read_and_has_no_gradient() -> None:
    made = Packing(LENS, LENGTH)
    x = randn().masked_fill(PADDING[..., None], torch.nan).requires_grad_()
    (made.unpack(made.pack(x).square()) + 1).prod().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert not x.grad[PADDING].any() and x.grad[~PADDING].all()


def test_gradients_there_and_back() -> None:
    made = Packing(torch.tensor([2, 1]), 2)
    padded = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    for call, x in ((made.pack, padded), (lambda x: made.split_heads(x, 2), rows)):
        assert torch.autograd.gradcheck(call, x) and torch.autograd.gradgradcheck(call, x)


def test_where_there_is_nothing_to_leave_out() -> None:
    assert Packing.of(None, 5) is None
    assert Packing.of(torch.tensor([5, 5]), 5) is None
    assert Packing.of(torch.tensor([], dtype=torch.long), 5) is None
    assert Packing.of(torch.tensor([[5, 2]]), 5) is None  # a length for each query
    on_cuda: Any = SimpleNamespace(ndim=1, is_cuda=True)  # nothing else of it is looked at
    assert Packing.of(on_cuda, 5) is None
    made = Packing.of(torch.tensor([5, 4]), 5)
    assert made is not None and made.tokens == 9


def test_long_is_many_pairs() -> None:
    made = Packing(torch.tensor([100]), 128)
    assert made.is_long(128) and not made.is_long(127)


# Attention


@each_position
@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 1}, {"scoring": "additive"}], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_each_sequence_attends_to_itself(
    options: dict[str, Any], position: Any, is_causal: bool, length: str
) -> None:
    if isinstance(position, Tensor) and "scoring" in options:
        pytest.skip("slopes need dot products")
    layer, x, made = make(**options), randn(), Packing(LENS, LENGTH)
    asked = {"position": position, "is_causal": is_causal}
    output = layer(made.pack(x), packing=made, **asked)
    weighed, weights = layer(made.pack(x), packing=made, need_weights=True, **asked)
    torch.testing.assert_close(weighed, output)
    assert weights.shape == (len(LENS), HEADS, LENGTH, LENGTH)
    for i, part in enumerate(made.split(output)):
        if n := int(LENS[i]):
            alone, rows = layer(x[[i], :n], need_weights=True, **asked)
            torch.testing.assert_close(part, alone)
            torch.testing.assert_close(weights[[i], :, :n, :n], rows)


@each_position
@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 1}], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_memories_without_their_padding(
    options: dict[str, Any], position: Any, is_causal: bool, length: str
) -> None:
    """A mask says the same as lengths, and leaves nothing out."""
    layer = make(**options, key_dim=6, value_dim=7)
    query, key, value = randn(4).requires_grad_(), randn(width=6), randn(width=7)
    asked = {"position": position, "is_causal": is_causal}
    results = []
    for hiding in ({"valid_lens": LENS}, {"mask": ~PADDING[:, None]}):
        output = layer(query, key, value, **hiding, **asked)
        parameters = [query, *layer.parameters()]
        results.append((output, torch.autograd.grad(output.sin().sum(), parameters)))
    torch.testing.assert_close(*results)


def test_lengths_with_a_mask_or_a_cache(length: str) -> None:
    """Nothing is left out then: a mask may hide more, and a cache holds keys from before."""
    layer, query, memory = make(), randn(), randn()
    mask = torch.rand(LENGTH, LENGTH) > 0.4
    torch.testing.assert_close(
        layer(query, memory, valid_lens=LENS, mask=mask),
        layer(query, memory, mask=mask & ~PADDING[:, None]),
    )
    cache = KeyValueCache()
    layer(query[:, :2], memory[:, :2], cache=cache)
    torch.testing.assert_close(
        layer(query, memory[:, 2:], valid_lens=LENS, cache=cache),
        layer(query, memory, valid_lens=LENS),
    )


def test_the_longest_sequence_tells_what_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded, that is: not how many tokens there are in all."""
    layer, made, calls = make(), Packing(LENS, LENGTH), []
    monkeypatch.setattr(layer, "_one_by_one", lambda *_, **__: calls.append(1))
    for pairs in (LENGTH**2, LENGTH**2 + 1):
        monkeypatch.setattr(packing, "_LONG", pairs)
        layer(made.pack(randn()), packing=made)
    assert len(calls) == 1


def test_long_memories_are_projected_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_LONG", 20)
    layer, seen = make(), []
    layer.W_k.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    layer.W_v.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    memory = randn()
    for query_len in (3, 4):
        layer(randn(query_len), memory, valid_lens=LENS)
    shapes = [tuple(x.shape) for x in seen]
    assert shapes == [(4, LENGTH, DIM)] * 2 + [(1, 9, DIM)] * 2
    assert seen[2] is seen[3]  # packed once


@pytest.mark.parametrize("fill", [torch.nan, torch.inf, 1e9])
def test_nothing_leaks_from_padding(fill: float, length: str) -> None:
    """Nor from the queries of a sentence without a memory."""
    layer, query = make(), randn(4)
    query[1] = fill
    memory, results = randn(), []
    for padded in (memory, memory.masked_fill(PADDING[..., None], fill)):
        layer.zero_grad()
        output = layer(query, padded.requires_grad_(), valid_lens=LENS)
        output.sin().sum().backward()
        assert torch.equal(output[1], layer.W_o.bias.expand(4, DIM))
        results.append([output.detach(), padded.grad, *(p.grad for p in layer.parameters())])
        assert all(x.isfinite().all() for x in results[-1])
    for clean, other in zip(*results, strict=True):
        assert torch.equal(clean, other)


def test_dropout_and_heads_that_are_off(length: str) -> None:
    made = Packing(LENS, LENGTH)
    layer, x = make(dropout=0.5), made.pack(randn())
    assert not torch.equal(layer(x, packing=made), layer(x, packing=made))
    layer.eval()
    assert torch.equal(layer(x, packing=made), layer(x, packing=made))
    with layer.without_heads(*range(HEADS)):
        assert torch.equal(layer(x, packing=made), layer.W_o.bias.expand(1, 9, DIM))


def test_only_empty_sequences(length: str) -> None:
    made, layer = Packing(torch.tensor([0, 0]), 3), make()
    output = layer(made.pack(randn(3)[:2]), packing=made)
    assert output.shape == (1, 0, DIM) and made.unpack(output).shape == (2, 3, DIM)
    output.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize(
    "given",
    [
        {"key": torch.rand(1, 9, DIM)},
        {"valid_lens": torch.tensor([9])},
        {"mask": torch.ones(9, 9, dtype=torch.bool)},
        {"cache": KeyValueCache()},
    ],
    ids=lambda given: next(iter(given)),
)
def test_packing_says_it_all(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="packing says which tokens attend to each other"):
        MultiHeadAttention(DIM, HEADS)(
            torch.rand(1, 9, DIM), packing=Packing(LENS, LENGTH), **given
        )


@pytest.mark.parametrize("shape", [(1, 8, DIM), (4, LENGTH, DIM)])
def test_packings_of_others(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"query must hold what packing packed, \[1, 9, width\]"):
        MultiHeadAttention(DIM, HEADS)(torch.rand(shape), packing=Packing(LENS, LENGTH))
