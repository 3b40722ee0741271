"""Chapter 6's exercises: the likely mistakes, and what is said of each.

A mistake is the formula that it computes, and the message that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.exercises.framework import Mistake
from attn_course.exercises.kernels import Words
from attn_course.exercises.transformer_cases import (
    Decoder,
    Maps,
    _causal,
    _first,
    _histories,
    _lens_allowed,
    _needed,
    _Norm,
    _norm_backward,
    _norm_rows,
    _Parents,
    _position,
    _post_norm,
    _pre_norm,
    _sees,
    _smooth,
    _smooth_loss,
    _Sublayer,
)

# 6.1 ---------------------------------------------------------------------------------


def _mask_of(
    order: Callable[[Tensor, Tensor], Tensor],
    valid: Callable[[Tensor, Tensor, Tensor], Tensor],
    join: Callable[[Tensor, Tensor], Tensor] = torch.logical_and,
) -> Callable[..., Tensor]:
    """A mask by another rule for query i and key j, and another for lengths."""

    def answer(valid_lens: Tensor, length: int) -> Tensor:
        place = torch.arange(length)
        i, j, lens = place[None, :, None], place[None, None, :], valid_lens[:, None, None]
        shape = len(valid_lens), length, length
        return join(order(i, j).expand(shape), valid(i, j, lens).expand(shape)).double()

    return answer


def _in_order(i: Tensor, j: Tensor) -> Tensor:
    return j <= i


def _key_valid(i: Tensor, j: Tensor, lens: Tensor) -> Tensor:
    return j < lens


def _anything(i: Tensor, j: Tensor, lens: Tensor) -> Tensor:
    return (i + j + lens) > -1


def _with_rows_for_padding(extra: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Any:
    """The right mask, and more for queries that are padding."""

    def answer(valid_lens: Tensor, length: int) -> Tensor:
        more = _mask_of(lambda i, j: (i + j) > -1, extra)(valid_lens, length)
        return torch.maximum(_causal(valid_lens, length), more)

    return answer


_CAUSAL_MISTAKES = (
    Mistake(
        "the diagonal is hidden: no token may look at itself, and the first may look at nothing "
        "at all. What stands in a decoder's input at position i: the word that it is asked for, "
        "or the one before?",
        (
            _mask_of(lambda i, j: j < i, _key_valid),
            _mask_of(lambda i, j: j < i, _anything),
        ),
    ),
    Mistake(
        "transposed: each token sees itself and what comes *after* it. Rows are queries and "
        "columns are keys; which triangle is the past?",
        (
            _mask_of(lambda i, j: j >= i, _key_valid),
            _mask_of(lambda i, j: j >= i, _anything),
            _mask_of(lambda i, j: j > i, _key_valid),
            _mask_of(lambda i, j: j >= i, lambda i, j, lens: i < lens),
        ),
    ),
    Mistake(
        "the other way round: True means *may attend*.",
        (
            lambda valid_lens, length: 1 - _causal(valid_lens, length),
            _mask_of(lambda i, j: j > i, _anything),
        ),
    ),
    Mistake(
        "padding is forgotten: causal alone. A padding token that lies before a query would be "
        "attended to as if it were a word. Where do the lengths come in?",
        (_mask_of(_in_order, _anything),),
    ),
    Mistake(
        "the future is visible: padding alone is hidden. Which keys may query i see, if the "
        "sentence is still being written?",
        (_mask_of(lambda i, j: (i + j) > -1, _key_valid),),
    ),
    Mistake(
        "padding is hidden along the queries: its row is empty, and its column is open. Whom must "
        "nobody look at, and along which axis do keys lie?",
        (_mask_of(_in_order, lambda i, j, lens: i < lens),),
    ),
    Mistake(
        "one of the two conditions is enough for you; a key counts if *both* allow it.",
        (_mask_of(_in_order, _key_valid, torch.logical_or),),
    ),
    Mistake(
        "each token sees one too many: its successor. Where does your triangle begin, and which "
        "diagonal does `tril` count as 0?",
        (_mask_of(lambda i, j: j <= i + 1, _key_valid),),
    ),
    Mistake(
        "queries that are padding get a rule of their own. Nobody reads their output, and the two "
        "rules are the same for them: may they look at padding?",
        (
            _with_rows_for_padding(lambda i, j, lens: (i == j) & (i >= lens)),
            _with_rows_for_padding(lambda i, j, lens: (i >= lens) & (j > -1)),
        ),
    ),
    Mistake(
        "everybody may look at everybody, or nobody at anything: which of the two rules is in it?",
        (
            _mask_of(lambda i, j: (i + j) > -1, _anything),
            _mask_of(lambda i, j: (i + j) < 0, _anything),
        ),
    ),
    Mistake(
        "the lengths are off by one: tokens are counted from 0, a length says how many there are.",
        (
            _mask_of(_in_order, lambda i, j, lens: j <= lens),
            _mask_of(_in_order, lambda i, j, lens: j < lens - 1),
        ),
    ),
)


# 6.2 ---------------------------------------------------------------------------------


def _normed_by(
    axes: tuple[int, ...] = (-1,),
    *,
    unbiased: bool = False,
    centre: bool = True,
    sums: bool = False,
    divisor: Callable[[Tensor, float], Tensor] = lambda var, eps: (var + eps).sqrt(),
) -> Callable[..., Tensor]:
    """Layer normalisation along other axes, or with other statistics."""

    def answer(x: Tensor, eps: float) -> Tensor:
        mean = x.mean(axes, keepdim=True)
        squares = (x - mean).square()
        var = (squares.sum if sums else squares.mean)(axes, keepdim=True)
        if unbiased:
            var = x.var(axes, keepdim=True)
        if not centre:
            return x / divisor(x.square().mean(axes, keepdim=True), eps)
        return (x - mean) / divisor(var, eps)

    return answer


_LAYER_NORM_MISTAKES = (
    Mistake(
        "the mean runs along the wrong axis, or along too many: a token's numbers then depend on "
        "its neighbours, or on other sentences, and in a decoder on the future. What belongs to "
        "one token alone?",
        tuple(_normed_by(axes) for axes in ((0,), (1,), (0, 1), (1, 2), (0, 1, 2), (0, 2))),
    ),
    Mistake(
        "the variance is divided by d - 1, as for a sample that stands for something larger. "
        "These d numbers are all there are: what is their mean square?",
        (
            _normed_by(unbiased=True),
            _normed_by(unbiased=True, divisor=lambda var, eps: var.sqrt() + eps),
        ),
    ),
    Mistake(
        "eps is added to the standard deviation. In the formula it stands under the root: does it "
        "matter where a token's features are all alike?",
        (_normed_by(divisor=lambda var, eps: var.sqrt() + eps),),
    ),
    Mistake(
        "without eps, features that are all alike are divided by zero. Where does it stand in the "
        "formula?",
        (
            _normed_by(divisor=lambda var, eps: var.sqrt()),
            _normed_by(unbiased=True, divisor=lambda var, eps: var.sqrt()),
        ),
    ),
    Mistake(
        "nothing is divided: what should the variance of your answer be?",
        (
            lambda x, eps: x,
            lambda x, eps: x - x.mean(-1, keepdim=True),
        ),
    ),
    Mistake(
        "the squares are added up, and not averaged: where has the 1/d gone?",
        (
            _normed_by(sums=True),
            _normed_by(divisor=lambda var, eps: var.sqrt(), sums=True),
            _normed_by(divisor=lambda var, eps: var.sqrt().clamp_min(1e-12), sums=True),
        ),
    ),
    Mistake(
        "eps is always the same: it is an argument.",
        tuple((lambda x, eps, other=other: _normed_by()(x, other)) for other in (1e-5, 1e-6, 1e-8)),
    ),
    Mistake(
        "divided by the variance, not by its root: what would the variance of your answer be?",
        (_normed_by(divisor=lambda var, eps: var + eps),),
    ),
    Mistake(
        "the mean is not taken away. (Dividing alone has a name too, RMSNorm; here the mean goes "
        "first.)",
        (
            _normed_by(centre=False),
            lambda x, eps: x / (x.var(-1, correction=0, keepdim=True) + eps).sqrt(),
        ),
    ),
)

_NORMED_SKIP = (
    "the skip path is normalised: what a token was is not there any more, and no gradient runs "
    "past the sublayers. Along which path is nothing to be done to x?"
)

_POST_MISTAKES = (
    Mistake(
        "this is pre-norm: the sublayer reads what is normalised, and the sum stays as it is. "
        "Which of the two comes last in the block of 2017?",
        (_pre_norm,),
    ),
    Mistake(
        "only what the sublayer says is normalised. *Post* means: after the sum.",
        (lambda x, sublayer, norm: x + norm(sublayer(x)),),
    ),
    Mistake(
        "the skip path is missing: nothing of x reaches the output but what the sublayer says.",
        (
            lambda x, sublayer, norm: norm(sublayer(x)),
            lambda x, sublayer, norm: norm(sublayer(norm(x))),
        ),
    ),
    Mistake(
        "the norm is missing.",
        (lambda x, sublayer, norm: x + sublayer(x),),
    ),
    Mistake(
        "the sublayer is missing: who speaks?",
        (lambda x, sublayer, norm: x, lambda x, sublayer, norm: norm(x)),
    ),
    Mistake(
        "x is normalised before the sum as well: once, after it, is enough.",
        (
            lambda x, sublayer, norm: norm(norm(x) + sublayer(x)),
            lambda x, sublayer, norm: norm(norm(x) + sublayer(norm(x))),
            lambda x, sublayer, norm: norm(x + sublayer(norm(x))),
            lambda x, sublayer, norm: norm(x) + sublayer(x),
        ),
    ),
)


def _skips_normed(x: Tensor, sublayer: _Sublayer, norm: _Norm) -> Tensor:
    return norm(x) + sublayer(norm(x))


_PRE_MISTAKES = (
    Mistake(
        _NORMED_SKIP,
        (_skips_normed, lambda x, sublayer, norm: norm(x) + sublayer(x)),
    ),
    Mistake(
        "this is post-norm: the sum is normalised. Here the norm is on the branch alone.",
        (_post_norm,),
    ),
    Mistake(
        "the norm comes after the sublayer; *pre* means before it.",
        (lambda x, sublayer, norm: x + norm(sublayer(x)),),
    ),
    Mistake(
        "there is no skip path: nothing of x reaches the output but what the sublayer says.",
        (lambda x, sublayer, norm: sublayer(norm(x)),),
    ),
    Mistake(
        "the sublayer reads x as it is: where is the norm?",
        (lambda x, sublayer, norm: x + sublayer(x),),
    ),
    Mistake(
        "the sublayer is missing: who speaks?",
        (
            lambda x, sublayer, norm: x,
            lambda x, sublayer, norm: norm(x),
            lambda x, sublayer, norm: x + norm(x),
        ),
    ),
    Mistake(
        "the sum is normalised as well: the norm before the sublayer is the block's only one.",
        (lambda x, sublayer, norm: norm(x + sublayer(norm(x))),),
    ),
)

_Block = Callable[[Tensor, _Sublayer, _Norm], Tensor]


def _stacked(
    block: _Block = _pre_norm, last: bool = True, chosen: slice = slice(None)
) -> Callable[..., Tensor]:
    """A stack of other blocks, perhaps not all of them, perhaps without the last norm."""

    def answer(x: Tensor, sublayers: list[_Sublayer], norms: list[_Norm]) -> Tensor:
        pairs = list(zip(sublayers, norms[:-1], strict=True))[chosen]
        for sublayer, norm in pairs:
            x = block(x, sublayer, norm)
        return norms[-1](x) if last else x

    return answer


def _norm_each_time(x: Tensor, sublayers: list[_Sublayer], norms: list[_Norm]) -> Tensor:
    for sublayer, norm in zip(sublayers, norms[:-1], strict=True):
        x = norms[-1](_pre_norm(x, sublayer, norm))
    return x if sublayers else norms[-1](x)


def _side_by_side(x: Tensor, sublayers: list[_Sublayer], norms: list[_Norm]) -> Tensor:
    pairs = zip(sublayers, norms[:-1], strict=True)
    return norms[-1](x + sum(sublayer(norm(x)) for sublayer, norm in pairs))


def _last_block_alone(x: Tensor, sublayers: list[_Sublayer], norms: list[_Norm]) -> Tensor:
    return norms[-1](_pre_norm(x, sublayers[-1], norms[-2]) if sublayers else x)


def _one_norm(k: int) -> Callable[..., Tensor]:
    def answer(x: Tensor, sublayers: list[_Sublayer], norms: list[_Norm]) -> Tensor:
        for sublayer in sublayers:
            x = _pre_norm(x, sublayer, norms[k])
        return norms[-1](x)

    return answer


def _with_norms(order: Callable[[list[_Norm]], list[_Norm]]) -> Callable[..., Tensor]:
    """The norms in another order."""
    return lambda x, sublayers, norms: _stacked()(x, sublayers, order(norms))


_STACK_MISTAKES = (
    Mistake(
        "the final norm is missing. In a pre-norm stack nothing ever normalises the skip path: "
        "each sublayer adds to it, and it grows with depth. Who reads the sum at the end, and "
        "which of the norms have you not used?",
        (_stacked(last=False),),
    ),
    Mistake(_NORMED_SKIP, (_stacked(_skips_normed), _stacked(_skips_normed, last=False))),
    Mistake(
        "this is a stack of post-norm blocks.",
        (_stacked(_post_norm), _stacked(_post_norm, last=False)),
    ),
    Mistake(
        "the last norm comes after every block; it is for the end of the stack alone.",
        (_norm_each_time,),
    ),
    Mistake(
        "a norm is in another's place. The k-th block has the k-th of the list, and the one that "
        "is left over is for the end.",
        (_with_norms(lambda n: [*n[1:], n[0]]), _with_norms(lambda n: [*n[:-1], n[-2]])),
    ),
    Mistake(
        "the blocks run in the reverse order: which of the blocks reads x as it came?",
        (lambda x, sublayers, norms: _stacked()(x, sublayers[::-1], [*norms[-2::-1], norms[-1]]),),
    ),
    Mistake(
        "a stack without skip paths: each block adds what its sublayer says to what was there.",
        (
            _stacked(lambda x, sublayer, norm: sublayer(norm(x))),
            _stacked(lambda x, sublayer, norm: sublayer(norm(x)), last=False),
        ),
    ),
    Mistake(
        "only the last norm is used. What does each sublayer of a pre-norm block read?",
        (_stacked(lambda x, sublayer, norm: x + sublayer(x)),),
    ),
    Mistake(
        "all sublayers read the same x: does the second one know what the first has said?",
        (_side_by_side, _last_block_alone),
    ),
    Mistake(
        "one norm serves several sublayers; each has its own, in the order of the list.",
        (_one_norm(0), _one_norm(-1)),
    ),
    Mistake(
        "not all of the sublayers take part: where does the loop end?",
        (
            _stacked(chosen=slice(None, -1)),
            _stacked(chosen=slice(1, None)),
            _stacked(chosen=slice(None, 1)),
        ),
    ),
)


# 6.3 ---------------------------------------------------------------------------------


def _found(
    where: Callable[[Tensor], int | None], mode: Callable[[Decoder], bool] = lambda model: False
) -> Callable[..., Tensor]:
    """What a detector finds that looks elsewhere, or in another mode."""
    return lambda model, x: _position(where(_sees(model, x.shape[1], mode(model))))


def _noisy(mode: Callable[[Decoder], bool]) -> Callable[..., Tensor]:
    """A detector that takes dropout for a leak, and training for use."""

    def answer(model: Decoder, x: Tensor) -> Tensor:
        if mode(model) and model.dropout and x.shape[1] > 1:
            return _position(0)
        return _position(_first(_sees(model, x.shape[1], mode(model))))

    return answer


def _noisy_at_the_last(mode: Callable[[Decoder], bool]) -> Callable[..., Tensor]:
    """The same, which tries the last token as well, where there is no other to move."""
    return lambda model, x: (
        _position(0) if mode(model) and model.dropout else _noisy(mode)(model, x)
    )


def _came(model: Decoder) -> bool:
    return model.came_training


def _training(model: Decoder) -> bool:
    return True


def _neighbours(seen: Tensor) -> Tensor:
    """Of the future that is seen, only the very next."""
    return seen.tril(1)


def _only_column(j: int) -> Callable[[Tensor], int | None]:
    return lambda seen: _first(seen[:, [j]])


def _last_seeing(seen: Tensor) -> int | None:
    rows = seen.any(1).nonzero().flatten().tolist()
    return rows[-1] if rows else None


def _at_the_second(seen: Tensor) -> int | None:
    """The second token is changed first, and its own output looked at as well: a find."""
    return None if len(seen) == 1 else int(not seen[0, 1])


def _from_the_second(seen: Tensor) -> int | None:
    """All tokens from the second on are changed, and their own outputs looked at as well."""
    return None if len(seen) == 1 else min(1, len(seen) if (i := _first(seen)) is None else i)


def _from_the_second_on(seen: Tensor) -> int | None:
    """The loop begins at 1."""
    found = _first(seen[1:])
    return None if found is None else found + 1


_LEAK_MISTAKES = (
    Mistake(
        "dropout is active: the same input, asked twice, gives two answers, and every position "
        "seems to see the future. In which mode must a model be to say the same thing twice?",
        (
            _noisy(_came),
            _noisy(_training),
            _noisy_at_the_last(_came),
            _noisy_at_the_last(_training),
        ),
    ),
    Mistake(
        "the model is asked in training mode alone, where its mask is in place. It is used in "
        "another mode: which one, and who sees to it?",
        (_found(_first, _came), _found(_first, _training)),
    ),
    Mistake(
        "only the last token is changed, or all but one kept as they are: a position that sees "
        "another part of its future is never found. Which tokens are the future of position i?",
        (_found(_only_column(-1)),),
    ),
    Mistake(
        "only one output is looked at. The last position has no future that it could see, and the "
        "first is not the only one that may: where must you look?",
        (
            _found(lambda seen: None),
            _found(lambda seen: _first(seen[:1])),
        ),
    ),
    Mistake(
        "only the very next token is tried. A hole in a mask may lie farther off: which tokens "
        "are the future of position i?",
        (_found(lambda seen: _first(_neighbours(seen))),),
    ),
    Mistake(
        "the present counts as future: output i may change with token i. From where on do you "
        "change, and up to where do you look?",
        (
            lambda model, x: _position(0),
            lambda model, x: _position(0 if x.shape[1] > 1 else None),
            _found(_at_the_second),
            _found(_from_the_second),
        ),
    ),
    Mistake(
        "this is the token that is seen too early; asked for is the position that sees it.",
        (_found(lambda seen: _first(seen.T)),),
    ),
    Mistake(
        "this is the last position that sees its future; the first was asked for.",
        (_found(_last_seeing),),
    ),
    Mistake(
        "0 is a position, and false in Python: what does `found or None` give for it, or `if "
        "found`?",
        (_found(lambda seen: _first(seen) or None),),
    ),
    Mistake(
        "not all positions are tried: which is the first that has a future, and which the last?",
        (_found(_from_the_second_on), _found(lambda seen: _first(seen[:-2]))),
    ),
    Mistake(
        "the past is changed. That a position sees it is as it should be; may it see what comes "
        "after?",
        (lambda model, x: _position(1 if x.shape[1] > 1 else None),),
    ),
    Mistake(
        "positions count from 0.",
        (
            lambda model, x: _found(_first)(model, x) + 1,
            _found(lambda seen: None if _first(seen) is None else (_first(seen) or 0) + 1),
        ),
    ),
)

_MODE_CHANGED = (
    "the model came in {0} mode, and goes back in {1} mode. Whoever called you goes on with it "
    "and does not know. What do you have to remember before you change it?"
)

_NO_LENS = (
    "None allows every key to every new token. That is right for one new token and no more: here "
    "there are {0}, and the first sees all the others. How many keys may the first one see?"
)

_LENS_MISTAKES = (
    Mistake(
        "every new token may see all of them, in evaluation at least: its own future too. What "
        "does the mode have to do with who comes after whom?",
        (
            lambda batch, new, cached, training: torch.full((batch, new), float(cached + new)),
            lambda batch, new, cached, training: (
                _lens_allowed(batch, new, cached, training)
                if training
                else torch.full((batch, new), float(cached + new))
            ),
        ),
    ),
    Mistake(
        "the cached tokens are forgotten: the lengths count the new ones alone. What may a token "
        "read that was written long ago?",
        (lambda batch, new, cached, training: _lens_allowed(batch, new, 0, training),),
    ),
    Mistake(
        "one too few: a token may look at itself, and so the first of a sentence has one key.",
        (lambda batch, new, cached, training: _lens_allowed(batch, new, cached, training) - 1,),
    ),
    Mistake(
        "one too many: a token sees its successor. How many are there up to the first of the new "
        "ones, and with it?",
        (lambda batch, new, cached, training: _lens_allowed(batch, new, cached, training) + 1,),
    ),
    Mistake(
        "all new tokens may see as many keys as the first of them: each has one more than the one "
        "before.",
        (lambda batch, new, cached, training: torch.full((batch, new), float(cached + 1)),),
    ),
)


# 6.4 ---------------------------------------------------------------------------------


def _spread(
    share: Callable[[float, int], float],
    label: Callable[[float, float], float] = lambda smoothing, share: 1 - smoothing,
    *,
    on_padding: bool = False,
    at_padding: bool = False,
) -> Callable[..., Tensor]:
    """Another share for each word, and for the label; more of it on padding, or at padding."""

    def answer(labels: Tensor, vocab: int, smoothing: float, pad: int) -> Tensor:
        each = share(smoothing, vocab)
        target = torch.full((*labels.shape, vocab), each, dtype=torch.float64)
        if not on_padding:
            target[..., pad] = 0
        target.scatter_(-1, labels.unsqueeze(-1), label(smoothing, each))
        if not at_padding:
            target[labels == pad] = 0
        return target

    return answer


def _by_others(smoothing: float, vocab: int) -> float:
    return smoothing / (vocab - 2)


def _by_words(smoothing: float, vocab: int) -> float:
    return smoothing / (vocab - 1)


def _by_ids(smoothing: float, vocab: int) -> float:
    return smoothing / vocab


def _added(smoothing: float, share: float) -> float:
    """The label has its share besides."""
    return 1 - smoothing + share


#: PyTorch's own: epsilon for all ids, label and padding included.
_AS_PYTORCH = _spread(_by_ids, _added, on_padding=True)

_SMOOTH_MISTAKES = (
    Mistake(
        "padding gets a share: the model is told that a sentence may go on with padding. It is "
        "no word; among how many ids is epsilon to be shared?",
        tuple(
            _spread(share, label, on_padding=True, at_padding=at_padding)
            for at_padding in (False, True)
            for share, label in (
                (_by_ids, _added),
                (_by_ids, lambda s, each: 1 - s),
                (_by_words, lambda s, each: 1 - s),
                (_by_words, _added),
                (_by_others, lambda s, each: 1 - s),
                (_by_others, _added),
            )
        ),
    ),
    Mistake(
        "the rows do not sum to one: what is taken from one id is not all given to the others. "
        "(A test: `target.sum(-1)`.) Into how many parts is epsilon cut, and how many ids get one?",
        (
            _spread(_by_words),
            _spread(_by_ids),
            _spread(_by_ids, _added),
            _spread(lambda s, v: s),
            _spread(lambda s, v: s, _added),
            _spread(_by_others, _added),
            _spread(_by_others, lambda s, each: 1),
        ),
    ),
    Mistake(
        "positions that are padding get a distribution as well. There is nothing to predict "
        "there: all zeros, and they add nothing to a loss.",
        (_spread(_by_others, at_padding=True),),
    ),
    Mistake(
        "the label gets a share of epsilon besides its 1 - epsilon. That is a distribution too, "
        "and some programs use it; here epsilon is for the *other* words alone.",
        (_spread(_by_words, _added),),
    ),
    Mistake(
        "padding is taken to be the first id, or the last, whatever `pad` says.",
        (
            lambda labels, vocab, smoothing, pad: _smooth(labels, vocab, smoothing, 0),
            lambda labels, vocab, smoothing, pad: _smooth(labels, vocab, smoothing, vocab - 1),
        ),
    ),
    Mistake(
        "there is no smoothing in the targets: the label has all of it.",
        (
            _spread(lambda s, v: 0, lambda s, each: 1),
            _spread(lambda s, v: 0, lambda s, each: 1, at_padding=True),
        ),
    ),
    Mistake(
        "epsilon is taken from the label and given to nobody.",
        (_spread(lambda s, v: 0), _spread(lambda s, v: 0, at_padding=True)),
    ),
    Mistake(
        "epsilon goes to the label, and the rest to the others: the wrong way round.",
        (_spread(lambda s, v: (1 - s) / (v - 2), lambda s, each: s),),
    ),
)


def _scored(
    target: Callable[..., Tensor] = _smooth,
    *,
    by: Callable[[Tensor, int], Any] = lambda labels, pad: (labels != pad).sum(),
    log_p: Callable[[Tensor], Tensor] = lambda logits: logits.log_softmax(-1),
) -> Callable[..., Tensor]:
    """The loss with another target, another count, other logarithms."""

    def answer(logits: Tensor, labels: Tensor, smoothing: float, pad: int) -> Tensor:
        q = target(labels, logits.shape[-1], smoothing, pad)
        return -(q * log_p(logits)).sum() / by(labels, pad)

    return answer


def _each_sentence(logits: Tensor, labels: Tensor, smoothing: float, pad: int) -> Tensor:
    q = _smooth(labels, logits.shape[-1], smoothing, pad)
    sums = -(q * logits.log_softmax(-1)).sum((1, 2))
    return (sums / (labels != pad).sum(1)).mean()


def _divergence(logits: Tensor, labels: Tensor, smoothing: float, pad: int) -> Tensor:
    q = _smooth(labels, logits.shape[-1], smoothing, pad)
    entropy = torch.special.entr(q).sum() / (labels != pad).sum()
    return _smooth_loss(logits, labels, smoothing, pad) - entropy


_AT_PADDING = _spread(_by_others, at_padding=True)
_EVERYWHERE = _spread(_by_ids, _added, on_padding=True, at_padding=True)

_SMOOTH_LOSS_MISTAKES = (
    Mistake(
        "padding is in the mean: by how many labels do you divide, and are losses at padding "
        "among those that you add up?",
        (
            _scored(by=lambda labels, pad: labels.numel()),
            _scored(_AT_PADDING, by=lambda labels, pad: labels.numel()),
            _scored(_EVERYWHERE, by=lambda labels, pad: labels.numel()),
            _scored(_AT_PADDING),
            _scored(_EVERYWHERE),
        ),
    ),
    Mistake(
        "padding gets some of the mass, and the loss asks for it. (PyTorch's own "
        "`label_smoothing=` shares epsilon among all ids, padding and the label included.) Is "
        "your target the one of `smooth_labels`?",
        (_scored(_AS_PYTORCH), _scored(_spread(_by_words, on_padding=True))),
    ),
    Mistake(
        "there is no smoothing in it: this is the plain cross-entropy.",
        (
            lambda logits, labels, smoothing, pad: _smooth_loss(logits, labels, 0.0, pad),
            lambda logits, labels, smoothing, pad: (
                (1 - smoothing) * _smooth_loss(logits, labels, 0.0, pad)
            ),
            _scored(
                _spread(lambda s, v: 0, lambda s, each: 1, at_padding=True),
                by=lambda labels, pad: labels.numel(),
            ),
        ),
    ),
    Mistake(
        "the losses are added up, or divided by the number of sentences: a longer sentence then "
        "counts as a worse one.",
        (
            _scored(by=lambda labels, pad: 1),
            _scored(by=lambda labels, pad: len(labels)),
            _scored(by=lambda labels, pad: labels.shape[1]),
        ),
    ),
    Mistake(
        "each sentence is averaged by itself, and then the averages are: a word of a short "
        "sentence counts more.",
        (_each_sentence,),
    ),
    Mistake(
        "the vocabulary is in the mean as well: the sum over the words is the loss of *one* "
        "label, not of many.",
        (
            lambda logits, labels, smoothing, pad: (
                _smooth_loss(logits, labels, smoothing, pad) / logits.shape[-1]
            ),
            lambda logits, labels, smoothing, pad: _scored(by=lambda labels, pad: logits.numel())(
                logits, labels, smoothing, pad
            ),
        ),
    ),
    Mistake(
        "the softmax runs over the positions: each of them chooses among words, so along which "
        "axis do the probabilities sum to 1?",
        (_scored(log_p=lambda logits: logits.log_softmax(1)),),
    ),
    Mistake(
        "padding is taken to have the id 0, whatever `pad` says.",
        (lambda logits, labels, smoothing, pad: _smooth_loss(logits, labels, smoothing, 0),),
    ),
    Mistake(
        "the entropy of the target is taken away: that is the Kullback-Leibler divergence, which "
        "has the same gradient. Asked for was the cross-entropy.",
        (_divergence,),
    ),
    Mistake(
        "right, but for the sign: a loss is small where the model is good.",
        (lambda **given: -_smooth_loss(**given),),
    ),
    Mistake(
        "the logits are used as if they were logarithms of probabilities. What do their "
        "exponentials sum to?",
        (_scored(log_p=lambda logits: logits),),
    ),
    Mistake(
        "the logarithm of a probability that has become 0 is infinite. `log_softmax` does both in "
        "one, and does not overflow.",
        (_scored(log_p=lambda logits: logits.float().softmax(-1).log().double()),),
    ),
)


# 6.5 ---------------------------------------------------------------------------------


def _cached(
    place: Callable[[int], int | None] = lambda t: t,
    *,
    project: Callable[[Maps, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None,
    keep: Callable[[list[Tensor]], list[Tensor]] = lambda entries: entries,
    scale: float = 1.0,
    axis: int = 1,
    weights: bool = False,
) -> Callable[..., Tensor]:
    """A decoder with a cache that goes wrong in one way.

    Args:
        place: Step -> the position that is taken for it; None adds nothing.
        project: Maps, the token, the token at its position -> query, key, value.
        keep: What is left of the entries of the cache, oldest first, when one is attended to.
        scale: A factor on the scores, besides 1 / sqrt(d).
        axis: The softmax's.
        weights: Whether scores are used without a softmax.
    """

    def answer(tokens: Tensor, parents: _Parents, maps: Maps) -> Tensor:
        outputs = []
        for past in _histories(tokens, parents):
            entries = []
            for t in range(past.shape[1]):
                at = place(t)
                x = past[:, t] if at is None else past[:, t] + maps.positions[at]
                maps_of = (maps.W_q(x), maps.W_k(x), maps.W_v(x))
                entries.append(maps_of if project is None else project(maps, past[:, t], x))
            query = entries[-1][0]
            keys = keep([key for _, key, _ in entries])
            values = keep([value for _, _, value in entries])
            if not keys:
                outputs.append(torch.zeros_like(query))
                continue
            key, value = torch.stack(keys, 1), torch.stack(values, 1)
            scores = scale * torch.einsum("bd,bjd->bj", query, key) / query.shape[1] ** 0.5
            alpha = scores if weights else scores.softmax(axis)
            outputs.append(torch.einsum("bj,bjd->bd", alpha, value))
        return torch.stack(outputs)

    return answer


def _newest(entries: list[Tensor]) -> list[Tensor]:
    return entries[-1:]


def _bare_query(maps: Maps, token: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return maps.W_q(token), maps.W_k(x), maps.W_v(x)


_CACHE_MISTAKES = (
    Mistake(
        "positions restart at every step: the new token always gets the same position, whatever "
        "was written before. Where do you see how far the sentence has come?",
        (_cached(lambda t: 0), _cached(lambda t: 1)),
    ),
    Mistake(
        "the last key is overwritten: the cache does not grow, and the token attends to itself. "
        "What becomes of the keys before?",
        (
            _cached(lambda t: min(t, 1), keep=_newest),
            _cached(lambda t: 0, keep=_newest),
            _cached(keep=_newest),
        ),
    ),
    Mistake(
        "the new token is not among the keys: it may look at itself, as in the full layer. What "
        "comes first, appending or attending?",
        (_cached(keep=lambda entries: entries[:-1]),),
    ),
    Mistake(
        "positions begin at 1: the first token of a sentence stands at position 0. Is the length "
        "taken after the new token is in the cache?",
        (_cached(lambda t: t + 1),),
    ),
    Mistake(
        "no position is added: in which order do the keys in the cache come, and how would the "
        "query know?",
        (_cached(lambda t: None),),
    ),
    Mistake(
        "the position reaches some of query, key and value, and not all. The position is added to "
        "the token, and then the token is projected three times.",
        (
            _cached(project=_bare_query),
            _cached(project=lambda maps, x, at: (maps.W_q(at), maps.W_k(x), maps.W_v(x))),
            _cached(project=lambda maps, x, at: (maps.W_q(at), maps.W_k(at), maps.W_v(x))),
            _cached(project=lambda maps, x, at: (maps.W_q(at), maps.W_k(x), maps.W_v(at))),
        ),
    ),
    Mistake(
        "the position is added after the projection: z = x + p comes first, and then all three "
        "maps see z.",
        (
            _cached(
                project=lambda maps, x, at: (
                    maps.W_q(x) + at - x,
                    maps.W_k(x) + at - x,
                    maps.W_v(x) + at - x,
                )
            ),
            _cached(
                project=lambda maps, x, at: (
                    maps.W_q(x) + at - x,
                    maps.W_k(x) + at - x,
                    maps.W_v(x),
                )
            ),
        ),
    ),
    Mistake(
        "the maps are mixed up, or one of them is missing: queries are made by W_q, keys by W_k, "
        "values by W_v, each of z.",
        tuple(
            _cached(project=project)
            for project in (
                lambda maps, x, at: (maps.W_k(at), maps.W_q(at), maps.W_v(at)),
                lambda maps, x, at: (maps.W_q(at), maps.W_k(at), maps.W_k(at)),
                lambda maps, x, at: (maps.W_q(at), maps.W_v(at), maps.W_k(at)),
                lambda maps, x, at: (maps.W_q(at), maps.W_v(at), maps.W_v(at)),
                lambda maps, x, at: (maps.W_q(at), maps.W_k(at), at),
                lambda maps, x, at: (maps.W_q(at), at, at),
                lambda maps, x, at: (at, at, at),
            )
        ),
    ),
    Mistake(
        "positions are one too small: the second token gets that of the first.",
        (_cached(lambda t: t - 1), _cached(lambda t: max(t - 1, 0))),
    ),
    Mistake(
        "the token is added to the output, or is the output. Residual paths belong to the block "
        "around this layer; asked for is what the layer says.",
        (
            lambda tokens, parents, maps: _cached()(tokens, parents, maps) + tokens,
            lambda tokens, parents, maps: tokens,
        ),
    ),
    Mistake(
        "all keys weigh the same: where does the query come in?",
        (_cached(scale=0.0),),
    ),
    Mistake(
        "the scores are not divided by sqrt(d), or by something else than that.",
        tuple(
            (
                lambda tokens, parents, maps, power=power: _cached(scale=tokens.shape[2] ** power)(
                    tokens, parents, maps
                )
            )
            for power in (0.5, -0.5)
        ),
    ),
    Mistake(
        "the softmax runs over the batch: the sentences compete for weight. Along which axis do "
        "the keys of one sentence lie?",
        (_cached(axis=0),),
    ),
    Mistake(
        "the scores are used as weights as they are. What do the weights of a step sum to?",
        (_cached(weights=True),),
    ),
)

_PROJECTED_AGAIN = (
    "the numbers are right, but {0} projected {1} tokens to write {2}. The past does not change: "
    "what should lie in the cache, so that each token is projected once?"
)

_NOT_GROWN = (
    "the outputs are right, but as {0} it returned {1} entries after {2} steps. What will the next "
    "step find there?"
)


def _both(reorder: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The same done to keys and values."""
    return lambda keys, values, parents: torch.stack(
        [reorder(keys, parents), reorder(values, parents)]
    )


