"""Chapter 2's exercises: the likely mistakes, and what is said of each.

A mistake is the formula that it computes, and the message that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Mistake
from attn_course.exercises.kernels import Words
from attn_course.exercises.scoring_cases import (
    _activated,
    _backward,
    _cost,
    _inside,
    _moved,
    _norms,
    _number,
    _products,
    _row_backward,
    _row_weights,
    _short_scores,
)

# 2.1 ---------------------------------------------------------------------------------


def _naive(scores: Tensor, axis: int) -> Tensor:
    exponentials = scores.exp()
    return exponentials / exponentials.sum(axis, keepdim=True)


_ATTEND_MISTAKES = (
    Mistake(
        "the weights sum to one over the queries, not over the keys. Each query shares out its "
        "own attention: along which axis of [batch, n, m] do its weights lie?",
        (lambda scores, value: scores.softmax(1) @ value,),
    ),
    Mistake(
        "the weights sum to one over the batch: sentences that happened to be computed together "
        "compete for attention. What must one sentence know of the next?",
        (lambda scores, value: scores.softmax(0) @ value,),
    ),
    Mistake(
        "the scores are flattened before the softmax: all pairs of a sentence, or of the whole "
        "batch, share one total of one. How much attention has each query to give?",
        (
            lambda scores, value: scores.flatten(1).softmax(1).view_as(scores) @ value,
            lambda scores, value: scores.flatten().softmax(0).view_as(scores) @ value,
        ),
    ),
    Mistake(
        "the values are multiplied by scores, not by weights: what comes between the two?",
        (lambda scores, value: scores @ value,),
    ),
    Mistake(
        "the exponentials are not yet weights. What does a query's row have to sum to?",
        (lambda scores, value: scores.exp() @ value,),
    ),
    Mistake(
        "with large scores the answer is NaN: their exponentials are infinite, and so is the "
        "sum. What can be subtracted from a whole row without changing its weights?",
        (lambda scores, value: _naive(scores, 2) @ value,),
    ),
    Mistake(
        "the values are averaged with the weights of keys for queries, transposed: which axis of "
        "the weights meets the keys of `value`?",
        (lambda scores, value: scores.softmax(2).mT @ value,),
    ),
    Mistake(
        "these are the weights themselves: what are they the weights of?",
        (lambda scores, value: scores.softmax(2),),
    ),
)


# 2.2 ---------------------------------------------------------------------------------


def _fill(scores: Tensor, allowed: Tensor, value: float) -> Tensor:
    return scores.masked_fill(~allowed, value).softmax(1)


def _or_zero(weights: Tensor, allowed: Tensor) -> Tensor:
    """With the empty rows repaired."""
    return weights.masked_fill(~allowed.any(1, keepdim=True), 0)


def _both(weights: Callable[[Tensor, Tensor], Tensor]) -> tuple[Callable[..., Tensor], ...]:
    """As it is, with the empty rows repaired, and with every NaN made zero."""
    return (
        weights,
        lambda scores, allowed: _or_zero(weights(scores, allowed), allowed),
        lambda scores, allowed: weights(scores, allowed).nan_to_num(nan=0.0),
    )


def _filled_with(value: float) -> Callable[..., Tensor]:
    return lambda scores, allowed: _fill(scores, allowed, value)


def _filled_and_repaired(value: float) -> Callable[..., Tensor]:
    return lambda scores, allowed: _or_zero(_fill(scores, allowed, value), allowed)


def _filled_and_cleared(value: float) -> Callable[..., Tensor]:
    return lambda scores, allowed: _fill(scores, allowed, value).masked_fill(~allowed, 0)


def _lowered(scores: Tensor, allowed: Tensor) -> Tensor:
    """A constant added to the hidden scores: in an empty row it cancels."""
    return (scores - 1e4 * ~allowed).softmax(1)


def _again(scores: Tensor, allowed: Tensor) -> Tensor:
    weights = scores.softmax(1).masked_fill(~allowed, 0)
    return weights / weights.sum(1, keepdim=True)


def _naive_masked(scores: Tensor, allowed: Tensor) -> Tensor:
    exponentials = scores.exp().masked_fill(~allowed, 0)
    return exponentials / exponentials.sum(1, keepdim=True)


def _added(scores: Tensor, allowed: Tensor) -> Tensor:
    return (scores + torch.zeros_like(scores).masked_fill(~allowed, -torch.inf)).softmax(1)


#: Constants that stand for minus infinity in code that one meets.
_CONSTANTS = (-1e4, -65504.0, -1e5, -1e6, -1e9, -1e10, -1e20, torch.finfo(torch.float32).min)

_MASKED_MISTAKES = (
    # Before the next one: with hidden scores far above, both give zeros.
    Mistake(
        "hidden scores far above the others leave nothing to them: a softmax over all keys "
        "rounds the allowed ones to zero, and dividing again cannot bring them back. Who must "
        "be gone before the largest score is looked for?",
        _both(_again)[1:],
    ),
    Mistake(
        "the weights of hidden keys are set to zero after the softmax, and the rest no longer "
        "sum to one. Who shares out the attention that the hidden ones gave up?",
        (
            lambda scores, allowed: scores.softmax(1).masked_fill(~allowed, 0),
            lambda scores, allowed: scores.softmax(1) * allowed,
        ),
    ),
    Mistake(
        "the *scores* of hidden keys are set to zero, before the exponential. What is e^0?",
        (
            *_both(lambda scores, allowed: _fill(scores, allowed, 0.0)),
            *_both(lambda scores, allowed: (scores * allowed).softmax(1)),
        ),
    ),
    Mistake(
        "the mask is the wrong way round: True means *may attend*.",
        _both(lambda scores, allowed: _fill(scores, ~allowed, -torch.inf)),
    ),
    Mistake(
        "the weights sum to one over the queries, not over the keys: check the axis.",
        _both(lambda scores, allowed: scores.masked_fill(~allowed, -torch.inf).softmax(0)),
    ),
    Mistake(
        "every key still counts: where does `allowed` come in?",
        (lambda scores, allowed: scores.softmax(1),),
    ),
    Mistake(
        "a query that may attend to nothing averages its padding. Your constant is low, but it "
        "is a number, and softmax only looks at differences: what is left of it where the whole "
        "row holds the same one?",
        (*(_filled_with(value) for value in _CONSTANTS), _lowered),
    ),
    Mistake(
        "a query that may attend to nothing comes out as NaN: no key is left, and zero is divided "
        "by zero. What does the docstring promise for such a row?",
        (lambda scores, allowed: _fill(scores, allowed, -torch.inf),),
    ),
    Mistake(
        "with large scores the exponential is infinite. Subtract the largest score of the row "
        "first, as softmax does.",
        _both(_naive_masked),
    ),
    Mistake(
        "hidden keys win where the allowed scores are lower than your constant. Which number is "
        "below every score?",
        tuple(
            after(value)
            for after in (_filled_and_repaired, _filled_and_cleared)
            for value in (-1e4, -6e4, -65504.0, -1e5, -1e6)
        ),
    ),
    Mistake(
        "a hidden score that is NaN leaks into the weights of the others: NaN plus or times "
        "anything is NaN. Which operation chooses instead of computing?",
        _both(_added),
    ),
)


# 2.3 ---------------------------------------------------------------------------------

_SHORT_MISTAKES = (
    Mistake(
        "the norms of the keys are dropped. In a row of scores the query is the same and the key "
        "is not: which of the two squared norms does softmax forget? A key that is farther away "
        "must not win by being longer.",
        (_products,),
    ),
    Mistake(
        "the weights are right, but ||q||^2 is still there. It is the same number for every key "
        "of a row: what does softmax do with a number that is added to a whole row?",
        (
            lambda query, key, width: (
                _short_scores(query, key, width) - _norms(query, width)[:, None]
            ),
        ),
    ),
    Mistake(
        "the wrong norm is dropped: ||q||^2 is there, and ||k||^2 is not. Which of them differs "
        "between the keys of a row?",
        (lambda query, key, width: _products(query, key, width) - _norms(query, width)[:, None],),
    ),
    Mistake(
        "the width is lost on the way: sigma^2 divides the whole square, and so each of the "
        "three terms that it is multiplied out to.",
        (
            lambda query, key, width: _short_scores(query, key, 1.0),
            lambda query, key, width: _products(query, key, width) - _norms(key, 1.0),
            lambda query, key, width: _products(query, key, 1.0) - _norms(key, width),
        ),
    ),
    Mistake(
        "sigma stands where sigma^2 belongs. In which units is q . k, if keys are in metres?",
        (lambda query, key, width: _short_scores(query, key, width**0.5),),
    ),
    Mistake(
        "a factor of two is lost: ||q - k||^2 has the term -2 q . k, and the exponent divides "
        "everything by 2 sigma^2. What becomes of each of the three terms?",
        (
            lambda query, key, width: _products(query, key, width) / 2 - _norms(key, width),
            lambda query, key, width: _products(query, key, width) - 2 * _norms(key, width),
            lambda query, key, width: 2 * _products(query, key, width) - _norms(key, width),
            lambda query, key, width: 2 * _short_scores(query, key, width),
        ),
    ),
    Mistake(
        "a sign: the score is *minus* half the squared distance, and a long key is far from most "
        "queries. Which of the two terms lowers the score?",
        (
            lambda query, key, width: _products(query, key, width) + _norms(key, width),
            lambda query, key, width: -_short_scores(query, key, width),
            lambda query, key, width: -_products(query, key, width) - _norms(key, width),
        ),
    ),
    Mistake(
        "the norms run along the wrong axis: each *column* of [n, m] belongs to one key.",
        (lambda query, key, width: _products(query, key, width) - _norms(key, width)[:, None],),
    ),
)

_COST_MISTAKES = (
    Mistake(
        "this is zero, whatever the keys. Leaving out ||q||^2 costs nothing; and along the queries "
        "no weight notices that ||k||^2 is gone. Which norm did you leave out, and along which "
        "axis do your softmaxes run?",
        (lambda query, key, width: _number(0.0),),
    ),
    Mistake(
        "scores are compared, not weights. Adding a number to a whole row changes every score: "
        "and the weights?",
        (
            lambda query, key, width: _norms(key, width).max(),
            lambda query, key, width: _norms(query, width).max(),
        ),
    ),
    Mistake(
        "the largest difference is taken with its sign, and one weight's loss is another's gain: "
        "which of the two is larger in size?",
        (
            lambda query, key, width: _moved(query, key, width).max(),
            lambda query, key, width: -_moved(query, key, width).min(),
            lambda query, key, width: _moved(query, key, width).min(),
        ),
    ),
    Mistake(
        "the differences are averaged or added up; the largest one was asked for.",
        (
            lambda query, key, width: _moved(query, key, width).abs().mean(),
            lambda query, key, width: _moved(query, key, width).abs().sum(),
            lambda query, key, width: _moved(query, key, width).abs().sum(1).max(),
        ),
    ),
    Mistake(
        "the weights sum to one over the queries, not over the keys: check the axis.",
        (
            lambda query, key, width: (
                (
                    (_short_scores(query, key, width) - _norms(query, width)[:, None]).softmax(0)
                    - _products(query, key, width).softmax(0)
                )
                .abs()
                .max()
            ),
        ),
    ),
    Mistake(
        "the width is lost: it belongs in both scores.",
        (
            lambda query, key, width: _cost(query, key, 1.0),
            lambda query, key, width: (
                (
                    _short_scores(query, key, width).softmax(1)
                    - _products(query, key, 1.0).softmax(1)
                )
                .abs()
                .max()
            ),
        ),
    ),
)


# 2.4 ---------------------------------------------------------------------------------


def _spread_of(formula: Callable[[int, float], float]) -> Callable[..., Tensor]:
    """A formula of the dimension and of the product of the standard deviations."""
    return lambda dim, query_std, key_std: _number(formula(dim, query_std * key_std))


_VARIANCE_MISTAKES = (
    Mistake(
        "this grows with d^2. That would be so if all terms of the sum were the same number; "
        "they are independent. What is the variance of a sum of independent terms?",
        (
            _spread_of(lambda d, s: (d * s) ** 2),
            _spread_of(lambda d, s: d**2 * s),
            _spread_of(lambda d, s: float(d**2)),
        ),
    ),
    Mistake(
        "this is the standard deviation; the variance is its square.",
        (_spread_of(lambda d, s: d**0.5 * s),),
    ),
    Mistake(
        "a variance has the units of its quantity squared: if all queries double, q . k doubles. "
        "What becomes of its variance?",
        (_spread_of(lambda d, s: d * s),),
    ),
    Mistake(
        "the standard deviations do not come in: are the coordinates always of size one?",
        (_spread_of(lambda d, s: float(d)),),
    ),
    Mistake(
        "this is the variance of one product; q . k is the sum of d of them.",
        (_spread_of(lambda d, s: s**2), _spread_of(lambda d, s: s)),
    ),
    Mistake(
        "the variances of query and key are added. That is the rule for a sum q + k. For a "
        "product of independent numbers with mean zero, what is the mean of its square?",
        (
            lambda dim, query_std, key_std: _number(dim * (query_std**2 + key_std**2)),
            lambda dim, query_std, key_std: _number(query_std**2 + key_std**2),
        ),
    ),
)

_SCALE_MISTAKES = (
    Mistake(
        "this divides by the variance, by d and not by its root. A factor c changes a variance "
        "by c^2: what variance do your scores have now?",
        (
            _spread_of(lambda d, s: 1 / (d * s**2)),
            _spread_of(lambda d, s: 1 / (d * s)),
            _spread_of(lambda d, s: 1 / d),
        ),
    ),
    Mistake(
        "this is what to divide by; the factor to multiply by was asked for.",
        (
            _spread_of(lambda d, s: d**0.5 * s),
            _spread_of(lambda d, s: d * s**2),
            _spread_of(lambda d, s: d**0.5),
        ),
    ),
    Mistake(
        "1 / sqrt(d) is right where all coordinates have a standard deviation of one. These have "
        "not: divide by the standard deviation of q . k, whatever it is.",
        (_spread_of(lambda d, s: d**-0.5),),
    ),
    Mistake(
        "the standard deviations come in with the wrong power: if all queries double, q . k "
        "doubles. By what must the factor change?",
        (_spread_of(lambda d, s: d**-0.5 * s**-0.5), _spread_of(lambda d, s: d**-0.5 / s**2)),
    ),
    Mistake(
        "this shrinks with d^2: it is one over the square of the variance's size. How does the "
        "standard deviation of q . k grow with d?",
        (_spread_of(lambda d, s: 1 / d**2),),
    ),
)


# 2.5 ---------------------------------------------------------------------------------

_BACKWARD_MISTAKES = (
    Mistake(
        "only the diagonal of the Jacobian is there. A score moves its own weight, and through "
        "the normaliser all the others of its row: which terms do they add?",
        (
            lambda weights, grad: weights * (1 - weights) * grad,
            lambda weights, grad: weights * grad,
        ),
    ),
    Mistake(
        "the gradients are summed as they are. In the sum that is subtracted, each g_l comes with "
        "a factor: how much does weight l have to lose?",
        (
            lambda weights, grad: weights * (grad - grad.sum(1, keepdim=True)),
            lambda weights, grad: weights * (grad - grad.mean(1, keepdim=True)),
        ),
    ),
    Mistake(
        "the sum runs over the queries, not over the keys: the rows of a softmax know nothing of "
        "each other.",
        (lambda weights, grad: weights * (grad - (weights * grad).sum(0, keepdim=True)),),
    ),
    Mistake(
        "the sum loses its axis, and `[n]` meets `[n, m]` as if it had one number for each key. "
        "Which shape must it have, to be subtracted from each row?",
        (lambda weights, grad: weights * (grad - (weights * grad).sum(1)),),
    ),
    Mistake(
        "the sum runs over the whole table; each row has its own.",
        (lambda weights, grad: weights * (grad - (weights * grad).sum()),),
    ),
    Mistake(
        "right, but for the sign: a score that grows lets its own weight grow.",
        (lambda weights, grad: -_backward(weights, grad),),
    ),
    Mistake(
        "the factor outside is missing: a hidden key's score would get a gradient, and its "
        "weight cannot move. By what is the whole bracket multiplied?",
        (lambda weights, grad: grad - (weights * grad).sum(1, keepdim=True),),
    ),
    Mistake(
        "the weight itself is not in the second term: expand p (g - sum p g) and compare.",
        (lambda weights, grad: weights * grad - (weights * grad).sum(1, keepdim=True),),
    ),
)


# 2.6 ---------------------------------------------------------------------------------


def _scores_of(formula: Callable[[Tensor, Tensor, Tensor, Any], Tensor]) -> Callable[..., Tensor]:
    """A formula of queries ``[n, 1, hidden]`` and keys ``[1, m, hidden]``."""

    def answer(query: Tensor, key: Tensor, weight: Tensor, activation: Any) -> Tensor:
        return formula(query[:, None], key[None], weight, activation)

    return answer


_ACTIVATED_MISTAKES = (
    Mistake(
        "each of the two is activated by itself, and then they are added. The query's share of "
        "the score is then the same for every key again: does it survive the softmax?",
        (_scores_of(lambda q, k, w, f: (f(q) + f(k)) @ w),),
    ),
    Mistake(
        "the activation comes last, around the whole score. Then one number is all that it gets "
        "of a pair: the hidden units have been summed before they could differ.",
        (_scores_of(lambda q, k, w, f: f((q + k) @ w)),),
    ),
    Mistake(
        "the weight is inside the activation: which of the two comes first in w . f(q + k)?",
        (_scores_of(lambda q, k, w, f: f((q + k) * w).sum(2)),),
    ),
    Mistake(
        "tanh is still there, whatever activation was asked for.",
        (_scores_of(lambda q, k, w, f: (q + k).tanh() @ w),),
    ),
    Mistake(
        "the activation is missing.",
        (_scores_of(lambda q, k, w, f: (q + k) @ w),),
    ),
    Mistake(
        "tanh is applied besides the activation that was asked for: it was to be replaced.",
        (
            _scores_of(lambda q, k, w, f: f((q + k).tanh()) @ w),
            _scores_of(lambda q, k, w, f: f(q + k).tanh() @ w),
        ),
    ),
    Mistake(
        "the hidden units are summed without their weights.",
        (_scores_of(lambda q, k, w, f: f(q + k).sum(2)),),
    ),
    Mistake(
        "queries and keys are exchanged: a row belongs to a query.",
        (lambda query, key, weight, activation: _activated(key, query, weight, activation),),
    ),
)

#: Name of a trial -> what to say to a perturbation test that is wrong about it.
_TRIAL_MESSAGES = {
    "the additive score without its tanh": "it says that the query matters to a score that is "
    "linear in it. Its outputs do move, in the seventh digit: that is rounding. How large a "
    "difference should count?",
    "the additive score": "it does not see that the additive score reads its query. Is the "
    "change large enough to show, and are the *outputs* compared?",
    "a dot product of one query": "with a single query it sees nothing. Queries that are compared "
    "with each other, or change places, tell nothing if there is only one: change the query "
    "itself.",
    "the cosine of query and key": "the query's length is changed, and this mechanism looks at "
    "its direction alone. One change can miss: which change of a query leaves nothing as it was?",
    "queries less their mean": "all queries are changed by the same amount, and this mechanism "
    "looks at their differences alone. Which change of the queries leaves nothing as it was?",
    "a squared dot product": "the query's sign is changed, and this mechanism squares it away. "
    "Which change of a query leaves nothing as it was?",
    "the same weight for every key": "it says that the query matters where all keys always get "
    "the same weight.",
    "the length of the keys": "it says that the query matters where only the keys are looked at.",
    "outputs less their mean": "it looks at a part of the outputs, or at their mean, and there "
    "nothing moves; others do. Which outputs are to be compared?",
}


# 2.7 ---------------------------------------------------------------------------------


def _row_of(
    weights: Callable[[Tensor, Tensor, int], Tensor],
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The gradient by another idea of the weights; written everywhere, or where valid."""

    def everywhere(scores: Tensor, grad: Tensor, valid_lens: Tensor, block: int) -> Tensor:
        p = weights(scores, valid_lens, block)
        grad = grad.masked_fill(~_inside(scores, valid_lens), 0)
        return p * (grad - (p * grad).sum(1, keepdim=True))

    def inside(scores: Tensor, grad: Tensor, valid_lens: Tensor, block: int) -> Tensor:
        gradient = everywhere(scores, grad, valid_lens, block)
        return gradient.masked_fill(~_inside(scores, valid_lens), 0)

    return everywhere, inside


