"""Answers to chapter 6's exercises: wrong ones, as students write them, and right ones."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.exercises import tl, triton
from attn_course.exercises import transformer_cases as cases
from attn_course.exercises import transformer_mistakes as mistakes
from attn_course.exercises.several import each_of
from tests.exercises.answers import Table, new_answers

WRONG, RIGHT, wrong = new_answers()


# 6.1 ---------------------------------------------------------------------------------

mask = wrong("6.1", "causal_mask")


def lower(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def words(valid_lens: Tensor, length: int) -> Tensor:
    return torch.arange(length) < valid_lens[:, None]


@mask("the diagonal hidden", "the diagonal is hidden")
def _(valid_lens, length):
    return lower(length).tril(-1) & words(valid_lens, length)[:, None]


@mask("the diagonal hidden, padding forgotten", "the diagonal is hidden")
def _(valid_lens, length):
    return lower(length).tril(-1).expand(len(valid_lens), -1, -1)


@mask("the upper triangle", "transposed: each token")
def _(valid_lens, length):
    return torch.ones(length, length).triu().bool() & words(valid_lens, length)[:, None]


@mask("the whole transposed", "transposed: each token")
def _(valid_lens, length):
    return (lower(length) & words(valid_lens, length)[:, None]).mT


@mask("inverted", "the other way round: True means")
def _(valid_lens, length):
    return ~(lower(length) & words(valid_lens, length)[:, None])


@mask("as PyTorch's nn.Transformer wants it", "the other way round: True means")
def _(valid_lens, length):
    return torch.ones(length, length).triu(1).bool().repeat(len(valid_lens), 1, 1)


@mask("padding forgotten", "padding is forgotten")
def _(valid_lens, length):
    return lower(length).repeat(len(valid_lens), 1, 1)


@mask("padding alone", "the future is visible")
def _(valid_lens, length):
    return words(valid_lens, length)[:, None].repeat(1, length, 1)


@mask("padding's rows hidden", "padding is hidden along the queries")
def _(valid_lens, length):
    return lower(length) & words(valid_lens, length)[:, :, None]


@mask("either", "one of the two conditions is enough")
def _(valid_lens, length):
    return lower(length) | words(valid_lens, length)[:, None]


@mask("one ahead", "each token sees one too many")
def _(valid_lens, length):
    return torch.ones(length, length).tril(1).bool() & words(valid_lens, length)[:, None]


@mask("lengths off by one", "the lengths are off by one")
def _(valid_lens, length):
    return lower(length) & (torch.arange(length) <= valid_lens[:, None])[:, None]


@mask("numbers for an additive mask", "it returned float32; expected booleans")
def _(valid_lens, length):
    return (lower(length) & words(valid_lens, length)[:, None]).float()


@mask("one mask for all", "returned shape [4, 4]; expected [4, 4, 4]")
def _(valid_lens, length):
    return lower(length) & words(valid_lens, length)[0]


@mask("a list", "it returned a list")
def _(valid_lens, length):
    return (lower(length) & words(valid_lens, length)[:, None]).tolist()


@mask("lengths changed", "it changes its argument `valid_lens`")
def _(valid_lens, length):
    valid_lens += 0 * length + 1
    return lower(length) & (torch.arange(length) < valid_lens[:, None] - 1)[:, None]


@mask("padding looks at itself", "queries that are padding get a rule of their own")
def _(valid_lens, length):
    seen = lower(length) & words(valid_lens, length)[:, None]
    return seen | torch.eye(length, dtype=torch.bool)


@mask("padding looks at everything", "queries that are padding get a rule of their own")
def _(valid_lens, length):
    seen = lower(length) & words(valid_lens, length)[:, None]
    return seen | ~words(valid_lens, length)[..., None]


@mask("nobody", "everybody may look at everybody, or nobody")
def _(valid_lens, length):
    return torch.zeros(len(valid_lens), length, length, dtype=torch.bool)


def mask_loops(valid_lens: Tensor, length: int) -> Tensor:
    rows = [
        [[j <= i and j < n for j in range(length)] for i in range(length)]
        for n in valid_lens.tolist()
    ]
    return torch.tensor(rows)


def mask_lens(valid_lens: Tensor, length: int) -> Tensor:
    """By a length for each query."""
    own = torch.minimum(torch.arange(1, length + 1)[None], valid_lens[:, None])
    return own[..., None] > torch.arange(length)


RIGHT["6.1"] = [("three loops", [mask_loops]), ("a length for each query", [mask_lens])]


# 6.2 ---------------------------------------------------------------------------------

normal = wrong("6.2", "layer_norm")
post = wrong("6.2", "post_norm")
pre = wrong("6.2", "pre_norm")
stack = wrong("6.2", "pre_norm_stack")


@normal("over the tokens", "along the wrong axis")
def _(x, eps):
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + eps).sqrt()


@normal("over the batch", "along the wrong axis")
def _(x, eps):
    return (x - x.mean(0)) / (x.var(0, correction=0) + eps).sqrt()


@normal("over tokens and features", "along the wrong axis")
def _(x, eps):
    return F.layer_norm(x, x.shape[1:], eps=eps)


@normal("over everything", "along the wrong axis")
def _(x, eps):
    return (x - x.mean()) / (x.var(correction=0) + eps).sqrt()


@normal("unbiased", "divided by d - 1, as for a sample")
def _(x, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt()


@normal("unbiased, eps outside", "divided by d - 1, as for a sample")
def _(x, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + eps)


@normal("eps outside", "eps is added to the standard deviation")
def _(x, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, correction=0) + eps)


@normal("no eps", "without eps, features that are all alike")
def _(x, eps):
    return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0)


@normal("by the variance", "divided by the variance, not by its root")
def _(x, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + eps)


@normal("RMSNorm", "the mean is not taken away")
def _(x, eps):
    return x / ((x**2).mean(-1, keepdim=True) + eps).sqrt()


@normal("as it was", "nothing is divided")
def _(x, eps):
    return x


@normal("only centred", "nothing is divided")
def _(x, eps):
    return x - x.mean(-1, keepdim=True)


@normal("by the length of the vector", "the squares are added up")
def _(x, eps):
    return F.normalize(x - x.mean(-1, keepdim=True), dim=-1)


@normal("eps of its own", "eps is always the same")
def _(x, eps):
    return F.layer_norm(x, x.shape[-1:])


@normal("in place", "it changes its argument `x`")
def _(x, eps):
    x -= x.mean(-1, keepdim=True)
    return x / ((x**2).mean(-1, keepdim=True) + eps).sqrt()


@post("pre", "this is pre-norm")
def _(x, sublayer, norm):
    return x + sublayer(norm(x))


@post("the branch normalised", "only what the sublayer says is normalised")
def _(x, sublayer, norm):
    return x + norm(sublayer(x))


@post("no skip path", "the skip path is missing")
def _(x, sublayer, norm):
    return norm(sublayer(x))


@post("no norm", "the norm is missing.")
def _(x, sublayer, norm):
    return x + sublayer(x)


@post("norms before and after", "x is normalised before the sum as well")
def _(x, sublayer, norm):
    x = norm(x)
    return norm(x + sublayer(x))


@post("no sublayer", "the sublayer is missing")
def _(x, sublayer, norm):
    return norm(x)


@pre("no sublayer", "the sublayer is missing")
def _(x, sublayer, norm):
    return x + norm(x)


@pre("the sum normalised as well", "the sum is normalised as well")
def _(x, sublayer, norm):
    return norm(x + sublayer(norm(x)))


@pre("x overwritten", "the skip path is normalised")
def _(x, sublayer, norm):
    x = norm(x)
    return x + sublayer(x)


@pre("only the skip path normalised", "the skip path is normalised")
def _(x, sublayer, norm):
    return norm(x) + sublayer(x)


@pre("post", "this is post-norm: the sum")
def _(x, sublayer, norm):
    return norm(x + sublayer(x))


@pre("norm after the sublayer", "the norm comes after the sublayer")
def _(x, sublayer, norm):
    return x + norm(sublayer(x))


@pre("no skip path", "there is no skip path")
def _(x, sublayer, norm):
    return sublayer(norm(x))


@pre("no norm", "the sublayer reads x as it is")
def _(x, sublayer, norm):
    return x + sublayer(x)


@stack("the final norm missing", "the final norm is missing")
def _(x, sublayers, norms):
    for sublayer, norm in zip(sublayers, norms, strict=False):
        x = x + sublayer(norm(x))
    return x


@stack("x overwritten", "the skip path is normalised")
def _(x, sublayers, norms):
    for sublayer, norm in zip(sublayers, norms, strict=False):
        x = norm(x)
        x = x + sublayer(x)
    return norms[-1](x)


@stack("a stack of post-norm blocks", "a stack of post-norm blocks")
def _(x, sublayers, norms):
    for sublayer, norm in zip(sublayers, norms, strict=False):
        x = norm(x + sublayer(x))
    return x


@stack("the last norm in the loop", "the last norm comes after every block")
def _(x, sublayers, norms):
    for sublayer, norm in zip(sublayers, norms, strict=False):
        x = norms[-1](x + sublayer(norm(x)))
    return x if sublayers else norms[-1](x)


@stack("norms shifted", "a norm is in another's place")
def _(x, sublayers, norms):
    for sublayer, norm in zip(sublayers, norms[1:], strict=True):
        x = x + sublayer(norm(x))
    return norms[0](x)


@stack("the loop's last norm again", "a norm is in another's place")
def _(x, sublayers, norms):
    norm = norms[-1]
    for sublayer, norm in zip(sublayers, norms, strict=False):
        x = x + sublayer(norm(x))
    return norm(x)


@stack("from the last to the first", "the blocks run in the reverse order")
def _(x, sublayers, norms):
    for i in reversed(range(len(sublayers))):
        x = x + sublayers[i](norms[i](x))
    return norms[-1](x)


@stack("no skip path", "a stack without skip paths")
def _(x, sublayers, norms):
    for sublayer, norm in zip(sublayers, norms, strict=False):
        x = sublayer(norm(x))
    return norms[-1](x)


@stack("only the last norm", "only the last norm is used")
def _(x, sublayers, norms):
    for sublayer in sublayers:
        x = x + sublayer(x)
    return norms[-1](x)


@stack("side by side", "all sublayers read the same x")
def _(x, sublayers, norms):
    out = x
    for sublayer, norm in zip(sublayers, norms, strict=False):
        out = out + sublayer(norm(x))
    return norms[-1](out)


@stack("only the last one's answer", "all sublayers read the same x")
def _(x, sublayers, norms):
    out = x
    for sublayer, norm in zip(sublayers, norms, strict=False):
        out = x + sublayer(norm(x))
    return norms[-1](out)


@stack("one norm for all", "one norm serves several sublayers")
def _(x, sublayers, norms):
    for sublayer in sublayers:
        x = x + sublayer(norms[0](x))
    return norms[-1](x)


@stack("one sublayer too few", "not all of the sublayers take part")
def _(x, sublayers, norms):
    for k in range(len(sublayers) - 1):
        x = x + sublayers[k](norms[k](x))
    return norms[-1](x)


@stack("one norm too many", "your code raised IndexError")
def _(x, sublayers, norms):
    for k, norm in enumerate(norms):
        x = x + sublayers[k](norm(x))
    return norms[-1](x)


def norm_torch(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[2],), eps=eps)


def norm_lists(x: Tensor, eps: float) -> Tensor:
    def row(numbers: list[float]) -> list[float]:
        mean = sum(numbers) / len(numbers)
        variance = sum((a - mean) ** 2 for a in numbers) / len(numbers)
        return [(a - mean) / math.sqrt(variance + eps) for a in numbers]

    return torch.tensor([[row(token) for token in sentence] for sentence in x.tolist()])


def post_add(x: Tensor, sublayer: Any, norm: Any) -> Tensor:
    return norm(torch.add(sublayer(x), x))


def pre_steps(x: Tensor, sublayer: Any, norm: Any) -> Tensor:
    update = sublayer(norm(x.clone()))
    return update + x


def stack_reversed(x: Tensor, sublayers: list[Any], norms: list[Any]) -> Tensor:
    def run(k: int) -> Tensor:
        return x if k < 0 else pre_steps(run(k - 1), sublayers[k], norms[k])

    return norms[len(sublayers)](run(len(sublayers) - 1))


def stack_index(x: Tensor, sublayers: list[Any], norms: list[Any]) -> Tensor:
    *inner, last = norms
    total = x + 0
    for k, norm in enumerate(inner):
        total += sublayers[k](norm(total))  # a tensor of its own
    return last(total)


RIGHT["6.2"] = [
    ("PyTorch's norm; recursion", [norm_torch, post_add, pre_steps, stack_reversed]),
    ("lists of numbers; a running sum", [norm_lists, post_add, pre_steps, stack_index]),
]


# 6.3 ---------------------------------------------------------------------------------

detector = wrong("6.3", "leaks")
lens = wrong("6.3", "self_attention_lens")


def first_moved(
    model: Any,
    x: Tensor,
    changes: Callable[[Tensor, int], Tensor] | None = None,
    looks: Callable[[Tensor, int], Tensor] = lambda out, i: out[:, i],
    positions: Any = None,
) -> int | None:
    """A detector with parts to be exchanged; the mode is the caller's business."""
    before = model(x)
    for i in positions or range(x.shape[1] - 1):
        changed = x.clone()
        if changes is None:
            changed[:, i + 1 :] += 1 + torch.rand_like(changed[:, i + 1 :])
        else:
            changed = changes(changed, i)
        if not torch.allclose(looks(before, i), looks(model(changed), i), atol=1e-6):
            return i
    return None


