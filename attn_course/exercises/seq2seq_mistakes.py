"""Chapter 3's exercises: the likely mistakes, and what is said of each.

A mistake is the formula that it computes, and the message that names it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from attn_course.exercises.framework import Mistake
from attn_course.exercises.seq2seq_cases import (
    EOS,
    PAD,
    VOCAB_SIZE,
    Beam,
    NextToken,
    Pieces,
    Suspect,
    _attend,
    _beam_search,
    _bleu,
    _brevity,
    _decoder_step,
    _each_loss,
    _even,
    _grow,
    _ids,
    _likeliest,
    _masked_loss,
    _matters,
    _ngrams,
    _precision,
    _rank,
    _search,
    _uniform,
)

# 3.1 ---------------------------------------------------------------------------------

_Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Pieces], Tensor]


def _context_of(
    query: _Step | None = None,
    *,
    over: int = 1,
    read: Callable[[Tensor, Tensor], Tensor] = lambda memory, keys: memory,
) -> _Step:
    """The context with another query, another axis of the softmax, other values."""

    def answer(
        state: Tensor,
        token: Tensor,
        last_context: Tensor,
        keys: Tensor,
        memory: Tensor,
        pieces: Pieces,
    ) -> Tensor:
        q = pieces.W_q(state)
        if query is not None:
            q = query(state, token, last_context, keys, memory, pieces)
        return _attend(q, keys, read(memory, keys), pieces, over)

    return answer


def _updated(
    state: Tensor, token: Tensor, last_context: Tensor, keys: Tensor, memory: Tensor, pieces: Pieces
) -> Tensor:
    return pieces.W_q(pieces.rnn(torch.cat([last_context, token], 1), state))


def _unscored(
    state: Tensor, token: Tensor, last_context: Tensor, keys: Tensor, memory: Tensor, pieces: Pieces
) -> Tensor:
    scores = (pieces.W_q(state).unsqueeze(1) + keys).tanh() @ pieces.w_v
    return torch.einsum("bj,bjd->bd", scores, memory)


def _unaligned(
    state: Tensor, token: Tensor, last_context: Tensor, keys: Tensor, memory: Tensor, pieces: Pieces
) -> Tensor:
    scores = (pieces.W_q(state) + keys).tanh() @ pieces.w_v
    return torch.einsum("bj,bjd->bd", scores.softmax(1), memory)


_CONTEXT_MISTAKES = (
    Mistake(
        "the query is made of the state after the update. Bahdanau's decoder looks the source "
        "up first and reads the token second: which state is there when it looks?",
        (_context_of(_updated),),
    ),
    Mistake(
        "the weights sum to one over the sentences of the batch, not over the source tokens: "
        "along which axis of [batch, source_len] does a sentence lie? (A test: may one "
        "sentence's context depend on its neighbours in the batch?)",
        (_context_of(over=0),),
    ),
    Mistake(
        "the scores are used as weights as they are. What do the weights of a step sum to?",
        (_unscored,),
    ),
    Mistake(
        "the state itself is compared with the keys. They live in another space: which of "
        "the pieces takes the state there?",
        (_context_of(lambda state, *rest: state),),
    ),
    Mistake(
        "the scores leave out tanh: without it they are w_v . q + w_v . k, and a term that is "
        "the same for all keys does nothing in a softmax. What would the query still decide?",
        (
            lambda state, token, last_context, keys, memory, pieces: torch.einsum(
                "bj,bjd->bd", (keys @ pieces.w_v).softmax(1), memory
            ),
        ),
    ),
    Mistake(
        "queries [batch, hidden] and keys [batch, source_len, hidden] are added as they are: the "
        "batch then meets the source tokens, and where there are as many of the one as of the "
        "other, nothing raises. Which axis does a query lack?",
        (_unaligned,),
    ),
)


def _new_state(
    use: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[list[Tensor], Tensor]],
) -> _Step:
    """What the RNN gives, if it reads something else."""

    def answer(
        state: Tensor,
        token: Tensor,
        last_context: Tensor,
        keys: Tensor,
        memory: Tensor,
        pieces: Pieces,
    ) -> Tensor:
        context, _ = _decoder_step(state, token, last_context, keys, memory, pieces)
        parts, before = use(context, last_context, token, state)
        return pieces.rnn(torch.cat(parts, 1), before)

    return answer


_STATE_MISTAKES = (
    Mistake(
        "the RNN reads the context of the step before. You have just looked the source up: "
        "what for?",
        (_new_state(lambda context, last, token, state: ([last, token], state)),),
    ),
    Mistake(
        "the RNN reads context and token in the other order. Nothing raises, since the two "
        "together are as wide; which order does the equation give?",
        (_new_state(lambda context, last, token, state: ([token, context], state)),),
    ),
    Mistake(
        "the RNN starts from zeros. What does it know about the words that it has written?",
        (_new_state(lambda context, last, token, state: ([context, token], state * 0)),),
    ),
)


# 3.2 ---------------------------------------------------------------------------------


def _probed(
    replace: Callable[[Tensor], Tensor],
    reduce: Callable[[Tensor], Tensor] = lambda change: change.flatten(1).any(1),
) -> Callable[..., Tensor]:
    """The table of a test that changes tokens in another way, or looks elsewhere."""

    def answer(model: Suspect, source: Tensor, source_lens: Tensor, target_input: Tensor) -> Tensor:
        before = model(source, source_lens, target_input)
        columns = []
        for j in range(source.shape[1]):
            changed = source.clone()
            changed[:, j] = replace(source[:, j])
            moved = (model(changed, source_lens, target_input) - before).abs() > 1e-9
            columns.append(reduce(moved).expand(len(source)))
        return torch.stack(columns, 1)

    return answer


def _other_word(column: Tensor) -> Tensor:
    return torch.where(column == 3, 4, 3)


def _set_to(token: int) -> Callable[[Tensor], Tensor]:
    return lambda column: torch.full_like(column, token)


def _counted(model: Suspect, source: Tensor, source_lens: Tensor, target_input: Tensor) -> Tensor:
    return torch.arange(source.shape[1]) < source_lens.unsqueeze(1)


_MATTERS_MISTAKES = (
    Mistake(
        "padding is left out, or padding is replaced by padding. Where nothing "
        "changes, nothing can leak. Which ids could you write there instead?",
        (_probed(_set_to(PAD)),),
    ),
    Mistake(
        "one answer is given for the whole batch. Whether a position is padding differs from "
        "sentence to sentence: over which axes of [batch, target_len, vocab] may you ask any()?",
        (
            _probed(_other_word, lambda moved: moved.any()),
            _probed(_other_word, lambda moved: moved.all()),
        ),
    ),
    Mistake(
        "only a part of a sentence's logits is looked at, or all of them have to move. Here some "
        "words stay the same whatever the source: when has a sentence's answer moved?",
        (
            _probed(_other_word, lambda moved: moved.flatten(1).all(1)),
            _probed(_other_word, lambda moved: moved[:, 0].any(1)),
            _probed(_other_word, lambda moved: moved[:, -1].any(1)),
        ),
    ),
    Mistake(
        "everything matters, to every model: changes pile up. Does each round of your loop begin "
        "with the sentence as it was given?",
        (lambda **given: torch.ones_like(_matters(**given)),),
    ),
    Mistake(
        "the table shows what does not matter: True is to stand where the logits change.",
        (lambda **given: ~_matters(**given),),
    ),
    Mistake(
        "by the lengths this ought to matter. Does the model keep to them? Ask it.",
        (_counted,),
    ),
    Mistake(
        "every token is replaced by the same id, and where it stood already nothing changes. "
        "How can each token get an id that it has not?",
        tuple(_probed(_set_to(token)) for token in range(EOS, VOCAB_SIZE)),
    ),
)

#: Fault -> what to say to someone who has found another one, or none.
_CLUES = {
    "sound": "Its table is True up to the length of each sentence and False from there on: what "
    "would you change about that?",
    "mask missing": "In its table the padding matters, in every sentence. What keeps attention "
    "away from padding?",
    "eos cut": "In its table the padding does not matter; but nor does the last token of each "
    "sentence. Which token is that, and should a decoder know of it?",
    "target lengths": "In its table some sentences are read too far, and others not to their "
    "end. Where have you seen these lengths: the last True of each row?",
}


# 3.3 ---------------------------------------------------------------------------------


def _both(inputs: slice, labels: slice) -> Callable[[Tensor], Tensor]:
    """Inputs and labels cut out of the target otherwise, ``[2, batch, target_len - 1]``."""
    return lambda target: torch.stack([target[:, inputs], target[:, labels]]).double()


_FRONT, _BACK = slice(None, -1), slice(1, None)

_SHIFT_MISTAKES = (
    Mistake(
        "inputs and labels are the same tokens: the decoder sees the word that it is asked for, "
        "and learns to copy it. Which tokens are written when word t is still to come?",
        (_both(_FRONT, _FRONT), _both(_BACK, _BACK)),
    ),
    Mistake(
        "shifted backwards: the decoder reads a word and is asked for the one before it. What "
        "can it read at the very first step of a translation?",
        (_both(_BACK, _FRONT),),
    ),
)


def _mean_of(log_p: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Minus the mean over all labels, if these were the logarithms of the probabilities."""

    def answer(logits: Tensor, labels: Tensor, pad: int) -> Tensor:
        each = log_p(logits).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return -each[labels != pad].mean()

    return answer


