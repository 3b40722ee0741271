"""Argument checks shared by every ``ops.py`` and layer.

Each raises ``TypeError`` or ``ValueError`` that names the argument, what was
expected and what came.
"""

from __future__ import annotations

import math
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


def check_choice(name: str, value: object, options: Collection[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``options``."""
    if value not in options:
        listed = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}.")


def check_number(name: str, value: object, expected: str = "a number") -> None:
    """Raise unless ``value`` is a finite number; ``expected`` is what a message asks for."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}.")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}.")


def check_integer(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is an integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}.")


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
    if not 0 < value < math.inf:
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


def check_need_weights(need_weights: bool, impl: str) -> None:
    """Raise ``ValueError`` if weights are asked of who never stores them."""
    if need_weights and impl not in ("auto", "reference"):
        raise ValueError(
            f"need_weights=True asks for every weight, which impl={impl!r} never stores: "
            "use impl='reference' or 'auto'."
        )


def check_query_key_value(query: Tensor, key: Tensor, value: Tensor, advice: str = "") -> None:
    """Raise unless queries, keys and values fit each other, up to their batch dimensions.

    Args:
        query: ``[..., query_len, dim]``.
        key: ``[..., key_len, dim]``; at least one.
        value: ``[..., key_len, value_dim]``.
        advice: What to do where keys are not as wide as queries.
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_floating(name, tensor)
    check_rank("query", query, 2, "[..., query_len, dim]")
    check_rank("key", key, 2, "[..., key_len, dim]")
    check_rank("value", value, 2, "[..., key_len, value_dim]")
    check_together(query=query, key=key, value=value)
    dim = query.shape[-1]
    if key.shape[-1] != dim:
        raise ValueError(f"key must have the width of query, {dim}, got {key.shape[-1]}{advice}.")
    check_rows(key, value)
    if dim == 0 or value.shape[-1] == 0:
        raise ValueError(
            f"query and value must have at least one column, got {dim} and {value.shape[-1]}."
        )


def check_rows(key: Tensor, value: Tensor) -> None:
    """Raise ``ValueError`` unless there are keys, and a value for each."""
    key_len = key.shape[-2]
    if value.shape[-2] != key_len:
        raise ValueError(f"value must have one row for each key, {key_len}, got {value.shape[-2]}.")
    if key_len == 0:
        raise ValueError("key must hold at least one key, got none: there is nothing to average.")


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
