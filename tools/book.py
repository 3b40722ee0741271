"""Build the book and its slides: ``python -m tools.book``."""

from __future__ import annotations

import shutil
import subprocess
import sys

from tools import slides
from tools.course import BUILD, ROOT


def main() -> int:
    """Build into ``_build/html``; returns the exit status."""
    command = [sys.executable, "-m", "jupyter_book.cli.main", "build", ".", "-W", "-n"]
    status = subprocess.run([*command, "--keep-going"], cwd=ROOT, check=False).returncode
    if status:
        return status
    status = slides.build()
    if status:
        return status
    shutil.copytree(BUILD / "slides", BUILD / "html" / "slides", dirs_exist_ok=True)
    print(f"\nThe book:   {BUILD / 'html' / 'index.html'}")
    print(f"The slides: {BUILD / 'html' / 'slides' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
