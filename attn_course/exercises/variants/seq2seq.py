"""Variants of chapter 3's exercises."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import Case
from attn_course.exercises.variants.variant import Parameters, Slip, Variant, changed, random

# 3.3 ---------------------------------------------------------------------------------

#: How losses become one number -> in words, and in code.
_MEANS = {
    "sentence": (
        "First average over the labels of each sentence, then over the sentences: a "
        "sentence counts "
        "once, however long it is",
        "(loss.sum(1) / count).mean()",
    ),
    "sum": (
        "Add up over the labels of each sentence, then average over the sentences",
        "loss.sum(1).mean()",
    ),
    "root": (
        "Add up over the labels of each sentence, divide by the *square root* of "
        "their number, then "
        "average over the sentences",
        "(loss.sum(1) / count.sqrt()).mean()",
    ),
}


def _focal_loss(p: Parameters, logits: Tensor, labels: Tensor, pad: int) -> Tensor:
    """Sentence by sentence."""
    exponents = {"sentence": 1.0, "sum": 0.0, "root": 0.5}
    sentences = []
    every = []
    for row, words in zip(logits.log_softmax(2), labels, strict=True):
        log_p = row[torch.arange(len(words)), words][words != pad]
        loss = -((1 - log_p.exp()) ** p["gamma"]) * log_p
        every.append(loss)
        if p["mean"] != "words":
            sentences.append(loss.sum() / len(loss) ** exponents[p["mean"]])
    return torch.stack(sentences).mean() if sentences else torch.cat(every).mean()


def _scored(lens: list[int], vocab: int, pad: int, seed: int) -> dict[str, Any]:
    logits = 2 * random(seed, len(lens), max(lens), vocab)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, vocab, logits.shape[:2], generator=generator)
    labels[labels == pad] = 0  # a word, where padding has another id
    padding = torch.arange(max(lens)) >= torch.tensor(lens)[:, None]
    return {"logits": logits, "labels": labels.masked_fill(padding, pad), "pad": pad}


_LOSS = Variant(
    varies="3.3",
    title="A loss that looks away from what is known",
    shapes="logits `[batch, len, vocab]`, labels `[batch, len]` → one number",
    stars=2,
    minutes=20,
    choices={"gamma": (1, 2, 3), "mean": tuple(_MEANS)},
    task="""
A label that the model is sure of has little left to teach. The loss of one label is

$$
\\ell = -(1 - p)^{<<gamma>>} \\ln p ,
$$

with $p$ the probability that the softmax of the logits gives the label. Labels that are padding
do not count, wherever they stand. <<phrase>>. Each sentence has at least one label that counts.
""",
    stub='''
def masked_loss(logits: Tensor, labels: Tensor, pad: int) -> Tensor:
    """-(1 - p)^<<gamma>> ln p of each label, and one number of them all.

    Args:
        logits: [batch, len, vocab].
        labels: Ids, [batch, len].
        pad: The id of padding.

    Returns:
        The loss, [].
    """
''',
    answer="""
log_p = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
word = labels != pad                                  # [batch, len]
loss = -((1 - log_p.exp()) ** <<gamma>>) * log_p * word
count = word.sum(1)                                   # [batch]
return <<code>>
""",
    why="""
