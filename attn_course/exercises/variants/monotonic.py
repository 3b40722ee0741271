"""Variants of chapter 10's exercises."""

from __future__ import annotations

import torch
from torch import Tensor

from attn_course.exercises.framework import Case
from attn_course.exercises.variants.variant import Parameters, Slip, Variant, changed

# 10.1 --------------------------------------------------------------------------------

#: A third kind of step -> in words, how far it goes.
_EXTRA = {
    "diagonal": ("one down and one to the right at once, to $(i + 1, j + 1)$", (1, 1)),
    "leap": ("two to the right at once, to $(i, j + 2)$", (0, 2)),
    "drop": ("two down at once, to $(i + 2, j)$", (2, 0)),
    "knight": ("one down and two to the right at once, to $(i + 1, j + 2)$", (1, 2)),
}

#: A node that is shut.
_SHUT = {"(1, 1)": (1, 1), "(0, 2)": (0, 2), "(2, 0)": (2, 0)}


def _paths(p: dict[str, str], i: int, j: int) -> int:
    """Paths from (0, 0) to (i, j), by asking where they came from."""
    if i < 0 or j < 0 or (i, j) == _SHUT.get(p["shut"]):
        return 0
    if i == j == 0:
        return 1
    steps = [(1, 0), (0, 1)] + ([_EXTRA[p["extra"]][1]] if p["extra"] in _EXTRA else [])
    return sum(_paths(p, i - down, j - right) for down, right in steps)


def _count(p: Parameters, rows: int, columns: int) -> Tensor:
    return torch.tensor(float(_paths(dict(p), rows - 1, columns - 1)))


_COUNT = Variant(
    varies="10.1",
    title="Count other paths",
    shapes="rows and columns → a number",
    stars=1,
    minutes=15,
    choices={"extra": tuple(_EXTRA), "shut": tuple(_SHUT)},
    task="""
How many paths lead from the first node, $(0, 0)$, to the far corner, $(I - 1, J - 1)$? From $(i,
j)$ a path may go to $(i, j + 1)$, to $(i + 1, j)$, or <<phrase>>; never out of the grid. The node
<<shut>> is shut: no path may stand on it (a step may pass over it). If it is the corner itself,
there is no path. The check tries grids of up to 7 by 7; write it so that it would do for 30 by 30
in a second.
""",
    stub='''
def count_many(rows: int, columns: int) -> int:
    """Paths to the far corner, with a third kind of step and a shut node.

    Args:
        rows: I, at least 1.
        columns: J, at least 1.
    """
''',
    answer="""
paths = [[0] * columns for _ in range(rows)]
paths[0][0] = 1
for i in range(rows):
    for j in range(columns):
        for down, right in ((1, 0), (0, 1), (<<down>>, <<right>>)):
            if i >= down and j >= right:
                paths[i][j] += paths[i - down][j - right]
        if (i, j) == <<shut>>:
            paths[i][j] = 0
return paths[-1][-1]
""",
    why="""
With a third step no binomial coefficient counts the paths; the recurrence does, node by node: as
many paths come to a node as to all the nodes before it together. A shut node hands on nothing.
""",
    words=lambda p: {
        "phrase": _EXTRA[p["extra"]][0],
        "down": _EXTRA[p["extra"]][1][0],
        "right": _EXTRA[p["extra"]][1][1],
    },
    cases=(
        Case("four rows, five columns", {"rows": 4, "columns": 5}),
        Case("six rows, four columns", {"rows": 6, "columns": 4}),
        Case("one node", {"rows": 1, "columns": 1}),
        Case("one row", {"rows": 1, "columns": 5}),
        Case("one column", {"rows": 5, "columns": 1}),
        Case("a square of two", {"rows": 2, "columns": 2}),
        Case("a square of seven", {"rows": 7, "columns": 7}),
    ),
    oracle=_count,
    book=lambda rows, columns: _count({"extra": "none", "shut": "none"}, rows, columns),
    slips=(
        Slip("the third kind of step is missing: <<phrase>>.", changed(_count, extra="none")),
        Slip("paths stand on the node <<shut>>, which is shut.", changed(_count, shut="none")),
        Slip(
            "rows and columns are not the numbers of steps: from the first of 4 rows to "
            "the last there are 3.",
            lambda p, rows, columns: _count(p, rows + 1, columns + 1),
        ),
    ),
)

# 10.2 --------------------------------------------------------------------------------

#: Steps of p and of q, as (down, right).
_STEPS = {
    "right, diagonal": ((0, 1), (1, 1)),
    "leap, down": ((0, 2), (1, 0)),
    "right, drop": ((0, 1), (2, 0)),
    "knight, down": ((1, 2), (1, 0)),
    "down, right": ((1, 0), (0, 1)),
}

