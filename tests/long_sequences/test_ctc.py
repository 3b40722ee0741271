"""CTC: against every path there is, PyTorch's loss, and texts whose answer is known."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.long_sequences import (
    character_error_rate,
    ctc_beam,
    ctc_best_path,
    ctc_collapse,
    ctc_enumerate,
    ctc_greedy,
    ctc_loss,
    ctc_loss_recursion,
    ctc_segments,
    edit_distance,
    steps_needed,
)


def random_log_probs(*shape: int) -> Tensor:
    return (2 * torch.randn(*shape, dtype=torch.float64)).log_softmax(-1)


def every_label(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    """Label -> its probability: all paths, walked with Python numbers."""
    steps, classes = log_probs.shape
    probs = log_probs.exp().tolist()
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(classes), repeat=steps):
        said = tuple(k for k, _ in itertools.groupby(path) if k)
        found[said] = found.get(said, 0.0) + math.prod(probs[t][k] for t, k in enumerate(path))
    return found


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ([], []),
        ([0, 0], []),
        ([3], [3]),
        ([3, 3, 3], [3]),
        ([3, 0, 3], [3, 3]),
        ([0, 1, 1, 0, 0, 1, 2, 2, 0], [1, 1, 2]),
        ([1, 2, 1], [1, 2, 1]),
    ],
)
def test_paths_are_read(path: list[int], label: list[int]) -> None:
    assert ctc_collapse(path) == label
    segments = ctc_segments(path)
    assert [segment.label for segment in segments] == label
    for segment in segments:
        assert set(path[segment.start : segment.end]) == {segment.label}
    written = {i for segment in segments for i in range(segment.start, segment.end)}
    assert written == {i for i, k in enumerate(path) if k}


@pytest.mark.parametrize("label", [[], [1], [1, 1], [2, 2, 2], [1, 2, 1], [2, 1, 1, 2]])
def test_steps_needed_is_the_shortest_path(label: list[int]) -> None:
    shortest = next(
        steps
        for steps in itertools.count()
        if any(ctc_collapse(p) == label for p in itertools.product(range(3), repeat=steps))
    )
    assert steps_needed(label) == shortest


@pytest.mark.parametrize(("steps", "classes"), [(1, 2), (3, 4), (5, 3), (7, 2)])
def test_enumeration_and_recursion_sum_over_all_paths(steps: int, classes: int) -> None:
    log_probs = random_log_probs(steps, classes)
    everything = every_label(log_probs)
    assert sum(everything.values()) == pytest.approx(1)
    for label, probability in everything.items():
        assert ctc_enumerate(log_probs, label).exp().item() == pytest.approx(probability)
        loss = ctc_loss_recursion(
            log_probs[None],
            torch.tensor([steps]),
            torch.tensor([label], dtype=torch.int64).view(1, -1),
            torch.tensor([len(label)]),
        )
        assert (-loss).exp().item() == pytest.approx(probability)
    assert ctc_enumerate(log_probs, [1] * (steps + 1)) == -math.inf


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lines of different lengths, repetitions, an empty one, one that just fits, padding."""
    labels = torch.tensor([[1, 1, 2, 3], [3, 0, 0, 0], [0, 0, 0, 0], [2, 2, 1, 0]])
    return random_log_probs(4, 7, 4), torch.tensor([7, 3, 5, 4]), labels, torch.tensor([4, 1, 0, 3])


def test_the_recursion_is_pytorchs_loss_with_its_gradient() -> None:
    log_probs, lens, labels, lengths = batch()
    logits = log_probs.clone().requires_grad_()
    ours = ctc_loss_recursion(logits.log_softmax(-1), lens, labels, lengths)
    theirs = F.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), labels, lens, lengths, reduction="none"
    )
    torch.testing.assert_close(ours, theirs)
    out = torch.randn(4, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad(x, logits, out) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)
        assert not b[1, 3:].any()  # steps that do not count


