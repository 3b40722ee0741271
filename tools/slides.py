"""Make the slide decks: figures from the stored notebooks, slides, and PDF.

``python -m tools.slides [--pdf] [--check]`` builds ``book/slides/`` into ``_build/slides/``.
A deck NN_name.md shows figures of notebooks/NN_name.ipynb, by the names of their cells:

    ```{chapter-figure} widths
    ```

Picture and alt text both come from the notebook, so neither is ever pasted. The decks work
from a file, without a network. ``--pdf`` prints each deck, and ``--check`` measures each slide;
both need Chromium or Chrome, and say so where there is none.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from base64 import b64decode
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from docutils.parsers.rst import Directive, directives
from sphinx_revealjs._ext.notes import revealjs_notes
from sphinx_revealjs.nodes import revealjs_section

from tools.course import BUILD, NOTEBOOKS, ROOT, SLIDES, numbered

WIDTH, HEIGHT = 1280, 720
SMALLEST = 24  # pixels of a letter's size that the back row can read

FIGURE = re.compile(r"^(?:`{3,}|:{3,})\{chapter-figure\}[ \t]+(\S+)", re.MULTILINE)
MINUTES = re.compile(r"(\d+) min, (\w+)\.")
EXTERNAL = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=[\"']?((?:https?:)?//[^\"' >]+)"
    r"|<link\b[^>]*\bhref=[\"']?((?:https?:)?//[^\"' >]+)"
    r"|(?:@import|url\()\s*[\"'(]*((?:https?:)?//[^\"')]+)",
    re.IGNORECASE,
)


class SlidesError(Exception):
    """A deck cannot be made, or must not be shown; the message says why."""


@cache
def figures(notebook: Path) -> dict[str, tuple[bytes, str]]:
    """The named figures of an executed notebook.

    Args:
        notebook: A stored notebook.

    Returns:
        For each name, the picture as PNG and its alt text.

    Raises:
        SlidesError: The notebook is missing, or a figure has no alt text.
    """
    if not notebook.exists():
        raise SlidesError(f"{notebook} is missing: run `make notebooks` first.")
    found = {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        name = cell.metadata.get("name")
        pictures = [
            output.data["image/png"]
            for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})
        ]
        if not (name and pictures):
            continue
        image = cell.metadata.get("mystnb", {}).get("image", {})
        alt = image.get("alt", cell.metadata.get("alt", ""))
        if not alt:
            raise SlidesError(f"{notebook}: the figure {name!r} has no alt text.")
        found[name] = b64decode(pictures[-1]), " ".join(alt.split())
    return found


def extract(deck: Path, notebooks: Path = NOTEBOOKS) -> int:
    """Write the pictures that a deck shows, where they have changed.

    Args:
        deck: The deck's Markdown file; pictures go to ``_figures/NN_name/`` beside it.
        notebooks: Where the notebook NN_name.ipynb is.

    Returns:
        How many files were written.

    Raises:
        SlidesError: The notebook has no figure of a name that the deck uses.
    """
    wanted = set(FIGURE.findall(deck.read_text(encoding="utf-8")))
    notebook = notebooks / f"{deck.stem}.ipynb"
    there = figures(notebook) if wanted else {}
    if missing := sorted(wanted - set(there)):
        raise SlidesError(
            f"{deck.name} shows {', '.join(missing)}, but {notebook} has only "
            f"{', '.join(sorted(there)) or 'unnamed figures'}."
        )
    folder = deck.parent / "_figures" / deck.stem
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        if old.stem not in wanted:
            old.unlink()
    written = 0
    for name in sorted(wanted):
        path, png = folder / f"{name}.png", there[name][0]
        if not path.exists() or path.read_bytes() != png:
            path.write_bytes(png)
            written += 1
    return written


def build(out: Path, notebooks: Path = NOTEBOOKS) -> list[Path]:
    """Build all decks; a warning is an error.

    Args:
        out: The folder for the slides.
        notebooks: Where the stored notebooks are.

    Returns:
        The decks' pages.

    Raises:
        SlidesError: A figure is missing, Sphinx warned, or a page needs the network.
    """
    decks = numbered(SLIDES)
    for deck in decks:
        written = extract(deck, notebooks)
        print(f"{deck.relative_to(ROOT)}: {written} figures written")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "revealjs"]
    command += ["-d", str(out.with_name(f".{out.name}-doctrees"))]  # kept out of what is published
    command += ["-D", f"course_notebooks={notebooks}", str(SLIDES), str(out)]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise SlidesError("Sphinx did not build the slides; its warnings stand above.")
    for path in (out / "_static" / "mathjax").glob("*.js"):
        if path.name != "tex-chtml.js":  # the other combinations of the same parts, 14 MB
            path.unlink()
    pages = [out / f"{deck.stem}.html" for deck in decks]
    for page in [out / "index.html", *pages]:
        if found := external(page.read_text(encoding="utf-8")):
            raise SlidesError(f"{page} needs the network: {', '.join(found)}")
    return pages


def external(text: str) -> list[str]:
    """What a page loads from the network, links for the reader not counted.

    Args:
        text: HTML or CSS.

    Returns:
        The addresses.

    Example:
        >>> external('<a href="https://a.b">a</a> <script src="https://c.d/e.js"></script>')
        ['https://c.d/e.js']
    """
    return [next(filter(None, match)) for match in EXTERNAL.findall(text)]


def browser() -> str | None:
    """The path of Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def _chromium(*arguments: str) -> str:
    """Run the browser without a window; returns what it printed."""
    program = browser()
    assert program is not None
    command = [program, "--headless", "--disable-gpu", "--hide-scrollbars"]
    command += ["--virtual-time-budget=10000", f"--window-size={WIDTH},{HEIGHT}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--no-sandbox")  # Chromium refuses to start as root with it
    with tempfile.TemporaryDirectory() as profile:
        command += [f"--user-data-dir={profile}", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=180)
    if result.returncode:
        raise SlidesError(f"{program} failed:\n{result.stderr[-2000:]}")
    return result.stdout


