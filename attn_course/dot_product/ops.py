"""The public operation: validation, and the choice between implementations."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course import _triton
from attn_course._masks import check_mask, check_valid_lens, check_window, combine
from attn_course._padding import disarm_checked
from attn_course._precision import wide_dtype
from attn_course._validation import (
    broadcast_batch,
    check_choice,
    check_dropout,
    check_floating,
    check_integer,
    check_need_weights,
    check_number,
    check_query_key_value,
    check_slopes,
)
from attn_course.dot_product import reference

IMPLEMENTATIONS = ("auto", "reference", "sdpa", "triton")

#: The widest heads that the kernel takes.
_KERNEL_WIDTH = 256

#: Queries times keys from which on a CPU is faster with one item of a batch after another.
_ITEM_ELEMENTS = 256 * 256

#: Queries times keys up to which a CPU trains faster with plain products than fused.
_FEW_ELEMENTS = 16 * 16

#: How many keys to the left and to the right of a query's position it may see.
Window: TypeAlias = tuple[int | None, int | None]


class _Request(NamedTuple):
    """What was asked for, checked.

    ``lens`` and ``mask`` are shaped for broadcasting. Query i may see key j where
    i + low <= j <= i + high; ``None`` where that hides nothing.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    batch_shape: tuple[int, ...]
    group: int
    scale: float | Tensor
    lens: Tensor | None
    mask: Tensor | None
    low: int | None
    high: int | None
    offset: int
    slopes: Tensor | None
    dropout_p: float

    def allowed(self) -> Tensor | None:
        """All that hides a key as one mask, or ``None``."""
        n, m = self.query.shape[-2], self.key.shape[-2]
        allowed = combine(self.lens, self.mask, m)
        if self.low is None and self.high is None:
            return allowed
        seen = reference.in_sight(n, m, self.low, self.high, self.query.device)
        return seen if allowed is None else allowed & seen

    def bias(self) -> Tensor | None:
        """What is added to the scores, ``[heads, query_len, key_len]``, or ``None``."""
        if self.slopes is None:
            return None
        n, m = self.query.shape[-2], self.key.shape[-2]
        return reference.distance_bias(self.slopes, n, m, self.offset)

    def as_float(self) -> _Request:
        """In float64 if it came so, else in float32."""
        wide = wide_dtype(self.query.dtype)
        scale = self.scale.to(wide) if isinstance(self.scale, Tensor) else self.scale
        slopes = None if self.slopes is None else self.slopes.to(wide)
        query, key, value = (x.to(wide) for x in (self.query, self.key, self.value))
        return self._replace(query=query, key=key, value=value, scale=scale, slopes=slopes)

    def ungrouped(self) -> _Request:
        """Each head with keys and values of its own."""
        if self.group == 1:
            return self
        key, value = (x.repeat_interleave(self.group, 1) for x in (self.key, self.value))
        return self._replace(key=key, value=value, group=1)


@overload
def dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, *,
    valid_lens: Tensor | None = ..., mask: Tensor | None = ..., is_causal: bool = ...,
    window: Window | None = ..., query_offset: int = ..., bias_slopes: Tensor | None = ...,
    scale: float | Tensor | None = ..., dropout_p: float = ...,
    need_weights: Literal[False] = ..., need_lse: Literal[False] = ..., impl: str = ...,
) -> Tensor: ...  # fmt: skip


@overload
def dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, *,
    valid_lens: Tensor | None = ..., mask: Tensor | None = ..., is_causal: bool = ...,
    window: Window | None = ..., query_offset: int = ..., bias_slopes: Tensor | None = ...,
    scale: float | Tensor | None = ..., dropout_p: float = ...,
    need_weights: Literal[True], need_lse: Literal[False] = ..., impl: str = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, *,
    valid_lens: Tensor | None = ..., mask: Tensor | None = ..., is_causal: bool = ...,
    window: Window | None = ..., query_offset: int = ..., bias_slopes: Tensor | None = ...,
    scale: float | Tensor | None = ..., dropout_p: float = ...,
    need_weights: Literal[False] = ..., need_lse: Literal[True], impl: str = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, *,
    valid_lens: Tensor | None = ..., mask: Tensor | None = ..., is_causal: bool = ...,
    window: Window | None = ..., query_offset: int = ..., bias_slopes: Tensor | None = ...,
    scale: float | Tensor | None = ..., dropout_p: float = ...,
    need_weights: Literal[True], need_lse: Literal[True], impl: str = ...,
) -> tuple[Tensor, Tensor, Tensor]: ...  # fmt: skip


