"""Variants of chapter 5's exercises."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Case
from attn_course.exercises.variants.variant import Parameters, Slip, Variant, changed, random

# 5.2 ---------------------------------------------------------------------------------

#: Frequency of pair j -> formula, code of all frequencies.
_FREQUENCIES = {
    "octaves": ("2^{-j}", "2.0 ** -j"),
    "even steps": (
        r"\frac{j + 1}{d / 2} \cdot \frac{\pi}{b}",
        "(j + 1) / (dim / 2) * math.pi / base",
    ),
    "slow first": ("b^{2 (j + 1) / d - 1}", "base ** (2 * (j + 1) / dim - 1)"),
}

#: Order of the columns -> in words, code.
_COLUMNS = {
    "blocks": (
        "All sines come first, in the order of $j$, then all cosines",
        "torch.cat([angle.sin(), angle.cos()], 1)",
    ),
    "cosine first": (
        "Column $2j$ is the cosine, column $2j + 1$ the sine",
        "torch.stack([angle.cos(), angle.sin()], 2).flatten(1)",
    ),
}


def _sinusoids(p: Parameters, length: int, dim: int, base: float) -> Tensor:
    """Number by number."""
    table = torch.zeros(length, dim, dtype=torch.float64)
    half = dim // 2
    for i in range(length):
        for j in range(half):
            frequency = {
                "octaves": 0.5**j,
                "even steps": 2 * math.pi * (j + 1) / (dim * base),
                "slow first": base ** (-(dim - 2 * j - 2) / dim),
                "book": base ** (-2 * j / dim),
            }[p["frequency"]]
            sine, cosine = {
                "blocks": (j, half + j),
                "cosine first": (2 * j + 1, 2 * j),
                "book": (2 * j, 2 * j + 1),
            }[p["columns"]]
            angle = (i + p["start"]) * frequency
            table[i, sine], table[i, cosine] = math.sin(angle), math.cos(angle)
    return table


_WAVES = Variant(
    varies="5.2",
    title="Other waves",
    shapes="a length, a width → table `[length, dim]`",
    stars=1,
    minutes=15,
    choices={
        "frequency": tuple(_FREQUENCIES),
        "columns": tuple(_COLUMNS),
        "start": (0, 1, 5),
    },
    task="""
A table of positions with frequencies of its own. Row $i$ stands for position $i + <<start>>$, and
pair $j = 0, 1, \\ldots, d/2 - 1$ of columns holds sine and cosine of

$$
(i + <<start>>) \\cdot <<formula>>, \\qquad b = \\mathtt{base} .
$$

<<phrase>>.
""",
    stub='''
def sinusoids(length: int, dim: int, base: float) -> Tensor:
    """Sines and cosines of positions <<start>> to <<start>> + length - 1.

    Args:
        length: How many positions.
        dim: How many columns, d; even.
        base: b, where it is needed.

    Returns:
        [length, dim].
    """
''',
    answer="""