def test_gradients_of_the_definition() -> None:
    log_probs = random_log_probs(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ctc_enumerate(x, [1, 1]), log_probs)
    for label in ([1, 1], [1, 2], [2]):
        args = (torch.tensor([4]), torch.tensor([label]), torch.tensor([len(label)]))
        ours = ctc_loss_recursion(log_probs[None], *args).sum()
        (a,) = torch.autograd.grad(-ours, log_probs)
        (b,) = torch.autograd.grad(ctc_enumerate(log_probs, label), log_probs)
        torch.testing.assert_close(a, b)


def test_impossible_classes_give_no_nan() -> None:
    log_probs = torch.tensor([[[0.5, 0.5, 0.0], [0.2, 0.8, 0.0]]]).log().requires_grad_()
    two = torch.tensor([2])
    loss = ctc_loss_recursion(log_probs, two, torch.tensor([[2]]), torch.tensor([1]))
    assert loss.item() == math.inf
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    assert not gradient.isnan().any()
    loss = ctc_loss_recursion(log_probs, two, torch.tensor([[1]]), torch.tensor([1]))
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    assert (-loss).exp().item() == pytest.approx(0.9) and gradient.isfinite().all()


def test_padding_of_labels_and_steps_does_not_matter() -> None:
    log_probs, lens, labels, lengths = batch()
    before = ctc_loss_recursion(log_probs, lens, labels, lengths)
    for i in range(4):
        alone = ctc_loss_recursion(
            log_probs[i : i + 1, : lens[i]],
            lens[i : i + 1],
            labels[i : i + 1, : lengths[i]],
            lengths[i : i + 1],
        )
        torch.testing.assert_close(alone[0], before[i])
    labels[1, 1:], log_probs[1, 3:] = 99, torch.nan
    after = ctc_loss_recursion(log_probs, lens, labels, lengths)
    torch.testing.assert_close(after, before)


def test_the_loss_that_trains() -> None:
    log_probs, lens, labels, lengths = batch()
    each = ctc_loss_recursion(log_probs, lens, labels, lengths)
    expected = (each / lengths.clamp_min(1)).mean()
    torch.testing.assert_close(ctc_loss((log_probs, lens), (labels, lengths)), expected)
    half = ctc_loss((log_probs.bfloat16(), lens), (labels, lengths))
    assert half.dtype == torch.float32 and half.item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_a_wide_beam_finds_what_enumeration_finds(steps: int) -> None:
    log_probs = random_log_probs(5, steps, 3)
    lens = torch.tensor([steps, steps, 1, max(1, steps - 1), steps])
    for i, found in enumerate(ctc_beam(log_probs, lens, width=3**steps)):
        everything = every_label(log_probs[i, : lens[i]])
        assert len(found) == len(everything)
        for labels, score in found:
            assert math.exp(score) == pytest.approx(everything[tuple(labels)])
        scores = [score for _, score in found]
        assert scores == sorted(scores, reverse=True)


def test_a_narrow_beam_never_sums_too_much() -> None:
    log_probs = random_log_probs(8, 6, 3)
    hits = 0
    for i, found in enumerate(ctc_beam(log_probs, width=3)):
        everything = every_label(log_probs[i])
        assert len(found) == 3
        for labels, score in found:
            assert math.exp(score) <= everything[tuple(labels)] + 1e-12
        hits += everything[tuple(found[0][0])] == max(everything.values())
    assert hits >= 7


def test_the_best_path_and_the_best_label_differ() -> None:
    log_probs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    assert ctc_greedy(log_probs) == [[]]
    [[best, second]] = ctc_beam(log_probs, width=2)
    assert best[0] == [1] and math.exp(best[1]) == pytest.approx(0.64)
    assert second[0] == [] and math.exp(second[1]) == pytest.approx(0.36)


