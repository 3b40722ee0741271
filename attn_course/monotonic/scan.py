"""Visit probabilities as one scan over time: ours.

The one-to-many model sweeps its grid row by row. At time t = i a path stands in one of J *lanes*,
and each step keeps its lane or moves to the next:

    phi_(t+1, l) = phi_(t, l) p_(t, l) + phi_(t, l-1) q_(t, l-1).                              (*)

The many-to-many model does the same on a slanted grid. Take the time t = i + j and the row as the
lane, l = i: the step of p, to (i, j + 1), takes one unit of time and stays in its lane; the step
of q, to (i + 1, j), takes one and moves to the next. This is (*) again. Shifting row i by i places,
which is one copy of the tensor, turns anti-diagonals of changing size into rows of one size, and
both models share the code below. Nothing must be masked: lanes of a time that lie past the grid
(j >= J) never lead back into it, and those before it (j < 0) are never reached.

Forward, a step is two products for probabilities (``visits``) and two sums and a ``logaddexp``
for logarithms (``log_visits``), over the whole batch and all lanes. Probabilities need no logs:
no phi is worth more than the sum of what leads to it, so what underflows was below 1e-38 and
stays there. Only who asks for log phi itself needs log space, and float64 while it adds:
thousands of sums of float32 would lose the fifth digit.

Backward is a scan against time, (*) transposed:

    G_(t, l) = g_(t, l) + p_(t, l) G_(t+1, l) + q_(t, l) G_(t+1, l+1),
    dL/dx_(t, l) = phi p q (G_(t+1, l) - G_(t+1, l+1)),

and in log space the same with the shares w in place of p and q (see ``reference``). Of the paths
to a node, those that stayed in its lane have a share of sigmoid(d), where the *lead* d is what the
forward pass adds them with: log of the mass that stayed less log of the mass that moved in.

What is needed of all nodes, p and q or numbers in float64, is made for ``SPAN`` steps at a time,
which a CPU keeps in its cache. Saved for backward: logits and phi, or log phi and the leads.
Work: O(I J) for one-to-many, O(min(I, J) (I + J)) for many-to-many, whose lanes are the shorter
side.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Shape = tuple[int, ...]

#: Steps whose weights are made at once.
SPAN = 16


def visits(logits: Tensor, *, model: str) -> Tensor:
    """Visit probabilities.

    Args:
        logits: ``[batch, I, J]``.
        model: ``"many_to_many"`` or ``"one_to_many"``.

    Returns:
        phi, ``[batch, I, J]``.
    """
    shape = tuple(logits.shape)
    swapped = is_tall(shape, model)
    logits = -logits.mT if swapped else logits  # the other side as lanes: p and q change roles
    phi = _Visits.apply(to_lanes(logits, model))
    return from_lanes(phi, shape, model)


def log_visits(log_p: Tensor, log_q: Tensor, *, model: str) -> Tensor:
    """Log visit probabilities.

    Args:
        log_p: ``[batch, I, J]``.
        log_q: The same shape. exp(log_p) + exp(log_q) need not be 1.
        model: ``"many_to_many"`` or ``"one_to_many"``.

    Returns:
        log phi, ``[batch, I, J]``; -inf where no path leads.
    """
    shape = tuple(log_p.shape)
    log_phi = _LogVisits.apply(*lane_pair(log_p, log_q, model))
    return from_lanes(log_phi, shape, model)


def is_tall(shape: Shape, model: str) -> bool:
    """Whether columns serve as lanes of the many-to-many model: they are fewer."""
    return model == "many_to_many" and shape[-2] > shape[-1]


def lane_pair(log_p: Tensor, log_q: Tensor, model: str) -> tuple[Tensor, Tensor]:
    """Both kinds of steps in lanes, ``[time, batch, lanes]``: staying, and moving on."""
    if is_tall(tuple(log_p.shape), model):
        log_p, log_q = log_q.mT, log_p.mT
    return to_lanes(log_p, model), to_lanes(log_q, model)


def to_lanes(x: Tensor, model: str) -> Tensor:
    """``[batch, I, J]`` with time first: ``[I, batch, J]``; slanted ``[I + J - 1, batch, I]``."""
    if model == "one_to_many":
        return x.transpose(0, 1).contiguous()
    batch, rows, columns = x.shape
    times = rows + columns - 1
    # Rows of I + J, read as rows of I + J - 1, each start one place later than the row before.
    padded = F.pad(x, (0, rows)).flatten(1)[:, : rows * times]
    return padded.reshape(batch, rows, times).permute(2, 0, 1).contiguous()


def from_lanes(x: Tensor, shape: Shape, model: str) -> Tensor:
    """The way back, to ``[batch, I, J]``."""
    if model == "one_to_many":
        return x.transpose(0, 1).contiguous()
    batch, rows, columns = shape
    rows, columns = min(rows, columns), max(rows, columns)
    times = rows + columns - 1
    flat = F.pad(x.permute(1, 2, 0).reshape(batch, rows * times), (0, rows))
    grid = flat.reshape(batch, rows, times + 1)[..., :columns]
    return (grid.mT if is_tall(shape, model) else grid).contiguous()


class _Visits(torch.autograd.Function):
    """phi from logits, both ``[time, batch, lanes]``."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        phi = torch.zeros_like(logits)
        phi[0, :, 0] = 1
        now, ahead, behind = _views(phi)
        for part in _spans(len(phi) - 1):
            p, q = logits[part].sigmoid(), (-logits[part, :, :-1]).sigmoid()
            for t, stay, move in zip(range(part.start, part.stop), p, q, strict=True):
                torch.mul(now[t], stay, out=now[t + 1])
                ahead[t + 1].addcmul_(behind[t], move)
        ctx.save_for_backward(logits, phi)
        return phi

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_phi: Tensor) -> Tensor:
        logits, phi = ctx.saved_tensors
        grad = torch.zeros_like(phi)
        after = grad_phi[-1:]
        for part in reversed(_spans(len(phi) - 1)):
            p, q = logits[part].sigmoid(), (-logits[part]).sigmoid()
            total = _against_time(torch.cat((grad_phi[part], after)), p, q[..., :-1])
            here = grad[part].copy_(total[1:])
            here[..., :-1].sub_(total[1:, :, 1:])  # nothing lies past the last lane
            here.mul_(phi[part]).mul_(p).mul_(q)
            after = total[:1]
        return grad


