"""Trainings of chapter 8: a recogniser of digit lines, with and without attention."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attn_course.benchmarks.trainings.common import Record
from attn_course.benchmarks.trainings.recipe import round_to_stored
from attn_course.data import LineBatches, Lines, Stage, digit_lines, save_pretrained
from attn_course.long_sequences import AttentionCRNN, character_error_rate, ctc_loss, read_lines
from attn_course.training import History, fit, seed_everything

#: Narrow lines first: started on wide ones, a recogniser learns to write blanks and stays there.
STAGES = (Stage(32, 64, 300), Stage(96, 32, 350), Stage(800, 6, 280))

#: The highest learning rate, the steps in which it rises, and the longest gradient.
MAX_LR, WARMUP, CLIP_NORM = 3e-3, 30, 2.0

#: What the learning rate of attention is multiplied by. An average is nearly the same for all
#: steps of a line, so that its gradients add up: at the full rate it learns only to say that
#: most steps are blank, and the others learn later.
ATTENTION_RATE = 0.1

#: Lines to be judged by.
JUDGED = 200

#: Name -> options of ``AttentionCRNN``.
MODELS: dict[str, dict[str, Any]] = {
    "lines_none": {},
    "lines_full": {"attention": "full"},
    "lines_sliding": {"attention": "sliding", "window": 32},
    "lines_block": {"attention": "block", "window": 64},
}


def make(options: dict[str, Any], seed: int) -> AttentionCRNN:
    """An untrained recogniser of the ten numerals."""
    seed_everything(seed)
    return AttentionCRNN(num_classes=10, **options)


def train(
    model: AttentionCRNN,
    *,
    stages: Sequence[Stage] = STAGES,
    max_lr: float = MAX_LR,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train a recogniser on digit lines, stage after stage.

    Args:
        model: What to train, in place.
        stages: How wide the lines are, how many a step, for how many steps.
        max_lr: The highest learning rate: it rises for ``WARMUP`` steps, then falls along a
            cosine to nothing.
        seed: Of the lines.
        progress: Show a progress bar where someone can see it.

    Returns:
        What ``fit`` returns: it counts all stages as one epoch.

    Reference:
        Loshchilov and Hutter (2017), SGDR, for the cosine; (2019), Decoupled weight decay
        regularization, for the optimizer.
    """
    batches = LineBatches(stages, seed=seed, height=model.height)
    return fit(
        model,
        batches,
        ctc_loss,
        epochs=1,
        optimizer=scheduled(model, len(batches), max_lr),
        clip_norm=CLIP_NORM,
        seed=seed,
        progress=progress,
    )


def scheduled(model: AttentionCRNN, steps: int, max_lr: float) -> torch.optim.Optimizer:
    """AdamW that changes its learning rates after each of so many steps."""
    attention = set() if model.attention is None else set(model.attention.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p not in attention], "lr": max_lr}
    ]
    if attention:
        slow = [p for p in model.parameters() if p in attention]
        groups.append({"params": slow, "lr": ATTENTION_RATE * max_lr})
    optimizer = torch.optim.AdamW(groups, fused=True)

    def factor(step: int) -> float:
        rise = (step + 1) / WARMUP
        return min(rise, (1 + math.cos(math.pi * step / steps)) / 2)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


def error_rate(model: AttentionCRNN, lines: Lines, *, beam: int | None = None) -> float:
    """Wrong characters for each character of some lines: edits, by their number."""
    readings = read_lines(model, lines.images, lines.widths, beam=beam)
    texts = [reading.text(lines.alphabet) for reading in readings]
    return round(character_error_rate(texts, lines.texts), 4)


def judge(model: AttentionCRNN) -> Record:
    """Error rates on unseen lines of unseen digits, at four widths."""
    widths = (100, 200, 400, 800)
    return {
        "judged": JUDGED,
        "widths": list(widths),
        "error_rate": [
            error_rate(model, digit_lines(JUDGED, width=width, split="test", seed=width))
            for width in widths
        ],
        "validation": error_rate(model, digit_lines(JUDGED, split="validation", seed=1)),
    }


def run_lines(name: str, seed: int, *, stages: Sequence[Stage] = STAGES) -> Record:
    """Train one of ``MODELS`` and judge it."""
    model, start, used = make(MODELS[name], seed), time.perf_counter(), time.process_time()
    history = train(model, stages=stages, seed=seed)
    return {
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - start, 1),
        "core_seconds": round(time.process_time() - used, 1),
        "threads": torch.get_num_threads(),
        "stages": [list(stage) for stage in stages],
        "loss": round(history.train_loss[-1], 4),
    } | judge(model)


#: Name -> the training, a function of the seed.
RUNS: dict[str, Callable[[int], Record]] = {name: partial(run_lines, name) for name in MODELS}


def _keep(name: str, options: dict[str, Any]) -> Path:
    """Train and store a recogniser; it is judged as it is stored, in half precision."""
    model = make(options, 0)
    train(model)
    round_to_stored(model)
    config = {"model": {"num_classes": 10} | options, "seed": 0, **judge(model)}
    return save_pretrained(name, config, model.state_dict())


#: Name of a recogniser that comes with the course -> what trains and stores it.
PRETRAINED: dict[str, Callable[[], Path]] = {
    "digit_lines_crnn": partial(_keep, "digit_lines_crnn", MODELS["lines_full"]),
}
