"""Linformer on long sequences: the jobs, that wrong answers are refused, and what is measured."""

from __future__ import annotations

import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attn_course.benchmarks import linformer_long as bench
from attn_course.benchmarks.linformer_long import (
    AUTOCAST,
    DEPTH,
    DOES_NOT_FIT,
    EXAMPLE,
    FORWARD,
    HALF,
    HEADS,
    LEVELS,
    NO_DROPOUT,
    OURS,
    PACKAGE,
    QUICK,
    SLOTS,
    WIDTH,
    Job,
    Measured,
    Sizes,
    bytes_moved,
    check,
    exponent,
    flops,
    jobs,
    make_call,
    make_model,
    measure,
    measure_apart,
    print_measured,
    run,
)
from attn_course.benchmarks.verify import CheckFailed
from attn_course.linformer import Linformer, linformer_attention
from tests.benchmarks.fakes import CPU


def job(direction: str, sizes: Sizes = QUICK, **wanted: Any) -> Job:
    return next(
        j for j in jobs(sizes, package=True)
        if j.direction == direction and all(getattr(j, k) == v for k, v in wanted.items())
    )  # fmt: skip


def test_the_readmes_example_is_measured() -> None:
    full = [j for j in jobs(Sizes(), package=True) if j.direction == EXAMPLE]
    largest = [j for j in full if j.length == 262_144]
    assert {j.peer for j in largest} == {OURS, PACKAGE}
    for j in largest:
        assert (j.channels, j.head_dim, j.projected_len, j.hidden) == (64, 256, 128, 128)
        assert (j.heads, j.depth, j.level, j.dropout, j.backward) == (4, 2, "C0", True, True)
    lengths = sorted({j.length for j in full})
    assert lengths == [2**i for i in range(14, 19)] and len(full) == 10
    demonstration = [j for j in jobs(Sizes(), package=False) if j.direction == FORWARD]
    assert [(j.length, j.backward) for j in demonstration] == [(1_230_000, False)]


def test_levels_widths_and_slots_are_varied_one_at_a_time() -> None:
    found = jobs(Sizes(), package=False)
    for direction, field in ((DEPTH, "depth"), (HEADS, "heads"), (WIDTH, "head_dim"),
                             (SLOTS, "projected_len")):  # fmt: skip
        here = [j for j in found if j.direction == direction]
        peers = {j.peer for j in here}
        assert peers == (set(LEVELS) if direction in (DEPTH, HEADS) else {"auto", "reference"})
        for peer in peers:
            varied = [j for j in here if j.peer == peer]
            assert [getattr(j, field) for j in varied] == [j.size for j in varied]
            same: Any = {"size": 0, field: 0}
            assert len({replace(j, **same) for j in varied}) == 1
            assert len(varied) >= 4
            assert all(j.level == peer for j in varied) or peer not in LEVELS
    assert not any(j.package for j in found)
    assert all(j.head_dim < j.channels for j in found if j.direction in (DEPTH, HEADS))


def test_only_the_package_is_called_the_package() -> None:
    found = jobs(Sizes(), package=True)
    assert all((PACKAGE in j.peer) == j.package for j in found)
    assert {j.direction for j in found if j.package} == {EXAMPLE, NO_DROPOUT, FORWARD, DEPTH, HEADS}
    assert len({(j.direction, j.peer, j.size) for j in found}) == len(found)


def test_what_is_called() -> None:
    model: Any = make_model(job(EXAMPLE, peer=OURS))
    assert Linformer in type(model).__mro__ and model.training
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p} == {0.1, 0.15}
    assert model.blocks[0].attention.dropout == 0.1
    plain: Any = make_model(job(NO_DROPOUT, peer=OURS))
    assert not any(m.p for m in plain.modules() if isinstance(m, nn.Dropout))
    assert not make_model(job(FORWARD, peer=OURS)).training
    deep: Any = make_model(job(DEPTH, peer="C2", size=2))
    assert [block.checkpoint_level for block in deep.blocks] == ["C2", "C2"]
    step = make_call(job(EXAMPLE, peer=OURS), CPU)()
    assert step.shape == () and step.requires_grad
    forward = make_call(job(FORWARD, peer=OURS), CPU)()
    assert forward.shape == (1, QUICK.longest, QUICK.channels) and not forward.requires_grad
    assert make_call(job(AUTOCAST, peer=HALF), CPU)().isfinite()
    alone = job(SLOTS, peer="reference", size=4)
    assert make_call(alone, CPU)().item() == pytest.approx(
        make_call(replace(alone, impl="auto"), CPU)().item(), rel=1e-5
    )


