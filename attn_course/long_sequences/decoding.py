"""From CTC's probabilities to text, and how far that is from the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from attn_course._validation import check_counts
from attn_course.long_sequences.ctc import BLANK, check_steps, ctc_collapse


def ctc_greedy(log_probs: Tensor, lens: Tensor | None = None) -> list[list[int]]:
    """Read the most probable path: the best class at each step.

    Args:
        log_probs: ``log p_t(k)``, ``[batch, steps, classes]``.
        lens: How many steps count, ``[batch]``; ``None``: all.

    Returns:
        The labels of each item. They need not be the most probable ones: those can be spread
        over many paths, of which ``ctc_beam`` keeps the sum.

    Raises:
        TypeError: An argument has the wrong kind of numbers.
        ValueError: A shape or a length is out of place.

    Example:
        >>> import torch
        >>> ctc_greedy(torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log())
        [[]]
    """
    return [ctc_collapse(path) for path in ctc_best_path(log_probs, lens)]


def ctc_best_path(log_probs: Tensor, lens: Tensor | None = None) -> list[list[int]]:
    """The path that ``ctc_greedy`` reads: a class for each step that counts.

    Example:
        >>> import torch
        >>> ctc_best_path(torch.tensor([[[0.6, 0.4], [0.1, 0.9]]]).log())
        [[0, 1]]
    """
    lens = check_steps(log_probs, lens)
    paths = log_probs.argmax(-1).tolist()
    return [path[:steps] for path, steps in zip(paths, lens.tolist(), strict=True)]


def ctc_beam(
    log_probs: Tensor, lens: Tensor | None = None, *, width: int = 8
) -> list[list[tuple[list[int], float]]]:
    """Search for the most probable labels: step by step, keep the best prefixes.

    A prefix stands for all paths that say it. It carries two sums: over those that end in a
    blank and over those that end in its last label. The same label again lengthens a prefix
    from the first and leaves it as it is from the second.

    Args:
        log_probs: ``log p_t(k)``, ``[batch, steps, classes]``.
        lens: How many steps count, ``[batch]``; ``None``: all.
        width: How many prefixes stay after each step.

    Returns:
        For each item up to ``width`` pairs, best first: labels, and the logarithm of the sum
        over their paths, those left out that led through a prefix that was dropped.

    Raises:
        TypeError: An argument has the wrong kind of numbers.
        ValueError: A shape, a length or the width is out of place.

    Reference:
        Graves (2008), section 7.5.3; Hannun et al. (2014), First-pass large vocabulary
        continuous speech recognition using bi-directional recurrent DNNs, algorithm 1.

    Example:
        >>> import math
        >>> import torch
        >>> probs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]])
        >>> for labels, score in ctc_beam(probs.log())[0]:
        ...     print(labels, round(math.exp(score), 2))
        [1] 0.64
        [] 0.36
    """
    check_counts(width=width)
    lens = check_steps(log_probs, lens)
    rows = log_probs.detach().double().cpu().tolist()
    return [_search(row[:n], width) for row, n in zip(rows, lens.tolist(), strict=True)]


def _search(steps: list[list[float]], width: int) -> list[tuple[list[int], float]]:
    """``ctc_beam`` for one item."""
    # prefix -> log of the sum over its paths that end in a blank, and in its last label
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    for scores in steps:
        found: dict[tuple[int, ...], list[float]] = {}
        for prefix, (blank, last) in beam.items():
            both = _add(blank, last)
            stay = found.setdefault(prefix, [-math.inf, -math.inf])
            stay[0] = _add(stay[0], both + scores[BLANK])
            for label in range(1, len(scores)):
                came = both
                if prefix and label == prefix[-1]:
                    stay[1] = _add(stay[1], last + scores[label])
                    came = blank
                if came + scores[label] > -math.inf:
                    longer = found.setdefault((*prefix, label), [-math.inf, -math.inf])
                    longer[1] = _add(longer[1], came + scores[label])
        best = sorted(found.items(), key=lambda item: -_add(*item[1]))[:width]
        beam = {prefix: (sums[0], sums[1]) for prefix, sums in best}
    return [(list(prefix), _add(*sums)) for prefix, sums in beam.items()]


def edit_distance(found: Sequence[int] | str, wanted: Sequence[int] | str) -> int:
    """How many characters have to be put in, taken out or replaced to get from one to the other.

    Reference:
        Levenshtein (1966), Binary codes capable of correcting deletions, insertions, and
        reversals.

    Example:
        >>> edit_distance("1123", "124")
        2
    """
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(found, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(wanted, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def character_error_rate(
    found: Sequence[Sequence[int] | str], wanted: Sequence[Sequence[int] | str]
) -> float:
    """Edits of all lines, for each character that was wanted; it can exceed 1.

    Raises:
        ValueError: The numbers of lines differ, or nothing is wanted.

    Example:
        >>> character_error_rate(["12", "345"], ["12", "35"])
        0.25
    """
    if len(found) != len(wanted):
        raise ValueError(
            f"found must hold as many lines as wanted, {len(wanted)}, got {len(found)}."
        )
    if not (characters := sum(map(len, wanted))):
        raise ValueError("wanted must hold at least one character, got none.")
    return sum(map(edit_distance, found, wanted)) / characters


def _add(a: float, b: float) -> float:
    """log(exp a + exp b)."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))
