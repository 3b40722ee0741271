"""Variants of chapter 6's exercises."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Case
from attn_course.exercises.variants.variant import Parameters, Slip, Variant, changed, random

# 6.1 ---------------------------------------------------------------------------------


def _window_mask(p: Parameters, valid_lens: Tensor, length: int) -> Tensor:
    """Pair by pair."""
    tables = []
    for words in valid_lens.tolist():
        first = length - words if p["padding"] == "front" else 0
        table = torch.zeros(length, length)
        for i in range(length):
            for j in range(first, first + words):
                near = i - p["window"] < j <= i
                shared = j < first + p["shared"] and (j <= i or p.get("ahead", False))
                table[i, j] = near or shared
        tables.append(table)
    return torch.stack(tables)


def _lens(lens: list[int], length: int) -> dict[str, Any]:
    return {"valid_lens": torch.tensor(lens), "length": length}


_MASK = Variant(
    varies="6.1",
    title="A causal window with <<many>> that everybody keeps",
    shapes="lengths `[batch]` → booleans `[batch, length, length]`",
    stars=2,
    minutes=15,
    choices={"window": (2, 3, 4), "shared": (1, 2), "padding": ("end", "front")},
    task="""
A decoder for long texts keeps the last <<window>> tokens, and the first <<shared>> of each text,
which everybody after them may always see. So a token may look at itself, at the <<back>> before
it, and at the text's first <<shared>>; never at what comes after it, and nobody may look at
padding. Texts are padded at the <<padding>>: the <<where>> `valid_lens[b]` tokens of a row are
the text.

Write all of this into one mask. `True` means *may attend*; rows are queries, columns are keys. A
query that is padding follows the same rules, counted from its own place.
""",
    stub='''
def causal_mask(valid_lens: Tensor, length: int) -> Tensor:
    """Who may look at whom: a window of <<window>>, and the first <<shared>>.

    Args:
        valid_lens: How many tokens of each row are text, [batch].
        length: Tokens of a row, padding included.

    Returns:
        Booleans [batch, length, length].
    """
''',
    answer="""
key = torch.arange(length)
query = key[:, None]
first = <<first>>  # [batch]
first = first[:, None, None]
last = first + valid_lens[:, None, None]              # exclusive
near = key > query - <<window>>
shared = key < first + <<shared>>
text = (key >= first) & (key < last)
return (key <= query) & (near | shared) & text
""",
    why="""
Three rules, two joined by *or* and the result by *and*: near or shared, and not ahead, and text.
With padding in front the first token of the text is not token 0, and the causal rule no longer
hides padding by itself.
""",
    words=lambda p: {
        "many": "one token" if p["shared"] == 1 else "two tokens",
        "back": p["window"] - 1,
        "where": "first" if p["padding"] == "end" else "last",
        "first": (
            "torch.zeros_like(valid_lens)" if p["padding"] == "end" else "length - valid_lens"
        ),
    },
    booleans=True,
    cases=(
        Case("a text and a shorter one", _lens([7, 4], 7)),
        Case("three texts", _lens([9, 1, 6], 9)),
        Case("a row without text", _lens([0, 3], 5)),
        Case("one token", _lens([1], 1)),
    ),
    oracle=_window_mask,
    book=lambda valid_lens, length: _window_mask(
        {"window": length, "shared": 0, "padding": "end"}, valid_lens, length
    ),
    slips=(
        Slip(
            "the text's first <<shared>> can be seen from near alone.",
            changed(_window_mask, shared=0),
        ),
        Slip(
            "the window holds another number of keys: it is <<window>> with the token itself.",
            lambda p, **inputs: _window_mask({**p, "window": p["window"] + 1}, **inputs),
        ),
        Slip(
            "padding stands on the other side: the <<where>> tokens of a row are the text.",
            lambda p, **inputs: _window_mask(
                {**p, "padding": "end" if p["padding"] == "front" else "front"}, **inputs
            ),
        ),
        Slip(
            "a token that comes before the text's first <<shared>>, or among them, sees ahead.",
            changed(_window_mask, ahead=True),
        ),
    ),
)

# 6.2 ---------------------------------------------------------------------------------

#: Size of a group's numbers -> formula, code.
_SIZES = {
    "root mean square": (
        r"\sqrt{\tfrac1m \textstyle\sum_c x_c^2 + \varepsilon}",
        "((g**2).mean(-1, keepdim=True) + eps).sqrt()",
    ),
    "mean size": (
        r"\tfrac1m \textstyle\sum_c \lvert x_c \rvert + \varepsilon",
        "g.abs().mean(-1, keepdim=True) + eps",
    ),
    "largest": (
        r"\max_c \lvert x_c \rvert + \varepsilon",
        "g.abs().amax(-1, keepdim=True) + eps",
    ),
}


def _group_norm(p: Parameters, x: Tensor, eps: float) -> Tensor:
    """Group by group."""
    parts = []
    for part in x.chunk(p["groups"], 2):
        size = {
            "root mean square": (part.square().mean(2, keepdim=True) + eps).sqrt(),
            "mean size": part.abs().mean(2, keepdim=True) + eps,
            "largest": part.abs().max(2, keepdim=True).values + eps,
        }
        parts.append(part / size[p["size"]])
    return torch.cat(parts, 2)


def _dealt(groups: int, x: Tensor) -> Tensor:
    """Features in the order 0, groups, 2 groups, ..., 1, groups + 1, ..."""
    width = x.shape[2]
    return x[:, :, [c for first in range(groups) for c in range(first, width, groups)]]


def _layer_norm(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def _features(batch: int, length: int, dim: int, seed: int, eps: float) -> dict[str, Any]:
    return {"x": 1 + random(seed, batch, length, dim), "eps": eps}


_NORM = Variant(
    varies="6.2",
    title="A norm without a mean",
    shapes="tokens `[batch, len, dim]` → the same shape",
    stars=2,
    minutes=15,
    choices={"size": tuple(_SIZES), "groups": (2, 3)},
    task="""
