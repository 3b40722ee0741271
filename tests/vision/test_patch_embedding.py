"""Patches and their embedding against loops, against each other, and their promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course import _triton
from attn_course.testing import (
    LAYOUTS,
    assert_close,
    assert_unchanged,
    assert_within_budget,
    with_layout,
)
from attn_course.vision import ops, patch_embedding, patchify

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Interpreted kernels take float64, which shows errors that float32 would hide.
EXACT = torch.float64 if _triton.INTERPRETED else torch.float32
IMPLS = ["reference", "conv", pytest.param("triton", marks=pytest.mark.triton)]
#: Besides, the kernels with sums in many parts.
KERNELS = [*IMPLS, pytest.param("split", marks=pytest.mark.triton)]


@pytest.fixture(params=KERNELS)
def impl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    # cuDNN would round the factors of float32 products to 11 bits.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if request.param != "split":
        return request.param
    from attn_course.vision import backward_kernel as gpu

    monkeypatch.setattr(gpu, "PROGRAMS", 9)
    monkeypatch.setattr(gpu, "COLUMNS", 16)
    return "triton"


def randn(*shape: int, dtype: torch.dtype = EXACT) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device=DEVICE)


def make(
    batch: int,
    grid: tuple[int, int],
    patch: tuple[int, int, int],
    dim: int,
    *,
    has_class: bool = True,
    dtype: torch.dtype = EXACT,
) -> list[Tensor]:
    """Images, weight, bias, position, and a class token if there is to be one."""
    (rows, columns), (channels, height, width) = grid, patch
    tensors = [
        randn(batch, channels, rows * height, columns * width, dtype=dtype),
        randn(dim, channels, height, width, dtype=dtype),
        randn(dim, dtype=dtype),
        randn(rows * columns + has_class, dim, dtype=dtype),
    ]
    return [*tensors, randn(dim, dtype=dtype)] if has_class else tensors


def call(tensors: Sequence[Tensor | None], impl: str) -> Tensor:
    images, weight, bias, position, class_token = [*tensors, None][:5]
    assert images is not None and weight is not None
    return patch_embedding(
        images, weight, bias, position=position, class_token=class_token, impl=impl
    )


def brute_force(tensors: Sequence[Tensor]) -> Tensor:
    """The definition, a pixel at a time, by Python loops over Python numbers."""
    images, weight, bias, position, class_token = (t.cpu() for t in [*tensors, tensors[2]][:5])
    dim, channels, height, width = weight.shape
    has_class = len(tensors) == 5
    columns = images.shape[3] // width
    numbers, weights = images.tolist(), weight.tolist()
    output = torch.empty(len(images), len(position), dim, dtype=torch.float64)
    for b in range(len(images)):
        for t in range(len(position)):
            row, column = divmod(t - has_class, columns)
            for d in range(dim):
                total = float(bias[d])
                for c in range(channels):
                    for y in range(height):
                        for x in range(width):
                            pixel = numbers[b][c][row * height + y][column * width + x]
                            total += weights[d][c][y][x] * pixel
                if has_class and t == 0:
                    total = float(class_token[d])
                output[b, t, d] = total + float(position[t, d])
    return output


def leaves_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


def run(tensors: Sequence[Tensor], g: Tensor, impl: str) -> list[Tensor]:
    """Output and gradients."""
    leaves = leaves_of(tensors)
    output = call(leaves, impl)
    return [output.detach(), *torch.autograd.grad(output, leaves, g)]


def exact(tensors: Sequence[Tensor], g: Tensor) -> list[Tensor]:
    """The same by the formula, in float64."""
    return run([t.double() for t in tensors], g.double(), "reference")


NAMES = ("output", "dimages", "dweight", "dbias", "dposition", "dclass")

#: Batch, grid, (channels, patch height, patch width), columns.
SHAPES: dict[str, tuple[int, tuple[int, int], tuple[int, int, int], int]] = {
    "one number": (1, (1, 1), (1, 1, 1), 1),
    "one patch": (2, (1, 1), (3, 2, 4), 5),
    "pixels": (2, (3, 5), (2, 1, 1), 4),
    "rectangles": (2, (2, 3), (2, 3, 2), 7),
    "a row of patches": (1, (1, 6), (1, 4, 2), 3),
    "a column of patches": (2, (5, 1), (1, 2, 3), 3),
}
#: Around the edges of a tile of 16: tokens, numbers of a patch, and columns.
EDGES: dict[str, tuple[int, tuple[int, int], tuple[int, int, int], int]] = {
    "one tile": (1, (3, 5), (1, 4, 4), 16),
    "one short": (3, (2, 2), (3, 5, 1), 15),
    "one past": (1, (4, 4), (1, 17, 1), 17),
    "several": (5, (2, 4), (3, 4, 3), 33),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_patchify_equals_loops(shape: Any) -> None:
    batch, (rows, columns), (channels, height, width), _ = shape
    images = randn(batch, channels, rows * height, columns * width)
    patches = patchify(images, (height, width))
    assert patches.shape == (batch, rows * columns, channels * height * width)
    for p in range(rows * columns):
        top, left = p // columns * height, p % columns * width
        block = images[:, :, top : top + height, left : left + width]
        assert torch.equal(patches[:, p], block.reshape(batch, -1))


def test_patchify_is_pytorchs_unfold() -> None:
    images = randn(2, 3, 8, 15)
    unfolded = F.unfold(images, (4, 5), stride=(4, 5))  # [batch, channels * ph * pw, patches]
    assert torch.equal(patchify(images, (4, 5)), unfolded.mT)
    assert torch.equal(patchify(images[..., :8], 4), patchify(images[..., :8], [4, 4]))


@pytest.mark.parametrize("has_class", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_equals_brute_force(impl: str, shape: Any, has_class: bool) -> None:
    tensors = make(*shape, has_class=has_class)
    assert_close(call(tensors, impl), brute_force(tensors))


@pytest.mark.parametrize("has_class", [True, False])
@pytest.mark.parametrize("shape", [*SHAPES.values(), *EDGES.values()], ids=[*SHAPES, *EDGES])
def test_all_are_equal_forward_and_gradients(impl: str, shape: Any, has_class: bool) -> None:
    tensors = make(*shape, has_class=has_class)
    g = randn(shape[0], len(tensors[3]), shape[3])
    doubles = leaves_of([t.double() for t in tensors])
    images, weight, bias, position = doubles[:4]
    rows = F.unfold(images, weight.shape[2:], stride=weight.shape[2:]).mT @ weight.flatten(1).mT
    tokens = rows + bias
    if has_class:
        tokens = torch.cat([doubles[4].expand(shape[0], 1, -1), tokens], 1)
    expected = tokens + position
    theirs = [expected.detach(), *torch.autograd.grad(expected, doubles, g.double())]
    for name, a, b in zip(NAMES, run(tensors, g, impl), theirs, strict=False):
        assert_close(a, b, name=name)


def test_float32_against_float64(impl: str) -> None:
    tensors = make(2, (3, 4), (3, 4, 4), 20, dtype=torch.float32)
    g = randn(2, 13, 20, dtype=torch.float32)
    for name, a, b in zip(NAMES, run(tensors, g, impl), exact(tensors, g), strict=True):
        assert_close(a, b, name=name, rtol=1e-5, atol=5e-5)  # sums of 48 products


@pytest.mark.parametrize("lacking", [(2,), (3,), (2, 3), (4,), (2, 3, 4)], ids=str)
def test_what_is_not_given_is_zero(impl: str, lacking: tuple[int, ...]) -> None:
    """But a class token that is not given is no token."""
    tensors = leaves_of(make(2, (2, 3), (2, 2, 3), 5, has_class=4 not in lacking))
    some: list[Any] = [None if i in lacking else t for i, t in enumerate(tensors)]
    zeros = [torch.zeros_like(t) if i in lacking else t for i, t in enumerate(tensors)]
    g = randn(2, 6 + (4 not in lacking), 5)
    output, leaves = call(some, impl), [t for t in some if t is not None]
    ours = [output, *torch.autograd.grad(output, leaves, g)]
    theirs = [t for i, t in enumerate(exact(zeros, g), start=-1) if i not in lacking]
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)


def test_the_class_row_is_class_and_position(impl: str) -> None:
    tensors = make(3, (2, 2), (1, 3, 3), 5)
    output = call(tensors, impl)
    assert torch.equal(output[:, 0], (tensors[4] + tensors[3][0]).expand(3, -1))
    shifted = [tensors[0], tensors[1] + 1, tensors[2] + 1, *tensors[3:]]
    assert torch.equal(call(shifted, impl)[:, 0], output[:, 0])


@pytest.mark.parametrize("needs", range(5))
def test_one_argument_alone_can_need_a_gradient(impl: str, needs: int) -> None:
    tensors, g = make(2, (2, 2), (2, 2, 3), 6), randn(2, 5, 6)
    expected = exact(tensors, g)[1 + needs]
    tensors[needs].requires_grad_()
    (found,) = torch.autograd.grad(call(tensors, impl), tensors[needs], g)
    assert_close(found, expected)


def test_gradcheck(impl: str) -> None:
    if impl == "triton" and not _triton.INTERPRETED:
        pytest.skip("needs float64, which compiled kernels do not take")
    tensors = leaves_of(make(3, (2, 3), (2, 2, 3), 17, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda *t: call(t, impl), tensors, fast_mode=True)


@pytest.mark.triton
def test_the_kernel_differentiates_once_and_says_so() -> None:
    tensors = leaves_of(make(1, (1, 2), (1, 2, 2), 3))
    output = call(tensors, "triton")
    grads = torch.autograd.grad(output.square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grads[0].sum().backward()


@pytest.mark.triton
def test_only_what_is_needed_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    from attn_course.vision import backward_kernel as gpu

    launched: list[str] = []

    def watch(name: str) -> Callable[..., Tensor]:
        original = getattr(gpu, name)

        def call_and_tell(*args: Any) -> Tensor:
            launched.append(name)
            found: Tensor = original(*args)
            return found

        return call_and_tell

    names = ("image_gradient", "weight_gradient", "token_gradient")
    for name in names:
        monkeypatch.setattr(gpu, name, watch(name))
    for needs, expected in ((0, names[0]), (1, names[1]), (2, names[2]), (4, names[2])):
        launched.clear()
        tensors = make(2, (1, 2), (1, 2, 2), 3)
        tensors[needs].requires_grad_()
        call(tensors, "triton").sum().backward()
        assert launched == [expected]


@pytest.mark.parametrize("layout", [*LAYOUTS, "channels last", "rotated"])
def test_strides_do_not_matter(impl: str, layout: str) -> None:
    """Of images, parameters and incoming gradients."""
    tensors, g = make(3, (3, 2), (2, 2, 3), 6), randn(3, 7, 6)
    if layout == "channels last":
        strange = [tensors[0].to(memory_format=torch.channels_last)]
    elif layout == "rotated":  # batch innermost
        strange = [tensors[0].permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)]
    else:
        strange = [with_layout(tensors[0], layout)]
        g = with_layout(g, layout)
    strange += [
        tensors[1].to(memory_format=torch.channels_last),
        tensors[2].repeat_interleave(2)[::2],
        tensors[3].mT.contiguous().mT,
        tensors[4].repeat_interleave(2)[::2],
    ]
    ours = run(strange, g, impl)
    plain = exact([t.contiguous() for t in strange], g.contiguous())
    for name, a, b in zip(NAMES, ours, plain, strict=True):
        assert_close(a, b, name=name)


def test_gradients_that_are_one_number(impl: str) -> None:
    """As ``sum`` gives them: strides of 0 everywhere."""
    tensors = make(2, (2, 2), (1, 2, 2), 5)
    one = torch.ones((), dtype=EXACT, device=DEVICE).expand(2, 5, 5)
    for a, b in zip(run(tensors, one, impl), exact(tensors, one), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(impl: str, dtype: torch.dtype) -> None:
    tensors = make(2, (2, 3), (3, 3, 4), 20, dtype=dtype)
    g = randn(2, 7, 20, dtype=dtype)
    low = plain(tensors, g)
    oracle = exact(tensors, g)
    for name, *three in zip(NAMES, run(tensors, g, impl), low, oracle, strict=True):
        assert three[0].dtype == dtype
        assert_within_budget(*three, name=name)


def plain(tensors: Sequence[Tensor], g: Tensor) -> list[Tensor]:
    """The unfused path, in the precision that is given."""
    images, weight, bias, position, class_token = leaves = leaves_of(tensors)
    x = F.linear(patchify(images, tuple(weight.shape[2:])), weight.flatten(1), bias)
    output = torch.cat([class_token.expand(len(x), 1, -1), x], 1) + position
    return [output.detach(), *torch.autograd.grad(output, leaves, g)]


def test_half_precision_is_rounded_at_the_end(impl: str) -> None:
    """2048 + 1 is no float16: bias and position are added before the sum is rounded."""
    if impl == "conv" and DEVICE == "cuda":
        pytest.skip("cuDNN rounds before the position is added")
    half: dict[str, Any] = {"dtype": torch.float16, "device": DEVICE}
    images, weight = torch.full((1, 1, 1, 1), 2048.0, **half), torch.ones(1, 1, 1, 1, **half)
    one = torch.ones(1, **half)
    output = patch_embedding(images, weight, one, position=-2048 * one[None], impl=impl)
    assert output.tolist() == [[[1.0]]]


def test_empty_batch(impl: str) -> None:
    tensors = make(0, (2, 3), (2, 2, 3), 5)
    output, *gradients = run(tensors, randn(0, 7, 5), impl)
    assert output.shape == (0, 7, 5)
    for tensor, gradient in zip(tensors, gradients, strict=True):
        assert gradient.shape == tensor.shape and not gradient.any()


def test_arguments_are_left_alone(impl: str) -> None:
    tensors, g = make(2, (2, 3), (2, 2, 3), 5), randn(2, 7, 5)
    with assert_unchanged(*tensors, g=g):
        run(tensors, g, impl)


def test_kernels_write_every_element(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is handed out full of NaN; none may come back."""
    tensors, g = make(3, (3, 3), (2, 3, 4), 21), randn(3, 10, 21)
    allocate = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *a, **k: allocate(self, *a, **k).fill_(torch.nan)
    )
    for tensor in run(tensors, g, impl):
        assert bool(tensor.isfinite().all())


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # NumPy, where it interprets
def test_what_is_not_a_number_stays_in_its_patch(impl: str) -> None:
    for value in (torch.nan, torch.inf):
        tensors = make(2, (2, 3), (2, 3, 4), 5)
        tensors[0][1, 1, 4, 6] = value  # row 1, column 1 of the grid: patch 4, token 5
        output = call(tensors, impl)
        wrong = ~output.isfinite().any(-1)
        assert wrong.nonzero().tolist() == [[1, 5]]


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_what_is_not_a_number_stays_in_its_column(impl: str) -> None:
    """K is no whole number of tiles: what stands past the end of a row is another column's."""
    if impl == "conv":
        pytest.skip("PyTorch's convolution may read what it then multiplies by 0")
    tensors, g = make(1, (1, 2), (1, 3, 3), 4), randn(1, 3, 4)
    tensors[1][2] = torch.nan
    output, dimages, *others = run(tensors, g, impl)
    assert output.isnan().nonzero()[:, 2].unique().tolist() == [2]
    assert bool(dimages.isnan().all()) and all(bool(t.isfinite().all()) for t in others)
    tensors[1][2], g[:, :, 2] = 0, torch.nan
    _, _, dweight, dbias, dposition, dclass = run(tensors, g, impl)
    assert dposition.isnan().any(0).tolist() == [False, False, True, False]
    assert dweight.isnan().flatten(1).any(1).tolist() == [False, False, True, False]
    assert dbias.isnan().tolist() == dclass.isnan().tolist() == [False, False, True, False]


