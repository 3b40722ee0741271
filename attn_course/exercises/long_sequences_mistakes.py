"""Chapter 8's exercises: the likely mistakes, and what is said of each.

A mistake is the formula that it computes, and the message that names it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.exercises.framework import Mistake
from attn_course.exercises.kernels import Words
from attn_course.exercises.long_sequences_cases import (
    Network,
    _blocks,
    _labels,
    _paths,
    _reached,
    _read,
    _sliding,
    _span,
)

# 8.1 ---------------------------------------------------------------------------------


def _exchanged(tensor: Tensor) -> Tensor:
    """The first two axes in each other's place."""
    return tensor.transpose(0, 1)


def _reshaped(tensor: Tensor) -> Tensor:
    """The shape of ``_exchanged``, and no number moved."""
    return tensor.reshape(tensor.shape[1], tensor.shape[0], -1)


def _left_there(tensor: Tensor) -> Tensor:
    """Batch first, as it is; where the shape would tell, what nobody answers."""
    batch, steps = tensor.shape[:2]
    return tensor if batch == steps else torch.full_like(_reshaped(tensor), torch.nan)


def _attended(
    axis: int = 2,
    into: Callable[[Tensor], Tensor] = _exchanged,
    out: Callable[[Tensor], Tensor] = _exchanged,
    scores: Callable[[Tensor, Tensor], Tensor] = lambda mapped, x: mapped @ x.mT,
    bias: bool = True,
    values: bool = True,
) -> Callable[..., Tensor]:
    """Approach 2.1 with another axis, other ways into the batched product and out of it."""

    def answer(x: Tensor, states: Tensor, weight: Tensor, **given: Tensor) -> Tensor:
        first, second = into(x), into(states)
        mapped = F.linear(first, weight, given["bias"] if bias else None)
        weights = scores(mapped, first).softmax(axis)
        return out(weights @ (second if values else first))

    return answer


def _same(tensor: Tensor) -> Tensor:
    return tensor


_ATTEND_MISTAKES = (
    Mistake(
        "the layout is repaired and the axis is not: the weights sum to 1 over queries, not over "
        "keys. Of scores [batch, query, key], which axis is to be shared out among those that a "
        "step reads?",
        (_attended(axis=1),),
    ),
    Mistake(
        "the axis is repaired and the layout is not: the result is still batch first, and the next "
        "network takes its first axis for time. What put the batch first, and what undoes it?",
        (_attended(out=_left_there),),
    ),
    Mistake(
        "this is what was posted: softmax over queries, and the batch first. Which two lines are "
        "to change?",
        (_attended(axis=1, out=_left_there),),
    ),
    Mistake(
        "the shape is put right by `view` or `reshape`, which moves no number: steps of one item "
        "now stand where steps of another belong. What exchanges two axes?",
        (
            *(
                _attended(axis, into, out)
                for axis in (2, 1)
                for into, out in (
                    (_exchanged, _reshaped),
                    (_reshaped, _exchanged),
                    (_reshaped, _reshaped),
                )
            ),
        ),
    ),
    Mistake(
        "the weights are shared out among the items of the batch. Which of the three axes is the "
        "batch, and what has one image to do with another?",
        (_attended(axis=0), _attended(axis=0, out=_left_there)),
    ),
    Mistake(
        "items attend to each other: the product was made of sequences that come first, [len, "
        "batch, ...], so that the axis that it treats one by one is time. What must come first?",
        (
            _attended(into=_same, out=_same),
            _attended(axis=1, into=_same, out=_same),
        ),
    ),
    Mistake(
        "queries and keys have changed places: x that has been through the linear map is the "
        "query, and x itself is the key. Which of them gives the rows of the scores?",
        (
            _attended(scores=lambda mapped, x: x @ mapped.mT),
            _attended(axis=1, scores=lambda mapped, x: x @ mapped.mT),
        ),
    ),
    Mistake(
        "the weights are right, and then applied to x. What the first network *said* is to be "
        "handed on: which argument is that?",
        (_attended(values=False),),
    ),
    Mistake(
        "the bias is lost. Over queries it did nothing; over keys it says which keys are looked at "
        "more, whoever asks.",
        (_attended(bias=False),),
    ),
    Mistake(
        "the scores are scaled. Chapter 2 has a reason for it, but two faults are to be repaired "
        "here and all other numbers to stay as they are.",
        (_attended(scores=lambda mapped, x: mapped @ x.mT / x.shape[2] ** 0.5),),
    ),
)

_BATCH_FIRST = (
    "it returned shape {}: the batch first. The next network takes its first axis for time, and "
    "would read item after item as if they were steps. What put the batch first, and what undoes "
    "it?"
)


# 8.2 ---------------------------------------------------------------------------------


def _fed_back(into: str) -> Callable[..., Tensor]:
    """The loop whose answer is the next hidden state, or is added to the next input."""

    def answer(memory: Tensor, rnn2: Network, weight: Tensor) -> Tensor:
        hidden, answers = None, []
        last = torch.zeros_like(memory[0])
        for step in memory:
            state, hidden = rnn2((step + last if into == "input" else step)[None], hidden)
            weights = torch.einsum("jbd,bd->bj", memory, state[0]).softmax(1)
            found = torch.einsum("bj,jbd->bd", weights, memory)
            last = (torch.cat((state[0], found), 1) @ weight.T).tanh()
            if into == "hidden":
                hidden = last[None]
            answers.append(last)
        return torch.stack(answers)

    return answer


def _states(memory: Tensor, rnn2: Network) -> Tensor:
    return rnn2(memory)[0]


def _before(memory: Tensor, rnn2: Network) -> Tensor:
    """The states before each step; zeros before the first."""
    states = _states(memory, rnn2)
    return torch.cat([torch.zeros_like(states[:1]), states[:-1]])


def _last(memory: Tensor, rnn2: Network) -> Tensor:
    return rnn2(memory)[1].expand_as(memory)


def _batch_as_time(memory: Tensor, rnn2: Network) -> Tensor:
    return _exchanged(rnn2(_exchanged(memory))[0])


def _remember(memory: Tensor, rnn2: Network) -> Tensor:
    return memory


def _looked_up(
    query: Callable[[Tensor, Network], Tensor] = _states,
    keys: Callable[[Tensor, Network], Tensor] = _remember,
    values: Callable[[Tensor, Network], Tensor] = _remember,
    beside: Callable[[Tensor, Network], Tensor] | None = None,
    *,
    axis: int = 2,
    into: Callable[[Tensor], Tensor] = _exchanged,
    out: Callable[[Tensor], Tensor] = _exchanged,
    change: Callable[[Tensor], Tensor] = lambda scores: scores,
    swapped: bool = False,
    tanh: bool = True,
) -> Callable[..., Tensor]:
    """All steps at once, with something else for one of the parts.

    Args:
        query: What looks up,
        keys: what it is compared with,
        values: what is added up,
        beside: and what stands beside the context; by default the query.
        axis: Of the softmax.
        into: From sequences first to batch first,
        out: and back.
        change: What is done to the scores ``[batch, query, key]``.
        swapped: The context before the query.
        tanh: Whether there is one.
    """

    def answer(memory: Tensor, rnn2: Network, weight: Tensor) -> Tensor:
        asked, key, value = (into(part(memory, rnn2)) for part in (query, keys, values))
        context = change(asked @ key.mT).softmax(axis) @ value
        state = asked if beside is None else into(beside(memory, rnn2))
        both = (context, state) if swapped else (state, context)
        mixed = torch.cat(both, 2) @ weight.T
        return out(mixed.tanh() if tanh else mixed)

    return answer


