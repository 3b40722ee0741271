"""Both implementations against brute force, against PyTorch, and against their promises."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.dot_product import dot_product_attention, ops
from attn_course.testing import (
    LAYOUTS,
    LENGTHS,
    assert_close,
    assert_unchanged,
    assert_within_budget,
    make_qkv,
    make_valid_lens,
    with_layout,
)
from tests.dot_product import oracle
from tests.launches import interpreted

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLS = ["reference", "sdpa"]
each_impl = pytest.mark.parametrize("impl", IMPLS)


def inputs(n: int, m: int, *batch: int, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return make_qkv(batch, n, m, **({"dtype": torch.float64, "device": DEVICE} | kwargs))


def brute_force(query: Tensor, key: Tensor, value: Tensor, scale: float, allowed: Tensor) -> Tensor:
    """With Python loops over Python numbers, no batch."""
    rows = []
    for i, q in enumerate(query.tolist()):
        scores = [scale * math.fsum(a * b for a, b in zip(q, k, strict=True)) for k in key.tolist()]
        e = [math.exp(s) if allowed[i, j] else 0.0 for j, s in enumerate(scores)]
        total = math.fsum(e) or 1.0
        rows.append(
            [math.fsum(x * v for x, v in zip(e, c, strict=True)) / total for c in value.mT.tolist()]
        )
    return torch.tensor(rows, dtype=torch.float64)


@each_impl
@pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("hide", ["nothing", "lens", "mask", "both"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_equals_brute_force(
    impl: str, is_causal: bool, hide: str, lengths: tuple[int, int]
) -> None:
    n, m = lengths
    query, key, value = inputs(n, m)
    hiding: dict[str, Tensor] = {}
    allowed = torch.ones(n, m, dtype=torch.bool, device=DEVICE)
    if is_causal:
        allowed = allowed.tril()
    if hide in ("lens", "both"):
        hiding["valid_lens"] = make_valid_lens((n,), m, device=DEVICE)
        allowed = allowed & (torch.arange(m, device=DEVICE) < hiding["valid_lens"][:, None])
    if hide in ("mask", "both"):
        hiding["mask"] = torch.rand(n, m, device=DEVICE) > 0.3
        allowed = allowed & hiding["mask"]
    expected = brute_force(query, key, value, 0.5, allowed)
    actual = dot_product_attention(query, key, value, is_causal=is_causal, impl=impl, **hiding)
    assert_close(actual, expected)
    assert bool((actual[~allowed.any(-1)] == 0).all())


@each_impl
@pytest.mark.parametrize("leading", [(), (2,), (2, 3), (2, 2, 3)], ids=str)
def test_equals_pytorch(impl: str, leading: tuple[int, ...]) -> None:
    leaves = inputs(6, 9, *leading, dtype=torch.float32, requires_grad=True)
    mask = torch.rand(*leading, 1, 9, device=DEVICE) > 0.3
    mask[..., 0] = True
    g = torch.randn(*leading, 6, 3, device=DEVICE)
    for ours, theirs in (({}, {}), ({"mask": mask}, {"attn_mask": mask})):
        actual = dot_product_attention(*leaves, impl=impl, **ours)
        expected = F.scaled_dot_product_attention(*leaves, **theirs)
        torch.testing.assert_close(actual, expected)
        gradients = (torch.autograd.grad(out, leaves, g) for out in (actual, expected))
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("n, m", [(4, 7), (7, 4), (5, 5)])
def test_causal_is_aligned_top_left_as_in_pytorch(n: int, m: int) -> None:
    leaves = inputs(n, m, 2, 3)
    expected = F.scaled_dot_product_attention(*leaves, is_causal=True)
    for impl in IMPLS:
        actual = dot_product_attention(*leaves, is_causal=True, impl=impl)
        torch.testing.assert_close(actual, expected)


@each_impl
def test_leading_dimensions_broadcast(impl: str) -> None:
    query, key, value = inputs(3, 5)
    lens = torch.tensor([4, 2], device=DEVICE)
    mask = torch.rand(2, 6, 1, 5, device=DEVICE) > 0.2
    actual = dot_product_attention(
        query.expand(6, 3, 4), key.expand(2, 1, 5, 4), value, valid_lens=lens, mask=mask, impl=impl
    )
    assert actual.shape == (2, 6, 3, 3)
    for b in range(2):
        for h in range(6):
            one = dot_product_attention(query, key, value, valid_lens=lens[b], mask=mask[b, h])
            torch.testing.assert_close(actual[b, h], one)


@each_impl
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(impl: str, layout: str) -> None:
    leaves = [with_layout(x, layout).requires_grad_() for x in inputs(5, 7, 2)]
    g = with_layout(torch.randn(2, 5, 3, dtype=torch.float64, device=DEVICE), layout)
    lens = torch.tensor([7, 3], device=DEVICE)
    results = []
    for tensors, gradient in ((leaves, g), ([x.contiguous() for x in leaves], g.contiguous())):
        output = dot_product_attention(*tensors, valid_lens=lens, impl=impl)
        results.append((output, *torch.autograd.grad(output, tensors, gradient)))
    torch.testing.assert_close(*results)


@each_impl
@pytest.mark.parametrize("is_causal", [False, True])
def test_gradcheck(impl: str, is_causal: bool) -> None:
    leaves = inputs(3, 4, 2, requires_grad=True)
    scale = torch.tensor(0.8, dtype=torch.float64, device=DEVICE, requires_grad=True)
    lens = torch.tensor([[4, 0, 2], [1, 3, 4]], device=DEVICE)
    mask = torch.rand(3, 4, device=DEVICE) > 0.2

    def function(query: Tensor, key: Tensor, value: Tensor, scale: Tensor) -> Tensor:
        return dot_product_attention(
            query, key, value, valid_lens=lens, mask=mask, is_causal=is_causal, scale=scale,
            impl=impl,
        )  # fmt: skip

    assert torch.autograd.gradcheck(function, (*leaves, scale))


def test_the_reference_can_be_differentiated_twice() -> None:
    leaves = inputs(2, 3, requires_grad=True)
    lens = torch.tensor([3, 0], device=DEVICE)

    def function(*leaves: Tensor) -> Tensor:
        return dot_product_attention(*leaves, valid_lens=lens, impl="reference")

    assert torch.autograd.gradgradcheck(function, leaves)


@each_impl
@pytest.mark.parametrize("scale", [0.0, -1.5, 2, 1e-3])
def test_any_scale(impl: str, scale: float) -> None:
    query, key, value = inputs(4, 6, 2)
    expected = ((query @ key.mT) * scale).softmax(-1) @ value
    actual = dot_product_attention(query, key, value, scale=scale, impl=impl)
    torch.testing.assert_close(actual, expected)
    for shape in ((), (1,), (1, 1)):
        learned = torch.full(shape, float(scale), device=DEVICE)
        actual = dot_product_attention(query, key, value, scale=learned, impl=impl)
        torch.testing.assert_close(actual, ((query @ key.mT) * learned).softmax(-1) @ value)


@each_impl
@pytest.mark.parametrize("is_causal", [False, True])
def test_nothing_to_attend_to_gives_zeros(impl: str, is_causal: bool) -> None:
    leaves = inputs(3, 4, 2, requires_grad=True)
    lens = torch.tensor([[0, 4, 0], [2, 0, 1]], device=DEVICE)
    output = dot_product_attention(*leaves, valid_lens=lens, is_causal=is_causal, impl=impl)
    empty = lens == 0
    assert bool((output[empty] == 0).all()) and bool((output[~empty] != 0).any())
    gradients = torch.autograd.grad(output.square().sum() + output.sum(), leaves)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert bool((gradients[0][empty] == 0).all())
    nothing = dot_product_attention(*leaves, valid_lens=torch.zeros_like(lens), impl=impl)
    for gradient in torch.autograd.grad(nothing.sum(), leaves):
        assert bool((gradient == 0).all())


@each_impl
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 3e4, 1e30])
@pytest.mark.parametrize("how", ["lens", "mask"])
def test_padding_cannot_leak(impl: str, dtype: torch.dtype, poison: float, how: str) -> None:
    """Of keys and values, and of a query that may see nothing: outputs and gradients."""
    query, key, value = inputs(5, 9, 3, dtype=dtype)
    lens = torch.tensor([3, 8, 0], device=DEVICE)
    hidden = torch.arange(9, device=DEVICE) >= lens[:, None]
    hiding = {"valid_lens": lens} if how == "lens" else {"mask": ~hidden[:, None]}
    results = []
    poison = poison if math.isinf(poison) else min(poison, torch.finfo(dtype).max)
    for fill in (0.0, poison):
        leaves = [
            query.masked_fill((lens == 0)[:, None, None], fill).requires_grad_(),
            key.masked_fill(hidden[..., None], fill).requires_grad_(),
            value.masked_fill(hidden[..., None], fill).requires_grad_(),
        ]
        output = dot_product_attention(*leaves, **hiding, impl=impl)
        results.append((output, *torch.autograd.grad(output.sin().sum(), leaves)))
    for clean, poisoned in zip(*results, strict=True):
        torch.testing.assert_close(poisoned, clean, rtol=0, atol=0)


@each_impl
def test_keys_that_the_causal_mask_hides_from_all_cannot_leak(impl: str) -> None:
    query, key, value = inputs(3, 6, 2)
    key[:, 3:], value[:, 3:] = torch.nan, torch.nan
    leaves = [x.requires_grad_() for x in (query, key, value)]
    output = dot_product_attention(*leaves, is_causal=True, impl=impl)
    gradients = torch.autograd.grad(output.sum(), leaves)
    assert all(bool(x.isfinite().all()) for x in (output, *gradients))


@each_impl
def test_large_scores(impl: str) -> None:
    key = torch.tensor([[100.0], [-100.0], [99.0]], device=DEVICE)
    query = torch.tensor([[100.0], [-100.0]], device=DEVICE)
    output = dot_product_attention(query, key, key, impl=impl)
    assert output.flatten().tolist() == [100.0, -100.0]


@each_impl
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(impl: str, dtype: torch.dtype) -> None:
    query, key, value = inputs(7, 33, 2, 2, dtype=dtype, dim=32, value_dim=32)
    lens = torch.tensor([33, 5], device=DEVICE)
    mask = torch.arange(33, device=DEVICE) < lens[:, None, None, None]

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = (query @ key.mT / 32**0.5).masked_fill(~mask, -torch.inf)
        return scores.softmax(-1) @ value

    low, oracle = plain(query, key, value), plain(query.double(), key.double(), value.double())
    actual = dot_product_attention(query, key, value, valid_lens=lens, impl=impl)
    assert_within_budget(actual, low, oracle.cpu())


def test_weights() -> None:
    query, key, value = inputs(4, 6, 2, 3)
    lens = torch.tensor([5, 0], device=DEVICE)
    output, weights = dot_product_attention(
        query, key, value, valid_lens=lens, is_causal=True, need_weights=True
    )
    assert weights.shape == (2, 3, 4, 6)
    torch.testing.assert_close(weights @ value, output)
    total = weights.sum(-1)
    torch.testing.assert_close(total[0], torch.ones_like(total[0]))
    assert bool((weights[1] == 0).all()) and bool((weights.triu(1) == 0).all())


@each_impl
def test_dropout_falls_on_the_weights_after_the_softmax(impl: str) -> None:
    query, key, _ = inputs(40, 50)
    value = torch.eye(50, dtype=torch.float64, device=DEVICE)  # the output is the weights
    output = dot_product_attention(query, key, value, dropout_p=0.25, impl=impl)
    weights = dot_product_attention(query, key, value)
    kept = output != 0
    torch.testing.assert_close(output[kept], weights[kept] / 0.75)
    assert 0.7 < kept.double().mean().item() < 0.8
    if impl == "reference":
        _, before = dot_product_attention(query, key, value, dropout_p=0.25, need_weights=True)
        torch.testing.assert_close(before, weights)


@pytest.mark.skipif(DEVICE != "cpu", reason="only on a CPU")
@pytest.mark.parametrize("heads", [(), (4,)], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"window": (2, 1)}, {"slopes": True}], ids=str
)
def test_item_by_item_or_all_together(
    options: dict[str, Any], heads: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths of 0 and of all keys among them; the keys past them hold NaN."""
    if options.pop("slopes", False):
        if not heads:
            pytest.skip("slopes belong to heads")
        options = {"bias_slopes": torch.tensor([0.5, 0.25, 0.1, 0.0], dtype=torch.float64)}
    lens = torch.tensor([7, 0, 3])
    made = make_qkv((3, *heads), 5, 7, dtype=torch.float64)
    past = (torch.arange(7) >= lens[:, None]).view(3, *(1 for _ in heads), 7, 1)
    leaves = [made[0], *(x.masked_fill(past, torch.nan) for x in made[1:])]
    for leaf in leaves:
        leaf.requires_grad_()
    items = []
    keep = ops._each_item
    monkeypatch.setattr(ops, "_each_item", lambda request: items.append(1) or keep(request))
    results = []
    for elements in (36, 35):
        monkeypatch.setattr(ops, "_ITEM_ELEMENTS", elements)
        output = dot_product_attention(*leaves, valid_lens=lens, impl="sdpa", **options)
        results.append([output, *torch.autograd.grad(output.sin().sum(), leaves)])
    assert items == [1]
    for together, apart in zip(*results, strict=True):
        assert apart.isfinite().all()
        torch.testing.assert_close(apart, together)
    assert not results[1][0][1].any()


