"""What numbers are computed in: float64 stays, half precision and float32 become float32."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that numbers of a floating-point type are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widened(x: Tensor) -> Tensor:
    """The tensor in that type; itself if it is so already."""
    return x.to(wide_dtype(x.dtype))
