"""Sinusoids, rotations and slopes: against brute force, d2l, float64 and their promises."""

import importlib.util
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course import _d2l, _triton
from attn_course.positional import (
    add_sinusoid,
    linear_biases,
    linear_slopes,
    ops,
    rotate,
    rotation_matrix,
    sinusoid,
)
from attn_course.testing import (
    LAYOUTS,
    assert_close,
    assert_unchanged,
    assert_within_budget,
    with_layout,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_d2l = pytest.mark.skipif(
    importlib.util.find_spec("d2l") is None,
    reason="d2l is not installed: python -m attn_course.install_d2l",
)
each_impl = pytest.mark.parametrize(
    "impl", ["reference", pytest.param("triton", marks=pytest.mark.triton)]
)
each_pairs = pytest.mark.parametrize("pairs", ops.PAIRS)
#: Around a tile of the small ones below (8 positions, 4 pairs, 2 sequences), and one.
SHAPES = [(1, 2), (7, 6), (3, 8, 8), (2, 9, 10), (2, 3, 17, 14), (2, 1, 3, 5, 2)]
OFFSETS = [0, 5, 65_536 - 9]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small shapes need several tiles and groups, and share some of each."""
    if _triton.AVAILABLE:
        from attn_course.positional import kernel as gpu

        monkeypatch.setattr(gpu, "TILE", 32)
        monkeypatch.setattr(gpu, "MAX_PAIRS", 4)
        monkeypatch.setattr(gpu, "GROUP", 2)


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(DEVICE, dtype)


def brute_sinusoid(length: int, dim: int, offset: int = 0, base: float = 10000.0) -> Tensor:
    """P once more, with loops over Python numbers."""
    rows = []
    for i in range(offset, offset + length):
        row = []
        for column in range(dim):
            angle = i / base ** (2 * (column // 2) / dim)
            row.append(math.cos(angle) if column % 2 else math.sin(angle))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64).reshape(length, dim).to(DEVICE)


def brute_rotation(
    x: Tensor, offset: int = 0, base: float = 10000.0, pairs: str = "adjacent"
) -> Tensor:
    """A point in the plane is a complex number; to turn it, multiply by e^(i angle)."""
    length, dim = x.shape[-2:]
    result = x.double().clone()
    for i in range(length):
        for j in range(dim // 2):
            a, b = (2 * j, 2 * j + 1) if pairs == "adjacent" else (j, j + dim // 2)
            turn = complex(0, (offset + i) / base ** (2 * j / dim))
            factor = torch.exp(torch.tensor(turn, dtype=torch.complex128, device=x.device))
            point = torch.complex(x[..., i, a].double(), x[..., i, b].double()) * factor
            result[..., i, a], result[..., i, b] = point.real, point.imag
    return result


# The sinusoid


@pytest.mark.parametrize(("length", "dim"), [(1, 1), (9, 6), (4, 7), (0, 4)])
@pytest.mark.parametrize("offset", OFFSETS)
def test_sinusoid_equals_brute_force(length: int, dim: int, offset: int) -> None:
    for base in (10000.0, 100, 1):
        actual = sinusoid(length, dim, offset=offset, base=base, dtype=torch.float64, device=DEVICE)
        # The angle itself is rounded to float64, once here and twice there.
        assert_close(actual, brute_sinusoid(length, dim, offset, base), atol=1e-10)


@each_impl
@pytest.mark.parametrize("shape", [*SHAPES, (4, 7), (2, 3, 5, 9), (3, 1)], ids=str)
def test_adding_the_sinusoid(impl: str, shape: tuple[int, ...]) -> None:
    x = randn(*shape)
    for offset in OFFSETS if impl == "reference" else OFFSETS[-1:]:
        expected = x + brute_sinusoid(*shape[-2:], offset)
        assert_close(add_sinusoid(x, offset=offset, impl=impl), expected, atol=1e-10)
    expected = x + brute_sinusoid(*shape[-2:], 3, base=7.0)
    assert_close(add_sinusoid(x, offset=3, base=7.0, impl=impl), expected)


@needs_d2l
@each_impl
def test_equals_d2l(impl: str) -> None:
    x = randn(2, 60, 32, dtype=torch.float32)
    theirs = _d2l.load().PositionalEncoding(32, 0)
    torch.testing.assert_close(add_sinusoid(x, impl=impl), theirs(x), rtol=1e-5, atol=1e-5)


@needs_d2l
def test_d2l_is_wrong_by_its_angles_at_large_positions() -> None:
    """It multiplies in float32, where an angle of 65,536 has steps of 0.004."""
    theirs = _d2l.load().PositionalEncoding(64, 0, max_len=65_537).P[0, -512:]
    exact = brute_sinusoid(512, 64, 65_537 - 512)
    assert (theirs - exact).abs().max() > 1e-3
    assert (sinusoid(512, 64, offset=65_537 - 512) - exact).abs().max() < 1e-7


@needs_d2l
def test_d2l_cannot_encode_an_odd_width_or_a_late_position() -> None:
    d2l = _d2l.load()
    with pytest.raises(RuntimeError):
        d2l.PositionalEncoding(7, 0)
    with pytest.raises(RuntimeError):
        d2l.PositionalEncoding(4, 0)(torch.zeros(1, 1001, 4))
    assert sinusoid(1001, 7).shape == (1001, 7)


# The kernels' angles


@each_impl
@pytest.mark.parametrize("offset", [0, 1000, 65_536 - 15, 2**31 - 17])
def test_float32_angles_against_float64(impl: str, offset: int) -> None:
    """However far from the start: a few roundings of float32, no more."""
    dim = 64
    exact = brute_sinusoid(16, dim, offset)
    zeros = torch.zeros(16, dim, device=DEVICE)
    # Frequencies in float64 are off by 1e-16, times 2^31 positions.
    atol = 2e-7 if offset < 2**20 else 1e-6
    assert_close(add_sinusoid(zeros, offset=offset, impl=impl), exact, rtol=0, atol=atol)
    x = torch.stack([torch.ones(16, dim // 2), torch.zeros(16, dim // 2)], -1).flatten(1)
    turned = rotate(x.to(DEVICE), offset=offset, impl=impl).unflatten(1, (-1, 2)).flip(-1)
    assert_close(turned.flatten(1), exact, rtol=0, atol=atol)  # (cos, sin), turned round


@pytest.mark.triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_quarter_turn(dtype: torch.dtype) -> None:
    """Base 1 has one frequency; 355 positions are nearly 56.5 turns: all angles come by."""
    zeros = torch.zeros(356, 2, dtype=dtype, device=DEVICE)
    actual = add_sinusoid(zeros, base=1, impl="triton")
    atol = 2e-7 if dtype == torch.float32 else 1e-13
    assert_close(actual, brute_sinusoid(356, 2, base=1), rtol=0, atol=atol)


# The rotation


@each_impl
@each_pairs
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rotation_equals_complex_numbers(impl: str, pairs: str, shape: tuple[int, ...]) -> None:
    x = randn(*shape)
    for offset in OFFSETS if impl == "reference" else OFFSETS[-1:]:
        actual = rotate(x, offset=offset, pairs=pairs, impl=impl)
        assert_close(actual, brute_rotation(x, offset, pairs=pairs), atol=1e-10)
    actual = rotate(x, offset=3, base=7.0, pairs=pairs, impl=impl)
    assert_close(actual, brute_rotation(x, 3, 7.0, pairs))


@each_impl
@each_pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_the_distance_counts(impl: str, pairs: str, dtype: torch.dtype) -> None:
    query, key = randn(1, 16, dtype=dtype), randn(1, 16, dtype=dtype)

    def score(i: int, k: int) -> Tensor:
        turn = {"pairs": pairs, "impl": impl}
        return rotate(query, offset=i, **turn) @ rotate(key, offset=k, **turn).mT

    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-9}
    for shift in (1, 1000, 65_536):
        torch.testing.assert_close(score(7 + shift, 3 + shift), score(7, 3), **tolerance)
    assert not torch.allclose(score(7, 4), score(7, 3), **tolerance)
    assert not torch.allclose(score(3, 7), score(7, 3), **tolerance)  # and its sign


@each_impl
@each_pairs
def test_rotation_keeps_lengths_and_starts_at_none(impl: str, pairs: str) -> None:
    x = randn(2, 9, 8)
    turned = rotate(x, pairs=pairs, impl=impl)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, 0], x[:, 0])


def test_pairs_are_the_same_up_to_the_order_of_columns() -> None:
    x = randn(5, 8)
    to_halves = torch.arange(8).reshape(4, 2).T.flatten()  # 0 2 4 6 1 3 5 7
    halves = rotate(x[:, to_halves], offset=4, pairs="halves")
    assert torch.equal(halves, rotate(x, offset=4)[:, to_halves])


@pytest.mark.parametrize("delta", [-3, 0, 1, 2.5, 10_000])
def test_the_matrix_moves_any_position_by_delta(delta: float) -> None:
    matrix = rotation_matrix(delta, 10, base=100.0, dtype=torch.float64)
    for i in (3, 17, 4000):
        here = brute_sinusoid(1, 10, i, 100.0)[0].cpu()
        angle = (i + delta) * 100.0 ** (-torch.arange(0, 10, 2, dtype=torch.float64) / 10)
        there = torch.stack([angle.sin(), angle.cos()], -1).flatten()
        torch.testing.assert_close(matrix @ here, there, rtol=0, atol=1e-10)
    identity = torch.eye(10, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, identity, rtol=0, atol=1e-12)
    turned = rotate(identity.unsqueeze(1), offset=4, base=100.0).squeeze(1)  # row j: e_j turned
    four = rotation_matrix(4, 10, base=100.0, dtype=torch.float64)
    torch.testing.assert_close(turned, four, rtol=0, atol=1e-12)  # rows, so transposed twice


# Gradients


@each_impl
@pytest.mark.parametrize("f", [rotate, add_sinusoid])
def test_gradcheck(impl: str, f: Any) -> None:
    x = randn(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: f(x, offset=2, impl=impl), (x,))
    one = x.detach()[:1, :1].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: f(x, offset=2, impl=impl).sin(), (one,))


@each_impl
@each_pairs
@pytest.mark.parametrize("layout", [*LAYOUTS, None])
def test_layouts_of_inputs_and_of_gradients(impl: str, pairs: str, layout: str | None) -> None:
    x, grad = randn(2, 3, 9, 10), randn(2, 3, 9, 10)
    if layout is not None:
        x, grad = with_layout(x, layout), with_layout(grad, layout)
    x.requires_grad_()
    with assert_unchanged(x=x, grad=grad):
        turned = rotate(x, offset=3, pairs=pairs, impl=impl)
        (back,) = torch.autograd.grad(turned, x, grad)
        added = add_sinusoid(x, offset=3, impl=impl)
        (same,) = torch.autograd.grad(added, x, grad)
    assert_close(turned, brute_rotation(x.detach(), 3, pairs=pairs))
    # The transpose of a rotation turns back.
    assert_close(rotate(back, offset=3, pairs=pairs, impl="reference"), grad.contiguous())
    assert_close(added, x.detach() + brute_sinusoid(9, 10, 3))
    assert torch.equal(same, grad)


@pytest.mark.triton
def test_every_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Tensor.new_empty

    def poisoned(self: Tensor, *shape: Any, **options: Any) -> Tensor:
        made = empty(self, *shape, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(Tensor, "new_empty", poisoned)
    for shape in (*SHAPES, (3, 9, 10)):
        assert rotate(randn(*shape), impl="triton").isfinite().all()
        assert add_sinusoid(randn(*shape), impl="triton").isfinite().all()
    assert add_sinusoid(randn(3, 9, 7), impl="triton").isfinite().all()


# Types and sizes


@each_impl
@pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
)
def test_half_precision(impl: str, dtype: torch.dtype) -> None:
    x = randn(3, 9, 8, dtype=dtype)
    exact = brute_rotation(x, 65_000)
    turned = rotate(x, offset=65_000, impl=impl)
    assert torch.equal(turned, rotate(x.float(), offset=65_000, impl=impl).to(dtype))
    assert_within_budget(turned, exact.to(dtype), exact)
    exact = x.double() + brute_sinusoid(9, 8, 65_000)
    assert_within_budget(add_sinusoid(x, offset=65_000, impl=impl), exact.to(dtype), exact)


def test_bfloat16_of_the_reference() -> None:
    x = randn(3, 9, 8, dtype=torch.bfloat16)
    exact = brute_rotation(x, 65_000)
    actual = rotate(x, offset=65_000, impl="reference")
    assert torch.equal(actual, rotate(x.float(), offset=65_000, impl="reference").bfloat16())
    assert_within_budget(actual, exact.bfloat16(), exact)


@each_impl
@pytest.mark.parametrize("shape", [(0, 4), (0, 3, 4), (2, 0, 5, 4)], ids=str)
def test_nothing_gives_nothing(impl: str, shape: tuple[int, ...]) -> None:
    x = randn(*shape).requires_grad_()
    for f in (rotate, add_sinusoid):
        (grad,) = torch.autograd.grad(f(x, impl=impl).sum(), x)
        assert f(x, impl=impl).shape == grad.shape == shape


@pytest.mark.gpu
@pytest.mark.parametrize("offset", [0, 65_536])
def test_auto_is_the_kernel_on_a_gpu(offset: int) -> None:
    x = randn(2, 8, 1000, 64, dtype=torch.float32)
    for f in (rotate, add_sinusoid):
        assert torch.equal(f(x, offset=offset), f(x, offset=offset, impl="triton"))
        exact = f(x.double(), offset=offset, impl="reference")
        assert_close(f(x, offset=offset), exact)


# Linear biases


@pytest.mark.parametrize("num_heads", [1, 2, 8, 16])
def test_slopes_of_a_power_of_two_are_a_geometric_sequence(num_heads: int) -> None:
    slopes = linear_slopes(num_heads)
    assert slopes.shape == (num_heads,) and slopes[-1] == 2**-8
    ratio = 2 ** (-8 / num_heads)
    torch.testing.assert_close(slopes[0].item(), ratio)
    torch.testing.assert_close(slopes[1:], slopes[:-1] * ratio)


def test_slopes_of_the_paper() -> None:
    assert linear_slopes(8).tolist() == [1 / 2**i for i in range(1, 9)]
    assert linear_slopes(16).tolist() == pytest.approx([2 ** (-i / 2) for i in range(1, 17)])


@pytest.mark.parametrize("num_heads", [3, 5, 6, 7, 12, 20])
def test_slopes_between_powers_of_two(num_heads: int) -> None:
    """As the authors do: of 12 heads, those of 8, then the 1st, 3rd, 5th and 7th of 16."""
    below = max(n for n in (2, 4, 8, 16) if n < num_heads)
    slopes = linear_slopes(num_heads)
    assert torch.equal(slopes[:below], linear_slopes(below))
    assert torch.equal(slopes[below:], linear_slopes(2 * below)[::2][: num_heads - below])
    assert len(set(slopes.tolist())) == num_heads


def test_biases_fall_with_distance_on_both_sides() -> None:
    slopes = torch.tensor([1.0, 0.25])
    biases = linear_biases(slopes, 2, 4, offset=1)
    assert biases[0].tolist() == [[-1, 0, -1, -2], [-2, -1, 0, -1]]
    assert torch.equal(biases[1], biases[0] / 4)


# Bad input

X = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rotate([1.0]), TypeError, "x must be a torch.Tensor, got list"),
        (lambda: rotate(X.long()), TypeError, "x must hold floating-point numbers"),
        (lambda: rotate(X[0]), ValueError, r"x must have shape \[\.\.\., len, dim\], got \[4\]"),
        (lambda: rotate(X[:, :3]), ValueError, "even number of columns, to be paired, got 3"),
        (lambda: rotate(X[:, :0]), ValueError, "at least one column"),
        (lambda: rotate(X, offset=-1), ValueError, "offset must be at least 0, got -1"),
        (lambda: rotate(X, offset=1.0), TypeError, "offset must be an integer, got float"),
        (lambda: rotate(X, offset=2**31), ValueError, "offset must leave positions below 2"),
        (lambda: rotate(X, base=0.5), ValueError, "base must be at least 1, got 0.5"),
        (lambda: rotate(X, base="e"), TypeError, "base must be a number, got str"),
        (lambda: rotate(X, base=math.inf), ValueError, "base must be finite, got inf"),
        (lambda: rotate(X, pairs="mixed"), ValueError, "pairs must be one of 'adjacent', 'halv"),
        (lambda: rotate(X, impl="sdpa"), ValueError, "impl must be one of .* got 'sdpa'"),
        (lambda: add_sinusoid(X, impl="cuda"), ValueError, "impl must be one of"),
        (lambda: add_sinusoid(X.int()), TypeError, "x must hold floating-point numbers"),
        (lambda: sinusoid(-1, 4), ValueError, "length must be at least 0, got -1"),
        (lambda: sinusoid(2, 0), ValueError, "dim must be at least 1, got 0"),
        (lambda: sinusoid(True, 4), TypeError, "length must be an integer, got bool"),
        (lambda: rotation_matrix(1, 3), ValueError, "dim must be even"),
        (lambda: rotation_matrix(math.nan, 4), ValueError, "delta must be finite"),
        (lambda: rotation_matrix("1", 4), TypeError, "delta must be a number"),
        (lambda: linear_slopes(0), ValueError, "num_heads must be at least 1, got 0"),
        (lambda: linear_slopes(2.0), TypeError, "num_heads must be an integer"),
        (lambda: linear_biases(X, 1, 1), ValueError, r"slopes must have shape \[num_heads\]"),
        (lambda: linear_biases([1.0], 1, 1), TypeError, "slopes must be a torch.Tensor"),
        (lambda: linear_biases(X[0], -1, 1), ValueError, "query_len must be at least 0"),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_kernel_that_cannot_be_had_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    monkeypatch.setattr(_triton, "REASON", "triton is on holiday")
    for f in (rotate, add_sinusoid):
        with pytest.raises(RuntimeError, match=r"impl='triton' cannot be used: .*holiday"):
            f(X, impl="triton")
        assert f(X).shape == X.shape