def test_lengths_of_each_query_and_masks_keep_items_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops, "_ITEM_ELEMENTS", 1)
    monkeypatch.setattr(ops, "_each_item", lambda _: pytest.fail("items came apart"))
    Q, K, V = inputs(3, 4, 2)
    each = torch.tensor([[1, 2, 3], [4, 0, 2]], device=DEVICE)
    dot_product_attention(Q, K, V, valid_lens=each, impl="sdpa")
    mask = torch.ones(3, 4, dtype=torch.bool, device=DEVICE)
    dot_product_attention(Q, K, V, valid_lens=each[:, 0], mask=mask, impl="sdpa")
    empty = (x[:0] for x in (Q, K, V))
    lens = torch.zeros(0, dtype=torch.long, device=DEVICE)
    assert dot_product_attention(*empty, valid_lens=lens, impl="sdpa").shape == (0, 3, 3)


def test_each_batch_item_drops_weights_of_its_own() -> None:
    """Also where queries and keys are shared by all, and only the values differ."""
    query, key, _ = inputs(6, 8)
    value = torch.eye(8, dtype=torch.float64, device=DEVICE).expand(3, 8, 8)
    output = dot_product_attention(query[None], key[None], value, dropout_p=0.5, impl="sdpa")
    assert output.shape == (3, 6, 8) and not torch.equal(output[0] == 0, output[1] == 0)


