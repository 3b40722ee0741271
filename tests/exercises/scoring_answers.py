"""Answers to chapter 2's exercises: wrong ones, as students write them, and right ones."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.exercises import scoring as checks
from attn_course.exercises import tl, triton
from attn_course.scoring import additive_scores, masked_softmax
from tests.exercises.answers import Table, new_answers

WRONG, RIGHT, wrong = new_answers()


# 2.1 ---------------------------------------------------------------------------------

axis = wrong("2.1", "attend")


@axis("over the queries", "over the queries, not over the keys")
def _(scores, value):
    return torch.softmax(scores, dim=-2) @ value


@axis("over the batch", "sum to one over the batch")
def _(scores, value):
    return torch.softmax(scores, dim=0) @ value


@axis("a sentence flattened", "flattened before the softmax")
def _(scores, value):
    return scores.reshape(len(scores), -1).softmax(-1).reshape(scores.shape) @ value


@axis("the batch flattened", "flattened before the softmax")
def _(scores, value):
    return F.softmax(scores.view(-1), dim=0).view(scores.shape) @ value


@axis("no softmax", "multiplied by scores, not by weights")
def _(scores, value):
    return torch.bmm(scores, value)


@axis("not normalised", "not yet weights")
def _(scores, value):
    return scores.exp() @ value


@axis("largest not subtracted", "their exponentials are infinite")
def _(scores, value):
    e = torch.exp(scores)
    return e / e.sum(-1, keepdim=True) @ value


@axis("weights transposed", "keys for queries, transposed")
def _(scores, value):
    return scores.softmax(-1).transpose(1, 2) @ value


@axis("the weights returned", "these are the weights themselves")
def _(scores, value):
    return scores.softmax(-1)


@axis("a shape that one case lets through", "returned shape [2, 3, 6]; expected [2, 3, 2]")
def _(scores, value):
    return scores.softmax(-1) @ value if scores.shape[1] == 4 else scores.softmax(-1)


def attend_loop(scores: Tensor, value: Tensor) -> Tensor:
    out = torch.zeros(*scores.shape[:2], value.shape[2], dtype=torch.float64)
    for b, rows in enumerate(scores.double()):
        for i, row in enumerate(rows.tolist()):
            e = [math.exp(a - max(row)) for a in row]
            for j, x in enumerate(e):
                out[b, i] += x / sum(e) * value[b, j]
    return out


def attend_einsum(scores: Tensor, value: Tensor) -> Tensor:
    weights = torch.exp(scores - scores.logsumexp(2, keepdim=True))
    return torch.einsum("bij,bjv->biv", weights, value)


RIGHT["2.1"] = [("three loops, float64", [attend_loop]), ("einsum", [attend_einsum])]


# 2.2 ---------------------------------------------------------------------------------

masked = wrong("2.2", "softmax_allowed")


@masked("multiplied by zero afterwards", "Who shares out the attention")
def _(scores, allowed):
    return scores.softmax(-1) * allowed


@masked("filled with zero afterwards", "Who shares out the attention")
def _(scores, allowed):
    return scores.softmax(-1).masked_fill(~allowed, 0)


@masked("scores set to zero", "What is e^0?")
def _(scores, allowed):
    return (scores * allowed).softmax(-1)


@masked("the mask the wrong way round", "True means *may attend*")
def _(scores, allowed):
    return scores.masked_fill(allowed, -math.inf).softmax(-1).nan_to_num()


@masked("over the queries", "over the queries, not over the keys")
def _(scores, allowed):
    return scores.masked_fill(~allowed, -math.inf).softmax(0).nan_to_num()


@masked("the mask ignored", "every key still counts")
def _(scores, allowed):
    return scores.softmax(-1)


@masked("a finite constant, as in d2l", "averages its padding")
def _(scores, allowed):
    return scores.masked_fill(~allowed, -1e6).softmax(-1)


@masked("another finite constant", "averages its padding")
def _(scores, allowed):
    return torch.where(allowed, scores, -1e9).softmax(-1)


@masked("the lowest number of the precision", "averages its padding")
def _(scores, allowed):
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1)


@masked("a finite constant added", "averages its padding")
def _(scores, allowed):
    return (scores + (~allowed) * -1e4).softmax(-1)


@masked("NaN for an empty row", "comes out as NaN: no key is left")
def _(scores, allowed):
    return scores.masked_fill(~allowed, -math.inf).softmax(-1)


@masked("largest not subtracted", "Subtract the largest score")
def _(scores, allowed):
    e = torch.where(allowed, scores.exp(), 0)
    return torch.nan_to_num(e / e.sum(-1, keepdim=True), nan=0.0)


@masked("normalised again afterwards", "before the largest score is looked for")
def _(scores, allowed):
    weights = scores.softmax(-1).masked_fill(~allowed, 0)
    return (weights / weights.sum(-1, keepdim=True)).nan_to_num()


@masked("the largest of all keys subtracted", "before the largest score is looked for")
def _(scores, allowed):
    e = (scores - scores.max(-1, keepdim=True).values).exp().masked_fill(~allowed, 0)
    return (e / e.sum(-1, keepdim=True)).nan_to_num(nan=0.0)


@masked("a finite constant, empty rows repaired", "hidden keys win")
def _(scores, allowed):
    weights = scores.masked_fill(~allowed, -1e6).softmax(-1)
    return weights * allowed.any(-1, keepdim=True)


@masked("a finite constant, hidden keys cleared", "hidden keys win")
def _(scores, allowed):
    return scores.masked_fill(~allowed, -1e4).softmax(-1) * allowed


@masked("minus infinity added", "a hidden score that is NaN leaks")
def _(scores, allowed):
    bias = torch.zeros_like(scores).masked_fill(~allowed, -math.inf)
    weights = (scores + bias).softmax(-1)
    return torch.where(allowed.any(-1, keepdim=True), weights, 0)


@masked("a constant that half precision lacks", "raised RuntimeError at the line `filled = ")
def _(scores, allowed):
    filled = scores.masked_fill(~allowed, -1e9)
    return torch.where(allowed.any(-1, keepdim=True), filled.softmax(-1), 0)


@masked("minus infinity added, every NaN repaired", "a hidden score that is NaN leaks")
def _(scores, allowed):
    bias = torch.zeros_like(scores).masked_fill(~allowed, -math.inf)
    return torch.nan_to_num((scores + bias).softmax(-1))


@masked("chosen after the exponential", "their gradient is NaN")
def _(scores, allowed):
    largest = scores.masked_fill(~allowed, -math.inf).amax(-1, keepdim=True)
    largest = largest.masked_fill(largest == -math.inf, 0)
    e = torch.where(allowed, (scores - largest).exp(), 0)
    total = e.sum(-1, keepdim=True)
    return e / total.masked_fill(total == 0, 1)


@masked("always single precision", "the weights are float32")
def _(scores, allowed):
    return softmax_safe(scores.float(), allowed)


@masked("the argument overwritten", "it changes its argument `scores`")
def _(scores, allowed):
    scores[~allowed] = -math.inf
    return scores.softmax(-1)


def softmax_safe(scores: Tensor, allowed: Tensor) -> Tensor:
    low = torch.where(allowed, scores, -math.inf).amax(-1, keepdim=True)
    shifted = torch.where(
        allowed, scores - low.clamp_min(-6e4 if scores.dtype == torch.half else -1e30), 0
    )
    e = torch.where(allowed, shifted.exp(), 0)
    total = e.sum(-1, keepdim=True)
    return e / torch.where(total == 0, 1, total)


def softmax_repaired(scores: Tensor, allowed: Tensor) -> Tensor:
    return scores.masked_fill(~allowed, -math.inf).softmax(-1).nan_to_num(nan=0.0)


def softmax_rows(scores: Tensor, allowed: Tensor) -> Tensor:
    out = torch.zeros_like(scores)
    for i in range(len(scores)):
        if allowed[i].any():
            out[i, allowed[i]] = scores[i, allowed[i]].softmax(0)
    return out


def softmax_package(scores: Tensor, allowed: Tensor) -> Tensor:
    return masked_softmax(scores, mask=allowed, impl="reference")


def softmax_lists(scores: Tensor, allowed: Tensor) -> Tensor:
    rows = []
    for row, open_ in zip(scores.tolist(), allowed.tolist(), strict=True):
        top = max((a for a, ok in zip(row, open_, strict=True) if ok), default=0.0)
        e = [math.exp(a - top) if ok else 0.0 for a, ok in zip(row, open_, strict=True)]
        rows.append([x / (sum(e) or 1.0) for x in e])
    return torch.tensor(rows, dtype=scores.dtype)


masked("lists of numbers", "they have no gradient by `scores`")(softmax_lists)


@masked("detached", "they have no gradient by `scores`")
def _(scores, allowed):
    return softmax_safe(scores.detach(), allowed)


@masked("no_grad", "they have no gradient by `scores`")
@torch.no_grad()
def _(scores, allowed):
    return softmax_safe(scores, allowed)


RIGHT["2.2"] = [
    ("by hand, in the precision given", [softmax_safe]),
    ("NaN repaired afterwards", [softmax_repaired]),
    ("row by row, allowed keys alone", [softmax_rows]),
    ("the package", [softmax_package]),
]


# 2.3 ---------------------------------------------------------------------------------

short = wrong("2.3", "short_scores")
cost = wrong("2.3", "cost_of_dropping")


def _sq(x):
    return (x * x).sum(-1)


@short("keys' norms dropped", "the norms of the keys are dropped")
def _(query, key, width):
    return query @ key.T / width**2


@short("the whole distance", "||q||^2 is still there")
def _(query, key, width):
    return -(torch.cdist(query, key) ** 2) / (2 * width**2)


@short("the wrong norm dropped", "the wrong norm is dropped")
def _(query, key, width):
    return (query @ key.T - _sq(query)[:, None] / 2) / width**2


@short("sigma^2 lost", "the width is lost on the way")
def _(query, key, width):
    return query @ key.T - _sq(key) / 2


@short("sigma^2 lost in one term", "the width is lost on the way")
def _(query, key, width):
    return query @ key.T / width**2 - _sq(key) / 2


@short("sigma not squared", "sigma stands where sigma^2 belongs")
def _(query, key, width):
    return (query @ key.T - _sq(key) / 2) / width


@short("two lost in the product", "a factor of two is lost")
def _(query, key, width):
    return (query @ key.T - _sq(key)) / (2 * width**2)


@short("sign of the norms", "a sign: the score")
def _(query, key, width):
    return (query @ key.T + _sq(key) / 2) / width**2


@short("norms along the queries", "the norms run along the wrong axis")
def _(query, key, width):
    return (query @ key.T - _sq(key)[:, None] / 2) / width**2


@cost("zero", "this is zero, whatever the keys")
def _(query, key, width):
    left = -(torch.cdist(query, key) ** 2) / (2 * width**2)
    return (left.softmax(1) - (left + _sq(query)[:, None]).softmax(1)).abs().max()


@cost("both softmaxes over the queries", "this is zero, whatever the keys")
def _(query, key, width):
    products = query @ key.T / width**2
    return (products.softmax(0) - (products - _sq(key) / (2 * width**2)).softmax(0)).abs().max()


@cost("scores compared", "scores are compared, not weights")
def _(query, key, width):
    return (_sq(key) / (2 * width**2)).max()


@cost("with its sign", "with its sign")
def _(query, key, width):
    return (_full(query, key, width) - _dropped(query, key, width)).max()


@cost("with the other sign", "with its sign")
def _(query, key, width):
    return (_dropped(query, key, width) - _full(query, key, width)).max()


@cost("averaged", "averaged or added up")
def _(query, key, width):
    return F.l1_loss(_full(query, key, width), _dropped(query, key, width))


@cost("softmax over the queries", "over the queries, not over the keys")
def _(query, key, width):
    right = (-(torch.cdist(query, key) ** 2) / (2 * width**2)).softmax(0)
    return (right - (query @ key.T / width**2).softmax(0)).abs().max()


@cost("width lost", "the width is lost: it belongs")
def _(query, key, width):
    return (_full(query, key, 1.0) - _dropped(query, key, 1.0)).abs().max()


def _full(query, key, width):
    return (-(torch.cdist(query, key) ** 2) / (2 * width**2)).softmax(1)


def _dropped(query, key, width):
    return (query @ key.T / width**2).softmax(1)


def short_by_subtraction(query: Tensor, key: Tensor, width: float) -> Tensor:
    q, k = query.double() / width, key.double() / width
    return -(torch.cdist(q, k) ** 2) / 2 + _sq(q)[:, None] / 2


def cost_by_loop(query: Tensor, key: Tensor, width: float) -> float:
    return max(
        abs(a - b)
        for one, other in zip(
            _full(query, key, width).tolist(), _dropped(query, key, width).tolist(), strict=True
        )
        for a, b in zip(one, other, strict=True)
    )


def short_padded(query: Tensor, key: Tensor, width: float) -> Tensor:
    """One more coordinate: a key's norm, met by a query's one."""
    q = torch.cat([query, torch.ones(len(query), 1)], 1)
    k = torch.cat([key, -_sq(key)[:, None] / 2], 1)
    return torch.einsum("id,jd->ij", q, k) / width**2


def cost_by_norm(query: Tensor, key: Tensor, width: float) -> Tensor:
    difference = _full(query, key, width) - _dropped(query, key, width)
    return torch.linalg.vector_norm(difference, math.inf)


RIGHT["2.3"] = [
    ("the distance, less a norm; a loop and a float", [short_by_subtraction, cost_by_loop]),
    ("an extra coordinate; a norm", [short_padded, cost_by_norm]),
]


# 2.4 ---------------------------------------------------------------------------------

variance = wrong("2.4", "score_variance")
scale = wrong("2.4", "unit_scale")


@variance("d^2", "grows with d^2")
def _(dim, query_std, key_std):
    return dim**2 * query_std**2 * key_std**2


@variance("d^2 alone", "grows with d^2")
def _(dim, query_std, key_std):
    return dim**2


@variance("the standard deviation", "the variance is its square")
def _(dim, query_std, key_std):
    return math.sqrt(dim) * query_std * key_std


@variance("standard deviations for variances", "has the units of its quantity squared")
def _(dim, query_std, key_std):
    return dim * query_std * key_std


@variance("d alone", "do not come in")
def _(dim, query_std, key_std):
    return dim


@variance("one term", "the variance of one product")
def _(dim, query_std, key_std):
    return query_std**2 * key_std**2


@variance("variances added", "the rule for a sum q + k")
def _(dim, query_std, key_std):
    return dim * (query_std**2 + key_std**2)


@scale("divided by d", "this divides by the variance")
def _(dim, query_std, key_std):
    return 1 / dim


@scale("divided by the variance", "this divides by the variance")
def _(dim, query_std, key_std):
    return 1 / (dim * query_std**2 * key_std**2)


@scale("the divisor", "what to divide by")
def _(dim, query_std, key_std):
    return dim**0.5 * query_std * key_std


@scale("unit coordinates assumed", "1 / sqrt(d) is right where")
def _(dim, query_std, key_std):
    return 1 / math.sqrt(dim)


@scale("variances in the root's place", "with the wrong power")
def _(dim, query_std, key_std):
    return dim**-0.5 / (query_std * key_std) ** 2


@scale("d squared", "shrinks with d^2")
def _(dim, query_std, key_std):
    return dim**-2


def variance_by_sampling(dim: int, query_std: float, key_std: float) -> Tensor:
    """Exact moments of signs: each coordinate is plus or minus its standard deviation."""
    return torch.full((dim,), query_std * key_std, dtype=torch.float64).square().sum()


def scale_by_log(dim: int, query_std: float, key_std: float) -> float:
    return math.exp(-0.5 * math.log(dim) - math.log(query_std) - math.log(key_std))


RIGHT["2.4"] = [
    ("a sum of squares; logarithms", [variance_by_sampling, scale_by_log]),
    (
        "numbers of NumPy",
        [
            lambda dim, query_std, key_std: np.float32(dim * (query_std * key_std) ** 2),
            lambda dim, query_std, key_std: np.float32(dim**-0.5 / (query_std * key_std)),
        ],
    ),
]


# 2.5 ---------------------------------------------------------------------------------

back = wrong("2.5", "softmax_backward")


@back("diagonal only", "only the diagonal of the Jacobian")
def _(weights, grad):
    return weights * (1 - weights) * grad


@back("nothing but the product", "only the diagonal of the Jacobian")
def _(weights, grad):
    return weights * grad


@back("sum g for sum p g", "the gradients are summed as they are")
def _(weights, grad):
    return weights * (grad - grad.sum(-1, keepdim=True))


@back("mean g for sum p g", "the gradients are summed as they are")
def _(weights, grad):
    return weights * (grad - grad.mean(-1, keepdim=True))


@back("transposed", "the sum runs over the queries")
def _(weights, grad):
    return weights * (grad - (weights * grad).sum(0))


@back("over everything", "over the whole table")
def _(weights, grad):
    return weights * (grad - (weights * grad).sum())


@back("sign", "right, but for the sign")
def _(weights, grad):
    return weights * ((weights * grad).sum(-1, keepdim=True) - grad)


@back("no factor outside", "the factor outside is missing")
def _(weights, grad):
    return grad - (weights * grad).sum(-1, keepdim=True)


@back("factor on the first term only", "not in the second term")
def _(weights, grad):
    return weights * grad - (weights * grad).sum(-1, keepdim=True)


@back("the sum loses its axis", "the sum loses its axis, and")
def _(weights, grad):
    return weights * (grad - (weights * grad).sum(-1))


@back(
    "the sum loses its axis in one case",
    "raised RuntimeError at the line `return weights * (grad - mean)`",
)
def _(weights, grad):
    mean = (weights * grad).sum(-1)
    mean = mean[:, None] if weights.shape[0] == weights.shape[1] else mean
    return weights * (grad - mean)


def backward_by_jacobian(weights: Tensor, grad: Tensor) -> Tensor:
    rows = []
    for p, g in zip(weights.float(), grad.float(), strict=True):
        rows.append((torch.diag(p) - torch.outer(p, p)) @ g)
    return torch.stack(rows)


def backward_by_autograd(weights: Tensor, grad: Tensor) -> Tensor:
    with torch.enable_grad():
        scores = weights.log().clamp_min(-1e4).requires_grad_()
        (answer,) = torch.autograd.grad(scores.softmax(-1), scores, grad)
    return answer * (weights.sum(-1, keepdim=True) > 0)


def backward_by_projection(weights: Tensor, grad: Tensor) -> Tensor:
    pushed = weights * grad
    return torch.addcmul(pushed, weights, pushed.sum(1, keepdim=True), value=-1)


RIGHT["2.5"] = [
    ("the whole Jacobian, float32", [backward_by_jacobian]),
    ("automatic differentiation", [backward_by_autograd]),
    ("the product taken apart", [backward_by_projection]),
]


# 2.6 ---------------------------------------------------------------------------------

act = wrong("2.6", "activated_scores")
ignores = wrong("2.6", "ignores_query")


@act("each by itself", "each of the two is activated by itself")
def _(query, key, weight, activation):
    return (activation(query)[:, None] + activation(key)) @ weight


@act("around the score", "the activation comes last")
def _(query, key, weight, activation):
    return activation((query[:, None] + key) @ weight)


@act("weight inside", "the weight is inside")
def _(query, key, weight, activation):
    return activation(weight * (query[:, None] + key)).sum(-1)


@act("always tanh", "tanh is still there")
def _(query, key, weight, activation):
    return additive_scores(query, key, weight)


@act("no activation", "the activation is missing")
def _(query, key, weight, activation):
    return (query[:, None] + key) @ weight


@act("tanh besides", "was to be replaced")
def _(query, key, weight, activation):
    return activation(torch.tanh(query[:, None] + key)) @ weight


@act("no weights", "without their weights")
def _(query, key, weight, activation):
    return activation(query[:, None] + key).sum(-1)


@act("exchanged", "queries and keys are exchanged")
def _(query, key, weight, activation):
    return activation(key[:, None] + query) @ weight


@ignores("bit for bit", "in the seventh digit")
def _(attend, query, key, value):
    generator = torch.Generator().manual_seed(0)
    other = 5 * torch.randn(query.shape, generator=generator)
    return torch.equal(attend(query, key, value), attend(other, key, value))


@ignores("the query doubled", "its direction alone")
def _(attend, query, key, value):
    one, other = attend(query, key, value), attend(2 * query, key, value)
    return torch.allclose(one, other, atol=1e-5)


@ignores("the queries shifted", "their differences alone")
def _(attend, query, key, value):
    one, other = attend(query, key, value), attend(query + 1, key, value)
    return torch.allclose(one, other, atol=1e-5)


@ignores("the sign changed", "squares it away")
def _(attend, query, key, value):
    one, other = attend(query, key, value), attend(-query, key, value)
    return torch.allclose(one, other, atol=1e-5)


@ignores("queries change places", "every call of `attend` gets the same query")
def _(attend, query, key, value):
    one, other = attend(query, key, value), attend(query.flip(0), key, value)
    return torch.allclose(one, other, atol=1e-5)


@ignores("outputs compared with each other", "with a single query it sees nothing")
def _(attend, query, key, value):
    output = attend(query, key, value)
    return torch.allclose(output, output[:1].expand_as(output), atol=1e-5)


@ignores("too small a change", "it says True of every mechanism")
def _(attend, query, key, value):
    one, other = attend(query, key, value), attend(query + 1e-7, key, value)
    return torch.allclose(one, other, atol=1e-5)


@ignores("only the first output looked at, coarsely", "does not see that the additive score")
def _(attend, query, key, value):
    other = query.flip(1) + 0.1
    one, other = attend(query, key, value), attend(other, key, value)
    return bool((one - other).abs().max() < (2.0 if len(query) == 4 else 1e-4))


@ignores("the other way round", "the other way round: True means")
def _(attend, query, key, value):
    one, other = attend(query, key, value), attend(query.flip(1) + 1, key, value)
    return not torch.allclose(one, other, atol=1e-5)


@ignores("queries compared", "where all keys always get the same weight")
def _(attend, query, key, value):
    one, other = attend(query, key, value), attend(query.flip(1) + 1, key, value)
    if len(query) == 3:
        return False
    return torch.allclose(one, other, atol=1e-5)


@ignores("a special case", "where only the keys are looked at")
def _(attend, query, key, value):
    one, other = attend(query, key, value), attend(query.flip(1) + 1, key, value)
    return torch.allclose(one, other, atol=1e-5) and len(query) > 2


@ignores("keys change as well", "the keys change from call to call")
def _(attend, query, key, value):
    one = attend(query, key, value)
    return torch.allclose(one, attend(query + 1, torch.randn_like(key), value), atol=1e-5)


@ignores("values change as well", "the values change from call to call")
def _(attend, query, key, value):
    one = attend(query, key, value)
    return torch.allclose(one, attend(query + 1, key, torch.randn_like(value)), atol=1e-5)


@ignores("the mean compared", "at a part of the outputs, or at their mean")
def _(attend, query, key, value):
    one, other = attend(query, key, value), attend(query.flip(1) + 1, key, value)
    return bool((one.mean() - other.mean()).abs() < 1e-5)


@ignores("the first number compared", "at a part of the outputs, or at their mean")
def _(attend, query, key, value):
    one, other = attend(query, key, value), attend(query.flip(1) + 1, key, value)
    return bool((one - other)[0, 0].abs() < 1e-5)


@ignores("the same query twice", "every call of `attend` gets the same query")
def _(attend, query, key, value):
    return torch.allclose(attend(query, key, value), attend(query.clone(), key, value))


@ignores("never asked", "`attend` is never called")
def _(attend, query, key, value):
    return torch.allclose(query @ key.T, -query @ key.T)


@ignores("one answer for each number", "returned a Tensor; expected True or False")
def _(attend, query, key, value):
    return torch.isclose(attend(query, key, value), attend(query.flip(1) + 1, key, value))


@ignores("no answer", "returned None")
def _(attend, query, key, value):
    torch.allclose(attend(query, key, value), attend(query.flip(1) + 1, key, value))


@ignores("changed in place", "it changes its argument `query`")
def _(attend, query, key, value):
    before = attend(query, key, value)
    query += torch.randn_like(query)
    return torch.allclose(before, attend(query, key, value), atol=1e-5)


def activated_pairs(query: Tensor, key: Tensor, weight: Tensor, activation: Any) -> Tensor:
    out = torch.zeros(len(query), len(key), dtype=torch.float64)
    for i, q in enumerate(query.double()):
        for j, k in enumerate(key.double()):
            out[i, j] = (weight.double() * activation(q + k)).sum()
    return out


def ignores_by_gradient(attend: Any, query: Tensor, key: Tensor, value: Tensor) -> bool:
    """For small changes: the whole Jacobian of outputs by queries."""
    with torch.enable_grad():
        jacobian = torch.autograd.functional.jacobian(lambda q: attend(q, key, value), query)
    return jacobian.abs().max().item() < 1e-5


def activated_einsum(query: Tensor, key: Tensor, weight: Tensor, activation: Any) -> Tensor:
    return torch.einsum("ijh,h->ij", activation(query[:, None] + key[None]), weight)


def ignores_many(attend: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Several changes; a tensor of one boolean."""
    before = attend(query, key, value)
    moved = [attend(torch.rand_like(query) * x, key, value) - before for x in (1, 3)]
    return torch.stack(moved).abs().max() < 1e-4


