"""Chapter 4's exercises: the likely mistakes, and what is said of each.

A mistake is the formula that it computes, and the message that names it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Mistake
from attn_course.exercises.kernels import Words
from attn_course.exercises.multi_head_cases import (
    State,
    _answers,
    _count,
    _fetch_error,
    _flash,
    _floor,
    _from_torch,
    _merge,
    _one_row,
    _padded_width,
    _prune,
    _scores,
    _split,
)

# 4.1 ---------------------------------------------------------------------------------


def _cut(*shape: str, order: tuple[int, ...] = (0, 1, 2, 3)) -> Callable[..., Tensor]:
    """Read the numbers on in another shape, then exchange axes."""

    def answer(x: Tensor, num_heads: int) -> Tensor:
        batch, length, width = x.shape
        sizes = {"batch": batch, "len": length, "heads": num_heads, "dim": width // num_heads}
        return x.reshape([sizes[name] for name in shape]).permute(order)

    return answer


_SPLIT_MISTAKES = (
    Mistake(
        "nobody has changed places. A reshape to [batch, num_heads, len, head_dim] reads the "
        "numbers on in their old order, so head 0 gets the first tokens, whole. First cut the "
        "last axis in two; which two axes of [batch, len, num_heads, head_dim] must then be "
        "exchanged?",
        (_cut("batch", "heads", "len", "dim"),),
    ),
    Mistake(
        "head i gets every num_heads-th number; the exercise wants neighbours to stay together. "
        "In which order do you cut the last axis, heads first or numbers first?",
        (_cut("batch", "len", "dim", "heads", order=(0, 3, 1, 2)),),
    ),
    Mistake(
        "an axis is exchanged, but a wrong one: follow the number at [0, 1, 0], the second "
        "token's first. It belongs to head 0, and to its token 1.",
        (
            _cut("batch", "heads", "dim", "len", order=(0, 1, 3, 2)),
            _cut("len", "batch", "heads", "dim", order=(1, 2, 0, 3)),
            _cut("len", "heads", "batch", "dim", order=(2, 1, 0, 3)),
        ),
    ),
    Mistake(
        "sentences and heads are in each other's place: axis 0 counts heads. `torch.stack` makes "
        "its new axis in front of all others, if you do not say where: where does it belong?",
        (lambda x, num_heads: _split(x, num_heads).transpose(0, 1),),
    ),
)

_SWAPPED = (
    "heads and tokens are in each other's place: axis 1 still counts tokens, and each of them "
    "holds its heads. What attends is what stands on the last axis but one: which two axes must be "
    "exchanged?"
)


def _joined(*order: int) -> Callable[..., Tensor]:
    """Exchange axes, then read the numbers on as tokens."""
    return lambda heads: heads.permute(order).reshape(len(heads), heads.shape[2], -1)


_MERGE_MISTAKES = (
    Mistake(
        "the heads are merged as they lie, untransposed: a token's row is then filled with "
        "other tokens of the same head. What must stand side by side before the last two axes "
        "become one?",
        (_joined(0, 1, 2, 3),),
    ),
    Mistake(
        "the heads are shuffled into each other: a token's row takes one number of each head in "
        "turn. Splitting cut slices; in which order do the last two axes have to stand?",
        (_joined(0, 2, 3, 1),),
    ),
    Mistake(
        "two axes are exchanged, but they are not those of heads and tokens.",
        (_joined(0, 1, 3, 2), _joined(0, 3, 2, 1), _joined(0, 3, 1, 2)),
    ),
    Mistake(
        "sentences stand side by side where heads should: which axis of [batch, num_heads, len, "
        "head_dim] is taken apart?",
        (lambda heads: torch.cat(heads.unbind(0), 2),),
    ),
)


# 4.2 ---------------------------------------------------------------------------------


def _rule(
    rule: Callable[[Tensor, Tensor], Tensor] = torch.lt,
    *,
    again: Callable[[Tensor, int], Tensor] = lambda lens, h: lens.repeat_interleave(h),
    keys: bool = True,
    queries: bool = False,
) -> Callable[..., Tensor]:
    """By ``rule(position, length)`` along some axes; ``again`` gives heads their lengths."""

    def answer(valid_lens: Tensor, num_heads: int, query_len: int, key_len: int) -> Tensor:
        lens = again(valid_lens, num_heads)[:, None, None]
        inside = torch.ones(len(lens), query_len, key_len, dtype=torch.bool)
        if keys:
            inside = inside & rule(torch.arange(key_len), lens)
        if queries:
            inside = inside & rule(torch.arange(query_len)[:, None], lens)
        return inside.double()

    return answer


def _tiled(lens: Tensor, num_heads: int) -> Tensor:
    return lens.repeat(num_heads)


_MASK_MISTAKES = (
    Mistake(
        "the lengths are repeated as a whole, a b a b, but the rows of the batch are sentence by "
        "sentence, a a b b: some heads get the length of another sentence. Write down whose "
        "head row 1 is. Which repetition keeps equal ones together?",
        (_rule(again=_tiled), _rule(torch.ge, again=_tiled), _rule(torch.le, again=_tiled)),
    ),
    Mistake(
        "the mask is the wrong way round: True means *may attend*, and the first valid_lens keys "
        "may be attended to.",
        (_rule(torch.ge), _rule(torch.gt)),
    ),
    Mistake(
        "the mask runs along the queries. A length says how many *keys* hold a token: which axis "
        "of [rows, query_len, key_len] counts keys?",
        tuple(
            _rule(rule, keys=False, queries=True, **again)
            for rule in (torch.lt, torch.ge)
            for again in ({}, {"again": _tiled})
        ),
    ),
    Mistake(
        "queries are masked as well. One that is padding answers to nobody, and may as well "
        "attend; and in cross-attention the queries belong to another sentence, with another "
        "length. Along which axis alone does valid_lens count?",
        (_rule(queries=True), _rule(queries=True, again=_tiled)),
    ),
    Mistake(
        "one key too many may be attended to: positions are counted from 0, and a length is how "
        "many there are.",
        (_rule(torch.le),),
    ),
    Mistake(
        "one key too few may be attended to: the last word of each sentence is hidden. It has the "
        "position valid_lens - 1, since positions are counted from 0.",
        (_rule(lambda place, lens: place < lens - 1),),
    ),
    Mistake(
        "all sentences are cut off at one length: each has its own, the b-th `valid_lens[b]`.",
        (
            _rule(again=lambda lens, h: lens.max().expand(len(lens) * h)),
            _rule(again=lambda lens, h: lens[0].expand(len(lens) * h)),
        ),
    ),
    Mistake(
        "the future is hidden as well. That is a decoder's mask; here a query may attend to every "
        "key that counts, before it or after it.",
        (lambda **given: _rule()(**given).tril(),),
    ),
    Mistake(
        "all keys may be attended to: where does valid_lens come in?",
        (_rule(keys=False),),
    ),
)


_ADDITIVE = (
    "there are negative numbers in it: this is a mask to be *added* to scores, 0 for yes. Asked "
    "for are booleans, True for *may attend*."
)


# 4.3 ---------------------------------------------------------------------------------


def _maps(
    *,
    output: bool = True,
    times: Callable[[int], float] = lambda num_heads: 1,
    times_inputs: Callable[[int], float] = lambda num_heads: 1,
    bias: Callable[[bool], bool] = lambda bias: bias,
    output_bias: bool = True,
    sizes: Mapping[str, str] | None = None,
) -> Callable[..., Tensor]:
    """The count with another idea of some of it; ``sizes`` puts one width in another's place."""

    def answer(**given: Any) -> Tensor:
        given = given | {name: given[other] for name, other in (sizes or {}).items()}
        given["bias"] = bias(given["bias"])
        embed_dim, num_heads = given["embed_dim"], given["num_heads"]
        last = (embed_dim + given["bias"]) * embed_dim
        inputs = (_count(**given) - last) * times_inputs(num_heads)
        last -= embed_dim * (given["bias"] and not output_bias)
        return (inputs + last * output) * times(num_heads)

    return answer


