"""The recogniser: padding and other lines do not matter, weights say what was read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_course.data import digit_lines
from attn_course.long_sequences import (
    AttentionCRNN,
    BothWays,
    LineNorm,
    Reading,
    Segment,
    attention_inputs,
    character_error_rate,
    columns_read,
    ctc_beam,
    ctc_greedy,
    ctc_loss,
    load_recogniser,
    read_lines,
)
from attn_course.multi_head import MultiHeadAttention

#: One of each kind.
ATTENTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "full": {"attention": "full", "num_heads": 2},
    "sliding": {"attention": "sliding", "window": 3},
    "lopsided": {"attention": "sliding", "window": (4, 1)},
    "block": {"attention": "block", "window": 5},
}
each_attention = pytest.mark.parametrize("options", ATTENTIONS.values(), ids=ATTENTIONS)
each_cell = pytest.mark.parametrize("cell", ["lstm", "gru"])
WIDTHS = torch.tensor([30, 17, 24])


def small(**options: Any) -> AttentionCRNN:
    torch.manual_seed(1)
    model = AttentionCRNN(num_classes=4, height=8, channels=(3, 4), hidden=6, **options).double()
    for norm in model.norms:  # so that empty columns do not stay empty
        nn.init.uniform_(norm.bias, 0.5, 1)  # type: ignore[arg-type]
    if model.attention is not None:  # silent at first
        heads = getattr(model.attention, "heads", model.attention)
        nn.init.xavier_uniform_(heads.W_o.weight)
    return model


def pictures(batch: int = 3, width: int = 30) -> Tensor:
    return torch.rand(batch, 1, 8, width, dtype=torch.float64)


@each_cell
def test_each_line_is_read_back_from_its_own_end(cell: str) -> None:
    """PyTorch's network in both directions, on packed lines."""
    ours, lens = BothWays(3, 4, cell=cell).double(), torch.tensor([6, 1, 4])
    theirs = getattr(nn, cell.upper())(3, 4, batch_first=True, bidirectional=True).double()
    for name, parameter in ours.onward.named_parameters():
        getattr(theirs, name).data.copy_(parameter)
    for name, parameter in ours.back.named_parameters():
        getattr(theirs, f"{name}_reverse").data.copy_(parameter)
    x = torch.randn(3, 6, 3, dtype=torch.float64)
    packed = nn.utils.rnn.pack_padded_sequence(x, lens, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    found = ours(x, lens)
    for i, steps in enumerate(lens):
        torch.testing.assert_close(found[i, :steps], expected[i, :steps])


@each_attention
@each_cell
@pytest.mark.parametrize("filling", [100.0, float("nan")])
def test_padding_does_not_matter(options: dict[str, Any], cell: str, filling: float) -> None:
    model, images = small(cell=cell, **options), pictures()
    images.requires_grad_()
    padding = torch.arange(30) >= WIDTHS[:, None, None, None]
    before, lens = model(images, WIDTHS)
    after, _ = model(images.masked_fill(padding, filling), WIDTHS)
    assert torch.equal(lens, WIDTHS)
    for i, steps in enumerate(lens):
        torch.testing.assert_close(after[i, :steps], before[i, :steps], rtol=0, atol=0)
    real = torch.arange(30) < lens[:, None]
    (gradient,) = torch.autograd.grad(after[real].square().sum(), images)
    assert gradient.isfinite().all() and not gradient[padding.expand_as(gradient)].any()
    parameters = list(model.parameters())
    for gradient in torch.autograd.grad(model(images, WIDTHS)[0][real].sum(), parameters):
        assert gradient.isfinite().all()


@each_attention
@pytest.mark.parametrize("strides", [None, (1, 2), (3, 2)])
def test_a_line_alone_reads_as_in_a_batch(
    options: dict[str, Any], strides: tuple[int, ...] | None
) -> None:
    model, images = small(width_strides=strides, **options), pictures()
    together, lens = model(images, WIDTHS)
    for i, width in enumerate(WIDTHS):
        alone, steps = model(images[i : i + 1, ..., :width])
        assert steps.item() == lens[i] == width // model.stride == alone.shape[1]
        torch.testing.assert_close(alone[0], together[i, : lens[i]])


@each_attention
def test_items_are_independent(options: dict[str, Any]) -> None:
    model, images = small(**options).train(), pictures().requires_grad_()
    log_probs, _ = model(images, WIDTHS)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 30, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(log_probs[1, :17].square().sum(), images)
    assert gradient[1].any() and not gradient[0].any() and not gradient[2].any()


@each_attention
def test_the_weights_are_those_of_the_attention(options: dict[str, Any]) -> None:
    model, images = small(**options), pictures()
    if model.attention is None:
        with pytest.raises(ValueError, match="which is None"):
            model(images, need_weights=True)
        return
    log_probs, lens, weights = model(images, WIDTHS, need_weights=True)
    torch.testing.assert_close(log_probs, model(images, WIDTHS)[0])
    assert weights.shape == (3, options.get("num_heads", 1), 30, 30)
    step = torch.arange(30)
    distance, same = step - step[:, None], step // 5 == step[:, None] // 5
    seen = {
        "full": torch.ones(30, 30, dtype=torch.bool),
        "sliding": (distance >= -3) & (distance <= 3),
        "block": same,
    }[options["attention"]]
    if options.get("window") == (4, 1):
        seen = (distance >= -4) & (distance <= 1)
    for i, steps in enumerate(lens):
        rows = weights[i, :, :steps]
        torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]))
        assert not rows[:, ~(seen[:steps] & (step < steps))].any()
        assert (rows[:, (seen[:steps] & (step < steps))] > 0).all()