position = <<start>> + torch.arange(length)[:, None]  # [length, 1]
j = torch.arange(dim // 2)
frequency = <<code>>  # [dim / 2]
angle = position * frequency
return <<joined>>
""",
    why="""
Angles first, a column of positions times a row of frequencies; then sine and cosine, and only
then the order of the columns. Any fixed order of columns would serve a model that learns a map of
them; trained weights, however, know one order only.
""",
    words=lambda p: {
        "formula": _FREQUENCIES[p["frequency"]][0],
        "code": _FREQUENCIES[p["frequency"]][1],
        "phrase": _COLUMNS[p["columns"]][0],
        "joined": _COLUMNS[p["columns"]][1],
    },
    cases=(
        Case("six positions", {"length": 6, "dim": 6, "base": 10.0}),
        Case("more columns than positions", {"length": 3, "dim": 8, "base": 100.0}),
        Case("two columns", {"length": 5, "dim": 2, "base": 50.0}),
        Case("one position", {"length": 1, "dim": 4, "base": 20.0}),
    ),
    oracle=_sinusoids,
    book=lambda length, dim, base: _sinusoids(
        {"frequency": "book", "columns": "book", "start": 0}, length, dim, base
    ),
    slips=(
        Slip("the first row is position 0, and not <<start>>.", changed(_sinusoids, start=0)),
        Slip("the frequencies are those of the book.", changed(_sinusoids, frequency="book")),
        Slip(
            "sine and cosine alternate, as in the book. <<phrase>>.",
            changed(_sinusoids, columns="book"),
        ),
    ),
)

# 5.4 ---------------------------------------------------------------------------------

#: Which columns turn together -> in words, code of the two halves, code that joins them.
_PAIRS = {
    "halves": (
        "$j$ and $j + d/2$",
        "x[:, : d // 2], x[:, d // 2 :]",
        "torch.cat([one, two], 1)",
    ),
    "mirrored": (
        "$j$ and $d - 1 - j$",
        "x[:, : d // 2], x[:, d // 2 :].flip(1)",
        "torch.cat([one, two.flip(1)], 1)",
    ),
}


def _turn(p: Parameters, x: Tensor, base: float) -> Tensor:
    """Pair by pair, by multiplying complex numbers."""
    n, d = x.shape
    result = torch.zeros(n, d, dtype=torch.float64)
    for j in range(d // 2):
        a, b = {
            "halves": (j, j + d // 2),
            "mirrored": (j, d - 1 - j),
            "book": (2 * j, 2 * j + 1),
        }[p["pairs"]]
        for i in range(n):
            angle = (i + p["start"]) * base ** (-2 * j / d)
            angle = -angle if p["way"] == "backwards" else angle
            number = complex(x[i, a], x[i, b]) * complex(math.cos(angle), math.sin(angle))
            result[i, a], result[i, b] = number.real, number.imag
    return result


def _rows(n: int, d: int, base: float, seed: int) -> dict[str, Any]:
    return {"x": random(seed, n, d), "base": base}


_TURN = Variant(
    varies="5.4",
    title="Turn other pairs",
    shapes="`[n, d]` → `[n, d]`",
    stars=2,
    minutes=20,
    choices={"pairs": tuple(_PAIRS), "way": ("forwards", "backwards"), "start": (0, 1, 3)},
    task="""
Columns <<phrase>> are a pair, for $j = 0, 1, \\ldots, d/2 - 1$. Row $i$ is at position $i +
<<start>>$, and turns pair $j$, which is $(u, w)$ in this order, by $\\theta = <<sign>>(i +
<<start>>)\\, b^{-2j/d}$:

$$
u' = u \\cos\\theta - w \\sin\\theta, \\qquad w' = u \\sin\\theta + w \\cos\\theta .
$$

Each number comes back in the column in which it was. Then say in two sentences which of the three
choices made here, the pairing, the sign and the first position, could be another for the *keys*
than for the *queries* without harm to the scores.
""",
    stub='''
def turn(x: Tensor, base: float) -> Tensor:
    """Turn each pair of columns by its row's angle.

    Args:
        x: [n, d], d even; row i is at position i + <<start>>.
        base: b.

    Returns:
        [n, d].
    """
''',
    answer="""
n, d = x.shape
frequency = base ** (-torch.arange(0, d, 2) / d)     # [d / 2]
angle = <<sign>>(torch.arange(n)[:, None] + <<start>>) * frequency
sin, cos = angle.sin(), angle.cos()
u, w = <<halves>>
one, two = u * cos - w * sin, u * sin + w * cos
return <<joined>>
""",
    why="""
None of the three may differ. With two pairings, what turns together in the query does not turn
together in the key; with two signs the angles add up, and the score depends on the sum of the
positions; and with two first positions every distance is off by the same number: the scores still
depend on the distance alone, but on another one. Only if both share a start does it cancel.
""",
    words=lambda p: {
        "phrase": _PAIRS[p["pairs"]][0],
        "halves": _PAIRS[p["pairs"]][1],
        "joined": _PAIRS[p["pairs"]][2],
        "sign": "-" if p["way"] == "backwards" else "",
    },
    cases=(
        Case("as many rows as columns", _rows(6, 6, 100.0, 41)),
        Case("more columns than rows", _rows(3, 8, 50.0, 42)),
        Case("one pair", _rows(5, 2, 10.0, 43)),
        Case("one row", _rows(1, 4, 20.0, 44)),
    ),
    oracle=_turn,
    book=lambda x, base: _turn({"pairs": "book", "way": "forwards", "start": 0}, x, base),
    slips=(
        Slip(
            "neighbouring columns turn together. Columns <<phrase>> should.",
            changed(_turn, pairs="book"),
        ),
        Slip("the first row is at position 0, and not at <<start>>.", changed(_turn, start=0)),
        Slip(
            "pairs turn the other way: check the sign of the angle.",
            lambda p, x, base: _turn(
                {**p, "way": "forwards" if p["way"] == "backwards" else "backwards"}, x, base
            ),
        ),
    ),
)

VARIANTS = (_WAVES, _TURN)
