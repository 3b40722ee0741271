"""Stored trainings as the chapters print them: means over the seeds, tables, sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_course.benchmarks.trainings.stored import STORED, find_training
from attn_course.data import SLICES


class OverSeeds(NamedTuple):
    """What the runs of a training make of a number, or of each number in a list.

    Attributes:
        mean: Over the seeds; a float32 tensor of the shape of what is stored.
        least: Of the seeds.
        most: Of the seeds.
    """

    mean: Tensor
    least: Tensor
    most: Tensor


def over_seeds(name: str, *keys: str | int, directory: Path = STORED) -> OverSeeds:
    """Mean, least and most of what the runs of a stored training say.

    Args:
        name: Which training, as in ``find_training``.
        keys: Where it stands in a run: ``run[keys[0]][keys[1]]`` and so on, a number or a
            list of numbers.
        directory: Where the trainings lie.

    Raises:
        ValueError: No such training is stored, or there are no such numbers in its runs.

    Example:
        >>> mean, least, most = over_seeds("attention", "by_slice", "negation")
        >>> bool(least <= mean <= most)
        True
    """
    rows = _rows(name, keys, directory)
    try:
        seeds = torch.tensor(rows, dtype=torch.float32)
    except (TypeError, ValueError):
        raise ValueError(f"keys must lead to numbers, got {rows[0]!r} of {name}.") from None
    return OverSeeds(seeds.mean(0), seeds.amin(0), seeds.amax(0))


def _rows(name: str, keys: Sequence[str | int], directory: Path) -> list[Any]:
    """What stands at ``keys`` in each run."""
    rows = []
    for run in find_training(name, directory)["runs"]:
        found: Any = run
        for key in keys:
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError):
                there = list(found) if isinstance(found, dict) else found
                raise ValueError(f"keys: {name} has no {key!r} in {there}.") from None
        rows.append(found)
    return rows


def exact_match_table(
    labels: Mapping[str, str],
    *,
    digits: int = 2,
    parameters: bool = False,
    directory: Path = STORED,
) -> str:
    """Exact match of stored trainings on the grammar: of all sentences, and of each slice.

    Args:
        labels: Name of a training -> what the table calls it.
        digits: Of the share of all sentences.
        parameters: Say how many parameters each model has.
        directory: Where the trainings lie.

    Returns:
        Text to print: what is counted, the heads of the columns, a line for each training.

    Raises:
        ValueError: There are no names, no such training is stored, or it has no exact match.

    Example:
        >>> print(exact_match_table({"attention": "chapter 3", "heads_4": "chapter 4"}))
        exact match on unseen sentences, and on five slices of them
                    all  long crossing agreement reversible negation seeds
        chapter 3  0.99  0.99     0.99      0.99       1.00     1.00     3
        chapter 4  0.98  0.93     0.97      0.96       1.00     0.97     3
    """
    if not labels:
        raise ValueError("labels must name at least one training, got none.")
    width = 1 + max(map(len, labels.values()))
    heading = f"{'':{width}s}{'all':>{digits + 3}s} "
    heading += " ".join(f"{s:>5s}" for s in SLICES) + " seeds"
    lines = [
        "exact match on unseen sentences, and on five slices of them",
        heading + (" parameters" if parameters else ""),
    ]
    for name, label in labels.items():
        whole = fmean(_rows(name, ["all"], directory))
        parts = [fmean(_rows(name, ["by_slice", s], directory)) for s in SLICES]
        runs = find_training(name, directory)["runs"]
        line = f"{label:{width}s}{whole:{digits + 3}.{digits}f} "
        line += " ".join(
            f"{part:{max(5, len(s))}.2f}" for part, s in zip(parts, SLICES, strict=True)
        )
        line += f"{len(runs):6d}" + (f"{runs[0]['parameters']:11,d}" if parameters else "")
        lines.append(line)
    return "\n".join(lines)


def lecture_sentences(name: str, *, directory: Path = STORED) -> str:
    """What a stored training wrote for the four sentences of the lecture, and their BLEU.

    Args:
        name: ``"lecture"`` or ``"transformer_lecture"``.
        directory: Where the trainings lie.

    Returns:
        The note of the run, and a line for each sentence: text to print.

    Raises:
        ValueError: No such training is stored, or it wrote no sentences.

    Example:
        >>> print(lecture_sentences("lecture").splitlines()[1])
          go .         -> va !                     BLEU (k=2) 1.000
    """
    record = find_training(name, directory)
    run = record["runs"][0]
    if "sentences" not in run:
        raise ValueError(f"name must be a training on the lecture's sentences, got {name!r}.")
    return "\n".join(
        [record["note"]]
        + [
            f"  {row['source']:12s} -> {row['found']:24s} BLEU (k=2) {row['bleu']:.3f}"
            for row in run["sentences"]
        ]
    )
