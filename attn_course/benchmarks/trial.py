"""One computation, ready to be called: a case at a size, in a direction, on a device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from attn_course.benchmarks.cases import FORWARD, ORACLE_ELEMENTS, Case, Function, random_inputs


class Trial:
    """Calls functions on the inputs of a case, and knows how wrong their answers are.

    Args:
        case: What is computed.
        size: How large.
        direction: ``forward`` or ``forward+backward``.
        device: Where.
    """

    def __init__(self, case: Case, size: int, direction: str, device: torch.device) -> None:
        self.case, self.size, self.direction = case, size, direction
        self.inputs = case.inputs(size, device)
        if direction != FORWARD:
            self.inputs = tuple(x.requires_grad_() for x in self.inputs)
        self._incoming: Tensor | None = None

    def call(self, function: Function) -> Callable[[], object]:
        """The call to measure, without arguments."""
        return lambda: self.run(function)

    def run(self, function: Function, rows: Tensor | None = None) -> tuple[Tensor, ...]:
        """The output and, with the backward direction, the gradient of each input.

        Args:
            function: Of the inputs.
            rows: Where the gradient coming in is not zero; everywhere if ``None``.
        """
        if self.direction == FORWARD:
            with torch.no_grad():
                return (function(*self.inputs),)
        output = function(*self.inputs)
        incoming = self._gradient(output)
        if rows is not None:
            chosen = torch.zeros_like(incoming)
            chosen[rows] = incoming[rows]
            incoming = chosen
        return (output, *torch.autograd.grad(output, self.inputs, incoming))

    def error(self, function: Function) -> float:
        """The largest error of a function's answers, as ``Case.tolerance`` counts it.

        Some rows of the output are held against the exact answer. The gradient comes in
        at these rows only, so the inputs' gradients can be compared completely. The rest
        of the output must be finite.
        """
        rows = self._rows.to(self.inputs[0].device)
        output, *gradients = self.run(function, rows)
        if not bool(output.isfinite().all()):
            return float("inf")
        return max(
            _error(actual, exact)
            for actual, exact in zip((output[rows], *gradients), self._exact, strict=True)
        )

    def _gradient(self, output: Tensor) -> Tensor:
        if self._incoming is None:
            shape = tuple(output.shape)
            (self._incoming,) = random_inputs([shape], output.device, seed=self.size + 2)
        return self._incoming

    @cached_property
    def _rows(self) -> Tensor:
        total = self.case.rows(self.size)
        count = min(total, self.case.max_rows, max(4, ORACLE_ELEMENTS // self.size))
        return torch.linspace(0, total - 1, count, dtype=torch.float64).long()

    @cached_property
    def _exact(self) -> tuple[Tensor, ...]:
        inputs = tuple(x.detach().cpu().double() for x in self.inputs)
        if self.direction == FORWARD:
            return (self.case.expected(inputs, self._rows),)
        inputs = tuple(x.requires_grad_() for x in inputs)
        output = self.case.expected(inputs, self._rows)
        shape = (self.case.rows(self.size), *output.shape[1:])
        incoming = self._gradient(self.inputs[0].new_empty(shape)).cpu().double()[self._rows]
        return (output.detach(), *torch.autograd.grad(output, inputs, incoming))


def _error(actual: Tensor, exact: Tensor) -> float:
    """Largest absolute difference over largest absolute number; infinite for NaN."""
    if actual.shape != exact.shape:
        raise ValueError(f"expected shape {list(exact.shape)}, got {list(actual.shape)}.")
    difference = (actual.detach().cpu().double() - exact).abs()
    scale = max(exact.abs().max().item(), torch.finfo(torch.float64).tiny)
    return difference.nan_to_num(nan=torch.inf).max().item() / scale
