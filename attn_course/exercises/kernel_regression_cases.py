"""Chapter 1's exercises: what answers are tried on, and the right ones, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Case


def _points(query_len: int, key_len: int, seed: int, **rest: Any) -> dict[str, Any]:
    """Queries and keys in [0, 5), values around 3."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "query": 5 * torch.rand(query_len, generator=generator),
        "key": 5 * torch.rand(key_len, generator=generator),
        "value": 3 + 2 * torch.randn(key_len, generator=generator),
        **rest,
    }


def _given(query: list[float], key: list[float], value: list[float], **rest: Any) -> dict[str, Any]:
    named = {"query": query, "key": key, "value": value}
    return {name: torch.tensor(numbers) for name, numbers in named.items()} | rest


def _gap(query: Tensor, key: Tensor) -> Tensor:
    """Signed differences of queries and keys on a line: ``[n, m]``."""
    return query[:, None] - key[None, :]


def _over(weights: Tensor, axis: int) -> Tensor:
    """Weights divided by their sums along an axis; zero where the sum is."""
    total = weights.sum(axis, keepdim=True)
    return weights / total.masked_fill(total == 0, 1)


# 1.1 ---------------------------------------------------------------------------------


def _inside(query: Tensor, key: Tensor, width: float) -> Tensor:
    return (_gap(query, key).abs() < width).double()


