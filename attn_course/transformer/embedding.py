"""What comes before the layers: tokens as vectors, and where they stand."""

from __future__ import annotations

import math

from torch import Tensor, nn

from attn_course._validation import check_choice, check_counts, check_dropout
from attn_course.positional import LearnedEncoding, SinusoidalEncoding


class TokenEmbedding(nn.Module):
    """Turn ids into vectors and add their positions: ``dropout(sqrt(embed_dim) E[id] + P[i])``.

    Args:
        vocab_size: How many token ids there are.
        embed_dim: Width of a vector.
        position: What is added: ``"sinusoidal"``, ``"learned"``, or ``None`` for nothing.
        max_len: How many positions have a vector; needed if they are learned, else ``None``.
        scale: Whether vectors are multiplied by ``sqrt(embed_dim)``. They start that much
            smaller, so that tokens weigh as much as positions either way; but then a matrix
            that is shared with the output gives logits of variance 1 at first, and not of
            variance embed_dim.
        dropout: Probability with which a number of the sum is dropped in training.
        impl: As in ``add_sinusoid``.

    Raises:
        TypeError: ``max_len`` is not an integer.
        ValueError: A number, a name or a combination is out of place.

    Reference:
        Vaswani et al. (2017), Attention is all you need, sections 3.4 and 3.5.

    Example:
        >>> import torch
        >>> embed = TokenEmbedding(vocab_size=9, embed_dim=6)
        >>> ids = torch.tensor([[5, 3, 5]])
        >>> whole = embed(ids)
        >>> whole.shape, bool((whole[0, 0] == whole[0, 2]).all())
        (torch.Size([1, 3, 6]), False)
        >>> torch.allclose(embed(ids[:, 2:], offset=2), whole[:, 2:], atol=1e-6)
        True
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        *,
        position: str | None = "sinusoidal",
        max_len: int | None = None,
        scale: bool = True,
        dropout: float = 0.0,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_counts(vocab_size=vocab_size, embed_dim=embed_dim)
        if position is not None:
            check_choice("position", position, ("sinusoidal", "learned"))
        if (position == "learned") != (max_len is not None):
            raise ValueError(
                "max_len must be given exactly if position is 'learned', got "
                f"{max_len!r} with position={position!r}."
            )
        check_dropout("dropout", dropout)
        self.vocab_size, self.embed_dim = vocab_size, embed_dim
        self.scale = math.sqrt(embed_dim) if scale else 1.0
        self.tokens = nn.Embedding(vocab_size, embed_dim)
        # As large as a sinusoid once they are scaled, and rows of length 1 before.
        nn.init.normal_(self.tokens.weight, std=1 / self.scale)
        self.position: nn.Module | None = None
        if max_len is not None:
            self.position = LearnedEncoding(max_len, embed_dim)
        elif position == "sinusoidal":
            self.position = SinusoidalEncoding(embed_dim, impl=impl)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, offset: int = 0) -> Tensor:
        """Embed tokens that stand from position ``offset`` on.

        Args:
            ids: ``[batch, length]``.
            offset: The position of the first.

        Returns:
            ``[batch, length, embed_dim]``.

        Raises:
            ValueError: A position has no vector.
        """
        x = self.tokens(ids) * self.scale
        if self.position is not None:
            x = self.position(x, offset)
        embedded: Tensor = self.dropout(x)
        return embedded

    def extra_repr(self) -> str:
        """What ``print`` shows of the layer."""
        return f"scale={self.scale:.4g}"
