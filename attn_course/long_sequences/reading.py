"""Reading lines of text with a recogniser: characters, where they stand, what was looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attn_course._validation import check_counts
from attn_course.data import pretrained
from attn_course.long_sequences.crnn import AttentionCRNN
from attn_course.long_sequences.ctc import Segment, ctc_segments
from attn_course.long_sequences.decoding import ctc_beam, ctc_best_path


class Reading(NamedTuple):
    """What a recogniser makes of a line.

    Attributes:
        labels: The characters, from 1.
        segments: The same with the steps at which each is written: by the best path, which a
            beam search does not follow (then ``None``).
        columns: How the attention of each character is spread over the columns of the image,
            ``[characters, width]``: the mean over its steps and over the heads; ``None``
            unless asked for. Each row sums to 1.
    """

    labels: list[int]
    segments: list[Segment] | None = None
    columns: Tensor | None = None

    def text(self, alphabet: str) -> str:
        """The characters that the labels stand for.

        Example:
            >>> Reading([8, 5]).text("0123456789")
            '74'
        """
        return "".join(alphabet[label - 1] for label in self.labels)


@torch.no_grad()
def read_lines(
    model: AttentionCRNN,
    images: Tensor,
    widths: Tensor | None = None,
    *,
    beam: int | None = None,
    need_columns: bool = False,
    batch_size: int = 16,
) -> list[Reading]:
    """Read lines of text, in evaluation mode.

    Args:
        model: The recogniser; it is left in the mode in which it was.
        images: ``[batch, in_channels, height, width]``.
        widths: How many columns count, ``[batch]``; ``None``: all.
        beam: The width of a beam search; ``None`` reads the best path.
        need_columns: Say which columns each character attends to.
        batch_size: How many lines to read at a time.

    Returns:
        A reading for each line.

    Raises:
        ValueError: As in ``forward``; or both ``beam`` and ``need_columns`` are given: a beam
            sums over paths, so that its characters stand at no step.

    Example:
        >>> model = AttentionCRNN(num_classes=10, attention="full")
        >>> [reading] = read_lines(model, torch.rand(1, 1, 16, 40), need_columns=True)
        >>> len(reading.labels) == len(reading.segments) == len(reading.columns)
        True
    """
    check_counts(batch_size=batch_size)
    if beam is not None and need_columns:
        raise ValueError("need_columns asks for the steps of the best path: leave beam out.")
    was_training = model.training
    model.eval()
    readings: list[Reading] = []
    try:
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            widths_here = None if widths is None else widths[start : start + batch_size]
            log_probs, lens, *weights = model(part, widths_here, need_weights=need_columns)
            if beam is not None:
                found = ctc_beam(log_probs, lens, width=beam)
                readings += [Reading(best[0][0]) for best in found]
                continue
            for i, path in enumerate(ctc_best_path(log_probs, lens)):
                segments = ctc_segments(path)
                columns = None
                if weights:
                    columns = columns_read(weights[0][i], segments, part.shape[3])
                readings.append(Reading([s.label for s in segments], segments, columns))
    finally:
        model.train(was_training)
    return readings


def columns_read(weights: Tensor, segments: Sequence[Segment], width: int) -> Tensor:
    """Spread each character's attention over the columns of the image.

    Args:
        weights: Of one line, ``[num_heads, steps, steps]``.
        segments: The steps at which each character is written.
        width: Of the image. A step stands for ``width // steps`` columns, which share what it
            gets evenly; columns that are left over get nothing.

    Returns:
        ``[characters, width]``: the mean over a character's steps and over the heads.

    Example:
        >>> columns_read(torch.eye(3)[None], [Segment(label=7, start=1, end=3)], width=6)
        tensor([[0.0000, 0.0000, 0.2500, 0.2500, 0.2500, 0.2500]])
    """
    steps = weights.shape[-1]
    stride = width // steps
    mean = weights.mean(0)  # [steps, steps]
    rows = [mean[s.start : s.end].mean(0).repeat_interleave(stride) / stride for s in segments]
    columns = weights.new_zeros(len(segments), width)
    if rows:
        columns[:, : steps * stride] = torch.stack(rows)
    return columns


@torch.no_grad()
def attention_inputs(model: AttentionCRNN, images: Tensor, widths: Tensor) -> Tensor:
    """What the attention of a recogniser gets of many lines, as if they were one.

    Each line is read alone, so that no padding stands between them.

    Args:
        model: A recogniser with attention; it is left in the mode in which it was.
        images: ``[batch, in_channels, height, width]``.
        widths: How many columns of each count, ``[batch]``.

    Returns:
        The steps of all lines, one line after the other, ``[steps, dim]``.

    Raises:
        ValueError: The model has no attention, there are no lines, there is not one width
            for each, or as in ``forward``.

    Example:
        >>> model = AttentionCRNN(num_classes=10, attention="full")
        >>> images, widths = torch.rand(2, 1, 16, 40), torch.tensor([40, 20])
        >>> attention_inputs(model, images, widths).shape[0] == sum(
        ...     len(attention_inputs(model, images[[i]], widths[[i]])) for i in range(2)
        ... )
        True
    """
    if model.attention is None:
        raise ValueError("model must have attention, got one without.")
    if not len(images) or len(images) != len(widths):
        raise ValueError(
            f"widths must hold one for each of at least one image, got {len(widths)} for "
            f"{len(images)}."
        )
    lines: list[Tensor] = []
    was_training = model.training
    model.eval()
    with model.attention.register_forward_pre_hook(lambda _, given: lines.append(given[0][0])):
        try:
            for image, width in zip(images, widths.tolist(), strict=True):
                model(image[None, ..., :width])
        finally:
            model.train(was_training)
    return torch.cat(lines)


def load_recogniser(name: str = "digit_lines_crnn") -> AttentionCRNN:
    """A recogniser that comes with the course, in evaluation mode.

    Args:
        name: Which one: ``"digit_lines_crnn"`` reads ``digit_lines``.

    Raises:
        ValueError: There is none of that name.

    Example:
        >>> from attn_course.data import digit_lines
        >>> lines = digit_lines(1, width=100, split="test")
        >>> [reading] = read_lines(load_recogniser(), lines.images, lines.widths)
        >>> reading.text(lines.alphabet) == lines.texts[0]
        True
    """
    config, state = pretrained(name)
    model = AttentionCRNN(**config["model"])
    model.load_state_dict(state)
    return model.eval()
