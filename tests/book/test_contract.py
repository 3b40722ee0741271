"""What every chapter owes, and what derived files must be."""

import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat import NotebookNode

from attn_course import CHAPTERS
from tools import notebooks as tool
from tools.course import CHAPTERS as SOURCES
from tools.course import EXERCISES, NOTEBOOKS, ROOT, SLIDES, repository

TARGETS = tool.targets()
EXECUTED = [target for _, target, solved in TARGETS if solved]
CHAPTER_SOURCES = [SOURCES / f"{n:02d}_{name}.md" for n, name in CHAPTERS.items()]

#: The second-level headings of a chapter, in order; others may stand between them.
SECTIONS = [
    "The problem", "The idea", "It works on something real", "How it compares",
    "Where it breaks", "Check yourself", "Exercises", "Summary", "GPU kernel", "Heatmaps",
]  # fmt: skip


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def toc_files(entry: object) -> Iterator[str]:
    if isinstance(entry, dict):
        for key, value in entry.items():
            if key in ("root", "file"):
                yield value
            else:
                yield from toc_files(value)
    elif isinstance(entry, list):
        for item in entry:
            yield from toc_files(item)


@pytest.mark.parametrize(("source", "target", "solved"), TARGETS, ids=lambda v: str(v)[-40:])
def test_derived_notebooks_equal_their_sources(source: Path, target: Path, solved: bool) -> None:
    fresh = tool.derive(source, target, solved=solved)
    assert tool.same_cells(read(target), fresh), f"{name(target)}: run make notebooks"


def test_solutions_introduce_themselves() -> None:
    pages = [name(path) for _, path, _ in TARGETS if path.parent.name == "solutions"]
    assert len(pages) == len(CHAPTERS)
    for _, path, solved in TARGETS:
        if path.parent.name in ("solutions", "exercises"):
            text = "\n".join(cell.source for cell in read(path).cells)
            assert ("**These are worked solutions.**" in text) == solved, name(path)
            assert ("**How to work.**" in text) != solved, name(path)


def test_new_text_keeps_outputs_and_new_code_does_not() -> None:
    source, target = CHAPTER_SOURCES[0], NOTEBOOKS / f"{CHAPTER_SOURCES[0].stem}.ipynb"
    stored = nbformat.read(target, as_version=4)
    anew = tool.derive(source, target)
    anew.cells[0].source += " A word more."
    assert tool.keep_outputs(anew, stored)
    outputs = [[c.outputs for c in nb.cells if c.cell_type == "code"] for nb in (anew, stored)]
    assert outputs[0] == outputs[1] and anew.metadata["course"] == stored.metadata["course"]
    anew = tool.derive(source, target)
    next(c for c in anew.cells if c.cell_type == "code").source += "\n1"
    assert not tool.keep_outputs(anew, stored)
    assert not any(c.outputs for c in anew.cells if c.cell_type == "code")


def test_no_notebook_without_a_source() -> None:
    assert {target for _, target, _ in TARGETS} == set(NOTEBOOKS.rglob("*.ipynb")) - set(
        NOTEBOOKS.rglob(".ipynb_checkpoints/*")
    )


def test_chapter_map_and_toc_agree() -> None:
    toc = list(toc_files(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))))
    stems = [f"{n:02d}_{mechanism}" for n, mechanism in CHAPTERS.items()]
    chapters = [f for f in toc if re.match(r"notebooks/0*[1-9]\d*_", f)]
    assert chapters == [f"notebooks/{stem}" for stem in stems]
    for stem in stems:
        start = toc.index(f"notebooks/{stem}")
        here = toc[start + 1 : start + 4]
        assert f"notebooks/exercises/{stem}" in here and f"notebooks/solutions/{stem}" in here
    for file in toc:
        assert any((ROOT / f"{file}{suffix}").exists() for suffix in (".md", ".ipynb")), file


def test_the_contents_call_chapters_as_their_cards_do() -> None:
    cards = re.findall(
        r"grid-item-card} (.*)\n:link: \.\./(\S+)",
        (ROOT / "book" / "_chapters.md").read_text(encoding="utf-8"),
    )
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    called = dict(re.findall(r"- file: (\S+)\n +title: (.*)", toc))
    assert [f"{n} " for n in CHAPTERS] == [re.match(r"\d+ ", card)[0] for card, _ in cards]
    for card, page in cards:
        stem = Path(page).name
        for file in (page, f"book/teaching/chapters/{stem}", f"book/teaching/assistant/{stem}"):
            assert called[file] == card, file


