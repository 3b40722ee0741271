"""What a Vision Transformer is stacked from: the patch embedding, and a block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attn_course._validation import check_choice, check_counts
from attn_course._weights import check_drawn, load_named
from attn_course.transformer import EncoderLayer
from attn_course.vision import ops

#: d2l's names -> ours.
D2L = {
    "ln1": "norm1",
    "ln2": "norm2",
    "attention": "self_attention",
    "mlp.dense1": "feed_forward.linear1",
    "mlp.dense2": "feed_forward.linear2",
}


class PatchEmbedding(nn.Module):
    """Turn images of one size into tokens, one for each patch.

    Its parameters have the names and shapes of ``nn.Conv2d``'s, so that a state dict of the
    one can be loaded into the other.

    Args:
        image_size: Of the images, one number or (height, width).
        patch_size: Of a patch, likewise; divides ``image_size``.
        channels: Of the images.
        embed_dim: Width of a token.
        impl: As in ``patch_embedding``.

    Attributes:
        grid: Rows and columns of patches.
        num_patches: Their product.

    Raises:
        TypeError: A size is not an integer or a pair of them.
        ValueError: A number or a name is out of place, or an image is no whole number of
            patches.

    Reference:
        Dosovitskiy et al. (2021), An image is worth 16x16 words, section 3.1.

    Example:
        >>> embed = PatchEmbedding(image_size=96, patch_size=16, channels=3, embed_dim=512)
        >>> embed(torch.zeros(4, 3, 96, 96)).shape, embed.grid
        (torch.Size([4, 36, 512]), (6, 6))
    """

    def __init__(
        self,
        image_size: ops.Size,
        patch_size: ops.Size,
        channels: int,
        embed_dim: int,
        *,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_counts(channels=channels, embed_dim=embed_dim)
        check_choice("impl", impl, ops.IMPLEMENTATIONS)
        self.image_size = ops.as_pair("image_size", image_size)
        self.patch_size = ops.as_pair("patch_size", patch_size)
        self.grid = ops.make_grid("image_size", self.image_size, self.patch_size)
        self.channels, self.embed_dim, self.impl = channels, embed_dim, impl
        self.weight = nn.Parameter(torch.empty(embed_dim, channels, *self.patch_size))
        self.bias = nn.Parameter(torch.empty(embed_dim))
        bound = self.weight[0].numel() ** -0.5  # as nn.Conv2d does
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    @property
    def num_patches(self) -> int:
        """How many patches an image has."""
        return self.grid[0] * self.grid[1]

    def forward(
        self,
        images: Tensor,
        *,
        position: Tensor | None = None,
        class_token: Tensor | None = None,
    ) -> Tensor:
        """Embed.

        Args:
            images: ``[batch, channels, *image_size]``.
            position: As in ``patch_embedding``.
            class_token: As in ``patch_embedding``.

        Returns:
            ``[batch, tokens, embed_dim]``.

        Raises:
            TypeError: ``images`` does not hold floating-point numbers.
            ValueError: A shape is out of place.
        """
        ops.check_images(images)
        wanted = (self.channels, *self.image_size)
        if tuple(images.shape[1:]) != wanted:
            listed = ", ".join(str(size) for size in wanted)
            raise ValueError(f"images must have shape [batch, {listed}], got {list(images.shape)}.")
        return ops.patch_embedding(
            images,
            self.weight,
            self.bias,
            position=position,
            class_token=class_token,
            impl=self.impl,
        )

    def resize(self, image_size: ops.Size) -> None:
        """Take images of another size from now on; the weights know nothing of it.

        Args:
            image_size: One number or (height, width).

        Raises:
            TypeError: It is no size.
            ValueError: It is no whole number of patches.
        """
        size = ops.as_pair("image_size", image_size)
        self.grid = ops.make_grid("image_size", size, self.patch_size)
        self.image_size = size

    def extra_repr(self) -> str:
        """What ``print`` shows of the layer."""
        return (
            f"image_size={self.image_size}, patch_size={self.patch_size}, "
            f"channels={self.channels}, embed_dim={self.embed_dim}, impl={self.impl!r}"
        )


class ViTBlock(EncoderLayer):
    """Chapter 6's encoder layer as vision uses it: normalise first, and GELU.

        x = x + attention(LayerNorm(x)),    x = x + W_2 gelu(W_1 LayerNorm(x) + b_1) + b_2

    Args:
        embed_dim: Width of a token, a multiple of ``num_heads``.
        num_heads: Heads of the attention.
        hidden_dim: Width within the feed-forward network.
        dropout: Probability with which, in training, an attention weight, a hidden number of
            the network and a number that a sublayer adds are dropped.
        impl: As in ``EncoderLayer``.

    Raises:
        ValueError: A number or a name is out of place.

    Reference:
        Dosovitskiy et al. (2021), An image is worth 16x16 words, equations 2 and 3.

    Example:
        >>> block, x = ViTBlock(embed_dim=24, num_heads=8, hidden_dim=48), torch.ones(2, 100, 24)
        >>> output, weights = block(x, need_weights=True)
        >>> output.shape, weights.shape
        (torch.Size([2, 100, 24]), torch.Size([2, 8, 100, 100]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        dropout: float = 0.0,
        impl: str = "auto",
    ) -> None:
        super().__init__(
            embed_dim, num_heads, hidden_dim, dropout=dropout, norm="pre", activation="gelu",
            impl=impl,
        )  # fmt: skip

    def load_d2l(self, source: nn.Module | Mapping[str, Tensor]) -> None:
        """Copy the weights of d2l's ``ViTBlock``; outputs are then the same in evaluation mode.

        Its attention has no biases unless it is asked for them; here they become zeros.

        Args:
            source: The block, or its state dict, which does not tell the number of heads. A
                block has no weights before it has seen its first batch.

        Raises:
            ValueError: It has no weights yet, or other heads or widths than this block.
        """
        if isinstance(source, nn.Module):
            theirs: Any = source
            heads = self.self_attention.num_heads
            if theirs.attention.num_heads != heads:
                raise ValueError(
                    f"source must have {heads} heads, as this block, "
                    f"got {theirs.attention.num_heads}."
                )
            source = source.state_dict()
        check_drawn(source)
        renamed = dict(source)
        for old, new in D2L.items():
            renamed = {
                new + name[len(old) :] if name.startswith(f"{old}.") else name: tensor
                for name, tensor in renamed.items()
            }
        ours = self.state_dict()
        for letter in "qkvo":
            name = f"self_attention.W_{letter}.bias"
            renamed.setdefault(name, torch.zeros_like(ours[name]))
        load_named(self, renamed, "have the parameters of this block, with the same shapes")
