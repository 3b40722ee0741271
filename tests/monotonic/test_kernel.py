"""The GPU kernels: against every walk there is, against float64, and how they are launched."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course import _triton
from attn_course.monotonic import expected_alignment, many_to_many, one_to_many
from attn_course.testing import LAYOUTS, assert_within_budget, with_layout
from tests.launches import addresses, interpreted, watch
from tests.monotonic.walks import MODELS, brute_force

if not _triton.AVAILABLE:
    pytest.skip(f"kernels cannot run here: {_triton.REASON}", allow_module_level=True)

from attn_course.monotonic import backward_kernel, kernel

pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore:one_to_many has")]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
F64 = torch.float64
OPS: dict[str, Callable[..., Tensor]] = {
    "many_to_many": many_to_many,
    "one_to_many": one_to_many,
}
on_both = pytest.mark.parametrize("model", MODELS)
on_logs = pytest.mark.parametrize("log", [False, True], ids=["phi", "log phi"])
#: For what depends on neither.
MIXED = [(MODELS[0], True), (MODELS[1], False)]

#: Rows and columns: about tiles of 2 or 3 lanes and 4 places, and both ways.
SIZES = [(2, 4), (5, 9), (9, 5)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that little grids have several each way."""
    monkeypatch.setattr(kernel, "MAX_BLOCK", 4)
    monkeypatch.setattr(kernel, "HEIGHT", 3)


def random(*shape: int, spread: float = 2.0, dtype: torch.dtype = F64) -> Tensor:
    return (spread * torch.randn(*shape, dtype=F64)).to(DEVICE, dtype)


def incoming(model: str, shape: tuple[int, ...], log: bool = False) -> Tensor:
    """Random, with 0 where log phi is -inf: on the far side of a diagonal."""
    g = random(*shape)
    i, j = torch.arange(shape[-2])[:, None], torch.arange(shape[-1])
    unreachable = (i < j) if model == "one_to_many" and log else (i < 0)
    return g.masked_fill(unreachable.to(DEVICE), 0)


def run(
    x: Tensor, g: Tensor | None, model: str, *, impl: str = "triton", **options: Any
) -> tuple[Tensor, ...]:
    """phi, and the gradient of the logits if one comes in."""
    x = x.detach().requires_grad_()
    phi = OPS[model](x, impl=impl, validate=False, **options)
    if g is None:
        return (phi.detach(),)
    return phi.detach(), torch.autograd.grad(phi, x, g.to(phi.dtype))[0]


def check(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], **tolerance: float) -> None:
    for name, a, b in zip(("phi", "dx"), ours, theirs, strict=False):
        torch.testing.assert_close(a.double(), b.double(), msg=lambda m, n=name: f"{n}: {m}",
                                   **tolerance)  # fmt: skip


EXACT = {"rtol": 1e-11, "atol": 1e-13}


# What is computed


@on_logs
@on_both
@pytest.mark.parametrize("size", [(1, 1), (6, 1), (4, 5)])
def test_the_sum_over_all_walks(model: str, size: tuple[int, int], log: bool, small: None) -> None:
    x, g = random(*size), incoming(model, size, log)
    given = x.clone().requires_grad_()
    phi = brute_force(given.cpu(), model).to(DEVICE)
    wanted = phi.where(g != 0, 1.0).log() if log else phi
    (dx,) = torch.autograd.grad(wanted, given, g, allow_unused=True)
    expected = (
        (phi.log() if log else phi).detach(),
        torch.zeros_like(x) if dx is None else dx,
    )
    check(run(x, g, model, log=log), expected, **EXACT)


@on_logs
@on_both
@pytest.mark.parametrize("size", SIZES)
def test_over_the_borders_of_tiles(
    model: str, size: tuple[int, int], log: bool, small: None
) -> None:
    x, g = random(*size), incoming(model, size, log)
    check(run(x, g, model, log=log), run(x, g, model, log=log, impl="scan"), **EXACT)


@on_logs
@on_both
def test_one_tile(model: str, log: bool) -> None:
    """As they are shipped."""
    x, g = random(1, 3, 18), incoming(model, (1, 3, 18), log)
    check(run(x, g, model, log=log), run(x, g, model, log=log, impl="scan"), **EXACT)


