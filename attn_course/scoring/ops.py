"""The public operations: validation, and the choice between implementations."""

from __future__ import annotations

import math
from typing import Literal, overload

from torch import Tensor

from attn_course import _triton
from attn_course._masks import check_mask, check_valid_lens, combine
from attn_course._padding import disarm_checked
from attn_course._precision import wide_dtype
from attn_course._validation import (
    broadcast_batch,
    check_choice,
    check_dropout,
    check_floating,
    check_rank,
    check_rows,
    check_together,
)
from attn_course.scoring import blocked, reference

IMPLEMENTATIONS = ("auto", "reference", "triton")
ADDITIVE_IMPLEMENTATIONS = ("auto", "reference", "blocked", "triton")

#: Beyond this many hidden numbers (16 MiB) a CPU computes additive attention in blocks. Stored,
#: they would be held for the backward pass. Measured on one thread, n = m = 512 and 128 hidden
#: units: blocks take 0.7 of the time with the backward pass. Of fewer they take up to twice it.
_STORED_HIDDEN = 1 << 22


def masked_softmax(
    scores: Tensor,
    valid_lens: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    """Turn scores into weights: the softmax over the keys that each query may see.

    A query that may see no key gets zeros, and so does its gradient. A score of -inf gives
    its key no weight; one of +inf takes it all, and several share it. What the scores of
    hidden keys hold, NaN included, does not matter.

    Args:
        scores: ``[..., query_len, key_len]``; left as they are.
        valid_lens: How many leading keys count, ``[batch]`` or
            ``[batch, query_len]`` (``batch``: the first leading dimension).
        mask: ``True`` = may attend; broadcasts to the scores. Where both are
            given, both must allow a key.
        impl: Which implementation:

            ============= ======================================================
            ``reference`` PyTorch; can be differentiated twice
            ``triton``    GPU kernel (interpreted where there is no GPU: slow)
            ``auto``      on CUDA ``triton``, else ``reference``
            ============= ======================================================

    Returns:
        Weights of the shape and type of the scores. Half precision is computed in
        float32 and rounded at the end.

    Raises:
        TypeError: A tensor has the wrong kind of numbers.
        ValueError: A shape, a length or a name is out of place.
        RuntimeError: ``impl="triton"`` cannot be had here; the message says why.

    Reference:
        Zhang et al., Dive into Deep Learning, section 11.3, for ``valid_lens``.

    Example:
        >>> import torch
        >>> masked_softmax(torch.zeros(2, 1, 4), torch.tensor([2, 0]))
        tensor([[[0.5000, 0.5000, 0.0000, 0.0000]],
        <BLANKLINE>
                [[0.0000, 0.0000, 0.0000, 0.0000]]])
    """
    check_floating("scores", scores)
    check_rank("scores", scores, 2, "[..., query_len, key_len]")
    *batch_shape, query_len, key_len = scores.shape
    if key_len == 0:
        raise ValueError("scores must hold at least one key, got none: there is nothing to weigh.")
    check_choice("impl", impl, IMPLEMENTATIONS)
    shape_and_place = (tuple(batch_shape), query_len, key_len, scores.device)
    lens = check_valid_lens(valid_lens, *shape_and_place)
    mask = check_mask(mask, *shape_and_place)
    if impl == "auto":
        impl = _kernel_if_cuda(scores)
    elif impl == "triton":
        _triton.require(scores.device)

    if impl == "triton":
        from attn_course.scoring import kernel as gpu

        return gpu.masked_softmax(scores, lens=lens, mask=mask)
    allowed = combine(lens, mask, key_len)
    compute = wide_dtype(scores.dtype)
    return reference.masked_softmax(scores.to(compute), allowed).to(scores.dtype)


def additive_scores(query: Tensor, key: Tensor, weight: Tensor) -> Tensor:
    """Score each query and key by a network with one hidden layer: ``w . tanh(q_i + k_j)``.

    Args:
        query: Projected queries, ``[..., query_len, hidden]``.
        key: Projected keys, ``[..., key_len, hidden]``. Leading dimensions broadcast.
        weight: What each hidden unit adds to the score, ``[hidden]``.

    Returns:
        Scores ``[..., query_len, key_len]``. Half precision is computed in float32 and
        rounded at the end.

    Raises:
        TypeError: A tensor has the wrong kind of numbers.
        ValueError: A shape is out of place.

    Reference:
        Bahdanau et al. (2015), Neural machine translation by jointly learning to align
        and translate, appendix A.1.2.

    Example:
        >>> import torch
        >>> query, key = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, -1.0], [9.0, 9.0]])
        >>> additive_scores(query, key, torch.tensor([1.0, 0.5]))
        tensor([[0.0000, 1.5000]])
    """
    _check_projected(query, key, weight)
    broadcast_batch(query=query, key=key)
    compute = wide_dtype(query.dtype)
    scores = reference.additive_scores(query.to(compute), key.to(compute), weight.to(compute))
    return scores.to(query.dtype)


@overload
def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    valid_lens: Tensor | None = ...,
    mask: Tensor | None = ...,
    dropout_p: float = ...,
    need_weights: Literal[False] = ...,
    impl: str = ...,
) -> Tensor: ...


@overload
def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    valid_lens: Tensor | None = ...,
    mask: Tensor | None = ...,
    dropout_p: float = ...,
    need_weights: Literal[True],
    impl: str = ...,
) -> tuple[Tensor, Tensor]: ...


@overload
def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    valid_lens: Tensor | None = ...,
    mask: Tensor | None = ...,
    dropout_p: float = ...,
    need_weights: bool,
    impl: str = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...