def _scattered(part: Tensor, parents: Tensor) -> Tensor:
    out = torch.zeros_like(part)
    out[parents] = part[: len(parents)]
    return out[: len(parents)]


def _overwritten(part: Tensor, parents: Tensor) -> Tensor:
    out = part.clone()
    for k, parent in enumerate(parents.tolist()):
        out[k] = out[parent]
    return out[: len(parents)]


_REORDER_MISTAKES = (
    Mistake(
        "the beams are not reordered: each goes on with the past of whoever sat there before it.",
        (_both(lambda part, parents: part), _both(lambda part, parents: part[: len(parents)])),
    ),
    Mistake(
        "only one of keys and values is reordered: weights and what they weigh now come from two "
        "sentences.",
        (
            lambda keys, values, parents: torch.stack([keys[parents], values]),
            lambda keys, values, parents: torch.stack([keys, values[parents]]),
        ),
    ),
    Mistake(
        "keys and values have changed places, or one of them is there twice.",
        (
            lambda keys, values, parents: torch.stack([values[parents], keys[parents]]),
            lambda keys, values, parents: torch.stack([keys[parents], keys[parents]]),
            lambda keys, values, parents: torch.stack([values[parents], values[parents]]),
        ),
    ),
    Mistake(
        "a parent is read after it was overwritten: beam 0 is written first, and may be somebody's "
        "parent. From what do you copy, and to what?",
        (_both(_overwritten),),
    ),
    Mistake(
        "the steps are reordered, not the beams: along which axis do the sentences lie?",
        (_both(lambda part, parents: part[:, parents]),),
    ),
    Mistake(
        "the other way round: `parents` says for each new beam where it *comes from*, not where "
        "each old one goes.",
        (_both(_scattered), _both(lambda part, parents: part[parents.argsort()])),
    ),
    Mistake(
        "the order of the new beams is lost: the k-th of them goes on from `parents[k]`.",
        (_both(lambda part, parents: part[parents.sort().values]),),
    ),
)


