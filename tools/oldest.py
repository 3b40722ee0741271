"""Print the oldest versions that the course supports: ``python -m tools.oldest``.

They are the lower bounds of ``pyproject.toml``, as constraints for pip. Needs nothing but
Python itself, since it runs before anything is installed.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def oldest(requirement: str) -> str:
    """The lower bound of a requirement as an exact version.

    Raises:
        ValueError: It is not a name and one lower bound.
    """
    name_and_bound = requirement.partition(";")[0].strip()
    match = re.fullmatch(r"([\w.-]+)>=([\w.]+)", name_and_bound)
    if match is None:
        raise ValueError(f"{requirement!r} is not a name and one lower bound, as 'numpy>=1.26'.")
    return f"{match[1]}=={match[2]}"


def main() -> None:
    """Print one line for each dependency of the package."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    for requirement in project["dependencies"]:
        print(oldest(requirement))


if __name__ == "__main__":
    main()