def test_runs_repeat(impl: str) -> None:
    tensors = make(2, (3, 3), (1, 3, 3), 20, dtype=torch.float32)
    g = randn(2, 10, 20, dtype=torch.float32)
    first, second = run(tensors, g, impl), run(tensors, g, impl)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_items_of_a_batch_do_not_meet(impl: str) -> None:
    tensors = make(3, (2, 2), (1, 3, 3), 6)
    before = call(tensors, impl)
    tensors[0] = tensors[0].clone()
    tensors[0][1] += 1
    after = call(tensors, impl)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


# How the kernels are launched


@pytest.mark.triton
@pytest.mark.parametrize("programs", [3, 12])
def test_parts_of_several_steps(monkeypatch: pytest.MonkeyPatch, programs: int) -> None:
    """Of the weight's gradient 3 or 12 parts of 11 tiles, of the tokens' 1 or 3 of 11 images."""
    from attn_course.vision import backward_kernel as gpu

    monkeypatch.setattr(gpu, "PROGRAMS", programs)
    tensors, g = make(13, (3, 5), (1, 2, 2), 3), randn(13, 16, 3)
    tensors[0][11:], g[11:] = torch.nan, torch.nan  # what lies after the last image
    tensors[0], g = tensors[0][:11], g[:11]
    for name, a, b in zip(NAMES, run(tensors, g, "triton"), exact(tensors, g), strict=True):
        assert_close(a, b, name=name)


