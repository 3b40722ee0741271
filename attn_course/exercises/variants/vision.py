"""Variants of chapter 7's exercises."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Case
from attn_course.exercises.variants.variant import Parameters, Slip, Variant, changed, random

# 7.1 ---------------------------------------------------------------------------------

#: From patch to patch -> in words, code of the step down and of the step to the right.
_STEPS = {
    "half": (
        "overlap by half: from one to the next it is `rows // 2` pixels down and "
        "`columns // 2` to the "
        "right (both sizes are even). A patch that would reach over the edge does not exist",
        "rows // 2, columns // 2",
    ),
    "whole": ("touch and do not overlap", "rows, columns"),
}

#: Order of the patches -> in words, axes.
_NUMBERED = {
    "rows": ("row by row, from the top left", "2, 3"),
    "columns": ("column by column: down the left edge first", "3, 2"),
}

#: Order of the numbers in a patch -> in words, axes.
_INSIDE = {
    "pixels": (
        "pixel after pixel, row by row, each with all of its channels together",
        "4, 5, 1",
    ),
    "transposed": ("channel after channel, each column by column, from its top", "1, 5, 4"),
}


def _patches(p: Parameters, images: Tensor, rows: int, columns: int) -> Tensor:
    """Number by number."""
    _, channels, height, width = images.shape
    down, right = (rows, columns) if p["step"] == "whole" else (rows // 2, columns // 2)
    tops, lefts = range(0, height - rows + 1, down), range(0, width - columns + 1, right)
    corners = list(itertools.product(tops, lefts))
    if p["numbered"] == "columns":
        corners.sort(key=lambda corner: corner[1])
    places = list(itertools.product(range(channels), range(rows), range(columns)))
    if p["inside"] == "pixels":
        places.sort(key=lambda place: place[1:])
    elif p["inside"] == "transposed":
        places.sort(key=lambda place: (place[0], place[2]))
    tokens = [
        torch.stack([images[:, c, top + i, left + j] for c, i, j in places], 1)
        for top, left in corners
    ]
    return torch.stack(tokens, 1)


def _images(
    batch: int, channels: int, height: int, width: int, rows: int, columns: int
) -> dict[str, Any]:
    images = torch.arange(float(batch * channels * height * width))
    shape = (batch, channels, height, width)
    return {"images": images.reshape(shape), "rows": rows, "columns": columns}


_PATCHES = Variant(
    varies="7.1",
    title="Patches that <<verb>>",
    shapes="images `[batch, channels, height, width]` → `[batch, patches, numbers of a patch]`",
    stars=1,
    minutes=15,
    choices={"step": tuple(_STEPS), "numbered": tuple(_NUMBERED), "inside": tuple(_INSIDE)},
    task="""
Cut images into patches of `rows` by `columns` pixels, which <<step_words>>. Patches are numbered
<<numbered_words>>. Within a patch the numbers come <<inside_words>>. Height and width are
multiples of those of a patch. Write it without a loop over pixels.
""",
    stub='''
def patches(images: Tensor, rows: int, columns: int) -> Tensor:
    """Cut images into patches.

    Args:
        images: [batch, channels, height, width].
        rows: Height of a patch.
        columns: Its width.

    Returns:
        [batch, number of patches, channels * rows * columns].
    """
''',
    answer="""
down, right = <<steps>>
x = images.unfold(2, rows, down).unfold(3, columns, right)
# batch, channel, row and column of patches, row and column within
return x.permute(0, <<which>>, <<where>>).flatten(3).flatten(1, 2)
""",
    why="""
