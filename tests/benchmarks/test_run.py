"""A run checks before it measures, and says what it left out. Nothing here asserts a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course.benchmarks import __main__ as command
from attn_course.benchmarks import verify as verify_module
from attn_course.benchmarks.cases import BOTH, FORWARD, Case, Peer, all_cases
from attn_course.benchmarks.memory import peak_bytes
from attn_course.benchmarks.results import load_results
from attn_course.benchmarks.run import run, table
from attn_course.benchmarks.verify import CheckFailed
from tests.benchmarks.fakes import CPU, fake_case, peer, right, wrong, wrong_gradient


def no_peak(case: Case, peer: Peer, size: int, direction: str, device: torch.device) -> int:
    return 1000


def go(*cases: Case, output: Path | None = None, **options: Any) -> list[dict[str, Any]]:
    options = {"peak": no_peak, "log": lambda line: None, "timer": lambda call: 0.5} | options
    return run(cases, CPU, output=output, **options)


def statuses(record: dict[str, Any]) -> dict[tuple[str, str, int], str]:
    return {(r["peer"], r["direction"], r["size"]): r["status"] for r in record["results"]}


@pytest.mark.parametrize("broken", [wrong, wrong_gradient])
def test_a_wrong_function_of_ours_stops_everything(broken: Any, tmp_path: Path) -> None:
    timed: list[None] = []
    good = fake_case(peer("right", right, ours=True), name="good")
    bad = fake_case(peer("mine", broken, ours=True), peer("theirs", right))
    with pytest.raises(CheckFailed, match="sums: our own answers are wrong") as error:
        go(good, bad, output=tmp_path, timer=lambda call: timed.append(None) or 1.0)
    assert "mine" in str(error.value)
    assert "theirs" not in str(error.value)
    assert not timed
    assert not list(tmp_path.iterdir())


def test_an_exception_of_ours_stops_everything(tmp_path: Path) -> None:
    def raising(x: Tensor) -> Tensor:
        raise RuntimeError("out of order")

    with pytest.raises(CheckFailed, match="out of order"):
        go(fake_case(peer("mine", raising, ours=True)), output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_ours_wrong_at_one_size_only_is_found() -> None:
    def wrong_when_large(x: Tensor) -> Tensor:
        return wrong(x) if len(x) == 200 else right(x)

    with pytest.raises(CheckFailed, match="size 200"):
        go(fake_case(peer("mine", wrong_when_large, ours=True)))


def test_the_command_fails_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = fake_case(peer("mine", wrong, ours=True))
    monkeypatch.setattr(command, "all_cases", lambda: {"sums": bad})
    assert command.main(["--quick", "--device", "cpu", "--output", str(tmp_path)]) == 1
    assert "wrong" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_wrong_foreign_peer_is_reported_and_not_timed() -> None:
    calls: list[str] = []

    def counted(x: Tensor) -> Tensor:
        calls.append("called")
        return wrong(x)

    case = fake_case(peer("mine", right, ours=True), peer("theirs", counted))
    (record,) = go(case)
    assert {s for key, s in statuses(record).items() if key[0] == "theirs"} == {"failed"}
    assert {s for key, s in statuses(record).items() if key[0] == "mine"} == {"measured"}
    row = next(r for r in record["results"] if r["peer"] == "theirs")
    assert "error" in row["reason"]
    assert row["median_s"] is None
    assert len(calls) == 2, "checked once in each direction, and never again"
    assert "failed" in table(record)


def test_a_peer_that_is_not_there_is_named() -> None:
    case = fake_case(
        peer("mine", right, ours=True),
        peer("absent", wrong, why_not=lambda device: "not installed"),
        peer("slow", right, ours=True, why_untimed=lambda device: "interpreted"),
        peer("large", right, need=lambda size, direction: size * 10**15 if size > 100 else 0),
        peer("one way", right, directions=(FORWARD,)),
        peer("elsewhere", wrong, devices=("cuda",)),
    )
    found = statuses(go(case)[0])
    assert found["absent", FORWARD, 64] == "unavailable"
    assert found["slow", BOTH, 64] == "checked only"
    assert found["large", FORWARD, 100] == "measured"
    assert found["large", FORWARD, 200] == "does not fit"
    assert ("one way", BOTH, 100) not in found
    assert not any(name == "elsewhere" for name, _, _ in found)


def test_what_is_checked_only_must_be_right() -> None:
    case = fake_case(peer("kernel", wrong, ours=True, why_untimed=lambda device: "interpreted"))
    with pytest.raises(CheckFailed, match="kernel"):
        go(case)


def test_a_call_that_would_last_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "MAX_CALL_S", 0.0)
    found = statuses(go(fake_case(peer("mine", right, ours=True)))[0])
    assert found["mine", FORWARD, 100] == "measured"
    assert found["mine", FORWARD, 200] == "too slow"


def test_a_foreign_peer_that_fails_later_is_reported() -> None:
    def timer(call: Any) -> float:
        call()
        return 1.0

    calls: list[None] = []

    def tires(x: Tensor) -> Tensor:
        calls.append(None)
        if len(calls) > 4:
            raise MemoryError
        return right(x)

    case = fake_case(peer("mine", right, ours=True), peer("theirs", tires))
    (record,) = go(case, quick=True, timer=timer)
    assert statuses(record)["theirs", FORWARD, 100] == "failed"
    assert statuses(record)["mine", FORWARD, 100] == "measured"


def test_a_record_holds_what_was_measured(tmp_path: Path) -> None:
    case = fake_case(peer("mine", right, ours=True), peer("theirs", right))
    (record,) = go(case, output=tmp_path)
    assert load_results("sums", tmp_path) == [record]
    row = record["results"][0]
    assert (row["median_s"], row["p10_s"], row["p90_s"]) == (0.5, 0.5, 0.5)
    assert (row["flops"], row["bytes_moved"], row["peak_bytes"]) == (300, 1600, 1000)
    assert 0 <= row["max_error"] < 1e-6
    assert row["repeats"] == 5
    assert record["versions"]["torch"].startswith(str(torch.__version__).split("+")[0])
    assert record["cpu"]["threads"] == torch.get_num_threads()
    assert record["date"].endswith("+00:00")
    assert len([line for line in table(record).splitlines() if " 1.00 " in line]) == 6


def test_the_largest_memory_counts() -> None:
    peaks = iter([3, 9, 5])
    case = fake_case(peer("mine", right, ours=True), sizes={"cpu": {FORWARD: (100,)}})
    (record,) = go(case, peak=lambda *arguments: next(peaks))
    assert record["results"][0]["peak_bytes"] == 9


def test_memory_that_nobody_knows_is_none() -> None:
    (record,) = go(fake_case(peer("mine", right, ours=True)), peak=lambda *arguments: None)
    assert record["results"][0]["peak_bytes"] is None


def test_memory_is_the_peers_own() -> None:
    """A call that holds a matrix of 1024 x 1024 shows it; one that does not, does not."""
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not say how much memory a process had in use")
    hog = torch.ones(100_000_000)  # 400 MB here must not count there
    case = all_cases()["heatmaps"]
    full = next(p for p in case.peers if p.name == "full matrix")
    held = peak_bytes(case, full, 1024, FORWARD, CPU)
    assert held is not None
    assert 4 * 1024**2 <= held <= 40 * 1024**2
    del hog


def test_a_quick_run_from_end_to_end(tmp_path: Path) -> None:
    options = ["heatmaps", "--quick", "--device", "cpu", "--output", str(tmp_path)]
    line = [sys.executable, "-m", "attn_course.benchmarks", *options]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert record["quick"] is True
    assert statuses(record)["auto", FORWARD, 256] == "measured"
    assert "median" in done.stdout
    assert str(path) in done.stdout


def test_a_list_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "kernel_regression" in text
    assert "KeOps: " in text


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["nonsense"])
    assert "there are kernel_regression, heatmaps" in capsys.readouterr().err
