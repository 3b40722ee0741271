"""What a run was made on: device, versions, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import attn_course

PACKAGES = ("torch", "triton", "numpy", "pykeops")


def cpu_model() -> str:
    """The name of the processor."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def slug(text: str) -> str:
    """A text as part of a file's name.

    Example:
        >>> slug("NVIDIA H200")
        'nvidia-h200'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def load() -> float | None:
    """How many processes wanted a processor in the last minute, on average."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions | {"attn_course": attn_course.__version__}


def _commit() -> str | None:
    """The commit of the package's checkout, with ``-dirty`` after it if files were changed."""
    here = Path(attn_course.__file__).parent

    def git(*arguments: str) -> str | None:
        command = ["git", "--no-optional-locks", *arguments]
        try:
            run = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None  # installed, perhaps inside someone else's repository
    return git("describe", "--always", "--dirty", "--exclude=*", "--abbrev=12")


def describe(device: torch.device) -> dict[str, Any]:
    """Everything about this machine that a reader of the numbers may ask for."""
    threads = torch.get_num_threads()
    cpu = {"model": cpu_model(), "cores": os.cpu_count(), "threads": threads}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        about = {
            "type": "cuda",
            "name": name,
            "capability": f"{major}.{minor}",
            "memory_bytes": torch.cuda.get_device_properties(device).total_memory,
            "slug": slug(name),
        }
    else:
        plural = "thread" if threads == 1 else "threads"
        about = {
            "type": "cpu",
            "name": f"{cpu['model']}, {threads} {plural}",
            "capability": None,
            "slug": slug(f"cpu {cpu['model']} {threads} {plural}"),
        }
    return {
        "device": about,
        "cpu": cpu,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": _versions(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "commit": _commit(),
        "load": load(),
    }
