"""Chapter 5's exercises: what answers are tried on, and the right ones, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Case


def _random(seed: int) -> Callable[..., Tensor]:
    """Normal numbers in float32, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def _frequencies(dim: int, base: float) -> Tensor:
    """Radians a position of each pair of columns, ``[dim / 2]``."""
    return torch.tensor([base ** (-2 * j / dim) for j in range(dim // 2)], dtype=torch.float64)


def _angles(positions: Tensor | range | list[int], frequencies: Tensor) -> Tensor:
    return torch.outer(torch.as_tensor(list(positions)).double(), frequencies)


# 5.1 ---------------------------------------------------------------------------------

#: (query ``[n, d]``, key ``[n, d]``, value ``[n, d]``) -> ``[n, d]``.
_Mechanism = Callable[[Tensor, Tensor, Tensor], Tensor]


class Mechanism:
    """A mechanism to hold a test of equivariance against.

    Args:
        name: To follow the words "seen with".
        attend: The mechanism.
        equivariant: Whether it takes no notice of the order of the tokens.

    Attributes:
        calls: The three arguments of each call since they were cleared.
    """

    def __init__(self, name: str, attend: _Mechanism, equivariant: bool) -> None:
        self.name, self.attend, self.equivariant = name, attend, equivariant
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What it answers; a copy of what it was asked is kept."""
        if not query.ndim == key.ndim == value.ndim == 2:
            raise ValueError("query, key and value must have shape [n, d] each.")
        self.calls.append((query.detach().clone(), key.detach().clone(), value.detach().clone()))
        return self.attend(query, key, value)

    def __repr__(self) -> str:
        """What a message calls it."""
        return self.name


def _scores(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.T / query.shape[1] ** 0.5


def _self_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _scores(query, key).softmax(1) @ value


def _with_sinusoids(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    position = _sinusoids(len(query), query.shape[1], 10000.0).to(query.dtype)
    return _self_attention(query + position, key + position, value + position)


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    future = torch.ones(len(query), len(key), dtype=torch.bool).triu(1)
    return _scores(query, key).masked_fill(future, -torch.inf).softmax(1) @ value


def _near(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    place = torch.arange(len(query))
    return (_scores(query, key) - (place[:, None] - place).abs()).softmax(1) @ value


def _round(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return value + value.roll(1, 0) / 2


def _in_windows(window: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention among tokens of the same window."""
    apart = window[:, None] != window
    return _scores(query, key).masked_fill(apart, -torch.inf).softmax(1) @ value


def _in_pairs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _in_windows(torch.arange(len(query)) // 2, query, key, value)


def _in_later_pairs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _in_windows((torch.arange(len(query)) + 1) // 2, query, key, value)


def _from_both_ends(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    place = torch.arange(len(query))
    return _in_windows(torch.minimum(place, place.flip(0)), query, key, value)


def _alone(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return query.tanh() + value.square()


def _mean(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return value.mean(0, keepdim=True).expand_as(query)


def _sorted(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return value[value[:, 0].argsort()]


_MECHANISMS = (
    Mechanism("self-attention", _self_attention, True),
    Mechanism("self-attention to tokens with sinusoids added", _with_sinusoids, False),
    Mechanism("self-attention under a causal mask", _causal, False),
    Mechanism("scores that fall with distance", _near, False),
    Mechanism("a mix of each token with the one before, round in a circle", _round, False),
    Mechanism("attention within pairs of neighbours", _in_pairs, False),
    Mechanism("each token by itself", _alone, True),
    Mechanism("the mean of all tokens, for every token", _mean, True),
    Mechanism("the tokens sorted by their first number", _sorted, False),
    Mechanism("attention within pairs, from the second token on", _in_later_pairs, False),
    Mechanism("attention within pairs, one token from each end", _from_both_ends, False),
)


def _is_equivariant(attend: Any, x: Tensor) -> Tensor:
    """By construction: 1 or 0."""
    return torch.tensor(float(attend.equivariant))


# Ten tokens: one permutation in a thousand leaves pairs as they are, or a circle.
_EQUIVARIANCE_CASES = tuple(
    Case("ten tokens", {"attend": mechanism, "x": _random(10 + seed)(10, 4)})
    for seed, mechanism in enumerate(_MECHANISMS)
)


# 5.2 ---------------------------------------------------------------------------------


def _sinusoids(length: int, dim: int, base: float) -> Tensor:
    """Number by number."""
    angle = _angles(range(length), _frequencies(dim, base))
    table = torch.zeros(length, dim, dtype=torch.float64)
    table[:, 0::2], table[:, 1::2] = angle.sin(), angle.cos()
    return table


def _table(name: str, length: int, dim: int, base: float = 10000.0) -> Case:
    return Case(name, {"length": length, "dim": dim, "base": base})


# The square comes first: there, a transposed table has the right shape.
_SINUSOID_CASES = (
    _table("as many positions as columns", 6, 6),
    _table("a long sentence", 40, 8),
    _table("another base", 12, 10, 100.0),
    _table("one pair of columns", 9, 2),
    _table("one position", 1, 4),
)


# 5.3 ---------------------------------------------------------------------------------

#: Positions that a matrix of 5.3 is tried on.
_FROM = (0, 1, 2, 3, 5, 8, 13, 30)


def _encodings(dim: int, base: float, shift: float = 0.0) -> Tensor:
    """The encodings of the positions ``_FROM``, all moved: ``[8, dim]``."""
    angle = _angles(torch.tensor(_FROM) + shift, _frequencies(dim, base))
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)


def _moved(delta: int, dim: int, base: float) -> Tensor:
    """What the matrix has to make of them."""
    return _encodings(dim, base, delta)


def _shift(name: str, delta: int, dim: int, base: float = 10000.0) -> Case:
    return Case(name, {"delta": delta, "dim": dim, "base": base})


_SHIFT_CASES = (
    _shift("three positions forward", 3, 6),
    _shift("one pair of columns", 1, 2),
    _shift("another base", 2, 8, 50.0),
    _shift("backward", -4, 4),
    _shift("no position at all", 0, 4),
    _shift("far away", 60, 4),
)


# 5.4 ---------------------------------------------------------------------------------


def _turned(first: Tensor, second: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = angle.cos(), angle.sin()
    return first * cos - second * sin, first * sin + second * cos


def _turn(x: Tensor, base: float) -> Tensor:
    """As numbers of the complex plane: adjacent columns are real and imaginary part."""
    angle = _angles(range(len(x)), _frequencies(x.shape[1], base))
    pairs = torch.view_as_complex(x.double().unflatten(1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(1)


def _rotary(query: Tensor, key: Tensor, value: Tensor, base: float) -> Tensor:
    return _self_attention(_turn(query, base), _turn(key, base), value.double())


def _tokens(name: str, n: int, dim: int, seed: int, base: float = 10000.0) -> Case:
    return Case(name, {"x": _random(seed)(n, dim), "base": base})


def _asked(
    name: str, n: int, m: int, dim: int, value_dim: int, seed: int, base: float = 10000.0
) -> Case:
    random = _random(seed)
    inputs = {"query": random(n, dim), "key": random(m, dim), "value": random(m, value_dim)}
    return Case(name, inputs | {"base": base})


_TURN_CASES = (
    _tokens("more tokens than columns", 7, 6, 41),
    _tokens("as many tokens as columns", 8, 8, 42, 100.0),
    _tokens("one pair of columns", 5, 2, 43),
    _tokens("a long sentence", 40, 4, 44),
    _tokens("one token", 1, 6, 45),
)

# The cube comes first: there, values can be turned and nothing raises.
_ROTARY_CASES = (
    _asked("as many queries as keys", 6, 6, 6, 6, 46),
    _asked("more keys than queries", 3, 9, 4, 8, 47),
    _asked("another base", 5, 7, 8, 2, 48, 20.0),
    _asked("one pair of columns", 4, 6, 2, 4, 49),
    _asked("values of an odd width", 4, 5, 4, 3, 50),
)


# 5.5 ---------------------------------------------------------------------------------

#: Kinds of layer -> which earlier tokens layer number ``l`` reads for token i, by distance.
_READS: dict[str, Callable[[int, int, int], list[int]]] = {
    "self-attention": lambda n, k, layer: list(range(n)),
    "recurrent": lambda n, k, layer: [1],
    "convolution": lambda n, k, layer: list(range(k)),
    "dilated convolution": lambda n, k, layer: [k**layer * step for step in range(k)],
    "restricted attention": lambda n, k, layer: list(range(k)),
}


@lru_cache
def _path_length(kind: str, n: int, k: int) -> Tensor:
    """Follow the first token: how many moves until the last one can know of it."""
    reached, layer = {0}, 0
    while n - 1 not in reached:
        distances = _READS[kind](n, k, layer)
        reached = {place + d for place in reached for d in distances if place + d < n}
        layer += 1
    return torch.tensor(float(layer))


_PATH_CASES = tuple(
    Case(f"{n} tokens", {"kind": kind, "n": n, "k": k})
    for kind in _READS
    for n, k in ((64, 3), (100, 7), (65, 2), (9, 3), (125, 5), (10, 3), (2, 4), (6, 5), (5, 16))
) + tuple(  # powers whose logarithms are rounded to the wrong side, one or another
    Case(f"{n} tokens", {"kind": "dilated convolution", "n": n, "k": k})
    for n, k in ((243, 3), (512, 8))
)


# 5.6 ---------------------------------------------------------------------------------


def _strided(
    shape: tuple[int, int, int], strides: tuple[int, int, int], block: int, seed: int
) -> dict[str, Any]:
    """Heads as a kernel gets them: memory, and how they lie in it. What is not theirs is NaN."""
    places = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(shape, strides, strict=True):
        places = places.unsqueeze(-1) + stride * torch.arange(size)
    used = places.unique()
    memory = torch.full((int(used.max()) + 1,), torch.nan)
    memory[used] = _random(seed)(len(used))
    return {"memory": memory, "shape": shape, "strides": strides, "block": block}


def _heads(memory: Tensor, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    return memory.as_strided(shape, strides)


def _half_turned(x: Tensor, sign: int = 1) -> Tensor:
    """Columns j and j + dim/2 as a point in the plane, turned by its position's angle."""
    first, second = x.chunk(2, -1)
    angle = sign * _angles(range(x.shape[1]), _frequencies(x.shape[2], 10000.0))
    return torch.cat(_turned(first, second, angle), -1)


def _rotate_strided(
    memory: Tensor, shape: tuple[int, ...], strides: tuple[int, ...], block: int
) -> Tensor:
    return _half_turned(_heads(memory, shape, strides))


def _rotate_strided_backward(
    memory: Tensor, shape: tuple[int, ...], strides: tuple[int, ...], block: int
) -> Tensor:
    """By automatic differentiation of the forward one."""
    grad = _heads(memory, shape, strides)
    x = torch.zeros(shape, dtype=memory.dtype, requires_grad=True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(_half_turned(x), x, grad)
    return gradient


# First heads as they come out of `x.view(n, heads, dim).transpose(0, 1)`: whoever takes them
# to be contiguous reads numbers, though not the right ones.
_STRIDED_CASES = (
    Case("heads side by side in memory", _strided((2, 13, 8), (8, 16, 1), 4, 61)),
    Case("a contiguous tensor", _strided((3, 7, 6), (42, 6, 1), 8, 62)),
    Case("columns side by side, transposed", _strided((2, 16, 4), (64, 1, 16), 8, 63)),
    Case("a part of a wider tensor", _strided((2, 9, 4), (7, 20, 1), 4, 64)),
    Case("every second column of one head", _strided((1, 40, 6), (0, 12, 2), 16, 65)),
    Case("one pair of columns", _strided((2, 11, 2), (2, 4, 1), 4, 66)),
    Case("the same tokens in every head, expanded", _strided((2, 10, 4), (0, 4, 1), 8, 67)),
)

_STRIDED_BACKWARD_CASES = (
    Case("heads side by side in memory", _strided((2, 13, 8), (8, 16, 1), 4, 71)),
    Case("a contiguous tensor", _strided((3, 7, 6), (42, 6, 1), 8, 72)),
    Case("columns side by side, transposed", _strided((2, 16, 4), (64, 1, 16), 8, 73)),
    Case("the gradient of a sum: one number, expanded", _strided((2, 8, 4), (0, 0, 0), 4, 74)),
    Case("forty tokens", _strided((1, 40, 6), (0, 6, 1), 16, 75)),
)
