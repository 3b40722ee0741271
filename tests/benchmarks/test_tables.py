"""Tables of stored trainings, and the curve of one that runs, against numbers made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from attn_course.benchmarks.trainings import (
    LossCurve,
    exact_match_table,
    find_training,
    lecture_sentences,
    next_token_loss,
    over_seeds,
    store,
    train,
)
from attn_course.data import SLICES, Pair, Vocabulary
from attn_course.seq2seq import Translator, build_translator


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two trainings: one with three seeds, one with one."""
    runs: list[dict[str, Any]] = [
        {
            "seconds": 1.0,
            "parameters": 1234,
            "all": share,
            "by_slice": {name: share / (2 + i) for i, name in enumerate(SLICES)},
            "by_length": [share, 0.5],
            "whole": [],
        }
        for share in (0.5, 0.25, 0.87)
    ]
    store("three", runs, tmp_path)
    store("one", runs[2:], tmp_path)
    return tmp_path


def test_numbers_and_lists_over_the_seeds(folder: Path) -> None:
    mean, least, most = over_seeds("three", "all", directory=folder)
    assert [mean.item(), least.item(), most.item()] == pytest.approx([0.54, 0.25, 0.87])
    rows = over_seeds("three", "by_length", directory=folder)
    assert rows.least.tolist() == [0.25, 0.5] and rows.most.tolist() == pytest.approx([0.87, 0.5])
    assert rows.mean.tolist() == pytest.approx([0.54, 0.5])
    assert over_seeds("three", "by_length", 0, directory=folder).mean == mean
    inner = over_seeds("three", "by_slice", SLICES[1], directory=folder)
    assert inner.mean.item() == pytest.approx(0.54 / 3)
    assert over_seeds("three", "whole", directory=folder).mean.tolist() == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("al",), r"keys: three has no 'al' in \['seconds', "),
        (("by_length", 2), r"keys: three has no 2 in \[0\.5, 0\.5\]"),
        (("all", "x"), r"keys: three has no 'x' in 0\.5"),
        (("by_slice",), r"keys must lead to numbers, got \{"),
        ((), r"keys must lead to numbers, got \{"),
    ],
)
def test_keys_that_lead_nowhere(folder: Path, keys: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        over_seeds("three", *keys, directory=folder)


def test_a_table_of_exact_matches(folder: Path) -> None:
    labels = {"three": "of three", "one": "alone, but longer"}
    head, names, *rows = exact_match_table(labels, directory=folder).splitlines()
    assert head.startswith("exact match") and names.split()[0] == "all"
    assert names.split()[1:-1] == list(SLICES) and names.endswith("seeds")
    shares = [0.54, *(0.54 / (2 + i) for i in range(len(SLICES)))]
    assert rows[0].split() == ["of", "three", *(f"{s:.2f}" for s in shares), "3"]
    assert rows[1].split()[:4] == ["alone,", "but", "longer", "0.87"]
    assert {len(line) for line in (names, *rows)} == {len(names)}  # columns stand below their heads


def test_a_table_with_more_digits_and_parameters(folder: Path) -> None:
    text = exact_match_table({"one": "x"}, digits=3, parameters=True, directory=folder)
    _, names, row = text.splitlines()
    assert names.endswith("seeds parameters") and len(names) == len(row)
    assert row.split()[:2] == ["x", "0.870"] and row.split()[-2:] == ["1", "1,234"]


def test_a_table_needs_a_name() -> None:
    with pytest.raises(ValueError, match="labels must name at least one training"):
        exact_match_table({})


def test_the_sentences_of_the_lecture(folder: Path) -> None:
    row = {"source": "go .", "found": "va !", "bleu": 0.5}
    store("lecture", [{"seconds": 1.0, "sentences": [row, row | {"bleu": 1.0}]}], folder)
    note, first, second = lecture_sentences("lecture", directory=folder).splitlines()
    assert note == find_training("lecture", folder)["note"]
    assert first.split() == ["go", ".", "->", "va", "!", "BLEU", "(k=2)", "0.500"]
    assert second.endswith("1.000")
    with pytest.raises(ValueError, match="must be a training on the lecture's sentences"):
        lecture_sentences("one", directory=folder)


PAIRS = [Pair("the cat", "le chat"), Pair("a dog sleeps", "un chien dort")]


def small() -> Translator:
    torch.manual_seed(0)
    words = (Vocabulary([getattr(pair, side) for pair in PAIRS]) for side in ("source", "target"))
    sizes = {"embed_dim": 4, "hidden_dim": 6}
    return build_translator(sizes, sizes, *words)


def test_the_curve_is_the_loss_and_is_noted_on_the_way() -> None:
    translator = small()
    curve = LossCurve(translator, PAIRS)
    (batch,) = translator.batches(PAIRS)
    with torch.no_grad():
        logits = translator.model(**batch.inputs)
        before = next_token_loss(translator.target)(logits, batch.labels).item()
    batches = translator.batches(PAIRS, batch_size=1)
    train(translator, batches, epochs=3, watch=curve, every=2, progress=False)
    assert [step for step, _ in curve.points] == [0, 2, 4, 6]
    assert curve.points[0][1] == pytest.approx(before, abs=1e-6)
    assert curve.points[-1][1] < before


@pytest.mark.parametrize("training", [True, False])
def test_the_curve_sees_no_dropout_and_leaves_the_mode(training: bool) -> None:
    translator = small()
    inner, modes = translator.model, []

    class Watched(nn.Module):
        def forward(self, **inputs: Any) -> Any:
            modes.append(self.training)
            return inner(**inputs)

    model = Watched().train(training)
    LossCurve(translator._replace(model=model), PAIRS)(0)
    assert modes == [False] and model.training is training


def test_the_curve_is_drawn() -> None:
    curve = LossCurve(small(), PAIRS)
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="no points: pass it to train as watch"):
        curve.plot(ax)
    curve.points = [(0, 4.0), (50, 0.5)]
    curve.plot(ax)
    (line,) = ax.get_lines()
    points = torch.as_tensor(line.get_xydata()).tolist()
    assert points == [[0, 4.0], [50, 0.5]] and ax.get_yscale() == "log"
    plt.close("all")


def test_a_curve_needs_sentences() -> None:
    with pytest.raises(ValueError, match="pairs must hold at least one pair"):
        LossCurve(small(), [])
