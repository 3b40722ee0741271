"""Chapter 3's exercises: what answers are tried on, and the right ones, in float64."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attn_course.exercises.framework import Case
from attn_course.seq2seq import AttentionDecoder, Encoder, Seq2Seq


def _random(seed: int) -> Callable[..., Tensor]:
    """Normal numbers in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


# 3.1 ---------------------------------------------------------------------------------


class Pieces:
    """The parts of a decoder with additive attention, ready to be called.

    Attributes:
        W_q: Projects states of the decoder, ``[..., hidden]``, to queries of that shape.
        W_k: Projects states of the encoder, ``[..., memory_dim]``, to keys
            ``[..., hidden]``.
        w_v: Weighs the hidden units of a score, ``[hidden]``.
        rnn: A GRU's step: (input ``[batch, memory_dim + embed_dim]``, state ``[batch,
            hidden]``) -> the next state.
        calls: How often each of the three maps was called.
    """

    def __init__(self, hidden: int, memory_dim: int, embed_dim: int, seed: int = 0) -> None:
        random = _random(seed)
        of_query, of_key, self.w_v = (
            random(hidden, hidden),
            random(memory_dim, hidden),
            random(hidden),
        )
        of_input, of_state = random(3 * hidden, memory_dim + embed_dim), random(3 * hidden, hidden)
        self.calls: Counter[str] = Counter()

        def counted(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def call(*arguments: Tensor) -> Tensor:
                self.calls[name] += 1
                return function(*arguments)

            return call

        self.W_q = counted("W_q", lambda state: state @ of_query)
        self.W_k = counted("W_k", lambda memory: memory @ of_key)
        self.rnn = counted("rnn", lambda x, state: torch.gru_cell(x, state, of_input, of_state))

    def __repr__(self) -> str:
        """What a message calls them."""
        return "W_q, W_k, w_v, rnn"


def _state_and_memory(
    batch: int, source_len: int, hidden: int, memory_dim: int, embed_dim: int, seed: int
) -> dict[str, Any]:
    random, pieces = _random(seed), Pieces(hidden, memory_dim, embed_dim, seed + 100)
    memory = random(batch, source_len, memory_dim)
    return {
        "state": random(batch, hidden),
        "token": random(batch, embed_dim),
        "last_context": random(batch, memory_dim),
        "keys": pieces.W_k(memory),
        "memory": memory,
        "pieces": pieces,
    }


def _attend(query: Tensor, keys: Tensor, memory: Tensor, pieces: Pieces, over: int = 1) -> Tensor:
    """The context for a query, ``[batch, memory_dim]``; the softmax along an axis of the scores."""
    scores = (query.unsqueeze(1) + keys).tanh() @ pieces.w_v  # [batch, source_len]
    return torch.einsum("bj,bjd->bd", scores.softmax(over), memory)


def _decoder_step(
    state: Tensor, token: Tensor, last_context: Tensor, keys: Tensor, memory: Tensor, pieces: Pieces
) -> tuple[Tensor, Tensor]:
    context = _attend(pieces.W_q(state), keys, memory, pieces)
    return context, pieces.rnn(torch.cat([context, token], 1), state)


# In the first, a softmax over the batch raises nothing.
_STEP_CASES = (
    Case("as many sentences as source tokens", _state_and_memory(4, 4, 3, 5, 2, 1)),
    Case("a long source", _state_and_memory(2, 9, 4, 3, 3, 2)),
    Case("one sentence", _state_and_memory(1, 5, 2, 6, 4, 3)),
    Case("one source token", _state_and_memory(3, 1, 3, 4, 2, 4)),
)


# 3.2 ---------------------------------------------------------------------------------

#: Ids of the sentences of 3.2: 0 pads, 1 and 2 begin and end a sentence, the others are words.
PAD, BOS, EOS, VOCAB_SIZE = 0, 1, 2, 10

#: What can be wrong with a translator -> how many tokens it takes each source to have.
_FAULTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sound": lambda source, lens, target_lens: lens,
    "mask missing": lambda source, lens, target_lens: torch.full_like(lens, source.shape[1]),
    "eos cut": lambda source, lens, target_lens: lens - 1,
    "target lengths": lambda source, lens, target_lens: target_lens.clamp(1, source.shape[1]),
}

