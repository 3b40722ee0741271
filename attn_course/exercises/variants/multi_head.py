"""Variants of chapter 4's exercises."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Case
from attn_course.exercises.variants.variant import Parameters, Slip, Variant, changed

# 4.1 ---------------------------------------------------------------------------------

#: Which numbers of a token head h gets -> in words, and code that cuts the last axis.
_SHARES = {
    "in turn": (
        "The numbers are dealt out like cards: head $h$ gets numbers $h$, $h + H$, "
        "$h + 2H$, and so on",
        "x.reshape(batch, length, head_dim, num_heads).transpose(2, 3)",
    ),
    "last first": (
        "Head 0 gets the *last* slice of `head_dim` neighbouring numbers, head 1 the "
        "one before it, and "
        "so on; within a slice the numbers keep their order",
        "x.reshape(batch, length, num_heads, head_dim).flip(2)",
    ),
    "mirrored": (
        "Head $h$ gets the slice of `head_dim` numbers from $h \\cdot "
        "\\mathtt{head\\_dim}$ on, each "
        "slice written from its end to its beginning",
        "x.reshape(batch, length, num_heads, head_dim).flip(3)",
    ),
}

#: Order of the axes -> shape, and code that brings them there from [batch, len, heads, dim].
_ORDERS = {
    "batch": ("[batch, num_heads, len, head_dim]", "heads.transpose(1, 2)"),
    "heads": ("[num_heads, batch, len, head_dim]", "heads.permute(2, 0, 1, 3)"),
}


def _split(p: Parameters, x: Tensor, num_heads: int) -> Tensor:
    """Head by head, by lists of columns."""
    width = x.shape[2]
    dim = width // num_heads
    heads = []
    for h in range(num_heads):
        columns = {
            "in turn": range(h, width, num_heads),
            "last first": range(width - (h + 1) * dim, width - h * dim),
            "mirrored": reversed(range(h * dim, (h + 1) * dim)),
            "book": range(h * dim, (h + 1) * dim),
        }
        heads.append(x[:, :, list(columns[p["share"]])])
    return torch.stack(heads, 1 if p["order"] == "batch" else 0)


def _untransposed(p: Parameters, x: Tensor, num_heads: int) -> Tensor:
    """A reshape alone, to the shape that is asked for."""
    return x.reshape(_split(p, x, num_heads).shape)


def _tokens(batch: int, length: int, num_heads: int, dim: int) -> dict[str, Any]:
    x = torch.arange(float(batch * length * num_heads * dim))
    return {"x": x.reshape(batch, length, -1), "num_heads": num_heads}


_SPLIT = Variant(
    varies="4.1",
    title="Deal out a width",
    shapes="`[batch, len, width]` → `<<shape>>`",
    stars=1,
    minutes=10,
    choices={"share": tuple(_SHARES), "order": tuple(_ORDERS)},
    task="""
A layer with $H$ heads projects its tokens once, to `width = num_heads * head_dim` numbers each.
<<phrase>>. The result has the shape `<<shape>>`. Write it without a loop.
""",
    stub='''
def split(x: Tensor, num_heads: int) -> Tensor:
    """Give each head its numbers of every token.

    Args:
        x: [batch, len, num_heads * head_dim].
        num_heads: How many heads share the width, H.

    Returns:
        <<shape>>.
    """
''',
    answer="""
batch, length, width = x.shape
head_dim = width // num_heads
# [batch, len, num_heads, head_dim]
heads = <<cut>>
return <<turned>>
""",
    why="""