@pytest.mark.parametrize("attention", ["full", "sliding", "block"])
def test_attention_is_silent_at_first(attention: str) -> None:
    """What it answers is added to what asked: a model with it starts as one without."""
    window = None if attention == "full" else 3
    torch.manual_seed(1)
    model = AttentionCRNN(
        4, height=8, channels=(3, 4), hidden=6, attention=attention, window=window
    )
    plain, images = AttentionCRNN(4, height=8, channels=(3, 4), hidden=6), pictures().float()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("attention.")}
    plain.load_state_dict(state)
    torch.testing.assert_close(model(images, WIDTHS)[0], plain(images, WIDTHS)[0])
    heads: Any = model.attention if attention == "full" else model.attention.heads
    nn.init.xavier_uniform_(heads.W_o.weight)
    assert not torch.allclose(model(images, WIDTHS)[0], plain(images, WIDTHS)[0])


def test_a_line_is_normalised_by_itself() -> None:
    norm = LineNorm(3).double()
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    x, widths = torch.randn(2, 3, 4, 7, dtype=torch.float64), torch.tensor([7, 5])
    found = norm(x, widths)
    for i, width in enumerate(widths):
        alone = F.instance_norm(x[i : i + 1, ..., :width], weight=norm.weight, bias=norm.bias)
        torch.testing.assert_close(found[i : i + 1, ..., :width], alone)


def test_a_module_as_attention() -> None:
    own = MultiHeadAttention(12, 3).double()
    model = small(attention=own)
    assert model.attention is own
    assert model(pictures(), WIDTHS, need_weights=True)[2].shape == (3, 3, 30, 30)


def test_windows_that_see_everything_are_full_attention() -> None:
    full, images = small(attention="full"), pictures()
    for kind in ("sliding", "block"):
        model = small(attention=kind, window=30)
        state = {
            k.replace("attention.", "attention.heads."): v for k, v in full.state_dict().items()
        }
        model.load_state_dict(state)
        found, expected = model(images, WIDTHS)[0], full(images, WIDTHS)[0]
        for i, steps in enumerate(WIDTHS):
            torch.testing.assert_close(found[i, :steps], expected[i, :steps])


