"""The masked softmax against brute force, against PyTorch, against d2l, and its promises."""

import importlib.util
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course import _d2l, _triton
from attn_course.scoring import masked_softmax, ops
from attn_course.testing import (
    LAYOUTS,
    LENGTHS,
    assert_close,
    assert_unchanged,
    assert_within_budget,
    make_valid_lens,
    with_layout,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLS = ["reference", pytest.param("triton", marks=pytest.mark.triton)]
#: The kernels of rows in registers, and those of rows that pass by in tiles.
KERNELS = [*IMPLS, pytest.param("wide", marks=pytest.mark.triton)]

needs_d2l = pytest.mark.skipif(
    importlib.util.find_spec("d2l") is None,
    reason="d2l is not installed: python -m attn_course.install_d2l",
)


@pytest.fixture(params=KERNELS)
def impl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "wide":
        return request.param
    from attn_course.scoring import kernel as gpu

    monkeypatch.setattr(gpu, "MAX_COLUMNS", 0)
    monkeypatch.setattr(gpu, "WIDE_BLOCK_N", 8)
    return "triton"


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device=DEVICE)


def brute_force(scores: Tensor, allowed: Tensor) -> Tensor:
    """Softmax with Python loops over Python numbers."""
    flat = scores.reshape(-1, scores.shape[-1]).tolist()
    rows = []
    for row, open_ in zip(flat, allowed.expand(scores.shape).reshape(len(flat), -1), strict=True):
        seen = [x for x, may in zip(row, open_.tolist(), strict=True) if may]
        largest = max(seen, default=0.0)
        total = math.fsum(math.exp(x - largest) for x in seen)
        rows.append(
            [
                math.exp(x - largest) / total if may else 0.0
                for x, may in zip(row, open_.tolist(), strict=True)
            ]
        )
    return torch.tensor(rows, dtype=torch.float64, device=scores.device).reshape(scores.shape)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_equals_brute_force(impl: str, lengths: tuple[int, int]) -> None:
    scores = 3 * randn(*lengths)
    lens = make_valid_lens(lengths[:1], lengths[1], device=DEVICE)
    mask = torch.rand(*lengths, device=DEVICE) > 0.2
    allowed = mask & (torch.arange(lengths[1], device=DEVICE) < lens[..., None])
    expected = brute_force(scores, allowed).cpu()
    assert_close(masked_softmax(scores, lens, mask, impl=impl), expected)


def test_float32_against_float64(impl: str) -> None:
    scores = 3 * randn(5, 33, dtype=torch.float32)
    actual = masked_softmax(scores, impl=impl)
    assert actual.dtype == torch.float32
    assert_close(actual, scores.double().softmax(-1).cpu())


def test_without_a_mask_it_is_softmax(impl: str) -> None:
    scores = randn(2, 2, 21).requires_grad_()
    g = randn(2, 2, 21)
    ours, theirs = masked_softmax(scores, impl=impl), F.softmax(scores, -1)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    (ours_g,) = torch.autograd.grad(ours, scores, g)
    (theirs_g,) = torch.autograd.grad(theirs, scores, g)
    torch.testing.assert_close(ours_g, theirs_g, rtol=1e-10, atol=1e-14)


