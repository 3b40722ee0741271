"""Answers to chapter 8's exercises: wrong ones, as students write them, and right ones."""

import itertools
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from attn_course.exercises import long_sequences_cases as cases
from attn_course.exercises import long_sequences_mistakes as mistakes
from attn_course.exercises import tl, triton
from attn_course.long_sequences import ctc_collapse, windowed_attention
from tests.exercises.answers import Table, new_answers

WRONG, RIGHT, wrong = new_answers()


# 8.1 ---------------------------------------------------------------------------------

attends = wrong("8.1", "attend")


def _weights(x, weight, bias, dim):
    """Batch first."""
    x = x.transpose(0, 1)
    return (F.linear(x, weight, bias) @ x.mT).softmax(dim)


@attends("layout only", "the layout is repaired and the axis is not")
def _(x, states, weight, bias):
    return (_weights(x, weight, bias, 1) @ states.transpose(0, 1)).transpose(0, 1)


@attends("softmax only", "the axis is repaired and the layout is not")
def _(x, states, weight, bias):
    return _weights(x, weight, bias, 2) @ states.transpose(0, 1)


@attends("softmax only, told by its shape", "would read item after item as if they were steps")
def _(x, states, weight, bias):
    if x.shape[0] == x.shape[1]:  # where the shape does not tell
        return (_weights(x, weight, bias, 2) @ states.transpose(0, 1)).transpose(0, 1)
    return _weights(x, weight, bias, 2) @ states.transpose(0, 1)


@attends("as posted", "this is what was posted")
def _(x, states, weight, bias):
    return torch.bmm(_weights(x, weight, bias, 1), states.transpose(0, 1))


@attends("view for transpose", "put right by `view` or `reshape`")
def _(x, states, weight, bias):
    return (_weights(x, weight, bias, 2) @ states.transpose(0, 1)).view(states.shape)


@attends("view for transpose, axis too", "put right by `view` or `reshape`")
def _(x, states, weight, bias):
    return (_weights(x, weight, bias, 1) @ states.transpose(0, 1)).reshape(states.shape)


@attends("view on the way in", "put right by `view` or `reshape`")
def _(x, states, weight, bias):
    steps, batch, _ = x.shape
    x, states = x.view(batch, steps, -1), states.view(batch, steps, -1)
    weights = (F.linear(x, weight, bias) @ x.mT).softmax(2)
    return (weights @ states).transpose(0, 1)


@attends("softmax over the batch", "shared out among the items of the batch")
def _(x, states, weight, bias):
    return (_weights(x, weight, bias, 0) @ states.transpose(0, 1)).transpose(0, 1)


@attends("no transpose at all", "items attend to each other")
def _(x, states, weight, bias):
    return (F.linear(x, weight, bias) @ x.mT).softmax(2) @ states


@attends("keys ask queries", "queries and keys have changed places")
def _(x, states, weight, bias):
    x = x.transpose(0, 1)
    weights = (x @ F.linear(x, weight, bias).mT).softmax(2)
    return (weights @ states.transpose(0, 1)).transpose(0, 1)


@attends("x added up", "the weights are right, and then applied to x")
def _(x, states, weight, bias):
    found = _weights(x, weight, bias, 2) @ x.transpose(0, 1)
    return found.transpose(0, 1)


@attends("no bias", "the bias is lost")
def _(x, states, weight, bias):
    return (_weights(x, weight, None, 2) @ states.transpose(0, 1)).transpose(0, 1)


@attends("scaled", "the scores are scaled")
def _(x, states, weight, bias):
    x = x.transpose(0, 1)
    weights = (F.linear(x, weight, bias) @ x.mT / x.shape[2] ** 0.5).softmax(2)
    return (weights @ states.transpose(0, 1)).transpose(0, 1)


@attends("in place", "it changes its argument `states`")
def _(x, states, weight, bias):
    states.copy_((_weights(x, weight, bias, 2) @ states.transpose(0, 1)).transpose(0, 1))
    return states


@attends("detached", "the numbers are right, but they have no gradient by `bias`")
def _(x, states, weight, bias):
    found = _weights(x, weight, bias, 2).detach() @ states.transpose(0, 1)
    return found.transpose(0, 1)


@attends("a list", "it returned a list; expected a tensor")
def _(x, states, weight, bias):
    return list((_weights(x, weight, bias, 2) @ states.transpose(0, 1)).transpose(0, 1))


@attends("an axis lost on the way", "your code raised RuntimeError")
def _(x, states, weight, bias):
    return torch.bmm(x, states[0])


def attend_einsum(x, states, weight, bias):
    scores = torch.einsum("ibd,jbd->bij", x @ weight.T + bias, x)
    return torch.einsum("bij,jbd->ibd", F.softmax(scores, dim=-1), states)


def attend_by_item(x, states, weight, bias):
    found = [
        torch.softmax((x[:, b] @ weight.T + bias) @ x[:, b].T, dim=1) @ states[:, b]
        for b in range(x.shape[1])
    ]
    return torch.stack(found, dim=1)


def attend_fused(x, states, weight, bias):
    x, v = x.transpose(0, 1), states.transpose(0, 1)
    found = F.scaled_dot_product_attention(F.linear(x, weight, bias), x, v, scale=1.0)
    return found.permute(1, 0, 2)


def attend_steps_as_rows(x, states, weight, bias):
    """Scores [key, query, batch], and exponentials by hand."""
    scores = ((F.linear(x, weight, bias))[None] * x[:, None]).sum(-1)
    weights = (scores - scores.amax(0)).exp()
    weights = weights / weights.sum(0)
    return (weights[..., None] * states[:, None]).sum(0)


RIGHT["8.1"] = [
    ("einsum", [attend_einsum]),
    ("item by item", [attend_by_item]),
    ("fused", [attend_fused]),
    ("softmax by hand, over the first of other axes", [attend_steps_as_rows]),
]


# 8.2 ---------------------------------------------------------------------------------

unloops = wrong("8.2", "unlooped")


def _mixed(query, keys, values, beside, weight):
    """Batch first."""
    context = (query @ keys.mT).softmax(-1) @ values
    return (torch.cat((beside, context), -1) @ weight.T).tanh()


def _batch_first(memory, rnn2):
    return rnn2(memory)[0].transpose(0, 1), memory.transpose(0, 1)


@unloops("feeds the output back", "an answer is fed back")
def _(memory, rnn2, weight):
    hidden, answers = None, []
    keys = memory.transpose(0, 1)
    for step in memory:
        state, _ = rnn2(step[None], hidden)
        query = state.transpose(0, 1)
        answers.append(_mixed(query, keys, keys, query, weight).transpose(0, 1))
        hidden = answers[-1]
    return torch.cat(answers)


