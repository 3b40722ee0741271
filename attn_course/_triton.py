"""The one place that imports triton.

Triton decides at import time whether its kernels are compiled for a GPU or
interpreted, operation by operation, in NumPy. This module makes that choice
before triton is first imported: without a CUDA device kernels are interpreted.
A value that the user gave ``TRITON_INTERPRET`` is respected.

Everything else asks here: ``AVAILABLE``, ``INTERPRETED``, ``kernel_device()``,
``describe()``, ``require()``; kernel files import ``triton`` and ``tl`` from here.
"""

from __future__ import annotations

import inspect
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

#: Architectures that kernels ship configurations for: Colab's T4, A100, H100/H200.
ARCHITECTURES = (75, 80, 90)

#: Shared memory one block may ask for, in bytes, by architecture.
SHARED_MEMORY = {75: 64 * 1024, 80: 163 * 1024, 90: 227 * 1024}

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

#: Why triton cannot be used here; empty where it can.
REASON = ""

triton: Any = None
tl: Any = None

try:
    import triton  # type: ignore[no-redef]
    import triton.language as tl  # type: ignore[no-redef]
except ImportError as error:
    if find_spec("triton") is None:
        REASON = (
            f"triton is not installed; it has packages for Linux only, and this is "
            f"{platform.system()} on {platform.machine()}. Everything but the GPU kernels "
            "works without it"
        )
    else:
        REASON = f"triton is installed but cannot be imported: {error}"

AVAILABLE = not REASON

#: True where kernels run in triton's interpreter.
INTERPRETED = AVAILABLE and type(tl.zeros).__name__ == "InterpretedFunction"

#: Whether ``tl.dot`` takes float64: in the interpreter, from triton 3.5 on.
FLOAT64_DOT = INTERPRETED and tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 5)

if AVAILABLE and INTERPRETED != (os.environ["TRITON_INTERPRET"] == "1"):
    REASON = (
        "triton was imported before attn_course, "
        f"{'interpreted' if INTERPRETED else 'compiled'}, while this machine needs it "
        f"{'compiled' if INTERPRETED else 'interpreted'}: restart Python and import "
        "attn_course first"
    )
    AVAILABLE = False


def require(device: torch.device | None = None) -> None:
    """Raise unless kernels can run here, on tensors of ``device``.

    Raises:
        RuntimeError: Triton is missing or was imported in the wrong mode, or
            kernels are compiled and ``device`` is not a CUDA device.
    """
    if not AVAILABLE:
        raise RuntimeError(f"impl='triton' cannot be used: {REASON}.")
    if device is not None and not INTERPRETED and device.type != "cuda":
        raise RuntimeError(
            f"impl='triton' cannot be used: kernels are compiled for the GPU in this "
            f"process, and the tensors are on {device.type!r}. Move them to 'cuda', or "
            "set TRITON_INTERPRET=1 before Python starts."
        )


def require_dot(dtype: torch.dtype) -> None:
    """Raise unless ``tl.dot``, for kernels that call it, takes ``dtype`` here.

    Raises:
        TypeError: It is float64, on a GPU or in an interpreter that is too old.
    """
    if dtype == torch.float64 and not FLOAT64_DOT:
        raise TypeError(
            "impl='triton' has no float64 on a GPU, nor interpreted before triton 3.5: "
            "use impl='reference'."
        )


def kernel_device() -> str:
    """The device whose tensors kernels take here: ``"cpu"`` if interpreted, else ``"cuda"``."""
    return "cpu" if INTERPRETED else "cuda"


def describe() -> str:
    """Say in a few words how kernels run in this process.

    Example:
        >>> from attn_course import _triton
        >>> isinstance(_triton.describe(), str)
        True
    """
    if not AVAILABLE:
        return f"unavailable: {REASON}"
    if INTERPRETED:
        return f"interpreted on the CPU (triton {triton.__version__})"
    if torch.cuda.is_available():
        return f"compiled for {torch.cuda.get_device_name()} (triton {triton.__version__})"
    return f"compiled, without a device to run on (triton {triton.__version__})"


def architecture(device: torch.device) -> int:
    """The shipped architecture whose configurations suit ``device``: 75, 80 or 90.

    The newest one that is no newer than the device; 75 for the interpreter.
    """
    if INTERPRETED or device.type != "cuda":
        return ARCHITECTURES[0]
    major, minor = torch.cuda.get_device_capability(device)
    fitting = [arch for arch in ARCHITECTURES if arch <= 10 * major + minor]
    return max(fitting, default=ARCHITECTURES[0])


@dataclass(frozen=True)
class Shipped:
    """A kernel in one configuration that a launcher uses, for one architecture.

    Attributes:
        kernel: The ``@triton.jit`` function.
        arch: The architecture, e.g. 90.
        signature: Argument name -> triton type, e.g. ``"*fp32"``, ``"i32"``,
            or ``"constexpr"``.
        constexprs: Argument name -> value, for the arguments typed ``"constexpr"``.
        options: ``num_warps``, ``num_stages``.
    """

    kernel: Any
    arch: int
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    options: Mapping[str, int] = field(default_factory=dict)

    def label(self) -> str:
        """A readable name, e.g. ``_attend_fwd_kernel sm_90 KERNEL=gaussian``."""
        values = " ".join(f"{name}={value}" for name, value in self.constexprs.items())
        return f"{self.kernel.__name__} sm_{self.arch} {values}"


def kernel_modules() -> list[str]:
    """Names of the modules that hold kernels.

    Every ``attn_course.<package>.kernel``, and every module beside it whose name ends in
    ``_kernel``.
    """
    import attn_course

    names = []
    for root in map(Path, attn_course.__path__):
        for path in sorted(root.glob("*/*.py")):
            if path.stem == "kernel" or path.stem.endswith("_kernel"):
                names.append(f"attn_course.{path.parent.name}.{path.stem}")
    return names


def shipped_kernels() -> Iterator[Shipped]:
    """Every kernel of the package in every configuration it ships.

    Each kernel module has a function ``shipped()`` that yields its own.
    """
    for name in kernel_modules():
        registry: Callable[[], Iterator[Shipped]] = import_module(name).shipped
        yield from registry()


def source(kernel: Any) -> str:
    """The source text of a kernel, to be shown beside its explanation.

    Args:
        kernel: A ``@triton.jit`` function, compiled or interpreted.
    """
    return inspect.getsource(kernel.fn)
