"""The decoder: a recurrent network that looks the source up before each word."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attn_course._validation import check_counts, check_ids
from attn_course.seq2seq._checks import CELLS, check_query, check_recurrent
from attn_course.seq2seq.attention import MemoryAttention
from attn_course.seq2seq.encoder import EncoderOutput
from attn_course.seq2seq.state import DecoderState


class AttentionDecoder(nn.Module):
    """Write a sentence, attending to the source's states before each token.

    At step t, with ``s_t`` the state of the last layer and ``y_t`` the token that is read:

        c_t = sum_j alpha(q_t, h_j) h_j,    s_t = RNN([c_t; embed(y_t)], ``s_{t-1}``),
        logits_t = W s_t + b,               q_t = ``s_{t-1}``

    if ``query`` does not say otherwise. Where the encoder's width differs from the decoder's,
    the first state is tanh(W h) of the encoder's final state h, else h itself.

    Args:
        vocab_size: How many token ids there are.
        embed_dim: Width of a token's embedding.
        hidden_dim: Width of the state, and of the hidden layer of an additive score.
        memory_dim: Width of a state of the encoder.
        num_layers: Recurrent layers, as many as the encoder has.
        cell: ``"gru"`` or ``"lstm"``, as in the encoder.
        scoring: ``"additive"``, ``"no_v"`` (additive, its weights v all one), ``"dot"``,
            ``"scaled_dot"``, ``"bilinear"``, ``"cosine"``, ``"uniform"`` (an average); a
            module with ``project_keys`` and ``attend``; or ``None``: no attention, the
            context is the encoder's final state throughout. For the two dot products and
            the cosine, a linear map brings a query of another width to ``memory_dim``.
        query: What the query is made of, joined in this order: ``"state"`` ``s_{t-1}``,
            ``"token"`` the embedding of ``y_t``, ``"context"`` ``c_{t-1}``, ``"language"`` an
            embedding of the target language.
        window: At step t = 0, 1, ... attend only to source positions j with
            |j - t| <= window; ``None`` for all.
        attend_generated: Attend to the earlier ``s_1, ..., s_{t-1}`` as well; through a linear
            map where their width differs from ``memory_dim``.
        num_languages: How many languages there are, if ``query`` holds ``"language"``.
        dropout: Of the embeddings and between layers.

    Raises:
        TypeError: ``scoring`` is a module without the methods it needs.
        ValueError: A number, a name or a combination is out of place.

    Reference:
        Bahdanau, Cho and Bengio (2015), whose first state is tanh(W h) too, with h the
        final state of the backward direction alone; Luong, Pham and Manning (2015),
        section 3.2, for the window ("local-m").

    Example:
        >>> decoder = AttentionDecoder(vocab_size=7, embed_dim=4, hidden_dim=8, memory_dim=16)
        >>> memory = EncoderOutput(torch.randn(2, 3, 16), (torch.randn(1, 2, 16),))
        >>> state = decoder.start(memory, torch.tensor([3, 2]))
        >>> logits, state, weights = decoder.step(torch.tensor([1, 1]), state, need_weights=True)
        >>> logits.shape, weights.shape
        (torch.Size([2, 7]), torch.Size([2, 3]))
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_dim: int,
        memory_dim: int,
        *,
        num_layers: int = 1,
        cell: str = "gru",
        scoring: str | nn.Module | None = "additive",
        query: Sequence[str] = ("state",),
        window: int | None = None,
        attend_generated: bool = False,
        num_languages: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_counts(
            vocab_size=vocab_size,
            embed_dim=embed_dim,
            hidden_dim=hidden_dim,
            memory_dim=memory_dim,
            num_layers=num_layers,
        )
        check_recurrent(cell, dropout)
        check_query(query, num_languages)
        if scoring is None and (window is not None or attend_generated):
            raise ValueError(
                "scoring=None does not attend: it takes no window or attend_generated."
            )
        self.vocab_size, self.memory_dim = vocab_size, memory_dim
        self.num_layers, self.cell = num_layers, cell
        # An average asks for nothing: with this query, all steps can be computed at once.
        self.query = ("token",) if scoring == "uniform" else tuple(query)

        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.language: nn.Embedding | None = None
        if num_languages is not None:
            self.language = nn.Embedding(num_languages, embed_dim)
        self.attention: MemoryAttention | None = None
        if scoring is not None:
            widths = {"state": hidden_dim, "context": memory_dim}
            self.attention = MemoryAttention(
                sum(widths.get(part, embed_dim) for part in self.query),
                memory_dim,
                hidden_dim,
                scoring=scoring,
                window=window,
                attend_generated=attend_generated,
            )
        self.rnn = CELLS[cell](
            memory_dim + embed_dim,
            hidden_dim,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        self.bridge: nn.ModuleList | None = None  # one map for each part of the state
        if memory_dim != hidden_dim:
            parts = 1 if cell == "gru" else 2
            self.bridge = nn.ModuleList(nn.Linear(memory_dim, hidden_dim) for _ in range(parts))
        self.output = nn.Linear(hidden_dim, vocab_size)

    @property
    def recurrent_query(self) -> bool:
        """Whether a step's attention has to wait for the step before."""
        if self.attention is None:
            return False
        return self.attention.attend_generated or bool({"state", "context"} & set(self.query))

    def start(
        self, encoded: EncoderOutput, source_lens: Tensor, *, language: Tensor | None = None
    ) -> DecoderState:
        """The state before the first token; keys are projected here, once a sentence.

        Args:
            encoded: What the encoder made of the source.
            source_lens: As given to the encoder, ``[batch]``.
            language: The ids of the target languages, ``[batch]``.

        Raises:
            ValueError: The language is missing, or a shape or an id is out of place.
        """
        here = self.embedding.weight.device
        memory, batch = encoded.states, encoded.states.shape[0]
        if memory.ndim != 3 or memory.shape[2] != self.memory_dim:
            raise ValueError(
                f"encoded.states must have shape [batch, source_len, {self.memory_dim}], "
                f"got {list(memory.shape)}."
            )
        check_ids("source_lens", source_lens, (batch,), memory.shape[1] + 1)
        if (language is None) != (self.language is None):
            raise ValueError(
                "language must be given exactly if the decoder was made with num_languages."
            )
        spoken = None
        if language is not None and self.language is not None:
            check_ids("language", language, (batch,), self.language.num_embeddings)
            spoken = self.language(language.to(here))

        hidden = tuple(part.to(here) for part in encoded.final)
        context = hidden[0][-1]
        if self.attention is not None:
            context = torch.zeros_like(context)
        if self.bridge is not None:
            maps = zip(self.bridge, hidden, strict=True)
            hidden = tuple(torch.tanh(linear(part)) for linear, part in maps)
        if self.attention is not None:
            memory = memory.to(self.attention.device)
        lens = source_lens.to(memory.device)
        padding = torch.arange(memory.shape[1], device=memory.device) >= lens.unsqueeze(1)
        memory = memory.masked_fill(padding.unsqueeze(2), 0)  # no NaN may reach a projection
        keys, values = self._project(memory)
        return DecoderState(values, keys, lens, hidden, context, spoken, step=0)

    def forward(
        self, target_input: Tensor, state: DecoderState, *, need_weights: bool = False
    ) -> tuple[Tensor, DecoderState, Tensor | None]:
        """Read some tokens that are known, as in training (teacher forcing).

        Args:
            target_input: The token that each step reads, ``[batch, target_len]``.
            state: From ``start``, or where an earlier call left off.
            need_weights: Return the weights as well.

        Returns:
            - The logits of each step's next token, ``[batch, target_len, vocab_size]``;
            - the state after the last step;
            - the weights ``[batch, target_len, key_len]``, or ``None``; of several heads
              ``[batch, num_heads, target_len, key_len]``. With
              ``attend_generated`` the decoder's own states are the last columns.

        Raises:
            TypeError: The tokens are not integers.
            ValueError: A shape or an id is out of place, or weights are asked for where
                there are none.
        """
        if need_weights and self.attention is None:
            raise ValueError("need_weights=True asks for weights, which scoring=None has not.")
        batch = state.context.shape[0]
        check_ids("target_input", target_input, (batch, "target_len"), self.vocab_size)
        embedded = self.dropout(self.embedding(target_input.to(self.embedding.weight.device)))
        # One step at a time only if a step needs the one before to know what to look for.
        pieces = embedded.split(1, dim=1) if self.recurrent_query else (embedded,)
        outputs: list[Tensor] = []
        rows: list[Tensor] = []
        for piece in pieces:
            output, state, weights = self._advance(piece, state, need_weights)
            outputs.append(output)
            if weights is not None:
                rows.append(weights)
        logits = self.output(torch.cat(outputs, dim=1))
        return logits, state, _stack(rows) if need_weights else None

    def step(
        self, token: Tensor, state: DecoderState, *, need_weights: bool = False
    ) -> tuple[Tensor, DecoderState, Tensor | None]:
        """Read one token of each sentence, as in decoding.

        Args:
            token: ``[batch]``.
            state: From ``start`` or from the step before.
            need_weights: Return the weights as well.

        Returns:
            The logits of the next token ``[batch, vocab_size]``, the new state, and the
            weights ``[batch, key_len]`` or ``None``; of several heads ``[batch, num_heads,
            key_len]``.

        Raises:
            TypeError: As in ``forward``.
            ValueError: As in ``forward``.
        """
        check_ids("token", token, (state.context.shape[0],), self.vocab_size)
        logits, state, weights = self(token.unsqueeze(1), state, need_weights=need_weights)
        return logits.squeeze(1), state, None if weights is None else weights.squeeze(-2)

    def _advance(
        self, embedded: Tensor, state: DecoderState, need_weights: bool
    ) -> tuple[Tensor, DecoderState, Tensor | None]:
        """Some steps at once: from [batch, steps, embed_dim] to [batch, steps, hidden_dim]."""
        steps = embedded.shape[1]
        context, weights = state.context.unsqueeze(1).expand(-1, steps, -1), None
        if self.attention is not None:
            context, weights = self.attention(
                self._query(embedded, state), *state[:3], state.step, need_weights=need_weights
            )
            context = context.to(embedded.device)
        inputs = torch.cat([context, embedded], dim=-1)
        hidden = state.hidden if self.cell == "lstm" else state.hidden[0]
        outputs, hidden = self.rnn(inputs, hidden)
        state = state._replace(
            hidden=hidden if isinstance(hidden, tuple) else (hidden,),
            context=context[:, -1],
            step=state.step + steps,
        )
        return outputs, self._remember(outputs, state), weights

    def _query(self, embedded: Tensor, state: DecoderState) -> Tensor:
        """[batch, steps, query_dim]; several steps only if none needs the one before."""
        parts = {
            "state": state.hidden[0][-1].unsqueeze(1),
            "token": embedded,
            "context": state.context.unsqueeze(1),
        }
        if state.language is not None:
            parts["language"] = state.language.unsqueeze(1).expand(-1, embedded.shape[1], -1)
        return torch.cat([parts[part] for part in self.query], dim=-1)

    def _project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, as the attention network wants them."""
        if self.attention is None:
            return memory, memory
        return self.attention.project_keys(memory), self.attention.project_values(memory)

    def _remember(self, outputs: Tensor, state: DecoderState) -> DecoderState:
        """Add the state just reached to the memory, if the decoder attends to its own."""
        if self.attention is None or not self.attention.attend_generated:
            return state
        new = self.attention.match_generated(outputs.to(self.attention.device))
        keys, values = self._project(new)
        return state._replace(
            values=torch.cat([state.values, values], dim=1),
            keys=torch.cat([state.keys, keys], dim=1),
        )


def _stack(rows: list[Tensor]) -> Tensor:
    """Weights of all steps, [..., steps, keys of the last step]; 0 for keys not there yet."""
    longest = rows[-1].shape[-1]
    padded = [nn.functional.pad(row, (0, longest - row.shape[-1])) for row in rows]
    return torch.cat(padded, dim=-2)
