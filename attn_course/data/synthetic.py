"""Data made from a formula and a seed."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class SinePoints(NamedTuple):
    """Noisy points to learn from and the curve they were taken from.

    Attributes:
        x_train: Where the curve was observed, ascending, in [0, 5), ``[n]``.
        y_train: What was observed, noise included, ``[n]``.
        x_val: 0, 0.1, ..., 4.9, ``[50]``.
        y_val: The curve itself there, without noise, ``[50]``.
    """

    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor


def sine_function(x: Tensor) -> Tensor:
    """The curve 2 sin(x) + x.

    Args:
        x: Any shape.

    Returns:
        The same shape.

    Example:
        >>> sine_function(torch.tensor([0.0, torch.pi]))
        tensor([0.0000, 3.1416])
    """
    return 2 * torch.sin(x) + x


def sine_points(n: int = 40, *, noise: float = 1.0, seed: int = 0) -> SinePoints:
    """Points at random places along ``sine_function``, with Gaussian noise.

    Args:
        n: How many points to learn from.
        noise: The standard deviation of the noise.
        seed: The same seed gives the same points.

    Returns:
        The points, and the curve on a grid to judge predictions by.

    Raises:
        ValueError: ``n`` is below 1, or ``noise`` is negative or infinite.

    Reference:
        Zhang et al., Dive into Deep Learning, section 11.2.

    Example:
        >>> points = sine_points(noise=0.0)
        >>> points.x_train.shape, points.x_val.shape
        (torch.Size([40]), torch.Size([50]))
        >>> torch.equal(points.y_train, sine_function(points.x_train))
        True
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise must be a finite number of at least 0, got {noise}.")
    generator = torch.Generator().manual_seed(seed)
    x_train = (5 * torch.rand(n, generator=generator)).sort().values
    y_train = sine_function(x_train) + noise * torch.randn(n, generator=generator)
    x_val = torch.arange(0, 5, 0.1)
    return SinePoints(x_train, y_train, x_val, sine_function(x_val))
