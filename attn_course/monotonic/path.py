"""Paths themselves: the likeliest, those that arrive, and some drawn at random.

``ops`` says how likely a path is to pass a node. A path of the model walks until it leaves the
grid, anywhere. One that *arrives* visits the far corner, (I - 1, J - 1): the source of this
chapter speaks of those, but its recurrence sums over all. ``posterior`` is what it would be for
those that arrive. It needs the whole grid, later rows included: as weights of a decoder that is
taught by the right answer it lets a query see what comes after it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course._validation import check_choice, check_counts
from attn_course.monotonic import scan
from attn_course.monotonic.ops import check_grid
from attn_course.monotonic.reference import STEPS


def best_path(
    logits: Tensor,
    *,
    model: str = "many_to_many",
    end: str = "corner",
    row_lens: Tensor | None = None,
    column_lens: Tensor | None = None,
    validate: bool = True,
) -> tuple[Tensor, Tensor]:
    """The most likely path: monotonic alignment search.

    The recurrence of the visit probabilities with a maximum in place of the sum, and then back
    along the steps that won. Ties go to the step of p.

    Args:
        logits: ``[I, J]`` or ``[batch, ..., I, J]``.
        model: ``"many_to_many"`` or ``"one_to_many"``.
        end: ``"corner"``: the best of those that arrive. ``"edge"``: the best of all, its step
            out of the grid included.
        row_lens: How many leading rows count, ``[batch]``; for ``[I, J]`` a scalar.
        column_lens: How many leading columns count, likewise.
        validate: As in ``many_to_many``.

    Returns:
        What it visits, booleans of the shape of ``logits``, and its log probability, ``[...]``.
        Nothing and -inf where no path exists.

    Raises:
        TypeError: A tensor has the wrong kind of numbers.
        ValueError: A shape, a length or a name is out of place.

    Reference:
        Kim et al. (2020), Glow-TTS, section 3.2; Viterbi (1967).

    Example:
        >>> visited, log_prob = best_path(torch.tensor([[2.0, 2.0, -2.0], [2.0, 2.0, 2.0]]))
        >>> visited.int()
        tensor([[1, 1, 1],
                [0, 0, 1]], dtype=torch.int32)
    """
    check_choice("end", end, ("corner", "edge"))
    with torch.no_grad():
        x, _, rows, columns = check_grid(logits, model, row_lens, column_lens, validate)
        shape = tuple(x.shape)
        batch, _, width = shape
        log_p, log_q = F.logsigmoid(x), F.logsigmoid(-x)
        stay, move = scan.lane_pair(log_p, log_q, model)
        tall = scan.is_tall(shape, model)
        best, moved = scan.most_likely(stay, move)
        score = scan.from_lanes(best, shape, model)
        score = score + _ending(log_p, log_q, rows, columns, model, end)
        log_prob, place = score.flatten(1).max(1)
        i, j = place // width, place % width
        time, lane = (i, j) if model == "one_to_many" else (i + j, j if tall else i)
        visited = torch.zeros_like(moved)
        item = torch.arange(batch, device=x.device)
        possible = log_prob > -math.inf
        for t in reversed(range(len(best))):
            visited[t, item, lane] = possible & (t <= time)
            lane = lane - (moved[t, item, lane] & (t <= time)).long()
        grid = scan.from_lanes(visited.to(x.dtype), shape, model).bool()
    return grid.reshape(logits.shape), log_prob.reshape(logits.shape[:-2]).to(logits.dtype)


def posterior(
    logits: Tensor,
    *,
    model: str = "many_to_many",
    row_lens: Tensor | None = None,
    column_lens: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """The probability that a path visits a node, given that it arrives at the far corner.

    Forward and backward together: with beta_v the probability of arriving from v,

        gamma_v = phi_v beta_v / phi_corner,    beta_v = p_v beta_(v+p) + q_v beta_(v+q).

    beta is the same recurrence from the other end. Computed in float64.

    Args:
        logits: ``[I, J]`` or ``[batch, ..., I, J]``.
        model: ``"many_to_many"`` or ``"one_to_many"``.
        row_lens: How many leading rows count, ``[batch]``; for ``[I, J]`` a scalar.
        column_lens: How many leading columns count, likewise.
        validate: As in ``many_to_many``.

    Returns:
        gamma, of the shape of ``logits``; 0 where no path arrives. PyTorch can differentiate it.

    Raises:
        TypeError: A tensor has the wrong kind of numbers.
        ValueError: A shape, a length or a name is out of place.

    Example:
        >>> posterior(torch.zeros(3, 3))
        tensor([[1.0000, 0.5000, 0.1667],
                [0.5000, 0.6667, 0.5000],
                [0.1667, 0.5000, 1.0000]])
    """
    x, inside, rows, columns = check_grid(logits, model, row_lens, column_lens, validate)
    wide = x.double()
    log_p, log_q = F.logsigmoid(wide), F.logsigmoid(-wide)
    log_phi = scan.log_visits(log_p, log_q, model=model)

    def turn(grid: Tensor) -> Tensor:
        return _turned(_turned(grid, rows, -2), columns, -1)

    # From the far end a step into v has the weight of v itself; log_visits takes it from where
    # the step begins. Rolling brings it there; what wraps around leaves the grid and is lost.
    steps = (
        step.roll((-down, -right), (-2, -1))
        for step, (down, right) in zip((turn(log_p), turn(log_q)), STEPS[model], strict=True)
    )
    log_beta = turn(scan.log_visits(*steps, model=model))
    arrived = log_beta[:, :1, :1]
    within = (log_phi + log_beta > -math.inf) & (arrived > -math.inf)
    if inside is not None:
        within = within & inside
    gamma = (log_phi + log_beta - arrived).where(within, -math.inf).exp()
    return gamma.reshape(logits.shape).to(logits.dtype)


def sample_paths(
    logits: Tensor,
    count: int = 1,
    *,
    model: str = "many_to_many",
    row_lens: Tensor | None = None,
    column_lens: Tensor | None = None,
    validate: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Walk at random, as the model says: each node decides by a throw of its own coin.

    Args:
        logits: ``[I, J]`` or ``[batch, ..., I, J]``.
        count: How many paths of each grid.
        model: ``"many_to_many"`` or ``"one_to_many"``.
        row_lens: How many leading rows count, ``[batch]``; for ``[I, J]`` a scalar.
        column_lens: How many leading columns count, likewise.
        validate: As in ``many_to_many``.
        generator: Source of randomness, on the device of ``logits``.

    Returns:
        What each path visits, booleans, ``[count, ..., I, J]``. Their mean is phi, but for
        chance.

    Raises:
        TypeError: A tensor has the wrong kind of numbers.
        ValueError: A shape, a length, a number or a name is out of place.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> paths = sample_paths(torch.zeros(3, 3), 10_000, generator=generator)
        >>> paths.float().mean(0)  # phi_11 = 0.5
        tensor([[1.0000, 0.4970, 0.2476],
                [0.5030, 0.4987, 0.3690],
                [0.2537, 0.3840, 0.3859]])
    """
    check_counts(count=count)
    with torch.no_grad():
        x, _, rows, columns = check_grid(logits, model, row_lens, column_lens, validate)
        batch, height, width = x.shape
        p = x.sigmoid()
        item = torch.arange(batch, device=x.device).expand(count, batch)
        path = torch.arange(count, device=x.device)[:, None].expand(count, batch)
        i, j = torch.zeros_like(item), torch.zeros_like(item)
        visited = torch.zeros(count, *x.shape, dtype=torch.bool, device=x.device)
        longest = height + width - 1 if model == "many_to_many" else height
        by_p, by_q = torch.tensor(STEPS[model], device=x.device)
        for _ in range(longest):
            within = (i < rows) & (j < columns)
            i, j = i.clamp_max(height - 1), j.clamp_max(width - 1)
            visited[path, item, i, j] |= within
            coin = torch.rand(count, batch, generator=generator, device=x.device, dtype=x.dtype)
            step = torch.where((coin < p[item, i, j])[..., None], by_p, by_q)
            # Who has left stays out: one place past the last row.
            i = torch.where(within, i + step[..., 0], height)
            j = torch.where(within, j + step[..., 1], width)
    return visited.reshape(count, *logits.shape)


