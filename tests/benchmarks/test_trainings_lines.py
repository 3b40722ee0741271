"""Chapter 8's trainings: every line of every stage can be learnt, and the judge judges."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attn_course.benchmarks.trainings import long_sequences as trainings
from attn_course.data import LineBatches, Stage, digit_lines
from attn_course.long_sequences import AttentionCRNN, Reading, ctc_loss

TINY = (Stage(26, 2, 2), Stage(40, 2, 1))


def test_stages_go_from_narrow_to_800() -> None:
    widths = [stage.width for stage in trainings.STAGES]
    assert widths == sorted(widths) and widths[-1] == 800
    for stage in trainings.STAGES:
        [(inputs, target)] = LineBatches([stage._replace(steps=1, batch_size=2)], seed=3)
        model = trainings.make({"channels": (2, 2, 2), "hidden": 2}, 0)
        assert ctc_loss(model(**inputs), target).isfinite()


@pytest.mark.parametrize("name", trainings.MODELS)
def test_models_start_alike(name: str) -> None:
    """What they share has the same numbers; attention is all that is added."""
    model, plain = trainings.make(trainings.MODELS[name], 0), trainings.make({}, 0)
    extra = {key for key in model.state_dict() if key.startswith("attention.")}
    assert model.state_dict().keys() - extra == plain.state_dict().keys()
    assert bool(extra) == (name != "lines_none")
    assert all(p.isfinite().all() for p in model.parameters())


def test_training_is_repeatable_and_shows_one_epoch() -> None:
    runs = []
    for seed in (0, 0, 1):
        model = trainings.make({"channels": (2, 2, 2), "hidden": 2}, 0)
        history = trainings.train(model, stages=TINY, seed=seed, progress=False)
        assert len(history.train_loss) == 1 and not model.training
        runs.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_the_learning_rate_ends_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    def watch(model: Any, batches: Any, loss_fn: Any, **options: Any) -> None:
        optimizer = options["optimizer"]
        for _ in range(len(batches)):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(trainings, "fit", watch)
    trainings.train(trainings.make({}, 0), stages=[Stage(32, 1, 100)], max_lr=0.5)
    assert 0.3 < max(rates) <= 0.5 and rates[0] < 0.02 and rates[-1] < 1e-3
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)


def test_attention_learns_slowly() -> None:
    model = trainings.make({"attention": "full"}, 0)
    assert model.attention is not None
    fast, slow = trainings.scheduled(model, 10, 1.0).param_groups
    assert slow["lr"] == pytest.approx(trainings.ATTENTION_RATE * fast["lr"])
    slow_ones = {id(p) for p in slow["params"]}
    assert slow_ones == {id(p) for p in model.attention.parameters()}
    assert slow_ones | {id(p) for p in fast["params"]} == {id(p) for p in model.parameters()}
    assert len(trainings.scheduled(trainings.make({}, 0), 10, 1.0).param_groups) == 1


def test_error_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = digit_lines(3, width=60)
    asked = []

    def read(model: Any, images: Any, widths: Any, *, beam: int | None) -> list[Reading]:
        asked.append(beam)
        rows = zip(lines.labels.tolist(), lines.lengths.tolist(), strict=True)
        return [Reading(row[: n - 1]) for row, n in rows]  # the last one is forgotten

    monkeypatch.setattr(trainings, "read_lines", read)
    wrong = trainings.error_rate(trainings.make({}, 0), lines, beam=4)
    assert asked == [4] and wrong == pytest.approx(3 / lines.lengths.sum().item(), abs=1e-4)


def test_a_run_is_judged_on_unseen_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []

    def rate(model: Any, lines: Any) -> float:
        judged.append((len(lines.images), lines.images.shape[3]))
        return 0.5

    drawn = []

    def draw(count: int, **options: Any) -> Any:
        drawn.append((options["split"], options["seed"]))
        return digit_lines(count, **options)

    monkeypatch.setattr(trainings, "error_rate", rate)
    monkeypatch.setattr(trainings, "digit_lines", draw)
    monkeypatch.setitem(trainings.MODELS, "tiny", {"channels": (2, 2, 2), "hidden": 2})
    record = trainings.run_lines("tiny", 3, stages=TINY)
    assert record["seed"] == 3 and record["stages"] == [[26, 2, 2], [40, 2, 1]]
    assert judged == [(200, width) for width in (100, 200, 400, 800, 800)]
    assert [split for split, _ in drawn] == ["test"] * 4 + ["validation"]
    assert record["error_rate"] == [0.5] * 4 and record["widths"] == [100, 200, 400, 800]


def test_what_is_kept_is_what_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = SimpleNamespace()

    def save(name: str, config: dict[str, Any], state: dict[str, torch.Tensor]) -> str:
        kept.config, kept.state = config, state
        return name

    judged = {}

    def judge(model: torch.nn.Module) -> dict[str, float]:
        judged.update({key: value.clone() for key, value in model.state_dict().items()})
        return {"error_rate": 0.0}

    monkeypatch.setattr(trainings, "save_pretrained", save)
    monkeypatch.setattr(trainings, "judge", judge)
    monkeypatch.setattr(trainings, "train", lambda model: None)
    (make,) = trainings.PRETRAINED.values()
    assert make() == "digit_lines_crnn" and kept.config["error_rate"] == 0.0
    assert all(torch.equal(value, judged[key]) for key, value in kept.state.items())
    assert all(torch.equal(v.half().float(), v) for v in kept.state.values())
    AttentionCRNN(**kept.config["model"]).load_state_dict(kept.state)
