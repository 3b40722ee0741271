"""Encoder and decoder as one model that translates."""

from __future__ import annotations

from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attn_course._masks import shorter
from attn_course._validation import check_ids
from attn_course.multi_head import KeyValueCache
from attn_course.transformer.decoder import TransformerDecoder
from attn_course.transformer.encoder import TransformerEncoder
from attn_course.transformer.state import TransformerState


class TransformerWeights(NamedTuple):
    """Every attention weight of a model, before dropout.

    Attributes:
        encoder: ``[batch, num_layers, num_heads, source_len, source_len]``.
        decoder: Self-attention, ``[batch, num_layers, num_heads, target_len, target_len]``.
        cross: ``[batch, num_layers, num_heads, target_len, source_len]``.
    """

    encoder: Tensor
    decoder: Tensor
    cross: Tensor


class Transformer(nn.Module):
    """From a source sentence and the target so far to each next token's logits.

    Logits are a linear map of what the decoder makes of the tokens so far.

    Args:
        encoder: Reads the source.
        decoder: Writes the target.
        tie_weights: Whether a token's row of the target embedding is also its row of the
            output map: its logit is then a dot product with its own vector. It wants
            ``scale_embedding``, which keeps those vectors short. Where both languages share
            one vocabulary, ``model.encoder.embedding.tokens = model.decoder.embedding.tokens``
            ties all three, as in the paper.

    Raises:
        ValueError: The two do not fit together.

    Reference:
        Vaswani et al. (2017), Attention is all you need; Press and Wolf (2017), Using the
        output embedding to improve language models, for tied weights.

    Example:
        >>> size = {"embed_dim": 8, "num_heads": 2, "hidden_dim": 16, "num_layers": 1}
        >>> model = Transformer(TransformerEncoder(9, **size), TransformerDecoder(7, **size))
        >>> source, lens = torch.tensor([[5, 3, 2], [4, 2, 0]]), torch.tensor([3, 2])
        >>> target_input = torch.tensor([[1, 4, 5, 6], [1, 3, 3, 0]])
        >>> model(source, lens, target_input).shape
        torch.Size([2, 4, 7])
    """

    def __init__(
        self,
        encoder: TransformerEncoder,
        decoder: TransformerDecoder,
        *,
        tie_weights: bool = False,
    ) -> None:
        super().__init__()
        if decoder.embed_dim != encoder.embed_dim:
            raise ValueError(
                "decoder must be as wide as the encoder, whose output it reads: "
                f"embed_dim={encoder.embed_dim}, got {decoder.embed_dim}."
            )
        self.encoder, self.decoder = encoder, decoder
        self.output = nn.Linear(decoder.embed_dim, decoder.vocab_size)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        if tie_weights:
            self.output.weight = decoder.embedding.tokens.weight

    @property
    def vocab_size(self) -> int:
        """How many token ids it can write."""
        return self.decoder.vocab_size

    @property
    def device(self) -> torch.device:
        """Where it gives its logits."""
        return self.output.weight.device

    def forward(
        self,
        source: Tensor,
        source_lens: Tensor,
        target_input: Tensor,
        *,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, TransformerWeights]:
        """Score a known target (teacher forcing), all steps at once.

        Args:
            source: Token ids, ``[batch, source_len]``.
            source_lens: How many tokens each source has, ``[batch]``.
            target_input: The token that each step reads, ``[batch, target_len]``: the
                target behind a beginning-of-sentence token. Padding at its end does no
                harm: a step does not see later ones.
            need_weights: Return the attention weights as well.

        Returns:
            The logits of each step's next token, ``[batch, target_len, vocab_size]``; with
            ``need_weights`` also all weights.

        Raises:
            TypeError: An argument does not hold integers.
            ValueError: A shape, an id or a length is out of place.
        """
        read: Any = self.encoder(source, source_lens, need_weights=need_weights)
        memory, *rows = read if need_weights else (read,)
        written: Any = self.decoder(target_input, memory, source_lens, need_weights=need_weights)
        states, *more = written if need_weights else (written,)
        logits: Tensor = self.output(states)
        return (logits, TransformerWeights(*rows, *more)) if need_weights else logits

    def start(
        self,
        source: Tensor,
        source_lens: Tensor,
        *,
        language: None = None,
        use_cache: bool = True,
    ) -> TransformerState:
        """Read the source; the state before the first token.

        Args:
            source: As in ``forward``.
            source_lens: As in ``forward``.
            language: ``None``: this model has one language.
            use_cache: Whether keys and values of earlier tokens are kept. Else each step
                computes all tokens so far anew, as ``forward`` does; the results are the
                same up to rounding.

        Raises:
            TypeError: An argument does not hold integers.
            ValueError: A shape, an id or a length is out of place, or a language is given.
        """
        if language is not None:
            raise ValueError("language must be None: this model writes one language only.")
        memory = self.encoder(source, source_lens)
        lens = shorter(source_lens.to(memory.device), memory.shape[1])
        tokens = torch.empty(len(memory), 0, dtype=torch.long, device=memory.device)
        if not use_cache:
            return TransformerState((memory,) * self.decoder.num_layers, lens, None, tokens)
        past = tuple(KeyValueCache() for _ in self.decoder.layers)
        return TransformerState(self.decoder.remember(memory, lens), lens, past, tokens)

    def step(
        self, token: Tensor, state: TransformerState, *, need_weights: bool = False
    ) -> tuple[Tensor, TransformerState, Tensor | None]:
        """Read one token of each sentence, as in decoding.

        Args:
            token: ``[batch]``.
            state: From ``start`` or from the step before; it stays as it is.
            need_weights: Return the weights of cross-attention as well.

        Returns:
            The logits of the next token ``[batch, vocab_size]``, the new state, and the
            weights ``[batch, num_layers, num_heads, source_len]`` or ``None``.

        Raises:
            TypeError: The tokens are not integers.
            ValueError: A shape or an id is out of place.
        """
        check_ids("token", token, state.tokens.shape[:1], self.vocab_size)
        new = token.to(state.tokens).unsqueeze(1)
        tokens = torch.cat([state.tokens, new], dim=1)
        # Copies: a cache appends to itself, and the caller may go on from here twice.
        past = None if state.past is None else tuple(copy(cache) for cache in state.past)
        x, _, cross = self.decoder.advance(
            tokens if past is None else new,
            state.memory,
            state.lens,
            past=past,
            need_weights=need_weights,
        )
        logits = self.output(x[:, -1])
        weights = None if cross is None else cross[:, :, :, -1]
        return logits, state._replace(past=past, tokens=tokens), weights
