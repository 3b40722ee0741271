"""Argument checks that layers, encoder, decoder and loss share."""

from __future__ import annotations

from torch import Tensor

from attn_course._validation import check_floating


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


def shorter(lens: Tensor, length: int) -> Tensor | None:
    """The lengths if they hide anything, so that a batch without padding needs no mask.

    On CUDA devices they are kept: looking at them would make the host wait.
    """
    hides = lens.is_cuda or (lens.numel() > 0 and int(lens.amin()) < length)
    return lens if hides else None