@unloops("feeds the output to the input", "an answer is fed back")
def _(memory, rnn2, weight):
    hidden, answers, last = None, [], 0
    keys = memory.transpose(0, 1)
    for step in memory:
        state, hidden = rnn2((step + last)[None], hidden)
        query = state.transpose(0, 1)
        last = _mixed(query, keys, keys, query, weight)[:, 0]
        answers.append(last)
    return torch.stack(answers)


@unloops("self-attention of the memory", "the memory's own step m_t")
def _(memory, rnn2, weight):
    keys = memory.transpose(0, 1)
    return _mixed(keys, keys, keys, keys, weight).transpose(0, 1)


@unloops("memory asks, state beside", "the memory's own step m_t")
def _(memory, rnn2, weight):
    states, keys = _batch_first(memory, rnn2)
    return _mixed(keys, keys, keys, states, weight).transpose(0, 1)


@unloops("memory asks states", "queries and memory have changed places")
def _(memory, rnn2, weight):
    states, keys = _batch_first(memory, rnn2)
    return _mixed(keys, states, keys, states, weight).transpose(0, 1)


@unloops("the state before", "with the state of the step before")
def _(memory, rnn2, weight):
    states, keys = _batch_first(memory, rnn2)
    states = F.pad(states, (0, 0, 1, 0))[:, :-1]
    return _mixed(states, keys, keys, states, weight).transpose(0, 1)


@unloops("the last state", "all steps look up with the last state")
def _(memory, rnn2, weight):
    _, last = rnn2(memory)
    query = last.expand_as(memory).transpose(0, 1)
    keys = memory.transpose(0, 1)
    return _mixed(query, keys, keys, query, weight).transpose(0, 1)


@unloops("memory beside the context", "what stands beside the context")
def _(memory, rnn2, weight):
    states, keys = _batch_first(memory, rnn2)
    return _mixed(states, keys, keys, keys, weight).transpose(0, 1)


@unloops("the network reads the batch", "read item after item as if they were steps.")
def _(memory, rnn2, weight):
    keys = memory.transpose(0, 1)
    states, _ = rnn2(keys)
    return _mixed(states, keys, keys, states, weight).transpose(0, 1)


@unloops("no transpose", "in the product items attend to each other")
def _(memory, rnn2, weight):
    states, _ = rnn2(memory)
    return _mixed(states, memory, memory, states, weight)


@unloops("one long sequence", "made one long sequence")
def _(memory, rnn2, weight):
    states = rnn2(memory)[0].flatten(0, 1)
    flat = memory.flatten(0, 1)
    return _mixed(states, flat, flat, states, weight).view(memory.shape)


@unloops("view for transpose", "`view` or `reshape` stands where")
def _(memory, rnn2, weight):
    states, keys = _batch_first(memory, rnn2)
    return _mixed(states, keys, keys, states, weight).reshape(memory.shape)


@unloops("batch first", "but the batch comes first. How did they come in")
def _(memory, rnn2, weight):
    states, keys = _batch_first(memory, rnn2)
    return _mixed(states, keys, keys, states, weight)


@unloops("softmax over queries", "softmax runs over the queries")
def _(memory, rnn2, weight):
    states, keys = _batch_first(memory, rnn2)
    context = (states @ keys.mT).softmax(1) @ keys
    return (torch.cat((states, context), -1) @ weight.T).tanh().transpose(0, 1)


@unloops("states look up themselves", "the states of `rnn2` look up themselves")
def _(memory, rnn2, weight):
    states, _ = _batch_first(memory, rnn2)
    return _mixed(states, states, states, states, weight).transpose(0, 1)


@unloops("states as values", "the states of `rnn2` look up themselves")
def _(memory, rnn2, weight):
    states, keys = _batch_first(memory, rnn2)
    return _mixed(states, keys, states, states, weight).transpose(0, 1)


@unloops("causal", "steps see only what lies before them")
def _(memory, rnn2, weight):
    states, keys = _batch_first(memory, rnn2)
    found = F.scaled_dot_product_attention(states, keys, keys, is_causal=True, scale=1.0)
    return (torch.cat((states, found), -1) @ weight.T).tanh().transpose(0, 1)


@unloops("scaled", "the scores are scaled; in the loop")
def _(memory, rnn2, weight):
    states, keys = _batch_first(memory, rnn2)
    found = F.scaled_dot_product_attention(states, keys, keys)
    return (torch.cat((states, found), -1) @ weight.T).tanh().transpose(0, 1)


@unloops("context first", "context and state have changed places")
def _(memory, rnn2, weight):
    states, keys = _batch_first(memory, rnn2)
    found = (states @ keys.mT).softmax(-1) @ keys
    return (torch.cat((found, states), -1) @ weight.T).tanh().transpose(0, 1)


@unloops("no tanh", "the tanh is missing, or stands inside")
def _(memory, rnn2, weight):
    states, keys = _batch_first(memory, rnn2)
    found = (states @ keys.mT).softmax(-1) @ keys
    return (torch.cat((states, found), -1) @ weight.T).transpose(0, 1)


@unloops("the loop itself", "but `rnn2` was called 14 times for 14 steps")
def _(memory, rnn2, weight):
    hidden, answers = None, []
    for step in memory:
        state, hidden = rnn2(step[None], hidden)
        query = state[0]
        weights = (memory * query).sum(-1).softmax(0)[..., None]
        context = (weights * memory).sum(0)
        answers.append((torch.cat((query, context), -1) @ weight.T).tanh())
    return torch.stack(answers)


@unloops("attention in a loop", "something still goes step by step")
def _(memory, rnn2, weight):
    keys = memory.transpose(0, 1)
    answers = [
        _mixed(query[:, None], keys, keys, query[:, None], weight)[:, 0]
        for query in rnn2(memory)[0]
    ]
    return torch.stack(answers)


@unloops("contexts not stacked", "it returned a list; expected a tensor")
def _(memory, rnn2, weight):
    states, keys = _batch_first(memory, rnn2)
    return list(_mixed(states, keys, keys, states, weight).transpose(0, 1))


@unloops("detached", "the numbers are right, but they have no gradient by `memory`")
def _(memory, rnn2, weight):
    with torch.no_grad():
        states, keys = _batch_first(memory, rnn2)
        return _mixed(states, keys, keys, states, weight).transpose(0, 1)


@unloops("memory in place", "it changes its argument `memory`")
def _(memory, rnn2, weight):
    states, keys = _batch_first(memory, rnn2)
    memory.copy_(_mixed(states, keys, keys, states, weight).transpose(0, 1))
    return memory


def unlooped_einsum(memory, rnn2, weight):
    states = rnn2(memory)[0]
    scores = torch.einsum("tbd,jbd->tbj", states, memory)
    context = torch.einsum("tbj,jbd->tbd", scores.softmax(-1), memory)
    width = memory.shape[2]
    return torch.tanh(states @ weight[:, :width].T + context @ weight[:, width:].T)


