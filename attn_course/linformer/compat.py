"""The argument names of linformer-pytorch, so that its examples run with their import changed.

``from attn_course.linformer.compat import Linformer`` in place of ``from linformer_pytorch
import Linformer``. Its names and ours:

    input_size         input_len                  parameter_sharing     sharing ("kv": "key_value")
    channels           embed_dim                  k_reduce_by_layer     reduce_by_layer
    dim_k              projected_len              full_attention        full_attention
    dim_d              head_dim: of each head     include_ff=False      hidden_dim=None
    dim_ff             hidden_dim                 w_o_intermediate_dim  output_rank
    dropout_ff         feed_forward_dropout       method                projection ("no_params": "random")
    nhead, depth       num_heads, num_layers      ff_intermediate       intermediate_dim
    num_tokens         vocab_size                 emb_dim               token_dim
    dropout_tokens     token_dropout              return_emb=True       output_head=False

Defaults are those of its version 0.19.3, which knows all arguments of 0.1.0. The models are
this course's, and where the package is wrong they do not follow it:

- ``causal=True`` is refused unless attention is full: its mask leaks the future.
- ``decoder_mode=True`` is refused: its decoder is causal in that way.
- ``k_reduce_by_layer`` with ``"layerwise"`` sharing is refused: there it changes nothing.
- Inputs may be shorter than ``input_size``, and ``valid_lens`` says where padding begins.
- "no_params" matrices vary as 1/n, so that projected keys are as large as keys, and they are
  saved with the model; there they have a standard deviation of 1/k and are not.

``load_published`` copies the weights of one of its models, after which the numbers agree.

Reference:
    P. Tatkowski, linformer-pytorch, https://pypi.org/project/linformer-pytorch/ (MIT).
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attn_course._validation import check_choice
from attn_course._weights import load_named
from attn_course.linformer import model as ours
from attn_course.linformer.block import LinformerBlock
from attn_course.positional import sinusoid

METHODS = {"learnable": "learnable", "convolution": "convolution", "no_params": "random"}
SHARING = {"none": "none", "headwise": "headwise", "kv": "key_value", "layerwise": "layerwise"}

#: The base of its sinusoids.
BASE = 100_000.0


class Linformer(ours.Linformer):
    """``attn_course.linformer.Linformer``, called by the names of linformer-pytorch.

    Args:
        input_size: The longest sequence.
        channels: Width of a token.
        dim_k: Slots.
        dim_ff: Width within the feed-forward networks.
        dim_d: Width of each head; ``None``: ``channels / nhead``.
        dropout_ff: Dropout of the feed-forward networks.
        nhead: Heads.
        depth: Blocks.
        dropout: Dropout of weights and of what attention adds.
        activation: ``"gelu"`` or ``"relu"``.
        checkpoint_level: ``"C0"``, ``"C1"`` or ``"C2"``.
        parameter_sharing: ``"none"``, ``"headwise"``, ``"kv"`` or ``"layerwise"``.
        k_reduce_by_layer: By how much each block has fewer slots.
        full_attention: Attend to all positions.
        include_ff: Whether there are feed-forward networks.
        w_o_intermediate_dim: Rank of the output projection.
        decoder_mode: Refused.
        causal: Refused, unless ``full_attention``.
        method: ``"learnable"``, ``"convolution"`` or ``"no_params"``.
        ff_intermediate: Width of a token between the blocks.

    Raises:
        ValueError: As in ``attn_course.linformer.Linformer``, or what is asked for is wrong
            in the package and refused here.

    Example:
        >>> model = Linformer(
        ...     input_size=512, channels=16, dim_d=8, dim_k=32, dim_ff=32, dropout_ff=0.15,
        ...     nhead=4, depth=2, dropout=0.1, activation="gelu", checkpoint_level="C0",
        ... )
        >>> model(torch.randn(1, 512, 16)).shape
        torch.Size([1, 512, 16])
    """

    def __init__(
        self,
        input_size: int,
        channels: int,
        dim_k: int,
        dim_ff: int = 256,
        dim_d: int | None = None,
        dropout_ff: float = 0.15,
        nhead: int = 4,
        depth: int = 1,
        dropout: float = 0.1,
        activation: str = "gelu",
        checkpoint_level: str = "C0",
        parameter_sharing: str = "layerwise",
        k_reduce_by_layer: int = 0,
        full_attention: bool = False,
        include_ff: bool = True,
        w_o_intermediate_dim: int | None = None,
        decoder_mode: bool = False,
        causal: bool = False,
        method: str = "learnable",
        ff_intermediate: int | None = None,
    ) -> None:
        options = _options(
            dim_d=dim_d, dropout_ff=dropout_ff, dropout=dropout, activation=activation,
            checkpoint_level=checkpoint_level, parameter_sharing=parameter_sharing,
            k_reduce_by_layer=k_reduce_by_layer, full_attention=full_attention,
            w_o_intermediate_dim=w_o_intermediate_dim, decoder_mode=decoder_mode, causal=causal,
            method=method, ff_intermediate=ff_intermediate,
        )  # fmt: skip
        hidden_dim = dim_ff if include_ff else None
        super().__init__(channels, nhead, input_size, dim_k, hidden_dim, depth, **options)


class LinformerLM(ours.LinformerLM):
    """``attn_course.linformer.LinformerLM``, called by the names of linformer-pytorch.

    Positions are its own: all sines, then all cosines, with base 100,000.

    Args:
        num_tokens: How many token ids there are.
        input_size: As in ``Linformer``, and so the others that have its names.
        channels: Width of a token within the blocks.
        dim_k: Slots.
        dim_ff: Width within the feed-forward networks.
        dim_d: Width of each head.
        dropout_ff: Dropout of the feed-forward networks.
        dropout_tokens: Dropout of the embedded tokens.
        nhead: Heads.
        depth: Blocks.
        ff_intermediate: Width of a token between the blocks.
        dropout: Dropout of weights and of what attention adds.
        activation: ``"gelu"`` or ``"relu"``.
        checkpoint_level: ``"C0"``, ``"C1"`` or ``"C2"``.
        parameter_sharing: As in ``Linformer``.
        k_reduce_by_layer: As in ``Linformer``.
        full_attention: As in ``Linformer``.
        include_ff: As in ``Linformer``.
        w_o_intermediate_dim: As in ``Linformer``.
        emb_dim: Width of the embedding; even.
        return_emb: Return vectors in place of scores.
        decoder_mode: Refused.
        causal: Refused, unless ``full_attention``.
        method: As in ``Linformer``.

    Raises:
        ValueError: As in ``Linformer``.

    Example:
        >>> model = LinformerLM(num_tokens=100, input_size=64, channels=16, dim_k=8, dim_ff=32)
        >>> model(torch.randint(100, (2, 64))).shape
        torch.Size([2, 64, 100])
    """

    def __init__(
        self,
        num_tokens: int,
        input_size: int,
        channels: int,
        dim_k: int = 64,
        dim_ff: int = 1024,
        dim_d: int | None = None,
        dropout_ff: float = 0.1,
        dropout_tokens: float = 0.1,
        nhead: int = 4,
        depth: int = 2,
        ff_intermediate: int | None = None,
        dropout: float = 0.05,
        activation: str = "gelu",
        checkpoint_level: str = "C0",
        parameter_sharing: str = "layerwise",
        k_reduce_by_layer: int = 0,
        full_attention: bool = False,
        include_ff: bool = True,
        w_o_intermediate_dim: int | None = None,
        emb_dim: int | None = None,
        return_emb: bool = False,
        decoder_mode: bool = False,
        causal: bool = False,
        method: str = "learnable",
    ) -> None:
        options = _options(
            dim_d=dim_d, dropout_ff=dropout_ff, dropout=dropout, activation=activation,
            checkpoint_level=checkpoint_level, parameter_sharing=parameter_sharing,
            k_reduce_by_layer=k_reduce_by_layer, full_attention=full_attention,
            w_o_intermediate_dim=w_o_intermediate_dim, decoder_mode=decoder_mode, causal=causal,
            method=method, ff_intermediate=ff_intermediate,
        )  # fmt: skip
        super().__init__(
            num_tokens, channels, nhead, input_size, dim_k, dim_ff if include_ff else None, depth,
            token_dim=emb_dim, position=HalvedSinusoid(), scale_embedding=False,
            token_dropout=dropout_tokens, output_head=not return_emb, **options,
        )  # fmt: skip


class HalvedSinusoid(nn.Module):
    """Add sinusoids as linformer-pytorch lays them out: sines first, then cosines."""

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """Encode the positions from ``offset`` on, ``[batch, len, dim]``."""
        length, dim = x.shape[-2:]
        pairs = sinusoid(length, dim, offset=offset, base=BASE, device=x.device)
        return x + torch.cat([pairs[:, 0::2], pairs[:, 1::2]], -1).to(x.dtype)


def _options(
    *, dim_d: int | None, dropout_ff: float, parameter_sharing: str, k_reduce_by_layer: int,
    w_o_intermediate_dim: int | None, decoder_mode: bool, causal: bool, method: str,
    ff_intermediate: int | None, full_attention: bool, **same: Any,
) -> dict[str, Any]:  # fmt: skip
    """Our options, but for the sizes."""
    check_choice("method", method, METHODS)
    check_choice("parameter_sharing", parameter_sharing, SHARING)
    if decoder_mode:
        raise ValueError(
            "decoder_mode=True cannot be had: that decoder is meant to be causal by a mask on "
            "the [input_size, dim_k] weights, which leaks the future. "
            "attn_course.linformer.Linformer(causal='block') is causal."
        )
    if k_reduce_by_layer and parameter_sharing == "layerwise":
        raise ValueError(
            "k_reduce_by_layer cannot go with parameter_sharing='layerwise', which is one "
            "projection for all layers (linformer-pytorch ignores it): choose another sharing, "
            f"got {k_reduce_by_layer}."
        )
    return {
        **same,
        "head_dim": dim_d,
        "feed_forward_dropout": dropout_ff,
        "sharing": SHARING[parameter_sharing],
        "reduce_by_layer": k_reduce_by_layer,
        "full_attention": full_attention,
        "causal": causal,
        "projection": METHODS[method],
        "projection_bias": method != "no_params" and not full_attention,
        "output_rank": w_o_intermediate_dim,
        "intermediate_dim": ff_intermediate,
    }


def load_published(
    target: ours.Linformer | ours.LinformerLM, source: nn.Module | Mapping[str, Tensor]
) -> None:
    """Copy the weights of linformer-pytorch; outputs are then the same in evaluation mode.

    Args:
        target: A model of this module, made with the same arguments.
        source: Its ``Linformer`` or ``LinformerLM``, or the state dict. With
            ``method="no_params"`` the module itself: its state dict lacks the matrices.

    Raises:
        TypeError: ``target`` is no model of ours.
        ValueError: A parameter is missing, or has another shape than here.
    """
    if not isinstance(target, ours.Linformer | ours.LinformerLM):
        raise TypeError(f"target must be a Linformer or LinformerLM, got {type(target).__name__}.")
    state = dict(source.state_dict() if isinstance(source, nn.Module) else source)
    if isinstance(source, nn.Module):
        for name, module in source.named_modules():
            for letter in "EF":
                if isinstance(matrix := getattr(module, letter, None), Tensor):
                    state[f"{name}.{letter}.weight"] = matrix.mT
    named: dict[str, Tensor] = {}
    encoder: Any = target
    before = prefix = ""
    if isinstance(target, ours.LinformerLM):
        encoder, prefix = target.linformer, "linformer."
        before = "linformer."
        named |= {"embedding.tokens.weight": _take(state, "to_token_emb.weight")}
        renamed = [("head", "to_logits")] if target.head is not None else []
        if target.project_in is not None:
            before = "linformer.fn."
            renamed += [(f"project_{way}", f"linformer.project_{way}") for way in ("in", "out")]
        for mine, theirs in renamed:
            named |= _linear(state, mine, theirs)
    step = 1 if encoder.blocks[0].feed_forward is None else 2
    for i, block in enumerate(encoder.blocks):
        found = _block(state, block, f"{before}seq.{i * step}", f"{before}seq.{i * step + 1}")
        named |= {f"{prefix}blocks.{i}.{name}": tensor for name, tensor in found.items()}
    if encoder.projection is not None:
        head = f"{before}seq.0.fn.heads.0"
        found = _projection(state, encoder.projection, [f"{head}.E"])
        named |= {f"{prefix}projection.{name}": tensor for name, tensor in found.items()}
    load_named(target, named, "be made with the arguments of target")


def _block(
    state: Mapping[str, Tensor], block: LinformerBlock, attends: str, thinks: str
) -> dict[str, Tensor]:
    """A block's parameters under our names."""
    attention = block.attention
    heads = [f"{attends}.fn.heads.{h}" for h in range(attention.num_heads)]
    named = {
        f"attention.W_{letter}.weight": torch.cat(
            [_take(state, f"{attends}.fn.to_{letter}.{h}.weight") for h in range(len(heads))]
        )
        for letter in "qkv"
    }
    if attention.W_o2 is None:
        named |= _linear(state, "attention.W_o", f"{attends}.fn.w_o")
    else:
        named |= _linear(state, "attention.W_o", f"{attends}.fn.w_o_1")
        named |= _linear(state, "attention.W_o2", f"{attends}.fn.w_o_2")
    for which, letter in (("key_projection", "E"), ("value_projection", "F")):
        projection = getattr(attention, which)
        if projection is not None:
            found = _projection(state, projection, [f"{head}.{letter}" for head in heads])
            named |= {f"attention.{which}.{name}": tensor for name, tensor in found.items()}
    named |= _linear(state, "norm1", f"{attends}.norm")
    if block.feed_forward is not None:
        named |= _linear(state, "norm2", f"{thinks}.norm")
        named |= _linear(state, "feed_forward.linear1", f"{thinks}.fn.w_1")
        named |= _linear(state, "feed_forward.linear2", f"{thinks}.fn.w_2")
    if block.resample is not None:
        named |= _linear(state, "resample", f"{thinks}.resample")
    return named


def _projection(
    state: Mapping[str, Tensor], projection: Any, names: list[str]
) -> dict[str, Tensor]:
    """A projection's parameters; ``names``: of each head, of which the first serves all."""
    parts = {"weight": projection.weight, "bias": projection.bias}
    found = {}
    for part, mine in parts.items():
        if mine is None:
            continue
        each = [_take(state, f"{name}.{part}") for name in names]
        if part == "weight" and projection.kind == "convolution":
            # [out, in, kernel] -> [out, kernel * in]: position after position
            each = [weight.mT.flatten(1) for weight in each]
        found[part] = each[0] if projection.num_heads is None else torch.stack(each)
    return found


def _linear(state: Mapping[str, Tensor], mine: str, theirs: str) -> dict[str, Tensor]:
    return {f"{mine}.{part}": _take(state, f"{theirs}.{part}") for part in ("weight", "bias")}


def _take(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(
            f"source must hold {name}, and does not: it was made with other arguments, or with "
            "method='no_params', whose matrices a state dict of it lacks (pass the module)."
        )
    return state[name]