def in_mode(training: bool, model: Any, work: Callable[[], Any]) -> Any:
    came = model.training
    model.train(training)
    found = work()
    model.train(came)
    return found


@detector("in the mode in which it came", "dropout is active")
def _(model, x):
    return first_moved(model, x)


@detector("always in training mode", "dropout is active")
def _(model, x):
    return in_mode(True, model, lambda: first_moved(model, x))


@detector("in training mode, the seed fixed", "asked in training mode alone")
def _(model, x):
    def seeded(x):
        torch.manual_seed(0)
        return model(x)

    return in_mode(True, model, lambda: first_moved(seeded, x))


@detector("as it came, the seed fixed", "asked in training mode alone")
def _(model, x):
    def seeded(x):
        torch.manual_seed(0)
        return model(x)

    return first_moved(seeded, x)


@detector("only the last token changed", "only the last token is changed")
def _(model, x):
    def last(changed, i):
        changed[:, -1] += 2
        return changed

    return in_mode(False, model, lambda: first_moved(model, x, last))


@detector("only the last output looked at", "only one output is looked at")
def _(model, x):
    def future(changed, i):
        changed[:, i + 1 :] += 2
        return changed

    def work():
        n = x.shape[1]
        return first_moved(model, x, future, lambda out, i: out[:, -1], range(n - 1, n))

    return in_mode(False, model, work)


@detector("only the first output looked at", "only one output is looked at")
def _(model, x):
    if x.shape[1] == 1:
        return None
    return in_mode(False, model, lambda: first_moved(model, x, positions=range(1)))


@detector("only the next token changed", "only the very next token is tried")
def _(model, x):
    def following(changed, i):
        changed[:, i + 1] += 2
        return changed

    return in_mode(False, model, lambda: first_moved(model, x, following))


@detector("the present changed as well", "the present counts as future")
def _(model, x):
    def onwards(changed, i):
        changed[:, i:] += 1 + torch.rand_like(changed[:, i:])
        return changed

    everywhere = range(x.shape[1])
    return in_mode(False, model, lambda: first_moved(model, x, onwards, positions=everywhere))


@detector("the present looked at as well", "the present counts as future")
def _(model, x):
    def work():
        before = model(x)
        for j in range(1, x.shape[1]):
            changed = x.clone()
            changed[:, j] += 2
            moved = (model(changed) - before).abs().amax((0, 2))[: j + 1] > 1e-6
            if moved.any():
                return int(moved.nonzero()[0])
        return None

    return in_mode(False, model, work)


@detector("the token that is seen", "this is the token that is seen too early")
def _(model, x):
    def work():
        before = model(x)
        for j in range(1, x.shape[1]):
            changed = x.clone()
            changed[:, j] += 2
            if not torch.allclose(model(changed)[:, :j], before[:, :j]):
                return j
        return None

    return in_mode(False, model, work)


@detector("the last that sees", "the last position that sees its future")
def _(model, x):
    def work():
        return first_moved(model, x, positions=range(x.shape[1] - 2, -1, -1))

    return in_mode(False, model, work) if x.shape[1] > 1 else None


@detector("counted from one", "positions count from 0")
def _(model, x):
    found = in_mode(False, model, lambda: first_moved(model, x))
    return None if found is None else found + 1


@detector("found or None", "0 is a position, and false in Python")
def _(model, x):
    return in_mode(False, model, lambda: first_moved(model, x)) or None


@detector("the first position not tried", "not all positions are tried")
def _(model, x):
    found = in_mode(False, model, lambda: first_moved(model, x, positions=range(1, x.shape[1] - 1)))
    return found


@detector("the last but one not tried", "not all positions are tried")
def _(model, x):
    return in_mode(False, model, lambda: first_moved(model, x, positions=range(x.shape[1] - 2)))


@detector("the past changed", "the past is changed")
def _(model, x):
    def work():
        before = model(x)
        for i in range(1, x.shape[1]):
            changed = x.clone()
            changed[:, :i] += 3
            if not torch.allclose(model(changed)[:, i], before[:, i]):
                return i
        return None

    return in_mode(False, model, work)


