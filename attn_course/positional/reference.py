"""Positions in plain PyTorch, in the order of the chapter's equations.

Angles are computed in float64, whatever they are used for: at position 65,536 a frequency
that is rounded to float32 is up to 0.004 radians off, four digits of sine and cosine.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def angles(
    length: int, dim: int, *, offset: int, base: float, device: torch.device | None
) -> Tensor:
    """By how much each pair of columns has turned: position * base^(-2j / dim).

    Args:
        length: How many positions.
        dim: How many columns; the last has no partner where that is odd.
        offset: The first position.
        base: How much slower the last pairs turn than the first.
        device: Where to compute.

    Returns:
        ``[length, ceil(dim / 2)]``, float64, in radians.

    Reference:
        Vaswani et al. (2017), Attention is all you need, section 3.5.
    """
    position = torch.arange(offset, offset + length, dtype=torch.float64, device=device)
    column = torch.arange(0, dim, 2, dtype=torch.float64, device=device)  # 2j
    return torch.outer(position, base ** (-column / dim))


def sinusoid(angle: Tensor, dim: int) -> Tensor:
    """Sine and cosine of each angle in turn, ``[length, dim]``."""
    both = torch.stack([angle.sin(), angle.cos()], dim=-1)  # [length, pairs, 2]
    return both.flatten(-2)[:, :dim]


def rotate(x: Tensor, angle: Tensor, pairs: str) -> Tensor:
    """Turn each pair of columns, as a point in the plane, by its angle.

    A product of complex numbers is the same and takes a CPU less time, but PyTorch rounds it
    differently at the end of a tensor: a token that is rotated alone, for a cache, would not
    equal the same token in its sequence bit for bit.

    Args:
        x: ``[..., length, dim]``.
        angle: ``[length, dim / 2]``.
        pairs: ``"adjacent"`` columns (2j, 2j+1), or ``"halves"`` (j, j + dim/2).

    Returns:
        A tensor of the shape of ``x``.

    Reference:
        Su et al. (2021), RoFormer, equation 34.
    """
    shape = (-1, 2) if pairs == "adjacent" else (2, -1)
    axis = -1 if pairs == "adjacent" else -2
    first, second = x.unflatten(-1, shape).unbind(axis)  # each [..., length, dim / 2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    turned = (first * cos - second * sin, first * sin + second * cos)
    return torch.stack(turned, dim=axis).flatten(-2)


def rotation_matrix(angle: Tensor) -> Tensor:
    """[[cos, sin], [-sin, cos]] of each angle down the diagonal, ``[2 pairs, 2 pairs]``."""
    cos, sin = angle.cos(), angle.sin()
    blocks = torch.stack([cos, sin, -sin, cos], dim=-1).unflatten(-1, (2, 2))
    return torch.block_diag(*blocks)


def slopes(num_heads: int) -> list[float]:
    """Of ``num_heads`` linear biases: 2^(-8 i / n) for a power of two n, steepest first.

    Otherwise those of the power of two below, and then of the one above, every second one
    from the steepest, until there are enough: they lie between the others.

    Reference:
        Press, Smith and Lewis (2022), Train short, test long, section 3; their code for
        other numbers of heads.
    """
    below = 2 ** int(math.log2(num_heads))
    between = [2 ** (-8 * i / (2 * below)) for i in range(1, 2 * below + 1, 2)]
    return [2 ** (-8 * i / below) for i in range(1, below + 1)] + between[: num_heads - below]
