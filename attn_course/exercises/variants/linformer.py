"""Variants of chapter 9's exercises."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Case
from attn_course.exercises.variants.variant import Parameters, Slip, Variant, changed, random

# 9.2 ---------------------------------------------------------------------------------

#: Where padding stands and which columns of E and F meet a text -> two phrases, two lines of code.
_PLACES = {
    "end": (
        "behind",
        "the first `lens[b]` columns",
        "real = torch.arange(n) < lens[:, None]",
        "order = torch.arange(n).expand(len(lens), n)",
    ),
    "front, own columns": (
        "before",
        "the last `lens[b]` columns, those of their places",
        "real = torch.arange(n) >= n - lens[:, None]",
        "order = torch.arange(n).expand(len(lens), n)",
    ),
    "front, first columns": (
        "before",
        "the *first* `lens[b]` columns, as if its text began at place 0",
        "real = torch.arange(n) >= n - lens[:, None]",
        "order = (torch.arange(n) + n - lens[:, None]) % n",
    ),
}

#: What a slot is -> in words, code of what it is divided by.
_SLOTS = {
    "sum": ("A slot is the sum that the matrix says", "torch.ones(len(lens))"),
    "mean": (
        "A slot is the sum that the matrix says, divided by the length `lens[b]`",
        "lens.clamp_min(1)",
    ),
    "root": (
        "A slot is the sum that the matrix says, divided by the square root of the "
        "length `lens[b]`",
        "lens.clamp_min(1).sqrt()",
    ),
}


def _padded(
    p: Parameters, query: Tensor, key: Tensor, value: Tensor, E: Tensor, F_: Tensor, lens: Tensor
) -> Tensor:
    """Item by item, each cut to its text."""
    items = []
    n = key.shape[1]
    for q, k, v, length in zip(query, key, value, lens.tolist(), strict=True):
        text = slice(0, length) if p["place"] == "end" else slice(n - length, n)
        columns = slice(0, length) if p["place"] == "front, first columns" else text
        size = length or 1
        by = {"sum": 1.0, "mean": size, "root": size**0.5}[p["slots"]]
        by_values = 1.0 if p.get("keys_only", False) else by
        slots, values = E[:, columns] @ k[text] / by, F_[:, columns] @ v[text] / by_values
        scores = q @ slots.T / q.shape[1] ** 0.5
        items.append(scores.softmax(1) @ values)
    return torch.stack(items)


def _batch(
    lens: list[int], n: int, k: int, seed: int, padding: float | None = None, front: bool = False
) -> dict[str, Any]:
    """Queries, keys, values and the two matrices; what is padding may be anything."""
    batch, m, d, c = len(lens), 3, 4, 2
    inputs = {
        "query": random(seed, batch, m, d),
        "key": random(seed + 1, batch, n, d),
        "value": 2 + random(seed + 2, batch, n, c),
        "E": random(seed + 3, k, n),
        "F_": random(seed + 4, k, n),
        "lens": torch.tensor(lens),
    }
    if padding is not None:
        place = torch.arange(n).expand(batch, n)
        ends = torch.tensor(lens)[:, None]
        outside = place < n - ends if front else place >= ends
        for name in ("key", "value"):
            inputs[name] = inputs[name].masked_fill(outside[..., None], padding)
    return inputs


_PADDED = Variant(
    varies="9.2",
    title="Padding <<where>> the text",
    shapes="queries, keys, values, E, F, and lengths `[batch]` → `[batch, m, c]`",
    stars=2,
    minutes=20,
    choices={"place": tuple(_PLACES), "slots": tuple(_SLOTS)},
    excluded=lambda p: p["place"] == "end" and p["slots"] == "sum",
    task="""
Write Linformer for a batch of texts of unequal lengths, without a loop over the batch. Item $b$
has `lens[b]` keys and values, perhaps none, and padding stands <<where>> them. What padding holds
must not matter.

