"""Add & norm against a plain float64 formula, against PyTorch, against d2l, and its promises."""

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course import _d2l, _triton
from attn_course.testing import (
    LAYOUTS,
    assert_close,
    assert_unchanged,
    assert_within_budget,
    with_layout,
)
from attn_course.transformer import ops, reference
from attn_course.transformer.ops import add_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-5
IMPLS = ["reference", "torch", pytest.param("triton", marks=pytest.mark.triton)]
#: Besides, the kernel in tiles of few rows, of which each program has several.
KERNELS = [*IMPLS, pytest.param("tiled", marks=pytest.mark.triton)]


@pytest.fixture(params=KERNELS)
def impl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "tiled":
        return request.param
    from attn_course.transformer import kernel as gpu

    monkeypatch.setattr(gpu, "TILE", 128)
    monkeypatch.setattr(gpu, "PROGRAMS", 3)
    return "triton"


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device=DEVICE)


def make(*shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Token, update, scale and shift; no row has mean 0 or variance 1."""
    x, update = 2 * randn(*shape, dtype=dtype) + 3, randn(*shape, dtype=dtype)
    return [x, update, randn(shape[-1], dtype=dtype), randn(shape[-1], dtype=dtype)]


def brute_force(x: Tensor, update: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The definition with Python loops over Python numbers."""
    dim = x.shape[-1]
    rows = []
    for a, b in zip(x.reshape(-1, dim).tolist(), update.reshape(-1, dim).tolist(), strict=True):
        total = [i + j for i, j in zip(a, b, strict=True)]
        mean = math.fsum(total) / dim
        scale = math.sqrt(math.fsum((s - mean) ** 2 for s in total) / dim + EPS)
        columns = zip(total, weight.tolist(), bias.tolist(), strict=True)
        rows.append([(s - mean) / scale * w + shift for s, w, shift in columns])
    return torch.tensor(rows, dtype=torch.float64).reshape(x.shape)


def gradients(
    outputs: Tensor | tuple[Tensor, ...], leaves: Sequence[Tensor], incoming: Sequence[Tensor]
) -> list[Tensor]:
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    return list(torch.autograd.grad(outputs, leaves, incoming))


def leaves_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


def compare(
    impl: str, inputs: Sequence[Tensor], incoming: Sequence[Tensor], **tolerances: float
) -> None:
    """Outputs and gradients against PyTorch's layer_norm in float64; both, if two come in."""
    leaves, exact = leaves_of(inputs), leaves_of([t.double() for t in inputs])
    both = len(incoming) == 2
    outputs: Any = add_norm(*leaves, return_sum=both, impl=impl)
    total = exact[0] + exact[1]
    normed = F.layer_norm(total, total.shape[-1:], exact[2], exact[3], EPS)
    expected = (normed, total) if both else normed
    ours = [*(outputs if both else [outputs]), *gradients(outputs, leaves, incoming)]
    theirs = [
        *(expected if both else [normed]),
        *gradients(expected, exact, [g.double() for g in incoming]),
    ]
    names = ["normed", *(["sum"] if both else []), "dx", "dupdate", "dweight", "dbias"]
    for name, a, b in zip(names, ours, theirs, strict=True):
        assert_close(a, b.cpu(), name=name, **tolerances)


SHAPES = [(3, 1), (11, 17), (5, 63), (5, 64), (5, 65), (11, 100), (100,), (2, 3, 17), (2, 1, 4, 9)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_brute_force(impl: str, shape: tuple[int, ...]) -> None:
    inputs = make(*shape)
    assert_close(add_norm(*inputs, impl=impl), brute_force(*inputs))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_layer_norm_of_the_sum(impl: str, shape: tuple[int, ...]) -> None:
    compare(impl, make(*shape), [randn(*shape)])
    compare(impl, make(*shape), [randn(*shape), randn(*shape)])


def test_float32_against_float64(impl: str) -> None:
    shape = (11, 65)
    compare(
        impl,
        make(*shape, dtype=torch.float32),
        [randn(*shape, dtype=torch.float32)] * 2,
        rtol=1e-5,
        atol=2e-5,  # the gradients of scale and shift add 11 rows
    )


def test_a_row_gets_mean_zero_and_variance_one(impl: str) -> None:
    x, update, _, _ = make(4, 37)
    one, zero = torch.ones_like(x[0]), torch.zeros_like(x[0])
    output = add_norm(x, update, one, zero, eps=1e-12, impl=impl)
    torch.testing.assert_close(output.mean(-1), zero[:4], rtol=0, atol=1e-12)
    torch.testing.assert_close(output.var(-1, correction=0), one[:4], rtol=1e-10, atol=0)


def test_eps_is_added_to_the_variance(impl: str) -> None:
    x, update, weight, bias = make(3, 8)
    output = add_norm(x, update, weight, bias, eps=0.7, impl=impl)
    expected = F.layer_norm(x + update, (8,), weight, bias, 0.7)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def test_without_a_shift(impl: str) -> None:
    x, update, weight, _ = leaves_of(make(5, 17))
    ours = add_norm(x, update, weight, None, impl=impl)
    theirs = F.layer_norm(x + update, (17,), weight, None, EPS)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    g = randn(5, 17)
    for a, b in zip(
        gradients(ours, (x, update, weight), [g]),
        gradients(theirs, (x, update, weight), [g]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("return_sum", [False, True])
def test_gradcheck(impl: str, return_sum: bool) -> None:
    inputs = leaves_of(make(11, 65))

    def call(*tensors: Tensor) -> Any:
        return add_norm(*tensors, return_sum=return_sum, impl=impl)

    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


def test_the_reference_can_be_differentiated_twice() -> None:
    inputs = leaves_of(make(2, 5))
    assert torch.autograd.gradgradcheck(lambda *t: add_norm(*t, impl="reference"), inputs)


@pytest.mark.triton
def test_the_kernel_cannot_and_says_so() -> None:
    inputs = leaves_of(make(2, 5))
    output = add_norm(*inputs, impl="triton")
    grads = torch.autograd.grad(output.square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grads[0].sum().backward()


def test_the_sum_is_the_sum(impl: str) -> None:
    x, update, weight, bias = make(2, 3, 9)
    normed, total = add_norm(x, update, weight, bias, return_sum=True, impl=impl)
    assert torch.equal(total, x + update)
    assert torch.equal(normed, add_norm(x, update, weight, bias, impl=impl))


def test_either_output_alone_can_be_differentiated(impl: str) -> None:
    inputs, g = leaves_of(make(5, 17)), randn(5, 17)
    normed, total = add_norm(*inputs, return_sum=True, impl=impl)
    alone = torch.autograd.grad(normed, inputs, g, retain_graph=True)
    expected = gradients(add_norm(*inputs, impl=impl), inputs, [g])
    for a, b in zip(alone, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    dx, dupdate, dweight, dbias = torch.autograd.grad(total, inputs, g, allow_unused=True)
    assert torch.equal(dx, g) and torch.equal(dupdate, g)
    assert dweight is None and dbias is None


@pytest.mark.parametrize("needs", range(4))
def test_one_argument_alone_can_need_a_gradient(impl: str, needs: int) -> None:
    inputs, g = make(5, 9), randn(5, 9)
    expected = leaves_of(inputs)
    normed = F.layer_norm(expected[0] + expected[1], (9,), expected[2], expected[3], EPS)
    inputs[needs].requires_grad_()
    (ours,) = gradients(add_norm(*inputs, impl=impl), inputs[needs : needs + 1], [g])
    (theirs,) = gradients(normed, expected[needs : needs + 1], [g])
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_both_gradients_may_be_changed_apart(impl: str) -> None:
    """They are equal; they must not share their memory."""
    x, update, weight, bias = leaves_of(make(3, 8))
    add_norm(x, update, weight, bias, impl=impl).sum().backward()
    assert x.grad is not None and update.grad is not None
    kept = update.grad.clone()
    x.grad.zero_()
    assert torch.equal(update.grad, kept)


def test_x_may_be_its_own_update(impl: str) -> None:
    x, _, weight, bias = leaves_of(make(3, 8))
    g = randn(3, 8)
    ours = gradients(add_norm(x, x, weight, bias, impl=impl), (x,), [g])
    theirs = gradients(F.layer_norm(2 * x, (8,), weight, bias, EPS), (x,), [g])
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 19), (1, 5, 19)], ids=str)
def test_strides_do_not_matter(impl: str, layout: str, shape: tuple[int, ...]) -> None:
    """Of the two addends, of scale and shift, and of the incoming gradients."""
    tensors = [with_layout(randn(*shape), layout) for _ in range(4)]
    weight, bias = randn(2, 19).mT.contiguous().mT  # every second number
    assert not weight.is_contiguous()
    results = []
    for x, update, w, b, g, gs in (
        (*tensors[:2], weight, bias, *tensors[2:]),
        [t.contiguous() for t in (*tensors[:2], weight, bias, *tensors[2:])],
    ):
        leaves = leaves_of((x, update, w, b))
        outputs: Any = add_norm(*leaves, return_sum=True, impl=impl)
        results.append([*outputs, *gradients(outputs, leaves, (g, gs))])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_strides_of_two_dimensions(impl: str) -> None:
    """These reach the kernel as they are: nothing is copied on the way."""
    x, update, g, gs = (randn(19, 5).mT for _ in range(4))
    compare(impl, [x, update, randn(19), randn(19)], [g, gs])
    x, update, g, gs = (randn(10, 38)[::2, ::2] for _ in range(4))
    compare(impl, [x, update, randn(19), randn(19)], [g, gs])
    row = randn(1, 19).expand(5, 19)
    compare(impl, [row, update, randn(19), randn(19)], [row, randn(5, 1).expand(5, 19)])


def test_a_constant_row_gives_the_shift(impl: str) -> None:
    """Its variance is 0, and 3 + 0.25 is exact: nothing but eps is left."""
    x, update = torch.full((2, 12), 3.0, device=DEVICE), torch.full((2, 12), 0.25, device=DEVICE)
    inputs = leaves_of((x, update, randn(12).float(), randn(12).float()))
    output = add_norm(*inputs, impl=impl)
    torch.testing.assert_close(output, inputs[3].expand(2, 12), rtol=0, atol=0)
    g = randn(2, 12).float()
    dx, dupdate, dweight, dbias = gradients(output, inputs, [g])
    c = g * inputs[2].detach()
    expected = (c - c.mean(-1, keepdim=True)) / math.sqrt(EPS)
    torch.testing.assert_close(dx, expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(dx, dupdate)
    torch.testing.assert_close(dweight, torch.zeros_like(dweight), rtol=0, atol=1e-3)
    torch.testing.assert_close(dbias, g.sum(0))


def test_one_column_is_always_constant(impl: str) -> None:
    inputs = leaves_of(make(4, 1))
    output = add_norm(*inputs, impl=impl)
    torch.testing.assert_close(output, inputs[3].expand(4, 1), rtol=0, atol=0)
    dx = gradients(output, inputs, [randn(4, 1)])[0]
    assert bool((dx == 0).all())


def test_a_mean_far_from_zero(impl: str) -> None:
    """The mean of the squares less the square of the mean would have lost everything."""
    x = 1e4 + randn(6, 100, dtype=torch.float32)
    update = randn(6, 100, dtype=torch.float32)
    weight, bias = torch.ones(100, device=DEVICE), torch.zeros(100, device=DEVICE)
    total = x + update  # rounded to steps of 0.001, for all alike
    exact = F.layer_norm(total.double(), (100,), eps=EPS)
    output = add_norm(x, update, weight, bias, impl=impl)
    assert_close(output, exact.cpu(), rtol=0, atol=2e-3)
    one_pass = total.square().mean(-1) - total.mean(-1).square()
    assert ((one_pass / total.double().var(-1, correction=0)) - 1).abs().max() > 0.5


def test_small_and_large_rows(impl: str) -> None:
    """Nothing overflows that need not, and eps counts where the variance is small."""
    x, update, weight, bias = make(3, 20, dtype=torch.float32)
    for size in (1e-4, 1e15):
        scaled = x * size, update * size
        exact = F.layer_norm(
            scaled[0].double() + scaled[1].double(), (20,), weight.double(), bias.double(), EPS
        )
        assert_close(add_norm(*scaled, weight, bias, impl=impl), exact.cpu())


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # NumPy, where it interprets
def test_what_is_not_a_number_stays_in_its_row(impl: str) -> None:
    for value in (math.nan, math.inf):
        x, update, weight, bias = make(4, 9)
        x[2, 3] = value
        output = add_norm(x, update, weight, bias, impl=impl)
        assert bool(output[2].isnan().any())
        assert bool(output[[0, 1, 3]].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias_too", [True, False])
def test_half_precision(dtype: torch.dtype, impl: str, bias_too: bool) -> None:
    if dtype == torch.bfloat16 and impl == "triton" and DEVICE == "cpu":
        return  # the interpreter's bfloat16 is wrong: see the test for a GPU
    inputs = make(5, 33, dtype=dtype)[: 4 if bias_too else 3]
    incoming = [randn(5, 33).to(dtype) for _ in range(2)]
    ours, low, oracle = (
        half_precision_run(f, some, incoming)
        for f, some in (
            (lambda *t: add_norm(*(t if bias_too else (*t, None)), return_sum=True, impl=impl),
             inputs),
            (plain, inputs),
            (plain, [t.double() for t in inputs]),
        )
    )  # fmt: skip
    names = ("normed", "sum", "dx", "dupdate", "dweight", "dbias")
    for name, *three in zip(names, ours, low, oracle, strict=bias_too):
        assert three[0].dtype == dtype
        assert_within_budget(*three, name=name)


def plain(
    x: Tensor, update: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The unfused path, in the precision that is given."""
    total = x + update
    return F.layer_norm(total, total.shape[-1:], weight, bias), total


def half_precision_run(
    function: Callable[..., Any], inputs: Sequence[Tensor], incoming: Sequence[Tensor]
) -> list[Tensor]:
    leaves = leaves_of(inputs)
    outputs = function(*leaves)
    gs = [g.to(outputs[0]) for g in incoming]
    return [*outputs, *gradients(outputs, leaves, gs)]


def test_half_precision_is_rounded_at_the_end(impl: str) -> None:
    """2048 + 1 is no float16, and 60000 + 60000 neither; their float32 sums are normalised."""
    x = torch.tensor([[2048.0, 2048.0], [60000.0, 6e4]], device=DEVICE, dtype=torch.float16)
    update = torch.tensor([[0.0, 1.0], [6e4, 5e4]], device=DEVICE, dtype=torch.float16)
    one, zero = torch.ones_like(x[0]), torch.zeros_like(x[0])
    output = add_norm(x, update, one, zero, impl=impl)
    expected = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float16)
    torch.testing.assert_close(output.cpu(), expected, rtol=0, atol=1e-3)


def test_empty_batch(impl: str) -> None:
    for shape in ((0, 5), (2, 0, 5), (0, 3, 5)):
        inputs = leaves_of(make(*shape))
        outputs: Any = add_norm(*inputs, return_sum=True, impl=impl)
        assert all(output.shape == shape for output in outputs)
        dx, dupdate, dweight, dbias = gradients(outputs, inputs, [randn(*shape)] * 2)
        assert dx.shape == dupdate.shape == shape
        assert dweight.tolist() == dbias.tolist() == [0.0] * 5


def test_arguments_are_left_alone(impl: str) -> None:
    x, update, weight, bias = make(2, 3, 10)
    g, gs = randn(2, 3, 10), randn(2, 3, 10)
    with assert_unchanged(x=x, update=update, weight=weight, bias=bias, g=g, gs=gs):
        leaves = leaves_of((x, update, weight, bias))
        outputs: Any = add_norm(*leaves, return_sum=True, impl=impl)
        gradients(outputs, leaves, (g, gs))


def test_kernels_write_every_element(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is handed out full of NaN; none may come back."""

    def poisoned(allocate: Any) -> Any:
        def fill(*args: Any, **kwargs: Any) -> Tensor:
            return allocate(*args, **kwargs).fill_(torch.nan)

        return fill

    inputs, g = leaves_of(make(11, 21)), randn(11, 21)
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    outputs: Any = add_norm(*inputs, return_sum=True, impl=impl)
    for tensor in (*outputs, *gradients(outputs, inputs, (g, g))):
        assert bool(tensor.isfinite().all())


@pytest.mark.triton
def test_the_sum_is_kept_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    # The interpreter asks for memory, too, but later.
    allocate, sizes = torch.Tensor.new_empty, []

    def count(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tensor = allocate(self, *args, **kwargs)
        sizes.append(tensor.numel())
        return tensor

    monkeypatch.setattr(torch.Tensor, "new_empty", count)
    frozen, learned = make(6, 8), leaves_of(make(6, 8))
    add_norm(*frozen, impl="triton")
    assert sizes[:3] == [48, 0, 0]
    sizes.clear()
    with torch.no_grad():
        add_norm(*learned, impl="triton")
    assert sizes[:3] == [48, 0, 0]
    sizes.clear()
    add_norm(*learned, impl="triton")
    assert sizes[:3] == [48, 48, 12]  # and mean and deviation of each row


@pytest.mark.triton
def test_tiles() -> None:
    from attn_course.transformer import kernel as gpu

    def tile(dim: int) -> tuple[int, int, int]:
        meta = gpu._meta(torch.float32, dim)
        return meta["BLOCK_M"], meta["BLOCK_D"], meta["num_warps"]

    assert tile(1) == (2048, 1, 8)
    assert tile(512) == (4, 512, 8)
    assert tile(513) == (2, 1024, 8)
    assert tile(4097) == (1, 8192, 32)
    assert tile(16384) == (1, 16384, 32)
    assert gpu.MAX_COLUMNS == ops._MAX_COLUMNS


@pytest.mark.triton
def test_the_widest_row() -> None:
    compare("triton", make(2, 16384), [randn(2, 16384)])
    with pytest.raises(ValueError, match=r"up to 16384 columns, got 16385: use impl='torch'"):
        add_norm(*make(1, 16385), impl="triton")
    assert add_norm(*make(1, 16385)).shape == (1, 16385)


def test_the_references_are_one_formula() -> None:
    x, update, weight, bias = make(3, 8)
    normed, total = reference.add_norm(x, update, weight, bias, EPS)
    assert torch.equal(total, x + update)
    assert torch.equal(normed, reference.layer_norm(total, weight, bias, EPS))


@pytest.mark.skipif(
    importlib.util.find_spec("d2l") is None,
    reason="d2l is not installed: python -m attn_course.install_d2l",
)
def test_equals_d2l(impl: str) -> None:
    module = _d2l.load().AddNorm(24, dropout=0.0).to(DEVICE)
    torch.nn.init.normal_(module.ln.weight)
    torch.nn.init.normal_(module.ln.bias)
    x, update = randn(2, 5, 24).float(), randn(2, 5, 24).float()
    ours = add_norm(x, update, module.ln.weight, module.ln.bias, impl=impl)
    torch.testing.assert_close(ours, module(x, update), rtol=1e-5, atol=1e-5)


X, W = torch.zeros(2, 3, 4), torch.zeros(4)
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ("list", ([[0.0]], X, W, W), {}, TypeError, "x must be a torch.Tensor, got list"),
    ("integers", (X, X.long(), W, W), {}, TypeError, "update must hold floating-point .*int64"),
    ("no weight", (X, X, None, W), {}, TypeError, "weight must be a torch.Tensor, got NoneType"),
    ("no columns", (X[..., :0], X[..., :0], W, W), {}, ValueError, "x must have at least one col"),
    ("scalar", (W[0], W[0], W, W), {}, ValueError, r"x must have shape \[\.\.\., dim\], got \[\]"),
    ("update", (X, X[:1], W, W), {}, ValueError, r"update .* \[2, 3, 4\], got \[1, 3, 4\]"),
    ("weight", (X, X, W[:3], W), {}, ValueError, r"weight must have shape \[4\], got \[3\]"),
    ("bias", (X, X, W, W[None]), {}, ValueError, r"bias must have shape \[4\], got \[1, 4\]"),
    ("dtype", (X, X.double(), W, W), {}, ValueError, "update must have the dtype of x"),
    ("bias dtype", (X, X, W, W.half()), {}, ValueError, "bias must have the dtype of x"),
    ("eps", (X, X, W, W), {"eps": 0.0}, ValueError, "eps must be positive and finite, got 0.0"),
    ("eps text", (X, X, W, W), {"eps": "1"}, TypeError, "eps must be a number.*got str"),
    ("eps tensor", (X, X, W, W), {"eps": W[0]}, TypeError, "eps must be a number, got a tensor"),
    ("impl", (X, X, W, W), {"impl": "cuda"}, ValueError, "'auto', 'reference', 'torch', 'triton'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "kwargs", "error", "message"),
    [case[1:] for case in BAD],
    ids=[case[0] for case in BAD],
)
def test_bad_input_is_named(
    arguments: tuple[Any, ...], kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        add_norm(*arguments, **kwargs)


def test_a_missing_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    monkeypatch.setattr(_triton, "REASON", "triton is not installed")
    with pytest.raises(RuntimeError, match="triton is not installed"):
        add_norm(X, X, W, W, impl="triton")
    assert add_norm(X, X, W, W).shape == X.shape


def test_auto_takes_pytorch_on_a_cpu() -> None:
    assert not ops._kernel_takes(torch.zeros(1, 4))


@pytest.mark.gpu
def test_auto_takes_the_kernel_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ops._kernel_takes(torch.zeros(1, 16384, device="cuda"))
    assert not ops._kernel_takes(torch.zeros(1, 16385, device="cuda"))
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    assert not ops._kernel_takes(torch.zeros(1, 4, device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(5, 1), (3001, 33), (7000, 512), (999, 4097), (300, 16384)])
def test_every_width_on_a_gpu(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    inputs = [t.to(dtype) for t in make(*shape)]
    incoming = [randn(*shape).to(dtype) for _ in range(2)]
    exact = [t.double() for t in inputs]
    ours = half_precision_run(
        lambda *t: add_norm(*t, return_sum=True, impl="triton"), inputs, incoming
    )
    low = half_precision_run(plain, inputs, incoming)
    oracle = half_precision_run(plain, exact, incoming)
    for a, b, c in zip(ours, low, oracle, strict=True):
        if dtype == torch.float32:
            assert (a - c).abs().max() <= 1e-5 * max(1.0, c.abs().max().item())
        else:
            assert_within_budget(a, b, c.cpu())


@pytest.mark.gpu
def test_runs_repeat_bit_for_bit_on_a_gpu() -> None:
    inputs, g = leaves_of(make(50_000, 300, dtype=torch.float32)), randn(50_000, 300).float()
    runs = []
    for _ in range(5):
        output = add_norm(*inputs, impl="triton")
        runs.append([output, *gradients(output, inputs, [g])])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.gpu
def test_offsets_beyond_32_bits_on_a_gpu() -> None:
    """The last rows lie more than 2^31 elements in."""
    x = torch.zeros((1 << 31) // 8192 + 2, 8192, device="cuda", dtype=torch.float16)
    x[-1, ::2] = 1
    weight, bias = torch.ones_like(x[0]), torch.zeros_like(x[0])
    with torch.no_grad():
        output = add_norm(x, torch.zeros_like(x[:1]).expand_as(x), weight, bias, impl="triton")
    assert abs(output[-1, 0].item() - 1) < 0.01 and abs(output[-1, 1].item() + 1) < 0.01
    assert output[0].abs().max().item() == 0
