"""Variants of chapter 8's exercises."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Case
from attn_course.exercises.variants.variant import Parameters, Slip, Variant, changed, random

# 8.4 ---------------------------------------------------------------------------------

#: What a path says -> in words, code of the line that decides it.
_RULES = {
    "every step": (
        "each step that is not blank says its class, and repetitions are kept: 1 1 "
        "blank 1 says 1 1 1",
        "said = [k for k in path if k != blank]",
    ),
    "blanks first": (
        "blanks are struck out first, and repetitions then: 1 1 blank 1 2 says 1 2",
        "heard = [k for k in path if k != blank]\nsaid = [k for k, _ in itertools.groupby(heard)]",
    ),
    "held": (
        "a run of equal steps says its class once if it is at least *two* steps "
        "long, and nothing if it "
        "is one step long; then blanks are struck out: 1 1 2 blank 3 3 3 says 1 3",
        "runs = [(k, len(list(run))) for k, run in itertools.groupby(path)]\n"
        "said = [k for k, length in runs if k != blank and length > 1]",
    ),
}


def _says(p: Parameters, path: tuple[int, ...], blank: int) -> list[int]:
    """Step by step, with the length of the run so far and the last character."""
    said: list[int] = []
    run, last = 0, blank
    for t, k in enumerate(path):
        run = run + 1 if t > 0 and path[t - 1] == k else 1
        new = {"every step": True, "blanks first": k != last, "held": run == 2, "book": run == 1}
        if k != blank:
            last = k
            said += [k] if new[p["rule"]] else []
    return said


def _probability(p: Parameters, probs: Tensor, label: list[int]) -> Tensor:
    steps, classes = probs.shape
    blank = classes - 1 if p["blank"] == "last" else 0
    total = torch.zeros((), dtype=torch.float64)
    for path in itertools.product(range(classes), repeat=steps):
        if _says(p, path, blank) == label:
            total = total + probs[range(steps), path].prod()
    return total


def _spoken(steps: int, classes: int, label: list[int], seed: int) -> dict[str, Any]:
    return {"probs": random(seed, steps, classes).softmax(1), "label": label}


_CTC = Variant(
    varies="8.4",
    title="What a path says, by another rule",
    shapes="probabilities `[steps, classes]` and a label → a number",
    stars=2,
    minutes=20,
    choices={"rule": tuple(_RULES), "blank": ("first", "last")},
    task="""
A recogniser gives at each step probabilities of the classes; the <<blank>> class is the blank. A
path takes one class a step. What it says follows another rule than CTC's: <<phrase>> (with a
blank written out, and classes as numbers).

A text is as probable as all the paths together that say it. Write `probability`, by walking every
path there is. Use no function of the package or of PyTorch that knows CTC; gradients must flow
through the probabilities.
""",
    stub='''
def probability(probs: Tensor, label: list[int]) -> Tensor:
    """How probable it is that a recogniser says a label.

    Args:
        probs: p_t(k), [steps, classes]; the <<blank>> class is the blank.
        label: Classes, none of them the blank; it may be empty.

    Returns:
        A number.
    """
''',
    answer="""
steps, classes = probs.shape
blank = <<index>>
total = torch.zeros((), dtype=probs.dtype)
for path in itertools.product(range(classes), repeat=steps):
    <<code>>
    if said == label:
        total = total + probs[range(steps), list(path)].prod()
return total
""",
    why="""
