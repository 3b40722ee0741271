"""Additive scores and attention against brute force, and against their promises."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course import _triton
from attn_course.scoring import (
    additive_attention,
    additive_scores,
    blocked,
    masked_softmax,
    ops,
)
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

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN = ["reference", "blocked"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", 100)


def inputs(n: int, m: int, *batch: int, hidden: int = 4, **kwargs: Any) -> tuple[Tensor, ...]:
    kwargs = {"dtype": torch.float64, "device": DEVICE} | kwargs
    query, key, value = make_qkv(batch, n, m, hidden, 3, **kwargs)
    weight = torch.randn(hidden, dtype=torch.float64).to(query).requires_grad_(query.requires_grad)
    return query, key, value, weight


def brute_force(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, allowed: Tensor
) -> tuple[Tensor, Tensor]:
    """Output and weights with Python loops over Python numbers, no batch."""
    outputs, rows = [], []
    for i, q in enumerate(query.tolist()):
        scores = [
            math.fsum(w * math.tanh(a + b) for w, a, b in zip(weight.tolist(), q, k, strict=True))
            for k in key.tolist()
        ]
        e = [math.exp(s) if allowed[i, j] else 0.0 for j, s in enumerate(scores)]
        total = math.fsum(e) or 1.0
        rows.append([x / total for x in e])
        outputs.append(
            [math.fsum(p * v for p, v in zip(rows[-1], c, strict=True)) for c in value.mT.tolist()]
        )
    return torch.tensor(outputs, dtype=torch.float64), torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("impl", PLAIN)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_brute_force(lengths: tuple[int, int], dtype: torch.dtype, impl: str) -> None:
    query, key, value, weight = inputs(*lengths, dtype=dtype)
    lens = make_valid_lens(lengths[:1], lengths[1], device=DEVICE)
    mask = torch.rand(lengths, device=DEVICE) > 0.2
    allowed = mask & (torch.arange(lengths[1], device=DEVICE) < lens[:, None])
    expected = brute_force(query, key, value, weight, allowed)
    leaves, hiding = (query, key, value, weight), {"valid_lens": lens, "mask": mask}
    actual: Any = [additive_attention(*leaves, **hiding, impl=impl)]
    if impl == "reference":
        actual = additive_attention(*leaves, **hiding, impl=impl, need_weights=True)
    for ours, theirs in zip(actual, expected[: len(actual)], strict=True):
        assert ours.dtype == dtype
        assert_close(ours, theirs)


def test_scores() -> None:
    query, key, _, weight = inputs(2, 3, 2)
    scores = additive_scores(query, key, weight)
    for b in range(2):
        for i in range(2):
            for j in range(3):
                one = (weight * torch.tanh(query[b, i] + key[b, j])).sum()
                torch.testing.assert_close(scores[b, i, j], one)


def test_scores_do_not_read_half_precision_as_such() -> None:
    query, key, _, weight = (x.half() for x in inputs(5, 7, hidden=64))
    exact = additive_scores(query.double(), key.double(), weight.double())
    plain = torch.tanh(query.unsqueeze(-2) + key.unsqueeze(-3)) @ weight
    assert_within_budget(additive_scores(query, key, weight), plain, exact.cpu())


@pytest.mark.parametrize("impl", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype, impl: str) -> None:
    query, key, value, weight = (x.to(dtype) for x in inputs(5, 20, 2, hidden=32))

    def plain(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        scores = torch.tanh(query.unsqueeze(-2) + key.unsqueeze(-3)) @ weight
        return scores.softmax(-1) @ value

    low = plain(query, key, value, weight)
    oracle = plain(query.double(), key.double(), value.double(), weight.double())
    actual = additive_attention(query, key, value, weight, impl=impl)
    assert_within_budget(actual, low, oracle.cpu())


def test_weights_are_the_masked_softmax_of_the_scores() -> None:
    query, key, value, weight = inputs(3, 5, 2)
    lens = torch.tensor([4, 0], device=DEVICE)
    output, weights = additive_attention(
        query, key, value, weight, valid_lens=lens, need_weights=True
    )
    expected = masked_softmax(additive_scores(query, key, weight), lens)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(output, weights @ value)


@pytest.mark.parametrize("impl", PLAIN)
def test_gradcheck(impl: str) -> None:
    leaves = inputs(2, 4, 2, requires_grad=True)
    lens = torch.tensor([[4, 0], [1, 3]], device=DEVICE)
    mask = torch.rand(2, 4, device=DEVICE) > 0.3

    def function(*leaves: Tensor) -> Tensor:
        return additive_attention(*leaves, valid_lens=lens, mask=mask, impl=impl)

    assert torch.autograd.gradcheck(function, leaves)
    if impl == "reference":
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("impl", PLAIN)
def test_batches_broadcast(impl: str) -> None:
    query, key, value, weight = inputs(3, 5)
    lens = torch.tensor([4, 2], device=DEVICE)
    mask = torch.rand(2, 6, 1, 5, device=DEVICE) > 0.2
    batched = (query.expand(6, 3, 4), key.expand(2, 1, 5, 4), value, weight)
    actual = additive_attention(*batched, valid_lens=lens, mask=mask, impl=impl)
    assert actual.shape == (2, 6, 3, 3)
    for b in range(2):
        for h in range(6):
            one = additive_attention(query, key, value, weight, valid_lens=lens[b], mask=mask[b, h])
            torch.testing.assert_close(actual[b, h], one)


@pytest.mark.parametrize("impl", PLAIN)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(layout: str, impl: str) -> None:
    *qkv, weight = inputs(5, 7, 2)
    qkv = [with_layout(x, layout) for x in qkv]
    expected = additive_attention(*[x.contiguous() for x in qkv], weight)
    torch.testing.assert_close(additive_attention(*qkv, weight, impl=impl), expected)


@pytest.mark.parametrize("impl", PLAIN)
def test_nothing_to_attend_to_gives_zeros(impl: str) -> None:
    leaves = inputs(3, 4, 2, requires_grad=True)
    lens = torch.tensor([[0, 4, 0], [2, 0, 1]], device=DEVICE)
    output = additive_attention(*leaves, valid_lens=lens, impl=impl)
    empty = lens == 0
    assert bool((output[empty] == 0).all()) and bool((output[~empty] != 0).any())
    gradients = torch.autograd.grad(output.square().sum(), leaves)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert bool((gradients[0][empty] == 0).all())


@pytest.mark.parametrize("impl", PLAIN)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e300])
@pytest.mark.parametrize("how", ["lens", "mask"])
def test_padding_cannot_leak(poison: float, how: str, impl: str) -> None:
    """Of keys and values, and of a query that may see nothing: outputs and gradients."""
    query, key, value, weight = inputs(5, 9, 3)
    lens = torch.tensor([3, 8, 0], device=DEVICE)
    hidden = torch.arange(9, device=DEVICE) >= lens[:, None]
    hiding = {"valid_lens": lens} if how == "lens" else {"mask": ~hidden[:, None]}
    results = []
    for fill in (0.0, poison):
        leaves = [
            query.masked_fill((lens == 0)[:, None, None], fill).requires_grad_(),
            key.masked_fill(hidden[..., None], fill).requires_grad_(),
            value.masked_fill(hidden[..., None], fill).requires_grad_(),
            weight.clone().requires_grad_(),
        ]
        output = additive_attention(*leaves, **hiding, impl=impl)
        results.append((output, *torch.autograd.grad(output.sin().sum(), leaves)))
    for clean, poisoned in zip(*results, strict=True):
        torch.testing.assert_close(poisoned, clean, rtol=0, atol=0)


@pytest.mark.parametrize("impl", PLAIN)
@pytest.mark.parametrize("how", ["lens", "mask"])
def test_only_what_no_query_sees_is_padding(how: str, impl: str) -> None:
    """Poison past the longest of the queries' own lengths; the keys before it still count."""
    query, key, value, weight = inputs(3, 9, 2)
    lens = torch.tensor([[2, 5, 0], [1, 8, 3]], device=DEVICE)
    hidden = torch.arange(9, device=DEVICE) >= lens.amax(-1, keepdim=True)
    seen = torch.arange(9, device=DEVICE) < lens[..., None]
    hiding = {"valid_lens": lens} if how == "lens" else {"mask": seen}
    clean = additive_attention(query, key, value, weight, **hiding, impl=impl)
    bad_key, bad_value = (x.masked_fill(hidden[..., None], torch.nan) for x in (key, value))
    poisoned = additive_attention(query, bad_key, bad_value, weight, **hiding, impl=impl)
    torch.testing.assert_close(poisoned, clean, rtol=0, atol=0)


