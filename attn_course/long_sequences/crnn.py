"""A text recogniser: convolutions, a recurrent network, attention, another one, CTC.

It is the model of the forum's question. Each column of the image becomes a step; nothing says
which columns a character covers. Two things must not matter, and the layers see to it: what
stands past the end of a line, and which other lines are in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_course._validation import (
    check_choice,
    check_counts,
    check_dropout,
    check_floating,
    check_ids,
    check_tensor,
)
from attn_course.data import pretrained
from attn_course.long_sequences.ctc import Segment, ctc_beam, ctc_best_path, ctc_segments
from attn_course.long_sequences.layer import WindowedSelfAttention
from attn_course.multi_head import MultiHeadAttention

_CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}

#: What may stand between the two recurrent networks, by name.
ATTENTIONS = ("full", "sliding", "block")


class BothWays(nn.Module):
    """A recurrent network in each direction; each line is read back from its own end.

    ``nn.LSTM(bidirectional=True)`` would read a short line's padding first on the way back.
    Packing prevents that, and costs a CPU its fast path: here each line is turned round
    within its length instead, and read by a second network.

    Args:
        input_dim: Width of a step.
        hidden_dim: Width of a state of one direction.
        cell: ``"lstm"`` or ``"gru"``. A CPU trains an LSTM several times faster: PyTorch has
            a fused one, and none for the GRU.

    Raises:
        ValueError: A number or the cell is out of place.

    Example:
        >>> network = BothWays(input_dim=3, hidden_dim=4)
        >>> network(torch.rand(2, 5, 3), torch.tensor([5, 2])).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, input_dim: int, hidden_dim: int, *, cell: str = "lstm") -> None:
        super().__init__()
        check_counts(input_dim=input_dim, hidden_dim=hidden_dim)
        check_choice("cell", cell, _CELLS)
        self.onward = _CELLS[cell](input_dim, hidden_dim, batch_first=True)
        self.back = _CELLS[cell](input_dim, hidden_dim, batch_first=True)

    def forward(self, x: Tensor, lens: Tensor) -> Tensor:
        """Read ``[batch, steps, input_dim]``; states of both, ``[batch, steps, 2 * hidden_dim]``.

        Args:
            x: The steps.
            lens: How many count, ``[batch]``. States past them mean nothing.
        """
        step = torch.arange(x.shape[1], device=x.device)
        last = lens[:, None] - 1
        turned = (last - step).where(step <= last, step)[..., None]  # its own inverse
        onward, _ = self.onward(x)
        back, _ = self.back(x.take_along_dim(turned, 1))
        return torch.cat((onward, back.take_along_dim(turned, 1)), 2)


class LineNorm(nn.Module):
    """Give each channel of each line mean 0 and variance 1, then a scale and a shift.

    Batch normalisation takes the mean over all lines and over padding: neither must matter
    here. This takes it over the columns that count of one line.

    Args:
        channels: How many there are.
        eps: Added to the variance.

    Reference:
        Ulyanov, Vedaldi and Lempitsky (2016), Instance normalization.

    Example:
        >>> norm = LineNorm(channels=1)
        >>> norm(torch.tensor([[[[1.0, 3.0, 9.0]]]]), torch.tensor([2])).detach()[..., :2]
        tensor([[[[-1.0000,  1.0000]]]])
    """

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        check_counts(channels=channels)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor, widths: Tensor) -> Tensor:
        """Normalise ``[batch, channels, height, width]``, of which ``widths`` columns count."""
        column = torch.arange(x.shape[3], device=x.device)
        share = (column < widths[:, None]).to(x) / (widths[:, None] * x.shape[2])
        share = share[:, None, None]  # of each pixel in the mean, [batch, 1, 1, width]
        mean = (x * share).sum((2, 3), keepdim=True)
        centred = x - mean
        variance = (centred.square() * share).sum((2, 3), keepdim=True)
        scale = self.weight[:, None, None] * (variance + self.eps).rsqrt()
        return centred * scale + self.bias[:, None, None]


