"""The one place that imports d2l, the library of Dive into Deep Learning.

d2l is a peer to compare with; nothing in the package needs it. ``load()`` smooths its
import in two ways:

- Its first lines import torchvision, which not every machine has, and which fails to
  import when it was built for another torch. Where the real one cannot be had, an empty
  module takes its place while d2l is imported, and goes away afterwards.
- Its plotting functions switch every later figure of a notebook to SVG. That is turned off.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

INSTALL = "python -m attn_course.install_d2l"


class _Missing(ModuleType):
    """An empty module that says what it stands for when something is asked of it."""

    def __init__(self, name: str, **contents: object) -> None:
        """Make the module look like an imported one."""
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.__path__: list[str] = []
        self.__dict__.update(contents)

    def __getattr__(self, name: str) -> object:
        raise AttributeError(
            f"{self.__name__}.{name} is not available: d2l was loaded without torchvision, "
            "which is missing here or does not fit the installed torch."
        )


def load() -> ModuleType:
    """Import d2l's PyTorch part.

    Returns:
        The module ``d2l.torch``.

    Raises:
        ImportError: d2l, or a package that it imports, is missing.

    Example:
        >>> d2l = load()  # doctest: +SKIP
        >>> d2l.masked_softmax(torch.rand(2, 2, 4), torch.tensor([2, 3]))  # doctest: +SKIP
    """
    if "d2l.torch" not in sys.modules:
        if find_spec("d2l") is None:
            raise ImportError(f"d2l is not installed. Run: {INSTALL}")
        with _torchvision():
            try:
                import_module("d2l.torch")
            except ImportError as error:
                raise ImportError(
                    f"d2l is installed but cannot be imported: {error}. It needs numpy, pandas, "
                    "scipy, matplotlib, pillow, requests and IPython; if they are all there, "
                    f"install d2l again: {INSTALL}"
                ) from error
    d2l = sys.modules["d2l.torch"]
    d2l.__dict__["use_svg_display"] = _keep_figure_format
    return d2l


def _keep_figure_format() -> None:
    """Stand in for ``d2l.use_svg_display``: leave the format of figures alone."""


@contextmanager
def _torchvision() -> Iterator[None]:
    """While it lasts, ``import torchvision`` works: the real one if it can be imported."""
    before = set(sys.modules)
    try:
        import_module("torchvision.transforms")
    except Exception:  # a torchvision for another torch raises RuntimeError or OSError
        for name in set(sys.modules) - before:
            if name.split(".")[0] == "torchvision":
                del sys.modules[name]
    else:
        yield
        return

    transforms = _Missing("torchvision.transforms")
    package = _Missing("torchvision", transforms=transforms)
    stubs = {module.__name__: module for module in (package, transforms)}
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name in stubs:
            sys.modules.pop(name, None)