_LOSS_MISTAKES = (
    Mistake(
        "the mean runs over the padding as well. How good is a model that has learned to predict "
        "padding, and what does the loss say of it?",
        (lambda logits, labels, pad: _each_loss(logits, labels).mean(),),
    ),
    Mistake(
        "the losses at padding are left out of the sum, but not of the count: longer padding "
        "makes the loss smaller. By how many labels is it to be divided?",
        (
            lambda logits, labels, pad: (
                (_each_loss(logits, labels) * (labels != pad)).sum() / labels.numel()
            ),
        ),
    ),
    Mistake(
        "the losses are added up, not averaged: a longer sentence then counts as a worse one.",
        (
            lambda logits, labels, pad: _masked_loss(logits, labels, pad) * (labels != pad).sum(),
            lambda logits, labels, pad: _each_loss(logits, labels).sum(),
        ),
    ),
    Mistake(
        "each sentence is averaged by itself, and then the averages are: a word of a short "
        "sentence counts more than one of a long sentence. The exercise asks for the mean over "
        "all labels.",
        (
            lambda logits, labels, pad: (
                (_each_loss(logits, labels) * (labels != pad)).sum(1) / (labels != pad).sum(1)
            ).mean(),
        ),
    ),
    Mistake(
        "the sum is divided by the number of sentences. How many labels were there?",
        (
            lambda logits, labels, pad: (
                (_each_loss(logits, labels) * (labels != pad)).sum() / len(labels)
            ),
        ),
    ),
    Mistake(
        "the sign: a loss is to fall when the right word becomes likelier.",
        (lambda logits, labels, pad: -_masked_loss(logits, labels, pad),),
    ),
    Mistake(
        "padding is taken to have the id 0. Here it may have another: what is `pad` for?",
        (lambda logits, labels, pad: _each_loss(logits, labels)[labels != 0].mean(),),
    ),
    Mistake(
        "only the padding counts: your mask is the wrong way round.",
        (lambda logits, labels, pad: _each_loss(logits, labels)[labels == pad].mean(),),
    ),
    Mistake(
        "these are not yet logarithms of probabilities. Which function makes them of logits?",
        (_mean_of(lambda logits: logits), _mean_of(lambda logits: logits.softmax(-1))),
    ),
    Mistake(
        "the probabilities sum to one over the steps, or over the batch. Along which axis of "
        "[batch, len, vocab] do the words lie that a step chooses among?",
        (
            _mean_of(lambda logits: logits.log_softmax(1)),
            _mean_of(lambda logits: logits.log_softmax(0)),
        ),
    ),
    Mistake(
        "with large logits a probability is rounded to 0, or its exponential is infinite, before "
        "the logarithm is taken. Which function takes both steps at once?",
        (
            _mean_of(lambda logits: logits.softmax(-1).log()),
            _mean_of(lambda logits: logits - logits.exp().sum(-1, keepdim=True).log()),
        ),
    ),
)


