"""What the benchmarks that are no cases share: errors, records, figures, the command."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

from attn_course.benchmarks import RESULTS, describe_run, load_results, plot_results, steps
from attn_course.benchmarks.plot import STEPS
from attn_course.benchmarks.results import store
from attn_course.benchmarks.verify import CheckFailed
from tests.benchmarks.fakes import CPU, record

FOLDER = Path(steps.__file__).parent
D2L = ("bahdanau_step", "transformer_step")


@pytest.fixture(autouse=True)
def close_figures() -> Any:
    plt.switch_backend("agg")
    yield
    plt.close("all")


def skip_without_d2l(name: str) -> None:
    if name in D2L and importlib.util.find_spec("d2l") is None:
        pytest.skip("d2l is not installed: python -m attn_course.install_d2l")


def test_the_list_is_complete() -> None:
    using = {p.stem for p in FOLDER.glob("*.py") if "steps.main(" in p.read_text("utf-8")}
    assert using == set(STEPS)
    assert all(import_module(f"attn_course.benchmarks.{name}").NAME == name for name in STEPS)


def test_the_largest_error_of_all_counts() -> None:
    exact = [torch.tensor([[1.0, -4.0]]), torch.tensor([0.5])]
    actual = [torch.tensor([1.0, -4.0]), torch.tensor([0.4])]
    assert steps.largest_error(actual, exact) == pytest.approx(0.2)
    actual[0][0] = torch.nan
    assert steps.largest_error(actual, exact) == torch.inf
    with pytest.raises(ValueError):
        steps.largest_error(actual[:1], exact)
    for error in (0.2, torch.inf, torch.nan):
        with pytest.raises(CheckFailed, match="sums: error"):
            steps.refuse_above(0.1, error, "sums")
    steps.refuse_above(0.1, 0.1, "sums")


def test_calls_are_timed_in_turns_and_failures_are_raised() -> None:
    turns: list[str] = []
    about: dict[str, Any] = {
        "ours": ["a"], "errors": {"a": 1e-7, "b": 1e-6}, "direction": "forward", "size": 3,
        "flops": 5, "bytes_moved": 7, "budget_s": 0.0,
    }  # fmt: skip
    calls = {name: partial(turns.append, name) for name in "ab"}
    rows = steps.time_calls(calls, CPU, **about)
    assert "".join(turns) == "aabb" + 5 * "ab"
    assert [(row["peer"], row["ours"], row["max_error"]) for row in rows] == [
        ("a", True, 1e-7), ("b", False, 1e-6),
    ]  # fmt: skip
    assert {(row["size"], row["flops"], row["bytes_moved"], row["repeats"]) for row in rows} == {
        (3, 5, 7, 5)
    }

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        steps.time_calls({"a": fail}, CPU, **about)


@pytest.mark.parametrize("name", STEPS)
def test_a_quick_run_is_a_record_and_stores_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without_d2l(name)
    made: list[dict[str, Any]] = []
    module = import_module(f"attn_course.benchmarks.{name}")
    monkeypatch.setattr(steps, "QUICK_BUDGET_S", 0.0)

    def run(*arguments: Any) -> dict[str, Any]:
        made.append(module.run_either(*arguments))
        return made[0]

    options = ["--quick", "--output", str(tmp_path)]
    assert steps.main(name, module.__doc__, run, options) == 0
    assert not list(tmp_path.iterdir())
    assert made[0]["title"] in capsys.readouterr().out
    assert made[0]["quick"] is True
    assert made[0]["case"] == name
    assert json.loads(json.dumps(made[0])) == made[0]  # as it would be read again
    for row in made[0]["results"]:  # bfloat16 has eight bits
        half = "bfloat16" in row["peer"]
        allowed = module.HALF_TOLERANCE if half else made[0]["tolerance"]
        assert 0 <= row["max_error"] <= allowed
    assert all(row["flops"] > 0 < row["bytes_moved"] for row in made[0]["results"])
    for stored in load_results(name):  # the form that the chapters read
        assert list(stored) == list(made[0])
        assert list(stored["results"][0]) == list(made[0]["results"][0])
        assert list(stored["sizes"]) == list(made[0]["sizes"])


def test_a_full_run_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Any] = []

    def run(*arguments: Any) -> dict[str, Any]:
        asked.append(arguments)
        return record()

    assert steps.main("sums", "Sums.", run, ["--output", str(tmp_path)]) == 0
    assert asked == [(False, CPU, steps.BUDGET_S)]
    assert load_results("sums", tmp_path) == [record()]
    assert "stored: " in capsys.readouterr().out


def test_wrong_answers_are_neither_printed_nor_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: Any) -> Any:
        raise CheckFailed("sums: error 1.")

    assert steps.main("sums", "Sums.", run, ["--output", str(tmp_path)]) == 1
    assert not list(tmp_path.iterdir())
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "sums: error 1.\n")


@pytest.mark.parametrize("name", STEPS)
def test_stored_runs_are_in_order(name: str) -> None:
    for run in load_results(name, RESULTS):
        assert not run["quick"]
        module = import_module(f"attn_course.benchmarks.{name}")
        for row in run["results"]:
            half = row["peer"] == getattr(module, "HALF", None)
            assert row["max_error"] <= (module.HALF_TOLERANCE if half else run["tolerance"])
        for direction in {row["direction"] for row in run["results"]}:
            figure = plot_results(name, device=run["device"]["name"], direction=direction)
            figure.canvas.draw()


def test_time_stands_alone_where_memory_is_not_known(tmp_path: Path) -> None:
    known = record()
    for row in known["results"]:
        row["peak_bytes"] = None
    store(known, tmp_path)
    (time,) = plot_results("sums", directory=tmp_path).axes
    assert time.get_title() == "time, forward"
    assert [line.get_label() for line in time.lines] == ["triton", "naive"]


@pytest.mark.parametrize(
    ("name", "device", "command"),
    [
        ("bahdanau_step", "cpu", "benchmarks.bahdanau_step"),
        ("cached_decoding", "cuda", "benchmarks.cached_decoding --device cuda"),
        ("heatmaps", "cuda", "benchmarks heatmaps"),
        ("heatmaps", "cpu", "benchmarks heatmaps --device cpu"),
    ],
)
def test_the_command_that_is_told_works(
    name: str, device: str, command: str, tmp_path: Path
) -> None:
    assert describe_run(name, device, tmp_path).endswith(f"python -m attn_course.{command}")