def _zero_lanes(scores: Tensor, valid_lens: Tensor, block: int) -> Tensor:
    """Lanes past the valid ones hold a score of zero, up to the end of the tile."""
    tile = scores.new_zeros(len(scores), block)
    tile[:, : scores.shape[1]] = scores.masked_fill(~_inside(scores, valid_lens), 0)
    return tile.softmax(1)[:, : scores.shape[1]]


def _zero_tail(scores: Tensor, valid_lens: Tensor, block: int) -> Tensor:
    """Only lanes past the row's end do, and the padding counts."""
    return _zero_lanes(scores, torch.full_like(valid_lens, scores.shape[1]), block)


def _valid_softmax(scores: Tensor, valid_lens: Tensor, block: int) -> Tensor:
    """Minus infinity in the padding; NaN in an empty row."""
    return scores.masked_fill(~_inside(scores, valid_lens), -torch.inf).softmax(1)


def _unshifted(scores: Tensor, valid_lens: Tensor, block: int) -> Tensor:
    exponentials = scores.exp().masked_fill(~_inside(scores, valid_lens), 0)
    total = exponentials.sum(1, keepdim=True)
    return exponentials / total.masked_fill(total == 0, 1)


def _row_gradient(
    formula: Callable[[Tensor, Tensor], Tensor],
) -> Callable[..., Tensor]:
    """A formula of the right weights and the gradient, zero in the padding."""

    def answer(scores: Tensor, grad: Tensor, valid_lens: Tensor, block: int) -> Tensor:
        outside = ~_inside(scores, valid_lens)
        p = _row_weights(scores, valid_lens)
        return formula(p, grad.masked_fill(outside, 0)).masked_fill(outside, 0)

    return answer


