"""The public operations: validation, and the choice between implementations."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course import _triton
from attn_course._masks import check_valid_lens, shorter
from attn_course._padding import clear_rows
from attn_course._precision import widened
from attn_course._validation import (
    check_choice,
    check_dropout,
    check_floating,
    check_need_weights,
    check_number,
    check_together,
)
from attn_course.dot_product import dot_product_attention
from attn_course.linformer import blocked, reference

IMPLEMENTATIONS = ("auto", "reference", "sdpa", "blocked", "triton")

#: Queries times slots of all heads from which on a CPU tiles are faster than whole matrices.
_TILED_ELEMENTS = 2**19

#: What the kernels take at most.
_KERNEL_SLOTS, _KERNEL_WIDTH = 512, 128

LEAK = (
    "is_causal=True cannot be had: every slot is a sum over the whole sequence, so a query that "
    "sees any slot sees the future. A mask on the [query_len, projected_len] weights hides "
    "slots, not positions. causal_linformer_attention projects block by block and is causal."
)


def project_sequence(
    x: Tensor, projection: Tensor, *, valid_lens: Tensor | None = None, impl: str = "auto"
) -> Tensor:
    """Map the positions of a sequence to fewer slots: projection @ x, padding counting as zero.

    Padding is zeroed before it is projected, since afterwards it would be in every slot. What
    it holds, NaN included, does not matter, and its gradient is zero.

    Args:
        x: ``[batch, len, dim]`` or ``[batch, num_heads, len, dim]``.
        projection: ``[projected_len, key_len]``, or one for each head,
            ``[num_heads, projected_len, key_len]``. A sequence may be shorter than
            ``key_len``: the first ``len`` columns are used.
        valid_lens: How many leading positions count, ``[batch]``.
        impl: ``"reference"``: PyTorch's matrix product; half precision is added up in
            float32. ``"triton"``: GPU kernel, split over positions (interpreted where there
            is no GPU: slow); up to 128 columns. ``"auto"``: ``"reference"``.

    Returns:
        ``[batch, (num_heads,) projected_len, dim]``.

    Raises:
        TypeError: A tensor has the wrong kind of numbers.
        ValueError: A shape, a length or a name is out of place.
        RuntimeError: ``impl="triton"`` cannot be had here; the message says why.

    Reference:
        Wang et al. (2020), Linformer: Self-attention with linear complexity, equation 7.

    Example:
        >>> x = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])  # 4 positions, width 1
        >>> halves = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
        >>> project_sequence(x, halves).flatten()
        tensor([1.5000, 3.5000])
        >>> project_sequence(x, halves, valid_lens=torch.tensor([3])).flatten()
        tensor([1.5000, 1.5000])
    """
    _check_sequence("x", x, "len, dim")
    _check_projection("projection", projection, "x", x)
    check_together(x=x, projection=projection)
    check_choice("impl", impl, ("auto", "reference", "triton"))
    lens = shorter(check_lens(valid_lens, x), x.shape[-2])
    if impl == "triton":
        return _kernel_project(x, projection, lens)
    if not x.is_cuda:  # a GPU adds up products of half precision in float32 anyway
        return reference.project_sequence(widened(x), widened(projection), lens).to(x.dtype)
    return reference.project_sequence(x, projection, lens)


@overload
def linformer_attention(
    query: Tensor, key: Tensor, value: Tensor, key_projection: Tensor, value_projection: Tensor,
    *, valid_lens: Tensor | None = ..., scale: float | None = ..., dropout_p: float = ...,
    need_weights: Literal[False] = ..., is_causal: bool = ..., impl: str = ...,
) -> Tensor: ...  # fmt: skip


@overload
def linformer_attention(
    query: Tensor, key: Tensor, value: Tensor, key_projection: Tensor, value_projection: Tensor,
    *, valid_lens: Tensor | None = ..., scale: float | None = ..., dropout_p: float = ...,
    need_weights: Literal[True], is_causal: bool = ..., impl: str = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def linformer_attention(
    query: Tensor, key: Tensor, value: Tensor, key_projection: Tensor, value_projection: Tensor,
    *, valid_lens: Tensor | None = ..., scale: float | None = ..., dropout_p: float = ...,
    need_weights: bool, is_causal: bool = ..., impl: str = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip


def linformer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_projection: Tensor,
    value_projection: Tensor,
    *,
    valid_lens: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    need_weights: bool = False,
    is_causal: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention to k projected keys in place of n: ``softmax(scale Q (E K)^T) (F V)``.

    O(n k) time, and O(n + k) memory where the weights are not asked for. A batch item
    without positions gets zeros, and so do its gradients.

    Args:
        query: ``[batch, query_len, dim]`` or ``[batch, num_heads, query_len, dim]``.
        key: ``[batch, (num_heads,) key_len, dim]``.
        value: ``[batch, (num_heads,) key_len, value_dim]``.
        key_projection: E, ``[projected_len, key_len]`` or
            ``[num_heads, projected_len, key_len]``; of a longer one the first columns are
            used.
        value_projection: F, likewise; may be the same tensor.
        valid_lens: How many leading keys count, ``[batch]``; the others are zeroed before
            they are projected.
        scale: What the dot products are multiplied by; ``None`` is ``1/sqrt(dim)``.
        dropout_p: Probability with which each weight is dropped, in [0, 1). Always applied:
            pass 0 when not training.
        need_weights: Return the weights as well.
        is_causal: ``True`` is refused: see ``causal_linformer_attention``.
        impl: Which implementation attends; see ``project_sequence`` for the projection:

            ============= ======================================================
            ``reference`` PyTorch; holds all weights; half precision is computed
                          in float32
            ``sdpa``      PyTorch's fused operation; no weights
            ``blocked``   PyTorch, a tile of queries at a time; half precision
                          is computed in float32; no weights; can be
                          differentiated once
            ``triton``    GPU kernels (interpreted where there is no GPU: slow);
                          up to 512 slots and 128 columns; no weights, no
                          dropout; can be differentiated once
            ``auto``      ``reference`` with ``need_weights``; on CUDA ``sdpa``;
                          else ``blocked``, and ``reference`` for few weights
            ============= ======================================================

    Returns:
        The output ``[batch, (num_heads,) query_len, value_dim]``; with ``need_weights`` then
        the weights of the slots, ``[batch, (num_heads,) query_len, projected_len]``, before
        dropout. ``effective_weights`` maps them back to positions.

    Raises:
        TypeError: A tensor has the wrong kind of numbers.
        ValueError: A shape, a length, a name or a combination is out of place.
        RuntimeError: ``impl="triton"`` cannot be had here; the message says why.

    Reference:
        Wang et al. (2020), Linformer: Self-attention with linear complexity, equation 7.

    Example:
        >>> query, x = torch.rand(1, 1000, 4), torch.rand(1, 1000, 4)
        >>> projection = torch.randn(16, 1000) / 1000**0.5
        >>> output, weights = linformer_attention(
        ...     query, x, x, projection, projection, need_weights=True
        ... )
        >>> output.shape, weights.shape
        (torch.Size([1, 1000, 4]), torch.Size([1, 1000, 16]))
    """
    if is_causal:
        raise ValueError(LEAK)
    scale = check_attention(query, key, value, scale, dropout_p, impl)
    check_projections(key_projection, value_projection, key, value)
    check_need_weights(need_weights, impl)
    lens = shorter(check_lens(valid_lens, key), key.shape[-2])
    if lens is not None:  # a query without keys may hold anything
        query = clear_rows(query, (lens == 0).reshape(-1, *[1] * (query.ndim - 2)))
    if impl == "triton":
        _check_slots(key_projection.shape[-2])  # before any work
        keys, values = _kernel_pair(key, value, key_projection, value_projection, lens)
    else:
        keys = project_sequence(key, key_projection, valid_lens=valid_lens)
        values = project_sequence(value, value_projection, valid_lens=valid_lens)
    slots = None if lens is None else (lens > 0) * keys.shape[-2]
    return attend(
        query, keys, values, slots=slots, scale=scale, dropout_p=dropout_p,
        need_weights=need_weights, impl=impl,
    )  # fmt: skip


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    slots: Tensor | None = None,
    dropout_p: float = 0.0,
    need_weights: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """The second half of ``linformer_attention``, for layers: arguments are taken on trust.

    Args:
        query: ``[batch, (num_heads,) query_len, dim]``.
        key: Projected, ``[batch, (num_heads,) projected_len, dim]``.
        value: Projected, ``[batch, (num_heads,) projected_len, value_dim]``.
        scale: What the dot products are multiplied by.
        slots: How many leading slots count, ``[batch]``; with ``impl="triton"`` all or none.
        dropout_p: As in ``linformer_attention``.
        need_weights: As in ``linformer_attention``.
        impl: As in ``linformer_attention``.

    Returns:
        As ``linformer_attention``.
    """
    slots = shorter(slots, key.shape[-2])
    impl = _choose(impl, query, key, need_weights)
    if impl == "triton":
        from attn_course.linformer import attention_kernel as gpu

        _check_kernel(query, key, value)
        _check_slots(key.shape[-2])
        output: Tensor = gpu.attend(*map(_four, (query, key, value)), scale=scale, lens=slots)
        return output.reshape(*query.shape[:-1], value.shape[-1])
    if impl == "sdpa":
        return dot_product_attention(
            query, key, value, valid_lens=slots, scale=scale, dropout_p=dropout_p, impl="sdpa"
        )
    seen = None
    if slots is not None:
        there = torch.arange(key.shape[-2], device=key.device) < slots[:, None]
        seen = there.reshape(len(slots), *[1] * (query.ndim - 2), key.shape[-2])
    if impl == "blocked":
        return blocked.attend_blocked(
            query, key, value, scale=scale, seen=seen, dropout_p=dropout_p
        )
    q, k, v = (widened(x) for x in (query, key, value))
    kept = draw_kept(dropout_p, (*query.shape[:-1], key.shape[-2]), q)
    output, weights = reference.attend(q, k, v, scale=scale, seen=seen, kept=kept)
    output, weights = output.to(query.dtype), weights.to(query.dtype)
    return (output, weights) if need_weights else output