No mean is taken off here. The features of each token fall into <<groups>> groups of $m = d /
<<groups>>$ neighbours, and each number is divided by the size of its group:

$$
\\hat x_c = x_c \\Big/ \\Bigl( <<formula>> \\Bigr), \\qquad c \\text{ in the group.}
$$

There is no gain and no shift. <<groups>> divides the width. Afterwards, say in two sentences what
the same number, added to all features of a token, does to this norm, and what it does to layer
normalisation.
""",
    stub='''
def layer_norm(x: Tensor, eps: float) -> Tensor:
    """Divide each of <<groups>> groups of a token's features by its size.

    Args:
        x: [batch, len, dim].
        eps: epsilon.

    Returns:
        [batch, len, dim].
    """
''',
    answer="""
g = x.unflatten(-1, (<<groups>>, -1))       # [batch, len, <<groups>>, dim / <<groups>>]
size = <<code>>
return (g / size).flatten(-2)
""",
    why="""
Layer normalisation takes such a number out with the mean, and does not notice it. Without the
mean it stays: it makes all sizes larger, and brings all features nearer to one and the same
value. The size is each group's own, and a token's own: no number of a neighbour is in it.
""",
    words=lambda p: {"formula": _SIZES[p["size"]][0], "code": _SIZES[p["size"]][1]},
    cases=(
        Case("as many sentences as tokens", _features(6, 6, 6, 61, 1e-5)),
        Case("a large epsilon", _features(2, 3, 12, 62, 0.5)),
        Case("one token", _features(1, 1, 6, 63, 1e-3)),
        Case("tokens of zeros", {"x": torch.zeros(1, 2, 6), "eps": 1e-2}),
    ),
    oracle=_group_norm,
    book=_layer_norm,
    slips=(
        Slip(
            "all features of a token are divided by one size. Each of the <<groups>> "
            "groups has its own.",
            changed(_group_norm, groups=1),
        ),
        Slip(
            "the mean is taken off first. Where does the formula say so?",
            lambda p, x, eps: _group_norm(p, (x - x.mean(-1, keepdim=True)), eps),
        ),
        Slip(
            "groups are made of features that lie <<groups>> apart, and not of neighbours.",
            lambda p, x, eps: _dealt(
                x.shape[2] // p["groups"], _group_norm(p, _dealt(p["groups"], x), eps)
            ),
        ),
    ),
)

VARIANTS = (_MASK, _NORM)
