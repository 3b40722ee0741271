"""Chapter 2's exercises: what answers are tried on, and the right ones, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_course.exercises.framework import Case


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# 2.1 ---------------------------------------------------------------------------------


def _attend(scores: Tensor, value: Tensor) -> Tensor:
    return scores.softmax(2) @ value


def _batch(batch: int, n: int, m: int, v: int, seed: int, scale: float = 1.0) -> dict[str, Any]:
    scores = scale * _random(seed, batch, n, m)
    return {"scores": scores, "value": 3 + 2 * _random(seed + 1, batch, m, v)}


# The cube comes first: there, no axis raises anything.
_ATTEND_CASES = (
    Case("as many sentences as queries and keys", _batch(4, 4, 4, 4, 101)),
    Case("more keys than queries", _batch(2, 3, 6, 2, 103)),
    Case("one sentence", _batch(1, 4, 3, 5, 105)),
    Case("one query", _batch(3, 1, 5, 1, 107)),
    Case("large scores", _batch(2, 3, 4, 2, 109, scale=5000.0)),
)


# 2.2 ---------------------------------------------------------------------------------


def _masked(scores: Tensor, allowed: Tensor) -> Tensor:
    """Term by term: each row's softmax over its own allowed keys alone."""
    weights = torch.zeros_like(scores)
    for i, row in enumerate(allowed):
        weights[i, row] = scores[i, row].softmax(0)
    return weights


def _mask(*rows: str) -> Tensor:
    """``"x.x"``: the middle key is hidden."""
    return torch.tensor([[sign == "x" for sign in row] for row in rows])


def _hidden_are(value: float, scores: Tensor, allowed: Tensor) -> Tensor:
    return scores.masked_fill(~allowed, value)


_SOME_HIDDEN = _mask("xx..x", "x.x..", ".xxxx", "xxx.x", "xxxxx")
_ROW_HIDDEN = _mask("xx...", ".....", "xxxxx", "..x.x")
_ONE_HIDDEN = _mask("x.xx", "xxx.", ".xxx")

_MASKED_CASES = (
    Case("some keys hidden", {"scores": _random(201, 5, 5), "allowed": _SOME_HIDDEN}),
    Case(
        "a query that may attend to nothing", {"scores": _random(202, 4, 5), "allowed": _ROW_HIDDEN}
    ),
    Case("large scores", {"scores": 2000 + 2 * _random(203, 3, 4), "allowed": _ONE_HIDDEN}),
    Case(
        "hidden scores far above the others",
        {"scores": _hidden_are(5000, _random(204, 3, 4), _ONE_HIDDEN), "allowed": _ONE_HIDDEN},
    ),
    Case(
        "scores far below zero",
        {"scores": (2 * _random(205, 3, 4)).round() / 2 - 2e6, "allowed": _ONE_HIDDEN},
    ),
    Case(
        "hidden scores that are NaN",
        {"scores": _hidden_are(torch.nan, _random(206, 3, 4), _ONE_HIDDEN), "allowed": _ONE_HIDDEN},
    ),
    Case("one key", {"scores": _random(208, 2, 1), "allowed": _mask("x", ".")}),
    Case(
        "half precision",
        {"scores": (12 * _random(207, 4, 5)).half(), "allowed": _ROW_HIDDEN},
    ),
)


# 2.3 ---------------------------------------------------------------------------------


def _products(query: Tensor, key: Tensor, width: float) -> Tensor:
    return query @ key.T / width**2


def _norms(vectors: Tensor, width: float) -> Tensor:
    """The term of the expanded square that holds one vector alone."""
    return vectors.square().sum(1) / (2 * width**2)


def _short_scores(query: Tensor, key: Tensor, width: float) -> Tensor:
    return _products(query, key, width) - _norms(key, width)


def _moved(query: Tensor, key: Tensor, width: float) -> Tensor:
    """How much each weight changes when the norms of the keys are left out: ``[n, m]``."""
    distance = (query[:, None] - key[None]).square().sum(2)
    right = (-distance / (2 * width**2)).softmax(1)
    return _products(query, key, width).softmax(1) - right


def _cost(query: Tensor, key: Tensor, width: float) -> Tensor:
    return _moved(query, key, width).abs().max()


