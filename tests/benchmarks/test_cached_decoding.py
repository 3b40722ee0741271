"""Decoding with a cache and without: the same tokens, or nothing is timed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course.benchmarks import cached_decoding, plot_results
from attn_course.benchmarks.cached_decoding import (
    BOS,
    CACHED,
    NAME,
    PARALLEL,
    QUICK,
    UNCACHED,
    check,
    make_model,
    make_source,
    run,
    write,
)
from attn_course.benchmarks.results import store
from attn_course.benchmarks.verify import CheckFailed
from attn_course.seq2seq import greedy_decode
from tests.benchmarks.fakes import CPU

MODEL: Any = make_model(QUICK, CPU)
SOURCE = make_source(QUICK, CPU)


@pytest.mark.parametrize("use_cache", [True, False])
def test_it_writes_what_the_search_does(use_cache: bool) -> None:
    tokens = write(MODEL, SOURCE, 8, use_cache=use_cache).argmax(-1)
    assert tokens.shape == (QUICK.batch, 8)
    absent = next(i for i in range(QUICK.vocab) if i != BOS and i not in tokens)
    searched = greedy_decode(MODEL, *SOURCE, bos=BOS, eos=absent, max_len=8)
    assert torch.equal(tokens, searched.tokens)
    assert len(tokens.unique()) > 2  # not one token again and again


def test_with_the_cache_a_step_computes_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the comparison is about."""
    read: list[int] = []
    advance = MODEL.decoder.advance

    def count(tokens: Tensor, *arguments: Any, **options: Any) -> Any:
        read.append(tokens.shape[1])
        return advance(tokens, *arguments, **options)

    monkeypatch.setattr(MODEL.decoder, "advance", count)
    for use_cache, lengths in ((True, [1, 1, 1, 1]), (False, [1, 2, 3, 4])):
        read.clear()
        write(MODEL, SOURCE, 4, use_cache=use_cache)
        assert read == lengths


def test_errors_of_all_three() -> None:
    errors = check(QUICK, CPU)
    assert list(errors) == list(QUICK.lengths)
    for by_name in errors.values():
        assert list(by_name) == [CACHED, UNCACHED, PARALLEL]
        assert all(0 <= error < 1e-5 for error in by_name.values())


@pytest.mark.parametrize(("name", "changed"), [(CACHED, True), (UNCACHED, False), (PARALLEL, None)])
def test_a_small_error_in_logits_is_refused(
    name: str, changed: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the tokens are right."""
    right_write, right_read = cached_decoding.write, cached_decoding.read

    def wrong_write(*arguments: Any, use_cache: bool) -> Tensor:
        return right_write(*arguments, use_cache=use_cache) * (1.001 if use_cache is changed else 1)

    def wrong_read(model: Any, *arguments: Any) -> Tensor:
        logits = right_read(model, *arguments)
        return logits * 1.001 if changed is None and logits.dtype == torch.float32 else logits

    monkeypatch.setattr(cached_decoding, "write", wrong_write)
    monkeypatch.setattr(cached_decoding, "read", wrong_read)
    with pytest.raises(CheckFailed, match=f"{NAME}: {name}, 4 tokens: error 0.001"):
        run(QUICK, CPU, budget_s=0)


@pytest.mark.parametrize("name", [UNCACHED, PARALLEL])
def test_other_tokens_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cached_decoding.calls

    def wrong(*arguments: Any) -> Any:
        by_name, tokens = right(*arguments)
        call = by_name[name]
        return by_name | {name: lambda: -call()}, tokens

    monkeypatch.setattr(cached_decoding, "calls", wrong)
    with pytest.raises(CheckFailed, match=f"{name}, 4 tokens: other tokens than {CACHED}"):
        run(QUICK, CPU, budget_s=0)


def test_time_is_drawn_over_length(tmp_path: Any) -> None:
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    store(run(QUICK, CPU, budget_s=0), tmp_path)
    figure = plot_results(NAME, device="cpu", directory=tmp_path)
    assert len(figure.axes) == 1
    time: Any = figure.axes[0]
    assert [line.get_label() for line in time.lines] == [CACHED, UNCACHED, PARALLEL]
    assert all(list(line.get_xdata()) == list(QUICK.lengths) for line in time.lines)
    plt.close(figure)
