"""Variants of chapter 1's exercises."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Case
from attn_course.exercises.variants.variant import Parameters, Slip, Variant, changed, random


def _line(n: int, m: int, width: float, seed: int) -> dict[str, Any]:
    """Queries, keys and values along a line; values far from zero."""
    query, key = 2 * random(seed, n), 2 * random(seed + 1, m)
    return {"query": query, "key": key, "value": 3 + random(seed + 2, m), "width": width}


_FAR = _line(4, 6, 0.5, 21)
_FAR["query"] = _FAR["query"] + torch.tensor([0.0, 50.0, 0.0, -50.0])

_LINE_CASES = (
    Case("as many queries as keys", _line(6, 6, 1.0, 11)),
    Case("more keys than queries", _line(3, 9, 0.7, 14)),
    Case("one key", _line(4, 1, 2.0, 17)),
)

# 1.1 ---------------------------------------------------------------------------------

#: Kernel -> formula, code, and code of the oracle's: zero from u = 1 on.
_HATS = {
    "triangle": ("1 - u", "1 - u"),
    "parabola": ("1 - u^2", "1 - u**2"),
    "tricube": ("(1 - u^3)^3", "(1 - u**3) ** 3"),
    "raised cosine": (r"\tfrac12 (1 + \cos \pi u)", "(1 + torch.cos(torch.pi * u)) / 2"),
}


def _hat(p: Parameters, query: Tensor, key: Tensor, width: float) -> Tensor:
    u: Tensor = (query[:, None] - key).abs() / (p["reach"] * width)
    heights = {
        "triangle": 1 - u,
        "parabola": 1 - u.square(),
        "tricube": (1 - u.pow(3)).pow(3),
        "raised cosine": (torch.pi * u / 2).cos().square(),
    }
    return heights[p["kernel"]].where(u < 1, 0.0)


def _hat_regression(
    p: Parameters, query: Tensor, key: Tensor, value: Tensor, width: float
) -> Tensor:
    heights = _hat(p, query, key, width)
    total = heights.sum(1)
    return (heights @ value / total).where(total > 0, 0.0)


def _boxcar(query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
    near = ((query[:, None] - key).abs() < width).double()
    return near @ value / near.sum(1).clamp_min(1)


def _over_queries(p: Parameters, query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
    heights = _hat(p, query, key, width)
    return heights / heights.sum(0).where(heights.sum(0) > 0, 1.0) @ value


_BOXCAR = Variant(
    varies="1.1",
    title="A <<kernel>> by hand",
    shapes="queries `[n]`, keys `[m]`, values `[m]` → `[n]`",
    stars=1,
    minutes=10,
    choices={"kernel": tuple(_HATS), "reach": (1.5, 2, 2.5, 3)},
    task="""
The boxcar counts all keys of its window alike. Here near keys count more. A query answers with
the weighted average of the values, and a key's share is proportional to

$$
K(u) = <<formula>> \\quad \\text{for } u < 1, \\qquad 0 \\quad \\text{from } u = 1 \\text{ on},
\\qquad u = \\frac{|q - k|}{<<reach>>\\,\\sigma},
$$

with the width $\\sigma$: the window ends <<reach>> widths from the query. A query without a key
in its window answers 0. Write it in PyTorch, without the package.
""",
    stub='''
def boxcar_regression(
    query: Tensor, key: Tensor, value: Tensor, width: float
) -> Tensor:
    """Average the values with the weights of a <<kernel>>.

    Args:
        query: Where to predict, [n].
        key: Where values are known, [m].
        value: What is known there, [m].
        width: sigma; the window reaches <<reach>> of it to either side.

    Returns:
        Predictions, [n]; 0 for a query without a key in its window.
    """
''',
    answer="""
u = (query[:, None] - key[None, :]).abs() / (<<reach>> * width)
height = <<code>>
share = torch.where(u < 1, height, 0.0)               # [n, m]
total = share.sum(1)                                 # [n]
return share @ value / torch.where(total > 0, total, 1.0)
""",
    why="""