def test_lengths_and_mask_mean_what_they_say(impl: str) -> None:
    scores = randn(2, 3, 10)
    lens = torch.tensor([[2, 10, 1], [7, 8, 9]], device=DEVICE)
    mask = torch.rand(10, device=DEVICE) > 0.3
    mask[0] = True
    actual = masked_softmax(scores, lens, mask, impl=impl)
    for b in range(2):
        for i in range(3):
            seen = mask & (torch.arange(10, device=DEVICE) < lens[b, i])
            torch.testing.assert_close(actual[b, i][seen], scores[b, i][seen].softmax(0))
            assert bool((actual[b, i][~seen] == 0).all())
    for item, length in enumerate((4, 0)):
        one = masked_softmax(scores, torch.tensor([4, 0], device=DEVICE), impl=impl)[item]
        expected = F.pad(scores[item, :, :length].softmax(-1), (0, 10 - length))
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize(
    ("leading", "mask_shape"),
    [((), (11,)), ((2,), (2, 1, 11)), ((2, 3), (2, 1, 1, 11)), ((2, 1, 3), (2, 1))],
    ids=str,
)
def test_any_leading_dimensions(
    impl: str, leading: tuple[int, ...], mask_shape: tuple[int, ...]
) -> None:
    scores = randn(*leading, 2, 11).requires_grad_()
    lens = torch.randint(0, 12, (*leading[:1], 2), device=DEVICE)
    mask = torch.rand(mask_shape, device=DEVICE) > 0.3
    g = randn(*leading, 2, 11)
    ours = masked_softmax(scores, lens, mask, impl=impl)
    allowed = torch.arange(11, device=DEVICE) < lens.reshape(
        *leading[:1], *[1] * (len(leading) - 1), 2, 1
    )
    allowed = (allowed & mask).expand(scores.shape)
    expected = brute_force(scores.detach(), allowed)
    assert_close(ours, expected.cpu())
    (grad,) = torch.autograd.grad(ours, scores, g)
    dx = expected * (g - (expected * g).sum(-1, keepdim=True))
    assert_close(grad, dx.cpu())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(impl: str, layout: str) -> None:
    """Of the scores, of the mask and of the incoming gradient."""
    scores, g = with_layout(randn(2, 3, 19), layout), with_layout(randn(2, 3, 19), layout)
    mask = with_layout(torch.rand(2, 3, 19, device=DEVICE) > 0.3, layout)
    results = []
    for s, m, gradient in ((scores, mask, g), [x.contiguous() for x in (scores, mask, g)]):
        leaf = s.detach().requires_grad_()
        output = masked_softmax(leaf, torch.tensor([19, 7], device=DEVICE), m, impl=impl)
        results.append((output, torch.autograd.grad(output, leaf, gradient)[0]))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_gradcheck(impl: str) -> None:
    scores = randn(2, 9).requires_grad_()
    lens = torch.tensor([9, 4], device=DEVICE)
    mask = torch.rand(2, 9, device=DEVICE) > 0.3
    assert torch.autograd.gradcheck(
        lambda x: masked_softmax(x, lens, mask, impl=impl), scores, fast_mode=True
    )


def test_the_reference_can_be_differentiated_twice() -> None:
    scores = randn(2, 2, 5).requires_grad_()
    lens = torch.tensor([[5, 0], [1, 3]], device=DEVICE)
    assert torch.autograd.gradgradcheck(lambda x: masked_softmax(x, lens, impl="reference"), scores)


@pytest.mark.triton
def test_the_kernel_cannot_and_says_so() -> None:
    scores = randn(2, 5).requires_grad_()
    output = masked_softmax(scores, impl="triton")
    (grad,) = torch.autograd.grad(output.square().sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_an_empty_row_gives_zeros(impl: str) -> None:
    scores = randn(2, 3, 12).requires_grad_()
    lens = torch.tensor([[0, 12, 5], [12, 12, 0]], device=DEVICE)
    mask = torch.ones(2, 3, 12, dtype=torch.bool, device=DEVICE)
    mask[1, 0] = False
    output = masked_softmax(scores, lens, mask, impl=impl)
    (grad,) = torch.autograd.grad(output, scores, torch.rand_like(output))
    empty = torch.tensor([[1, 0, 0], [1, 0, 1]], dtype=torch.bool, device=DEVICE)
    assert bool((output[empty] == 0).all()) and bool((grad[empty] == 0).all())
    torch.testing.assert_close(output[~empty].sum(-1), torch.ones(3).to(output))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf, 1e300])
