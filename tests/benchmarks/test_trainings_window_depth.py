"""Chapter 8's test of windows and depth: what a model can and cannot have heard of."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from attn_course.benchmarks.trainings import RUNS, window_depth
from attn_course.benchmarks.trainings.window_depth import (
    DEPTHS,
    DISTANCE,
    SYMBOLS,
    WINDOWS,
    FirstFromLast,
    accuracy,
    run,
)


@pytest.mark.parametrize(("window", "depth"), [(3, 2), (2, 3), (6, 1), (2, 2), (5, 1)])
def test_the_last_step_hears_of_what_is_within_window_times_depth(window: int, depth: int) -> None:
    torch.manual_seed(0)
    model = FirstFromLast(window, depth, length=10, width=8, num_heads=2)
    symbols = torch.randint(SYMBOLS, (1, 10))
    moves = []
    for place in range(10):
        other = symbols.clone()
        other[0, place] = (other[0, place] + 1) % SYMBOLS
        moves.append(not torch.equal(model(other), model(symbols)))
    assert moves == [place >= 9 - window * depth for place in range(10)]


def test_the_model_adds_up_normalised_layers() -> None:
    """Tokens and places; attention, then a network, each of what is normalised, each added."""
    model = FirstFromLast(2, 2, length=5, width=8, num_heads=2)
    for norm in model.norms:
        torch.nn.init.normal_(norm.weight)  # no two are alike
    symbols = torch.randint(SYMBOLS, (3, 5))
    x = model.token.weight[symbols] + model.place
    for attention, feed_forward in zip(model.attention, model.feed_forward, strict=True):
        first, second = model.norms[:2] if attention is model.attention[0] else model.norms[2:]
        x = x + attention(first(x))
        x = x + feed_forward(second(x))
    torch.testing.assert_close(model(symbols), model.output(x[:, -1]))


class Watched(FirstFromLast):
    """Also tells what it was shown."""

    shown: ClassVar[list[Tensor]] = []

    def forward(self, symbols: Tensor) -> Tensor:
        self.shown.append(symbols)
        return super().forward(symbols)


def test_sequences_are_new_each_time_and_the_same_for_a_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window_depth, "FirstFromLast", Watched)
    monkeypatch.setattr(window_depth, "JUDGED", 100)
    seen = []
    for seed in (0, 0, 1):
        Watched.shown.clear()
        accuracy(1, 1, seed, steps=3, batch=10)
        assert [len(symbols) for symbols in Watched.shown] == [10, 10, 10, 100]
        seen.append(torch.cat(Watched.shown))
        assert seen[-1].shape[1] == window_depth.DISTANCE + 1
        assert len(seen[-1].unique(dim=0)) == 130  # what it is judged by it never saw
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_a_step_is_of_its_own_batch_clipped_and_at_its_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rate rises and falls; gradients are those of one batch and no longer than 1."""
    rates, lengths, starts = [], [], []
    step, cleared = torch.optim.AdamW.step, torch.optim.AdamW.zero_grad

    def watched(self: Any, *arguments: Any) -> Any:
        (group,) = self.param_groups
        rates.append(group["lr"])
        lengths.append(torch.stack([p.grad.norm() for p in group["params"]]).norm().item())
        return step(self, *arguments)

    def told(self: Any, *arguments: Any) -> None:
        starts.append(len(rates))
        cleared(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    monkeypatch.setattr(torch.optim.AdamW, "zero_grad", told)
    monkeypatch.setattr(window_depth, "JUDGED", 1)
    accuracy(1, 1, 0, steps=20, batch=4, max_lr=0.5)
    assert starts == list(range(20))  # before each step
    assert max(rates) == pytest.approx(0.5, rel=0.1)
    assert rates[0] < 0.1 * max(rates) and rates[-1] < 0.1 * max(rates)
    assert max(lengths) == pytest.approx(1, rel=1e-4)


def test_a_seed_chooses_the_parameters_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(window_depth, "seed_everything", chosen.append)
    monkeypatch.setattr(window_depth, "JUDGED", 1)
    accuracy(1, 1, 5, steps=1, batch=1)
    assert chosen == [5]


def test_what_is_within_reach_is_learnt_and_what_is_not_is_guessed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window_depth, "DISTANCE", 4)
    learnt = accuracy(4, 1, 0, steps=150, max_lr=1e-2)
    guessed = accuracy(3, 1, 0, steps=20)
    assert learnt > 0.9
    assert abs(guessed - 1 / SYMBOLS) < 0.05


def test_a_run_tells_every_window_with_every_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    def made_up(window: int, depth: int, seed: int, *, steps: int) -> float:
        assert (seed, steps) == (3, 7)
        return float(window + depth)

    monkeypatch.setattr(window_depth, "accuracy", made_up)
    record = run(3, windows=(10, 20), depths=(1, 2, 3), steps=7)
    assert record["accuracy"] == [[11.0, 12.0, 13.0], [21.0, 22.0, 23.0]]
    assert record["windows"] == [10, 20] and record["depths"] == [1, 2, 3]
    assert (record["seed"], record["steps"]) == (3, 7)
    assert (record["distance"], record["symbols"], record["judged"]) == (16, 8, 2048)
    assert RUNS["window_depth"] is run


def test_the_windows_reach_the_first_symbol_from_some_depth_on() -> None:
    """Each from another one, so that the table has a staircase."""
    depths = [next((d for d in DEPTHS if w * d >= DISTANCE), None) for w in WINDOWS]
    assert depths == [4, 3, 2, 1]
