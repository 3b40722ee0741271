"""The oracle: every sequence of decisions there is, walked on the grid."""

import functools
import itertools

import torch
from torch import Tensor

MODELS = ("many_to_many", "one_to_many")


@functools.cache
def decisions(rows: int, columns: int, model: str) -> tuple[Tensor, Tensor]:
    """Steps taken by each walk, as indices into [all p, all q, 0]; and the nodes it visits."""
    cells = rows * columns
    index, visits, seen = [], [], set()
    for coins in itertools.product((True, False), repeat=rows + columns):
        i = j = 0
        taken, visited = [], torch.zeros(rows, columns, dtype=torch.bool)
        for takes_p in coins:
            if i >= rows or j >= columns:
                break
            visited[i, j] = True
            taken.append(i * columns + j + (0 if takes_p else cells))
            if model == "many_to_many":
                i, j = (i, j + 1) if takes_p else (i + 1, j)
            else:
                i, j = (i + 1, j) if takes_p else (i + 1, j + 1)
        if tuple(taken) not in seen:  # coins thrown after the end decide nothing
            seen.add(tuple(taken))
            index.append(taken + [2 * cells] * (rows + columns - len(taken)))
            visits.append(visited)
    return torch.tensor(index), torch.stack(visits)


def every_walk(logits: Tensor, model: str) -> tuple[Tensor, Tensor]:
    """Log probability of every walk, its last step included, and what it visits."""
    rows, columns = logits.shape
    index, visits = decisions(rows, columns, model)
    steps = [-torch.log1p(torch.exp(-x)).flatten() for x in (logits, -logits)]
    log_prob = torch.cat([*steps, logits.new_zeros(1)])[index].sum(1)
    assert torch.isclose(log_prob.exp().sum(), logits.new_ones(()))
    return log_prob, visits


def brute_force(logits: Tensor, model: str) -> Tensor:
    """phi by adding up all walks, ``[I, J]``; PyTorch differentiates it."""
    log_prob, visits = every_walk(logits, model)
    return (log_prob.exp()[:, None, None] * visits).sum(0)