@detector("-1 for None", "it returned -1; expected the first position")
def _(model, x):
    found = in_mode(False, model, lambda: first_moved(model, x))
    return -1 if found is None else found


@detector("true or false", "it returned False; expected the first position")
def _(model, x):
    return in_mode(False, model, lambda: first_moved(model, x)) is not None


@detector("left in evaluation mode", "came in training mode, and goes back in evaluation mode")
def _(model, x):
    model.eval()
    return first_moved(model, x)


@detector("left in training mode", "came in evaluation mode, and goes back in training mode")
def _(model, x):
    model.eval()
    found = first_moved(model, x)
    model.train()
    return found


@detector("a table", "it returned a Tensor; expected the first position")
def _(model, x):
    model.eval()
    table = (model(x) - model(x + 1)).abs().amax((0, 2)) > 1e-6
    model.train()
    return table


@detector("changed in place", "it changes its argument `x`")
def _(model, x):
    def work():
        before = model(x)
        for i in range(x.shape[1] - 1):
            x[:, i + 1 :] = 0
            if not torch.allclose(model(x)[:, i], before[:, i]):
                return i
        return None

    return in_mode(False, model, work)


@lens("as in d2l", "None allows every key")
def _(batch, new, cached, training):
    if training:
        return torch.arange(1, new + 1).repeat(batch, 1)
    return None


@lens("no lengths for one token", "lengths for every case, please")
def _(batch, new, cached, training):
    return None if new == 1 else (cached + torch.arange(1, new + 1)).repeat(batch, 1)


@lens("all of them in evaluation", "every new token may see all of them")
def _(batch, new, cached, training):
    if training:
        return torch.arange(1, new + 1).repeat(batch, 1)
    return torch.full((batch, new), cached + new)


@lens("all of them", "every new token may see all of them")
def _(batch, new, cached, training):
    return torch.full((batch, new), cached + new)


@lens("the cache forgotten", "the cached tokens are forgotten")
def _(batch, new, cached, training):
    return torch.arange(1, new + 1).repeat(batch, 1)


@lens("from zero", "one too few: a token may look at itself")
def _(batch, new, cached, training):
    return torch.arange(cached, cached + new).repeat(batch, 1)


@lens("two too far", "one too many: a token sees its successor")
def _(batch, new, cached, training):
    return torch.arange(cached + 2, cached + new + 2).repeat(batch, 1)


@lens("one more than cached, for all", "as many keys as the first of them")
def _(batch, new, cached, training):
    return torch.full((batch, new), cached + 1)


@lens("one row for all", "returned shape [5]; expected [2, 5]")
def _(batch, new, cached, training):
    return torch.arange(cached + 1, cached + new + 1)


def leaks_one_by_one(model: Any, x: Tensor) -> Any:
    """Each later token by itself, all outputs at once; an integer of NumPy."""
    came, n = model.training, x.shape[1]
    model.eval()
    sees = np.zeros((n, n), dtype=bool)
    before = model(x)
    for j in range(n):
        changed = x.clone()
        changed[:, j] = x[:, j].flip(-1) + 3
        sees[:, j] = ((model(changed) - before).abs() > 1e-6).numpy().any((0, 2))
    model.train(came)
    rows = np.triu(sees, 1).any(1)
    return np.flatnonzero(rows)[0] if rows.any() else None


def leaks_by_cutting(model: Any, x: Tensor) -> int | None:
    """What a position says must not depend on whether the sentence goes on."""
    came = model.training
    whole = model.eval()(x)
    cut = [model(x[:, : i + 1])[:, i] for i in range(x.shape[1])]
    model.train(came)
    moved = [not torch.allclose(a, whole[:, i], atol=1e-6) for i, a in enumerate(cut)]
    return moved.index(True) if any(moved) else None


def leaks_by_gradient(model: Any, x: Tensor) -> int | None:
    """Which tokens an output has a gradient by."""
    leaf = x.clone().requires_grad_()

    def work():
        output = model(leaf)
        for i in range(x.shape[1]):
            (gradient,) = torch.autograd.grad(output[:, i].sum(), leaf, retain_graph=True)
            if gradient[:, i + 1 :].any():
                return i
        return None

    return in_mode(False, model, work)


def leaks_as_tensor(model: Any, x: Tensor) -> Tensor | None:
    found = in_mode(False, model, lambda: first_moved(model, x))
    return None if found is None else torch.tensor(found)


def lens_ramp(batch: int, new: int, cached: int, training: bool) -> Tensor:
    return torch.ones(batch, new, dtype=torch.long).cumsum(1) + cached


def lens_rows(batch: int, new: int, cached: int, training: bool) -> Tensor:
    return torch.tensor([[cached + i + 1 for i in range(new)] for _ in range(batch)])


RIGHT["6.3"] = [
    ("one token at a time; a sum", [leaks_one_by_one, lens_ramp]),
    ("a tensor; lists", [leaks_as_tensor, lens_rows]),
    ("sentences cut off", [leaks_by_cutting, lens_ramp]),
    ("gradients", [leaks_by_gradient, lens_ramp]),
]


# 6.4 ---------------------------------------------------------------------------------

smooth = wrong("6.4", "smooth_labels")
loss = wrong("6.4", "smoothed_loss")


def targets(labels, vocab, smoothing, pad, share, label=None, on_pad=0.0):
    target = torch.full((*labels.shape, vocab), share)
    target[..., pad] = on_pad
    target.scatter_(-1, labels[..., None], 1 - smoothing if label is None else label)
    target[labels == pad] = 0
    return target


def right(labels, vocab, smoothing, pad):
    return targets(labels, vocab, smoothing, pad, smoothing / (vocab - 2))


@smooth("as PyTorch does", "padding gets a share")
def _(labels, vocab, smoothing, pad):
    each = smoothing / vocab
    return targets(labels, vocab, smoothing, pad, each, 1 - smoothing + each, each)


@smooth("as PyTorch does, at padding too", "padding gets a share")
def _(labels, vocab, smoothing, pad):
    return (1 - smoothing) * F.one_hot(labels, vocab).double() + smoothing / vocab


@smooth("shared with padding", "padding gets a share")
def _(labels, vocab, smoothing, pad):
    each = smoothing / (vocab - 1)
    return targets(labels, vocab, smoothing, pad, each, on_pad=each)


@smooth("padding cut out afterwards", "the rows do not sum to one")
def _(labels, vocab, smoothing, pad):
    return targets(labels, vocab, smoothing, pad, smoothing / (vocab - 1))


@smooth("the same share, and the label's besides", "the rows do not sum to one")
def _(labels, vocab, smoothing, pad):
    each = smoothing / (vocab - 2)
    return targets(labels, vocab, smoothing, pad, each, 1 - smoothing + each)


@smooth("epsilon for each", "the rows do not sum to one")
def _(labels, vocab, smoothing, pad):
    return targets(labels, vocab, smoothing, pad, smoothing)


@smooth("rows of padding", "positions that are padding get a distribution")
def _(labels, vocab, smoothing, pad):
    target = torch.full((*labels.shape, vocab), smoothing / (vocab - 2))
    target[..., pad] = 0
    return target.scatter_(-1, labels[..., None], 1 - smoothing)


@smooth("the label shares", "the label gets a share of epsilon besides")
def _(labels, vocab, smoothing, pad):
    each = smoothing / (vocab - 1)
    return targets(labels, vocab, smoothing, pad, each, 1 - smoothing + each)


@smooth("the wrong way round", "epsilon goes to the label")
def _(labels, vocab, smoothing, pad):
    return targets(labels, vocab, smoothing, pad, (1 - smoothing) / (vocab - 2), smoothing)


@smooth("padding always 0", "padding is taken to be the first id")
def _(labels, vocab, smoothing, pad):
    return right(labels, vocab, smoothing, 0)


@smooth("one-hot", "no smoothing in the targets")
def _(labels, vocab, smoothing, pad):
    return F.one_hot(labels, vocab).float()


@smooth("epsilon lost", "given to nobody")
def _(labels, vocab, smoothing, pad):
    return F.one_hot(labels, vocab) * (1 - smoothing)


@smooth("integers", "it returned int64")
def _(labels, vocab, smoothing, pad):
    return F.one_hot(labels, vocab)


@smooth("labels overwritten", "it changes its argument `labels`")
def _(labels, vocab, smoothing, pad):
    target = right(labels, vocab, smoothing, pad)
    labels[labels == pad] = -100
    return target


def each_loss(logits, target):
    return -(target * logits.log_softmax(-1)).sum(-1)


@loss("divided by all positions", "padding is in the mean")
def _(logits, labels, smoothing, pad):
    return each_loss(logits, right(labels, logits.shape[-1], smoothing, pad)).mean()


