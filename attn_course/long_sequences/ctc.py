"""Connectionist temporal classification: the probability of a text is a sum over paths.

A recogniser gives, at each of T steps, probabilities of the classes: 0 is the *blank*, "nothing
new here", and the labels count from 1. A *path* pi takes one class a step. It is read by
``ctc_collapse``: repetitions first, then blanks are struck out,

    B(1 1 0 1 2 2) = 1 1 2.

Many paths say the same text l, and the recogniser need not know which of them is right:

    p(l) = sum over pi with B(pi) = l of  prod_t p_t(pi_t).

``ctc_enumerate`` takes the sum as it stands, over K^T paths. The forward recursion gets it in
T steps over a row of 2 |l| + 1 places, the labels with blanks around them, l' = 0 l_1 0 l_2 ... 0:

    alpha_t(s) = p_t(l'_s) [alpha_{t-1}(s) + alpha_{t-1}(s - 1) + alpha_{t-1}(s - 2)],

where the last term, which skips a blank, is allowed only between two labels that differ: without
the blank, equal ones would be read as one. p(l) = alpha_T(last) + alpha_T(last but one).

Reference:
    Graves, Fernández, Gomez and Schmidhuber (2006), Connectionist temporal classification;
    Graves (2008), Supervised sequence labelling with recurrent neural networks, for prefixes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course._validation import check_floating, check_ids, check_tensor

#: The class that says "nothing new here".
BLANK = 0

#: As many paths as ``ctc_enumerate`` is ready to walk.
MOST_PATHS = 1_000_000


class Segment(NamedTuple):
    """A character in a path: its label, its first step, and the one after its last."""

    label: int
    start: int
    end: int


def ctc_segments(path: Sequence[int]) -> list[Segment]:
    """Read a path, and say at which steps it writes each character.

    Args:
        path: A class for each step.

    Returns:
        The characters, in order.

    Example:
        >>> for segment in ctc_segments([1, 1, 0, 1, 2, 2]):
        ...     print(*segment)
        1 0 2
        1 3 4
        2 4 6
    """
    segments, step = [], 0
    for label, run in itertools.groupby(path):
        end = step + len(list(run))
        if label != BLANK:
            segments.append(Segment(label, step, end))
        step = end
    return segments


def ctc_collapse(path: Sequence[int]) -> list[int]:
    """Read a path: strike out repetitions first, then blanks.

    Args:
        path: A class for each step.

    Returns:
        The labels that it says.

    Reference:
        Graves et al. (2006), section 3.1, the map B.

    Example:
        >>> ctc_collapse([1, 1, 0, 1, 2, 2])
        [1, 1, 2]
    """
    return [segment.label for segment in ctc_segments(path)]


def steps_needed(label: Sequence[int]) -> int:
    """The shortest path that says a label: one step each, and a blank between equal neighbours.

    Example:
        >>> steps_needed([7, 7, 3])
        4
    """
    return len(label) + sum(a == b for a, b in itertools.pairwise(label))


def ctc_enumerate(log_probs: Tensor, label: Sequence[int]) -> Tensor:
    """Log p(label) by walking every path there is: the definition, for tiny cases.

    Args:
        log_probs: ``log p_t(k)``, ``[steps, classes]``.
        label: Labels from 1 to classes - 1; it may be empty.

    Returns:
        A number; -inf if no path says the label. Differentiable.

    Raises:
        TypeError: ``log_probs`` does not hold floating-point numbers.
        ValueError: A shape or a label is out of place, or there are over a million paths.

    Example:
        >>> log_probs = torch.tensor([[0.4, 0.6], [0.4, 0.6]]).log()
        >>> ctc_enumerate(log_probs, [1]).exp()  # 1 1, 1 0 and 0 1
        tensor(0.8400)
    """
    check_floating("log_probs", log_probs)
    if log_probs.ndim != 2 or 0 in log_probs.shape:
        raise ValueError(
            f"log_probs must have shape [steps, classes], got {list(log_probs.shape)}."
        )
    steps, classes = log_probs.shape
    _check_labels(label, classes)
    if classes**steps > MOST_PATHS:
        raise ValueError(
            f"log_probs must leave at most {MOST_PATHS:,} paths to walk, got {classes}^{steps}."
        )
    wanted = list(label)
    saying = [
        path
        for path in itertools.product(range(classes), repeat=steps)
        if ctc_collapse(path) == wanted
    ]
    if not saying:
        return log_probs.new_full((), -math.inf)
    paths = torch.tensor(saying, device=log_probs.device)  # [paths, steps]
    each = log_probs[torch.arange(steps, device=log_probs.device), paths].sum(1)
    return _log_sum(each)


def ctc_loss_recursion(log_probs: Tensor, lens: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
    """``-log p(label)`` by the forward recursion, for the reader; ``ctc_loss`` trains faster.

    Args:
        log_probs: ``log p_t(k)``, ``[batch, steps, classes]``.
        lens: How many steps count, ``[batch]``.
        labels: From 1 to classes - 1, ``[batch, longest]``; padding is not looked at.
        lengths: How many labels count, ``[batch]``.

    Returns:
        ``[batch]``. Differentiable; where the probability is 0 the gradient is 0.

    Raises:
        TypeError: An argument has the wrong kind of numbers.
        ValueError: A shape, a label or a length is out of place, or a label is longer than
            its steps can hold.

    Reference:
        Graves et al. (2006), equations 5 to 8.

    Example:
        >>> log_probs = torch.tensor([[[0.4, 0.6], [0.4, 0.6]]]).log()
        >>> one = torch.tensor([1])
        >>> loss = ctc_loss_recursion(log_probs, 2 * one, one[None], one)
        >>> (-loss).exp()
        tensor([0.8400])
    """
    lens, labels, lengths = _check_batch(log_probs, lens, labels, lengths)
    batch, steps, _ = log_probs.shape
    lens, labels, lengths = (x.to(log_probs.device) for x in (lens, labels, lengths))
    # l': blanks around the labels, [batch, 2 * longest + 1]
    places = labels.new_full((batch, 2 * labels.shape[1] + 1), BLANK)
    places[:, 1::2] = labels
    skips = torch.zeros_like(places, dtype=torch.bool)  # from place s - 2 to place s
    skips[:, 3::2] = labels[:, 1:] != labels[:, :-1]
    emitted = log_probs.gather(2, places[:, None].expand(-1, steps, -1))  # log p_t(l'_s)

    never = log_probs.new_full((batch, 2), -math.inf)
    alpha = emitted[:, 0].where(torch.arange(places.shape[1], device=places.device) < 2, -math.inf)
    for t in range(1, steps):
        before = torch.cat((never, alpha), 1)  # alpha of s - 2 stands at s
        skipped = before[:, :-2].where(skips, -math.inf)
        reached = _log_sum(torch.stack((alpha, before[:, 1:-1], skipped))) + emitted[:, t]
        alpha = reached.where((t < lens)[:, None], alpha)
    ends = torch.cat((never, alpha), 1).gather(
        1, 2 * lengths[:, None] + torch.tensor([[1, 2]]).to(lengths)
    )
    return -_log_sum(ends.T)


def ctc_loss(output: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
    """The loss that trains: ``-log p(label)`` a character, the mean over the batch.

    Args:
        output: What a recogniser gives: ``log p_t(k)``, ``[batch, steps, classes]``, and how many
            steps count, ``[batch]``.
        target: Labels from 1, ``[batch, longest]``, and how many count, ``[batch]``.

    Returns:
        A number.

    Raises:
        TypeError: An argument has the wrong kind of numbers.
        ValueError: A shape, a label or a length is out of place, or a label is longer than
            its steps can hold: its probability would be 0, and the loss infinite.

    Example:
        >>> log_probs = torch.tensor([[[0.4, 0.6], [0.4, 0.6]]]).log()
        >>> one = torch.tensor([1])
        >>> ctc_loss((log_probs, 2 * one), (one[None], one))  # -log 0.84
        tensor(0.1744)
    """
    log_probs, lens = output
    lens, labels, lengths = _check_batch(log_probs, lens, *target)
    wide = log_probs if log_probs.dtype == torch.float64 else log_probs.float()
    return F.ctc_loss(wide.transpose(0, 1), labels.to(log_probs.device), lens, lengths, blank=BLANK)


def _log_sum(terms: Tensor) -> Tensor:
    """Log of the sum of exponentials over the first dimension, without NaN for sums of nothing."""
    possible = terms.amax(0) > -math.inf
    return terms.where(possible, 0.0).logsumexp(0).where(possible, -math.inf)


def _check_labels(label: Sequence[int], classes: int) -> None:
    for number in label:
        if not 1 <= number < classes:
            raise ValueError(
                f"labels must hold numbers from 1 to {classes - 1}, got {number}: "
                f"{BLANK} is the blank."
            )


def check_steps(log_probs: Tensor, lens: Tensor | None) -> Tensor:
    """The numbers of steps, checked, on the CPU."""
    check_floating("log_probs", log_probs)
    if log_probs.ndim != 3 or 0 in log_probs.shape:
        raise ValueError(
            f"log_probs must have shape [batch, steps, classes], got {list(log_probs.shape)}."
        )
    batch, steps, _ = log_probs.shape
    if lens is None:
        return torch.full((batch,), steps)
    check_tensor("lens", lens)
    lens = check_ids("lens", lens.cpu(), (batch,), steps + 1)
    if not bool(lens.all()):
        raise ValueError("lens must be at least 1, got 0.")
    return lens


def _check_batch(
    log_probs: Tensor, lens: Tensor, labels: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of steps, labels with padding of blanks and their numbers, all on the CPU."""
    lens = check_steps(log_probs, lens)
    batch, _, classes = log_probs.shape
    check_tensor("labels", labels)
    check_tensor("lengths", lengths)
    labels, lengths = labels.cpu(), lengths.cpu()
    if labels.ndim != 2 or len(labels) != batch:
        raise ValueError(f"labels must have shape [{batch}, longest], got {list(labels.shape)}.")
    check_ids("lengths", lengths, (batch,), labels.shape[1] + 1)
    real = torch.arange(labels.shape[1]) < lengths[:, None]
    labels = labels.where(real, BLANK)
    check_ids("labels", labels, (batch, labels.shape[1]), classes)
    rows = zip(labels.tolist(), lengths.tolist(), lens.tolist(), strict=True)
    for item, (row, length, steps) in enumerate(rows):
        _check_labels(row[:length], classes)
        if (needed := steps_needed(row[:length])) > steps:
            raise ValueError(
                f"labels[{item}] must fit into its {steps} steps, and needs {needed}: "
                f"{length} labels and a blank between each pair of equal neighbours."
            )
    return lens, labels, lengths