def attend_summed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    slots: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Heads that ask the same and whose answers are added up: one product each, by tiles.

    Args:
        query: The same for all heads, ``[batch, query_len, dim]``.
        key: ``[batch, num_heads, slots, dim]``.
        value: ``[batch, num_heads, slots, value_dim]``.
        scale: What the dot products are multiplied by.
        slots: How many leading slots count, ``[batch]``.
        dropout_p: As in ``linformer_attention``.

    Returns:
        The sum over heads, ``[batch, query_len, value_dim]``.
    """
    heads, count = key.shape[1:3]
    seen = None
    if (slots := shorter(slots, count)) is not None:
        seen = torch.arange(count, device=key.device) < slots[:, None, None]  # [batch, 1, slots]
        seen = seen if heads == 1 else seen.unsqueeze(1)
    return blocked.attend_blocked(
        query, key.flatten(1, 2), value.flatten(1, 2), scale=scale, seen=seen,
        dropout_p=dropout_p, groups=heads,
    )  # fmt: skip


def effective_weights(weights: Tensor, value_projection: Tensor) -> Tensor:
    """What weights of slots mean for positions: P F, since P (F V) = (P F) V.

    They need not be positive nor sum to 1: a slot is a signed sum of positions. Positions of
    padding are mapped too; pass a projection that is zero there.

    Args:
        weights: ``[..., query_len, projected_len]``, from ``linformer_attention``.
        value_projection: F, ``[projected_len, key_len]`` or
            ``[num_heads, projected_len, key_len]``: that of the values, for they are what is
            averaged.

    Returns:
        ``[..., query_len, key_len]``.

    Raises:
        TypeError: A tensor does not hold floating-point numbers.
        ValueError: The shapes do not fit.

    Example:
        >>> weights = torch.tensor([[0.75, 0.25]])
        >>> halves = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
        >>> effective_weights(weights, halves)
        tensor([[0.3750, 0.3750, 0.1250, 0.1250]])
    """
    check_floating("weights", weights)
    check_floating("value_projection", value_projection)
    if weights.ndim < 2:
        raise ValueError(
            f"weights must have shape [..., query_len, projected_len], got {list(weights.shape)}."
        )
    slots = weights.shape[-1]
    fits = value_projection.ndim >= 2 and value_projection.shape[-2] == slots
    outer = zip(value_projection.shape[-3::-1], weights.shape[-3::-1], strict=False)
    fits = fits and all(ours in (1, theirs) for ours, theirs in outer)
    if not fits or value_projection.ndim > weights.ndim:
        raise ValueError(
            f"value_projection must have shape [{slots}, key_len] or [num_heads, {slots}, "
            f"key_len], for weights {list(weights.shape)}, got {list(value_projection.shape)}."
        )
    return weights @ value_projection.to(weights.dtype)


def check_lens(valid_lens: Tensor | None, x: Tensor) -> Tensor | None:
    """How many positions of ``x``, ``[batch, ..., len, dim]``, count: checked, ``[batch]``."""
    if valid_lens is None:
        return None
    length = x.shape[-2]
    check_valid_lens(valid_lens, tuple(x.shape[:1]), length, length, x.device)
    if valid_lens.ndim != 1:
        raise ValueError(
            f"valid_lens must have shape [{x.shape[0]}]: a projection serves all queries of an "
            f"item, got {list(valid_lens.shape)}."
        )
    return valid_lens


def check_scale(scale: float | None, dim: int) -> float:
    """The scale, ``1/sqrt(dim)`` for ``None``.

    Raises:
        TypeError: It is no number.
        ValueError: It is not finite.
    """
    if scale is None:
        return 1 / math.sqrt(dim)
    check_number("scale", scale)
    return scale


def _check_sequence(name: str, x: object, sizes: str) -> None:
    check_floating(name, x)
    assert isinstance(x, Tensor)
    if x.ndim not in (3, 4) or 0 in x.shape[-2:]:
        raise ValueError(
            f"{name} must have shape [batch, {sizes}] or [batch, num_heads, {sizes}], without "
            f"an empty {sizes.replace(', ', ' or ')}, got {list(x.shape)}."
        )


def _check_projection(name: str, projection: object, x_name: str, x: Tensor) -> None:
    """Raise unless a projection is the right way round and fits a sequence."""
    check_floating(name, projection)
    assert isinstance(projection, Tensor)
    shape = list(projection.shape)
    wanted = "[projected_len, key_len] or [num_heads, projected_len, key_len]"
    if projection.ndim not in (2, 3) or 0 in shape:
        raise ValueError(f"{name} must have shape {wanted}, got {shape}.")
    projected_len, key_len = shape[-2:]
    if projected_len > key_len:
        raise ValueError(
            f"{name} must have shape {wanted}, and projected_len may not be over key_len, got "
            f"{shape}. If it is [key_len, projected_len], pass {name}.mT."
        )
    if x.shape[-2] > key_len:
        raise ValueError(
            f"{x_name} must be at most {key_len} long, the key_len of {name}, "
            f"got {x.shape[-2]}: shape {list(x.shape)}."
        )
    if projection.ndim == 3 and (x.ndim != 4 or x.shape[1] != shape[0]):
        raise ValueError(
            f"{x_name} must have shape [batch, {shape[0]}, len, dim], since {name} has a matrix "
            f"for each of {shape[0]} heads, got {list(x.shape)}."
        )


def check_projections(
    key_projection: Tensor, value_projection: Tensor, key: Tensor, value: Tensor
) -> None:
    """Raise unless two projections fit keys, values and each other."""
    _check_projection("key_projection", key_projection, "key", key)
    _check_projection("value_projection", value_projection, "value", value)
    check_together(key=key, key_projection=key_projection, value_projection=value_projection)
    ours, theirs = key_projection.shape[-2:], value_projection.shape[-2:]
    if ours != theirs:
        raise ValueError(
            f"value_projection must have the projected_len and key_len of key_projection, "
            f"{list(ours)}, got {list(theirs)}."
        )


def check_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout_p: float, impl: str
) -> float:
    """Check what both attentions are given; the scale."""
    _check_sequence("query", query, "query_len, dim")
    _check_sequence("key", key, "key_len, dim")
    _check_sequence("value", value, "key_len, value_dim")
    check_together(query=query, key=key, value=value)
    dim = query.shape[-1]
    if key.shape[:-2] != query.shape[:-2] or key.shape[-1] != dim:
        raise ValueError(
            f"key must have shape {[*query.shape[:-2], 'key_len', dim]}, as query has "
            f"{list(query.shape)}, got {list(key.shape)}."
        )
    if value.shape[:-1] != key.shape[:-1]:
        raise ValueError(
            f"value must have shape {[*key.shape[:-1], 'value_dim']}, a row for each key, "
            f"got {list(value.shape)}."
        )
    check_dropout("dropout_p", dropout_p)
    check_choice("impl", impl, IMPLEMENTATIONS)
    if impl == "triton":
        _triton.require(query.device)
        if dropout_p:
            raise ValueError("dropout_p must be 0 with impl='triton', which has no dropout.")
    return check_scale(scale, dim)


def _choose(impl: str, query: Tensor, key: Tensor, need_weights: bool) -> str:
    """The last row of ``linformer_attention``'s table."""
    if impl != "auto":
        return impl
    if need_weights:
        return "reference"
    if query.is_cuda:
        return "sdpa"
    tiled = query.shape[:-1].numel() * key.shape[-2] >= _TILED_ELEMENTS
    return "blocked" if tiled else "reference"