@overload
def dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, *,
    valid_lens: Tensor | None = ..., mask: Tensor | None = ..., is_causal: bool = ...,
    window: Window | None = ..., query_offset: int = ..., bias_slopes: Tensor | None = ...,
    scale: float | Tensor | None = ..., dropout_p: float = ...,
    need_weights: bool, need_lse: Literal[False] = ..., impl: str = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, *,
    valid_lens: Tensor | None = ..., mask: Tensor | None = ..., is_causal: bool = ...,
    window: Window | None = ..., query_offset: int = ..., bias_slopes: Tensor | None = ...,
    scale: float | Tensor | None = ..., dropout_p: float = ...,
    need_weights: bool = ..., need_lse: bool = ..., impl: str = ...,
) -> Tensor | tuple[Tensor, ...]: ...  # fmt: skip


def dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    valid_lens: Tensor | None = None,
    mask: Tensor | None = None,
    is_causal: bool = False,
    window: Window | None = None,
    query_offset: int = 0,
    bias_slopes: Tensor | None = None,
    scale: float | Tensor | None = None,
    dropout_p: float = 0.0,
    need_weights: bool = False,
    need_lse: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, ...]:
    """Attention by dot products: average the values, weighted by ``softmax(scale * q . k)``.

    A query that may see no key gets zeros, and so do its gradients. What padding holds,
    NaN included, does not matter. What may be seen is what ``valid_lens``, ``mask``,
    ``is_causal`` and ``window`` all allow.

    Args:
        query: ``[..., query_len, dim]``.
        key: ``[..., key_len, dim]``; at least one.
        value: ``[..., key_len, value_dim]``. Leading dimensions of the three broadcast. Of
            four dimensions the second one counts heads, and keys and values may have fewer:
            each of theirs then serves as many heads of the queries, one after the other.
        valid_lens: How many leading keys count, ``[batch]`` or
            ``[batch, query_len]`` (``batch``: the first leading dimension).
        mask: ``True`` = may attend; broadcasts to ``[..., query_len, key_len]``.
        is_causal: Query i may see keys 0 to i + ``query_offset``.
        window: ``(left, right)``: query i may see keys from ``left`` before to ``right``
            after its position, i + ``query_offset``; ``None``: as many as there are.
        query_offset: The position of the first query among the keys; a cache of earlier
            keys passes its length.
        bias_slopes: For each head, the last leading dimension, a number: ``[heads]``.
            -slope * distance is added to the scores, where the distance is that of the
            query's position from the key's (ALiBi). Not learned.
        scale: What the dot products are multiplied by: a number, or a tensor with one
            element, which gets a gradient. ``None`` is ``1/sqrt(dim)``.
        dropout_p: Probability with which each weight is dropped, in [0, 1); the others
            are divided by 1 - ``dropout_p``. Always applied: pass 0 when not training.
        need_weights: Return the weights as well.
        need_lse: Return ``log sum_j exp(score_ij)`` as well; differentiable.
        impl: Which implementation:

            ============= ======================================================
            ``reference`` PyTorch; holds all weights; half precision is computed
                          in float32
            ``sdpa``      PyTorch's fused operation, with a built mask where it
                          has no word for a request; no weights, no log-sum-exp
            ``triton``    GPU kernel (interpreted where there is no GPU: slow);
                          O(n + m) memory; up to 256 columns; no weights; float64
                          where interpreted only; can be differentiated once
            ``auto``      ``reference`` with ``need_weights``; on CUDA ``triton``
                          for what ``sdpa`` has no word for; else ``sdpa``, and
                          ``reference`` with ``need_lse`` and, on a CPU where
                          gradients are recorded, for up to 16 x 16 pairs
            ============= ======================================================

    Returns:
        The output ``[..., query_len, value_dim]``; with ``need_weights`` then the weights
        ``[..., query_len, key_len]``, before dropout; with ``need_lse`` then
        ``[..., query_len]``, in float32 or float64, -inf for a query that may see no key.

    Raises:
        TypeError: A tensor has the wrong kind of numbers, or an option the wrong type.
        ValueError: A shape, a length, a name or a combination is out of place.
        RuntimeError: ``impl="triton"`` cannot be had here; the message says why.

    Reference:
        Vaswani et al. (2017), Attention is all you need, equation 1. Press et al. (2022) for
        ``bias_slopes``; Ainslie et al. (2023), GQA, for fewer heads of keys.

    Example:
        >>> key = torch.tensor([[8.0, 0.0], [0.0, 8.0]])
        >>> value = torch.tensor([[10.0], [20.0]])
        >>> dot_product_attention(key, key, value, is_causal=True)
        tensor([[10.],
                [20.]])
    """
    check_query_key_value(query, key, value, ": BilinearAttention takes keys of another width")
    check_scale(scale)
    check_dropout("dropout_p", dropout_p)
    check_choice("impl", impl, IMPLEMENTATIONS)
    (n, dim), m = query.shape[-2:], key.shape[-2]
    low, high = _bounds(n, m, is_causal, window, query_offset)
    group = _group_size(query, key, value)
    shared = (key[:, :1], value[:, :1]) if group > 1 else (key, value)
    batch_shape = broadcast_batch(query=query, key=shared[0], value=shared[1])
    shape_and_place = (batch_shape, n, m, query.device)
    lens = check_valid_lens(valid_lens, *shape_and_place)
    mask = check_mask(mask, *shape_and_place)
    slopes = _check_slopes(bias_slopes, batch_shape, query.device)
    if scale is None:
        scale = 1 / math.sqrt(dim)
    elif isinstance(scale, Tensor):
        scale = scale.reshape(()).to(query)
    request = _Request(
        query, key, value, batch_shape, group, scale, lens, mask, low, high, query_offset, slopes,
        dropout_p,
    )  # fmt: skip
    impl = _choose(impl, request, need_weights, need_lse)
    if impl == "sdpa":
        return _sdpa(request)
    if impl == "triton":
        output, lse = _flash(request, need_lse)
        return output if lse is None else (output, lse)
    return _reference(request, need_weights, need_lse)