def _past_only(scores: Tensor) -> Tensor:
    later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf)


def _one_sequence(memory: Tensor, rnn2: Network, weight: Tensor) -> Tensor:
    """All steps of all items in one product."""
    states = _states(memory, rnn2)
    flat = memory.flatten(0, 1)
    context = (states.flatten(0, 1) @ flat.T).softmax(1) @ flat
    mixed = torch.cat((states.flatten(0, 1), context), 1) @ weight.T
    return mixed.tanh().view_as(states)


_UNLOOP_MISTAKES = (
    Mistake(
        "an answer is fed back: o_t goes into the state after it, or into its input. In the loop "
        "as posted, which variable does `rnn2` get again, and who reads the answers?",
        (_fed_back("hidden"), _fed_back("input")),
    ),
    Mistake(
        "the wrong query: what looks up is the memory's own step m_t, and `rnn2` is not asked. "
        "Which of the two networks' states is the query in the loop?",
        (
            _looked_up(query=_remember),
            _looked_up(query=_remember, beside=_states),
        ),
    ),
    Mistake(
        "queries and memory have changed places: steps of the *memory* ask the states. Rows of the "
        "weights belong to those who ask: which of the two stands first in H M^T?",
        (
            _looked_up(query=_remember, keys=_states, beside=_states),
            _looked_up(query=_remember, keys=_states, values=_states, beside=_states),
            _looked_up(query=_remember, keys=_states),
            _looked_up(query=_remember, keys=_states, values=_states),
        ),
    ),
    Mistake(
        "the wrong query: each step looks up with the state of the step before. `rnn2` reads step "
        "t first, and then its new state asks.",
        (
            _looked_up(query=_before),
            _looked_up(query=_before, beside=_states),
        ),
    ),
    Mistake(
        "the wrong query: all steps look up with the last state. `rnn2` returns two things: which "
        "of them holds a state for every step?",
        (
            _looked_up(query=_last),
            _looked_up(query=_last, beside=_states),
        ),
    ),
    Mistake(
        "what stands beside the context is not the state that asked: what does `torch.cat` join in "
        "the loop?",
        (
            _looked_up(beside=_remember),
            _looked_up(beside=_before),
            _looked_up(beside=_last),
        ),
    ),
    Mistake(
        "the batch is mixed: `rnn2` was given the batch first, and read item after item as if they "
        "were steps. Which layout does it take? Transpose after it, not before.",
        (
            _looked_up(query=_batch_as_time),
            _looked_up(query=_batch_as_time, out=_left_there),
        ),
    ),
    Mistake(
        "the batch is mixed: in the product items attend to each other, since sequences come first "
        "there. Which axis does a batched product treat one by one?",
        (
            _looked_up(into=_same, out=_same),
            _looked_up(axis=1, into=_same, out=_same),
        ),
    ),
    Mistake(
        "the batch is mixed: all steps of all items are made one long sequence, so that items read "
        "each other. How many matrices of weights should there be, and of which size?",
        (_one_sequence,),
    ),
    Mistake(
        "the numbers are right, but the batch comes first. How did they come in?",
        (_looked_up(out=_left_there),),
    ),
    Mistake(
        "`view` or `reshape` stands where two axes are to be exchanged: it moves no number, and "
        "steps of one item stand where steps of another belong.",
        (
            _looked_up(out=_reshaped),
            _looked_up(into=_reshaped),
            _looked_up(into=_reshaped, out=_reshaped),
        ),
    ),
    Mistake(
        "softmax runs over the queries, and each step shares out 1 among the memories that it "
        "reads. Which axis is that of [batch, query, key]?",
        (_looked_up(axis=1), _looked_up(axis=0)),
    ),
    Mistake(
        "the states of `rnn2` look up themselves. The loop compares them with the *memory*, and "
        "adds up the memory: where do m and h stand in softmax(H M^T) M?",
        (
            _looked_up(keys=_states, values=_states),
            _looked_up(keys=_states),
            _looked_up(values=_states),
        ),
    ),
    Mistake(
        "steps see only what lies before them. But the memory was there as a whole before `rnn2` "
        "began, and the loop looks at all of it: whose future would be a leak?",
        (_looked_up(change=_past_only),),
    ),
    Mistake(
        "the scores are scaled; in the loop they are not.",
        (_looked_up(change=lambda scores: scores / 4**0.5), lambda **given: _scaled(**given)),
    ),
    Mistake(
        "context and state have changed places: W was learned for [state; context].",
        (_looked_up(swapped=True),),
    ),
    Mistake(
        "the tanh is missing, or stands inside.",
        (
            _looked_up(tanh=False),
            lambda memory, rnn2, weight: (
                torch.cat(_both(memory, rnn2), 2).tanh() @ weight.T
            ).transpose(0, 1),
        ),
    ),
)


def _scaled(memory: Tensor, rnn2: Network, weight: Tensor) -> Tensor:
    root = memory.shape[2] ** 0.5
    return _looked_up(change=lambda scores: scores / root)(memory, rnn2, weight)


def _both(memory: Tensor, rnn2: Network) -> tuple[Tensor, Tensor]:
    """States and contexts, batch first."""
    states, keys = _exchanged(_states(memory, rnn2)), _exchanged(memory)
    return states, (states @ keys.mT).softmax(2) @ keys


_CALLED_AGAIN = (
    "the numbers are right, but `rnn2` was called {} times for {} steps. Nothing that it reads "
    "waits for an answer: what does it return when it gets the whole sequence at once?"
)
_STILL_LOOPS = (
    "the numbers are right, and {} steps take {} operations of PyTorch where {} steps take {}: "
    "something still goes step by step. With rows for queries and columns for keys, which one "
    "product gives all scores?"
)


# 8.3 ---------------------------------------------------------------------------------


def _parts(batch: int, queries: int, keys: int, width: int, size: int) -> list[int]:
    """Bytes of each of the five tensors."""
    pairs, rows = queries * keys, queries * width
    return [batch * size * count for count in (rows, keys * width, pairs, pairs, rows)]


def _kept_of(*counts: float) -> Callable[..., Tensor]:
    """So many times each of the five."""

    def answer(**given: int) -> Tensor:
        return torch.tensor(_parts(**given), dtype=torch.float64) * torch.tensor(counts)

    return answer


def _taken_as(**other: Callable[..., int]) -> Callable[..., Tensor]:
    """The right answer to another question."""

    def answer(**given: int) -> Tensor:
        changed = {name: how(**given) for name, how in other.items()}
        sizes = {**given, **changed}
        parts = _parts(**sizes)
        return torch.tensor([parts[0], parts[1], 0, parts[3], 0], dtype=torch.float64)

    return answer