A reshape cuts an axis in the order in which numbers lie in memory: what varies fastest comes
last. So the cut has to name the axes in the order of the deal, and only then may they change
places.
""",
    words=lambda p: {
        "phrase": _SHARES[p["share"]][0],
        "cut": _SHARES[p["share"]][1],
        "shape": _ORDERS[p["order"]][0],
        "turned": _ORDERS[p["order"]][1],
    },
    cases=(
        Case("as many sentences as heads", _tokens(3, 4, 3, 5)),
        Case("two heads", _tokens(3, 5, 2, 4)),
        Case("one sentence", _tokens(1, 4, 2, 3)),
        Case("one head", _tokens(2, 3, 1, 4)),
    ),
    oracle=_split,
    book=lambda x, num_heads: _split({"share": "book", "order": "batch"}, x, num_heads),
    slips=(
        Slip(
            "the numbers stay in the order in which they lay, and are only counted off "
            "differently. "
            "Which axes must change places?",
            _untransposed,
        ),
        Slip(
            "heads get the slices of the book. <<phrase>>.",
            changed(_split, share="book"),
        ),
    ),
)

# 4.2 ---------------------------------------------------------------------------------

#: Which heads may look back alone -> in words, and code that tells it of a head's number.
_CAUSAL = {
    "first": ("Head 0 of each sentence", "head == 0"),
    "even": ("Heads 0, 2, 4, ... of each sentence", "head % 2 == 0"),
    "odd": ("Heads 1, 3, 5, ... of each sentence", "head % 2 == 1"),
    "last": ("The last head of each sentence", "head == num_heads - 1"),
}

#: Where the keys that count stand -> in words, code.
_SIDES = {
    "left": ("first", "key < lens"),
    "right": ("last", "key >= key_len - lens"),
}


def _mask_per_head(
    p: Parameters, valid_lens: Tensor, num_heads: int, query_len: int, key_len: int
) -> Tensor:
    """Pair by pair."""
    rows = []
    for h in range(num_heads):
        for length in valid_lens.tolist():
            back = {"first": h == 0, "even": h % 2 == 0, "odd": h % 2 == 1}
            back |= {"last": h == num_heads - 1, "none": False, "all": True}
            start, stop = (0, length) if p["side"] == "left" else (key_len - length, key_len)
            row = torch.zeros(query_len, key_len)
            for i in range(query_len):
                for j in range(start, stop):
                    row[i, j] = j <= i or not back[p["causal"]]
            rows.append(row)
    return torch.stack(rows)


def _sentence_by_sentence(
    p: Parameters, valid_lens: Tensor, num_heads: int, query_len: int, key_len: int
) -> Tensor:
    right = _mask_per_head(p, valid_lens, num_heads, query_len, key_len)
    by_head = right.reshape(num_heads, -1, query_len, key_len)
    return by_head.transpose(0, 1).flatten(0, 1)


def _lens(lens: list[int], num_heads: int, query_len: int, key_len: int) -> dict[str, Any]:
    sizes = {"num_heads": num_heads, "query_len": query_len, "key_len": key_len}
    return {"valid_lens": torch.tensor(lens), **sizes}


_MASKS = Variant(
    varies="4.2",
    title="Heads that see unequally much",
    shapes="lengths `[batch]` → booleans `[num_heads * batch, query_len, key_len]`",
    stars=2,
    minutes=15,
    choices={"causal": tuple(_CAUSAL), "side": tuple(_SIDES)},
    task="""
Heads were moved into the batch, head by head. With two heads the rows are sentence 0, head 0;
sentence 1, head 0; and so on; then sentence 0, head 1; sentence 1, head 1; and so on.

Make the mask: True = may attend. Of sentence $b$ the <<where>> `valid_lens[b]` keys count; the
others are padding, for all heads. <<phrase>> may moreover look back only, at keys $j \\le i$; the
other heads may look ahead as well.
""",
    stub='''
def mask_per_head(
    valid_lens: Tensor, num_heads: int, query_len: int, key_len: int
) -> Tensor:
    """Who may attend to what, for heads that were moved into the batch.

    Args:
        valid_lens: How many keys of a sentence count, [batch].
        num_heads: All sentences of head 0 come first.
        query_len: How many queries; all may attend.
        key_len: How many keys, padding included.

    Returns:
        Booleans, [num_heads * batch, query_len, key_len].
    """
''',
    answer="""
lens = valid_lens.repeat(num_heads)[:, None, None]
head = torch.arange(num_heads).repeat_interleave(len(valid_lens))
looks_back = (<<which>>)[:, None, None]
query = torch.arange(query_len)[:, None]
key = torch.arange(key_len)
return (<<inside>>) & ((key <= query) | ~looks_back)
""",
    why="""
With the heads in front the list of lengths is written again for each of them: `repeat`, where the
book's order wants `repeat_interleave`. The number of the head changes the other way round. Both
rules must hold, and a rule that does not concern a head is True there.
""",
    words=lambda p: {
        "phrase": _CAUSAL[p["causal"]][0],
        "which": _CAUSAL[p["causal"]][1],
        "where": _SIDES[p["side"]][0],
        "inside": _SIDES[p["side"]][1],
    },
    booleans=True,
    cases=(
        Case("three sentences, three heads", _lens([4, 1, 3], 3, 5, 5)),
        Case("more keys than queries", _lens([6, 2], 4, 3, 7)),
        Case("more queries than keys", _lens([2, 3], 2, 5, 3)),
        Case("a sentence without words", _lens([0, 2], 2, 3, 3)),
    ),
    oracle=_mask_per_head,
    book=lambda valid_lens, num_heads, query_len, key_len: _sentence_by_sentence(
        {"causal": "none", "side": "left"}, valid_lens, num_heads, query_len, key_len
    ),
    slips=(
        Slip(
            "rows are in the order of the book, all heads of a sentence together. Here "
            "all sentences "
            "of a head are together.",
            _sentence_by_sentence,
        ),
        Slip("no head looks back only. <<phrase>> should.", changed(_mask_per_head, causal="none")),
        Slip(
            "all heads look back only. Which of them should?", changed(_mask_per_head, causal="all")
        ),
        Slip(
            "padding stands on the other side: the <<where>> keys are those that count.",
            lambda p, **inputs: _mask_per_head(
                {**p, "side": "left" if p["side"] == "right" else "right"}, **inputs
            ),
        ),
    ),
)

VARIANTS = (_SPLIT, _MASKS)
