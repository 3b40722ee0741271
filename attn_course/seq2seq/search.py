"""Decoding: one token at a time, the best one (greedy) or several sentences at once (beam)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from attn_course._validation import check_counts


class Writer(Protocol):
    """What a search needs of a model; an ``nn.Module`` besides.

    Its state has ``select(index)``: the state of some items of the batch, in that order.

    """

    @property
    def vocab_size(self) -> int:
        """How many token ids it can write."""

    @property
    def device(self) -> torch.device:
        """Where it gives its logits."""

    def start(self, source: Tensor, source_lens: Tensor, *, language: Tensor | None = None) -> Any:
        """The state before the first token."""

    def step(
        self, token: Tensor, state: Any, *, need_weights: bool = False
    ) -> tuple[Tensor, Any, Tensor | None]:
        """Read ``token``, ``[batch]``.

        Returns:
            The next token's logits ``[batch, vocab_size]``, the new state, and the weights
            ``[batch, ..., key_len]`` or ``None``.
        """


class Decoded(NamedTuple):
    """Sentences that a search has written. ``steps`` is the length of the longest.

    Attributes:
        tokens: ``[batch, steps]``, without the first token bos; eos from a sentence's end on.
        lengths: How many tokens come before eos, ``[batch]``; ``max_len`` where the
            sentence was cut off.
        scores: What the search ranks by, ``[batch]``: the logarithm of the sentence's
            probability, eos included, divided by the length penalty if there is one.
        weights: ``[batch, steps, source_len]`` if asked for (more columns if the decoder
            attends to its own states), zeros past eos; else ``None``. With several heads
            there is a dimension for them after ``batch``, and before it one for layers.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor
    weights: Tensor | None


@torch.no_grad()
def greedy_decode(
    model: Writer,
    source: Tensor,
    source_lens: Tensor,
    *,
    bos: int,
    eos: int,
    max_len: int,
    language: Tensor | None = None,
    need_weights: bool = False,
) -> Decoded:
    """Write the likeliest token at each step, until every sentence has ended.

    The model works in evaluation mode, and is left in the mode it was in.

    Args:
        model: Translates; a ``Seq2Seq``, or any module with the methods of ``Writer``.
        source: Token ids, ``[batch, source_len]``.
        source_lens: How many tokens each source has, ``[batch]``.
        bos: The id that the first step reads.
        eos: The id that ends a sentence.
        max_len: The most tokens to write, eos included.
        language: The ids of the target languages, ``[batch]``.
        need_weights: Return the attention weights as well.

    Returns:
        The sentences. Their scores are logarithms of probabilities.

    Raises:
        ValueError: An id or ``max_len`` is out of place, or the model refuses.

    Example:
        >>> from attn_course.seq2seq import AttentionDecoder, Encoder, Seq2Seq
        >>> model = Seq2Seq(Encoder(9, 4, 8), AttentionDecoder(7, 4, 8, memory_dim=16))
        >>> source, lens = torch.tensor([[5, 3, 2], [4, 2, 0]]), torch.tensor([3, 2])
        >>> written = greedy_decode(model, source, lens, bos=1, eos=2, max_len=5)
        >>> written.tokens.shape[0], written.weights is None
        (2, True)
    """
    _check_search(model, bos, eos, max_len)
    with _evaluating(model):
        state = model.start(source, source_lens, language=language)
        token = torch.full((len(source),), bos, device=model.device)
        ended = torch.zeros_like(token, dtype=torch.bool)
        scores = torch.zeros(len(source), device=model.device)
        tokens, rows = token.new_empty(len(source), 0), None
        for _ in range(max_len):
            logits, state, weights = model.step(token, state, need_weights=need_weights)
            best, token = _log_softmax(logits).max(-1)
            token = token.masked_fill(ended, eos)
            tokens = torch.cat([tokens, token.unsqueeze(1)], dim=1)
            scores = scores + best.masked_fill(ended, 0)
            rows = _append(rows, weights, ended)
            ended = ended | (token == eos)
            if bool(ended.all()):
                break
    return Decoded(tokens, (tokens != eos).sum(1), scores, rows)