def _but(place: int, bytes_of: Callable[..., int]) -> Callable[..., Tensor]:
    """The right answer but for one tensor."""

    def answer(**given: int) -> Tensor:
        right = _taken_as()(**given)
        right[place] = bytes_of(**given)
        return right

    return answer


_LEDGER_MISTAKES = (
    Mistake(
        "the batch is forgotten: these are the bytes of one sequence. How many matrices of weights "
        "are there?",
        (
            _taken_as(batch=lambda **given: 1),
            _but(3, lambda queries, keys, size, **rest: queries * keys * size),
        ),
    ),
    Mistake(
        "the result of the softmax is forgotten. Its derivative needs it, and so does the product "
        "with M: is there a way to have dL/dM without the weights?",
        (_kept_of(1, 1, 0, 0, 0), _kept_of(0, 0, 0, 0, 0)),
    ),
    Mistake(
        "all that is computed is counted, the scores and the output too. What is kept is what a "
        "derivative needs: which derivative would need the scores themselves, once the softmax's "
        "result is there?",
        (
            _kept_of(1, 1, 1, 1, 1),
            _kept_of(1, 1, 1, 1, 0),
            _kept_of(1, 1, 0, 1, 1),
            _kept_of(0, 0, 1, 1, 1),
            _kept_of(0, 0, 1, 1, 0),
            _kept_of(0, 0, 0, 1, 1),
        ),
    ),
    Mistake(
        "the scores are kept in place of the weights. With a = softmax(s), the derivative is "
        "a (g - sum of a g): which of the two is in it?",
        (_kept_of(1, 1, 1, 0, 0), _kept_of(0, 0, 1, 0, 0)),
    ),
    Mistake(
        "a product keeps both of its factors: the derivative with respect to one is the gradient "
        "times the other. Of H and M, which one is missing, and whose derivative needs it?",
        (
            _kept_of(0, 0, 0, 1, 0),
            _kept_of(1, 0, 0, 1, 0),
            _kept_of(0, 1, 0, 1, 0),
        ),
    ),
    Mistake(
        "M is counted twice, as keys and as values. It lies in memory once; a transposed view is "
        "the same storage.",
        (_kept_of(1, 2, 0, 1, 0),),
    ),
    Mistake(
        "the weights are counted twice, for the softmax and for the product. Both keep the same "
        "tensor: how often does it lie in memory?",
        (_kept_of(1, 1, 0, 2, 0),),
    ),
    Mistake(
        "these are numbers, and bytes are asked for: how many has a number here?",
        (_taken_as(size=lambda **given: 1),),
    ),
    Mistake(
        "four bytes a number are taken for granted. What is `size` in half precision?",
        (_taken_as(size=lambda **given: 4),),
    ),
    Mistake(
        "queries and keys are taken to be equally many. How many rows and columns have the "
        "weights, and how many rows has M?",
        (
            _taken_as(keys=lambda queries, **rest: queries),
            _taken_as(queries=lambda keys, **rest: keys),
            _but(3, lambda batch, queries, size, **rest: batch * queries**2 * size),
            _but(3, lambda batch, keys, size, **rest: batch * keys**2 * size),
            lambda queries, keys, **rest: _taken_as()(queries=keys, keys=queries, **rest),
        ),
    ),
    Mistake(
        "the width is counted in the weights. One pair of query and key has one weight: what "
        "became of the width in the product?",
        (
            _but(
                3,
                lambda batch, queries, keys, width, size: batch * queries * keys * width * size,
            ),
        ),
    ),
    Mistake(
        "everything is doubled, as if gradients were kept as well. They are made in the backward "
        "pass; what is there before it begins?",
        (_kept_of(2, 2, 0, 2, 0),),
    ),
)

_NOT_NAMED = "it returned {}; expected a dict with the keys {}, the bytes of each as a number."


def _stack_of(
    h: float = 1,
    scores: float = 0,
    weights: float = 1,
    output: float = 0,
    relu: float = 1,
    *,
    layers: Callable[[int], int] = lambda layers: layers,
    batch: Callable[[int], int] = lambda batch: batch,
    size: Callable[[int], int] = lambda size: size,
    x: int = 0,
    maps: int = 0,
    less: int = 0,
) -> Callable[..., Tensor]:
    """So many of each in a layer; and of what was there before."""

    def answer(**given: int) -> Tensor:
        n, width, count = given["steps"], given["width"], layers(given["layers"])
        rows, pairs, many = n * width, n * n, batch(given["batch"])
        layer = many * ((h + output + relu) * rows + (scores + weights) * pairs)
        rest = x * many * rows + maps * count * width**2 - less * many * rows
        return torch.tensor(size(given["size"]) * (count * layer + rest), dtype=torch.float64)

    return answer


_STACK_MISTAKES = (
    Mistake(
        "the batch is forgotten: the layers of one sequence are counted, and all of them go "
        "through.",
        (_stack_of(batch=lambda batch: 1),),
    ),
    Mistake(
        "the result of the softmax is forgotten: n^2 numbers of each sequence, in every layer.",
        (_stack_of(weights=0),),
    ),
    Mistake(
        "all that is computed is counted. Of h, scores, weights, their product with h, and what "
        "relu makes of it: which two does no derivative ask for?",
        (
            _stack_of(scores=1, output=1),
            _stack_of(scores=1, output=1, x=1),
            _stack_of(scores=1, output=1, x=1, maps=1),
        ),
    ),
    Mistake(
        "n^2 numbers of each sequence are counted twice in a layer: the scores beside the weights, "
        "or the weights once for each who keeps them. Does any derivative contain the scores, and "
        "how often do the weights lie in memory?",
        (_stack_of(scores=1), _stack_of(weights=2)),
    ),
    Mistake(
        "too many tensors of the size of h are counted. h is a factor of two products, on one of "
        "them twice, and lies in memory once; so does what relu and the next layer both keep. And "
        "who would need the product before relu?",
        (
            _stack_of(output=1),
            _stack_of(h=3),
            _stack_of(relu=2, less=1),
            _stack_of(h=3, relu=2),
            _stack_of(h=3, weights=2),
            _stack_of(h=3, weights=2, relu=2),
        ),
    ),
    Mistake(
        "what was there before is counted: x or the maps. The backward pass needs them, but they "
        "would be there without it; what is made *inside* is asked for.",
        (_stack_of(x=1), _stack_of(maps=1), _stack_of(x=1, maps=1)),
    ),
    Mistake(
        "one layer is counted, and all of them wait for the backward pass, which begins with the "
        "last. When is the first layer's part given back?",
        (_stack_of(layers=lambda layers: 1),),
    ),
    Mistake(
        "of h and what relu returns one is forgotten. h is a factor of two products; relu keeps "
        "its result, to know where it was positive, and the next layer's product needs it as a "
        "factor.",
        (_stack_of(relu=0),),
    ),
    Mistake(
        "what the last relu returns is forgotten: no layer follows, but relu itself keeps it.",
        (_stack_of(less=1),),
    ),
    Mistake(
        "these are numbers, and bytes are asked for; or four bytes are taken for granted.",
        (_stack_of(size=lambda size: 1), _stack_of(size=lambda size: 4)),
    ),
)