def _leaking(scores: Tensor, grad: Tensor, valid_lens: Tensor, block: int) -> Tensor:
    p = _row_weights(scores, valid_lens)
    return p * (grad - (p * grad).sum(1, keepdim=True))


def _leaking_inside(scores: Tensor, grad: Tensor, valid_lens: Tensor, block: int) -> Tensor:
    gradient = _leaking(scores, grad, valid_lens, block)
    return gradient.masked_fill(~_inside(scores, valid_lens), 0)


def _unwritten(scores: Tensor, grad: Tensor, valid_lens: Tensor, block: int) -> Tensor:
    gradient = _row_backward(scores, grad, valid_lens, block)
    return gradient.masked_fill(~_inside(scores, valid_lens), torch.nan)


def _undefined(scores: Tensor, grad: Tensor, valid_lens: Tensor, block: int) -> Tensor:
    """Any lane without a key makes the whole row NaN."""
    gradient = _row_backward(scores, grad, valid_lens, block)
    return gradient.masked_fill((valid_lens < block)[:, None], torch.nan)


def _undefined_inside(scores: Tensor, grad: Tensor, valid_lens: Tensor, block: int) -> Tensor:
    gradient = _undefined(scores, grad, valid_lens, block)
    return gradient.masked_fill(~_inside(scores, valid_lens), 0)


