"""Chapter 9's recall: what is drawn, what can be answered, and the runs that are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attn_course.benchmarks.trainings import linformer
from attn_course.benchmarks.trainings.linformer import (
    DIGITS,
    FACTS,
    GROWING,
    LENGTH,
    LETTERS,
    MIDDLE,
    PRETRAINED,
    QUESTIONS,
    RUNS,
    SLOTS,
    VARIANTS,
    Facts,
    Recall,
    draw_facts,
    judge,
    load_recall,
    name_of,
    recall,
    spell,
    train,
)


def draw(batch: int, length: int, facts: int, seed: int = 0) -> Facts:
    return draw_facts(batch, length, facts, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("facts", [1, 5, 26])
def test_each_question_is_about_a_fact_that_was_told_once(facts: int) -> None:
    batch = draw(20, 40, facts)
    for tokens, answers, places in zip(*batch, strict=True):
        text = spell(tokens)
        told = {word[0]: (i, word[2]) for i, word in enumerate(text) if "=" in word}
        assert len(told) == facts == sum("=" in word for word in text)
        assert text.count(".") == 40 - QUESTIONS - facts
        for word, answer, place in zip(text[-QUESTIONS:], answers, places, strict=True):
            assert word[1] == "?"
            assert told[word[0]] == (place, DIGITS[answer])


def test_sequences_differ_and_letters_digits_and_places_all_occur() -> None:
    batch = draw(500, 40, 4)
    assert batch.tokens.unique(dim=0).shape[0] == 500
    assert set(batch.tokens[..., 0].unique().tolist()) == set(range(len(LETTERS) + 1))
    assert batch.answers.unique().tolist() == list(range(10))
    assert batch.places.unique().tolist() == list(range(40 - QUESTIONS))
    assert torch.equal(draw(3, 40, 4).tokens, draw(3, 40, 4).tokens)
    assert not torch.equal(draw(3, 40, 4).tokens, draw(3, 40, 4, seed=1).tokens)


@pytest.mark.parametrize(("length", "facts"), [(40, 0), (40, 27), (12, 5)])
def test_too_many_facts(length: int, facts: int) -> None:
    with pytest.raises(ValueError, match=r"facts must be in \[1, (26|4)\]"):
        draw(1, length, facts)


def test_filler_is_nothing_at_first() -> None:
    torch.manual_seed(0)
    model = Recall("full", 20, width=8)
    batch = draw(4, 20, 3)
    filler = batch.tokens[..., 1] == len(DIGITS)
    x = model.letter(batch.tokens[..., 0]) + model.digit(batch.tokens[..., 1])
    assert torch.equal(x.abs().sum(-1) == 0, filler)


def answers_moved_by(model: Recall, length: int, place: int) -> bool:
    """Whether the last answer hears of a token."""
    tokens = draw(1, length, 1).tokens
    tokens[:, :-1] = torch.tensor([len(LETTERS), len(DIGITS)])
    other = tokens.clone()
    other[:, place] = torch.tensor([3, 4])
    with torch.no_grad():
        return not torch.equal(model(tokens)[:, -1], model(other)[:, -1])


def test_windows_reach_as_far_as_they_say_and_the_others_everywhere() -> None:
    torch.manual_seed(0)
    for depth in (1, 2):
        model = Recall("window", 30, width=8, window=4, depth=depth).eval()
        heard = [answers_moved_by(model, 30, place) for place in range(29)]
        assert heard == [place >= 29 - 4 * depth for place in range(29)]
    both: list[dict[str, Any]] = [{"kind": "full"}, {"kind": "linformer", "projected_len": 5}]
    for options in both:
        model = Recall(length=30, width=8, **options).eval()
        assert all(answers_moved_by(model, 30, place) for place in range(29))


def test_weights_come_with_the_answers() -> None:
    model, tokens = Recall("linformer", 24, width=8, projected_len=6, depth=2), draw(3, 24, 2)
    logits, layers = model(tokens.tokens, need_weights=True)
    assert logits.shape == (3, QUESTIONS, 10)
    assert [w.shape for w in layers] == [(3, 4, 24, 6)] * 2
    torch.testing.assert_close(logits, model(tokens.tokens))


def test_it_is_learnt() -> None:
    full, record = recall("full", 0, length=16, facts=2, steps=220, width=32)
    assert record["accuracy"] > 0.8
    assert record["core_seconds"] > 0 and record["length"] == 16 and record["facts"] == 2
    assert record["parameters"] == sum(p.numel() for p in full.parameters())
    assert record["by_facts"][0] == [1, 2] and record["by_facts"][1][1] == record["accuracy"]
    guessed = judge(Recall("full", 16, width=32), length=16, facts=2)
    assert abs(guessed["accuracy"] - 0.1) < 0.06


def test_the_judge_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that knows what stands in the last half of the sequence, and nothing else."""

    class Knows(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(tokens), QUESTIONS, 10)
            for i, sequence in enumerate(tokens):
                for j, (letter, _) in enumerate(sequence[-QUESTIONS:].tolist()):
                    (place,) = torch.nonzero(sequence[:-QUESTIONS, 0] == letter)[0]
                    digit = int(sequence[place, 1]) if place >= 8 else -1
                    logits[i, j, digit] = 1.0 if place >= 8 else 0.0
                    if place < 8:
                        logits[i, j, (int(sequence[place, 1]) + 1) % 10] = 1.0
            return logits

    monkeypatch.setattr(linformer, "JUDGED", 256)
    found = judge(Knows(), length=16 + QUESTIONS, facts=3)
    assert found["by_distance"] == [1.0, 1.0, 0.0, 0.0]
    assert found["accuracy"] == pytest.approx(0.5, abs=0.04)
    assert found["by_facts"][0] == [1, 2, 3]
    assert found["by_facts"][1] == pytest.approx([0.5] * 3, abs=0.08)