def draw_kept(dropout_p: float, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
    """Which weights dropout spares, divided by their share, or ``None`` for all."""
    return F.dropout(like.new_ones(shape), dropout_p) if dropout_p else None


def _four(x: Tensor) -> Tensor:
    """``[batch, heads, len, dim]``."""
    return x if x.ndim == 4 else x.unsqueeze(1)


def _check_kernel(*tensors: Tensor) -> None:
    """Raise unless the kernels take these, ``[..., dim]``."""
    widest = max(x.shape[-1] for x in tensors)
    if widest > _KERNEL_WIDTH:
        raise ValueError(
            f"impl='triton' takes up to {_KERNEL_WIDTH} columns, got {widest}: use impl='auto'."
        )
    _triton.require_dot(tensors[0].dtype)


def _check_slots(count: int) -> None:
    """Raise unless the kernel takes so many."""
    if count > _KERNEL_SLOTS:
        raise ValueError(
            f"impl='triton' takes up to {_KERNEL_SLOTS} slots (projected_len), got {count}: use "
            "impl='sdpa' or 'auto'."
        )


def _kernel_project(x: Tensor, projection: Tensor, lens: Tensor | None) -> Tensor:
    _triton.require(x.device)
    _check_kernel(x)
    from attn_course.linformer import projection_kernel as gpu

    output: Tensor = gpu.project(_four(x), projection, lens)
    return output.reshape(*x.shape[:-2], *output.shape[-2:])


def _kernel_pair(
    key: Tensor, value: Tensor, key_projection: Tensor, value_projection: Tensor,
    lens: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Both projections; where they share their matrix, it is read once."""
    _check_kernel(key, value)
    from attn_course.linformer import projection_kernel as gpu

    pair: Any = gpu.project_pair(_four(key), _four(value), key_projection, value_projection, lens)
    given = zip((key, value), pair, strict=True)
    keys, values = (y.reshape(*x.shape[:-2], *y.shape[-2:]) for x, y in given)
    return keys, values