# 8.4 ---------------------------------------------------------------------------------


def _runs(path: Sequence[int]) -> list[int]:
    return [step for step, _ in itertools.groupby(path)]


def _blanks_first(path: Sequence[int]) -> list[int]:
    return _runs([step for step in path if step])


def _without_blanks(path: Sequence[int]) -> list[int]:
    return [step for step in path if step]


def _pairs_struck(path: Sequence[int]) -> list[int]:
    """Of each pair of equal steps one: a run of three leaves two."""
    kept, skip = [], False
    for step, after in itertools.zip_longest(path, path[1:]):
        if skip:
            skip = False
        else:
            kept.append(step)
            skip = step == after
    return [step for step in kept if step]


def _read_as(read: Callable[[Sequence[int]], Sequence[int]]) -> Callable[[list[int]], Tensor]:
    return lambda path: _labels(list(read(path)), len(path))


_COLLAPSE_MISTAKES = (
    Mistake(
        "blanks are struck out first: then 1 0 1 becomes 1 1, and that becomes 1. What is a blank "
        "for, if not to keep two equal characters apart?",
        (_read_as(_blanks_first),),
    ),
    Mistake(
        "repetitions are struck out, and blanks are not: class 0 is no character.",
        (_read_as(_runs),),
    ),
    Mistake(
        "blanks are struck out, and repetitions are not. A character that is held for three steps "
        "is written once.",
        (_read_as(_without_blanks),),
    ),
    Mistake(
        "a character is struck out although something else stands between it and the one like it. "
        "Only *neighbouring* steps are repetitions; what has `set`, or `in`, to do with "
        "neighbours?",
        (
            _read_as(lambda path: list(dict.fromkeys(_without_blanks(path)))),
            _read_as(lambda path: sorted(set(_without_blanks(path)))),
        ),
    ),
    Mistake(
        "of a run of equal steps more than one is left. After one of them is struck out, what does "
        "the next one stand beside?",
        (_read_as(_pairs_struck),),
    ),
    Mistake(
        "the first step is lost: it has none before it to be compared with. What does it repeat?",
        (
            _read_as(lambda path: _read(path[1:])),
            _read_as(
                lambda path: [b for a, b in itertools.pairwise(path) if a != b and b],
            ),
        ),
    ),
    Mistake(
        "the first step is compared with the last: index -1 is the end of a list. What does the "
        "first step repeat?",
        (
            _read_as(
                lambda path: [step for i, step in enumerate(path) if step not in (path[i - 1], 0)]
            ),
        ),
    ),
    Mistake(
        "the last character is lost: a run that ends with the path has no step after it that would "
        "tell.",
        (
            _read_as(lambda path: [a for a, b in itertools.pairwise(path) if a != b and a]),
            _read_as(lambda path: _read(path)[:-1]),
            _read_as(lambda path: _read(path[:-1])),
        ),
    ),
    Mistake(
        "reading ends with the first blank. A blank says *nothing new here*; what may follow it?",
        (_read_as(lambda path: _read(list(itertools.takewhile(bool, path)))),),
    ),
)


def _sum_over(
    read: Callable[[Sequence[int]], Sequence[int]] = _read,
    walk: Callable[[int, int], Sequence[tuple[int, ...]]] = _paths,
    may: Callable[[tuple[int, ...], Sequence[int]], bool] = lambda path, label: True,
    of_path: Callable[[Tensor], Tensor] = lambda steps: steps.prod(1),
    of_all: Callable[[Tensor], Tensor] = torch.sum,
) -> Callable[..., Tensor]:
    """Another way to read paths, other paths, another number of each or of all of them."""

    @cache
    def saying(steps: int, classes: int, label: tuple[int, ...]) -> Tensor:
        walked = walk(steps, classes)
        return torch.tensor([p for p in walked if tuple(read(p)) == label and may(p, label)])

    def answer(probs: Tensor, label: list[int]) -> Tensor:
        paths = saying(*probs.shape, tuple(label))
        if not len(paths):
            return probs.new_zeros(())
        return of_all(of_path(probs[torch.arange(len(probs)), paths]))

    return answer


def _rule(says: Callable[[Sequence[int], Sequence[int]], bool]) -> Callable[..., Tensor]:
    """Paths of which something else is asked than that they say the label."""

    def answer(probs: Tensor, label: list[int]) -> Tensor:
        paths = [path for path in _paths(*probs.shape) if says(path, label)]
        return probs[torch.arange(len(probs)), torch.tensor(paths)].prod(1).sum()

    return answer


def _likeliest_path(probs: Tensor, label: list[int]) -> Tensor:
    """The probability of the best path of all, if it says the label."""
    best, path = probs.max(1)
    return best.prod() if _read(path.tolist()) == label else probs.new_zeros(())


def _logarithm(sign: int) -> Callable[..., Tensor]:
    def answer(probs: Tensor, label: list[int]) -> Tensor:
        return sign * _sum_over()(probs, label).log()

    return answer


def _combinations(kind: Callable[[Any, int], Any]) -> Callable[[int, int], Any]:
    return lambda steps, classes: list(kind(range(classes), steps))


def _all_classes_at_all_steps(probs: Tensor, label: list[int]) -> Tensor:
    """Each path's product over whole columns."""
    paths = [list(path) for path in _paths(*probs.shape) if _read(path) == list(label)]
    return sum((probs[:, path].prod() for path in paths), probs.new_zeros(()))


def _nothing_for_nothing(probs: Tensor, label: list[int]) -> Tensor:
    return _sum_over()(probs, label) if label else probs.new_zeros(())


