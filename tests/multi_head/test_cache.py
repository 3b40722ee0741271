"""With a key-value cache the outputs are those without one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attn_course.dot_product import CosineAttention
from attn_course.multi_head import KeyValueCache, MultiHeadAttention, merge_heads, split_heads
from attn_course.testing import assert_unchanged

LENGTH, DIM, HEADS = 6, 12, 4
LAYERS: dict[str, Any] = {
    "dot": lambda: {},
    "grouped": lambda: {"num_kv_heads": 2},
    "additive": lambda: {"scoring": "additive"},
    "cosine": lambda: {"scoring": CosineAttention(), "num_kv_heads": 1},
}
each_layer = pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
CHUNKS = [[1] * 6, [4, 2], [1, 3, 2], [6]]


def make(**options: Any) -> MultiHeadAttention:
    layer = MultiHeadAttention(DIM, HEADS, **options).double()
    for parameter in layer.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    return layer


def tokens(batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randn(batch, length, DIM, dtype=torch.float64)


def spin(x: Tensor, offset: int) -> Tensor:
    """A position that is as simple as can be: each row grows with its place."""
    place = torch.arange(offset, offset + x.shape[-2], dtype=x.dtype)
    return x * (1 + place / 10).unsqueeze(-1)


def in_chunks(
    layer: MultiHeadAttention, x: Tensor, sizes: list[int], **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """Feed a sequence piece by piece; outputs joined, and the weights of each piece."""
    cache, outputs, weights = KeyValueCache(), [], []
    for piece in x.split(sizes, dim=1):
        found = layer(piece, is_causal=True, cache=cache, need_weights=True, **options)
        outputs.append(found[0])
        weights.append(found[1])
    assert cache.length == x.shape[1]
    return torch.cat(outputs, 1), weights


@each_layer
@pytest.mark.parametrize("sizes", CHUNKS, ids=str)
def test_pieces_equal_the_whole(options: Any, sizes: list[int]) -> None:
    layer, x = make(**options()), tokens()
    expected, all_weights = layer(x, is_causal=True, need_weights=True)
    output, weights = in_chunks(layer, x, sizes)
    torch.testing.assert_close(output, expected)
    start = 0
    for size, rows in zip(sizes, weights, strict=True):
        end = start + size
        torch.testing.assert_close(rows, all_weights[:, :, start:end, :end])
        start = end
    plain = KeyValueCache()  # without weights, so by the fused operation
    pieces = [layer(piece, is_causal=True, cache=plain) for piece in x.split(sizes, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), expected)


@pytest.mark.parametrize("sizes", CHUNKS, ids=str)
@pytest.mark.parametrize("position", [spin, torch.tensor([0.5, 0.25, 0.1, 0.0])], ids=["f", "s"])
@pytest.mark.parametrize("num_kv_heads", [2, 4])
def test_positions_go_on_where_the_cache_ends(
    position: Any, sizes: list[int], num_kv_heads: int
) -> None:
    layer, x = make(num_kv_heads=num_kv_heads), tokens()
    expected = layer(x, is_causal=True, position=position)
    output, _ = in_chunks(layer, x, sizes, position=position)
    torch.testing.assert_close(output, expected)
    assert not torch.allclose(expected, layer(x, is_causal=True))


def test_queries_and_keys_are_positioned_and_values_are_not() -> None:
    layer, x = make(), tokens()
    _, weights = layer(x, position=spin, need_weights=True)
    q, k, v = (split_heads(map_(x), HEADS) for map_ in (layer.W_q, layer.W_k, layer.W_v))
    expected = (spin(q, 0) @ spin(k, 0).mT / 3**0.5).softmax(-1)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(layer(x, position=spin), layer.W_o(merge_heads(expected @ v)))


def test_slopes_are_added_to_the_scores() -> None:
    layer, x = make(), tokens()
    slopes = torch.tensor([0.5, 0.25, 0.1, 0.0])
    _, weights = layer(x, position=slopes, need_weights=True)
    _, plain = layer(x, need_weights=True)
    place = torch.arange(LENGTH)
    factor = torch.exp(-slopes[:, None, None] * (place[:, None] - place).abs()).double()
    expected = plain * factor / (plain * factor).sum(-1, keepdim=True)
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sizes", [[1] * 6, [4, 2]], ids=str)
def test_lengths_and_masks_count_all_keys(sizes: list[int]) -> None:
    layer, x = make(), tokens()
    lens = torch.tensor([LENGTH, 3])
    mask = torch.rand(2, LENGTH, LENGTH) > 0.3
    mask[:, :, 0] = True
    expected = layer(x, is_causal=True, valid_lens=lens, mask=mask)
    x[1, 3:] = torch.nan  # padding, which may hold anything
    cache, outputs, start = KeyValueCache(), [], 0
    for piece in x.split(sizes, dim=1):
        end = start + piece.shape[1]
        so_far = {"valid_lens": lens.clamp(max=end), "mask": mask[:, start:end, :end]}
        outputs.append(layer(piece, is_causal=True, cache=cache, **so_far))
        start = end
    output = torch.cat(outputs, 1)
    torch.testing.assert_close(output[0], expected[0])
    torch.testing.assert_close(output[1, :3], expected[1, :3])
    assert output.isfinite().all()
    output.sin().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_a_query_is_not_cleared_for_seeing_only_the_past() -> None:
    """A mask may hide the new key from its own query; that query still asks."""
    layer, x = make(), 1e9 * tokens()  # numbers that are cleared where they are padding
    mask = torch.tensor([[True, True, False]])
    cache = KeyValueCache()
    layer(x[:, :2], cache=cache)
    actual = layer(x[:, 2:3], cache=cache, mask=mask)
    torch.testing.assert_close(actual, layer(x[:, 2:3], x[:, :2]))


def test_gradients_flow_through_the_past() -> None:
    layer, x = make(), tokens().requires_grad_()
    expected = torch.autograd.grad(layer(x, is_causal=True).sin().sum(), [x, layer.W_k.weight])
    output, _ = in_chunks(layer, x, [2, 3, 1])
    actual = torch.autograd.grad(output.sin().sum(), [x, layer.W_k.weight])
    torch.testing.assert_close(actual, expected)


# Beams


def test_reordered_beams_go_on_from_their_parents() -> None:
    layer, x = make(), tokens(batch=3)
    parents = torch.tensor([2, 0, 2, 1])  # 3 beams become 4; one continues twice
    cache = KeyValueCache()
    layer(x[:, :4], is_causal=True, cache=cache)
    cache.reorder(parents)
    new = tokens(batch=4, length=2)
    actual = layer(new, is_causal=True, cache=cache)
    whole = layer(torch.cat([x[parents, :4], new], 1), is_causal=True)
    torch.testing.assert_close(actual, whole[:, 4:])


def test_reordering_takes_any_integers() -> None:
    cache = KeyValueCache()
    key, value = cache.append(torch.randn(3, 1, 2, 4), torch.randn(3, 1, 2, 4))
    for dtype in (torch.uint8, torch.int32, torch.int64):
        index = torch.tensor([0, 1, 1], dtype=dtype)
        with assert_unchanged(key=key, value=value, index=index):
            cache.reorder(index)
        assert torch.equal(cache.key, key[[0, 1, 1]])
        cache.key, cache.value = key, value


def test_appending_leaves_what_was_returned_before() -> None:
    cache = KeyValueCache()
    first = cache.append(torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 5))
    assert cache.length == 3
    with assert_unchanged(*first):
        key, value = cache.append(torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 5))
    assert key.shape == (2, 1, 4, 4) and value.shape == (2, 1, 4, 5)
    assert torch.equal(key[:, :, :3], first[0]) and not key[:, :, 3].any()


# The memory of cross-attention


@each_layer
def test_a_memory_is_projected_once(options: Any) -> None:
    layer, x, memory = make(**options()), tokens(), tokens(length=4)
    other = tokens(length=4)
    lens = torch.tensor([4, 2])
    expected = layer(x, memory, other, valid_lens=lens, need_weights=True)
    poisoned = memory.clone()
    poisoned[1, 2:] = torch.nan
    cache = layer.remember(poisoned, other, valid_lens=lens)
    layer(x, cache=cache, valid_lens=lens).sin().sum().backward()
    assert layer.W_k.weight.grad.isfinite().all()
    with torch.no_grad():
        layer.W_k.weight.zero_()  # never read again
        layer.W_v.weight.zero_()
    for _ in range(2):
        actual = layer(x, cache=cache, valid_lens=lens, need_weights=True)
        torch.testing.assert_close(actual, expected)
    steps = [layer(x[:, [t]], cache=cache, valid_lens=lens) for t in range(LENGTH)]
    torch.testing.assert_close(torch.cat(steps, 1), expected[0])
    assert cache.length == 4 and cache.frozen
    cache.reorder(torch.tensor([1, 1]))
    both = layer(x[[1, 1]], cache=cache, valid_lens=lens[[1, 1]])
    torch.testing.assert_close(both, expected[0][[1, 1]])


def test_a_frozen_memory_alone_is_key_and_value() -> None:
    layer, x, memory = make(), tokens(), tokens(length=4)
    torch.testing.assert_close(layer(x, cache=layer.remember(memory)), layer(x, memory))
    x = x.clone()
    x[0] = torch.nan
    lens = torch.tensor([0, 4])
    output = layer(x, cache=layer.remember(memory), valid_lens=lens)
    output.sum().backward()
    assert output.isfinite().all() and layer.W_q.weight.grad.isfinite().all()


# Bad input


def filled(batch: int = 2, **options: Any) -> KeyValueCache:
    cache = KeyValueCache(**options)
    cache.append(torch.zeros(batch, 2, 3, 4), torch.zeros(batch, 2, 3, 4))
    return cache


X = torch.zeros(2, 1, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda layer: layer(X, cache=filled(3)),
            ValueError,
            "cache holds a batch of 3, got a query with a batch of 2: one cache serves one batch",
        ),
        (lambda layer: layer(X, cache=filled(3, frozen=True)), ValueError, "holds a batch of 3"),
        (
            lambda layer: MultiHeadAttention(8, 4)(X, cache=filled()),
            ValueError,
            r"cache holds a key of shape \[2, 2, 3, 4\], got one of shape \[2, 4, 1, 2\]",
        ),
        (lambda layer: layer.double()(X.double(), cache=filled()), ValueError, "the dtype of cac"),
        (lambda layer: layer(X, X, cache=filled(frozen=True)), ValueError, "cache is frozen"),
        (
            lambda layer: layer(X, cache=filled(frozen=True), position=torch.ones(2)),
            ValueError,
            "cache is frozen.* knows no positions",
        ),
        (
            lambda layer: layer(X, cache=filled(), valid_lens=torch.tensor([5, 1])),
            ValueError,
            r"valid_lens must lie in \[0, 4\]",
        ),
        (
            lambda layer: layer(X, cache=filled(), mask=torch.ones(1, 1).bool().expand(1, 3)),
            ValueError,
            r"mask must broadcast to \[2, 2, 1, 4\]",
        ),
        (lambda layer: layer.remember(X[..., :3]), ValueError, "key must have shape"),
        (lambda layer: layer.remember(X, X[:1]), ValueError, "value must have the batch of key"),
    ],
)
def test_a_layer_names_what_is_wrong_and_leaves_the_cache(
    call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(MultiHeadAttention(8, 2))


def test_a_cache_is_as_it_was_after_an_error() -> None:
    layer, cache = MultiHeadAttention(8, 2), filled()
    for bad in ({"mask": torch.ones(1, 4)}, {"valid_lens": torch.tensor([9, 9])}):
        with pytest.raises((TypeError, ValueError)):
            layer(X, cache=cache, **bad)
        assert cache.length == 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: c.append(X, X), ValueError, r"key must have shape \[batch, num_kv_heads"),
        (lambda c: c.append(X.long(), X), TypeError, "key must hold floating-point"),
        (
            lambda c: c.append(torch.zeros(2, 2, 1, 4), torch.zeros(2, 2, 2, 4)),
            ValueError,
            r"value must have the batch, heads and length of key, \[2, 2, 1\]",
        ),
        (
            lambda c: c.append(torch.zeros(2, 2, 1, 4), torch.zeros(2, 2, 1, 5)),
            ValueError,
            "cache holds a value of shape",
        ),
        (lambda c: c.reorder([0, 1]), TypeError, "index must be a torch.Tensor"),
        (lambda c: c.reorder(torch.tensor([0.0])), TypeError, "index must hold integers"),
        (lambda c: c.reorder(torch.tensor([True])), TypeError, "index must hold integers"),
        (lambda c: c.reorder(torch.tensor([[0]])), ValueError, r"index must have shape"),
        (lambda c: c.reorder(torch.tensor([0, 2])), ValueError, r"\[0, 2\).* got \[0, 2\]"),
        (lambda c: c.reorder(torch.tensor([-1])), ValueError, r"index must lie in \[0, 2\)"),
        (lambda c: KeyValueCache().reorder(torch.tensor([0])), ValueError, "cache is empty"),
        (
            lambda c: filled(frozen=True).append(torch.zeros(2, 2, 1, 4), torch.zeros(2, 2, 1, 4)),
            ValueError,
            "cache is frozen: nothing can be appended",
        ),
    ],
)
def test_a_cache_names_what_is_wrong(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(filled())