@pytest.mark.parametrize("impl", PLAIN)
def test_empty_batch_and_no_queries(impl: str) -> None:
    assert additive_attention(*inputs(3, 4, 0), impl=impl).shape == (0, 3, 3)
    query, key, value, weight = inputs(0, 4, 2)
    lens = torch.tensor([1, 0], device=DEVICE)
    output = additive_attention(query, key, value, weight, valid_lens=lens, impl=impl)
    assert output.shape == (2, 0, 3)


def test_arguments_are_left_alone() -> None:
    leaves = inputs(3, 4, 2)
    lens, mask = torch.tensor([1, 0], device=DEVICE), torch.rand(2, 3, 4, device=DEVICE) > 0.5
    with assert_unchanged(*leaves, lens, mask):
        additive_attention(*leaves, valid_lens=lens, mask=mask, dropout_p=0.5)
        additive_attention(*leaves, valid_lens=lens, mask=mask, impl="blocked")


def test_dropout_falls_on_the_weights_after_the_softmax() -> None:
    query, key, _, weight = inputs(20, 50)
    value = torch.eye(50, dtype=torch.float64, device=DEVICE)  # the output is the weights
    output, weights = additive_attention(
        query, key, value, weight, dropout_p=0.25, need_weights=True
    )
    torch.testing.assert_close(weights, additive_attention(query, key, value, weight))
    kept = output != 0
    torch.testing.assert_close(output[kept], weights[kept] / 0.75)
    assert 0.7 < kept.double().mean().item() < 0.8


