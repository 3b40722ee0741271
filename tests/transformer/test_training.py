"""Smoothed labels against brute force; the warm-up against the paper; and learning itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.testing import assert_unchanged
from attn_course.transformer import label_smoothing_loss, warmup_factor
from tests.transformer.models import make_batch, make_model

VOCAB = 6


def brute_force(logits: Tensor, target: Tensor, smoothing: float, pad: int | None) -> Tensor:
    """One target at a time, one class at a time."""
    losses = []
    for row, right in zip(logits.flatten(0, -2), target.flatten().tolist(), strict=True):
        if right == pad:
            continue
        others = [k for k in range(len(row)) if k not in (right, pad)]
        wanted = {k: smoothing / len(others) for k in others} | {right: 1 - smoothing}
        assert math.isclose(sum(wanted.values()), 1)
        p = row.exp() / row.exp().sum()
        losses.append(-sum(q * p[k].log() for k, q in wanted.items()))
    return sum(losses) / len(losses)


def make(*shape: int) -> tuple[Tensor, Tensor]:
    logits = torch.randn(*shape, VOCAB, dtype=torch.float64, requires_grad=True)
    return logits, torch.randint(VOCAB, shape)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("pad", [None, 0, 3, 5])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
def test_is_the_sum_over_classes(smoothing: float, pad: int | None, shape: tuple) -> None:
    logits, target = make(*shape)
    loss = label_smoothing_loss(logits, target, smoothing=smoothing, pad=pad)
    expected = brute_force(logits, target, smoothing, pad)
    torch.testing.assert_close(loss, expected)
    found = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, expected)]
    torch.testing.assert_close(*found)


def test_without_smoothing_it_is_cross_entropy() -> None:
    logits, target = make(4, 5)
    flat = logits.flatten(0, 1), target.flatten()
    plain = label_smoothing_loss(logits, target, smoothing=0.0)
    torch.testing.assert_close(plain, F.cross_entropy(*flat))
    padded = label_smoothing_loss(logits, target, smoothing=0.0, pad=2)
    torch.testing.assert_close(padded, F.cross_entropy(*flat, ignore_index=2))


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_pytorchs_gives_every_class_a_share(smoothing: float) -> None:
    logits, target = make(9)
    theirs = F.cross_entropy(logits, target, label_smoothing=smoothing * VOCAB / (VOCAB - 1))
    ours = label_smoothing_loss(logits, target, smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)
    assert not torch.isclose(ours, F.cross_entropy(logits, target, label_smoothing=smoothing))
    # With padding they differ whatever the share: PyTorch's gives padding some.
    ours = label_smoothing_loss(logits, target, smoothing=smoothing, pad=0)
    for share in (VOCAB / (VOCAB - 1), VOCAB / (VOCAB - 2)):
        theirs = F.cross_entropy(logits, target, label_smoothing=smoothing * share, ignore_index=0)
        assert not torch.isclose(ours, theirs)


def test_the_best_answer_is_the_smoothed_one() -> None:
    """Where logits are the logarithm of the targets' distribution, the gradient is zero."""
    wanted = torch.tensor([0.0, 0.8, 0.05, 0.05, 0.05, 0.05]).double()
    logits = wanted.log().requires_grad_()  # -inf for padding
    loss = label_smoothing_loss(logits[None], torch.tensor([1]), smoothing=0.2, pad=0)
    loss.backward()
    torch.testing.assert_close(loss.item(), -(wanted[1:] * wanted[1:].log()).sum().item())
    torch.testing.assert_close(logits.grad, torch.zeros(VOCAB).double(), rtol=0, atol=1e-12)


def test_padding_does_not_matter() -> None:
    logits, target = make(3, 4)
    target = target.clamp(min=1)
    target[0, 2:] = 0
    changed = logits.detach().clone()
    changed[0, 2:] = torch.nan
    changed.requires_grad_()
    losses = [label_smoothing_loss(x, target, pad=0) for x in (logits, changed)]
    torch.testing.assert_close(*losses)
    losses[0].backward()
    assert not logits.grad[0, 2:].any() and logits.grad[0, :2].all()


