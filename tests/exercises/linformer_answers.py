"""Answers to chapter 9's exercises: wrong ones, as students write them, and right ones."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from attn_course.exercises import linformer_cases as cases
from attn_course.exercises import linformer_mistakes as mistakes
from attn_course.exercises import tl, triton
from attn_course.heatmaps import influence_map
from attn_course.linformer import linformer_attention
from tests.exercises.answers import Table, new_answers

WRONG, RIGHT, wrong = new_answers()


# 9.1 ---------------------------------------------------------------------------------

linformers = wrong("9.1", "linformer")


def _attention(query, key, value, scale=None):
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return (query @ key.mT * scale).softmax(-1) @ value


@linformers("the feature axis", "that is the feature axis")
def _(query, key, value, E, F_):
    return _attention(query, key @ E.T, value @ F_.T)


@linformers("the feature axis, transposed", "that is the feature axis")
def _(query, key, value, E, F_):
    return _attention(query, key @ E, value @ F_)


@linformers("transposed", "a projection is transposed")
def _(query, key, value, E, F_):
    return _attention(query, E.T @ key, F_.T @ value)


@linformers("one of them transposed", "a projection is transposed")
def _(query, key, value, E, F_):
    return _attention(query, E @ key, F_.T @ value)


@linformers("queries projected", "the queries are projected, too")
def _(query, key, value, E, F_):
    return _attention(E @ query, E @ key, F_ @ value)


@linformers("keys only", "only one of the two is projected")
def _(query, key, value, E, F_):
    return _attention(query, E @ key, value)


@linformers("values only", "only one of the two is projected")
def _(query, key, value, E, F_):
    return _attention(query, key, F_ @ value)


@linformers("E for both", "one matrix does the work of both")
def _(query, key, value, E, F_):
    return _attention(query, E @ key, E @ value)


@linformers("exchanged", "one matrix does the work of both")
def _(query, key, value, E, F_):
    return _attention(query, F_ @ key, E @ value)


@linformers("unscaled", "the scale is another one")
def _(query, key, value, E, F_):
    return _attention(query, E @ key, F_ @ value, scale=1)


@linformers("scaled by slots", "the scale is another one")
def _(query, key, value, E, F_):
    return _attention(query, E @ key, F_ @ value, scale=len(E) ** -0.5)


@linformers("softmax over queries", "softmax runs over the queries")
def _(query, key, value, E, F_):
    return (query @ (E @ key).T / query.shape[1] ** 0.5).softmax(0) @ (F_ @ value)


@linformers("projected after softmax", "are computed, and projected afterwards")
def _(query, key, value, E, F_):
    return (query @ key.T / query.shape[1] ** 0.5).softmax(1) @ E.T @ (F_ @ value)


@linformers("full", "nothing is projected")
def _(query, key, value, E, F_):
    return _attention(query, key, value)


@linformers("E detached", "the numbers are right, but they have no gradient by `E`")
def _(query, key, value, E, F_):
    return _attention(query, E.detach() @ key, F_ @ value)


@linformers("keys in place", "it changes its argument `key`")
def _(query, key, value, E, F_):
    key[: len(E)] = E @ key
    return _attention(query, key[: len(E)], F_ @ value)


@linformers("scaled by the width of values", "the scale is another one")
def _(query, key, value, E, F_):
    scores = query @ (E @ key).T / value.shape[1] ** 0.5
    return scores.softmax(1) @ (F_ @ value)


def linformer_einsum(query, key, value, E, F_):
    scores = torch.einsum("id,sj,jd->is", query, E, key) / math.sqrt(query.shape[1])
    return torch.einsum("is,sj,jc->ic", scores.softmax(1), F_, value)


def linformer_of_the_package(query, key, value, E, F_):
    return linformer_attention(query[None], key[None], value[None], E, F_)[0]


def linformer_fused(query, key, value, E, F_):
    return F.scaled_dot_product_attention(query[None], (E @ key)[None], (F_ @ value)[None])[0]


def linformer_by_brackets(query, key, value, E, F_):
    """(Q K^T) E^T, and (P F) V: the same products in another order."""
    scores = (query @ key.T) @ E.T / query.shape[1] ** 0.5
    return (F.softmax(scores, dim=-1) @ F_) @ value


RIGHT["9.1"] = [
    ("einsum", [linformer_einsum]),
    ("the package", [linformer_of_the_package]),
    ("fused", [linformer_fused]),
    ("other brackets", [linformer_by_brackets]),
]


# 9.2 ---------------------------------------------------------------------------------

paddeds = wrong("9.2", "padded")


def _padding(x, lens):
    return (torch.arange(x.shape[1]) >= lens[:, None])[..., None]


def _cleared(x, lens):
    return x.masked_fill(_padding(x, lens), 0)


@paddeds("no lengths", "the lengths are not used")
def _(query, key, value, E, F_, lens):
    return _attention(query, E @ key, F_ @ value)


@paddeds("after the projection", "slots are cleared after the projection")
def _(query, key, value, E, F_, lens):
    return _attention(query, _cleared(E @ key, lens), _cleared(F_ @ value, lens))


@paddeds("before and after", "slots are cleared after the projection")
def _(query, key, value, E, F_, lens):
    slots, values = E @ _cleared(key, lens), F_ @ _cleared(value, lens)
    return _attention(query, _cleared(slots, lens), _cleared(values, lens))


@paddeds("slots masked", "slots are masked by length")
def _(query, key, value, E, F_, lens):
    scores = query @ (E @ key).mT / query.shape[-1] ** 0.5
    hidden = torch.arange(len(E)) >= lens[:, None, None]
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ (F_ @ value)


@paddeds("slots masked in proportion", "slots are masked by length")
def _(query, key, value, E, F_, lens):
    key, value = _cleared(key, lens), _cleared(value, lens)
    scores = query @ (E @ key).mT / query.shape[-1] ** 0.5
    count = (lens * len(E) + key.shape[1] - 1) // key.shape[1]
    hidden = torch.arange(len(E)) >= count[:, None, None]
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ (F_ @ value)


@paddeds("keys only", "keys only: the padding of the values")
def _(query, key, value, E, F_, lens):
    return _attention(query, E @ _cleared(key, lens), F_ @ value)


@paddeds("values only", "values only: the padding of the keys")
def _(query, key, value, E, F_, lens):
    return _attention(query, E @ key, F_ @ _cleared(value, lens))


@paddeds("minus infinity", "filled with minus infinity")
def _(query, key, value, E, F_, lens):
    key = key.masked_fill(_padding(key, lens), -torch.inf)
    return _attention(query, E @ key, F_ @ _cleared(value, lens))


@paddeds("a large negative number", "filled with minus infinity")
def _(query, key, value, E, F_, lens):
    key = key.masked_fill(_padding(key, lens), -1e9)
    return _attention(query, E @ key, F_ @ _cleared(value, lens))


@paddeds("multiplied", "padding is multiplied by 0")
def _(query, key, value, E, F_, lens):
    counts = ~_padding(key, lens)
    return _attention(query, E @ (key * counts), F_ @ (value * counts))


@paddeds("one too many", "one position too many counts")
def _(query, key, value, E, F_, lens):
    return _attention(query, E @ _cleared(key, lens + 1), F_ @ _cleared(value, lens + 1))


@paddeds("the longest for all", "all items are taken to be as long")
def _(query, key, value, E, F_, lens):
    n = int(lens.max())
    return _attention(query, E[:, :n] @ key[:, :n], F_[:, :n] @ value[:, :n])


@paddeds("the first for all", "all items are taken to be as long")
def _(query, key, value, E, F_, lens):
    one = lens[:1].expand_as(lens)
    return _attention(query, E @ _cleared(key, one), F_ @ _cleared(value, one))


@paddeds("turned round", "the wrong part is cleared")
def _(query, key, value, E, F_, lens):
    key, value = (x.masked_fill(~_padding(x, lens), 0) for x in (key, value))
    return _attention(query, E @ key, F_ @ value)


@paddeds("in place", "it changes its argument `key`")
def _(query, key, value, E, F_, lens):
    key.masked_fill_(_padding(key, lens), 0)
    return _attention(query, E @ key, F_ @ _cleared(value, lens))


@paddeds("a batch that does not fit", "your code raised")
def _(query, key, value, E, F_, lens):
    return _attention(query, E @ key.masked_fill(torch.arange(key.shape[1]) >= lens, 0), value)


@paddeds("softmax over queries", "softmax runs over the queries: with a batch")
def _(query, key, value, E, F_, lens):
    scores = query @ (E @ _cleared(key, lens)).mT / query.shape[2] ** 0.5
    return scores.softmax(1) @ (F_ @ _cleared(value, lens))


def padded_item_by_item(query, key, value, E, F_, lens):
    return torch.stack(
        [
            _attention(q, E[:, :n] @ k[:n], F_[:, :n] @ v[:n])
            for q, k, v, n in zip(query, key, value, lens.tolist(), strict=True)
        ]
    )


def padded_where(query, key, value, E, F_, lens):
    counts = torch.arange(key.shape[1])[None, :, None] < lens[:, None, None]
    key, value = (torch.where(counts, x, torch.zeros_like(x)) for x in (key, value))
    return _attention(query, torch.einsum("sj,bjd->bsd", E, key), F_ @ value)


def padded_columns(query, key, value, E, F_, lens):
    """Columns of E are cleared for each item; what they would meet must be a number, too."""
    counts = (torch.arange(key.shape[1]) < lens[:, None])[:, None]
    key, value = (x.nan_to_num(0, 0, 0) for x in (key, value))
    return _attention(query, (E * counts) @ key, (F_ * counts) @ value)


def padded_by_the_package(query, key, value, E, F_, lens):
    return linformer_attention(query, key, value, E, F_, valid_lens=lens)


RIGHT["9.2"] = [
    ("item by item", [padded_item_by_item]),
    ("where, and einsum", [padded_where]),
    ("columns of E", [padded_columns]),
    ("the package", [padded_by_the_package]),
]


# 9.3 ---------------------------------------------------------------------------------

detectors = wrong("9.3", "leaks")
diagnoses = wrong("9.3", "diagnosis")

FOUND = {"A": "own block", "B": "triangle on n x k", "C": "one step ahead", "D": "causal"}


def _other(x, j):
    changed = x.clone()
    changed[j] += torch.randn(x.shape[1])
    return changed


def _table(layer, x, change=_other, moves=lambda off: off.any(1), evaluate=True, tolerance=1e-6):
    """Entry i, j: whether output i moves with input j."""
    mode = layer.training
    if evaluate:
        layer.eval()
    before = layer(x)
    columns = [moves((layer(change(x, j)) - before).abs() > tolerance) for j in range(len(x))]
    layer.train(mode)
    return torch.stack(columns, 1)


@detectors("dropout on", "the layer was in training, and dropout on")
def _(layer, x):
    return _table(layer, x, evaluate=False).triu(1)


@detectors("the last position only", "the last position only is changed")
def _(layer, x):
    table = torch.zeros(len(x), len(x), dtype=torch.bool)
    table[:, -1] = _table(layer, x).triu(1)[:, -1]
    return table


@detectors("the first output only", "one output only is looked at")
def _(layer, x):
    table = torch.zeros(len(x), len(x), dtype=torch.bool)
    table[0] = _table(layer, x).triu(1)[0]
    return table


@detectors("the past", "the past is perturbed")
def _(layer, x):
    return _table(layer, x).tril(-1)


@detectors("everything that moves", "all that moves is marked")
def _(layer, x):
    return _table(layer, x)


@detectors("with itself", "all that moves is marked")
def _(layer, x):
    return _table(layer, x).triu()


@detectors("transposed", "the table lies on its side")
def _(layer, x):
    return _table(layer, x).triu(1).T


@detectors("on its side", "the table lies on its side")
def _(layer, x):
    return _table(layer, x).T


@detectors("on its side, above the diagonal", "the table lies on its side")
def _(layer, x):
    return _table(layer, x).T.triu(1)


@detectors("all that come after, too", "position j and all after it are changed")
def _(layer, x):
    def from_there_on(x, j):
        changed = x.clone()
        changed[j:] = torch.randn(len(x) - j, x.shape[1])
        return changed

    return _table(layer, x, from_there_on).triu(1)


@detectors("sums of columns", "only sums of columns are compared")
def _(layer, x):
    mode = layer.training
    layer.eval()
    before = layer(x)
    columns = [(layer(_other(x, j)) - before).sum(1).abs() > 1e-6 for j in range(len(x))]
    layer.train(mode)
    return torch.stack(columns, 1).triu(1)


@detectors("changes pile up", "changes pile up")
def _(layer, x):
    changed = x.clone()

    def more(x, j):
        changed[j] += torch.randn(x.shape[1])
        return changed

    return _table(layer, x, more).triu(1)


@detectors("zeros", "a position is set to 0")
def _(layer, x):
    def zero(x, j):
        changed = x.clone()
        changed[j] = 0
        return changed

    return _table(layer, x, zero).triu(1)


@detectors("doubled", "a position is set to 0")
def _(layer, x):
    def double(x, j):
        changed = x.clone()
        changed[j] *= 2
        return changed

    return _table(layer, x, double).triu(1)


@detectors("plus one", "the same number is added to all columns")
def _(layer, x):
    def one_more(x, j):
        changed = x.clone()
        changed[j] += 1.0
        return changed

    return _table(layer, x, one_more).triu(1)


@detectors("the first column", "one column of the outputs is looked at")
def _(layer, x):
    return _table(layer, x, moves=lambda off: off[:, 0]).triu(1)


@detectors("a copy is changed", "nothing leaks, says the table")
def _(layer, x):
    return _table(layer, x, lambda x, j: x.clone()).triu(1)


@detectors("a large tolerance", "nothing leaks, says the table")
def _(layer, x):
    return _table(layer, x, tolerance=100).triu(1)


@detectors("turned round", "True is to stand where an output *moves*")
def _(layer, x):
    return (~_table(layer, x)).triu(1)


@detectors("one answer", "it returned one answer, False, for the whole layer")
def _(layer, x):
    return _table(layer, x).triu(1).any()


@detectors("how much", "it returned float32; expected booleans")
def _(layer, x):
    return 3.5 * _table(layer, x).tril()


@detectors("left in evaluation mode", "the layer is in evaluation mode when you are done")
def _(layer, x):
    table = _table(layer, x).triu(1)
    layer.eval()
    return table


@detectors("changes the input", "it changes its argument `x`")
def _(layer, x):
    def here(x, j):
        x[j] += 1
        return x

    return _table(layer, x, here).triu(1)


@diagnoses("takes the triangle for causal", "as far ahead as there are any")
def _():
    return FOUND | {"B": "causal", "D": "triangle on n x k"}


@diagnoses("exchanged", "small triangles along the diagonal")
def _():
    return FOUND | {"A": "one step ahead", "C": "own block"}


@diagnoses("one step overlooked", "one line beside the diagonal")
def _():
    return FOUND | {"C": "causal"}


@diagnoses("nothing is causal", "Its table is empty")
def _():
    return FOUND | {"D": "one step ahead"}


@diagnoses("another word", "it says 'sound' of D; expected one of")
def _():
    return FOUND | {"D": "sound"}


@diagnoses("a list", "expected a dict with the keys A, B, C, D")
def _():
    return list(FOUND.values())


def diagnosis():
    return FOUND


def leaks_by_gradients(layer, x):
    mode = layer.training
    layer.eval()
    table = influence_map(layer, x) > 0
    layer.train(mode)
    return table.triu(1)


def leaks_by_replacing(layer, x):
    """Rows before the one that is replaced, one after the other; integers."""
    was, n = layer.training, len(x)
    layer.train(False)
    table = torch.zeros(n, n, dtype=torch.long)
    for j in range(1, n):
        other = torch.cat([x[:j], 5 * torch.rand(1, x.shape[1]), x[j + 1 :]])
        for i in range(j):
            table[i, j] = not torch.equal(layer(other)[i], layer(x)[i])
    layer.train(was)
    return table


def leaks_by_turning(layer, x):
    """Rows turned round, enlarged and shifted; a mask made of positions."""
    mode = layer.training
    layer.eval()
    columns = []
    for j in range(len(x)):
        changed = x.clone()
        changed[j] = -3 * x[j].flip(0) + torch.arange(x.shape[1])
        columns.append((layer(changed) != layer(x)).any(-1))
    layer.train(mode)
    later = torch.arange(len(x)) > torch.arange(len(x))[:, None]
    return torch.stack(columns, 1) & later


RIGHT["9.3"] = [
    ("by gradients", [leaks_by_gradients, diagnosis]),
    ("other rows, as integers", [leaks_by_replacing, diagnosis]),
    ("turned rows", [leaks_by_turning, diagnosis]),
]


# 9.4 ---------------------------------------------------------------------------------

spreads = wrong("9.4", "spread")
needs = wrong("9.4", "slots_needed")
measures = wrong("9.4", "measured")


def _as_spread(formula: Callable[[int, int], float]) -> Callable[[int, int], float]:
    def spread(k, n):
        return formula(k, n)

    return spread


for _name, _of, _says in (
    ("the variance", lambda k, n: 2 / k, "this is the variance. The spread"),
    ("a square of variance one", lambda k, n: k**-0.5, "taken to have the variance 1"),
    ("the fourth moment", lambda k, n: (3 / k) ** 0.5, "the square of the mean is not taken off"),
    ("a sum", lambda k, n: (2 * k) ** 0.5, "the spread grows with k"),
    ("variance 1/n", lambda k, n: (2 / n) ** 0.5, "the number of positions is in it"),
    ("all columns", lambda k, n: (2 * n / k) ** 0.5, "the number of positions is in it"),
    ("nothing known of it", lambda k, n: 1 + 1 / k, "in a way that this check does not know"),
):
    spreads(_name, _says)(_as_spread(_of))


def _as_need(
    terms: Callable[[int], float] = lambda m: m * (m - 1),
    rate: Callable[[float], float] = lambda e: (e**2 - e**3) / 4,
    log: Callable[[float], float] = math.log,
    whole: Callable[[float], int] = math.ceil,
) -> Callable[..., int]:
    def slots_needed(points, n, error, failure):
        return whole(log(terms(points) / failure) / rate(error))

    return slots_needed


needs("one pair", "this is enough for one pair")(_as_need(lambda m: 2))
needs("points for pairs", "points are counted where pairs belong")(_as_need(lambda m: 2 * m))
needs("ordered pairs", "pairs are counted twice")(_as_need(lambda m: 2 * m * (m - 1)))
needs("with itself", "pairs are counted twice")(_as_need(lambda m: m * m))
needs("one side", "the 2 before the exponential")(_as_need(lambda m: m * (m - 1) / 2))
needs("rounded down", "k is rounded down")(_as_need(whole=int))
needs("not rounded", "k is not rounded: there are no half slots")(_as_need(whole=float))
needs("another base", "the logarithm is of another base")(_as_need(log=math.log2))
needs("no cube", "the exponent is another one")(_as_need(rate=lambda e: e**2 / 4))


@needs("linear in n", "k grows with n, all else alike")
def _(points, n, error, failure):
    return math.ceil(error * n)


@needs("n points", "k grows with n, all else alike")
def _(points, n, error, failure):
    return _as_need()(n, n, error, failure)


def _ratios(x, y, k, draws, scale=None, ratio=None):
    scale = k**-0.5 if scale is None else scale
    z = x - y
    every = scale * torch.randn(draws, k, len(z)) @ z
    return every.square().sum(1) / z.square().sum() if ratio is None else ratio(every, z)


def _told(ratios):
    return torch.stack([ratios.mean(), ratios.std()])


@measures("variance 1/n", "the entries of R have variance 1/n")
def _(x, y, k, draws):
    return _told(_ratios(x, y, k, draws, len(x) ** -0.5))


@measures("not scaled", "are not scaled, or by k")
def _(x, y, k, draws):
    return _told(_ratios(x, y, k, draws, 1.0))


@measures("scaled by k", "are not scaled, or by k")
def _(x, y, k, draws):
    return _told(_ratios(x, y, k, draws, 1 / k))


@measures("one draw", "all the draws gave the same number")
def _(x, y, k, draws):
    R = torch.randn(k, len(x)) / k**0.5
    ratio = (R @ (x - y)).square().sum() / (x - y).square().sum()
    return _told(torch.stack([ratio] * draws))


@measures("one draw, seeded in the loop", "all the draws gave the same number")
def _(x, y, k, draws):
    ratios = []
    for _ in range(draws):
        generator = torch.Generator().manual_seed(0)
        R = torch.randn(k, len(x), generator=generator) / k**0.5
        ratios.append((R @ (x - y)).square().sum() / (x - y).square().sum())
    return _told(torch.stack(ratios))


@measures("lengths", "distances are not squared")
def _(x, y, k, draws):
    return _told(_ratios(x, y, k, draws, ratio=lambda every, z: every.norm(dim=1) / z.norm()))


@measures("two matrices", "x and y are projected by different matrices")
def _(x, y, k, draws):
    one, two = torch.randn(2, draws, k, len(x)) / k**0.5
    return _told((one @ x - two @ y).square().sum(1) / (x - y).square().sum())


@measures("no ratio", "not divided by the one before")
def _(x, y, k, draws):
    return _told(_ratios(x, y, k, draws, ratio=lambda every, z: every.square().sum(1)))


@measures("the variance as well", "the variance is returned, as the second number")
def _(x, y, k, draws):
    ratios = _ratios(x, y, k, draws)
    return torch.stack([ratios.mean(), ratios.var()])


@measures("of the mean", "how much the *mean* of the draws would vary")
def _(x, y, k, draws):
    ratios = _ratios(x, y, k, draws)
    return torch.stack([ratios.mean(), ratios.std() / draws**0.5])


@measures("one point alone", "the length of *one* of the points")
def _(x, y, k, draws):
    return _told(_ratios(x, torch.zeros_like(x), k, draws))


@measures("the other point alone", "the length of *one* of the points")
def _(x, y, k, draws):
    return _told(_ratios(y, torch.zeros_like(y), k, draws))


@measures("points added", "the points are added")
def _(x, y, k, draws):
    return _told(_ratios(x, -y, k, draws))


@measures("what was derived", "gave the same two numbers, to the last digit")
def _(x, y, k, draws):
    return torch.tensor([1.0, (2 / k) ** 0.5])


@measures("every ratio", "it returned shape [1500]; expected [2]")
def _(x, y, k, draws):
    return _ratios(x, y, k, draws)


def spread(k, n):
    return torch.tensor(2.0 / k).sqrt()


def slots_needed(points, n, error, failure):
    """Searched for."""
    k = 1
    while points * (points - 1) * math.exp(-(error**2) * (1 - error) * k / 4) > failure:
        k += 1
    return torch.tensor(k)


def measured_both(x, y, k, draws):
    """Both points, all draws at once; a tuple."""
    R = torch.randn(draws, k, len(x)) / k**0.5
    ratios = ((R @ x) - (R @ y)).pow(2).sum(-1) / (x - y).pow(2).sum()
    return ratios.mean().item(), ratios.std(unbiased=False).item()


def spread_of_moments(k, n):
    return ((3 - 1**2) / k) ** 0.5


def slots_of_pairs(points, n, error, failure):
    each = failure / math.comb(points, 2)
    return -int(-math.log(2 / each) * 4 / (error**2 - error**3) // 1)


def measured_by_variances(x, y, k, draws):
    generator = torch.Generator().manual_seed(3)
    total = squares = 0.0
    for _ in range(draws):
        R = torch.normal(0, 1 / k**0.5, (k, len(x)), generator=generator)
        ratio = float(((R @ x - R @ y) ** 2).sum() / ((x - y) ** 2).sum())
        total, squares = total + ratio, squares + ratio**2
    mean = total / draws
    return torch.tensor([mean, math.sqrt(squares / draws - mean**2)])


RIGHT["9.4"] = [
    ("all at once", [spread, slots_needed, measured_both]),
    ("by moments", [spread_of_moments, slots_of_pairs, measured_by_variances]),
]


# 9.5 ---------------------------------------------------------------------------------

energies = wrong("9.5", "energy")
counts = wrong("9.5", "directions")


def _softmax(query, key):
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)


def _held(matrices, power=2):
    sizes = torch.linalg.svdvals(matrices) ** power
    return sizes.cumsum(-1) / sizes.sum(-1, keepdim=True)


@energies("before softmax", "these are the scores, before softmax")
def _(query, key):
    return _held(query @ key.mT / query.shape[-1] ** 0.5).mean(0)


@energies("matrices averaged", "the matrices are averaged first")
def _(query, key):
    return _held(_softmax(query, key).mean(0))


@energies("unsquared", "the singular values are not squared")
def _(query, key):
    return _held(_softmax(query, key), 1).mean(0)


@energies("each by itself", "what each direction holds by itself")
def _(query, key):
    sizes = torch.linalg.svdvals(_softmax(query, key)) ** 2
    return (sizes / sizes.sum(-1, keepdim=True)).mean(0)


@energies("not divided", "the energy is not divided by all there is")
def _(query, key):
    return (torch.linalg.svdvals(_softmax(query, key)) ** 2).cumsum(-1).mean(0)


@energies("the smallest first", "the smallest directions come first")
def _(query, key):
    sizes = torch.linalg.svdvals(_softmax(query, key)).flip(-1) ** 2
    return (sizes.cumsum(-1) / sizes.sum(-1, keepdim=True)).mean(0)


@energies("what is missed", "what the first directions *miss*")
def _(query, key):
    return 1 - _held(_softmax(query, key)).mean(0)


@energies("energies averaged", "the energies of the heads are added up")
def _(query, key):
    sizes = (torch.linalg.svdvals(_softmax(query, key)) ** 2).sum(0)
    return sizes.cumsum(0) / sizes.sum()


@energies("unscaled", "softmax runs over the queries, or the scores")
def _(query, key):
    return _held((query @ key.mT).softmax(-1)).mean(0)


@energies("softmax over queries", "softmax runs over the queries, or the scores")
def _(query, key):
    return _held((query @ key.mT / query.shape[-1] ** 0.5).softmax(-2)).mean(0)


@energies("heads apart", "it returned shape [3, 6]; expected [6]")
def _(query, key):
    return _held(_softmax(query, key))


@counts("an index", "an index counts from 0")
def _(held, share):
    return int((held >= share).int().argmax())


@counts("one too many", "one too many.")
def _(held, share):
    return int((held < share).sum()) + 2


@counts("more than the share", "is it `>` or `>=`?")
def _(held, share):
    return int((held <= share).sum()) + 1


@counts("those that are left", "directions that are *not* needed")
def _(held, share):
    return int((held >= share).sum())


@counts("a share", "this is a share of the directions")
def _(held, share):
    return (int((held < share).sum()) + 1) / len(held)


def energy_by_eigenvalues(query, key):
    weights = _softmax(query, key)
    squares = torch.linalg.eigvalsh(weights @ weights.mT).flip(-1)
    return (squares.cumsum(-1) / squares.sum(-1, keepdim=True)).mean(0)


def directions_searched(held, share):
    return int(torch.searchsorted(held, torch.tensor([share]))) + 1


def energy_head_by_head(query, key):
    shares = []
    for q, k in zip(query, key, strict=True):
        weights = F.softmax(q @ k.T / math.sqrt(q.shape[1]), dim=1)
        S = torch.linalg.svd(weights).S
        shares.append(torch.stack([S[:r].norm() ** 2 for r in range(1, len(S) + 1)]))
        shares[-1] = shares[-1] / weights.norm() ** 2
    return sum(shares) / len(shares)


def directions_first(held, share):
    return next(r for r, much in enumerate(held, start=1) if much >= share)


def directions_tensor(held, share):
    return (held >= share).nonzero()[0, 0] + 1


RIGHT["9.5"] = [
    ("eigenvalues", [energy_by_eigenvalues, directions_searched]),
    ("head by head, by norms", [energy_head_by_head, directions_first]),
    ("an index as a tensor", [energy_by_eigenvalues, directions_tensor]),
]


# 9.6 ---------------------------------------------------------------------------------


@triton.jit
def _tile(ptr, rows, columns, row_end, column_end, stride):
    exists = (rows < row_end)[:, None] & (columns < column_end)[None, :]
    places = rows[:, None] * stride + columns[None, :]
    return tl.load(ptr + places, mask=exists, other=0.0).to(tl.float32)


@triton.jit
def _flexible(
    matrix_ptr, x_ptr, part_ptr, LENGTH: tl.constexpr, SLOTS: tl.constexpr, DIM: tl.constexpr,
    STRETCH: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    """The kernel with one of several faults."""
    tile, part = tl.program_id(0), tl.program_id(1)
    rows = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    columns = tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    start = part * STRETCH
    stop = tl.minimum((part + 1) * STRETCH, LENGTH)
    if KIND == "from the first":
        start, stop = 0 * part, tl.minimum(0 * part + STRETCH, LENGTH)
    if KIND == "begins with all":
        start = 0 * part
    if KIND == "everything four times":
        start, stop = 0 * part, LENGTH + 0 * part
    if KIND == "to the end":
        stop = LENGTH + 0 * part
    if KIND == "one tile":
        stop = tl.minimum(start + BLOCK_N, stop)
    end = stop
    if KIND == "reaches over":
        end = LENGTH + 0 * part
    if KIND == "past the end":
        end = LENGTH + 5 + 0 * part
    if KIND == "full tiles only":
        stop = start + tl.maximum(stop - start, 0) // BLOCK_N * BLOCK_N
    for first in range(start, stop, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        e = _tile(matrix_ptr, rows, i, SLOTS, tl.minimum(end, LENGTH), LENGTH)
        x = _tile(x_ptr, i, columns, end, DIM, DIM)
        if KIND == "overwritten":
            total = tl.sum(e[:, :, None] * x[None, :, :], 1)
        else:
            total += tl.sum(e[:, :, None] * x[None, :, :], 1)
    place = part
    if KIND == "one place" or KIND == "atomic":
        place = 0 * part
    places = (place * SLOTS + rows[:, None]) * DIM + columns[None, :]
    inside = (rows < SLOTS)[:, None] & (columns < DIM)[None, :]
    if KIND == "rows past the end":
        inside = (rows >= 0)[:, None] & (columns < DIM)[None, :]
    if KIND == "no mask":
        inside = (rows >= 0)[:, None] & (columns >= 0)[None, :]
    if KIND == "tiles in one place":
        places = (part * SLOTS + tl.arange(0, BLOCK_K)[:, None]) * DIM + columns[None, :]
    if KIND == "empty ones say nothing":
        inside = inside & (start < stop)
    if KIND == "atomic":
        tl.atomic_add(part_ptr + places, total, mask=inside)
    elif KIND == "one place":
        so_far = tl.load(part_ptr + places, mask=inside, other=0.0)
        tl.store(part_ptr + places, so_far + total, mask=inside)
    elif KIND != "nothing stored":
        tl.store(part_ptr + places, total, mask=inside)


def _project(
    kind: str = "",
    dtype: torch.dtype | None = torch.float32,
    together: Callable[[torch.Tensor], torch.Tensor] = lambda parts: parts.sum(0),
    stretch: Callable[[int], int] = lambda n: -(-n // 4),
    parts: int = 4,
) -> Any:
    """A launcher with a fault, or of a kernel with one."""

    def project(matrix, x, block_k, block_n):
        (k, n), d = matrix.shape, x.shape[1]
        make = torch.zeros if kind in ("one place", "atomic") else torch.empty
        room = make(parts, k, d, dtype=dtype or x.dtype, device=x.device)
        _flexible[(-(-k // block_k), parts)](
            matrix, x, room, n, k, d, stretch(n), block_k, block_n,
            triton.next_power_of_2(d), kind,
        )  # fmt: skip
        return together(room).to(x.dtype)

    return project


def _unconverted(matrix, x, block_k, block_n):
    return _project()(matrix.float(), x.float(), block_k, block_n)


def _by_pytorch(matrix, x, block_k, block_n):
    _project()(matrix, x, block_k, block_n)
    return matrix @ x


def _in_place(matrix, x, block_k, block_n):
    result = _project()(matrix, x, block_k, block_n)
    x.zero_()
    return result


_RACES = "two programs write to the same place"

WRONG["9.6"] = [
    ("rounded down", _project(stretch=lambda n: n // 4), "the last positions are lost"),
    (
        "rounded down, but not to 0",
        _project(stretch=lambda n: max(n // 4, 1)),
        "the last positions are lost",
    ),
    ("reaches over", _project("reaches over"), "are added up twice"),
    ("full tiles only", _project("full tiles only"), "the last tile of a stretch is lost"),
    ("from the first", _project("from the first"), "every part begins with the first position"),
    ("begins with all", _project("begins with all"), "every part begins with the first position"),
    (
        "everything four times",
        _project("everything four times"),
        "every part begins with the first position",
    ),
    ("to the end", _project("to the end"), "parts go on to the end of the sequence"),
    ("one tile", _project("one tile"), "one tile of each stretch is added up"),
    ("overwritten", _project("overwritten"), "a sum that is overwritten in the loop"),
    ("averaged", _project(together=lambda parts: parts.mean(0)), "the parts are averaged"),
    ("the first part", _project(together=lambda parts: parts[0]), "one part is returned"),
    ("parts in half precision", _project(dtype=None), "parts are kept in half precision"),
    (
        "summed in half precision",
        _project(together=lambda parts: _rounded(parts)),
        "parts are kept in half precision",
    ),
    ("a race", _project("one place"), _RACES),
    ("a race of atomics", _project("atomic"), _RACES),
    ("tiles in one place", _project("tiles in one place"), _RACES),
    ("nothing stored", _project("nothing stored"), "nothing is stored"),
    ("reads past the end", _project("past the end"), "a load reads past the end"),
    ("rows without a mask", _project("rows past the end"), "a tile reaches past its last slot"),
    ("no mask at all", _project("no mask"), "a tile reaches past its last slot"),
    ("empty ones say nothing", _project("empty ones say nothing"), "the answer is NaN"),
    (
        "one program",
        _project(stretch=lambda n: n, parts=1),
        "one program adds up what four should share",
    ),
    ("PyTorch's product", _by_pytorch, "PyTorch multiplies E and x"),
    ("parts apart", _project(together=lambda parts: parts), "the parts, still apart"),
    ("another type", _unconverted, "an answer has the type of what came in"),
    ("input overwritten", _in_place, "an input is not what it was before"),
]


def _rounded(parts):
    """As if in half precision where the inputs are."""
    return parts.half().float().sum(0) if parts.abs().max() > 50 else parts.sum(0)


for _, _function, _ in WRONG["9.6"]:
    _function.__name__ = "project"


@triton.jit
def interleaved_kernel(
    matrix_ptr, x_ptr, part_ptr, n, d, stride_p, stride_k,
    SLOTS: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A part takes every fourth tile; the first axis of the grid counts parts."""
    part, tile = tl.program_id(0), tl.program_id(1)
    rows = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    columns = tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for first in range(part * BLOCK_N, n, PARTS * BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        e = _tile(matrix_ptr, rows, i, SLOTS, n, n)
        x = _tile(x_ptr, i, columns, n, d, d)
        total += tl.sum(e[:, :, None] * x[None, :, :], 1)
    places = part * stride_p + rows[:, None] * stride_k + columns[None, :]
    inside = (rows < SLOTS)[:, None] & (columns < d)[None, :]
    tl.store(part_ptr + places, total, mask=inside)


def project_interleaved(matrix, x, block_k, block_n):
    (k, n), d = matrix.shape, x.shape[1]
    parts = torch.zeros(4, k, d)
    interleaved_kernel[(4, -(-k // block_k))](
        matrix, x, parts, n, d, parts.stride(0), parts.stride(1),
        k, 4, block_k, block_n, triton.next_power_of_2(d),
    )  # fmt: skip
    return (parts[0] + parts[1] + parts[2] + parts[3]).type_as(x)


@triton.jit
def aligned_kernel(
    matrix_ptr, x_ptr, part_ptr, LENGTH: tl.constexpr, SLOTS: tl.constexpr, DIM: tl.constexpr,
    TILES: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A stretch is so many whole tiles, so that only the sequence has an end; in float64."""
    part = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    columns = tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_K, BLOCK_D], tl.float64)
    for number in range(0, TILES):
        i = (part * TILES + number) * BLOCK_N + tl.arange(0, BLOCK_N)
        e = _tile(matrix_ptr, rows, i, SLOTS, LENGTH, LENGTH).to(tl.float64)
        x = _tile(x_ptr, i, columns, LENGTH, DIM, DIM).to(tl.float64)
        total += tl.sum(e[:, :, None] * x[None, :, :], 1)
    places = rows[:, None] * 4 * DIM + part * DIM + columns[None, :]
    inside = (rows < SLOTS)[:, None] & (columns < DIM)[None, :]
    tl.store(part_ptr + places, total, mask=inside)


def project_aligned(matrix, x, block_k, block_n):
    """Parts beside each other, [k, 4, d]."""
    (k, n), d = matrix.shape, x.shape[1]
    tiles = triton.cdiv(triton.cdiv(n, 4), block_n)
    parts = torch.empty(k, 4, d, dtype=torch.float64, device=x.device)
    aligned_kernel[(triton.cdiv(k, block_k), 4)](
        matrix, x, parts, n, k, d, tiles, block_k, block_n, triton.next_power_of_2(d)
    )
    return parts.sum(1).to(x.dtype)


RIGHT["9.6"] = [
    ("as the solution", [_flexible, _project()]),
    ("every fourth tile", [interleaved_kernel, project_interleaved]),
    ("stretches of whole tiles, in float64", [aligned_kernel, project_aligned]),
]


# The formulas of known mistakes ------------------------------------------------------

TABLES: list[Table] = [
    (cases._LINFORMER_CASES, cases._linformer, mistakes._LINFORMER_MISTAKES),
    (cases._PADDED_CASES, cases._padded, mistakes._PADDED_MISTAKES),
    (cases._LEAK_CASES, cases._leaks, mistakes._LEAK_MISTAKES),
    (cases._SPREAD_CASES, cases._spread, mistakes._SPREAD_MISTAKES),
    (cases._NEEDED_CASES, cases._slots_needed, mistakes._NEEDED_MISTAKES),
    (cases._MEASURED_CASES, cases._measured, mistakes._MEASURED_MISTAKES),
    (cases._ENERGY_CASES, cases._energy, mistakes._ENERGY_MISTAKES),
    (cases._DIRECTIONS_CASES, cases._directions, mistakes._DIRECTIONS_MISTAKES),
    (cases._SPLIT_CASES, cases._project, mistakes._SPLIT_MISTAKES),
]