Of $E$ and of $F$, an item meets <<columns>>. <<phrase>>; this holds for keys and values. With no
key at all, the answer is zero. Scores are divided by $\\sqrt d$, as ever.
""",
    stub='''
def padded(query: Tensor, key: Tensor, value: Tensor, E: Tensor,
           F_: Tensor, lens: Tensor) -> Tensor:
    """Linformer's attention, with padding <<where>> the text.

    Args:
        query: [batch, m, d]; all of them count.
        key: [batch, n, d].
        value: [batch, n, c].
        E: Makes slots of keys, [k, n].
        F_: Makes slots of values, [k, n].
        lens: How many keys and values count, [batch]; perhaps none.

    Returns:
        [batch, m, c].
    """
''',
    answer="""
n = key.shape[1]
<<real>>
<<order>>
item = torch.arange(len(lens))[:, None]
key = key.masked_fill(~real[..., None], 0)[item, order]
value = value.masked_fill(~real[..., None], 0)[item, order]
size = (<<size>>)[:, None, None]
slots, values = E @ key / size, F_ @ value / size
scores = query @ slots.mT / query.shape[-1] ** 0.5
return scores.softmax(-1) @ values
""",
    why="""
Padding is cleared before the projection, by writing zeros and not by multiplying; behind it no
slot is padding. Which columns a text meets is a decision about what $E$ has learned: its columns
belong to places, and a text whose places are counted from its own beginning has to be moved
there.
""",
    words=lambda p: {
        "where": _PLACES[p["place"]][0],
        "columns": _PLACES[p["place"]][1],
        "real": _PLACES[p["place"]][2],
        "order": _PLACES[p["place"]][3],
        "phrase": _SLOTS[p["slots"]][0],
        "size": _SLOTS[p["slots"]][1],
    },
    cases=(
        Case("texts of three lengths", _batch([6, 2, 4], 6, 3, 91)),
        Case("an item without keys", _batch([3, 0], 5, 2, 96)),
        Case("full rows", _batch([4, 4], 4, 6, 101)),
        Case("numbers of 1000 at the end", _batch([5, 2], 5, 3, 106, 1e3)),
        Case("numbers of 1000 in front", _batch([5, 2], 5, 3, 106, 1e3, front=True)),
    ),
    oracle=_padded,
    book=lambda **inputs: _padded({"place": "end", "slots": "sum"}, **inputs),
    slips=(
        Slip("the slots are not divided. <<phrase>>.", changed(_padded, slots="sum")),
        Slip(
            "the slots of the keys are divided, and not those of the values.",
            changed(_padded, keys_only=True),
        ),
        Slip(
            "padding is cleared at the end. It stands <<where>> the text.",
            changed(_padded, place="end"),
        ),
        Slip(
            "other columns of $E$ and $F$ meet the text: an item meets <<columns>>.",
            lambda p, **inputs: _padded(
                {
                    **p,
                    "place": {
                        "front, own columns": "front, first columns",
                        "front, first columns": "front, own columns",
                    }.get(p["place"], p["place"]),
                },
                **inputs,
            ),
        ),
    ),
)

# 9.5 ---------------------------------------------------------------------------------

#: Whose energy -> in words, code of the weights.
_MATRICES = {
    "causal": (
        "the weights of *causal* attention, $\\operatorname{softmax}(Q K^\\top / "
        "\\sqrt d)$ with every later "
        "key hidden",
        "ahead = torch.ones(n, n).triu(1).bool()\n"
        "weights = scores.masked_fill(ahead, -torch.inf).softmax(-1)",
    ),
    "queries": (
        "weights that sum to one over the *queries*, $\\operatorname{softmax}$ of $Q "
        "K^\\top / \\sqrt d$ along "
        "each column",
        "weights = scores.softmax(-2)",
    ),
    "rest": (
        "what attention adds to a plain average: the weights "
        "$\\operatorname{softmax}(Q K^\\top / \\sqrt d)$, "
        "less $1/n$ in each entry",
        "weights = scores.softmax(-1) - 1 / n",
    ),
}

#: How heads become one curve -> in words, code.
_CURVES = {
    "together": (
        "the energies of all heads are added up before they are divided, so that a "
        "head with much energy counts "
        "more",
        "squares.cumsum(-1).sum(0) / squares.sum()",
    ),
    "worst": (
        "for each number of directions the *smallest* of the heads' shares counts",
        "(squares.cumsum(-1) / squares.sum(-1, keepdim=True)).amin(0)",
    ),
}


def _energy(p: Parameters, query: Tensor, key: Tensor) -> Tensor:
    """From the eigenvalues of each head's weights times their transpose."""
    held, wholes = [], []
    for q, k in zip(query, key, strict=True):
        n, d = q.shape
        scores = q @ k.T / d**0.5
        weights = {
            "causal": scores.masked_fill(torch.ones(n, n).triu(1) > 0, -torch.inf).softmax(1),
            "queries": scores.softmax(0),
            "rest": scores.softmax(1) - 1 / n,
            "book": scores.softmax(1),
        }[p["matrix"]]
        squares = torch.linalg.eigvalsh(weights @ weights.T).flip(0).clamp_min(0)
        if p.get("unsquared", False):
            squares = squares.sqrt()
        held.append(squares.cumsum(0))
        wholes.append(squares.sum())
    sums, whole = torch.stack(held), torch.stack(wholes)
    if p["curve"] == "together":
        return sums.sum(0) / whole.sum()
    shares = sums / whole[:, None]
    return shares.mean(0) if p["curve"] == "book" else shares.min(0).values


