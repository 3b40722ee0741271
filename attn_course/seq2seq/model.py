"""Encoder and decoder as one model, and where its parts live."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attn_course.seq2seq.decoder import AttentionDecoder
from attn_course.seq2seq.encoder import Encoder
from attn_course.seq2seq.state import DecoderState


class Seq2Seq(nn.Module):
    """From a source sentence and the target so far to each next token's logits.

    Args:
        encoder: Reads the source.
        decoder: Writes the target.

    Raises:
        ValueError: The two do not fit together.

    Reference:
        Sutskever, Vinyals and Le (2014); with attention Bahdanau, Cho and Bengio (2015).

    Example:
        >>> model = Seq2Seq(Encoder(9, 4, 8), AttentionDecoder(7, 4, 8, memory_dim=16))
        >>> source, lens = torch.tensor([[5, 3, 2], [4, 2, 0]]), torch.tensor([3, 2])
        >>> target_input = torch.tensor([[1, 4, 5, 6], [1, 3, 3, 0]])
        >>> model(source, lens, target_input).shape
        torch.Size([2, 4, 7])
    """

    def __init__(self, encoder: Encoder, decoder: AttentionDecoder) -> None:
        super().__init__()
        pairs = {
            "memory_dim": (decoder.memory_dim, encoder.width),
            "num_layers": (decoder.num_layers, encoder.num_layers),
            "cell": (decoder.cell, encoder.cell),
        }
        for name, (ours, theirs) in pairs.items():
            if ours != theirs:
                raise ValueError(
                    f"the decoder's {name} must be what the encoder gives, {theirs!r}, "
                    f"got {ours!r}."
                )
        self.encoder = encoder
        self.decoder = decoder

    @property
    def vocab_size(self) -> int:
        """How many token ids it can write."""
        return self.decoder.vocab_size

    @property
    def device(self) -> torch.device:
        """Where it gives its logits: where the decoder lives."""
        return self.decoder.output.weight.device

    def start(
        self, source: Tensor, source_lens: Tensor, *, language: Tensor | None = None
    ) -> DecoderState:
        """Read the source; the state before the first token is written."""
        encoded = self.encoder(source, source_lens)
        return self.decoder.start(encoded, source_lens, language=language)

    def step(
        self, token: Tensor, state: DecoderState, *, need_weights: bool = False
    ) -> tuple[Tensor, DecoderState, Tensor | None]:
        """Write on by one token, as ``AttentionDecoder.step`` says."""
        return self.decoder.step(token, state, need_weights=need_weights)

    def forward(
        self,
        source: Tensor,
        source_lens: Tensor,
        target_input: Tensor,
        *,
        language: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Score a known target (teacher forcing).

        Args:
            source: Token ids, ``[batch, source_len]``.
            source_lens: How many tokens each source has, ``[batch]``, at least 1.
            target_input: The token that each step reads, ``[batch, target_len]``: the
                target behind a beginning-of-sentence token. Padding at its end does no
                harm: a step does not see later ones.
            language: The ids of the target languages, ``[batch]``.
            need_weights: Return the attention weights as well.

        Returns:
            The logits of each step's next token, ``[batch, target_len, vocab_size]``; with
            ``need_weights`` also the weights, ``[batch, target_len, source_len]``, or
            ``[batch, target_len, source_len + target_len - 1]`` where the decoder attends
            to its own states as well.

        Raises:
            TypeError: An argument does not hold integers.
            ValueError: A shape, an id or a length is out of place.
        """
        state = self.start(source, source_lens, language=language)
        logits, _, weights = self.decoder(target_input, state, need_weights=need_weights)
        return (logits, weights) if need_weights else logits


def place(model: Seq2Seq, devices: Sequence[torch.device | str]) -> Seq2Seq:
    """Put encoder, attention and decoder on devices of their own.

    The model takes its inputs from any device, moves what crosses a boundary, and gives
    logits where the decoder is and weights where the attention is.

    Args:
        model: Changed in place, as ``nn.Module.to`` does.
        devices: Of encoder, attention and decoder. One serves all three; of two, the
            second serves attention and decoder.

    Returns:
        The model.

    Raises:
        ValueError: There are not one to three devices.

    Example:
        >>> model = Seq2Seq(Encoder(9, 4, 8), AttentionDecoder(7, 4, 8, memory_dim=16))
        >>> model = place(model, ["cpu", "cpu", "cpu"])
    """
    if isinstance(devices, str) or not 1 <= len(devices) <= 3:
        raise ValueError(f"devices must be a list of 1 to 3 devices, got {devices!r}.")
    encoder, attention, decoder = [*devices, devices[-1], devices[-1]][:3]
    model.encoder.to(encoder)
    model.decoder.to(decoder)
    if model.decoder.attention is not None:
        model.decoder.attention.to(attention)
    return model