@pytest.mark.triton
def test_parts_of_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    from attn_course.vision import backward_kernel as gpu

    monkeypatch.setattr(gpu, "PROGRAMS", 8)
    assert gpu.split(1, 1) == (1, 1)
    assert gpu.split(100, 1) == (8, 13)
    assert gpu.split(9, 1) == (5, 2)  # not 8 parts of 2, of which 3 would be empty
    assert gpu.split(100, 3) == (2, 50)
    assert gpu.split(100, 9) == (1, 100)
    assert gpu.split(0, 1) == (1, 0)
    for count in range(1, 40):
        parts, steps = gpu.split(count, 2)
        assert parts * steps >= count > (parts - 1) * steps and parts <= 4


@pytest.mark.triton
def test_tiles_are_no_wider_than_what_they_are_for() -> None:
    from attn_course.vision import kernel as gpu

    config = gpu.CONFIGS[90][2]
    assert gpu.fit(config, 768, 768) == config
    assert gpu.fit(config, 48, 4)[:3] == (config.BLOCK_M, 64, 16)
    assert gpu.fit(config, 1, 1)[1:3] == (16, 16)


@pytest.mark.triton
def test_float32_products_are_exact_unless_less_is_allowed() -> None:
    from attn_course.vision import kernel as gpu

    images, weight = torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    before = torch.get_float32_matmul_precision()
    try:
        for allowed, expected in (("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")):
            torch.set_float32_matmul_precision(allowed)
            assert gpu.common(images, weight)["PRECISION"] == expected
            assert gpu.common(images.half(), weight)["PRECISION"] == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.triton
