"""The command: ``python -m attn_course.benchmarks.trainings [NAMES] [--seeds N]``.

It trains, and stores one JSON file a name in ``results/trainings``, with device, versions
and date. ``make pretrained`` calls ``--pretrained``: the models that come with the course.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from attn_course.benchmarks.trainings import (
    linformer,
    long_sequences,
    monotonic,
    multi_head,
    occlusion,
    positional,
    seq2seq,
    transformer,
    vision,
    window_depth,
)
from attn_course.benchmarks.trainings.common import Record
from attn_course.benchmarks.trainings.stored import store

#: One a chapter.
MODULES = (
    seq2seq,
    multi_head,
    positional,
    transformer,
    vision,
    occlusion,
    long_sequences,
    window_depth,
    linformer,
    monotonic,
)

#: Name -> the training, a function of the seed.
RUNS: dict[str, Callable[[int], Record]] = {
    name: run for module in MODULES for name, run in module.RUNS.items()
}

#: Name of a translator that comes with the course -> what trains and stores it.
PRETRAINED: dict[str, Callable[[], Path]] = {
    name: make for module in MODULES for name, make in module.PRETRAINED.items()
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m attn_course.benchmarks.trainings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}; all")
    parser.add_argument("--seeds", type=int, default=1, help="how many times each; 1")
    parser.add_argument("--pretrained", action="store_true", help="make the course's translators")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    known = PRETRAINED if options.pretrained else RUNS
    for name in options.names:
        if name not in known:
            parser.error(f"there is no training {name}, only {', '.join(known)}")
    for name in options.names or known:
        if options.pretrained:
            print(f"stored: {PRETRAINED[name]()}", flush=True)
            continue
        runs = [RUNS[name](seed) for seed in range(options.seeds)]
        print(f"stored: {store(name, runs)}", *runs, sep="\n  ", flush=True)
    return 0
