"""Many nodes at once: anti-diagonals, rows, and rows as scans. For reading, and as an oracle.

Nodes that do not lead to each other can be taken together. In the many-to-many grid those are the
anti-diagonals i + j = t: I + J - 1 of them, which grow and shrink. In the one-to-many grid they are
the rows: I of them, all of one size.

A row of the many-to-many grid can be taken at once, too. What comes from above is known when its
turn comes, b_j = F_(i-1, j) + log q_(i-1, j), and from left to right

    ``F_j = logaddexp(F_(j-1) + a_j, b_j)``,    a_j = log p_(i, j-1),

is a linear recurrence (in the semiring of logaddexp and +). Two of its steps in a row are again
one step of the same form,

    (a1, b1) then (a2, b2)  =  (a1 + a2, logaddexp(b1 + a2, b2)),

and the order in which neighbours are joined is free: after k rounds each j knows the last 2^k
steps, and log2(J) rounds do. ``row_scan`` is that, in the plain form; a GPU has it built in.

The functions take and give what ``reference`` does. PyTorch cannot differentiate them: its
gradient of ``logaddexp`` is NaN where both terms are -inf. Hence the gradients by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def diagonal_forward(logits: Tensor) -> Tensor:
    """Log visit probabilities of the many-to-many model, an anti-diagonal at a time.

    A border of -inf above and to the left stands for "nothing comes from there".

    Args:
        logits: x, ``[..., I, J]``.

    Returns:
        log phi, ``[..., I, J]``.

    Example:
        >>> diagonal_forward(torch.zeros(3, 3)).exp()
        tensor([[1.0000, 0.5000, 0.2500],
                [0.5000, 0.5000, 0.3750],
                [0.2500, 0.3750, 0.3750]])
    """
    border = (1, 0, 1, 0)
    log_p = F.pad(F.logsigmoid(logits), border, value=-math.inf)
    log_q = F.pad(F.logsigmoid(-logits), border, value=-math.inf)
    log_phi = torch.full_like(log_p, -math.inf)
    log_phi[..., 1, 1] = 0
    for i, j in _diagonals(*logits.shape[-2:]):
        if len(i) == 1 and i[0] == j[0] == 0:
            continue
        log_phi[..., i + 1, j + 1] = torch.logaddexp(
            log_phi[..., i + 1, j] + log_p[..., i + 1, j],
            log_phi[..., i, j + 1] + log_q[..., i, j + 1],
        )
    return log_phi[..., 1:, 1:]


def diagonal_backward(logits: Tensor, log_phi: Tensor, grad_log_phi: Tensor) -> Tensor:
    """The gradient of ``diagonal_forward``, an anti-diagonal at a time.

    Args:
        logits: As given there, ``[..., I, J]``.
        log_phi: What it returned.
        grad_log_phi: ``dL/dlog phi``. It is not changed.

    Returns:
        dL/dx, ``[..., I, J]``.
    """
    border = (0, 1, 0, 1)
    reached = F.pad(log_phi, border, value=-math.inf)
    total = F.pad(grad_log_phi.masked_fill(log_phi == -math.inf, 0), border)
    right = _share(log_phi + F.logsigmoid(logits), reached[..., :-1, 1:])
    down = _share(log_phi + F.logsigmoid(-logits), reached[..., 1:, :-1])
    for i, j in reversed(list(_diagonals(*logits.shape[-2:]))):
        total[..., i, j] += (
            right[..., i, j] * total[..., i, j + 1] + down[..., i, j] * total[..., i + 1, j]
        )
    by_p, by_q = right * total[..., :-1, 1:], down * total[..., 1:, :-1]
    return (-logits).sigmoid() * by_p - logits.sigmoid() * by_q


def row_forward(logits: Tensor) -> Tensor:
    """Log visit probabilities of the one-to-many model, a row at a time.

    Args:
        logits: x, ``[..., I, J]``.

    Returns:
        log phi, ``[..., I, J]``.

    Example:
        >>> row_forward(torch.zeros(3, 3)).exp()
        tensor([[1.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.2500, 0.5000, 0.2500]])
    """
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    log_phi = torch.full_like(logits, -math.inf)
    log_phi[..., 0, 0] = 0
    for i in range(1, logits.shape[-2]):
        stay = log_phi[..., i - 1, :] + log_p[..., i - 1, :]
        move = log_phi[..., i - 1, :-1] + log_q[..., i - 1, :-1]
        log_phi[..., i, :1] = stay[..., :1]
        log_phi[..., i, 1:] = torch.logaddexp(stay[..., 1:], move)
    return log_phi


def row_backward(logits: Tensor, log_phi: Tensor, grad_log_phi: Tensor) -> Tensor:
    """The gradient of ``row_forward``, a row at a time.

    Args:
        logits: As given there, ``[..., I, J]``.
        log_phi: What it returned.
        grad_log_phi: ``dL/dlog phi``. It is not changed.

    Returns:
        dL/dx, ``[..., I, J]``.
    """
    border = (0, 1, 0, 1)
    reached = F.pad(log_phi, border, value=-math.inf)
    total = F.pad(grad_log_phi.masked_fill(log_phi == -math.inf, 0), border)
    down = _share(log_phi + F.logsigmoid(logits), reached[..., 1:, :-1])
    across = _share(log_phi + F.logsigmoid(-logits), reached[..., 1:, 1:])
    for i in reversed(range(logits.shape[-2])):
        below = total[..., i + 1, :]
        total[..., i, :-1] += down[..., i, :] * below[..., :-1] + across[..., i, :] * below[..., 1:]
    by_p, by_q = down * total[..., 1:, :-1], across * total[..., 1:, 1:]
    return (-logits).sigmoid() * by_p - logits.sigmoid() * by_q


def linear_scan(a: Tensor, b: Tensor) -> Tensor:
    """``F_j = logaddexp(F_(j-1) + a_j, b_j)`` with ``F_(-1) = -inf``, for all j in log2(J) rounds.

    Args:
        a: ``[..., J]``; the first number has no meaning.
        b: ``[..., J]``.

    Returns:
        F, ``[..., J]``.

    Example:
        >>> a, b = torch.tensor([0.0, 0.5, 0.5, 0.5]).log(), torch.tensor([8.0, 0, 0, 1]).log()
        >>> linear_scan(a, b).exp()
        tensor([8., 4., 2., 2.])
    """
    reach = 1
    while reach < a.shape[-1]:
        joined = torch.logaddexp(b[..., :-reach] + a[..., reach:], b[..., reach:])
        a = torch.cat((a[..., :reach], a[..., :-reach] + a[..., reach:]), -1)
        b = torch.cat((b[..., :reach], joined), -1)
        reach *= 2
    return b


def row_scan(logits: Tensor) -> Tensor:
    """Log visit probabilities of the many-to-many model, each row as one scan.

    Args:
        logits: x, ``[..., I, J]``.

    Returns:
        log phi, ``[..., I, J]``.

    Example:
        >>> x = torch.randn(4, 5)
        >>> torch.allclose(row_scan(x), diagonal_forward(x), atol=1e-6)
        True
    """
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    a = F.pad(log_p, (1, 0))[..., :-1]
    b = torch.full_like(logits[..., 0, :], -math.inf)
    b[..., 0] = 0
    rows = []
    for i in range(logits.shape[-2]):
        rows.append(linear_scan(a[..., i, :], b))
        b = rows[-1] + log_q[..., i, :]
    return torch.stack(rows, -2)


def column_scan(logits: Tensor) -> Tensor:
    """Log visit probabilities of the one-to-many model, each column as one scan.

    J scans instead of I rows: fewer steps where the target is clearly the shorter.

    Args:
        logits: x, ``[..., I, J]``.

    Returns:
        log phi, ``[..., I, J]``.

    Example:
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(column_scan(x), row_forward(x), atol=1e-6)
        True
    """
    log_p, log_q = F.logsigmoid(logits).mT, F.logsigmoid(-logits).mT  # [..., J, I]
    a = F.pad(log_p, (1, 0))[..., :-1]
    b = torch.full_like(log_p[..., 0, :], -math.inf)
    b[..., 0] = 0
    columns = []
    for j in range(logits.shape[-1]):
        columns.append(linear_scan(a[..., j, :], b))
        move = columns[-1] + log_q[..., j, :]
        b = F.pad(move, (1, 0), value=-math.inf)[..., :-1]  # one row later
    return torch.stack(columns, -1)


class LogVisits(torch.autograd.Function):
    """A forward pass and its gradient by hand, as PyTorch wants them: from logits to log phi."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, model: str) -> Tensor:
        """Remember what the gradient needs."""
        log_phi = diagonal_forward(logits) if model == "many_to_many" else row_forward(logits)
        ctx.save_for_backward(logits, log_phi)
        ctx.model = model
        return log_phi

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_phi: Tensor) -> tuple[Tensor, None]:
        """dL/dx from ``dL/dlog phi``."""
        backward = diagonal_backward if ctx.model == "many_to_many" else row_backward
        logits, log_phi = ctx.saved_tensors
        return backward(logits, log_phi, grad_log_phi), None


def _diagonals(rows: int, columns: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and columns of the nodes on each anti-diagonal."""
    for t in range(rows + columns - 1):
        i = torch.arange(max(0, t - columns + 1), min(t + 1, rows))
        yield i, t - i


def _share(log_part: Tensor, log_whole: Tensor) -> Tensor:
    """exp(part - whole), and 0 where the whole is nothing."""
    return (log_part - log_whole).exp().masked_fill(log_whole == -math.inf, 0)
