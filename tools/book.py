"""Build the book and its slides: ``python -m tools.book``."""

from __future__ import annotations

import shutil
import subprocess
import sys

from tools import slides
from tools.course import BUILD, ROOT


def main() -> int:
    """Build into ``_build/html``; returns the exit status."""
    run = "from jupyter_book.cli.main import main; main()"
    options = ["build", ".", "-W", "-n", "--keep-going"]
    status = subprocess.run([sys.executable, "-c", run, *options], cwd=ROOT, check=False).returncode
    if status:
        return status
    slides.build(BUILD / "slides")
    shutil.copytree(BUILD / "slides", BUILD / "html" / "slides", dirs_exist_ok=True)
    print(f"\nThe book:   {BUILD / 'html' / 'index.html'}")
    print(f"The slides: {BUILD / 'html' / 'slides' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