#: Where a path begins -> in words, code.
_STARTS = {
    "corner": ("at $(0, 0)$", "phi[0, 0] = 1"),
    "row": (
        "in the first row, at each of its $J$ nodes with the same probability $1/J$",
        "phi[0] = 1 / columns",
    ),
}


def _visit(setting: Parameters, p: Tensor) -> Tensor:
    """Forwards: each node hands on what it has."""
    rows, columns = p.shape
    phi = torch.zeros_like(p)
    if setting["start"] == "row":
        phi[0] = 1 / columns
    else:
        phi[0, 0] = 1
    first, second = ((0, 1), (1, 0)) if setting["steps"] == "book" else _STEPS[setting["steps"]]
    for i in range(rows):
        for j in range(columns):
            for (down, right), share in ((first, p[i, j]), (second, 1 - p[i, j])):
                if i + down < rows and j + right < columns:
                    phi[i + down, j + right] += phi[i, j] * share
    return phi


def _place(i: str, back: int) -> str:
    return f"{i} - {back}" if back else i


def _term(step: tuple[int, int], share: str) -> str:
    """The lines that collect what comes by one kind of step."""
    down, right = step
    before = f"{_place('i', down)}, {_place('j', right)}"
    inside = [f"{name} >= {back}" for name, back in (("i", down), ("j", right)) if back]
    return f"if {' and '.join(inside)}:\n    phi[i, j] += phi[{before}] * {share.format(before)}"


def _node(step: tuple[int, int]) -> str:
    down, right = step
    return f"(i{f' + {down}' if down else ''}, j{f' + {right}' if right else ''})"


_VISIT = Variant(
    varies="10.2",
    title="Another walk",
    shapes="p `[I, J]` → φ `[I, J]`",
    stars=2,
    minutes=20,
    choices={"steps": tuple(_STEPS), "start": tuple(_STARTS)},
    task="""
A path begins <<phrase>>. From $(i, j)$ it goes to $<<first>>$ with probability $p_{ij}$, and to
$<<second>>$ with probability $1 - p_{ij}$. A step out of the grid ends it. $\\varphi_{ij}$ is the
probability that a path comes by $(i, j)$.

Derive the recurrence, write it down above your code, and write `visit_many`. Nothing need be
differentiated here. Afterwards, say in two sentences which entries of the table sum to 1, if any
do, and why.
""",
    stub='''
def visit_many(p: Tensor) -> Tensor:
    """Visit probabilities of this walk.

    Args:
        p: Probability of a step to <<first>>, [I, J].

    Returns:
        [I, J].
    """
''',
    answer="""
rows, columns = p.shape
phi = torch.zeros_like(p)
<<begin>>
for i in range(rows):
    for j in range(columns):
        <<one>>
        <<two>>
return phi
""",
    why="""
Into a node a path comes by one of two steps, never by both: the two add. Each is the probability
of having been at the node that the step *leaves*, times that node's coin. Places where a path can
be at one time, and only those, share a sum of 1, until some paths have left the grid.
""",
    words=lambda p: {
        "phrase": _STARTS[p["start"]][0],
        "begin": _STARTS[p["start"]][1],
        "first": _node(_STEPS[p["steps"]][0]),
        "second": _node(_STEPS[p["steps"]][1]),
        "one": _term(_STEPS[p["steps"]][0], "p[{}]"),
        "two": _term(_STEPS[p["steps"]][1], "(1 - p[{}])"),
    },
    cases=(
        Case("a square grid", {"p": torch.linspace(0.1, 0.9, 25).reshape(5, 5)}),
        Case("more rows than columns", {"p": torch.linspace(0.8, 0.2, 18).reshape(6, 3)}),
        Case("one row", {"p": torch.linspace(0.3, 0.7, 5).reshape(1, 5)}),
        Case("one column", {"p": torch.linspace(0.3, 0.7, 4).reshape(4, 1)}),
        Case("certain steps", {"p": torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])}),
    ),
    oracle=_visit,
    book=lambda p: _visit({"steps": "book", "start": "corner"}, p),
    slips=(
        Slip(
            "$p$ and $1 - p$ have changed places.",
            lambda setting, p: _visit(setting, 1 - p),
        ),
        Slip(
            "rows are divided by their sums. Is a path in one place of a row only, and "
            "in every row?",
            lambda setting, p: (
                _visit(setting, p) / _visit(setting, p).sum(1, keepdim=True).clamp_min(1e-30)
            ),
        ),
        Slip(
            "a path begins <<phrase>>, and here it begins elsewhere.",
            changed(_visit, start="corner"),
        ),
        Slip(
            "a path begins <<phrase>>, and here it begins elsewhere.", changed(_visit, start="row")
        ),
    ),
)

VARIANTS = (_COUNT, _VISIT)
