"""Influence maps against Jacobians known by hand, and central differences."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attn_course.heatmaps import influence_map


class Square(torch.autograd.Function):
    """A custom function, which functorch's transforms would refuse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


def by_differences(function: Any, inputs: Tensor, step: float = 1e-6) -> Tensor:
    """The same from central differences, one input element at a time."""
    flat = inputs.reshape(len(inputs), -1)
    outputs = len(function(inputs))
    squares = torch.zeros(outputs, len(inputs), dtype=inputs.dtype)
    for j in range(len(inputs)):
        for c in range(flat.shape[1]):
            moved = []
            for sign in (1, -1):
                other = flat.clone()
                other[j, c] += sign * step
                moved.append(function(other.reshape(inputs.shape)).detach().reshape(outputs, -1))
            squares[:, j] += ((moved[0] - moved[1]) / (2 * step)).square().sum(1)
    return squares.sqrt()


@pytest.mark.parametrize(("n", "d_in", "m", "d_out"), [(5, 3, 4, 2), (1, 1, 1, 1), (3, 2, 7, 1)])
def test_equals_central_differences(n: int, d_in: int, m: int, d_out: int) -> None:
    mix = torch.randn(m, n, dtype=torch.float64)
    project = torch.randn(d_in, d_out, dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        return torch.tanh(mix @ x) @ project

    inputs = torch.randn(n, d_in, dtype=torch.float64)
    found = influence_map(function, inputs)
    assert found.shape == (m, n)
    torch.testing.assert_close(found, by_differences(function, inputs), rtol=1e-6, atol=1e-8)


def test_a_linear_map_gives_its_norms() -> None:
    mix = torch.tensor([[2.0, 0.0, -3.0], [0.0, 0.0, 1.0]])
    found = influence_map(lambda x: mix @ x, torch.randn(3, 4))
    torch.testing.assert_close(found, mix.abs() * 2)  # the norm of a 4 x 4 identity is 2
    torch.testing.assert_close(influence_map(lambda x: mix @ x, torch.randn(3)), mix.abs())


def test_vectors_and_custom_functions() -> None:
    x = torch.tensor([1.0, -2.0, 3.0])
    torch.testing.assert_close(influence_map(Square.apply, x), torch.diag(2 * x.abs()))


def test_no_dependence_is_exactly_zero() -> None:
    x = torch.randn(3, 2)
    assert torch.equal(influence_map(lambda x: torch.ones(4, 2), x), torch.zeros(4, 3))
    other = torch.ones(2, requires_grad=True)  # requires a gradient, but not of x
    assert torch.equal(influence_map(lambda x: other * 1, x), torch.zeros(2, 3))
    causal = influence_map(lambda x: x.cumsum(0), x)
    assert not x.requires_grad
    assert torch.equal(causal != 0, torch.ones(3, 3).tril().bool())


def test_nothing_is_touched() -> None:
    model = nn.Linear(2, 3)
    model(torch.ones(1, 2)).sum().backward()
    grads = [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]
    x = torch.randn(4, 2, requires_grad=True)
    before = x.detach().clone()
    with torch.no_grad():
        found = influence_map(model, x)
    assert not found.requires_grad and x.grad is None and torch.equal(x.detach(), before)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, grad)
    norm = model.weight.detach().norm()
    torch.testing.assert_close(found, torch.eye(4) * norm)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="inputs must hold floating-point numbers"):
        influence_map(lambda x: x, torch.arange(3))
    with pytest.raises(ValueError, match=r"inputs must have shape \[n, d_in\] or \[n\]"):
        influence_map(lambda x: x, torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match=r"function must return shape .* got \[\]"):
        influence_map(lambda x: x.sum(), torch.zeros(3))
    with pytest.raises(TypeError, match=r"function's output must be a torch.Tensor, got list"):
        influence_map(lambda x: [x], torch.zeros(3))  # type: ignore[arg-type, return-value]