def print_pdf(page: Path) -> Path:
    """Print a deck, one slide a page, to a PDF file beside it.

    Raises:
        SlidesError: The browser wrote no file.
    """
    pdf = page.with_suffix(".pdf")
    pdf.unlink(missing_ok=True)
    address = f"{page.resolve().as_uri()}?print-pdf"
    _chromium("--no-pdf-header-footer", f"--print-to-pdf={pdf}", address)
    if not pdf.exists():
        raise SlidesError(f"{pdf} was not written.")
    return pdf


# Shows every slide in turn and notes what does not fit, what is too small, what is missing.
# A function for the browser: the tests call it in theirs.
MEASURE = """
async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  await document.fonts.ready;
  Reveal.configure({transition: "none", backgroundTransition: "none"});
  const report = [];
  Reveal.getSlides().forEach((slide, number) => {
    const {h, v} = Reveal.getIndices(slide);
    Reveal.slide(h, v);
    const box = slide.getBoundingClientRect(), scale = Reveal.getScale();
    let right = slide.scrollWidth, bottom = slide.scrollHeight, smallest = 1000;
    const pictures = [];
    for (const part of slide.querySelectorAll("*")) {
      if (part.closest("aside.notes, mjx-assistive-mml")) continue;
      const inner = part.getBoundingClientRect();
      right = Math.max(right, (inner.right - box.left) / scale);
      bottom = Math.max(bottom, (inner.bottom - box.top) / scale);
      if (part.tagName == "IMG" && !part.naturalWidth) pictures.push(part.getAttribute("src"));
      const letters = [...part.childNodes].some(n => n.nodeType == 3 && n.data.trim());
      if (letters && !part.closest("mjx-container"))
        smallest = Math.min(smallest, parseFloat(getComputedStyle(part).fontSize));
    }
    const title = (slide.querySelector("h1, h2, h3") || {}).textContent || "";
    report.push({number: number + 1, title, right: Math.round(right), bottom: Math.round(bottom),
                 smallest, pictures});
  });
  return report;
}
"""

REPORT = f"""
<script>
window.addEventListener("load", async () => {{
  const out = document.createElement("pre");
  out.id = "slide-report";
  out.textContent = JSON.stringify(await ({MEASURE})());
  document.body.append(out);
}});
</script>
"""


def measure(page: Path) -> list[dict[str, Any]]:
    """Measure the slides of a built deck in the browser.

    Args:
        page: The deck's page.

    Returns:
        For each slide its number, title, right and bottom edge of its content in pixels,
        size of its smallest letters in pixels, and the pictures that did not load.

    Raises:
        SlidesError: The browser did not report.
    """
    text = page.read_text(encoding="utf-8").replace("</body>", f"{REPORT}</body>")
    copy = page.with_name(f"{page.stem}-measured.html")
    copy.write_text(text, encoding="utf-8")
    try:
        dump = _chromium("--dump-dom", copy.resolve().as_uri())
    finally:
        copy.unlink()
    report = re.search(r'<pre id="slide-report">(.*?)</pre>', dump, re.DOTALL)
    if report is None:
        raise SlidesError(f"{page}: the slides could not be measured.")
    slides: list[dict[str, Any]] = json.loads(html.unescape(report[1]))
    return slides


