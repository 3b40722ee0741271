"""The cases of monotonic attention: the source's loop as it is, and what it is compared with."""

from __future__ import annotations

import pytest
import torch

from attn_course.benchmarks import monotonic as bench
from attn_course.benchmarks.cases import BOTH, FORWARD, all_cases
from attn_course.benchmarks.monotonic import (
    FLOOR,
    MANY,
    ONE,
    SHAPES,
    SourceLoop,
    log_1mexp,
    own_logaddexp,
    path_by_loop,
    slope_of_log_1mexp,
)
from attn_course.benchmarks.trial import Trial
from attn_course.monotonic import best_path, serial_log_backward, serial_log_forward
from tests.benchmarks.fakes import CPU

CASES = all_cases(["monotonic"])


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_sizes_that_are_compared() -> None:
    assert SHAPES[MANY][256] == (16, 256, 200) and SHAPES[ONE][1000] == (32, 1000, 150)
    assert SHAPES[MANY][2048] == (16, 2048, 8192)
    for name in ("monotonic", "monotonic_log"):
        assert CASES[name].sizes["cpu"] == {FORWARD: (256,), BOTH: (256,)}
        assert CASES[name].sizes["cuda"][BOTH] == (256, 1024, 2048)
    assert CASES["monotonic_one"].sizes["cpu"][BOTH] == (1000,)
    assert all(rows >= columns for _, rows, columns in SHAPES[ONE].values())


@pytest.mark.parametrize("model", [MANY, ONE])
@pytest.mark.parametrize("plain", [True, False])
def test_the_sources_loop_is_that_of_the_chapter(model: str, plain: bool) -> None:
    """Node by node in our reference, through log p as in the source."""
    x, incoming = random(2, 6, 5), random(2, 6, 5).flip(1)
    log_phi = serial_log_forward(x, model=model)
    reached = log_phi > -torch.inf
    incoming = incoming.masked_fill(~reached, 0)
    x.requires_grad_()
    add, floor = (own_logaddexp, FLOOR) if plain else (torch.logaddexp, -torch.inf)
    found = SourceLoop.apply(torch.nn.functional.logsigmoid(x), model, add, floor)
    torch.testing.assert_close(found[reached], log_phi[reached])
    assert (found[~reached] < FLOOR / 2).all()
    exact = serial_log_backward(x.detach(), log_phi, incoming, model=model)
    torch.testing.assert_close(torch.autograd.grad(found, x, incoming)[0], exact)


def test_its_logaddexp_is_not_a_number_where_nothing_leads() -> None:
    a, b = random(3, 4), random(3, 4).flip(0)
    torch.testing.assert_close(own_logaddexp(a, b), torch.logaddexp(a, b))
    never = torch.tensor([-torch.inf])
    assert own_logaddexp(never, never).isnan()
    x = -random(5).abs()
    exact = torch.autograd.functional.jacobian(log_1mexp, x).diagonal()
    torch.testing.assert_close(slope_of_log_1mexp(x), exact)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("direction", [FORWARD, BOTH])
def test_wrong_answers_are_seen(name: str, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    if direction not in case.quick_sizes:
        pytest.skip("forward only")
    trial = Trial(case, case.tiny, direction, CPU)
    function = case.peers[-1].make(CPU)
    assert trial.error(function) < case.tolerance
    assert trial.error(lambda x: function(x + 0.01 * torch.ones_like(x).tril())) > case.tolerance


@pytest.mark.parametrize("model", [MANY, ONE])
def test_the_loop_finds_the_best_path(model: str) -> None:
    x = random(3, 7, 5)
    exact = best_path(x, model=model)[1]
    torch.testing.assert_close(path_by_loop(CPU, model)(x), exact)
    torch.testing.assert_close(bench.expected_path(model, (x,), torch.arange(3)), exact)


def test_work_and_bytes() -> None:
    for model, sizes in SHAPES.items():
        for size, (batch, rows, columns) in sizes.items():
            assert rows == size and bench.grids(model, size) == batch
            assert bench.flops(model, size, FORWARD) == 3 * batch * rows * columns
            assert bench.bytes_moved(model, size, FORWARD) == 8 * batch * rows * columns
