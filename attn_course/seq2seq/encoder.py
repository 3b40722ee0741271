"""The encoder: a recurrent network that reads the source and keeps every state."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from attn_course._validation import check_counts, check_ids, check_tensor
from attn_course.seq2seq._checks import CELLS, check_recurrent


class EncoderOutput(NamedTuple):
    """What the encoder hands to the decoder.

    Attributes:
        states: h_j, the last layer's state at each source token, ``[batch, source_len,
            width]``; zeros at padding.
        final: The state after the last token, for each layer, ``[num_layers, batch,
            width]``: a tuple of one tensor (GRU) or two (LSTM: state and cell).
    """

    states: Tensor
    final: tuple[Tensor, ...]


class Encoder(nn.Module):
    """Read a batch of sentences, forwards or in both directions.

    With both directions, h_j joins the state that has read tokens 1 to j with the one
    that has read the sentence backwards down to j: it knows what stands on both sides.

    Args:
        vocab_size: How many token ids there are.
        embed_dim: Width of a token's embedding.
        hidden_dim: Width of the state of one direction.
        num_layers: Recurrent layers, one upon the other.
        bidirectional: Whether to read backwards as well.
        cell: ``"gru"`` or ``"lstm"``.
        dropout: Of the embeddings and between layers.

    Attributes:
        width: Width of a state h_j: ``hidden_dim``, or twice that in both directions.

    Raises:
        ValueError: A number or the cell is out of place.

    Reference:
        Bahdanau, Cho and Bengio (2015), section 3.2; Cho et al. (2014) for the GRU.

    Example:
        >>> encoder = Encoder(vocab_size=9, embed_dim=4, hidden_dim=8)
        >>> source = torch.tensor([[5, 3, 2], [4, 2, 0]])
        >>> states, (final,) = encoder(source, torch.tensor([3, 2]))
        >>> states.shape, final.shape
        (torch.Size([2, 3, 16]), torch.Size([1, 2, 16]))
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_dim: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = True,
        cell: str = "gru",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_counts(
            vocab_size=vocab_size,
            embed_dim=embed_dim,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
        )
        check_recurrent(cell, dropout)
        self.vocab_size, self.num_layers, self.cell = vocab_size, num_layers, cell
        self.directions = 2 if bidirectional else 1
        self.width = hidden_dim * self.directions
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.rnn = CELLS[cell](
            embed_dim,
            hidden_dim,
            num_layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if num_layers > 1 else 0.0,
        )

    def forward(self, source: Tensor, source_lens: Tensor) -> EncoderOutput:
        """Read.

        Args:
            source: Token ids, ``[batch, source_len]``. What stands past a sentence's
                length is not read.
            source_lens: How many tokens each sentence has, ``[batch]``, at least 1.

        Returns:
            The states and the final state. They do not depend on the padding nor on
            the other sentences of the batch.

        Raises:
            TypeError: An argument does not hold integers.
            ValueError: A shape, an id or a length is out of place.
        """
        here = self.embedding.weight.device
        check_tensor("source", source)
        if source.ndim != 2 or 0 in source.shape:
            raise ValueError(
                f"source must have shape [batch, source_len], got {list(source.shape)}."
            )
        batch, source_len = source.shape
        check_tensor("source_lens", source_lens)
        lens = source_lens.cpu()  # packing wants them there
        check_ids("source_lens", lens, (batch,), source_len + 1)
        if not bool(lens.all()):
            raise ValueError(
                "source_lens must be at least 1, got 0: an empty sentence has no state. "
                "Give it its end-of-sentence token."
            )
        padding = torch.arange(source_len) >= lens.unsqueeze(1)  # [batch, source_len]
        source = source.to(here).masked_fill(padding.to(here), 0)
        check_ids("source", source, (batch, source_len), self.vocab_size)

        embedded = self.dropout(self.embedding(source))
        packed = pack_padded_sequence(embedded, lens, batch_first=True, enforce_sorted=False)
        packed_states, final = self.rnn(packed)
        states, _ = pad_packed_sequence(packed_states, batch_first=True, total_length=source_len)
        parts = final if isinstance(final, tuple) else (final,)
        return EncoderOutput(states, tuple(self._join(part) for part in parts))

    def _join(self, final: Tensor) -> Tensor:
        """[num_layers * directions, batch, hidden] to [num_layers, batch, width]."""
        layers = final.unflatten(0, (self.num_layers, self.directions))
        return layers.transpose(1, 2).flatten(2)
