"""Stored runs: never half-written, and drawn as they are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from attn_course.benchmarks import RESULTS, describe_run, find_run, load_results, plot_results
from attn_course.benchmarks.cases import all_cases
from attn_course.benchmarks.results import store
from tests.benchmarks.fakes import record

OLD, NEW = "2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00"


@pytest.fixture(autouse=True)
def close_figures() -> Any:
    plt.switch_backend("agg")
    yield
    plt.close("all")


def test_store_and_load(tmp_path: Path) -> None:
    path = store(record(), tmp_path)
    assert path.name == "sums-fake-gpu.json"
    assert load_results("sums", tmp_path) == [record()]
    assert load_results("sum", tmp_path) == []
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_leaves_the_old_file(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(record(OLD), tmp_path)

    def crash(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, crash)
    with pytest.raises(KeyboardInterrupt):
        store(record(NEW), tmp_path)
    assert [r["date"] for r in load_results("sums", tmp_path)] == [OLD]
    assert len(list(tmp_path.iterdir())) == 1


def test_what_reads_differently_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(record(OLD), tmp_path)
    monkeypatch.setattr(json, "dumps", lambda *a, **k: "{}")
    with pytest.raises(OSError, match="reads differently"):
        store(record(NEW), tmp_path)
    monkeypatch.undo()
    assert [r["date"] for r in load_results("sums", tmp_path)] == [OLD]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("median_s", float("nan"), "times"),
        ("median_s", None, "times"),
        ("median_s", 1.0, "out of order"),
        ("repeats", 0, "out of order"),
        ("status", "failed", "no reason"),
    ],
)
def test_a_record_out_of_order_is_refused(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    bad = record()
    bad["results"][0][key] = value
    with pytest.raises(ValueError, match=message):
        store(bad, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"schema": 0}, {"results": []}])
def test_a_record_of_another_form_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"schema|no results"):
        store(record() | change, tmp_path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "sums-x.json").write_text('{"schema": 1')
    with pytest.raises(ValueError, match=r"sums-x\.json is not a stored run"):
        load_results("sums", tmp_path)


def test_the_newest_run_of_a_device_is_found(tmp_path: Path) -> None:
    for date, kind, name, slug in (
        (NEW, "cuda", "Fake GPU A", "a"),
        (OLD, "cuda", "Fake GPU B", "b"),
        (OLD, "cpu", "Some CPU", "c"),
    ):
        one = record(date, kind, name)
        one["device"]["slug"] = slug
        store(one, tmp_path)
    for asked, slug in (("cuda", "a"), ("cpu", "c"), ("gpu b", "b")):
        found = find_run("sums", asked, tmp_path)
        assert found is not None
        assert found["device"]["slug"] == slug
    assert find_run("sums", "another", tmp_path) is None


def test_a_figure_names_its_run(tmp_path: Path) -> None:
    store(record(), tmp_path)
    figure = plot_results("sums", directory=tmp_path)
    time, memory = figure.axes
    assert [line.get_label() for line in time.lines] == ["triton", "naive"]
    assert list(time.lines[0].get_ydata()) == [2e-3, 2e-3]
    assert list(memory.lines[0].get_ydata()) == [1 << 20] * 2
    assert {time.get_xscale(), time.get_yscale(), memory.get_yscale()} == {"log"}
    line = describe_run("sums", directory=tmp_path)
    assert line == "Fake GPU (compute capability 9.0), torch 1.2.3, triton 4.5.6, 2026-01-02"
    assert line in [text.get_text() for text in figure.texts] + [figure.get_supxlabel()]
    figure.canvas.draw()


def test_a_peer_keeps_its_colour(tmp_path: Path) -> None:
    store(record(), tmp_path)
    every = plot_results("sums", directory=tmp_path).axes[0].lines[1]
    alone = plot_results("sums", directory=tmp_path, peers=["naive"]).axes[0].lines[0]
    assert alone.get_color() == every.get_color()


def test_what_is_not_measured_cannot_be_drawn(tmp_path: Path) -> None:
    store(record(), tmp_path)
    with pytest.raises(ValueError, match="KeOps"):
        plot_results("sums", directory=tmp_path, peers=["KeOps"])
    with pytest.raises(ValueError, match="nothing is measured for forward"):
        plot_results("sums", directory=tmp_path, direction="forward+backward")


def test_without_a_run_the_figure_says_so(tmp_path: Path) -> None:
    figure = plot_results("kernel_regression", directory=tmp_path)
    text = figure.axes[0].texts[0].get_text()
    assert text.startswith("No run on a GPU is stored;")
    assert "python -m attn_course.benchmarks kernel_regression" in text
    assert "--device cpu" in describe_run("sums", "cpu", tmp_path)


def test_settings_are_left_alone(tmp_path: Path) -> None:
    before = dict(plt.rcParams)
    plot_results("sums", directory=tmp_path)
    assert dict(plt.rcParams) == before


@pytest.mark.parametrize("name", all_cases())
def test_stored_runs_are_in_order(name: str) -> None:
    """Whatever is stored in the package was a full run, and all of ours was right."""
    for run in load_results(name, RESULTS):
        assert not run["quick"]
        for row in run["results"]:
            assert not (row["ours"] and row["status"] == "failed")
            figure = plot_results(name, device=run["device"]["name"])
            figure.canvas.draw()
