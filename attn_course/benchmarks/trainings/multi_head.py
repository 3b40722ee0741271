"""Trainings of chapter 4: chapter 3's translator, its decoder looking up with several heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from attn_course.benchmarks.trainings.common import Record, keep, on_grammar
from attn_course.benchmarks.trainings.seq2seq import ENCODER
from attn_course.data import Vocabulary
from attn_course.multi_head import build_translator
from attn_course.seq2seq import Translator

#: Heads project values and outputs as well; with states of 100 instead of 128 numbers the model
#: has as many parameters as chapter 3's, whatever the number of heads.
DECODER: dict[str, Any] = {"embed_dim": 64, "hidden_dim": 100}

#: How, as chapter 3's notebook: sentences a step, highest learning rate.
TRAINING: dict[str, Any] = {"batch_size": 128, "max_lr": 6e-3}


def make(num_heads: int, source: Vocabulary, target: Vocabulary) -> Translator:
    """The chapter's translator with so many heads, untrained."""
    return build_translator(ENCODER, DECODER | {"num_heads": num_heads}, source, target)


def run_heads(num_heads: int, seed: int) -> Record:
    """Train with so many heads; judge on sentences that the model has not seen."""
    return on_grammar(partial(make, num_heads), seed, **TRAINING)


#: Name -> the training, a function of the seed.
RUNS: dict[str, Callable[[int], Record]] = {
    f"heads_{count}": partial(run_heads, count) for count in (1, 4)
}


def _keep(name: str, num_heads: int) -> Path:
    return keep(name, ENCODER, DECODER | {"num_heads": num_heads}, build_translator, **TRAINING)


#: Name of a translator that comes with the course -> what trains and stores it.
PRETRAINED: dict[str, Callable[[], Path]] = {
    "grammar_french_heads": partial(_keep, "grammar_french_heads", 4),
}
