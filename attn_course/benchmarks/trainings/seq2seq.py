"""Chapter 3: an encoder-decoder with attention, its rivals, and the real sentences."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attn_course import _d2l
from attn_course.benchmarks.trainings.common import (
    BATCH_SIZE,
    SHORT_EPOCHS,
    SHORT_SIZE,
    Build,
    Record,
    about,
    keep,
    next_token_loss,
    on_grammar,
    on_tatoeba,
    train,
    vocabularies,
)
from attn_course.data import Vocabulary, grammar, tatoeba, translation_batches
from attn_course.seq2seq import Translator, build_translator
from attn_course.training import fit, seed_everything

#: What the chapter trains: a bidirectional encoder, a decoder with additive attention.
ENCODER: dict[str, Any] = {"embed_dim": 64, "hidden_dim": 64}
DECODER: dict[str, Any] = {"embed_dim": 64, "hidden_dim": 128}

#: Name -> options that differ from the chapter's. Where those take away parameters, or add
#: some, states are wider or narrower, so that all have about equally many.
GRAMMAR: dict[str, dict[str, Any]] = {
    "attention": {},
    "bottleneck": {"encoder": {"hidden_dim": 72}, "decoder": {"hidden_dim": 127, "scoring": None}},
    "one_way": {"encoder": {"hidden_dim": 101, "bidirectional": False}},
    "uniform": {"decoder": {"hidden_dim": 137, "scoring": "uniform"}},
    "token_query": {"decoder": {"hidden_dim": 124, "query": ("token",)}},
    "short_additive": {},
    "short_last_context": {"decoder": {"hidden_dim": 113, "query": ("state", "context")}},
    "short_generated": {"decoder": {"attend_generated": True}},
    "short_window": {"decoder": {"window": 3}},
    "short_no_v": {"decoder": {"scoring": "no_v"}},
    **{
        f"short_{name}": {"decoder": {"hidden_dim": 127, "scoring": name}}
        for name in ("dot", "scaled_dot", "bilinear", "cosine")
    },
}


def make(name: str, source: Vocabulary, target: Vocabulary) -> Translator:
    """One of ``GRAMMAR``, untrained."""
    return build_translator(*options(name), source, target)


def options(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What encoder and decoder of one of ``GRAMMAR`` are made with."""
    changed = GRAMMAR[name]
    return ENCODER | changed.get("encoder", {}), DECODER | changed.get("decoder", {})


def run_grammar(name: str, seed: int) -> Record:
    """Train one of ``GRAMMAR``; judge it on sentences that it has not seen."""
    short = {"size": SHORT_SIZE, "epochs": SHORT_EPOCHS} if name.startswith("short_") else {}
    return on_grammar(partial(make, name), seed, **short)


def run_languages(tell: bool, seed: int) -> Record:
    """One model writes French and Spanish; which one only the query can tell, if at all."""
    parts = [grammar(language, size=SHORT_SIZE) for language in ("french", "spanish")]
    pairs = parts[0].train + parts[1].train
    source, target = vocabularies(pairs)
    seed_everything(seed)
    options = {"query": ("state", "language"), "num_languages": 2} if tell else {}
    translator = build_translator(ENCODER, DECODER | options, source, target)
    languages = [0] * len(parts[0].train) + [1] * len(parts[1].train)
    batches = translation_batches(
        pairs,
        source,
        target,
        batch_size=BATCH_SIZE,
        seed=seed,
        languages=languages if tell else None,
    )
    start = time.perf_counter()
    train(translator, batches, seed=seed)
    seconds = time.perf_counter() - start
    right = {}
    for language, (name, data) in enumerate(zip(("french", "spanish"), parts, strict=True)):
        asked = [pair.source for pair in data.test]
        found = translator.translate(asked, language=language if tell else None)
        hits = [f.text == pair.target for f, pair in zip(found, data.test, strict=True)]
        right[name] = round(sum(hits) / len(hits), 4)
    return about(translator, seed, seconds) | {"right": right}