def test_greedy_reads_the_steps_that_count() -> None:
    path = torch.tensor([[1, 1, 0, 1, 2], [2, 0, 2, 2, 2]])
    log_probs = F.one_hot(path, 3).double().mul(5).log_softmax(-1)
    assert ctc_greedy(log_probs) == [[1, 1, 2], [2, 2]]
    assert ctc_greedy(log_probs, torch.tensor([3, 2])) == [[1], [2]]
    assert ctc_best_path(log_probs, torch.tensor([3, 2])) == [[1, 1, 0], [2, 0]]
    assert [found[0][0] for found in ctc_beam(log_probs, torch.tensor([3, 2]))] == [[1], [2]]


@pytest.mark.parametrize(
    ("found", "wanted", "edits"),
    [("", "", 0), ("", "ab", 2), ("ab", "", 2), ("kitten", "sitting", 3), ("ab", "ba", 2)],
)
def test_edit_distance(found: str, wanted: str, edits: int) -> None:
    assert edit_distance(found, wanted) == edit_distance(wanted, found) == edits
    assert edit_distance(list(map(ord, found)), list(map(ord, wanted))) == edits


def test_character_error_rate() -> None:
    assert character_error_rate([[1, 2], []], [[1, 2], [3, 3]]) == 0.5
    assert character_error_rate(["abc"], ["d"]) == 3
    with pytest.raises(ValueError, match="as many lines as wanted, 2, got 1"):
        character_error_rate(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="at least one character"):
        character_error_rate([""], [""])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.tensor([[1, 1, 1]])}, ValueError, r"4 steps, and needs 5: 3 labels"),
        ({"lens": torch.tensor([2])}, ValueError, r"labels\[0\] must fit into its 2 steps"),
        ({"lens": torch.tensor([5])}, ValueError, r"lens must hold integers in \[0, 5\)"),
        ({"lens": torch.tensor([0])}, ValueError, "lens must be at least 1"),
        ({"lens": torch.tensor([4.0])}, TypeError, "lens must hold integers"),
        ({"labels": torch.tensor([[1, 0, 2]])}, ValueError, "from 1 to 2, got 0"),
        ({"labels": torch.tensor([[1, 3, 2]])}, ValueError, r"labels must hold integers in"),
        ({"labels": torch.tensor([1, 2, 2])}, ValueError, "labels must have shape"),
        ({"lengths": torch.tensor([4])}, ValueError, "lengths must hold integers"),
        ({"lengths": torch.tensor([[3]])}, ValueError, "lengths must have shape"),
        ({"log_probs": torch.zeros(4, 3)}, ValueError, "log_probs must have shape"),
        ({"log_probs": torch.zeros(1, 4, 3).long()}, TypeError, "log_probs must hold floating"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {
        "log_probs": random_log_probs(1, 4, 3),
        "lens": torch.tensor([4]),
        "labels": torch.tensor([[1, 2, 2]]),
        "lengths": torch.tensor([3]),
    }
    ctc_loss_recursion(**good)
    bad = good | change
    with pytest.raises(error, match=message):
        ctc_loss_recursion(**bad)
    with pytest.raises(error, match=message):
        ctc_loss((bad["log_probs"], bad["lens"]), (bad["labels"], bad["lengths"]))


def test_bad_requests() -> None:
    log_probs = random_log_probs(9, 5)
    with pytest.raises(ValueError, match=r"at most 1,000,000 paths to walk, got 5\^9"):
        ctc_enumerate(log_probs, [1])
    with pytest.raises(ValueError, match="log_probs must have shape"):
        ctc_enumerate(log_probs[None], [1])
    with pytest.raises(ValueError, match="from 1 to 4, got 5"):
        ctc_enumerate(log_probs[:2], [5])
    with pytest.raises(ValueError, match="width must be an integer of at least 1"):
        ctc_beam(log_probs[None], width=0)
    with pytest.raises(ValueError, match="lens must have shape"):
        ctc_greedy(log_probs[None], torch.tensor([1, 2]))
