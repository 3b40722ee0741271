"""Lines of text as images: print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from attn_course._validation import check_choice, check_counts
from attn_course.data.lines import Lines, add_noise

#: Name -> the file of a font that comes with matplotlib.
FONTS = {"sans": "DejaVuSans.ttf", "mono": "DejaVuSansMono.ttf", "serif": "DejaVuSerif.ttf"}


def printed_lines(
    texts: Sequence[str],
    *,
    width: int | None = None,
    height: int = 16,
    font: str = "sans",
    alphabet: str | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> Lines:
    """Print lines of text with a font that matplotlib ships.

    Args:
        texts: One a line, without line breaks, none empty.
        width: Of the images, in pixels; ``None`` for that of the widest line.
        height: Of the images, in pixels: from the top of the highest letters of the font to
            the bottom of the lowest.
        font: ``"sans"``, ``"mono"`` or ``"serif"``: DejaVu.
        alphabet: The characters that labels stand for; ``None`` for those that occur, in
            order.
        noise: As in ``digit_lines``.
        seed: Of the noise.

    Returns:
        The lines.

    Raises:
        TypeError: ``texts`` is one text or holds something else.
        ValueError: A text is empty, does not fit, or holds a character that the alphabet
            or the font does not have; a number or the font is out of place.

    Example:
        >>> lines = printed_lines(["attend", "to all"])
        >>> lines.alphabet, lines.texts
        (' adelnot', ['attend', 'to all'])
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError("texts must be a sequence of texts, one a line.")
    if not texts or not all(texts):
        raise ValueError("texts must hold at least one text, and none that is empty.")
    check_counts(height=height)
    check_choice("font", font, FONTS)
    if noise < 0:
        raise ValueError(f"noise must be at least 0, got {noise}.")
    alphabet = "".join(sorted(set("".join(texts)))) if alphabet is None else alphabet
    number = {character: k for k, character in enumerate(alphabet, start=1)}
    for text in texts:
        if unknown := sorted(set(text) - set(number)):
            raise ValueError(f"texts must hold characters of alphabet only, got {unknown[0]!r}.")
    printed = [_print(text, height, FONTS[font]) for text in texts]
    widest = max(image.shape[1] for image, _ in printed)
    if width is None:
        width = widest
    elif width < widest:
        raise ValueError(f"width must be at least {widest}, the widest line's, got {width}.")

    longest = max(map(len, texts))
    pages = torch.zeros(len(texts), height, width)
    labels = torch.zeros(len(texts), longest, dtype=torch.int64)
    spans = torch.zeros(len(texts), longest, 2, dtype=torch.int64)
    for i, (text, (image, places)) in enumerate(zip(texts, printed, strict=True)):
        pages[i, :, : image.shape[1]] = image
        labels[i, : len(text)] = torch.tensor([number[character] for character in text])
        spans[i, : len(text)] = torch.tensor(places)
    widths = torch.tensor([image.shape[1] for image, _ in printed])
    lengths = torch.tensor([len(text) for text in texts])
    pages = add_noise(pages, widths, noise, torch.Generator().manual_seed(seed))
    return Lines(pages, widths, labels, lengths, spans, alphabet)


def _print(text: str, height: int, file: str) -> tuple[Tensor, list[tuple[int, int]]]:
    """A line of print, ``[height, width]``, and the columns of each character."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    font = FT2Font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file))
    for character in text:
        if not font.get_char_index(ord(character)):
            raise ValueError(f"texts must hold characters of the font only, got {character!r}.")
    tall = font.ascender - font.descender
    font.set_size(height * font.units_per_EM / tall, 72)
    baseline = round(height * font.ascender / tall)
    places: list[tuple[int, int]] = []
    drawn: list[tuple[Tensor, int, int]] = []  # glyph, its top row, its first column
    pen = 1.0
    for character in text:
        glyph = font.load_char(ord(character))
        font.set_text(character)
        font.draw_glyphs_to_bitmap()
        ink = torch.from_numpy(font.get_image().copy()) / 255
        advance = glyph.linearHoriAdvance / 65536
        start, end = round(pen), round(pen + advance)  # of a space
        if ink.any():
            rows, columns = ink.amax(1).nonzero(), ink.amax(0).nonzero()
            ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            start = max(0, round(pen + glyph.bbox[0] / 64))
            end = start + ink.shape[1]
            drawn.append((ink, baseline - math.ceil(glyph.bbox[3] / 64), start))
        places.append((start, end))
        pen += advance
    image = torch.zeros(height, max(math.ceil(pen), *(end for _, end in places)) + 1)
    for ink, top, start in drawn:
        ink = ink[max(0, -top) :][: height - max(0, top)]
        here = image[max(0, top) :][: ink.shape[0], start : start + ink.shape[1]]
        here.copy_(torch.maximum(here, ink))
    return image, places