The factor $(1 - p)^{<<gamma>>}$ depends on the logits, and the gradient goes through it too. What
a mean runs over is a decision about who counts: here it is taken sentence by sentence, and
padding must be gone from the sum and from the count.
""",
    words=lambda p: {"phrase": _MEANS[p["mean"]][0], "code": _MEANS[p["mean"]][1]},
    cases=(
        Case("much padding", _scored([6, 2, 1], 7, 0, 24)),
        Case("padding that has another id than 0", _scored([3, 5], 6, 4, 26)),
        Case("no padding at all", _scored([3, 3], 4, 0, 27)),
        Case("one sentence", _scored([4], 5, 0, 28)),
    ),
    oracle=_focal_loss,
    book=lambda logits, labels, pad: _focal_loss(
        {"gamma": 0, "mean": "words"}, logits, labels, pad
    ),
    slips=(
        Slip("the factor $(1 - p)^{<<gamma>>}$ is missing.", changed(_focal_loss, gamma=0)),
        Slip(
            "all labels of the batch are averaged alike. <<phrase>>.",
            changed(_focal_loss, mean="words"),
        ),
        Slip(
            "padding counts as a label.",
            lambda p, logits, labels, pad: _focal_loss(p, logits, labels, -1),
        ),
    ),
)

# 3.5 ---------------------------------------------------------------------------------

#: Exponent of p_n -> formula, code.
_EXPONENTS = {
    "equal": ("1/k", "1 / k"),
    "growing": (r"2n / \bigl(k (k + 1)\bigr)", "2 * n / (k * (k + 1))"),
    "thirds": ("1/3^n", "3**-n"),
}

#: Factor for the length -> formula, code.
_LENGTHS = {
    "ratio": (r"\min(1,\, c / r)", "min(1, c / r)"),
    "squared": (r"\min(1,\, c / r)^2", "min(1, c / r) ** 2"),
    "both ways": (r"e^{-\lvert 1 - r/c \rvert}", "math.exp(-abs(1 - r / c))"),
}


def _bleu(p: Parameters, predicted: list[str], reference: list[str], k: int) -> Tensor:
    """In logarithms."""
    c, r = len(predicted), len(reference)
    if c == 0:
        return torch.tensor(0.0)
    log_length = {
        "ratio": min(0.0, math.log(c / r)),
        "squared": 2 * min(0.0, math.log(c / r)),
        "both ways": -abs(1 - r / c),
        "book": min(0.0, 1 - r / c),
    }[p["length"]]
    total = torch.tensor(log_length, dtype=torch.float64)
    for n in range(1, min(k, c) + 1):
        exponent = {
            "equal": 1 / k,
            "growing": n / sum(range(1, k + 1)),
            "thirds": 3.0**-n,
            "book": 2.0**-n,
        }
        runs, known = (
            Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
            for tokens in (predicted, reference)
        )
        hits = sum((runs & known if p.get("clipped", True) else _unclipped(runs, known)).values())
        share = torch.tensor(hits / sum(runs.values()), dtype=torch.float64)
        total = total + exponent[p["exponent"]] * share.log()
    return total.exp()


def _unclipped(runs: Counter[Any], known: Counter[Any]) -> Counter[Any]:
    return Counter({run: count for run, count in runs.items() if run in known})


_TEXTS = {
    "a word that is said too often": ("le le le chat", "le chat dort", 2),
    "one wrong word": ("il est mouillé .", "il est calme .", 2),
    "a prediction that is too short": ("les chats noirs", "les chats noirs ont mangé", 2),
    "a prediction that is too long": ("le chat noir a a mangé la pomme", "le chat a mangé", 3),
    "no word in common": ("je suis ici", "il est calme .", 2),
    "the reference itself": ("deux pommes rouges .", "deux pommes rouges .", 4),
    "fewer tokens than k": ("les chats noirs", "les chats noirs ont mangé deux pommes", 5),
    "words in another order": ("pommes deux le chat mange", "le chat mange deux pommes", 2),
}

_BLEU = Variant(
    varies="3.5",
    title="Another BLEU by hand",
    shapes="two lists of tokens → a number in [0, 1]",
    stars=2,
    minutes=25,
    choices={"exponent": tuple(_EXPONENTS), "length": tuple(_LENGTHS)},
    task="""
A score of its own: with $c$ tokens predicted and $r$ in the reference,

$$
\\text{score} = <<length_formula>> \\; \\prod_{n=1}^{\\min(k, c)} p_n^{\\,<<exponent_formula>>} .
$$

$p_n$ is the clipped precision: the share of the prediction's runs of $n$ tokens that are in the
reference, where none counts more often than the reference has it. An empty prediction scores 0.
Use no library for BLEU. Below the check, compute by hand what *il est mouillé .* scores against
*il est calme .* with $k = 2$, and say in two sentences what this score forgives that the book's
does not, or the other way round.
""",
    stub='''
def bleu(predicted: list[str], reference: list[str], k: int) -> float:
    """The score of a prediction.

    Args:
        predicted: Tokens; may be fewer than k, or none.
        reference: Tokens, at least one.
        k: The longest run that counts, at least 1.

    Returns:
        A number in [0, 1].
    """
''',
    answer="""
c, r = len(predicted), len(reference)
if c == 0:
    return 0.0
score = <<length_code>>
for n in range(1, min(k, c) + 1):
    runs, known = (
        Counter(tuple(t[i : i + n]) for i in range(len(t) - n + 1))
        for t in (predicted, reference)
    )
    precision = (runs & known).total() / runs.total()
    score *= precision ** (<<exponent_code>>)
return score
""",
    why="""
The parts are those of exercise 3.5, with other numbers in them. For the sentence of the task $p_1
= 3/4$, $p_2 = 1/3$ and the factor for the length is 1. An exponent says how much a length of run
counts: the larger it is, the more a low precision costs.
""",
    words=lambda p: {
        "exponent_formula": _EXPONENTS[p["exponent"]][0],
        "exponent_code": _EXPONENTS[p["exponent"]][1],
        "length_formula": _LENGTHS[p["length"]][0],
        "length_code": _LENGTHS[p["length"]][1],
    },
    cases=(
        *(
            Case(name, {"predicted": one.split(), "reference": two.split(), "k": k})
            for name, (one, two, k) in _TEXTS.items()
        ),
        Case("nothing predicted", {"predicted": [], "reference": ["oui", "."], "k": 2}),
    ),
    oracle=_bleu,
    book=lambda predicted, reference, k: _bleu(
        {"exponent": "book", "length": "book"}, predicted, reference, k
    ),
    slips=(
        Slip("the exponents are those of the book, $1/2^n$.", changed(_bleu, exponent="book")),
        Slip("the factor for the length is that of the book.", changed(_bleu, length="book")),
        Slip(
            "a run counts more often than the reference has it: the precision is not clipped.",
            changed(_bleu, clipped=False),
        ),
    ),
)

VARIANTS = (_LOSS, _BLEU)