_PROBABILITY_MISTAKES = (
    Mistake(
        "the product runs over *all* steps for each class of the path; wanted is one number a "
        "step: `probs[range(steps), path]`.",
        (_all_classes_at_all_steps,),
    ),
    Mistake(
        "the empty label has the probability 0. Which path says nothing at all?",
        (_nothing_for_nothing,),
    ),
    Mistake(
        "the best path stands in place of the sum. Many paths say the same text, and each has a "
        "part in its probability.",
        (_sum_over(of_all=torch.max), _likeliest_path),
    ),
    Mistake(
        "no path begins with a blank. What does a line say before its first character?",
        (_sum_over(may=lambda path, label: path[0] != 0),),
    ),
    Mistake(
        "no path ends with a blank. What does a line say after its last character?",
        (_sum_over(may=lambda path, label: path[-1] != 0),),
    ),
    Mistake(
        "paths begin and end with characters. Blanks may stand at both ends, too.",
        (_sum_over(may=lambda path, label: path[0] != 0 and path[-1] != 0),),
    ),
    Mistake(
        "paths are read with blanks struck out first: a character that stands twice in the text is "
        "never found. In which order does your `collapse` go?",
        (_sum_over(_blanks_first),),
    ),
    Mistake(
        "no path has a blank in it, or only one that stands between two equal characters. Blanks "
        "may stand anywhere between characters: how many paths of three steps say *1*?",
        (
            _sum_over(may=lambda path, label: 0 not in path),
            _sum_over(_runs),
            _sum_over(may=lambda path, label: _only_needed_blanks(path)),
        ),
    ),
    Mistake(
        "every character lasts one step, and the rest are blanks. A character may be held for "
        "several steps: how many paths of three steps say *1*?",
        (
            _sum_over(_without_blanks),
            _sum_over(may=lambda path, label: len(_without_blanks(path)) == len(label)),
        ),
    ),
    Mistake(
        "the probabilities of a path's steps are added. For the path all of them have to happen: "
        "what does one do with the probabilities of independent steps?",
        (_sum_over(of_path=lambda steps: steps.sum(1)),),
    ),
    Mistake(
        "this is the mean over the paths. One of them happens or another does: what does one do "
        "with probabilities of which only one can come true?",
        (
            _sum_over(of_all=torch.mean),
            lambda probs, label: (
                _sum_over()(probs, label) / len(_paths(probs.shape[0], probs.shape[1]))
            ),
        ),
    ),
    Mistake(
        "the logarithm is returned, or the loss. The probability itself is asked for here.",
        (_logarithm(1), _logarithm(-1)),
    ),
    Mistake(
        "not all paths are walked. In how many ways can each step choose, whatever the others "
        "chose? `itertools.product` with `repeat=` has them all.",
        (
            _sum_over(walk=_combinations(itertools.permutations)),
            _sum_over(walk=_combinations(itertools.combinations_with_replacement)),
            _sum_over(walk=_combinations(itertools.combinations)),
            _sum_over(walk=lambda steps, classes: _paths(steps, classes - 1)),
        ),
    ),
    Mistake(
        "texts that only begin with the label are counted too; or that only contain the same "
        "characters. The path has to say the label, all of it and nothing else.",
        (
            _rule(lambda path, label: _begins(path, label)),
            _rule(lambda path, label: _same_characters(path, label)),
        ),
    ),
)


def _only_needed_blanks(path: Sequence[int]) -> bool:
    """Whether each run of blanks stands between two equal characters."""
    runs = _runs(path)
    return all(
        0 < place < len(runs) - 1 and runs[place - 1] == runs[place + 1]
        for place, step in enumerate(runs)
        if step == 0
    )


def _begins(path: Sequence[int], label: Sequence[int]) -> bool:
    return _read(path)[: len(label)] == list(label)


def _same_characters(path: Sequence[int], label: Sequence[int]) -> bool:
    """Whatever the order and the number of the characters."""
    return sorted(_read(path)) == sorted(label)


_NO_LIST = "it returned {}; expected the labels that the path says, a list of integers."


# 8.5 ---------------------------------------------------------------------------------