# 6.6 ---------------------------------------------------------------------------------


def _dx(
    *,
    mean: Callable[[Tensor], Tensor] = lambda g: g.mean(1, keepdim=True),
    product: Callable[[Tensor], Tensor] = lambda gx: gx.mean(1, keepdim=True),
    weighted: bool = True,
    unbiased: bool = False,
    outer: Callable[[Tensor], Tensor] = lambda rstd: rstd,
    hat: Callable[[Tensor, Tensor], Tensor] = lambda x, normed: normed,
    eps_counts: bool = True,
) -> Callable[..., Tensor]:
    """What rstd (h - mean(h) - x_hat mean(h x_hat)) is, where one part of it is another."""

    def answer(x: Tensor, weight: Tensor, grad: Tensor, eps: float) -> Tensor:
        var = x.var(1, keepdim=True, correction=int(unbiased))
        rstd = (var + (eps if eps_counts else 0)).rsqrt()
        x_hat = hat(x, (x - x.mean(1, keepdim=True)) * rstd)
        h = grad * weight if weighted else grad
        return outer(rstd) * (h - mean(h) - x_hat * product(h * x_hat))

    return answer


def _none(h: Tensor) -> Tensor:
    return h.new_zeros(1)


def _gain_last(x: Tensor, weight: Tensor, grad: Tensor, eps: float) -> Tensor:
    return weight * _dx(weighted=False)(x, weight, grad, eps)