def _vectors(
    n: int, m: int, dim: int, seed: int, width: float, norm: float = 0.0
) -> dict[str, Any]:
    """Queries and keys; keys of one length, if it is given."""
    key = _random(seed + 1, m, dim)
    if norm:
        key = norm * key / key.norm(dim=1, keepdim=True)
    return {"query": _random(seed, n, dim), "key": key, "width": width}


# The square comes first: there, a norm along the wrong axis raises nothing.
_SHORT_CASES = (
    Case("as many queries as keys", _vectors(4, 4, 3, 301, 0.8)),
    Case("more keys than queries", _vectors(3, 7, 2, 303, 1.5)),
    Case("one coordinate", _vectors(5, 4, 1, 305, 0.6)),
)

_COST_CASES = (
    Case("keys of different lengths", _vectors(4, 6, 3, 313, 0.8)),
    Case("one query", _vectors(1, 5, 2, 317, 1.3)),
    Case("unit keys", _vectors(5, 4, 3, 319, 0.7, norm=1.0)),
    Case("keys of length 3", _vectors(3, 6, 4, 321, 1.2, norm=3.0)),
)


# 2.4 ---------------------------------------------------------------------------------


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _variance(dim: int, query_std: float, key_std: float) -> Tensor:
    return _number(dim * query_std**2 * key_std**2)


def _unit_scale(dim: int, query_std: float, key_std: float) -> Tensor:
    return _variance(dim, query_std, key_std) ** -0.5


def _spread(dim: int, query_std: float, key_std: float) -> dict[str, Any]:
    return {"dim": dim, "query_std": query_std, "key_std": key_std}


_SPREAD_CASES = (
    Case("standard deviations of 1", _spread(16, 1.0, 1.0)),
    Case("more coordinates", _spread(50, 1.0, 1.0)),
    Case("wide queries", _spread(9, 3.0, 1.0)),
    Case("narrow keys", _spread(25, 2.0, 0.3)),
    Case("one coordinate", _spread(1, 0.5, 1.5)),
)


# 2.5 ---------------------------------------------------------------------------------


def _backward(weights: Tensor, grad: Tensor) -> Tensor:
    """By the whole Jacobian of each row: it owes nothing to a formula on paper."""
    jacobian = torch.diag_embed(weights) - weights[:, :, None] * weights[:, None, :]
    return (jacobian * grad[:, :, None]).sum(1)


def _row(
    n: int, m: int, seed: int, hidden: tuple[tuple[int, int], ...] = (), empty: int | None = None
) -> dict[str, Any]:
    scores = 1.5 * _random(seed, n, m).double()
    for place in hidden:
        scores[place] = -torch.inf
    weights = scores.softmax(1)
    if empty is not None:
        weights[empty] = 0
    return {"weights": weights, "grad": 2 + _random(seed + 1, n, m).double()}


# The square comes first: there, a sum along the wrong axis raises nothing.
_BACKWARD_CASES = (
    Case("as many queries as keys", _row(4, 4, 501)),
    Case("more keys than queries", _row(3, 6, 503)),
    Case("hidden keys", _row(3, 5, 505, hidden=((0, 1), (2, 0), (2, 4)))),
    Case("a query that may attend to nothing", _row(3, 4, 507, empty=1)),
    Case("one key, where nothing can move", _row(3, 1, 509)),
)


# 2.6 ---------------------------------------------------------------------------------


def _activated(query: Tensor, key: Tensor, weight: Tensor, activation: Any) -> Tensor:
    """Pair by pair."""
    rows = [[weight @ activation(q + k) for k in key] for q in query]
    return torch.stack([torch.stack(row) for row in rows])


def _hidden(n: int, m: int, width: int, seed: int, activation: Any) -> dict[str, Any]:
    return {
        "query": _random(seed, n, width),
        "key": _random(seed + 1, m, width),
        "weight": _random(seed + 2, width),
        "activation": activation,
    }


# The cube comes first: there, a weight along the wrong axis raises nothing.
_ACTIVATED_CASES = (
    Case("as many queries and keys as hidden units", _hidden(4, 4, 4, 601, torch.relu)),
    Case("more keys than queries", _hidden(2, 5, 3, 604, torch.tanh)),
    Case("another activation", _hidden(3, 4, 6, 607, torch.square)),
    Case("one hidden unit", _hidden(3, 4, 1, 610, torch.sigmoid)),
)

_Mechanism = Callable[[Tensor, Tensor, Tensor], Tensor]


