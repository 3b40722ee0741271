"""The forum's approaches: the loop that need not be, and each fault shown alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attn_course.long_sequences.forum import (
    FAULTS,
    Approach1,
    Approach21,
    Approach22,
    ConvolutionStack,
    item_influence,
)
from attn_course.long_sequences.ledger import memory_ledger

LEN, BATCH, DIM, HIDDEN, CLASSES = 23, 3, 5, 4, 6
SAME = ("batched", "checkpointed", "fused")
WINDOWED = ("sliding", "block", "local")
MATRIX = (Approach21, Approach22)


def sequence(length: int = LEN, batch: int = BATCH, dim: int = DIM) -> Tensor:
    return torch.randn(length, batch, dim)


def sized(kind: Any, faults: Collection[str] = (), **options: Any) -> Any:
    return kind(DIM, HIDDEN, CLASSES, faults=faults, **options)


def with_gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))]


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("how", SAME)
def test_the_loop_is_not_needed(how: str, cell: str) -> None:
    loop = Approach1(DIM, HIDDEN, CLASSES, cell=cell)
    at_once = Approach1(DIM, HIDDEN, CLASSES, cell=cell, how=how)
    at_once.load_state_dict(loop.state_dict())
    x = sequence()
    assert (loop(x) - at_once(x)).abs().max() <= 1e-6
    for model in (loop, at_once):
        model.double()
    for mine, posted in zip(*(with_gradients(m, x.double()) for m in (at_once, loop)), strict=True):
        torch.testing.assert_close(mine, posted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("how", SAME)
def test_in_single_precision_gradients_agree_too(how: str) -> None:
    """At the question's length and width, relative to the largest number."""
    loop, at_once = Approach1(16, 8, CLASSES), Approach1(16, 8, CLASSES, how=how)
    at_once.load_state_dict(loop.state_dict())
    x = sequence(200, 2, 16)
    for mine, posted in zip(*(with_gradients(m, x) for m in (at_once, loop)), strict=True):
        assert (mine - posted).abs().max() <= 1e-6 * posted.abs().max().clamp(min=1)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_by_hand(cell: str) -> None:
    """Of one output every number, from the definition."""
    model = Approach1(DIM, HIDDEN, CLASSES, cell=cell).double()
    x = sequence(7).double()
    memory, _ = model.rnn1(x)
    states, _ = model.rnn2(memory)
    item, step = 1, 4
    h, m = states[step, item], memory[:, item]
    scores = torch.stack([(key * h).sum() for key in m])
    weights = scores.exp() / scores.exp().sum()
    context = sum(w * key for w, key in zip(weights, m, strict=True))
    assert model.mix is not None
    expected = model.output(torch.tanh(model.mix.weight @ torch.cat((h, context))))
    torch.testing.assert_close(model(x)[step, item], expected)


def test_the_recurrence_never_reads_what_attention_returns() -> None:
    """Change what is mixed, and the states of the second network stay."""
    model = Approach1(DIM, HIDDEN, CLASSES)
    seen: list[Tensor] = []
    model.rnn2.register_forward_hook(lambda module, args, result: seen.append(result[0]))
    model(sequence())
    before = torch.cat(seen)
    assert len(seen) == LEN
    seen.clear()
    torch.manual_seed(0)
    model = Approach1(DIM, HIDDEN, CLASSES)
    assert model.mix is not None
    nn.init.zeros_(model.mix.weight)
    model.rnn2.register_forward_hook(lambda module, args, result: seen.append(result[0]))
    torch.manual_seed(0)
    Approach1(DIM, HIDDEN, CLASSES)
    model(sequence())
    assert torch.equal(torch.cat(seen), before)