def check_scale(scale: float | Tensor | None) -> None:
    """Raise unless ``scale`` is ``None``, a finite number or a tensor with one element."""
    if isinstance(scale, Tensor):
        check_floating("scale", scale)
        if scale.numel() != 1:
            raise ValueError(f"scale must have one element, got shape {list(scale.shape)}.")
    elif scale is not None:
        check_number("scale", scale, "a number or a tensor")


def _bounds(
    n: int, m: int, is_causal: bool, window: Window | None, offset: int
) -> tuple[int | None, int | None]:
    """The keys that query i may see, as i + low to i + high; ``None`` where nothing is hidden."""
    check_integer("query_offset", offset)
    if abs(offset) >= 2**30:
        raise ValueError(f"query_offset must lie below 2^30, got {offset}.")
    left, right = check_window(window)
    if is_causal:
        right = 0
    # Between these all or nothing is hidden. A kernel counts in 32 bits.
    low = None if left is None or offset - left <= 1 - n else min(offset - left, m)
    high = None if right is None or offset + right >= m - 1 else max(offset + right, -n)
    return low, high


def _group_size(query: Tensor, key: Tensor, value: Tensor) -> int:
    """How many heads of the queries share one of the keys; 1 without such an axis."""
    if not query.ndim == key.ndim == value.ndim == 4 or key.shape[1] != value.shape[1]:
        return 1
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads in (0, kv_heads) or kv_heads == 0 or heads == 1:
        return 1  # nothing to share; if they do not broadcast, that is said next
    if heads % kv_heads:
        raise ValueError(
            f"key and value must have a number of heads that divides that of query, {heads}, "
            f"got {kv_heads}."
        )
    return heads // kv_heads


