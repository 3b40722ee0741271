"""Argument checks that encoder, decoder and search share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from attn_course._validation import check_choice, check_counts, check_dropout

#: The recurrent cells by name.
CELLS = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}

#: What the query may be made of.
QUERY_PARTS = ("state", "token", "context", "language")


def check_recurrent(cell: str, dropout: float) -> None:
    """Raise unless the cell is known and the dropout a probability below 1."""
    check_choice("cell", cell, CELLS)
    check_dropout("dropout", dropout)


def check_query(query: Sequence[str], num_languages: int | None) -> None:
    """Raise unless the parts of the query are known, and languages counted if needed."""
    if isinstance(query, str) or not query:
        raise ValueError(f"query must be a tuple of {QUERY_PARTS}, got {query!r}.")
    for part in query:
        check_choice("query", part, QUERY_PARTS)
    if len(set(query)) < len(query):
        raise ValueError(f"query must name each part once, got {query!r}.")
    if ("language" in query) != (num_languages is not None):
        raise ValueError(
            "num_languages must be given exactly if query holds 'language', got "
            f"{num_languages!r} with query={tuple(query)}."
        )
    if num_languages is not None:
        check_counts(num_languages=num_languages)