Products along a path, since all of its steps have to come true; a sum over paths, since only one
of them can. The rule decides which paths say the same, and each rule has texts that it cannot
write, or cannot write in few steps: the question to ask of any rule is what *1 1* costs.
""",
    words=lambda p: {
        "phrase": _RULES[p["rule"]][0],
        "code": _RULES[p["rule"]][1],
        "index": 0 if p["blank"] == "first" else "classes - 1",
    },
    cases=(
        Case("two characters", _spoken(4, 4, [1, 2], 81)),
        Case("a doubled character", _spoken(5, 3, [1, 1], 82)),
        Case("an empty text", _spoken(3, 3, [], 83)),
        Case("a text that needs all steps", _spoken(4, 4, [1, 1], 84)),
        Case("more characters than steps", _spoken(2, 3, [1, 1, 1], 85)),
    ),
    oracle=_probability,
    book=lambda probs, label: _probability({"rule": "book", "blank": "first"}, probs, label),
    slips=(
        Slip(
            "what a path says is decided by CTC's rule: repetitions first, then blanks.",
            changed(_probability, rule="book"),
        ),
        Slip(
            "another class is taken for the blank: it is the <<blank>> one.",
            lambda p, probs, label: _probability(
                {**p, "blank": "first" if p["blank"] == "last" else "last"}, probs, label
            ),
        ),
    ),
)

# 8.5 ---------------------------------------------------------------------------------

#: Shape of the sequence -> in words, code of which keys there are.
_ENDS = {
    "line": ("as far as they exist", "there = (key >= 0) & (key < n)"),
    "ring": (
        "where the sequence is a ring: after the last key comes key 0, and before key 0 the last",
        "key, there = key % n, torch.ones(n, dtype=torch.bool)",
    ),
}


def _sliding(p: Parameters, n: int, window: int, dilation: int) -> Tensor:
    """Pair by pair."""
    table = torch.zeros(n, n)
    ahead = window if p["ahead"] == "book" else p["ahead"]
    for i in range(n):
        for s in range(-window, ahead + 1):
            j = i + s * dilation
            if p["ends"] == "ring":
                j %= n
            if 0 <= j < n:
                table[i, j] = 1
    return table


_WINDOW = Variant(
    varies="8.5",
    title="A window on a <<ends>>, unequally wide",
    shapes="sizes → booleans `[n, n]`",
    stars=2,
    minutes=15,
    choices={"ahead": (0, 1, 2), "ends": tuple(_ENDS)},
    task="""
`True` means *may attend*; rows are queries, columns are keys. Query $i$ sees the keys $i + s\\,r$
for all whole $s$ from $-w$ to $<<ahead>>$, <<phrase>>. $w$ is the window, in steps, and $r$ the
dilation, the positions of a step.

Afterwards, say in two sentences how far a step hears, backwards and ahead, through four layers of
such windows with $w = 3$ and $r = 1$, if the sequence is long.
""",
    stub='''
def sliding(n: int, window: int, dilation: int) -> Tensor:
    """Who sees whom: a window backwards, <<ahead>> ahead, on a <<ends>>.

    Args:
        n: Steps of the sequence.
        window: Steps that are seen backwards, w.
        dilation: Positions of a step, r.

    Returns:
        Booleans [n, n].
    """
''',
    answer="""
seen = torch.zeros(n, n, dtype=torch.bool)
query = torch.arange(n)
for s in range(-window, <<ahead>> + 1):
    key = query + s * dilation
    <<code>>
    seen[query[there], key[there]] = True
return seen
""",
    why="""
Reaches add up, each side for itself: through four layers 12 steps backwards and <<four>> ahead.
On a ring several $s$ may meet the same key, which is seen once; a mask says whether, and not how
often.
""",
    words=lambda p: {
        "phrase": _ENDS[p["ends"]][0],
        "code": _ENDS[p["ends"]][1],
        "four": 4 * p["ahead"],
    },
    booleans=True,
    cases=(
        Case("a window of three", {"n": 9, "window": 3, "dilation": 1}),
        Case("a dilation of two", {"n": 11, "window": 2, "dilation": 2}),
        Case("a window wider than the sequence", {"n": 4, "window": 5, "dilation": 1}),
        Case("no step backwards", {"n": 6, "window": 0, "dilation": 3}),
        Case("one step", {"n": 1, "window": 2, "dilation": 1}),
    ),
    oracle=_sliding,
    book=lambda n, window, dilation: _sliding(
        {"ahead": "book", "ends": "line"}, n, window, dilation
    ),
    slips=(
        Slip(
            "a query sees as far ahead as backwards. Ahead it is <<ahead>>.",
            changed(_sliding, ahead="book"),
        ),
        Slip(
            "the window reaches forwards and not backwards: what has a row, and what a column?",
            lambda p, **inputs: _sliding(p, **inputs).T,
        ),
        Slip("the sequence ends in it. Here it is a ring.", changed(_sliding, ends="line")),
        Slip("the sequence is a ring in it. Here it ends.", changed(_sliding, ends="ring")),
    ),
)

VARIANTS = (_CTC, _WINDOW)
