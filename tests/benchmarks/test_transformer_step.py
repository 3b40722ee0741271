"""d2l's Transformer and ours: one function, the same gradients; and the fault that d2l's has."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from attn_course.benchmarks import transformer_step
from attn_course.benchmarks.d2l_transformer import (
    LectureDecoderBlock,
    LectureState,
    LectureTransformer,
)
from attn_course.benchmarks.trainings.transformer import SIZES, TRAINING
from attn_course.benchmarks.transformer_step import (
    CHAPTER,
    D2L,
    OURS,
    QUICK,
    Sizes,
    answers,
    check,
    make_batch,
    models,
    products,
    run,
    training_step,
)
from attn_course.benchmarks.verify import CheckFailed
from attn_course.transformer import load_translator
from tests.benchmarks.fakes import CPU

needs_d2l = pytest.mark.skipif(
    importlib.util.find_spec("d2l") is None,
    reason="d2l is not installed: python -m attn_course.install_d2l",
)
TINY = QUICK.models[0]
BATCH = make_batch(TINY, 4, 6, CPU)


def logits(model: nn.Module, batch: Any = BATCH) -> torch.Tensor:
    with torch.no_grad():
        scores: torch.Tensor = model(batch.source, batch.lens, batch.target_input)
    return scores


def change_the_last() -> Any:
    target = BATCH.target_input.clone()
    target[:, -1] = (target[:, -1] + 1) % TINY.vocab
    return BATCH._replace(target_input=target)


def test_importing_it_needs_no_d2l() -> None:
    code = (
        "import sys; sys.modules['d2l'] = None; import attn_course.benchmarks.transformer_step; "
        "assert 'd2l.torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_d2l
def test_one_function_in_training_mode() -> None:
    both = {name: model.double() for name, model in models(TINY, CPU).items()}
    with torch.no_grad():  # nothing stays a one or a zero
        for parameter in both[D2L].parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    transformer_step.give(both[OURS], both[D2L].state_dict())  # type: ignore[arg-type]
    ours, theirs = (answers(both[name], BATCH, TINY) for name in (OURS, D2L))
    for mine, other in zip(ours, theirs, strict=True):  # d2l's sinusoids are float32
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@needs_d2l
def test_both_learn_the_same_parameters() -> None:
    both = models(TINY, CPU)
    counts = {
        name: sum(p.numel() for p in model.parameters() if p.requires_grad)
        for name, model in both.items()
    }
    assert counts[OURS] == counts[D2L]
    before = logits(both[OURS])
    for model in both.values():
        step = training_step(model, BATCH)
        for _ in range(3):
            step()
    ours, theirs = (logits(both[name]) for name in (OURS, D2L))
    assert (before - ours).abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


@needs_d2l
def test_in_evaluation_mode_d2ls_sees_the_future() -> None:
    """And ours does not: it computes what both do in training."""
    both = models(TINY, CPU)
    expected = logits(both[OURS])
    for training in (True, False):
        for name, model in both.items():
            model.train(training)
            before, after = (logits(model, batch)[:, :-1] for batch in (BATCH, change_the_last()))
            assert torch.equal(before, after) == (training or name == OURS)
    torch.testing.assert_close(logits(both[OURS]), expected)
    assert (logits(both[D2L])[:, :-1] - expected[:, :-1]).abs().max() > 0.01


@needs_d2l
def test_token_by_token_d2ls_is_right() -> None:
    """What its evaluation mode is for: there is no future yet."""
    both = models(TINY, CPU)
    theirs: Any = both[D2L].eval()
    with torch.no_grad():
        decoder = theirs.decoder
        state = decoder.start(theirs.encoder(BATCH.source, BATCH.lens), BATCH.lens)
        # Each call starts at position 0, so the sinusoids are put right by hand.
        table = decoder.pos_encoding.P.clone()
        rows = []
        for i in range(BATCH.target_input.shape[1]):
            decoder.pos_encoding.P = table[:, i:]
            rows.append(decoder(BATCH.target_input[:, i : i + 1], state))
    torch.testing.assert_close(torch.cat(rows, 1), logits(both[OURS]), rtol=1e-4, atol=1e-4)


@needs_d2l
def test_a_block_alone() -> None:
    torch.manual_seed(0)
    block = LectureDecoderBlock(8, 16, 2)
    memory = torch.rand(2, 3, 8)

    def call(x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = block(x, LectureState(memory, None, [None]))
        return output

    x = torch.rand(2, 4, 8)
    changed = x.clone()
    changed[:, -1] += 1
    assert torch.equal(call(x)[:, :-1], call(changed)[:, :-1])
    block.eval()
    assert not torch.allclose(call(x)[:, :-1], call(changed)[:, :-1])


@needs_d2l
def test_dropout_reaches_every_part() -> None:
    model = LectureTransformer(9, 7, 8, 16, 2, 2, dropout=0.3)
    found = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    # Two of each encoder block's norms and its attention, three and two in a decoder's.
    assert found == [0.3] * (2 * 3 + 2 * 5 + 2)


@needs_d2l
@pytest.mark.parametrize("name", [OURS, D2L])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_wrong_answers_are_refused(name: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of either: the one in float64, which is d2l's, is made before anything goes wrong."""
    made = []

    def spoil(sizes: Sizes, device: torch.device) -> dict[str, nn.Module]:
        both = models(sizes, device)
        made.append(both)
        if len(made) > 1:
            with torch.no_grad():
                next(getattr(both[name], part).parameters()).mul_(1.01)
        return both

    monkeypatch.setattr(transformer_step, "models", spoil)
    with pytest.raises(CheckFailed, match=f"transformer_step: {name}, 6 tokens: error"):
        run(QUICK, CPU, budget_s=0)


