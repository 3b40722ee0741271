"""Answers to chapter 4's exercises: wrong ones, as students write them, and right ones."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from attn_course.exercises import multi_head_cases as cases
from attn_course.exercises import multi_head_mistakes as mistakes
from attn_course.exercises import tl, triton
from attn_course.multi_head import MultiHeadAttention, merge_heads, split_heads
from tests.exercises.answers import Table, new_answers

WRONG, RIGHT, wrong = new_answers()


# 4.1 ---------------------------------------------------------------------------------

split, merge = wrong("4.1", "split"), wrong("4.1", "merge")


@split("reshape without transpose", "nobody has changed places")
def _(x, num_heads):
    return x.reshape(len(x), num_heads, x.shape[1], -1)


@split("heads and tokens swapped", "axis 1 still counts tokens")
def _(x, num_heads):
    return x.reshape(*x.shape[:2], num_heads, -1)


@split("numbers first", "every num_heads-th number")
def _(x, num_heads):
    return x.reshape(*x.shape[:2], -1, num_heads).permute(0, 3, 1, 2)


@split("another axis transposed", "an axis is exchanged, but a wrong one")
def _(x, num_heads):
    batch, length, width = x.shape
    return x.reshape(batch, num_heads, width // num_heads, length).transpose(2, 3)


@split("the batch exchanged", "an axis is exchanged, but a wrong one")
def _(x, num_heads):
    batch, length, _ = x.shape
    return x.reshape(length, batch, num_heads, -1).permute(1, 2, 0, 3)


@split("a list of heads", "it returned a tuple; expected a tensor")
def _(x, num_heads):
    return x.chunk(num_heads, -1)


@split("x overwritten", "it changes its argument `x`")
def _(x, num_heads):
    return split_heads(x.mul_(2), num_heads)


@merge("merged untransposed", "the heads are merged as they lie")
def _(heads):
    batch, num_heads, length, dim = heads.shape
    return heads.reshape(batch, length, num_heads * dim)


@merge("heads last", "shuffled into each other")
def _(heads):
    return heads.permute(0, 2, 3, 1).flatten(2)


@merge("two other axes", "they are not those of heads and tokens")
def _(heads):
    batch, num_heads, length, dim = heads.shape
    return heads.transpose(2, 3).reshape(batch, length, num_heads * dim)


@merge("a view of what is not contiguous", "view size is not compatible")
def _(heads):
    batch, num_heads, length, dim = heads.shape
    return heads.transpose(1, 2).view(batch, length, num_heads * dim)


@merge("not merged", "returned shape [2, 5, 2, 3]; expected [2, 5, 6]")
def _(heads):
    return heads.transpose(1, 2)


@split("stacked in front", "sentences and heads are in each other's place")
def _(x, num_heads):
    return torch.stack(x.chunk(num_heads, -1))


@merge("sentences side by side", "sentences stand side by side")
def _(heads):
    return torch.cat(list(heads), -1)


def split_by_einsum(x, num_heads):
    """A product with the identity, cut."""
    width = x.shape[2]
    cut = torch.eye(width, dtype=x.dtype).reshape(width, num_heads, -1)
    return torch.einsum("bnw,whd->bhnd", x, cut)


def merge_by_slices(heads):
    batch, num_heads, length, dim = heads.shape
    out = heads.new_empty(batch, length, num_heads * dim)
    for i in range(num_heads):
        out[..., i * dim : (i + 1) * dim] = heads[:, i]
    return out


RIGHT["4.1"] = [
    ("the package", [split_heads, merge_heads]),
    ("einsum and slices", [split_by_einsum, merge_by_slices]),
    (
        "chunks",
        [
            lambda x, num_heads: torch.stack(x.chunk(num_heads, 2), 1),
            lambda heads: torch.cat(list(heads.transpose(0, 1)), -1),
        ],
    ),
]


# 4.2 ---------------------------------------------------------------------------------

mask = wrong("4.2", "mask_per_head")


def _inside(lens, query_len, key_len):
    return (torch.arange(key_len) < lens[:, None, None]).expand(-1, query_len, -1)


@mask("repeat for repeat_interleave", "the lengths are repeated as a whole")
def _(valid_lens, num_heads, query_len, key_len):
    return _inside(valid_lens.repeat(num_heads), query_len, key_len)


@mask("repeat, inverted", "the lengths are repeated as a whole")
def _(valid_lens, num_heads, query_len, key_len):
    return ~_inside(valid_lens.repeat(num_heads), query_len, key_len)


@mask("inverted", "the wrong way round: True means *may attend*")
def _(valid_lens, num_heads, query_len, key_len):
    return ~_inside(valid_lens.repeat_interleave(num_heads), query_len, key_len)


@mask("inverted by a sign", "the wrong way round: True means *may attend*")
def _(valid_lens, num_heads, query_len, key_len):
    lens = valid_lens.repeat_interleave(num_heads)[:, None, None]
    return (torch.arange(key_len) > lens).expand(-1, query_len, -1)


@mask("the query axis", "the mask runs along the queries")
def _(valid_lens, num_heads, query_len, key_len):
    lens = valid_lens.repeat_interleave(num_heads)
    return _inside(lens, key_len, query_len).transpose(1, 2)


@mask("queries too", "queries are masked as well")
def _(valid_lens, num_heads, query_len, key_len):
    lens = valid_lens.repeat_interleave(num_heads)
    queries = _inside(lens, key_len, query_len).transpose(1, 2)
    return _inside(lens, query_len, key_len) & queries


@mask("one too many", "one key too many")
def _(valid_lens, num_heads, query_len, key_len):
    return _inside(valid_lens.repeat_interleave(num_heads) + 1, query_len, key_len)


@mask("no mask", "where does valid_lens come in")
def _(valid_lens, num_heads, query_len, key_len):
    return torch.ones(len(valid_lens) * num_heads, query_len, key_len, dtype=torch.bool)


@mask("a row a sentence", "returned shape [2, 4, 4]; expected [4, 4, 4]")
def _(valid_lens, num_heads, query_len, key_len):
    return _inside(valid_lens, query_len, key_len)


@mask("an axis of heads", "returned shape [2, 2, 4, 4]; expected [4, 4, 4]")
def _(valid_lens, num_heads, query_len, key_len):
    inside = _inside(valid_lens, query_len, key_len)
    return inside[:, None].expand(-1, num_heads, -1, -1)


@mask("one too few", "one key too few")
def _(valid_lens, num_heads, query_len, key_len):
    lens = valid_lens.repeat_interleave(num_heads)
    return (torch.arange(1, key_len + 1) < lens[:, None, None]).expand(-1, query_len, -1)


@mask("the longest for all", "cut off at one length")
def _(valid_lens, num_heads, query_len, key_len):
    rows = len(valid_lens) * num_heads
    return (torch.arange(key_len) < valid_lens.max()).expand(rows, query_len, -1)


@mask("the first for all", "cut off at one length")
def _(valid_lens, num_heads, query_len, key_len):
    rows = len(valid_lens) * num_heads
    return (torch.arange(key_len) < valid_lens[0]).expand(rows, query_len, -1)


@mask("causal as well", "the future is hidden as well")
def _(valid_lens, num_heads, query_len, key_len):
    return _inside(valid_lens.repeat_interleave(num_heads), query_len, key_len).tril()


@mask("to be added", "a mask to be *added* to scores")
def _(valid_lens, num_heads, query_len, key_len):
    inside = _inside(valid_lens.repeat_interleave(num_heads), query_len, key_len)
    return torch.zeros(inside.shape).masked_fill(~inside, float("-inf"))


def mask_by_index(valid_lens, num_heads, query_len, key_len):
    rows = torch.arange(len(valid_lens) * num_heads) // num_heads
    return _inside(valid_lens, query_len, key_len)[rows]


def mask_in_loops(valid_lens, num_heads, query_len, key_len):
    """Integers, 0 and 1."""
    rows = []
    for length in valid_lens.tolist():
        row = [1] * length + [0] * (key_len - length)
        rows += [[row] * query_len] * num_heads
    return torch.tensor(rows)


def mask_flattened(valid_lens, num_heads, query_len, key_len):
    inside = _inside(valid_lens, query_len, key_len)
    return inside[:, None].expand(-1, num_heads, -1, -1).flatten(0, 1)


RIGHT["4.2"] = [
    ("rows by index", [mask_by_index]),
    ("lists of 0 and 1", [mask_in_loops]),
    ("heads flattened into the batch", [mask_flattened]),
]


# 4.3 ---------------------------------------------------------------------------------

count = wrong("4.3", "count_parameters")


def _counted(embed_dim, num_heads, num_kv_heads, query_dim, key_dim, value_dim, bias):
    kv = num_kv_heads * (embed_dim // num_heads)
    maps = ((query_dim, embed_dim), (key_dim, kv), (value_dim, kv), (embed_dim, embed_dim))
    return [(reads + bias) * makes for reads, makes in maps]


@count("times heads", "the count grows with the number of heads")
def _(embed_dim, num_heads, *rest):
    return num_heads * sum(_counted(embed_dim, num_heads, *rest))


@count("inputs times heads", "the count grows with the number of heads")
def _(embed_dim, num_heads, *rest):
    *inputs, output = _counted(embed_dim, num_heads, *rest)
    return num_heads * sum(inputs) + output


@count("each head as wide as the layer", "the count grows with the number of heads")
def _(embed_dim, num_heads, num_kv_heads, query_dim, key_dim, value_dim, bias):
    wide = embed_dim * num_heads
    inputs = (query_dim + bias) * wide
    for width in (key_dim, value_dim):
        inputs += (width + bias) * wide
    return inputs + (wide + bias) * embed_dim


@count("no output map", "the output map is forgotten")
def _(*sizes):
    return sum(_counted(*sizes)[:3])


@count("no output map, no biases", "the output map is forgotten")
def _(*sizes):
    return sum(_counted(*sizes[:-1], False)[:3])


@count("no biases", "the biases are forgotten")
def _(*sizes):
    return sum(_counted(*sizes[:-1], False))


@count("always biases", "biases are counted where there are none")
def _(*sizes):
    return sum(_counted(*sizes[:-1], True))


@count("heads not shared", "as many heads as the queries")
def _(embed_dim, num_heads, num_kv_heads, *rest):
    return sum(_counted(embed_dim, num_heads, num_heads, *rest))


@count("one width", "all inputs are taken to be embed_dim wide")
def _(embed_dim, num_heads, num_kv_heads, query_dim, key_dim, value_dim, bias):
    return sum(_counted(embed_dim, num_heads, num_kv_heads, *[embed_dim] * 3, bias))


@count("four squares", "all inputs are taken to be embed_dim wide")
def _(embed_dim, num_heads, num_kv_heads, query_dim, key_dim, value_dim, bias):
    return 4 * embed_dim * (embed_dim + bias)


@count("one head", "one head's share")
def _(embed_dim, num_heads, *rest):
    *inputs, output = _counted(embed_dim, num_heads, *rest)
    return sum(inputs) / num_heads + output


@count("no output bias", "the output map's bias is missing")
def _(*sizes):
    return sum(_counted(*sizes)) - sizes[0] * sizes[-1]


@count("a list", "it returned a list; expected a number")
def _(*sizes):
    return _counted(*sizes)


@count("as many biases for each map", "the biases are too many or too few")
def _(embed_dim, num_heads, num_kv_heads, query_dim, key_dim, value_dim, bias):
    shared = num_kv_heads * embed_dim // num_heads
    weights = (query_dim + embed_dim) * embed_dim + (key_dim + value_dim) * shared
    return weights + 4 * embed_dim * bias


@count("biases of what is read", "the biases are too many or too few")
def _(embed_dim, num_heads, num_kv_heads, query_dim, key_dim, value_dim, bias):
    shared = num_kv_heads * embed_dim // num_heads
    weights = (query_dim + embed_dim) * embed_dim + (key_dim + value_dim) * shared
    return weights + (query_dim + key_dim + value_dim + embed_dim) * bias


@count("values as wide as keys", "two of the inputs are taken to be equally wide")
def _(embed_dim, num_heads, num_kv_heads, query_dim, key_dim, value_dim, bias):
    return sum(_counted(embed_dim, num_heads, num_kv_heads, query_dim, key_dim, key_dim, bias))


@count("keys divided by their own heads", "the heads of keys and values have a wrong width")
def _(embed_dim, num_heads, num_kv_heads, query_dim, key_dim, value_dim, bias):
    shared = embed_dim // num_kv_heads
    weights = (query_dim + embed_dim) * embed_dim + (key_dim + value_dim) * shared
    return weights + bias * 2 * (embed_dim + shared)


def count_the_layer(embed_dim, num_heads, num_kv_heads, query_dim, key_dim, value_dim, bias):
    layer = MultiHeadAttention(
        embed_dim, num_heads, num_kv_heads=num_kv_heads, query_dim=query_dim, key_dim=key_dim,
        value_dim=value_dim, bias=bias,
    )  # fmt: skip
    return sum(parameter.numel() for parameter in layer.parameters())


def count_head_by_head(
    embed_dim, num_heads, num_kv_heads, query_dim, key_dim, value_dim, bias
):  # fmt: skip
    """With a true division, and biases at the end."""
    width = embed_dim / num_heads
    total = sum(width * query_dim for _ in range(num_heads)) + embed_dim**2
    total += sum(width * (key_dim + value_dim) for _ in range(num_kv_heads))
    return total + (2 * (embed_dim + num_kv_heads * width) if bias else 0)


RIGHT["4.3"] = [
    ("a layer's own", [count_the_layer]),
    ("head by head, a float", [count_head_by_head]),
    ("a tensor", [lambda *sizes: torch.tensor(float(sum(_counted(*sizes))))]),
    ("a tensor of an integer", [lambda *sizes: torch.tensor(int(sum(_counted(*sizes))))]),
]


# 4.4 ---------------------------------------------------------------------------------

error, least = wrong("4.4", "fetch_error"), wrong("4.4", "floor")


def _left(weights, asked, variance):
    """The error of each output."""
    return variance * (1 - weights[asked] ** 2 / (weights**2).sum())


error("total", "total over all outputs. The exercise")(lambda *g: _left(*g).sum())
error("explained", "what the head explains")(lambda w, a, s2: s2 - _left(w, a, s2).mean())
error("only the first", "only one of the questions")(lambda *g: _left(*g)[0])
error("zero", "zero for all weights")(lambda *g: 0.0)
error("full variance", "the full variance for all weights")(lambda w, a, s2: s2)
error("variance squared", "the square of the variance")(
    lambda w, a, s2: _left(w, a, s2).mean() * s2
)
error("variance forgotten", "where does `variance` come in")(lambda w, a, s2: _left(w, a, 1).mean())
error("the best weights", "the weights to be the best ones already")(
    lambda w, a, s2: s2 * (1 - 1 / len(a))
)


@error("a gain of one", "with a gain of one")
def _(weights, asked, variance):
    errors = [1 - 2 * weights[a] + (weights**2).sum() for a in asked]
    return variance * sum(errors) / len(errors)


@error("the variance of o taken to be sigma^2", "the sum of the squared weights is missing")
def _(weights, asked, variance):
    return variance * (1 - (weights[asked] ** 2).mean())


@error("not squared", "the weights come in unsquared")
def _(weights, asked, variance):
    return variance * (1 - weights[asked].mean())


@error("covariance not squared", "the weights come in unsquared")
def _(weights, asked, variance):
    return variance * (1 - weights[asked].mean() / (weights**2).sum())


@error("weights as integers", "it returned int64")
def _(weights, asked, variance):
    return _left(weights, asked, variance).mean().long()


error("shares taken from one", "the shares of all questions are taken from one")(
    lambda w, a, s2: s2 * (1 - (w[a] ** 2).sum() / (w**2).sum())
)
error("two questions always", "over two questions, however many")(
    lambda w, a, s2: s2 * (1 - (w[a] ** 2).sum() / (w**2).sum() / 2)
)
error("the square of the sum", "added up before they are squared")(
    lambda w, a, s2: s2 * (1 - w[a].sum() ** 2 / (w**2).sum() / len(a))
)
error("one gain for all", "added up before they are squared")(
    lambda w, a, s2: s2 * (1 - w[a].mean() ** 2 / (w**2).sum())
)
error("only what is asked pooled", "the weights to be the best ones already")(
    lambda w, a, s2: s2 * (1 - (w[a] ** 2).mean() / (w[a] ** 2).sum())
)
error("the loudest", "only one of the questions")(lambda *g: _left(*g).min())
least("variance forgotten", "with another power than one")(lambda facts, s2: 1 - 1 / facts)
least("variance squared", "with another power than one")(lambda facts, s2: s2**2 * (1 - 1 / facts))
least("total", "this is the total over all outputs, and")(lambda facts, s2: s2 * (facts - 1))
least("zero", "zero: one head would do")(lambda facts, s2: 0)
least("full variance", "nothing better than answering 0")(lambda facts, s2: s2)
least("half", "half the variance, whatever is asked")(lambda facts, s2: s2 / 2)
least("explained", "this is the part that one head gets right")(lambda facts, s2: s2 / facts)


@least("equal weights, no output map", "equal weights and no output map")
def _(facts, variance):
    return variance * (1 - 2 / facts + 1 / facts) / facts


def error_by_least_squares(weights, asked, variance):
    """The expected squares of a linear regression, by its normal equations."""
    covariance = variance * torch.eye(len(weights), dtype=torch.float64)
    w = weights.double()
    inner, cross = w @ covariance @ w, covariance[asked] @ w
    gain = cross / inner
    squares = covariance[asked, asked] - 2 * gain * cross + gain**2 * inner
    return squares.mean()


def error_by_parabola(weights, asked, variance):
    """The lowest point of each parabola, found by halving; a number."""
    total, left = 0.0, float((weights.double() ** 2).sum())
    for a in weights[asked].double().tolist():
        low, high = -100.0, 100.0
        for _ in range(200):
            g = (low + high) / 2
            low, high = (g, high) if g * left < a else (low, g)
        total += variance * (1 - 2 * g * a + g * g * left)
    return total / len(asked)


def floor_by_search(facts, variance):
    """Equal weights on what is asked, the best gain."""
    weights = torch.full((facts,), 1 / facts)
    return error_by_least_squares(weights, torch.arange(facts), variance)


RIGHT["4.4"] = [
    ("normal equations", [error_by_least_squares, floor_by_search]),
    ("halving", [error_by_parabola, lambda facts, variance: variance - variance / facts]),
]


# 4.5 ---------------------------------------------------------------------------------

prune = wrong("4.5", "pruned")


def _found(x, W_q, W_k, W_v, num_heads):
    q, k, v = (split_heads(x @ W.T, num_heads) for W in (W_q, W_k, W_v))
    return F.scaled_dot_product_attention(q, k, v)


def _speaking(num_heads, off):
    return [i for i in range(num_heads) if i not in off]


@prune("scores zeroed", "the head's scores are zero, not its answer")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    q, k, v = (split_heads(x @ W.T, num_heads) for W in (W_q, W_k, W_v))
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    scores[:, off] = 0
    return merge_heads(scores.softmax(3) @ v) @ W_o.T


@prune("queries zeroed", "the head's scores are zero, not its answer")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    dim, W_q = len(W_q) // num_heads, W_q.clone()
    for i in off:
        W_q[i * dim : (i + 1) * dim] = 0
    return merge_heads(_found(x, W_q, W_k, W_v, num_heads)) @ W_o.T


def _with_columns(find):
    """Some columns of W_o zeroed."""

    def answer(x, W_q, W_k, W_v, W_o, num_heads, off):
        W_o = W_o.clone()
        for i in off:
            W_o[:, find(i, len(W_o) // num_heads, num_heads)] = 0
        return merge_heads(_found(x, W_q, W_k, W_v, num_heads)) @ W_o.T

    return answer


@prune("rows of W_o", "a wrong slice of W_o is zeroed")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    W_o, dim = W_o.clone(), len(W_o) // num_heads
    for i in off:
        W_o[i * dim : (i + 1) * dim] = 0
    return merge_heads(_found(x, W_q, W_k, W_v, num_heads)) @ W_o.T


prune("slices of num_heads", "these are not the columns of that head")(
    _with_columns(lambda i, dim, num_heads: slice(i * num_heads, (i + 1) * num_heads))
)
prune("a single column", "these are not the columns of that head")(
    _with_columns(lambda i, dim, num_heads: i)
)
prune("every num_heads-th column", "these are not the columns of that head")(
    _with_columns(lambda i, dim, num_heads: slice(i, None, num_heads))
)


@prune("heads counted from 1", "these are not the columns of that head")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    heads = _found(x, W_q, W_k, W_v, num_heads).clone()
    for i in off:
        heads[:, i - 1] = 0
    return merge_heads(heads) @ W_o.T


@prune("the others moved up", "the heads that are left have moved up")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    merged = merge_heads(_found(x, W_q, W_k, W_v, num_heads)[:, _speaking(num_heads, off)])
    return merged @ W_o[:, : merged.shape[2]].T


@prune("survivors rescaled", "the heads that are left are scaled up")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    heads = _found(x, W_q, W_k, W_v, num_heads)
    heads[:, off] = 0
    return merge_heads(heads * num_heads / (num_heads - len(off))) @ W_o.T


@prune("the others silenced", "the other way round: the heads of `off`")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    heads = torch.zeros_like(_found(x, W_q, W_k, W_v, num_heads))
    heads[:, off] = _found(x, W_q, W_k, W_v, num_heads)[:, off]
    return merge_heads(heads) @ W_o.T


@prune("nobody silenced", "no head is silenced")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    return merge_heads(_found(x, W_q, W_k, W_v, num_heads)) @ W_o.T


@prune("only the first silenced", "only one of the heads of `off`")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    heads = _found(x, W_q, W_k, W_v, num_heads)
    heads[:, off[:1]] = 0
    return merge_heads(heads) @ W_o.T


@prune("W_o turned", "W_o is transposed")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    heads = _found(x, W_q, W_k, W_v, num_heads)
    heads[:, off] = 0
    return merge_heads(heads) @ W_o


@prune("W_o changed", "it changes its argument `W_o`")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    dim = len(W_o) // num_heads
    for i in off:
        W_o[:, i * dim : (i + 1) * dim] = 0
    return merge_heads(_found(x, W_q, W_k, W_v, num_heads)) @ W_o.T


@prune("the head cut out", "mat1 and mat2 shapes cannot be multiplied")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    heads = _found(x, W_q, W_k, W_v, num_heads)[:, _speaking(num_heads, off)]
    return merge_heads(heads) @ W_o.T


@prune("scores of minus infinity", "minus infinity throughout")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    q, k, v = (split_heads(x @ W.T, num_heads) for W in (W_q, W_k, W_v))
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    scores[:, off] = float("-inf")
    return merge_heads(scores.softmax(3) @ v) @ W_o.T


@prune("sentences silenced", "along another axis than that of the heads")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    heads = _found(x, W_q, W_k, W_v, num_heads)
    heads[off] = 0
    return merge_heads(heads) @ W_o.T


@prune("numbers of all heads silenced", "along another axis than that of the heads")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    heads = _found(x, W_q, W_k, W_v, num_heads)
    heads[..., off] = 0
    return merge_heads(heads) @ W_o.T


@prune("columns of W_v", "a wrong slice of W_v is zeroed")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    dim, W_v = len(W_v) // num_heads, W_v.clone()
    for i in off:
        W_v[:, i * dim : (i + 1) * dim] = 0
    return merge_heads(_found(x, W_q, W_k, W_v, num_heads)) @ W_o.T


@prune("no output map", "the output map is missing")
def _(x, W_q, W_k, W_v, W_o, num_heads, off):
    heads = _found(x, W_q, W_k, W_v, num_heads)
    heads[:, off] = 0
    return merge_heads(heads)


def prune_values(x, W_q, W_k, W_v, W_o, num_heads, off):
    """Heads without values."""
    rows = torch.arange(len(W_v)) // (len(W_v) // num_heads)
    W_v = W_v * ~torch.isin(rows, torch.tensor(off, dtype=torch.long))[:, None]
    return merge_heads(_found(x, W_q, W_k, W_v, num_heads)) @ W_o.T


def prune_the_layer(x, W_q, W_k, W_v, W_o, num_heads, off):
    layer = MultiHeadAttention(len(W_o), num_heads, bias=False)
    with torch.no_grad():
        for name, weight in zip("qkvo", (W_q, W_k, W_v, W_o), strict=True):
            getattr(layer, f"W_{name}").weight.copy_(weight)
    with layer.without_heads(*off):
        return layer(x)


def prune_by_sum(x, W_q, W_k, W_v, W_o, num_heads, off):
    heads, dim = _found(x, W_q, W_k, W_v, num_heads), len(W_o) // num_heads
    speaking = _speaking(num_heads, off)
    parts = [heads[:, i] @ W_o[:, i * dim : (i + 1) * dim].T for i in speaking]
    return sum(parts) if parts else torch.zeros_like(x)


RIGHT["4.5"] = [
    ("no values", [prune_values]),
    ("the package's layer", [prune_the_layer]),
    ("a sum over those that are left", [prune_by_sum]),
]


# 4.6 ---------------------------------------------------------------------------------

load = wrong("4.6", "from_torch")


def _loaded(order="qkv", cut=lambda packed: packed.chunk(3), bias=lambda x: x, bias_order=None):
    """From the state; ``order`` says whose third comes first, ``cut`` how thirds are made."""

    def answer(state):
        ours = {}
        for kind in ("weight", "bias"):
            if f"in_proj_{kind}" not in state:
                continue
            of = bias if kind == "bias" else (lambda x: x)
            letters = (bias_order or order) if kind == "bias" else order
            for letter, part in zip(letters, cut(state[f"in_proj_{kind}"]), strict=True):
                ours[f"W_{letter}.{kind}"] = of(part)
            ours[f"W_o.{kind}"] = of(state[f"out_proj.{kind}"])
        return ours

    return answer


load("values first", "q, k and v are mixed up")(_loaded("vqk"))
load("keys first", "q, k and v are mixed up")(_loaded("kqv"))
load("keys and values exchanged in the weights", "q, k and v are mixed up")(
    _loaded("qvk", bias_order="qkv")
)
load("keys first in the biases", "their biases belong to other maps")(_loaded(bias_order="kqv"))
load("zero biases", "the biases are there, and all are zero")(_loaded(bias=torch.zeros_like))
load("every third row", "every third row is taken")(
    _loaded(cut=lambda packed: [packed[i::3] for i in range(3)])
)
load("cut along the other axis", "W_q.weight has all 18 rows of the packed tensor")(
    _loaded(cut=lambda packed: packed.chunk(3, -1))
)


@load("transposed", "a matrix is transposed")
def _(state):
    return {name: x.T if x.ndim == 2 else x for name, x in _loaded()(state).items()}


@load("W_o transposed", "a matrix is transposed")
def _(state):
    ours = _loaded()(state)
    return ours | {"W_o.weight": ours["W_o.weight"].T}


@load("no biases", "the bias is lost: W_q.bias, W_k.bias, W_v.bias, W_o.bias is missing")
def _(state):
    return {name: x for name, x in _loaded()(state).items() if "weight" in name}


@load("no bias at the output", "the bias is lost: W_o.bias is missing")
def _(state):
    return {name: x for name, x in _loaded()(state).items() if name != "W_o.bias"}


@load("biases expected", "raised KeyError")
def _(state):
    biases = state["in_proj_bias"].chunk(3)
    return _loaded()(state) | {f"W_{x}.bias": b for x, b in zip("qkv", biases, strict=True)}


@load("PyTorch's names", "it has the names in_proj_weight")
def _(state):
    return dict(state)


@load("biases for a layer without", "it has the names W_q.weight, W_k.weight")
def _(state):
    zeros = torch.zeros(len(state["out_proj.weight"]))
    ours = _loaded()(state)
    return ours | {f"W_{x}.bias": ours.get(f"W_{x}.bias", zeros) for x in "qkvo"}


@load("a list", "it returned a list; expected a dict of tensors")
def _(state):
    return list(_loaded()(state).values())


@load("nothing returned", "it returned None: is the `return` missing")
def _(state):
    _loaded()(state)


@load("names taken out of the state", "it changes its argument `state`")
def _(state):
    ours = _loaded()(state)
    state.pop("in_proj_weight")
    return ours


@load("the first third for all", "get the same third")
def _(state):
    return _loaded(cut=lambda packed: [packed.chunk(3)[0]] * 3)(state)


@load("the queries' bias at the output", "W_o gets what belongs to one of the others")
def _(state):
    ours = _loaded()(state)
    return ours | {name: ours["W_q.bias"] for name in ours if name == "W_o.bias"}


@load("two of four transposed", "a matrix is transposed")
def _(state):
    ours = _loaded()(state)
    return ours | {name: ours[name].T for name in ("W_q.weight", "W_o.weight")}


def load_by_slices(state):
    width, ours = state["in_proj_weight"].shape[1], {}
    for i, letter in enumerate("qkv"):
        rows = slice(i * width, (i + 1) * width)
        ours[f"W_{letter}.weight"] = state["in_proj_weight"][rows].clone()
        if "in_proj_bias" in state:
            ours[f"W_{letter}.bias"] = state["in_proj_bias"][rows].clone()
    for name, tensor in state.items():
        if name.startswith("out_proj"):
            ours[name.replace("out_proj", "W_o")] = tensor
    return ours


def load_into_a_layer(state):
    """The package's way, through its layer."""
    layer = MultiHeadAttention(len(state["out_proj.weight"]), 1, bias="in_proj_bias" in state)
    layer.load_torch(state)
    return dict(layer.state_dict())