# 3.4 ---------------------------------------------------------------------------------


def _over_all(allowed: Tensor) -> Tensor:
    return torch.full(allowed.shape, 1 / allowed.shape[-1], dtype=torch.float64)


def _empty_row(number: float) -> Callable[[Tensor], Tensor]:
    def weights(allowed: Tensor) -> Tensor:
        return _even(allowed).masked_fill(~allowed.any(-1, keepdim=True), number)

    return weights


def _weights_of(make: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda query, key, value, weight, allowed: make(allowed)


_UNIFORM_WEIGHT_MISTAKES = (
    Mistake(
        "the average runs over the padding too. A short sentence in a batch with a long one "
        "then reads mostly padding: who is `allowed`?",
        (_weights_of(_over_all),),
    ),
    Mistake(
        "padding gets no weight, but the others get no more for it: the weights of a padded "
        "sentence do not sum to one. Among how many keys is the attention shared?",
        (_weights_of(lambda allowed: _over_all(allowed) * allowed),),
    ),
    Mistake(
        "all weights are zero, and so is every context. That takes the source away altogether; "
        "uniform attention still reads it, without choosing. What do its weights sum to?",
        (_weights_of(lambda allowed: allowed.double() * 0),),
    ),
    Mistake(
        "every allowed key gets the weight one. What do the weights of a query have to sum to?",
        (_weights_of(lambda allowed: allowed.double()),),
    ),
    Mistake(
        "a sentence that may attend to nothing comes out as NaN: your code divides zero by zero, "
        "or takes the softmax of nothing. What does the reference give there?",
        (_weights_of(_empty_row(math.nan)),),
    ),
    Mistake(
        "a sentence that may attend to nothing averages everything. That is an average over "
        "padding after all: what does the reference give there?",
        (_weights_of(lambda allowed: _even(allowed | ~allowed.any(-1, keepdim=True))),),
    ),
    Mistake(
        "the scores still choose: this is the reference unchanged. What has to be the same for "
        "all allowed keys?",
        (
            lambda query, key, value, weight, allowed: (
                (
                    ((query.unsqueeze(-2) + key.unsqueeze(-3)).tanh() @ weight)
                    .masked_fill(~allowed, -1e30)
                    .softmax(-1)
                )
                * allowed
            ),
        ),
    ),
    Mistake(
        "the mask is the wrong way round: True means *may attend*.",
        (_weights_of(lambda allowed: _even(~allowed)),),
    ),
    Mistake(
        "every query of a sentence gets the mask of its first. `allowed` has an axis for the "
        "queries: may they differ?",
        (_weights_of(lambda allowed: _even(allowed[:, :1].expand_as(allowed))),),
    ),
)

_UNIFORM_OUTPUT_MISTAKES = (
    Mistake(
        "the weights are right, and the context is zero. What becomes of the values?",
        (lambda **given: _uniform(**given)[0] * 0,),
    ),
    Mistake(
        "the values are added up, not averaged: do your weights take part?",
        (lambda query, key, value, weight, allowed: allowed.double() @ value,),
    ),
    Mistake(
        "the weights are right, but the context averages padding: do your weights take part?",
        (lambda query, key, value, weight, allowed: _over_all(allowed) @ value,),
    ),
)


# 3.5 ---------------------------------------------------------------------------------


def _hits(predicted: list[str], reference: list[str], n: int) -> Tensor:
    """Without clipping: each n-gram counts if the reference has it at all."""
    known = _ngrams(reference, n)
    found = _ngrams(predicted, n)
    hits = sum(count for gram, count in found.items() if gram in known)
    return torch.tensor(hits / sum(found.values()), dtype=torch.float64)


def _distinct(predicted: list[str], reference: list[str], n: int) -> Tensor:
    found = _ngrams(predicted, n).keys()
    return torch.tensor(len(found & _ngrams(reference, n).keys()) / len(found)).double()


def _stopping(past: int) -> Callable[..., Tensor]:
    """The share, if runs begin at so many places more, or fewer, than there are."""

    def answer(predicted: list[str], reference: list[str], n: int) -> Tensor:
        found, known = (
            Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1 + past))
            for tokens in (predicted, reference)
        )
        return torch.tensor((found & known).total() / found.total(), dtype=torch.float64)

    return answer