def _check_slopes(
    slopes: Tensor | None, batch_shape: tuple[int, ...], device: torch.device
) -> Tensor | None:
    if slopes is None:
        return None
    check_slopes(slopes, batch_shape, device)
    if slopes.requires_grad and torch.is_grad_enabled():
        raise ValueError("bias_slopes must not require a gradient: it gets none. Detach it.")
    return slopes.detach()


def _choose(impl: str, request: _Request, need_weights: bool, need_lse: bool) -> str:
    """The table of ``dot_product_attention``'s docstring, and what each cannot do."""
    if impl == "auto":
        if need_weights:
            return "reference"
        if request.query.is_cuda and (need_lse or _beyond_sdpa(request)) and _kernel_fits(request):
            return "triton"
        return "reference" if need_lse or _too_few_to_fuse(request) else "sdpa"
    check_need_weights(need_weights, impl)
    if need_lse and impl == "sdpa":
        raise ValueError(
            "need_lse=True asks for the log-sum-exp, which PyTorch's fused operation keeps to "
            "itself: use impl='triton', 'reference' or 'auto'."
        )
    if impl == "triton":
        _triton.require(request.query.device)
        widest = max(request.query.shape[-1], request.value.shape[-1])
        if widest > _KERNEL_WIDTH:
            raise ValueError(
                f"impl='triton' takes up to {_KERNEL_WIDTH} columns, got {widest}: "
                "use impl='sdpa' or 'reference'."
            )
        _triton.require_dot(request.query.dtype)
    return impl


def _pairs(request: _Request) -> int:
    """Queries times keys, of one head."""
    return request.query.shape[-2] * request.key.shape[-2]


def _too_few_to_fuse(request: _Request) -> bool:
    """Whether plain products train faster: on a CPU the fused backward pass starts slowly."""
    on_cpu = request.query.device.type == "cpu"
    return on_cpu and torch.is_grad_enabled() and _pairs(request) <= _FEW_ELEMENTS


def _beyond_sdpa(request: _Request) -> bool:
    """Whether PyTorch's fused operation would need a mask of all queries times all keys."""
    per_query = request.lens is not None and request.lens.shape[-1] > 1
    hidden = request.lens is not None or request.mask is not None
    plain = request.low is None and (request.high is None or (request.high == 0 and not hidden))
    return request.slopes is not None or per_query or not plain


def _kernel_fits(request: _Request) -> bool:
    widest = max(request.query.shape[-1], request.value.shape[-1])
    tensor_cores = _triton.architecture(request.query.device) >= 80
    single = request.query.dtype != torch.float64
    return _triton.AVAILABLE and tensor_cores and single and widest <= _KERNEL_WIDTH


def _reference(
    request: _Request, need_weights: bool, need_lse: bool
) -> Tensor | tuple[Tensor, ...]:
    dtype = request.query.dtype
    request = request.ungrouped().as_float()
    allowed, bias = request.allowed(), request.bias()
    query = request.query.expand(*request.batch_shape, *request.query.shape[-2:])
    # Heads are cut from wider rows: matmul would copy them all, and key.mT slowly.
    query, key, value = (x.contiguous() for x in (query, request.key, request.value))
    query, key, value = disarm_checked(query, key, value, None, allowed)
    output, weights = reference.dot_product_attention(
        query, key, value, scale=request.scale, allowed=allowed, bias=bias,
        dropout_p=request.dropout_p,
    )  # fmt: skip
    results = [output.to(dtype)]
    if need_weights:
        results.append(weights.to(dtype))
    if need_lse:
        scores = reference.scores(query, key, request.scale, bias)
        results.append(reference.log_sum_exp(scores, allowed))
    return tuple(results) if len(results) > 1 else results[0]