def load_parameters(state):
    """Parameters, as `nn.Linear` holds them; the last one first."""
    ours = {name: nn.Parameter(x.clone()) for name, x in _loaded()(state).items()}
    return dict(reversed(ours.items()))


RIGHT["4.6"] = [
    ("slices", [load_by_slices]),
    ("through a layer", [load_into_a_layer]),
    ("parameters in another order", [load_parameters]),
]


# 4.7 ---------------------------------------------------------------------------------


class Faulty:
    """A kernel with one of several faults, to be launched as any other is."""

    def __init__(self, kernel: Any, kind: str) -> None:
        self.fn, self.kernel, self.kind = getattr(kernel, "fn", kernel), kernel, kind
        self.__name__ = self.fn.__name__

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return lambda *arguments: self.kernel[grid](*arguments, self.kind)


@triton.jit
def _tile(ptr, rows, lanes, LEN, DIM, KIND: tl.constexpr):
    """A tile of rows [rows, lanes]."""
    where = ptr + rows[:, None] * DIM + lanes[None, :]
    inside = (rows < LEN)[:, None] & (lanes < DIM)[None, :]
    if KIND == "bare":
        tile = tl.load(where, mask=inside)
    elif KIND == "rows unmasked":
        tile = tl.load(where, mask=(lanes < DIM)[None, :], other=0.0)
    elif KIND == "lanes unmasked":
        tile = tl.load(where, mask=(rows < LEN)[:, None], other=0.0)
    else:
        tile = tl.load(where, mask=inside, other=0.0)
    return tile