class AttentionCRNN(nn.Module):
    """Read a line of text from an image: convolutions -> RNN1 -> attention -> RNN2 -> CTC.

    Convolutions halve the height, and the width only where ``width_strides`` says so. What
    attention answers is added to what asked. Attention that has a name is silent at first, so
    that the model begins as the one without.

    Args:
        num_classes: How many characters there are, without the blank.
        height: Of the images, in pixels: at least 2 for each convolution.
        in_channels: Of the images.
        channels: Of each convolution's output.
        width_strides: By how much each divides the width; ``None``: by 1, a step a column.
        hidden: Width of a recurrent state of one direction.
        cell: Of both recurrent networks, ``"lstm"`` or ``"gru"``.
        attention: ``None`` for none, ``"full"``, ``"sliding"``, ``"block"``, or a module that
            is called as ``WindowedSelfAttention`` is, for ``[batch, steps, 2 * hidden]``.
        num_heads: Of the attention, if it has a name.
        window: Steps to each side, or of a block; exactly where it slides or has blocks.
        dropout: Of what goes into each recurrent network, and of the last states.

    Raises:
        TypeError: ``attention`` is neither a name nor a module.
        ValueError: A number, a name or a combination is out of place.

    Reference:
        Shi, Bai and Yao (2017), An end-to-end trainable neural network for image-based
        sequence recognition, for the model without attention.

    Example:
        >>> model = AttentionCRNN(num_classes=10, attention="full")
        >>> log_probs, lens = model(torch.rand(2, 1, 16, 90), torch.tensor([90, 40]))
        >>> log_probs.shape, lens
        (torch.Size([2, 90, 11]), tensor([90, 40]))
    """

    def __init__(
        self,
        num_classes: int,
        *,
        height: int = 16,
        in_channels: int = 1,
        channels: Sequence[int] = (8, 16, 32),
        width_strides: Sequence[int] | None = None,
        hidden: int = 48,
        cell: str = "lstm",
        attention: str | nn.Module | None = None,
        num_heads: int = 1,
        window: int | tuple[int, int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, height=height, in_channels=in_channels, hidden=hidden)
        check_dropout("dropout", dropout)
        if not channels:
            raise ValueError("channels must hold a number for each convolution, got none.")
        strides = [1] * len(channels) if width_strides is None else list(width_strides)
        if len(strides) != len(channels):
            raise ValueError(
                f"width_strides must hold one number for each of {len(channels)} convolutions, "
                f"got {len(strides)}."
            )
        for count, stride in zip(channels, strides, strict=True):
            check_counts(channels=count, width_strides=stride)
        if height < 2 ** len(channels):
            raise ValueError(
                f"height must be at least {2 ** len(channels)}, since {len(channels)} "
                f"convolutions halve it, got {height}."
            )
        self.num_classes, self.height, self.in_channels = num_classes, height, in_channels
        self.strides, self.stride = strides, torch.Size(strides).numel()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False)
            for a, b in zip((in_channels, *channels), channels, strict=False)
        )
        self.norms = nn.ModuleList(LineNorm(count) for count in channels)
        width = 2 * hidden
        self.rnn1 = BothWays(channels[-1] * (height >> len(channels)), hidden, cell=cell)
        self.attention = _attention(attention, width, num_heads, window)
        self.norm = LineNorm(width)
        self.rnn2 = BothWays(width, hidden, cell=cell)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 1 + num_classes)

    def forward(
        self, images: Tensor, widths: Tensor | None = None, *, need_weights: bool = False
    ) -> tuple[Tensor, ...]:
        """Score the classes at each step.

        Args:
            images: ``[batch, in_channels, height, width]``.
            widths: How many columns count, ``[batch]``; ``None``: all.
            need_weights: Return the weights of the attention as well.

        Returns:
            log p_t(k), ``[batch, steps, 1 + num_classes]``, class 0 the blank; and how many
            steps count, ``[batch]``. With ``need_weights`` also the weights: which steps each
            step reads, ``[batch, num_heads, steps, steps]``.

        Raises:
            TypeError: An argument has the wrong kind of numbers.
            ValueError: A shape or a width is out of place, an image is too narrow, or there
                is no attention whose weights could be returned.
        """
        widths = self._check(images, widths)
        if need_weights and self.attention is None:
            raise ValueError("need_weights asks for the weights of an attention, which is None.")
        x = _blank_out(images, widths)
        lens = widths
        for convolution, norm, stride in zip(
            self.convolutions, self.norms, self.strides, strict=True
        ):
            x = F.max_pool2d(norm(convolution(x), lens).relu(), (2, stride))
            lens = lens // stride
            x = _blank_out(x, lens)  # a shift and a neighbour leave something in the padding
        x = x.flatten(1, 2).transpose(1, 2)  # [batch, steps, channels * rows]
        x = self.rnn1(self.dropout(x), lens)
        weights = None
        if self.attention is not None:
            found = self.attention(x, **self._padding(lens, x), need_weights=need_weights)
            answer, weights = found if need_weights else (found, None)
            x = x + answer
        # What all steps share tells none of them anything, and fast attention learns to share.
        x = self.norm(x.mT[:, :, None], lens)[:, :, 0].mT
        x = self.rnn2(self.dropout(x), lens)
        log_probs = self.head(self.dropout(x)).log_softmax(-1)
        return (log_probs, lens) if weights is None else (log_probs, lens, weights)

    @staticmethod
    def _padding(lens: Tensor, x: Tensor) -> dict[str, Tensor]:
        """``valid_lens`` where there is padding: attention is faster where there is none."""
        padded = lens.is_cuda or int(lens.amin()) < x.shape[1]
        return {"valid_lens": lens} if padded else {}

    def _check(self, images: Tensor, widths: Tensor | None) -> Tensor:
        """The widths, checked; on CUDA they are taken on trust: looking would make it wait."""
        check_floating("images", images)
        expected = (self.in_channels, self.height)
        if images.ndim != 4 or tuple(images.shape[1:3]) != expected or not len(images):
            raise ValueError(
                f"images must have shape [batch, {self.in_channels}, {self.height}, width], "
                f"got {list(images.shape)}."
            )
        batch, width = len(images), images.shape[3]
        narrowest = width
        if widths is None:
            widths = torch.full((batch,), width, device=images.device)
        else:
            check_tensor("widths", widths)
            check_ids("widths", widths, (batch,), width + 1)
            widths = widths.to(images.device, torch.int64)
            if not widths.is_cuda:
                narrowest = int(widths.amin())
        if narrowest < self.stride:
            raise ValueError(
                f"images must be at least {self.stride} columns wide, which make a step, "
                f"got {narrowest}."
            )
        return widths


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


