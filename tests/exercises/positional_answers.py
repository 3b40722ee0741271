"""Answers to chapter 5's exercises: wrong ones, as students write them, and right ones."""

import itertools
import math
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from attn_course.exercises import positional_cases as cases
from attn_course.exercises import positional_mistakes as mistakes
from attn_course.exercises import tl, triton
from attn_course.positional import rotate, rotation_matrix, sinusoid
from tests.exercises.answers import Table, new_answers

WRONG, RIGHT, wrong = new_answers()


# 5.1 ---------------------------------------------------------------------------------

sees = wrong("5.1", "is_equivariant")


def _close(one, other):
    return torch.allclose(one, other, atol=1e-5)


def _under(order):
    def test(attend, x):
        moved = x[order]
        return _close(attend(moved, moved, moved), attend(x, x, x)[order])

    return test


@sees("invariance", "this tests *in*variance")
def _(attend, x):
    moved = x[torch.randperm(len(x))]
    return _close(attend(moved, moved, moved), attend(x, x, x))


@sees("inverse permutation", "most likely the one is the inverse")
def _(attend, x):
    order = torch.randperm(len(x))
    moved = x[order]
    return _close(attend(moved, moved, moved), attend(x, x, x)[torch.argsort(order)])


@sees("put in order twice", "most likely the one is the inverse")
def _(attend, x):
    order = torch.randperm(len(x))
    moved = x[order]
    return _close(attend(moved, moved, moved)[order], attend(x, x, x))


@sees("matrix on one side, its transpose on the other", "most likely the one is the inverse")
def _(attend, x):
    matrix = torch.eye(len(x))[torch.randperm(len(x))]
    moved = matrix @ x
    return _close(attend(moved, moved, moved), matrix.T @ attend(x, x, x))


@sees("values unpermuted", "the values stay where they were")
def _(attend, x):
    order = torch.randperm(len(x))
    return _close(attend(x[order], x[order], x), attend(x, x, x)[order])


@sees("queries alone", "in one order as queries")
def _(attend, x):
    order = torch.randperm(len(x))
    return _close(attend(x[order], x, x), attend(x, x, x)[order])


@sees("keys and values alone", "in one order as queries")
def _(attend, x):
    order = torch.randperm(len(x))
    return _close(attend(x, x[order], x[order]), attend(x, x, x))


@sees("columns permuted", "a call gets other tokens")
def _(attend, x):
    order = torch.randperm(x.shape[1])
    moved = x[:, order]
    return _close(attend(moved, moved, moved), attend(x, x, x)[:, order])


@sees("the input never permuted", "the tokens in the same order")
def _(attend, x):
    order = torch.randperm(len(x))
    return _close(attend(x, x, x)[order], attend(x, x, x))


@sees("never asked", "`attend` is never called")
def _(attend, x):
    order = torch.randperm(len(x))
    return _close(x[order][order.argsort()], x)


sees("turned round", "turning the sequence round")(
    lambda attend, x: _under(range(9, -1, -1))(attend, x)
)
sees("flip", "turning the sequence round")(
    lambda attend, x: _close(attend(*[x.flip(0)] * 3), attend(x, x, x).flip(0))
)
sees("moved along", "moving the tokens along")(
    lambda attend, x: _close(attend(*[x.roll(1, 0)] * 3), attend(x, x, x).roll(1, 0))
)
sees("moved along by two", "moving the tokens along")(
    lambda attend, x: _close(attend(*[x.roll(2, 0)] * 3), attend(x, x, x).roll(2, 0))
)
sees("two exchanged", "tokens that change places in pairs")(
    lambda attend, x: _under([1, 0, *range(2, len(x))])(attend, x)
)


@sees("totals compared", "sums or means of outputs")
def _(attend, x):
    moved = x[torch.randperm(len(x))]
    return bool((attend(moved, moved, moved).sum() - attend(x, x, x).sum()).abs() < 1e-3)


@sees("means compared", "sums or means of outputs")
def _(attend, x):
    moved = x[torch.randperm(len(x))]
    return _close(attend(moved, moved, moved).mean(0), attend(x, x, x).mean(0))


@sees("bit for bit", "that is rounding")
def _(attend, x):
    order = torch.randperm(len(x))
    moved = x[order]
    return torch.equal(attend(moved, moved, moved), attend(x, x, x)[order])


@sees("two different orders", "most likely the one is the inverse")
def _(attend, x):
    one, other = torch.randperm(len(x)), torch.randperm(len(x))
    return _close(attend(x[one], x[one], x[one]), attend(x, x, x)[other])


@sees("the first output alone", "does not notice that order matters")
def _(attend, x):
    order = [0, *reversed(range(1, len(x)))]
    moved = x[order]
    return _close(attend(moved, moved, moved)[0], attend(x, x, x)[0])


@sees("a large tolerance", "it says the same of every mechanism")
def _(attend, x):
    order = torch.randperm(len(x))
    moved = x[order]
    return torch.allclose(attend(moved, moved, moved), attend(x, x, x)[order], atol=100)


sees("the other way round", "the other way round: True means")(
    lambda attend, x: not _under([4, 2, 7, 0, 9, 1, 3, 8, 5, 6])(attend, x)
)


@sees("one answer for each number", "returned a Tensor; expected True or False")
def _(attend, x):
    return torch.isclose(attend(x, x, x), attend(x, x, x))