@loss("padding is a label like others", "padding is in the mean")
def _(logits, labels, smoothing, pad):
    return F.cross_entropy(logits.mT, labels, label_smoothing=smoothing)


@loss("PyTorch's", "padding gets some of the mass")
def _(logits, labels, smoothing, pad):
    return F.cross_entropy(logits.mT, labels, label_smoothing=smoothing, ignore_index=pad)


@loss("not smoothed", "there is no smoothing in it")
def _(logits, labels, smoothing, pad):
    return F.cross_entropy(logits.mT, labels, ignore_index=pad)


@loss("the share of the others lost", "there is no smoothing in it")
def _(logits, labels, smoothing, pad):
    return (1 - smoothing) * F.cross_entropy(logits.mT, labels, ignore_index=pad)


@loss("a sum", "the losses are added up")
def _(logits, labels, smoothing, pad):
    return each_loss(logits, right(labels, logits.shape[-1], smoothing, pad)).sum()


@loss("by the sentences", "the losses are added up")
def _(logits, labels, smoothing, pad):
    each = each_loss(logits, right(labels, logits.shape[-1], smoothing, pad))
    return each.sum(1).mean()


@loss("means of means", "each sentence is averaged by itself")
def _(logits, labels, smoothing, pad):
    each = each_loss(logits, right(labels, logits.shape[-1], smoothing, pad))
    return (each.sum(1) / (labels != pad).sum(1)).mean()


@loss("the vocabulary averaged", "the vocabulary is in the mean as well")
def _(logits, labels, smoothing, pad):
    target = right(labels, logits.shape[-1], smoothing, pad)
    return -(target * logits.log_softmax(-1))[labels != pad].mean()


@loss("the divergence", "the entropy of the target is taken away")
def _(logits, labels, smoothing, pad):
    target = right(labels, logits.shape[-1], smoothing, pad).to(logits)
    log_p = logits.log_softmax(-1)
    return F.kl_div(log_p, target, reduction="sum") / (labels != pad).sum()


@loss("sign", "right, but for the sign")
def _(logits, labels, smoothing, pad):
    each = each_loss(logits, right(labels, logits.shape[-1], smoothing, pad))
    return -each.sum() / (labels != pad).sum()


@loss("logits for logarithms", "as if they were logarithms")
def _(logits, labels, smoothing, pad):
    target = right(labels, logits.shape[-1], smoothing, pad)
    return -(target * logits).sum() / (labels != pad).sum()


@loss("the logarithm of a softmax", "a probability that has become 0")
def _(logits, labels, smoothing, pad):
    target = right(labels, logits.shape[-1], smoothing, pad)
    return -(target * logits.softmax(-1).log()).sum() / (labels != pad).sum()


@loss("plain, padding included", "there is no smoothing in it")
def _(logits, labels, smoothing, pad):
    return F.cross_entropy(logits.mT, labels)


@loss("softmax over the positions", "the softmax runs over the positions")
def _(logits, labels, smoothing, pad):
    target = right(labels, logits.shape[-1], smoothing, pad)
    return -(target * logits.log_softmax(1)).sum() / (labels != pad).sum()


@loss("the mean of everything", "the vocabulary is in the mean as well")
def _(logits, labels, smoothing, pad):
    target = right(labels, logits.shape[-1], smoothing, pad)
    return -(target * logits.log_softmax(-1)).mean()


@loss("padding always 0", "padding is taken to have the id 0")
def _(logits, labels, smoothing, pad):
    target = right(labels, logits.shape[-1], smoothing, 0)
    return each_loss(logits, target).sum() / (labels != 0).sum()


@loss("detached", "they have no gradient by `logits`")
def _(logits, labels, smoothing, pad):
    target = right(labels, logits.shape[-1], smoothing, pad)
    return (each_loss(logits, target).sum() / (labels != pad).sum()).item()


def smooth_loops(labels: Tensor, vocab: int, smoothing: float, pad: int) -> Tensor:
    out = torch.zeros(*labels.shape, vocab, dtype=torch.float64)
    for b, row in enumerate(labels.tolist()):
        for t, label in enumerate(row):
            for w in range(vocab):
                if label != pad != w:
                    out[b, t, w] = 1 - smoothing if w == label else smoothing / (vocab - 2)
    return out


def smooth_one_hot(labels: Tensor, vocab: int, smoothing: float, pad: int) -> Tensor:
    hot = F.one_hot(labels, vocab).float()
    others = (1 - hot) * (torch.arange(vocab) != pad)
    target = (1 - smoothing) * hot + smoothing * others / others.sum(-1, keepdim=True)
    return target.masked_fill((labels == pad)[..., None], 0)


def loss_two_terms(logits: Tensor, labels: Tensor, smoothing: float, pad: int) -> Tensor:
    log_p = logits.log_softmax(-1)
    own = log_p.gather(-1, labels[..., None])[..., 0]
    others = log_p.sum(-1) - own - log_p[..., pad]
    each = (1 - smoothing) * own + smoothing * others / (logits.shape[-1] - 2)
    return -each[labels != pad].mean()


def loss_torch(logits: Tensor, labels: Tensor, smoothing: float, pad: int) -> Tensor:
    """PyTorch's cross-entropy takes distributions as well."""
    real = labels != pad
    target = smooth_one_hot(labels, logits.shape[-1], smoothing, pad)
    return F.cross_entropy(logits[real], target[real].to(logits))


RIGHT["6.4"] = [
    ("three loops; two terms", [smooth_loops, loss_two_terms]),
    ("one-hot; PyTorch's loss", [smooth_one_hot, loss_torch]),
]


# 6.5 ---------------------------------------------------------------------------------

step = wrong("6.5", "cached_step")
beams = wrong("6.5", "reorder")


def attend(q, keys, values, scale=None):
    scores = torch.einsum("bd,bjd->bj", q, keys) / (scale or q.shape[1] ** 0.5)
    return torch.einsum("bj,bjd->bd", scores.softmax(1), values)


def append(past, new):
    return torch.cat([past, new.unsqueeze(1)], 1)


def step_at(x, keys, values, maps, position):
    z = x + maps.positions[position]
    keys, values = append(keys, maps.W_k(z)), append(values, maps.W_v(z))
    return attend(maps.W_q(z), keys, values), keys, values


@step("positions restart", "positions restart at every step")
def _(x, keys, values, maps):
    return step_at(x, keys, values, maps, 0)


@step("the token's place in its input", "positions restart at every step")
def _(x, keys, values, maps):
    z = x[:, None] + maps.positions[:1]
    keys = torch.cat([keys, maps.W_k(z)], 1)
    values = torch.cat([values, maps.W_v(z)], 1)
    return attend(maps.W_q(z)[:, 0], keys, values), keys, values


@step("the last key overwritten", "the last key is overwritten")
def _(x, keys, values, maps):
    z = x + maps.positions[keys.shape[1]]
    keys, values = append(keys[:, :-1], maps.W_k(z)), append(values[:, :-1], maps.W_v(z))
    return attend(maps.W_q(z), keys, values), keys, values


@step("the cache replaced", "the last key is overwritten")
def _(x, keys, values, maps):
    z = x + maps.positions[0]
    keys, values = maps.W_k(z)[:, None], maps.W_v(z)[:, None]
    return attend(maps.W_q(z), keys, values), keys, values


@step("attends before appending", "the new token is not among the keys")
def _(x, keys, values, maps):
    z = x + maps.positions[keys.shape[1]]
    output = attend(maps.W_q(z), keys, values)
    return output, append(keys, maps.W_k(z)), append(values, maps.W_v(z))


@step("positions from one", "positions begin at 1")
def _(x, keys, values, maps):
    return step_at(x, keys, values, maps, keys.shape[1] + 1)


@step("no position", "no position is added")
def _(x, keys, values, maps):
    keys, values = append(keys, maps.W_k(x)), append(values, maps.W_v(x))
    return attend(maps.W_q(x), keys, values), keys, values


@step("position in the query alone", "the position reaches some of query, key and value")
def _(x, keys, values, maps):
    z = x + maps.positions[keys.shape[1]]
    keys, values = append(keys, maps.W_k(x)), append(values, maps.W_v(x))
    return attend(maps.W_q(z), keys, values), keys, values


@step("no position in the value", "the position reaches some of query, key and value")
def _(x, keys, values, maps):
    z = x + maps.positions[keys.shape[1]]
    keys, values = append(keys, maps.W_k(z)), append(values, maps.W_v(x))
    return attend(maps.W_q(z), keys, values), keys, values


@step("not scaled", "the scores are not divided by sqrt(d)")
def _(x, keys, values, maps):
    z = x + maps.positions[keys.shape[1]]
    keys, values = append(keys, maps.W_k(z)), append(values, maps.W_v(z))
    return attend(maps.W_q(z), keys, values, scale=1), keys, values