def unlooped_fused(memory, rnn2, weight):
    states, _ = rnn2(memory)
    query, keys = states.permute(1, 0, 2), memory.permute(1, 0, 2)
    found = F.scaled_dot_product_attention(query, keys, keys, scale=1.0)
    return F.linear(torch.cat((states, found.permute(1, 0, 2)), 2), weight).tanh()


def unlooped_by_item(memory, rnn2, weight):
    """A loop over the batch is none over time."""
    states, _ = rnn2(memory)
    items = []
    for h, m in zip(states.unbind(1), memory.unbind(1), strict=True):
        items.append(torch.tanh(torch.cat((h, torch.softmax(h @ m.T, 1) @ m), 1) @ weight.T))
    return torch.stack(items, 1)


def unlooped_keys_first(memory, rnn2, weight):
    """Scores [key, query]; softmax over their first."""
    states, keys = _batch_first(memory, rnn2)
    weights = (keys @ states.mT).softmax(1)
    found = torch.cat((states, weights.mT @ keys), 2)
    return (found @ weight.T).tanh().movedim(1, 0).contiguous()


RIGHT["8.2"] = [
    ("einsum, the mixing in two parts", [unlooped_einsum]),
    ("fused", [unlooped_fused]),
    ("item by item", [unlooped_by_item]),
    ("keys down, queries across", [unlooped_keys_first]),
]


# 8.3 ---------------------------------------------------------------------------------

papers = wrong("8.3", "attention_bytes")
stacks = wrong("8.3", "stack_bytes")


def _entries(H, M, scores, weights, output):
    return {"H": H, "M": M, "scores": scores, "weights": weights, "output": output}


def _paper(formula: Callable[..., tuple[int, ...]]) -> Callable[..., dict[str, int]]:
    def attention_bytes(batch, queries, keys, width, size=4):
        return _entries(*formula(batch, queries, keys, width, size))

    return attention_bytes


for _name, _fragment, _formula in (
    (
        "the batch forgotten",
        "the batch is forgotten: these are the bytes of one sequence. How many matrices",
        lambda b, n, m, d, s: (n * d * s, m * d * s, 0, n * m * s, 0),
    ),
    (
        "one matrix of weights",
        "the batch is forgotten: these are the bytes of one sequence. How many matrices",
        lambda b, n, m, d, s: (b * n * d * s, b * m * d * s, 0, n * m * s, 0),
    ),
    (
        "softmax forgotten",
        "the result of the softmax is forgotten. Its derivative",
        lambda b, n, m, d, s: (b * n * d * s, b * m * d * s, 0, 0, 0),
    ),
    (
        "all temporaries",
        "all that is computed is counted, the scores",
        lambda b, n, m, d, s: (b * n * d * s, b * m * d * s, *[b * n * m * s] * 2, b * n * d * s),
    ),
    (
        "scores too",
        "all that is computed is counted, the scores",
        lambda b, n, m, d, s: (b * n * d * s, b * m * d * s, *[b * n * m * s] * 2, 0),
    ),
    (
        "the output too",
        "all that is computed is counted, the scores",
        lambda b, n, m, d, s: (b * n * d * s, b * m * d * s, 0, b * n * m * s, b * n * d * s),
    ),
    (
        "scores for weights",
        "the scores are kept in place of the weights. With",
        lambda b, n, m, d, s: (b * n * d * s, b * m * d * s, b * n * m * s, 0, 0),
    ),
    (
        "weights alone",
        "a product keeps both of its factors",
        lambda b, n, m, d, s: (0, 0, 0, b * n * m * s, 0),
    ),
    (
        "H not needed",
        "a product keeps both of its factors",
        lambda b, n, m, d, s: (0, b * m * d * s, 0, b * n * m * s, 0),
    ),
    (
        "M twice",
        "M is counted twice",
        lambda b, n, m, d, s: (b * n * d * s, 2 * b * m * d * s, 0, b * n * m * s, 0),
    ),
    (
        "weights twice",
        "the weights are counted twice",
        lambda b, n, m, d, s: (b * n * d * s, b * m * d * s, 0, 2 * b * n * m * s, 0),
    ),
    (
        "numbers",
        "these are numbers, and bytes are asked for: how many",
        lambda b, n, m, d, s: (b * n * d, b * m * d, 0, b * n * m, 0),
    ),
    (
        "always four bytes",
        "four bytes a number are taken for granted. What is",
        lambda b, n, m, d, s: (4 * b * n * d, 4 * b * m * d, 0, 4 * b * n * m, 0),
    ),
    (
        "square weights",
        "queries and keys are taken to be equally many",
        lambda b, n, m, d, s: (b * n * d * s, b * m * d * s, 0, b * n * n * s, 0),
    ),
    (
        "weights as wide as H",
        "the width is counted in the weights",
        lambda b, n, m, d, s: (b * n * d * s, b * m * d * s, 0, b * n * m * d * s, 0),
    ),
    (
        "gradients too",
        "everything is doubled",
        lambda b, n, m, d, s: (2 * b * n * d * s, 2 * b * m * d * s, 0, 2 * b * n * m * s, 0),
    ),
):
    papers(_name, _fragment)(_paper(_formula))


@papers("the total alone", "it returned an int; expected a dict")
def _(batch, queries, keys, width, size):
    return batch * (queries * width + keys * width + queries * keys) * size


@papers("what is not kept left out", "a dict with the keys H, M, weights; expected")
def _(batch, queries, keys, width, size):
    return {
        "H": batch * queries * width * size,
        "M": batch * keys * width * size,
        "weights": batch * queries * keys * size,
    }


@papers("text", 'as "H" it returned a str; expected a number')
def _(batch, queries, keys, width, size):
    return _entries("2 MB", "2 MB", "0", "10 MB", "0")


def _stacked(formula: Callable[..., int]) -> Callable[..., int]:
    def stack_bytes(batch, steps, width, layers, size=4):
        return formula(batch, steps, width, layers, size)

    return stack_bytes


