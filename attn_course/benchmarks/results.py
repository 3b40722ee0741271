"""Stored runs: one JSON file for each case and device."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

#: Of the files' form; readers refuse any other.
SCHEMA = 1

#: Where the runs that belong to the course lie.
RESULTS = Path(__file__).parent / "results"

_TOP = "schema case title date device cpu versions commit results".split()
_ROW = (
    "peer ours direction size status reason max_error median_s p10_s p90_s repeats "
    "peak_bytes flops bytes_moved"
).split()

Record = dict[str, Any]


def check_record(record: Record) -> None:
    """Raise unless a record is one that figures can be drawn from.

    Raises:
        ValueError: Something is missing or out of place; says what.
    """
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ValueError(f"a stored run must have schema {SCHEMA}.")
    missing = [key for key in _TOP if key not in record]
    if missing:
        raise ValueError(f"the run lacks {', '.join(missing)}.")
    if not record["results"]:
        raise ValueError("the run holds no results.")
    for row in record["results"]:
        missing = [key for key in _ROW if key not in row]
        if missing:
            raise ValueError(f"a result lacks {', '.join(missing)}.")
        if row["status"] == "measured":
            times = [row[key] for key in ("p10_s", "median_s", "p90_s")]
            if not all(isinstance(t, float) and math.isfinite(t) and t > 0 for t in times):
                raise ValueError(f"{row['peer']} at {row['size']} has times {times}.")
            if sorted(times) != times or row["repeats"] < 1:
                raise ValueError(f"{row['peer']} at {row['size']} has times out of order.")
        elif not row["reason"]:
            raise ValueError(f"{row['peer']} at {row['size']} gives no reason.")


def store(record: Record, directory: Path = RESULTS) -> Path:
    """Write a record; its file is complete and readable, or as it was before.

    Args:
        record: What ``check_record`` accepts.
        directory: Made if need be.

    Returns:
        The file, ``<case>-<device>.json``.

    Raises:
        ValueError: The record is not in order.
        OSError: It could not be written, or reads differently from what was written.
    """
    check_record(record)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{record['case']}-{record['device']['slug']}.json"
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    handle, aside = tempfile.mkstemp(dir=directory, prefix=f".{path.stem}-", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if json.loads(Path(aside).read_text(encoding="utf-8")) != record:
            raise OSError(f"{path.name} reads differently from what was written.")
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return path


def load_results(name: str, directory: Path = RESULTS) -> list[Record]:
    """The stored runs of a case, oldest first.

    Args:
        name: Of the case, e.g. ``"kernel_regression"``.
        directory: Where they lie.

    Returns:
        Records: ``device``, ``versions``, ``date``, ..., and ``results``, a list with
        an entry for each peer, size and direction.

    Raises:
        ValueError: A file is not a stored run.

    Example:
        >>> load_results("no such case")
        []
    """
    records = []
    for path in sorted(Path(directory).glob(f"{name}-*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            check_record(record)
        except ValueError as error:
            raise ValueError(f"{path.name} is not a stored run: {error}") from error
        if record["case"] == name:
            records.append(record)
    return sorted(records, key=lambda record: record["date"])


def find_run(name: str, device: str = "cuda", directory: Path = RESULTS) -> Record | None:
    """The newest stored run of a case on a device.

    Args:
        name: Of the case.
        device: ``"cuda"`` or ``"cpu"`` for any such device, or a part of its name.
        directory: Where runs lie.

    Returns:
        The record, or ``None`` if there is none.
    """
    for record in reversed(load_results(name, directory)):
        about = record["device"]
        if device == about["type"] or device.lower() in about["name"].lower():
            return record
    return None