Q, K, V, W = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4, 1), torch.ones(3)
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ("rank", (Q[0], K, V, W), {}, ValueError, r"query must have shape .* got \[3\]"),
    ("key rank", (Q, K[0], V, W), {}, ValueError, r"key must have shape .* got \[3\]"),
    ("value rank", (Q, K, V[0], W), {}, ValueError, r"value must have shape .* got \[1\]"),
    ("hidden", (Q, K[:, :2], V, W), {}, ValueError, "as query, 3, got 2: project both first"),
    ("weight", (Q, K, V, W[:2]), {}, ValueError, r"weight must have shape \[3\], got \[2\]"),
    ("weight rank", (Q, K, V, W[None]), {}, ValueError, r"weight must have shape \[3\]"),
    ("lengths", (Q, K, V[:3], W), {}, ValueError, "value must have one row for each key, 4, got 3"),
    ("no keys", (Q, K[:0], V[:0], W), {}, ValueError, "key must hold at least one key"),
    ("no hidden", (Q[:, :0], K[:, :0], V, W[:0]), {}, ValueError, "at least one hidden unit"),
    ("no columns", (Q, K, V[:, :0], W), {}, ValueError, "value must have at least one column"),
    ("integers", (Q.long(), K, V, W), {}, TypeError, "query must hold floating-point .*int64"),
    ("list", (Q, K, [[0.0]], W), {}, TypeError, "value must be a torch.Tensor, got list"),
    ("dtypes", (Q, K, V.double(), W), {}, ValueError, "value must have the dtype of query"),
    ("weight type", (Q, K, V, W.double()), {}, ValueError, "weight must have the dtype of query"),
    ("batch", (Q.expand(2, 2, 3), K.expand(3, 4, 3), V, W), {}, ValueError, "must broadcast"),
    ("dropout", (Q, K, V, W), {"dropout_p": 1.0}, ValueError, r"dropout_p must lie in \[0, 1\)"),
    ("impl", (Q, K, V, W), {"impl": "sdpa"}, ValueError, "impl must be one of .*got 'sdpa'"),
    ("weights", (Q, K, V, W), {"impl": "triton", "need_weights": True}, ValueError, "do need_we"),
    ("drop", (Q, K, V, W), {"impl": "triton", "dropout_p": 0.1}, ValueError, "do dropout_p=0.1"),
    ("stored", (Q, K, V, W), {"impl": "blocked", "need_weights": True}, ValueError, "'blocked' ne"),
    ("dropped", (Q, K, V, W), {"impl": "blocked", "dropout_p": 0.1}, ValueError, "do dropout_p=0"),
    ("long", (Q, K, V, W), {"valid_lens": torch.tensor(5)}, ValueError, r"\[0, 4\].* got 5"),
    ("float mask", (Q, K, V, W), {"mask": torch.ones(2, 4)}, TypeError, "mask must hold booleans"),
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
        additive_attention(*args, **kwargs)