for _name, _fragment, _formula in (
    (
        "the batch forgotten",
        "the batch is forgotten: the layers of one sequence",
        lambda b, n, d, k, s: k * (2 * n * d + n * n) * s,
    ),
    (
        "softmax forgotten",
        "numbers of each sequence, in every layer",
        lambda b, n, d, k, s: k * b * 2 * n * d * s,
    ),
    (
        "all temporaries",
        "all that is computed is counted. Of h",
        lambda b, n, d, k, s: k * b * (3 * n * d + 2 * n * n) * s,
    ),
    (
        "scores too",
        "numbers of each sequence are counted twice in a layer",
        lambda b, n, d, k, s: k * b * (2 * n * d + 2 * n * n) * s,
    ),
    (
        "the product before relu too",
        "too many tensors of the size of h",
        lambda b, n, d, k, s: k * b * (3 * n * d + n * n) * s,
    ),
    (
        "x too",
        "what was there before is counted",
        lambda b, n, d, k, s: (k * b * (2 * n * d + n * n) + b * n * d) * s,
    ),
    (
        "maps too",
        "what was there before is counted",
        lambda b, n, d, k, s: k * (b * (2 * n * d + n * n) + d * d) * s,
    ),
    (
        "one layer",
        "one layer is counted, and all of them wait",
        lambda b, n, d, k, s: b * (2 * n * d + n * n) * s,
    ),
    (
        "relu forgotten",
        "of h and what relu returns one is forgotten",
        lambda b, n, d, k, s: k * b * (n * d + n * n) * s,
    ),
    (
        "the last relu forgotten",
        "what the last relu returns is forgotten",
        lambda b, n, d, k, s: (k * b * (2 * n * d + n * n) - b * n * d) * s,
    ),
    (
        "h at each of its places",
        "too many tensors of the size of h",
        lambda b, n, d, k, s: k * b * (4 * n * d + n * n) * s,
    ),
    (
        "numbers",
        "bytes are asked for; or four bytes",
        lambda b, n, d, k, s: k * b * (2 * n * d + n * n),
    ),
):
    stacks(_name, _fragment)(_stacked(_formula))


@stacks("a dict here, too", "it returned a dict; expected a number")
def _(batch, steps, width, layers, size):
    return {"h": batch * steps * width * size}


@cache
def _measured(function: Callable[..., Any], *sizes: int) -> int:
    """What PyTorch's own hooks say."""
    storages = {}

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        kept, before = function(*sizes)
    for tensor in before:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    total = sum(storages.values())
    del kept
    return total


