"""``python -m attn_course.benchmarks [names] [--list] [--quick] [--output DIR] [--device D]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from attn_course.benchmarks.cases import Case, all_cases
from attn_course.benchmarks.results import RESULTS
from attn_course.benchmarks.run import run
from attn_course.benchmarks.verify import CheckFailed


def list_cases(cases: list[Case], device: torch.device) -> str:
    """What there is, and what of it can run on a device."""
    lines = []
    for case in cases:
        lines.append(f"{case.name}: {case.title}")
        for direction, sizes in case.sizes[device.type].items():
            lines.append(f"  {direction}: n = {', '.join(f'{size:,}' for size in sizes)}")
        for peer in case.peers_on(device):
            note = peer.why_not(device) or peer.why_untimed(device) or "available"
            lines.append(f"  {peer.name}{' (ours)' if peer.ours else ''}: {note}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    cases = all_cases()
    parser = argparse.ArgumentParser(prog="python -m attn_course.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(cases)}")
    parser.add_argument("--list", action="store_true", help="list cases and peers, run nothing")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the records; the package's own by default, none for a quick run",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda if there is one")
    options = parser.parse_args(arguments)

    unknown = [name for name in options.names if name not in cases]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(cases)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = [cases[name] for name in options.names or cases]
    if options.list:
        print(list_cases(chosen, device))
        return 0
    output = options.output or (None if options.quick else RESULTS)
    try:
        run(chosen, device, quick=options.quick, output=output)
    except CheckFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