@pytest.mark.parametrize("how", WINDOWED)
def test_a_window_of_all_is_no_window(how: str) -> None:
    full = Approach1(DIM, HIDDEN, CLASSES, how="batched")
    wide = Approach1(DIM, HIDDEN, CLASSES, how=how, window=LEN)
    wide.load_state_dict(full.state_dict())
    x = sequence()
    torch.testing.assert_close(wide(x), full(x), rtol=1e-4, atol=1e-6)
    near = Approach1(DIM, HIDDEN, CLASSES, how=how, window=2)
    near.load_state_dict(full.state_dict())
    assert (near(x) - full(x)).abs().max() > 1e-4


def test_local_attention_is_a_sliding_window() -> None:
    local = Approach1(DIM, HIDDEN, CLASSES, how="local", window=3)
    sliding = Approach1(DIM, HIDDEN, CLASSES, how="sliding", window=3)
    sliding.load_state_dict(local.state_dict())
    x = sequence()
    for a, b in zip(with_gradients(local, x), with_gradients(sliding, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_without_attention() -> None:
    model = Approach1(DIM, HIDDEN, CLASSES, how=None)
    assert not any(name.startswith("mix") for name, _ in model.named_parameters())
    x = sequence()
    torch.testing.assert_close(model(x), model.output(model.rnn2(model.rnn1(x)[0])[0]))


@pytest.mark.parametrize("how", ["loop", *SAME, *WINDOWED, None])
def test_no_item_reads_another(how: str | None) -> None:
    influence = item_influence(Approach1(DIM, HIDDEN, CLASSES, how=how), sequence())
    assert (influence.diag() > 1e-3).all()
    assert (influence - influence.diag().diag()).abs().max() < 1e-6


# Approaches 2.1 and 2.2


@pytest.mark.parametrize("kind", MATRIX)
def test_repaired_no_item_reads_another(kind: Any) -> None:
    x = sequence()
    model = sized(kind)
    assert model(x).shape == (LEN, BATCH, CLASSES)
    influence = item_influence(model, x)
    assert (influence.diag() > 1e-4).all()
    assert (influence - influence.diag().diag()).abs().max() < 1e-6


@pytest.mark.parametrize("kind", MATRIX)
def test_the_batch_becomes_time(kind: Any) -> None:
    """Fault "layout": items read each other; and steps only through attention."""
    x = sequence()
    model = sized(kind, ["layout"])
    y = model(x)
    assert y.shape == (BATCH, LEN, CLASSES)
    influence = item_influence(model, x, axis=0)
    assert (influence > 1e-5).all()
    # The second network takes batches for steps: their order matters, that of steps does not.
    found = torch.randn(BATCH, LEN, 2 * HIDDEN)
    order = torch.randperm(LEN)
    torch.testing.assert_close(model._read(found[:, order]), model._read(found)[:, order])
    backwards = model._read(found.flip(0)).flip(0)
    assert (backwards - model._read(found)).abs().max() > 1e-4


@pytest.mark.parametrize("kind", MATRIX)
def test_which_axis_sums_to_one(kind: Any) -> None:
    x = torch.randn(BATCH, LEN, sized(kind).w.in_features)
    right, wrong = sized(kind).weights(x), sized(kind, ["axis"]).weights(x)
    ones = torch.ones(BATCH, LEN)
    torch.testing.assert_close(right.sum(2), ones)
    torch.testing.assert_close(wrong.sum(1), ones)
    assert (right.sum(1) - 1).abs().max() > 0.1
    assert (wrong.sum(2) - 1).abs().max() > 0.1  # what a step receives in all


@pytest.mark.parametrize("kind", MATRIX)
def test_over_the_wrong_axis_a_bias_is_nothing(kind: Any) -> None:
    """It adds the same to all scores that are compared; over keys it does not."""
    x = torch.randn(BATCH, LEN, sized(kind).w.in_features)
    for faults, matters in (((), True), (("axis",), False)):
        model = sized(kind, faults)
        before = model.weights(x)
        nn.init.constant_(model.w.bias, 3.0)
        assert torch.allclose(model.weights(x), before, atol=1e-4) != matters


@pytest.mark.parametrize("kind", MATRIX)
def test_the_third_argument_is_no_direction(kind: Any) -> None:
    model = sized(kind, ["direction"])
    assert model.rnn1.num_layers == 1 and not model.rnn1.bidirectional
    assert model.rnn1(sequence())[0].shape == (LEN, BATCH, HIDDEN)
    posted = nn.LSTM(DIM, HIDDEN, True)
    assert posted.num_layers == 1 and not posted.bidirectional
    named = {name: p.shape for name, p in posted.named_parameters()}
    assert named == {name: p.shape for name, p in model.rnn1.named_parameters()}


def test_one_direction_has_the_wrong_width() -> None:
    """The second network expects two: with or without all the other faults."""
    for faults in (["direction"], ["direction", "axis", "layout"]):
        with pytest.raises(RuntimeError, match="Expected 8, got 4"):
            sized(Approach21, faults)(sequence())
    posted = Approach21(128, HIDDEN, CLASSES)  # even with the one width that fits
    with pytest.raises(RuntimeError, match="Expected 8, got 4"):
        posted(sequence(dim=128))
    # In 2.2 the scores come first, and their width is that of both directions.
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        sized(Approach22, ["direction"])(sequence())
    with pytest.raises(RuntimeError, match="Expected 512, got 256"):
        Approach22(DIM, 256, CLASSES, faults=["direction", "sizes"]).rnn2(
            torch.randn(LEN, BATCH, 256)
        )


def test_sizes_that_are_hard_coded() -> None:
    for kind, width in ((Approach21, 128), (Approach22, 512)):
        model = sized(kind, ["sizes"])
        assert model.w.weight.shape == (width, width)
        with pytest.raises(RuntimeError, match=f"cannot be multiplied .*{width}x{width}"):
            model(sequence())
    assert Approach21(128, 2, CLASSES, faults=["sizes"])(sequence(3, 1, 128)).shape[0] == 3
    assert Approach22(2, 256, CLASSES, faults=["sizes"])(sequence(3, 1, 2)).shape[0] == 3


def test_in_2_1_scores_come_from_the_input() -> None:
    """And values from the first network: repaired, by hand."""
    model, x = sized(Approach21).double(), sequence(7).double()
    states, _ = model.rnn1(x)
    item = 2
    c, v = x[:, item], states[:, item]
    scores = torch.einsum("id,jd->ij", c @ model.w.weight.T + model.w.bias, c)
    found = torch.einsum("ij,jd->id", scores.exp() / scores.exp().sum(1, keepdim=True), v)
    expected = model.output(model.rnn2(found)[0])
    torch.testing.assert_close(model(x)[:, item], expected)


@pytest.mark.parametrize("window", [1, 2, 5, LEN, LEN + 9])
def test_2_2_attends_inside_blocks(window: int) -> None:
    """Repaired, it is attention with a mask of blocks."""
    model, x = sized(Approach22, window=window).double(), sequence().double()
    states = model.rnn1(x)[0].transpose(0, 1)
    block = torch.arange(LEN) // window
    scores = model.w(states) @ states.mT
    scores = scores.masked_fill(block[:, None] != block, -torch.inf)
    found = (scores.softmax(-1) @ states).transpose(0, 1)
    torch.testing.assert_close(model(x), model.output(model.rnn2(found)[0]))


# Who holds the memory


def kept(model: nn.Module, x: Tensor) -> dict[str, int]:
    with memory_ledger() as ledger:
        model(x)
    return ledger.by_op() | {"total": ledger.total}


def test_the_loop_keeps_as_many_weights_as_the_product() -> None:
    """So if the card could hold approach 1, n x n weights alone did not fill it."""
    x = sequence(50, 2)
    found = {h: kept(Approach1(DIM, HIDDEN, CLASSES, how=h), x) for h in ("loop", "batched")}
    weights = 4 * 2 * 50 * 50
    assert found["loop"]["softmax"] == found["batched"]["softmax"] == weights


def test_one_matrix_of_the_question_is_10_mb() -> None:
    model = Approach21(128, 64, 11, faults=())
    x = sequence(800, 4, 128)
    with memory_ledger() as ledger:
        model.weights(x.transpose(0, 1))
    assert ledger.by_op()["softmax"] == 4 * 4 * 800 * 800 == 10_240_000


@pytest.mark.parametrize("window", [1, 2, 10, 50])
def test_what_a_window_changes_and_what_it_cannot(window: int) -> None:
    x = sequence(50, 2)
    found = kept(sized(Approach22, window=window), x)
    everything = kept(sized(Approach22, window=50), x)
    assert found["softmax"] == 4 * 2 * 50 * window
    assert found["lstm"] == everything["lstm"] > 0


def test_remedies_that_keep_no_weights() -> None:
    x = sequence(200, 2)
    weights = 4 * 2 * 200 * 200
    batched = kept(Approach1(DIM, HIDDEN, CLASSES, how="batched"), x)["total"]
    for how in ("checkpointed", "fused"):
        assert kept(Approach1(DIM, HIDDEN, CLASSES, how=how), x)["total"] < batched - 0.9 * weights
    near = kept(Approach1(DIM, HIDDEN, CLASSES, how="local", window=2), x)["total"]
    assert near >= batched  # a mask hides; it saves nothing


def test_convolutions_keep_what_no_window_changes() -> None:
    """The first layer alone: 64 maps of an image, and where their maxima were, as int64."""
    stack, images = ConvolutionStack(), torch.randn(1, 1, 32, 64)
    with memory_ledger() as ledger:
        sequence = stack(images)
    assert sequence.shape == (17, 1, 512)
    rows = [row for row in ledger.rows if row.kind == "activation"]
    first = [row.bytes for row in rows if row.shape[1:2] == (64,)]
    assert first == [4 * 64 * 32 * 64, 4 * 64 * 16 * 32, 8 * 64 * 16 * 32] or sorted(first) == [
        4 * 64 * 16 * 32, 8 * 64 * 16 * 32, 4 * 64 * 32 * 64
    ]  # fmt: skip


# Bad input


@pytest.mark.parametrize("bad", [sequence(dim=DIM + 1), torch.randn(LEN, DIM), sequence(0)])
def test_sequences_of_the_wrong_shape(bad: Tensor) -> None:
    for model in (Approach1(DIM, HIDDEN, CLASSES), sized(Approach21), sized(Approach22)):
        with pytest.raises(ValueError, match=r"x must have shape \[len, batch, "):
            model(bad)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
        Approach1(DIM, HIDDEN, CLASSES)([1.0])
    with pytest.raises(ValueError, match="cell must be one of 'gru', 'lstm', got 'rnn'"):
        Approach1(DIM, HIDDEN, CLASSES, cell="rnn")
    with pytest.raises(ValueError, match="how must be one of 'loop', 'batched'"):
        Approach1(DIM, HIDDEN, CLASSES, how="fast")
    for window in (0, -1, 2.5):
        with pytest.raises(ValueError, match="window must be an integer of at least 1"):
            Approach1(DIM, HIDDEN, CLASSES, window=window)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="window must be an integer of at least 1"):
            Approach22(DIM, HIDDEN, CLASSES, window=window)  # type: ignore[arg-type]
    for kind in MATRIX:
        with pytest.raises(ValueError, match="faults must be one of 'axis', 'layout'"):
            sized(kind, ["softmax"])
        with pytest.raises(TypeError, match="faults must be a collection of names, got 'axis'"):
            sized(kind, "axis")
        with pytest.raises(ValueError, match="hidden_dim must be an integer of at least 1"):
            kind(DIM, 0, CLASSES)
    assert sized(Approach21, FAULTS).faults == frozenset(FAULTS)


@pytest.mark.parametrize("shape", [(1, 1, 31, 40), (1, 32, 40)])
def test_images_of_the_wrong_height(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must have shape \[batch, channels, 32, width\]"):
        ConvolutionStack()(torch.randn(shape))
    with pytest.raises(ValueError, match="channels must be an integer of at least 1"):
        ConvolutionStack(0)