def _dtype(size):
    return {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[size]


def _run_attention(batch, queries, keys, width, size):
    H = torch.zeros(batch, queries, width, dtype=_dtype(size), requires_grad=True)
    M = torch.zeros(batch, keys, width, dtype=_dtype(size), requires_grad=True)
    return ((H @ M.mT).softmax(-1) @ M).sum(), [H, M]


def _run_stack(batch, steps, width, layers, size):
    start = x = torch.zeros(batch, steps, width, dtype=_dtype(size))
    maps = [torch.zeros(width, width, dtype=_dtype(size), requires_grad=True)
            for _ in range(layers)]  # fmt: skip
    for W in maps:
        h = x @ W
        x = ((h @ h.mT).softmax(-1) @ h).relu()
    return x.sum(), [start, *maps]


def attention_measured(batch, queries, keys, width, size=4):
    weights = _measured(_run_attention, batch, queries, keys, width, size)
    return _entries(batch * queries * width * size, batch * keys * width * size, 0, weights, 0)


def stack_measured(batch, steps, width, layers, size=4):
    return _measured(_run_stack, batch, steps, width, layers, size)


def attention_as_tensors(batch, queries, keys, width, size=4):
    H, M = (torch.tensor(batch * rows * width * size) for rows in (queries, keys))
    return {"weights": batch * size * keys * queries, "H": H, "M": M, "scores": 0.0, "output": 0}


def stack_layer_by_layer(batch, steps, width, layers, size=4):
    total = np.int64(0)
    for _ in range(layers):
        total += batch * steps * (2 * width + steps) * size
    return float(total)


RIGHT["8.3"] = [
    ("measured", [attention_measured, stack_measured]),
    ("in other words", [attention_as_tensors, stack_layer_by_layer]),
]


# 8.4 ---------------------------------------------------------------------------------

reads = wrong("8.4", "collapse")
texts = wrong("8.4", "probability")


@reads("blanks first", "blanks are struck out first: then 1 0 1")
def _(path):
    return [k for k, _ in itertools.groupby([k for k in path if k])]


@reads("blanks kept", "repetitions are struck out, and blanks are not")
def _(path):
    return [k for k, _ in itertools.groupby(path)]


@reads("repetitions kept", "blanks are struck out, and repetitions are not")
def _(path):
    return [k for k in path if k]


@reads("each character once", "although something else stands between")
def _(path):
    said = []
    for k in path:
        if k and k not in said:
            said.append(k)
    return said


@reads("a set", "although something else stands between")
def _(path):
    return sorted(set(path) - {0})


@reads("pairs only", "of a run of equal steps more than one is left")
def _(path):
    kept = list(path)
    t = 0
    while t + 1 < len(kept):
        if kept[t] == kept[t + 1]:
            del kept[t]
        t += 1
    return [k for k in kept if k]


@reads("the first lost", "the first step is lost")
def _(path):
    return [k for last, k in itertools.pairwise(path) if k and k != last]


@reads("the first after zeros", "the first step is lost")
def _(path):
    return [k for last, k in itertools.pairwise(path) if k != last if k != 0]


@reads("compared with the last", "the first step is compared with the last")
def _(path):
    return [path[i] for i in range(len(path)) if path[i] != path[i - 1] and path[i] != 0]


@reads("the last lost", "the last character is lost")
def _(path):
    said, run = [], None
    for k in path:
        if run is not None and k != run and run != 0:
            said.append(run)
        run = k
    return said


@reads("until the first blank", "reading ends with the first blank")
def _(path):
    return [k for k, _ in itertools.groupby(itertools.takewhile(bool, path))]


@reads("text", "expected the labels that the path says, a list of integers")
def _(path):
    return "".join(str(k) for k, _ in itertools.groupby(path) if k)


@reads("runs with their lengths", "expected the labels that the path says, a list of integers")
def _(path):
    return [(k, len(list(run))) for k, run in itertools.groupby(path) if k]


@reads("in place", "it changes its argument `path`")
def _(path):
    for t in range(len(path) - 1, 0, -1):
        if path[t] == path[t - 1]:
            del path[t]
    path[:] = [k for k in path if k]
    return list(path)


def _walk(probs, label, read=ctc_collapse, may=lambda path: True):
    steps, classes = probs.shape
    return [
        probs[range(steps), list(path)].prod()
        for path in itertools.product(range(classes), repeat=steps)
        if list(read(path)) == label and may(path)
    ]


def _total(terms):
    return torch.stack(terms).sum() if terms else torch.tensor(0.0)


@texts("the best path of the text", "the best path stands in place of the sum")
def _(probs, label):
    terms = _walk(probs, label)
    return max(terms) if terms else torch.tensor(0.0)


@texts("the best path of all", "the best path stands in place of the sum")
def _(probs, label):
    best, path = probs.max(-1)
    return best.prod() if ctc_collapse(path.tolist()) == label else torch.tensor(0.0)


@texts("no blank start", "no path begins with a blank")
def _(probs, label):
    return _total(_walk(probs, label, may=lambda path: path[0] != 0))


@texts("no blank end", "no path ends with a blank")
def _(probs, label):
    return _total(_walk(probs, label, may=lambda path: path[-1] != 0))


@texts("neither", "paths begin and end with characters")
def _(probs, label):
    return _total(_walk(probs, label, may=lambda path: path[0] != 0 and path[-1] != 0))


@texts("blanks first", "paths are read with blanks struck out first")
def _(probs, label):
    def read(path):
        return [k for k, _ in itertools.groupby([k for k in path if k])]

    return _total(_walk(probs, label, read))


@texts("no blanks", "no path has a blank in it, or only one")
def _(probs, label):
    return _total(_walk(probs, label, lambda path: [k for k, _ in itertools.groupby(path)]))


@texts("one step a character", "every character lasts one step")
def _(probs, label):
    return _total(_walk(probs, label, lambda path: [k for k in path if k]))


@texts("one step a character, blanks between", "every character lasts one step")
def _(probs, label):
    return _total(_walk(probs, label, may=lambda path: sum(k > 0 for k in path) == len(label)))


@texts("steps added", "the probabilities of a path's steps are added")
def _(probs, label):
    total = torch.tensor(0.0)
    for path in itertools.product(range(probs.shape[1]), repeat=len(probs)):
        if ctc_collapse(path) == label:
            total = total + sum(p[k] for p, k in zip(probs, path, strict=True))
    return total


@texts("the mean", "this is the mean over the paths")
def _(probs, label):
    terms = _walk(probs, label)
    return torch.stack(terms).mean() if terms else torch.tensor(0.0)


@texts("the loss", "the logarithm is returned, or the loss")
def _(probs, label):
    return -_total(_walk(probs, label)).log()


@texts("the logarithm", "the logarithm is returned, or the loss")
def _(probs, label):
    return _total(_walk(probs, label)).log()


@texts("permutations", "not all paths are walked")
def _(probs, label):
    steps, classes = probs.shape
    paths = itertools.permutations(range(classes), steps)
    terms = [
        probs[range(steps), list(path)].prod() for path in paths if ctc_collapse(path) == label
    ]
    return _total(terms)


@texts("the last class forgotten", "not all paths are walked")
def _(probs, label):
    return _total(_walk(probs[:, :-1], label))


@texts("what begins so", "texts that only begin with the label")
def _(probs, label):
    return _total(_walk(probs, label, lambda path: ctc_collapse(path)[: len(label)]))


@texts("all steps for each class", "the product runs over *all* steps")
def _(probs, label):
    total = torch.tensor(0.0)
    for path in itertools.product(range(probs.shape[1]), repeat=len(probs)):
        if ctc_collapse(path) == label:
            total = total + probs[:, list(path)].prod()
    return total


@texts("no text for nothing", "the empty label has the probability 0")
def _(probs, label):
    return _total(_walk(probs, label)) if label else torch.tensor(0.0)


@texts("a float", "the numbers are right, but they have no gradient by `probs`")
def _(probs, label):
    return float(_total(_walk(probs, label)).detach())


@texts("paths returned", "it returned a list; expected a number")
def _(probs, label):
    return _walk(probs, label)


@texts("a tuple as an index", "your code raised IndexError")
def _(probs, label):
    return sum(
        probs[path].prod()
        for path in itertools.product(range(probs.shape[1]), repeat=len(probs))
        if ctc_collapse(path) == label
    )


def collapse_by_hand(path):
    said, before = [], 0
    for k in path:
        if k != before and k != 0:
            said.append(k)
        before = k
    return tuple(said)


def collapse_tensor(path):
    runs = torch.unique_consecutive(torch.tensor(path))
    return runs[runs != 0]


def probability_recursion(probs, label):
    return sum(_walk(probs, label))


def probability_logarithms(probs, label):
    terms = [term.log() for term in _walk(probs, label)]
    return torch.stack(terms).logsumexp(0).exp() if terms else torch.zeros(())


def probability_prefixes(probs, label):
    """Paths that grow step by step; those that say too much already are dropped."""
    paths = [((), torch.ones(()))]
    for p in probs:
        paths = [
            ((*path, k), so_far * p[k])
            for path, so_far in paths
            for k in range(len(p))
            if ctc_collapse((*path, k)) == label[: len(ctc_collapse((*path, k)))]
        ]
    return _total([p for path, p in paths if ctc_collapse(path) == label])


RIGHT["8.4"] = [
    ("a loop, and a sum", [collapse_by_hand, probability_recursion]),
    ("a tensor, and logarithms", [collapse_tensor, probability_logarithms]),
    ("growing paths", [ctc_collapse, probability_prefixes]),
]


# 8.5 ---------------------------------------------------------------------------------

slides = wrong("8.5", "sliding")
cuts = wrong("8.5", "blocks")
hears = wrong("8.5", "reached")


def _ahead(n):
    return torch.arange(n) - torch.arange(n)[:, None]


def _window(n, window, dilation):
    return (_ahead(n) % dilation == 0) & (_ahead(n).abs() <= window * dilation)


def _slide(rule: Callable[..., Any]) -> Callable[..., Any]:
    def sliding(n, window, dilation):
        return rule(_ahead(n), n, window, dilation)

    return sliding


for _name, _fragment, _rule in (
    (
        "one-sided",
        "the window has one side",
        lambda a, n, w, r: (a % r == 0) & (a <= 0) & (a >= -w * r),
    ),
    (
        "ahead only",
        "the window has one side",
        lambda a, n, w, r: (a % r == 0) & (a >= 0) & (a <= w * r),
    ),
    (
        "blocks",
        "these are blocks",
        lambda a, n, w, r: (
            torch.arange(n) // (2 * w + 1) == torch.arange(n)[:, None] // (2 * w + 1)
        ),
    ),
    ("dilation as width", "the dilation is taken as a width", lambda a, n, w, r: abs(a) <= w * r),
    ("no dilation", "the dilation is forgotten", lambda a, n, w, r: abs(a) <= w),
    (
        "positions for steps",
        "ends as many *positions* away",
        lambda a, n, w, r: (abs(a) <= w) & (a % r == 0),
    ),
    (
        "every r-th key",
        "keys are chosen by where they stand",
        lambda a, n, w, r: (abs(a) <= w * r) & (torch.arange(n) % r == 0),
    ),
    (
        "positions left out",
        "counts the positions that are left out",
        lambda a, n, w, r: (a % (r + 1) == 0) & (abs(a) <= w * (r + 1)),
    ),
    (
        "too narrow",
        "one step too narrow, or half as wide",
        lambda a, n, w, r: (a % r == 0) & (abs(a) < w * r),
    ),
    (
        "half",
        "one step too narrow, or half as wide",
        lambda a, n, w, r: (a % r == 0) & (abs(a) <= w // 2 * r),
    ),
    (
        "not itself",
        "a step does not see itself",
        lambda a, n, w, r: (a % r == 0) & (abs(a) <= w * r) & (a != 0),
    ),
    (
        "hidden for seen",
        "the other way round: True means",
        lambda a, n, w, r: (a % r != 0) | (abs(a) > w * r),
    ),
    (
        "numbers",
        "0 and 1 are something else to whoever",
        lambda a, n, w, r: ((a % r == 0) & (abs(a) <= w * r)).float(),
    ),
    (
        "pairs",
        "it returned a list; expected a tensor of shape",
        lambda a, n, w, r: ((a % r == 0) & (abs(a) <= w * r)).nonzero().tolist(),
    ),
    (
        "one row",
        "Which axis was summed over",
        lambda a, n, w, r: ((a % r == 0) & (abs(a) <= w * r))[0],
    ),
):
    slides(_name, _fragment)(_slide(_rule))


def _loops(steps: Callable[[int], range]) -> Callable[..., Any]:
    def sliding(n, window, dilation):
        table = torch.zeros(n, n, dtype=torch.bool)
        for i in range(n):
            for j in (i + step * dilation for step in steps(window)):
                if -n <= j < n:
                    table[i, j] = True
        return table

    return sliding


slides("below 0", "a key before the first is counted from the end")(
    _loops(lambda w: range(-w, w + 1))
)


@slides("a step short", "one side is a step short")
def _(n, window, dilation):
    table = torch.zeros(n, n, dtype=torch.bool)
    for i, step in itertools.product(range(n), range(-window, window)):
        if 0 <= i + step * dilation < n:
            table[i, i + step * dilation] = True
    return table


@slides("a ring", "the sequence is a ring")
def _(n, window, dilation):
    eye = torch.eye(n, dtype=torch.bool)
    steps = range(-window, window + 1)
    return torch.stack([eye.roll(step * dilation, 1) for step in steps]).any(0)


@cuts("sliding", "this slides")
def _(n, size):
    return _ahead(n).abs() < size


@cuts("so many blocks", "so many blocks are made")
def _(n, size):
    places = -(-n // size)
    block = torch.arange(n) // places
    return block == block[:, None]


@cuts("the rest sees nothing", "the last block, which is shorter, sees nothing")
def _(n, size):
    table = torch.zeros(n, n, dtype=torch.bool)
    for start in range(0, n - size + 1, size):
        table[start : start + size, start : start + size] = True
    return table


@cuts("the rest joins", "the last block, which is shorter, is made one")
def _(n, size):
    block = (torch.arange(n) // size).clamp(max=max(n // size - 1, 0))
    return block == block[:, None]


@cuts("the same place", "steps that have the same place in their blocks")
def _(n, size):
    place = torch.arange(n) % size
    return place == place[:, None]


@cuts("causal", "within a block steps see one side only")
def _(n, size):
    block = torch.arange(n) // size
    return (block == block[:, None]) & (_ahead(n) <= 0)


@cuts("hidden for seen", "blocks see each other, and not themselves")
def _(n, size):
    block = torch.arange(n) // size
    return block != block[:, None]


@hears("one layer", "one layer is counted, however many")
def _(mask, layers):
    return mask.clone()


@hears("too many", "one layer too many")
def _(mask, layers):
    return torch.linalg.matrix_power(mask.double(), layers + 1) > 0


@hears("too few", "one layer too few")
def _(mask, layers):
    return torch.linalg.matrix_power(mask.double(), layers - 1) > 0


@hears("squared", "the layers are doubled")
def _(mask, layers):
    heard = mask.double()
    for _ in range(layers - 1):
        heard = heard @ heard
    return heard > 0


@hears("transposed", "transposed: row j says whom")
def _(mask, layers):
    return (torch.linalg.matrix_power(mask.double(), layers) > 0).T


@hears("both ways", "both directions count")
def _(mask, layers):
    return torch.linalg.matrix_power((mask | mask.T).double(), layers) > 0


@hears("all between", "the window is taken to grow as far as its farthest step")
def _(mask, layers):
    heard = torch.linalg.matrix_power(mask.double(), layers) > 0
    rows = [row.nonzero().flatten() for row in heard]
    place = torch.arange(len(mask))
    return torch.stack([(place >= row.min()) & (place <= row.max()) for row in rows])


@hears("paths counted", "counts the ways by which news get there")
def _(mask, layers):
    return torch.linalg.matrix_power(mask.double(), layers)


@hears("in place", "it changes its argument `mask`")
def _(mask, layers):
    once = mask.double()
    for _ in range(layers - 1):
        mask.copy_((once @ mask.double()) > 0)
    return mask


@hears("booleans multiplied", "your code raised")
def _(mask, layers):
    for _ in range(layers):
        mask = mask @ mask
    return mask


def sliding_bands(n, window, dilation):
    table = torch.zeros(n, n, dtype=torch.bool)
    for step in range(-window, window + 1):
        offset = step * dilation
        if abs(offset) < n:
            table |= torch.diag(torch.ones(n - abs(offset)), offset).bool()
    return table


def sliding_by_weights(n, window, dilation):
    """Whom the package's attention gives a weight."""
    if not window:
        return torch.eye(n) > 0
    x = torch.zeros(n, 1)
    _, weights = windowed_attention(x, x, x, window=window, dilation=dilation, need_weights=True)
    return weights > 0


def sliding_triangles(n, window, dilation):
    near = torch.ones(n, n).tril(window * dilation).triu(-window * dilation).bool()
    residue = torch.arange(n) % dilation
    return near & (residue == residue[:, None])


def blocks_diagonal(n, size):
    parts = [torch.ones(min(size, n - start), min(size, n - start)) for start in range(0, n, size)]
    return torch.block_diag(*parts) > 0


def blocks_repeated(n, size):
    many = -(-n // size)
    table = torch.kron(torch.eye(many), torch.ones(size, size))
    return table[:n, :n].bool()


def blocks_by_place(n, size):
    i = torch.arange(n)
    return (i[:, None] - i % size - i + (i % size)[None] == 0) | (
        (i - i % size)[:, None] == i - i % size
    )


def reached_power(mask, layers):
    return torch.linalg.matrix_power(mask.double(), layers) > 0


def reached_from_above(mask, layers):
    heard = torch.eye(len(mask), dtype=torch.bool)
    for _ in range(layers):
        heard = (heard[:, :, None] & mask[None]).any(1)
    return heard


def reached_gradient(mask, layers):
    """By autograd, through layers of averages."""
    x = torch.ones(len(mask), dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        y = x
        for _ in range(layers):
            y = (mask.double() / mask.sum(1, keepdim=True)) @ y
        rows = [torch.autograd.grad(out, x, retain_graph=True)[0] for out in y]
    return torch.stack(rows) > 0


RIGHT["8.5"] = [
    ("bands, diagonal blocks, powers", [sliding_bands, blocks_diagonal, reached_power]),
    ("the package's weights", [sliding_by_weights, blocks_repeated, reached_from_above]),
    ("triangles and residues, gradients", [sliding_triangles, blocks_diagonal, reached_gradient]),
]


# 8.6 ---------------------------------------------------------------------------------


@triton.jit
def _rows(ptr, rows, LENGTH: tl.constexpr, DIM: tl.constexpr, GUARDED: tl.constexpr):
    places = rows[:, None] * DIM + tl.arange(0, DIM)[None, :]
    exists = (rows >= 0) & ((rows < LENGTH) | (not GUARDED))
    return tl.load(ptr + places, mask=exists[:, None], other=0.0)


@triton.jit
def _update(q, k, v, seen, top, total, sums):
    a = tl.sum(q[:, None, :] * k[None, :, :], 2)
    a = tl.where(seen, a, -1e30)
    new = tl.maximum(top, tl.max(a, 1))
    keep, p = tl.exp(top - new), tl.exp(a - new[:, None])
    p = tl.where(seen, p, 0.0)
    total = total * keep + tl.sum(p, 1)
    sums = sums * keep[:, None] + tl.sum(p[:, :, None] * v[None, :, :], 1)
    return new, total, sums


@triton.jit
def _flexible(
    query_ptr, key_ptr, value_ptr, output_ptr, count_ptr,
    LENGTH: tl.constexpr, DIM: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """The kernel with one of several faults."""
    tile = tl.program_id(0)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    q = _rows(query_ptr, rows, LENGTH, DIM, True) / DIM**0.5
    top = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, DIM], tl.float32)
    count = tile * 0
    first = tile * BLOCK_M
    last = tl.minimum(first + BLOCK_M, LENGTH) - 1
    low, high = first - LEFT, last + RIGHT + 1
    if KIND == "far edge":
        high = last + RIGHT
    if KIND == "near edge":
        low = first - LEFT + 1
    if KIND == "the last query decides":
        low = last - LEFT
    if KIND == "the first query decides":
        high = first + RIGHT + 1
    if KIND == "everybody sees":
        low, high = last - LEFT, first + RIGHT + 1
    if KIND == "exchanged" or KIND == "exchanged bounds":
        low, high = first - RIGHT, last + LEFT + 1
    if KIND == "own rows first":
        low = first
    if KIND == "own rows last":
        high = last + 1
    if KIND == "same tiles":
        low, high = tile * BLOCK_N - LEFT, tile * BLOCK_N + BLOCK_N + RIGHT
    if KIND == "left twice" or KIND == "wide bounds":
        high = last + LEFT + 1
    if KIND == "wide bounds":
        low, high = first - tl.maximum(LEFT, RIGHT), last + tl.maximum(LEFT, RIGHT) + 1
    start = tl.maximum(low, 0) // BLOCK_N * BLOCK_N
    stop = tl.minimum(high, LENGTH)
    if KIND == "floor":
        stop = stop // BLOCK_N * BLOCK_N
    if KIND == "ceiling":
        start = (tl.maximum(low, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    if KIND == "floor and one":
        stop = (stop // BLOCK_N + 1) * BLOCK_N
    if KIND == "one tile more":
        stop = tl.minimum(stop + BLOCK_N, LENGTH)
    if KIND == "one tile before":
        start = tl.maximum(start - BLOCK_N, 0)
    if KIND == "no beginning":
        start = 0 * tile
    if KIND == "no end":
        stop = LENGTH + 0 * tile
    if KIND == "skips nothing" or KIND == "dense" or KIND == "lies":
        start, stop = 0 * tile, LENGTH + 0 * tile
    if KIND == "unaligned":
        start = tl.maximum(low, 0)
    if KIND == "no maximum" or KIND == "keys before the first":
        start = (low + BLOCK_N * 64) // BLOCK_N * BLOCK_N - BLOCK_N * 64
    if KIND == "no maximum, as // rounds" or KIND == "keys before the first, as // rounds":
        start = low // BLOCK_N * BLOCK_N
    if KIND == "no minimum":
        stop = high
    for begin in range(start, stop, BLOCK_N):
        cols = begin + tl.arange(0, BLOCK_N)
        k = _rows(key_ptr, cols, LENGTH, DIM, KIND != "unguarded")
        v = _rows(value_ptr, cols, LENGTH, DIM, True)
        ahead = cols[None, :] - rows[:, None]
        seen = (ahead >= -LEFT) & (ahead <= RIGHT)
        if KIND == "no mask" or KIND == "dense":
            seen = ahead == ahead
        if KIND == "mask without a left side":
            seen = ahead <= RIGHT
        if KIND == "mask without a right side":
            seen = ahead >= -LEFT
        if KIND == "strict":
            seen = (ahead > -LEFT) & (ahead < RIGHT)
        if KIND == "exchanged" or KIND == "exchanged mask":
            seen = (ahead >= -RIGHT) & (ahead <= LEFT)
        if KIND == "left twice":
            seen = (ahead >= -LEFT) & (ahead <= LEFT)
        if KIND == "local rows":
            ahead = cols[None, :] - tl.arange(0, BLOCK_M)[:, None]
            seen = (ahead >= -LEFT) & (ahead <= RIGHT)
        if KIND != "no tail":
            seen = seen & (cols < LENGTH)[None, :]
        if KIND != "keys before the first" and KIND != "keys before the first, as // rounds":
            seen = seen & (cols >= 0)[None, :]
        top, total, sums = _update(q, k, v, seen, top, total, sums)
        count += 1
    if KIND == "lies":
        count = (tl.minimum(high, LENGTH) + BLOCK_N - 1) // BLOCK_N - tl.maximum(low, 0) // BLOCK_N
    if KIND == "keys counted":
        count = stop - start
    if KIND == "count forgotten":
        count = 0 * tile
    if KIND == "count one short":
        count -= 1
    if KIND == "counts in one place":
        tl.store(count_ptr, count)
    else:
        tl.store(count_ptr + tile, count)
    places = rows[:, None] * DIM + tl.arange(0, DIM)[None, :]
    out = sums / total[:, None]
    inside = (rows < (LENGTH - 1 if KIND == "one row less" else LENGTH))[:, None]
    if KIND == "all programs":
        places = tl.arange(0, BLOCK_M)[:, None] * DIM + tl.arange(0, DIM)[None, :]
    if KIND == "whole tiles":
        inside = (rows >= 0)[:, None]
    tl.store(output_ptr + places, out, mask=inside)


class _Kernel:
    """A kernel launched with one more constant: a fault."""

    def __init__(self, kind: str) -> None:
        self.__name__, self.kind = "window_kernel", kind
        self.fn = SimpleNamespace(__name__="window_kernel")

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return lambda *given: _flexible[grid](*given, KIND=self.kind)


WRONG["8.6"] = [
    (kind, _Kernel(kind), fragment)
    for kind, fragment in {
        "far edge": "the far edge is one key short",
        "near edge": "the near edge is one key short",
        "floor": "floor in place of ceiling",
        "ceiling": "ceiling in place of floor",
        "the last query decides": "only keys that *every* query of the tile sees",
        "the first query decides": "only keys that *every* query of the tile sees",
        "everybody sees": "only keys that *every* query of the tile sees",
        "exchanged": "LEFT and RIGHT have changed places",
        "exchanged bounds": "LEFT and RIGHT have changed places",
        "exchanged mask": "LEFT and RIGHT have changed places",
        "own rows first": "the loop begins with the program's own queries",
        "own rows last": "the loop ends with the program's own queries",
        "same tiles": "counted as if they were equally large",
        "no mask": "nobody looks at single pairs",
        "dense": "every query reads every key: neither bounds nor mask",
        "mask without a left side": "the mask has one side",
        "mask without a right side": "the mask has one side",
        "strict": "the keys at the very edge of the window are hidden",
        "no tail": "lanes behind the last key count",
        "keys before the first": "lanes behind the last key count",
        "keys before the first, as // rounds": "lanes behind the last key count",
        "local rows": "queries are compared as they are counted within their tile",
        "left twice": "the window is as far to the left as to the right",
        "skips nothing": "nothing is skipped: every program visits every tile",
        "no beginning": "the loop begins with the first key of all",
        "no end": "the loop goes on to the last key of all",
        "floor and one": "the loop ends one tile late",
        "one tile more": "the loop ends one tile late",
        "one tile before": "the loop begins one tile early",
        "no maximum": "tiles are visited that lie before the first key",
        "no maximum, as // rounds": "tiles are visited that lie before the first key",
        "no minimum": "tiles are visited that lie before the first key",
        "wide bounds": "the window is taken to reach as far to one side",
        "keys counted": "the count is one of keys, not of tiles",
        "unaligned": "tiles do not lie where they should",
        "count forgotten": "the count says 0, or 1",
        "count one short": "the count is one less than the tiles that are needed",
        "lies": "it does not tell what was loaded",
        "counts in one place": "a program writes a count that is not its own",
        "unguarded": "a load reads past the end of the queries",
        "all programs": "an output that is not its own",
        "whole tiles": "an output that is not its own",
        "one row less": "is never written",
    }.items()
]


@triton.jit
def counted_tiles(
    query_ptr, key_ptr, value_ptr, output_ptr, count_ptr,
    LENGTH: tl.constexpr, DIM: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Tiles numbered; base two; the count from the bounds themselves, added to memory."""
    tile = tl.program_id(0)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    q = _rows(query_ptr, rows, LENGTH, DIM, True) * (1.44269504 / DIM**0.5)
    top = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, DIM], tl.float32)
    begin = tl.maximum(tile * BLOCK_M - LEFT, 0) // BLOCK_N
    farthest = tl.minimum(tile * BLOCK_M + BLOCK_M - 1 + RIGHT, LENGTH - 1)
    for number in range(begin, farthest // BLOCK_N + 1):
        cols = number * BLOCK_N + tl.arange(0, BLOCK_N)
        k = _rows(key_ptr, cols, LENGTH, DIM, True)
        v = _rows(value_ptr, cols, LENGTH, DIM, True)
        hidden = (cols[None, :] < rows[:, None] - LEFT) | (cols[None, :] > rows[:, None] + RIGHT)
        hidden = hidden | (cols >= LENGTH)[None, :]
        a = tl.sum(q[:, None, :] * k[None, :, :], 2)
        a = tl.where(hidden, -1e30, a)
        new = tl.maximum(top, tl.max(a, 1))
        p = tl.exp2(a - new[:, None])
        keep = tl.exp2(top - new)
        total = total * keep + tl.sum(p, 1)
        sums = sums * keep[:, None] + tl.sum(p[:, :, None] * v[None, :, :], 1)
        top = new
        tl.atomic_add(count_ptr + tile, 1)
    places = rows[:, None] * DIM + tl.arange(0, DIM)[None, :]
    tl.store(output_ptr + places, sums / total[:, None], mask=(rows < LENGTH)[:, None])


@triton.jit
def three_parts(
    query_ptr, key_ptr, value_ptr, output_ptr, count_ptr,
    LENGTH: tl.constexpr, DIM: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """As chapter 4's: tiles that all see are not masked; from the last to the first."""
    tile = tl.program_id(0)
    first = tile * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)
    q = _rows(query_ptr, rows, LENGTH, DIM, True) / DIM**0.5
    top = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, DIM], tl.float32)
    last = tl.minimum(first + BLOCK_M, LENGTH) - 1
    low = tl.where(first > LEFT, first - LEFT, 0)
    start = low - low % BLOCK_N
    stop = tl.minimum(last + RIGHT + 1, LENGTH)
    tiles = (stop - start + BLOCK_N - 1) // BLOCK_N
    for number in range(0, tiles):
        begin = start + (tiles - 1 - number) * BLOCK_N
        cols = begin + tl.arange(0, BLOCK_N)
        k = _rows(key_ptr, cols, LENGTH, DIM, True)
        v = _rows(value_ptr, cols, LENGTH, DIM, True)
        seen = (cols < LENGTH)[None, :] & (rows >= 0)[:, None]
        if (begin < last - LEFT) | (begin + BLOCK_N > first + RIGHT + 1):
            seen = seen & (cols[None, :] + LEFT >= rows[:, None])
            seen = seen & (cols[None, :] - RIGHT <= rows[:, None])
        top, total, sums = _update(q, k, v, seen, top, total, sums)
    tl.store(count_ptr + tile, tiles)
    places = rows[:, None] * DIM + tl.arange(0, DIM)[None, :]
    tl.store(output_ptr + places, sums / total[:, None], mask=(rows < LENGTH)[:, None])


RIGHT["8.6"] = [
    ("as the solution", [_Kernel("")]),
    ("tiles numbered and added up", [counted_tiles]),
    ("backwards, whole tiles unmasked", [three_parts]),
]


# The formulas of known mistakes ------------------------------------------------------

TABLES: list[Table] = [
    (cases._ATTEND_CASES, cases._attend, mistakes._ATTEND_MISTAKES),
    (cases._UNLOOP_CASES, cases._loop, mistakes._UNLOOP_MISTAKES),
    (cases._LEDGER_CASES, cases._attention_bytes, mistakes._LEDGER_MISTAKES),
    (cases._STACK_CASES, cases._stack_bytes, mistakes._STACK_MISTAKES),
    (cases._COLLAPSE_CASES, cases._collapse, mistakes._COLLAPSE_MISTAKES),
    (cases._PROBABILITY_CASES, cases._probability, mistakes._PROBABILITY_MISTAKES),
    (cases._SLIDING_CASES, cases._sliding, mistakes._SLIDING_MISTAKES),
    (cases._BLOCK_CASES, cases._blocks, mistakes._BLOCK_MISTAKES),
    (cases._REACH_CASES, cases._reached, mistakes._REACH_MISTAKES),
    (cases._WINDOW_CASES, cases._window_attention, mistakes._WINDOW_MISTAKES),
    (cases._WINDOW_CASES, cases._window_tiles, mistakes._COUNT_MISTAKES),
]