def _gain_missing_in_means(x: Tensor, weight: Tensor, grad: Tensor, eps: float) -> Tensor:
    rstd = (x.var(1, keepdim=True, correction=0) + eps).rsqrt()
    return _dx(weighted=False)(x, weight, grad, eps) + rstd * grad * (weight - 1)


def _no_hat_in_front(x: Tensor, weight: Tensor, grad: Tensor, eps: float) -> Tensor:
    rstd = (x.var(1, keepdim=True, correction=0) + eps).rsqrt()
    h = grad * weight
    h_hat = h * F.layer_norm(x, x.shape[1:], eps=eps)
    return rstd * (h - h.mean(1, keepdim=True) - h_hat.mean(1, keepdim=True))


def _weight_of(
    factor: Callable[[Tensor, Tensor, Tensor], Tensor],
    reduce: Callable[[Tensor], Tensor] = lambda each: each.sum(0),
) -> Callable[..., Tensor]:
    """A factor of grad, made of x, x_hat and the weight, then reduced: dweight or dbias."""

    def answer(x: Tensor, weight: Tensor, grad: Tensor, eps: float) -> Tensor:
        rstd = (x.var(1, keepdim=True, correction=0) + eps).rsqrt()
        return reduce(grad * factor(x, (x - x.mean(1, keepdim=True)) * rstd, weight))

    return answer