class _LogVisits(torch.autograd.Function):
    """log phi from log p and log q, all ``[time, batch, lanes]``."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor) -> Tensor:
        steps = len(log_p) - 1
        log_phi = torch.full_like(log_p, -math.inf, memory_format=torch.contiguous_format)
        log_phi[0, :, 0] = 0
        lead = torch.empty_like(log_phi[1:])
        now = log_phi[0].double()
        for part in _spans(steps):
            stayed = log_p[part].to(torch.float64, copy=True)
            moved = torch.full_like(stayed, -math.inf)
            moved[..., 1:] = log_q[part, :, :-1]
            phi = torch.empty_like(stayed)
            arriving = moved[..., 1:].unbind(0)
            for t, then in enumerate(phi.unbind(0)):
                stayed[t].add_(now)
                arriving[t].add_(now[:, :-1])
                torch.logaddexp(stayed[t], moved[t], out=then)
                now = then
            log_phi[1:][part] = phi
            lead[part] = stayed.sub_(moved)
        # Where nothing leads the lead is -inf - (-inf); nothing comes back from there either.
        lead.masked_fill_(log_phi[1:] == -math.inf, 0)
        ctx.save_for_backward(log_phi, lead)
        return log_phi

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_phi: Tensor) -> tuple[Tensor, Tensor]:
        log_phi, lead = ctx.saved_tensors
        stay, move = lead.sigmoid(), (-lead[..., 1:]).sigmoid()
        total = _against_time(grad_log_phi.masked_fill(log_phi == -math.inf, 0), stay, move)
        grad_p, grad_q = torch.zeros_like(log_phi), torch.zeros_like(log_phi)
        torch.mul(stay, total[1:], out=grad_p[:-1])
        torch.mul(move, total[1:, :, 1:], out=grad_q[:-1, :, :-1])
        return grad_p, grad_q


def _views(x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """For each time all lanes, all but the first, all but the last."""
    return x.unbind(0), x[..., 1:].unbind(0), x[..., :-1].unbind(0)


def _spans(steps: int) -> list[slice]:
    """Stretches of time."""
    return [slice(t, min(t + SPAN, steps)) for t in range(0, steps, SPAN)]


def _against_time(total: Tensor, stay: Tensor, move: Tensor) -> Tensor:
    """The scan against time, in place: G, from what comes from outside and the weights of steps."""
    now, ahead, behind = _views(total)
    stays, moves = stay.unbind(0), move.unbind(0)
    for t in reversed(range(len(total) - 1)):
        now[t].addcmul_(now[t + 1], stays[t])
        behind[t].addcmul_(ahead[t + 1], moves[t])
    return total


def most_likely(stay: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
    """The scan with a maximum in place of the sum.

    Args:
        stay: log of the probability of staying in a lane, ``[time, batch, lanes]``.
        move: The same for moving on.

    Returns:
        The log probability of the best way to each node, and whether that way moves into its
        lane in its last step rather than stays, both ``[time, batch, lanes]``. Ties stay.
    """
    best = torch.full_like(stay, -math.inf)
    best[0, :, 0] = 0
    moved = torch.zeros_like(best, dtype=torch.bool)
    now, ahead, behind = _views(best)
    arrivals = moved[..., 1:].unbind(0)
    stays, moves = stay.unbind(0), move[..., :-1].unbind(0)
    for t in range(len(best) - 1):
        torch.add(now[t], stays[t], out=now[t + 1])
        coming = behind[t] + moves[t]
        torch.gt(coming, ahead[t + 1], out=arrivals[t + 1])
        torch.maximum(ahead[t + 1], coming, out=ahead[t + 1])
    return best, moved