def _to_the_end(predicted: list[str], reference: list[str], n: int) -> Tensor:
    return _stopping(n - 1)(predicted, reference, n)


def _recall(predicted: list[str], reference: list[str], n: int) -> Tensor:
    return _precision(reference, predicted, n)


_PRECISION_MISTAKES = (
    Mistake(
        "no clipping: an n-gram counts as often as it was predicted, and whoever says one right "
        "word for ever is always right. How often may 'le' count, if the reference has it once?",
        (_hits,),
    ),
    Mistake(
        "this is recall: the share of the reference's n-grams that were found. Precision asks how "
        "much of the *prediction* is right.",
        (_recall,),
    ),
    Mistake(
        "each n-gram is counted once, however often it stands there. A set forgets how often; "
        "what remembers?",
        (_distinct,),
    ),
    Mistake(
        "the share is taken of all tokens. How many n-grams has a sentence of so many tokens?",
        (
            lambda predicted, reference, n: (
                _precision(predicted, reference, n) * (len(predicted) - n + 1) / len(predicted)
            ),
        ),
    ),
    Mistake(
        "these are single words, whatever n is.",
        (lambda predicted, reference, n: _precision(predicted, reference, 1),),
    ),
    Mistake(
        "this is the number of n-grams that are right; the share was asked for.",
        (
            lambda predicted, reference, n: (
                _precision(predicted, reference, n) * (len(predicted) - n + 1)
            ),
        ),
    ),
    Mistake(
        "the places where a run begins are miscounted: runs are missed at the end, or cut off "
        "there. Count for a sentence of n tokens: how many runs of n has it?",
        (_stopping(-1), _to_the_end),
    ),
)


def _bleu_of(
    combine: Callable[[list[Tensor]], Tensor],
    brevity: Callable[[list[str], list[str]], float] = _brevity,
) -> Callable[..., Tensor]:
    def answer(predicted: list[str], reference: list[str], k: int) -> Tensor:
        orders = range(1, min(k, len(predicted)) + 1)
        shares = [_precision(predicted, reference, n) for n in orders]
        return combine(shares) * brevity(predicted, reference)

    return answer


def _product(shares: list[Tensor]) -> Tensor:
    return torch.stack([p ** (0.5 ** (i + 1)) for i, p in enumerate(shares)]).prod()


def _inverted(predicted: list[str], reference: list[str]) -> float:
    return math.exp(min(0.0, 1 - len(predicted) / len(reference)))


