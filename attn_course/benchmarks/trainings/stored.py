"""Stored trainings: one JSON file a name, with device, versions and date."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch

from attn_course.benchmarks import environment
from attn_course.benchmarks.results import RESULTS
from attn_course.benchmarks.trainings.common import Record

STORED = RESULTS / "trainings"


def find_training(name: str, directory: Path = STORED) -> Record:
    """A stored training.

    Args:
        name: Which one, a key of ``RUNS``.
        directory: Where they lie.

    Returns:
        ``runs``, one record a seed; ``note``, a line that says on what and when it ran;
        ``device``, ``versions``, ``date``.

    Raises:
        ValueError: None of that name is stored.
    """
    path = directory / f"{name}.json"
    if not path.exists():
        there = ", ".join(sorted(file.stem for file in directory.glob("*.json")))
        raise ValueError(
            f"{name} has not been run: python -m attn_course.benchmarks.trainings {name}. "
            f"Stored are: {there or 'none'}."
        )
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    runs = record["runs"]
    seconds = round(sum(r["seconds"] for r in runs) / len(runs))
    record["note"] = (
        f"stored run: {len(runs)} seed{'s' if len(runs) > 1 else ''}, {seconds} s each, "
        f"{record['device']['name']}, torch {record['versions']['torch']}, {record['date'][:10]}"
    )
    return record


def store(name: str, runs: list[Record], directory: Path = STORED) -> Path:
    """Write a training's file whole, or leave what was there."""
    about = environment.describe(torch.device("cpu"))
    record = {
        "name": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **about,
        "runs": runs,
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    handle, aside = tempfile.mkstemp(dir=directory, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1, ensure_ascii=False, allow_nan=False)
            file.write("\n")
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return path