def _one_more(scores: Tensor, grad: Tensor, valid_lens: Tensor, block: int) -> Tensor:
    """Each row has one more key; a full one takes the first of the next row."""
    n, m = scores.shape

    def longer(rows: Tensor) -> Tensor:
        flat = torch.cat([rows.flatten(), rows.new_full((1,), torch.nan)])
        return flat.unfold(0, min(m + 1, block), m)[:n]

    return _row_backward(longer(scores), longer(grad), valid_lens + 1, block)[:, :m]


_ROW_MISTAKES = (
    Mistake(
        "lanes without a key weigh something: their score is loaded as 0, and e^0 = 1 makes the "
        "normaliser too large. What should a masked load put there for the maximum and for the "
        "sum to pass it over?",
        (*_row_of(_zero_lanes), *_row_of(_zero_tail)),
    ),
    Mistake(
        "the gradients are summed as they are: sum g where sum p g belongs.",
        (
            _row_gradient(lambda p, g: p * (g - g.sum(1, keepdim=True))),
            _row_gradient(lambda p, g: p * (g - g.mean(1, keepdim=True))),
        ),
    ),
    Mistake(
        "padding takes part: lanes between the valid length and the end of the row hold numbers, "
        "and no key. What does `valid_lens_ptr` say for your row?",
        (
            lambda scores, grad, valid_lens, block: _backward(scores.softmax(1), grad),
            *_row_of(lambda scores, valid_lens, block: scores.softmax(1)),
        ),
    ),
    Mistake(
        "a row that may attend to nothing gives NaN: its largest score is minus infinity, and "
        "its sum is 0. Which number may you divide by instead, if the numerator is 0 anyway?",
        _row_of(_valid_softmax)[:1],
    ),
    Mistake(
        "with large scores the exponential is infinite. What does the forward kernel subtract "
        "first?",
        (*_row_of(_unshifted),),
    ),
    Mistake(
        "NaN in the padding leaks into the row: 0 * NaN is NaN. Which lanes should the gradient "
        "be loaded for?",
        (_leaking, _leaking_inside),
    ),
    Mistake(
        "a load has a mask and no other=. On a GPU the lanes that the mask leaves out then hold "
        "anything, and here NaN. As what should they be loaded, for the reduction to pass them "
        "over?",
        (_undefined, _undefined_inside),
    ),
    Mistake(
        "one lane too many counts as a key: the lanes are counted from 0, and the valid length is "
        "how many there are.",
        (_one_more,),
    ),
    Mistake(
        "only the diagonal is there: the normaliser moves as well.",
        (
            _row_gradient(lambda p, g: p * g),
            _row_gradient(lambda p, g: p * (1 - p) * g),
        ),
    ),
    Mistake(
        "the weight in front of the bracket is missing.",
        (_row_gradient(lambda p, g: g - (p * g).sum(1, keepdim=True)),),
    ),
    Mistake(
        "right, but for the sign.",
        (_row_gradient(lambda p, g: p * ((p * g).sum(1, keepdim=True) - g)),),
    ),
    Mistake(
        "these are the weights, forwards; their gradient was asked for.",
        (_row_gradient(lambda p, g: p),),
    ),
    Mistake(
        "padding is never written: what stood in the output before is still there. The gradient "
        "of a hidden score is 0, and 0 must be stored too.",
        (_unwritten,),
    ),
)

_ROW_WORDS = Words(
    outside="a load reads past the end of the scores, of the gradients or of the lengths. On a "
    "GPU that is somebody else's memory. Which lanes of the last row hold a number, and where do "
    "you tell `tl.load`?",
    foreign="On a GPU all programs run at once: what would be left in that slot? Program i owns "
    "row i: where does it begin, and how long is it?",
    missing="What stood there before is still there. All places of a row are its program's to "
    "write, and the gradient of a hidden score is 0: which lanes does your store reach?",
)