_BLEU_MISTAKES = (
    Mistake(
        "the brevity penalty is inverted: it punishes a prediction for being longer than the "
        "reference, and lets the short one go. Precision already notices what is too much; what "
        "does it not notice?",
        (_bleu_of(_product, _inverted),),
    ),
    Mistake(
        "a prediction longer than the reference is rewarded: its penalty is above 1. How large "
        "may a penalty be?",
        (_bleu_of(_product, lambda p, r: math.exp(1 - len(r) / len(p))),),
    ),
    Mistake(
        "there is no brevity penalty: one safe word would be a perfect translation.",
        (_bleu_of(_product, lambda p, r: 1.0),),
    ),
    Mistake(
        "the precisions are averaged. With an arithmetic mean a translation keeps half its mark "
        "when not one pair of words is right. What does the formula do with them?",
        (
            _bleu_of(lambda shares: torch.stack(shares).mean()),
            _bleu_of(
                lambda shares: torch.stack([p * 0.5 ** (i + 1) for i, p in enumerate(shares)]).sum()
            ),
            _bleu_of(
                lambda shares: torch.stack(
                    [p ** (0.5 ** (i + 1)) for i, p in enumerate(shares)]
                ).mean()
            ),
        ),
    ),
    Mistake(
        "the exponents are all 1/k: that is the original's BLEU. The lecture's numbers come from "
        "another definition, which is asked for here: which exponent has p_2?",
        (_bleu_of(lambda shares: torch.stack(shares).prod() ** (1 / len(shares))),),
    ),
    Mistake(
        "the precisions are multiplied without exponents: where does 0.5 to the n stand?",
        (_bleu_of(lambda shares: torch.stack(shares).prod()),),
    ),
    Mistake(
        "the exponent is 1/n, 1/(2n) or 0.5 for every n, or off by one: for n = 1, 2, 3 it is "
        "1/2, 1/4, 1/8.",
        (
            _bleu_of(
                lambda shares: torch.stack(
                    [p ** (1 / (2 * i + 2)) for i, p in enumerate(shares)]
                ).prod()
            ),
            _bleu_of(
                lambda shares: torch.stack(
                    [p ** (1 / (i + 1)) for i, p in enumerate(shares)]
                ).prod()
            ),
            _bleu_of(lambda shares: torch.stack(shares).prod() ** 0.5),
            _bleu_of(
                lambda shares: torch.stack([p ** (0.5**i) for i, p in enumerate(shares)]).prod()
            ),
        ),
    ),
    Mistake(
        "only the largest n counts: multiply over all n from 1 on.",
        (
            _bleu_of(lambda shares: shares[-1] ** (0.5 ** len(shares))),
            _bleu_of(lambda shares: shares[-1]),
        ),
    ),
    Mistake(
        "a prediction shorter than k comes out as zero. It has no n-grams that long, and d2l "
        "leaves those out: up to which n can you count?",
        (
            lambda predicted, reference, k: (
                _bleu(predicted, reference, k) * float(k <= len(predicted))
            ),
        ),
    ),
    Mistake(
        "runs longer than the reference are left out. None of them can be right, and then the mark "
        "is 0: whose length is the limit?",
        (lambda predicted, reference, k: _bleu(predicted, reference, min(k, len(reference))),),
    ),
)


# 3.6 ---------------------------------------------------------------------------------


def _one_child_each(first: bool) -> Callable[..., Tensor]:
    """Each sentence goes on in its likeliest way alone; the first step may be free."""

    def answer(log_probs: NextToken, width: int, max_len: int, penalty: float) -> Tensor:
        beams: list[Beam] = [([], 0.0, False)]
        for step in range(max_len):
            ended = [beam for beam in beams if beam[2]]
            families = [_grow(log_probs, beam) for beam in beams if not beam[2]]
            count = width if first and not step else 1
            grown = [child for family in families for child in _likeliest(family, count)]
            beams = ended + _likeliest(grown, width - len(ended))
        return _ids(max(beams, key=lambda beam: _rank(beam, penalty))[0], max_len)

    return answer


def _penalised(log_probs: NextToken, width: int, max_len: int, penalty: float) -> Tensor:
    """The stored score is divided again at each step."""
    beams: list[Beam] = [([], 0.0, False)]
    for n in range(1, max_len + 1):
        ended = [beam for beam in beams if beam[2]]
        grown = [child for beam in beams if not beam[2] for child in _grow(log_probs, beam)]
        grown = [(ids, score / ((5 + n) / 6) ** penalty, over) for ids, score, over in grown]
        beams = ended + _likeliest(grown, width - len(ended))
    return _ids(max(beams, key=lambda beam: beam[1])[0], max_len)


def _competing(log_probs: NextToken, width: int, max_len: int, penalty: float) -> Tensor:
    """Sentences that have ended stand against the open ones again, at each step."""
    beams: list[Beam] = [([], 0.0, False)]
    for _ in range(max_len):
        grown = [child for beam in beams if not beam[2] for child in _grow(log_probs, beam)]
        beams = _likeliest([*grown, *(beam for beam in beams if beam[2])], width)
    return _ids(max(beams, key=lambda beam: _rank(beam, penalty))[0], max_len)


def _full_width(log_probs: NextToken, width: int, max_len: int, penalty: float) -> Tensor:
    """Sentences that have ended take no place: there are always ``width`` open ones."""
    ended: list[Beam] = []
    beams: list[Beam] = [([], 0.0, False)]
    for _ in range(max_len):
        kept = _likeliest([child for beam in beams for child in _grow(log_probs, beam)], width)
        ended += [beam for beam in kept if beam[2]]
        beams = [beam for beam in kept if not beam[2]]
    return _ids(max([*ended, *beams], key=lambda beam: _rank(beam, penalty))[0], max_len)


def _chosen(choose: Callable[[list[Beam], list[Beam], float], Beam]) -> Callable[..., Tensor]:
    """The right search, and another choice at the end."""

    def answer(log_probs: NextToken, width: int, max_len: int, penalty: float) -> Tensor:
        return _ids(choose(*_search(log_probs, width, max_len, penalty), penalty)[0], max_len)

    return answer


def _ranked(rank: Callable[[Beam, float], float]) -> Callable[..., Tensor]:
    return _chosen(
        lambda ended, beams, penalty: max([*ended, *beams], key=lambda beam: rank(beam, penalty))
    )