@step("divided by d", "the scores are not divided by sqrt(d)")
def _(x, keys, values, maps):
    z = x + maps.positions[keys.shape[1]]
    keys, values = append(keys, maps.W_k(z)), append(values, maps.W_v(z))
    return attend(maps.W_q(z), keys, values, scale=x.shape[1]), keys, values


@step("softmax over the batch", "the softmax runs over the batch")
def _(x, keys, values, maps):
    z = x + maps.positions[keys.shape[1]]
    keys, values = append(keys, maps.W_k(z)), append(values, maps.W_v(z))
    scores = torch.einsum("bd,bjd->bj", maps.W_q(z), keys) / x.shape[1] ** 0.5
    return torch.einsum("bj,bjd->bd", scores.softmax(0), values), keys, values


@step("no softmax", "the scores are used as weights as they are")
def _(x, keys, values, maps):
    z = x + maps.positions[keys.shape[1]]
    keys, values = append(keys, maps.W_k(z)), append(values, maps.W_v(z))
    scores = torch.einsum("bd,bjd->bj", maps.W_q(z), keys) / x.shape[1] ** 0.5
    return torch.einsum("bj,bjd->bd", scores, values), keys, values


@step("tokens kept, projected again", "W_k projected 30 tokens to write 10")
def _(x, keys, values, maps):
    past = append(keys, x + maps.positions[keys.shape[1]])
    return attend(maps.W_q(past[:, -1]), maps.W_k(past), maps.W_v(past)), past, past


@step("position after the projection", "the position is added after the projection")
def _(x, keys, values, maps):
    p = maps.positions[keys.shape[1]]
    keys, values = append(keys, maps.W_k(x) + p), append(values, maps.W_v(x) + p)
    return attend(maps.W_q(x) + p, keys, values), keys, values


@step("query and key exchanged", "the maps are mixed up")
def _(x, keys, values, maps):
    z = x + maps.positions[keys.shape[1]]
    keys, values = append(keys, maps.W_q(z)), append(values, maps.W_v(z))
    return attend(maps.W_k(z), keys, values), keys, values


@step("tokens for keys and values", "the maps are mixed up")
def _(x, keys, values, maps):
    z = x + maps.positions[keys.shape[1]]
    keys, values = append(keys, z), append(values, z)
    return attend(maps.W_q(z), keys, values), keys, values


@step("one position too early", "positions are one too small")
def _(x, keys, values, maps):
    return step_at(x, keys, values, maps, keys.shape[1] - 1)


@step("a residual path", "the token is added to the output")
def _(x, keys, values, maps):
    output, keys, values = step_at(x, keys, values, maps, keys.shape[1])
    return x + output, keys, values


@step("the mean of the values", "all keys weigh the same")
def _(x, keys, values, maps):
    _, keys, values = step_at(x, keys, values, maps, keys.shape[1])
    return values.mean(1), keys, values


@step("two returned", "it returned a tuple of 2; expected three tensors")
def _(x, keys, values, maps):
    return step_at(x, keys, values, maps, keys.shape[1])[:2]


@step("a window of four", "as the keys it returned 4 entries after 5 steps")
def _(x, keys, values, maps):
    output, keys, values = step_at(x, keys, values, maps, keys.shape[1])
    return output, keys[:, -4:], values[:, -4:]


@step("written into the caller's cache", "it changes its argument `keys`")
def _(x, keys, values, maps):
    output = step_at(x, keys, values, maps, keys.shape[1])
    keys *= 2
    return output


@beams("not reordered", "the beams are not reordered")
def _(keys, values, parents):
    return keys, values


@beams("only cut", "the beams are not reordered")
def _(keys, values, parents):
    if len(parents) > len(keys):
        return keys.repeat(len(parents), 1, 1), values.repeat(len(parents), 1, 1)
    return keys[: len(parents)], values[: len(parents)]


@beams("only the keys", "only one of keys and values is reordered")
def _(keys, values, parents):
    return keys[parents], values


@beams("only the values", "only one of keys and values is reordered")
def _(keys, values, parents):
    return keys, values[parents]


@beams("steps reordered", "the steps are reordered, not the beams")
def _(keys, values, parents):
    if int(parents.max()) < keys.shape[1]:
        return keys[:, parents], values[:, parents]
    return keys[parents], values[parents]


@beams("scattered", "says for each new beam where it *comes from*")
def _(keys, values, parents):
    new = torch.zeros_like(keys), torch.zeros_like(values)
    for k, parent in enumerate(parents.tolist()):
        new[0][parent], new[1][parent] = keys[min(k, len(keys) - 1)], values[min(k, len(keys) - 1)]
    return new[0][: len(parents)], new[1][: len(parents)]


@beams("sorted", "the order of the new beams is lost")
def _(keys, values, parents):
    kept = parents.sort().values
    return keys[kept], values[kept]


@beams("exchanged", "keys and values have changed places")
def _(keys, values, parents):
    return values[parents], keys[parents]


@beams("keys twice", "keys and values have changed places")
def _(keys, values, parents):
    return keys[parents], keys[parents]


@beams("overwritten", "a parent is read after it was overwritten")
def _(keys, values, parents):
    if len(parents) > len(keys):
        return keys[parents], values[parents]
    keys, values = keys.clone(), values.clone()
    for k, parent in enumerate(parents):
        keys[k], values[k] = keys[parent], values[parent]
    return keys[: len(parents)], values[: len(parents)]


@beams("one tensor", "it returned a Tensor; expected two tensors")
def _(keys, values, parents):
    return torch.stack([keys, values])[:, parents]


@beams("each parent once", "returned shape [2, 5, 2]; expected [3, 5, 2]")
def _(keys, values, parents):
    if len(parents.unique()) < len(parents):
        parents = parents.unique()
    return keys[parents], values[parents]


def step_sdpa(x: Tensor, keys: Tensor, values: Tensor, maps: Any) -> Any:
    z = (x + maps.positions[keys.size(1)]).unsqueeze(1)
    keys, values = torch.cat((keys, maps.W_k(z)), 1), torch.cat((values, maps.W_v(z)), 1)
    return F.scaled_dot_product_attention(maps.W_q(z), keys, values).squeeze(1), keys, values


def step_loops(x: Tensor, keys: Tensor, values: Tensor, maps: Any) -> Any:
    past = keys.shape[1]
    longer = [torch.empty(len(x), past + 1, x.shape[1], dtype=x.dtype) for _ in range(2)]
    output = torch.zeros_like(x)
    for b, token in enumerate(x):
        z = token + maps.positions[past]
        query = maps.W_q(z)
        for new, old, project in zip(longer, (keys, values), (maps.W_k, maps.W_v), strict=True):
            new[b, :past], new[b, past] = old[b], project(z)
        scores = [float(query @ key) / math.sqrt(len(z)) for key in longer[0][b]]
        e = [math.exp(a - max(scores)) for a in scores]
        for weight, value in zip(e, longer[1][b], strict=True):
            output[b] += weight / sum(e) * value
    return [output, *longer]


def reorder_select(keys: Tensor, values: Tensor, parents: Tensor) -> Any:
    return tuple(part.index_select(0, parents) for part in (keys, values))


def reorder_one_hot(keys: Tensor, values: Tensor, parents: Tensor) -> Any:
    chosen = F.one_hot(parents, len(keys)).to(keys)
    return [torch.einsum("kb,bjd->kjd", chosen, part) for part in (keys, values)]


RIGHT["6.5"] = [
    ("PyTorch's attention; index_select", [step_sdpa, reorder_select]),
    ("loops; a product", [step_loops, reorder_one_hot]),
]


# 6.6 ---------------------------------------------------------------------------------

norm_back = wrong("6.6", "layer_norm_backward")


def mean_of(x):
    return x.mean(1, keepdim=True)


def backward(x, weight, grad, eps, **change):
    """The right answer, where one part may be another."""
    rstd = (x.var(1, keepdim=True, correction=change.get("correction", 0)) + eps).rsqrt()
    x_hat = (x - mean_of(x)) * rstd
    h = grad * weight if change.get("gain", True) else grad
    first, second = change.get("first", mean_of)(h), change.get("second", mean_of)(h * x_hat)
    dx = rstd * (h - first - x_hat * second)
    hat = (x - mean_of(x)) * (x.var(1, keepdim=True, correction=0) + eps).rsqrt()
    return dx, (grad * hat).sum(0), grad.sum(0)


@norm_back("both constant", "mean and variance are both taken to be constant")
def _(x, weight, grad, eps):
    return backward(x, weight, grad, eps, first=torch.zeros_like, second=torch.zeros_like)


@norm_back("the mean constant", "the mean is taken to be constant")
def _(x, weight, grad, eps):
    return backward(x, weight, grad, eps, first=torch.zeros_like)


@norm_back("the variance constant", "the variance is taken to be constant")
def _(x, weight, grad, eps):
    return backward(x, weight, grad, eps, second=torch.zeros_like)