def _boxcar(query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
    return _over(_inside(query, key, width), 1) @ value


_BOXCAR_CASES = (
    Case(
        "all queries near a key, all keys near a query",
        _given([0.0, 1.0, 2.0], [0.25, 0.75, 1.5, 2.5], [4.0, 8.0, 1.0, 6.0], width=0.8),
    ),
    Case("more queries than keys", _points(9, 4, 3, width=1.9)),
    Case("more keys than queries", _points(4, 11, 4, width=0.4)),
    Case("one far query", _given([1.0, 50.0], [0.5, 1.2, 1.9], [2.0, 4.0, 9.0], width=0.6)),
    Case("no query near any key", _given([-9.0, 40.0], [0.5, 1.2], [2.0, 4.0], width=1.0)),
    Case("one query and one key", _given([1.0], [1.5], [7.0], width=2.0)),
)


# 1.2 ---------------------------------------------------------------------------------


def _gaussian(query: Tensor, key: Tensor, width: float) -> Tensor:
    return (-_gap(query, key).square() / (2 * width**2)).softmax(1)


def _nearest(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return value[_gap(query, key).abs().argmin(1)]


def _everything(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return value.mean().expand(len(query))


_WEIGHT_CASES = tuple(
    Case(name, {k: v for k, v in inputs.items() if k != "value"})
    for name, inputs in (
        ("a narrow kernel", _points(3, 5, 11, width=0.5)),
        ("a wide kernel", _points(6, 4, 12, width=2.0)),
        ("one key", _points(3, 1, 13, width=0.7)),
    )
)

_LIMIT_CASES = (
    Case("two queries", _given([0.9, 3.6], [0.0, 1.0, 4.0], [10.0, 20.0, 60.0])),
    Case("more queries than keys", _points(7, 4, 14)),
    Case("more keys than queries", _points(3, 8, 15)),
    Case("one key", _given([2.0, 9.0], [1.0], [5.0])),
)


# 1.3 ---------------------------------------------------------------------------------


def _score(key: Tensor, width: float) -> Tensor:
    return -_gap(key, key).square() / (2 * width**2)


def _same_person(person: Tensor) -> Tensor:
    return person[:, None] == person[None, :]


def _squared_error(weights: Tensor, value: Tensor) -> Tensor:
    return (weights @ value - value).square().mean()


def _held_out(key: Tensor, value: Tensor, person: Tensor, width: float) -> Tensor:
    hidden = _same_person(person)
    return _squared_error(_score(key, width).masked_fill(hidden, -torch.inf).softmax(1), value)


def _persons(key_len: int, people: int, seed: int, width: float) -> dict[str, Any]:
    inputs = _points(1, key_len, seed)
    generator = torch.Generator().manual_seed(seed)
    numbers = 3 + 4 * torch.arange(people)  # neither consecutive nor from zero
    order = torch.randperm(key_len, generator=generator)
    person = numbers[torch.arange(key_len) % people][order]
    return {"key": inputs["key"], "value": inputs["value"], "person": person, "width": width}


_HELD_OUT_CASES = (
    Case("one measurement a person", _persons(6, 6, 21, width=0.8)),
    Case("three people", _persons(9, 3, 22, width=0.7)),
    Case("two people", _persons(5, 2, 23, width=1.5)),
    Case("many people", _persons(24, 8, 24, width=0.6)),
)


# 1.4 ---------------------------------------------------------------------------------


def _slope(query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
    """By automatic differentiation: it owes nothing to a formula on paper."""
    sigma = torch.tensor(width, dtype=torch.float64).expand(len(query)).clone().requires_grad_()
    with torch.enable_grad():
        score = -_gap(query, key).square() / (2 * sigma[:, None] ** 2)
        output = score.softmax(1) @ value
        (slope,) = torch.autograd.grad(output.sum(), sigma)
    return slope


def _double(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if isinstance(v, Tensor) else v for k, v in inputs.items()}


_SLOPE_CASES = (
    Case("three keys", _double(_given([1.0, 2.0], [0.0, 1.5, 3.0], [1.0, 5.0, 2.0], width=0.8))),
    Case("a narrow kernel", _double(_points(5, 9, 31, width=0.6))),
    Case("a wide kernel", _double(_points(4, 6, 32, width=2.5))),
    Case("one key, where nothing can move", _double(_points(3, 1, 33, width=1.7))),
)


# 1.5 ---------------------------------------------------------------------------------


def _difference(query: Tensor, key: Tensor) -> Tensor:
    return query[:, None, :] - key[None, :, :]


def _scaled(query: Tensor, key: Tensor, width: Tensor) -> Tensor:
    return (_difference(query, key) / width).square().sum(-1)


def _vectors(query_len: int, key_len: int, dim: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "query": torch.randn(query_len, dim, generator=generator),
        "key": torch.randn(key_len, dim, generator=generator),
        "width": 0.5 + 2 * torch.rand(dim, generator=generator),
    }


# The square comes first: there, a width along the wrong axis raises nothing.
_SCALED_CASES = (
    Case("as many queries and keys as coordinates", _vectors(4, 4, 4, 41)),
    Case("more keys than coordinates", _vectors(3, 7, 2, 42)),
    Case("more coordinates than keys", _vectors(2, 3, 6, 43)),
    Case("one coordinate", _vectors(3, 5, 1, 44)),
)


# 1.6 ---------------------------------------------------------------------------------


def _rank(distance: Tensor, axis: int = 1) -> Tensor:
    return distance.argsort(axis).argsort(axis)


def _attend(distance: Tensor, allowed: Tensor) -> Tensor:
    return (-distance.square() / 2).masked_fill(~allowed, -torch.inf).softmax(1)


def _top_k(distance: Tensor, k: int) -> Tensor:
    return _attend(distance, _rank(distance) < k)


def _distances(query_len: int, key_len: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + 3 * torch.rand(query_len, key_len, generator=generator)


_TOP_K_CASES = (
    Case("three of six keys", {"distance": _distances(4, 6, 51), "k": 3}),
    Case("the nearest key alone", {"distance": _distances(5, 4, 52), "k": 1}),
    Case("two of nine keys", {"distance": _distances(3, 9, 53), "k": 2}),
    Case("all keys", {"distance": _distances(3, 5, 54), "k": 5}),
    Case("queries far from every key", {"distance": _distances(2, 5, 55, shift=60.0), "k": 2}),
    Case("k larger than the number of keys", {"distance": _distances(2, 3, 56), "k": 7}),
)


# 1.7 ---------------------------------------------------------------------------------


def _stream(query: Tensor, key: Tensor, value: Tensor, width: float, block: int) -> Tensor:
    return _gaussian(query, key, width) @ value


_STREAM_CASES = (
    Case("a tail of one key", _points(7, 13, 61, width=1.2, block=4)),
    Case("keys that fill their tiles", _points(5, 16, 62, width=0.9, block=8)),
    Case("fewer keys than a tile", _points(4, 7, 63, width=1.5, block=16)),
    Case("many tiles", _points(9, 40, 64, width=0.8, block=16)),
)