@sees("no answer", "returned None")
def _(attend, x):
    _close(attend(x, x, x), attend(x, x, x))


@sees("changed in place", "it changes its argument `x`")
def _(attend, x):
    order = torch.randperm(len(x))
    before = attend(x, x, x)[order]
    x[:] = x[order]
    return _close(attend(x, x, x), before)


@sees("called with one argument", "your code raised TypeError")
def _(attend, x):
    order = torch.randperm(len(x))
    return _close(attend(x[order]), attend(x)[order])


sees("the second and the third exchanged", "tokens that change places in pairs")(
    lambda attend, x: _under([0, 2, 1, *range(3, len(x))])(attend, x)
)
sees("the first and the last exchanged", "tokens that change places in pairs")(
    lambda attend, x: _under([len(x) - 1, *range(1, len(x) - 1), 0])(attend, x)
)


@sees("the difference itself", "returned a Tensor; expected True or False")
def _(attend, x):
    order = torch.randperm(len(x))
    return (attend(x[order], x[order], x[order]) - attend(x, x, x)[order]).abs().max()


def equivariant_matrix(attend: Any, x: Any) -> Any:
    """A permutation matrix; a tensor of one boolean."""
    matrix = torch.eye(len(x))[torch.randperm(len(x), generator=torch.Generator().manual_seed(42))]
    moved = matrix @ x
    return (attend(moved, moved, moved) - matrix @ attend(x, x, x)).abs().max() < 1e-4


def equivariant_numpy(attend: Any, x: Any) -> Any:
    """Several orders, put back in place; a boolean of NumPy."""
    right = []
    for seed in range(3):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
        moved = x[order]
        right.append(_close(attend(moved, moved, moved)[order.argsort()], attend(x, x, x)))
    return np.all(right)


def equivariant_neighbours(attend: Any, x: Any) -> bool:
    """Exchanges of neighbours make all permutations: it is enough to try those."""
    orders = []
    for i in range(len(x) - 1):
        order = list(range(len(x)))
        order[i], order[i + 1] = i + 1, i
        orders.append(order)
    return all(_under(order)(attend, x) for order in orders)


def equivariant_shuffle(attend: Any, x: Any) -> bool:
    """Python's own shuffle, of other tokens than those given."""
    order = list(range(len(x)))
    random.Random(1).shuffle(order)
    return _under(order)(attend, torch.randn_like(x))


RIGHT["5.1"] = [
    ("a matrix", [equivariant_matrix]),
    ("three orders, put back", [equivariant_numpy]),
    ("all exchanges of neighbours", [equivariant_neighbours]),
    ("own tokens", [equivariant_shuffle]),
]


# 5.2 ---------------------------------------------------------------------------------

waves = wrong("5.2", "sinusoids")


def _angles(length, dim, base, first=0, power=1.0):
    position = torch.arange(first, first + length, dtype=torch.float64)
    exponent = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    return position[:, None] / base ** (power * exponent)


def _fill(length, dim, even, odd):
    table = torch.zeros(length, dim, dtype=torch.float64)
    table[:, 0::2], table[:, 1::2] = even, odd
    return table


def _waves(length, dim, base, **how):
    angle = _angles(length, dim, base, **how)
    return _fill(length, dim, angle.sin(), angle.cos())


waves("starts at one", "the first row is that of position 1")(lambda *g: _waves(*g, first=1))
waves("halved frequencies", "the exponents are halved")(lambda *g: _waves(*g, power=0.5))
waves("doubled exponents", "the exponents are doubled")(lambda *g: _waves(*g, power=2.0))
waves("multiplied", "later columns turn faster")(lambda *g: _waves(*g, power=-1.0))
waves("always 10,000", "the base is always 10,000")(lambda n, d, b: _waves(n, d, 10000.0))
waves("on its side", "the table lies on its side")(lambda *g: _waves(*g).T)


waves("one sine twice", "only sines, or only cosines")(
    lambda *g: _fill(*g[:2], _angles(*g).sin(), _angles(*g).sin())
)
waves("not divided by dim", "the exponents are whole numbers")(lambda *g: _waves(*g, power=g[1]))
waves("divided by //", "the exponents are whole numbers")(lambda *g: _waves(*g, power=0))
waves("pairs from 1", "pairs are counted from 1")(
    lambda length, dim, base: (lambda angle: _fill(length, dim, angle.sin(), angle.cos()))(
        _angles(length, dim, base) / base ** (2 / dim)
    )
)
waves("up to 1", "the exponents run up to 1")(
    lambda length, dim, base: _waves(length, dim, base, power=dim / max(dim - 2, 1))
)


@waves("halves", "sines stand in the first half")
def _(length, dim, base):
    angle = _angles(length, dim, base)
    return torch.cat([angle.sin(), angle.cos()], -1)


@waves("exchanged", "sine and cosine have changed places")
def _(length, dim, base):
    angle = _angles(length, dim, base)
    return _fill(length, dim, angle.cos(), angle.sin())


@waves("a frequency for each column", "each column has a frequency of its own")
def _(length, dim, base):
    angle = torch.arange(length)[:, None] / base ** (torch.arange(dim) / dim)
    return torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos())


@waves("half of the table", "returned shape [6, 3]; expected [6, 6]")
def _(length, dim, base):
    return _angles(length, dim, base).sin()


@waves("integers", "it returned int64")
def _(length, dim, base):
    return _waves(length, dim, base).long()