def test_tiles_on_a_gpu_are_those_of_its_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    from attn_course.vision import kernel as gpu

    monkeypatch.setattr(gpu, "INTERPRETED", False)
    assert gpu.tiles(gpu.CONFIGS, torch.zeros(1, 1, 2, 2), 4, 4) == gpu.fit(
        gpu.CONFIGS[75][4], 4, 4
    )


@pytest.mark.triton
def test_float64_where_triton_has_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attn_course._triton.FLOAT64_DOT", False)
    tensors = make(1, (1, 1), (1, 2, 2), 2, dtype=torch.float32)
    call(tensors, "triton")
    with pytest.raises(TypeError, match=r"no float64 .* before triton 3\.5: use impl='reference'"):
        call([tensor.double() for tensor in tensors], "triton")


def test_auto_on_a_cpu_is_the_linear_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops.reference, "convolution", None)  # would fail if it were called
    assert call([t.cpu() for t in make(1, (1, 1), (1, 2, 2), 2)], "auto").shape == (1, 2, 2)


def test_a_missing_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    monkeypatch.setattr(_triton, "REASON", "triton is not installed")
    with pytest.raises(RuntimeError, match="triton is not installed"):
        call(make(1, (1, 1), (1, 2, 2), 2), "triton")


# Bad input