@needs_d2l
def test_what_is_checked_has_no_kink_and_what_is_timed_has() -> None:
    for name, model in models(TINY, CPU).items():
        relu = logits(model)
        first, gelu, *gradients = transformer_step.to_check(model, BATCH, TINY)
        torch.testing.assert_close(first, relu, msg=name)
        # Without gradients another path may be faster, whose last bits differ.
        torch.testing.assert_close(gelu.detach(), logits(model), msg=name)
        assert not torch.allclose(gelu, relu), name
        assert len(gradients) == len([p for p in model.parameters() if p.requires_grad])


@needs_d2l
def test_wrong_gradients_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(nn.Module):
        """The same logits, twice the gradient."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
            scores = self.model(*arguments)
            doubled: torch.Tensor = 2 * scores - scores.detach()
            return doubled

    def spoil(sizes: Sizes, device: torch.device) -> dict[str, nn.Module]:
        both = models(sizes, device)
        return both | {OURS: Doubled(both[OURS])}

    monkeypatch.setattr(transformer_step, "models", spoil)
    with pytest.raises(CheckFailed, match=f"transformer_step: {OURS}, 6 tokens: error"):
        check(TINY, CPU)


@needs_d2l
def test_all_that_is_asked_for_is_timed() -> None:
    record = run(QUICK, CPU, budget_s=0)
    rows = [(row["direction"], row["size"], row["peer"]) for row in record["results"]]
    step = "training step, width 16"
    assert rows == [(step, n, name) for _, n in TINY.batches for name in (OURS, D2L)]
    assert [row["ours"] for row in record["results"]] == [True, False] * 2
    assert record["sizes"]["models"][0]["width"] == 16 and record["quick"]


def test_the_chapters_model_is_the_one_it_trains() -> None:
    vocabulary = len(load_translator("grammar_transformer").target)
    mine = (CHAPTER.width, CHAPTER.heads, CHAPTER.hidden, CHAPTER.layers)
    assert mine == tuple(
        SIZES[name] for name in ("embed_dim", "num_heads", "hidden_dim", "num_layers")
    )
    assert CHAPTER.vocab == vocabulary and CHAPTER.batches[0][0] == TRAINING["batch_size"]


def test_the_fewest_products() -> None:
    """By counting: one layer, one sentence, a vocabulary of 5, width 2, hidden 3."""
    sizes = Sizes(batches=(), width=2, hidden=3, layers=1, vocab=5)
    maps, network = 4, 2 * 6  # W x of one token; its feed-forward network
    encoder = 2 * (4 * maps + network) + 2 * (2 * 2 * 2)  # 2 tokens, 2 x 2 pairs
    own = 3 * 4 * maps + 2 * (2 * (1 + 2 + 3))
    cross = (3 * 2 + 2 * 2) * maps + 2 * (3 * 2 * 2)
    total = encoder + own + cross + 3 * network + 3 * 2 * 5
    assert products(sizes, 1, 2, 3) == total
    assert products(sizes, 7, 2, 3) == 7 * total
