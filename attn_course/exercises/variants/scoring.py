"""Variants of chapter 2's exercises."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Case
from attn_course.exercises.variants.variant import Parameters, Slip, Variant, changed, random

# 2.1 ---------------------------------------------------------------------------------


def _batch(batch: int, n: int, m: int, v: int, seed: int, scale: float = 1.0) -> dict[str, Any]:
    scores = scale * random(seed, batch, n, m)
    return {"scores": scores, "value": 3 + 2 * random(seed + 1, batch, m, v)}


def _attend(p: Parameters, scores: Tensor, value: Tensor) -> Tensor:
    """Query by query and key by key."""
    powers = scores * math.log(p["base"])
    if p["over"] == "queries":
        log_sum = powers.logsumexp(1, keepdim=True)
    else:
        log_sum = powers.logsumexp(2, keepdim=True)
    return (powers - log_sum).exp() @ value


def _other(p: Parameters) -> str:
    return "queries" if p["over"] == "keys" else "keys"


_ATTEND = Variant(
    varies="2.1",
    title="Powers of <<base>>, shared out over the <<over>>",
    shapes="scores `[batch, n, m]`, values `[batch, m, v]` → `[batch, n, v]`",
    stars=1,
    minutes=10,
    choices={"base": (2, 3, 5, 10), "over": ("keys", "queries")},
    task="""
Turn the scores $a_{ij}$ of a batch into weights, and add up the values with them:

$$
\\alpha_{ij} = \\frac{<<base>>^{a_{ij}}}{\\sum_l <<base>>^{a_{<<pair>>}}}, \\qquad
o_i = \\sum_j \\alpha_{ij} v_j .
$$

The weights sum to one over the <<over>>. No key is hidden. Scores may be in the thousands, and
the answer is finite then too.
""",
    stub='''
def attend(scores: Tensor, value: Tensor) -> Tensor:
    """Add up the values, with powers of <<base>> as weights.

    Args:
        scores: [batch, n, m]; n queries, m keys.
        value: [batch, m, v].

    Returns:
        [batch, n, v].
    """
''',
    answer="""
weights = (scores * math.log(<<base>>)).softmax(dim=<<axis>>)
return weights @ value
""",
    why="""
$<<base>>^a = e^{a \\ln <<base>>}$, so a softmax of the scores times $\\ln <<base>>$ is what is
asked for, and it subtracts the largest before it takes a power. The sum runs over the <<over>>,
axis <<axis>> of `[batch, n, m]`.
""",
    words=lambda p: {
        "axis": 2 if p["over"] == "keys" else 1,
        "others": _other(p),
        "pair": "il" if p["over"] == "keys" else "lj",
    },
    # The cube comes first: there, no axis raises anything.
    cases=(
        Case("as many sentences as queries and keys", _batch(4, 4, 4, 4, 101)),
        Case("more keys than queries", _batch(2, 3, 6, 2, 103)),
        Case("one sentence", _batch(1, 4, 3, 5, 105)),
        Case("large scores", _batch(2, 3, 4, 2, 109, scale=5000.0)),
    ),
    oracle=_attend,
    book=lambda scores, value: scores.softmax(2) @ value,
    slips=(
        Slip(
            "the weights are powers of $e$. What makes a power of <<base>> of it?",
            changed(_attend, base=math.e),
        ),
        Slip(
            "the weights sum to one over the <<others>>, and not over the <<over>>: "
            "check the axis.",
            lambda p, scores, value: _attend({**p, "over": _other(p)}, scores, value),
        ),
    ),
)

# 2.2 ---------------------------------------------------------------------------------

#: What a row does that may attend to nothing -> in words, and in code.
_EMPTY = {
    "first": ("gives all of its weight to key 0", "F.one_hot(torch.zeros(n).long(), m)"),
    "last": (
        "gives all of its weight to the last key",
        "F.one_hot(torch.full((n,), m - 1), m)",
    ),
    "even": ("gives each of the $m$ keys the weight $1/m$", "torch.ones(n, m) / m"),
    "own": (
        "gives all of its weight to the key of its own number, $i$ (there are at "
        "least as many keys "
        "as queries)",
        "torch.eye(n, m)",
    ),
}


def _softmax_forbidden(p: Parameters, scores: Tensor, forbidden: Tensor) -> Tensor:
    """Row by row."""
    n, m = scores.shape
    weights = torch.zeros(n, m, dtype=torch.float64)
    for i in range(n):
        if not forbidden[i].all():
            row = scores[i].double().masked_fill(forbidden[i], -torch.inf)
            weights[i] = (row / p["temperature"]).softmax(0)
        elif p["empty"] == "even":
            weights[i] = 1 / m
        elif p["empty"] != "zero":
            weights[i, {"first": 0, "last": m - 1, "own": i}[p["empty"]]] = 1
    return weights


def _table(*rows: str) -> Tensor:
    """``"x.x"``: the first and the last key are forbidden."""
    return torch.tensor([[sign == "x" for sign in row] for row in rows])


def _forbid(scores: Tensor, forbidden: Tensor, hidden: float | None = None) -> dict[str, Any]:
    if hidden is not None:
        scores = scores.masked_fill(forbidden, hidden)
    return {"scores": scores, "forbidden": forbidden}


_SOME = _table("..xx.", ".x.x.", "x....", "...x.", ".....")
_ROW = _table("..xxx", "xxxxx", ".....", "xx.x.")

_FORBIDDEN = Variant(
    varies="2.2",
    title="Keys that are forbidden",
    shapes="scores `[n, m]`, forbidden `[n, m]` → weights `[n, m]`",
    stars=2,
    minutes=20,
    choices={"empty": tuple(_EMPTY), "temperature": (0.5, 2, 3)},
    task="""
