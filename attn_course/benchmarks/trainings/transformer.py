"""Chapter 6: the Transformer on the grammar and on real sentences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from attn_course.benchmarks.trainings.common import (
    SHORT_EPOCHS,
    SHORT_SIZE,
    Record,
    keep,
    on_grammar,
    on_pairs,
    on_tatoeba,
)
from attn_course.benchmarks.trainings.seq2seq import on_lecture
from attn_course.data import Vocabulary, multi30k
from attn_course.seq2seq import Translator
from attn_course.transformer import build_translator, label_smoothing_loss

#: What the chapter trains, about as many parameters as chapter 3's translator.
SIZES: dict[str, Any] = {
    "embed_dim": 72,
    "num_heads": 4,
    "hidden_dim": 144,
    "num_layers": 2,
    "norm": "pre",
}

#: How: passes, sentences a step, highest learning rate.
TRAINING: dict[str, Any] = {"epochs": 4, "batch_size": 128, "max_lr": 4e-3}

#: A larger one for real sentences.
LARGE: dict[str, Any] = {
    "embed_dim": 128,
    "num_heads": 4,
    "hidden_dim": 512,
    "num_layers": 3,
    "norm": "pre",
    "dropout": 0.1,
}


def make(
    sizes: dict[str, Any], source: Vocabulary, target: Vocabulary, *, tie_weights: bool = False
) -> Translator:
    """A Transformer whose encoder and decoder have the same sizes, untrained."""
    return build_translator(sizes, sizes, source, target, tie_weights=tie_weights)


def smoothed(target: Vocabulary) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss with a tenth of the mass on the other tokens."""
    return partial(label_smoothing_loss, smoothing=0.1, pad=target.pad)


#: Name -> sizes that differ from the chapter's, and options of the training that do. The short
#: ones compare variants.
GRAMMAR: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "transformer": ({}, {}),
    "transformer_short": ({}, {}),
    "transformer_short_smoothed": ({}, {"loss": smoothed}),
    "transformer_short_tied": ({"tie_weights": True}, {}),
    "transformer_short_two_post": ({"norm": "post"}, {}),
    **{  # of six layers
        f"transformer_short_{norm}{suffix}": ({"num_layers": 6, "norm": norm}, warmup)
        for norm in ("pre", "post")
        for suffix, warmup in (
            ("", {}),
            ("_cold", {"warmup": 0.0}),
            ("_gentle", {"warmup": 0.3, "max_lr": 1e-3}),
        )
    },
}


def run_grammar(name: str, seed: int) -> Record:
    """Train one of ``GRAMMAR``; judge it on sentences that it has not seen."""
    changed, training = GRAMMAR[name]
    sizes = SIZES | changed
    short = {"size": SHORT_SIZE, "epochs": SHORT_EPOCHS, "batch_size": 64}
    options = TRAINING | (short if "_short" in name else {}) | training
    tied = sizes.pop("tie_weights", False)
    return on_grammar(partial(make, sizes, tie_weights=tied), seed, **options)


def run_tatoeba(seed: int) -> Record:
    """The slice of Tatoeba that chapter 3 learned from."""
    return on_tatoeba(
        partial(make, LARGE, tie_weights=True),
        seed,
        epochs=4,
        batch_size=128,
        max_lr=2e-3,
        loss=smoothed,
    )


def run_multi30k(seed: int) -> Record:
    """All of Multi30k; BLEU on its validation files."""
    data = multi30k()
    record = on_pairs(
        partial(make, LARGE, tie_weights=True),
        seed,
        data.train + data.validation,
        data.test,
        min_freq=2,
        max_len=60,
        epochs=10,
        batch_size=128,
        max_lr=2e-3,
        loss=smoothed,
    )
    del record["examples"]  # its sentences may be used, and not be passed on
    return record


def run_lecture(seed: int) -> Record:
    """The lecture's Transformer at the lecture's settings."""
    sizes = {"embed_dim": 256, "num_heads": 4, "hidden_dim": 64, "num_layers": 2, "dropout": 0.2}
    return on_lecture(partial(make, sizes), seed, epochs=30, lr=0.0015)


#: Name -> the training, a function of the seed.
RUNS: dict[str, Callable[[int], Record]] = {
    **{name: partial(run_grammar, name) for name in GRAMMAR},
    "transformer_tatoeba": run_tatoeba,
    "transformer_multi30k": run_multi30k,
    "transformer_lecture": run_lecture,
}


def _keep(name: str) -> Path:
    return keep(name, SIZES, SIZES, build_translator, **TRAINING)


#: Name of a translator that comes with the course -> what trains and stores it.
PRETRAINED: dict[str, Callable[[], Path]] = {
    "grammar_transformer": partial(_keep, "grammar_transformer"),
}