def _without_end(log_probs: NextToken, width: int, max_len: int, penalty: float) -> Tensor:
    tokens = _beam_search(log_probs, width, max_len, penalty)
    return torch.where(tokens == 0, -1, tokens)


def _without_last(log_probs: NextToken, width: int, max_len: int, penalty: float) -> Tensor:
    tokens = _beam_search(log_probs, width, max_len, penalty)
    return _ids([int(token) for token in tokens if token >= 0][:-1], max_len)


def _misled(sign: int = 1, summed: bool = True) -> Callable[..., Tensor]:
    """The least likely children are kept, or those whose last token is the likeliest."""

    def answer(log_probs: NextToken, width: int, max_len: int, penalty: float) -> Tensor:
        ended: list[Beam] = []
        beams: list[Beam] = [([], 0.0, False)]
        for _ in range(max_len):
            parents = beams if summed else [(ids, 0.0, over) for ids, _, over in beams]
            grown = [child for beam in parents for child in _grow(log_probs, beam)]
            kept = sorted(grown, key=lambda beam: -sign * beam[1])[: width - len(ended)]
            ended += [beam for beam in kept if beam[2]]
            beams = [beam for beam in kept if not beam[2]]
        return _ids(max([*ended, *beams], key=lambda beam: _rank(beam, penalty))[0], max_len)

    return answer


_EXTENDED = (
    "a sentence that has ended is extended: your search asks what follows <eos>. Whatever it "
    "hears makes the sentence less likely. What should become of a sentence once its last "
    "token is eos?"
)

_BEAM_MISTAKES = (
    Mistake(
        "one survivor per parent: each sentence goes on with its best next token alone, so the "
        "search is greedy, side by side. Two of the likeliest may have the same parent: out of "
        "which list should the best `width` be chosen?",
        (_one_child_each(first=True), _one_child_each(first=False)),
    ),
    Mistake(
        "the length penalty is applied at every step, and to scores that have been divided "
        "already: early words then count for less and less. When do sentences of different "
        "length first have to be compared?",
        (_penalised,),
    ),
    Mistake(
        "the sentences are ranked by their probability alone: what is `penalty` for?",
        (_chosen(lambda ended, beams, penalty: max([*ended, *beams], key=lambda b: b[1])),),
    ),
    Mistake(
        "log p is multiplied by the length penalty, which makes long sentences worse. A "
        "logarithm of a probability is negative: which operation brings it closer to zero?",
        (
            _chosen(
                lambda ended, beams, penalty: max(
                    [*ended, *beams], key=lambda beam: _rank(beam, -penalty)
                )
            ),
        ),
    ),
    Mistake(
        "the first sentence that ends is returned. Could another that is kept rank higher?",
        (_chosen(lambda ended, beams, penalty: [*ended, *beams][0]),),
    ),
    Mistake(
        "sentences that have ended get lost: only those still open at max_len are ranked. Where "
        "do yours go when they end?",
        (
            _chosen(
                lambda ended, beams, penalty: max(
                    beams or ended, key=lambda beam: _rank(beam, penalty)
                )
            ),
        ),
    ),
    Mistake(
        "a sentence cut off at max_len is never returned, though it ranks highest: the exercise "
        "says that it counts as it is.",
        (
            _chosen(
                lambda ended, beams, penalty: max(
                    ended or beams, key=lambda beam: _rank(beam, penalty)
                )
            ),
        ),
    ),
    Mistake(
        "a sentence that has ended loses its place to open ones, which have had less time to "
        "become unlikely. The exercise lets it keep its place: how many places are left for "
        "the others?",
        (_competing,),
    ),
    Mistake(
        "there are always `width` open sentences, beside those that have ended. The exercise "
        "gives `width` places to all of them together.",
        (_full_width,),
    ),
    Mistake(
        "the length of a sentence is not what the exercise divides by: is the 0 at the end counted "
        "as a token, and does ((5 + n) / 6) stand under the exponent?",
        (
            _ranked(lambda beam, penalty: beam[1] / ((5 + len(beam[0]) - beam[2]) / 6) ** penalty),
            _ranked(lambda beam, penalty: beam[1] / len(beam[0]) ** penalty),
        ),
    ),
    Mistake(
        "the sentence has lost the 0 at its end, or whatever comes last. The exercise wants the "
        "whole of it.",
        (_without_end, _without_last),
    ),
    Mistake(
        "the least likely children are kept: which way round does your list lie?",
        (_misled(sign=-1),),
    ),
    Mistake(
        "children are ranked by their last token alone: log p of a sentence is the sum over all "
        "its tokens.",
        (_misled(summed=False),),
    ),
)


# 3.7 ---------------------------------------------------------------------------------