@on_logs
@on_both
def test_float32(model: str, log: bool, small: None) -> None:
    size = (1, 7, 9)
    x, g = random(*size, dtype=torch.float32), incoming(model, size, log)
    ours = run(x, g, model, log=log)
    assert all(t.dtype == torch.float32 for t in ours)
    expected = run(x.double(), g, model, log=log, impl="scan")
    check(ours, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("model", "log"), MIXED)
def test_gradcheck(model: str, log: bool, small: None) -> None:
    x = random(4, 3).requires_grad_()

    def visit(x: Tensor) -> Tensor:
        phi = OPS[model](x, impl="triton", log=log)
        return phi.where(phi > -math.inf, 0.0)

    assert torch.autograd.gradcheck(visit, x, fast_mode=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|twice"):
        (grad,) = torch.autograd.grad(visit(x).sum(), x, create_graph=True)
        grad.sum().backward()


# Numbers at the edge


@on_both
def test_what_underflows_does_not_in_logarithms(model: str, small: None) -> None:
    """phi far below 2^-149, and odds as far from 1, over several tiles each way."""
    x = random(9, 8, spread=100, dtype=torch.float32)
    g = incoming(model, (9, 8), log=True)
    ours = run(x, g, model, log=True)
    theirs = run(x.double(), g, model, log=True, impl="scan")
    assert theirs[0].where(theirs[0] > -math.inf, 0.0).min() < -300
    # Logits are read to 2^-24 of their size, and so is the logarithm.
    check(ours[:1], theirs[:1], rtol=3e-7, atol=1e-6)
    check(ours[1:], theirs[1:], rtol=1e-4, atol=1e-4)
    phi, dx = run(x, g, model)
    check((phi, dx), run(x.double(), g, model, impl="scan"), rtol=1e-4, atol=1e-6)


def test_a_long_way_keeps_its_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """log phi is rounded once, however far down it is."""
    monkeypatch.setattr(kernel, "MAX_BLOCK", 64)
    x = random(1, 128, spread=20, dtype=torch.float32)
    (ours,) = run(x, None, "many_to_many", log=True)
    (theirs,) = run(x.double(), None, "many_to_many", log=True, impl="scan")
    assert theirs.min() < -1000
    ulp = 2.0 ** (theirs.abs().clamp_min(1).log2().floor() - 23)
    assert ((ours.double() - theirs).abs() / ulp).max() < 1.5


@on_logs
@on_both
def test_huge_and_infinite_logits(model: str, log: bool, small: None) -> None:
    for size in (100.0, 1e30, math.inf):
        sign = torch.where(torch.rand(5, 6) < 0.5, 1.0, -1.0).to(DEVICE)
        x = (size * sign).float()
        x[2:, 3:] = 0.5
        g = torch.ones_like(x)
        phi, dx = run(x, g, model, log=log)
        (expected,) = run(x.double(), None, model, log=log, impl="scan")
        assert dx.isfinite().all()
        torch.testing.assert_close(phi.double(), expected, rtol=1e-5, atol=1e-6)


@on_logs
@on_both
def test_certain_steps_against_all_walks(model: str, log: bool, small: None) -> None:
    """Probabilities of exactly 0 and 1, a third each; a certain step has no gradient."""
    x, kind = random(5, 5), torch.randint(3, (5, 5), device=DEVICE)
    x = x.where(kind == 0, torch.where(kind == 1, math.inf, -math.inf))
    phi, dx = run(x, random(5, 5), model, log=log)
    expected = brute_force(x.cpu(), model).to(DEVICE)
    torch.testing.assert_close(phi.exp() if log else phi, expected, **EXACT)
    assert torch.equal(phi == (-math.inf if log else 0), expected == 0)
    assert dx.isfinite().all() and not dx[kind != 0].any() and not dx[expected == 0].any()


@on_both
def test_nothing_takes_no_gradient(model: str, small: None) -> None:
    """Whatever comes in where log phi is -inf, NaN included."""
    x = random(6, 5)
    x[:, 1] = math.inf if model == "one_to_many" else -math.inf  # nobody gets past
    for bad in (math.nan, math.inf):
        (log_phi,) = run(x, None, model, log=True)
        assert (log_phi[:, 2:] == -math.inf).all()
        g = random(6, 5)
        _, dx = run(x, g.where(log_phi > -math.inf, bad), model, log=True)
        _, expected = run(x, g.where(log_phi > -math.inf, 0), model, log=True, impl="scan")
        torch.testing.assert_close(dx, expected, **EXACT)
        assert not dx[:, 2:].any()


@on_logs
@on_both
def test_gradients_of_any_size(model: str, log: bool, small: None) -> None:
    x, g = random(3, 5, dtype=torch.float32), incoming(model, (3, 5), log)
    one, little, much = (run(x, size * g, model, log=log)[1] for size in (1.0, 1e-30, 1e30))
    torch.testing.assert_close(little * 1e30, one, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(much / 1e30, one, rtol=1e-5, atol=1e-6)


@on_both
@pytest.mark.parametrize(("dtype", "log"), [(torch.float16, False), (torch.bfloat16, True)])
def test_half_precision(model: str, dtype: torch.dtype, log: bool, small: None) -> None:
    """Only what goes in and what comes out is rounded."""
    size = (4, 6)
    x, g = random(*size, dtype=dtype), incoming(model, size, log)
    g = g.to(dtype)
    ours = run(x, g, model, log=log)
    theirs = run(x.double(), g.double(), model, log=log, impl="scan")
    low = [t.to(dtype) for t in theirs]
    for a, b, c in zip(ours, low, theirs, strict=True):
        assert a.dtype == dtype
        finite = c.isfinite()
        assert torch.equal(finite, a.isfinite())
        assert_within_budget(a[finite], b[finite], c[finite])


# What goes in


@on_logs
@on_both
def test_lengths_cut_the_grid(model: str, log: bool, small: None) -> None:
    rows, columns = [6, 4, 0, 5], [5, 2, 3, 0]
    full, g = random(4, 2, 6, 5), incoming(model, (4, 2, 6, 5), log)
    x, poisoned = full.clone(), g.clone()
    for item, (r, c) in enumerate(zip(rows, columns, strict=True)):
        for tensor in (x, poisoned):
            tensor[item, :, r:] = math.nan
            tensor[item, :, :, c:] = math.nan
    lens = {
        "row_lens": torch.tensor(rows, device=DEVICE),
        "column_lens": torch.tensor(columns, device=DEVICE),
    }
    phi, dx = run(x, poisoned, model, log=log, **lens)
    for item, (r, c) in enumerate(zip(rows, columns, strict=True)):
        rest = phi[item].clone()
        if r and c:
            cut = run(full[item, :, :r, :c], g[item, :, :r, :c], model, log=log, impl="scan")
            check((phi[item, :, :r, :c], dx[item, :, :r, :c]), cut, **EXACT)
            rest[:, :r, :c] = -math.inf if log else 0
        assert (rest == (-math.inf if log else 0)).all()
    assert not dx[x.isnan()].any()


@on_both
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(model: str, layout: str, small: None) -> None:
    log = layout == "transposed"
    x, g = random(2, 3, 5), incoming(model, (2, 3, 5), log)
    theirs = run(*(with_layout(t, layout).contiguous() for t in (x, g)), model, log=log)
    found = run(with_layout(x, layout), with_layout(g, layout), model, log=log)
    for a, b in zip(found, theirs, strict=True):
        assert torch.equal(a, b)


@on_both
def test_a_gradient_that_is_one_number(model: str, small: None) -> None:
    x = random(2, 5, 6).requires_grad_()
    (spread,) = torch.autograd.grad(OPS[model](x, impl="triton").sum(), x)
    assert torch.equal(spread, run(x, torch.ones_like(x), model)[1])


@on_both
def test_batches_of_any_shape(model: str, small: None) -> None:
    x = random(2, 2, 3, 5)
    (together,) = run(x, None, model)
    assert torch.equal(together[1, 0], run(x[1, 0], None, model)[0])
    for empty in run(x[:0], x[:0], model):
        assert empty.shape == (0, 2, 3, 5)
    lens = torch.tensor([3, 2], device=DEVICE)
    (cut,) = run(x, None, model, row_lens=lens)
    assert torch.equal(cut[:, 1], run(x[:, 1], None, model, row_lens=lens)[0])


@pytest.mark.parametrize(("model", "log"), MIXED)
def test_arguments_are_left_alone(model: str, log: bool, small: None) -> None:
    x, g = random(2, 4, 5), incoming(model, (2, 4, 5), log)
    lens = torch.tensor([4, 2], device=DEVICE)
    before = [t.clone() for t in (x, g, lens)]
    given = x.requires_grad_()
    phi = OPS[model](given, impl="triton", log=log, row_lens=lens)
    kept = phi.detach().clone()
    first = torch.autograd.grad(phi, given, g, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(phi, given, g)[0])
    assert torch.equal(phi, kept)
    assert all(torch.equal(a, b) for a, b in zip((x, g, lens), before, strict=True))


@pytest.mark.parametrize(("model", "log"), MIXED)
def test_one_nan_stays_in_its_item(model: str, log: bool, small: None) -> None:
    x = random(3, 4, 5)
    x[1, 0, 0] = math.nan
    (phi,) = run(x, None, model, log=log)
    assert not phi[0].isnan().any() and not phi[2].isnan().any() and phi[1].isnan().any()


# The public functions


@on_logs
def test_expected_alignment(log: bool, small: None) -> None:
    x, g = random(4, 5), random(4, 5)
    found = []
    for impl in ("triton", "scan"):
        given = x.clone().requires_grad_()
        alpha = expected_alignment(given, impl=impl, log=log)
        found.append((alpha.detach(), torch.autograd.grad(alpha, given, g)[0]))
    check(*found, **EXACT)


def test_auto_is_the_kernel_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    original = backward_kernel.visits
    monkeypatch.setattr(
        backward_kernel, "visits", lambda *a, **k: called.append(1) or original(*a, **k)
    )
    many_to_many(random(2, 3))
    assert bool(called) == (DEVICE == "cuda")


def test_what_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    monkeypatch.setattr(_triton, "REASON", "triton is on holiday")
    for function in (many_to_many, one_to_many, expected_alignment):
        with pytest.raises(RuntimeError, match="'triton' cannot be used: triton is on holiday"):
            function(random(3, 3), impl="triton")
        function(random(3, 3))


# How the kernels are launched


@interpreted
@on_logs
@on_both
def test_no_program_waits_for_another(
    model: str, log: bool, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a launch nothing is read that is written, and nothing is written twice."""
    x = random(1, 5, 9).mT.contiguous().mT.requires_grad_()
    with watch(monkeypatch) as touched:
        OPS[model](x, impl="triton", log=log).backward(random(1, 5, 9))
    for reads, writes in zip(touched.reads, touched.writes, strict=True):
        assert writes and max(writes.values()) == 1
        assert reads.keys().isdisjoint(writes)
    tiles = kernel.tiling(torch.empty(1, 9, 5) if model == "one_to_many" else x)
    assert tiles.rows > 1 and tiles.columns > 1
    forwards = len(tiles.waves())
    assert len(touched.writes) == 2 * forwards
    assert sum(len(p) for p in touched.programs[:forwards]) == tiles.rows * tiles.columns


@interpreted
@on_logs
@on_both
def test_padding_is_not_read(
    model: str, log: bool, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, g = random(1, 8, 9).requires_grad_(), random(1, 8, 9)
    lens = {"row_lens": torch.tensor([6]), "column_lens": torch.tensor([5])}
    inside = torch.zeros(1, 8, 9, dtype=torch.bool)
    inside[:, :6, :5] = True
    saved, original = [], backward_kernel.launch

    def launch(kernel: Any, tiles: Any, tensors: tuple[Tensor, ...], *rest: Any, **meta: Any):  # type: ignore[no-untyped-def]
        saved.append(tensors[3])
        original(kernel, tiles, tensors, *rest, **meta)

    monkeypatch.setattr(backward_kernel, "launch", launch)
    with watch(monkeypatch) as touched:
        OPS[model](x, impl="triton", log=log, **lens).backward(g)
    read = set().union(*touched.reads)
    if model == "one_to_many":  # nor are nodes that nobody reaches
        inside &= torch.arange(8)[:, None] >= torch.arange(9)
    for tensor in (x, g):
        seen = torch.tensor([address in read for address in addresses(tensor)]).reshape(1, 8, 9)
        assert torch.equal(seen, inside)
    # What the forward pass left unwritten, too: in lanes, which are columns for one_to_many.
    seen = torch.tensor([address in read for address in addresses(saved[0])])
    assert torch.equal(seen.reshape(saved[0].shape), inside if model == MODELS[0] else inside.mT)


def test_waves_take_each_tile_once_and_in_order() -> None:
    for rows in range(1, 6):
        for columns in range(1, 6):
            tiles = kernel.Tiling(1, 3 * rows - 1, 4 * columns - 3, 3, 4)
            assert (tiles.rows, tiles.columns) == (rows, columns)
            seen = []
            for wave, count in tiles.waves():
                first = max(wave - columns + 1, 0)  # as the kernels have it
                seen += [(row, wave - row) for row in range(first, first + count)]
            assert sorted(seen) == [(r, c) for r in range(rows) for c in range(columns)]


def test_tiles_fit_the_grid() -> None:
    tiles = kernel.tiling(torch.empty(1, 3000, 5000))
    assert (tiles.height, tiles.BLOCK) == (kernel.HEIGHT, kernel.MAX_BLOCK)
    tiles = kernel.tiling(torch.empty(1, 3000, 100))
    assert (tiles.height, tiles.BLOCK, len(tiles.waves())) == (3000, 128, 1)
    assert kernel.tiling(torch.empty(1, 1, 1)).BLOCK == 16
    assert [kernel.warps(block) for block in (16, 128, 256, 512)] == [1, 1, 2, 4]


# On a GPU


@pytest.mark.gpu
@on_logs
@on_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(3, 700, 1100), (3, 1100, 700), (2, 2050, 130), (1, 40, 4097)])
def test_long_grids_on_a_gpu(
    model: str, size: tuple[int, int, int], dtype: torch.dtype, log: bool
) -> None:
    x, g = random(*size, dtype=dtype), incoming(model, size, log).to(dtype)
    lens = {
        "row_lens": torch.arange(1, size[0] + 1, device=DEVICE) * size[1] // size[0],
        "column_lens": torch.full((size[0],), size[2] - 3, device=DEVICE),
    }
    ours = run(x, g, model, log=log, **lens)
    theirs = run(x.double(), g.double(), model, log=log, impl="scan", **lens)
    eps = torch.finfo(dtype).eps
    assert torch.equal(ours[0] == -math.inf, theirs[0] == -math.inf)
    error = (ours[0].double() - theirs[0]).where(theirs[0] > -math.inf, 0.0)
    assert (error.abs() <= 2 * eps * theirs[0].abs().clamp_min(1) + 1e-4).all()
    assert (ours[1] - theirs[1]).abs().max() <= (2 * eps + 1e-4) * theirs[1].abs().max()


@pytest.mark.gpu
@on_logs
@on_both
def test_runs_repeat_bit_for_bit_on_a_gpu(
    model: str, log: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with other numbers of warps."""
    x, g = random(4, 900, 1300, dtype=torch.float32), incoming(model, (4, 900, 1300), log)
    first = run(x, g, model, log=log)
    for per_thread in (4, 4, 4, 2, 8, 16):
        monkeypatch.setattr(kernel, "PER_THREAD", per_thread)
        again = run(x, g, model, log=log)
        for a, b in zip(again, first, strict=True):
            if per_thread == 4:
                assert torch.equal(a, b)
            else:
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@on_both
def test_offsets_beyond_32_bits_on_a_gpu(model: str) -> None:
    x = torch.zeros(1, 47000, 47000, device=DEVICE, dtype=torch.float16)
    log_phi = OPS[model](x, impl="triton", log=True)
    last = log_phi[0, -1, -1].item()
    steps = 46999
    log_2 = math.log(2)
    if model == "one_to_many":
        assert last == pytest.approx(-steps * log_2, rel=1e-3)
    else:
        ways = math.lgamma(2 * steps + 1) - 2 * math.lgamma(steps + 1)
        assert last == pytest.approx(ways - 2 * steps * log_2, rel=1e-2)
