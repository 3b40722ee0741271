"""Lines of text: each digit is a real one, in its place, of the split that was asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course.data import NUMERALS, LineBatches, Stage, digit_lines, digits, printed_lines
from attn_course.data import lines as module
from attn_course.data.printed import FONTS

SPLITS = module.SPLITS


def test_shapes_and_padding() -> None:
    lines = digit_lines(20, width=200, seed=1)
    count, longest = lines.labels.shape
    assert lines.images.shape == (20, 1, 16, 200) and lines.images.dtype == torch.float32
    assert lines.widths.shape == lines.lengths.shape == (20,) and count == 20
    assert lines.spans.shape == (20, longest, 2) and longest == lines.lengths.max()
    for i in range(count):
        length, width = int(lines.lengths[i]), int(lines.widths[i])
        assert ((lines.labels[i] > 0) == (torch.arange(longest) < length)).all()
        assert not lines.spans[i, length:].any() and not lines.images[i, ..., width:].any()
        starts, ends = lines.spans[i, :length].T
        assert (starts < ends).all() and (starts[1:] >= ends[:-1]).all()
        assert starts[0] >= 1 and ends[-1] <= width <= 200
        assert len(lines.texts[i]) == length and set(lines.texts[i]) <= set(NUMERALS)
    assert lines.widths.unique().numel() > 5 and lines.lengths.unique().numel() > 2


def test_digits_stand_where_they_are_said_to_stand() -> None:
    """Without noise and slant ink is found inside the spans alone, and is a known digit there."""
    lines = digit_lines(5, width=120, noise=0.0, slant=0.0, split="validation")
    images, labels = module._digits_of("validation")
    drawn = module._draw(images, torch.zeros(len(images)), 16, 16)
    for page, spans, said, length in zip(
        lines.images[:, 0], lines.spans.tolist(), lines.labels, lines.lengths, strict=True
    ):
        outside = torch.ones(120, dtype=torch.bool)
        for (start, end), label in zip(spans[:length], said[:length], strict=True):
            outside[start:end] = False
            candidates = drawn[labels == label - 1]
            windows = candidates.unfold(2, end - start, 1) if end - start <= 16 else None
            assert windows is not None
            difference = (windows - page[:, None, start:end]).abs().amax((1, 3))
            assert difference.min() < 1e-6
        assert not page[:, outside].any()


def test_splits_share_no_digit() -> None:
    parts = {split: module._digits_of(split)[0].flatten(1) for split in SPLITS}
    sizes = [len(part) for part in parts.values()]
    assert sum(sizes) == 1797 and min(sizes) > 150
    assert torch.equal(parts["test"], digits().test_images)
    rows = [{tuple(row) for row in part.tolist()} for part in parts.values()]
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]
    for split in SPLITS:
        assert module._digits_of(split)[1].unique().numel() == 10


def test_what_is_drawn_depends_on_the_seed_and_the_split() -> None:
    first = digit_lines(3, width=90, seed=4)
    torch.manual_seed(99)
    again = digit_lines(3, width=90, seed=4)
    assert all(map(torch.equal, first[:5], again[:5]))
    assert first.texts != digit_lines(3, width=90, seed=5).texts
    other = digit_lines(3, width=90, seed=4, split="test")
    assert not torch.equal(first.images, other.images)


def test_noise_and_slant() -> None:
    still = digit_lines(40, width=64, noise=0.0, slant=0.0)
    noisy = digit_lines(40, width=64, noise=0.3, slant=0.0)
    real = torch.arange(64) < still.widths[:, None, None, None]
    grain = (noisy.images - still.images)[real.expand_as(still.images)]
    assert grain.std().item() == pytest.approx(0.3, rel=0.05)
    assert still.images.min() >= 0 and still.images.max() <= 1
    slanted = digit_lines(40, width=64, noise=0.0, slant=0.6)
    wide, narrow = ((x.spans[:, 0, 1] - x.spans[:, 0, 0]).sum() for x in (slanted, still))
    assert wide > 1.1 * narrow


def centre(rows: Tensor) -> Tensor:
    return (rows * torch.arange(rows.shape[-1])).sum(-1) / rows.sum(-1)


def test_a_shear_moves_the_top_against_the_bottom() -> None:
    stroke = torch.zeros(1, 1, 8, 8)
    stroke[..., 3:5] = 1
    box = 16 + 2 * 3
    left, upright, right = (
        centre(module._draw(stroke, torch.tensor([shear]), 16, box)[0])
        for shear in (-0.3, 0.0, 0.3)
    )
    assert (upright - upright[0]).abs().max() < 1e-4
    slope = (right[15] - right[0]) / 15
    assert abs(slope.item()) == pytest.approx(0.3, abs=0.02)
    torch.testing.assert_close(left - upright, upright - right, atol=1e-3, rtol=0)


@pytest.mark.parametrize("height", [8, 12, 32])
def test_other_heights(height: int) -> None:
    lines = digit_lines(4, width=100, height=height)
    assert lines.images.shape == (4, 1, height, 100)
    assert (lines.spans[:, 0, 1] - lines.spans[:, 0, 0] <= 1.3 * height + 2).all()


def test_the_narrowest_line_holds_a_digit() -> None:
    lines = digit_lines(50, width=24)
    assert (lines.lengths >= 1).all() and (lines.spans[:, 0, 1] <= 24).all()
    with pytest.raises(ValueError, match="width must be at least 24, where one digit fits"):
        digit_lines(1, width=23)


def test_lines_are_about_as_long_as_is_said() -> None:
    lines = digit_lines(100)
    assert 35 < lines.lengths.float().mean() < 45 and lines.widths.min() > 0.6 * 800


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "count must be"),
        ({"height": 0}, "height must be"),
        ({"split": "all"}, "split must be one of 'train'"),
        ({"noise": -0.1}, "noise must be"),
        ({"slant": float("inf")}, "slant must be"),
    ],
)
def test_bad_requests(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        digit_lines(**({"count": 1, "width": 100} | change))


def test_batches_for_training() -> None:
    batches = LineBatches([Stage(32, 3, 2), Stage(90, 2, 3)], seed=7, slant=0.1)
    first, second = list(batches), list(batches)
    assert len(first) == len(batches) == 5
    for i, ((inputs, (labels, lengths)), (again, _)) in enumerate(zip(first, second, strict=True)):
        images, widths = inputs["images"], inputs["widths"]
        assert torch.equal(images, again["images"])
        assert images.shape == (3 if i < 2 else 2, 1, 16, widths.max())
        assert images.shape[3] <= (32 if i < 2 else 90)
        assert labels.shape == (len(images), lengths.max())
    assert not torch.equal(first[0][1][0], first[1][1][0])
    other = next(iter(LineBatches([Stage(32, 3, 2)], seed=8)))
    assert not torch.equal(other[0]["images"][..., :10], first[0][0]["images"][..., :10])
    with pytest.raises(ValueError, match="at least one stage"):
        LineBatches([])
    with pytest.raises(ValueError, match="steps must be an integer"):
        LineBatches([Stage(32, 1, 0)])


@pytest.mark.parametrize("font", FONTS)
def test_print(font: str) -> None:
    texts = ["glyph (A|g), À_", "in a row"]
    lines = printed_lines(texts, font=font, height=20)
    assert lines.texts == texts and lines.alphabet == "".join(sorted(set("".join(texts))))
    assert lines.images.shape == (2, 1, 20, lines.widths.max())
    assert lines.images.min() == 0 and 0.8 < lines.images.max() <= 1
    for page, text, width, spans in zip(
        lines.images[:, 0], texts, lines.widths.tolist(), lines.spans.tolist(), strict=True
    ):
        assert not page[:, width:].any() and all(0 <= a < b <= width for a, b in spans[: len(text)])
    top, bottom = lines.images[0, 0, :3].any(), lines.images[0, 0, -3:].any()
    assert top and bottom  # the accent and the descender


def test_each_character_stands_in_its_span() -> None:
    texts = ["a b", "i|W"]
    lines = printed_lines(texts, font="mono")  # where neighbours do not touch
    for page, text, spans in zip(lines.images[:, 0], texts, lines.spans.tolist(), strict=True):
        outside = torch.ones(page.shape[1], dtype=torch.bool)
        for character, (start, end) in zip(text, spans, strict=True):
            if character != " ":
                assert page[:, start].any() and page[:, end - 1].any()
                outside[start:end] = False
        assert not page[:, outside].any()


def test_letters_stand_on_one_line() -> None:
    page = printed_lines(["axp"], height=32)
    bottoms = [page.images[0, 0, :, a:b].amax(1).nonzero().max() for a, b in page.spans[0].tolist()]
    assert abs(bottoms[0] - bottoms[1]) <= 1 and bottoms[2] > bottoms[0] + 3


def test_fonts_differ_and_so_do_sizes() -> None:
    images = [printed_lines(["agQ"], font=font, width=60).images for font in FONTS]
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    wide = printed_lines(["agQ"], height=32).widths
    assert wide > 1.7 * printed_lines(["agQ"]).widths


def test_print_with_noise_and_a_given_alphabet() -> None:
    lines = printed_lines(["70", "1"], alphabet=NUMERALS, noise=0.2, seed=3, width=50)
    assert lines.labels.tolist() == [[8, 1], [2, 0]] and lines.images.shape[3] == 50
    assert not lines.images[1, ..., lines.widths[1] :].any() and lines.images.min() < 0


@pytest.mark.parametrize(
    ("texts", "change", "error", "message"),
    [
        ("text", {}, TypeError, "sequence of texts"),
        ([1], {}, TypeError, "sequence of texts"),
        ([], {}, ValueError, "at least one text"),
        (["a", ""], {}, ValueError, "none that is empty"),
        (["a\nb"], {}, ValueError, r"of the font only, got '\\n'"),
        (["a漢"], {}, ValueError, "of the font only"),
        (["a"], {"alphabet": "bc"}, ValueError, "of alphabet only, got 'a'"),
        (["abc"], {"width": 5}, ValueError, "width must be at least"),
        (["a"], {"font": "times"}, ValueError, "font must be one of"),
        (["a"], {"noise": -1}, ValueError, "noise"),
        (["a"], {"height": 0}, ValueError, "height"),
    ],
)
def test_bad_print(texts: Any, change: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        printed_lines(texts, **change)
