"""The decks: their form, their figures and numbers, the built pages, and that nothing overflows."""

import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml

pytest.importorskip("sphinx_revealjs", reason="the book group is not installed")

from tools import slides
from tools.course import NOTEBOOKS, SLIDES, numbered

DECKS = numbered(SLIDES)
PHASES = {"failure": 5, "idea": 15, "experiment": 15, "kernel": 5, "questions": 5}
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")

each_deck = pytest.mark.parametrize("deck", DECKS, ids=lambda path: path.stem)
needs_browser = pytest.mark.skipif(
    slides.browser() is None, reason="neither Chromium nor Chrome is on the PATH"
)


def parse(deck: Path) -> tuple[dict, list[SimpleNamespace]]:
    """The deck's header and its slides, each with title, notes, figures, state and body."""
    _, header, text = deck.read_text(encoding="utf-8").split("---\n", 2)
    parts = re.split(r"^(#{1,6}) (.+)$", text, flags=re.MULTILINE)
    assert not parts[0].strip(), "text before the first slide"
    pages = []
    for level, title, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        notes = re.findall(r"^```\{revealjs-notes\}\n(.*?)^```", body, re.DOTALL | re.MULTILINE)
        state = re.search(r"^:data-state: (\w+)$", body, re.MULTILINE)
        shown = re.sub(r"^```\{.*?^```", "", body, flags=re.DOTALL | re.MULTILINE)
        pages.append(
            SimpleNamespace(
                level=len(level),
                title=title,
                notes=notes,
                figures=slides.FIGURE.findall(body),
                state=state and state[1],
                shown=f"{title}\n{shown}",
                code=re.findall(r"^```python\n(.*?)^```", body, re.DOTALL | re.MULTILINE),
            )
        )
    return yaml.safe_load(header), pages


def notebook_of(deck: Path) -> Path:
    return NOTEBOOKS / f"{deck.stem}.ipynb"


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    return "\n".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)


def numbers(text: str) -> set[float]:
    return {float(found.replace(",", "").rstrip(".")) for found in NUMBER.findall(text)}


def make_notebook(folder: Path, name: str = "fits", alt: str = "A curve.", png: str = "") -> Path:
    cell = nbformat.v4.new_code_cell(
        "draw()",
        metadata={"name": name, "mystnb": {"image": {"alt": alt}}},
        outputs=[nbformat.v4.new_output("display_data", {"image/png": png or "iVBORw0KGgo="})],
    )
    path = folder / "01_made_up.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    slides.figures.cache_clear()
    return path


def make_deck(folder: Path, figure: str = "fits") -> Path:
    deck = folder / "slides" / "01_made_up.md"
    deck.parent.mkdir(exist_ok=True)
    deck.write_text(f"# Title\n\n```{{chapter-figure}} {figure}\n```\n", encoding="utf-8")
    return deck


def test_there_are_decks() -> None:
    assert DECKS


@each_deck
def test_form(deck: Path) -> None:
    _, pages = parse(deck)
    assert 12 <= len(pages) <= 20
    assert [page.level for page in pages] == [1] + [2] * (len(pages) - 1)
    for page in pages:
        assert len(page.title.split()) >= 4, f"not a sentence: {page.title}"
        assert len(page.figures) <= 1, page.title
        assert len(page.notes) == 1, page.title


@each_deck
def test_minutes(deck: Path) -> None:
    header, pages = parse(deck)
    spent = dict.fromkeys(PHASES, 0)
    order = []
    for page in pages:
        stated = re.match(r"\*\*(\d+) min, (\w+)\.\*\* ", page.notes[0])
        assert stated, f"no minutes in the notes of: {page.title}"
        spent[stated[2]] += int(stated[1])
        order.append(stated[2])
    assert spent == PHASES
    assert sum(spent.values()) == header["minutes"] == 45
    assert sorted(order, key=list(PHASES).index) == order


@each_deck
def test_each_question_is_followed_by_its_answer(deck: Path) -> None:
    _, pages = parse(deck)
    states = [page.state for page in pages]
    asked = [i for i, state in enumerate(states) if state == "question"]
    assert len(asked) >= 2
    assert [i for i, state in enumerate(states) if state == "answer"] == [i + 1 for i in asked]
    for i in asked:
        assert pages[i].title.endswith("?")
        assert not pages[i].figures, "a question must not show its answer"


@each_deck
def test_notes_name_the_misconception(deck: Path) -> None:
    _, pages = parse(deck)
    assert any("misconception" in page.notes[0].lower() for page in pages)


@each_deck
def test_figures_are_the_notebooks_own(deck: Path) -> None:
    there = slides.figures(notebook_of(deck))
    shown = [name for page in parse(deck)[1] for name in page.figures]
    assert shown
    assert set(shown) <= set(there)
    assert all(there[name][1] for name in shown)
    assert len(shown) == len(set(shown))
    assert "![" not in deck.read_text(encoding="utf-8"), "a pasted picture"