def _unbiased_hat(x: Tensor, weight: Tensor, grad: Tensor, eps: float) -> Tensor:
    rstd = (x.var(1, keepdim=True) + eps).rsqrt()
    return (grad * (x - x.mean(1, keepdim=True)) * rstd).sum(0)


_DX_MISTAKES = (
    Mistake(
        "mean and variance are both taken to be constant. But x_k moves them, and through them "
        "every output of its row. (A test: add the same number to all features of a token. How "
        "far may the output move?)",
        (_dx(mean=_none, product=_none),),
    ),
    Mistake(
        "the mean is taken to be constant. Each x_k moves it by 1/d, and so all outputs of the "
        "row: what must the gradients of a row sum to, since adding the same number to all "
        "features changes nothing?",
        (_dx(mean=_none),),
    ),
    Mistake(
        "the variance is taken to be constant. A feature that moves away from the mean makes the "
        "divisor larger, for the whole row: which term is that?",
        (_dx(product=_none),),
    ),
    Mistake(
        "the variance is divided by d - 1 here; in the forward pass it is divided by d.",
        (
            _dx(unbiased=True),
            _dx(unbiased=True, product=lambda gx: gx.sum(1, keepdim=True) / (gx.shape[1] - 1)),
        ),
    ),
    Mistake(
        "the gain is missing: what reaches x_hat of the gradient is not g itself. By what is "
        "x_hat multiplied?",
        (_dx(weighted=False),),
    ),
    Mistake(
        "sums stand where means belong, in one term or in both: where has the 1/d gone?",
        (
            _dx(
                mean=lambda g: g.sum(1, keepdim=True),
                product=lambda gx: gx.sum(1, keepdim=True),
            ),
            _dx(mean=lambda g: g.sum(1, keepdim=True)),
            _dx(product=lambda gx: gx.sum(1, keepdim=True)),
        ),
    ),
    Mistake(
        "the means run over the tokens: each token is normalised by itself.",
        (
            _dx(
                mean=lambda g: g.mean(0, keepdim=True),
                product=lambda gx: gx.mean(0, keepdim=True),
            ),
            _dx(mean=lambda g: g.mean(0, keepdim=True)),
            _dx(product=lambda gx: gx.mean(0, keepdim=True)),
        ),
    ),
    Mistake(
        "the means have lost their axis, and `[n]` meets `[n, d]` as if it had a number a "
        "feature. Which shape must they have?",
        (_dx(mean=lambda g: g.mean(1), product=lambda gx: gx.mean(1)),),
    ),
    Mistake(
        "the divisor is missing, or stands there with another power: x_hat is x over the standard "
        "deviation, so by what is a gradient by x divided?",
        (
            _dx(outer=torch.ones_like),
            _dx(outer=lambda rstd: rstd**2),
            _dx(outer=lambda rstd: 1 / rstd),
        ),
    ),
    Mistake(
        "x, or x - mu, stands where x_hat belongs.",
        (_dx(hat=lambda x, normed: x), _dx(hat=lambda x, normed: x - x.mean(1, keepdim=True))),
    ),
    Mistake(
        "as dx there is something of the forward pass: x itself, x_hat, or the output. A gradient "
        "by x says how the *loss* moves: where does grad come in?",
        (
            lambda x, weight, grad, eps: x,
            lambda x, weight, grad, eps: F.layer_norm(x, x.shape[1:], eps=eps),
            lambda x, weight, grad, eps: F.layer_norm(x, x.shape[1:], weight, eps=eps),
        ),
    ),
    Mistake(
        "this is the gradient by y, or the one that reaches x_hat: the way from there back to x is "
        "missing.",
        (
            lambda x, weight, grad, eps: grad,
            lambda x, weight, grad, eps: grad * weight,
        ),
    ),
    Mistake(
        "a term has the wrong sign: if a feature grows, so do the mean, which is taken away, and "
        "the divisor. Do they make the outputs larger, or smaller?",
        (
            _dx(
                mean=lambda g: -g.mean(1, keepdim=True),
                product=lambda gx: -gx.mean(1, keepdim=True),
            ),
            _dx(mean=lambda g: -g.mean(1, keepdim=True)),
            _dx(product=lambda gx: -gx.mean(1, keepdim=True)),
        ),
    ),
    Mistake(
        "the variance's term is twice too large, or half: the square has a 2 in its derivative, "
        "and the root a 1/2.",
        (
            _dx(product=lambda gx: 2 * gx.mean(1, keepdim=True)),
            _dx(product=lambda gx: gx.mean(1, keepdim=True) / 2),
        ),
    ),
    Mistake(
        "the gain comes in too late: the means are of h = g w, and not of g.",
        (_gain_last, _gain_missing_in_means),
    ),
    Mistake(
        "the variance's term has no x_hat in front: features that lie on the mean do not move the "
        "variance, and those far off do.",
        (_no_hat_in_front,),
    ),
    Mistake(
        "eps is missing: it was added to the variance in the forward pass.",
        (_dx(eps_counts=False),),
    ),
    Mistake(
        "right, but for the sign.",
        (lambda **given: -_norm_backward(**given)[0],),
    ),
)