def test_few_facts_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def note(batch: int, length: int, facts: int, generator: torch.Generator) -> Facts:
        counts.append(facts)
        return draw_facts(batch, length, facts, generator)

    monkeypatch.setattr(linformer, "draw_facts", note)
    train(Recall("full", 16, width=8), length=16, facts=4, steps=60)
    assert set(counts[:30]) == {1, 2, 3, 4}
    assert set(counts[30:]) == {4} and len(counts) == 60


def test_each_name_has_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, dict[str, Any]] = {}

    def note(kind: str, seed: int, **options: Any) -> tuple[None, dict[str, Any]]:
        asked[name] = {"kind": kind, **options}
        Recall(kind, options.get("length", LENGTH), **{
            k: v for k, v in options.items() if k not in ("length", "facts")
        })  # fmt: skip
        return None, {"seed": seed}

    monkeypatch.setattr(linformer, "recall", note)
    for name in RUNS:
        assert RUNS[name](3) == {"seed": 3}
    assert [asked[name_of(k)]["projected_len"] for k in SLOTS] == list(SLOTS)
    for rows in GROWING.values():
        for sizes in rows:
            options = asked[name_of(*sizes)]
            assert (options["projected_len"], options["length"], options["facts"]) == sizes
    base = asked[name_of(MIDDLE)]
    assert (base["length"], base["facts"]) == (LENGTH, FACTS)
    for name, options in VARIANTS.items():
        same = {"kind": "linformer", "projected_len": MIDDLE}
        assert asked[name] == same | options
        assert options != {"sharing": base["sharing"]}
    assert {o["projection"] for o in VARIANTS.values() if "projection" in o} == {
        "convolution", "pooling", "random",
    }  # fmt: skip


def test_what_grows_grows_alone_or_together() -> None:
    for name, rows in GROWING.items():
        slots, lengths, facts = zip(*rows, strict=True)
        assert lengths == (64, 128, 256)
        assert (len(set(slots)) > 1) == ("k" in name)
        assert (len(set(facts)) > 1) == ("facts" in name)
        ratios = {n / k for n, k in zip(lengths, slots, strict=True)}
        assert (len(ratios) == 1) == ("k" in name)
        assert (MIDDLE, LENGTH, FACTS) in rows


def test_a_model_is_stored_and_read_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stored: list[Any] = []

    def save(*arguments: Any) -> Path:
        stored.append(arguments)
        return tmp_path

    monkeypatch.setattr(linformer, "save_pretrained", save)
    monkeypatch.setattr(linformer, "train", lambda *_, **__: None)
    monkeypatch.setattr(linformer, "JUDGED", 128)
    assert PRETRAINED["recall_linformer"]() == tmp_path
    name, config, state = stored[0]
    assert sum(x.numel() for x in state.values()) * 2 < 300_000
    assert all(torch.equal(x, x.half().float()) for x in state.values())
    monkeypatch.setattr(linformer, "pretrained", lambda asked: (config, state))
    model = load_recall(name)
    assert not model.training
    assert judge(model)["accuracy"] == config["accuracy"]
