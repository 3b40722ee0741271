"""Argument checks that layers, encoder, decoder and loss share."""

from __future__ import annotations

import torch
from torch import Tensor

from attn_course._validation import check_floating, check_tensor


def check_counts(**counts: int) -> None:
    """Raise ``ValueError`` unless each is an integer of at least 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {count!r}.")


def check_tokens(name: str, x: object, length: str, width: int) -> None:
    """Raise unless ``x`` holds a vector for each token, ``[batch, length, width]``.

    Args:
        name: What to call it in messages.
        x: What came.
        length: What to call the number of tokens.
        width: Of a vector.
    """
    check_floating(name, x)
    assert isinstance(x, Tensor)
    if x.ndim != 3 or x.shape[2] != width:
        raise ValueError(f"{name} must have shape [batch, {length}, {width}], got {list(x.shape)}.")


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
            raise ValueError(f"{name} must hold integers in [0, {count}), got {low} to {high}.")
    return ids


def shorter(lens: Tensor, length: int) -> Tensor | None:
    """The lengths if they hide anything, so that a batch without padding needs no mask.

    On CUDA devices they are kept: looking at them would make the host wait.
    """
    hides = lens.is_cuda or (lens.numel() > 0 and int(lens.amin()) < length)
    return lens if hides else None