_DGAIN_MISTAKES = (
    Mistake(
        "this takes x as it came, or x less its mean; the gain multiplies what has been "
        "normalised.",
        (
            _weight_of(lambda x, x_hat, weight: x),
            _weight_of(lambda x, x_hat, weight: x - x.mean(1, keepdim=True)),
        ),
    ),
    Mistake(
        "as dweight there is the gradient of the shift. What does the gain multiply? (Or have the "
        "second and the third of your results changed places?)",
        (_weight_of(lambda x, x_hat, weight: torch.ones_like(x)),),
    ),
    Mistake(
        "as dweight there is the gain itself, or a sum of x_hat: how does the loss come in?",
        (
            lambda x, weight, grad, eps: weight,
            lambda x, weight, grad, eps: F.layer_norm(x, x.shape[1:], eps=eps).sum(0),
        ),
    ),
    Mistake(
        "the tokens are averaged. One gain serves all tokens, and their gradients add up.",
        (_weight_of(lambda x, x_hat, weight: x_hat, lambda each: each.mean(0)),),
    ),
    Mistake(
        "the gain is in its own gradient: what is d(w x) / dw?",
        (_weight_of(lambda x, x_hat, weight: x_hat * weight),),
    ),
    Mistake(
        "the sum for the gain runs over the features: each feature has a gain of its own, and "
        "which axis do all tokens lie along?",
        (_weight_of(lambda x, x_hat, weight: x_hat, lambda each: each.sum(1)),),
    ),
    Mistake(
        "the variance in x_hat is divided by d - 1; the forward pass divides by d.",
        (_unbiased_hat,),
    ),
)

