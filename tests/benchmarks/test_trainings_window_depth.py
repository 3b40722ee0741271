"""Chapter 8's test of windows and depth: what a model can and cannot have heard of."""

from __future__ import annotations

import pytest
import torch

from attn_course.benchmarks.trainings import RUNS, window_depth
from attn_course.benchmarks.trainings.window_depth import SYMBOLS, FirstFromLast, accuracy, run


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
    assert RUNS["window_depth"] is run