def _pieces_of_backward(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Tanh of all pairs ``[n, m, h]``, weights and dL/dweights ``[n, m]``."""
    tanh = (query[:, None] + key).tanh()
    return tanh, (tanh @ weight).softmax(1), grad @ value.T


def _slope(p: Tensor, dp: Tensor) -> Tensor:
    return p * (dp - (p * dp).sum(1, keepdim=True))


#: What someone may take for dL/dscore.
_WRONG_SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "diagonal": lambda p, dp: p * dp,
    "diagonal squared": lambda p, dp: p * (1 - p) * dp,
    "sum": lambda p, dp: p * (dp - dp.sum(1, keepdim=True)),
    "mean": lambda p, dp: p * (dp - dp.mean(1, keepdim=True)),
    "queries": lambda p, dp: p * (dp - (p * dp).sum(0, keepdim=True)),
    "no keepdim": lambda p, dp: p * (dp - (p * dp).sum(1)),
    "no p": lambda p, dp: dp - (p * dp).sum(1, keepdim=True),
    "none": lambda p, dp: dp,
}


def _dquery(
    slope: Callable[[Tensor, Tensor], Tensor] = _slope,
    inner: Callable[[Tensor], Tensor] = lambda tanh: 1 - tanh**2,
    outer: Callable[[Tensor], Tensor] = lambda weight: weight,
    sign: float = 1,
) -> Callable[..., Tensor]:
    def answer(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
        tanh, p, dp = _pieces_of_backward(query, key, value, weight, grad)
        return sign * torch.einsum("ij,ijh,h->ih", slope(p, dp), inner(tanh), outer(weight))

    return answer


def _dweight(
    inner: Callable[[Tensor], Tensor] = lambda tanh: tanh,
    outer: Callable[[Tensor], Tensor] = torch.ones_like,
    slope: Callable[[Tensor, Tensor], Tensor] = _slope,
) -> Callable[..., Tensor]:
    def answer(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
        tanh, p, dp = _pieces_of_backward(query, key, value, weight, grad)
        return torch.einsum("ij,ijh,h->h", slope(p, dp), inner(tanh), outer(weight))

    return answer


def _dkey(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    tanh, p, dp = _pieces_of_backward(query, key, value, weight, grad)
    return torch.einsum("ij,ijh,h->jh", _slope(p, dp), 1 - tanh**2, weight)


_DQUERY_MISTAKES = (
    Mistake(
        "each weight is taken to depend on its own score alone. All weights of a row share one "
        "normaliser: what does a higher score of key j do to the weights of the others? (A test "
        "without code: if all values are equal, how far can the output move?)",
        (_dquery(_WRONG_SLOPES["diagonal"]), _dquery(_WRONG_SLOPES["diagonal squared"])),
    ),
    Mistake(
        "what is subtracted is a plain sum, or a plain mean, over the keys. In the softmax's "
        "backward pass it is an average: with which weights?",
        (_dquery(_WRONG_SLOPES["sum"]), _dquery(_WRONG_SLOPES["mean"])),
    ),
    Mistake(
        "the average that is subtracted runs over the queries. Each row has its own normaliser.",
        (_dquery(_WRONG_SLOPES["queries"]),),
    ),
    Mistake(
        "the average that is subtracted has lost its axis, and `[n]` meets `[n, m]` as if it had a "
        "number a key. Which shape must it have, to be subtracted from each row?",
        (_dquery(_WRONG_SLOPES["no keepdim"]),),
    ),
    Mistake(
        "the softmax is only half there: dL/dscore is p times something. Where is the p?",
        (_dquery(_WRONG_SLOPES["no p"]), _dquery(_WRONG_SLOPES["none"])),
    ),
    Mistake(
        "the derivative of tanh is missing. Without it the answer is w_h times the sum of "
        "dL/dscore over the keys; what is that sum, for any softmax?",
        (_dquery(inner=torch.ones_like),),
    ),
    Mistake(
        "what is the derivative of tanh(x)? Yours is not 1 - tanh(x)^2.",
        (
            _dquery(inner=lambda tanh: 1 - tanh),
            _dquery(inner=lambda tanh: tanh),
            _dquery(inner=lambda tanh: tanh * (1 - tanh)),
        ),
    ),
    Mistake(
        "w_v is missing: the score is a weighted sum of hidden units, and each unit's weight "
        "stands before its derivative.",
        (_dquery(outer=torch.ones_like),),
    ),
    Mistake(
        "right, but for the sign. (Whoever takes 1 + tanh^2, or tanh^2, for the derivative of tanh "
        "comes here too, since the slopes of a row sum to zero. What is the derivative?)",
        (_dquery(sign=-1),),
    ),
    Mistake(
        "summed over the queries: this is the gradient of the keys. Over what does a query's "
        "gradient sum?",
        (_dkey,),
    ),
)

_DWEIGHT_MISTAKES = (
    Mistake(
        "the derivative of tanh stands here, but w_v stands outside the tanh. How does a score "
        "change with w_h, everything else held fixed?",
        (
            _dweight(inner=lambda tanh: 1 - tanh**2),
            _dweight(lambda tanh: 1 - tanh**2, lambda weight: weight),
        ),
    ),
    Mistake(
        "w_v is in its own gradient. The score is linear in w_v: what is d(w x) / dw?",
        (_dweight(outer=lambda weight: weight),),
    ),
    Mistake(
        "the gradient of the queries goes through the softmax, this one does not, or only in "
        "part: both begin with the same dL/dscore.",
        tuple(_dweight(slope=slope) for slope in _WRONG_SLOPES.values()),
    ),
    Mistake(
        "the pairs are averaged; one weight serves all of them, and their gradients add up.",
        (
            lambda **given: _dweight()(**given) / len(given["query"]),
            lambda **given: _dweight()(**given) / (len(given["query"]) * len(given["key"])),
        ),
    ),
)


# 3.8 ---------------------------------------------------------------------------------


def _part(
    rows: Callable[[int, int], slice], columns: Callable[[int, int], slice]
) -> Callable[..., Tensor]:
    """The sum over some of the queries and some of the keys."""

    def answer(query: Tensor, key: Tensor, slope: Tensor, block: int) -> Tensor:
        mine, passing = rows(len(query), block), columns(len(key), block)
        tanh = (query[mine, None] + key[passing]).tanh()
        return torch.einsum("ij,ijh->h", slope[mine, passing], tanh)

    return answer


def _whole(length: int, block: int) -> slice:
    return slice(0, length // block * block)


def _all_rows(length: int, block: int) -> slice:
    return slice(0, length)


def _first(length: int, block: int) -> slice:
    return slice(0, block)


def _last(length: int, block: int) -> slice:
    return slice((length - 1) // block * block, length)


def _with_tanh(inner: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda query, key, slope, block: torch.einsum(
        "ij,ijh->h", slope, inner((query[:, None] + key).tanh())
    )


def _tiled(rows: Tensor, block: int) -> Tensor:
    """Zeros up to the end of the last tile."""
    return torch.cat([rows, rows.new_zeros(-len(rows) % block, rows.shape[1])])


_GRADIENT_MISTAKES = (
    Mistake(
        "the partial sums are not summed: this is the part of one program alone. Who adds up what "
        "the others have found?",
        (_part(_first, _all_rows), _part(_last, _all_rows)),
    ),
    Mistake(
        "only the last tile of keys counts: what happens to the sum of the tile before, when the "
        "loop comes round?",
        (_part(_all_rows, _last), _part(_last, _last)),
    ),
    Mistake(
        "only the first tile of keys counts: which keys does the second round of the loop load?",
        (_part(_all_rows, _first), _part(_first, _first)),
    ),
    Mistake(
        "the pairs all count alike: where do the slopes come in?",
        (
            lambda query, key, slope, block: (query[:, None] + key).tanh().sum((0, 1)),
            lambda query, key, slope, block: (
                (_tiled(query, block)[:, None] + _tiled(key, block)).tanh().sum((0, 1))
            ),
        ),
    ),
    Mistake(
        "the last tile is missing where it is not full: which way does your number of tiles, or of "
        "programs, round?",
        (_part(_whole, _all_rows), _part(_all_rows, _whole), _part(_whole, _whole)),
    ),
    Mistake(
        "the slopes are read as if they lay transposed: where in memory is the one of query i and "
        "key j?",
        (
            lambda query, key, slope, block: _part(_all_rows, _all_rows)(
                query, key, slope.reshape(slope.T.shape).T, block
            ),
        ),
    ),
    Mistake(
        "this sums the derivative of tanh. How does a score change with w_h, everything else held "
        "fixed?",
        (_with_tanh(lambda tanh: 1 - tanh**2),),
    ),
    Mistake(
        "tanh is missing: this sums q + k.",
        (lambda query, key, slope, block: torch.einsum("ij,ijh->h", slope, query[:, None] + key),),
    ),
    Mistake(
        "the programs' parts are averaged: they are sums over different queries.",
        (
            lambda query, key, slope, block: (
                _part(_all_rows, _all_rows)(query, key, slope, block) / -(-len(query) // block)
            ),
        ),
    ),
)

_OUTSIDE = (
    "a load reads past the end of a tensor. On a GPU that is somebody else's memory. Which rows "
    "of the last tile exist, and which units? Tell `tl.load`, with mask= and other=."
)

_FROM_NAN = (
    "The check fills with NaN what `torch.empty` hands out, and what lies behind the end of the "
    "inputs, and the lanes that a load's mask leaves out, if no other= says what they hold. Is a "
    "slot read that no program wrote, or a lane that holds no row?"
)

_TANH_OUTSIDE = (
    "PyTorch computes tanh. That is the kernel's part: what it stores is to be put together, and "
    "no pair of query and key looked at again."
)

_RACE = (
    "two programs write to the same slot: program {0} and program {1}. Here they run one after "
    "another and it may come out right. On a GPU they run at once: with `tl.store` one of the two "
    "sums is lost, and with `tl.atomic_add` the order of the additions changes from run to run, "
    "and with it the last digits. Which slot could be each program's own?"
)

_TANH_STORED = (
    "a tensor of {0} numbers is made: as many as there are tanh(q_ih + k_jh), or more. That is the "
    "tensor this kernel is there to avoid: a tile of tanh can be made, used and forgotten. How few "
    "numbers does a program have to hand on?"
)