def test_only_padding_is_no_loss() -> None:
    logits, _ = make(2, 3)
    loss = label_smoothing_loss(logits, torch.zeros(2, 3, dtype=torch.long), pad=0)
    loss.backward()
    assert loss == 0 and not logits.grad.any()


@pytest.mark.parametrize("pad", [None, 0])
def test_no_targets_are_no_loss(pad: int | None) -> None:
    loss = label_smoothing_loss(torch.zeros(0, VOCAB), torch.zeros(0, dtype=torch.long), pad=pad)
    assert loss == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    logits, target = make(50)
    half = logits.detach().to(dtype)
    loss = label_smoothing_loss(half, target, pad=1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, label_smoothing_loss(half.float(), target, pad=1))


def test_gradcheck_and_arguments() -> None:
    logits, target = make(2, 3)
    with assert_unchanged(logits.detach(), target):
        assert torch.autograd.gradcheck(lambda x: label_smoothing_loss(x, target, pad=2), logits)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"smoothing": 1.0}, ValueError, r"smoothing must lie in \[0, 1\), got 1.0"),
        ({"smoothing": -0.1}, ValueError, "smoothing must lie in"),
        ({"pad": 6}, ValueError, r"pad must be None or an id in \[0, 6\), got 6"),
        ({"pad": -100}, ValueError, "pad must be None or an id"),
        ({"pad": True}, ValueError, "pad must be None or an id"),
        ({"target": torch.zeros(3).long()}, ValueError, r"target must have shape \[2, 3\]"),
        ({"target": torch.zeros(2, 3)}, TypeError, "target must hold integers"),
        ({"target": torch.full((2, 3), 6)}, ValueError, r"target must hold integers in \[0, 6\)"),
        ({"logits": torch.zeros(2, 3, 6).long()}, TypeError, "logits must hold floating"),
        ({"logits": torch.zeros(2, 3, 0)}, ValueError, "logits must have shape"),
        ({"logits": torch.zeros(2, 3, 1), "target": torch.zeros(2, 3).long()}, ValueError,
         "smoothing must be 0 where no other token is left"),
        ({"logits": torch.zeros(2, 3, 2), "target": torch.zeros(2, 3).long(), "pad": 1},
         ValueError, "smoothing must be 0 where no other token is left"),
    ],
)  # fmt: skip
def test_bad_input(changes: dict[str, Any], error: Any, message: str) -> None:
    given = {"logits": torch.zeros(2, 3, 6), "target": torch.ones(2, 3).long()}
    with pytest.raises(error, match=message):
        label_smoothing_loss(**(given | changes))


# The warm-up


@pytest.mark.parametrize("warmup", [1, 7, 4000])
def test_is_the_papers_schedule(warmup: int) -> None:
    width = 512
    for step in (0, 1, 5, 6, 7, 8, 100, 3999, 4000, 100_000):
        n = step + 1
        paper = width**-0.5 * min(n**-0.5, n * warmup**-1.5)
        assert math.isclose(warmup_factor(step, warmup) / math.sqrt(width * warmup), paper)
    factors = [warmup_factor(step, warmup) for step in range(3 * warmup)]
    assert max(factors) == 1 == factors[warmup - 1]
    assert factors[0] == 1 / warmup


def test_the_warm_up_rejects() -> None:
    for step, warmup in ((-1, 4), (0.5, 4), (True, 4), (1, 0), (1, 2.0)):
        with pytest.raises(ValueError, match="must be an integer of at least"):
            warmup_factor(step, warmup)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_model_learns(norm: str) -> None:
    model, batch = make_model(norm=norm, tie_weights=True).train(), make_batch()
    wanted = batch["target_input"].roll(-1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: warmup_factor(n, 5))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = label_smoothing_loss(model(**batch), wanted)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