#: The translators of 3.2, and what is wrong with each.
_SUSPECTS = {"A": "target lengths", "B": "sound", "C": "mask missing", "D": "eos cut"}


class Suspect(nn.Module):
    """A small translator with random weights, and perhaps a fault.

    Args:
        fault: Its name in ``_FAULTS``.
        seed: Chooses the weights.
    """

    def __init__(self, fault: str, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = Encoder(VOCAB_SIZE, 6, 8)
            decoder = AttentionDecoder(VOCAB_SIZE, 6, 8, memory_dim=16)
        self._translator = Seq2Seq(encoder, decoder).double().eval()
        self._believed = _FAULTS[fault]
        with torch.no_grad():  # so that each token makes a difference that can be seen
            for parameter in self._translator.parameters():
                parameter.mul_(2)

    @torch.no_grad()
    def forward(self, source: Tensor, source_lens: Tensor, target_input: Tensor) -> Tensor:
        """Score a known target: logits ``[batch, target_len, 10]``."""
        target_lens = (target_input != PAD).sum(1)
        believed = self._believed(source, source_lens, target_lens)
        logits: Tensor = self._translator(source, believed, target_input)
        return logits

    def __repr__(self) -> str:
        """What a message calls it; it does not tell the fault."""
        return "a translator"


class _Hesitant(Suspect):
    """Its first and its last word are the same, whatever the source."""

    def forward(self, source: Tensor, source_lens: Tensor, target_input: Tensor) -> Tensor:
        """As in ``Suspect``."""
        logits = super().forward(source, source_lens, target_input)
        logits[:, [0, -1]] = 0
        return logits


def _sentences(
    source_lens: Sequence[int], target_lens: Sequence[int], seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Source, source_lens and target_input of a padded batch of random words."""
    generator = torch.Generator().manual_seed(seed)

    def padded(lens: Tensor) -> Tensor:
        words = torch.randint(3, VOCAB_SIZE, (len(lens), int(lens.max())), generator=generator)
        return words.masked_fill(torch.arange(words.shape[1]) >= lens.unsqueeze(1), PAD)

    lens, target_lens_ = torch.tensor(source_lens), torch.tensor(target_lens)
    source, target_input = padded(lens), padded(target_lens_)
    source[torch.arange(len(lens)), lens - 1] = EOS
    target_input[:, 0] = BOS
    return source, lens, target_input


def _matters(model: Suspect, source: Tensor, source_lens: Tensor, target_input: Tensor) -> Tensor:
    """By construction: the tokens before the length that the model believes in."""
    target_lens = (target_input != PAD).sum(1)
    believed = model._believed(source, source_lens, target_lens)
    return torch.arange(source.shape[1]) < believed.unsqueeze(1)


def _suspected(fault: str, source_lens: list[int], target_lens: list[int], seed: int) -> Case:
    source, lens, target_input = _sentences(source_lens, target_lens, seed)
    name = "a sound translator" if fault == "sound" else f"a translator with the fault '{fault}'"
    inputs = {"model": Suspect(fault, seed), "source": source, "source_lens": lens}
    return Case(name, inputs | {"target_input": target_input})


def _hesitant(source_lens: list[int], target_lens: list[int], seed: int) -> Case:
    case = _suspected("sound", source_lens, target_lens, seed)
    inputs = case.inputs | {"model": _Hesitant("sound", seed)}
    return Case("a translator whose first and last word are always the same", inputs)


_MATTERS_CASES = (
    _suspected("mask missing", [5, 3, 2], [4, 4, 4], 11),
    _suspected("sound", [6, 4, 2, 5], [3, 6, 4, 2], 12),
    _suspected("target lengths", [6, 3, 4], [3, 6, 4], 13),
    _suspected("eos cut", [5, 2, 4], [2, 5, 3], 14),
    _suspected("sound", [4], [3], 15),
    _suspected("sound", [9, 9, 8], [3, 5, 4], 16),
    _hesitant([5, 3], [4, 4], 17),
)


# 3.3 ---------------------------------------------------------------------------------


def _targets(lens: list[int], seed: int) -> Case:
    """Sentences <bos> ... <eos>, padded."""
    _, _, target = _sentences([2] * len(lens), lens, seed)
    target[torch.arange(len(lens)), torch.tensor(lens) - 1] = EOS
    return Case(f"sentences of {lens} tokens", {"target": target})


def _inputs_and_labels(target: Tensor) -> Tensor:
    """Both, one above the other: ``[2, batch, target_len - 1]``."""
    return torch.stack([target[:, :-1], target[:, 1:]]).double()


_SHIFT_CASES = (_targets([6, 4, 3], 21), _targets([5], 22), _targets([2, 3], 23))


def _scored(lens: list[int], vocab: int, pad: int, seed: int, scale: float = 2.0) -> dict[str, Any]:
    """Logits and labels of sentences with so many labels, <eos> included."""
    logits = scale * _random(seed)(len(lens), max(lens), vocab)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, vocab, logits.shape[:2], generator=generator)
    labels[labels == pad] = 0  # a word, where padding has another id
    padding = torch.arange(max(lens)) >= torch.tensor(lens).unsqueeze(1)
    return {"logits": logits, "labels": labels.masked_fill(padding, pad), "pad": pad}


def _each_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def _masked_loss(logits: Tensor, labels: Tensor, pad: int) -> Tensor:
    return _each_loss(logits, labels)[labels != pad].mean()


_LOSS_CASES = (
    Case("much padding", _scored([6, 2, 1], 7, 0, 24)),
    Case("sentences of like length", _scored([4, 3], 5, 0, 25)),
    Case("padding that has another id than 0", _scored([3, 5], 6, 4, 26)),
    Case("no padding at all", _scored([3, 3], 4, 0, 27)),
    Case("large logits", _scored([4, 2], 5, 0, 28, scale=2000.0)),
)


# 3.4 ---------------------------------------------------------------------------------


def _memory(
    lens: list[int], key_len: int, query_len: int, seed: int, causal: bool = False
) -> dict[str, Any]:
    """Queries, keys, values and who may attend to what, for a batch of these lengths.

    If ``causal``, query i may attend to the first i + 1 of its sentence's keys alone.
    """
    random, hidden, value_dim = _random(seed), 3, 4
    allowed = (torch.arange(key_len) < torch.tensor(lens)[:, None, None]).repeat(1, query_len, 1)
    return {
        "query": random(len(lens), query_len, hidden).float(),
        "key": random(len(lens), key_len, hidden).float(),
        "value": random(len(lens), key_len, value_dim).float() + 2,
        "weight": random(hidden).float(),
        "allowed": allowed.tril() if causal else allowed,
    }


def _even(allowed: Tensor) -> Tensor:
    """Equal weights for all keys that count; none where no key does."""
    count = allowed.sum(-1, keepdim=True).clamp_min(1)
    return allowed.double() / count


def _uniform(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, allowed: Tensor
) -> tuple[Tensor, Tensor]:
    weights = _even(allowed)
    return weights @ value, weights


_UNIFORM_CASES = (
    Case("padding in two of three sentences", _memory([5, 3, 1], 5, 2, 31)),
    Case("no padding", _memory([4, 4], 4, 3, 32)),
    Case("more queries than keys", _memory([2, 3], 3, 6, 33)),
    Case("a sentence that may attend to nothing", _memory([3, 0], 4, 2, 34)),
    Case("queries that may attend to different keys", _memory([5, 3], 5, 4, 35, causal=True)),
)


# 3.5 ---------------------------------------------------------------------------------


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _precision(predicted: list[str], reference: list[str], n: int) -> Tensor:
    found = _ngrams(predicted, n)
    hits = sum((found & _ngrams(reference, n)).values())
    return torch.tensor(hits / sum(found.values()), dtype=torch.float64)


def _brevity(predicted: list[str], reference: list[str]) -> float:
    return math.exp(min(0.0, 1 - len(reference) / len(predicted)))


def _bleu(predicted: list[str], reference: list[str], k: int) -> Tensor:
    if not predicted:
        return torch.tensor(0.0, dtype=torch.float64)
    score = torch.tensor(_brevity(predicted, reference), dtype=torch.float64)
    for n in range(1, min(k, len(predicted)) + 1):
        score = score * _precision(predicted, reference, n) ** (0.5**n)
    return score


_SENTENCES = {
    "a word that is said too often": ("le le le chat", "le chat dort"),
    "one wrong word": ("il est mouillé .", "il est calme ."),
    "a prediction that is too short": ("les chats noirs", "les chats noirs ont mangé deux pommes"),
    "a prediction that is too long": ("le chat noir a a mangé la la pomme", "le chat a mangé"),
    "no word in common": ("je suis ici", "il est calme ."),
    "the reference itself": ("deux pommes rouges .", "deux pommes rouges ."),
    "a prediction that goes on": ("le chat dort bien ici", "le chat dort"),
    "words in another order": ("pommes deux le chat mange rouges", "le chat mange deux pommes"),
}


def _texts(name: str, **rest: int) -> Case:
    predicted, reference = (text.split() for text in _SENTENCES[name])
    return Case(name, {"predicted": predicted, "reference": reference, **rest})


_PRECISION_CASES = (
    _texts("a word that is said too often", n=1),
    *(_texts(name, n=n) for name in list(_SENTENCES)[1:] for n in (1, 2, 3)),
)

_BLEU_CASES = (
    _texts("one wrong word", k=2),
    _texts("a prediction that is too short", k=2),
    _texts("a prediction that is too long", k=3),
    _texts("words in another order", k=2),
    _texts("a word that is said too often", k=1),
    _texts("no word in common", k=2),
    _texts("the reference itself", k=4),
    _texts("a prediction that is too short", k=5),
    _texts("a prediction that goes on", k=3),
    _texts("a prediction that goes on", k=4),
    Case("nothing predicted", {"predicted": [], "reference": ["oui", "."], "k": 2}),
)


# 3.6 ---------------------------------------------------------------------------------


class NextToken:
    """A language model that is a table: after each prefix, fixed log-probabilities.

    Args:
        vocab_size: How many tokens there are; the id 0 ends a sentence.
        seed: Chooses the table.
        sharpness: How unequal the probabilities are.
        ending: Added to the logit of the end.

    Attributes:
        asked_past_the_end: Whether it was asked what follows a sentence that has ended.
    """

    def __init__(self, vocab_size: int, seed: int, sharpness: float, ending: float) -> None:
        self.vocab_size, self.seed = vocab_size, seed
        self.sharpness, self.ending = sharpness, ending
        self.asked_past_the_end = False

    def __call__(self, prefix: Sequence[int]) -> Tensor:
        """What follows ``prefix``: ``[vocab_size]``, logarithms of probabilities."""
        tokens = [int(token) for token in prefix]
        self.asked_past_the_end |= 0 in tokens
        code = 0
        for token in tokens:
            code = code * (self.vocab_size + 1) + token + 1
        generator = torch.Generator().manual_seed(1000 * self.seed + code % 999_983)
        logits = torch.randn(self.vocab_size, generator=generator, dtype=torch.float64)
        logits *= self.sharpness
        logits[0] += self.ending
        return logits.log_softmax(0)

    def __repr__(self) -> str:
        """What a message calls it."""
        return "a function"


#: A sentence so far, the logarithm of its probability, and whether it has ended.
Beam = tuple[list[int], float, bool]


def _rank(beam: Beam, penalty: float) -> float:
    return beam[1] / ((5 + len(beam[0])) / 6) ** penalty


def _grow(log_probs: NextToken, beam: Beam) -> list[Beam]:
    return [
        ([*beam[0], token], beam[1] + step, token == 0)
        for token, step in enumerate(log_probs(beam[0]).tolist())
    ]


def _likeliest(beams: list[Beam], count: int) -> list[Beam]:
    return sorted(beams, key=lambda beam: -beam[1])[: max(count, 0)]


def _ids(tokens: Sequence[int], max_len: int) -> Tensor:
    """A sentence as a tensor ``[max_len]``; -1 where it is over."""
    return torch.tensor([*tokens, *[-1] * max_len][:max_len], dtype=torch.float64)


def _search(
    log_probs: NextToken, width: int, max_len: int, penalty: float
) -> tuple[list[Beam], list[Beam]]:
    """All that is kept at the end: sentences in the order in which they ended, and open ones."""
    ended: list[Beam] = []
    beams: list[Beam] = [([], 0.0, False)]
    for _ in range(max_len):
        grown = [child for beam in beams for child in _grow(log_probs, beam)]
        kept = _likeliest(grown, width - len(ended))
        ended += [beam for beam in kept if beam[2]]
        beams = [beam for beam in kept if not beam[2]]
    return ended, beams


def _beam_search(log_probs: NextToken, width: int, max_len: int, penalty: float) -> Tensor:
    ended, beams = _search(log_probs, width, max_len, penalty)
    return _ids(max([*ended, *beams], key=lambda beam: _rank(beam, penalty))[0], max_len)


def _table(
    name: str, seed: int, *, vocab: int, width: int, max_len: int, penalty: float,
    sharpness: float = 1.0, ending: float = 0.0,
) -> Case:  # fmt: skip
    model = NextToken(vocab, seed, sharpness, ending)
    inputs = {"log_probs": model, "width": width, "max_len": max_len, "penalty": penalty}
    return Case(name, inputs)


# Found by search: on these, no two of the known mistakes give the same sentences throughout.
_BEAM_CASES = (
    _table("a small penalty", 410, vocab=5, width=4, max_len=6, penalty=0.3, ending=0.4),
    _table("two beams, no penalty", 86, vocab=4, width=2, max_len=6, penalty=0.0, ending=0.5),
    _table("three beams", 347, vocab=4, width=3, max_len=6, penalty=0.8, ending=0.8),
    _table("four beams", 157, vocab=5, width=4, max_len=7, penalty=0.7, ending=0.8),
    _table("ends that are not likely", 271, vocab=4, width=2, max_len=5, penalty=1.0, ending=-0.5),
    _table(
        "a penalty of one", 323, vocab=5, width=3, max_len=5, penalty=1.0, sharpness=1.2, ending=0.3
    ),
    _table(
        "a short limit", 205, vocab=5, width=3, max_len=5, penalty=1.0, sharpness=1.2, ending=0.3
    ),
    _table("one beam, which is greedy", 394, vocab=4, width=1, max_len=5, penalty=0.5),
    _table("an end that counts", 15, vocab=4, width=3, max_len=5, penalty=1.0, ending=0.5),
    _table("early ends", 39, vocab=4, width=3, max_len=5, penalty=1.0, ending=0.5),
    _table("more places than tokens", 7, vocab=3, width=5, max_len=4, penalty=0.5),
)


# 3.7 ---------------------------------------------------------------------------------


def _attention_inputs(
    query_len: int, key_len: int, hidden: int, value_dim: int, seed: int
) -> dict[str, Any]:
    random = _random(seed)
    return {
        "query": random(query_len, hidden).float(),
        "key": random(key_len, hidden).float(),
        "value": random(key_len, value_dim).float(),
        "weight": 1.5 * random(hidden).float(),
        "grad": random(query_len, value_dim).float(),
    }


def _additive_backward(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """By automatic differentiation: it owes nothing to a formula on paper."""
    query, weight = query.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.enable_grad():
        scores = (query[:, None] + key).tanh() @ weight
        output = scores.softmax(1) @ value
        dquery, dweight = torch.autograd.grad(output, (query, weight), grad)
    return dquery, dweight


# The square comes first: there, a sum over the wrong axis raises nothing.
_BACKWARD_CASES = (
    Case("as many queries as keys", _attention_inputs(4, 4, 3, 2, 61)),
    Case("more keys than queries", _attention_inputs(2, 7, 4, 3, 62)),
    Case("more queries than keys", _attention_inputs(6, 3, 2, 5, 63)),
    Case("one key, where nothing can move", _attention_inputs(3, 1, 3, 2, 64)),
)


# 3.8 ---------------------------------------------------------------------------------


def _slopes(query_len: int, key_len: int, hidden: int, block: int, seed: int) -> dict[str, Any]:
    random = _random(seed)
    return {
        "query": random(query_len, hidden).float(),
        "key": random(key_len, hidden).float(),
        "slope": random(query_len, key_len).float(),
        "block": block,
    }


def _weight_gradient(query: Tensor, key: Tensor, slope: Tensor, block: int) -> Tensor:
    return torch.einsum("ij,ijh->h", slope, (query[:, None] + key).tanh())


_GRADIENT_CASES = (
    Case("tails in both directions", _slopes(7, 13, 5, 4, 71)),
    Case("rows that fill their tiles", _slopes(16, 8, 4, 8, 72)),
    Case("fewer rows than a tile", _slopes(9, 7, 3, 16, 73)),
    Case("many tiles", _slopes(40, 23, 6, 16, 74)),
)