@torch.no_grad()
def beam_search(
    model: Writer,
    source: Tensor,
    source_lens: Tensor,
    *,
    bos: int,
    eos: int,
    max_len: int,
    width: int,
    length_penalty: float = 0.0,
    language: Tensor | None = None,
    need_weights: bool = False,
    return_all: bool = False,
) -> Decoded:
    """Keep the ``width`` likeliest sentences so far at each step.

    A sentence that has ended is not extended, and keeps its place; the others share the
    places that are left, however many of them come from one parent. The search goes on
    until no open sentence can come to beat the best that has ended. A sentence cut off
    at ``max_len`` counts as it is. The score of n tokens, eos included, is

        log p / ((5 + n) / 6) ** length_penalty

    The model works in evaluation mode, and is left in the mode it was in.

    Args:
        model: Translates; a ``Seq2Seq``, or any module with the methods of ``Writer``.
        source: Token ids, ``[batch, source_len]``.
        source_lens: How many tokens each source has, ``[batch]``.
        bos: The id that the first step reads.
        eos: The id that ends a sentence.
        max_len: The most tokens to write, eos included.
        width: How many sentences to keep; 1 is ``greedy_decode``.
        length_penalty: At least 0, which ranks by probability; Wu et al. use 0.6 to 0.7.
            More favours longer sentences.
        language: The ids of the target languages, ``[batch]``.
        need_weights: Return the attention weights as well.
        return_all: Return all that were kept, best first.

    Returns:
        The best sentences; with ``return_all`` each tensor has a dimension ``width`` after
        ``batch``, and where there were fewer sentences, scores of -inf and lengths of 0
        mark the places left over.

    Raises:
        ValueError: A number or an id is out of place, or the model refuses.

    Reference:
        Sutskever, Vinyals and Le (2014), section 3.2, for the search: a sentence that
        ends leaves the beam; Wu et al. (2016), equation 14, for the length penalty.

    Example:
        >>> from attn_course.seq2seq import AttentionDecoder, Encoder, Seq2Seq
        >>> model = Seq2Seq(Encoder(9, 4, 8), AttentionDecoder(7, 4, 8, memory_dim=16))
        >>> source, lens = torch.tensor([[5, 3, 2], [4, 2, 0]]), torch.tensor([3, 2])
        >>> written = beam_search(model, source, lens, bos=1, eos=2, max_len=5, width=3)
        >>> written.scores.shape
        torch.Size([2])
    """
    _check_search(model, bos, eos, max_len)
    check_counts(width=width)
    if not 0 <= length_penalty < float("inf"):
        raise ValueError(f"length_penalty must be at least 0 and finite, got {length_penalty!r}.")
    batch = len(source)
    with _evaluating(model):
        state = model.start(source, source_lens, language=language)
        here = model.device
        first = torch.arange(batch, device=here).unsqueeze(1) * width  # beam 0 of each sentence
        state = state.select(torch.arange(batch, device=here).repeat_interleave(width))

        # [batch, width]: one sentence at the start, the other places are empty: -inf.
        log_p = torch.full((batch, width), -torch.inf, device=here)
        log_p[:, 0] = 0
        scores = log_p
        ended = torch.zeros_like(log_p, dtype=torch.bool)
        tokens, rows = torch.full((batch * width, 1), bos, device=here), None
        for n in range(1, max_len + 1):
            logits, state, weights = model.step(tokens[:, -1], state, need_weights=need_weights)
            vocab_size = logits.shape[-1]
            totals = log_p.unsqueeze(-1) + _log_softmax(logits).view(batch, width, vocab_size)
            totals = totals.masked_fill(ended.unsqueeze(-1), -torch.inf)  # not extended,
            totals[..., eos].masked_fill_(ended, torch.inf)  # but keeps its place
            log_p, chosen = totals.flatten(1).topk(width)  # inf for those that have ended
            parent, token = chosen // vocab_size, chosen % vocab_size

            # Where hope has run out, the places left over fall to any token of any parent.
            was_ended = ended.gather(1, parent) & (token == eos)
            now = log_p / ((5 + n) / 6) ** length_penalty
            scores = torch.where(was_ended, scores.gather(1, parent), now)
            ended = was_ended | (token == eos) & log_p.isfinite()

            origin = (first + parent).flatten()
            state = state.select(origin)
            tokens = torch.cat([tokens[origin], token.view(-1, 1)], dim=1)
            if weights is not None:
                kept = None if rows is None else rows[origin.to(rows.device)]
                rows = _append(kept, weights[origin.to(weights.device)], was_ended.flatten())
            if not return_all:
                # Probability only falls: at best an open sentence keeps it to the end.
                hope = log_p / ((5 + max_len) / 6) ** length_penalty
                to_beat = scores.masked_fill(~ended, -torch.inf).amax(1, keepdim=True)
                hopeless = ~ended & (hope <= to_beat)
                log_p, scores = (x.masked_fill(hopeless, -torch.inf) for x in (log_p, scores))
            if not bool((log_p.isfinite() & ~ended).any()):
                break

    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order if return_all else order[:, :1]
    origin = (first + order).flatten()
    tokens = tokens[origin, 1:].masked_fill(scores.gather(1, order).view(-1, 1) == -torch.inf, eos)
    steps = min(tokens.shape[1], int((tokens != eos).sum(1).amax()) + 1)
    result = Decoded(
        tokens[:, :steps],
        (tokens != eos).sum(1),
        scores.gather(1, order).flatten(),
        None if rows is None else rows[origin.to(rows.device), ..., :steps, :],
    )
    if return_all:
        parts = (x if x is None else x.unflatten(0, (batch, width)) for x in result)
        result = Decoded(*parts)  # type: ignore[arg-type]
    return result


def _check_search(model: Writer, bos: int, eos: int, max_len: int) -> None:
    if not isinstance(model, nn.Module) or not (hasattr(model, "start") and hasattr(model, "step")):
        raise TypeError(
            f"model must be a module with start and step, such as Seq2Seq, "
            f"got {type(model).__name__}."
        )
    check_counts(max_len=max_len)
    for name, token in (("bos", bos), ("eos", eos)):
        if not isinstance(token, int) or not 0 <= token < model.vocab_size:
            raise ValueError(f"{name} must be an id in [0, {model.vocab_size}), got {token!r}.")


@contextmanager
def _evaluating(model: Writer) -> Iterator[None]:
    """Evaluation mode, for a while: dropout would make the search a lottery."""
    assert isinstance(model, nn.Module)  # _check_search has seen to it
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _log_softmax(logits: Tensor) -> Tensor:
    """Logarithms of probabilities, in float32 at least: half precision would tie tokens."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _append(rows: Tensor | None, row: Tensor | None, ended: Tensor) -> Tensor | None:
    """One more row of weights for each sentence and head, of zeros where it has ended."""
    if row is None:
        return None
    row = row.unsqueeze(-2)
    row = row.masked_fill(ended.to(row.device).view(-1, *[1] * (row.ndim - 1)), 0)
    if rows is None:
        return row
    rows = nn.functional.pad(rows, (0, row.shape[-1] - rows.shape[-1]))  # keys may be added
    return torch.cat([rows, row], dim=-2)
