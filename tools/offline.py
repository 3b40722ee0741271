"""One zip to read without a network: ``python -m tools.offline``.

Holds the built book with its slides, the notebooks, the package and the licences of
everything in it.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import attn_course
from tools import book
from tools.course import BUILD, ROOT

#: Whose files are copied into the built pages. Their licence texts travel along.
BUNDLED = (
    "sphinx", "sphinx-book-theme", "pydata-sphinx-theme", "sphinx-design", "sphinx-copybutton",
    "sphinx-togglebutton", "sphinx-thebe", "sphinx-revealjs", "sphinx-mathjax-offline", "myst-nb",
    "jupyter-book",
)  # fmt: skip

OWN = (
    "README.md", "LICENSE", "LICENSE-TEXT.md", "ATTRIBUTION.md", "CITATION.cff", "pyproject.toml",
    "constraints.txt", "environment.yml",
)  # fmt: skip

FIRST = """\
Open book/index.html in a browser. Nothing needs a network.
Slides: book/slides/index.html. Notebooks: notebooks/. The package: attn_course/.
Licences: LICENSE (code), LICENSE-TEXT.md (text), ATTRIBUTION.md and licences/ (what others made).
"""


def licences() -> Iterator[tuple[str, bytes]]:
    """Name and text of each licence that the bundled packages carry."""
    for name in BUNDLED:
        distribution = importlib.metadata.distribution(name)
        metadata = distribution.metadata
        stated = metadata.get("License-Expression") or metadata.get("License") or ""
        kinds = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License")]
        summary = f"{name} {distribution.version}\n{stated}\n" + "\n".join(kinds) + "\n"
        yield f"{name}/about.txt", summary.encode()
        for file in distribution.files or []:
            if "licen" in file.name.lower() or file.name.lower().startswith(("copying", "notice")):
                path = Path(str(distribution.locate_file(file)))
                if path.is_file() and path.suffix not in (".py", ".pyc"):
                    yield f"{name}/{file.as_posix()}", path.read_bytes()


def mathjax() -> Iterator[tuple[str, bytes]]:
    """MathJax's licence, which the package that bundles it leaves out.

    MathJax is under Apache-2.0, and so is sphinx-revealjs, which carries the text.

    Raises:
        FileNotFoundError: It does not carry the text any more.
    """
    yield "MathJax/about.txt", b"MathJax 3 and its fonts, https://www.mathjax.org\nApache-2.0\n"
    for name, text in licences():
        if name.startswith("sphinx-revealjs/") and b"Apache License" in text and len(text) > 9000:
            yield "MathJax/LICENSE", text
            return
    raise FileNotFoundError("no package carries the text of Apache-2.0, MathJax's licence.")


def members() -> Iterator[tuple[Path, str]]:
    """Each file of the zip and its place in it."""
    trees = (
        (BUILD / "html", "book"),
        (ROOT / "notebooks", "notebooks"),
        (ROOT / "attn_course", "attn_course"),
    )
    for folder, name in trees:
        for path in sorted(folder.rglob("*")):
            hidden = {"__pycache__", ".ipynb_checkpoints", ".doctrees"} & set(path.parts)
            if path.is_file() and not hidden:
                yield path, f"{name}/{path.relative_to(folder).as_posix()}"
    for name in OWN:
        yield ROOT / name, name


def top() -> str:
    """The folder that the zip unpacks to."""
    return f"attn-course-{attn_course.__version__}"


def pack(target: Path) -> Path:
    """Write the zip of what is built, aside and then moved into place.

    Args:
        target: The file.

    Returns:
        The same.

    Raises:
        OSError: The file cannot be read back.
    """
    aside = target.with_suffix(".part")
    with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{top()}/READ-ME-FIRST.txt", FIRST)
        for path, name in members():
            archive.write(path, f"{top()}/{name}")
        for name, text in [*licences(), *mathjax()]:
            archive.writestr(f"{top()}/licences/{name}", text)
    with zipfile.ZipFile(aside) as archive:
        broken = archive.testzip()
        count = len(archive.namelist())
    if broken:
        raise OSError(f"{aside} is damaged at {broken}.")
    os.replace(aside, target)
    print(f"\n{target}: {count} files, {target.stat().st_size / 1e6:.1f} MB")
    return target


def main() -> int:
    """Build the book, then the zip."""
    status = book.main()
    if status:
        return status
    target = ROOT / "dist" / f"{top()}-offline.zip"
    target.parent.mkdir(exist_ok=True)
    pack(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