class _Trial(NamedTuple):
    """A mechanism to hold a perturbation test against.

    Attributes:
        name: To follow the words "called with".
        attend: (query ``[n, d]``, key ``[m, d]``, value ``[m, v]``) -> ``[n, v]``.
        n: How many queries.
        ignores: Whether the query makes no difference to it.
    """

    name: str
    attend: _Mechanism
    n: int
    ignores: bool


def _scored(score: Callable[[Tensor, Tensor], Tensor]) -> _Mechanism:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return score(query, key).softmax(1) @ value

    return attend


def _linear_score(query: Tensor, key: Tensor) -> Tensor:
    weight = torch.linspace(-1, 1, query.shape[1], dtype=query.dtype)
    return (query[:, None] + key[None]) @ weight


def _additive_score(query: Tensor, key: Tensor) -> Tensor:
    weight = torch.linspace(-1, 2, query.shape[1], dtype=query.dtype)
    return (query[:, None] + key[None]).tanh() @ weight


def _cosine_score(query: Tensor, key: Tensor) -> Tensor:
    return 3 * torch.cosine_similarity(query[:, None], key[None], dim=2)


def _centred(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Outputs of which neither the first number nor the mean ever changes."""
    output = (query @ key.T).softmax(1) @ value[:, 1:]
    return torch.cat([torch.zeros_like(output), output - output.mean()], 1)


_TRIALS = (
    _Trial("the additive score without its tanh", _scored(_linear_score), 4, True),
    _Trial("the additive score", _scored(_additive_score), 4, False),
    _Trial("the same weight for every key", _scored(lambda q, k: 0 * q @ k.T), 3, True),
    _Trial("a dot product of one query", _scored(lambda q, k: q @ k.T), 1, False),
    _Trial("the cosine of query and key", _scored(_cosine_score), 3, False),
    _Trial(
        "queries less their mean",
        _scored(lambda q, k: (q - q.mean(0)) @ k.T),
        3,
        False,
    ),
    _Trial("a squared dot product", _scored(lambda q, k: (q @ k.T).square() / 2), 3, False),
    _Trial("the length of the keys", _scored(lambda q, k: 0 * q @ k.T + k.norm(dim=1)), 2, True),
    _Trial("outputs less their mean", _centred, 3, False),
)


def _trial_inputs(trial: _Trial) -> dict[str, Any]:
    return {
        "query": _random(621, trial.n, 4),
        "key": _random(622, 6, 4),
        "value": 3 * _random(623, 6, 2),
    }


# 2.7 ---------------------------------------------------------------------------------


def _inside(scores: Tensor, valid_lens: Tensor) -> Tensor:
    return torch.arange(scores.shape[1]) < valid_lens[:, None]


def _row_weights(scores: Tensor, valid_lens: Tensor) -> Tensor:
    return _masked(scores, _inside(scores, valid_lens))


def _row_backward(scores: Tensor, grad: Tensor, valid_lens: Tensor, block: int) -> Tensor:
    inside = _inside(scores, valid_lens)
    return _backward(_row_weights(scores, valid_lens), grad.masked_fill(~inside, 0))


def _rows(
    m: int, lens: list[int], block: int, seed: int, shift: float = 0.0, padding: float = 0.0
) -> dict[str, Any]:
    """Scores and gradients of rows; the padding's can be something else."""
    valid_lens = torch.tensor(lens)
    inside = _inside(torch.zeros(len(lens), m), valid_lens)
    scores, grad = _random(seed, len(lens), m) + shift, 1 + _random(seed + 1, len(lens), m)
    if padding:
        scores, grad = (x.masked_fill(~inside, padding) for x in (scores, grad))
    return {"scores": scores, "grad": grad, "valid_lens": valid_lens, "block": block}


_ROW_CASES = (
    Case("a tail of one lane", _rows(7, [7, 4, 1, 6], 8, 701)),
    Case("rows that fill their tile", _rows(16, [16, 16], 16, 703)),
    Case("a tile much wider than the row", _rows(13, [13, 5, 9], 32, 705)),
    Case("a row that may attend to nothing", _rows(9, [9, 0, 3], 16, 707)),
    Case("large scores", _rows(8, [8, 5], 8, 709, shift=2000.0)),
    Case("padding that is NaN", _rows(10, [4, 10, 7], 16, 711, padding=torch.nan)),
    Case("forty keys", _rows(40, [40, 17], 64, 713)),
)