`unfold` answers the two questions of exercise 7.1 at once: *which patch*, axes 2 and 3, and
*where in it*, axes 4 and 5. It copies nothing, so patches may overlap. The order of the axes is
then the order that is asked for, from what varies slowest to what varies fastest.
""",
    words=lambda p: {
        "verb": "overlap" if p["step"] == "half" else "touch",
        "step_words": _STEPS[p["step"]][0],
        "steps": _STEPS[p["step"]][1],
        "numbered_words": _NUMBERED[p["numbered"]][0],
        "which": _NUMBERED[p["numbered"]][1],
        "inside_words": _INSIDE[p["inside"]][0],
        "where": _INSIDE[p["inside"]][1],
    },
    # An image that is not square comes first: there, no exchange of sides goes unseen.
    cases=(
        Case("a wide image", _images(2, 3, 4, 12, 2, 4)),
        Case("a square image", _images(1, 2, 8, 8, 4, 4)),
        Case("one patch", _images(2, 3, 4, 2, 4, 2)),
        Case("one channel", _images(1, 1, 6, 4, 2, 2)),
    ),
    oracle=_patches,
    book=lambda images, rows, columns: _patches(
        {"step": "whole", "numbered": "rows", "inside": "book"}, images, rows, columns
    ),
    slips=(
        Slip(
            "the numbers of a patch are in the book's order. They should come <<inside_words>>.",
            changed(_patches, inside="book"),
        ),
        Slip(
            "patches are numbered the other way: <<numbered_words>>.",
            lambda p, images, rows, columns: _patches(
                {**p, "numbered": "rows" if p["numbered"] == "columns" else "columns"},
                images,
                rows,
                columns,
            ),
        ),
    ),
)

# 7.4 ---------------------------------------------------------------------------------

#: How heads are joined -> in words, code.
_JOINED = {
    "largest": ("the largest of its heads' weights", "weights.amax(1)"),
    "smallest": ("the smallest of its heads' weights", "weights.amin(1)"),
    "product": ("the product of its heads' weights", "weights.prod(1)"),
}


def _rollout(p: Parameters, weights: Tensor) -> Tensor:
    """The whole product, matrix by matrix."""
    n = weights.shape[-1]
    total = torch.eye(n, dtype=torch.float64)
    for layer in weights.double():
        joined = {
            "largest": layer.max(0).values,
            "smallest": layer.min(0).values,
            "product": layer.log().sum(0).exp(),
            "mean": layer.mean(0),
        }[p["heads"]]
        if p.get("again", True):
            joined = joined / joined.sum(1, keepdim=True)
        mixed = p["kept"] * torch.eye(n) + (1 - p["kept"]) * joined
        total = total @ mixed if p.get("upside_down", False) else mixed @ total
    return total[0 if p["asked"] == "class token" else n - 1]


def _layers(layers: int, heads: int, n: int, seed: int) -> dict[str, Any]:
    return {"weights": (1.5 * random(seed, layers, heads, n, n)).softmax(3)}


_ROLLOUT = Variant(
    varies="7.4",
    title="Another rollout",
    shapes="weights `[layers, heads, n, n]` → `[n]`",
    stars=2,
    minutes=20,
    choices={
        "kept": (0.2, 0.3, 0.6, 0.75),
        "heads": tuple(_JOINED),
        "asked": ("class token", "last token"),
    },
    task="""
What did the <<asked>> read, through all layers? Take it that in each layer a token keeps a share
of <<kept>> of what it was, and that the rest is what it read. For $A_l$ take, entry by entry,
<<phrase>>, and divide each row by its sum. Then

$$
\\tilde A_l = <<kept>>\\, I + <<rest>>\\, A_l , \\qquad
R = \\tilde A_L \\cdots \\tilde A_2\\, \\tilde A_1 ,
$$

and the answer is the row of $R$ that belongs to the <<asked>>. Compute it without a product of
two matrices. All weights are above 0.
""",
    stub='''
def rollout(weights: Tensor) -> Tensor:
    """How much of each input is in the <<asked>>, by rollout.

    Args:
        weights: [layers, heads, n, n], from the first layer up; rows sum
            to one; token 0 is the class token.

    Returns:
        [n].
    """
''',
    answer="""
joined = <<code>>  # [layers, n, n]
joined = joined / joined.sum(-1, keepdim=True)
mixed = <<kept>> * torch.eye(joined.shape[-1]) + <<rest>> * joined
row = mixed[-1, <<index>>]
for layer in mixed[:-1].flip(0):
    row = row @ layer
return row
""",
    why="""
The last layer is read first, so it stands on the left, and its row of the <<asked>> is where the
product begins: $L - 1$ times a row and a matrix. Rows that were joined by anything but a mean no
longer sum to one; divided by their sums, what is handed on is shared out again, and not made.
""",
    words=lambda p: {
        "phrase": _JOINED[p["heads"]][0],
        "code": _JOINED[p["heads"]][1],
        "rest": f"{1 - p['kept']:.2g}",
        "index": 0 if p["asked"] == "class token" else -1,
    },
    cases=(
        Case("three layers", _layers(3, 2, 5, 71)),
        Case("one layer", _layers(1, 3, 4, 72)),
        Case("one head", _layers(4, 1, 3, 73)),
    ),
    oracle=_rollout,
    book=lambda weights: _rollout({"kept": 0.5, "heads": "mean", "asked": "class token"}, weights),
    slips=(
        Slip(
            "the rows are not divided by their sums after the heads were joined.",
            changed(_rollout, again=False),
        ),
        Slip("a token keeps half of what it was, and not <<kept>>.", changed(_rollout, kept=0.5)),
        Slip(
            "the layers are multiplied in the other order: which one is read first?",
            changed(_rollout, upside_down=True),
        ),
        Slip("the heads are averaged. For $A_l$ take <<phrase>>.", changed(_rollout, heads="mean")),
    ),
)

VARIANTS = (_PATCHES, _ROLLOUT)