@triton.jit
def score_kernel(
    query_ptr, key_ptr, scores_ptr, scale,
    QUERY_LEN: tl.constexpr, KEY_LEN: tl.constexpr, DIM: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """The kernel with one of several faults."""
    r, c = tl.program_id(0), tl.program_id(1)
    if KIND == "axes exchanged":
        r, c = tl.program_id(1), tl.program_id(0)
    if KIND == "one axis":
        c = tl.program_id(0)
    rows, columns = r * BLOCK + tl.arange(0, BLOCK), c * BLOCK + tl.arange(0, BLOCK)
    lanes = tl.arange(0, BLOCK_D)
    q = _tile(query_ptr, rows, lanes, QUERY_LEN, DIM, "")
    k = _tile(key_ptr, columns, lanes, KEY_LEN, DIM, KIND)
    if KIND == "not turned":
        s = tl.dot(q, k, input_precision="ieee")
    elif KIND == "turned":
        s = tl.dot(k, tl.trans(q), input_precision="ieee")
    else:
        s = tl.dot(q, tl.trans(k), input_precision="ieee")
    if KIND == "divided":
        s = s / scale
    elif KIND != "no scale":
        s = s * scale
    if KIND == "scaled twice":
        s = s * scale
    stride = KEY_LEN
    if KIND == "stride":
        stride = BLOCK
    inside = (rows < QUERY_LEN)[:, None] & (columns < KEY_LEN)[None, :]
    if KIND == "store unmasked":
        inside = (rows < QUERY_LEN)[:, None] & (columns >= 0)[None, :]
    if KIND == "diagonal":
        inside = inside & (rows[:, None] == columns[None, :])
    if KIND == "query overwritten":
        mine = (rows < QUERY_LEN)[:, None] & (lanes < DIM)[None, :]
        tl.store(query_ptr + rows[:, None] * DIM + lanes[None, :], q * scale, mask=mine)
    places = rows[:, None] * stride + columns[None, :]
    if KIND == "on its side":
        places = columns[None, :] * QUERY_LEN + rows[:, None]
    tl.store(scores_ptr + places, s, mask=inside)


def tile(kind: str, fragment: str) -> None:
    wrong("4.7", "score_kernel")(f"scores: {kind}", fragment)(Faulty(score_kernel, kind))


tile("no scale", "these are the bare products")
tile("divided", "the products are divided by the scale")
tile("scaled twice", "the scale comes in twice")
tile("on its side", "the scores are stored on their side")
tile("not turned", "multiplies rows of q with *columns* of k")
tile("turned", "each tile is transposed")
tile("bare", "0 times NaN is NaN")
tile("rows unmasked", "reads past the end of the keys")
tile("lanes unmasked", "reads past the end of the keys")
tile("stride", "owns the tile of scores")
tile("store unmasked", "owns the tile of scores")
tile("axes exchanged", "owns the tile of scores")
tile("one axis", "owns the tile of scores")
tile("diagonal", "Each program has one tile to store")
tile("query overwritten", "an input is not what it was before")


@triton.jit
def flash_kernel(
    query_ptr, key_ptr, value_ptr, output_ptr, scale,
    QUERY_LEN: tl.constexpr, KEY_LEN: tl.constexpr, DIM: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """The kernel with one of several faults."""
    rows, lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    q = _tile(query_ptr, rows, lanes, QUERY_LEN, DIM, "")
    numerator = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    denominator = tl.zeros([BLOCK], tl.float32)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    stop = KEY_LEN
    if KIND == "first tile":
        stop = BLOCK
    if KIND == "full tiles":
        stop = KEY_LEN // BLOCK * BLOCK
    if KIND == "as many keys as queries":
        stop = QUERY_LEN
    for start in range(0, stop, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        k = _tile(key_ptr, keys, lanes, KEY_LEN, DIM, "bare" if KIND == "bare keys" else "")
        v = _tile(
            value_ptr, keys, lanes, KEY_LEN, DIM,
            "bare" if KIND == "bare values" else "rows unmasked" if KIND == "past the end" else "",
        )  # fmt: skip
        s = tl.dot(q, tl.trans(k), input_precision="ieee")
        if KIND != "no scale":
            s = s * scale
        if KIND != "tail":
            s = tl.where((keys < KEY_LEN)[None, :], s, float("-inf"))
        new = tl.maximum(largest, tl.max(s, 1))
        if KIND == "no maximum":
            new = tl.zeros([BLOCK], tl.float32)
        if KIND == "falling":
            new = tl.max(s, 1)
        if KIND == "one maximum":
            new = tl.maximum(largest, tl.max(tl.max(s, 1), 0))
        factor = tl.exp(largest - new)
        if KIND == "inverse":
            factor = tl.exp(new - largest)
        if KIND == "inverse, begun with care":
            factor = tl.where(largest == float("-inf"), 1.0, tl.exp(new - largest))
        p = tl.exp(s - new[:, None])
        if KIND == "maximum spread over keys":
            p = tl.exp(s - new)
        if KIND == "powers of two":
            p, factor = tl.exp2(s - new[:, None]), tl.exp2(largest - new)
        if KIND == "keys averaged":
            v = k
        if KIND == "denominator begun anew":
            denominator = tl.zeros([BLOCK], tl.float32)
        if KIND == "begun anew":
            numerator = tl.zeros([BLOCK, BLOCK_D], tl.float32)
            denominator = tl.zeros([BLOCK], tl.float32)
        if KIND != "no factor" and KIND != "no factor for the denominator":
            denominator = denominator * factor
        if KIND == "sum over queries":
            denominator += tl.sum(p, 0)
        else:
            denominator += tl.sum(p, 1)
        alone = KIND == "no factor" or KIND == "averages added"
        if not alone and KIND != "no factor for the numerator":
            numerator = numerator * factor[:, None]
        part = tl.dot(p, v, input_precision="ieee")
        if KIND == "averages added":
            part = part / tl.sum(p, 1)[:, None]
        numerator += part
        if KIND == "divided in each round" or KIND == "divided in each round only":
            numerator = numerator / denominator[:, None]
        if KIND != "maximum not kept":
            largest = new
    output = numerator
    if KIND == "averages added":
        output = numerator / tl.cdiv(KEY_LEN, BLOCK)
    elif KIND != "divided in each round only" and KIND != "never divided":
        output = numerator / denominator[:, None]
    places = rows[:, None] * DIM + lanes[None, :]
    mine = (rows < QUERY_LEN)[:, None] & (lanes < DIM)[None, :]
    if KIND == "store unmasked":
        mine = (rows < QUERY_LEN)[:, None] & (lanes >= 0)[None, :]
    if KIND == "half stored":
        mine = mine & (lanes < DIM // 2)[None, :]
    if KIND == "stored over the queries":
        tl.store(query_ptr + places, output, mask=mine)
    tl.store(output_ptr + places, output, mask=mine)


def flash(kind: str, fragment: str) -> None:
    wrong("4.7", "flash_kernel")(kind, fragment)(Faulty(flash_kernel, kind))


flash("no factor for the numerator", "the accumulator is not rescaled when the maximum grows")
flash("no factor", "the accumulator is not rescaled when the maximum grows")
flash("no factor for the denominator", "the denominator is not rescaled")
flash("inverse", "the factor is upside down")
flash("inverse, begun with care", "the factor is upside down")
flash("divided in each round", "it divides inside the loop")
flash("divided in each round only", "it divides inside the loop")
flash("averages added", "it divides inside the loop")
flash("tail", "tail keys weigh something")
flash("no maximum", "without the running maximum")
flash("maximum not kept", "only the last tile counts")
flash("begun anew", "only the last tile counts")
flash("first tile", "only the first tile counts")
flash("falling", "the maximum falls again")
flash("one maximum", "all queries of the tile share one maximum")
flash("sum over queries", "summed over the queries, not over the keys")
flash("maximum spread over keys", "spread along the wrong axis")
flash("denominator begun anew", "only one of the two sums is carried")
flash("full tiles", "the loop ends too early")
flash("as many keys as queries", "the loop ends too early")
flash("keys averaged", "the keys are averaged, and not the values")
flash("powers of two", "these are powers of two")
flash("never divided", "it never divides")
flash("no scale", "these are the weights of the bare products")
flash("bare values", "a load has a mask and no other=")
flash("bare keys", "a load has a mask and no other=")
flash("past the end", "reads beyond the keys or beyond the values")
flash("store unmasked", "owns the outputs of queries")
flash("half stored", "Each program stores a tile of outputs")
flash("stored over the queries", "an input is not what it was before")


@triton.jit
def scores_turned(
    query_ptr, key_ptr, scores_ptr, scale,
    QUERY_LEN: tl.constexpr, KEY_LEN: tl.constexpr, DIM: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Keys are loaded turned already, queries are scaled; all of it from the far side."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    lanes = tl.arange(0, BLOCK_D)
    q = _tile(query_ptr, rows, lanes, QUERY_LEN, DIM, "") * scale
    k = tl.load(
        key_ptr + columns[None, :] * DIM + lanes[:, None],
        mask=(columns < KEY_LEN)[None, :] & (lanes < DIM)[:, None],
        other=0.0,
    )
    s = tl.trans(tl.dot(tl.trans(k), tl.trans(q), input_precision="ieee"))
    inside = (rows < QUERY_LEN)[:, None] & (columns < KEY_LEN)[None, :]
    tl.store(scores_ptr + rows[:, None] * KEY_LEN + columns[None, :], s, mask=inside)


@triton.jit
def scores_summed(
    query_ptr, key_ptr, scores_ptr, scale,
    QUERY_LEN: tl.constexpr, KEY_LEN: tl.constexpr, DIM: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Without tl.dot: number by number."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    s = tl.zeros([BLOCK, BLOCK], tl.float32)
    for d in range(DIM):
        q = tl.load(query_ptr + rows * DIM + d, mask=rows < QUERY_LEN, other=0.0)
        k = tl.load(key_ptr + columns * DIM + d, mask=columns < KEY_LEN, other=0.0)
        s += q[:, None] * k[None, :]
    inside = (rows < QUERY_LEN)[:, None] & (columns < KEY_LEN)[None, :]
    tl.store(scores_ptr + rows[:, None] * KEY_LEN + columns[None, :], s * scale, mask=inside)


@triton.jit
def flash_in_base_two(
    query_ptr, key_ptr, value_ptr, output_ptr, scale,
    QUERY_LEN: tl.constexpr, KEY_LEN: tl.constexpr, DIM: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Powers of two, a very low first maximum, and tails multiplied away."""
    rows, lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    q = _tile(query_ptr, rows, lanes, QUERY_LEN, DIM, "") * (scale * 1.44269504)
    numerator = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    denominator = tl.zeros([BLOCK], tl.float32)
    largest = tl.zeros([BLOCK], tl.float32) - 1e30
    for start in range(0, KEY_LEN, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        inside = (keys < KEY_LEN)[None, :]
        k = _tile(key_ptr, keys, lanes, KEY_LEN, DIM, "")
        v = _tile(value_ptr, keys, lanes, KEY_LEN, DIM, "")
        s = tl.dot(q, tl.trans(k), input_precision="ieee")
        new = tl.maximum(largest, tl.max(tl.where(inside, s, -1e30), 1))
        p = tl.where(inside, tl.exp2(s - new[:, None]), 0.0)
        factor = tl.exp2(largest - new)
        denominator = factor * denominator + tl.sum(p, 1)
        numerator = factor[:, None] * numerator + tl.dot(p, v, input_precision="ieee")
        largest = new
    places = rows[:, None] * DIM + lanes[None, :]
    mine = (rows < QUERY_LEN)[:, None] & (lanes < DIM)[None, :]
    tl.store(output_ptr + places, numerator / denominator[:, None], mask=mine)


@triton.jit
def flash_of_averages(
    query_ptr, key_ptr, value_ptr, output_ptr, scale,
    QUERY_LEN: tl.constexpr, KEY_LEN: tl.constexpr, DIM: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Carries an average and the logarithm of its weight; divides in each round, rightly."""
    rows, lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    q = _tile(query_ptr, rows, lanes, QUERY_LEN, DIM, "")
    mean = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    weight = tl.full([BLOCK], float("-inf"), tl.float32)  # log-sum-exp so far
    for start in range(0, KEY_LEN, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        k = _tile(key_ptr, keys, lanes, KEY_LEN, DIM, "")
        v = _tile(value_ptr, keys, lanes, KEY_LEN, DIM, "")
        s = scale * tl.dot(q, tl.trans(k), input_precision="ieee")
        s = tl.where((keys < KEY_LEN)[None, :], s, float("-inf"))
        top = tl.maximum(weight, tl.max(s, 1))
        total = tl.exp(weight - top) + tl.sum(tl.exp(s - top[:, None]), 1)
        new = top + tl.log(total)
        p = tl.exp(s - new[:, None])
        mean = mean * tl.exp(weight - new)[:, None] + tl.dot(p, v, input_precision="ieee")
        weight = new
    places = rows[:, None] * DIM + lanes[None, :]
    mine = (rows < QUERY_LEN)[:, None] & (lanes < DIM)[None, :]
    tl.store(output_ptr + places, mean, mask=mine)


RIGHT["4.7"] = [
    ("keys turned, base two", [scores_turned, flash_in_base_two]),
    ("no tl.dot, averages and their weights", [scores_summed, flash_of_averages]),
]


# The formulas of known mistakes ------------------------------------------------------

TABLES: list[Table] = [
    (cases._SPLIT_CASES, cases._split, mistakes._SPLIT_MISTAKES),
    (cases._MERGE_CASES, cases._merge, mistakes._MERGE_MISTAKES),
    (cases._MASK_CASES, cases._mask_of, mistakes._MASK_MISTAKES),
    (cases._COUNT_CASES, cases._count, mistakes._COUNT_MISTAKES),
    (cases._FETCH_CASES, cases._fetch_error, mistakes._FETCH_MISTAKES),
    (cases._FLOOR_CASES, cases._floor, mistakes._FLOOR_MISTAKES),
    (cases._PRUNE_CASES, cases._prune, mistakes._PRUNE_MISTAKES),
    (cases._STATE_CASES, cases._unpacked, mistakes._STATE_MISTAKES),
    (cases._TILE_CASES, cases._scores, mistakes._TILE_MISTAKES),
    (cases._FLASH_CASES, cases._flash, mistakes._FLASH_MISTAKES),
]
