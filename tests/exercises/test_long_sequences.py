"""Chapter 8's checks: their cases, their oracles and what else they see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from attn_course.dot_product import dot_product_attention
from attn_course.exercises import long_sequences_cases as cases
from attn_course.long_sequences import (
    Approach1,
    Approach21,
    WindowedSelfAttention,
    ctc_collapse,
    ctc_enumerate,
    tiles,
    windowed_attention,
)
from attn_course.long_sequences.reference import Window, visible
from tests.exercises.common import PAGES, exact, told

PAGE = PAGES["long_sequences"]
ANSWERS, CHECKS = PAGE.answers, PAGE.checks


# Oracles, and the page's solutions ---------------------------------------------------


def test_attention_is_the_repaired_approach(solved: dict[str, Any]) -> None:
    """And the posted code is the one with both faults."""
    torch.manual_seed(0)
    for faults, name in (((), "attend"), (("axis", "layout"), "posted")):
        model = Approach21(4, 3, 5, faults=faults)
        seen: list[torch.Tensor] = []
        model.rnn2.register_forward_pre_hook(lambda _, given, to=seen: to.append(given[0]))
        x = torch.randn(7, 5, 4)
        model(x)
        states, _ = model.rnn1(x)
        mine = solved[name](x, states, model.w.weight, model.w.bias)
        torch.testing.assert_close(mine, seen[0])
        if not faults:
            oracle = cases._attend(x, states, model.w.weight, model.w.bias)
            torch.testing.assert_close(oracle, seen[0])


def test_the_loop_is_the_package_s(solved: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Approach1(4, 3, 5)
    assert model.mix is not None
    x = torch.randn(6, 3, 4)
    memory, _ = model.rnn1(x)
    for how in (solved["looped"], solved["unlooped"], cases._loop):
        answers = how(memory, model.rnn2, model.mix.weight)
        torch.testing.assert_close(model.output(answers), model(x))
    for case in cases._UNLOOP_CASES:
        inputs = exact(case)
        torch.testing.assert_close(solved["looped"](**inputs), cases._loop(**inputs))


def test_the_network_is_a_gru_in_any_precision() -> None:
    network = cases.Network(4, seed=1)
    x = torch.randn(6, 2, 4)
    states, last = network(x)
    assert states.dtype == torch.float32 and network(x.double())[0].dtype == torch.float64
    again, _ = network(x[3:], network(x[:3])[1])
    torch.testing.assert_close(states[3:], again)
    torch.testing.assert_close(states[-1:], last)
    assert network.calls == 4


def test_ledgers_grow_as_the_formulas_say(solved: dict[str, Any]) -> None:
    """Pairs with the square of the length, everything with the batch."""
    assert cases._attention_bytes(2, 10, 10, 4, 4).tolist() == [320, 320, 0, 800, 0]
    assert int(cases._stack_bytes(2, 10, 4, 3, 4)) == 3 * 2 * (2 * 40 + 100) * 4
    assert solved["stack_bytes"](4, 800, 128, 1) == 4 * 800 * (128 + 800 + 128) * 4


def test_paths_are_read_as_the_package_reads_them() -> None:
    for case in cases._COLLAPSE_CASES:
        assert cases._read(case.inputs["path"]) == ctc_collapse(case.inputs["path"])
    for path in cases._paths(6, 3):
        assert cases._read(path) == ctc_collapse(path)


def test_probabilities_are_the_package_s_and_pytorch_s() -> None:
    for case in cases._PROBABILITY_CASES:
        probs, label = exact(case).values()
        mine = cases._probability(probs, label)
        torch.testing.assert_close(mine, ctc_enumerate(probs.log(), label).exp())
        if label and mine > 0:
            lens = torch.tensor([len(probs)]), torch.tensor([len(label)])
            loss = F.ctc_loss(probs.log()[:, None], torch.tensor([label]), *lens, reduction="sum")
            torch.testing.assert_close(mine, (-loss).exp())


def test_all_texts_together_are_certain() -> None:
    probs = cases._random(3)(4, 3).softmax(1).double()
    said = {tuple(cases._read(path)) for path in cases._paths(4, 3)}
    total = sum(cases._probability(probs, list(text)) for text in said)
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))


def test_windows_are_the_package_s() -> None:
    for case in cases._SLIDING_CASES:
        n, window, dilation = case.inputs.values()
        theirs = visible(n, n, Window(window, window, dilation))
        torch.testing.assert_close(cases._sliding(n, window, dilation), theirs.double())
    for case in cases._BLOCK_CASES:
        n, size = case.inputs.values()
        x = torch.zeros(n, 1)
        _, weights = windowed_attention(x, x, x, window=size, kind="block", need_weights=True)
        torch.testing.assert_close(cases._blocks(n, size), (weights > 0).double())


def test_what_is_heard_moves_the_output() -> None:
    torch.manual_seed(0)
    layers = [WindowedSelfAttention(4, 1, window=2).double() for _ in range(3)]
    x = torch.randn(1, 16, 4, dtype=torch.float64, requires_grad=True)
    y = x
    for layer in layers:
        y = y + layer(y)
    moved = torch.stack([torch.autograd.grad(o.sum(), x, retain_graph=True)[0] for o in y[0]])
    heard = cases._reached(cases._sliding(16, 2, 1), 3)
    torch.testing.assert_close((moved[:, 0] != 0).any(-1).double(), heard)


def test_window_attention_and_its_tiles_are_the_package_s() -> None:
    for case in cases._WINDOW_CASES:
        given = exact(case)
        left, right, block_m, block_n = list(given.values())[3:]
        q, k, v = (given[name] for name in ("query", "key", "value"))
        theirs = dot_product_attention(q, k, v, window=(left, right), impl="reference")
        torch.testing.assert_close(cases._window_attention(**given), theirs)
        count = tiles(len(q), len(q), window=(left, right), block=(block_m, block_n))
        assert int(cases._window_tiles(**given).sum()) == count


def test_the_page_s_predictions() -> None:
    forty = next(case for case in cases._WINDOW_CASES if "forty" in case.name)
    assert cases._window_tiles(**forty.inputs).tolist() == [3, 4, 2]
    assert torch.where(cases._reached(cases._sliding(40, 3, 1), 4)[0])[0].max() == 12
    two = torch.tensor([[0.6, 0.4]] * 2)
    assert cases._probability(two, [1]).item() == pytest.approx(0.64)
    assert cases._probability(two, []).item() == pytest.approx(0.36)


# What a check sees besides numbers ---------------------------------------------------


@pytest.mark.triton
def test_what_the_kernel_s_check_sees_without_a_record(
    solved: dict[str, Any], without_record: None
) -> None:
    """As on a GPU: the numbers, the counts, and what stands around them."""
    CHECKS["8.6"](solved["window_kernel"])
    kernels = {name: (kernel, part) for name, kernel, part in ANSWERS.WRONG["8.6"]}
    for name in ("far edge", "skips nothing", "unaligned", "one tile before"):
        kernel, fragment = kernels[name]
        with np.errstate(all="ignore"):
            assert fragment in told(CHECKS["8.6"], kernel), name


@pytest.mark.triton
def test_counts_that_lie_are_told_by_what_was_loaded() -> None:
    (kernel,) = [kernel for name, kernel, _ in ANSWERS.WRONG["8.6"] if name == "lies"]
    # Queries 0 to 3 see up to one key ahead: two tiles of four keys.
    message = told(CHECKS["8.6"], kernel)
    assert "program 0 says 2 tiles and loads keys number 8 to 11" in message