Shares are normalised along the keys, after the window has been cut: beyond $u = 1$ the formula
goes on, with numbers that mean nothing. An empty window has a total of 0, and its sum is 0
already.
""",
    words=lambda p: {"formula": _HATS[p["kernel"]][0], "code": _HATS[p["kernel"]][1]},
    cases=(*_LINE_CASES, Case("queries without a key in their window", _FAR)),
    oracle=_hat_regression,
    book=_boxcar,
    slips=(
        Slip(
            "the window does not end <<reach>> widths from the query: by what is the distance "
            "divided?",
            changed(_hat_regression, reach=1),
        ),
        Slip(
            "the weights sum to one over the queries. Whose average is it?",
            _over_queries,
        ),
        Slip(
            "shares are added up, and never divided by their sum.",
            lambda p, query, key, value, width: _hat(p, query, key, width) @ value,
        ),
    ),
)

# 1.4 ---------------------------------------------------------------------------------

#: Kernel -> the formula of its logarithm, the code of that, and the code of its slope.
_SMOOTH = {
    "Cauchy": (r"-\ln(1 + d^2)", "-torch.log(1 + d**2)", "-2 * d / (1 + d**2)"),
    "flat-topped": ("-d^4 / 4", "-(d**4) / 4", "-(d**3)"),
    "sech": (r"-\ln \cosh d", "-torch.log(torch.cosh(d))", "-torch.tanh(d)"),
}


def _log_kernel(kernel: str, d: Tensor) -> Tensor:
    if kernel == "Cauchy":
        return -d.square().log1p()
    if kernel == "flat-topped":
        return -d.pow(4) / 4
    return -d.square() / 2 if kernel == "Gaussian" else -d.cosh().log()


def _slope(p: Parameters, query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
    """By automatic differentiation: it owes nothing to a formula on paper."""
    log_weights, by = _differentiable(p, query, key, width)
    return _gradient(log_weights.softmax(1) @ value, by)


def _normaliser_ignored(
    p: Parameters, query: Tensor, key: Tensor, value: Tensor, width: float
) -> Tensor:
    """As if the sum of the weights did not move."""
    log_weights, by = _differentiable(p, query, key, width)
    return _gradient(
        (log_weights - log_weights.detach().logsumexp(1, keepdim=True)).exp() @ value, by
    )


def _differentiable(
    p: Parameters, query: Tensor, key: Tensor, width: float
) -> tuple[Tensor, Tensor]:
    """Log-kernels ``[n, m]``, and for each query what they are to be differentiated by."""
    query = query.clone().requires_grad_()
    sigma = torch.full_like(query, width).requires_grad_()
    d = (query[:, None] - key) / sigma[:, None]
    return _log_kernel(p["kernel"], d), query if p["by"] == "query" else sigma


def _gradient(output: Tensor, by: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(output.sum(), by)
    return gradient


_WIDTH_SLOPE = Variant(
    varies="1.4",
    title="How the answer moves with the <<by>>",
    shapes="queries `[n]`, keys `[m]`, values `[m]` → `[n]`",
    stars=2,
    minutes=25,
    choices={"kernel": tuple(_SMOOTH), "by": ("width", "query")},
    task="""
The estimate of a <<kernel>> kernel, in one dimension, is

$$
\\hat y = \\frac{\\sum_j s_j\\, v_j}{\\sum_j s_j}, \\qquad \\ln s_j = <<formula>>, \\qquad
d = d_j = (q - k_j)/\\sigma .
$$

Derive $\\partial \\hat y / \\partial <<symbol>>$ on paper. Then write it as code: your formula,
without automatic differentiation. Hand in the derivation with the notebook.
""",
    stub='''
def width_slope(
    query: Tensor, key: Tensor, value: Tensor, width: float
) -> Tensor:
    """The derivative of the estimate by the <<by>>.

    Args:
        query: [n].
        key: [m].
        value: [m].
        width: sigma.

    Returns:
        d output / d <<by>> for each query, [n].
    """
''',
    answer="""
d = (query[:, None] - key[None, :]) / width          # [n, m]
alpha = (<<log>>).softmax(1)
output = alpha @ value                               # [n]
move = (<<slope>>) * <<chain>>
return (alpha * move * (value - output[:, None])).sum(1)
""",
    why="""
$\\partial \\ln s_j / \\partial <<symbol>>$ is the slope of $<<formula>>$ by $d$, times $\\partial
d / \\partial <<symbol>>$, which the code calls `<<chain>>`. Numerator and denominator both move,
and what is left is the covariance, under the weights, of that number and the value: weight times
(value minus output), as in exercise 1.4.
""",
    words=lambda p: {
        "formula": _SMOOTH[p["kernel"]][0],
        "log": _SMOOTH[p["kernel"]][1],
        "slope": _SMOOTH[p["kernel"]][2],
        "symbol": "q" if p["by"] == "query" else r"\sigma",
        "chain": "(1 / width)" if p["by"] == "query" else "(-d / width)",
    },
    cases=_LINE_CASES,
    oracle=_slope,
    book=lambda query, key, value, width: _slope(
        {"kernel": "Gaussian", "by": "width"}, query, key, value, width
    ),
    slips=(
        Slip(
            "this has the other sign: follow the minus through the chain rule.",
            lambda p, **inputs: -_slope(p, **inputs),
        ),
        Slip(
            "the denominator does not move in it. Both sums hold $s_j$.",
            _normaliser_ignored,
        ),
        Slip(
            "this is the derivative by $d$, and not by the <<by>>.",
            lambda p, query, key, value, width: (
                _slope({**p, "by": "query"}, query, key, value, width) * width
            ),
        ),
    ),
)

VARIANTS = (_BOXCAR, _WIDTH_SLOPE)