X, W = torch.zeros(2, 3, 8, 12), torch.zeros(5, 3, 4, 6)
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ("list", ([[0.0]], W), {}, TypeError, "images must be a torch.Tensor, got list"),
    ("bytes", (X.byte(), W), {}, TypeError, "images must hold floating-point .*uint8"),
    ("no batch", (X[0], W), {}, ValueError, r"images .* \[batch, channels, h.*got \[3, 8, 12\]"),
    ("gray", (X[:, :1], W), {}, ValueError, "images must have 3 channels, as weight has, got 1"),
    ("channels last", (X.permute(0, 2, 3, 1), W), {}, ValueError, "have 3 channels.* got 8"),
    ("height", (X[:, :, :7], W), {}, ValueError, "whole number of patches.*7 x 12 for patches of"),
    ("width", (X[..., :11], W), {}, ValueError, "whole number .* 8 x 11 for patches of 4 x 6"),
    ("small", (X[:, :, :3], W), {}, ValueError, "at least as large as a patch, got 3 x 12"),
    ("narrow", (X[..., :5], W), {}, ValueError, "at least as large as a patch, got 8 x 5"),
    ("no pixels", (X[..., :0], W), {}, ValueError, "at least as large as a patch, got 8 x 0"),
    ("flat", (X, W.flatten(1)), {}, ValueError, r"weight .* \[embed_dim, channels, .*\[5, 72\]"),
    ("empty", (X, W[:0]), {}, ValueError, r"weight must have shape .* \[0, 3, 4, 6\]"),
    ("integers", (X, W.long()), {}, TypeError, "weight must hold floating-point .*int64"),
    ("bias", (X, W, X[0, 0, 0, :4]), {}, ValueError, r"bias must have shape \[5\], got \[4\]"),
    ("position", (X, W), {"position": torch.zeros(5, 5)}, ValueError,
     r"position must have shape \[4, 5\], a vector for each of 2 x 2 patches, got \[5, 5\]"),
    ("no class position", (X, W),
     {"position": torch.zeros(4, 5), "class_token": torch.zeros(5)}, ValueError,
     r"position must have shape \[5, 5\].* patches and the class token, got \[4, 5\]"),
    ("class", (X, W), {"class_token": torch.zeros(1, 5)}, ValueError, r"class_token .* \[5\], got"),
    ("class list", (X, W), {"class_token": [0.0] * 5}, TypeError, "class_token must be a torch"),
    ("dtype", (X, W.double()), {}, ValueError, "weight must have the dtype of images"),
    ("bias dtype", (X, W, torch.zeros(5).half()), {}, ValueError, "bias must have the dtype of"),
    ("impl", (X, W), {"impl": "cuda"}, ValueError, "'auto', 'reference', 'conv', 'triton'"),
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
        patch_embedding(*arguments, **kwargs)


