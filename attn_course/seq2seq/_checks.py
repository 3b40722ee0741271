"""Argument checks that encoder, decoder and search share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attn_course._validation import check_choice, check_tensor

#: The recurrent cells by name.
CELLS = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}

#: What the query may be made of.
QUERY_PARTS = ("state", "token", "context", "language")


def check_counts(**counts: int) -> None:
    """Raise ``ValueError`` unless each is an integer of at least 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {count!r}.")


def check_recurrent(cell: str, dropout: float) -> None:
    """Raise unless the cell is known and the dropout a probability below 1."""
    check_choice("cell", cell, CELLS)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout!r}.")


def check_ids(name: str, ids: object, shape: tuple[int | str, ...], count: int) -> Tensor:
    """Raise unless ``ids`` holds integers in [0, count) and has the shape.

    Args:
        name: What to call it in messages.
        ids: What came.
        shape: A size for each dimension; a text where any size of at least 1 will do.
        count: How many ids there are. On CUDA devices ids are taken on trust: looking
            at them would make the host wait.

    Returns:
        The ids.
    """
    check_tensor(name, ids)
    assert isinstance(ids, Tensor)
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {ids.dtype}.")
    fits = ids.ndim == len(shape) and all(
        came >= 1 if isinstance(size, str) else came == size
        for came, size in zip(ids.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(size) for size in shape)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(ids.shape)}.")
    if ids.device.type != "cuda" and ids.numel():
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or high >= count:
            raise ValueError(f"{name} must hold ids in [0, {count}), got {low} to {high}.")
    return ids


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