@pytest.mark.parametrize("how", ["lens", "mask"])
def test_padding_cannot_leak(impl: str, poison: float, how: str) -> None:
    """Neither scores of hidden keys nor what arrives as their gradient."""
    hidden = torch.arange(20, device=DEVICE) >= torch.tensor([[[3], [17], [0]]], device=DEVICE)
    hiding = (
        {"valid_lens": torch.tensor([[3, 17, 0]], device=DEVICE)}
        if how == "lens"
        else {"mask": ~hidden}
    )
    scores, g = randn(1, 3, 20), randn(1, 3, 20)
    results = []
    for fill in (0.0, poison):
        leaf = scores.masked_fill(hidden, fill).requires_grad_()
        output = masked_softmax(leaf, **hiding, impl=impl)
        gradient = g.masked_fill(hidden, fill)
        results.append((output, *torch.autograd.grad(output, leaf, gradient)))
    for clean, poisoned in zip(*results, strict=True):
        torch.testing.assert_close(poisoned, clean, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # NumPy, where it interprets
def test_infinite_scores(impl: str) -> None:
    """-inf closes a key; +inf takes all the weight, and several share it."""
    inf = math.inf
    rows = [
        [-inf, 0.0, 0.0, -inf] + [-inf] * 6,
        [-inf] * 10,
        [0.0, inf, 5.0, -inf] + [7.0] * 6,
        [inf, 0.0] + [1.0] * 7 + [inf],
        [3e38, -3e38] + [-inf] * 8,
    ]
    scores = torch.tensor(rows, device=DEVICE, requires_grad=True)
    output = masked_softmax(scores, impl=impl)
    expected = torch.zeros(5, 10)
    expected[0, 1:3] = 0.5
    expected[2, 1] = 1
    expected[3, [0, 9]] = 0.5
    expected[4, 0] = 1
    torch.testing.assert_close(output.cpu(), expected, rtol=0, atol=0)
    (grad,) = torch.autograd.grad(output, scores, torch.ones_like(output))
    assert bool((grad == 0).all())


def test_a_score_that_is_not_a_number_shows(impl: str) -> None:
    """NaN that may be seen is the caller's; it stays in its row."""
    scores = randn(2, 10)
    scores[0, 3] = torch.nan
    output = masked_softmax(scores, impl=impl)
    assert bool(output[0].isnan().all()) and bool(output[1].isfinite().all())


@pytest.mark.parametrize("size", [100.0, 1e4, 1e30])
def test_large_scores(impl: str, size: float) -> None:
    scores = torch.tensor([[size, -size, 0.0, size]], device=DEVICE)
    output = masked_softmax(scores, impl=impl)
    torch.testing.assert_close(output.cpu(), torch.tensor([[0.5, 0.0, 0.0, 0.5]]))
    below = masked_softmax(scores - 2 * size, torch.tensor(3 * [3])[:1].to(DEVICE), impl=impl)
    torch.testing.assert_close(below.cpu(), torch.tensor([[1.0, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype, impl: str) -> None:
    if dtype == torch.bfloat16 and impl == "triton" and DEVICE == "cpu":
        return  # the interpreter's bfloat16 is wrong: see the test for a GPU
    scores = (4 * randn(3, 3, 33)).to(dtype)
    lens = torch.tensor([33, 20, 0], device=DEVICE)
    g = randn(3, 3, 33).to(dtype)
    hidden = torch.arange(33, device=DEVICE) >= lens[:, None, None]

    def run(make: Any, scores: Tensor) -> tuple[Tensor, Tensor]:
        leaf = scores.detach().requires_grad_()
        output = make(leaf)
        return output, torch.autograd.grad(output, leaf, g.to(output))[0]

    def plain(x: Tensor) -> Tensor:
        return x.masked_fill(hidden, -1e4).softmax(-1).masked_fill(hidden, 0)

    ours = run(lambda x: masked_softmax(x, lens, impl=impl), scores)
    low, oracle = run(plain, scores), run(plain, scores.double())
    for name, *three in zip(("weights", "gradient"), ours, low, oracle, strict=True):
        assert_within_budget(*three, name=name)
    if impl == "reference":  # rounds once, at the end
        rounding = torch.finfo(dtype).eps * oracle[1].abs() + 2 * torch.finfo(dtype).tiny
        assert bool(((ours[1].double() - oracle[1]).abs() <= rounding + 1e-6).all())


def test_half_precision_does_not_overflow(impl: str) -> None:
    scores = torch.tensor([[65504.0, -65504.0, 65504.0]], device=DEVICE, dtype=torch.float16)
    output = masked_softmax(scores, impl=impl)
    assert output.tolist() == [[0.5, 0.0, 0.5]]


def test_empty_batch_and_no_queries(impl: str) -> None:
    for shape in ((0, 3, 4), (2, 0, 4), (2, 0, 3, 4)):
        scores = randn(*shape).requires_grad_()
        output = masked_softmax(scores, impl=impl)
        assert output.shape == shape
        assert torch.autograd.grad(output.sum(), scores)[0].shape == shape


def test_arguments_are_left_alone(impl: str) -> None:
    scores, mask = randn(2, 3, 10), torch.rand(2, 3, 10, device=DEVICE) > 0.5
    lens = torch.tensor([4, 0], device=DEVICE)
    g = randn(2, 3, 10)
    with assert_unchanged(scores=scores, lens=lens, mask=mask, g=g):
        leaf = scores.detach().requires_grad_()
        masked_softmax(leaf, lens, mask, impl=impl).backward(g)


def test_kernels_write_every_element(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is handed out full of NaN; none may come back."""

    def poisoned(make: Any) -> Any:
        def fill(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return fill

    scores = randn(2, 3, 21).requires_grad_()
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    lens = torch.tensor([2, 21], device=DEVICE)
    output = masked_softmax(scores, lens, impl=impl)
    (grad,) = torch.autograd.grad(output.sum(), scores)
    assert bool(output.isfinite().all()) and bool(grad.isfinite().all())


@pytest.mark.triton
def test_the_width_chooses_the_kernel() -> None:
    from attn_course.scoring import kernel as gpu

    def choice(width: int) -> tuple[str, dict[str, Any]]:
        chosen, meta = gpu._choose(torch.empty(1, width), "narrow", "wide")
        return chosen, {name: meta[name] for name in ("BLOCK_N", "num_warps")}

    assert choice(1) == ("narrow", {"BLOCK_N": 1, "num_warps": 1})
    assert choice(1025) == ("narrow", {"BLOCK_N": 2048, "num_warps": 8})
    assert choice(16384) == ("narrow", {"BLOCK_N": 16384, "num_warps": 16})
    assert choice(16385) == ("wide", {"BLOCK_N": 4096, "num_warps": 16})


@needs_d2l
@pytest.mark.parametrize("per_query", [False, True])
def test_equals_d2l_where_d2l_is_right(impl: str, per_query: bool) -> None:
    scores = randn(3, 4, 9, dtype=torch.float32)
    lens = torch.randint(1, 10, (3, 4) if per_query else (3,), device=DEVICE)
    theirs = _d2l.load().masked_softmax(scores.clone(), lens)
    torch.testing.assert_close(
        masked_softmax(scores, lens, impl=impl), theirs, rtol=1e-6, atol=1e-6
    )


@needs_d2l
def test_d2l_changes_its_input_and_we_do_not() -> None:
    scores = torch.zeros(1, 1, 3)
    _d2l.load().masked_softmax(scores, torch.tensor([2]))
    assert scores.tolist() == [[[0.0, 0.0, -1e6]]]
    scores = torch.zeros(1, 1, 3)
    masked_softmax(scores, torch.tensor([2]))
    assert scores.tolist() == [[[0.0, 0.0, 0.0]]]


@needs_d2l
def test_d2l_refuses_scores_that_need_a_gradient_and_we_do_not() -> None:
    scores = torch.zeros(1, 1, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="in-place"):
        _d2l.load().masked_softmax(scores, torch.tensor([2]))
    masked_softmax(scores, torch.tensor([2])).sum().backward()


@needs_d2l
def test_d2l_averages_padding_where_the_length_is_zero() -> None:
    nothing = torch.tensor([0])
    theirs = _d2l.load().masked_softmax(torch.randn(1, 1, 4), nothing)
    assert theirs.tolist() == [[[0.25] * 4]]
    assert masked_softmax(torch.randn(1, 1, 4), nothing).tolist() == [[[0.0] * 4]]


@needs_d2l
def test_d2l_gives_nan_in_float16_where_the_length_is_zero() -> None:
    """-1e6 is -inf in float16, which masks well, until a whole row is -inf."""
    scores = torch.randn(2, 1, 4).half()
    theirs = _d2l.load().masked_softmax(scores.clone(), torch.tensor([0, 2]))
    assert bool(theirs[0].isnan().all()) and bool((theirs[1, :, 2:] == 0).all())
    assert masked_softmax(scores, torch.tensor([0, 2]))[0].tolist() == [[0.0] * 4]


@needs_d2l
def test_d2l_prefers_padding_to_scores_below_a_million() -> None:
    scores = torch.full((1, 1, 4), -2e6)
    theirs = _d2l.load().masked_softmax(scores.clone(), torch.tensor([2]))
    assert theirs.tolist() == [[[0.0, 0.0, 0.5, 0.5]]]
    assert masked_softmax(scores, torch.tensor([2])).tolist() == [[[0.5, 0.5, 0.0, 0.0]]]


X = torch.zeros(2, 3, 4)
BAD: list[tuple[str, Any, dict[str, Any], type[Exception], str]] = [
    ("list", [[0.0]], {}, TypeError, "scores must be a torch.Tensor, got list"),
    ("integers", X.long(), {}, TypeError, "scores must hold floating-point .*int64"),
    ("rank", X[0, 0], {}, ValueError, r"scores must have shape \[\.\.\., query_len.* got \[4\]"),
    ("no keys", X[..., :0], {}, ValueError, "scores must hold at least one key"),
    ("impl", X, {"impl": "cuda"}, ValueError, "'auto', 'reference', 'triton', got 'cuda'"),
    ("long", X, {"valid_lens": torch.tensor([5, 1])}, ValueError, r"\[0, 4\].* got 5"),
    ("below", X, {"valid_lens": torch.tensor([1, -1])}, ValueError, r"\[0, 4\].* got -1"),
    ("float lens", X, {"valid_lens": torch.ones(2)}, TypeError, "valid_lens must hold integers"),
    ("lens", X, {"valid_lens": torch.ones(3).long()}, ValueError, r"shape \[2\] or \[2, 3\]"),
    ("float mask", X, {"mask": torch.ones(3, 4)}, TypeError, "mask must hold booleans"),
    ("mask", X, {"mask": torch.ones(4, 4).bool()}, ValueError, r"broadcast to \[2, 3, 4\]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "kwargs", "error", "message"),
    [case[1:] for case in BAD],
    ids=[case[0] for case in BAD],
)
def test_bad_input_is_named(
    scores: Any, kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        masked_softmax(scores, **kwargs)


def test_a_missing_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    monkeypatch.setattr(_triton, "REASON", "triton is not installed")
    with pytest.raises(RuntimeError, match="triton is not installed"):
        masked_softmax(X, impl="triton")
    assert masked_softmax(X).shape == X.shape


def test_auto_takes_the_reference_on_a_cpu() -> None:
    assert ops._kernel_if_cuda(torch.zeros(1)) == "reference"


@pytest.mark.gpu
def test_auto_takes_the_kernel_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ops._kernel_if_cuda(torch.zeros(1, device="cuda")) == "triton"
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    assert ops._kernel_if_cuda(torch.zeros(1, device="cuda")) == "reference"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [1, 33, 1000, 4097, 16384, 16385, 50_000])
def test_every_width_on_a_gpu(dtype: torch.dtype, width: int) -> None:
    scores = (3 * randn(2, 7, width)).to(dtype)
    lens = make_valid_lens((2, 7), width, device=DEVICE)
    mask = torch.rand(7, width, device=DEVICE) > 0.1
    g = randn(2, 7, width).to(dtype)
    results = []
    for name, x in (("triton", scores), ("reference", scores), ("reference", scores.double())):
        leaf = x.detach().requires_grad_()
        output = masked_softmax(leaf, lens, mask, impl=name)
        results.append((output, torch.autograd.grad(output, leaf, g.to(output))[0]))
    for ours, plain, oracle in zip(*results, strict=True):
        if dtype == torch.float32:
            assert_close(ours, oracle.cpu())
        else:
            assert_within_budget(ours, plain, oracle.cpu())


@pytest.mark.gpu
def test_runs_repeat_bit_for_bit_on_a_gpu() -> None:
    scores = randn(50, 20, 3000, dtype=torch.float32).requires_grad_()
    g = torch.rand_like(scores)
    runs = []
    for _ in range(5):
        output = masked_softmax(scores, impl="triton")
        runs.append((output, *torch.autograd.grad(output, scores, g)))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.gpu
def test_offsets_beyond_32_bits_on_a_gpu() -> None:
    """The last rows lie more than 2^31 elements in."""
    scores = torch.zeros(1, (1 << 31) // 16384 + 2, 16384, device="cuda", dtype=torch.float16)
    scores[0, -1, 5] = 20
    output = masked_softmax(scores, impl="triton")
    assert output[0, -1, 5].item() > 0.99 and output[0, 0, 5].item() < 0.001