def _heads(heads: int, n: int, d: int, seed: int) -> dict[str, Any]:
    """Heads of unequal sharpness."""
    sharp = torch.arange(1.0, heads + 1)[:, None, None]
    return {"query": sharp * random(seed, heads, n, d), "key": random(seed + 1, heads, n, d)}


_SPECTRA = Variant(
    varies="9.5",
    title="Another spectrum",
    shapes="queries and keys `[heads, n, d]` → `[n]`",
    stars=2,
    minutes=20,
    choices={"matrix": tuple(_MATRICES), "curve": tuple(_CURVES)},
    task="""
The first $k$ singular values of a matrix hold the share $\\sum_{r \\le k} \\sigma_r^2 / \\sum_r
\\sigma_r^2$ of its energy. Take <<matrix_words>>. Write `energy`: the shares that the first 1, 2,
..., $n$ directions hold, as one curve for all heads, in which <<curve_words>>.

Afterwards, plot your curve and the book's for 4 heads of 64 random positions with 8 columns, and
say in two sentences why they differ.
""",
    stub='''
def energy(query: Tensor, key: Tensor) -> Tensor:
    """The share of the energy in the first directions.

    Args:
        query: [heads, n, d].
        key: [heads, n, d].

    Returns:
        One curve for all heads, [n].
    """
''',
    answer="""
n = query.shape[1]
scores = query @ key.mT / query.shape[-1] ** 0.5     # [heads, n, n]
<<weights>>
squares = torch.linalg.svdvals(weights) ** 2         # [heads, n]
return <<code>>
""",
    why="""
Energy is a sum of squares, and what multiplies the values are the weights. A plain average is one
direction that all rows share: weights that are close to it look easy to compress, and what they
add to it need not be. How heads become one curve is a choice as well, and each choice answers
another question.
""",
    words=lambda p: {
        "matrix_words": _MATRICES[p["matrix"]][0],
        "weights": _MATRICES[p["matrix"]][1],
        "curve_words": _CURVES[p["curve"]][0],
        "code": _CURVES[p["curve"]][1],
    },
    cases=(
        Case("three heads", _heads(3, 6, 2, 111)),
        Case("more columns than positions", _heads(2, 4, 8, 113)),
        Case("as many heads as positions", _heads(5, 5, 3, 115)),
    ),
    oracle=_energy,
    book=lambda query, key: _energy({"matrix": "book", "curve": "book"}, query, key),
    slips=(
        Slip(
            "singular values are not squared: energy is a sum of squares.",
            changed(_energy, unsquared=True),
        ),
        Slip(
            "the weights are those of the book. Take <<matrix_words>>.",
            changed(_energy, matrix="book"),
        ),
        Slip(
            "the heads' shares are averaged. Here <<curve_words>>.", changed(_energy, curve="book")
        ),
    ),
)

VARIANTS = (_PADDED, _SPECTRA)
