"""The public operation: validation, and the choice between implementations."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, overload

import torch
from torch import Tensor

from attn_course import _triton
from attn_course._masks import check_valid_lens
from attn_course._precision import wide_dtype
from attn_course._validation import (
    broadcast_batch,
    check_choice,
    check_counts,
    check_need_weights,
    check_number,
    check_query_key_value,
)
from attn_course.dot_product import dot_product_attention
from attn_course.long_sequences import blocked, reference
from attn_course.long_sequences.reference import Groups
from attn_course.long_sequences.reference import Window as Seen

IMPLEMENTATIONS = ("auto", "reference", "sdpa", "blocked", "triton")
KINDS = ("sliding", "block")

#: The widest heads that the kernel takes.
_KERNEL_WIDTH = 256

#: Where the keys that a tile meets are more than this share of all, it may as well meet all.
_MOST = 0.75

#: As far to both sides, or so far to the left and to the right; positions of a block.
Window: TypeAlias = int | tuple[int, int]


@overload
def windowed_attention(
    query: Tensor, key: Tensor, value: Tensor, *,
    window: Window, kind: str = ..., dilation: int = ..., is_causal: bool = ...,
    valid_lens: Tensor | None = ..., scale: float | None = ...,
    need_weights: Literal[False] = ..., impl: str = ...,
) -> Tensor: ...  # fmt: skip


@overload
def windowed_attention(
    query: Tensor, key: Tensor, value: Tensor, *,
    window: Window, kind: str = ..., dilation: int = ..., is_causal: bool = ...,
    valid_lens: Tensor | None = ..., scale: float | None = ...,
    need_weights: Literal[True], impl: str = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def windowed_attention(
    query: Tensor, key: Tensor, value: Tensor, *,
    window: Window, kind: str = ..., dilation: int = ..., is_causal: bool = ...,
    valid_lens: Tensor | None = ..., scale: float | None = ...,
    need_weights: bool, impl: str = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip


def windowed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: Window,
    kind: str = "sliding",
    dilation: int = 1,
    is_causal: bool = False,
    valid_lens: Tensor | None = None,
    scale: float | None = None,
    need_weights: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Dot-product attention to keys nearby: n queries and a window of w cost ``n w``, not ``n^2``.

    A query that may see no key gets zeros, and so do its gradients. What padding holds, NaN
    included, does not matter.

    Args:
        query: ``[..., query_len, dim]``.
        key: ``[..., key_len, dim]``; at least one.
        value: ``[..., key_len, value_dim]``. Leading dimensions of the three broadcast.
        window: How far a query sees. Sliding: ``(left, right)``, steps to both sides of its
            position, i - left to i + right; w is (w, w). One of the two may be 0, not both:
            there would be nothing to choose from. Block: how many positions make a block.
        kind: ``"sliding"``: each query has a window of its own. ``"block"``: the sequence is
            cut into blocks, the last one shorter where it does not divide, and a query sees
            the keys of its block.
        dilation: Of a sliding window, the positions in a step: with r, a query sees the keys
            whose distance is a multiple of r, ``left`` and ``right`` of them.
        is_causal: Query i may not see keys after i: ``right`` counts as 0.
        valid_lens: How many leading keys count, ``[batch]`` or
            ``[batch, query_len]`` (``batch``: the first leading dimension).
        scale: What the dot products are multiplied by; ``None`` is ``1/sqrt(dim)``.
        need_weights: Return the weights as well: all of them, zeros outside the window.
        impl: Which implementation:

            ============= ======================================================
            ``reference`` PyTorch with a mask of all pairs; holds all weights
            ``sdpa``      PyTorch's fused operation with such a mask; no weights
            ``blocked``   PyTorch, without pairs outside tiles or blocks; O(n w)
                          time, O(n) memory; no weights; can be differentiated
                          once
            ``triton``    chapter 4's GPU kernel (interpreted where there is no
                          GPU: slow), as O(n w); no weights
            ``auto``      ``reference`` with ``need_weights``; on CUDA ``triton``
                          for a sliding window, where it fits; else ``blocked``,
                          or, where the window is about as long as the
                          sequence, all scores and a mask
            ============= ======================================================

            Dilated windows and blocks become plain ones: positions are dealt out to
            sequences of their own: ``dilation`` many, or one for each block.

    Returns:
        The output ``[..., query_len, value_dim]``; with ``need_weights`` then the weights
        ``[..., query_len, key_len]``.

    Raises:
        TypeError: A tensor has the wrong kind of numbers, or an option the wrong type.
        ValueError: A window below 1, a shape, a length, a name or a combination is out of
            place.
        RuntimeError: ``impl="triton"`` cannot be had here; the message says why.

    Reference:
        Beltagy et al. (2020), Longformer, section 3.1, for sliding and dilated windows; Qiu
        et al. (2020), Blockwise self-attention, for blocks.

    Example:
        >>> x, value = torch.zeros(5, 1), torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
        >>> windowed_attention(x, x, value, window=1).flatten()
        tensor([1.5000, 2.0000, 3.0000, 4.0000, 4.5000])
        >>> windowed_attention(x, x, value, window=2, kind="block").flatten()
        tensor([1.5000, 1.5000, 3.5000, 3.5000, 5.0000])
    """
    seen = check_window(window, kind, dilation, is_causal)
    check_query_key_value(query, key, value)
    if scale is not None:
        check_number("scale", scale)
    check_choice("impl", impl, IMPLEMENTATIONS)
    check_need_weights(need_weights, impl)
    batch_shape = broadcast_batch(query=query, key=key, value=value)
    n, m = query.shape[-2], key.shape[-2]
    lens = check_valid_lens(valid_lens, batch_shape, n, m, query.device)
    if impl == "triton":
        _triton.require(query.device)
    impl = _choose(impl, query, key, value, seen, need_weights)

    if impl in ("auto", "reference", "sdpa"):  # the chapters before, with a mask
        plain = seen.dilation == 1 and seen.block is None
        return dot_product_attention(
            query, key, value, valid_lens=valid_lens,
            window=(seen.left, seen.right) if plain else None,
            mask=None if plain else reference.visible(n, m, seen, query.device),
            scale=scale, need_weights=need_weights, impl=impl,
        )  # fmt: skip

    batched = batch_shape or (1,)
    query, key, value = (x.expand(*batched, *x.shape[-2:]) for x in (query, key, value))
    if lens is not None:
        lens = lens.reshape(batched[0], -1)
    if seen.dilation == 1 and seen.block is None:
        output = _slide(query, key, value, lens, seen, scale, impl)
        return output.reshape(*batch_shape, *output.shape[-2:])
    groups = Groups.of(n, m, seen)
    lens = groups.lens(lens, batched[0], m, query.device)
    query = groups.split(query, groups.query_places)
    key, value = (groups.split(x, groups.key_places) for x in (key, value))
    if seen.block is None:
        output = _slide(query, key, value, lens, seen, scale, impl)
    else:
        output = dot_product_attention(
            query, key, value, valid_lens=_squeeze(lens), is_causal=is_causal, scale=scale,
            impl="triton" if impl == "triton" else "auto",
        )  # fmt: skip
    output = groups.merge(output, n)
    return output.reshape(*batch_shape, *output.shape[-2:])


