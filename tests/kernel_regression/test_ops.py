"""Every implementation against brute force, against float64, and against its promises."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course import _triton
from attn_course.kernel_regression import KERNELS, kernel_regression, leave_one_out, ops
from attn_course.kernel_regression import reference as ref

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLS = [
    "reference",
    "blocked",
    pytest.param("triton", marks=pytest.mark.triton),
]
# block-1, block, block+1 of the interpreter's tiles (16), one, and primes; both ways round.
SHAPES = [
    (1, 1, 1, 1),
    (15, 17, 3, 1),
    (16, 16, 1, 2),
    (17, 63, 2, 3),
    (63, 17, 3, 1),
    (5, 7, 20, 33),
]


def ids(shape: tuple[int, ...]) -> str:
    return "n{}-m{}-d{}-v{}".format(*shape)


def inputs(
    n: int, m: int, d: int, v: int, *batch: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    def make(*shape: int) -> Tensor:
        return torch.randn(*batch, *shape, dtype=dtype, device=DEVICE)

    return make(n, d), make(m, d), make(m, v)


def phi(kernel: str, distance: float) -> float:
    """The kernels once more, from their definitions, on plain numbers."""
    if kernel == "gaussian":
        return math.exp(-(distance**2) / 2)
    if kernel == "boxcar":
        return 1.0 if distance < 1 else 0.0
    if kernel == "constant":
        return 1.0
    if kernel == "triangular":
        return max(0.0, 1 - distance)
    return max(0.0, 0.75 * (1 - distance**2))


def brute_force(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel: str,
    width: Tensor,
    allowed: Tensor | None = None,
) -> Tensor:
    """Nadaraya-Watson with Python loops over Python numbers, no batch."""
    q, k, v, s = query.tolist(), key.tolist(), value.tolist(), width.tolist()
    rows = []
    for i, here in enumerate(q):
        weights = []
        for j, there in enumerate(k):
            pairs = zip(here, there, s, strict=True)
            distance = math.sqrt(sum(((a - b) / c) ** 2 for a, b, c in pairs))
            open_ = allowed is None or bool(allowed[i, j])
            weights.append(phi(kernel, distance) if open_ else 0.0)
        total = sum(weights)
        rows.append(
            [
                sum(w * x[c] for w, x in zip(weights, v, strict=True)) / total if total else 0.0
                for c in range(len(v[0]))
            ]
        )
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
def test_equals_brute_force(impl: str, kernel: str, shape: tuple[int, ...]) -> None:
    query, key, value = inputs(*shape)
    width = (0.5 + torch.rand(shape[2], dtype=torch.float64)) * shape[2] ** 0.5
    allowed = torch.rand(shape[0], shape[1]) > 0.2
    expected = brute_force(query, key, value, kernel, width, allowed)
    actual = kernel_regression(
        query,
        key,
        value,
        kernel=kernel,
        width=width.to(DEVICE),
        mask=allowed.to(DEVICE),
        impl=impl,
    )
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_float32_against_float64(impl: str, kernel: str) -> None:
    query, key, value = inputs(33, 40, 3, 2)
    # keep pairs off the edges of the windows, where one rounding flips a weight
    distance = torch.cdist(query, key) / 1.5
    allowed = (distance - 1).abs() > 1e-4
    expected = kernel_regression(
        query, key, value, kernel=kernel, width=1.5, mask=allowed, impl="reference"
    )
    actual = kernel_regression(
        query.float(), key.float(), value.float(), kernel=kernel, width=1.5, mask=allowed, impl=impl
    )
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("impl", ["reference", "blocked"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_one_rounding_away(impl: str, dtype: torch.dtype) -> None:
    query, key, value = (tensor.to(dtype) for tensor in inputs(20, 30, 3, 2))
    exact = kernel_regression(query.double(), key.double(), value.double(), impl="reference")
    actual = kernel_regression(query, key, value, impl=impl)
    assert actual.dtype == dtype
    rounding = torch.finfo(dtype).eps * exact.abs()
    assert bool(((actual.double() - exact).abs() <= rounding + 1e-5).all())


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradcheck(impl: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (tensor.requires_grad_() for tensor in inputs(5, 7, 2, 2))
    width = torch.tensor([1.7, 2.3], dtype=torch.float64, device=DEVICE, requires_grad=True)
    mask = torch.rand(5, 7, device=DEVICE) > 0.2
    monkeypatch.setattr(ref, "BLOCK_ELEMENTS", 14)

    def function(query: Tensor, key: Tensor, value: Tensor, width: Tensor) -> Tensor:
        return kernel_regression(
            query, key, value, kernel=kernel, width=width, mask=mask, impl=impl
        )

    assert torch.autograd.gradcheck(function, (query, key, value, width))


def narrow_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let programs write two columns at a time, and loops over more than two roll."""
    if _triton.AVAILABLE:
        from attn_course.kernel_regression import kernel as gpu

        monkeypatch.setattr(gpu, "MAX_TILE", 2)
        monkeypatch.setattr(gpu, "MAX_UNROLLED", 2)


