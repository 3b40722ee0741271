"""Answers to chapter 3's exercises: wrong ones, as students write them, and right ones."""

import math
from collections import Counter

import torch
from torch.nn import functional as F

from attn_course.exercises import seq2seq as checks
from attn_course.exercises import seq2seq_cases as cases
from attn_course.exercises import seq2seq_mistakes as mistakes
from attn_course.exercises import tl, triton
from attn_course.exercises.several import each_of
from attn_course.scoring.reference import additive_attention, masked_softmax
from tests.exercises.answers import Table, new_answers

WRONG, RIGHT, wrong = new_answers()


# 3.1 ---------------------------------------------------------------------------------

step = wrong("3.1", "decoder_step")


def _read(query, keys, memory, pieces, axis=1):
    alpha = (torch.tanh(query[:, None] + keys) @ pieces.w_v).softmax(axis)
    return (alpha[..., None] * memory).sum(1)


@step("query from the updated state", "after the update")
def _(state, token, last_context, keys, memory, pieces):
    new = pieces.rnn(torch.cat([last_context, token], 1), state)
    return _read(pieces.W_q(new), keys, memory, pieces), new


@step("softmax over the batch", "over the sentences of the batch")
def _(state, token, last_context, keys, memory, pieces):
    context = _read(pieces.W_q(state), keys, memory, pieces, axis=0)
    return context, pieces.rnn(torch.cat([context, token], 1), state)


@step("keys reprojected at every step", "W_k was called 4 times")
def _(state, token, last_context, keys, memory, pieces):
    context = _read(pieces.W_q(state), pieces.W_k(memory), memory, pieces)
    return context, pieces.rnn(torch.cat([context, token], 1), state)


@step("no softmax", "used as weights as they are")
def _(state, token, last_context, keys, memory, pieces):
    scores = torch.tanh(pieces.W_q(state)[:, None] + keys) @ pieces.w_v
    context = (scores[..., None] * memory).sum(1)
    return context, pieces.rnn(torch.cat([context, token], 1), state)


@step("state not projected", "The state itself".lower())
def _(state, token, last_context, keys, memory, pieces):
    context = _read(state, keys, memory, pieces)
    return context, pieces.rnn(torch.cat([context, token], 1), state)


@step("no tanh", "leave out tanh")
def _(state, token, last_context, keys, memory, pieces):
    scores = (pieces.W_q(state)[:, None] + keys) @ pieces.w_v
    context = (scores.softmax(1)[..., None] * memory).sum(1)
    return context, pieces.rnn(torch.cat([context, token], 1), state)


@step("RNN reads the last context", "context of the step before")
def _(state, token, last_context, keys, memory, pieces):
    context = _read(pieces.W_q(state), keys, memory, pieces)
    return context, pieces.rnn(torch.cat([last_context, token], 1), state)


@step("context and token exchanged", "in the other order")
def _(state, token, last_context, keys, memory, pieces):
    context = _read(pieces.W_q(state), keys, memory, pieces)
    return context, pieces.rnn(torch.cat([token, context], 1), state)


@step("RNN starts anew", "starts from zeros")
def _(state, token, last_context, keys, memory, pieces):
    context = _read(pieces.W_q(state), keys, memory, pieces)
    return context, pieces.rnn(torch.cat([context, token], 1), torch.zeros_like(state))


@step("state alone", "expected two tensors, the context and the new state")
def _(state, token, last_context, keys, memory, pieces):
    context = _read(pieces.W_q(state), keys, memory, pieces)
    return pieces.rnn(torch.cat([context, token], 1), state)


@step("keys not aligned with the query", "are added as they are")
def _(state, token, last_context, keys, memory, pieces):
    scores = torch.tanh(pieces.W_q(state) + keys) @ pieces.w_v
    context = (scores.softmax(1)[..., None] * memory).sum(1)
    return context, pieces.rnn(torch.cat([context, token], 1), state)


@step("no new state", "as the new state it returned None.")
def _(state, token, last_context, keys, memory, pieces):
    return _read(pieces.W_q(state), keys, memory, pieces), None


@step("exchanged", "Are the parts in the right order?")
def _(state, token, last_context, keys, memory, pieces):
    context = _read(pieces.W_q(state), keys, memory, pieces)
    return pieces.rnn(torch.cat([context, token], 1), state), context


@step("averages the keys", "Are the parts in the right order?")
def _(state, token, last_context, keys, memory, pieces):
    context = _read(pieces.W_q(state), keys, keys, pieces)
    return context, state


@step("nothing returned", "is the `return` missing?")
def _(state, token, last_context, keys, memory, pieces):
    _read(pieces.W_q(state), keys, memory, pieces)


def step_einsum(state, token, last_context, keys, memory, pieces):
    hidden = keys.add(pieces.W_q(state).unsqueeze(1)).tanh()
    score = torch.einsum("bjh,h->bj", hidden, pieces.w_v).exp()
    context = torch.bmm((score / score.sum(1, keepdim=True)).unsqueeze(1), memory).squeeze(1)
    return [context, pieces.rnn(torch.hstack([context, token]), state)]


RIGHT["3.1"] = [("einsum, its own softmax, a list", [step_einsum])]


# 3.2 ---------------------------------------------------------------------------------

probe = wrong("3.2", "what_matters")


def _moved(model, source, source_lens, target_input, change):
    before = model(source, source_lens, target_input)
    table = []
    for j in range(source.shape[1]):
        changed = source.clone()
        changed[:, j] = change(source[:, j])
        table.append((model(changed, source_lens, target_input) - before).abs() > 1e-6)
    return torch.stack(table, 1)  # [batch, source_len, target_len, vocab]


@probe("padding replaced by padding", "padding is replaced by padding")
def _(*given):
    return _moved(*given, torch.zeros_like).any(-1).any(-1)


