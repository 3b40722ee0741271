"""Lines of text as images: handwritten digits side by side."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course._validation import check_choice, check_counts
from attn_course.data.real import _split, digits

#: The characters of ``digit_lines``.
NUMERALS = "0123456789"

#: Who may see which of scikit-learn's digits.
SPLITS = ("train", "validation", "test")

#: A column belongs to a character if a pixel of it has at least this much ink.
_INK = 0.15


class Lines(NamedTuple):
    """Lines of text, padded to one width. 0 is paper and 1 is ink, before noise.

    Attributes:
        images: ``[count, 1, height, width]``; zeros past the end of a line.
        widths: How many columns each line has, int64, ``[count]``.
        labels: Its characters as numbers from 1, int64, ``[count, longest]``: label k is
            ``alphabet[k - 1]``. Padding is 0, which CTC uses as its blank.
        lengths: How many characters it has, int64, ``[count]``.
        spans: The first column of each character and the one after its last, int64,
            ``[count, longest, 2]``; zeros at padding.
        alphabet: The characters that labels stand for.
    """

    images: Tensor
    widths: Tensor
    labels: Tensor
    lengths: Tensor
    spans: Tensor
    alphabet: str

    @property
    def texts(self) -> list[str]:
        """What each line says."""
        rows = zip(self.labels.tolist(), self.lengths.tolist(), strict=True)
        return ["".join(self.alphabet[k - 1] for k in row[:n]) for row, n in rows]


class Stage(NamedTuple):
    """A part of a training: how wide its lines are, how many a step, how many steps."""

    width: int
    batch_size: int
    steps: int


class LineBatches:
    """Digit lines to train on, stage after stage; each step has lines of its own.

    Made for ``fit``: it gives ``({"images": ..., "widths": ...},
    (labels, lengths))``. A batch is cut to its widest line. Iterating again gives the same
    batches.

    Args:
        stages: One after the other: narrow lines first, since on wide ones a recogniser that
            knows nothing yet learns to write nothing at all.
        seed: Of everything that is drawn.
        options: Of ``digit_lines``.

    Raises:
        ValueError: There is no stage, or one holds a number below 1.

    Example:
        >>> batches = LineBatches([Stage(width=32, batch_size=2, steps=3)])
        >>> len(batches)
        3
        >>> inputs, (labels, lengths) = next(iter(batches))
        >>> inputs["images"].shape[:3]
        torch.Size([2, 1, 16])
    """

    def __init__(self, stages: Sequence[Stage], *, seed: int = 0, **options: Any) -> None:
        if not stages:
            raise ValueError("stages must hold at least one stage, got none.")
        for stage in stages:
            check_counts(width=stage.width, batch_size=stage.batch_size, steps=stage.steps)
        self.stages, self.seed, self.options = list(stages), seed, options

    def __len__(self) -> int:
        """How many steps there are."""
        return sum(stage.steps for stage in self.stages)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], tuple[Tensor, Tensor]]]:
        """Draw the lines of each step."""
        generator = torch.Generator().manual_seed(self.seed)
        for stage in self.stages:
            for _ in range(stage.steps):
                drawn = torch.randint(2**62, (), generator=generator).item()
                lines = digit_lines(
                    stage.batch_size, width=stage.width, seed=int(drawn), **self.options
                )
                images = lines.images[..., : int(lines.widths.max())]
                yield {"images": images, "widths": lines.widths}, (lines.labels, lines.lengths)


def digit_lines(
    count: int,
    *,
    width: int = 800,
    height: int = 16,
    split: str = "train",
    seed: int = 0,
    noise: float = 0.1,
    slant: float = 0.3,
) -> Lines:
    """Draw lines of handwritten digits: scikit-learn's, side by side.

    Each line has a length, a slant and a spacing of its own. At the default size it holds
    about 40 digits. A digit of one split never occurs in another; but the 13 people who
    wrote them may.

    Args:
        count: How many lines.
        width: Of the images, in pixels; lines fill at least 0.7 of it.
        height: Of the images and of the digits, which are 8 pixels high in the data set.
        split: Whose digits to take: ``"train"``, ``"validation"`` or ``"test"``.
        seed: Chooses digits, lengths, slants, spacings and noise.
        noise: Standard deviation of what is added to each pixel of a line.
        slant: The largest shear to either side, in columns a row.

    Returns:
        The lines.

    Raises:
        ValueError: A number or the split is out of place, or a digit does not fit.

    Reference:
        Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits.

    Example:
        >>> lines = digit_lines(3, width=100, split="test")
        >>> lines.images.shape
        torch.Size([3, 1, 16, 100])
        >>> [len(text) for text in lines.texts] == lines.lengths.tolist()
        True
    """
    check_counts(count=count, width=width, height=height)
    check_choice("split", split, SPLITS)
    for name, number in (("noise", noise), ("slant", slant)):
        if not 0 <= number < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {number}.")
    box = height + 2 * math.ceil(slant * height / 2)  # columns that a sheared digit may take
    if width < box + 2:
        raise ValueError(f"width must be at least {box + 2}, where one digit fits, got {width}.")
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    images, numerals = _digits_of(split)
    most = math.ceil(width / (0.6 * height))  # digits that are drawn; those that fit stay
    chosen = torch.randint(len(images), (count, most), generator=generator)
    shear = uniform(count, 1, low=-slant, high=slant).expand(-1, most)
    glyphs = _draw(images[chosen.flatten()], shear.flatten(), height, box)
    inked = glyphs.amax(1) > _INK  # [count * most, box]
    first = inked.int().argmax(1)
    ink_width = (box - inked.flip(1).int().argmax(1) - first).view(count, most)

    spacing = uniform(count, 1, low=1, high=9)
    gaps = (spacing * uniform(count, most, low=0.5, high=1.5)).round().long()
    gaps[:, 0] = torch.randint(1, 4, (count,), generator=generator).clamp_max(width - box)
    ends = (gaps + ink_width).cumsum(1)
    starts = ends - ink_width
    room = uniform(count, 1, low=0.7 * width, high=width)
    stays = ends < room
    stays[:, 0] = True
    lengths = stays.sum(1)
    last = ends.gather(1, lengths[:, None] - 1)[:, 0]
    margin = torch.randint(1, 4, (count,), generator=generator)
    widths = (last + margin).clamp_max(width)

    # Each column of a glyph goes to a row of the page, [count * width, height].
    column = torch.arange(box)
    target = starts.view(-1, 1) + column - first[:, None]  # [count * most, box]
    inside = (column >= first[:, None]) & (column < first[:, None] + ink_width.view(-1, 1))
    inside &= stays.view(-1, 1)
    line = torch.arange(count).repeat_interleave(most)[:, None]
    page = torch.zeros(count * width, height)
    page[(line * width + target)[inside]] = glyphs.transpose(1, 2)[inside]
    pages = page.view(count, width, height).transpose(1, 2)

    longest = int(lengths.max())
    stays = stays[:, :longest]
    labels = (numerals[chosen[:, :longest]] + 1).where(stays, 0)
    spans = torch.stack((starts, ends), -1)[:, :longest].where(stays[..., None], 0)
    pages = add_noise(pages, widths, noise, generator)
    return Lines(pages, widths, labels, lengths, spans, NUMERALS)


@functools.cache
def _digits_of(split: str) -> tuple[Tensor, Tensor]:
    """Images ``[n, 1, 8, 8]`` and the digits that they show."""
    data = digits()
    images, labels = data.test_images, data.test_labels
    if split != "test":
        groups = [(data.train_labels == digit).nonzero()[:, 0] for digit in range(10)]
        rows = _split(groups, 0.15, seed=0)[SPLITS.index(split)]
        images, labels = data.train_images[rows], data.train_labels[rows]
    return images.view(-1, 1, 8, 8), labels


def _draw(images: Tensor, shear: Tensor, height: int, box: int) -> Tensor:
    """Enlarge and shear digits ``[n, 1, 8, 8]`` to ``[n, height, box]``."""
    affine = torch.zeros(len(images), 2, 3)
    affine[:, 0, 0] = box / height
    affine[:, 0, 1] = shear
    affine[:, 1, 1] = 1
    grid = F.affine_grid(affine, [len(images), 1, height, box], align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)[:, 0]


def add_noise(pages: Tensor, widths: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """``[count, height, width]`` to ``[count, 1, height, width]``; padding stays zero."""
    grain = noise * torch.randn(pages.shape, generator=generator)
    real = torch.arange(pages.shape[2]) < widths[:, None, None]
    return (pages + grain * real)[:, None].contiguous()