@pytest.mark.parametrize("impl", ["blocked", pytest.param("triton", marks=pytest.mark.triton)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_equal_the_reference_across_tiles(
    impl: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several tiles of queries, of keys, of coordinates and of values, each with a ragged end."""
    narrow_tiles(monkeypatch)
    leaves = inputs(17, 18, 3, 5, 2)
    lens = torch.tensor([[18] * 9 + [5] * 7 + [0], list(range(17))], device=DEVICE)
    coefficients = torch.randn(2, 5, 17, dtype=torch.float64, device=DEVICE).mT  # transposed
    results = []
    for name in ("reference", impl):
        copies = [leaf.clone().requires_grad_() for leaf in leaves]
        output = kernel_regression(*copies, kernel=kernel, width=2.0, valid_lens=lens, impl=name)
        gradients = torch.autograd.grad(output, copies, coefficients)
        results.append((output, *gradients))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_blocks_cover_every_query(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = inputs(23, 11, 2, 3, 2)
    lens = torch.randint(0, 12, (2, 23), device=DEVICE)
    mask = torch.rand(23, 11, device=DEVICE) > 0.3
    expected = kernel_regression(query, key, value, valid_lens=lens, mask=mask, impl="reference")
    for elements in (1, 44, 10_000):
        actual = ref.nadaraya_watson_blocked(
            query, key, value, kernel="gaussian", lens=lens, mask=mask, block_elements=elements
        )
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_to_attend_to_gives_zeros(impl: str, kernel: str) -> None:
    leaves = [leaf.requires_grad_() for leaf in inputs(3, 4, 2, 2, 2)]
    lens = torch.tensor([[0, 4, 0], [2, 0, 1]], device=DEVICE)
    output = kernel_regression(*leaves, kernel=kernel, width=9.0, valid_lens=lens, impl=impl)
    empty = lens == 0
    assert bool((output[empty] == 0).all()) and bool((output[~empty] != 0).any())
    gradients = torch.autograd.grad(output.square().sum(), leaves)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert bool((gradients[0][empty] == 0).all())


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", ["boxcar", "triangular", "epanechnikov"])
def test_an_empty_window_gives_zeros(impl: str, kernel: str) -> None:
    key = torch.tensor([[0.0], [1.0]], device=DEVICE)
    query = torch.tensor([[50.0], [0.2]], device=DEVICE, requires_grad=True)
    output = kernel_regression(query, key, key + 1, kernel=kernel, impl=impl)
    assert output[0].item() == 0 and output[1].item() > 0
    (gradient,) = torch.autograd.grad(output.sum(), query)
    assert gradient[0].item() == 0


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_key_right_under_the_query_pulls_nowhere(impl: str, kernel: str) -> None:
    """At distance zero, the triangular kernel's kink included, the pair gives no gradient."""
    key = torch.tensor([[0.3, 0.1], [0.5, 0.4]], dtype=torch.float64, device=DEVICE)
    query = key[:1].clone().requires_grad_()
    value = torch.tensor([[1.0], [5.0]], dtype=torch.float64, device=DEVICE)
    alone = kernel_regression(query, key[:1], value[:1], kernel=kernel, impl=impl)
    assert torch.autograd.grad(alone.sum(), query)[0].tolist() == [[0.0, 0.0]]
    both = kernel_regression(query, key, value, kernel=kernel, impl=impl)
    (gradient,) = torch.autograd.grad(both.sum(), query)
    expected = kernel_regression(query, key, value, kernel=kernel, impl="reference")
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), query)[0])
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("impl", IMPLS)
def test_a_distant_gaussian_query_takes_its_nearest_key(impl: str) -> None:
    """exp(-d^2/2) is 0 for every key here; the plain quotient would be 0/0."""
    key = torch.tensor([[0.0], [1.0], [2.0]], device=DEVICE)
    query = torch.tensor([[100.0], [-1000.0]], device=DEVICE, requires_grad=True)
    value = torch.tensor([[1.0], [2.0], [3.0]], device=DEVICE)
    output = kernel_regression(query, key, value, impl=impl)
    assert output.flatten().tolist() == pytest.approx([3.0, 1.0])
    (gradient,) = torch.autograd.grad(output.sum(), query)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_padding_cannot_leak(impl: str, kernel: str) -> None:
    """What nobody attends to may hold NaN: outputs and gradients do not move."""
    query, key, value = inputs(5, 20, 2, 2, 2)
    lens = torch.tensor([3, 17], device=DEVICE)
    hidden = torch.arange(20, device=DEVICE) >= lens[:, None]
    results = []
    for poison in (0.0, torch.nan):
        leaves = [
            query.clone().requires_grad_(),
            key.masked_fill(hidden[..., None], poison).requires_grad_(),
            value.masked_fill(hidden[..., None], poison).requires_grad_(),
        ]
        output = kernel_regression(*leaves, kernel=kernel, width=3.0, valid_lens=lens, impl=impl)
        results.append((output, *torch.autograd.grad(output.sin().sum(), leaves)))
    for clean, poisoned in zip(*results, strict=True):
        torch.testing.assert_close(poisoned, clean, rtol=0, atol=0)
    assert bool((results[1][2][hidden] == 0).all())