def _flash(request: _Request, need_lse: bool) -> tuple[Tensor, Tensor | None]:
    """The kernel, which wants a number for the scale and a seed for dropout."""
    from attn_course.dot_product import backward_kernel as gpu

    query, scale = request.query, request.scale
    if isinstance(scale, Tensor):
        query, scale = query * scale, 1.0
    seed = int(torch.randint(1 << 31, ())) if request.dropout_p else 0
    output, lse = gpu.flash_attention(
        query, request.key, request.value, request.batch_shape, scale=scale, group=request.group,
        lens=request.lens, mask=request.mask, low=request.low, high=request.high,
        offset=request.offset, slopes=request.slopes, dropout_p=request.dropout_p, seed=seed,
        need_lse=need_lse,
    )  # fmt: skip
    return output, lse


def _has_items(request: _Request) -> bool:
    """Whether keys past a length can be cut off, item by item, and that takes less time."""
    lens, batch_shape = request.lens, request.batch_shape
    if lens is None or lens.device.type != "cpu" or request.mask is not None:
        return False
    if not batch_shape or not batch_shape[0]:
        return False
    one_each = lens.shape[0] == lens.numel() == batch_shape[0]
    return one_each and _pairs(request) >= _ITEM_ELEMENTS


def _each_item(request: _Request) -> Tensor:
    """Every item of the batch with the keys that count, so that nothing is masked."""
    query, key, value = (
        x.expand(*request.batch_shape, *x.shape[-2:]).unbind(0) for x in request[:3]
    )
    assert request.lens is not None
    outputs = []
    for q, k, v, length in zip(query, key, value, request.lens.flatten().tolist(), strict=True):
        item = request._replace(
            query=q, key=k[..., :length, :], value=v[..., :length, :],
            batch_shape=request.batch_shape[1:], lens=None,
        )  # fmt: skip
        outputs.append(_sdpa(item) if length else q.new_zeros(*q.shape[:-1], v.shape[-1]))
    return torch.stack(outputs)


def _sdpa(request: _Request) -> Tensor:
    """PyTorch's fused operation, kept from its faults.

    It is fast on four dimensions only, and says nothing about scales below zero and about
    rows that may see no key: depending on the version and the device those come out as
    NaN or as an average.
    """
    dtype = request.query.dtype
    if request.slopes is not None:  # a half-precision bias would blur distances
        request = request.as_float()
    request = request.ungrouped()
    if _has_items(request):
        return _each_item(request).to(dtype)
    (query, key, value, batch_shape), scale = request[:4], request.scale
    n, m = query.shape[-2], key.shape[-2]
    bare = request.lens is None and request.mask is None and request.slopes is None
    # One that PyTorch knows by name. Else a mask says it.
    is_causal = bare and request.low is None and request.high == 0
    allowed = None if is_causal else request.allowed()
    if is_causal:
        seen = max(1, min(n, m))  # nobody sees the keys after these
        key, value = key[..., :seen, :], value[..., :seen, :]
    nothing, added = None, request.bias()
    if allowed is not None:
        query, key, value = disarm_checked(query, key, value, None, allowed)
        nothing = ~allowed.any(-1, keepdim=True)
        if nothing.is_cuda or nothing.any():  # looking would make the host wait for a GPU
            allowed = allowed | nothing  # an average of anything, which is thrown away below
        else:
            nothing = None
    if added is None:
        added = allowed
    elif allowed is not None:
        added = torch.where(allowed, added, -torch.inf)
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
        attn_mask=None if added is None else four(added),
        dropout_p=request.dropout_p,
        is_causal=is_causal,
        scale=scale,
    )
    output = output.reshape(*batch_shape, n, value.shape[-1]).to(dtype)
    return output if nothing is None else output.masked_fill(nothing, 0)
