"""A text recogniser: convolutions, a recurrent network, attention, another one, CTC.

It is the model of the forum's question. Each column of the image becomes a step; nothing says
which columns a character covers. Two things must not matter, and the layers see to it: what
stands past the end of a line, and which other lines are in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
from attn_course.long_sequences.layer import WindowedSelfAttention
from attn_course.long_sequences.recurrent import BothWays, LineNorm
from attn_course.multi_head import MultiHeadAttention

#: What may stand between the two recurrent networks, by name.
ATTENTIONS = ("full", "sliding", "block")


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
            ``log p_t(k)``, ``[batch, steps, 1 + num_classes]``, class 0 the blank; and how many
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