def _each_head_full(**given: Any) -> Tensor:
    """W_q as wide as the layer for each head, and an output map that reads all of that."""
    embed_dim, num_heads, bias = given["embed_dim"], given["num_heads"], given["bias"]
    inputs = _maps(output=False, times=lambda h: h)(**given)
    return inputs + (num_heads * embed_dim + bias) * embed_dim


def _shared_width(width: Callable[[int, int], int]) -> Callable[..., Tensor]:
    """Another width of all heads of keys, by embed_dim and num_kv_heads; as of values."""

    def answer(**given: Any) -> Tensor:
        embed_dim, bias = given["embed_dim"], given["bias"]
        shared = width(embed_dim, given["num_kv_heads"])
        inputs = given["key_dim"] + given["value_dim"] + 2 * bias
        count = (given["query_dim"] + embed_dim + 2 * bias) * embed_dim + inputs * shared
        return torch.tensor(float(count))

    return answer


def _biased(biases: Callable[..., int]) -> Callable[..., Tensor]:
    """Another number of biases, by the sizes."""

    def answer(**given: Any) -> Tensor:
        return _count(**(given | {"bias": False})) + given["bias"] * biases(**given)

    return answer


_NARROW = dict.fromkeys(("query_dim", "key_dim", "value_dim"), "embed_dim")
_ALL_HEADS = {"num_kv_heads": "num_heads"}