@norm_back("unbiased", "divided by d - 1 here; in the forward pass")
def _(x, weight, grad, eps):
    return backward(x, weight, grad, eps, correction=1)


@norm_back("unbiased throughout", "divided by d - 1 here; in the forward pass")
def _(x, weight, grad, eps):
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        y = (leaf - mean_of(leaf)) / (leaf.var(1, keepdim=True) + eps).sqrt() * weight
        (dx,) = torch.autograd.grad(y, leaf, grad)
    return dx, *backward(x, weight, grad, eps)[1:]


@norm_back("no gain", "the gain is missing")
def _(x, weight, grad, eps):
    return backward(x, weight, grad, eps, gain=False)


@norm_back("sums", "sums stand where means belong")
def _(x, weight, grad, eps):
    total = {"first": lambda h: h.sum(1, keepdim=True), "second": lambda h: h.sum(1, keepdim=True)}
    return backward(x, weight, grad, eps, **total)


@norm_back("over the tokens", "the means run over the tokens")
def _(x, weight, grad, eps):
    over = {"first": lambda h: h.mean(0), "second": lambda h: h.mean(0)}
    return backward(x, weight, grad, eps, **over)


@norm_back("no keepdim", "the means have lost their axis")
def _(x, weight, grad, eps):
    over = {"first": lambda h: h.mean(1), "second": lambda h: h.mean(1)}
    return backward(x, weight, grad, eps, **over)


@norm_back("no divisor", "the divisor is missing")
def _(x, weight, grad, eps):
    dx, *rest = backward(x, weight, grad, eps)
    return dx * (x.var(1, keepdim=True, correction=0) + eps).sqrt(), *rest


@norm_back("x for x_hat", "stands where x_hat belongs")
def _(x, weight, grad, eps):
    rstd, h = (x.var(1, keepdim=True, correction=0) + eps).rsqrt(), grad * weight
    dx = rstd * (h - mean_of(h) - x * mean_of(h * x))
    return dx, *backward(x, weight, grad, eps)[1:]


@norm_back("no eps", "eps is missing")
def _(x, weight, grad, eps):
    return backward(x, weight, grad, 0)[0], *backward(x, weight, grad, eps)[1:]


@norm_back("sign", "right, but for the sign")
def _(x, weight, grad, eps):
    return -backward(x, weight, grad, eps)[0], *backward(x, weight, grad, eps)[1:]


def with_parts(x, weight, grad, eps, gain=None, shift=None):
    dx, dweight, dbias = backward(x, weight, grad, eps)
    return dx, dweight if gain is None else gain, dbias if shift is None else shift


def hat(x, eps):
    return F.layer_norm(x, x.shape[-1:], eps=eps)


@norm_back("x in dweight", "this takes x as it came")
def _(x, weight, grad, eps):
    return with_parts(x, weight, grad, eps, gain=(grad * x).sum(0))


@norm_back("dweight averaged", "the tokens are averaged")
def _(x, weight, grad, eps):
    return with_parts(x, weight, grad, eps, gain=(grad * hat(x, eps)).mean(0))


@norm_back("weight in dweight", "the gain is in its own gradient")
def _(x, weight, grad, eps):
    return with_parts(x, weight, grad, eps, gain=(grad * weight * hat(x, eps)).sum(0))


@norm_back("dweight along the features", "the sum for the gain runs over the features")
def _(x, weight, grad, eps):
    return with_parts(x, weight, grad, eps, gain=(grad * hat(x, eps)).sum(1))


@norm_back("unbiased in dweight", "the variance in x_hat is divided by d - 1")
def _(x, weight, grad, eps):
    x_hat = (x - mean_of(x)) / (x.var(1, keepdim=True) + eps).sqrt()
    if x.shape[0] == 1:
        x_hat = x_hat * 1
    return with_parts(x, weight, grad, eps, gain=(grad * x_hat).sum(0))


@norm_back("weight in dbias", "the gain is in the gradient of the shift")
def _(x, weight, grad, eps):
    return with_parts(x, weight, grad, eps, shift=(grad * weight).sum(0))


@norm_back("dbias averaged", "averaged over the tokens: one shift")
def _(x, weight, grad, eps):
    return with_parts(x, weight, grad, eps, shift=grad.mean(0))


@norm_back("dbias along the features", "the sum for the shift runs over the features")
def _(x, weight, grad, eps):
    return with_parts(x, weight, grad, eps, shift=grad.sum(1))


@norm_back("x_hat in dbias", "x_hat is in the gradient of the shift")
def _(x, weight, grad, eps):
    return with_parts(x, weight, grad, eps, shift=(grad * hat(x, eps)).sum(0))


@norm_back("what came in", "as dx there is something of the forward pass")
def _(x, weight, grad, eps):
    return x, weight, grad


@norm_back("the output", "as dx there is something of the forward pass")
def _(x, weight, grad, eps):
    return hat(x, eps) * weight, *backward(x, weight, grad, eps)[1:]


@norm_back("the gradient by y", "the gradient by y, or the one that reaches x_hat")
def _(x, weight, grad, eps):
    return grad, *backward(x, weight, grad, eps)[1:]


@norm_back("both terms added", "a term has the wrong sign")
def _(x, weight, grad, eps):
    minus = {"first": lambda h: -mean_of(h), "second": lambda h: -mean_of(h)}
    return backward(x, weight, grad, eps, **minus)


@norm_back("the 2 of the square", "twice too large, or half")
def _(x, weight, grad, eps):
    return backward(x, weight, grad, eps, second=lambda h: 2 * mean_of(h))


@norm_back("the gain last", "the gain comes in too late")
def _(x, weight, grad, eps):
    dx, *rest = backward(x, weight, grad, eps, gain=False)
    return weight * dx, *rest


@norm_back("means of g", "the gain comes in too late")
def _(x, weight, grad, eps):
    rstd, x_hat = (x.var(1, keepdim=True, correction=0) + eps).rsqrt(), hat(x, eps)
    dx = rstd * (grad * weight - mean_of(grad) - x_hat * mean_of(grad * x_hat))
    return dx, *backward(x, weight, grad, eps)[1:]


@norm_back("no x_hat in front", "no x_hat in front")
def _(x, weight, grad, eps):
    rstd, h = (x.var(1, keepdim=True, correction=0) + eps).rsqrt(), grad * weight
    dx = rstd * (h - mean_of(h) - mean_of(h * hat(x, eps)))
    return dx, *backward(x, weight, grad, eps)[1:]


@norm_back("dweight and dbias exchanged", "as dweight there is the gradient of the shift")
def _(x, weight, grad, eps):
    dx, dweight, dbias = backward(x, weight, grad, eps)
    return dx, dbias, dweight


@norm_back("the gain for its gradient", "as dweight there is the gain itself")
def _(x, weight, grad, eps):
    return with_parts(x, weight, grad, eps, gain=weight)


@norm_back("centred only in dweight", "this takes x as it came")
def _(x, weight, grad, eps):
    return with_parts(x, weight, grad, eps, gain=(grad * (x - mean_of(x))).sum(0))


@norm_back("ones in dbias", "grad is not in the gradient of the shift")
def _(x, weight, grad, eps):
    return with_parts(x, weight, grad, eps, shift=torch.ones_like(weight))


@norm_back("parts in another order", "Are the parts in the right order?")
def _(x, weight, grad, eps):
    dx, dweight, dbias = backward(x, weight, grad, eps)
    return dweight, dbias, dx


@norm_back("dx alone", "it returned a Tensor; expected three tensors, dx, dweight and dbias")
def _(x, weight, grad, eps):
    return backward(x, weight, grad, eps)[0]


def back_jacobian(x: Tensor, weight: Tensor, grad: Tensor, eps: float) -> Any:
    """Token by token, with the whole Jacobian of x_hat by x."""
    n, d = x.shape
    dx = torch.empty_like(x)
    for t in range(n):
        mean, var = x[t].mean(), x[t].var(correction=0)
        r = 1 / math.sqrt(float(var) + eps)
        x_hat = (x[t] - mean) * r
        jacobian = r * (torch.eye(d).to(x) - 1 / d - torch.outer(x_hat, x_hat) / d)
        dx[t] = (grad[t] * weight) @ jacobian
    x_hat = (x - mean_of(x)) / (x.var(1, keepdim=True, correction=0) + eps) ** 0.5
    return dx, torch.einsum("nd,nd->d", grad, x_hat), torch.ones(n).to(x) @ grad


def back_chain(x: Tensor, weight: Tensor, grad: Tensor, eps: float) -> Any:
    """The three ways, one after another."""
    d, h = x.shape[1], grad * weight
    centred = x - x.sum(1, keepdim=True) / d
    sigma = ((centred**2).sum(1, keepdim=True) / d + eps) ** 0.5
    by_variance = -(h * centred).sum(1, keepdim=True) / (2 * sigma**3)
    by_mean = -(h / sigma).sum(1, keepdim=True)
    dx = h / sigma + by_variance * 2 * centred / d + by_mean / d
    return [dx, (grad * centred / sigma).sum(0), grad.sum(0)]