Some libraries write a mask the other way round. `forbidden` is `True` where a query may **not**
attend to a key. The weights of a row are a softmax of $a_{ij} / T$ over the keys that are left,
with the temperature $T = <<temperature>>$; forbidden keys have 0. And:

1. a row in which everything is forbidden <<phrase>>;
2. no forbidden score has any influence, however large it is, or NaN;
3. the arguments stay as they were.
""",
    stub='''
def softmax_allowed(scores: Tensor, forbidden: Tensor) -> Tensor:
    """Softmax over the keys that are not forbidden.

    Args:
        scores: [n, m].
        forbidden: [n, m], boolean; True = may not attend.

    Returns:
        [n, m].
    """
''',
    answer="""
n, m = scores.shape
empty = forbidden.all(1, keepdim=True)               # [n, 1]
scores = scores.masked_fill(forbidden, -torch.inf) / <<temperature>>
weights = scores.masked_fill(empty, 0).softmax(1)    # no NaN
instead = <<code>>
return torch.where(empty, instead.to(weights), weights)
""",
    why="""
As in exercise 2.2, the score of a hidden key is replaced before anything is computed, and a row
without a key is given numbers that softmax can bear. What such a row is to say is a decision, and
it is taken at the end, by a choice and not by a sum.
""",
    words=lambda p: {"phrase": _EMPTY[p["empty"]][0], "code": _EMPTY[p["empty"]][1]},
    cases=(
        Case("some keys forbidden", _forbid(random(201, 5, 5), _SOME)),
        Case("a query to which everything is forbidden", _forbid(random(202, 4, 5), _ROW)),
        Case("large scores", _forbid(2000 + 2 * random(203, 5, 5), _SOME)),
        Case("forbidden scores far above the others", _forbid(random(204, 5, 5), _SOME, 5000.0)),
        Case("forbidden scores that are NaN", _forbid(random(205, 4, 5), _ROW, torch.nan)),
    ),
    oracle=_softmax_forbidden,
    book=lambda scores, forbidden: _softmax_forbidden(
        {"empty": "zero", "temperature": 1}, scores, ~forbidden
    ),
    slips=(
        Slip(
            "True is read as *may attend*. Which pairs does this mask name?",
            lambda p, scores, forbidden: _softmax_forbidden(p, scores, ~forbidden),
        ),
        Slip(
            "the temperature is missing: scores are to be divided by <<temperature>>.",
            changed(_softmax_forbidden, temperature=1),
        ),
        Slip(
            "scores are multiplied by the temperature.",
            lambda p, scores, forbidden: _softmax_forbidden(
                {**p, "temperature": 1 / p["temperature"]}, scores, forbidden
            ),
        ),
        Slip(
            "a row in which everything is forbidden is zeros. Here it <<phrase>>.",
            changed(_softmax_forbidden, empty="zero"),
        ),
    ),
)

# 2.5 ---------------------------------------------------------------------------------

#: What the loss sees -> formula, code of its slope by alpha.
_SEEN = {
    "logarithm": (r"\ln \alpha", "1 / weights"),
    "square": (r"\alpha^2", "2 * weights"),
    "square root": (r"\sqrt{\alpha}", "0.5 / weights.sqrt()"),
    "cube": (r"\alpha^3", "3 * weights**2"),
}


def _seen(what: str, weights: Tensor) -> Tensor:
    powers = {"itself": 1.0, "square": 2.0, "square root": 0.5, "cube": 3.0}
    return weights.log() if what == "logarithm" else weights.pow(powers[what])


def _backward(p: Parameters, weights: Tensor, grad: Tensor) -> Tensor:
    """By automatic differentiation, from scores that have these weights."""
    temperature: float = p["temperature"]
    scores = (temperature * weights.log()).requires_grad_()
    seen = _seen(p["seen"], (scores / temperature).softmax(1))
    return torch.autograd.grad((seen * grad).sum(), scores)[0]


def _diagonal(p: Parameters, weights: Tensor, grad: Tensor) -> Tensor:
    leaf = weights.clone().requires_grad_()
    (by_weights,) = torch.autograd.grad((_seen(p["seen"], leaf) * grad).sum(), leaf)
    temperature: float = p["temperature"]
    return by_weights * weights * (1 - weights) / temperature


def _rows(n: int, m: int, seed: int) -> dict[str, Any]:
    weights = (1.5 * random(seed, n, m).double()).softmax(1)
    return {"weights": weights, "grad": 2 + random(seed + 1, n, m).double()}


_BACKWARD = Variant(
    varies="2.5",
    title="Backwards through a softmax and its <<seen>>",
    shapes="weights `[n, m]`, gradients `[n, m]` → `[n, m]`",
    stars=2,
    minutes=25,
    choices={"seen": tuple(_SEEN), "temperature": (0.5, 2, 4)},
    task="""