@each_deck
def test_numbers_are_the_notebooks_own(deck: Path) -> None:
    notebook = nbformat.read(notebook_of(deck), as_version=4)
    computed = numbers(printed(notebook))
    written = computed | numbers("\n".join(cell.source for cell in notebook.cells))
    for page in parse(deck)[1]:
        for number in numbers(page.shown):
            # a fraction is a result, so a cell has printed it; a count may stand in the text
            source = written if number.is_integer() else computed
            assert number in source, f"{number:g} on {page.title!r} is not in the notebook"


@each_deck
def test_code_is_the_notebooks_own(deck: Path) -> None:
    notebook = nbformat.read(notebook_of(deck), as_version=4)
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    for page in parse(deck)[1]:
        for code in page.code:
            assert code.rstrip() in source, page.title


def test_figures_are_written_once(tmp_path: Path) -> None:
    make_notebook(tmp_path)
    deck = make_deck(tmp_path)
    stale = deck.parent / "_figures" / "01_made_up" / "old.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    assert slides.extract(deck, tmp_path) == 1
    assert slides.extract(deck, tmp_path) == 0
    assert [path.name for path in stale.parent.iterdir()] == ["fits.png"]
    make_notebook(tmp_path, png="iVBORw0KGgoA")
    assert slides.extract(deck, tmp_path) == 1


def test_missing_figures_are_named(tmp_path: Path) -> None:
    make_notebook(tmp_path)
    with pytest.raises(slides.SlidesError, match=r"shows widths, but .* has only fits"):
        slides.extract(make_deck(tmp_path, "widths"), tmp_path)


def test_missing_notebooks_and_alt_texts_are_named(tmp_path: Path) -> None:
    slides.figures.cache_clear()
    with pytest.raises(slides.SlidesError, match="make notebooks"):
        slides.extract(make_deck(tmp_path), tmp_path)
    make_notebook(tmp_path, alt="")
    with pytest.raises(slides.SlidesError, match="'fits' has no alt text"):
        slides.extract(make_deck(tmp_path), tmp_path)


def test_what_needs_the_network_is_found() -> None:
    assert slides.external('<a href="https://a.b">a</a><link href="c.css">') == []
    assert slides.external('<link rel="x" href="//a.b/c.css">') == ["//a.b/c.css"]
    assert slides.external("<img alt='' src=http://a.b/c.png>") == ["http://a.b/c.png"]
    assert slides.external("@import url('https://a.b/c.css');") == ["https://a.b/c.css"]


def test_faults_are_listed() -> None:
    good = {"number": 1, "title": "T", "right": 1280, "bottom": 720, "smallest": 24, "pictures": []}
    assert slides.faults([good]) == []
    for change in ({"right": 1281}, {"bottom": 721}, {"smallest": 20}, {"pictures": ["a.png"]}):
        assert len(slides.faults([good | change])) == 1


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    slides.figures.cache_clear()
    return slides.build(tmp_path_factory.mktemp("book") / "slides")


def test_pages_need_no_network(built: list[Path]) -> None:
    folder = built[0].parent
    for page in [folder / "index.html", *built]:
        text = page.read_text(encoding="utf-8")
        assert slides.external(text) == []
        local = re.findall(r'<(?:script|img)\b[^>]*\bsrc="([^"?]+)', text)
        local += re.findall(r'<link rel="stylesheet"[^>]*\bhref="([^"?]+)', text)
        assert local
        for path in local:
            assert (folder / path).exists(), path
        for style in [path for path in local if path.endswith(".css")]:
            assert slides.external((folder / style).read_text(encoding="utf-8")) == []


def test_pages_hold_notes_times_and_alt_texts(built: list[Path]) -> None:
    for page in built:
        text = page.read_text(encoding="utf-8")
        pages = parse(SLIDES / f"{page.stem}.md")[1]
        assert text.count('<aside class="notes">') == len(pages)
        timings = [int(seconds) for seconds in re.findall(r'data-timing="(\d+)"', text)]
        assert len(timings) == len(pages)
        assert sum(timings) == 45 * 60
        pictures = re.findall(r"<img\b[^>]*>", text)
        assert len(pictures) == sum(len(p.figures) for p in pages)
        assert all(re.search(r'alt="[^"]{40,}"', picture) for picture in pictures)
        assert page.name in (page.parent / "index.html").read_text(encoding="utf-8")


@needs_browser
def test_no_slide_overflows(built: list[Path]) -> None:
    for page in built:
        found = slides.measure(page)
        assert len(found) == len(parse(SLIDES / f"{page.stem}.md")[1])
        assert slides.faults(found) == []


@needs_browser
def test_overflow_is_seen(built: list[Path]) -> None:
    text = built[0].read_text(encoding="utf-8")
    tall = '<p style="height: 800px; font-size: 12px">small<img src="none.png" alt=""></p></h2>'
    page = built[0].with_name("overflowing.html")
    page.write_text(text.replace("</h2>", tall, 1), encoding="utf-8")
    lines = slides.faults(slides.measure(page))
    page.unlink()
    assert len(lines) == 3
    assert all(line.startswith("slide 2 ") for line in lines)


@needs_browser
def test_pdf_has_a_page_for_each_slide(built: list[Path]) -> None:
    pages = re.findall(rb"/Type\s*/Page\b", slides.print_pdf(built[0]).read_bytes())
    assert len(pages) == len(parse(DECKS[0])[1])
