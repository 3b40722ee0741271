"""Attention with every option, for these tests alone: loops over pairs decide who sees whom."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

#: Options that could get in each other's way, by the names that ``hide`` knows.
COMBINED = [
    "causal lens",
    "causal offset query_lens",
    "window lens slopes",
    "window query_lens",
    "mask",
    "mask2 causal window",
    "slopes offset causal",
    "dropout causal",
    "dropout window lens slopes",
    "behind causal window scale",
    "query_lens mask slopes dropout",
    "causal offset window query_lens slopes dropout scale",
    "causal offset window lens mask slopes dropout",
]


def hide(names: str, batch: int, heads: int, n: int, m: int) -> dict[str, Any]:
    """Options by name, separated by spaces."""
    generator = torch.Generator().manual_seed(len(names) + n)
    per_item = torch.randint(0, m + 1, (batch,), generator=generator)
    per_query = torch.randint(0, m + 1, (batch, n), generator=generator)
    per_item[0], per_query[:, 0] = m, 0
    every: dict[str, dict[str, Any]] = {
        "causal": {"is_causal": True},
        "window": {"window": (11, 6)},
        "offset": {"query_offset": 5},
        "behind": {"query_offset": -4},
        "lens": {"valid_lens": per_item.to(DEVICE)},
        "query_lens": {"valid_lens": per_query.to(DEVICE)},
        "mask": {"mask": (torch.rand(batch, heads, n, m, generator=generator) > 0.4).to(DEVICE)},
        "mask2": {"mask": (torch.rand(n, m, generator=generator) > 0.7).to(DEVICE)},
        "slopes": {"bias_slopes": torch.rand(heads, generator=generator).to(DEVICE)},
        "dropout": {"dropout_p": 0.3},
        "scale": {"scale": -1.3},
    }
    options: dict[str, Any] = {}
    for name in names.split():
        options |= every[name]
    return options


def visible(n: int, m: int, batch: int, heads: int, options: dict[str, Any]) -> Tensor:
    """``[batch, heads, n, m]``, asked pair by pair."""
    left, right = options.get("window") or (None, None)
    lens, mask = options.get("valid_lens"), options.get("mask")
    seen = torch.zeros(batch, heads, n, m, dtype=torch.bool)
    offset = options.get("query_offset", 0)
    for b, i, j in itertools.product(range(batch), range(n), range(m)):
        ahead = j - (i + offset)
        yes = not (options.get("is_causal") and ahead > 0)
        yes = yes and (left is None or ahead >= -left) and (right is None or ahead <= right)
        if lens is not None:
            yes = yes and j < int(lens[b] if lens.ndim == 1 else lens[b, i])
        seen[b, :, i, j] = yes
    return seen if mask is None else seen & mask.cpu()


def bias(n: int, m: int, options: dict[str, Any]) -> Tensor | float:
    """``[heads, n, m]``."""
    slopes, offset = options.get("bias_slopes"), options.get("query_offset", 0)
    if slopes is None:
        return 0.0
    rows = [[[-float(s) * abs(i + offset - j) for j in range(m)] for i in range(n)] for s in slopes]
    return torch.tensor(rows, dtype=torch.float64)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: dict[str, Any],
    kept: Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp in float64 of ``[batch, heads, n, dim]``, keys of fewer heads."""
    query, key, value = (x.double() for x in (query, key, value))
    (batch, heads, n, dim), m = query.shape, key.shape[2]
    group = heads // key.shape[1]
    scale = options.get("scale")
    scale = 1 / math.sqrt(dim) if scale is None else scale
    outputs, logs = [], []
    seen = visible(n, m, batch, heads, options).to(query.device)
    added = bias(n, m, options)
    for h in range(heads):
        k, v = key[:, h // group], value[:, h // group]
        s = scale * torch.einsum("bid,bjd->bij", query[:, h], k)
        s = s + (added[h].to(s) if isinstance(added, Tensor) else 0.0)
        s = s.masked_fill(~seen[:, h], -math.inf)
        top = s.amax(-1, keepdim=True).detach().clamp_min(-1e300)
        e = torch.exp(s - top)
        total = e.sum(-1, keepdim=True)
        p = e / torch.where(total > 0, total, 1.0)
        if kept is not None:
            p = torch.where(kept[:, h].to(p.device), p / (1 - dropout_p), 0.0)
        outputs.append(torch.einsum("bij,bjc->bic", p, v))
        some = torch.where(total > 0, total, 1.0).log() + top
        logs.append(torch.where(total > 0, some, -math.inf).squeeze(-1))
    return torch.stack(outputs, 1), torch.stack(logs, 1)