def run_tatoeba(seed: int) -> Record:
    """A small model on a slice of Tatoeba."""
    sizes = {"embed_dim": 128, "dropout": 0.1}
    return on_tatoeba(
        partial(build_translator, sizes | {"hidden_dim": 128}, sizes | {"hidden_dim": 256}),
        seed,
        epochs=4,
        max_lr=2e-3,
    )


#: The four sentences of the lecture, and their translations there.
LECTURE = (
    ("go .", "va !"),
    ("i lost .", "j'ai perdu ."),
    ("he's calm .", "il est calme ."),
    ("i'm home .", "je suis chez moi ."),
)


def run_lecture(seed: int) -> Record:
    """The lecture's recurrent model at the lecture's settings."""
    sizes = {"embed_dim": 256, "hidden_dim": 256, "num_layers": 2, "dropout": 0.4}

    def build(source: Vocabulary, target: Vocabulary) -> Translator:
        translator = build_translator(sizes | {"bidirectional": False}, sizes, source, target)
        for name, weight in translator.model.named_parameters():
            if weight.ndim == 2 and "embedding" not in name:  # as the lecture starts
                nn.init.xavier_uniform_(weight)
        return translator

    return on_lecture(build, seed, epochs=15, lr=0.005)


def on_lecture(build: Build, seed: int, *, epochs: int, lr: float) -> Record:
    """Train on the 512 pairs that d2l gives the lecture; translate the lecture's sentences.

    Args:
        build: As in ``on_grammar``.
        seed: As in ``on_grammar``.
        epochs: How many times to go through the pairs.
        lr: The learning rate of Adam.
    """
    d2l_bleu = _d2l.load().bleu
    # The first 512 are trained on; the vocabularies count the 128 after them as well.
    pairs, counted = ([pair for part in tatoeba(size=n) for pair in part] for n in (512, 640))
    source, target = vocabularies(counted, min_freq=2)
    seed_everything(seed)
    translator = build(source, target)
    batches = translation_batches(pairs, source, target, batch_size=128, seed=seed, unknown="unk")
    start = time.perf_counter()
    fit(
        translator.model,
        batches.for_fit(),
        next_token_loss(target),
        epochs=epochs,
        lr=lr,
        clip_norm=1.0,
        seed=seed,
    )
    seconds = time.perf_counter() - start
    found = translator.translate(
        [text for text, _ in LECTURE], max_len=9, unknown="unk", need_weights=True
    )
    sentences = [
        {
            "source": text,
            "found": f.text,
            "reference": right,
            "bleu": round(d2l_bleu(f.text, right, k=2) if f.text else 0.0, 3),
            "weights": _rounded(torch.as_tensor(f.weights)),
        }
        for f, (text, right) in zip(found, LECTURE, strict=True)
    ]
    return about(translator, seed, seconds) | {"train_pairs": len(pairs), "sentences": sentences}


def _rounded(weights: Tensor) -> Any:
    """Nested lists, four digits each."""
    if weights.ndim:
        return [_rounded(part) for part in weights]
    return round(weights.item(), 4)


#: Name -> the training, a function of the seed.
RUNS: dict[str, Callable[[int], Record]] = {
    **{name: partial(run_grammar, name) for name in GRAMMAR},
    "language_query": partial(run_languages, True),
    "no_language": partial(run_languages, False),
    "tatoeba": run_tatoeba,
    "lecture": run_lecture,
}


def _keep(name: str, which: str) -> Path:
    return keep(name, *options(which), build_translator)


#: Name of a translator that comes with the course -> what trains and stores it.
PRETRAINED: dict[str, Callable[[], Path]] = {
    "grammar_french": partial(_keep, "grammar_french", "attention"),
    "grammar_french_one_way": partial(_keep, "grammar_french_one_way", "one_way"),
}
