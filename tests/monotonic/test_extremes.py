"""Long grids, huge logits, and each fault of the code that the chapter starts from."""

import math

import pytest
import torch
from torch import Tensor

from attn_course.monotonic import (
    diagonal_backward,
    diagonal_forward,
    log_1mexp,
    many_to_many,
    one_to_many,
    row_backward,
    row_forward,
    serial_backward,
    serial_forward,
    serial_log_backward,
    serial_log_backward_by_sign,
    serial_log_forward,
)

BOTH = pytest.mark.parametrize("function", [many_to_many, one_to_many])
pytestmark = pytest.mark.filterwarnings("ignore:one_to_many has")


@BOTH
@pytest.mark.parametrize("impl", ["reference", "scan"])
@pytest.mark.parametrize("size", [(4096, 1024), (1024, 4096)])
def test_long_grids(function, impl: str, size: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    if impl == "reference" and size[0] < size[1]:
        pytest.skip("one shape of the slow loop is enough")
    x = torch.randn(size, requires_grad=True)
    log_phi = function(x, log=True, impl=impl)
    reachable = torch.ones(size, dtype=torch.bool)
    if function is one_to_many:
        reachable = torch.arange(size[0])[:, None] >= torch.arange(size[1])
    assert torch.equal(log_phi > -math.inf, reachable) and (log_phi <= 1e-3).all()
    log_phi.where(reachable, 0.0).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    if impl == "scan":
        given = x.detach().requires_grad_()
        phi = function(given)
        torch.testing.assert_close(phi, log_phi.exp(), rtol=2e-2, atol=1e-6)
        phi.sum().backward()
        assert given.grad is not None and given.grad.isfinite().all()


def test_probabilities_underflow_and_logs_do_not() -> None:
    x = torch.full((1, 400), -0.5)
    assert serial_forward(x.sigmoid())[0, -1] == 0
    expected = 399 * math.log(1 / (1 + math.exp(0.5)))
    for log_phi in (serial_log_forward(x), many_to_many(x, log=True)):
        assert log_phi[0, -1].item() == pytest.approx(expected, rel=1e-5)


@BOTH
@pytest.mark.parametrize("impl", ["reference", "scan"])
@pytest.mark.parametrize("log", [False, True])
def test_huge_and_infinite_logits(function, impl: str, log: bool) -> None:  # type: ignore[no-untyped-def]
    for size in (100.0, 1e30, math.inf):
        x = torch.where(torch.rand(3, 20, 12) < 0.5, size, -size).requires_grad_()
        phi = function(x, impl=impl, log=log)
        assert not phi.isnan().any() and (phi <= (0 if log else 1)).all()
        phi.where(phi > -math.inf, 0.0).sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()


@BOTH
def test_a_gradient_that_came_through_nothing_is_nothing(function) -> None:  # type: ignore[no-untyped-def]
    """Even an infinite one: log phi is -inf there whatever the logits are."""
    x = torch.full((4, 4), math.inf, requires_grad=True)
    function(x, log=True).exp().log().where(torch.eye(4) > 2, 0.0).sum().backward()
    assert torch.equal(x.grad, torch.zeros(4, 4))
    log_phi = function(x, log=True)
    (grad,) = torch.autograd.grad(
        log_phi, x, torch.full((4, 4), math.nan).where(log_phi.isinf(), 1)
    )
    assert grad.isfinite().all()


def test_one_row_and_one_column() -> None:
    x = torch.randn(1, 7)
    along = torch.cat((torch.ones(1), x[0, :-1].sigmoid().cumprod(0)))
    torch.testing.assert_close(many_to_many(x)[0], along)
    torch.testing.assert_close(many_to_many(-x.mT)[:, 0], along)
    torch.testing.assert_close(one_to_many(x.mT)[:, 0], along)
    assert torch.equal(one_to_many(x), torch.eye(7)[:1])
    assert many_to_many(x[:, :1]).item() == one_to_many(x[:, :1]).item() == 1


# The faults, one by one.


def test_no_floor_under_log_probabilities() -> None:
    """The original puts one at -1e4, which long sequences pass."""
    x = torch.full((300, 300), 100.0, requires_grad=True)
    log_phi = one_to_many(x, log=True)
    step = torch.arange(300)
    torch.testing.assert_close(log_phi.diagonal(), -100.0 * step)
    log_phi[-1, -1].backward()  # one path: down the diagonal, each step with q
    assert x.grad is not None
    expected = -torch.eye(300)
    expected[-1, -1] = 0
    torch.testing.assert_close(x.grad, expected)

    x = torch.full((2, 300), -100.0, requires_grad=True)
    log_phi = many_to_many(x, log=True)
    torch.testing.assert_close(log_phi[0], -100.0 * step)
    log_phi[0, -1].backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0, :-1], torch.ones(299))


