"""Weights of PyTorch's and of d2l's layer, under the names that ours have."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from attn_course._weights import check_drawn


def from_torch(
    source: nn.MultiheadAttention | Mapping[str, Tensor], num_heads: int
) -> dict[str, Tensor]:
    """Unstack and rename what PyTorch's layer holds.

    Args:
        source: The layer, or its state dict.
        num_heads: How many heads it must have, if it is a layer and tells.

    Raises:
        ValueError: It has another number of heads, or was made with ``add_zero_attn``.
    """
    if isinstance(source, nn.MultiheadAttention):
        if source.add_zero_attn:
            raise ValueError("source was made with add_zero_attn, which has no place here.")
        _check_heads(source.num_heads, num_heads)
        source = source.state_dict()
    renamed: dict[str, Tensor] = {}
    for name, tensor in source.items():
        if name.startswith("in_proj_"):  # q above k above v
            kind = name.removeprefix("in_proj_")
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"W_{letter}.{kind}"] = part
        elif name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            renamed[f"W_{name[0]}.weight"] = tensor
        else:
            renamed[name.replace("out_proj", "W_o")] = tensor
    return renamed


def from_d2l(source: nn.Module | Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """What d2l's layer holds; its names are ours.

    Args:
        source: The layer, or its state dict.
        num_heads: How many heads it must have, if it is a layer and tells.

    Raises:
        ValueError: It has another number of heads, or no weights yet.
    """
    if isinstance(source, nn.Module):
        _check_heads(source.num_heads, num_heads)
        source = source.state_dict()
    check_drawn(source)
    return dict(source)


def _check_heads(theirs: object, ours: int) -> None:
    if theirs != ours:
        raise ValueError(f"source must have {ours} heads, as this layer, got {theirs}.")