@pytest.mark.parametrize("page", ["README.md", "book/_chapters.md", "book/notation.md"])
def test_pages_know_how_many_chapters_there_are(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert re.findall(r"[Cc]hapters 1 to (\d+)", text)[:1] == [str(max(CHAPTERS))]


@pytest.mark.parametrize("number", CHAPTERS)
def test_a_chapter_has_all_its_files(number: int) -> None:
    mechanism = CHAPTERS[number]
    stem = f"{number:02d}_{mechanism}"
    for path in (
        SOURCES / f"{stem}.md",
        EXERCISES / f"{stem}.md",
        SLIDES / f"{stem}.md",
        ROOT / "attn_course" / mechanism / "__init__.py",
        ROOT / "attn_course" / "exercises" / f"{mechanism}.py",
        ROOT / "tests" / mechanism,
        ROOT / "tests" / "exercises" / f"test_{mechanism}.py",
    ):
        assert path.exists(), f"chapter {number} lacks {name(path)}"


@pytest.mark.parametrize("source", CHAPTER_SOURCES, ids=name)
def test_sections_stand_in_order(source: Path) -> None:
    text = re.sub(r"```.*?```", "", source.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    places = []
    for section in SECTIONS:
        found = [i for i, heading in enumerate(headings) if heading.startswith(section)]
        assert len(found) == 1, f"{section!r} stands {len(found)} times in {headings}"
        places += found
    assert places == sorted(places)
    assert headings[-2].startswith("GPU kernel") and headings[-1] == "Heatmaps"
    intro = text[: text.index("\n## ")]
    assert "**What you will learn**" in intro and "**What you need.**" in intro
    for cell in ("scored", "allowed", "normalised", "never stored"):
        assert cell in intro
    assert "**Further reading.**" in text
    questions = re.findall(r"<summary>(.*?)</summary>", text, re.DOTALL)
    assert 4 <= len(questions) <= 6
    for question in questions:  # HTML: nobody reads Markdown there
        assert not re.search(r"`|(?<!\w)\*\w", question), question
    assert text.count("> **Predict.**") >= 2


@pytest.mark.parametrize("source", CHAPTER_SOURCES, ids=name)
def test_a_chapter_is_no_longer_than_a_class(source: Path) -> None:
    text = re.sub(r"```.*?```", "", source.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"\A---.*?^---$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<details>.*?</details>|\$\$.*?\$\$", "", text, flags=re.DOTALL)
    sections = re.split(r"^##+ ", text, flags=re.MULTILINE)
    unstarred = " ".join(s for s in sections if not s.startswith("★"))
    words = sum(bool(re.search("[A-Za-z]", token)) for token in unstarred.split())
    assert 1500 <= words <= 3000, words


def image_cells(notebook: NotebookNode) -> Iterator[NotebookNode]:
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        if any("image/png" in output.get("data", {}) for output in outputs):
            yield cell


class _Images(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.alts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.alts.append(dict(attrs).get("alt") or "")


@pytest.mark.parametrize("path", EXECUTED, ids=name)
def test_every_figure_has_alt_text_and_a_name(path: Path) -> None:
    notebook = read(path)
    for cell in image_cells(notebook):
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        assert len(alt) > 40, f"{cell.id} draws without alt text"
        assert cell.metadata.get("name"), f"{cell.id} draws without a name"
        pngs = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        assert len(pngs) == 1, f"{cell.id}: {len(pngs)} figures share one alt text"
    for cell in notebook.cells:
        html = [o.get("data", {}).get("text/html", "") for o in cell.get("outputs", [])]
        if cell.cell_type == "markdown":
            assert not re.search(r"!\[\s*\]", cell.source), f"{cell.id}: image without alt text"
            html = [cell.source]
        parser = _Images()
        for text in html:
            parser.feed(text)
        assert all(parser.alts), f"{cell.id}: an <img> has no alt text"


@pytest.mark.parametrize("path", EXECUTED, ids=name)
def test_stored_notebooks_are_clean(path: Path) -> None:
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        assert cell.execution_count, f"{cell.id} was not run"
        for output in cell.outputs:
            assert output.output_type != "error", f"{cell.id} failed"
            assert output.get("name") != "stderr", f"{cell.id} wrote to stderr"
            assert not any("widget" in kind for kind in output.get("data", {}))
        long = [line for line in cell.source.splitlines() if len(line) > 79]
        assert not long, f"{cell.id}: {long[0]!r} is cut off on a page"
    assert path.stat().st_size < 1.5e6


@pytest.mark.parametrize("path", EXECUTED, ids=name)
def test_no_notebook_runs_longer_than_it_says(path: Path) -> None:
    course = read(path).metadata.course
    assert course.seconds <= course.running <= 240


@pytest.mark.parametrize("path", sorted((NOTEBOOKS / "exercises").glob("*.ipynb")), ids=name)
def test_student_notebooks_hold_no_solution(path: Path) -> None:
    notebook = read(path)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "SOLUTION" not in text and "raise NotImplementedError" in text
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize("path", [target for _, target, _ in TARGETS], ids=name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    for cell in read(path).cells:
        if cell.cell_type != "markdown":
            continue
        assert "{cite" not in cell.source, f"{cell.id}: a citation was not resolved"
        for link in re.findall(r"\]\(([^)\s]+)\)", cell.source):
            if not link.startswith(("http", "#", "mailto:")):
                assert (path.parent / link.split("#")[0]).exists(), f"{cell.id}: {link}"


def test_unknown_citations_are_refused(tmp_path: Path) -> None:
    header = "---\ncourse:\n  reading: 1\n  running: 1\n---\n\n"
    source = tmp_path / "01_x.md"
    source.write_text(header + "See {cite:t}`nobody1900`.\n", encoding="utf-8")
    with pytest.raises(KeyError, match="nobody1900"):
        tool.derive(source, NOTEBOOKS / "01_x.ipynb")


def test_the_repository_address_stands_in_one_place() -> None:
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    address = repository().removeprefix("https://")
    for file in files:
        path = ROOT / file
        generated = file.startswith("notebooks/")
        if not file or generated or not path.is_file() or path.suffix == ".png":
            continue
        found = address in path.read_text(encoding="utf-8", errors="ignore")
        assert found == (file == "_config.yml"), f"{file}: the address belongs in _config.yml"