RIGHT["6.6"] = [("the whole Jacobian", [back_jacobian]), ("three ways", [back_chain])]


# 6.7 ---------------------------------------------------------------------------------

norm_kernel = wrong("6.7", "layer_norm_kernel")


@triton.jit
def _flexible_norm(
    x_ptr, w_ptr, b_ptr, o_ptr, DIM: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    """The kernel with one of several faults."""
    i = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    inside = offs < DIM
    stride = BLOCK if KIND == "stride" else DIM
    if KIND == "bare":
        x = tl.load(x_ptr + i * stride + offs, mask=inside)
    elif KIND == "unguarded":
        x = tl.where(inside, tl.load(x_ptr + i * stride + offs), 0.0)
    else:
        x = tl.load(x_ptr + (0 if KIND == "row 0" else i) * DIM + offs, mask=inside, other=0.0)
    mean = tl.sum(x, 0) / (BLOCK if KIND == "by block" else DIM)
    centred = x - mean if KIND == "empty" else tl.where(inside, x - mean, 0.0)
    count = BLOCK if KIND == "by block" else DIM - 1 if KIND == "unbiased" else DIM
    if KIND == "sum":
        count = 1
    variance = tl.sum(centred * centred, 0) / count
    if KIND == "squares of x":
        variance = tl.sum(x * x, 0) / DIM
    if KIND == "one look":
        variance = tl.sum(x * x, 0) / DIM - mean * mean
    if KIND == "outside":
        divisor = tl.sqrt(variance) + EPS
    elif KIND == "no eps":
        divisor = tl.sqrt(variance)
    elif KIND == "its own eps":
        divisor = tl.sqrt(variance + 1e-5)
    elif KIND == "variance":
        divisor = variance + EPS
    else:
        divisor = tl.sqrt(variance + EPS)
    w = tl.load(w_ptr + offs, mask=inside, other=0.0)
    b = tl.load(b_ptr + offs, mask=inside, other=0.0)
    if KIND == "no gain":
        w = 1.0
    if KIND == "no shift":
        b = 0.0
    y = (x if KIND == "uncentred" else centred) / divisor * w + b
    if KIND == "shift first":
        y = (centred / divisor + b) * w
    if KIND == "exchanged":
        y = centred / divisor * b + w
    if KIND == "overwrite":
        tl.store(x_ptr + i * DIM + offs, centred, mask=inside)
    stored = offs < (DIM - 1 if KIND == "short" else BLOCK if KIND == "long" else DIM)
    tl.store(o_ptr + i * stride + offs, y, mask=stored)


class Chosen:
    """A kernel launched with one more constant: a fault of ``flexible``."""

    def __init__(self, flexible: Any, kind: str) -> None:
        self.flexible, self.kind = flexible, kind
        self.fn = getattr(flexible, "fn", flexible)
        self.__name__ = self.fn.__name__

    def __getitem__(self, grid: Any) -> Any:
        launch = self.flexible[grid]
        return lambda *args: launch(*args, self.kind)


for fault, fragment, kind in (
    ("empty lanes in the variance", "lanes without a feature are in the variance", "empty"),
    ("divided by BLOCK", "a sum is divided by the lanes of the tile", "by block"),
    ("no other=", "a load has a mask and no other=", "bare"),
    ("unbiased", "the sum of squares is divided by DIM - 1", "unbiased"),
    ("eps outside", "eps stands outside the root", "outside"),
    ("no eps", "eps is missing", "no eps"),
    ("an eps of its own", "eps is missing", "its own eps"),
    ("a sum of squares", "a sum stands where a mean belongs", "sum"),
    ("squares of x", "a variance is the mean square of what", "squares of x"),
    ("the first row for all", "every program reads the first row", "row 0"),
    ("the shift before the gain", "gain and shift are exchanged, or", "shift first"),
    ("gain and shift exchanged", "gain and shift are exchanged, or", "exchanged"),
    ("no root", "divided by the variance, without its root", "variance"),
    ("not centred", "the mean is not taken away from what is stored", "uncentred"),
    ("no gain", "gain or shift is missing", "no gain"),
    ("no shift", "gain or shift is missing", "no shift"),
    ("one look at the row", "its digits are gone", "one look"),
    ("reads on", "a load reads past the end of the rows", "unguarded"),
    ("a wrong stride", "an output that is not its own", "stride"),
    ("the whole tile written", "an output that is not its own", "long"),
    ("one lane too few", "is never written", "short"),
    ("stored over the input", "an input is not what it was before", "overwrite"),
):
    norm_kernel(fault, fragment)(Chosen(_flexible_norm, kind))


@triton.jit
def norm_scaled(
    x_ptr, weight_ptr, bias_ptr, output_ptr, DIM: tl.constexpr, BLOCK: tl.constexpr,
    EPS: tl.constexpr,
):  # fmt: skip
    """Weights of 1/DIM for lanes that exist; the differences cleared by them."""
    row = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    share = tl.where(offs < DIM, 1.0 / DIM, 0.0)
    x = tl.load(x_ptr + row * DIM + offs, mask=offs < DIM, other=-7.0)
    d = x - tl.sum(x * share, 0)
    scale = tl.rsqrt(tl.sum(d * d * share, 0) + EPS)
    w = tl.load(weight_ptr + offs, mask=offs < DIM, other=1.0)
    tl.store(
        output_ptr + row * DIM + offs,
        d * scale * w + tl.load(bias_ptr + offs, mask=offs < DIM, other=1.0),
        mask=offs < DIM,
    )


@triton.jit
def norm_streamed(
    x_ptr, weight_ptr, bias_ptr, output_ptr, DIM: tl.constexpr, BLOCK: tl.constexpr,
    EPS: tl.constexpr,
):  # fmt: skip
    """Feature by feature, three times over the row."""
    start = tl.program_id(0) * DIM
    mean = 0.0
    for c in range(DIM):
        mean += tl.load(x_ptr + start + c) / DIM
    squares = 0.0
    for c in range(DIM):
        d = tl.load(x_ptr + start + c) - mean
        squares += d * d
    scale = 1 / tl.sqrt(squares / DIM + EPS)
    for c in range(DIM):
        y = (tl.load(x_ptr + start + c) - mean) * scale * tl.load(weight_ptr + c)
        tl.store(output_ptr + start + c, y + tl.load(bias_ptr + c))


RIGHT["6.7"] = [
    ("weights of 1/DIM", [norm_scaled]),
    ("feature by feature", [norm_streamed]),
]


# 6.8 ---------------------------------------------------------------------------------

causal = wrong("6.8", "causal_kernel")


@triton.jit
def _rows(ptr, rows, LENGTH, DIM: tl.constexpr, GUARDED: tl.constexpr):
    """A tile [rows, DIM]; without a guard it reads past the last row."""
    places = rows[:, None] * DIM + tl.arange(0, DIM)[None, :]
    return tl.load(ptr + places, mask=((rows < LENGTH) | (not GUARDED))[:, None], other=0.0)


@triton.jit
def _flexible_causal(
    q_ptr, k_ptr, v_ptr, o_ptr, LENGTH: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """The kernel with one of several faults."""
    tile = tl.program_id(0)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    q = _rows(q_ptr, rows, LENGTH, DIM, True) / DIM**0.5
    top = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, DIM], tl.float32)
    stop = tl.minimum((tile + 1) * BLOCK_M, LENGTH)
    needed = (stop + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    if KIND == "short":
        stop = tile * BLOCK_M
    if KIND == "floor":
        stop = stop // BLOCK_N * BLOCK_N
    if KIND == "first row":
        stop = tile * BLOCK_M + 1
    if KIND == "last query":
        stop = stop - 1
    if KIND == "one less":
        stop = needed - BLOCK_N
    if KIND == "same tiles":
        stop = tl.minimum((tile + 1) * BLOCK_N, LENGTH)
    if KIND == "everything" or KIND == "dense" or KIND == "transposed, all":
        stop = LENGTH + 0 * tile
    if KIND == "one more":
        stop = tl.minimum(stop + BLOCK_N, LENGTH)
    first = 0 * tile
    if KIND == "from the diagonal":
        first = tile * BLOCK_M
    for start in range(first, stop, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        k = _rows(k_ptr, cols, LENGTH, DIM, KIND != "unguarded")
        v = _rows(v_ptr, cols, LENGTH, DIM, True)
        a = tl.sum(q[:, None, :] * k[None, :, :], 2)
        seen = cols[None, :] <= rows[:, None]
        if KIND == "dense" or KIND == "no mask":
            seen = (cols < LENGTH)[None, :] & (rows >= 0)[:, None]
        if KIND == "no mask, no tail":
            seen = (cols >= 0)[None, :] & (rows >= 0)[:, None]
        if KIND == "last tile":
            seen = seen | (start + BLOCK_N < stop)
        if KIND == "strict":
            seen = cols[None, :] < rows[:, None]
        if KIND == "transposed" or KIND == "transposed, all":
            seen = (cols[None, :] >= rows[:, None]) & (cols < LENGTH)[None, :]
        if KIND == "local rows":
            seen = cols[None, :] <= tl.arange(0, BLOCK_M)[:, None]
        if KIND == "both counted in the tile":
            seen = tl.arange(0, BLOCK_N)[None, :] <= tl.arange(0, BLOCK_M)[:, None]
        if KIND == "only tiles that begin later":
            seen = seen | (start <= tile * BLOCK_M)
        a = tl.where(seen, a, 0.0 if KIND == "zero" else -1e30)
        new = tl.maximum(top, tl.max(a, 1))
        keep = tl.exp(top - new)
        p = tl.exp(a - new[:, None])
        if KIND != "zero":
            p = tl.where(seen, p, 0.0)
        if KIND == "no rescale":
            keep = tl.where(start == 0, keep, 1.0)
        total = total * keep + tl.sum(p, 1)
        sums = sums * keep[:, None] + tl.sum(p[:, :, None] * v[None, :, :], 1)
        top = new
    places = rows[:, None] * DIM + tl.arange(0, DIM)[None, :]
    out = sums / total[:, None]
    if KIND == "short, guarded":
        out = tl.where(total[:, None] == 0, 0.0, out)
    inside = (rows < (LENGTH - 1 if KIND == "one row less" else LENGTH))[:, None]
    if KIND == "all programs":
        places = tl.arange(0, BLOCK_M)[:, None] * DIM + tl.arange(0, DIM)[None, :]
    tl.store(o_ptr + places, out, mask=inside)


for fault, fragment, kind in (
    ("one tile short", "one tile short", "short"),
    ("the bound rounded down", "one tile short", "floor"),
    ("the first query decides", "one tile short", "first row"),
    ("the last query as the end", "one tile short", "last query"),
    ("one tile less than needed", "one tile short", "one less"),
    ("equal tiles taken for granted", "counted as if they were equally large", "same tiles"),
    ("the diagonal unmasked", "the diagonal is not masked", "no mask"),
    ("neither diagonal nor tail masked", "the diagonal is not masked", "no mask, no tail"),
    ("no bound, no mask", "every query reads every key", "dense"),
    ("only the last tile masked", "only the last tile is masked", "last tile"),
    ("the query's own key hidden", "a query does not see its own key", "strict"),
    ("the mask transposed", "the comparison is the wrong way round", "transposed"),
    ("the mask transposed, no bound", "the comparison is the wrong way round", "transposed, all"),
    ("scores set to zero", "hidden scores are set to 0", "zero"),
    ("rows of the tile", "rows are compared as they are counted within their tile", "local rows"),
    ("both counted in the tile", "rows and columns are both compared", "both counted in the tile"),
    ("the past left out", "the loop begins at the diagonal", "from the diagonal"),
    (
        "masked too late",
        "a tile that the diagonal crosses is not masked",
        "only tiles that begin later",
    ),
    ("not rescaled", "sums that were made with an old maximum", "no rescale"),
    ("the future loaded", "that no query of its tile may see", "everything"),
    ("one tile too many", "that no query of its tile may see", "one more"),
    ("reads on", "a load reads past the end of the queries", "unguarded"),
    ("all programs in the same place", "an output that is not its own", "all programs"),
    ("one row too few", "is never written", "one row less"),
):
    causal(fault, fragment)(Chosen(_flexible_causal, kind))


@triton.jit
def causal_two_loops(
    query_ptr, key_ptr, value_ptr, output_ptr, LENGTH: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Whole tiles first, without a mask; then those that the diagonal crosses."""
    tile = tl.program_id(0)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    q = _rows(query_ptr, rows, LENGTH, DIM, True)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, DIM], tl.float32)
    whole = tile * BLOCK_M // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        k = _rows(key_ptr, cols, LENGTH, DIM, True)
        v = _rows(value_ptr, cols, LENGTH, DIM, True)
        a = tl.sum(q[:, None, :] * k[None, :, :], 2) / DIM**0.5
        new = tl.maximum(top, tl.max(a, 1))
        p = tl.exp(a - new[:, None])
        total = total * tl.exp(top - new) + tl.sum(p, 1)
        sums = sums * tl.exp(top - new)[:, None] + tl.sum(p[:, :, None] * v[None, :, :], 1)
        top = new
    for start in range(whole, tl.minimum((tile + 1) * BLOCK_M, LENGTH), BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        k = _rows(key_ptr, cols, LENGTH, DIM, True)
        v = _rows(value_ptr, cols, LENGTH, DIM, True)
        a = tl.sum(q[:, None, :] * k[None, :, :], 2) / DIM**0.5
        a = tl.where(rows[:, None] >= cols[None, :], a, float("-inf"))
        new = tl.maximum(top, tl.max(a, 1))
        p = tl.exp(a - new[:, None])
        total = total * tl.exp(top - new) + tl.sum(p, 1)
        sums = sums * tl.exp(top - new)[:, None] + tl.sum(p[:, :, None] * v[None, :, :], 1)
        top = new
    places = rows[:, None] * DIM + tl.arange(0, DIM)[None, :]
    tl.store(output_ptr + places, sums / total[:, None], mask=(rows < LENGTH)[:, None])


@triton.jit
def causal_counted(
    query_ptr, key_ptr, value_ptr, output_ptr, LENGTH: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Tiles counted, base two, keys of the future not even loaded in the last tile."""
    tile = tl.program_id(0)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    q = _rows(query_ptr, rows, LENGTH, DIM, True) * (1.44269504 / DIM**0.5)
    top = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, DIM], tl.float32)
    last = tl.minimum(tile * BLOCK_M + BLOCK_M - 1, LENGTH - 1)
    for number in range(0, last // BLOCK_N + 1):
        cols = number * BLOCK_N + tl.arange(0, BLOCK_N)
        k = _rows(key_ptr, cols, last + 1, DIM, True)
        v = _rows(value_ptr, cols, last + 1, DIM, True)
        a = tl.sum(q[:, None, :] * k[None, :, :], 2)
        a += tl.where(rows[:, None] < cols[None, :], -1e30, 0.0)
        new = tl.maximum(top, tl.max(a, 1))
        p = tl.exp2(a - new[:, None])
        keep = tl.exp2(top - new)
        total = total * keep + tl.sum(p, 1)
        sums = sums * keep[:, None] + tl.sum(p[:, :, None] * v[None, :, :], 1)
        top = new
    places = rows[:, None] * DIM + tl.arange(0, DIM)[None, :]
    tl.store(output_ptr + places, sums / total[:, None], mask=(rows < LENGTH)[:, None])


RIGHT["6.8"] = [
    ("two loops", [causal_two_loops]),
    ("tiles counted, base two", [causal_counted]),
]


# The formulas of known mistakes ------------------------------------------------------

TABLES: list[Table] = [
    (cases._CAUSAL_CASES, cases._causal, mistakes._CAUSAL_MISTAKES),
    (cases._LAYER_NORM_CASES, cases._layer_norm, mistakes._LAYER_NORM_MISTAKES),
    (cases._BLOCK_CASES, cases._post_norm, mistakes._POST_MISTAKES),
    (cases._BLOCK_CASES, cases._pre_norm, mistakes._PRE_MISTAKES),
    (cases._STACK_CASES, cases._pre_norm_stack, mistakes._STACK_MISTAKES),
    (cases._LEAK_CASES, cases._leaks, mistakes._LEAK_MISTAKES),
    (cases._LENS_CASES, cases._lens_allowed, mistakes._LENS_MISTAKES),
    (cases._SMOOTH_CASES, cases._smooth, mistakes._SMOOTH_MISTAKES),
    (cases._SMOOTH_LOSS_CASES, cases._smooth_loss, mistakes._SMOOTH_LOSS_MISTAKES),
    (cases._CACHE_CASES, cases._decode, mistakes._CACHE_MISTAKES),
    (cases._REORDER_CASES, cases._reorder, mistakes._REORDER_MISTAKES),
    (cases._NORM_ROWS_CASES, cases._norm_rows, mistakes._NORM_ROWS_MISTAKES),
    (cases._CAUSAL_KERNEL_CASES, cases._causal_attention, mistakes._CAUSAL_KERNEL_MISTAKES),
    *(
        (cases._NORM_BACKWARD_CASES, part, known)
        for part, known in zip(
            each_of(cases._norm_backward, 3),
            (mistakes._DX_MISTAKES, mistakes._DGAIN_MISTAKES, mistakes._DSHIFT_MISTAKES),
            strict=True,
        )
    ),
]