@waves("a list", "returned a list")
def _(length, dim, base):
    return _waves(length, dim, base).tolist()


def waves_loop(length: int, dim: int, base: float) -> Any:
    """Number by number, in Python."""
    rows = [
        [(math.cos if c % 2 else math.sin)(i / base ** (c // 2 * 2 / dim)) for c in range(dim)]
        for i in range(length)
    ]
    return torch.tensor(rows)


def waves_complex(length: int, dim: int, base: float) -> Any:
    """Powers of one complex number for each pair."""
    frequency = torch.exp(-math.log(base) * torch.arange(0, dim, 2) / dim)
    hand = torch.polar(torch.ones(dim // 2), frequency)
    powers = torch.stack([hand**i for i in range(length)])
    return torch.view_as_real(powers).flip(-1).flatten(1)


def waves_shifted(length: int, dim: int, base: float) -> Any:
    """A cosine is a sine, a quarter turn on."""
    column = torch.arange(dim)
    angle = torch.arange(length)[:, None] * base ** -((column - column % 2) / dim)
    return (angle + column % 2 * math.pi / 2).sin()


RIGHT["5.2"] = [
    ("number by number", [waves_loop]),
    ("complex powers", [waves_complex]),
    ("shifted sines", [waves_shifted]),
    ("the package", [lambda length, dim, base: sinusoid(length, dim, base=base)]),
]


# 5.3 ---------------------------------------------------------------------------------

moves = wrong("5.3", "shift_matrix")


def _turns(delta, dim, base):
    return delta * base ** (-torch.arange(0, dim, 2).double() / dim)


def _diagonal(turns, signs=(1, -1)):
    return torch.block_diag(
        *(
            torch.stack([t.cos(), signs[0] * t.sin(), signs[1] * t.sin(), t.cos()]).view(2, 2)
            for t in turns
        )
    )


def _encoding(i, dim, base):
    return sinusoid(1, dim, offset=max(i, 0), base=base, dtype=torch.float64)[0]


moves("sign", "it turns the wrong way")(lambda *g: _diagonal(_turns(*g), (-1, 1)))
moves("for rows, from the right", "it turns the wrong way")(
    lambda delta, dim, base: rotation_matrix(delta, dim, base=base).T
)
moves("a reflection", "this is a reflection")(lambda *g: _diagonal(_turns(*g), (1, 1)))
moves("the other reflection", "this is a reflection")(lambda *g: _diagonal(_turns(*g), (-1, -1)))
moves("one frequency", "all pairs turn alike")(
    lambda delta, dim, base: _diagonal(torch.full((dim // 2,), float(delta)))
)
moves("halved exponents", "halved, or doubled")(
    lambda delta, dim, base: _diagonal(_turns(delta, dim, base**0.5))
)
moves("doubled exponents", "halved, or doubled")(
    lambda delta, dim, base: _diagonal(_turns(delta, dim, base**2))
)
moves("delta forgotten", "it always moves by one position")(
    lambda delta, dim, base: _diagonal(_turns(1, dim, base))
)
moves("the angles", "returned shape [3]; expected [6, 6]")(_turns)


moves("identity", "nothing moves")(lambda delta, dim, base: torch.eye(dim))
moves("forward only", "whatever the sign of delta")(
    lambda delta, dim, base: _diagonal(_turns(abs(delta), dim, base))
)
moves("always 10,000", "the base is always 10,000")(
    lambda delta, dim, base: _diagonal(_turns(delta, dim, 10000.0))
)
moves("multiplied", "later pairs turn faster")(
    lambda delta, dim, base: _diagonal(_turns(delta, dim, 1 / base))
)
moves("only cosines", "the matrix is diagonal")(
    lambda *g: torch.diag(_turns(*g).cos().repeat_interleave(2))
)
moves("sines on the diagonal", "have changed places in the blocks")(
    lambda *g: _diagonal(math.pi / 2 - _turns(*g))
)
moves("sines on the diagonal, reflected", "have changed places in the blocks")(
    lambda *g: _diagonal(math.pi / 2 - _turns(*g), (1, 1))
)


def _wave(i, dim, base):
    angle = _turns(i, dim, base)
    return torch.stack([angle.sin(), angle.cos()], 1).flatten()


@moves("projected on position 0", "it depends on a position")
def _(delta, dim, base):
    before, after = _wave(0, dim, base), _wave(delta, dim, base)
    return torch.outer(after, before) / before.square().sum()


@moves("projected on position 2", "it depends on a position")
def _(delta, dim, base):
    before, after = _wave(2, dim, base), _wave(2 + delta, dim, base)
    return torch.outer(after, before) / (dim / 2)


@moves("divided number by number", "it depends on a position")
def _(delta, dim, base):
    return torch.diag(_wave(1 + delta, dim, base) / _wave(1, dim, base))


@moves("halves", "the wrong columns are paired")
def _(delta, dim, base):
    sin, cos = _turns(delta, dim, base).sin().diag(), _turns(delta, dim, base).cos().diag()
    return torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)])


def shift_fitted(delta: int, dim: int, base: float) -> Any:
    """Least squares over a table: what the rows leave no choice in."""
    i = range(100, 300)
    before = torch.stack([_wave(p, dim, base) for p in i])
    after = torch.stack([_wave(p + delta, dim, base) for p in i])
    return torch.linalg.lstsq(before, after).solution.T


def shift_power(delta: int, dim: int, base: float) -> Any:
    """One position, so many times."""
    one = _diagonal(_turns(1, dim, base))
    return torch.linalg.matrix_power(one, delta)


def shift_exponential(delta: int, dim: int, base: float) -> Any:
    """The exponential of a generator, in float32."""
    generator = torch.zeros(dim, dim)
    for j in range(dim // 2):
        generator[2 * j, 2 * j + 1] = base ** (-2 * j / dim)
        generator[2 * j + 1, 2 * j] = -(base ** (-2 * j / dim))
    return torch.linalg.matrix_exp(delta * generator)


RIGHT["5.3"] = [
    ("fitted", [shift_fitted]),
    ("a power", [shift_power]),
    ("an exponential", [shift_exponential]),
    ("the package", [lambda delta, dim, base: rotation_matrix(delta, dim, base=base)]),
]


# 5.4 ---------------------------------------------------------------------------------

turns = wrong("5.4", "turn")
rotary = wrong("5.4", "rotary_attention")


def _turned(x, base, sign=1, **how):
    angle = sign * _angles(*x.shape, base, **how).to(x.dtype)
    a, b = x[:, 0::2], x[:, 1::2]
    out = torch.empty_like(x)
    out[:, 0::2] = a * angle.cos() - b * angle.sin()
    out[:, 1::2] = a * angle.sin() + b * angle.cos()
    return out


def _by(x, angle):
    a, b, angle = x[:, 0::2], x[:, 1::2], angle.to(x.dtype)
    turned = a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()
    return torch.stack(turned, 2).flatten(1)


def _halves(x, base):
    return rotate(x, base=base, pairs="halves")


def _attention(query, key, value):
    return (query @ key.T / query.shape[1] ** 0.5).softmax(-1) @ value


turns("the other way", "it turns the wrong way")(lambda x, base: _turned(x, base, -1))
turns("halves", "columns j and j + d/2 are paired. Many")(_halves)
turns("starts at one", "as if it stood at position 1")(lambda x, b: _turned(x, b, first=1))
turns("one frequency", "all pairs turn alike")(lambda x, b: _turned(x, b, power=0.0))
turns("halved exponents", "halved, or doubled")(lambda x, b: _turned(x, b, power=0.5))
turns("doubled exponents", "halved, or doubled")(lambda x, b: _turned(x, b, power=2.0))
turns("always 10,000", "the base is always 10,000")(lambda x, b: _turned(x, 10000.0))
turns("added", "sinusoids are added. Here nothing")(lambda x, b: x + _waves(*x.shape, b))
turns("detached", "they have no gradient by `x`")(lambda x, b: _turned(x.detach(), b))


@turns("read as neighbours, written as halves", "taken from one place and put back in another")
def _(x, base):
    turned = _turned(x, base)
    return torch.cat([turned[:, 0::2], turned[:, 1::2]], 1)


@turns("read as halves, written as neighbours", "taken from one place and put back in another")
def _(x, base):
    return torch.stack(_halves(x, base).chunk(2, 1), 2).flatten(1)


@turns("overwritten", "the second formula gets what the first has computed")
def _(x, base):
    angle, out = _angles(*x.shape, base), x.clone()
    out[:, 0::2] = out[:, 0::2] * angle.cos() - out[:, 1::2] * angle.sin()
    out[:, 1::2] = out[:, 0::2] * angle.sin() + out[:, 1::2] * angle.cos()
    return out


@turns("overwritten in the other order", "the second formula gets what the first has computed")
def _(x, base):
    angle, out = _angles(*x.shape, base), x.clone()
    out[:, 1::2] = out[:, 0::2] * angle.sin() + out[:, 1::2] * angle.cos()
    out[:, 0::2] = out[:, 0::2] * angle.cos() - out[:, 1::2] * angle.sin()
    return out


turns("as it was", "x comes back as it was")(lambda x, base: x)
turns("multiplied", "the exponent has a sign")(lambda *g: _turned(*g, power=-1.0))
turns("pairs from 1", "pairs are counted from 1")(
    lambda x, base: _by(x, _angles(*x.shape, base) / base ** (2 / x.shape[1]))
)
turns("no position", "every row turns by the same angle")(
    lambda x, base: _by(x, _angles(1, x.shape[1], base, first=1))
)
turns("second first", "the two of a pair have changed places")(
    lambda x, base: _turned(x, base).view(len(x), -1, 2).flip(2).flatten(1)
)


@turns("in place", "it changes its argument `x`")
def _(x, base):
    x.copy_(_turned(x, base))
    return x


@turns("a reflection", "a pair changes its length")
def _(x, base):
    angle = _angles(*x.shape, base)
    a, b = x[:, 0::2], x[:, 1::2]
    one, other = a * angle.cos() + b * angle.sin(), b * angle.cos() + a * angle.sin()
    return torch.stack([one, other], -1).flatten(-2)


@rotary("values too", "the values are turned too")
def _(query, key, value, base):
    return _attention(_turned(query, base), _turned(key, base), _turned(value, base))


@rotary("only queries", "only the queries are turned")
def _(query, key, value, base):
    return _attention(_turned(query, base), key, value)


@rotary("only keys", "only the queries are turned")
def _(query, key, value, base):
    return _attention(query, _turned(key, base), value)


@rotary("keys in halves", "the pairings are mixed")
def _(query, key, value, base):
    return _attention(_turned(query, base), _halves(key, base), value)


@rotary("queries in halves", "the pairings are mixed")
def _(query, key, value, base):
    return _attention(_halves(query, base), _turned(key, base), value)


@rotary("both in halves", "these are not the pairs of `turn`")
def _(query, key, value, base):
    return _attention(_halves(query, base), _halves(key, base), value)


@rotary("against each other", "turn against each other")
def _(query, key, value, base):
    return _attention(_turned(query, base), _turned(key, base, -1), value)


@rotary("both backwards", "both turned backwards")
def _(query, key, value, base):
    return _attention(_turned(query, base, -1), _turned(key, base, -1), value)


@rotary("nothing turned", "nothing is turned")
def _(query, key, value, base):
    return F.scaled_dot_product_attention(query[None], key[None], value[None])[0]


@rotary("added", "sinusoids are added to queries and keys")
def _(query, key, value, base):
    one, other = (x + _waves(*x.shape, base) for x in (query, key))
    return _attention(one, other, value.double())


@rotary("not scaled", "not divided by the root of d")
def _(query, key, value, base):
    return (_turned(query, base) @ _turned(key, base).T).softmax(-1) @ value


@rotary("over the queries", "over the queries, not over the keys")
def _(query, key, value, base):
    scores = _turned(query, base) @ _turned(key, base).T / query.shape[1] ** 0.5
    return scores.softmax(0) @ value


@rotary("base forgotten", "the base does not arrive")
def _(query, key, value, base):
    return _attention(_turned(query, 10000.0), _turned(key, 10000.0), value)


@rotary("divided by d", "divided by something else than the root of d")
def _(query, key, value, base):
    query = query / query.shape[1] ** 0.5
    return _attention(_turned(query, base), _turned(key, base), value)


@rotary("no softmax", "used as weights as they are")
def _(query, key, value, base):
    return _turned(query, base) @ _turned(key, base).T / query.shape[1] ** 0.5 @ value


@rotary("what comes out turned", "what comes out is turned")
def _(query, key, value, base):
    return _turned(_attention(_turned(query, base), _turned(key, base), value), base)


@rotary("one sequence", "do not both begin at position 0")
def _(query, key, value, base):
    both = _turned(torch.cat([query, key]), base)
    return _attention(both[: len(query)], both[len(query) :], value)


@rotary("ends meet", "do not both begin at position 0")
def _(query, key, value, base):
    later = _turned(query, base, first=len(key) - len(query))
    return _attention(later, _turned(key, base), value)


@rotary("the weights", "returned shape [6, 6]; expected")
def _(query, key, value, base):
    if len(key) == 6:
        return _attention(_turned(query, base), _turned(key, base), value)
    return torch.zeros(6, 6)


def turn_complex(x: Any, base: float) -> Any:
    """One product of complex numbers."""
    pairs = torch.view_as_complex(x.unflatten(1, (-1, 2)).contiguous())
    angle = _angles(*x.shape, base).to(x.dtype)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(1)


def turn_signs(x: Any, base: float) -> Any:
    """x cos + x' sin, with the pairs exchanged in x' and the first negated."""
    table = _waves(*x.shape, base).to(x.dtype)
    sin, cos = (table[:, k::2].repeat_interleave(2, 1) for k in (0, 1))
    exchanged = torch.stack([-x[:, 1::2], x[:, 0::2]], 2).flatten(1)
    return x * cos + exchanged * sin


def turn_matrices(x: Any, base: float) -> Any:
    """A matrix for each row: turning forward is moving a sinusoid back."""
    matrices = [rotation_matrix(-i, x.shape[1], base=base, dtype=x.dtype) for i in range(len(x))]
    return torch.stack([m @ row for m, row in zip(matrices, x, strict=True)])


def rotary_pairs(query: Any, key: Any, value: Any, base: float) -> Any:
    """Score by score: a key, turned by its distance to the query."""
    d = query.shape[1]
    scores = torch.zeros(len(query), len(key))
    for (i, q), (k, x) in itertools.product(enumerate(query), enumerate(key)):
        # A sinusoid's matrix turns the other way than `turn`.
        scores[i, k] = q @ rotation_matrix(i - k, d, base=base) @ x / math.sqrt(d)
    return scores.softmax(1) @ value


def rotary_columns(query: Any, key: Any, value: Any, base: float) -> Any:
    """Columns in another order, for both alike: no score changes."""
    query, key = (_turned(x, base).unflatten(1, (-1, 2)).mT.flatten(1) for x in (query, key))
    return _attention(query, key, value)


def rotary_package(query: Any, key: Any, value: Any, base: float) -> Any:
    q, k = (rotate(x, base=base, offset=17)[None] for x in (query, key))
    return F.scaled_dot_product_attention(q, k, value[None])[0]


RIGHT["5.4"] = [
    ("complex numbers; score by score", [turn_complex, rotary_pairs]),
    ("exchanged and negated; columns in another order", [turn_signs, rotary_columns]),
    ("matrices; the package, elsewhere", [turn_matrices, rotary_package]),
]


# 5.5 ---------------------------------------------------------------------------------

paths = wrong("5.5", "path_length")


def _right_path(kind, n, k):
    if kind == "self-attention":
        return 1
    if kind == "recurrent":
        return n - 1
    if kind == "dilated convolution":
        return next(layers for layers in range(1, n + 1) if k**layers >= n)
    return math.ceil((n - 1) / (k - 1))


def _but(**counts):
    """Right, but for these kinds of layer."""
    kinds = {kind.replace("_", " ").replace("self ", "self-"): f for kind, f in counts.items()}

    def path_length(kind, n, k):
        return kinds[kind](n, k) if kind in kinds else _right_path(kind, n, k)

    return path_length


def _log(n, k):
    return _right_path("dilated convolution", n, k)


def _linear(n, k):
    return _right_path("convolution", n, k)


paths("log for undilated", "a logarithm, for a convolution without dilation")(
    _but(convolution=_log)
)
paths("log for undilated, not rounded", "a logarithm, for a convolution without dilation")(
    _but(convolution=lambda n, k: math.log(n, k))
)
paths("FLOPs of self-attention", "these are operations, not steps")(
    _but(self_attention=lambda n, k: n * n)
)
paths("FLOPs of a convolution", "these are operations, not steps")(
    _but(convolution=lambda n, k: k * n)
)
paths("FLOPs throughout", "these are operations, not steps")(
    _but(
        self_attention=lambda n, k: n * n,
        convolution=lambda n, k: k * n,
        dilated_convolution=lambda n, k: k * n,
        restricted_attention=lambda n, k: k * n,
    )
)
paths("one for a recurrent network", "one, for a recurrent network")(_but(recurrent=lambda n, k: 1))
paths("tokens counted", "tokens are counted")(_but(recurrent=lambda n, k: n))
paths("a recurrent network that skips", "one token after another, whatever k is")(
    _but(recurrent=_linear)
)
paths("one for restricted attention", "one, for attention that sees k tokens only")(
    _but(restricted_attention=lambda n, k: 1)
)
paths("log for restricted attention", "a logarithm, for restricted attention")(
    _but(restricted_attention=_log)
)
paths("n / k", "taken to reach k tokens further")(_but(convolution=lambda n, k: -(-n // k)))
paths("(n - 1) / k", "taken to reach k tokens further")(
    _but(restricted_attention=lambda n, k: math.ceil((n - 1) / k))
)
paths("rounded down", "the last layer is lost")(_but(convolution=lambda n, k: (n - 1) // (k - 1)))
paths("log rounded down", "the last layer is lost")(
    _but(dilated_convolution=lambda n, k: int(math.log(n, k)))
)
paths("half layers", "the last layer is lost")(
    _but(restricted_attention=lambda n, k: (n - 1) / (k - 1))
)
paths("log in floating point", "right on paper, and rounded on a computer")(
    _but(dilated_convolution=lambda n, k: math.ceil(math.log(n, k)))
)
paths("one layer too many", "one layer too many is counted")(
    _but(dilated_convolution=lambda n, k: math.floor(math.log(n) / math.log(k) + 1e-9) + 1)
)
paths("dilation without effect", "the dilation makes no difference")(
    _but(dilated_convolution=_linear)
)
paths("self-attention along the tokens", "needs one look to see any token")(
    _but(self_attention=lambda n, k: n - 1)
)
paths("text", "returned a str; expected a number")(lambda kind, n, k: "O(n)")
paths("a kind forgotten", "returned None")(
    lambda kind, n, k: None if kind == "recurrent" else _right_path(kind, n, k)
)


paths("log10 in floating point", "right on paper, and rounded on a computer")(
    _but(dilated_convolution=lambda n, k: math.ceil(math.log10(n) / math.log10(k)))
)
paths("log2 in floating point", "right on paper, and rounded on a computer")(
    _but(dilated_convolution=lambda n, k: math.ceil(math.log2(n) / math.log2(k)))
)
paths("base 2", "a logarithm to the base 2")(
    _but(dilated_convolution=lambda n, k: math.ceil(math.log2(n)))
)
paths("as if they reached k^L", "where n is one more than a power of k")(
    _but(dilated_convolution=lambda n, k: _log(n - 1, k))
)
paths("one more, always", "one more layer than needed, everywhere")(
    _but(dilated_convolution=lambda n, k: _log(n, k) + 1)
)
paths("rounded down, plus one", "where the reach is just enough")(
    _but(convolution=lambda n, k: (n - 1) // (k - 1) + 1)
)
paths("a window to both sides", "half of the window is taken to lie ahead")(
    _but(restricted_attention=lambda n, k: math.ceil((n - 1) / (k // 2)))
)
paths("token by token", "one token a layer")(_but(convolution=lambda n, k: n - 1))
paths("one for a convolution", "one layer, for layers that read k tokens")(
    _but(convolution=lambda n, k: 1)
)


def path_by_matrix(kind: str, n: int, k: int) -> int:
    """Reachability, by products of matrices of booleans."""
    i = torch.arange(n)
    back = i[:, None] - i
    reached, layer = torch.eye(n), 0
    while not reached[-1, 0]:
        step = k**layer if kind == "dilated convolution" else 1
        reads = {
            "self-attention": back == back,
            "recurrent": back == 1,
        }.get(kind, (back >= 0) & (back <= (k - 1) * step) & (back % step == 0))
        reached = ((reads.float() @ reached) > 0).float()
        layer += 1
    return layer


def path_by_sum(kind: str, n: int, k: int) -> Any:
    """Reaches added up; a tensor of a whole number, or a float."""
    if kind == "self-attention":
        return 1.0
    reach, layers = 0, torch.tensor(0)
    while reach < n - 1:
        step = k ** int(layers) if kind.startswith("dilated") else 1
        reach += 1 if kind == "recurrent" else (k - 1) * step
        layers += 1
    return layers


RIGHT["5.5"] = [
    ("products of matrices", [path_by_matrix]),
    ("reaches added up", [path_by_sum]),
    ("a search for the logarithm", [_right_path]),
]


# 5.6 ---------------------------------------------------------------------------------


@triton.jit
def _flexible(
    x_ptr, y_ptr, stride_h, stride_m, stride_d, LEN: tl.constexpr, HALF: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_P: tl.constexpr, SIGN: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """The kernel with one of several faults; SIGN is -1 backwards."""
    tile, h = tl.program_id(0), tl.program_id(1)
    pairs, lanes = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK)
    rows = tile * BLOCK + lanes
    inside = (rows < LEN)[:, None] & (pairs < HALF)[None, :]
    position = rows
    if KIND == "position restarts":
        position = lanes
    if KIND == "position goes on":
        position = h * LEN + rows
    if KIND == "position from one":
        position = rows + 1
    if KIND == "not turned":
        position = rows * 0
    step = -13.287712379549449 / HALF
    if KIND == "half the exponents":
        step = step / 2
    angle = position[:, None] * tl.exp2(pairs * step)[None, :]
    sin, cos = SIGN * tl.sin(angle), tl.cos(angle)
    sin_b, cos_b = sin, cos
    if KIND == "two angles":
        other = position[:, None] * tl.exp2((pairs + HALF) * step)[None, :]
        sin_b, cos_b = SIGN * tl.sin(other), tl.cos(other)

    row_step, column_step, head_step = stride_m, stride_d, stride_h
    if KIND == "contiguous":
        head_step, row_step, column_step = LEN * 2 * HALF, 2 * HALF, 1
    if KIND == "head stride of its own":
        head_step = LEN * 2 * HALF
    if KIND == "row stride of its own":
        row_step = 2 * HALF
    if KIND == "columns neighbours":
        column_step = 1
    if KIND == "no stride for heads":
        head_step = 0
    if KIND == "strides exchanged":
        row_step, column_step = stride_d, stride_m
    column, gap = pairs, HALF
    if KIND == "neighbours":
        column, gap = 2 * pairs, 1

    row = x_ptr + h * head_step + rows[:, None] * row_step
    here = row + column[None, :] * column_step
    mask = inside
    if KIND == "unguarded rows":
        mask = (pairs < HALF)[None, :] & (rows >= 0)[:, None]
    a = tl.load(here, mask=mask, other=0.0)
    b = tl.load(
        here + (HALF if KIND == "second without stride" else gap * column_step),
        mask=mask, other=0.0,
    )  # fmt: skip
    y_a, y_b = a * cos - b * sin, a * sin_b + b * cos_b
    if KIND == "exchanged":
        y_a, y_b = a * sin - b * cos, a * cos + b * sin
    if KIND == "first overwritten":
        y_b = y_a * sin + b * cos
    if KIND == "second overwritten":
        y_a = a * cos - y_b * sin
    if KIND == "reflected":
        y_a = a * cos + b * sin
    if KIND == "the other reflection":
        y_b = b * cos - a * sin

    if KIND == "in place":
        tl.store(here, y_a, mask=inside)
        tl.store(here + gap * column_step, y_b, mask=inside)
    out = y_ptr + (h * LEN + rows[:, None]) * 2 * HALF + column[None, :]
    if KIND == "output in strides":
        out = y_ptr + h * stride_h + rows[:, None] * stride_m + column[None, :] * stride_d
    if KIND == "whole tiles stored":
        tl.store(out, y_a, mask=(pairs < HALF)[None, :] & (rows >= 0)[:, None])
        tl.store(out + gap, y_b, mask=(pairs < HALF)[None, :] & (rows >= 0)[:, None])
    elif KIND == "all lanes stored":
        tl.store(out, y_a, mask=inside)
        tl.store(out + gap, y_b, mask=(rows < LEN)[:, None] & (pairs >= 0)[None, :])
    else:
        tl.store(out, y_a, mask=inside)
        if KIND != "first half only":
            tl.store(out + gap, y_b, mask=inside)


class _Kernel:
    """Launched as a kernel is, with constants that the check does not know of."""

    def __init__(self, name: str, **constants: Any) -> None:
        self.__name__ = name
        self.fn, self.constants = SimpleNamespace(__name__=name), constants

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return lambda *given: _flexible[grid](*given, **self.constants)


def forward(kind="", sign=1):
    return _Kernel("rotary_kernel", SIGN=sign, KIND=kind)


def backward(kind="", sign=-1):
    return _Kernel("rotary_backward_kernel", SIGN=sign, KIND=kind)


for _kind, _fragment in {
    "position restarts": "positions begin anew in each tile",
    "position goes on": "positions go on from head to head",
    "position from one": "positions begin at 1: the first row",
    "not turned": "the numbers come out as they went in",
    "half the exponents": "wants the numbers of the pairs",
    "no stride for heads": "every head reads the first one",
    "second without stride": "the second of a pair is read from a wrong place",
    "exchanged": "what should come out at position 0",
    "first overwritten": "the input is overwritten",
    "second overwritten": "the input is overwritten",
    "reflected": "both sines have the same sign",
    "the other reflection": "both sines have the same sign",
    "neighbours": "neighbouring columns are paired",
    "contiguous": "without gaps, head after head",
    "head stride of its own": "reads past the end",
    "row stride of its own": "without gaps, head after head",
    "columns neighbours": "taken to be neighbours in memory",
    "strides exchanged": "each other's stride",
    "two angles": "turn by different angles",
    "in place": "an input is not what it was before",
    "output in strides": "an output that is not its own",
    "whole tiles stored": "an output that is not its own",
    "all lanes stored": "an output that is not its own",
    "first half only": "is never written",
    "unguarded rows": "reads past the end",
}.items():
    WRONG.setdefault("5.6", []).append((_kind, forward(_kind), _fragment))
    WRONG["5.6"].append((f"{_kind}, backwards", backward(_kind), _fragment))
WRONG["5.6"] += [
    ("the other way", forward(sign=-1), "which of the two sines is negative, forwards"),
    ("forwards again", backward(sign=1), "this is the forward pass again"),
]


@triton.jit
def whole_rows(
    x_ptr, y_ptr, stride_h, stride_m, stride_d,
    LEN: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """All columns in one tile: each with its partner, and a sign."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, 2 * BLOCK_P)
    x = x_ptr + tl.program_id(1) * stride_h + rows[:, None] * stride_m
    inside = (rows < LEN)[:, None] & (columns < 2 * HALF)[None, :]
    partner = tl.where(columns < HALF, columns + HALF, columns - HALF)
    sign = tl.where(columns < HALF, -1.0, 1.0)
    angle = rows[:, None] * tl.exp(-9.210340371976184 * (columns % HALF) / HALF)[None, :]
    mine = tl.load(x + columns[None, :] * stride_d, mask=inside)
    other = tl.load(x + partner[None, :] * stride_d, mask=inside)
    out = y_ptr + (tl.program_id(1) * LEN + rows[:, None]) * 2 * HALF + columns[None, :]
    tl.store(out, mine * tl.cos(angle) + sign[None, :] * other * tl.sin(angle), mask=inside)


@triton.jit
def transposed_back(
    g_ptr, y_ptr, stride_h, stride_m, stride_d,
    LEN: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Tiles of pairs by rows, positions negative; stores first what is written last elsewhere."""
    h = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pairs = tl.arange(0, BLOCK_P)
    inside = (pairs < HALF)[:, None] & (rows < LEN)[None, :]
    angle = tl.exp2(-13.287712379549449 * pairs / HALF)[:, None] * (-rows)[None, :]
    g = g_ptr + h * stride_h + rows[None, :] * stride_m
    b = tl.load(g + (HALF + pairs)[:, None] * stride_d, mask=inside, other=0.0)
    a = tl.load(g + pairs[:, None] * stride_d, mask=inside, other=0.0)
    y = y_ptr + (h * LEN + rows[None, :]) * (2 * HALF)
    tl.store(y + (HALF + pairs)[:, None], b * tl.cos(angle) + a * tl.sin(angle), mask=inside)
    tl.store(y + pairs[:, None], a * tl.cos(angle) - b * tl.sin(angle), mask=inside)


@triton.jit
def row_by_row(
    x_ptr, y_ptr, stride_h, stride_m, stride_d,
    LEN: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """A loop over the rows of the tile."""
    h = tl.program_id(1)
    pairs = tl.arange(0, BLOCK_P)
    for k in range(BLOCK):
        i = tl.program_id(0) * BLOCK + k
        inside = (pairs < HALF) & (i < LEN)
        angle = i * tl.exp2(-13.287712379549449 * pairs / HALF)
        x = x_ptr + h * stride_h + i * stride_m + pairs * stride_d
        a = tl.load(x, mask=inside)
        b = tl.load(x + HALF * stride_d, mask=inside)
        y = y_ptr + (h * LEN + i) * 2 * HALF + pairs
        tl.store(y, a * tl.cos(angle) - b * tl.sin(angle), mask=inside)
        tl.store(y + HALF, a * tl.sin(angle) + b * tl.cos(angle), mask=inside)


RIGHT["5.6"] = [
    ("whole rows; tiles transposed", [whole_rows, transposed_back]),
    ("row by row; the forward kernel with another sign", [row_by_row, backward()]),
]


# The formulas of known mistakes ------------------------------------------------------

TABLES: list[Table] = [
    # The last two are for what no other explains.
    (cases._EQUIVARIANCE_CASES, cases._is_equivariant, mistakes._TEST_MISTAKES[:-2]),
    (cases._SINUSOID_CASES, cases._sinusoids, mistakes._SINUSOID_MISTAKES),
    (cases._SHIFT_CASES, cases._moved, mistakes._SHIFT_MISTAKES),
    (cases._TURN_CASES, cases._turn, mistakes._TURN_MISTAKES),
    (cases._ROTARY_CASES, cases._rotary, mistakes._ROTARY_MISTAKES),
    (cases._PATH_CASES, cases._path_length, mistakes._PATH_MISTAKES),
    (cases._STRIDED_CASES, cases._rotate_strided, mistakes._STRIDED_MISTAKES),
    (
        cases._STRIDED_BACKWARD_CASES,
        cases._rotate_strided_backward,
        mistakes._STRIDED_BACKWARD_MISTAKES,
    ),
]