@probe("one answer for the batch", "for the whole batch")
def _(*given):
    table = _moved(*given, lambda x: (x + 1) % 10).any(-1).any(-1)
    return table.any(0).expand_as(table)


@probe("padding left out", "padding is replaced by padding")
def _(model, source, source_lens, target_input):
    table = _moved(model, source, source_lens, target_input, lambda x: (x + 1) % 10)
    inside = torch.arange(source.shape[1]) < source_lens[:, None]
    return table.any(-1).any(-1) & inside


@probe("all logits have to move", "a part of a sentence's logits")
def _(*given):
    return _moved(*given, lambda x: (x + 1) % 10).all(-1).all(-1)


@probe("the first step's logits", "a part of a sentence's logits")
def _(*given):
    return _moved(*given, lambda x: (x + 1) % 10)[:, :, 0].any(-1)


@probe("the last step's logits", "a part of a sentence's logits")
def _(*given):
    return _moved(*given, lambda x: (x + 1) % 10)[:, :, -1].any(-1)


@probe("changes that pile up", "changes pile up")
def _(model, source, source_lens, target_input):
    before, changed = model(source, source_lens, target_input), source.clone()
    columns = []
    for j in range(source.shape[1]):
        changed[:, j] = (source[:, j] + 1) % 10
        after = model(changed, source_lens, target_input)
        columns.append(((after - before).abs() > 1e-6).flatten(1).any(1))
    return torch.stack(columns, 1)


@probe("always the same token", "by the same id")
def _(*given):
    return _moved(*given, lambda x: torch.full_like(x, 3)).any(-1).any(-1)


@probe("what does not matter", "True is to stand where")
def _(*given):
    return ~_moved(*given, lambda x: (x + 1) % 10).any(-1).any(-1)


@probe("the lengths, not the model", "Does the model keep to them")
def _(model, source, source_lens, target_input):
    return torch.arange(source.shape[1]) < source_lens[:, None]


@probe("numbers for each logit", "Which axis")
def _(*given):
    return _moved(*given, lambda x: (x + 1) % 10)


@probe("changed in place", "changes its argument `source`")
def _(model, source, source_lens, target_input):
    before = model(source, source_lens, target_input)
    table = torch.zeros(source.shape, dtype=torch.bool)
    for j in range(source.shape[1]):
        source[:, j] = (source[:, j] + 1) % 10
        table[:, j] = (model(source, source_lens, target_input) != before).flatten(1).any(1)
    return table


found = wrong("3.2", "diagnosis")


def says(**changes):
    truth = {"A": "target lengths", "B": "sound", "C": "mask missing", "D": "eos cut"}
    return lambda: truth | changes


found("mask missing, not seen", "In its table the padding matters")(says(C="sound"))
found("eos cut, not seen", "the padding does not matter; but")(says(D="sound"))
found("target lengths for a missing mask", "the last True of each row")(says(A="mask missing"))
found("sound, not believed", "up to the length of each sentence and False")(says(B="eos cut"))


def one_sentence_at_a_time(model, source, source_lens, target_input):
    """As floating-point numbers; each sentence changed alone, by a random word."""
    before = model(source, source_lens, target_input)
    table = torch.zeros(source.shape)
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            changed = source.clone()
            changed[i, j] = 4 if source[i, j] != 4 else 7
            after = model(changed, source_lens, target_input)
            table[i, j] = float(not torch.allclose(after[i], before[i], atol=1e-5))
    return table


def ones_and_zeros(*given):
    return _moved(*given, lambda x: 9 - x).any(-1).any(-1).long()


RIGHT["3.2"] = [
    ("one sentence at a time", [one_sentence_at_a_time, says()]),
    ("integers", [ones_and_zeros, says()]),
]


# 3.3 ---------------------------------------------------------------------------------

shift = wrong("3.3", "inputs_and_labels")
scored = wrong("3.3", "masked_loss")

shift("unshifted, without <eos>", "the same tokens")(lambda t: (t[:, :-1], t[:, :-1]))
shift("unshifted, without <bos>", "the same tokens")(lambda t: (t[:, 1:], t[:, 1:]))
shift("shifted backwards", "shifted backwards")(lambda t: (t[:, 1:], t[:, :-1]))
shift("whole target as input", "as long as the target")(lambda t: (t, t[:, 1:]))
shift("labels alone", "expected two tensors, the inputs and the labels")(lambda t: t[:, 1:])


shift("numbers for ids", "which word has the number 2.5")(lambda t: (t[:, :-1].float(), t[:, 1:]))


def _losses(logits, labels):
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")


scored("averages padding", "runs over the padding as well")(lambda y, t, pad: _losses(y, t).mean())
scored("padding in the count", "but not of the count")(
    lambda y, t, pad: (_losses(y, t) * (t != pad)).mean()
)
scored("sum", "added up, not averaged")(lambda y, t, pad: (_losses(y, t) * (t != pad)).sum())
scored("mean of means", "averaged by itself")(
    lambda y, t, pad: torch.stack(
        [_losses(y[i : i + 1], t[i : i + 1])[t[i : i + 1] != pad].mean() for i in range(len(t))]
    ).mean()
)
scored("divided by the batch", "by the number of sentences")(
    lambda y, t, pad: (_losses(y, t) * (t != pad)).sum() / len(t)
)
scored("sign", "when the right word becomes likelier")(
    lambda y, t, pad: -_losses(y, t)[t != pad].mean()
)
scored("padding is 0", "what is `pad` for")(lambda y, t, pad: _losses(y, t)[t != 0].mean())
scored("mask inverted", "only the padding counts")(lambda y, t, pad: _losses(y, t)[t == pad].mean())


