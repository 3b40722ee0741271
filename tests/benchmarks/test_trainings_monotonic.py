"""Chapter 10's spellers: what they see, how they decode, how they are judged, and their runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course.benchmarks.trainings import monotonic
from attn_course.benchmarks.trainings.monotonic import (
    MODELS,
    PRETRAINED,
    RUNS,
    learn,
    load_speller,
    train,
    train_as_written,
)
from attn_course.benchmarks.trainings.spellers import (
    TASKS,
    AsWritten,
    Speller,
    hard_and_best,
    judge,
    places,
    spell,
    wrongness,
)
from attn_course.data import Letters, letters
from attn_course.data.letters import delayed


def some(task: str, count: int = 6, length: int = 10, seed: int = 0) -> Letters:
    return letters(count, repeats=TASKS[task].repeats, length=length, seed=seed)


def speller(task: str, **options: Any) -> Speller:
    torch.manual_seed(0)
    return Speller(task, width=8, **options).eval()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", [*MODELS, "as_written"])
def test_a_letter_is_said_before_it_is_seen(task: str, name: str) -> None:
    torch.manual_seed(0)
    pairs = some(task)
    model: Any
    if name == "as_written":
        model = AsWritten(task, recurrent=True, width=8).eval()
    else:
        model = speller(task, **MODELS[name])
    target_input = delayed(pairs, 10)
    logits = model(pairs.source, target_input)
    assert logits.shape == (*pairs.target.shape, 10)
    other = target_input.clone()
    real = int(pairs.target_lens.min())
    other[:, real - 1] = other[:, real - 1] % 10 + 1
    changed = (model(pairs.source, other) != logits).flatten(2).any(-1).any(0)
    assert not changed[: real - 1].any() and changed[real - 1]


def test_only_recurrence_tells_equal_letters_apart() -> None:
    """In "aaa" the second query and the third are one and the same without it."""
    target_input = torch.tensor([[11, 1, 1, 1, 2]])
    plain = speller("many", recurrent=False).queries(target_input)[0][0]
    assert torch.equal(plain[1], plain[2]) and torch.equal(plain[2], plain[3])
    counting = speller("many").queries(target_input)[0][0]
    assert not torch.allclose(counting[1], counting[2])


def test_only_context_tells_places_apart() -> None:
    source = torch.tensor([[3, 3, 3, 5]])
    assert torch.equal(*speller("many").keys(source)[0, :2])
    assert not torch.allclose(*speller("many", context=True).keys(source)[0, :2])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", MODELS)
def test_free_running_reads_what_it_wrote(task: str, name: str) -> None:
    pairs, model = some(task), speller(task, **MODELS[name])
    written = spell(model, pairs.source, 7)
    assert written.shape == (6, 7) and written.min() >= 1 and written.max() <= 10
    read = torch.cat((torch.full((6, 1), 11), written[:, :-1]), 1)
    assert torch.equal(model(pairs.source, read).argmax(-1) + 1, written)


@pytest.mark.parametrize("task", TASKS)
def test_hard_steps_are_the_hard_path(task: str) -> None:
    pairs, model = some(task), speller(task)
    target_input = delayed(pairs, 10)
    queries, _ = model.queries(target_input)
    found, weights = model.attention(
        queries, model.keys(pairs.source), need_weights=True, hard=True
    )
    state = model.start(pairs.source)
    for t in range(target_input.shape[1]):
        logits, state, here = model.step(target_input[:, t], state)
        torch.testing.assert_close(here, weights[:, :, t])
        expected = model.output(torch.cat((queries[:, t], found[:, t]), -1))
        torch.testing.assert_close(logits, expected)


def test_no_path_without_monotonic_attention() -> None:
    with pytest.raises(TypeError, match="hard decoding needs monotonic attention"):
        spell(speller("many", monotonic=False), some("many").source, 3, hard=True)


def test_where_a_query_stands() -> None:
    weights = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    assert places(weights).tolist() == [2, 2, 3, 4]
    assert places(weights.float()).tolist() == [2, 2, 3, 4]


@pytest.mark.parametrize("task", TASKS)
def test_heads_that_are_sure_walk_the_best_path(task: str) -> None:
    pairs, model = some(task, count=20), speller(task)
    with torch.no_grad():
        for weight in (model.attention.W_q.weight, model.attention.W_k.weight):
            weight.mul_(8)
    real = pairs.target > 0
    hard, best = hard_and_best(model, pairs)
    assert (hard == best)[real].double().mean() > 0.9
    unsure, likeliest = hard_and_best(speller(task), pairs)
    assert not torch.equal(unsure[real], likeliest[real])


class Knows(torch.nn.Module):
    """Says the right letters of ``judge``'s sources, but for the last of every other sequence."""

    num_letters = 10

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task = task

    def forward(self, source: Tensor, target_input: Tensor) -> Tensor:
        length = source.shape[1]
        pairs = letters(
            len(source), repeats=TASKS[self.task].repeats, length=length, seed=1_000_000 + length
        )
        target = pairs.target.clone()
        for i in range(0, len(target), 2):
            last = int(pairs.target_lens[i]) - 1
            target[i, last] = target[i, last] % 10 + 1
        steps = target_input.shape[1]
        return torch.nn.functional.one_hot(target[:, :steps].clamp_min(1) - 1, 10).float()


