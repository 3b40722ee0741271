"""Splitting and merging heads, and what the layer checks before it projects anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from attn_course._masks import check_mask, check_valid_lens, combine
from attn_course._validation import (
    check_floating,
    check_rank,
    check_tensor,
    check_together,
    check_tokens,
)

#: Turns queries and keys by their positions, called as ``rotate(x, offset=...)``; or the
#: slopes of linear biases, ``[num_heads]``.
Position = Callable[..., Tensor] | Tensor


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Give each head its slice of the width.

    First the width is cut, ``[..., len, num_heads, head_dim]``; then heads and positions
    change places, so that one position's neighbours are the other positions of its head.
    Without that second step a reshape would hand head 0 the first positions of all heads.

    Args:
        x: Projected tokens, ``[..., len, num_heads * head_dim]``.
        num_heads: How many heads share the width.

    Returns:
        A view of ``x``, ``[..., num_heads, len, head_dim]``.

    Raises:
        TypeError: ``x`` is not a tensor.
        ValueError: The width cannot be shared evenly, or a shape is out of place.

    Reference:
        Vaswani et al. (2017), Attention is all you need, section 3.2.2.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1, 2, 10, 20], [3, 4, 30, 40]])  # 2 positions, width 4
        >>> split_heads(x, num_heads=2)
        tensor([[[ 1,  2],
                 [ 3,  4]],
        <BLANKLINE>
                [[10, 20],
                 [30, 40]]])
    """
    check_tensor("x", x)
    check_rank("x", x, 2, "[..., len, num_heads * head_dim]")
    width = x.shape[-1]
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads must divide the width of x, {width}, got {num_heads}.")
    apart = x.unflatten(-1, (num_heads, width // num_heads))  # [..., len, num_heads, head_dim]
    return apart.transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """Put what the heads found side by side again: undo ``split_heads``.

    Args:
        x: ``[..., num_heads, len, head_dim]``.

    Returns:
        ``[..., len, num_heads * head_dim]``.

    Raises:
        TypeError: ``x`` is not a tensor.
        ValueError: It has fewer than three dimensions.

    Reference:
        Vaswani et al. (2017), Attention is all you need, section 3.2.2.

    Example:
        >>> import torch
        >>> x = torch.rand(2, 5, 12)
        >>> torch.equal(merge_heads(split_heads(x, num_heads=3)), x)
        True
    """
    check_tensor("x", x)
    check_rank("x", x, 3, "[..., num_heads, len, head_dim]")
    side_by_side = x.transpose(-3, -2)  # [..., len, num_heads, head_dim]
    return side_by_side.flatten(-2)


def check_heads(embed_dim: int, num_heads: int, num_kv_heads: int) -> None:
    """Raise ``ValueError`` unless heads can share a width, and keys and values, evenly."""
    if embed_dim % num_heads:
        raise ValueError(
            f"embed_dim must be a multiple of num_heads, since heads share it evenly, "
            f"got {embed_dim} for {num_heads} heads."
        )
    if num_heads % num_kv_heads:
        raise ValueError(
            f"num_kv_heads must divide num_heads, {num_heads}, since each serves as many "
            f"query heads, got {num_kv_heads}."
        )


def check_inputs(widths: Mapping[str, int], **inputs: Tensor) -> None:
    """Raise unless query, key and value (or some of them) fit the layer and each other.

    Args:
        widths: The width of each, by name.
        inputs: Each by name; must be ``[batch, len, width]``.
    """
    for name, tensor in inputs.items():
        check_tokens(name, tensor, "len", widths[name])
    check_together(**inputs)
    (first, reference), *rest = inputs.items()
    for name, tensor in rest:
        if tensor.shape[0] != reference.shape[0]:
            raise ValueError(
                f"{name} must have the batch of {first}, {reference.shape[0]}, "
                f"got {tensor.shape[0]}."
            )
    if "key" in inputs and inputs["key"].shape[1] != inputs["value"].shape[1]:
        raise ValueError(
            f"value must have one row for each key, {inputs['key'].shape[1]}, "
            f"got {inputs['value'].shape[1]}."
        )


def per_head(mask: Tensor | None) -> Tensor | None:
    """Make room for the heads in a mask that has one matrix for each sequence.

    Raises:
        TypeError: It is no tensor, or holds floating-point numbers.
    """
    if mask is None:
        return None
    check_tensor("mask", mask)
    if mask.is_floating_point():
        raise TypeError(
            f"mask must hold booleans (True = may attend), got {mask.dtype}. For a mask of 0 "
            "and -inf, which is added to scores, pass mask == 0; for one of 1 and 0, mask != 0."
        )
    return mask.unsqueeze(1) if mask.ndim == 3 else mask


def check_masks(
    query: Tensor, num_heads: int, key_len: int, valid_lens: Tensor | None, mask: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Check lengths and mask, and make room for the heads.

    Args:
        query: ``[batch, query_len, query_dim]``.
        num_heads: How many heads.
        key_len: How many keys, those of the cache included.
        valid_lens: ``[batch]`` or ``[batch, query_len]``.
        mask: As in ``MultiHeadAttention.forward``.

    Returns:
        Both, shaped for broadcasting to ``[batch, num_heads, query_len, key_len]``: the
        lengths without the last dimension.

    Raises:
        TypeError: One holds the wrong kind of numbers.
        ValueError: A shape, a length or a device is out of place.
    """
    (batch, query_len), device = query.shape[:2], query.device
    mask = per_head(mask)
    lens = check_valid_lens(valid_lens, (batch, 1), query_len, key_len, device)
    return lens, check_mask(mask, (batch, num_heads), query_len, key_len, device)


def some_head_sees(lens: Tensor | None, mask: Tensor | None, key_len: int) -> Tensor:
    """Whether any head lets a query attend to a key.

    Args:
        lens: From ``check_masks``; one of the two is there.
        mask: From ``check_masks``.
        key_len: How many keys.

    Returns:
        ``[batch or 1, query_len or 1, key_len]``.
    """
    allowed = combine(lens, mask, key_len)
    assert allowed is not None
    return allowed[(None,) * (4 - allowed.ndim)].expand(-1, -1, -1, key_len).any(1)


def two_kinds(
    position: Position | None, num_heads: int
) -> tuple[Callable[..., Tensor] | None, Tensor | None]:
    """What turns queries and keys, and the slopes of linear biases: one of them at most.

    Raises:
        TypeError: It is neither.
        ValueError: There is not one slope for each head.
    """
    if isinstance(position, Tensor):
        check_floating("position", position)
        if tuple(position.shape) != (num_heads,):
            raise ValueError(
                f"position must hold a slope for each head, [{num_heads}], "
                f"got {list(position.shape)}."
            )
        return None, position
    if position is not None and not callable(position):
        raise TypeError(
            "position must be callable, such as RotaryEmbedding, or a tensor of slopes, "
            f"got {type(position).__name__}."
        )
    return position, None
