"""The forum's recogniser in all its forms: right, listed, and what the ledger makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attn_course.benchmarks import long_sequences as bench
from attn_course.benchmarks.long_sequences import (
    BATCHED,
    EXACT,
    GRU,
    HALF,
    HOW,
    LOOP,
    LSTM,
    NONE,
    PEERS,
    POSTED,
    QUICK,
    WHOLE_GRU,
    WHOLE_LSTM,
    Line,
    Sizes,
    answers,
    flops,
    kept,
    kept_line,
    largest_batch,
    loss,
    make_batch,
    make_model,
    memory_table,
    peak_bytes,
    run,
    training_step,
)
from attn_course.benchmarks.verify import CheckFailed
from tests.benchmarks.fakes import CPU

DIRECTIONS = (GRU, LSTM, WHOLE_GRU, WHOLE_LSTM)


def only(monkeypatch: pytest.MonkeyPatch, *peers: str) -> Sizes:
    """Fewer peers and one direction: the same code in less time."""
    monkeypatch.setattr(bench, "PEERS", (*peers, *POSTED))
    return Sizes(**{**vars(QUICK), "work": ((LSTM, (2,)),)})


def test_every_approach_and_remedy_is_there() -> None:
    assert set(HOW) | set(POSTED) == set(PEERS)
    assert EXACT.keys() < set(PEERS) and set(EXACT.values()) < set(PEERS)
    full = dict(Sizes().work)
    assert full[GRU] == (1, 4, 16, 64) and set(full) == set(DIRECTIONS)
    assert (Sizes().length, Sizes().width) == (800, 128)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("peer", PEERS)
def test_shapes_and_steps(direction: str, peer: str) -> None:
    model, batch = make_model(QUICK, direction, peer, CPU), make_batch(QUICK, direction, 3, CPU)
    logits = model(batch.x)
    assert logits.shape == (QUICK.length, 3, QUICK.classes)
    assert logits.dtype == torch.float32
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = loss(model, batch)
    step = training_step(model, batch)
    for _ in range(5):
        step()
    assert loss(model, batch) < first
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_same_parameters_where_the_same_is_computed() -> None:
    for peer, plain in EXACT.items():
        ours, theirs = (make_model(QUICK, WHOLE_GRU, p, CPU).state_dict() for p in (peer, plain))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), peer


@pytest.mark.parametrize(("direction", "layer"), [(GRU, nn.GRU), (LSTM, nn.LSTM)])
def test_the_second_layer(direction: str, layer: type[nn.Module]) -> None:
    model: Any = make_model(QUICK, direction, BATCHED, CPU)
    assert isinstance(model.model.rnn2, layer) and model.model.rnn1.bidirectional
    assert model.front is None
    assert make_model(QUICK, WHOLE_GRU, BATCHED, CPU).front is not None


def test_only_half_computes_in_half() -> None:
    batch = make_batch(QUICK, LSTM, 2, CPU)
    plain, half = (answers(make_model(QUICK, LSTM, p, CPU), batch)[0] for p in (BATCHED, HALF))
    error = (plain - half).abs().max() / plain.abs().max()
    assert 1e-4 < error < 0.1


@pytest.mark.parametrize("peer", [peer for peer in EXACT if peer != HALF])
@pytest.mark.parametrize("parameter", ["output.bias", "mix.weight", "rnn2.weight_hh_l0"])
def test_wrong_answers_are_refused(
    peer: str, parameter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exact one is another model, and is right."""
    sizes = only(monkeypatch, NONE, peer)

    def spoil(*arguments: Any) -> Any:
        model = make_model(*arguments)
        if arguments[2] == peer:
            with torch.no_grad():
                model.model.get_parameter(parameter).add_(0.01)
        return model

    monkeypatch.setattr(bench, "make_model", spoil)
    with pytest.raises(CheckFailed, match=f"long_sequences: {peer}, {LSTM}: error"):
        run(sizes, CPU, budget_s=0)


def test_what_is_kept_is_a_line() -> None:
    for peer in (BATCHED, "fused"):
        line = kept_line(QUICK, GRU, peer, CPU)
        there = kept(QUICK, GRU, peer, 8, CPU)
        assert abs(line.at(8) - there) <= QUICK.linear * there
    assert Line(10, 3).at(4) == 22


def test_what_is_not_a_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = only(monkeypatch, BATCHED)
    monkeypatch.setattr(bench, "kept", lambda s, d, p, batch, device: batch**2)
    with pytest.raises(CheckFailed, match="a batch of 8 keeps 64 bytes, the line through 2 and 4"):
        run(sizes, CPU, budget_s=0)


def test_weights_are_kept_or_not() -> None:
    long = Sizes(**{**vars(QUICK), "length": 200})
    weights = 4 * 2 * 200 * 200
    found = {peer: kept(long, GRU, peer, 2, CPU) for peer in HOW}
    assert found[LOOP] == found[BATCHED] > found[NONE] + weights
    for peer in ("fused", "checkpointed", "sliding window", "block-local"):
        assert found[peer] < found[BATCHED] - 0.8 * weights, peer
    assert found["local, masked"] >= found[BATCHED]
    assert found[HALF] < found[BATCHED]


def test_how_many_fit() -> None:
    model, item = nn.Linear(3, 4), torch.zeros(5)
    # 16 parameters, with gradients and two moments 256 bytes; an item brings 20 and keeps 80.
    assert largest_batch(model, item, Line(44, 80), room=1299) == 9
    assert largest_batch(model, item, Line(44, 80), room=1300) == 10
    assert largest_batch(model, item, Line(44, 80), room=100) == 0


def test_flops_of_the_parts() -> None:
    def count(n: int, batch: int, direction: str = LSTM) -> int:
        return flops(Sizes(length=n), direction, batch)

    assert count(800, 8) == 8 * count(800, 1)
    # Scores and averages: two products of n x n x width, three passes of 2 operations.
    assert count(1600, 1) - 2 * count(800, 1) == 6 * 2 * 128 * (1600**2 - 2 * 800**2)
    assert count(800, 1, GRU) < count(800, 1) < count(800, 1, WHOLE_LSTM)


def test_a_quick_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = only(monkeypatch, NONE, LOOP, BATCHED)
    record = run(sizes, CPU, budget_s=0)
    rows = {row["peer"]: row for row in record["results"]}
    assert set(rows) == {NONE, LOOP, BATCHED, *POSTED}
    for row in rows.values():
        assert (row["direction"], row["size"], row["status"]) == (LSTM, 2, "measured")
        assert row["kept_bytes"] > 0 and row["largest_batch"] > 1000
        assert row["peak_bytes"] is None  # small ones say nothing
    assert rows[NONE]["largest_batch"] > rows[BATCHED]["largest_batch"]
    assert not rows["approach 2.1"]["ours"] and rows[LOOP]["ours"]
    lines = memory_table(record).splitlines()
    assert len(lines) == 1 + len(rows) and lines[1].startswith(f"{LSTM:16}    2  {NONE}")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_the_peak_of_one_step() -> None:
    peak = peak_bytes(LSTM, NONE, 1, CPU)
    assert peak is not None
    at_least = kept(Sizes(), LSTM, NONE, 1, CPU)
    assert at_least / 2 < peak < 20 * at_least


def test_a_failed_measurement_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="measuring memory of batched, RNNs, LSTM"):
        peak_bytes(LSTM, BATCHED, 1, CPU)
