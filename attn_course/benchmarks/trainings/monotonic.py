"""Trainings of chapter 10: letters that are merged and repeated.

Both of the source's tasks, at its sizes: ten letters, sources of 32, each run of equal letters
said three times ("many"), or once ("one"). Attention along a path or without restriction, queries
with recurrence or without, and the source's own model as it was trained, for 100 steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attn_course.benchmarks.trainings.common import Record
from attn_course.benchmarks.trainings.recipe import one_cycle, round_to_stored
from attn_course.benchmarks.trainings.spellers import (
    LENGTH,
    NUM_LETTERS,
    TASKS,
    AsWritten,
    Speller,
    judge,
    wrongness,
)
from attn_course.data import LetterBatches, pretrained, save_pretrained
from attn_course.training import History, fit, seed_everything

#: Steps of a training, sequences in each, and the highest learning rate.
STEPS, BATCH_SIZE, MAX_LR = 500, 32, 1e-2

#: Steps for those that have not learnt it by then.
LONGER = 2000

#: Steps, sequences in each and learning rate of the source.
SOURCE_STEPS, SOURCE_BATCH_SIZE, SOURCE_LR = 100, 16, 1e-3

#: Length of the sources -> how many unseen ones to judge by. Trained on are those of ``LENGTH``.
LENGTHS = {LENGTH: 1000, 64: 200, 128: 100}

#: Name -> options of ``Speller``; each is trained on both tasks.
MODELS: dict[str, dict[str, Any]] = {
    "monotonic": {},
    "monotonic_plain": {"recurrent": False},
    "monotonic_context": {"context": True},
    "free": {"monotonic": False, "context": True},
    "free_no_context": {"monotonic": False},
}


def train(
    model: nn.Module,
    task: str,
    *,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    max_lr: float = MAX_LR,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train on letters that are never the same.

    Args:
        model: A ``Speller``, or another with its ``forward``; trained in place.
        task: A key of ``TASKS``.
        steps: How many batches.
        batch_size: Sequences in each.
        max_lr: The highest learning rate, of a cycle that begins and ends low.
        seed: Of the sequences.
        progress: Show a progress bar where someone can see it.

    Returns:
        What ``fit`` returns: it counts all steps as one epoch.
    """
    optimizer = one_cycle(model.parameters(), max_lr, steps)
    return _fit(model, task, optimizer, steps, batch_size, 1.0, seed, progress)


def train_as_written(
    model: nn.Module, task: str, *, seed: int = 0, progress: bool = True
) -> History:
    """Train as the source does: 100 steps of 16 sequences, with Adam at one learning rate.

    Args:
        model: As in ``train``.
        task: As in ``train``.
        seed: As in ``train``.
        progress: As in ``train``.

    Returns:
        As ``train``.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=SOURCE_LR)
    return _fit(model, task, optimizer, SOURCE_STEPS, SOURCE_BATCH_SIZE, None, seed, progress)


def _fit(
    model: nn.Module, task: str, optimizer: torch.optim.Optimizer, steps: int, batch_size: int,
    clip_norm: float | None, seed: int, progress: bool,
) -> History:  # fmt: skip
    batches = LetterBatches(
        batch_size, steps, repeats=TASKS[task].repeats, num_letters=NUM_LETTERS, length=LENGTH,
        seed=seed,
    )  # fmt: skip
    return fit(
        model, batches, wrongness, epochs=1, optimizer=optimizer, clip_norm=clip_norm,
        seed=seed, progress=progress,
    )  # fmt: skip


def learn(
    make: Callable[..., nn.Module],
    task: str,
    seed: int,
    *,
    steps: int = STEPS,
    source: bool = False,
    **options: Any,
) -> tuple[nn.Module, Record]:
    """Train a model and judge it.

    Args:
        make: ``Speller`` or ``AsWritten``.
        task: A key of ``TASKS``.
        seed: Of the parameters and of the sequences.
        steps: How many batches.
        source: Train as the source does instead.
        options: Of the model.
    """
    seed_everything(seed)
    model = make(task, **options)
    start, used = time.perf_counter(), time.process_time()
    if source:
        train_as_written(model, task, seed=seed)
    else:
        train(model, task, steps=steps, seed=seed)
    record = {
        "seed": seed,
        "task": task,
        "options": options,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": SOURCE_STEPS if source else steps,
        "seconds": round(time.perf_counter() - start, 1),
        "core_seconds": round(time.process_time() - used, 1),
        "threads": torch.get_num_threads(),
    }
    return model, record | judge(model, task, lengths=LENGTHS)


def run(make: Callable[..., nn.Module], task: str, seed: int, **options: Any) -> Record:
    """The record of ``learn``."""
    return learn(make, task, seed, **options)[1]


def _runs(task: str) -> dict[str, Callable[[int], Record]]:
    """What is compared on a task."""
    runs = {name: partial(run, Speller, task, **options) for name, options in MODELS.items()}
    runs["free_longer"] = partial(run, Speller, task, steps=LONGER, **MODELS["free"])
    for name, recurrent in (("as_written", True), ("as_written_plain", False)):
        written = partial(run, AsWritten, task, recurrent=recurrent)
        runs[name] = partial(written, source=True)
        runs[f"{name}_longer"] = written
    return {f"letters_{task}_{name}": make for name, make in runs.items()}


#: Name -> the training, a function of the seed. "longer" is ``STEPS`` for the source's model, which
#: it trained for 100, and ``LONGER`` for free attention.
RUNS: dict[str, Callable[[int], Record]] = {
    name: make for task in TASKS for name, make in _runs(task).items()
}


def load_speller(name: str = "letters_many") -> Speller:
    """A model that comes with the course, trained, in evaluation mode.

    Args:
        name: A key of ``PRETRAINED``.

    Raises:
        ValueError: There is none of that name.
    """
    config, state = pretrained(name)
    model = Speller(**config["model"])
    model.load_state_dict(state)
    return model.eval()


def _keep(name: str, task: str) -> Path:
    """Train and store a model; it is judged as it is stored, in half precision."""
    model, record = learn(Speller, task, 0)
    round_to_stored(model)
    config = {"model": {"task": task}, "seed": 0, "steps": record["steps"]}
    return save_pretrained(name, config | judge(model, task, lengths=LENGTHS), model.state_dict())


#: Name of a model that comes with the course -> what trains and stores it.
PRETRAINED: dict[str, Callable[[], Path]] = {
    f"letters_{task}": partial(_keep, f"letters_{task}", task) for task in TASKS
}