def _mean_of(log_p):
    """A loss of whatever is taken for the logarithms of probabilities."""

    def loss(y, t, pad):
        return -log_p(y).gather(-1, t[..., None])[..., 0][t != pad].mean()

    return loss


scored("no log_softmax", "not yet logarithms of probabilities")(_mean_of(lambda y: y))
scored("no logarithm", "not yet logarithms of probabilities")(_mean_of(lambda y: y.softmax(-1)))
scored("over the steps", "sum to one over the steps")(_mean_of(lambda y: y.log_softmax(1)))
scored("logarithm afterwards", "before the logarithm is taken")(
    _mean_of(lambda y: y.softmax(-1).log())
)
scored("plain exponentials", "before the logarithm is taken")(
    _mean_of(lambda y: y - y.exp().sum(-1, keepdim=True).log())
)
scored("a plain number", "they have no gradient by `logits`")(
    lambda y, t, pad: _mean_of(lambda y: y.log_softmax(-1))(y, t, pad).item()
)
scored("detached", "they have no gradient by `logits`")(
    lambda y, t, pad: _mean_of(lambda y: y.detach().log_softmax(-1))(y, t, pad)
)
scored("one loss for each label", "Which axis")(lambda y, t, pad: _losses(y, t)[t != pad])

RIGHT["3.3"] = [
    (
        "narrow, and ignore_index",
        [
            lambda t: [t.narrow(1, 0, t.shape[1] - 1), t.narrow(1, 1, t.shape[1] - 1)],
            lambda y, t, pad: F.cross_entropy(y.flatten(0, 1), t.flatten(), ignore_index=pad),
        ],
    ),
    (
        "a mask that multiplies",
        [
            lambda t: (t[:, : t.shape[1] - 1], t.roll(-1, 1)[:, :-1]),
            lambda y, t, pad: (_losses(y, t) * (t != pad)).sum() / (t != pad).sum(),
        ],
    ),
]


# 3.4 ---------------------------------------------------------------------------------

even = wrong("3.4", "uniform_attention")


def _averaged(make):
    def answer(query, key, value, weight, allowed):
        weights = make(allowed, value)
        return weights @ value, weights

    return answer


even("averages padding", "runs over the padding too")(
    _averaged(lambda allowed, v: v.new_zeros(allowed.shape).softmax(-1))
)
even("not renormalised", "do not sum to one")(
    _averaged(lambda allowed, v: v.new_zeros(allowed.shape).softmax(-1) * allowed)
)
even("weights and context zero", "all weights are zero")(
    _averaged(lambda allowed, v: v.new_zeros(allowed.shape))
)
even("weights of one", "gets the weight one")(_averaged(lambda allowed, v: allowed.to(v.dtype)))
even("empty row is NaN", "comes out as NaN")(
    _averaged(
        lambda allowed, v: v.new_zeros(allowed.shape).masked_fill(~allowed, -math.inf).softmax(-1)
    )
)
even("empty row averages everything", "averages everything")(
    _averaged(lambda allowed, v: v.new_zeros(allowed.shape).masked_fill(~allowed, -1e9).softmax(-1))
)


@even("reference unchanged", "the scores still choose")
def _(query, key, value, weight, allowed):
    return additive_attention(query, key, value, weight, allowed=allowed)


@even("zero context", "the context is zero")
def _(query, key, value, weight, allowed):
    weights = masked_softmax(value.new_zeros(allowed.shape), allowed)
    return (weights @ value) * 0, weights


@even("values added up", "added up, not averaged")
def _(query, key, value, weight, allowed):
    weights = masked_softmax(value.new_zeros(allowed.shape), allowed)
    return allowed.to(value.dtype) @ value, weights


@even("mean of the values", "the context averages padding")
def _(query, key, value, weight, allowed):
    weights = masked_softmax(value.new_zeros(allowed.shape), allowed)
    return value.mean(1, keepdim=True).expand(-1, query.shape[1], -1), weights


even("mask inverted", "True means *may attend*")(
    _averaged(lambda allowed, v: masked_softmax(v.new_zeros(allowed.shape), ~allowed))
)
even("the first query's mask", "gets the mask of its first")(
    _averaged(
        lambda allowed, v: masked_softmax(
            v.new_zeros(allowed.shape), allowed[:, :1].expand_as(allowed)
        )
    )
)


@even("exchanged", "Are the parts in the right order?")
def _(query, key, value, weight, allowed):
    return even_by_count(query, key, value, weight, allowed)[::-1]


@even("output alone", "expected two tensors, the output and the weights")
def _(query, key, value, weight, allowed):
    return masked_softmax(value.new_zeros(allowed.shape), allowed) @ value


def even_by_count(query, key, value, weight, allowed):
    weights = allowed / allowed.sum(-1, keepdim=True).clamp_min(1)
    return torch.einsum("bqk,bkd->bqd", weights.to(value.dtype), value), weights


def even_by_weight(query, key, value, weight, allowed):
    return additive_attention(query, key, value, weight * 0, allowed=allowed)


def even_in_floats(query, key, value, weight, allowed):
    """Single precision, whatever came: it is what comes."""
    weights = torch.zeros(allowed.shape) + allowed.float()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
    return weights @ value, weights


RIGHT["3.4"] = [
    ("a count", [even_by_count]),
    ("w_v of zeros", [even_by_weight]),
    ("single precision", [even_in_floats]),
]


# 3.5 ---------------------------------------------------------------------------------

share = wrong("3.5", "clipped_precision")
mark = wrong("3.5", "bleu")


