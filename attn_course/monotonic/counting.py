"""Paths counted, listed and weighed one by one, on grids that are small enough."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course._validation import check_choice, check_counts
from attn_course.monotonic.ops import MODELS, check_grid
from attn_course.monotonic.reference import STEPS, Node

#: As many paths as ``enumerate_paths`` is ready to list.
MOST_PATHS = 100_000


def count_paths(rows: int, columns: int, *, model: str = "many_to_many") -> int:
    """How many paths lead from (0, 0) to the far corner.

    Many-to-many, I + J - 2 steps of which I - 1 go down; one-to-many, I - 1 steps of which
    J - 1 go on to the next column:

        C(I + J - 2, I - 1)    and    C(I - 1, J - 1).

    Args:
        rows: I.
        columns: J.
        model: ``"many_to_many"`` or ``"one_to_many"``.

    Returns:
        The number, 0 for one-to-many with more columns than rows.

    Raises:
        ValueError: A size is below 1, or there is no such model.

    Example:
        >>> count_paths(3, 3), count_paths(3, 3, model="one_to_many")
        (6, 1)
    """
    check_counts(rows=rows, columns=columns)
    check_choice("model", model, MODELS)
    if model == "many_to_many":
        return math.comb(rows + columns - 2, rows - 1)
    return math.comb(rows - 1, columns - 1)


def enumerate_paths(
    rows: int, columns: int, *, model: str = "many_to_many", end: str = "corner"
) -> list[list[Node]]:
    """All paths, for tiny grids.

    Args:
        rows: I.
        columns: J.
        model: ``"many_to_many"`` or ``"one_to_many"``.
        end: ``"corner"``: those that arrive. ``"edge"``: all, up to the node from which they
            leave the grid; two that leave the same node by different steps count once.

    Returns:
        Paths, each a list of nodes (i, j).

    Raises:
        ValueError: An argument is out of place, or there are over 100,000 paths.

    Example:
        >>> for path in enumerate_paths(2, 2):
        ...     print(path)
        [(0, 0), (0, 1), (1, 1)]
        [(0, 0), (1, 0), (1, 1)]
    """
    check_choice("end", end, ("corner", "edge"))
    if end == "corner":
        most = count_paths(rows, columns, model=model)
    else:  # through the border around the grid, one step past it
        most = math.comb(rows + columns, rows) if model == "many_to_many" else 2 ** (rows - 1)
        count_paths(rows, columns, model=model)
    if most > MOST_PATHS:
        raise ValueError(
            f"rows and columns must leave at most {MOST_PATHS:,} paths to list, got {rows} x "
            f"{columns}: {most:,}."
        )
    found: list[list[Node]] = []

    waiting = [[(0, 0)]]
    while waiting:
        path = waiting.pop()
        i, j = path[-1]
        ahead = [(i + down, j + right) for down, right in STEPS[model]]
        within = [node for node in ahead if node[0] < rows and node[1] < columns]
        arrived = (i, j) == (rows - 1, columns - 1)
        if arrived if end == "corner" else len(within) < len(ahead):
            found.append(path)
        waiting.extend([*path, node] for node in reversed(within))  # the step of p comes first
    return found


def path_log_prob(logits: Tensor, path: list[Node], *, model: str = "many_to_many") -> Tensor:
    """The log probability of the steps of a path; its step out of the grid is not counted.

    Args:
        logits: ``[..., I, J]``.
        path: Nodes (i, j), each one step after the last.
        model: ``"many_to_many"`` or ``"one_to_many"``.

    Returns:
        ``[...]``. PyTorch can differentiate it.

    Raises:
        TypeError: ``logits`` are not floating-point numbers.
        ValueError: The path is none of the model, or leaves the grid.

    Example:
        >>> path_log_prob(torch.zeros(2, 2), [(0, 0), (0, 1), (1, 1)]).exp()
        tensor(0.2500)
    """
    check_grid(logits, model, None, None, validate=False)
    total = torch.zeros_like(logits[..., 0, 0])
    for (i, j), (row, column) in itertools.pairwise(path):
        step = (row - i, column - j)
        if step not in STEPS[model]:
            raise ValueError(
                f"path must be one of {model}, got a step {(i, j)} to {(row, column)}."
            )
        if not (0 <= i < row + 1 <= logits.shape[-2] and 0 <= j < column + 1 <= logits.shape[-1]):
            raise ValueError(
                f"path must stay in the grid {list(logits.shape[-2:])}, got {(row, column)}."
            )
        sign = 1 if step == STEPS[model][0] else -1
        total = total + F.logsigmoid(sign * logits[..., i, j])
    return total