@pytest.mark.parametrize("impl", IMPLS)
def test_mask_and_lengths_mean_what_they_say(impl: str) -> None:
    query, key, value = inputs(4, 6, 2, 1, 2)
    lens = torch.tensor([2, 5], device=DEVICE)
    by_length = kernel_regression(query, key, value, valid_lens=lens, impl=impl)
    for item, length in enumerate((2, 5)):
        alone = kernel_regression(query[item], key[item, :length], value[item, :length])
        torch.testing.assert_close(by_length[item], alone)
    mask = torch.arange(6, device=DEVICE) < lens[:, None, None]
    torch.testing.assert_close(
        kernel_regression(query, key, value, mask=mask, impl=impl), by_length
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_batches_broadcast_and_strides_do_not_matter(impl: str) -> None:
    query, key, value = inputs(6, 9, 3, 2)
    queries = query.expand(2, 4, 6, 3)  # stride 0
    expected = kernel_regression(query, key, value).expand(2, 4, 6, 2)
    torch.testing.assert_close(kernel_regression(queries, key, value, impl=impl), expected)
    transposed = [tensor.mT.contiguous().mT for tensor in (query, key, value)]
    sliced = [torch.stack([tensor, tensor + 1], -1)[..., 0] for tensor in (query, key, value)]
    for variant in (transposed, sliced):
        torch.testing.assert_close(kernel_regression(*variant, impl=impl), expected[0, 0])


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_batch_and_no_queries(impl: str) -> None:
    query, key, value = inputs(3, 4, 2, 5, 0)
    assert kernel_regression(query, key, value, impl=impl).shape == (0, 3, 5)
    query, key, value = inputs(0, 4, 2, 5)
    assert kernel_regression(query, key, value, impl=impl).shape == (0, 5)


@pytest.mark.parametrize("impl", IMPLS)
def test_arguments_are_left_alone(impl: str) -> None:
    query, key, value = inputs(4, 5, 2, 2, 3)
    lens, mask = torch.tensor([1, 5, 0], device=DEVICE), torch.rand(3, 4, 5, device=DEVICE) > 0.5
    before = [tensor.clone() for tensor in (query, key, value, lens, mask)]
    kernel_regression(query, key, value, valid_lens=lens, mask=mask, impl=impl)
    for old, new in zip(before, (query, key, value, lens, mask), strict=True):
        assert torch.equal(old, new)


@pytest.mark.triton
def test_kernels_write_every_element(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is handed out full of NaN; none may come back."""

    def poisoned(make: Any) -> Any:
        def fill(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return fill

    narrow_tiles(monkeypatch)
    leaves = [leaf.requires_grad_() for leaf in inputs(17, 19, 5, 3, 2)]
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    output = kernel_regression(*leaves, width=8.0, impl="triton")
    gradients = torch.autograd.grad(output.sum(), leaves)
    assert not any(bool(tensor.isnan().any()) for tensor in (output, *gradients))


@pytest.mark.parametrize("kernel", KERNELS)
def test_weights(kernel: str) -> None:
    query, key, value = inputs(6, 9, 2, 3)
    output, weights = kernel_regression(query, key, value, kernel=kernel, need_weights=True)
    assert weights.shape == (6, 9) and bool((weights >= 0).all())
    total = weights.sum(-1)
    assert bool((((total - 1).abs() < 1e-12) | (total == 0)).all())
    torch.testing.assert_close(weights @ value, output)


def test_translation_and_rotation_leave_it_alone() -> None:
    query, key, value = inputs(6, 9, 2, 3)
    turn, _ = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64, device=DEVICE))
    shift = torch.randn(2, dtype=torch.float64, device=DEVICE)
    for kernel in KERNELS:
        there = kernel_regression(query @ turn + shift, key @ turn + shift, value, kernel=kernel)
        here = kernel_regression(query, key, value, kernel=kernel)
        torch.testing.assert_close(there, here, rtol=1e-9, atol=1e-9)


def test_width_scales_distance() -> None:
    query, key, value = inputs(6, 9, 2, 3)
    wide = kernel_regression(query, key, value, width=2.5)
    torch.testing.assert_close(wide, kernel_regression(query / 2.5, key / 2.5, value))
    each = torch.tensor([2.5, 2.5], dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(wide, kernel_regression(query, key, value, width=each))


def test_leave_one_out_equals_leaving_each_one_out() -> None:
    _, key, value = inputs(1, 8, 2, 3)
    expected = torch.cat(
        [
            kernel_regression(
                key[i : i + 1],
                torch.cat([key[:i], key[i + 1 :]]),
                torch.cat([value[:i], value[i + 1 :]]),
                width=0.7,
            )
            for i in range(8)
        ]
    )
    torch.testing.assert_close(leave_one_out(key, value, width=0.7), expected)


def test_auto_follows_its_table() -> None:
    def choice(n: int, m: int, need_weights: bool = False, device: str = "cpu") -> str:
        query, key = torch.empty(n, 3, device=device), torch.empty(m, 3, device=device)
        return ops._fastest(query, key, key, (), need_weights)

    assert choice(1024, 1024) == "reference"
    assert choice(1024, 1025) == "blocked"
    assert choice(4096, 4096, need_weights=True) == "reference"


Q, K, V = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4, 1)
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ("rank", (Q[0], K, V), {}, ValueError, r"query must have shape .* got \[3\]"),
    ("dim", (Q, K[:, :2], V), {}, ValueError, "key must have the width of query, 3, got 2"),
    ("lengths", (Q, K, V[:3]), {}, ValueError, "value must have one row for each key, 4, got 3"),
    ("no keys", (Q, K[:0], V[:0]), {}, ValueError, "key must hold at least one key"),
    ("no columns", (Q, K, V[:, :0]), {}, ValueError, "at least one column, got 3 and 0"),
    ("integers", (Q.long(), K, V), {}, TypeError, "query must hold floating-point .*int64"),
    ("list", ([[0.0]], K, V), {}, TypeError, "query must be a torch.Tensor, got list"),
    ("dtypes", (Q, K.double(), V), {}, ValueError, "key must have the dtype of query"),
    ("batch", (Q.expand(2, 2, 3), K.expand(3, 4, 3), V), {}, ValueError, "must broadcast"),
    ("negative width", (Q, K, V), {"width": -1.0}, ValueError, "width must be positive.* -1.0"),
    ("zero width", (Q, K, V), {"width": 0}, ValueError, "width must be positive"),
    ("width tensor", (Q, K, V), {"width": torch.tensor([1.0, -2, 1])}, ValueError, "width must be"),
    ("NaN width", (Q, K, V), {"width": float("nan")}, ValueError, "width must be positive"),
    ("width shape", (Q, K, V), {"width": torch.ones(2)}, ValueError, r"\[\] or \[3\], got \[2\]"),
    ("width type", (Q, K, V), {"width": "1"}, TypeError, "width must be a number"),
    ("kernel", (Q, K, V), {"kernel": "cosine"}, ValueError, "'gaussian', 'boxcar'.*'cosine'"),
    ("impl", (Q, K, V), {"impl": "cuda"}, ValueError, "'auto', 'reference'.*got 'cuda'"),
    ("weights", (Q, K, V), {"impl": "triton", "need_weights": True}, ValueError, "need_weights"),
    ("long", (Q, K, V), {"valid_lens": torch.tensor(5)}, ValueError, r"\[0, 4\].* got 5"),
    ("below", (Q, K, V), {"valid_lens": torch.tensor(-1)}, ValueError, r"\[0, 4\].* got -1"),
    ("float lens", (Q, K, V), {"valid_lens": torch.tensor(1.0)}, TypeError, "integers"),
    ("lens shape", (Q, K, V), {"valid_lens": torch.ones(3).long()}, ValueError, r"\[\] or \[2\]"),
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
        kernel_regression(*args, **kwargs)


def test_leave_one_out_needs_two() -> None:
    with pytest.raises(ValueError, match="at least two"):
        leave_one_out(K[:1], V[:1])


def test_a_missing_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    monkeypatch.setattr(_triton, "REASON", "triton is not installed")
    with pytest.raises(RuntimeError, match="triton is not installed"):
        kernel_regression(Q, K, V, impl="triton")
    assert kernel_regression(Q, K, V).shape == (2, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_gpu(dtype: torch.dtype) -> None:
    query, key, value = (tensor.to(dtype) for tensor in inputs(300, 500, 3, 2))
    exact = kernel_regression(query.double(), key.double(), value.double(), impl="reference")
    actual = kernel_regression(query, key, value, impl="triton")
    rounding = torch.finfo(dtype).eps * exact.abs()
    assert bool(((actual.double() - exact).abs() <= rounding + 1e-5).all())


@pytest.mark.gpu
def test_runs_repeat_bit_for_bit_on_a_gpu() -> None:
    leaves = [leaf.float().requires_grad_() for leaf in inputs(1000, 3000, 3, 1)]
    runs = []
    for _ in range(5):
        output = kernel_regression(*leaves, impl="triton")
        runs.append((output, *torch.autograd.grad(output.sum(), leaves)))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.gpu
def test_memory_does_not_grow_with_the_pairs_on_a_gpu() -> None:
    leaves = [leaf.float().requires_grad_() for leaf in inputs(200_000, 200_000, 3, 1)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kernel_regression(*leaves, impl="triton").sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 100e6  # the matrix is 160 GB


@pytest.mark.gpu
def test_offsets_beyond_32_bits_on_a_gpu() -> None:
    """The last batch item lies more than 2^31 elements in."""
    batch, n, dim = 33, 1 << 20, 64
    query = torch.zeros(batch, n, dim, device="cuda", dtype=torch.float32)
    query[-1] = 1.0
    key = torch.tensor([[0.0] * dim, [1.0] * dim], device="cuda")
    value = torch.tensor([[0.0], [5.0]], device="cuda")
    output = kernel_regression(query, key, value, kernel="boxcar", impl="triton")
    assert bool((output[0] == 0).all()) and bool((output[-1] == 5).all())


@pytest.mark.gpu
def test_more_batch_items_than_a_short_grid_axis_holds_on_a_gpu() -> None:
    query, key, value = inputs(1, 3, 2, 1, 70_000, dtype=torch.float32)
    actual = kernel_regression(query, key, value, impl="triton")
    torch.testing.assert_close(actual, kernel_regression(query, key, value, impl="reference"))
