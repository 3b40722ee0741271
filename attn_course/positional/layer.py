"""Positions as layers: sinusoids, learned vectors, rotations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attn_course._validation import check_choice, check_dropout, check_floating
from attn_course.positional import ops


class SinusoidalEncoding(nn.Module):
    """Add sines and cosines of the position to each token. Nothing is learned.

    They are generated, so there is no longest sequence.

    Args:
        dim: Width of a token.
        base: As in ``sinusoid``.
        dropout: Probability with which a number of the sum is dropped in training.
        impl: As in ``add_sinusoid``.

    Raises:
        TypeError: ``base`` is not a number, or ``dim`` not an integer.
        ValueError: A number or a name is out of place.

    Reference:
        Vaswani et al. (2017), Attention is all you need, section 3.5.

    Example:
        >>> encode = SinusoidalEncoding(dim=6)
        >>> encode(torch.zeros(2, 3, 6))[0]
        tensor([[ 0.0000,  1.0000,  0.0000,  1.0000,  0.0000,  1.0000],
                [ 0.8415,  0.5403,  0.0464,  0.9989,  0.0022,  1.0000],
                [ 0.9093, -0.4161,  0.0927,  0.9957,  0.0043,  1.0000]])
    """

    def __init__(
        self, dim: int, *, base: float = 10000.0, dropout: float = 0.0, impl: str = "auto"
    ) -> None:
        super().__init__()
        ops.check_count("dim", dim, 1)
        ops.check_base(base)
        check_dropout("dropout", dropout)
        check_choice("impl", impl, ops.IMPLEMENTATIONS)
        self.dim, self.base, self.impl = dim, base, impl
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """Encode the positions from ``offset`` on.

        Args:
            x: ``[..., len, dim]``.
            offset: The position of the first token, such as a cache's length.

        Returns:
            A tensor of the shape and type of ``x``.

        Raises:
            TypeError: As in ``add_sinusoid``.
            ValueError: As in ``add_sinusoid``, or the width is another.
        """
        _check_width(x, self.dim)
        encoded: Tensor = self.dropout(
            ops.add_sinusoid(x, offset=offset, base=self.base, impl=self.impl)
        )
        return encoded

    def extra_repr(self) -> str:
        """What ``print`` shows of the layer."""
        return f"dim={self.dim}, base={self.base}, impl={self.impl!r}"


class LearnedEncoding(nn.Module):
    """Add a vector of its own to each position, which is learned.

    Positions that training never shows keep the vector they started with, and from
    ``max_len`` on there is none.

    Args:
        max_len: How many positions have a vector.
        dim: Width of a token.
        dropout: Probability with which a number of the sum is dropped in training.

    Raises:
        TypeError: A count is not an integer.
        ValueError: A number is out of place.

    Reference:
        Gehring et al. (2017), Convolutional sequence to sequence learning, section 3.1.

    Example:
        >>> encode = LearnedEncoding(max_len=4, dim=6)
        >>> x = torch.zeros(2, 3, 6)
        >>> torch.equal(encode(x, offset=1)[0], encode.weight[1:4])
        True
    """

    def __init__(self, max_len: int, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        ops.check_count("max_len", max_len, 1)
        ops.check_count("dim", dim, 1)
        check_dropout("dropout", dropout)
        self.max_len, self.dim = max_len, dim
        # Small beside the tokens, as in BERT.
        self.weight = nn.Parameter(0.02 * torch.randn(max_len, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """Encode the positions from ``offset`` on.

        Args:
            x: ``[..., len, dim]``, of the type of the vectors.
            offset: The position of the first token, such as a cache's length.

        Returns:
            A tensor of the shape and type of ``x``.

        Raises:
            TypeError: ``x`` does not hold floating-point numbers.
            ValueError: The width is another, or a position has no vector.
        """
        _check_width(x, self.dim)
        ops.check_count("offset", offset, 0)
        end = offset + x.shape[-2]
        if end > self.max_len:
            raise ValueError(
                f"x must lie within the {self.max_len} positions that were learned "
                f"(max_len), got positions {offset} to {end - 1}."
            )
        encoded: Tensor = self.dropout(x + self.weight[offset:end].to(x.dtype))
        return encoded

    def extra_repr(self) -> str:
        """What ``print`` shows of the layer."""
        return f"max_len={self.max_len}, dim={self.dim}"


class RotaryEmbedding(nn.Module):
    """Turn queries and keys by their positions. Nothing is learned.

    It is for the heads of attention, before their dot products, and not for values:
    ``MultiHeadAttention`` takes it as ``position``.

    Args:
        dim: Width of a head; even.
        base: As in ``rotate``.
        pairs: As in ``rotate``.
        impl: As in ``rotate``.

    Raises:
        TypeError: ``base`` is not a number, or ``dim`` not an integer.
        ValueError: A number or a name is out of place.

    Reference:
        Su et al. (2021), RoFormer, section 3.2.

    Example:
        >>> turn = RotaryEmbedding(dim=2)
        >>> turn(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))  # by 0 and by 1 radian
        tensor([[1.0000, 0.0000],
                [0.5403, 0.8415]])
    """

    def __init__(
        self,
        dim: int,
        *,
        base: float = 10000.0,
        pairs: str = "adjacent",
        impl: str = "auto",
    ) -> None:
        super().__init__()
        ops.check_count("dim", dim, 1)
        if dim % 2:
            raise ValueError(f"dim must be even, since columns turn in pairs, got {dim}.")
        ops.check_base(base)
        check_choice("pairs", pairs, ops.PAIRS)
        check_choice("impl", impl, ops.IMPLEMENTATIONS)
        self.dim, self.base, self.pairs, self.impl = dim, base, pairs, impl

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """Turn the positions from ``offset`` on.

        Args:
            x: ``[..., len, dim]``.
            offset: The position of the first row, such as a cache's length.

        Returns:
            A tensor of the shape and type of ``x``.

        Raises:
            TypeError: As in ``rotate``.
            ValueError: As in ``rotate``, or the width is another.
        """
        _check_width(x, self.dim)
        return ops.rotate(x, offset=offset, base=self.base, pairs=self.pairs, impl=self.impl)

    def extra_repr(self) -> str:
        """What ``print`` shows of the layer."""
        return f"dim={self.dim}, base={self.base}, pairs={self.pairs!r}, impl={self.impl!r}"


def _check_width(x: Tensor, dim: int) -> None:
    check_floating("x", x)
    if x.ndim < 2 or x.shape[-1] != dim:
        raise ValueError(f"x must have shape [..., len, {dim}], got {list(x.shape)}.")
