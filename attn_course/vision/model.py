"""The Vision Transformer, and the trained one that is shipped."""

from __future__ import annotations

import copy
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from attn_course._validation import check_choice, check_counts, check_dropout
from attn_course.data import pretrained
from attn_course.vision import ops
from attn_course.vision.layer import PatchEmbedding, ViTBlock

#: What stands for the whole image in the end: the class token, or the mean of the patches.
POOLS = ("class", "mean")


class ViT(nn.Module):
    """Classify images: patches become tokens, attention mixes them, one vector answers.

    Args:
        image_size: Of the images, one number or (height, width).
        patch_size: Of a patch, likewise; divides ``image_size``.
        channels: Of the images.
        embed_dim: Width of a token throughout, a multiple of ``num_heads``.
        num_heads: Heads of each attention.
        hidden_dim: Width within the feed-forward networks.
        num_layers: How many blocks.
        num_classes: How many answers there are.
        pool: ``"class"``: a token that stands for no patch, first of all tokens, is what
            the answer is read from. ``"mean"``: the answer is read from the mean of the
            patches, and there is no such token.
        embedding_dropout: Probability with which, in training, a number of an embedded token
            is dropped.
        dropout: As in ``ViTBlock``.
        impl: ``"auto"``, ``"reference"`` or ``"triton"``, for embedding and blocks.

    Attributes:
        position: A learned vector for each token, ``[tokens, embed_dim]``.
        class_token: ``[embed_dim]``, or ``None`` with ``pool="mean"``.

    Raises:
        TypeError: A size is not an integer or a pair of them.
        ValueError: A number or a name is out of place, or an image is no whole number of
            patches.

    Reference:
        Dosovitskiy et al. (2021), An image is worth 16x16 words.

    Example:
        >>> vit = ViT(image_size=8, patch_size=2, channels=1, embed_dim=24, num_heads=4,
        ...           hidden_dim=48, num_layers=3, num_classes=10)
        >>> logits, weights = vit(torch.rand(5, 1, 8, 8), need_weights=True)
        >>> logits.shape, weights.shape  # 16 patches and the class token
        (torch.Size([5, 10]), torch.Size([5, 3, 4, 17, 17]))
    """

    def __init__(
        self,
        image_size: ops.Size,
        patch_size: ops.Size,
        channels: int,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        num_layers: int,
        num_classes: int,
        *,
        pool: str = "class",
        embedding_dropout: float = 0.0,
        dropout: float = 0.0,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_counts(num_layers=num_layers, num_classes=num_classes)
        check_choice("pool", pool, POOLS)
        check_dropout("embedding_dropout", embedding_dropout)
        check_choice("impl", impl, ("auto", "reference", "triton"))
        self.pool, self.num_classes = pool, num_classes
        self.embed = PatchEmbedding(image_size, patch_size, channels, embed_dim, impl=impl)
        self.class_token = nn.Parameter(torch.zeros(embed_dim)) if pool == "class" else None
        tokens = self.embed.num_patches + (pool == "class")
        self.position = nn.Parameter(torch.empty(tokens, embed_dim))
        nn.init.normal_(self.position, std=0.02)  # small beside the patches, as in the paper
        self.dropout = nn.Dropout(embedding_dropout)
        self.blocks = nn.ModuleList(
            ViTBlock(embed_dim, num_heads, hidden_dim, dropout=dropout, impl=impl)
            for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.embed.grid

    @overload
    def features(self, images: Tensor, *, need_weights: Literal[False] = ...) -> Tensor: ...

    @overload
    def features(self, images: Tensor, *, need_weights: Literal[True]) -> tuple[Tensor, Tensor]: ...

    @overload
    def features(self, images: Tensor, *, need_weights: bool) -> Tensor | tuple[Tensor, Tensor]: ...

    def features(
        self, images: Tensor, *, need_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What comes out of the last block, normalised: a vector for each token.

        Args:
            images: ``[batch, channels, *image_size]``.
            need_weights: Return the weights as well.

        Returns:
            ``[batch, tokens, embed_dim]``, the class token first if there is one; with
            ``need_weights`` also the weights, ``[batch, num_layers, num_heads, tokens,
            tokens]``.

        Raises:
            TypeError: ``images`` does not hold floating-point numbers.
            ValueError: The shape is not that of this model's images.
        """
        x = self.embed(images, position=self.position, class_token=self.class_token)
        x = self.dropout(x)
        layers: list[Tensor] = []
        for block in self.blocks:
            x = block(x, need_weights=need_weights)
            if need_weights:
                x, weights = x
                layers.append(weights)
        found: Tensor = self.final_norm(x)
        return (found, torch.stack(layers, 1)) if need_weights else found

    @overload
    def forward(self, images: Tensor, *, need_weights: Literal[False] = ...) -> Tensor: ...

    @overload
    def forward(self, images: Tensor, *, need_weights: Literal[True]) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(self, images: Tensor, *, need_weights: bool) -> Tensor | tuple[Tensor, Tensor]: ...

    def forward(
        self, images: Tensor, *, need_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Classify.

        Args:
            images: ``[batch, channels, *image_size]``.
            need_weights: Return the weights as well.

        Returns:
            Logits, ``[batch, num_classes]``; with ``need_weights`` also the weights, as in
            ``features``.

        Raises:
            TypeError: ``images`` does not hold floating-point numbers.
            ValueError: The shape is not that of this model's images.
        """
        found = self.features(images, need_weights=need_weights)
        x, weights = found if isinstance(found, tuple) else (found, None)
        logits: Tensor = self.head(x[:, 0] if self.pool == "class" else x.mean(1))
        return logits if weights is None else (logits, weights)

    def resized(self, image_size: ops.Size) -> ViT:
        """The same model for images of another size, its positions interpolated.

        Args:
            image_size: One number or (height, width), a whole number of patches.

        Returns:
            A copy; this model stays as it is.

        Raises:
            TypeError: ``image_size`` is no size.
            ValueError: It is no whole number of patches.

        Example:
            >>> vit = ViT(8, 2, 1, embed_dim=8, num_heads=2, hidden_dim=8, num_layers=1,
            ...           num_classes=10)
            >>> vit.resized((6, 12))(torch.rand(5, 1, 6, 12)).shape
            torch.Size([5, 10])
        """
        other = copy.deepcopy(self)
        other.embed.resize(image_size)
        position = ops.resize_positions(
            self.position.detach(), self.grid, other.grid, has_class=self.pool == "class"
        )
        other.position = nn.Parameter(position.clone(), self.position.requires_grad)
        return other

    def extra_repr(self) -> str:
        """What ``print`` shows of the model."""
        return f"pool={self.pool!r}"


def load_vit(name: str = "digits_vit") -> ViT:
    """The Vision Transformer that comes with the course, trained, in evaluation mode.

    Args:
        name: Which one, a file of ``attn_course/data/pretrained`` whose configuration holds
            the arguments of ``ViT`` under ``"model"``.

    Raises:
        ValueError: There is none of that name.

    Example:
        >>> vit = load_vit()  # doctest: +SKIP
        >>> vit.grid, vit.num_classes  # doctest: +SKIP
        ((4, 4), 10)
    """
    config, state = pretrained(name)
    model: Any = ViT(**config["model"])
    model.load_state_dict(state)
    vit: ViT = model.eval()
    return vit