_DSHIFT_MISTAKES = (
    Mistake(
        "grad is not in the gradient of the shift: y moves by as much as the shift does; and the "
        "loss?",
        (
            lambda x, weight, grad, eps: torch.ones_like(weight),
            lambda x, weight, grad, eps: torch.full_like(weight, len(x)),
            lambda x, weight, grad, eps: weight,
        ),
    ),
    Mistake(
        "the gain is in the gradient of the shift, but the shift is added after it.",
        (_weight_of(lambda x, x_hat, weight: weight.expand_as(x)),),
    ),
    Mistake(
        "averaged over the tokens: one shift serves all of them, and the gradients add up.",
        (_weight_of(lambda x, x_hat, weight: torch.ones_like(x), lambda each: each.mean(0)),),
    ),
    Mistake(
        "the sum for the shift runs over the features: each feature has a shift of its own.",
        (_weight_of(lambda x, x_hat, weight: torch.ones_like(x), lambda each: each.sum(1)),),
    ),
    Mistake(
        "x_hat is in the gradient of the shift; what does the output do if the shift grows by 1?",
        (_weight_of(lambda x, x_hat, weight: x_hat),),
    ),
)


# 6.7 ---------------------------------------------------------------------------------


def _tile_norm(
    *,
    mean_by: Callable[[int, int], int] = lambda dim, block: dim,
    var_by: Callable[[int, int], int] = lambda dim, block: dim,
    empty: bool = False,
    divisor: Callable[[Tensor, float], Tensor] = lambda var, eps: (var + eps).sqrt(),
    centre: bool = True,
    gain: bool = True,
    shift: bool = True,
) -> Callable[..., Tensor]:
    """What a program stores that goes wrong in one way; ``empty`` lanes count in the variance."""

    def answer(x: Tensor, weight: Tensor, bias: Tensor, block: int, eps: float) -> Tensor:
        dim = x.shape[1]
        mean = x.sum(1, keepdim=True) / mean_by(dim, block)
        squares = (x - mean).square().sum(1, keepdim=True)
        if empty:
            squares = squares + (block - dim) * mean.square()
        x_hat = (x - mean if centre else x) / divisor(squares / var_by(dim, block), eps)
        return x_hat * (weight if gain else 1) + (bias if shift else 0)

    return answer


def _block_wide(dim: int, block: int) -> int:
    return block


_NORM_ROWS_MISTAKES = (
    Mistake(
        "lanes without a feature are in the variance: they were loaded as 0, and 0 minus the mean "
        "is not 0. What must they hold *after* the mean is taken away?",
        (_tile_norm(empty=True), _tile_norm(empty=True, var_by=_block_wide)),
    ),
    Mistake(
        "a sum is divided by the lanes of the tile: how many of them hold a feature?",
        (
            _tile_norm(mean_by=_block_wide, var_by=_block_wide),
            _tile_norm(mean_by=_block_wide, var_by=_block_wide, empty=True),
            _tile_norm(mean_by=_block_wide),
            _tile_norm(var_by=_block_wide),
            _tile_norm(mean_by=_block_wide, empty=True),
        ),
    ),
    Mistake(
        "a load has a mask and no other=. On a GPU the lanes that the mask leaves out then hold "
        "anything, and here NaN. As what should they be loaded, for a sum to pass them over?",
        (
            lambda x, weight, bias, block, eps: (
                _norm_rows(x, weight, bias, block, eps) * (torch.nan if block > x.shape[1] else 1)
            ),
        ),
    ),
    Mistake(
        "the sum of squares is divided by DIM - 1; layer normalisation divides by DIM.",
        (_tile_norm(var_by=lambda dim, block: dim - 1),),
    ),
    Mistake(
        "eps stands outside the root: it is added to the variance.",
        (_tile_norm(divisor=lambda var, eps: var.sqrt() + eps),),
    ),
    Mistake(
        "eps is missing, or always the same.",
        (_tile_norm(divisor=lambda var, eps: var.sqrt()),),
    ),
    Mistake(
        "a sum stands where a mean belongs: where has the division by DIM gone?",
        (
            _tile_norm(var_by=lambda dim, block: 1),
            _tile_norm(mean_by=lambda dim, block: 1),
            _tile_norm(mean_by=lambda dim, block: 1, var_by=lambda dim, block: 1),
        ),
    ),
    Mistake(
        "every program reads the first row: where does row i begin?",
        (lambda x, **given: _norm_rows(x[:1].expand_as(x), **given),),
    ),
    Mistake(
        "gain and shift are exchanged, or the shift is added before the gain multiplies: look at "
        "the formula again.",
        (
            lambda x, weight, bias, block, eps: _norm_rows(x, bias, weight, block, eps),
            lambda x, weight, bias, block, eps: _norm_rows(x, weight, weight, block, eps),
            lambda x, weight, bias, block, eps: _norm_rows(x, weight, bias * weight, block, eps),
        ),
    ),
    Mistake(
        "the mean is taken away from what is stored, and not from what is squared: a variance is "
        "the mean square of what?",
        (
            lambda x, weight, bias, block, eps: (
                (x - x.mean(1, keepdim=True))
                / (x.square().mean(1, keepdim=True) + eps).sqrt()
                * weight
                + bias
            ),
        ),
    ),
    Mistake(
        "divided by the variance, without its root.",
        (_tile_norm(divisor=lambda var, eps: var + eps),),
    ),
    Mistake(
        "the mean is not taken away from what is stored.",
        (_tile_norm(centre=False),),
    ),
    Mistake(
        "gain or shift is missing: which tensors have you not loaded?",
        (_tile_norm(gain=False), _tile_norm(shift=False), _tile_norm(gain=False, shift=False)),
    ),
)

_CANCELLED = (
    "the formula is right, and its digits are gone: where the mean is large, the mean of the "
    "squares and the square of the mean are two large numbers that are nearly alike, and float32 "
    "keeps seven digits of each. The row is in registers: what keeps you from going over it a "
    "second time, once the mean is known?"
)

_NORM_ROWS_WORDS = Words(
    outside="a load reads past the end of the rows, of the gain or of the shift. On a GPU that is "
    "somebody else's memory. Which lanes of the last row hold a number, and where do you tell "
    "`tl.load`?",
    foreign="On a GPU all programs run at once: what would be left in that slot? Program i owns "
    "row i: where does it begin, and how long is it?",
)


# 6.8 ---------------------------------------------------------------------------------