_COUNT_MISTAKES = (
    Mistake(
        "the count grows with the number of heads. They share one width: each of h heads has a "
        "slice of embed_dim / h, so what do all of them have together?",
        (
            _maps(times=lambda h: h),
            _maps(times_inputs=lambda h: h),
            _maps(times=lambda h: h, sizes=_ALL_HEADS),
            _maps(times_inputs=lambda h: h, sizes=_ALL_HEADS),
            _each_head_full,
            lambda **given: _each_head_full(**(given | {"num_kv_heads": given["num_heads"]})),
        ),
    ),
    Mistake(
        "the output map is forgotten. After the heads are merged there is one more: what does it "
        "read, and what does it make of it?",
        (
            _maps(output=False),
            _maps(output=False, bias=lambda bias: False),
            _maps(output=False, sizes=_ALL_HEADS),
        ),
    ),
    Mistake(
        "the biases are forgotten: with bias=True each map adds one number for each number that "
        "it makes.",
        (
            _maps(bias=lambda bias: False),
            _maps(bias=lambda bias: False, sizes=_ALL_HEADS),
        ),
    ),
    Mistake(
        "biases are counted where there are none: what does bias=False say?",
        (_maps(bias=lambda bias: True),),
    ),
    Mistake(
        "keys and values are taken to have as many heads as the queries. W_k and W_v make "
        "num_kv_heads of them: how wide is that?",
        (_maps(sizes=_ALL_HEADS),),
    ),
    Mistake(
        "all inputs are taken to be embed_dim wide; queries, keys and values have their own "
        "widths.",
        (_maps(sizes=_NARROW), _maps(sizes=_NARROW | _ALL_HEADS)),
    ),
    Mistake(
        "two of the inputs are taken to be equally wide; queries, keys and values each have a "
        "width, and there is a map for each: which one reads what?",
        tuple(
            _maps(sizes=sizes)
            for sizes in (
                {"value_dim": "key_dim"},
                {"key_dim": "value_dim"},
                {"key_dim": "query_dim"},
                {"key_dim": "query_dim", "value_dim": "query_dim"},
            )
        ),
    ),
    Mistake(
        "the heads of keys and values have a wrong width: each is as wide as *one* head of "
        "queries, whose number is num_heads, and there are num_kv_heads of them.",
        (
            _shared_width(lambda embed_dim, heads: embed_dim // heads),
            _shared_width(lambda embed_dim, heads: embed_dim * heads),
        ),
    ),
    Mistake(
        "the weights are right, and the biases are too many or too few: a map adds one number to "
        "each that it *makes*. How many do W_q, W_k, W_v and W_o make?",
        (
            _biased(lambda embed_dim, **sizes: 4 * embed_dim),
            _biased(lambda embed_dim, **sizes: 2 * embed_dim),
            _biased(lambda **sizes: 4),
            _biased(
                lambda embed_dim, query_dim, key_dim, value_dim, **sizes: (
                    query_dim + key_dim + value_dim + embed_dim
                )
            ),
        ),
    ),
    Mistake(
        "this is one head's share of the projections, not all heads'.",
        (_maps(times_inputs=lambda h: 1 / h), _maps(times=lambda h: 1 / h)),
    ),
    Mistake(
        "the output map's bias is missing; it adds embed_dim numbers.",
        (_maps(output_bias=False),),
    ),
)


# 4.4 ---------------------------------------------------------------------------------

_Fetched = Callable[[Tensor, Tensor, float], Tensor]


def _by_share(formula: _Fetched) -> Callable[..., Tensor]:
    """A formula of the weights on what is asked, the sum of all squares, and the variance."""

    def answer(weights: Tensor, asked: Tensor, variance: float) -> Tensor:
        return formula(weights[asked], weights.square().sum(), variance)

    return answer


_FETCH_MISTAKES = (
    Mistake(
        "this is the total over all outputs. The exercise asks for the error per output: by what "
        "is it to be divided?",
        (lambda weights, asked, variance: len(asked) * _fetch_error(weights, asked, variance),),
    ),
    Mistake(
        "the shares of all questions are taken from one. Each output has an error of its own, one "
        "minus its own share; what is the mean of those?",
        (_by_share(lambda asked, total, s2: s2 * (1 - asked.square().sum() / total)),),
    ),
    Mistake(
        "the mean is taken over two questions, however many there are.",
        (_by_share(lambda asked, total, s2: s2 * (1 - asked.square().sum() / total / 2)),),
    ),
    Mistake(
        "the weights are added up before they are squared. Each answer has a gain of its own, and "
        "so an error of its own: what do you know of each?",
        (
            _by_share(lambda asked, total, s2: s2 * (1 - asked.sum() ** 2 / total)),
            _by_share(lambda asked, total, s2: s2 * (1 - asked.sum() * asked.mean() / total)),
            _by_share(lambda asked, total, s2: s2 * (1 - asked.mean() ** 2 / total)),
        ),
    ),
    Mistake(
        "this is what the head explains of the values; the error is what it leaves.",
        (
            lambda weights, asked, variance: variance - _fetch_error(weights, asked, variance),
            lambda weights, asked, variance: (
                len(asked) * (variance - _fetch_error(weights, asked, variance))
            ),
        ),
    ),
    Mistake(
        "the pooled value itself is taken as the answer to every question, with a gain of one. "
        "The layer may learn an output map: which gain g makes the mean of (v_a - g o)^2 least?",
        (_by_share(lambda asked, total, s2: s2 * (1 - 2 * asked + total).mean()),),
    ),
    Mistake(
        "the sum of the squared weights is missing. The gain that is best is a covariance divided "
        "by a variance: what is the variance of the pooled value, with all its slots?",
        (_by_share(lambda asked, total, s2: s2 * (1 - asked.square().mean())),),
    ),
    Mistake(
        "the weights come in unsquared. The error is a mean of squares: is the covariance of v_a "
        "with o, over the spread of o, squared too?",
        (
            _by_share(lambda asked, total, s2: s2 * (1 - asked.mean())),
            _by_share(lambda asked, total, s2: s2 * (1 - asked.mean() / total)),
            _by_share(lambda asked, total, s2: s2 * (1 - (asked / total.sqrt()).mean())),
        ),
    ),
    Mistake(
        "zero for all weights: an output map as wide as you like, but all that it reads is one "
        "number, o. Can two unknowns come out of it?",
        (_by_share(lambda asked, total, s2: 0 * total),),
    ),
    Mistake(
        "the full variance for all weights: that is the error of a layer that answers 0. Does "
        "the pooled value tell nothing of what is in it?",
        (_by_share(lambda asked, total, s2: s2 + 0 * total),),
    ),
    Mistake(
        "this takes the weights to be the best ones already; they are given, and some lie on "
        "slots that nobody asked for.",
        (
            lambda weights, asked, variance: _floor(len(asked), variance),
            lambda weights, asked, variance: _floor(2, variance),
            _by_share(
                lambda asked, total, s2: s2 * (1 - asked.square() / asked.square().sum()).mean()
            ),
        ),
    ),
    Mistake(
        "only one of the questions is looked at: average over all of them.",
        (
            lambda weights, asked, variance: _fetch_error(weights, asked[:1], variance),
            _by_share(lambda asked, total, s2: s2 * (1 - asked.square().max() / total)),
        ),
    ),
    Mistake(
        "the square of the variance: with values of twice the size, how much larger is an error "
        "that is a mean of squares? Variance is squared already.",
        (lambda weights, asked, variance: variance * _fetch_error(weights, asked, variance),),
    ),
    Mistake(
        "this is the error of values with a variance of one: where does `variance` come in?",
        (lambda weights, asked, variance: _fetch_error(weights, asked, 1.0),),
    ),
)


def _floor_of(formula: Callable[[int, float], float]) -> Callable[..., Tensor]:
    return lambda facts, variance: torch.tensor(formula(facts, variance), dtype=torch.float64)


_FLOOR_MISTAKES = (
    Mistake(
        "this is the total over all outputs, and the exercise asks for the mean: over how many?",
        (_floor_of(lambda facts, variance: variance * (facts - 1)),),
    ),
    Mistake(
        "zero: one head would do. But its weights do not depend on the values, so one sum of "
        "values is all that the output map ever sees. How many unknowns does one number settle?",
        (_floor_of(lambda facts, variance: 0.0),),
    ),
    Mistake(
        "the full variance: nothing better than answering 0. Put all the weight on one slot: "
        "what is the error of that output, and of the others?",
        (_floor_of(lambda facts, variance: variance),),
    ),
    Mistake(
        "half the variance, whatever is asked. That is the floor for two facts: in your formula "
        "of the weights, how large can the asked slots' share of the squares become, and by what "
        "is it divided?",
        (_floor_of(lambda facts, variance: variance / 2),),
    ),
    Mistake(
        "this is the part that one head gets right, 1 of so many facts. How much is left?",
        (_floor_of(lambda facts, variance: variance / facts),),
    ),
    Mistake(
        "`variance` comes in with another power than one, or not at all: with values of twice the "
        "size, how much larger is a mean of squares, and how much larger is their variance?",
        (
            _floor_of(lambda facts, variance: 1 - 1 / facts),
            _floor_of(lambda facts, variance: variance**2 * (1 - 1 / facts)),
            _floor_of(lambda facts, variance: (variance * (1 - 1 / facts)) ** 0.5),
        ),
    ),
    Mistake(
        "this is the error of equal weights and no output map. Let the map rescale what it reads.",
        (_floor_of(lambda facts, variance: variance * (facts - 1) / facts**2),),
    ),
)


# 4.5 ---------------------------------------------------------------------------------


def _silenced(
    change: Callable[[Tensor, Tensor, int, list[int]], Tensor],
) -> Callable[..., Tensor]:
    """By a function of the heads' answers, W_o, the number of heads and those that are off."""

    def answer(
        x: Tensor, W_q: Tensor, W_k: Tensor, W_v: Tensor, W_o: Tensor, num_heads: int,
        off: list[int],
    ) -> Tensor:  # fmt: skip
        return change(_answers(x, W_q, W_k, W_v, num_heads), W_o, num_heads, off)

    return answer


def _without(tensor: Tensor, axis: int, where: list[int]) -> Tensor:
    """A copy, zero at these places of an axis."""
    return tensor.index_fill(axis, torch.tensor(where, dtype=torch.long), 0)


def _places(off: list[int], width: int, count: int) -> list[int]:
    """``width`` places for each head of ``off``, those of ``count`` that there are."""
    return [place for i in off for place in range(i * width, (i + 1) * width) if place < count]


def _columns(places: Callable[[list[int], int, int], list[int]]) -> Callable[..., Tensor]:
    """Other columns of W_o zeroed: a function of the heads, how many there are, and W_o's width."""
    return _silenced(
        lambda heads, W_o, num_heads, off: (
            _merge(heads) @ _without(W_o, 1, places(off, num_heads, len(W_o))).T
        )
    )


def _left(num_heads: int, off: list[int]) -> list[int]:
    return [i for i in range(num_heads) if i not in off]


def _uniform(**given: Any) -> Tensor:
    """Scores of 0."""
    flat = given.pop("off")
    W_o = given.pop("W_o")
    return _merge(_answers(**given, flat=flat)) @ W_o.T


def _rescaled(**given: Any) -> Tensor:
    num_heads = given["num_heads"]
    return _prune(**given) * num_heads / (num_heads - len(given["off"]))


def _elsewhere(axis: int) -> Callable[..., Tensor]:
    """Along another axis than that of the heads."""
    return _silenced(
        lambda heads, W_o, num_heads, off: (
            _merge(_without(heads, axis, [i for i in off if i < heads.shape[axis]])) @ W_o.T
        )
    )


def _values_misread(**given: Any) -> Tensor:
    W_v, off = given["W_v"], given["off"]
    columns = _places(off, len(W_v) // given["num_heads"], len(W_v))
    return _prune(**(given | {"W_v": _without(W_v, 1, columns), "off": []}))


_PRUNE_MISTAKES = (
    Mistake(
        "the head's scores are zero, not its answer. Equal scores are equal weights: the head "
        "still speaks, and says the average of its values. What must be zero for it to say "
        "nothing?",
        (_uniform,),
    ),
    Mistake(
        "a wrong slice of W_o is zeroed: its rows belong to outputs, and every output hears every "
        "head. Which axis of W_o reads what the heads have found?",
        (
            _silenced(
                lambda heads, W_o, num_heads, off: (
                    _merge(heads)
                    @ _without(W_o, 0, _places(off, len(W_o) // num_heads, len(W_o))).T
                )
            ),
        ),
    ),
    Mistake(
        "these are not the columns of that head: its slice begins at i * head_dim and is head_dim "
        "wide, with head_dim = width / num_heads, and heads are counted from 0.",
        (
            _columns(lambda off, num_heads, width: _places(off, num_heads, width)),
            _columns(lambda off, num_heads, width: [i % width for i in off]),
            _columns(
                lambda off, num_heads, width: [p for p in range(width) if p % num_heads in off]
            ),
            _columns(
                lambda off, num_heads, width: _places(
                    [(i - 1) % num_heads for i in off], width // num_heads, width
                )
            ),
        ),
    ),
    Mistake(
        "the heads that are left have moved up: once one is taken out of the row, the others meet "
        "columns of W_o that were trained for their neighbours. Who may move, if W_o stays?",
        (
            _silenced(
                lambda heads, W_o, num_heads, off: (
                    heads[:, _left(num_heads, off)].transpose(1, 2).flatten(2)
                    @ W_o[:, : len(_left(num_heads, off)) * heads.shape[3]].T
                )
            ),
        ),
    ),
    Mistake(
        "the heads that are left are scaled up, as dropout does it. Pruning asks what they say as "
        "they are: W_o adds them up, and no average has to be kept.",
        (_rescaled,),
    ),
    Mistake(
        "the other way round: the heads of `off` are those that are silenced.",
        (lambda **given: _prune(**(given | {"off": _left(given["num_heads"], given["off"])})),),
    ),
    Mistake(
        "no head is silenced: where does `off` come in?",
        (lambda **given: _prune(**(given | {"off": []})),),
    ),
    Mistake(
        "only one of the heads of `off` is silenced: there can be several.",
        (
            lambda **given: _prune(**(given | {"off": given["off"][:1]})),
            lambda **given: _prune(**(given | {"off": given["off"][-1:]})),
        ),
    ),
    Mistake(
        "the head's scores are minus infinity throughout, and a softmax of nothing else divides 0 "
        "by 0: NaN. Is it the scores that must not be there, or what comes of them?",
        (lambda **given: _prune(**given) + (torch.nan if given["off"] else 0),),
    ),
    Mistake(
        "something is silenced, but along another axis than that of the heads: which of [batch, "
        "num_heads, len, head_dim] does your index pick from?",
        tuple(_elsewhere(axis) for axis in (0, 2, 3)),
    ),
    Mistake(
        "a wrong slice of W_v is zeroed: its columns belong to what it reads of a token, its rows "
        "to what it makes for the heads.",
        (_values_misread,),
    ),
    Mistake(
        "the output map is missing: these are the merged heads themselves.",
        (
            _silenced(lambda heads, W_o, num_heads, off: _merge(_without(heads, 1, off))),
            _silenced(lambda heads, W_o, num_heads, off: _merge(heads)),
        ),
    ),
    Mistake(
        "W_o is transposed: as in `nn.Linear`, its rows belong to outputs.",
        (lambda **given: _prune(**(given | {"W_o": given["W_o"].T})),),
    ),
)


# 4.6 ---------------------------------------------------------------------------------


def _changed(**changes: Callable[[State], Tensor]) -> Callable[..., Tensor]:
    """Other parameters by name, with ``__`` for the dot."""

    def answer(state: State) -> Tensor:
        ours = _from_torch(state)
        for name, change in changes.items():
            if name.replace("__", ".") in ours:
                ours[name.replace("__", ".")] = change(state)
        return _one_row(ours)

    return answer


def _packed(kind: str, i: int) -> Callable[[State], Tensor]:
    return lambda state: state[f"in_proj_{kind}"].chunk(3)[i]


def _ordered(order: tuple[int, ...], *kinds: str) -> Callable[..., Tensor]:
    """q, k and v taken from other thirds."""
    return _changed(
        **{
            f"W_{letter}__{kind}": _packed(kind, i)
            for kind in kinds
            for letter, i in zip("qkv", order, strict=True)
        }
    )


def _third(kind: str, i: int) -> Callable[[State], Tensor]:
    return lambda state: state[f"in_proj_{kind}"][i::3]


def _transposed(letters: str) -> Callable[..., Tensor]:
    def turned(letter: str) -> Callable[[State], Tensor]:
        return lambda state: _from_torch(state)[f"W_{letter}.weight"].T

    return _changed(**{f"W_{letter}__weight": turned(letter) for letter in letters})


def _no_bias(letters: str) -> Callable[..., Tensor]:
    return _changed(
        **{
            f"W_{letter}__bias": lambda state: torch.zeros(len(state["out_proj.weight"]))
            for letter in letters
        }
    )


_OTHER_ORDERS = [order for order in itertools.permutations(range(3)) if order != (0, 1, 2)]

_STATE_MISTAKES = (
    Mistake(
        "q, k and v are mixed up. PyTorch stacks them in the order in which its layer takes them, "
        "query above key above value: which rows come first?",
        (
            *(_ordered(order, "weight", "bias") for order in _OTHER_ORDERS),
            *(_ordered(order, "weight") for order in _OTHER_ORDERS),
        ),
    ),
    Mistake(
        "a matrix is transposed. `nn.Linear` keeps [out, in], and so does PyTorch's layer: what is "
        "there to turn? (A square matrix fits either way, and no error will tell.)",
        tuple(
            _transposed("".join(letters))
            for count in range(1, 5)
            for letters in itertools.combinations("qkvo", count)
        ),
    ),
    Mistake(
        "the biases are there, and all are zero. A fresh layer's are, too; those of a trained one "
        "are not: where in the state are they?",
        (_no_bias("qkvo"), _no_bias("qkv"), _no_bias("o")),
    ),
    Mistake(
        "the weights are right, and their biases belong to other maps: they are stacked in the "
        "same order.",
        tuple(_ordered(order, "bias") for order in _OTHER_ORDERS),
    ),
    Mistake(
        "queries, keys and values get the same third. There are three: which comes next?",
        tuple(
            _ordered((i, i, i), *kinds)
            for i in range(3)
            for kinds in (("weight", "bias"), ("weight",), ("bias",))
        ),
    ),
    Mistake(
        "W_o gets what belongs to one of the others: the output map is not in the packed tensors, "
        "it has its own names.",
        tuple(
            _changed(**{f"W_o__{kind}": _packed(kind, i) for kind in kinds})
            for i in range(3)
            for kinds in (("weight", "bias"), ("weight",), ("bias",))
        ),
    ),
    Mistake(
        "every third row is taken. The three matrices lie one above another, each in one piece.",
        (
            _changed(
                **{
                    f"W_{letter}__{kind}": _third(kind, i)
                    for kind in ("weight", "bias")
                    for i, letter in enumerate("qkv")
                }
            ),
            _changed(
                **{f"W_{letter}__weight": _third("weight", i) for i, letter in enumerate("qkv")}
            ),
        ),
    ),
)

_ALL_THREE = (
    "{} has all {} rows of the packed tensor. Its matrices lie one above another: along which axis "
    "is it to be cut?"
)

_BIAS_LOST = (
    "the bias is lost: {} is missing. Weights alone give other outputs, and nobody is told. Where "
    "does the state keep them?"
)


# 4.7 ---------------------------------------------------------------------------------


def _tiles_of(tensor: Tensor, block: int, width: int | None = None) -> Tensor:
    """Zeros up to the end of the last tile, and up to ``width``: ``[tiles, block, width]``."""
    rows, columns = tensor.shape
    width = width or columns
    padded = tensor.new_zeros(-(-rows // block) * block, width)
    padded[:rows, :columns] = tensor
    return padded.reshape(-1, block, width)


def _tilewise(
    tile: Callable[[Tensor, Tensor], Tensor],
) -> Callable[..., Tensor]:
    """A score for each pair by a function of a tile of queries and a tile of keys."""

    def answer(query: Tensor, key: Tensor, scale: float, block: int) -> Tensor:
        width = _padded_width(query.shape[1])
        rows, columns = (_tiles_of(x, block, width) for x in (query, key))
        table = torch.cat([torch.cat([tile(q, k) for k in columns], 1) for q in rows])
        return scale * table[: len(query), : len(key)]

    return answer


def _bare_lanes(query: Tensor, key: Tensor, scale: float, block: int) -> Tensor:
    """Numbers past a vector's end are NaN, and 0 * NaN is NaN."""
    padded = query.shape[1] < _padded_width(query.shape[1])
    return _scores(query, key, scale, block) + (torch.nan if padded else 0)


_TILE_MISTAKES = (
    Mistake(
        "the scale is missing: these are the bare products.",
        (lambda query, key, scale, block: query @ key.T,),
    ),
    Mistake(
        "the scale comes in twice.",
        (lambda query, key, scale, block: scale**2 * query @ key.T,),
    ),
    Mistake(
        "the scores are stored on their side: the table has QUERY_LEN rows, and row i begins at "
        "i * KEY_LEN. Which of your two indices is multiplied?",
        (lambda **given: _scores(**given).T.reshape(len(given["query"]), -1),),
    ),
    Mistake(
        "the products are divided by the scale; it is there to be multiplied by.",
        (lambda query, key, scale, block: query @ key.T / scale,),
    ),
    Mistake(
        "`tl.dot(q, k)` multiplies rows of q with *columns* of k: here it runs only because both "
        "tiles are square. A score is a row with a row: which of the two must be turned?",
        (_tilewise(lambda q, k: q @ k),),
    ),
    Mistake(
        "each tile is transposed: queries belong down, keys across. Which of the two comes first "
        "in `tl.dot`?",
        (_tilewise(lambda q, k: k @ q.T),),
    ),
    Mistake(
        "lanes past the end of a vector hold anything, and here NaN; 0 times NaN is NaN. As what "
        "should `tl.load` give them, with other=?",
        (_bare_lanes,),
    ),
)

_TILE_WORDS = Words(
    outside="a load reads past the end of the keys. On a GPU that is somebody else's memory. "
    "A tile is cut off at two sides: which of its rows are keys, and which of its columns hold a "
    "number? `tl.load` wants to know both. And how far is it from one key to the next?",
    foreign="Program (r, c) owns the tile of scores that begins at row r * BLOCK and column "
    "c * BLOCK, as far as there are scores. How far is it from one row of the scores to the next, "
    "and which places of a tile exist?",
    missing="Each program has one tile to store: does its mask leave some of it out, or do two "
    "programs think that they are the same one?",
)


def _factor(old: Tensor, new: Tensor) -> Tensor:
    """What a sum that was anchored at ``old`` is worth at ``new``."""
    return (old - new).exp()


def _one(old: Tensor, new: Tensor) -> Tensor:
    return torch.ones_like(new)


def _nothing(old: Tensor, new: Tensor) -> Tensor:
    return torch.zeros_like(new)


def _inverse(old: Tensor, new: Tensor) -> Tensor:
    return (new - old).exp()


def _inverse_later(old: Tensor, new: Tensor) -> Tensor:
    """Whoever begins with something else than minus infinity."""
    return torch.where(old.isinf(), torch.ones_like(new), (new - old).exp())


def _running(old: Tensor, s: Tensor) -> Tensor:
    return torch.maximum(old, s.amax(1))


def _stream(
    *,
    numerator_by: Callable[[Tensor, Tensor], Tensor] = _factor,
    denominator_by: Callable[[Tensor, Tensor], Tensor] = _factor,
    largest: Callable[[Tensor, Tensor], Tensor] = _running,
    forget: bool = False,
    tail: float = -torch.inf,
    total: Callable[[Tensor], Tensor] = lambda p: p.sum(1),
    weigh: Callable[[Tensor, Tensor], Tensor] = lambda s, new: (s - new[:, None]).exp(),
    carry: Callable[[Tensor, Tensor], Tensor] = lambda numerator, by: numerator * by[:, None],
    part: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
    each: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda numerator, total, p: numerator,
    end: Callable[[Tensor, Tensor], Tensor] = lambda numerator, total: numerator / total,
    rounds: slice = slice(None),
) -> Callable[..., Tensor]:
    """The kernel's loop with a part of it replaced.

    Args:
        numerator_by: (old largest, new) -> what the numerator is multiplied by.
        denominator_by: Likewise.
        largest: (old, scores of the tile) -> new.
        forget: Whether the largest is not kept for the next round.
        tail: The score of a lane without a key.
        total: The sum of a tile's exponentials, for each query.
        weigh: (scores, largest) -> exponentials.
        carry: (numerator, what it is multiplied by) -> what is left of it.
        part: (exponentials, values) -> what a tile adds to the numerator.
        each: (numerator, denominator, exponentials) -> the numerator after a round.
        end: (numerator, denominator) -> the output.
        rounds: Which tiles of keys pass by.
    """

    def answer(query: Tensor, key: Tensor, value: Tensor, scale: float, block: int) -> Tensor:
        tiles = list(zip(_tiles_of(key, block), _tiles_of(value, block), strict=True))
        inside = torch.arange(len(tiles) * block).reshape(-1, block) < len(key)
        outputs = []
        for q in _tiles_of(query, block):
            numerator, denominator = torch.zeros_like(q), q.new_zeros(block)
            old = q.new_full((block,), -torch.inf)
            for (k, v), lanes in list(zip(tiles, inside, strict=True))[rounds]:
                s = torch.where(lanes, scale * q @ k.T, tail)
                new = largest(old, s)
                p = weigh(s, new)
                denominator = denominator * denominator_by(old, new) + total(p)
                numerator = carry(numerator, numerator_by(old, new)) + part(p, v)
                numerator = each(numerator, denominator[:, None], p)
                old = old if forget else new
            outputs.append(end(numerator, denominator[:, None]))
        return torch.cat(outputs)[: len(query)]

    return answer


def _mean_so_far(numerator: Tensor, total: Tensor, p: Tensor) -> Tensor:
    return numerator / total


def _undivided(numerator: Tensor, total: Tensor) -> Tensor:
    return numerator


def _its_own(old: Tensor, s: Tensor) -> Tensor:
    return s.amax(1)


#: Each tile answers by itself, and the answers are added up, or averaged.
_AVERAGES = tuple(
    _stream(
        numerator_by=factor,
        denominator_by=_one,
        largest=largest,
        total=lambda p: torch.ones_like(p[:, 0]),
        part=lambda p, v: p @ v / p.sum(1, keepdim=True),
        end=end,
    )
    for factor in (_one, _factor)
    for largest in (_running, _its_own)
    for end in (torch.div, _undivided)
)


def _nan_where(
    padded: Callable[[int, int, int], bool],
) -> Callable[..., Tensor]:
    """The right answer, or NaN where lanes of a tile are left over: (m, dim, block)."""

    def answer(query: Tensor, key: Tensor, value: Tensor, scale: float, block: int) -> Tensor:
        bad = padded(len(key), query.shape[1], block)
        return _flash(query, key, value, scale, block) + (torch.nan if bad else 0)

    return answer


_FLASH_MISTAKES = (
    Mistake(
        "the accumulator is not rescaled when the maximum grows. The numerator so far was summed "
        "relative to the old maximum, the new tile relative to the new one: by what must the old "
        "part be multiplied before the two may meet?",
        (
            _stream(numerator_by=_one),
            _stream(numerator_by=_one, denominator_by=_one),
        ),
    ),
    Mistake(
        "the denominator is not rescaled, and the numerator is: what holds for one sum of "
        "exponentials holds for the other.",
        (_stream(denominator_by=_one),),
    ),
    Mistake(
        "the factor is upside down. When the maximum grows, what was summed before counts for "
        "*less*: is exp(new - old) below 1? And what is it in the first round, when there was no "
        "maximum yet?",
        (
            _stream(numerator_by=_inverse, denominator_by=_inverse),
            _stream(numerator_by=_inverse_later, denominator_by=_inverse_later),
            _stream(numerator_by=_inverse),
            _stream(numerator_by=_inverse_later),
            _stream(denominator_by=_inverse_later),
        ),
    ),
    Mistake(
        "it divides inside the loop. An average has forgotten how much it weighed, and the next "
        "tile cannot be added to it. When do you know the whole sum?",
        (
            _stream(each=_mean_so_far),
            _stream(each=_mean_so_far, end=_undivided),
            *_AVERAGES,
            _stream(
                each=lambda numerator, total, p: numerator / p.sum(1, keepdim=True),
                end=_undivided,
            ),
        ),
    ),
    Mistake(
        "tail keys weigh something: lanes without a key have the score 0 there, and 0 is a score "
        "like any other. Which score makes a weight of exactly 0?",
        (_stream(tail=0.0),),
    ),
    Mistake(
        "without the running maximum the exponentials of large scores are infinite, and infinity "
        "over infinity is NaN. What may be subtracted from all scores of a query?",
        (_stream(largest=lambda old, s: torch.zeros_like(old)),),
    ),
    Mistake(
        "only the last tile counts. The maximum of the rounds before is not kept, or the sums "
        "are begun anew: what has to be carried from round to round?",
        (
            _stream(forget=True),
            _stream(rounds=slice(-1, None)),
            _stream(numerator_by=_nothing, denominator_by=_nothing),
        ),
    ),
    Mistake(
        "only the first tile counts: which keys does the second round of the loop load?",
        (_stream(rounds=slice(1)),),
    ),
    Mistake(
        "the maximum falls again: it is this tile's, not the largest so far. Then the factor can "
        "be infinite, when a tile of small scores follows one of large ones. What does "
        "`tl.maximum` compare?",
        (_stream(largest=_its_own),),
    ),
    Mistake(
        "all queries of the tile share one maximum. That of a loud query makes every exponential "
        "of a quiet one 0, and 0 over 0 is NaN. Along which axis does each query have its own?",
        (_stream(largest=lambda old, s: torch.maximum(old, s.amax())),),
    ),
    Mistake(
        "the exponentials are summed over the queries, not over the keys. In a tile of scores "
        "queries run down: which axis is to go?",
        (_stream(total=lambda p: p.sum(0)),),
    ),
    Mistake(
        "a number that belongs to a query is spread along the wrong axis: beside a tile, `[BLOCK]` "
        "counts columns, and where the tile is square nothing complains. Which index makes a "
        "column of it?",
        (
            _stream(
                weigh=lambda s, new: (s.float() - new.float()).exp().double(),
            ),
            _stream(carry=lambda numerator, by: numerator * by[: numerator.shape[1]]),
            _stream(end=lambda numerator, total: numerator / total[: numerator.shape[1], 0]),
        ),
    ),
    Mistake(
        "only one of the two sums is carried from round to round: the other begins anew with "
        "each tile.",
        (_stream(denominator_by=_nothing), _stream(numerator_by=_nothing)),
    ),
    Mistake(
        "the loop ends too early: it is over *keys*, and the last of their tiles need not be full.",
        (
            lambda **given: _stream(rounds=slice(len(given["key"]) // given["block"]))(**given),
            lambda **given: _stream(rounds=slice(-(-len(given["query"]) // given["block"])))(
                **given
            ),
        ),
    ),
    Mistake(
        "the keys are averaged, and not the values: what does the second load of a round read?",
        (lambda query, key, value, scale, block: _flash(query, key, key, scale, block),),
    ),
    Mistake(
        "these are powers of two. A softmax has powers of e; what would the scores have to be "
        "multiplied by?",
        (
            lambda query, key, value, scale, block: _flash(
                query, key, value, scale * math.log(2), block
            ),
        ),
    ),
    Mistake(
        "it never divides: this is the numerator alone.",
        (_stream(end=_undivided),),
    ),
    Mistake(
        "the scale is missing: these are the weights of the bare products.",
        (
            lambda query, key, value, scale, block: _flash(query, key, value, 1.0, block),
            lambda query, key, value, scale, block: _flash(query, key, value, 1 / scale, block),
        ),
    ),
    Mistake(
        "a load has a mask and no other=. On a GPU the lanes that the mask leaves out then hold "
        "anything, and here NaN. A score may be repaired afterwards; but a weight of 0 times a "
        "value of NaN is NaN. As what should keys and values be loaded?",
        (
            _nan_where(lambda m, dim, block: m % block > 0),
            _nan_where(lambda m, dim, block: dim < _padded_width(dim)),
            _nan_where(lambda m, dim, block: m % block > 0 or dim < _padded_width(dim)),
        ),
    ),
)

_FLASH_WORDS = Words(
    outside="a load reads beyond the keys or beyond the values. On a GPU that is somebody else's "
    "memory. Which rows of the last tile exist, and which of its columns? And how far is it from "
    "one key to the next?",
    foreign="On a GPU all programs run at once: what would be left in that slot? Program i owns "
    "the outputs of queries i * BLOCK to (i + 1) * BLOCK - 1, as far as there are queries, and "
    "as wide as a value.",
    missing="Each program stores a tile of outputs, all rows and columns that exist: after the "
    "loop.",
)