@each_impl
def test_empty_batch_and_no_queries(impl: str) -> None:
    assert dot_product_attention(*inputs(3, 4, 0), impl=impl).shape == (0, 3, 3)
    for is_causal in (False, True):
        output = dot_product_attention(*inputs(0, 4, 2), is_causal=is_causal, impl=impl)
        assert output.shape == (2, 0, 3)
    lens = torch.tensor([1, 0], device=DEVICE)
    assert dot_product_attention(*inputs(0, 4, 2), valid_lens=lens, impl=impl).shape == (2, 0, 3)


@each_impl
def test_arguments_are_left_alone(impl: str) -> None:
    leaves = inputs(3, 4, 2)
    lens, mask = torch.tensor([1, 0], device=DEVICE), torch.rand(2, 3, 4, device=DEVICE) > 0.5
    scale = torch.tensor(2.0, device=DEVICE)
    with assert_unchanged(*leaves, lens, mask, scale):
        dot_product_attention(
            *leaves, valid_lens=lens, mask=mask, is_causal=True, scale=scale, impl=impl
        )


@pytest.mark.parametrize(
    ("query_len", "key_len", "grad", "need_weights", "expected"),
    [
        (17, 16, True, False, "_sdpa"),
        (17, 16, True, True, "_reference"),
        (16, 16, True, False, "_sdpa" if DEVICE == "cuda" else "_reference"),
        (16, 16, False, False, "_sdpa"),
        (1, 200, True, False, "_sdpa" if DEVICE == "cuda" else "_reference"),
    ],
)
def test_auto_follows_its_table(
    monkeypatch: pytest.MonkeyPatch,
    query_len: int,
    key_len: int,
    grad: bool,
    need_weights: bool,
    expected: str,
) -> None:
    taken = []
    for name in ("_sdpa", "_reference"):
        plain = getattr(ops, name)
        monkeypatch.setattr(
            ops, name, lambda *args, name=name, plain=plain: taken.append(name) or plain(*args)
        )
    with torch.set_grad_enabled(grad):
        dot_product_attention(*inputs(query_len, key_len), need_weights=need_weights)
    assert taken == [expected]


