"""Monotonic attention node by node, in the order in which the chapter finds it.

A path walks a grid of I rows and J columns. It starts at (0, 0), and the node where it stands
decides the next step: with probability ``p = sigmoid(x)`` one kind of step, with q = sigmoid(-x)
the other. The two models differ only in what the steps are:

    many_to_many:  p moves to (i, j + 1),  q to (i + 1, j)
    one_to_many:   p moves to (i + 1, j),  q to (i + 1, j + 1)

phi_ij is the probability that a path visits (i, j). A node is reached from at most two others, so

    phi_00 = 1,    phi_v = phi_u p_u + phi_w q_w,    u -> v by p, w -> v by q.

A step past the last row or column leaves the grid for good: from there on its mass is lost.

Gradients run against the steps. With G_v = dL/dphi_v, all that v leads to included, and g_v what
comes from outside,

    G_v = g_v + p_v G_(v+p) + q_v G_(v+q),    dL/dp_v = phi_v (G_(v+p) - G_(v+q)),

where v+p and v+q are where the steps lead, and G is 0 outside the grid.

In log space, F = log phi, a step has the weight w_p = exp(F_v + log p_v - F_(v+p)): the share of
the paths to v+p that come by way of v. It lies in [0, 1], and

    H_v = g_v + w_p H_(v+p) + w_q H_(v+q),    dL/dx_v = q_v w_p H_(v+p) - p_v w_q H_(v+q).

Loops over single nodes are here to be read. ``fronts`` takes many nodes at once, ``scan`` all
that can be taken at once.

Reference:
    Bolte (2023), Monotonic attention; Raffel et al. (2017), Online and linear-time attention by
    enforcing monotonic alignments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

#: Where the steps of p and of q lead: model -> ((rows, columns), (rows, columns)).
STEPS = {
    "many_to_many": ((0, 1), (1, 0)),
    "one_to_many": ((1, 0), (1, 1)),
}

Node = tuple[int, int]


def log_1mexp(x: Tensor) -> Tensor:
    """``log(1 - exp(x))``, without losing digits at either end.

    Near 0 exp(x) rounds to 1 and ``expm1`` keeps the difference; far below, ``log1p`` keeps what
    is too small to be seen beside 1.

    Args:
        x: Numbers of at most 0, any shape.

    Returns:
        The same shape; -inf where ``x`` is 0.

    Reference:
        Mächler (2012), Accurately computing log(1 - exp(-|a|)).

    Example:
        >>> import math
        >>> log_1mexp(torch.tensor([-1e-10, -math.log(2), -50.0])).exp()
        tensor([1.0000e-10, 5.0000e-01, 1.0000e+00])
    """
    near = x > -math.log(2)
    # Each branch gets harmless numbers where the other is taken: its gradient would be NaN.
    below, above = x.where(near, -1.0), x.where(~near, -1.0)
    return torch.where(near, (-below.expm1()).log(), (-above.exp()).log1p())


def logaddexp(*terms: Tensor) -> Tensor:
    """log(sum of exp) of any number of tensors; -inf where all of them are.

    Args:
        terms: At least one; tensors of one shape.

    Returns:
        The same shape.

    Example:
        >>> never = torch.tensor(-torch.inf)
        >>> logaddexp(never, never), logaddexp(never, torch.tensor(-2000.0))
        (tensor(-inf), tensor(-2000.))
    """
    stacked = torch.stack(terms)
    largest = stacked.amax(0)
    largest = largest.where(largest > -math.inf, 0.0)  # -inf - (-inf) would be NaN
    return largest + (stacked - largest).exp().sum(0).log()


def serial_forward(probs: Tensor, *, model: str = "many_to_many") -> Tensor:
    """Visit probabilities, node by node, by multiplying probabilities.

    Args:
        probs: p, ``[..., I, J]``.
        model: ``"many_to_many"`` or ``"one_to_many"``.

    Returns:
        phi, ``[..., I, J]``. PyTorch can differentiate it.

    Example:
        >>> serial_forward(torch.full((3, 3), 0.5))
        tensor([[1.0000, 0.5000, 0.2500],
                [0.5000, 0.5000, 0.3750],
                [0.2500, 0.3750, 0.3750]])
    """
    rows, columns = probs.shape[-2:]
    zero = torch.zeros_like(probs[..., 0, 0])
    phi: dict[Node, Tensor] = {}
    for i, j in _nodes(rows, columns):
        by_p, by_q = _sources(i, j, model)
        reached = zero + 1 if i == j == 0 else zero
        if by_p in phi:
            reached = reached + phi[by_p] * probs[..., by_p[0], by_p[1]]
        if by_q in phi:
            reached = reached + phi[by_q] * (1 - probs[..., by_q[0], by_q[1]])
        phi[i, j] = reached
    return _assemble(phi, probs)


def serial_backward(
    probs: Tensor, phi: Tensor, grad_phi: Tensor, *, model: str = "many_to_many"
) -> Tensor:
    """The gradient of ``serial_forward``, by hand.

    Args:
        probs: As given to ``serial_forward``, ``[..., I, J]``.
        phi: What it returned.
        grad_phi: ``dL/dphi``. It is not changed.
        model: As in ``serial_forward``.

    Returns:
        dL/dp, ``[..., I, J]``.
    """
    rows, columns = probs.shape[-2:]
    zero = torch.zeros_like(probs[..., 0, 0])
    total: dict[Node, Tensor] = {}
    grad: dict[Node, Tensor] = {}
    for i, j in _nodes(rows, columns, backwards=True):
        after_p, after_q = (total.get(node, zero) for node in _targets(i, j, model))
        p = probs[..., i, j]
        total[i, j] = grad_phi[..., i, j] + p * after_p + (1 - p) * after_q
        grad[i, j] = phi[..., i, j] * (after_p - after_q)
    return _assemble(grad, probs)


def serial_log_forward(logits: Tensor, *, model: str = "many_to_many") -> Tensor:
    """Log visit probabilities, node by node: products become sums, and nothing underflows.

    It takes logits and not log p: log q is then as exact as log p; ``log(1 - exp(log p))`` has
    lost q where p has rounded to 1.

    Args:
        logits: x, ``[..., I, J]``.
        model: ``"many_to_many"`` or ``"one_to_many"``.

    Returns:
        log phi, ``[..., I, J]``; -inf where no path leads.

    Example:
        >>> import math
        >>> serial_log_forward(torch.zeros(1, 2000).double())[0, -1] / math.log(2)
        tensor(-1999.0000, dtype=torch.float64)
    """
    rows, columns = logits.shape[-2:]
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    start = torch.zeros_like(logits[..., 0, 0])
    log_phi: dict[Node, Tensor] = {}
    for i, j in _nodes(rows, columns):
        by_p, by_q = _sources(i, j, model)
        terms = [start if i == j == 0 else start - math.inf]
        if by_p in log_phi:
            terms.append(log_phi[by_p] + log_p[..., by_p[0], by_p[1]])
        if by_q in log_phi:
            terms.append(log_phi[by_q] + log_q[..., by_q[0], by_q[1]])
        log_phi[i, j] = logaddexp(*terms)
    return _assemble(log_phi, logits)


def serial_log_backward(
    logits: Tensor, log_phi: Tensor, grad_log_phi: Tensor, *, model: str = "many_to_many"
) -> Tensor:
    """The gradient of ``serial_log_forward``, by hand.

    Args:
        logits: As given to ``serial_log_forward``, ``[..., I, J]``.
        log_phi: What it returned.
        grad_log_phi: ``dL/dlog phi``. It is not changed.
        model: As in ``serial_log_forward``.

    Returns:
        dL/dx, ``[..., I, J]``.
    """
    rows, columns = logits.shape[-2:]
    p, q = logits.sigmoid(), (-logits).sigmoid()
    zero = torch.zeros_like(logits[..., 0, 0])
    total: dict[Node, Tensor] = {}
    grad: dict[Node, Tensor] = {}
    for i, j in _nodes(rows, columns, backwards=True):
        after_p, after_q = (
            share.exp() * total.get(node, zero)
            for share, node in _log_shares(logits, log_phi, i, j, model)
        )
        possible = log_phi[..., i, j] > -math.inf
        total[i, j] = grad_log_phi[..., i, j].where(possible, 0.0) + after_p + after_q
        grad[i, j] = q[..., i, j] * after_p - p[..., i, j] * after_q
    return _assemble(grad, logits)


def serial_log_backward_by_sign(
    logits: Tensor, log_phi: Tensor, grad_log_phi: Tensor, *, model: str = "many_to_many"
) -> Tensor:
    """The same, with the gradients themselves in log space.

    A logarithm wants positive numbers, so the positive and the negative part of the gradient
    travel apart, at twice the cost. The shares lie in [0, 1]: they may vanish, but nothing can
    overflow, and ``serial_log_backward`` loses only what is too small to be told from 0 in the
    end. It is here because the source of this chapter takes this road.

    Args:
        logits: As given to ``serial_log_forward``, ``[..., I, J]``.
        log_phi: What it returned.
        grad_log_phi: ``dL/dlog phi``. It is not changed.
        model: As in ``serial_log_forward``.

    Returns:
        dL/dx, ``[..., I, J]``.
    """
    rows, columns = logits.shape[-2:]
    p, q = logits.sigmoid(), (-logits).sigmoid()
    never = torch.full_like(logits[..., 0, 0], -math.inf)
    grad: dict[Node, Tensor] = {}
    for sign in (1, -1):
        outside = (sign * grad_log_phi).clamp_min(0).log()  # log 0 = -inf: the other sign's
        outside = outside.where(log_phi > -math.inf, -math.inf)
        total: dict[Node, Tensor] = {}
        for i, j in _nodes(rows, columns, backwards=True):
            after_p, after_q = (
                share + total.get(node, never)
                for share, node in _log_shares(logits, log_phi, i, j, model)
            )
            total[i, j] = logaddexp(outside[..., i, j], after_p, after_q)
            part = q[..., i, j] * after_p.exp() - p[..., i, j] * after_q.exp()
            grad[i, j] = grad.get((i, j), 0) + sign * part
    return _assemble(grad, logits)


def _nodes(rows: int, columns: int, backwards: bool = False) -> Iterator[Node]:
    """All nodes, each after those that lead to it; backwards, after those it leads to."""
    for i in reversed(range(rows)) if backwards else range(rows):
        for j in reversed(range(columns)) if backwards else range(columns):
            yield i, j


def _targets(i: int, j: int, model: str) -> tuple[Node, Node]:
    """Where p and q lead."""
    (p_row, p_column), (q_row, q_column) = STEPS[model]
    return (i + p_row, j + p_column), (i + q_row, j + q_column)


def _sources(i: int, j: int, model: str) -> tuple[Node, Node]:
    """Whence p and q lead here."""
    (p_row, p_column), (q_row, q_column) = STEPS[model]
    return (i - p_row, j - p_column), (i - q_row, j - q_column)


def _log_shares(
    logits: Tensor, log_phi: Tensor, i: int, j: int, model: str
) -> Iterator[tuple[Tensor, Node]]:
    """The log of w of both steps, which is the share of their target's paths, and the target."""
    rows, columns = logits.shape[-2:]
    for sign, (row, column) in zip((1, -1), _targets(i, j, model), strict=True):
        if row < rows and column < columns:
            reached = log_phi[..., row, column]
            share = log_phi[..., i, j] + F.logsigmoid(sign * logits[..., i, j]) - reached
            yield share.where(reached > -math.inf, -math.inf), (row, column)
        else:
            yield torch.full_like(logits[..., i, j], -math.inf), (row, column)


def _assemble(nodes: dict[Node, Tensor], like: Tensor) -> Tensor:
    """Numbers of single nodes as ``[..., I, J]``."""
    rows, columns = like.shape[-2:]
    return torch.stack([nodes[node] for node in _nodes(rows, columns)], -1).reshape(like.shape)
