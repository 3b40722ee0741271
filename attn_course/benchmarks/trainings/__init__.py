"""Trainings that take longer than a class: run here, stored, shown in the chapters.

One module a chapter; each has ``RUNS``, name -> training, and ``PRETRAINED``, the translators
that come with the course. ``python -m attn_course.benchmarks.trainings`` runs them.
"""

from attn_course.benchmarks.trainings.command import PRETRAINED, RUNS, main
from attn_course.benchmarks.trainings.common import (
    BATCH_SIZE,
    EPOCHS,
    MAX_LR,
    SHORT_EPOCHS,
    SHORT_SIZE,
    SIZE,
    Record,
    exact_match,
    next_token_loss,
    on_grammar,
    train,
    vocabularies,
)
from attn_course.benchmarks.trainings.curve import LossCurve
from attn_course.benchmarks.trainings.seq2seq import DECODER, ENCODER
from attn_course.benchmarks.trainings.stored import STORED, find_training, store
from attn_course.benchmarks.trainings.tables import (
    OverSeeds,
    exact_match_table,
    lecture_sentences,
    over_seeds,
)

__all__ = [
    "BATCH_SIZE",
    "DECODER",
    "ENCODER",
    "EPOCHS",
    "MAX_LR",
    "PRETRAINED",
    "RUNS",
    "SHORT_EPOCHS",
    "SHORT_SIZE",
    "SIZE",
    "STORED",
    "LossCurve",
    "OverSeeds",
    "Record",
    "exact_match",
    "exact_match_table",
    "find_training",
    "lecture_sentences",
    "main",
    "next_token_loss",
    "on_grammar",
    "over_seeds",
    "store",
    "train",
    "vocabularies",
]