def heads(batch: int, heads: int, group: int, n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    query, _, _ = inputs(n, m, batch, heads, requires_grad=True)
    _, key, value = inputs(n, m, batch, heads // group, requires_grad=True)
    return query, key, value


@each_impl
@pytest.mark.parametrize("names", [x for x in oracle.COMBINED if "dropout" not in x] + ["causal"])
def test_options_combined(impl: str, names: str) -> None:
    """Grouped heads with everything else: output, gradients and log-sum-exp."""
    leaves = heads(2, 4, 2, 9, 13)
    options = oracle.hide(names, 2, 4, 9, 13)
    exact, exact_lse = oracle.attention(*leaves, options)
    output = dot_product_attention(*leaves, impl=impl, **options)
    assert_close(output, exact)
    g = torch.randn_like(output)
    for ours, theirs in zip(
        *(torch.autograd.grad(x, leaves, g, retain_graph=True) for x in (output, exact)),
        strict=True,
    ):
        assert_close(ours, theirs)
    if impl == "reference":
        again, weights, lse = dot_product_attention(
            *leaves, need_weights=True, need_lse=True, impl=impl, **options
        )
        assert torch.equal(again, output) and weights.shape == (2, 4, 9, 13)
        assert_close(lse, exact_lse)
        some = lse.isfinite()
        pairs = (torch.autograd.grad(x[some].sin().sum(), leaves[:2]) for x in (lse, exact_lse))
        for ours, theirs in zip(*pairs, strict=True):
            assert_close(ours, theirs)


@each_impl
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_grouped_heads_are_repeated_ones(impl: str, kv_heads: int) -> None:
    query, key, value = heads(2, 6, 6 // kv_heads, 4, 5)
    repeated = [x.repeat_interleave(6 // kv_heads, 1) for x in (key, value)]
    plain = F.scaled_dot_product_attention(query, *repeated)
    torch.testing.assert_close(dot_product_attention(query, key, value, impl=impl), plain)


@each_impl
def test_a_chunk_of_queries_at_its_offset_is_the_whole_s(impl: str) -> None:
    """What a cache needs: queries 3 and 4 alone, with all the keys."""
    query, key, value = inputs(5, 5, 2, 3)
    slopes = torch.tensor([0.5, 0.25, 0.1], device=DEVICE)
    options: dict[str, Any] = {"is_causal": True, "window": (2, 5), "bias_slopes": slopes}
    whole = dot_product_attention(query, key, value, impl=impl, **options)
    part = dot_product_attention(
        query[..., 3:, :], key, value, query_offset=3, impl=impl, **options
    )
    torch.testing.assert_close(part, whole[..., 3:, :])


@each_impl
def test_a_window_of_one_is_the_value_itself(impl: str) -> None:
    query, key, value = inputs(5, 5, 2)
    output = dot_product_attention(query, key, value, window=(0, 0), impl=impl)
    torch.testing.assert_close(output, value)


@each_impl
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_does_not_blur_distances(impl: str, dtype: torch.dtype) -> None:
    """Distances beyond 2048 have neighbours that half precision cannot tell apart."""
    query, key, value = inputs(1, 9, 1, dtype=dtype)
    slopes = torch.tensor([1.0], device=DEVICE)
    options: dict[str, Any] = {"bias_slopes": slopes, "query_offset": 4000}
    exact = oracle.attention(*(x.unsqueeze(1) for x in (query, key, value)), options)[0][:, 0]
    actual = dot_product_attention(query, key, value, impl=impl, **options)
    assert_close(actual.double(), exact, rtol=1e-2, atol=1e-2)


def test_what_hides_nothing_asks_for_no_mask() -> None:
    """A decoder's last query sees all keys: its causal mask, its window and its offset say so."""
    bounds = ops._bounds
    assert bounds(1, 9, True, None, 8) == (None, None)
    assert bounds(1, 9, True, None, 7) == (None, 7)
    assert bounds(5, 9, False, (4, 8), 0) == (None, None)
    assert bounds(5, 9, False, (3, 7), 0) == (-3, 7)
    assert bounds(5, 9, True, (3, 7), 2) == (-1, 2)
    assert bounds(5, 9, True, (0, 0), 1000) == (9, None)
    assert bounds(5, 9, True, (0, 0), -1000) == (None, -5)


Q, K, V = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4, 1)
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ("rank", (Q[0], K, V), {}, ValueError, r"query must have shape .* got \[3\]"),
    ("key rank", (Q, K[0], V), {}, ValueError, r"key must have shape .* got \[3\]"),
    ("value rank", (Q, K, V[0]), {}, ValueError, r"value must have shape .* got \[1\]"),
    ("dim", (Q, K[:, :2], V), {}, ValueError, "width of query, 3, got 2: BilinearAttention"),
    ("lengths", (Q, K, V[:3]), {}, ValueError, "value must have one row for each key, 4, got 3"),
    ("no keys", (Q, K[:0], V[:0]), {}, ValueError, "key must hold at least one key"),
    ("no columns", (Q, K, V[:, :0]), {}, ValueError, "at least one column, got 3 and 0"),
    ("no width", (Q[:, :0], K[:, :0], V), {}, ValueError, "at least one column, got 0 and 1"),
    ("integers", (Q.long(), K, V), {}, TypeError, "query must hold floating-point .*int64"),
    ("list", (Q, [[0.0]], V), {}, TypeError, "key must be a torch.Tensor, got list"),
    ("dtypes", (Q, K.double(), V), {}, ValueError, "key must have the dtype of query"),
    ("batch", (Q.expand(2, 2, 3), K.expand(3, 4, 3), V), {}, ValueError, "must broadcast"),
    ("scale type", (Q, K, V), {"scale": "1"}, TypeError, "scale must be a number or a tensor"),
    ("scale bool", (Q, K, V), {"scale": True}, TypeError, "scale must be a number .* got bool"),
    ("NaN scale", (Q, K, V), {"scale": math.nan}, ValueError, "scale must be finite, got nan"),
    ("scales", (Q, K, V), {"scale": torch.ones(2)}, ValueError, r"one element, got shape \[2\]"),
    ("int scale", (Q, K, V), {"scale": torch.tensor(1)}, TypeError, "scale must hold floating"),
    ("dropout", (Q, K, V), {"dropout_p": -0.1}, ValueError, r"dropout_p must lie in \[0, 1\)"),
    ("impl", (Q, K, V), {"impl": "flash"}, ValueError, "impl must be one of .*got 'flash'"),
    ("weights", (Q, K, V), {"impl": "sdpa", "need_weights": True}, ValueError, "impl='sdpa' never"),
    ("lse", (Q, K, V), {"impl": "sdpa", "need_lse": True}, ValueError, "need_lse=True .* itself"),
    ("offset", (Q, K, V), {"query_offset": 1.0}, TypeError, "query_offset must be an int.* float"),
    ("yes", (Q, K, V), {"query_offset": True}, TypeError, "query_offset must be an int.* bool"),
    ("far", (Q, K, V), {"query_offset": -(2**30)}, ValueError, "query_offset must lie below"),
    ("window", (Q, K, V), {"window": 3}, TypeError, r"window must be a pair .* got 3"),
    ("one side", (Q, K, V), {"window": (3,)}, TypeError, r"window must be a pair .* got \(3,\)"),
    ("half", (Q, K, V), {"window": (0.5, 1)}, TypeError, r"integers or None, got \(0.5, 1\)"),
    ("negative", (Q, K, V), {"window": (None, -1)}, ValueError, "no number below 0"),
    ("slopes", (Q, K, V), {"bias_slopes": [1.0]}, TypeError, "bias_slopes must be a torch.Tensor"),
    ("heads", (Q, K, V), {"bias_slopes": Q[0]}, ValueError, "each head, none here, got .*3"),
    ("learned", (Q[None], K[None], V[None]),
     {"bias_slopes": torch.ones(1, requires_grad=True)}, ValueError, "must not require a gradient"),
    ("six heads", (Q.expand(1, 4, 2, 3), K.expand(1, 4, 4, 3), V.expand(1, 4, 4, 1)),
     {"bias_slopes": torch.ones(6)}, ValueError, r"each head, \[4\], got shape \[6\]"),
    ("groups", (Q.expand(1, 4, 2, 3), K.expand(1, 3, 4, 3), V.expand(1, 3, 4, 1)), {}, ValueError,
     "number of heads that divides that of query, 4, got 3"),
    ("two groups", (Q.expand(1, 4, 2, 3), K.expand(1, 2, 4, 3), V.expand(1, 1, 4, 1)), {},
     ValueError, "must broadcast"),
    ("both", (Q, K, V), {"impl": "triton", "need_weights": True}, ValueError, "need_weights"),
    ("long", (Q, K, V), {"valid_lens": torch.tensor(5)}, ValueError, r"\[0, 4\].* got 5"),
    ("float mask", (Q, K, V), {"mask": torch.ones(2, 4)}, TypeError, "mask must hold booleans"),
    ("mask shape", (Q, K, V), {"mask": torch.ones(4, 2).bool()}, ValueError, r"to \[2, 4\]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [case[1:] for case in BAD],
    ids=[case[0] for case in BAD],
)
def test_bad_input_is_named(
    args: tuple[Any, ...], kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        dot_product_attention(*args, **kwargs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [-2.0, 0.0, None])
def test_scales_in_half_precision_on_a_gpu(dtype: torch.dtype, scale: float | None) -> None:
    """Scores of some hundreds: a wrong maximum would overflow."""
    query, key, value = inputs(100, 130, 2, 4, dtype=dtype, dim=64, value_dim=64)
    query = 4 * query
    exact = dot_product_attention(
        query.double(), key.double(), value.double(), scale=scale, impl="reference"
    )
    factor = 1 / 8 if scale is None else scale
    plain = (query @ key.mT * factor).softmax(-1) @ value
    fused = dot_product_attention(query, key, value, scale=scale, impl="sdpa")
    assert_within_budget(fused, plain, exact.cpu())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_rows_that_see_nothing_on_a_gpu(dtype: torch.dtype) -> None:
    leaves = inputs(100, 130, 2, 4, dtype=dtype, dim=64, value_dim=64, requires_grad=True)
    lens = make_valid_lens((2, 100), 130, device=DEVICE)
    output = dot_product_attention(*leaves, valid_lens=lens, impl="sdpa")
    assert bool((output.transpose(1, 2)[lens == 0] == 0).all())
    gradients = torch.autograd.grad(output.float().square().sum(), leaves)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@interpreted
@pytest.mark.triton
def test_float64_where_triton_has_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attn_course._triton.FLOAT64_DOT", False)
    x = torch.randn(1, 1, 4, 8)
    dot_product_attention(x, x, x, impl="triton")
    with pytest.raises(TypeError, match=r"no float64 .* before triton 3\.5: use impl='reference'"):
        dot_product_attention(x.double(), x.double(), x.double(), impl="triton")