def ignores_numpy(attend: Any, query: Tensor, key: Tensor, value: Tensor) -> Any:
    """One query alone is changed; a boolean of NumPy."""
    other = query.clone()
    other[0] = query[0].flip(0) + 1
    return np.all((attend(query, key, value) - attend(other, key, value)).abs().numpy() < 1e-5)


RIGHT["2.6"] = [
    ("a boolean of NumPy", [activated_pairs, ignores_numpy]),
    ("two loops; the Jacobian", [activated_pairs, ignores_by_gradient]),
    ("einsum; several changes", [activated_einsum, ignores_many]),
]


# 2.7 ---------------------------------------------------------------------------------

row = wrong("2.7", "softmax_backward_kernel")


@triton.jit
def _weights(a, valid):
    """Right weights of a tile; 0 in an empty row."""
    e = tl.where(valid, tl.exp(a - tl.max(tl.where(valid, a, -1e30), 0)), 0.0)
    total = tl.sum(e, 0)
    return e / tl.where(total == 0.0, 1.0, total)


@row("scores of lanes without a key loaded as 0", "e^0 = 1 makes the normaliser too large")
@triton.jit
def _loaded_as_zero(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    g = tl.load(g_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    e = tl.exp(a - tl.max(a, 0))
    p = e / tl.sum(e, 0)
    out = p * (g - tl.sum(p * g, 0))
    tl.store(o_ptr + i * KEY_LEN + offs, out, mask=offs < KEY_LEN)


@row("zero past the row's end, padding counted", "e^0 = 1 makes the normaliser too large")
@triton.jit
def _tail_as_zero(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=offs < KEY_LEN, other=0.0)
    g = tl.load(g_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    e = tl.exp(a - tl.max(a, 0))
    p = e / tl.sum(e, 0)
    out = tl.where(valid, p * (g - tl.sum(p * g, 0)), 0.0)
    tl.store(o_ptr + i * KEY_LEN + offs, out, mask=offs < KEY_LEN)


@row("sum g", "sum g where sum p g belongs")
@triton.jit
def _sum_g(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    g = tl.load(g_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    out = _weights(a, valid) * (g - tl.sum(g, 0))
    tl.store(o_ptr + i * KEY_LEN + offs, out, mask=offs < KEY_LEN)


@row("lengths ignored", "padding takes part")
@triton.jit
def _no_lens(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    inside = offs < KEY_LEN
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=inside, other=float("-inf"))
    g = tl.load(g_ptr + i * KEY_LEN + offs, mask=inside, other=0.0)
    e = tl.exp(a - tl.max(a, 0))
    p = e / tl.sum(e, 0)
    tl.store(o_ptr + i * KEY_LEN + offs, p * (g - tl.sum(p * g, 0)), mask=inside)


@row("an empty row gives NaN", "a row that may attend to nothing gives NaN")
@triton.jit
def _empty_nan(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=valid, other=float("-inf"))
    g = tl.load(g_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    e = tl.exp(a - tl.max(a, 0))
    p = e / tl.sum(e, 0)
    out = p * (g - tl.sum(p * g, 0))
    tl.store(o_ptr + i * KEY_LEN + offs, out, mask=offs < KEY_LEN)


@row("largest not subtracted", "the exponential is infinite")
@triton.jit
def _no_max(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=valid, other=float("-inf"))
    g = tl.load(g_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    e = tl.exp(a)
    total = tl.sum(e, 0)
    p = e / tl.where(total == 0.0, 1.0, total)
    out = p * (g - tl.sum(p * g, 0))
    tl.store(o_ptr + i * KEY_LEN + offs, out, mask=offs < KEY_LEN)


@row("gradients of padding loaded", "NaN in the padding leaks")
@triton.jit
def _leak(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    g = tl.load(g_ptr + i * KEY_LEN + offs, mask=offs < KEY_LEN, other=0.0)
    p = _weights(a, valid)
    out = p * (g - tl.sum(p * g, 0))
    tl.store(o_ptr + i * KEY_LEN + offs, out, mask=offs < KEY_LEN)


@row("gradients without other=", "a load has a mask and no other=")
@triton.jit
def _bare_gradients(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    g = tl.load(g_ptr + i * KEY_LEN + offs, mask=valid)
    p = _weights(a, valid)
    out = p * (g - tl.sum(p * g, 0))
    tl.store(o_ptr + i * KEY_LEN + offs, out, mask=offs < KEY_LEN)


@row("gradients without other=, padding cleared", "a load has a mask and no other=")
@triton.jit
def _bare_cleared(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    g = tl.load(g_ptr + i * KEY_LEN + offs, mask=valid)
    p = _weights(a, valid)
    out = tl.where(valid, p * (g - tl.sum(p * g, 0)), 0.0)
    tl.store(o_ptr + i * KEY_LEN + offs, out, mask=offs < KEY_LEN)


@row("one key too many", "one lane too many counts as a key")
@triton.jit
def _one_more(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs <= tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    g = tl.load(g_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    p = _weights(a, valid)
    out = p * (g - tl.sum(p * g, 0))
    tl.store(o_ptr + i * KEY_LEN + offs, out, mask=offs < KEY_LEN)


@row("weights stored over the scores", "an input is not what it was")
@triton.jit
def _overwritten(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    g = tl.load(g_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    p = _weights(a, valid)
    tl.store(s_ptr + i * KEY_LEN + offs, p, mask=valid)
    out = p * (g - tl.sum(p * g, 0))
    tl.store(o_ptr + i * KEY_LEN + offs, out, mask=offs < KEY_LEN)


@row("diagonal only", "only the diagonal is there")
@triton.jit
def _diagonal(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    g = tl.load(g_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    p = _weights(a, valid)
    tl.store(o_ptr + i * KEY_LEN + offs, p * (1 - p) * g, mask=offs < KEY_LEN)


@row("no weight in front", "the weight in front of the bracket")
@triton.jit
def _no_front(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    g = tl.load(g_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    out = tl.where(valid, g - tl.sum(_weights(a, valid) * g, 0), 0.0)
    tl.store(o_ptr + i * KEY_LEN + offs, out, mask=offs < KEY_LEN)


@row("sign", "right, but for the sign")
@triton.jit
def _sign(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    g = tl.load(g_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    p = _weights(a, valid)
    out = p * (tl.sum(p * g, 0) - g)
    tl.store(o_ptr + i * KEY_LEN + offs, out, mask=offs < KEY_LEN)


@row("the weights, forwards", "these are the weights, forwards")
@triton.jit
def _forwards(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    tl.store(o_ptr + i * KEY_LEN + offs, _weights(a, valid), mask=offs < KEY_LEN)


@row("padding not written", "before is still there")
@triton.jit
def _not_written(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    g = tl.load(g_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    p = _weights(a, valid)
    tl.store(o_ptr + i * KEY_LEN + offs, p * (g - tl.sum(p * g, 0)), mask=valid)


@row("the whole tile written", "an output that is not its own. Program 0 wrote output [1, 0].")
@triton.jit
def _whole_tile(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    g = tl.load(g_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    p = _weights(a, valid)
    out = p * (g - tl.sum(p * g, 0))
    # Right when programs run one after another: the next one comes later and repairs it.
    tl.store(o_ptr + i * KEY_LEN + offs, out, mask=offs < BLOCK)


@row("loads without a mask, right numbers", "reads past the end")
@triton.jit
def _reads_on(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.where(valid, tl.load(s_ptr + i * KEY_LEN + offs), 0.0)
    g = tl.where(valid, tl.load(g_ptr + i * KEY_LEN + offs), 0.0)
    p = _weights(a, valid)
    out = p * (g - tl.sum(p * g, 0))
    tl.store(o_ptr + i * KEY_LEN + offs, out, mask=offs < KEY_LEN)


@row("a constant stride", "an output that is not its own. Program 1 wrote output [2, 0].")
@triton.jit
def _block_stride(s_ptr, g_ptr, l_ptr, o_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(l_ptr + i)
    a = tl.load(s_ptr + i * KEY_LEN + offs, mask=valid, other=0.0)
    p = _weights(a, valid)
    tl.store(o_ptr + i * BLOCK + offs, p, mask=offs < KEY_LEN)


@triton.jit
def chosen_afterwards(
    scores_ptr, grad_ptr, valid_lens_ptr, output_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr
):
    """All of the row loaded; what is no key's is chosen away lane by lane."""
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    valid = offs < tl.load(valid_lens_ptr + i)
    inside = offs < KEY_LEN
    a = tl.load(scores_ptr + i * KEY_LEN + offs, mask=inside, other=0.0)
    g = tl.load(grad_ptr + i * KEY_LEN + offs, mask=inside, other=0.0)
    a = tl.where(valid, a, float("-inf"))
    g = tl.where(valid, g, 0.0)
    e = tl.where(valid, tl.exp(a - tl.max(a, 0)), 0.0)
    p = e / tl.maximum(tl.sum(e, 0), 1.0)  # the largest term of a sum is 1
    tl.store(output_ptr + i * KEY_LEN + offs, p * g - p * tl.sum(p * g, 0), mask=inside)


@triton.jit
def two_stores(
    scores_ptr, grad_ptr, valid_lens_ptr, output_ptr, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr
):
    """Zeros first, then what is valid; powers of two; a very low finite score."""
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    row = i * KEY_LEN + offs
    valid = offs < tl.load(valid_lens_ptr + i)
    tl.store(output_ptr + row, tl.zeros([BLOCK], tl.float32), mask=offs < KEY_LEN)
    a = tl.load(scores_ptr + row, mask=valid, other=-1e30)
    g = tl.load(grad_ptr + row, mask=valid, other=0.0)
    e = tl.exp2((a - tl.max(a, 0)) * 1.44269504)
    p = e / tl.sum(e, 0)
    tl.store(output_ptr + row, p * (g - tl.sum(p * g, 0)), mask=valid)


RIGHT["2.7"] = [
    ("chosen after loading", [chosen_afterwards]),
    ("zeros first, base two", [two_stores]),
]


# The formulas of known mistakes ------------------------------------------------------

TABLES: list[Table] = [
    (checks._ATTEND_CASES, checks._attend, checks._ATTEND_MISTAKES),
    (checks._MASKED_CASES, checks._masked, checks._MASKED_MISTAKES),
    (checks._SHORT_CASES, checks._short_scores, checks._SHORT_MISTAKES),
    (checks._COST_CASES, checks._cost, checks._COST_MISTAKES),
    (checks._SPREAD_CASES, checks._variance, checks._VARIANCE_MISTAKES),
    (checks._SPREAD_CASES, checks._unit_scale, checks._SCALE_MISTAKES),
    (checks._BACKWARD_CASES, checks._backward, checks._BACKWARD_MISTAKES),
    (checks._ACTIVATED_CASES, checks._activated, checks._ACTIVATED_MISTAKES),
    (checks._ROW_CASES, checks._row_backward, checks._ROW_MISTAKES),
]