def _ending(
    log_p: Tensor, log_q: Tensor, rows: Tensor, columns: Tensor, model: str, end: str
) -> Tensor:
    """Log probability of ending at each node, ``[batch, I, J]``: -inf where none does."""
    height, width = log_p.shape[-2:]
    i = torch.arange(height, device=log_p.device)[:, None]
    j = torch.arange(width, device=log_p.device)
    last_row, last_column = rows[:, None, None] - 1, columns[:, None, None] - 1
    inside = (i <= last_row) & (j <= last_column)
    if end == "corner":
        at = inside & (i == last_row) & (j == last_column)
        return torch.zeros_like(log_p).where(at, -math.inf)
    leaves = []
    for log_step, (down, right) in zip((log_p, log_q), STEPS[model], strict=True):
        out = inside & ((i + down > last_row) | (j + right > last_column))
        leaves.append(log_step.where(out, -math.inf))
    return torch.logaddexp(*leaves)


def _turned(grid: Tensor, lens: Tensor, dim: int) -> Tensor:
    """Reverse the leading ``lens`` rows or columns of each item; the rest wraps around."""
    size = grid.shape[dim]
    order = (lens[:, None] - 1 - torch.arange(size, device=grid.device)) % size  # [batch, size]
    order = order[:, :, None] if dim == -2 else order[:, None, :]
    return grid.gather(dim, order.expand_as(grid))
