"""Who may attend to what: lengths, masks and windows, checked, and made one mask."""

from __future__ import annotations

import torch
from torch import Tensor

from attn_course._validation import check_tensor


def check_window(window: tuple[int | None, int | None] | None) -> tuple[int | None, int | None]:
    """Return how many keys may be seen to the left and to the right; ``None``: all.

    Raises:
        TypeError: It is not a pair of integers or ``None``.
        ValueError: A number is negative.
    """
    if window is None:
        return None, None
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise TypeError(f"window must be a pair (left, right), got {window!r}.")
    for side in window:
        if side is not None and (isinstance(side, bool) or not isinstance(side, int)):
            raise TypeError(f"window must hold integers or None, got {window!r}.")
        if side is not None and side < 0:
            raise ValueError(f"window must hold no number below 0, got {window!r}.")
    left, right = window
    return left, right


def check_valid_lens(
    valid_lens: Tensor | None,
    batch_shape: tuple[int, ...],
    query_len: int,
    key_len: int,
    device: torch.device,
) -> Tensor | None:
    """Check how many leading keys count, and shape it for broadcasting.

    Args:
        valid_lens: Integers in [0, key_len], one for each batch item, ``[batch]``, or
            each query, ``[batch, query_len]``. ``batch`` is the first of the batch
            dimensions; without any, a scalar or ``[query_len]``.
        batch_shape: The shape of the batch dimensions.
        query_len: Number of queries.
        key_len: Number of keys.
        device: Where it must live.

    Returns:
        The lengths, ``[batch, 1 for each inner batch dimension, query_len or 1]``.

    Raises:
        TypeError: It does not hold integers.
        ValueError: A shape, a device or a length is out of place. On CUDA devices
            lengths are taken on trust: looking would make the host wait.
    """
    if valid_lens is None:
        return None
    check_tensor("valid_lens", valid_lens)
    if valid_lens.is_floating_point() or valid_lens.dtype == torch.bool:
        raise TypeError(f"valid_lens must hold integers, got {valid_lens.dtype}.")
    batch = batch_shape[:1]
    if tuple(valid_lens.shape) not in (batch, (*batch, query_len)):
        raise ValueError(
            f"valid_lens must have shape {list(batch)} or {[*batch, query_len]}, "
            f"got {list(valid_lens.shape)}."
        )
    _check_device("valid_lens", valid_lens, device)
    if device.type != "cuda" and valid_lens.numel():
        for extreme in valid_lens.aminmax():
            if not 0 <= extreme.item() <= key_len:
                raise ValueError(
                    f"valid_lens must lie in [0, {key_len}], the number of keys, "
                    f"got {extreme.item()}."
                )
    per_query = valid_lens.ndim > len(batch)
    inner = (1,) * (len(batch_shape) - len(batch))
    return valid_lens.reshape(*batch, *inner, query_len if per_query else 1)


def check_mask(
    mask: Tensor | None,
    batch_shape: tuple[int, ...],
    query_len: int,
    key_len: int,
    device: torch.device,
) -> Tensor | None:
    """Check a mask, ``True`` = may attend, that broadcasts to the weights.

    Returns:
        The mask with at least two dimensions.

    Raises:
        TypeError: It does not hold booleans.
        ValueError: Its shape or device is out of place.
    """
    if mask is None:
        return None
    check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(
            f"mask must hold booleans (True = may attend), got {mask.dtype}. "
            "Compare with zero first if it holds numbers."
        )
    _check_device("mask", mask, device)
    full = (*batch_shape, query_len, key_len)
    if mask.ndim > len(full) or any(
        size not in (1, expected)
        for size, expected in zip(mask.shape[::-1], full[::-1], strict=False)
    ):
        raise ValueError(
            f"mask must broadcast to {list(full)}, the shape of the weights, "
            f"got {list(mask.shape)}."
        )
    return mask.reshape((1,) * max(0, 2 - mask.ndim) + tuple(mask.shape))


def combine(lens: Tensor | None, mask: Tensor | None, key_len: int) -> Tensor | None:
    """The one mask, from the checked lengths and the checked mask.

    Returns:
        Booleans that broadcast to ``[*batch_shape, query_len, key_len]``, ``True`` =
        may attend, or ``None`` where everything is allowed.
    """
    if lens is None:
        return mask
    allowed = torch.arange(key_len, device=lens.device) < lens.unsqueeze(-1)
    return allowed if mask is None else allowed & mask


def shorter(lens: Tensor | None, length: int) -> Tensor | None:
    """The lengths if they hide anything, so that a batch without padding needs no mask.

    On CUDA devices they are kept: looking at them would make the host wait.
    """
    if lens is None or lens.is_cuda:
        return lens
    return lens if lens.numel() and int(lens.amin()) < length else None


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, like what it masks, got {tensor.device}.")