def test_dropout_is_for_training() -> None:
    model, images = small(dropout=0.5), pictures()
    assert not torch.equal(model(images)[0], model(images)[0])
    model.eval()
    assert torch.equal(model(images)[0], model(images)[0])


def test_it_learns() -> None:
    """Two short lines by heart."""
    lines = digit_lines(2, width=32, seed=2, noise=0.0)
    torch.manual_seed(0)
    model = AttentionCRNN(num_classes=10, channels=(6, 8, 12), hidden=24, attention="full")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        loss = ctc_loss(model(lines.images, lines.widths), (lines.labels, lines.lengths))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    readings = read_lines(model, lines.images, lines.widths)
    assert [reading.text(lines.alphabet) for reading in readings] == lines.texts


def test_readings() -> None:
    model, images = small(attention="full").train(), pictures(5)
    widths = torch.tensor([30, 17, 24, 30, 9])
    with torch.no_grad():
        log_probs, lens, weights = model(images, widths, need_weights=True)
    readings = read_lines(model, images, widths, need_columns=True, batch_size=2)
    assert model.training and [r.labels for r in readings] == ctc_greedy(log_probs, lens)
    for i, reading in enumerate(readings):
        assert reading.segments is not None and reading.columns is not None
        assert [segment.label for segment in reading.segments] == reading.labels
        assert reading.columns.shape == (len(reading.labels), 30)
        for row, segment in zip(reading.columns, reading.segments, strict=True):
            torch.testing.assert_close(row, weights[i, 0, segment.start : segment.end].mean(0))
    searched = read_lines(model, images, widths, beam=4)
    assert [r.labels for r in searched] == [
        best[0][0] for best in ctc_beam(log_probs, lens, width=4)
    ]
    assert searched[0].segments is None and searched[0].columns is None
    assert read_lines(model, images, widths)[0].columns is None
    with pytest.raises(ValueError, match="leave beam out"):
        read_lines(model, images, beam=4, need_columns=True)
    assert Reading([1, 3, 3]).text("abc") == "acc"