def _attention(
    attention: str | nn.Module | None,
    width: int,
    num_heads: int,
    window: int | tuple[int, int] | None,
) -> Any:
    """The module between the recurrent networks, or ``None``."""
    windowed = attention in ("sliding", "block")
    if windowed != (window is not None):
        raise ValueError(
            "window must be given exactly if attention is 'sliding' or 'block', got "
            f"{window!r} with {attention!r}."
        )
    if attention is None or isinstance(attention, nn.Module):
        return attention
    if not isinstance(attention, str):
        raise TypeError(
            f"attention must be None, a name or an nn.Module, got {type(attention).__name__}."
        )
    check_choice("attention", attention, ATTENTIONS)
    made: Any
    if attention == "full":
        made = heads = MultiHeadAttention(width, num_heads)
    else:
        assert window is not None
        made = WindowedSelfAttention(width, num_heads, window, kind=attention)
        heads = made.heads
    nn.init.zeros_(heads.W_o.weight)  # silent at first: the model begins as one without
    return made


def _blank_out(x: Tensor, widths: Tensor) -> Tensor:
    """Zero the columns of ``[batch, channels, height, width]`` past each item's width."""
    past = torch.arange(x.shape[3], device=x.device) >= widths[:, None]
    return x.masked_fill(past[:, None, None], 0)