@pytest.mark.parametrize("columns", [1023, 1024, 1025, 3000])
def test_every_column_of_a_long_target_is_written(columns: int) -> None:
    """The original writes one block of them."""
    x = torch.zeros(3, columns)
    half = -math.log(2) * torch.arange(columns)
    torch.testing.assert_close(many_to_many(x, log=True)[0], half)
    x = torch.full((columns, columns), -100.0)
    torch.testing.assert_close(one_to_many(x).diagonal(), torch.ones(columns))


@pytest.mark.parametrize("rows", [2047, 2048, 5000])
def test_sources_of_any_length(rows: int) -> None:
    """The original raises from 2,048 on."""
    half = -math.log(2) * torch.arange(rows)
    for function in (many_to_many, one_to_many):
        log_phi = function(torch.zeros(rows, 3), log=True)
        torch.testing.assert_close(log_phi[:, 0], half)


@BOTH
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("impl", ["reference", "scan"])
def test_incoming_gradients_of_any_layout(function, log: bool, impl: str) -> None:  # type: ignore[no-untyped-def]
    """The original reads a transposed one with the strides of another tensor."""
    x = torch.randn(2, 6, 4, requires_grad=True)
    incoming = torch.randn(2, 4, 6).mT
    grads = []
    for g in (incoming, incoming.contiguous()):
        grads.append(torch.autograd.grad(function(x, log=log, impl=impl), x, g)[0])
    assert torch.equal(*grads)
    if function is one_to_many:
        assert (grads[0][:, -1] == 0).all()
    spread = torch.autograd.grad(function(x).sum(), x)[0]  # expanded, with strides of 0
    same = torch.autograd.grad(function(x), x, torch.ones(2, 6, 4))[0]
    assert torch.equal(spread, same)


def test_log_of_the_other_probability_is_exact() -> None:
    """The original takes log(1 - p); its kernel asks for a ``log1p`` that is gone."""
    x = torch.tensor([20.0, 30.0, 80.0, -40.0])
    exact = torch.nn.functional.softplus(x.double()).neg()
    naive = (1 - x.sigmoid()).log()
    assert (naive[:3] == -math.inf).any()
    below = one_to_many(torch.stack((x, x), 1)[:, None].expand(4, 2, 2), log=True)[:, 1, 1]
    torch.testing.assert_close(below.double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(log_1mexp(torch.tensor(-1e-30)).item(), math.log(1e-30))


@pytest.mark.parametrize("model", ["many_to_many", "one_to_many"])
def test_arguments_are_left_alone(model: str) -> None:
    """The original adds to the gradient it is given."""
    x, g = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    F = serial_log_forward(x, model=model)
    if model == "many_to_many":
        forward, backward, visit = diagonal_forward, diagonal_backward, many_to_many
    else:
        forward, backward, visit = row_forward, row_backward, one_to_many
    before = [t.clone() for t in (x, g, F)]
    serial_forward(x.sigmoid(), model=model)
    serial_backward(x, F, g, model=model)
    serial_log_backward(x, F, g, model=model)
    serial_log_backward_by_sign(x, F, g, model=model)
    forward(x)
    backward(x, F, g)
    for impl in ("scan", "reference"):
        for log in (False, True):
            given = x.clone().requires_grad_()
            phi = visit(given, log=log, impl=impl, row_lens=torch.tensor([5, 4, 1]))
            kept: Tensor = phi.detach().clone()
            phi.backward(g)
            assert torch.equal(given, x) and torch.equal(phi, kept)
    assert all(torch.equal(a, b) for a, b in zip((x, g, F), before, strict=True))
