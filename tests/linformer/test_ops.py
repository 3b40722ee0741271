"""The operations against sums written out in float64, and the leak of the plain form."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from attn_course import _triton
from attn_course.linformer import (
    blocked,
    effective_weights,
    linformer_attention,
    project_sequence,
)
from attn_course.linformer.ops import attend
from attn_course.testing import (
    LAYOUTS,
    assert_close,
    assert_unchanged,
    assert_within_budget,
    poisoned_padding,
    with_layout,
)
from tests.launches import interpreted

TRITON = pytest.param("triton", marks=[pytest.mark.triton, interpreted])
IMPLS = ["auto", "reference", "sdpa", "blocked"]
each_impl = pytest.mark.parametrize("impl", [*IMPLS, TRITON])
LENS = torch.tensor([9, 4, 0])
N, K, HEADS = 9, 4, 2


def make(
    query_len: int = 7, *, heads: int | None = HEADS, own: bool = False, **options: Any
) -> list[Tensor]:
    """Query, key, value, E and F, float64 leaves unless told otherwise."""
    options = {"dtype": torch.float64, "requires_grad": True} | options
    outer = (3,) if heads is None else (3, heads)
    mine = (heads,) if own and heads else ()
    shapes = [(*outer, query_len, 5), (*outer, N, 5), (*outer, N, 6), *[(*mine, K, N)] * 2]
    return [torch.randn(shape, **options) for shape in shapes]


def exact(
    query: Tensor, key: Tensor, value: Tensor, E: Tensor, F_: Tensor, lens: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Item by item and head by head, as the paper writes it; nothing of padding is touched."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    outputs, all_weights = [], []
    outer = query.shape[:-2]
    for index in itertools.product(*map(range, outer)):
        length = key.shape[-2] if lens is None else int(lens[index[0]])
        e, f = (m if m.ndim == 2 else m[index[1]] for m in (E, F_))
        if length == 0:
            all_weights.append(query.new_zeros(query.shape[-2], E.shape[-2]))
            outputs.append(query.new_zeros(query.shape[-2], value.shape[-1]))
            continue
        keys = torch.einsum("kn,nd->kd", e[:, :length], key[index][:length])
        values = torch.einsum("kn,nd->kd", f[:, :length], value[index][:length])
        scores = torch.exp(scale * torch.einsum("nd,kd->nk", query[index], keys))
        weights = scores / scores.sum(1, keepdim=True)
        all_weights.append(weights)
        outputs.append(torch.einsum("nk,kd->nd", weights, values))
    output, weights = (torch.stack(x).unflatten(0, outer) for x in (outputs, all_weights))
    return output, weights


def gradients(output: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    upstream = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    found = torch.autograd.grad(output, leaves, upstream, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


# The formula


@each_impl
@pytest.mark.parametrize("heads", [None, HEADS])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("lens", [None, LENS])
def test_is_the_formula(impl: str, heads: int | None, own: bool, lens: Tensor | None) -> None:
    leaves = make(heads=heads, own=own)
    output = linformer_attention(*leaves, valid_lens=lens, impl=impl)
    expected, weights = exact(*leaves, lens)
    assert_close(output, expected)
    for mine, theirs in zip(gradients(output, leaves), gradients(expected, leaves), strict=True):
        assert_close(mine, theirs)
    if impl in ("auto", "reference"):
        again, found = linformer_attention(*leaves, valid_lens=lens, impl=impl, need_weights=True)
        assert_close(found, weights)
        assert_close(again, expected)


@each_impl
@pytest.mark.parametrize("length", [1, 3, 8])
def test_a_shorter_sequence_uses_the_first_columns(impl: str, length: int) -> None:
    query, key, value, E, F_ = make()
    key, value = key[..., :length, :], value[..., :length, :]
    output = linformer_attention(query, key, value, E, F_, scale=0.7, impl=impl)
    expected, _ = exact(query, key, value, E[:, :length], F_[:, :length], scale=0.7)
    assert_close(output, expected)


@each_impl
def test_scores_are_multiplied_by_what_is_asked_for(impl: str) -> None:
    leaves = make()
    output = linformer_attention(*leaves, valid_lens=LENS, scale=0.3, impl=impl)
    assert_close(output, exact(*leaves, LENS, scale=0.3)[0])


@each_impl
def test_one_projection_may_serve_both(impl: str) -> None:
    query, key, value, E, _ = make()
    leaves = [query, key, value, E]
    output = linformer_attention(query, key, value, E, E, valid_lens=LENS, impl=impl)
    expected, _ = exact(query, key, value, E, E, LENS)
    for mine, theirs in zip(gradients(output, leaves), gradients(expected, leaves), strict=True):
        assert_close(mine, theirs)


@each_impl
def test_with_the_identity_it_is_full_attention(impl: str) -> None:
    """k = n: PyTorch's own operation, forward and backward."""
    query, key, value, *_ = make()
    leaves = [query, key, value]
    one = torch.eye(N, dtype=torch.float64)
    output = linformer_attention(query, key, value, one, one, impl=impl)
    expected = F.scaled_dot_product_attention(query, key, value)
    assert_close(output, expected)
    for mine, theirs in zip(gradients(output, leaves), gradients(expected, leaves), strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("impl", ["reference", "blocked"])
@pytest.mark.parametrize("own", [False, True])
def test_gradcheck(impl: str, own: bool) -> None:
    leaves = make(3, own=own)
    torch.autograd.gradcheck(
        lambda *x: linformer_attention(*x, valid_lens=LENS, impl=impl), leaves, fast_mode=True
    )


@pytest.mark.parametrize("heads", [None, HEADS])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("impl", ["auto", TRITON])
def test_projection_is_a_masked_product(heads: int | None, own: bool, impl: str) -> None:
    _, key, _, E, _ = make(heads=heads, own=own)
    output = project_sequence(key, E, valid_lens=LENS, impl=impl)
    there = torch.arange(N) < LENS[:, None]
    there = there.reshape(3, *[1] * (key.ndim - 3), 1, N)
    assert_close(output, (E * there) @ key)
    for mine, theirs in zip(
        gradients(output, [key, E]), gradients((E * there) @ key, [key, E]), strict=True
    ):
        assert_close(mine, theirs)


# Tiles


@pytest.mark.parametrize("elements", [1, 2000, 10**9])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("hidden", [False, True])
def test_tiles_of_any_height(elements: int, groups: int, hidden: bool) -> None:
    query = torch.randn(2, 50, 4, dtype=torch.float64, requires_grad=True)
    key, value = (
        torch.randn(2, groups * 5, width, dtype=torch.float64, requires_grad=True)
        for width in (4, 3)
    )
    leaves, slots = [query, key, value], torch.tensor([5, 2])
    seen = (torch.arange(5) < slots[:, None])[:, None] if hidden else None
    if seen is not None and groups > 1:
        seen = seen[:, None]
    output = blocked.attend_blocked(*leaves, scale=0.4, seen=seen, groups=groups, elements=elements)
    apart = key.unflatten(1, (groups, 5)), value.unflatten(1, (groups, 5))
    scores = 0.4 * torch.einsum("bnd,bgkd->bngk", query, apart[0])
    if hidden:
        scores = scores.masked_fill(~(torch.arange(5) < slots[:, None, None, None]), -math.inf)
    expected = torch.einsum("bngk,bgke->bne", scores.softmax(-1), apart[1])
    assert_close(output, expected)
    for mine, theirs in zip(gradients(output, leaves), gradients(expected, leaves), strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("groups", [1, 3])
def test_dropout_of_tiles_is_repeated_in_the_backward_pass(groups: int) -> None:
    leaves = [
        torch.randn(2, rows, 4, dtype=torch.float64, requires_grad=True)
        for rows in (50, groups * 5, groups * 5)
    ]

    def run(*x: Tensor) -> Tensor:
        torch.manual_seed(5)
        return blocked.attend_blocked(*x, scale=0.5, dropout_p=0.4, groups=groups, elements=300)

    torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert not torch.equal(run(*leaves), blocked.attend_blocked(*leaves, scale=0.5, groups=groups))


def test_a_tile_holds_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the least, 16 rows; and the two passes have the same."""
    heights: list[int] = []
    softmax = blocked.reference.softmax

    def watched(scores: Tensor, seen: Tensor | None) -> Tensor:
        heights.append(scores.shape[-2])
        return softmax(scores, seen)

    monkeypatch.setattr(blocked.reference, "softmax", watched)
    query, key = torch.randn(2, 3, 50, 4, requires_grad=True), torch.randn(2, 3, 5, 4)
    for elements, expected in ((2 * 3 * 5 * 20, [20, 20, 10]), (1, [16, 16, 16, 2])):
        heights.clear()
        output = blocked.attend_blocked(query, key, key, scale=1.0, elements=elements)
        assert heights == expected
        output.sum().backward()
        assert heights == 2 * expected


def test_each_call_drops_others_and_a_seed_the_same() -> None:
    x = torch.randn(1, 30, 4)

    def run() -> Tensor:
        return blocked.attend_blocked(x, x[:, :8], x[:, :8], scale=0.5, dropout_p=0.5)

    assert not torch.equal(run(), run())
    again = []
    for _ in range(2):
        torch.manual_seed(4)
        again.append(run())
    assert torch.equal(*again)


def test_heads_lie_in_memory_as_merging_wants_them() -> None:
    query, key = torch.randn(2, 3, 50, 4, requires_grad=True), torch.randn(2, 3, 5, 4)
    output = blocked.attend_blocked(query, key, key, scale=1.0)
    (grad,) = torch.autograd.grad(output, query, torch.ones_like(output))
    assert output.transpose(1, 2).is_contiguous() and grad.transpose(1, 2).is_contiguous()


def test_tiles_are_computed_in_float32_under_autocast_too() -> None:
    leaves = [torch.randn(1, n, 4, requires_grad=True) for n in (40, 6, 6)]
    query, key, value = leaves
    expected = (0.5 * query @ key.mT).softmax(-1) @ value
    with torch.autocast("cpu", torch.bfloat16):
        output = blocked.attend_blocked(*leaves, scale=0.5)
        found = gradients(output, leaves)
    assert_close(output, expected.double())
    for mine, theirs in zip(found, gradients(expected, leaves), strict=True):
        assert_close(mine, theirs.double())


def test_tiles_differentiate_once_and_say_so() -> None:
    leaves = make()
    output = linformer_attention(*leaves, impl="blocked")
    grads = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grads[0].sum().backward()


@pytest.mark.parametrize("impl", IMPLS)
def test_dropout_keeps_the_mean_and_drops_the_share(impl: str) -> None:
    n, k = 300, 40
    query, key = torch.randn(1, n, 4), torch.randn(1, k, 4)
    value = torch.eye(k)[None]  # the output is then the weights
    one = torch.eye(k)
    whole = linformer_attention(query, key, value, one, one)
    output = linformer_attention(query, key, value, one, one, dropout_p=0.25, impl=impl)
    dropped = output == 0
    assert abs(dropped.double().mean() - 0.25) < 0.02
    torch.testing.assert_close(output[~dropped], (whole / 0.75)[~dropped])


def test_long_sequences_go_by_tiles_and_agree() -> None:
    query, x = torch.randn(1, 2, 5000, 4), torch.randn(1, 2, 5000, 4)
    E = torch.randn(64, 5000) / 70
    assert query.shape[:-1].numel() * 64 > 2**19
    long = linformer_attention(query, x, x, E, E)
    whole, _ = linformer_attention(query, x, x, E, E, need_weights=True)
    assert_close(long, whole.double())
    tracked = linformer_attention(query.requires_grad_(), x, x, E, E)
    assert "Blocked" in type(tracked.grad_fn).__name__


# Promises


@each_impl
def test_padding_may_hold_anything(impl: str) -> None:
    query, key, value, E, F_ = make(requires_grad=False)
    expected = linformer_attention(query, key, value, E, F_, valid_lens=LENS, impl=impl)
    leaves = [
        query.clone(), poisoned_padding(key, LENS), poisoned_padding(value, LENS), E, F_,
    ]  # fmt: skip
    leaves[0][2] = torch.nan  # queries without keys
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    output = linformer_attention(*leaves, valid_lens=LENS, impl=impl)
    assert_close(output, expected)
    assert (output[2] == 0).all()
    found = gradients(output, leaves)
    assert all(bool(g.isfinite().all()) for g in found)
    assert (found[0][2] == 0).all() and (found[1][1, :, 4:] == 0).all()


def test_weights_without_keys_are_zero() -> None:
    _, weights = linformer_attention(*make(), valid_lens=LENS, need_weights=True)
    assert (weights[2] == 0).all()
    torch.testing.assert_close(weights[:2].sum(-1), torch.ones_like(weights[:2, ..., 0]))


@each_impl
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_nothing_is_changed(impl: str, layout: str) -> None:
    leaves = make(requires_grad=False)
    expected = linformer_attention(*leaves, valid_lens=LENS, impl=impl)
    if layout == "expanded":
        leaves = [x[:1].expand_as(x) if x.ndim == 4 else x for x in leaves]
        expected = linformer_attention(
            *(x.contiguous() for x in leaves), valid_lens=LENS, impl=impl
        )
    else:
        leaves = [with_layout(x, layout) for x in leaves]
    with assert_unchanged(*leaves, LENS):
        output = linformer_attention(*leaves, valid_lens=LENS, impl=impl)
    assert_close(output, expected)


@pytest.mark.parametrize("impl", ["reference", "blocked"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(impl: str, dtype: torch.dtype) -> None:
    leaves = [x.to(dtype) for x in make(requires_grad=False)]
    output = linformer_attention(*leaves, impl=impl)
    query, key, value, E, F_ = leaves
    plain = (query / math.sqrt(5) @ (E @ key).mT).softmax(-1) @ (F_ @ value)
    expected, _ = exact(*(x.double() for x in leaves))
    assert_within_budget(output, plain, expected)


@pytest.mark.parametrize("impl", ["reference", "blocked"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_at_the_end_alone(impl: str, dtype: torch.dtype) -> None:
    """Attention to slots and its gradients: as in float32, and then rounded."""
    given = [torch.randn(2, n, 8).to(dtype) for n in (20, 6, 6, 20)]
    found = []
    for wide in (False, True):
        *leaves, grad = (x.float() if wide else x for x in given)
        leaves = [x.detach().requires_grad_() for x in leaves]
        output = attend(*leaves, scale=0.3, impl=impl)
        found.append([output, *torch.autograd.grad(output, leaves, grad)])
    for half, whole in zip(*found, strict=True):
        assert half.dtype == dtype and torch.equal(half, whole.to(dtype))


def test_projections_in_half_precision_are_added_up_in_float32() -> None:
    """In float16 2048 + 1 is 2048."""
    x, matrix = torch.ones(1, 101, 1).half(), torch.ones(1, 101).half()
    matrix[0, 0] = 2048
    assert project_sequence(x, matrix).item() == 2148


def test_a_batch_has_one_gradient_of_the_matrices() -> None:
    """Not one for each item, to be added up: that would be larger than all else."""
    x = torch.randn(16, 2, 64, 1, requires_grad=True)
    matrix = torch.randn(2, 8, 64, requires_grad=True)
    output = project_sequence(x, matrix)
    with _Largest() as largest:
        output.backward(torch.ones_like(output))
    assert largest.numel <= x.numel()  # and not 16 matrices


class _Largest(TorchDispatchMode):
    """How large the largest tensor is that is made."""

    numel = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.numel = max(self.numel, made.numel())
        return made


def test_effective_weights_give_the_output_from_the_values() -> None:
    query, key, value, E, F_ = make(own=True)
    output, weights = linformer_attention(query, key, value, E, F_, need_weights=True)
    on_positions = effective_weights(weights, F_)
    assert on_positions.shape == (3, HEADS, 7, N)
    assert_close(on_positions @ value, output)
    assert (on_positions < 0).any()


def test_an_empty_batch() -> None:
    query, key, value, E, F_ = make()
    output = linformer_attention(query[:0], key[:0], value[:0], E, F_)
    assert output.shape == (0, HEADS, 7, 6)


# Causality


def masked_attention(query: Tensor, key: Tensor, value: Tensor, E: Tensor, seen: Tensor) -> Tensor:
    """What published code does: hide slots by a mask of queries times slots."""
    scores = (query @ (E @ key).mT).masked_fill(~seen, -math.inf)
    return scores.softmax(-1) @ (E @ value)


def test_a_mask_of_slots_leaks_the_future() -> None:
    """Query i sees slots 0 to i, and yet the last position changes what query 0 answers."""
    n, k = 12, 4
    query, x, E = torch.randn(1, n, 5), torch.randn(1, n, 5), torch.randn(k, n)
    seen = torch.arange(k) <= torch.arange(n)[:, None]
    later = x.clone()
    later[:, -1] += 1  # the future of all queries but one
    before = masked_attention(query, x, x, E, seen)
    after = masked_attention(query, later, later, E, seen)
    changed = (before != after).any(-1)[0]
    assert changed.all(), "every query heard of the last position"


def test_causal_is_refused_and_says_why() -> None:
    with pytest.raises(ValueError, match=r"is_causal=True cannot be had: every slot is a sum over"):
        linformer_attention(*make(), is_causal=True)


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({3: torch.rand(N, K)}, ValueError, r"key_projection must have .* pass key_projection.mT"),
        ({4: torch.rand(N, K)}, ValueError, r"value_projection must .* pass value_projection.mT"),
        ({3: torch.rand(N + 1, N)}, ValueError, "projected_len may not be over key_len"),
        ({3: torch.rand(3, K, N)}, ValueError, r"matrix for each of 3 heads"),
        ({3: torch.rand(K, N - 1)}, ValueError, r"key must be at most 8 long, the key_len of"),
        ({4: torch.rand(K - 1, N)}, ValueError, "value_projection must have the projected_len"),
        ({3: torch.rand(N)}, ValueError, "key_projection must have shape"),
        ({3: torch.rand(K, N).double()}, ValueError, "key_projection must have the dtype of key"),
        ({3: torch.ones(K, N, dtype=torch.int64)}, TypeError, "key_projection must hold floating"),
        ({0: torch.rand(3, HEADS, 7, 4)}, ValueError, "key must have shape .*as query has"),
        ({2: torch.rand(3, HEADS, 8, 4)}, ValueError, "value must have shape .*a row for each key"),
        ({0: torch.rand(7, 5)}, ValueError, r"query must have shape \[batch, query_len, dim\]"),
        ({0: None}, TypeError, "query must be a torch.Tensor"),
    ],
)  # fmt: skip
def test_bad_tensors(change: dict[int, Any], error: type[Exception], message: str) -> None:
    leaves: list[Any] = make(dtype=torch.float32)
    for index, value in change.items():
        leaves[index] = value
    with pytest.raises(error, match=message):
        linformer_attention(*leaves)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"impl": "fast"}, ValueError, "impl must be one of"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p must lie in"),
        ({"scale": math.inf}, ValueError, "scale must be finite"),
        ({"scale": "1"}, TypeError, "scale must be a number"),
        ({"valid_lens": torch.tensor([1, 2])}, ValueError, "valid_lens must have shape"),
        ({"valid_lens": torch.tensor([1, 2, 10])}, ValueError, "valid_lens must lie in"),
        ({"valid_lens": torch.ones(3)}, TypeError, "valid_lens must hold integers"),
        ({"valid_lens": torch.ones(3, N).long()}, ValueError, "valid_lens must have shape"),
        ({"need_weights": True, "impl": "blocked"}, ValueError, "need_weights=True asks"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linformer_attention(*make(), **options)


@interpreted
@pytest.mark.triton
def test_what_the_kernels_refuse() -> None:
    leaves = make()
    with pytest.raises(ValueError, match="dropout_p must be 0 with impl='triton'"):
        linformer_attention(*leaves, dropout_p=0.1, impl="triton")
    one = torch.eye(600)
    x = torch.rand(1, 600, 2)
    with pytest.raises(ValueError, match="up to 512 slots"):
        linformer_attention(x, x, x, one, one, impl="triton")
    wide = torch.rand(1, 4, 130)
    with pytest.raises(ValueError, match="up to 128 columns"):
        project_sequence(wide, torch.rand(2, 4), impl="triton")
    assert _triton.AVAILABLE


def test_bad_effective_weights() -> None:
    weights = torch.rand(2, 3, 5, 4)
    for wrong in (torch.rand(9, 4), torch.rand(2, 4, 9), torch.rand(9)):
        with pytest.raises(ValueError, match="value_projection must have shape"):
            effective_weights(weights, wrong)
    with pytest.raises(ValueError, match="weights must have shape"):
        effective_weights(weights[0, 0, 0], torch.rand(4, 9))
