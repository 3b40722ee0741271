"""Install d2l, the library of the book Dive into Deep Learning.

``python -m attn_course.install_d2l`` installs it without its dependencies: it asks for
exact versions, some of which current Pythons cannot install, and works with newer ones.
The course needs d2l only to compare with.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

#: The version that the course compares with.
VERSION = "1.0.3"


def installed_version() -> str | None:
    """The version of d2l in this environment, or ``None``."""
    try:
        return metadata.version("d2l")
    except metadata.PackageNotFoundError:
        return None


def main() -> int:
    """Install d2l unless it is there; return an exit status, 0 for success."""
    before = installed_version()
    if before == VERSION:
        print(f"d2l {VERSION} is installed already: nothing to do.")
        return 0
    command = [sys.executable, "-m", "pip", "install", "--no-deps", f"d2l=={VERSION}"]
    print(f"Running {' '.join(command)}", flush=True)
    status = subprocess.run(command, check=False).returncode
    if status != 0:
        print(f"d2l {VERSION} could not be installed: pip ended with status {status}.")
    elif before is None:
        print(f"Installed d2l {VERSION} without its dependencies.")
    else:
        print(f"Replaced d2l {before} by {VERSION}, without its dependencies.")
    return status


if __name__ == "__main__":
    sys.exit(main())
