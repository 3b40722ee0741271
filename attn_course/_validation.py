"""Argument checks shared by every ``ops.py`` and layer.

Each raises ``TypeError`` or ``ValueError`` that names the argument, what was
expected and what came.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor


def check_tensor(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}.")


def check_floating(name: str, tensor: object) -> None:
    """Raise ``TypeError`` unless ``tensor`` is a tensor of a floating-point type."""
    check_tensor(name, tensor)
    assert isinstance(tensor, Tensor)
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} must hold floating-point numbers, got {tensor.dtype}. "
            f"Convert it, e.g. with {name}.float()."
        )


def check_rank(name: str, tensor: Tensor, least: int, shape: str) -> None:
    """Raise ``ValueError`` unless ``tensor`` has at least ``least`` dimensions."""
    if tensor.ndim < least:
        raise ValueError(f"{name} must have shape {shape}, got {list(tensor.shape)}.")


def check_choice(name: str, value: object, options: Collection[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``options``."""
    if value not in options:
        listed = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}.")


def check_positive(name: str, value: float | Tensor) -> None:
    """Raise unless ``value``, or each of its elements, is a finite number above zero.

    Tensors on a CUDA device are taken on trust: looking at one would make the
    host wait for the device.
    """
    if isinstance(value, Tensor):
        check_floating(name, value)
        if value.device.type == "cuda" or bool(((value > 0) & value.isfinite()).all()):
            return
        raise ValueError(f"{name} must be positive and finite, got {value.detach().tolist()}.")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}.")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}.")


def check_counts(**counts: int) -> None:
    """Raise ``ValueError`` unless each is an integer of at least 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {count!r}.")


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


def check_dropout(name: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is a probability below 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}.")


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


def check_slopes(slopes: Tensor, batch_shape: tuple[int, ...], device: torch.device) -> None:
    """Raise unless ``slopes`` holds a number for each head, the last batch dimension."""
    check_floating("bias_slopes", slopes)
    if not batch_shape or tuple(slopes.shape) != batch_shape[-1:]:
        raise ValueError(
            f"bias_slopes must hold a number for each head, {list(batch_shape[-1:]) or 'none here'}"
            f", got shape {list(slopes.shape)}."
        )
    if slopes.device != device:
        raise ValueError(f"bias_slopes must be on {device}, like query, got {slopes.device}.")


def check_together(**tensors: Tensor) -> None:
    """Raise ``ValueError`` unless all tensors share a dtype and a device."""
    (first, reference), *rest = tensors.items()
    for name, tensor in rest:
        for attribute in ("dtype", "device"):
            ours, theirs = getattr(tensor, attribute), getattr(reference, attribute)
            if ours != theirs:
                raise ValueError(
                    f"{name} must have the {attribute} of {first}, {theirs}, got {ours}."
                )


def broadcast_batch(**tensors: Tensor) -> tuple[int, ...]:
    """Return the shape that the leading dimensions (all but two) broadcast to.

    Raises:
        ValueError: They do not broadcast.
    """
    shapes = {name: tuple(tensor.shape[:-2]) for name, tensor in tensors.items()}
    if len(different := set(shapes.values())) == 1:  # asking PyTorch takes far longer
        return different.pop()
    try:
        return tuple(torch.broadcast_shapes(*shapes.values()))
    except RuntimeError:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"the batch dimensions must broadcast, got {listed}.") from None


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


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, like what it masks, got {tensor.device}.")
