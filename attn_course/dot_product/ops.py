"""The public operation: validation, and the choice between implementations."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course._padding import disarm_checked
from attn_course._validation import (
    broadcast_batch,
    check_choice,
    check_dropout,
    check_floating,
    check_mask,
    check_rank,
    check_together,
    check_valid_lens,
    combine,
)
from attn_course.dot_product import reference

IMPLEMENTATIONS = ("auto", "reference", "sdpa", "triton")


@overload
def dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    valid_lens: Tensor | None = ...,
    mask: Tensor | None = ...,
    is_causal: bool = ...,
    scale: float | Tensor | None = ...,
    dropout_p: float = ...,
    need_weights: Literal[False] = ...,
    impl: str = ...,
) -> Tensor: ...


@overload
def dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    valid_lens: Tensor | None = ...,
    mask: Tensor | None = ...,
    is_causal: bool = ...,
    scale: float | Tensor | None = ...,
    dropout_p: float = ...,
    need_weights: Literal[True],
    impl: str = ...,
) -> tuple[Tensor, Tensor]: ...


@overload
def dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    valid_lens: Tensor | None = ...,
    mask: Tensor | None = ...,
    is_causal: bool = ...,
    scale: float | Tensor | None = ...,
    dropout_p: float = ...,
    need_weights: bool,
    impl: str = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...


def dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    valid_lens: Tensor | None = None,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | Tensor | None = None,
    dropout_p: float = 0.0,
    need_weights: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention by dot products: average the values, weighted by softmax(scale * q . k).

    A query that may see no key gets zeros, and so do its gradients. What padding holds,
    NaN included, does not matter. What may be seen is what ``valid_lens``, ``mask`` and
    ``is_causal`` all allow.

    Args:
        query: ``[..., query_len, dim]``.
        key: ``[..., key_len, dim]``; at least one.
        value: ``[..., key_len, value_dim]``. Leading dimensions of the three broadcast.
        valid_lens: How many leading keys count, ``[batch]`` or
            ``[batch, query_len]`` (``batch``: the first leading dimension).
        mask: ``True`` = may attend; broadcasts to ``[..., query_len, key_len]``.
        is_causal: Query i may see keys 0 to i, counted from the first of each.
        scale: What the dot products are multiplied by: a number, or a tensor with one
            element, which gets a gradient. ``None`` is 1/sqrt(dim).
        dropout_p: Probability with which each weight is dropped, in [0, 1); the others
            are divided by 1 - ``dropout_p``. Always applied: pass 0 when not training.
        need_weights: Return the weights as well.
        impl: Which implementation:

            ============= ======================================================
            ``reference`` PyTorch; holds all weights; half precision is computed
                          in float32
            ``sdpa``      PyTorch's fused operation; no weights
            ``triton``    no Triton kernel yet
            ``auto``      with ``need_weights`` ``reference``, else ``sdpa``
            ============= ======================================================

    Returns:
        The output ``[..., query_len, value_dim]``, or with ``need_weights`` the pair of
        output and weights ``[..., query_len, key_len]``, before dropout.

    Raises:
        TypeError: A tensor has the wrong kind of numbers.
        ValueError: A shape, a length, a name or a combination is out of place.
        RuntimeError: ``impl="triton"``.

    Reference:
        Vaswani et al. (2017), Attention is all you need, equation 1.

    Example:
        >>> key = torch.tensor([[8.0, 0.0], [0.0, 8.0]])
        >>> value = torch.tensor([[10.0], [20.0]])
        >>> dot_product_attention(key, key, value, is_causal=True)
        tensor([[10.],
                [20.]])
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_floating(name, tensor)
    check_rank("query", query, 2, "[..., query_len, dim]")
    check_rank("key", key, 2, "[..., key_len, dim]")
    check_rank("value", value, 2, "[..., key_len, value_dim]")
    check_together(query=query, key=key, value=value)
    (query_len, dim), key_len = query.shape[-2:], key.shape[-2]
    if key.shape[-1] != dim:
        raise ValueError(
            f"key must have the width of query, {dim}, got {key.shape[-1]}: "
            "BilinearAttention takes keys of another width."
        )
    if value.shape[-2] != key_len:
        raise ValueError(f"value must have one row for each key, {key_len}, got {value.shape[-2]}.")
    if key_len == 0:
        raise ValueError("key must hold at least one key, got none: there is nothing to average.")
    if dim == 0 or value.shape[-1] == 0:
        raise ValueError(
            f"query and value must have at least one column, got {dim} and {value.shape[-1]}."
        )
    check_scale(scale)
    check_dropout("dropout_p", dropout_p)
    check_choice("impl", impl, IMPLEMENTATIONS)
    if need_weights and impl in ("sdpa", "triton"):
        raise ValueError(
            f"need_weights=True asks for every weight, which impl={impl!r} never stores: "
            "use impl='reference' or 'auto'."
        )
    if impl == "triton":
        raise RuntimeError(
            "impl='triton' cannot be used: dot_product_attention has no Triton kernel yet. "
            "Use impl='sdpa', PyTorch's fused operation."
        )
    batch_shape = broadcast_batch(query=query, key=key, value=value)
    shape_and_place = (batch_shape, query_len, key_len, query.device)
    lens = check_valid_lens(valid_lens, *shape_and_place)
    mask = check_mask(mask, *shape_and_place)
    if impl == "auto":
        impl = "reference" if need_weights else "sdpa"

    if scale is None:
        scale = 1 / math.sqrt(dim)
    elif isinstance(scale, Tensor):
        scale = scale.reshape(()).to(query)
    allowed = combine(lens, mask, key_len)
    if impl == "sdpa":
        return _sdpa(query, key, value, batch_shape, allowed, is_causal, scale, dropout_p)

    if is_causal:
        allowed = _and_causal(allowed, query_len, key_len, query.device)
    dtype = query.dtype
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    query, key, value = query.to(compute), key.to(compute), value.to(compute)
    query, key, value = disarm_checked(query, key, value, None, allowed)
    output, weights = reference.dot_product_attention(
        query, key, value, scale=scale, allowed=allowed, dropout_p=dropout_p
    )
    return (output.to(dtype), weights.to(dtype)) if need_weights else output.to(dtype)


def check_scale(scale: float | Tensor | None) -> None:
    """Raise unless ``scale`` is ``None``, a finite number or a tensor with one element."""
    if isinstance(scale, Tensor):
        check_floating("scale", scale)
        if scale.numel() != 1:
            raise ValueError(f"scale must have one element, got shape {list(scale.shape)}.")
    elif scale is not None:
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise TypeError(f"scale must be a number or a tensor, got {type(scale).__name__}.")
        if not math.isfinite(scale):
            raise ValueError(f"scale must be finite, got {scale}.")


def _and_causal(
    allowed: Tensor | None, query_len: int, key_len: int, device: torch.device
) -> Tensor:
    past = torch.ones(query_len, key_len, dtype=torch.bool, device=device).tril()
    return past if allowed is None else allowed & past


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch_shape: tuple[int, ...],
    allowed: Tensor | None,
    is_causal: bool,
    scale: float | Tensor,
    dropout_p: float,
) -> Tensor:
    """PyTorch's fused operation, kept from its faults.

    It is fast on four dimensions only, and says nothing about scales below zero and about
    rows that may see no key: depending on the version and the device those come out as
    NaN or as an average.
    """
    query_len, key_len = query.shape[-2], key.shape[-2]
    if is_causal and allowed is None:
        seen = max(1, min(query_len, key_len))  # nobody sees the keys after these
        key, value = key[..., :seen, :], value[..., :seen, :]
    elif is_causal:
        allowed = _and_causal(allowed, query_len, key_len, query.device)
    nothing = None
    if allowed is not None:
        query, key, value = disarm_checked(query, key, value, None, allowed)
        nothing = ~allowed.any(-1, keepdim=True)
        allowed = allowed | nothing  # an average of anything, which is thrown away below
    if isinstance(scale, Tensor) or scale <= 0:
        query, scale = query * scale, 1.0

    def four(tensor: Tensor) -> Tensor:  # [outer, inner, rows, columns]
        full = tensor.expand(*batch_shape, *tensor.shape[-2:])
        full = full[(None,) * (2 - len(batch_shape))]
        return full.flatten(0, -4)

    output: Tensor = F.scaled_dot_product_attention(
        four(query),
        four(key),
        four(value),
        attn_mask=None if allowed is None else four(allowed),
        dropout_p=dropout_p,
        is_causal=is_causal and allowed is None,
        scale=scale,
    )
    output = output.reshape(*batch_shape, query_len, value.shape[-1])
    return output if nothing is None else output.masked_fill(nothing, 0)