BAD_PATCHES: list[tuple[Any, Any, type[Exception], str]] = [
    (X, 5, ValueError, "whole number of patches high and wide, got 8 x 12 for patches of 5 x 5"),
    (X, (4, 5), ValueError, "got 8 x 12 for patches of 4 x 5: crop, pad or resize"),
    (X, 9, ValueError, "images must be at least as large as a patch"),
    (X, 0, ValueError, "patch_size must be an integer of at least 1, got 0"),
    (X, -4, ValueError, "patch_size must be an integer of at least 1, got -4"),
    (X, (4, 0), ValueError, "patch_size must be an integer of at least 1, got 0"),
    (X, 4.0, TypeError, r"patch_size must be an integer or \(height, width\), got 4.0"),
    (X, (4,), TypeError, r"patch_size must be an integer or \(height, width\)"),
    (X, (4, 4.0), TypeError, "patch_size must hold integers"),
    (X, True, TypeError, "patch_size must be an integer"),
    (X[0], 4, ValueError, r"images must have shape \[batch, channels, height, width\]"),
    (X.int(), 4, TypeError, "images must hold floating-point"),
]


@pytest.mark.parametrize(("images", "patch", "error", "message"), BAD_PATCHES)
def test_bad_patches_are_named(
    images: Any, patch: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        patchify(images, patch)


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(3, (5, 7), (3, 16, 16), 768), (64, (4, 4), (1, 2, 2), 48), (9, (3, 5), (3, 14, 7), 130)],
    ids=str,
)
def test_shapes_on_a_gpu(dtype: torch.dtype, shape: Any) -> None:
    tensors = make(*shape, dtype=dtype)
    g = randn(shape[0], len(tensors[3]), shape[3], dtype=dtype)
    oracle = exact(tensors, g)
    ours = run(tensors, g, "triton")
    for name, a, b, c in zip(NAMES, ours, plain(tensors, g), oracle, strict=True):
        if dtype == torch.float32:
            assert (a - c).abs().max() <= 1e-5 * max(1.0, c.abs().max().item()), name
        else:
            assert_within_budget(a, b, c.cpu(), name=name)


@pytest.mark.gpu
def test_runs_repeat_bit_for_bit_on_a_gpu() -> None:
    tensors = make(128, (14, 14), (3, 16, 16), 384, dtype=torch.float16)
    g = randn(128, 197, 384, dtype=torch.float16)
    first = run(tensors, g, "triton")
    for _ in range(4):
        again = run(tensors, g, "triton")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.gpu
def test_offsets_beyond_32_bits_on_a_gpu() -> None:
    """The last images lie more than 2^31 elements in."""
    batch = (1 << 31) // (3 * 512 * 512) + 2
    images = torch.zeros(batch, 3, 512, 512, device="cuda", dtype=torch.float16)
    images[-1] = 1
    weight = torch.ones(16, 3, 256, 256, device="cuda", dtype=torch.float16) / 256
    with torch.no_grad():
        output = patch_embedding(images, weight, impl="triton")
    assert bool((output[:-1] == 0).all())
    assert (output[-1] - 3 * 256).abs().max().item() <= 1
