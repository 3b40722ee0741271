"""Run the notebooks as Colab does: ``python -m tools.colab [NN]``.

For the Python of an environment that has what Colab has (``tools/colab.txt``, or Colab's own
image) and lacks the course. Every notebook runs from its first cell, in an empty folder. Its
set-up cell runs as it stands; git takes the last commit of this checkout for the repository
that the cell names. Outputs are not compared: Colab's versions have last digits of their own.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tools.course import NOTEBOOKS, ROOT, numbered, repository

GIT = """\
[url "{here}"]
    insteadOf = {repository}
[safe]
    directory = *
"""


def installed() -> dict[str, str]:
    """Name and version of every package of this Python, whatever lies in the checkout."""
    importlib.invalidate_caches()
    places = [place for place in sys.path if Path(place).resolve() != ROOT]
    return {found.metadata["Name"]: found.version for found in metadata.distributions(path=places)}


def replaced(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Packages that were there before, and are gone or have another version after."""
    return [
        f"{name} {version} -> {after.get(name, 'none')}"
        for name, version in before.items()
        if after.get(name) != version
    ]


def run(path: Path, folder: Path) -> str:
    """Run a notebook in ``folder``; what its first failing cell said, or nothing."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    try:
        client.execute()
    except (CellExecutionError, RuntimeError) as error:
        return str(error)
    return ""


def main(arguments: list[str]) -> int:
    """Run the notebooks; returns how many failed, and one more if anything was replaced."""
    before, failures = installed(), 0
    if "attn-course" in before:
        print("This Python has the course already: python -m pip uninstall attn-course")
        return 2
    number = arguments[0] if arguments else None
    notebooks = [p for f in ("", "solutions") for p in numbered(NOTEBOOKS / f, number, ".ipynb")]
    os.environ.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "gitconfig"
        config.write_text(GIT.format(here=ROOT.as_uri(), repository=repository()), "utf-8")
        os.environ["GIT_CONFIG_GLOBAL"] = str(config)
        for path in notebooks:
            start = time.perf_counter()
            said = run(path, Path(tempfile.mkdtemp(dir=folder)))
            failures += bool(said)
            print(f"{path.relative_to(ROOT)}: {time.perf_counter() - start:.0f} s", flush=True)
            print(said, end="", flush=True)
    after = installed()
    new = sorted(f"{name} {after[name]}" for name in after.keys() - before.keys())
    print("Installed:", *(new or ["nothing"]), sep="\n  ")
    changed = replaced(before, after)
    print("Replaced:", *(changed or ["nothing"]), sep="\n  ")
    return failures + bool(changed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
