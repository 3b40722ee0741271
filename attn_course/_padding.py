"""Padding without teeth: a weight of zero does not stop a NaN, since 0 * NaN is NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from attn_course._masks import check_mask, check_valid_lens, combine
from attn_course._validation import broadcast_batch, check_floating, check_rank

#: Numbers below it stay finite when they are multiplied, summed and masked.
_HARMLESS = 1e8


def disarm_padding(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    valid_lens: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Zero what takes no part where it could do harm, so that no NaN from there leaks.

    For layers, which project what they are given before an operation checks it.

    Args:
        query: ``[..., query_len, query_dim]``; those that may see no key become zero.
        key: ``[..., key_len, key_dim]``; those that no query may see become zero.
        value: ``[..., key_len, value_dim]``, likewise.
        valid_lens: How many leading keys count, ``[batch]`` or ``[batch, query_len]``.
        mask: ``True`` = may attend; broadcasts to ``[..., query_len, key_len]``.

    Returns:
        The three; copies of those that were cleared. On a CPU, a tensor that holds
        nothing harmful (no NaN and no number beyond 1e8) comes back as it is.

    Raises:
        TypeError: A tensor has the wrong kind of numbers.
        ValueError: A shape or a length is out of place.

    Example:
        >>> query, key = torch.ones(1, 1), torch.tensor([[1.0], [torch.nan]])
        >>> query, key, value = disarm_padding(query, key, key, valid_lens=torch.tensor(1))
        >>> key
        tensor([[1.],
                [0.]])
    """
    if valid_lens is None and mask is None:
        return query, key, value
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_floating(name, tensor)
        check_rank(name, tensor, 2, "[..., length, width]")
    batch_shape = broadcast_batch(query=query, key=key, value=value)
    shape_and_place = (batch_shape, query.shape[-2], key.shape[-2], query.device)
    lens = check_valid_lens(valid_lens, *shape_and_place)
    mask = check_mask(mask, *shape_and_place)
    return disarm_checked(query, key, value, lens, mask)


def disarm_checked(
    query: Tensor, key: Tensor, value: Tensor, lens: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``disarm_padding`` for operations, which have checked their arguments.

    Args:
        query: ``[..., query_len, dim]``.
        key: ``[..., key_len, dim]``.
        value: ``[..., key_len, value_dim]``.
        lens: What ``check_valid_lens`` returned.
        mask: What ``check_mask`` returned.

    Returns:
        As ``disarm_padding``.
    """
    if harmless(query, key, value):
        return query, key, value
    if mask is not None:
        allowed = combine(lens, mask, key.shape[-2])
        assert allowed is not None
        nobody, nothing = ~allowed.any(-2), ~allowed.any(-1)  # [..., key_len], [..., query_len]
    elif lens is not None:
        nobody = torch.arange(key.shape[-2], device=key.device) >= lens.amax(-1, keepdim=True)
        nothing = lens == 0
    else:
        return query, key, value
    return clear_rows(query, nothing), clear_rows(key, nobody), clear_rows(value, nobody)


def clear_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Zero some rows, unless a look shows that nothing in the tensor could do harm.

    Looking takes a CPU a tenth of the time of a copy and its gradient; looking at a CUDA
    tensor would make the host wait.
    """
    return tensor if harmless(tensor) else tensor.masked_fill(rows.unsqueeze(-1), 0)


def harmless(*tensors: Tensor) -> bool:
    """Whether a look at a CPU's tensors shows nothing that could do harm; on CUDA ``False``.

    In self-attention all three are one, which is looked at once.
    """
    return all(_looks_harmless(tensor) for tensor in {id(x): x for x in tensors}.values())


def _looks_harmless(tensor: Tensor) -> bool:
    if tensor.dtype not in (torch.float32, torch.float64) or tensor.device.type != "cpu":
        return False
    if not tensor.numel():
        return True
    low, high = tensor.detach().aminmax()
    return low.item() > -_HARMLESS and high.item() < _HARMLESS  # NaN is neither