def test_columns_that_are_read() -> None:
    weights = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
    segments = [Segment(1, 0, 1), Segment(2, 1, 2), Segment(3, 0, 2)]
    found = columns_read(weights, segments, width=7)  # three columns a step, one is left over
    assert found.shape == (3, 7) and not found[:, 6].any()
    torch.testing.assert_close(found[:, :6], torch.full((3, 6), 1 / 6))
    first = columns_read(weights[:1], segments, width=4)
    torch.testing.assert_close(first[0], torch.tensor([0.5, 0.5, 0, 0]))
    torch.testing.assert_close(first[2], torch.tensor([0.375, 0.375, 0.125, 0.125]))
    assert columns_read(weights, [], width=4).shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes must be"),
        ({"hidden": 0}, ValueError, "hidden must be"),
        ({"channels": ()}, ValueError, "channels must hold a number"),
        ({"channels": (4, 0)}, ValueError, "channels must be"),
        ({"height": 7}, ValueError, "height must be at least 8, since 3 convolutions"),
        ({"width_strides": (2,)}, ValueError, "one number for each of 3 convolutions, got 1"),
        ({"width_strides": (1, 0, 1)}, ValueError, "width_strides must be"),
        ({"cell": "rnn"}, ValueError, "cell must be one of 'gru', 'lstm'"),
        ({"dropout": 1.0}, ValueError, "dropout must lie"),
        ({"attention": "wide"}, ValueError, "attention must be one of 'full'"),
        ({"attention": 3}, TypeError, "an nn.Module, got int"),
        ({"attention": "full", "num_heads": 5}, ValueError, "multiple of num_heads"),
        ({"attention": "sliding"}, ValueError, "window must be given exactly if"),
        ({"attention": "full", "window": 3}, ValueError, "window must be given exactly if"),
        ({"window": 3}, ValueError, "window must be given exactly if"),
        ({"attention": "block", "window": 0}, ValueError, "window"),
        ({"attention": "sliding", "window": -1}, ValueError, "window"),
    ],
)
def test_bad_options(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AttentionCRNN(**({"num_classes": 10} | change))


@pytest.mark.parametrize(
    ("images", "widths", "error", "message"),
    [
        (torch.rand(1, 3, 8, 9), None, ValueError, r"shape \[batch, 1, 8, width\], got \[1, 3"),
        (torch.rand(1, 1, 9, 9), None, ValueError, r"shape \[batch, 1, 8, width\]"),
        (torch.rand(1, 8, 9), None, ValueError, r"shape \[batch, 1, 8, width\]"),
        (torch.rand(0, 1, 8, 9), None, ValueError, r"shape \[batch, 1, 8, width\]"),
        (torch.zeros(1, 1, 8, 9).long(), None, TypeError, "images must hold floating"),
        (torch.rand(1, 1, 8, 3), None, ValueError, "at least 4 columns wide, .* got 3"),
        (torch.rand(2, 1, 8, 9), torch.tensor([9, 3]), ValueError, "at least 4 columns"),
        (torch.rand(1, 1, 8, 9), torch.tensor([10]), ValueError, r"widths must .* \[0, 10\)"),
        (torch.rand(1, 1, 8, 9), torch.tensor([9, 9]), ValueError, "widths must have shape"),
        (torch.rand(1, 1, 8, 9), torch.tensor([9.0]), TypeError, "widths must hold integers"),
        (torch.rand(1, 1, 8, 9), [9], TypeError, "widths must be a torch.Tensor"),
    ],
)
def test_bad_images(images: Tensor, widths: Any, error: type[Exception], message: str) -> None:
    model = AttentionCRNN(4, height=8, channels=(2, 2), width_strides=(2, 2), hidden=3)
    with pytest.raises(error, match=message):
        model(images, widths)


def test_labels_that_do_not_fit_are_refused() -> None:
    model = AttentionCRNN(4, height=8, channels=(2, 2), width_strides=(2, 2), hidden=3)
    output = model(torch.rand(1, 1, 8, 12))  # three steps
    ctc_loss(output, (torch.tensor([[1, 2, 1]]), torch.tensor([3])))
    with pytest.raises(ValueError, match=r"fit into its 3 steps, and needs 4"):
        ctc_loss(output, (torch.tensor([[1, 1, 2]]), torch.tensor([3])))


def test_the_recogniser_that_comes_with_the_course_reads() -> None:
    """Less than a tenth of the characters wrong, of few lines; the stored training has more."""
    model = load_recogniser()
    lines = digit_lines(6, width=300, split="test", seed=11)
    readings = read_lines(model, lines.images, lines.widths, need_columns=True)
    texts = [reading.text(lines.alphabet) for reading in readings]
    assert character_error_rate(texts, lines.texts) < 0.1
    assert all(reading.columns is not None for reading in readings)
    with pytest.raises(ValueError, match="no pretrained model 'digit_lines'"):
        load_recogniser("digit_lines")


def test_attention_inputs_are_lines_without_padding() -> None:
    model, images = small(attention="full").train(), pictures(3)
    widths = torch.tensor([30, 16, 24])
    found = attention_inputs(model, images, widths)
    assert model.training and not found.requires_grad
    assert model.attention is not None and not model.attention._forward_pre_hooks
    seen: list[torch.Tensor] = []
    with (
        torch.no_grad(),
        model.attention.register_forward_pre_hook(lambda _, given: seen.append(given[0])),
    ):
        for image, width in zip(images, widths.tolist(), strict=True):
            model.eval()(image[None, :, :, :width])
    torch.testing.assert_close(found, torch.cat([x[0] for x in seen]))


def test_attention_inputs_need_attention_and_lines() -> None:
    with pytest.raises(ValueError, match="model must have attention"):
        attention_inputs(small(attention=None), pictures(1), torch.tensor([30]))
    for count in (0, 2):
        with pytest.raises(ValueError, match=f"got 1 for {count}"):
            attention_inputs(small(attention="full"), pictures(count), torch.tensor([30]))
