"""Multi-head attention, head by head, against PyTorch and d2l, and its promises."""

import importlib.util
import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attn_course import _d2l
from attn_course.data import Vocabulary
from attn_course.dot_product import BilinearAttention, CosineAttention
from attn_course.multi_head import MultiHeadAttention, build_translator
from attn_course.seq2seq import AttentionDecoder, EncoderOutput
from attn_course.testing import assert_unchanged
from tests.launches import interpreted

needs_d2l = pytest.mark.skipif(
    importlib.util.find_spec("d2l") is None,
    reason="d2l is not installed: python -m attn_course.install_d2l",
)
SCORINGS: dict[str, Any] = {
    "dot": lambda: None,
    "additive": lambda: "additive",
    "bilinear": lambda: BilinearAttention(3, 3),
    "cosine": lambda: CosineAttention(),
}
each_scoring = pytest.mark.parametrize("scoring", SCORINGS.values(), ids=SCORINGS)
BATCH, QUERIES, KEYS, DIM, HEADS = 2, 4, 5, 12, 4


def make(num_heads: int = HEADS, **options: Any) -> MultiHeadAttention:
    """A layer whose biases are not zero, as they are at first."""
    layer = MultiHeadAttention(DIM, num_heads, **options).double()
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return layer


def randn(length: int, width: int = DIM, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(BATCH, length, width, dtype=dtype)


def head_by_head(
    layer: MultiHeadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One head after the other, from the rows of the matrices; ``allowed`` has 4 dimensions."""
    width, group = layer.head_dim, layer.num_heads // layer.num_kv_heads

    def project(linear: nn.Linear, x: Tensor, head: int) -> Tensor:
        rows = slice(head * width, (head + 1) * width)
        bias = 0 if linear.bias is None else linear.bias[rows]
        return x @ linear.weight[rows].T + bias

    outputs, all_weights = [], []
    for head in range(layer.num_heads):
        q = project(layer.W_q, query, head)
        k = project(layer.W_k, key, head // group)
        v = project(layer.W_v, value, head // group)
        if layer.scoring is None:
            scores = q @ k.mT / math.sqrt(width)
        else:
            inner = layer.scoring
            hidden = inner.W_q(q).unsqueeze(2) + inner.W_k(k).unsqueeze(1)
            scores = (torch.tanh(hidden) * inner.w_v).sum(-1)
        if allowed is not None:
            full = allowed.expand(BATCH, layer.num_heads, *scores.shape[1:])[:, head]
            nothing = ~full.any(-1, keepdim=True)
            scores = scores.masked_fill(~full & ~nothing, -math.inf)
            weights = scores.softmax(-1).masked_fill(nothing, 0)
        else:
            weights = scores.softmax(-1)
        outputs.append(weights @ v)
        all_weights.append(weights)
    merged = torch.cat(outputs, -1)
    bias = 0 if layer.W_o.bias is None else layer.W_o.bias
    return merged @ layer.W_o.weight.T + bias, torch.stack(all_weights, 1)


def allow(lens: Tensor, key_len: int) -> Tensor:
    """Lengths as a mask with four dimensions."""
    per_query = lens if lens.ndim == 2 else lens[:, None]
    return (torch.arange(key_len) < per_query[..., None]).unsqueeze(1)


# Head by head


@pytest.mark.parametrize("scoring", [None, "additive"])
@pytest.mark.parametrize("num_heads", [1, 3, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_one_head_after_the_other(scoring: Any, num_heads: int, bias: bool) -> None:
    layer = make(num_heads, bias=bias, scoring=scoring, query_dim=7, key_dim=5, value_dim=9)
    given = randn(QUERIES, 7), randn(KEYS, 5), randn(KEYS, 9)
    actual = layer(*given, need_weights=True)
    torch.testing.assert_close(actual, head_by_head(layer, *given))
    torch.testing.assert_close(layer(*given), actual[0])


MASKS = {
    "lens": {"valid_lens": torch.tensor([5, 2])},
    "lens_per_query": {"valid_lens": torch.tensor([[5, 0, 2, 1], [1, 5, 3, 0]])},
    "mask": {"mask": torch.rand(QUERIES, KEYS) > 0.4},
    "mask_per_item": {"mask": torch.rand(BATCH, QUERIES, KEYS) > 0.4},
    "mask_per_head": {"mask": torch.rand(BATCH, HEADS, QUERIES, KEYS) > 0.4},
    "padding_mask": {"mask": torch.tensor([5, 3])[:, None, None] > torch.arange(KEYS)},
    "one_column": {"mask": torch.tensor([True, False, True, True])[:, None]},
    "causal": {"is_causal": True},
    "all": {
        "valid_lens": torch.tensor([4, 3]),
        "mask": torch.rand(QUERIES, KEYS) > 0.3,
        "is_causal": True,
    },
}


@pytest.mark.parametrize("scoring", [None, "additive"])
@pytest.mark.parametrize("hiding", MASKS.values(), ids=MASKS)
def test_equals_head_by_head_where_keys_are_hidden(scoring: Any, hiding: dict[str, Any]) -> None:
    layer = make(scoring=scoring)
    query, key = randn(QUERIES), randn(KEYS)
    allowed = torch.ones(1, 1, QUERIES, KEYS, dtype=torch.bool)
    if "valid_lens" in hiding:
        allowed = allowed & allow(hiding["valid_lens"], KEYS)
    if "mask" in hiding:
        mask = hiding["mask"]
        allowed = allowed & (mask.unsqueeze(1) if mask.ndim == 3 else mask)
    if "is_causal" in hiding:
        allowed = allowed.tril()
    expected = head_by_head(layer, query, key, key, allowed)
    torch.testing.assert_close(layer(query, key, **hiding, need_weights=True), expected)
    torch.testing.assert_close(layer(query, key, **hiding), expected[0])


@each_scoring
def test_any_scoring_function_pools_in_every_head(scoring: Any) -> None:
    """Where there is one head with identity maps, the layer is its scoring function."""
    layer = MultiHeadAttention(3, 1, bias=False, scoring=scoring()).double()
    for linear in (layer.W_q, layer.W_k, layer.W_v, layer.W_o):
        nn.init.eye_(linear.weight)
    query, key, value = randn(QUERIES, 3), randn(KEYS, 3), randn(KEYS, 3)
    lens = torch.tensor([5, 2])
    output, weights = layer(query, key, value, valid_lens=lens, need_weights=True)
    if layer.scoring is None:
        inner = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=allow(lens, KEYS)[:, 0]
        )
        torch.testing.assert_close(output, inner)
    else:
        expected = layer.scoring(query, key, value, valid_lens=lens, need_weights=True)
        torch.testing.assert_close((output, weights.squeeze(1)), expected)


@each_scoring
def test_missing_keys_are_the_queries(scoring: Any) -> None:
    layer, x, other = make(scoring=scoring()), randn(QUERIES), randn(QUERIES)
    torch.testing.assert_close(layer(x), layer(x, x, x))
    torch.testing.assert_close(layer(x, other), layer(x, other, other))


@pytest.mark.parametrize("scoring", [None, "additive"])
@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_shared_keys_serve_heads_that_follow_each_other(scoring: Any, num_kv_heads: int) -> None:
    layer = make(num_kv_heads=num_kv_heads, scoring=scoring)
    query, key = randn(QUERIES), randn(KEYS)
    lens = torch.tensor([5, 2])
    actual = layer(query, key, valid_lens=lens, need_weights=True)
    expected = head_by_head(layer, query, key, key, allow(lens, KEYS))
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(layer(query, key, valid_lens=lens), expected[0])
    assert layer.W_k.weight.shape == layer.W_v.weight.shape == (num_kv_heads * 3, DIM)
    assert f"num_kv_heads={num_kv_heads}" in repr(layer)


def test_more_heads_are_not_more_parameters() -> None:
    counts = {sum(p.numel() for p in make(heads).parameters()) for heads in (1, 2, 3, 12)}
    assert counts == {4 * (DIM * DIM + DIM)}


def test_scores_start_with_unit_variance() -> None:
    layer = MultiHeadAttention(256, 4)
    query, key = (torch.randn(4, 64, 256) for _ in range(2))
    q, k = (
        linear(x).unflatten(-1, (4, 64)).transpose(1, 2)
        for linear, x in ((layer.W_q, query), (layer.W_k, key))
    )
    assert 0.9 < (q @ k.mT / 8).std().item() < 1.1
    assert not any(linear.bias.any() for linear in (layer.W_q, layer.W_k, layer.W_v, layer.W_o))


@each_scoring
def test_keys_can_be_projected_once(scoring: Any) -> None:
    """As the decoder of chapter 3 asks of what it attends with."""
    layer = make(scoring=scoring())
    query, memory = randn(QUERIES), randn(KEYS)
    lens = torch.tensor([5, 2])
    keys, values = layer.project_keys(memory), layer.project_values(memory)
    whole = layer(query, memory, valid_lens=lens, need_weights=True)
    steps = [
        layer.attend(query[:, [t]], keys, values, valid_lens=lens, need_weights=True)
        for t in range(QUERIES)
    ]
    for part, axis in ((0, 1), (1, 2)):
        torch.testing.assert_close(torch.cat([s[part] for s in steps], axis), whole[part])
    mask = torch.rand(BATCH, QUERIES, KEYS) > 0.3
    actual = layer.attend(query, keys, values, mask=mask)
    torch.testing.assert_close(actual, layer(query, memory, mask=mask))


def test_a_recurrent_decoder_can_have_several_heads() -> None:
    heads = MultiHeadAttention(8, 2, query_dim=6)  # queries are states of the decoder
    decoder = AttentionDecoder(9, 5, 6, 8, scoring=heads).double().eval()
    memory = EncoderOutput(torch.randn(2, 4, 8).double(), (torch.randn(1, 2, 8).double(),))
    state = decoder.start(memory, torch.tensor([4, 2]))
    target = torch.randint(9, (2, 3))
    whole, _, weights = decoder(target, state, need_weights=True)
    assert weights is not None and weights.shape == (2, 2, 3, 4)  # batch, heads, steps, keys
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 3).double())
    assert not weights[1, :, :, 2:].any() and (weights[:, 0] != weights[:, 1]).any()
    for t in range(3):
        logits, state, row = decoder.step(target[:, t], state, need_weights=True)
        torch.testing.assert_close(logits, whole[:, t])
        torch.testing.assert_close(row, weights[:, :, t])


def test_a_decoder_with_heads_projects_the_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = MultiHeadAttention(8, 2, query_dim=6)
    decoder = AttentionDecoder(9, 5, 6, 8, scoring=heads).eval()
    counts = {"W_k": 0, "W_v": 0}
    for name in counts:
        getattr(heads, name).register_forward_hook(
            lambda *_, name=name: counts.update({name: counts[name] + 1})
        )
    memory = EncoderOutput(torch.randn(2, 4, 8), (torch.randn(1, 2, 8),))
    decoder(torch.randint(9, (2, 5)), decoder.start(memory, torch.tensor([4, 2])))
    assert counts == {"W_k": 1, "W_v": 1}


@pytest.mark.parametrize("width", [1, 3])
def test_translations_come_with_the_weights_of_each_head(width: int) -> None:
    words = Vocabulary(["le chat noir dort"])
    sizes = {"embed_dim": 4, "hidden_dim": 4}
    torch.manual_seed(0)
    translator = build_translator(sizes, sizes | {"num_heads": 4}, words, words)
    one, two = translator.translate(
        ["chat", "le chat noir"], width=width, max_len=5, need_weights=True
    )
    for found in (one, two):
        assert found.weights is not None
        assert found.weights.shape == (4, len(found.target), len(found.source))
        torch.testing.assert_close(found.weights.sum(-1), torch.ones(4, len(found.target)))
    ids = torch.tensor([[words.bos, *(words.tokens.index(token) for token in two.target[:-1])]])
    source = torch.tensor([[*words.encode("le chat noir"), words.eos]])
    _, scored = translator.model(source, torch.tensor([4]), ids, need_weights=True)
    torch.testing.assert_close(scored[0, :, : len(two.target)], two.weights)


# PyTorch's layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [{}, {"kdim": 5, "vdim": 9}, {"kdim": DIM, "vdim": 9}], ids=str)
@pytest.mark.parametrize("from_state", [True, False])
def test_equals_torch(bias: bool, widths: dict[str, int], from_state: bool) -> None:
    theirs = nn.MultiheadAttention(DIM, HEADS, bias=bias, batch_first=True, **widths)
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    key_dim, value_dim = widths.get("kdim", DIM), widths.get("vdim", DIM)
    ours = MultiHeadAttention(DIM, HEADS, bias=bias, key_dim=key_dim, value_dim=value_dim)
    ours.load_torch(theirs.state_dict() if from_state else theirs)

    given = [randn(n, w, torch.float32) for n, w in ((4, DIM), (5, key_dim), (5, value_dim))]
    lens, mask = torch.tensor([5, 3]), torch.rand(QUERIES, KEYS) > 0.4
    mask[:, 0] = True  # PyTorch gives NaN where a query may see no key
    hidden = torch.arange(KEYS) >= lens[:, None]
    expected = theirs(*given, key_padding_mask=hidden, attn_mask=~mask, average_attn_weights=False)
    actual = ours(*given, valid_lens=lens, mask=mask, need_weights=True)
    for mine, its in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
    output = ours(*given, valid_lens=lens, mask=mask)
    torch.testing.assert_close(output, expected[0], rtol=1e-5, atol=1e-6)


def test_gradients_equal_those_of_torch() -> None:
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    ours = MultiHeadAttention(DIM, HEADS).double()
    ours.load_torch(theirs)
    x = randn(QUERIES).requires_grad_()
    future = torch.ones(QUERIES, QUERIES, dtype=torch.bool).triu(1)
    theirs(x, x, x, attn_mask=future)[0].sin().sum().backward()
    expected, x.grad = x.grad, None
    ours(x, is_causal=True).sin().sum().backward()
    torch.testing.assert_close(x.grad, expected)
    stacked = torch.cat([ours.W_q.weight.grad, ours.W_k.weight.grad, ours.W_v.weight.grad])
    torch.testing.assert_close(stacked, theirs.in_proj_weight.grad)
    torch.testing.assert_close(ours.W_o.weight.grad, theirs.out_proj.weight.grad)


def test_torch_gives_nan_where_a_query_may_see_no_key() -> None:
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    ours = make()
    ours.load_torch(theirs)
    x, lens = randn(KEYS), torch.tensor([5, 0])
    hidden = torch.arange(KEYS) >= lens[:, None]
    assert theirs(x, x, x, key_padding_mask=hidden)[0][1].isnan().all()
    assert torch.equal(ours(x, valid_lens=lens)[1], ours.W_o.bias.expand(KEYS, DIM))


def test_loading_copies() -> None:
    theirs, ours = nn.MultiheadAttention(DIM, HEADS), MultiHeadAttention(DIM, HEADS)
    ours.load_torch(theirs)
    before = ours.W_v.weight.clone()
    with torch.no_grad():
        theirs.in_proj_weight.zero_()
    assert torch.equal(ours.W_v.weight, before)


# d2l's layer


def d2l_layer(bias: bool = False, width: int = DIM) -> Any:
    theirs = _d2l.load().MultiHeadAttention(width, HEADS, 0.0, bias=bias)
    theirs(randn(1, 7, torch.float32), randn(1, 5, torch.float32), randn(1, 9, torch.float32), None)
    return theirs


@needs_d2l
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("per_query", [True, False])
@pytest.mark.parametrize("from_state", [True, False])
def test_equals_d2l(bias: bool, per_query: bool, from_state: bool) -> None:
    theirs = d2l_layer(bias)
    ours = MultiHeadAttention(DIM, HEADS, query_dim=7, key_dim=5, value_dim=9, bias=bias)
    ours.load_d2l(theirs.state_dict() if from_state else theirs)
    given = [randn(n, w, torch.float32) for n, w in ((4, 7), (5, 5), (5, 9))]
    lens = torch.randint(1, KEYS + 1, (BATCH, QUERIES) if per_query else (BATCH,))
    output, weights = ours(*given, valid_lens=lens, need_weights=True)
    torch.testing.assert_close(output, theirs(*given, lens), rtol=1e-5, atol=1e-5)
    per_head = theirs.attention.attention_weights.unflatten(0, (BATCH, HEADS))
    torch.testing.assert_close(weights, per_head, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(*given), theirs(*given, None), rtol=1e-5, atol=1e-5)


@needs_d2l
def test_where_d2l_is_wrong() -> None:
    """Padding is averaged where there is nothing else, and NaN in it leaks."""
    theirs = d2l_layer()
    ours = MultiHeadAttention(DIM, HEADS, query_dim=7, key_dim=5, value_dim=9, bias=False)
    ours.load_d2l(theirs)
    query, key, value = (randn(n, w, torch.float32) for n, w in ((4, 7), (5, 5), (5, 9)))
    lens = torch.tensor([5, 0])
    assert theirs(query, key, value, lens)[1].abs().max() > 0.01
    assert not ours(query, key, value, valid_lens=lens).any(-1)[1].any()
    value[0, 3:] = torch.nan
    lens = torch.tensor([3, 5])
    assert theirs(query, key, value, lens)[0].isnan().all()
    assert ours(query, key, value, valid_lens=lens).isfinite().all()


@needs_d2l
def test_a_lazy_d2l_layer_has_nothing_to_load() -> None:
    theirs = _d2l.load().MultiHeadAttention(DIM, HEADS, 0.0)
    with pytest.raises(ValueError, match="source has no weights yet: call it once"):
        MultiHeadAttention(DIM, HEADS, bias=False).load_d2l(theirs)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (lambda: nn.MultiheadAttention(DIM, 2), {}, "source must have 4 heads.* got 2"),
        (lambda: nn.MultiheadAttention(24, 4), {}, r"W_k.bias is \[12\] here and \[24\] in"),
        (
            lambda: nn.MultiheadAttention(DIM, 4, bias=False),
            {},
            r"W_k.bias is \[12\] here and missing in source",
        ),
        (
            lambda: nn.MultiheadAttention(DIM, 4),
            {"bias": False},
            r"W_k.bias is missing here and \[12\] in source",
        ),
        (lambda: nn.MultiheadAttention(DIM, 4), {"num_kv_heads": 2}, r"W_k.bias is \[6\] here"),
        (lambda: nn.MultiheadAttention(DIM, 4, kdim=5), {}, r"W_k.weight is \[12, 12\] here"),
        (lambda: nn.MultiheadAttention(DIM, 4, add_zero_attn=True), {}, "add_zero_attn"),
        (lambda: nn.MultiheadAttention(DIM, 4, add_bias_kv=True), {}, "bias_k is missing here"),
        (lambda: nn.MultiheadAttention(DIM, 4), {"scoring": "additive"}, "by its scoring"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    source: Any, options: dict[str, Any], message: str
) -> None:
    layer = make(**options)
    before = [parameter.clone() for parameter in layer.parameters()]
    with pytest.raises(ValueError, match=message):
        layer.load_torch(source())
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))


# What must not matter


@each_scoring
@pytest.mark.parametrize("training", [True, False])
def test_the_future_does_not_matter_bit_for_bit(scoring: Any, training: bool) -> None:
    options = {"scoring": scoring()}
    if not isinstance(options["scoring"], nn.Module):
        options["dropout"] = 0.5
    layer = make(**options).train(training)
    x = randn(6)
    for needs, t in product((True, False), range(1, 6)):
        changed = x.clone()
        changed[:, t:] = 10 * torch.randn_like(x[:, t:])
        results = []
        for tokens in (x, changed):
            torch.manual_seed(1)  # the same weights are dropped
            found = layer(tokens, is_causal=True, need_weights=needs)
            results.append(found[0] if needs else found)
        assert torch.equal(results[0][:, :t], results[1][:, :t])
        assert not torch.allclose(results[0][:, t:], results[1][:, t:])


@each_scoring
def test_order_does_not_matter(scoring: Any) -> None:
    """Permuted tokens give equally permuted outputs; permuted keys change nothing."""
    layer, x, query = make(scoring=scoring()), randn(6), randn(QUERIES)
    order = torch.randperm(6)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])
    torch.testing.assert_close(layer(query, x[:, order]), layer(query, x))
    lens = torch.tensor([6, 6])
    torch.testing.assert_close(layer(x[:, order], valid_lens=lens), layer(x)[:, order])


@each_scoring
@pytest.mark.parametrize("self_attention", [True, False])
def test_padding_cannot_leak(scoring: Any, self_attention: bool) -> None:
    """Not into the parameters either, whose gradient the tokens are a factor of."""
    layer, lens = make(scoring=scoring()), torch.tensor([5, 2])
    x = randn(KEYS)
    memory = x if self_attention else randn(KEYS)
    hidden = torch.arange(KEYS) >= lens[:, None]
    results = []
    for fill in (0.0, torch.nan, torch.inf):
        layer.zero_grad()
        padded = memory.masked_fill(hidden[..., None], fill).requires_grad_()
        output = layer(padded if self_attention else x, padded, valid_lens=lens)
        if self_attention:  # without keys, the queries are padded too
            output = layer(padded, valid_lens=lens)
        output = output.masked_fill(hidden[..., None], 0) if self_attention else output
        output.sin().sum().backward()
        results.append([output.detach(), padded.grad, *(p.grad for p in layer.parameters())])
    for clean, *poisoned in zip(*results, strict=True):
        for other in poisoned:
            torch.testing.assert_close(other, clean, rtol=0, atol=0)


@pytest.mark.parametrize("how", ["lens", "lens_per_query", "mask"])
@each_scoring
def test_a_query_that_may_see_nothing(scoring: Any, how: str) -> None:
    layer = make(scoring=scoring())
    x = randn(QUERIES)
    x[1] = torch.nan
    x.requires_grad_()
    hiding = {
        "lens": {"valid_lens": torch.tensor([KEYS, 0])},
        "lens_per_query": {"valid_lens": torch.tensor([[5, 5, 1, 2], [0, 0, 0, 0]])},
        "mask": {"mask": torch.tensor([True, False])[:, None, None]},
    }[how]
    memory = randn(KEYS)
    output, weights = layer(x, memory, **hiding, need_weights=True)
    assert not weights[1].any()
    assert torch.equal(output[1], layer.W_o.bias.expand(QUERIES, DIM))
    output.sin().sum().backward()
    assert not x.grad[1].any()
    for parameter in layer.parameters():
        assert parameter.grad.isfinite().all()


def test_what_one_head_may_see_is_not_padding() -> None:
    """However large it is; only what no head may see is cleared."""
    layer, query, key = make(), randn(QUERIES), 1e9 * randn(KEYS)
    mask = torch.ones(1, HEADS, 1, KEYS, dtype=torch.bool)
    mask[:, 1:, :, 3] = False
    torch.testing.assert_close(
        layer(query, key, mask=mask), head_by_head(layer, query, key, key, mask)[0]
    )


def test_arguments_stay_as_they_are() -> None:
    layer, query, key = make(), randn(QUERIES), randn(KEYS)
    key[1, 2:] = torch.nan
    lens, mask = torch.tensor([5, 2]), torch.rand(BATCH, QUERIES, KEYS) > 0.3
    with assert_unchanged(query=query, key=key, lens=lens, mask=mask):
        layer(query, key, valid_lens=lens, mask=mask)


def test_dropout_is_for_training() -> None:
    layer, x = make(dropout=0.5), randn(KEYS)
    assert not torch.equal(layer(x), layer(x))
    torch.manual_seed(0)
    _, weights = layer(x, need_weights=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, HEADS, KEYS).double())
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("scoring", [None, "additive"])
def test_gradcheck(scoring: Any) -> None:
    layer = MultiHeadAttention(4, 2, key_dim=3, scoring=scoring, impl="reference").double()
    query = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    key = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)
    value = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)

    def attend(*leaves: Tensor) -> Tensor:
        parameters = dict(zip(names, leaves[3:], strict=True))
        return torch.func.functional_call(layer, parameters, leaves[:3], {"is_causal": True})

    names = [name for name, _ in layer.named_parameters()]
    assert torch.autograd.gradcheck(attend, (query, key, value, *layer.parameters()))


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(impl: str, dtype: torch.dtype) -> None:
    layer = make(impl=impl)
    x = randn(KEYS)
    exact = layer(x, is_causal=True)
    output = layer.to(dtype)(x.to(dtype), is_causal=True)
    assert output.dtype == dtype
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=20 * rounding)


@interpreted
@pytest.mark.triton
@pytest.mark.parametrize("num_kv_heads", [2, 4])
def test_the_kernel_serves_the_heads(num_kv_heads: int) -> None:
    layer = make(num_kv_heads=num_kv_heads, impl="triton").float()
    x, lens = randn(KEYS, dtype=torch.float32), torch.tensor([5, 2])
    kernel = layer(x, valid_lens=lens, is_causal=True)
    layer.impl = "reference"
    plain = layer(x, valid_lens=lens, is_causal=True)
    torch.testing.assert_close(kernel, plain, rtol=1e-5, atol=1e-5)


# Heads that are off


@each_scoring
def test_a_head_that_is_off_is_a_slice_of_the_output_map_that_is_zero(scoring: Any) -> None:
    layer, x = make(scoring=scoring()), randn(KEYS)
    full, (_, weights) = layer(x), layer(x, need_weights=True)
    with layer.without_heads(1, 3):
        without = layer(x)
        output, same = layer(x, need_weights=True)
    torch.testing.assert_close(weights, same)
    torch.testing.assert_close(without, output)
    assert not torch.allclose(without, full)
    torch.testing.assert_close(layer(x), full, rtol=0, atol=0)
    with torch.no_grad():
        layer.W_o.weight[:, 3:6] = 0
        layer.W_o.weight[:, 9:12] = 0
    torch.testing.assert_close(without, layer(x))


def test_heads_come_back_after_an_error_and_add_up() -> None:
    layer, x = make(), randn(KEYS)
    with layer.without_heads(0, 2):
        both = layer(x)
    with layer.without_heads(0):
        first = layer(x)
        with pytest.raises(KeyError), layer.without_heads(2):
            torch.testing.assert_close(layer(x), both)
            raise KeyError
        torch.testing.assert_close(layer(x), first)
    with layer.without_heads(*range(HEADS)):
        assert torch.equal(layer(x), layer.W_o.bias.expand(BATCH, KEYS, DIM))


@pytest.mark.parametrize("head", [-1, HEADS, "0"])
def test_there_is_no_such_head(head: Any) -> None:
    with (
        pytest.raises(ValueError, match=r"heads must be integers in \[0, 4\), got"),
        make().without_heads(head),
    ):
        pass


# Bad input

Q, K = torch.zeros(2, 3, 8), torch.zeros(2, 5, 8)


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        (([1.0],), {}, TypeError, "query must be a torch.Tensor"),
        ((Q.long(),), {}, TypeError, "query must hold floating-point"),
        ((Q[0],), {}, ValueError, r"query must have shape \[batch, len, 8\], got \[3, 8\]"),
        ((Q[..., :4],), {}, ValueError, r"query must have shape \[batch, len, 8\]"),
        ((Q, K[..., :4]), {}, ValueError, r"key must have shape \[batch, len, 8\]"),
        ((Q, K, K[..., :4]), {}, ValueError, r"value must have shape \[batch, len, 8\]"),
        ((Q, K, K[:, :4]), {}, ValueError, "value must have one row for each key, 5, got 4"),
        ((Q, K[:1]), {}, ValueError, "key must have the batch of query, 2, got 1"),
        ((Q, K, K[:1]), {}, ValueError, "value must have the batch of query, 2, got 1"),
        ((Q, K.double()), {}, ValueError, "key must have the dtype of query"),
        ((Q, None, K), {}, ValueError, "value was given without key"),
        ((Q, K), {"valid_lens": torch.tensor([1.0, 2])}, TypeError, "valid_lens must hold int"),
        ((Q, K), {"valid_lens": torch.tensor([1, 6])}, ValueError, r"valid_lens must .* got 6"),
        ((Q, K), {"valid_lens": torch.tensor([1])}, ValueError, r"shape \[2\] or \[2, 3\]"),
        ((Q, K), {"mask": [[True]]}, TypeError, "mask must be a torch.Tensor, got list"),
        ((Q, K), {"mask": torch.zeros(3, 5)}, TypeError, r"True = may attend.* pass mask == 0"),
        ((Q, K), {"mask": torch.zeros(3, 5).int()}, TypeError, "mask must hold booleans"),
        (
            (Q, K),
            {"mask": torch.ones(4, 5).bool()},
            ValueError,
            r"mask must broadcast to \[2, 2, 3, 5\], the shape of the weights, got \[4, 5\]",
        ),
        ((Q, K), {"mask": torch.ones(3, 3, 5).bool()}, ValueError, "mask must broadcast"),
        ((Q, K), {"position": "rotary"}, TypeError, "position must be callable.* got str"),
        ((Q, K), {"position": torch.ones(3)}, ValueError, r"a slope for each head, \[2\], got"),
        ((Q, K), {"position": torch.ones(2).int()}, TypeError, "position must hold floating"),
    ],
)
def test_bad_input_is_named(
    given: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MultiHeadAttention(8, 2)(*given, **options)


def test_slopes_need_dot_products() -> None:
    layer = MultiHeadAttention(8, 2, scoring="additive")
    with pytest.raises(ValueError, match="position holds slopes, which are added to dot products"):
        layer(Q, position=torch.ones(2))


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((10, 3), {}, ValueError, "embed_dim must be a multiple of num_heads.* got 10 for 3"),
        ((8, 0), {}, ValueError, "num_heads must be an integer of at least 1, got 0"),
        ((8.0, 2), {}, ValueError, "embed_dim must be an integer of at least 1, got 8.0"),
        ((8, 2), {"key_dim": 0}, ValueError, "key_dim must be an integer of at least 1"),
        ((8, 4), {"num_kv_heads": 3}, ValueError, "num_kv_heads must divide num_heads, 4.* got 3"),
        ((8, 2), {"dropout": 1.0}, ValueError, r"dropout must lie in \[0, 1\), got 1.0"),
        ((8, 2), {"impl": "fast"}, ValueError, "impl must be one of 'auto', .* got 'fast'"),
        ((8, 2), {"scoring": "additive", "impl": "sdpa"}, ValueError, "impl must be one of"),
        ((8, 2), {"scoring": "cosine"}, ValueError, "scoring must be one of 'additive'"),
        ((8, 2), {"scoring": nn.Linear(4, 4)}, TypeError, "nn.Module with project_keys and att"),
        (
            (8, 2),
            {"scoring": CosineAttention(), "dropout": 0.1},
            ValueError,
            "scoring is a module, which has a dropout and an impl of its own",
        ),
    ],
)
def test_bad_construction_is_named(
    args: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MultiHeadAttention(*args, **options)