@pytest.mark.parametrize("task", TASKS)
def test_the_judge_counts(task: str) -> None:
    found = judge(Knows(task), task, lengths={8: 40, 12: 20})
    assert found["lengths"] == [8, 12] and found["judged"] == [40, 20]
    for way in ("forced", "free"):
        assert found[way]["whole"] == [0.5, 0.5]
        for length, count, share in zip((8, 12), (40, 20), found[way]["letters"], strict=True):
            pairs = some(task, count, length, seed=1_000_000 + length)
            total = int(pairs.target_lens.sum())
            assert share == pytest.approx(1 - count / 2 / total, abs=1e-4)
    assert found["hard"] == {"letters": [], "whole": []} and found["agreement"] == []


def test_padding_is_not_learnt() -> None:
    pairs = some("many")
    logits = torch.randn(*pairs.target.shape, 10)
    changed = logits.masked_fill((pairs.target == 0)[..., None], 7.0)
    assert (pairs.target == 0).any()
    assert torch.equal(wrongness(logits, pairs.target), wrongness(changed, pairs.target))


def test_it_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monotonic, "LENGTH", 8)
    torch.manual_seed(0)
    model = Speller("one", width=16)
    before = judge(model, "one", lengths={8: 50})
    train(model, "one", steps=150, batch_size=32)
    after = judge(model, "one", lengths={8: 50})
    assert before["forced"]["letters"][0] < 0.3 < 0.8 < after["forced"]["letters"][0]
    assert len(after["hard"]["whole"]) == len(after["agreement"]) == 1


def test_the_source_trains_for_a_hundred_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        monotonic, "fit", lambda model, batches, *_, **o: asked.update(o, b=batches)
    )
    train_as_written(AsWritten("many", recurrent=False), "many")
    assert len(asked["b"]) == 100
    (inputs, target), *_ = asked["b"]
    assert inputs["source"].shape == (16, 32) and len(target) == 16
    assert asked["clip_norm"] is None
    assert asked["optimizer"].param_groups[0]["lr"] == 1e-3


def test_each_name_has_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monotonic, "train", lambda *_, **__: None)
    monkeypatch.setattr(monotonic, "train_as_written", lambda *_, **__: None)
    monkeypatch.setattr(monotonic, "LENGTHS", {6: 4})
    for name, make in RUNS.items():
        record = make(3)
        assert record["seed"] == 3 and name.startswith(f"letters_{record['task']}_")
        steps = 2000 if name.endswith("free_longer") else monotonic.STEPS
        as_written = name.endswith(("as_written", "as_written_plain"))
        assert record["steps"] == (100 if as_written else steps)
        assert len(record["forced"]["whole"]) == 1
        has_path = "as_written" not in name and "free" not in name
        assert len(record["agreement"]) == has_path
    assert {name.split("_", 2)[2] for name in RUNS} >= set(MODELS)


def test_sizes_are_the_sources() -> None:
    assert {task: repeats for task, (repeats, _) in TASKS.items()} == {"many": 3, "one": 1}
    assert (monotonic.LENGTH, monotonic.NUM_LETTERS) == (32, 10)


def test_a_model_is_stored_and_read_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stored: list[Any] = []

    def save(*arguments: Any) -> Path:
        stored.append(arguments)
        return tmp_path

    monkeypatch.setattr(monotonic, "save_pretrained", save)
    monkeypatch.setattr(monotonic, "train", lambda *_, **__: None)
    monkeypatch.setattr(monotonic, "LENGTHS", {8: 20})
    assert PRETRAINED["letters_one"]() == tmp_path
    name, config, state = stored[0]
    assert name == "letters_one"
    assert all(torch.equal(x, x.half().float()) for x in state.values())
    monkeypatch.setattr(monotonic, "pretrained", lambda asked: (config, state))
    model = load_speller(name)
    assert not model.training
    assert judge(model, "one", lengths={8: 20})["forced"] == config["forced"]


def test_the_record_says_what_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monotonic, "train", lambda *_, **__: None)
    monkeypatch.setattr(monotonic, "LENGTHS", {6: 4})
    model, record = learn(Speller, "many", 1, recurrent=False, width=8)
    assert record["options"] == {"recurrent": False, "width": 8} and record["task"] == "many"
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