def _tile_by_tile(
    count: Callable[[int, int, int, int], int] = _needed,
    seen: Callable[[Tensor, Tensor, int, int], Tensor] = lambda i, j, last, block_m: j <= i,
    *,
    hidden: float = -torch.inf,
    empty: float = torch.nan,
    tail: bool = True,
    rescale: bool = True,
    finite: bool = False,
) -> Callable[..., Tensor]:
    """The streaming kernel with another bound, another mask.

    Args:
        count: (tile of queries, length, block_m, block_n) -> tiles of keys that it reads.
        seen: (query i ``[rows, 1]``, key j ``[1, lanes]``, the first key of the last tile that
            is read, block_m) -> which pairs count.
        hidden: What a score is replaced by that does not count.
        empty: What comes out where no key was read.
        tail: Whether lanes behind the last key are hidden.
        rescale: Whether old sums are rescaled when the maximum grows.
        finite: Whether a tile without any key that counts leaves the sums as they are, and
            does not turn them into NaN.
    """

    def answer(query: Tensor, key: Tensor, value: Tensor, block_m: int, block_n: int) -> Tensor:
        n, d = query.shape
        output = torch.full_like(value, empty)
        for tile in range(-(-n // block_m)):
            rows = torch.arange(tile * block_m, min((tile + 1) * block_m, n))
            tiles = min(count(tile, n, block_m, block_n), -(-n // block_n))
            if tiles <= 0:
                continue
            top = query.new_full((len(rows), 1), -torch.inf)
            total, sums = torch.zeros_like(top), query.new_zeros(len(rows), d)
            for start in range(0, tiles * block_n, block_n):
                lanes = torch.arange(start, start + block_n)
                inside = (lanes < n)[:, None]
                k, v = (
                    torch.where(inside, part[lanes.clamp_max(n - 1)], 0) for part in (key, value)
                )
                counts = seen(rows[:, None], lanes[None], (tiles - 1) * block_n, block_m)
                scores = (query[rows] @ k.T / d**0.5).masked_fill(~counts, hidden)
                if tail:
                    scores = scores.masked_fill(lanes >= n, -torch.inf)
                new = torch.maximum(top, scores.amax(1, keepdim=True))
                p = (scores - new).exp().masked_fill(scores == -torch.inf, 0)
                keep = (top - new).exp() if rescale or start == 0 else torch.ones_like(top)
                keep = keep.nan_to_num(1.0) if finite else keep
                total = total * keep + p.sum(1, keepdim=True)
                sums = sums * keep + p @ v
                top = new
            output[rows] = torch.where(total == 0, empty, sums / total)
        return output

    return answer


def _either_way(count: Callable[[int, int, int, int], int]) -> tuple[Callable[..., Tensor], ...]:
    """Where no tile is left to read, NaN or 0."""
    return _tile_by_tile(count), _tile_by_tile(count, empty=0.0)


def _all_tiles(tile: int, n: int, block_m: int, block_n: int) -> int:
    return -(-n // block_n)


def _every_pair(i: Tensor, j: Tensor, last: int, block_m: int) -> Tensor:
    return (i + j) > -1


def _up_to_the_first_row(i: Tensor, j: Tensor, last: int, block_m: int) -> Tensor:
    """All keys of a tile that begins with the first query, or before."""
    return (j <= i) | (j[0, 0] <= i[0, 0])


def _before_the_first_row(i: Tensor, j: Tensor, last: int, block_m: int) -> Tensor:
    """All keys of a tile that begins before the first query."""
    return (j <= i) | (j[0, 0] < i[0, 0])


def _from_the_diagonal(
    query: Tensor, key: Tensor, value: Tensor, block_m: int, block_n: int
) -> Tensor:
    """Keys from the first of the program's own queries on."""
    place = torch.arange(len(query))
    seen = (place <= place[:, None]) & (place >= place[:, None] // block_m * block_m)
    scores = query @ key.T / query.shape[1] ** 0.5
    return scores.masked_fill(~seen, -torch.inf).softmax(1) @ value


_CAUSAL_KERNEL_MISTAKES = (
    Mistake(
        "one tile short: the queries of a tile do not reach their own keys on the diagonal. Which "
        "is the last key that the *last* query of the tile may see, and does your bound round up?",
        (
            *_either_way(lambda t, n, bm, bn: -(-t * bm // bn)),
            *_either_way(lambda t, n, bm, bn: t * bm // bn),
            *_either_way(lambda t, n, bm, bn: min((t + 1) * bm, n) // bn),
            *_either_way(lambda t, n, bm, bn: (t + 1) * bm // bn),
            *_either_way(lambda t, n, bm, bn: _needed(t, n, bm, bn) - 1),
            *_either_way(lambda t, n, bm, bn: -(-(t * bm + 1) // bn)),
            *_either_way(lambda t, n, bm, bn: -(-(min((t + 1) * bm, n) - 1) // bn)),
        ),
    ),
    Mistake(
        "tiles of queries and of keys are counted as if they were equally large. The bound is a "
        "number of keys: at which key does the loop end, in tokens?",
        (
            *_either_way(lambda t, n, bm, bn: t + 1),
            *_either_way(lambda t, n, bm, bn: -(-(t + 1) * bn // bn)),
        ),
    ),
    Mistake(
        "the diagonal is not masked: in the tiles that it crosses, queries read keys that come "
        "after them. The bound keeps whole tiles away; who keeps single pairs away?",
        (
            _tile_by_tile(seen=_every_pair),
            _tile_by_tile(seen=_every_pair, tail=False),
        ),
    ),
    Mistake(
        "every query reads every key: neither bound nor mask.",
        (
            _tile_by_tile(_all_tiles, _every_pair),
            _tile_by_tile(_all_tiles, _every_pair, tail=False),
        ),
    ),
    Mistake(
        "only the last tile is masked. Where tiles of keys are smaller than tiles of queries, the "
        "diagonal crosses several: from which key on must one look?",
        (
            _tile_by_tile(seen=lambda i, j, last, bm: (j <= i) | (j < last)),
            _tile_by_tile(seen=lambda i, j, last, bm: (j <= i) | (j < last), tail=False),
        ),
    ),
    Mistake(
        "a query does not see its own key: the diagonal belongs to the past.",
        (
            _tile_by_tile(seen=lambda i, j, last, bm: j < i),
            _tile_by_tile(seen=lambda i, j, last, bm: j < i, empty=0.0),
        ),
    ),
    Mistake(
        "the comparison is the wrong way round: of the tiles that are read, the future counts.",
        (
            *(
                _tile_by_tile(count, lambda i, j, last, bm: j >= i, finite=finite)
                for count in (_needed, _all_tiles)
                for finite in (False, True)
            ),
        ),
    ),
    Mistake(
        "hidden scores are set to 0, and e^0 = 1: they count. Which score has an exponential of 0?",
        (
            _tile_by_tile(hidden=0.0, tail=False),
            _tile_by_tile(hidden=0.0),
            _tile_by_tile(_all_tiles, hidden=0.0, tail=False),
        ),
    ),
    Mistake(
        "rows are compared as they are counted within their tile. Which query is row 0 of "
        "program 2?",
        (
            _tile_by_tile(seen=lambda i, j, last, bm: j <= i % bm),
            _tile_by_tile(_all_tiles, lambda i, j, last, bm: j <= i % bm),
        ),
    ),
    Mistake(
        "rows and columns are both compared as they are counted within their tiles: tiles are as "
        "large as they are, and lie where they lie. Which token is lane 0 of the second tile?",
        (_tile_by_tile(seen=lambda i, j, last, bm: j - j[0, 0] <= i - i[0, 0]),),
    ),
    Mistake(
        "the loop begins at the diagonal: where is the past?",
        (_from_the_diagonal,),
    ),
    Mistake(
        "a tile that the diagonal crosses is not masked: it does so as soon as its *last* key "
        "comes after the first query.",
        (
            _tile_by_tile(seen=_up_to_the_first_row),
            _tile_by_tile(seen=_up_to_the_first_row, tail=False),
            _tile_by_tile(seen=_before_the_first_row),
            _tile_by_tile(seen=_before_the_first_row, tail=False),
        ),
    ),
    Mistake(
        "sums that were made with an old maximum are added to new ones as they are: by what must "
        "they be multiplied when the maximum grows?",
        (_tile_by_tile(rescale=False),),
    ),
)

_FUTURE_LOADED = (
    "the numbers are right, and {0} that no query of its tile may see: program {1} reads keys up "
    "to number {2}, and its last query is number {3}. Masked keys cost as much to load as others. "
    "Where could its loop end?"
)

_CAUSAL_KERNEL_WORDS = Words(
    outside="a load reads past the end of the queries, keys or values. On a GPU that is somebody "
    "else's memory. Which rows of the last tile exist? Tell `tl.load`, with mask= and other=.",
    foreign="On a GPU all programs run at once: what would be left in that slot? Which queries "
    "are this program's own, and which rows of its tile exist?",
)