The weights have a temperature of <<temperature>>, and a loss $L$ depends on their <<seen>>:

$$
\\alpha_{ij} = \\frac{e^{a_{ij} / <<temperature>>}}{\\sum_l e^{a_{il} / <<temperature>>}}, \\qquad
\\beta = <<formula>> \\text{ (entry by entry)}, \\qquad
g_{ij} = \\frac{\\partial L}{\\partial \\beta_{ij}} .
$$

Derive $\\partial L / \\partial a_{ij}$ on paper, and write it as code, without automatic
differentiation. It needs $\\alpha$ and $g$ alone. All weights are above 0. Hand in the derivation
with the notebook.
""",
    stub='''
def softmax_backward(weights: Tensor, grad: Tensor) -> Tensor:
    """From the gradient by beta, the <<seen>>, to that by the scores.

    Args:
        weights: alpha, [n, m]; rows sum to one.
        grad: dL / dbeta, [n, m].

    Returns:
        dL / da, [n, m].
    """
''',
    answer="""
by_weights = grad * <<code>>  # dL / dalpha
mean = (weights * by_weights).sum(1, keepdim=True)
return weights * (by_weights - mean) / <<temperature>>
""",
    why="""
Two maps one after the other, so two factors: $\\partial L / \\partial \\alpha$ is $g$ times the
slope of $<<formula>>$, and from there on it is exercise 2.5. The scores are divided by
<<temperature>> on the way forwards, and so is the gradient on the way back. Each row sums to
zero.
""",
    words=lambda p: {"formula": _SEEN[p["seen"]][0], "code": _SEEN[p["seen"]][1]},
    cases=(
        Case("as many queries as keys", _rows(4, 4, 501)),
        Case("more keys than queries", _rows(3, 6, 503)),
        Case("one key, where nothing can move", _rows(3, 1, 505)),
    ),
    oracle=_backward,
    book=lambda weights, grad: _backward({"seen": "itself", "temperature": 1}, weights, grad),
    slips=(
        Slip(
            "the temperature is missing: what is the derivative of $a / <<temperature>>$ by $a$?",
            changed(_backward, temperature=1),
        ),
        Slip(
            "the loss depends on the <<seen>> of the weights, and this is as if it depended on the "
            "weights.",
            changed(_backward, seen="itself"),
        ),
        Slip(
            "each score moves its own weight alone in it. What happens to the others of the row?",
            _diagonal,
        ),
    ),
)

VARIANTS = (_ATTEND, _FORBIDDEN, _BACKWARD)