def check_window(window: Window, kind: str, dilation: int, is_causal: bool) -> Seen:
    """Which keys a query sees, from ``windowed_attention``'s options.

    Raises:
        TypeError: The window is neither an integer nor a pair of them.
        ValueError: There is nothing in the window, or a combination is out of place.
    """
    check_choice("kind", kind, KINDS)
    check_counts(dilation=dilation)
    pair: object = window
    if isinstance(window, int) and not isinstance(window, bool):
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}.")
        pair = (window, window)
    if kind == "block":
        if pair is window or not isinstance(window, int):
            raise TypeError(
                f"window must be an integer for kind='block', the positions of a block, got "
                f"{window!r}."
            )
        if dilation > 1:
            raise ValueError(f"dilation belongs to kind='sliding', got {dilation} with 'block'.")
        return Seen(window - 1, 0 if is_causal else window - 1, 1, window)
    if (
        not isinstance(pair, tuple | list)
        or len(pair) != 2
        or any(isinstance(side, bool) or not isinstance(side, int) for side in pair)
    ):
        raise TypeError(f"window must be an integer or a pair (left, right), got {window!r}.")
    left, right = pair
    if left < 0 or right < 0:
        raise ValueError(f"window must hold no number below 0, got {window!r}.")
    right = 0 if is_causal else right
    if left == right == 0:
        past = " to the left, since is_causal=True" if is_causal else ""
        raise ValueError(
            f"window must reach at least 1 position{past}, got {window!r}: a query that sees "
            "one key alone has nothing to weigh."
        )
    return Seen(left, right, dilation)


def _choose(
    impl: str, query: Tensor, key: Tensor, value: Tensor, seen: Seen, need_weights: bool
) -> str:
    """The last row of ``windowed_attention``'s table; ``auto``: a mask, by who is fastest."""
    if impl != "auto":
        return impl
    if need_weights:
        return "reference"
    if seen.block is not None:
        return "blocked"
    if _kernel_fits(query, value):
        return "triton"
    places = -(-key.shape[-2] // seen.dilation)
    met = min(blocked.ROWS + seen.left + seen.right, places)
    return "auto" if met > _MOST * key.shape[-2] else "blocked"


def _kernel_fits(query: Tensor, value: Tensor) -> bool:
    if not query.is_cuda or not _triton.AVAILABLE or query.dtype == torch.float64:
        return False
    tensor_cores = _triton.architecture(query.device) >= 80
    return tensor_cores and max(query.shape[-1], value.shape[-1]) <= _KERNEL_WIDTH


def _squeeze(lens: Tensor | None) -> Tensor | None:
    """``[batch]`` for ``[batch, 1]``."""
    return lens[:, 0] if lens is not None and lens.shape[1] == 1 else lens


def _slide(
    query: Tensor, key: Tensor, value: Tensor, lens: Tensor | None, seen: Seen,
    scale: float | None, impl: str,
) -> Tensor:  # fmt: skip
    """A plain sliding window, on ``[batch, ..., len, columns]``; lengths ``[batch, 1 or n]``."""
    if impl == "triton":
        return dot_product_attention(
            query, key, value, valid_lens=_squeeze(lens), window=(seen.left, seen.right),
            scale=scale, impl="triton",
        )  # fmt: skip
    dtype = query.dtype
    compute = wide_dtype(dtype)
    query, key, value = (x.to(compute) for x in (query, key, value))
    if lens is not None:
        lens = lens.reshape(lens.shape[0], *[1] * (query.ndim - 3), lens.shape[1])
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return blocked.sliding_attention_blocked(
        query, key, value, left=seen.left, right=seen.right, scale=scale, lens=lens
    ).to(dtype)
