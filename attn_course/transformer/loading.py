"""Weights of PyTorch's and of d2l's layers, under the names that ours have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_course._weights import check_drawn

#: Their names -> ours. Of cross-attention and the third norm only decoders have any.
TORCH = {
    "self_attn": "self_attention",
    "multihead_attn": "cross_attention",
    "out_proj": "W_o",
    "linear1": "feed_forward.linear1",
    "linear2": "feed_forward.linear2",
}
D2L = {
    "attention": "self_attention",
    "attention1": "self_attention",
    "attention2": "cross_attention",
    "ffn": "feed_forward",
    "dense1": "linear1",
    "dense2": "linear2",
    "addnorm1": "norm1",
    "addnorm2": "norm2",
    "addnorm3": "norm3",
    "ln": "",
}


def from_torch(
    source: nn.Module | Mapping[str, Tensor], options: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Unstack and rename what PyTorch's layer holds.

    Args:
        source: The layer, or its state dict.
        options: What it must have been made with, if it is a layer and tells.

    Raises:
        ValueError: It was made with other options.
    """
    if isinstance(source, nn.Module):
        theirs: Any = source
        activation = theirs.activation
        relu = activation is F.relu or isinstance(activation, nn.ReLU)
        exact = activation is F.gelu or getattr(activation, "approximate", "") == "none"
        made = {
            "norm": "pre" if theirs.norm_first else "post",
            "activation": "relu" if relu else "gelu" if exact else repr(activation),
            "num_heads": theirs.self_attn.num_heads,
            "eps": theirs.norm1.eps,
        }
        _check_options(made, options)
        source = source.state_dict()
    renamed: dict[str, Tensor] = {}
    for name, tensor in _rename(source, TORCH).items():
        if ".in_proj_" in name:  # q above k above v
            attention, kind = name.split(".in_proj_")
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{attention}.W_{letter}.{kind}"] = part
        else:
            renamed[name] = tensor
    return renamed


def from_d2l(
    source: nn.Module | Mapping[str, Tensor], options: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Rename what d2l's block holds, with zeros for biases that its attention has not.

    Args:
        source: The block, or its state dict.
        options: What it must have been made with.

    Raises:
        ValueError: It has no weights yet, or was made with other options.
    """
    made = {"norm": "post", "activation": "relu", "eps": 1e-5}
    if isinstance(source, nn.Module):
        made["num_heads"] = next(
            m.num_heads for m in source.modules() if isinstance(getattr(m, "num_heads", None), int)
        )
        source = source.state_dict()
    _check_options(made, options)
    check_drawn(source)
    renamed = _rename(source, D2L)
    for name, tensor in list(renamed.items()):
        if "attention.W_" in name and name.endswith(".weight"):
            renamed.setdefault(f"{name.removesuffix('weight')}bias", torch.zeros_like(tensor[:, 0]))
    return renamed


def _rename(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Exchange the parts of dotted names; an empty one is left out."""
    renamed = {}
    for name, tensor in state.items():
        parts = [names.get(part, part) for part in name.split(".")]
        renamed[".".join(part for part in parts if part)] = tensor
    return renamed


def _check_options(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for name, value in theirs.items():
        if value != ours[name]:
            raise ValueError(
                f"source must have {name}={ours[name]!r}, as this layer, got {value!r}."
            )
