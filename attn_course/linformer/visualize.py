"""What a Linformer attends to: weights of all heads, and what they mean for positions."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_course.linformer.block import LinformerBlock
from attn_course.linformer.model import Linformer, LinformerLM
from attn_course.linformer.ops import effective_weights


class HeadMaps(NamedTuple):
    """The attention of a layer's heads.

    Attributes:
        weights: To slots, ``[batch, num_heads, len, slots]``.
        projection: From the positions of values to slots, zero at padding; broadcasts to
            ``[batch, num_heads, slots, len]``. ``None`` of a convolution, which no matrix of
            positions describes.
    """

    weights: Tensor
    projection: Tensor | None

    def on_positions(self, queries: slice = slice(None)) -> Tensor:
        """The weights mapped back: what each position's value counts for in an answer.

        Args:
            queries: Which rows: all of a long sequence would not fit in memory.

        Returns:
            ``[batch, num_heads, queries, len]``; may be negative.

        Raises:
            ValueError: The projection is a convolution.
        """
        if self.projection is None:
            raise ValueError(
                "the projection is a convolution, which mixes columns as well as positions: its "
                "weights cannot be mapped back to positions."
            )
        return effective_weights(self.weights[..., queries, :], self.projection)


def head_maps(
    model: Linformer | LinformerLM, x: Tensor, *, valid_lens: Tensor | None = None
) -> list[HeadMaps]:
    """The weights of all heads of all layers, to look at.

    ``show_heatmaps`` draws the heads of a layer side by side:
    ``show_heatmaps(maps[0].weights[0], xlabel="Slots")`` and
    ``show_heatmaps(maps[0].on_positions()[0])``.

    Args:
        model: A model without ``causal`` and ``full_attention``. It is run in evaluation mode
            and left as it was.
        x: What it reads: ``[batch, len, embed_dim]``, or token ids ``[batch, len]``.
        valid_lens: As in the model.

    Returns:
        One for each layer.

    Raises:
        TypeError: ``model`` is of another kind.
        ValueError: Its attention is full or causal, which has no slots to map back.

    Example:
        >>> model = Linformer(8, 2, input_len=100, projected_len=16, hidden_dim=32, num_layers=3)
        >>> maps = head_maps(model, torch.rand(1, 50, 8))
        >>> len(maps), maps[0].weights.shape, maps[0].on_positions().shape
        (3, torch.Size([1, 2, 50, 16]), torch.Size([1, 2, 50, 50]))
    """
    if not isinstance(model, Linformer | LinformerLM):
        raise TypeError(f"model must be a Linformer or LinformerLM, got {type(model).__name__}.")
    encoder = model.linformer if isinstance(model, LinformerLM) else model
    blocks: list[Any] = [block for block in encoder.blocks if isinstance(block, LinformerBlock)]
    if any(block.attention.full_attention or block.attention.causal for block in blocks):
        raise ValueError(
            "model must attend to slots of the whole sequence: full and causal attention have "
            "other weights, which need_weights=True returns."
        )
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            found: Any = model(x, valid_lens=valid_lens, need_weights=True)
    finally:
        for module, was in training.items():
            module.training = was
    maps = []
    for block, weights in zip(blocks, found[1], strict=True):
        values = block.attention.projections[1]
        matrix = None
        if values.kind != "convolution":
            matrix = values.matrix(x.shape[1], valid_lens, dtype=weights.dtype).detach().to(weights)
        maps.append(HeadMaps(weights, matrix))
    return maps