def _grams(tokens, n):
    return [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _clipped(p, r, n):
    left, hits = _grams(r, n), 0
    for gram in _grams(p, n):
        if gram in left:
            left.remove(gram)
            hits += 1
    return hits


share("no clipping", "no clipping")(
    lambda p, r, n: sum(g in _grams(r, n) for g in _grams(p, n)) / len(_grams(p, n))
)
share("recall", "this is recall")(
    lambda p, r, n: _clipped(p, r, n) / len(_grams(r, n)) if len(r) >= n else 1 / 0
)
share("sets", "counted once, however often")(
    lambda p, r, n: len({*_grams(p, n)} & {*_grams(r, n)}) / len({*_grams(p, n)})
)
share("of all tokens", "of all tokens")(lambda p, r, n: _clipped(p, r, n) / len(p))
share("single words", "whatever n is")(lambda p, r, n: _clipped(p, r, 1) / len(p))
share("a count", "number of n-grams that are right")(lambda p, r, n: float(_clipped(p, r, n)))


def _counted(p, r, n, past):
    found, known = (
        Counter(tuple(x[i : i + n]) for i in range(len(x) - n + 1 + past)) for x in (p, r)
    )
    return (found & known).total() / found.total()


share("last run missed", "are miscounted")(lambda p, r, n: _counted(p, r, n, -1))
share("runs cut off", "are miscounted")(lambda p, r, n: _counted(p, r, n, n - 1))


@share("reference used up", "it changes its argument `reference`. A caller's list")
def _(predicted, reference, n):
    """The classic clipping, on the caller's list."""
    if n > 1:
        return _clipped(predicted, reference, n) / len(_grams(predicted, n))
    hits = 0
    for token in predicted:
        if token in reference:
            reference.remove(token)
            hits += 1
    return hits / len(predicted)


@share("prediction used up", "it changes its argument `predicted`. A caller's list")
def _(predicted, reference, n):
    count, hits = len(predicted) - n + 1, _clipped(predicted, reference, n)
    while predicted:
        predicted.pop(0)
    return hits / count


def _mark(combine, brevity=lambda c, r: math.exp(min(0, 1 - r / c))):
    def answer(p, r, k):
        if not p:
            return 0.0
        shares = [_clipped(p, r, n) / len(_grams(p, n)) for n in range(1, min(k, len(p)) + 1)]
        return combine(shares) * brevity(len(p), len(r))

    return answer


def _weighted(shares):
    return math.prod(p ** (0.5 ** (i + 1)) for i, p in enumerate(shares))


mark("brevity inverted", "is inverted")(_mark(_weighted, lambda c, r: math.exp(min(0, 1 - c / r))))
mark("brevity without a limit", "is rewarded")(_mark(_weighted, lambda c, r: math.exp(1 - r / c)))
mark("no brevity", "no brevity penalty")(_mark(_weighted, lambda c, r: 1))
mark("arithmetic mean", "arithmetic mean")(_mark(lambda shares: sum(shares) / len(shares)))
mark("weighted arithmetic mean", "arithmetic mean")(
    _mark(lambda shares: sum(p * 0.5 ** (i + 1) for i, p in enumerate(shares)))
)
mark("equal exponents", "the exponents are all 1/k")(
    _mark(lambda shares: math.prod(shares) ** (1 / len(shares)))
)
mark("no exponents", "multiplied without exponents")(_mark(math.prod))
mark("exponents 1/n", "or off by one")(
    _mark(lambda shares: math.prod(p ** (1 / n) for n, p in enumerate(shares, 1)))
)
mark("exponents 1/(2n)", "or off by one")(
    _mark(lambda shares: math.prod(p ** (1 / (2 * n)) for n, p in enumerate(shares, 1)))
)
mark("no runs longer than the reference", "runs longer than the reference")(
    lambda p, r, k: _mark(_weighted)(p, r, min(k, len(r)))
)
mark("exponents one too early", "or off by one")(
    _mark(lambda shares: math.prod(p ** (0.5**n) for n, p in enumerate(shares)))
)
mark("last n alone", "only the largest n counts")(
    _mark(lambda shares: shares[-1] ** (0.5 ** len(shares)))
)
mark("short prediction is zero", "leaves those out")(
    lambda p, r, k: _mark(_weighted)(p, r, k) if len(p) >= k else 0.0
)
mark("empty prediction", "raised ZeroDivisionError")(
    lambda p, r, k: (
        math.exp(min(0, 1 - len(r) / len(p))) * _mark(_weighted, lambda c, r: 1)(p, r, k)
    )
)


def precision_by_counter(predicted, reference, n):
    count, known = Counter(_grams(predicted, n)), Counter(_grams(reference, n))
    return torch.tensor(sum(min(c, known[g]) for g, c in count.items()) / sum(count.values()))


def bleu_by_logarithms(predicted, reference, k):
    if len(predicted) == 0:
        return 0
    total = min(0.0, 1 - len(reference) / len(predicted))
    for n in range(1, min(k, len(predicted)) + 1):
        p = _clipped(predicted, reference, n) / (len(predicted) - n + 1)
        total += math.log(p) / 2**n if p else -math.inf
    return math.exp(total)


RIGHT["3.5"] = [("counters and logarithms", [precision_by_counter, bleu_by_logarithms])]


# 3.6 ---------------------------------------------------------------------------------

beam = wrong("3.6", "beam_search")


def _rank(penalty):
    return lambda s: s[1] / ((5 + len(s[0])) / 6) ** penalty


def _children(log_probs, sentences):
    return [
        ([*ids, token], total + p)
        for ids, total in sentences
        for token, p in enumerate(log_probs(ids).tolist())
    ]


def _top(sentences, count):
    return sorted(sentences, key=lambda s: -s[1])[:count]


def _kept(log_probs, width, max_len):
    opened, ended = [([], 0.0)], []
    for _ in range(max_len):
        kept = _top(_children(log_probs, opened), width - len(ended))
        ended += [s for s in kept if s[0][-1] == 0]
        opened = [s for s in kept if s[0][-1] != 0]
    return ended, opened


@beam("extends what has ended", "is extended: your search asks")
def _(log_probs, width, max_len, penalty):
    beams = [([], 0.0)]
    for _ in range(max_len):
        beams = _top(_children(log_probs, beams), width)
    return max(beams, key=_rank(penalty))[0]


@beam("extends what has ended, and cuts it off", "is extended: your search asks")
def _(log_probs, width, max_len, penalty):
    beams = [([], 0.0)]
    for _ in range(max_len):
        beams = _top(_children(log_probs, beams), width)
    best = max(beams, key=_rank(penalty))[0]
    return best[: best.index(0) + 1] if 0 in best else best


@beam("extends what has ended, and has no penalty either", "is extended: your search asks")
def _(log_probs, width, max_len, penalty):
    """Two mistakes at once: no formula knows the numbers, but the questions tell."""
    beams = [([], 0.0)]
    for _ in range(max_len):
        beams = _top(_children(log_probs, beams), width)
    return beams[-1][0]


@beam("one survivor per parent", "one survivor per parent")
def _(log_probs, width, max_len, penalty):
    beams = _top(_children(log_probs, [([], 0.0)]), width)
    for _ in range(max_len - 1):
        beams = [b if b[0][-1] == 0 else _top(_children(log_probs, [b]), 1)[0] for b in beams]
    return max(beams, key=_rank(penalty))[0]


@beam("greedy", "one survivor per parent")
def _(log_probs, width, max_len, penalty):
    ids = []
    while len(ids) < max_len and 0 not in ids:
        ids.append(int(log_probs(ids).argmax()))
    return ids


@beam("penalty at every step", "applied at every step")
def _(log_probs, width, max_len, penalty):
    opened, ended = [([], 0.0)], []
    for n in range(1, max_len + 1):
        length = ((5 + n) / 6) ** penalty
        children = [(ids, score / length) for ids, score in _children(log_probs, opened)]
        kept = _top(children, width - len(ended))
        ended += [s for s in kept if s[0][-1] == 0]
        opened = [s for s in kept if s[0][-1] != 0]
    return max(ended + opened, key=lambda s: s[1])[0]


@beam("no penalty", "by their probability alone")
def _(log_probs, width, max_len, penalty):
    ended, opened = _kept(log_probs, width, max_len)
    return max(ended + opened, key=_rank(0))[0]


@beam("penalty multiplied", "multiplied by the length penalty")
def _(log_probs, width, max_len, penalty):
    ended, opened = _kept(log_probs, width, max_len)
    return max(ended + opened, key=lambda s: s[1] * ((5 + len(s[0])) / 6) ** penalty)[0]


@beam("first that ends", "the first sentence that ends")
def _(log_probs, width, max_len, penalty):
    ended, opened = _kept(log_probs, width, max_len)
    return (ended + opened)[0][0]


@beam("ended ones lost", "get lost")
def _(log_probs, width, max_len, penalty):
    ended, opened = _kept(log_probs, width, max_len)
    return max(opened or ended, key=_rank(penalty))[0]


@beam("open ones lost", "cut off at max_len is never")
def _(log_probs, width, max_len, penalty):
    ended, opened = _kept(log_probs, width, max_len)
    return max(ended or opened, key=_rank(penalty))[0]


@beam("ended ones compete", "loses its place")
def _(log_probs, width, max_len, penalty):
    beams = [([], 0.0)]
    for _ in range(max_len):
        ended = [s for s in beams if 0 in s[0]]
        beams = _top(ended + _children(log_probs, [s for s in beams if 0 not in s[0]]), width)
    return max(beams, key=_rank(penalty))[0]


@beam("ended ones take no place", "always `width` open sentences")
def _(log_probs, width, max_len, penalty):
    opened, ended = [([], 0.0)], []
    for _ in range(max_len):
        kept = _top(_children(log_probs, opened), width)
        ended += [s for s in kept if s[0][-1] == 0]
        opened = [s for s in kept if s[0][-1] != 0]
    return max(ended + opened, key=_rank(penalty))[0]


@beam("ended ones kept open", "is extended: your search asks")
def _(log_probs, width, max_len, penalty):
    opened, ended = [([], 0.0)], []
    for _ in range(max_len):
        opened = _top(_children(log_probs, opened), width - len(ended))
        ended += [s for s in opened if s[0][-1] == 0]
    return max(ended + opened, key=_rank(penalty))[0]


@beam("the end not counted", "is not what the exercise divides by")
def _(log_probs, width, max_len, penalty):
    ended, opened = _kept(log_probs, width, max_len)

    def rank(s):
        return s[1] / ((5 + len(s[0]) - (s[0][-1] == 0)) / 6) ** penalty

    return max(ended + opened, key=rank)[0]


@beam("divided by the plain length", "is not what the exercise divides by")
def _(log_probs, width, max_len, penalty):
    ended, opened = _kept(log_probs, width, max_len)
    return max(ended + opened, key=lambda s: s[1] / len(s[0]) ** penalty)[0]


@beam("the end cut off", "has lost the 0 at its end")
def _(log_probs, width, max_len, penalty):
    ended, opened = _kept(log_probs, width, max_len)
    best = max(ended + opened, key=_rank(penalty))[0]
    return [token for token in best if token]


@beam("the last token cut off", "has lost the 0 at its end")
def _(log_probs, width, max_len, penalty):
    ended, opened = _kept(log_probs, width, max_len)
    return max(ended + opened, key=_rank(penalty))[0][:-1]


@beam("more children than tokens", "selected index k out of range")
def _(log_probs, width, max_len, penalty):
    opened, ended = [([], 0.0)], []
    for _ in range(max_len):
        children = []
        for ids, total in opened:
            best = log_probs(ids).topk(width)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            children += [([*ids, token], total + p) for token, p in pairs]
        kept = _top(children, width - len(ended))
        ended += [s for s in kept if s[0][-1] == 0]
        opened = [s for s in kept if s[0][-1] != 0]
    return max(ended + opened, key=_rank(penalty))[0]


def _searched(log_probs, width, max_len, penalty, order, grow=_children):
    opened, ended = [([], 0.0)], []
    for _ in range(max_len):
        kept = sorted(grow(log_probs, opened), key=order)[: width - len(ended)]
        ended += [s for s in kept if s[0][-1] == 0]
        opened = [s for s in kept if s[0][-1] != 0]
    return max(ended + opened, key=_rank(penalty))[0]


@beam("sorted upwards", "the least likely children are kept")
def _(*given):
    return _searched(*given, order=lambda s: s[1])


@beam("the last token's probability alone", "by their last token alone")
def _(*given):
    def grow(log_probs, sentences):
        return _children(log_probs, [(ids, 0.0) for ids, _ in sentences])

    return _searched(*given, order=lambda s: -s[1], grow=grow)


@beam("one list for all children", "a list of its own")
def _(*given):
    def grow(log_probs, sentences):
        children = []
        for ids, total in sentences:
            for token, p in enumerate(log_probs(ids).tolist()):
                ids.append(token)
                children.append((ids, total + p))
        return children

    return _searched(*given, order=lambda s: -s[1], grow=grow)


@beam("one token too many", "a list of its own")
def _(log_probs, width, max_len, penalty):
    ended, opened = _kept(log_probs, width, max_len + 1)
    return max(ended + opened, key=lambda s: len(s[0]))[0]


@beam("sentence and score", "expected the ids of one sentence")
def _(log_probs, width, max_len, penalty):
    ended, opened = _kept(log_probs, width, max_len)
    return max(ended + opened, key=_rank(penalty))


def beam_by_topk(log_probs, width, max_len, penalty):
    """With tensors, an early stop, and places counted down."""
    ids, scores, done, places = [[]], torch.zeros(1, dtype=torch.float64), [], width
    while places and ids and len(ids[0]) < max_len:
        table = scores[:, None] + torch.stack([log_probs(prefix) for prefix in ids])
        best = table.flatten().topk(min(places, table.numel()))
        rows = [(ids[i // table.shape[1]], i % table.shape[1]) for i in best.indices.tolist()]
        grown = [([*a, t], s) for (a, t), s in zip(rows, best.values.tolist(), strict=True)]
        done += [g for g in grown if g[0][-1] == 0]
        left = [g for g in grown if g[0][-1] != 0]
        places = width - len(done)
        ids, scores = [g[0] for g in left], torch.tensor([g[1] for g in left]).double()
    done += list(zip(ids, scores.tolist(), strict=True))
    best = sorted(done, key=lambda g: g[1] * (6 / (5 + len(g[0]))) ** penalty)[-1]
    return torch.tensor(best[0])


RIGHT["3.6"] = [("topk on tensors", [beam_by_topk])]


# 3.7 ---------------------------------------------------------------------------------

back = wrong("3.7", "additive_backward")


def _backward(slope=None, inner=None, outer=None, mine=None, own=None):
    """Both gradients; what is given replaces a part of the right formula."""

    def right_slope(p, dp):
        return p * (dp - (p * dp).sum(1, keepdim=True))

    def answer(query, key, value, weight, grad):
        t = (query[:, None] + key).tanh()
        p, dp = (t @ weight).softmax(1), grad @ value.T
        e = (slope or right_slope)(p, dp)[..., None]
        dquery = ((inner or (lambda t: 1 - t**2))(t) * e).sum(1) * (outer or (lambda w: w))(weight)
        e = (own or slope or right_slope)(p, dp)[..., None]
        return dquery, (mine or (lambda t, w: t))(t, weight).mul(e).sum((0, 1))

    return answer


back("diagonal only", "depend on its own score alone")(_backward(lambda p, dp: p * (1 - p) * dp))
back("mean not subtracted", "depend on its own score alone")(_backward(lambda p, dp: p * dp))
back("sum for average", "with which weights")(
    _backward(lambda p, dp: p * (dp - dp.sum(1, keepdim=True)))
)
back("average over the queries", "runs over the queries. Each row")(
    _backward(lambda p, dp: p * (dp - (p * dp).sum(0)))
)
back("no keepdim", "has lost its axis")(_backward(lambda p, dp: p * (dp - (p * dp).sum(1))))
back("no p", "the softmax is only half there")(
    _backward(lambda p, dp: dp - (p * dp).sum(1, keepdim=True))
)
back("no derivative of tanh", "the derivative of tanh is missing")(_backward(inner=torch.ones_like))
back("1 - tanh", "what is the derivative of tanh(x)?")(_backward(inner=lambda t: 1 - t))
back("w_v forgotten", "w_v is missing")(_backward(outer=torch.ones_like))


@back("sign", "right, but for the sign")
def _(*given):
    dquery, dweight = _backward()(*given)
    return -dquery, dweight


@back("summed over queries", "this is the gradient of the keys")
def _(query, key, value, weight, grad):
    key = key.clone().requires_grad_()
    with torch.enable_grad():
        output, _ = additive_attention(query, key, value, weight)
    return torch.autograd.grad(output, key, grad)[0], weight


back("tanh' for w_v", "w_v stands outside the tanh")(_backward(mine=lambda t, w: 1 - t**2))
back("w_v in its own gradient", "in its own gradient")(_backward(mine=lambda t, w: t * w))
back("no softmax for w_v", "both begin with the same")(_backward(own=lambda p, dp: p * dp))


@back("pairs averaged", "the pairs are averaged")
def _(query, key, value, weight, grad):
    dquery, dweight = _backward()(query, key, value, weight, grad)
    return dquery, dweight / (len(query) * len(key))


@back("one gradient", "expected two tensors, dquery and dweight")
def _(*given):
    return _backward()(*given)[0]


def backward_in_loops(query, key, value, weight, grad):
    dquery, dweight = torch.zeros_like(query), torch.zeros_like(weight)
    for i in range(len(query)):
        t = torch.tanh(query[i] + key)
        p = torch.softmax(t @ weight, 0)
        jacobian = torch.diag(p) - torch.outer(p, p)
        e = jacobian @ (value @ grad[i])
        dquery[i] = weight * (e @ (1 - t.square()))
        dweight += e @ t
    return dquery, dweight


def backward_by_pairs(query, key, value, weight, grad):
    """Slopes one by one, into a table of zeros."""
    t, e = torch.tanh(query[:, None] + key), torch.zeros(len(query), len(key))
    p = (t @ weight).softmax(1)
    for i in range(len(query)):
        for j in range(len(key)):
            e[i, j] = p[i, j] * (grad[i] @ value[j] - grad[i] @ (p[i] @ value))
    return torch.einsum("ij,ijh,h->ih", e, 1 - t**2, weight), torch.einsum("ij,ijh->h", e, t)


RIGHT["3.7"] = [
    ("the softmax's Jacobian, in a loop", [backward_in_loops]),
    ("a table of zeros", [backward_by_pairs]),
]


# 3.8 ---------------------------------------------------------------------------------

part = wrong("3.8", "weight_gradient")


@triton.jit
def _tanh(x):
    return 2 / (1 + tl.exp(-2 * x)) - 1


@triton.jit
def _rows(ptr, rows, units, LEN, HIDDEN, GUARDED: tl.constexpr):
    """A tile [rows, units]; without a guard it reads past the last row."""
    inside = (rows < LEN) | (not GUARDED)
    where = ptr + rows[:, None] * HIDDEN + units[None, :]
    return tl.load(where, mask=inside[:, None] & (units < HIDDEN)[None, :], other=0.0)


@triton.jit
def _flexible(
    q_ptr, k_ptr, e_ptr, out_ptr, N: tl.constexpr, M: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_H: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """The kernel with one of several faults."""
    tile = tl.program_id(0)
    rows = tile * BLOCK + tl.arange(0, BLOCK)
    units = tl.arange(0, BLOCK_H)
    q = _rows(q_ptr, rows, units, N, HIDDEN, KIND != "unguarded")
    total = tl.zeros([BLOCK_H], tl.float32)
    stop = BLOCK if KIND == "first tile" else M // BLOCK * BLOCK if KIND == "whole tiles" else M
    for start in range(0, stop, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        k = _rows(k_ptr, columns, units, M, HIDDEN, True)
        pairs = (rows < N)[:, None] & (columns < M)[None, :]
        places = rows[:, None] * M + columns[None, :]
        if KIND == "transposed":
            places = columns[None, :] * N + rows[:, None]
        e = tl.load(e_ptr + places, mask=pairs, other=0.0)
        if KIND == "bare":
            e = tl.load(e_ptr + places, mask=pairs)
        x = q[:, None, :] + k[None, :, :]
        t = _tanh(x)
        if KIND == "derivative":
            t = 1 - t * t
        if KIND == "no tanh":
            t = x
        if KIND == "no slope":
            e = tl.where(pairs, 1.0, 0.0)
        if KIND == "no slope, no mask":
            e = tl.zeros([BLOCK, BLOCK], tl.float32) + 1.0
        if KIND == "last tile":
            total = tl.zeros([BLOCK_H], tl.float32)
        total += tl.sum(tl.sum(e[:, :, None] * t, 0), 0)
    mine = units < HIDDEN
    if KIND == "added":
        before = tl.load(out_ptr + units, mask=mine, other=0.0)
        tl.store(out_ptr + units, before + total, mask=mine)
    elif KIND == "query overwritten":
        inside = (rows < N)[:, None] & (units < HIDDEN)[None, :]
        tl.store(q_ptr + rows[:, None] * HIDDEN + units[None, :], q * 0, mask=inside)
        tl.store(out_ptr + tile * HIDDEN + units, total, mask=mine)
    elif KIND == "atomic":
        tl.atomic_add(out_ptr + units, total, mask=mine)
    elif KIND == "same slots":
        tl.store(out_ptr + units, total, mask=mine)
    elif KIND == "past the end":
        tl.store(out_ptr + tile * HIDDEN + units, total, mask=units < HIDDEN + 1)
    elif KIND == "overlapping":
        tl.store(out_ptr + tile * HIDDEN + units, total)
    elif KIND != "nothing":
        tl.store(out_ptr + tile * HIDDEN + units, total, mask=mine)


def _launch(query, key, slope, block, kind="", out=None, grid=None):
    (n, m), h = slope.shape, query.shape[1]
    programs = -(-n // block)
    parts = query.new_empty(programs, h) if out is None else out
    units = triton.next_power_of_2(h)
    _flexible[(programs if grid is None else grid,)](
        query, key, slope, parts, n, m, h, block, units, kind
    )
    return parts


def _faulty(kind):
    return lambda *given: _launch(*given, kind).sum(0)


def _shared(kind):
    return lambda q, k, e, block: _launch(q, k, e, block, kind, q.new_zeros(q.shape[1]))


part("racing additions", "two programs write to the same slot")(_shared("added"))
part("racing atomics", "two programs write to the same slot")(_shared("atomic"))
part("the last program wins", "two programs write to the same slot")(_shared("same slots"))
part("parts that overlap", "writes past the end")(_faulty("overlapping"))
part("programs rounded down", "the last tile is missing")(
    lambda q, k, e, block: _launch(
        q, k, e, block, out=q.new_empty(len(q) // block, q.shape[1]), grid=len(q) // block
    ).sum(0)
)
part("tiles of keys rounded down", "the last tile is missing")(_faulty("whole tiles"))
part("slopes transposed", "as if they lay transposed")(_faulty("transposed"))
part("no slopes, no mask", "where do the slopes come in")(_faulty("no slope, no mask"))
part("slopes without other=", "the answer is NaN")(_faulty("bare"))
part("query overwritten", "an input is not what it was")(_faulty("query overwritten"))


@part("slopes zeroed", "an input is not what it was")
def _(query, key, slope, block):
    answer = _launch(query, key, slope, block).sum(0)
    slope.zero_()
    return answer


@part("what the kernel stores ignored", "PyTorch computes tanh")
def _(query, key, slope, block):
    _launch(query, key, slope, block)
    return sum(slope[:, j] @ (query + key[j]).tanh() for j in range(len(key)))


part("parts unsummed", "the parts of the programs, still apart")(_launch)
part("first part alone", "this is the part of one program alone")(lambda *g: _launch(*g)[0])
part("parts averaged", "parts are averaged")(lambda *given: _launch(*given).mean(0))
part("last tile of keys", "only the last tile of keys")(_faulty("last tile"))
part("first tile of keys", "only the first tile of keys")(_faulty("first tile"))
part("derivative of tanh", "sums the derivative of tanh")(_faulty("derivative"))
part("no tanh", "tanh is missing")(_faulty("no tanh"))
part("no slopes", "where do the slopes come in")(_faulty("no slope"))
part("reads past the end", "reads past the end")(_faulty("unguarded"))
part("stores nothing", "nothing is stored")(_faulty("nothing"))
part("a part never written", "the answer is NaN")(
    lambda q, k, e, block: _launch(
        q, k, e, block, out=q.new_empty(-(-len(q) // block) + 1, q.shape[1])
    ).sum(0)
)
part("no kernel", "nothing is stored")(
    lambda q, k, e, block: torch.stack([e[i] @ (q[i] + k).tanh() for i in range(len(q))]).sum(0)
)


@part("tanh stored by PyTorch", "a tensor of 455 numbers is made")
def _(query, key, slope, block):
    hidden = (query[:, None] + key).tanh()
    return (slope[..., None] * hidden).sum((0, 1))


@part("room for tanh", "a tensor of 455 numbers is made")
def _(query, key, slope, block):
    room = query.new_empty(len(query), len(key), query.shape[1])
    return _launch(query, key, slope, block).sum(0) + 0 * room[0, 0].nan_to_num()


@part("past the end of the parts", "writes past the end")
def _(query, key, slope, block):
    """One program, so that nobody else owns the slot."""
    (n, m), h = slope.shape, query.shape[1]
    parts = query.new_empty(1, h)
    wide, units = triton.next_power_of_2(n), triton.next_power_of_2(h + 1)
    padded = query.new_zeros(wide, m)
    padded[:n] = slope
    _flexible[(1,)](query, key, slope, parts, n, m, h, wide, units, "past the end")
    return parts.sum(0)


@triton.jit
def units_own(
    query_ptr, key_ptr, slope_ptr, out_ptr,
    N: tl.constexpr, M: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program owns one unit: nothing is left to add up."""
    h = tl.program_id(0)
    total = 0.0
    for i in range(N):
        q = tl.load(query_ptr + i * HIDDEN + h)
        for start in range(0, M, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < M
            k = tl.load(key_ptr + columns * HIDDEN + h, mask=inside, other=0.0)
            e = tl.load(slope_ptr + i * M + columns, mask=inside, other=0.0)
            total += tl.sum(e * _tanh(q + k), 0)
    tl.store(out_ptr + h, total)


def launch_units(query, key, slope, block):
    (n, m), h = slope.shape, query.shape[1]
    out = torch.empty(h, device=query.device)
    units_own[(h,)](query, key, slope, out, n, m, h, block)
    return out


def ones_times_parts(query, key, slope, block):
    parts = _launch(
        query, key, slope, block, out=query.new_zeros(-(-len(query) // block), query.shape[1])
    )
    return torch.ones(len(parts), device=parts.device) @ parts


RIGHT["3.8"] = [
    ("a unit's own program", [units_own, launch_units]),
    ("parts in zeros, summed by a product", [_flexible, ones_times_parts]),
]


# The formulas of known mistakes ------------------------------------------------------

TABLES: list[Table] = [
    (cases._MATTERS_CASES, checks._table, mistakes._MATTERS_MISTAKES),
    (cases._SHIFT_CASES, cases._inputs_and_labels, mistakes._SHIFT_MISTAKES),
    (cases._LOSS_CASES, cases._masked_loss, mistakes._LOSS_MISTAKES),
    (cases._PRECISION_CASES, cases._precision, mistakes._PRECISION_MISTAKES),
    (cases._BLEU_CASES, cases._bleu, mistakes._BLEU_MISTAKES),
    (cases._BEAM_CASES, cases._beam_search, mistakes._BEAM_MISTAKES),
    (cases._GRADIENT_CASES, cases._weight_gradient, mistakes._GRADIENT_MISTAKES),
    *(
        (table, part, known)
        for table, oracle, both in (
            (
                cases._STEP_CASES,
                cases._decoder_step,
                (mistakes._CONTEXT_MISTAKES, mistakes._STATE_MISTAKES),
            ),
            (
                cases._UNIFORM_CASES,
                cases._uniform,
                (mistakes._UNIFORM_OUTPUT_MISTAKES, mistakes._UNIFORM_WEIGHT_MISTAKES),
            ),
            (
                cases._BACKWARD_CASES,
                cases._additive_backward,
                (mistakes._DQUERY_MISTAKES, mistakes._DWEIGHT_MISTAKES),
            ),
        )
        for part, known in zip(each_of(oracle, 2), both, strict=True)
    ),
]