def faults(slides: list[dict[str, Any]]) -> list[str]:
    """What is wrong with measured slides, one line each.

    Example:
        >>> slide = {"number": 3, "title": "Wide", "right": 1300, "bottom": 700,
        ...          "smallest": 24, "pictures": []}
        >>> faults([slide])
        ['slide 3 (Wide): content reaches 1300 x 700, the slide is 1280 x 720']
    """
    lines = []
    for slide in slides:
        name = f"slide {slide['number']} ({slide['title']})"
        right, bottom = slide["right"], slide["bottom"]
        if right > WIDTH or bottom > HEIGHT:
            size = f"{right} x {bottom}, the slide is {WIDTH} x {HEIGHT}"
            lines.append(f"{name}: content reaches {size}")
        if slide["smallest"] < SMALLEST:
            lines.append(f"{name}: letters of {slide['smallest']:g} px, at least {SMALLEST} needed")
        for picture in slide["pictures"]:
            lines.append(f"{name}: {picture} did not load")
    return lines


class ChapterFigure(Directive):
    """A figure of the chapter's notebook, with its alt text."""

    required_arguments = 1
    option_spec = {"width": directives.length_or_unitless}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """Make the image."""
        env = self.state.document.settings.env
        notebook = Path(env.config.course_notebooks) / f"{env.docname}.ipynb"
        env.note_dependency(str(notebook))
        name = self.arguments[0]
        try:
            alt = figures(notebook)[name][1]
        except (SlidesError, KeyError) as error:
            raise self.error(f"no figure {name!r}: {error}") from error
        image = nodes.image(uri=f"/_figures/{env.docname}/{name}.png", alt=alt)
        image["classes"].append("chapter-figure")
        image["width"] = self.options.get("width", "1000px")
        return [image]


def _set_timing(app: Any, doctree: nodes.document) -> None:
    """Give each slide its minutes from the notes, for the timer of the speaker's view."""
    for notes in list(doctree.findall(revealjs_notes)):
        stated = MINUTES.match(notes.astext())
        slide = notes.parent
        if stated is None or not isinstance(slide, nodes.section):
            continue
        settings = next((n for n in slide.children if isinstance(n, revealjs_section)), None)
        if settings is None:
            settings = revealjs_section()
            slide.insert(1, settings)
        settings["data-timing"] = str(60 * int(stated[1]))


def _open_notes(translator: Any, node: nodes.Element) -> None:
    translator.body.append('<aside class="notes">')


def _close_notes(translator: Any, node: nodes.Element) -> None:
    translator.body.append("</aside>")


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.setup_extension("sphinx_revealjs")
    app.add_config_value("course_notebooks", str(NOTEBOOKS), "env")
    app.add_directive("chapter-figure", ChapterFigure)
    app.connect("doctree-read", _set_timing)
    # Notes keep their paragraphs; the package's own visitor makes one line of them.
    app.add_node(revealjs_notes, override=True, revealjs=(_open_notes, _close_notes))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def main() -> int:
    """Build, and print or check where asked; returns 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pdf", action="store_true", help="print each deck to PDF")
    parser.add_argument("--check", action="store_true", help="fail where a slide overflows")
    parser.add_argument("--out", type=Path, default=BUILD / "slides", help="where the decks go")
    parser.add_argument(
        "--notebooks", type=Path, default=NOTEBOOKS, help="where the executed notebooks are"
    )
    options = parser.parse_args()
    try:
        pages = build(options.out.resolve(), options.notebooks.resolve())
        if (options.pdf or options.check) and browser() is None:
            print("Neither Chromium nor Chrome is on the PATH: no PDF, slides not measured.")
            return 0
        wrong = []
        for page in pages:
            if options.check:
                slides = measure(page)
                wrong += [f"{page.name}: {line}" for line in faults(slides)]
                print(f"{page.name}: {len(slides)} slides measured")
            if options.pdf:
                print(f"{print_pdf(page).name}: printed")
    except SlidesError as error:
        print(error, file=sys.stderr)
        return 1
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
