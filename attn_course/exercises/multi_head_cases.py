"""Chapter 4's exercises: what answers are tried on, and the right ones, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Case


def _random(seed: int) -> Callable[..., Tensor]:
    """Normal numbers in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


# 4.1 ---------------------------------------------------------------------------------


def _split(x: Tensor, num_heads: int) -> Tensor:
    """Slice by slice."""
    width = x.shape[2] // num_heads
    return torch.stack([x[:, :, i * width : (i + 1) * width] for i in range(num_heads)], 1)


def _merge(heads: Tensor) -> Tensor:
    return torch.cat(heads.unbind(1), 2)


#: What is special, and batch, len, num_heads, head_dim.
_SHAPES = (
    ("more tokens than heads", (2, 5, 2, 3)),
    ("as many tokens as heads", (2, 3, 3, 2)),
    ("one sentence", (1, 2, 4, 3)),
    ("one head", (2, 4, 1, 3)),
    ("one token", (3, 1, 2, 2)),
    ("heads of one number each", (2, 3, 4, 1)),
)


def _tokens(batch: int, length: int, num_heads: int, head_dim: int, seed: int) -> dict[str, Any]:
    x = _random(seed)(batch, length, num_heads * head_dim).float()
    return {"x": x, "num_heads": num_heads}


_SPLIT_CASES = tuple(
    Case(name, _tokens(*shape, seed=100 + i)) for i, (name, shape) in enumerate(_SHAPES)
)
_MERGE_CASES = tuple(
    Case(case.name, {"heads": _split(**case.inputs).contiguous()}) for case in _SPLIT_CASES
)


# 4.2 ---------------------------------------------------------------------------------