def test_each_is_checked() -> None:
    errors = check(QUICK, CPU, package=False)
    for j in jobs(QUICK, package=False):
        assert 0 <= errors[j.peer] <= (bench.HALF_TOLERANCE if j.half else bench.TOLERANCE)
    assert errors[HALF] > 1e-3  # it does compute in bfloat16


@pytest.mark.parametrize("peer", [OURS, "C1", "C2", "auto"])
def test_wrong_answers_are_refused(peer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil_model(asked: Job) -> nn.Module:
        model: Any = make_model(asked)
        if not asked.package and (asked.level if peer in LEVELS else OURS) == peer:
            block = model.blocks[0]
            block.norm1.register_forward_hook(
                lambda module, inputs, output: output * 1.01
                if block.attention.impl == "auto" else output
            )  # fmt: skip
        return model

    def spoil_attention(*tensors: Any, impl: str) -> Any:
        found = linformer_attention(*tensors, impl=impl)
        return found * 1.01 if impl == "auto" else found

    if peer == "auto":
        monkeypatch.setattr(bench, "linformer_attention", spoil_attention)
    else:
        monkeypatch.setattr(bench, "make_model", spoil_model)
    with pytest.raises(CheckFailed, match=f"linformer_long: {peer}: error"):
        run(QUICK, CPU, budget_s=0)


def test_forgotten_dropout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level that drops others when it computes again has other gradients."""

    def forget(asked: Job) -> nn.Module:
        return make_model(replace(asked, dropout=asked.dropout and asked.level != "C1"))

    monkeypatch.setattr(bench, "make_model", forget)
    with pytest.raises(CheckFailed, match="linformer_long: C1: error"):
        check(QUICK, CPU, package=False)


def test_the_published_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("linformer_pytorch", reason="pip install --no-deps linformer-pytorch")
    errors = check(QUICK, CPU, package=True)
    assert 0 < errors[PACKAGE] <= bench.TOLERANCE
    found = measure(job(HEADS, peer=f"C0, {PACKAGE}", size=1), CPU, 0.0)
    assert found.kept_bytes
    theirs: Any = importlib.import_module("linformer_pytorch")
    monkeypatch.setattr(theirs.linformer_pytorch, "get_act", lambda name: torch.relu)
    with pytest.raises(CheckFailed, match=f"linformer_long: {PACKAGE}: error"):
        check(QUICK, CPU, package=True)


def test_without_the_package_the_record_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "linformer_pytorch", None)
    assert bench.package_version() is None
    made = Measured([0.25, 0.5], 7, 3)
    monkeypatch.setattr(bench, "check", lambda *_, **__: dict.fromkeys(
        [j.peer for j in jobs(QUICK, package=False)], 0.0
    ))  # fmt: skip
    monkeypatch.setattr(bench, "measure", lambda *_: made)
    record = run(QUICK, CPU, budget_s=0)
    assert record["package"] == "not installed"
    assert all(row["ours"] and PACKAGE not in row["peer"] for row in record["results"])
    row = record["results"][0]
    assert (row["median_s"], row["repeats"], row["kept_bytes"]) == (0.375, 2, 3)
    assert row["peak_bytes"] is None  # many in one process: it would mean nothing


def test_what_does_not_fit_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = replace(QUICK, check_length=21)  # not QUICK: each in a process of its own
    monkeypatch.setattr(bench, "package_version", lambda: None)

    def apart(asked: Job, *_: Any) -> Measured | None:
        return None if asked.direction == FORWARD else Measured([1.0], 5, None)

    monkeypatch.setattr(bench, "measure_apart", apart)
    record = run(sizes, CPU, budget_s=0)
    row = next(row for row in record["results"] if row["direction"] == FORWARD)
    assert (row["status"], row["median_s"], row["repeats"]) == (DOES_NOT_FIT, None, 0)
    assert {row["status"] for row in record["results"]} == {DOES_NOT_FIT, "measured"}
    printed = capsys.readouterr().out
    assert DOES_NOT_FIT in printed and len(printed.splitlines()) == len(record["results"])


def test_a_process_of_its_own_tells_time_and_memory() -> None:
    found = measure_apart(job(DEPTH, peer="C0", size=2), CPU, 0.0)
    assert found is not None and len(found.seconds) == 1 and found.seconds[0] > 0
    assert found.peak_bytes is None or found.peak_bytes >= 0
    assert found.kept_bytes


def test_a_process_that_fails_or_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = replace(job(DEPTH, peer="C0", size=2), level="C3")
    with pytest.raises(RuntimeError, match=r"measuring over depth, C0: (.|\n)*checkpoint_level"):
        measure_apart(bad, CPU, 0.0)

    class Killed:
        returncode, stderr, stdout = -9, "", ""

    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: Killed)
    assert measure_apart(bad, CPU, 0.0) is None


def test_what_the_process_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: dict[str, str] = {}
    monkeypatch.setattr(Path, "write_text", lambda self, text: written.update({str(self): text}))
    asked = [vars(job(SLOTS, peer="auto", size=2)), "cpu", 0.0]
    monkeypatch.setattr(sys, "argv", ["-c", json.dumps(asked)])
    print_measured()
    seconds, _, kept = json.loads(capsys.readouterr().out)
    assert len(seconds) == 1 and kept is None
    # Should memory run out, it is this process that ends.
    assert written["/proc/self/oom_score_adj"] == "1000"


def test_what_is_kept_is_flat_in_depth_and_heads() -> None:
    """But for the inputs of layers: C1 in depth, and C2 in heads."""

    def kept(direction: str, level: str, count: int) -> int:
        found = measure(job(direction, sizes, peer=level, size=count), CPU, 0.0).kept_bytes
        assert found is not None
        return found

    sizes = replace(QUICK, level_length=256, channels=16, level_head_dim=8, counts=(1, 2, 4))
    inputs = 256 * 16 * 4  # bytes of a sequence
    assert kept(DEPTH, "C0", 4) - kept(DEPTH, "C0", 1) > 3 * 4 * inputs
    assert kept(DEPTH, "C1", 4) - kept(DEPTH, "C1", 1) <= 3 * 2.2 * inputs
    assert kept(HEADS, "C0", 4) - kept(HEADS, "C0", 1) > 0.5 * inputs * 3
    assert kept(HEADS, "C2", 4) - kept(HEADS, "C2", 1) <= 0.1 * inputs


def test_products_are_counted() -> None:
    alone = job(WIDTH, peer="auto", size=4)
    n, k, h = alone.length, alone.projected_len, alone.heads
    # E K and F V, scores and answers; forward, and twice backward; a multiply-add is two
    assert flops(alone) == 3 * 2 * 4 * n * k * 4 * h
    narrow = replace(job(DEPTH, peer="C0", size=1), heads=2, head_dim=3, channels=8, hidden=5)
    maps = 2 * n * 8 * 6 + 2 * n * 8 * 5
    assert flops(narrow) == 6 * (n * 8 * k + maps + 2 * n * k * 6)
    wide = replace(narrow, head_dim=16, backward=False)
    assert flops(wide) == 2 * (n * 8 * k + 2 * n * 8 * 5 + 2 * n * k * 2 * 8)
    assert bytes_moved(wide) == 4 * (2 * n * 8 + n * k) == bytes_moved(narrow) / 2


def test_the_exponent_is_a_slope() -> None:
    rows = [
        {"direction": d, "peer": "auto", "status": status, "size": n, "median_s": n**p,
         "peak_bytes": 5 * n}
        for d, p, status in ((WIDTH, 1.5, "measured"), (SLOTS, 1.0, "measured"),
                             (WIDTH, 9.0, DOES_NOT_FIT))
        for n in (2, 8, 16)
    ]  # fmt: skip
    assert exponent({"results": rows}, WIDTH, "auto") == pytest.approx(1.5)
    assert exponent({"results": rows}, SLOTS, "auto") == pytest.approx(1.0)
    assert exponent({"results": rows}, WIDTH, "auto", "peak_bytes") == pytest.approx(1.0)
    assert math.isfinite(exponent({"results": rows}, SLOTS, "auto", "peak_bytes"))