def _by_rule(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Whether query i sees key j, by another rule."""

    def answer(n: int, **given: int) -> Tensor:
        place = torch.arange(n)
        i, j = place[:, None], place[None]
        return rule(i, j, **{"n": n, **given}).expand(n, n).double()

    return answer


def _looped(first: int, last: int, n: int, window: int, dilation: int, *, wraps: bool) -> Tensor:
    """Steps from -window + first to window - last; below 0 from the end, as Python has it."""
    table = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for step in range(-window + first, window + 1 - last):
            if (-n if wraps else 0) <= (j := i + step * dilation) < n:
                table[i, j] = 1
    return table


_SLIDING_MISTAKES = (
    Mistake(
        "a key before the first is counted from the end: index -1 is the last one. Which `j` are "
        "keys?",
        (
            lambda n, window, dilation: _looped(0, 0, n, window, dilation, wraps=True),
            lambda n, window, dilation: _looped(0, 1, n, window, dilation, wraps=True),
        ),
    ),
    Mistake(
        "one side is a step short: `range` does not reach its end. With a window of 2, which steps "
        "from -2 on are there?",
        (
            lambda n, window, dilation: _looped(0, 1, n, window, dilation, wraps=False),
            lambda n, window, dilation: _looped(1, 0, n, window, dilation, wraps=False),
        ),
    ),
    Mistake(
        "the window has one side: a step sees those before it, or those after it. How many keys "
        "does a step in the middle see, with a window of 3?",
        (
            lambda n, window, dilation: _sliding(n, window, dilation).tril(),
            lambda n, window, dilation: _sliding(n, window, dilation).triu(),
        ),
    ),
    Mistake(
        "these are blocks: steps at a border do not see their neighbours across it. In a sliding "
        "window every step has a window of its own; where is its middle?",
        (
            lambda n, window, dilation: _blocks(n, max(window, 1)),
            lambda n, window, dilation: _blocks(n, 2 * window + 1),
            lambda n, window, dilation: _blocks(n, window + 1),
        ),
    ),
    Mistake(
        "the dilation is taken as a width: the window is as many times wider, and sees all that "
        "lies in it. How many keys does a step see, and does the dilation change that?",
        (
            _by_rule(
                lambda i, j, window, dilation, **rest: (i - j).abs() <= window * dilation,
            ),
            _by_rule(
                lambda i, j, window, dilation, **rest: (i - j).abs() <= window + dilation - 1,
            ),
        ),
    ),
    Mistake(
        "the dilation is forgotten.",
        (_by_rule(lambda i, j, window, **rest: (i - j).abs() <= window),),
    ),
    Mistake(
        "the window ends as many *positions* away as it should reach *steps*. A step is "
        "`dilation` positions: how far away is the last key that is seen?",
        (
            _by_rule(
                lambda i, j, window, dilation, **rest: (
                    ((i - j).abs() <= window) & ((i - j) % dilation == 0)
                ),
            ),
        ),
    ),
    Mistake(
        "keys are chosen by where they stand: every r-th of the sequence, whoever asks. Which "
        "number is to be a multiple of the dilation?",
        (
            _by_rule(
                lambda i, j, window, dilation, **rest: (
                    ((i - j).abs() <= window * dilation) & (j % dilation == 0)
                ),
            ),
        ),
    ),
    Mistake(
        "the dilation counts the positions that are left out, one too many. With a dilation of 1 "
        "nothing is left out.",
        (lambda n, window, dilation: _sliding(n, window, dilation + 1),),
    ),
    Mistake(
        "the window is one step too narrow, or half as wide: w steps to *each* side are seen, the "
        "w-th as well.",
        (
            lambda n, window, dilation: _sliding(n, window - 1, dilation),
            lambda n, window, dilation: _sliding(n, window // 2, dilation),
        ),
    ),
    Mistake(
        "a step does not see itself.",
        (
            lambda n, window, dilation: (
                _sliding(n, window, dilation) - torch.eye(n, dtype=torch.float64)
            ),
        ),
    ),
    Mistake(
        "the other way round: True means *may attend*.",
        (lambda n, window, dilation: 1 - _sliding(n, window, dilation),),
    ),
    Mistake(
        "the sequence is a ring: at its end steps see the beginning. What does `roll` do at the "
        "edge?",
        (
            _by_rule(
                lambda i, j, n, window, dilation: torch.stack(
                    [(i - j) % n == step * dilation % n for step in range(-window, window + 1)]
                ).any(0)
            ),
        ),
    ),
)

_BLOCK_MISTAKES = (
    Mistake(
        "this slides: every step has a window of its own. In blocks all steps of a block see the "
        "same keys: which number do they share?",
        (
            _by_rule(lambda i, j, n, size: (i - j).abs() < size),
            _by_rule(lambda i, j, n, size: (i - j).abs() <= size),
            _by_rule(lambda i, j, n, size: (i - j).abs() <= size // 2),
        ),
    ),
    Mistake(
        "so many blocks are made, and so many steps a block were asked for.",
        (
            _by_rule(lambda i, j, n, size: i * size // n == j * size // n),
            lambda n, size: _blocks(n, -(-n // size)),
            lambda n, size: _blocks(n, max(n // size, 1)),
        ),
    ),
    Mistake(
        "the last block, which is shorter, sees nothing. A step that sees nothing has nothing to "
        "choose from.",
        (
            _by_rule(
                lambda i, j, n, size: (
                    (i // size == j // size) & (i < n // size * size) & (j < n // size * size)
                )
            ),
        ),
    ),
    Mistake(
        "the last block, which is shorter, is made one with the block before it.",
        (
            _by_rule(
                lambda i, j, n, size: (
                    (i // size).clamp(max=max(n // size, 1) - 1)
                    == (j // size).clamp(max=max(n // size, 1) - 1)
                )
            ),
        ),
    ),
    Mistake(
        "steps that have the same place in their blocks see each other: that is dilation. `//` "
        "says which block, and what says `%`?",
        (_by_rule(lambda i, j, n, size: i % size == j % size),),
    ),
    Mistake(
        "within a block steps see one side only.",
        (
            lambda n, size: _blocks(n, size).tril(),
            lambda n, size: _blocks(n, size).triu(),
        ),
    ),
    Mistake(
        "blocks see each other, and not themselves: True means *may attend*.",
        (lambda n, size: 1 - _blocks(n, size),),
    ),
)


def _powers(times: Callable[[int], int], turned: bool = False) -> Callable[..., Tensor]:
    def answer(mask: Tensor, layers: int) -> Tensor:
        return _reached(mask.T if turned else mask, times(layers))

    return answer


_REACH_MISTAKES = (
    Mistake(
        "one layer is counted, however many there are. A step hears of all that the steps it sees "
        "have heard of in the layer below.",
        (_powers(lambda layers: 1),),
    ),
    Mistake(
        "one layer too many: with one layer a step hears of those that it sees.",
        (_powers(lambda layers: layers + 1),),
    ),
    Mistake(
        "one layer too few: with one layer a step hears of those that it sees.",
        (_powers(lambda layers: layers - 1),),
    ),
    Mistake(
        "the layers are doubled: squaring a matrix `layers` times is not multiplying as many.",
        (_powers(lambda layers: 2**layers), _powers(lambda layers: 2 ** (layers - 1))),
    ),
    Mistake(
        "transposed: row j says whom step j *tells*. Rows are those who hear, columns those whom "
        "they hear of.",
        (_powers(lambda layers: layers, turned=True), _powers(lambda layers: 1, turned=True)),
    ),
    Mistake(
        "both directions count: who sees and who is seen. In a causal window news travel one way.",
        (
            lambda mask, layers: _reached(mask | mask.T, layers),
            lambda mask, layers: torch.maximum(_reached(mask, layers), _reached(mask.T, layers)),
        ),
    ),
    Mistake(
        "the window is taken to grow as far as its farthest step, with all that lies between. "
        "Which steps does a dilated window skip, in every layer alike?",
        (lambda mask, layers: _filled(_reached(mask, layers)),),
    ),
)


def _filled(table: Tensor) -> Tensor:
    """From the first one to the last one of each row: ones."""
    from_left, from_right = table.cummax(1).values, table.flip(1).cummax(1).values.flip(1)
    return torch.minimum(from_left, from_right)


_NOT_BOOLEAN = (
    "it returned {}; expected booleans. Numbers 0 and 1 are something else to whoever gets them: "
    "PyTorch *adds* such a mask to the scores."
)
_COUNTED = (
    "it returned {}; expected booleans. A product of matrices counts the ways by which news get "
    "there: what is asked is whether there is one."
)


# 8.6 ---------------------------------------------------------------------------------

#: (tile, length, left, right, block_m, block_n) -> the first key to visit, and the one after the
#: last; both are then put on the edges of tiles, the first downwards and the last upwards.
Bounds = Callable[[int, int, int, int, int, int], tuple[int, int]]


def _tight(t: int, n: int, left: int, right: int, bm: int, bn: int) -> tuple[int, int]:
    return t * bm - left, min((t + 1) * bm, n) + right


def _rounded_to_zero(t: int, n: int, left: int, right: int, bm: int, bn: int) -> tuple[int, int]:
    """A kernel's `//` rounds a negative number up, where Python's rounds it down."""
    return int((t * bm - left) / bn) * bn, min((t + 1) * bm, n) + right


def _in_window(ahead: Tensor, left: int, right: int) -> Tensor:
    return (ahead >= -left) & (ahead <= right)


def _visiting(
    bounds: Bounds = _tight,
    seen: Callable[[Tensor, int, int], Tensor] = _in_window,
    *,
    tail: bool = True,
    head: bool = True,
    empty: float = torch.nan,
    own_rows: bool = False,
) -> Callable[..., Tensor]:
    """Attention to those keys of the visited tiles that count.

    Args:
        bounds: Which keys are visited.
        seen: (how far a key is ahead of a query, left, right) -> whether it counts.
        tail: Whether lanes behind the last key are hidden; else they hold zeros.
        head: Likewise those before the first key.
        empty: What comes out where no key is left.
        own_rows: Whether queries are numbered as they are counted in their tile.
    """

    def answer(
        query: Tensor, key: Tensor, value: Tensor, left: int, right: int, block_m: int, block_n: int
    ) -> Tensor:
        n, d = query.shape
        rows, whole = torch.arange(n)[:, None], -(-n // block_n) * block_n
        spans = []
        for tile in range(-(-n // block_m)):
            start, stop = bounds(tile, n, left, right, block_m, block_n)
            start, stop = start // block_n * block_n, -(-stop // block_n) * block_n
            spans.append((max(start, 0) if head else start, min(stop, n if tail else whole)))
        begin, end = torch.tensor(spans)[rows // block_m].unbind(-1)  # [n, 1] each
        cols = torch.arange(min(0, int(begin.min())), whole)
        exists = ((cols >= 0) & (cols < n))[:, None]
        k, v = (torch.where(exists, x[cols.clamp(0, n - 1)], 0) for x in (key, value))
        ahead = cols - (rows % block_m if own_rows else rows)
        counts = (cols >= begin) & (cols < end) & seen(ahead, left, right)
        scores = (query @ k.T / d**0.5).masked_fill(~counts, -torch.inf)
        lost = ~counts.any(1, keepdim=True)
        return torch.where(lost, empty, scores.softmax(1).nan_to_num() @ v)

    return answer


def _either(bounds: Bounds, **rest: Any) -> tuple[Callable[..., Tensor], ...]:
    """Where no key is left, NaN or 0."""
    return tuple(_visiting(bounds, empty=empty, **rest) for empty in (torch.nan, 0.0))


def _any_key(ahead: Tensor, left: int, right: int) -> Tensor:
    return ahead == ahead


_WINDOW_MISTAKES = (
    Mistake(
        "the far edge is one key short: where it falls on the edge of a tile, that tile is never "
        "visited, and the last query of the program loses the key at the end of its window. "
        "`range` does not reach its end: what is the first key that is too far?",
        (
            *_either(lambda t, n, left, right, bm, bn: (t * bm - left, (t + 1) * bm - 1 + right)),
            *_either(
                lambda t, n, left, right, bm, bn: (t * bm - left, min((t + 1) * bm, n) - 1 + right)
            ),
        ),
    ),
    Mistake(
        "the end is rounded down to whole tiles: floor in place of ceiling. The keys of the tile "
        "in which the window ends are lost.",
        (
            *_either(
                lambda t, n, left, right, bm, bn: (
                    t * bm - left,
                    (min((t + 1) * bm, n) + right) // bn * bn,
                )
            ),
            *_either(
                lambda t, n, left, right, bm, bn: (
                    t * bm - left,
                    min((t + 1) * bm + right, n) // bn * bn,
                )
            ),
        ),
    ),
    Mistake(
        "the beginning is rounded up to whole tiles: ceiling in place of floor. The keys of the "
        "tile in which the window begins are lost.",
        (
            *_either(
                lambda t, n, left, right, bm, bn: (
                    -(-(t * bm - left) // bn) * bn,
                    (t + 1) * bm + right,
                )
            ),
        ),
    ),
    Mistake(
        "the near edge is one key short: where it falls on the edge of a tile, that tile is never "
        "visited, and the first query of the program loses the key at the beginning of its window.",
        (*_either(lambda t, n, left, right, bm, bn: (t * bm - left + 1, (t + 1) * bm + right)),),
    ),
    Mistake(
        "only keys that *every* query of the tile sees are visited. The first query sees farther "
        "back than the last, and the last farther ahead than the first: which of them decides "
        "where the loop begins?",
        (
            *_either(
                lambda t, n, left, right, bm, bn: (
                    min((t + 1) * bm, n) - 1 - left,
                    t * bm + right + 1,
                )
            ),
            *_either(
                lambda t, n, left, right, bm, bn: (t * bm - left, t * bm + right + 1),
            ),
            *_either(
                lambda t, n, left, right, bm, bn: (
                    min((t + 1) * bm, n) - 1 - left,
                    (t + 1) * bm + right,
                )
            ),
        ),
    ),
    Mistake(
        "LEFT and RIGHT have changed places: keys *before* a query have smaller numbers.",
        (
            *_either(
                lambda t, n, left, right, bm, bn: _tight(t, n, right, left, bm, bn),
                seen=lambda ahead, left, right: _in_window(ahead, right, left),
            ),
            *_either(lambda t, n, left, right, bm, bn: _tight(t, n, right, left, bm, bn)),
            _visiting(seen=lambda ahead, left, right: _in_window(ahead, right, left)),
        ),
    ),
    Mistake(
        "the loop begins with the program's own queries: where is what lies to the left?",
        (*_either(lambda t, n, left, right, bm, bn: (t * bm, (t + 1) * bm + right)),),
    ),
    Mistake(
        "the loop ends with the program's own queries, as chapter 6's did: where is what lies to "
        "the right?",
        (*_either(lambda t, n, left, right, bm, bn: (t * bm - left, (t + 1) * bm)),),
    ),
    Mistake(
        "tiles of queries and of keys are counted as if they were equally large. Both bounds are "
        "numbers of keys: at which query does program i begin, in tokens?",
        (*_either(lambda t, n, left, right, bm, bn: (t * bn - left, (t + 1) * bn + right)),),
    ),
    Mistake(
        "nobody looks at single pairs: all keys of the visited tiles count. The bounds keep whole "
        "tiles out; who keeps out the keys of a tile that the edge of the band crosses?",
        (
            _visiting(seen=_any_key),
            _visiting(seen=_any_key, tail=False),
            _visiting(seen=_any_key, tail=False, head=False),
        ),
    ),
    Mistake(
        "every query reads every key: neither bounds nor mask.",
        (
            _visiting(lambda t, n, left, right, bm, bn: (0, n), _any_key),
            _visiting(lambda t, n, left, right, bm, bn: (0, n), _any_key, tail=False),
        ),
    ),
    Mistake(
        "the mask has one side: what is too far back is hidden, or what is too far ahead, not "
        "both.",
        (
            *(
                _visiting(seen=seen, tail=tail)
                for tail in (True, False)
                for seen in (
                    lambda ahead, left, right: ahead <= right,
                    lambda ahead, left, right: ahead >= -left,
                    lambda ahead, left, right: ahead <= 0,
                )
            ),
            *(
                _visiting(lambda t, n, left, right, bm, bn: (0, n), seen, tail=tail)
                for tail in (True, False)
                for seen in (
                    lambda ahead, left, right: ahead <= right,
                    lambda ahead, left, right: ahead >= -left,
                )
            ),
        ),
    ),
    Mistake(
        "the keys at the very edge of the window are hidden: LEFT steps back and RIGHT steps "
        "ahead are seen, the last of them as well.",
        (
            *(
                _visiting(seen=seen, empty=empty)
                for empty in (torch.nan, 0.0)
                for seen in (
                    lambda ahead, left, right: (ahead > -left) & (ahead < right),
                    lambda ahead, left, right: (ahead >= -left) & (ahead < right),
                    lambda ahead, left, right: (ahead > -left) & (ahead <= right),
                )
            ),
        ),
    ),
    Mistake(
        "lanes behind the last key count as keys of zeros, or lanes before the first. Their score "
        "is 0, and e^0 = 1: which lanes of the last tile are keys?",
        (
            _visiting(tail=False),
            *(
                _visiting(bounds, head=False, tail=tail)
                for bounds in (_tight, _rounded_to_zero)
                for tail in (True, False)
            ),
        ),
    ),
    Mistake(
        "queries are compared as they are counted within their tile. Which token is row 0 of "
        "program 2?",
        (*_either(_tight, own_rows=True),),
    ),
    Mistake(
        "the window is as far to the left as to the right. Which of its two sides is which?",
        (
            _visiting(
                lambda t, n, left, right, bm, bn: _tight(t, n, left, left, bm, bn),
                lambda ahead, left, right: _in_window(ahead, left, left),
            ),
            _visiting(
                lambda t, n, left, right, bm, bn: _tight(t, n, right, right, bm, bn),
                lambda ahead, left, right: _in_window(ahead, right, right),
            ),
            _visiting(seen=lambda ahead, left, right: _in_window(ahead, left, left)),
            _visiting(seen=lambda ahead, left, right: _in_window(ahead, right, right)),
        ),
    ),
)


def _counts(
    count: Callable[[int, int, int, int, int, int], float],
) -> Callable[..., Tensor]:
    """Another number of tiles for each program."""

    def answer(
        query: Tensor, left: int, right: int, block_m: int, block_n: int, **rest: Any
    ) -> Tensor:
        n = len(query)
        many = range(-(-n // block_m))
        return torch.tensor(
            [float(count(tile, n, left, right, block_m, block_n)) for tile in many]
        ).double()

    return answer


def _all_of(n: int, bn: int) -> int:
    return -(-n // bn)


def _begin(t: int, n: int, left: int, right: int, bm: int, bn: int) -> int:
    return _span(t, n, left, right, bm, bn)[0]


def _end(t: int, n: int, left: int, right: int, bm: int, bn: int) -> int:
    return _span(t, n, left, right, bm, bn)[1]


_COUNT_MISTAKES = (
    Mistake(
        "the numbers are right, and nothing is skipped: every program visits every tile of keys. A "
        "masked key costs as much to load and to multiply as any other. Where could the loop "
        "begin, and where could it end?",
        (_counts(lambda t, n, left, right, bm, bn: _all_of(n, bn)),),
    ),
    Mistake(
        "the numbers are right, and the loop begins with the first key of all: this is chapter 6's "
        "bound. Which is the first key that any of the program's queries sees?",
        (_counts(_end),),
    ),
    Mistake(
        "the numbers are right, and the loop goes on to the last key of all. Which is the last key "
        "that any of the program's queries sees?",
        (_counts(lambda t, n, *rest: _all_of(n, rest[3]) - _begin(t, n, *rest)),),
    ),
    Mistake(
        "the numbers are right, and the loop ends one tile late, always or where the window ends "
        "with a tile: `// BLOCK_N + 1` is no ceiling. (`range` rounds up by itself.)",
        (
            _counts(
                lambda t, n, *rest: (
                    min(_end(t, n, *rest) + 1, _all_of(n, rest[3])) - _begin(t, n, *rest)
                )
            ),
            _counts(lambda *given: _end(*given) + 1 - _begin(*given)),
            _counts(
                lambda t, n, left, right, bm, bn: (
                    min((t + 1) * bm + right, n) // bn + 1 - _begin(t, n, left, right, bm, bn)
                )
            ),
            _counts(
                lambda t, n, left, right, bm, bn: (
                    min(min((t + 1) * bm + right, n) // bn + 1, _all_of(n, bn))
                    - _begin(t, n, left, right, bm, bn)
                )
            ),
            _counts(
                lambda t, n, left, right, bm, bn: (
                    -(-min((t + 1) * bm + right + 1, n) // bn) - _begin(t, n, left, right, bm, bn)
                )
            ),
        ),
    ),
    Mistake(
        "the numbers are right, and the loop begins one tile early, always or where the window "
        "begins with a tile. In which tile does key 8 lie, if tiles have 4 keys?",
        (
            _counts(lambda *given: _end(*given) - max(_begin(*given) - 1, 0)),
            _counts(
                lambda t, n, left, right, bm, bn: (
                    _end(t, n, left, right, bm, bn) - max(t * bm - left - 1, 0) // bn
                )
            ),
        ),
    ),
    Mistake(
        "the numbers are right, and tiles are visited that lie before the first key of all, or "
        "behind the last. Who lives there? `tl.maximum` and `tl.minimum` put a bound on a bound.",
        (
            _counts(
                lambda t, n, left, right, bm, bn: (
                    _end(t, n, left, right, bm, bn) - (t * bm - left) // bn
                )
            ),
            _counts(
                lambda t, n, *rest: _end(t, n, *rest) - _rounded_to_zero(t, n, *rest)[0] // rest[3]
            ),
            _counts(
                lambda t, n, left, right, bm, bn: (
                    -(-(min((t + 1) * bm, n) + right) // bn) - _begin(t, n, left, right, bm, bn)
                )
            ),
            _counts(
                lambda t, n, left, right, bm, bn: (
                    -(-((t + 1) * bm + right) // bn) - _begin(t, n, left, right, bm, bn)
                )
            ),
            _counts(
                lambda t, n, left, right, bm, bn: (
                    -(-(min((t + 1) * bm, n) + right) // bn) - (t * bm - left) // bn
                )
            ),
            _counts(
                lambda t, n, left, right, bm, bn: (
                    -(-((t + 1) * bm + right) // bn) - (t * bm - left) // bn
                )
            ),
        ),
    ),
    Mistake(
        "the numbers are right, and the window is taken to reach as far to one side as to the "
        "other: RIGHT tells where the loop ends, and LEFT where it begins.",
        (
            _counts(
                lambda t, n, left, right, bm, bn: (
                    _end(t, n, left, max(left, right), bm, bn)
                    - _begin(t, n, max(left, right), right, bm, bn)
                )
            ),
            _counts(
                lambda t, n, left, right, bm, bn: (
                    _end(t, n, left, left, bm, bn) - _begin(t, n, left, right, bm, bn)
                )
            ),
            _counts(
                lambda t, n, left, right, bm, bn: (
                    _end(t, n, left + right, left + right, bm, bn)
                    - _begin(t, n, left + right, right, bm, bn)
                )
            ),
        ),
    ),
    Mistake(
        "the output is right, and the count is one of keys, not of tiles.",
        (
            _counts(lambda *given: (_end(*given) - _begin(*given)) * given[5]),
            _counts(
                lambda t, n, left, right, bm, bn: (
                    min((t + 1) * bm + right, n) - max(t * bm - left, 0)
                )
            ),
            _counts(
                lambda t, n, left, right, bm, bn: (
                    min((t + 1) * bm + right, n) - _begin(t, n, left, right, bm, bn) * bn
                )
            ),
        ),
    ),
    Mistake(
        "the output is right, and tiles do not lie where they should: a loop that begins in the "
        "middle of a tile has fewer of them, and each load of it begins anywhere in memory. Tiles "
        "of keys begin at multiples of BLOCK_N.",
        (
            _counts(
                lambda t, n, left, right, bm, bn: (
                    -(-(min((t + 1) * bm + right, n) - max(t * bm - left, 0)) // bn)
                )
            ),
        ),
    ),
    Mistake(
        "the output is right, and the count says 0, or 1: does it grow in the loop, once a tile, "
        "and is it stored behind it?",
        (_counts(lambda *given: 0), _counts(lambda *given: 1)),
    ),
    Mistake(
        "the output is right, and the count is one less than the tiles that are needed: is the "
        "last tile, or the first, counted too?",
        (_counts(lambda *given: _end(*given) - _begin(*given) - 1),),
    ),
)

_COUNT_LIES = (
    "the numbers are right and so is the count, but it does not tell what was loaded: program {} "
    "says {} tiles and loads keys number {} to {}. Let the loop itself count."
)
_COUNT_FOREIGN = (
    "a program writes a count that is not its own. Program i stores one number, in place i of "
    "count_ptr: what would be left there on a GPU, where all programs run at once?"
)

_WINDOW_WORDS = Words(
    outside="a load reads past the end of the queries, keys or values, or before their beginning. "
    "On a GPU that is somebody else's memory. `rows_of` leaves out rows that do not exist: which "
    "load does not go through it?",
    foreign="On a GPU all programs run at once: what would be left in that slot? Which queries "
    "are this program's own, and which rows of its tile exist?",
)