def _mask_of(valid_lens: Tensor, num_heads: int, query_len: int, key_len: int) -> Tensor:
    """Row by row of the batch that the heads were moved into."""
    mask = torch.zeros(len(valid_lens) * num_heads, query_len, key_len, dtype=torch.float64)
    for row in range(len(mask)):
        mask[row, :, : int(valid_lens[row // num_heads])] = 1
    return mask


def _lengths(lens: list[int], num_heads: int, query_len: int, key_len: int) -> dict[str, Any]:
    return {
        "valid_lens": torch.tensor(lens),
        "num_heads": num_heads,
        "query_len": query_len,
        "key_len": key_len,
    }


# The square comes first: there, a mask on the wrong axis has the right shape anyhow.
_MASK_CASES = (
    Case("as many queries as keys", _lengths([3, 1], 2, 4, 4)),
    Case("more keys than queries", _lengths([5, 2, 4], 2, 3, 6)),
    Case("more queries than keys", _lengths([1, 3], 3, 5, 3)),
    Case("one query", _lengths([2, 4], 4, 1, 4)),
    Case("one head", _lengths([2, 3, 1], 1, 2, 3)),
    Case("one sentence", _lengths([2], 3, 2, 5)),
    Case("an empty sentence", _lengths([0, 3], 2, 2, 4)),
    Case("no padding", _lengths([4, 4], 2, 3, 4)),
)


# 4.3 ---------------------------------------------------------------------------------


def _count(
    embed_dim: int,
    num_heads: int,
    num_kv_heads: int,
    query_dim: int,
    key_dim: int,
    value_dim: int,
    bias: bool,
) -> Tensor:
    """The shapes of the four maps, multiplied out."""
    shared = num_kv_heads * (embed_dim // num_heads)
    shapes = ((query_dim, embed_dim), (key_dim, shared), (value_dim, shared), (embed_dim,) * 2)
    count = sum((given + bias) * made for given, made in shapes)
    return torch.tensor(count, dtype=torch.float64)


def _sizes(
    embed_dim: int, num_heads: int, num_kv_heads: int, widths: tuple[int, int, int], bias: bool
) -> dict[str, Any]:
    query_dim, key_dim, value_dim = widths
    return {
        "embed_dim": embed_dim,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "query_dim": query_dim,
        "key_dim": key_dim,
        "value_dim": value_dim,
        "bias": bias,
    }


_COUNT_CASES = (
    Case("everything of its own width", _sizes(12, 4, 2, (5, 7, 10), True)),
    Case("one width for all", _sizes(8, 4, 4, (8, 8, 8), True)),
    Case("no biases", _sizes(8, 2, 2, (8, 8, 8), False)),
    Case("one head", _sizes(6, 1, 1, (6, 6, 6), True)),
    Case("keys and values that all heads share", _sizes(16, 8, 1, (16, 16, 16), True)),
    Case("no biases, shared keys, other widths", _sizes(12, 6, 3, (12, 9, 4), False)),
    Case("the widths of the first Transformer", _sizes(512, 8, 8, (512, 512, 512), True)),
)


# 4.4 ---------------------------------------------------------------------------------


def _fetch_error(weights: Tensor, asked: Tensor, variance: float) -> Tensor:
    """Output by output: what is left of a value once the pooled one is known."""
    pooled = variance * weights.square().sum()
    left = [variance - (variance * weights[a]) ** 2 / pooled for a in asked.tolist()]
    return torch.stack(left).mean()


def _floor(facts: int, variance: float) -> Tensor:
    return torch.tensor(variance * (facts - 1) / facts, dtype=torch.float64)


def _fetch(
    weights: list[float], asked: list[int], variance: float, scale: float = 1.0
) -> dict[str, Any]:
    return {
        "weights": torch.tensor(weights) * scale,
        "asked": torch.tensor(asked),
        "variance": variance,
    }


_FETCH_CASES = (
    Case("weight on all slots", _fetch([0.1, 0.4, 0.2, 0.3], [1, 3], 2.0)),
    Case("equal weights on what is asked", _fetch([0.5, 0.0, 0.5, 0.0], [0, 2], 3.0)),
    Case("all the weight on one of two", _fetch([0.0, 1.0, 0.0], [1, 2], 0.5)),
    Case("weight only where nothing is asked", _fetch([0.0, 0.0, 0.3, 0.7], [0, 1], 1.5)),
    Case("three facts", _fetch([0.2, 0.1, 0.3, 0.05, 0.35], [4, 0, 2], 4.0)),
    Case("one fact", _fetch([0.6, 0.3, 0.1], [0], 1.7)),
    Case("uniform weights", _fetch([1.0] * 6, [5, 3], 2.5, 1 / 6)),
)

_FLOOR_CASES = (
    Case("two facts", {"facts": 2, "variance": 3.0}),
    Case("three facts", {"facts": 3, "variance": 3.0}),
    Case("five facts", {"facts": 5, "variance": 0.4}),
    Case("one fact", {"facts": 1, "variance": 2.0}),
)


# 4.5 ---------------------------------------------------------------------------------


def _answers(
    x: Tensor, W_q: Tensor, W_k: Tensor, W_v: Tensor, num_heads: int, flat: list[int] | None = None
) -> Tensor:
    """What each head finds, ``[batch, num_heads, len, head_dim]``; scores of ``flat`` zeroed."""
    q, k, v = (_split(x @ weight.T, num_heads) for weight in (W_q, W_k, W_v))
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    scores[:, flat or []] = 0
    return scores.softmax(3) @ v


def _prune(
    x: Tensor, W_q: Tensor, W_k: Tensor, W_v: Tensor, W_o: Tensor, num_heads: int, off: list[int]
) -> Tensor:
    """The contributions of those that are left, added up: no head is silenced, none is missed."""
    heads, width = _answers(x, W_q, W_k, W_v, num_heads), len(W_o) // num_heads
    output = torch.zeros_like(x)
    for i in set(range(num_heads)) - set(off):
        output = output + heads[:, i] @ W_o[:, i * width : (i + 1) * width].T
    return output


def _layer(
    batch: int, length: int, embed_dim: int, num_heads: int, off: list[int], seed: int
) -> dict[str, Any]:
    random = _random(seed)
    given: dict[str, Any] = {"x": random(batch, length, embed_dim).float()}
    for name in ("W_q", "W_k", "W_v", "W_o"):
        given[name] = random(embed_dim, embed_dim).float()
    return given | {"num_heads": num_heads, "off": off}


_PRUNE_CASES = (
    Case("the middle one of three heads off", _layer(2, 4, 6, 3, [1], 501)),
    Case("the first of two heads off", _layer(1, 5, 6, 2, [0], 502)),
    Case("two of four heads off", _layer(2, 3, 8, 4, [0, 2], 503)),
    Case("no head off", _layer(1, 3, 4, 2, [], 504)),
    Case("one token, the last head off", _layer(2, 1, 6, 3, [2], 505)),
    Case("all heads off", _layer(1, 3, 4, 2, [1, 0], 506)),
)


# 4.6 ---------------------------------------------------------------------------------


class State(dict[str, Tensor]):
    """What ``state_dict`` of a layer gives."""

    def __repr__(self) -> str:
        """What a message calls it: names and shapes."""
        return "{" + ", ".join(f"{name} {list(x.shape)}" for name, x in self.items()) + "}"


def _state(embed_dim: int, seed: int, bias: bool = True) -> State:
    """Of PyTorch's layer, after some training: unlike a fresh one's, no bias is zero."""
    random = _random(seed)
    state = State()
    shapes = {"weight": [embed_dim]} | ({"bias": []} if bias else {})
    for kind, width in shapes.items():
        state[f"in_proj_{kind}"] = random(3 * embed_dim, *width).float()
        state[f"out_proj.{kind}"] = random(embed_dim, *width).float()
    return state


def _from_torch(state: State) -> dict[str, Tensor]:
    """Row by row of the packed matrix."""
    ours: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        if f"in_proj_{kind}" in state:
            packed, width = state[f"in_proj_{kind}"], len(state["out_proj.weight"])
            for i, letter in enumerate("qkv"):
                rows = [packed[i * width + r] for r in range(width)]
                ours[f"W_{letter}.{kind}"] = torch.stack(rows)
            ours[f"W_o.{kind}"] = state[f"out_proj.{kind}"]
    return ours


def _one_row(ours: dict[str, Tensor]) -> Tensor:
    """All numbers one after another, whatever the order of the names."""
    return torch.cat([ours[name].flatten().double() for name in sorted(ours)])


def _unpacked(state: State) -> Tensor:
    return _one_row(_from_torch(state))


_STATE_CASES = (
    Case("a layer of width 6", {"state": _state(6, 601)}),
    Case("a layer of width 4", {"state": _state(4, 602)}),
    Case("a layer without biases", {"state": _state(6, 603, bias=False)}),
    Case("a layer of width 1", {"state": _state(1, 604)}),
)


# 4.7 ---------------------------------------------------------------------------------


def _padded_width(dim: int) -> int:
    """Lanes for so many numbers: a power of two that a product of tiles allows."""
    width: int = 1 << (dim - 1).bit_length()
    return max(16, width)


def _scores(query: Tensor, key: Tensor, scale: float, block: int) -> Tensor:
    return scale * query @ key.T


def _flash(query: Tensor, key: Tensor, value: Tensor, scale: float, block: int) -> Tensor:
    """All scores at once."""
    return (scale * query @ key.T).softmax(1) @ value


def _vectors(n: int, m: int, dim: int, scale: float, seed: int, block: int = 16) -> dict[str, Any]:
    random = _random(seed)
    return {
        "query": random(n, dim).float(),
        "key": random(m, dim).float(),
        "scale": scale,
        "block": block,
    }


_TILE_CASES = (
    Case("one tile, not full", _vectors(7, 13, 5, 0.5, 701)),
    Case("as many queries as keys", _vectors(23, 23, 16, 0.25, 702)),
    Case("tails in both directions", _vectors(20, 37, 8, 0.7, 703)),
    Case("tiles that are full", _vectors(32, 16, 16, 0.25, 704)),
    Case("more than sixteen numbers a vector", _vectors(9, 40, 20, 0.2, 705)),
)


def _values(
    n: int, m: int, dim: int, scale: float, seed: int, shift: tuple[float, float] = (0.0, 0.0)
) -> dict[str, Any]:
    """Queries, keys and values; scores of the first and of the other tiles moved by ``shift``.

    Numbers are eighths, so that large scores are as exact in single precision as small ones.
    """
    given = _vectors(n, m, dim, scale, seed)
    for name in ("query", "key"):
        given[name] = (given[name] * 8).round() / 8
    if any(shift):  # the first coordinate moves all scores of a key alike
        given["query"][:, 0] = 8
        given["key"][:16, 0], given["key"][16:, 0] = shift
        given["key"][:, 0] /= 8 * scale
    value = _random(seed + 1)(m, dim).float() + 1
    return {
        "query": given["query"],
        "key": given["key"],
        "value": value,
        "scale": scale,
        "block": given["block"],
    }


def _unequal(given: dict[str, Any]) -> dict[str, Any]:
    """Make one query of the tile ask far louder than the others."""
    query = given["query"].clone()
    query[2] *= 8192
    return given | {"query": query}


_FLASH_CASES = (
    Case("two tiles of keys and a tail", _values(7, 37, 5, 0.5, 711)),
    Case("tiles that are full", _values(16, 32, 16, 0.25, 713)),
    Case("one tile of keys, not full", _values(9, 7, 8, 0.5, 715)),
    Case("several tiles of queries", _values(40, 23, 16, 0.25, 717)),
    Case("large scores", _values(8, 24, 4, 0.5, 719, shift=(2000.0, 2000.0))),
    Case("the largest scores in the first tile", _values(8, 40, 4, 0.5, 721, shift=(1600.0, 0.0))),
    Case("the largest scores in the last tiles", _values(8, 40, 4, 0.5, 723, shift=(0.0, 24.0))),
    Case("one loud query", _unequal(_values(6, 20, 4, 0.5, 725))),
    Case("more than sixteen numbers a vector", _values(10, 33, 20, 0.25, 727)),
)