def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    valid_lens: Tensor | None = None,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    need_weights: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention by additive scores: average the values, weighted by ``softmax(w . tanh(q + k))``.

    A query that may see no key gets zeros, and so do its gradients. What padding holds,
    NaN included, does not matter.

    Args:
        query: Projected queries, ``[..., query_len, hidden]``.
        key: Projected keys, ``[..., key_len, hidden]``; at least one.
        value: ``[..., key_len, value_dim]``. Leading dimensions of the three broadcast.
        weight: What each hidden unit adds to the score, ``[hidden]``.
        valid_lens: How many leading keys count, ``[batch]`` or
            ``[batch, query_len]`` (``batch``: the first leading dimension).
        mask: ``True`` = may attend; broadcasts to ``[..., query_len, key_len]``.
        dropout_p: Probability with which each weight is dropped, in [0, 1); the others
            are divided by 1 - ``dropout_p``. Always applied: pass 0 when not training.
        need_weights: Return the weights as well.
        impl: Which implementation:

            ============= ======================================================
            ``reference`` PyTorch; holds a number for each query, key and hidden
                          unit
            ``blocked``   PyTorch, a block of queries at a time; O(n + m) memory;
                          no weights, no dropout; can be differentiated once
            ``triton``    GPU kernel (interpreted where there is no GPU: slow);
                          O(n + m) memory; no weights, no dropout
            ``auto``      ``reference`` with ``need_weights`` or dropout; on CUDA
                          ``triton``; else ``reference`` up to ``2^22`` such
                          numbers, ``blocked`` beyond
            ============= ======================================================

    Returns:
        The output ``[..., query_len, value_dim]``, or with ``need_weights`` the pair of
        output and weights ``[..., query_len, key_len]``, before dropout. Half precision
        is computed in float32 and rounded at the end.

    Raises:
        TypeError: A tensor has the wrong kind of numbers.
        ValueError: A shape, a length, a name or a combination is out of place.
        RuntimeError: ``impl="triton"`` cannot be had here; the message says why.

    Reference:
        Bahdanau et al. (2015), Neural machine translation by jointly learning to align
        and translate, section 3.1 and appendix A.1.2.

    Example:
        >>> import torch
        >>> query, key = torch.tensor([[0.0]]), torch.tensor([[0.0], [0.0], [9.0]])
        >>> value = torch.tensor([[1.0], [3.0], [8.0]])
        >>> weight = torch.tensor([1.0])
        >>> additive_attention(query, key, value, weight, valid_lens=torch.tensor(2))
        tensor([[2.]])
    """
    _check_projected(query, key, weight)
    check_floating("value", value)
    check_rank("value", value, 2, "[..., key_len, value_dim]")
    check_together(query=query, value=value)
    check_rows(key, value)
    key_len = key.shape[-2]
    if value.shape[-1] == 0:
        raise ValueError("value must have at least one column, got none.")
    check_dropout("dropout_p", dropout_p)
    check_choice("impl", impl, ADDITIVE_IMPLEMENTATIONS)
    if impl in ("blocked", "triton") and (need_weights or dropout_p):
        asked = "need_weights=True" if need_weights else f"dropout_p={dropout_p}"
        raise ValueError(
            f"impl={impl!r} never stores the weights, so it cannot do {asked}: "
            "use impl='reference' or 'auto'."
        )
    batch_shape = broadcast_batch(query=query, key=key, value=value)
    shape_and_place = (batch_shape, query.shape[-2], key_len, query.device)
    lens = check_valid_lens(valid_lens, *shape_and_place)
    mask = check_mask(mask, *shape_and_place)
    if impl == "auto":
        impl = "reference" if need_weights or dropout_p else _least_memory(query, key)
    elif impl == "triton":
        _triton.require(query.device)

    dtype = query.dtype
    compute = wide_dtype(dtype)
    query, key, value = query.to(compute), key.to(compute), value.to(compute)
    weight = weight.to(compute)
    query, key, value = disarm_checked(query, key, value, lens, mask)

    if impl == "triton":
        from attn_course.scoring import additive_kernel as gpu

        return gpu.additive(query, key, value, weight, lens=lens, mask=mask).to(dtype)
    if impl == "blocked":
        return blocked.additive_attention_blocked(
            query, key, value, weight, lens=lens, mask=mask
        ).to(dtype)
    allowed = combine(lens, mask, key_len)
    output, weights = reference.additive_attention(
        query, key, value, weight, allowed=allowed, dropout_p=dropout_p
    )
    return (output.to(dtype), weights.to(dtype)) if need_weights else output.to(dtype)


def _check_projected(query: Tensor, key: Tensor, weight: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("weight", weight)):
        check_floating(name, tensor)
    check_rank("query", query, 2, "[..., query_len, hidden]")
    check_rank("key", key, 2, "[..., key_len, hidden]")
    check_together(query=query, key=key, weight=weight)
    hidden = query.shape[-1]
    if hidden == 0:
        raise ValueError("query must have at least one hidden unit, got none.")
    if key.shape[-1] != hidden:
        raise ValueError(
            f"key must have as many hidden units as query, {hidden}, got {key.shape[-1]}: "
            "project both first, as AdditiveAttention does."
        )
    if tuple(weight.shape) != (hidden,):
        raise ValueError(f"weight must have shape [{hidden}], got {list(weight.shape)}.")


def _kernel_if_cuda(tensor: Tensor) -> str:
    return "triton" if tensor.is_cuda and _triton.AVAILABLE else "reference"


def _least_memory(query: Tensor, key: Tensor) -> str:
    """Where no weights are asked for: the last row of ``additive_attention``'s table."""
    impl = _kernel_if_cuda(query)
    batch = math.prod(broadcast_batch(query=query, key=key))
    hidden = batch * query.shape[-2] * key.shape[-2] * query.shape[-1]
    return "blocked" if impl == "reference" and hidden > _STORED_HIDDEN else impl