def test_scores_check_their_arguments() -> None:
    with pytest.raises(ValueError, match=r"weight must have shape \[3\]"):
        additive_scores(Q, K, W[:1])
    with pytest.raises(ValueError, match="must broadcast"):
        additive_scores(Q.expand(2, 2, 3), K.expand(3, 4, 3), W)


def test_a_missing_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    monkeypatch.setattr(_triton, "REASON", "triton is not installed")
    with pytest.raises(RuntimeError, match="triton is not installed"):
        additive_attention(Q, K, V, W, impl="triton")


@pytest.mark.triton
def test_the_kernel_is_reached() -> None:
    leaves = inputs(3, 5, 2)
    lens = torch.tensor([4, 0], device=DEVICE)
    mask = torch.rand(3, 5, device=DEVICE) > 0.3
    ours = additive_attention(*leaves, valid_lens=lens, mask=mask, impl="triton")
    expected = additive_attention(*leaves, valid_lens=lens, mask=mask, impl="reference")
    torch.testing.assert_close(ours, expected)


FEW = (Q, K, V, W)
MANY = (Q[:1].expand(1 << 21, 3), K[:1], V[:1], W)
STEP = (torch.zeros(128, 1, 256), torch.zeros(128, 20, 256), torch.zeros(20, 1), torch.zeros(256))


@pytest.mark.parametrize(
    ("kernel", "args", "request_", "expected"),
    [
        (False, FEW, {}, "reference"),
        (False, STEP, {}, "reference"),  # one of a decoder's
        (False, MANY, {}, "blocked"),
        (False, MANY, {"need_weights": True}, "reference"),
        (False, MANY, {"dropout_p": 0.1}, "reference"),
        (True, FEW, {}, "triton"),
        (True, MANY, {}, "triton"),
        (True, FEW, {"need_weights": True}, "reference"),
        (True, FEW, {"dropout_p": 0.1}, "reference"),
    ],
)
def test_auto_follows_its_table(
    monkeypatch: pytest.MonkeyPatch,
    kernel: bool,
    args: tuple[Tensor, ...],
    request_: dict[str, Any],
    expected: str,
) -> None:
    """Also as on a machine with a GPU: only the choice is watched."""
    taken = []

    def spy(module: Any, name: str, implementation: str, answer: Any) -> None:
        def function(*_: Any, **__: Any) -> Any:
            taken.append(implementation)
            return answer

        monkeypatch.setattr(module, name, function)

    zero = torch.zeros(())
    if _triton.AVAILABLE:
        from attn_course.scoring import additive_kernel

        spy(additive_kernel, "additive", "triton", zero)
    elif kernel:
        pytest.skip("there is no kernel to choose")
    monkeypatch.setattr(ops, "_kernel_if_cuda", lambda _: "triton" if kernel else "reference")
    spy(blocked, "additive_attention_blocked", "blocked", zero)
    spy(ops.reference, "additive_attention", "reference", (zero, zero))
    additive_attention(*args, **request_)
    assert taken == [expected]


def test_auto_turns_to_blocks_beyond_2_to_the_22() -> None:
    def choice(query_len: int) -> str:
        key = torch.zeros(1 << 7, 1 << 6)
        return ops._least_memory(key[:1].expand(2, query_len, 1 << 6), key)

    assert [choice(1 << 8), choice((1 << 8) + 1)] == ["reference", "blocked"]
