"""Run every check and print how long each took: ``python -m tools.ledger``.

All checks run, whatever fails before them; the exit status counts the failures.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tools.course import ROOT, numbered

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile")

#: Name, command after the interpreter, and the minutes the finished course may take.
STEPS: list[tuple[str, list[str], float]] = [
    ("lint", ["-m", "ruff", "check", "."], 0.5),
    ("format", ["-m", "ruff", "format", "--check", "."], 0.5),
    ("types", ["-m", "mypy"], 2),
    ("tests", [*PYTEST, "--durations=10", "--ignore=tests/browser"], 17),
    (
        "notebooks",
        [*PYTEST, "--nbval", "--nbval-sanitize-with=tests/nbval.ini", "--durations=10"],
        25,
    ),
    ("book and slides", ["-m", "tools.book"], 3),
    ("in a browser", [*PYTEST, "--dist", "load", "--durations=10", "-rs", "tests/browser"], 12),
]


def main() -> int:
    """Run the steps; returns how many failed."""
    rows = []
    for name, command, budget in STEPS:
        print(f"\n=== {name}", flush=True)
        if name == "notebooks":
            folders = (ROOT / "notebooks", ROOT / "notebooks" / "solutions")
            command = command + [str(p) for f in folders for p in numbered(f, suffix=".ipynb")]
        start = time.perf_counter()
        # Two workers share the cores: with threads of their own they would wait for each other.
        threads = {"OMP_NUM_THREADS": "1"} if "-n" in command else {}
        status = subprocess.run(
            [sys.executable, *command], cwd=ROOT, check=False, env=os.environ | threads
        ).returncode
        rows.append((name, time.perf_counter() - start, budget, status))
    print("\nWhat took how long, on this machine:")
    for name, seconds, budget, status in rows:
        verdict = "passed" if status == 0 else f"FAILED ({status})"
        print(f"  {name:16s} {seconds:7.1f} s of {budget * 60:5.0f} s   {verdict}")
    total, allowed = (sum(row[i] for row in rows) for i in (1, 2))
    print(f"  {'together':16s} {total:7.1f} s of {allowed * 60:5.0f} s")
    return sum(row[3] != 0 for row in rows)


if __name__ == "__main__":
    sys.exit(main())
