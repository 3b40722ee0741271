"""The instructor's plans: minutes add up, exercises fit, and no route lacks what it needs."""

import re

import pytest

from attn_course import CHAPTERS
from tests.book.kit import STEMS, each_chapter, exercises, minutes, plans, read, table, tables, time
from tools.course import CHAPTERS as SOURCES

# Minutes -----------------------------------------------------------------------------


def test_exercises_fit_into_the_lab_and_the_rest_goes_home() -> None:
    rows = table(plans(), "Chapter", "Read", "Run", "In the lab")
    assert [int(row[0]) for row in rows] == list(CHAPTERS)
    for number, (_, reading, running, *parts) in zip(CHAPTERS, rows, strict=True):
        assert (int(reading), int(running)) == time(STEMS[number])
        named = [i for cell in parts[::2] for i in cell.split(", ")]
        assert sorted(named) == sorted(exercises(number)), f"chapter {number}"
        took = [int(cell) for cell in parts[1::2]]
        assert took == [minutes(cell) for cell in parts[::2]], f"chapter {number}"
        assert took[0] <= 35 and took[2] <= 45, f"chapter {number}"


@pytest.mark.parametrize(
    ("heads", "least", "most"),
    [
        (("Week", "First unit (45 + 45 min)"), 240, 270),
        (("Week", "Class, lab (45 + 45 min)"), 120, 180),
    ],
)
def test_a_week_at_home_adds_up(heads: tuple[str, str], least: int, most: int) -> None:
    at_home = {row[0]: int(row[6]) for row in table(plans(), "Chapter", "Read", "Run")}
    primers = {"GPU primer": time("00_triton")[0], "primer on sequences": time("00_sequences")[0]}
    taught = []
    for row in table(plans(), *heads):
        units = [n for cell in row[1:3] for n in re.findall(r"^(\d+) [A-Z]", cell)]
        taught += [int(n) for n in units]
        reading, tried, own, together = (int(cell) for cell in row[-5:-1])
        extra = sum(cost for name, cost in primers.items() if f"{name} is read" in row[-1])
        assert reading == sum(time(STEMS[int(n)])[0] for n in units) + extra, row
        assert tried == sum(at_home[n] for n in units), row
        assert together == reading + tried + own and least <= together <= most, row
        written = minutes(row[2]) if "Class" in heads[1] else 0
        assert written <= 45, row
    assert taught == list(CHAPTERS)


def test_the_day_fits_into_the_day() -> None:
    *rows, last = table(plans(), "Start", "Minutes", "What")
    clock = 9 * 60
    for start, lasts, what, _ in rows:
        assert start == f"{clock // 60:02d}:{clock % 60:02d}", what
        assert minutes(what) <= int(lasts), what
        clock += int(lasts)
    assert last[:2] == ["**17:00**", f"**{clock - 9 * 60}**"] and clock == 17 * 60


def test_afternoons_add_up_and_their_exercises_fit() -> None:
    afternoons = [rows for rows in tables(plans()) if rows[0][:3][:2] == ["Minutes", "What"]]
    taught = []
    for heads, *rows, last in afternoons:
        assert last[0] == f"**{sum(int(row[0]) for row in rows)}**" == "**225**"
        taught += [int(head.split()[0]) for head in heads[2:]]
        for _, what, *cells in rows:
            for cell in cells if "lab" in what.lower() else ():
                assert 0 < minutes(cell) <= (35 if what.startswith("Lab") else 45), cell
    assert taught == list(CHAPTERS)


def test_exercises_of_the_plans_have_their_titles() -> None:
    entries = re.findall(r"\b(\d+)(\.\d) ([a-z][a-z ]+)", plans())
    assert len(entries) > 40
    for chapter, place, title in entries:
        known = exercises(int(chapter))[chapter + place][0].lower()
        assert known.startswith(title.strip()), (chapter + place, title)


# What needs what ---------------------------------------------------------------------


def edges() -> dict[str, set[tuple[str, str]]]:
    """Kind -> (from, to), as the table of needs says."""
    found: dict[str, set[tuple[str, str]]] = {"needs": set(), "part": set()}
    for chapter, needs, takes_up, _ in table(plans(), "Chapter", "Needs", "Takes up"):
        found["needs"] |= {(n, chapter) for n in re.findall(r"\b\d+\b", needs)}
        found["needs"] |= {("P", chapter)} if "sequences" in needs else set()
        found["part"] |= {(n, chapter) for n in re.findall(r"\d+", takes_up)}
    return found


def before(chapter: str, arrows: set[tuple[str, str]]) -> set[str]:
    """All that leads to a chapter."""
    direct = {a for a, b in arrows if b == chapter}
    return direct.union(*(before(a, arrows) for a in direct))


def test_the_graph_draws_the_table() -> None:
    drawn: dict[str, set[tuple[str, str]]] = {"needs": set(), "part": set()}
    for kind, a, b in re.findall(r'class="(\w+)" data-from="(\w+)" data-to="(\w+)"', plans()):
        drawn[kind].add((a, b))
    assert drawn == edges()
    title = re.search(r"<title id=\"needs-title\">(.*?)</title>", plans())
    assert title is not None
    solid, dashed = title[1].split("Dashed")
    for text, kind in ((solid, "needs"), (dashed, "part")):
        told = re.findall(r"(\w+) to (\d+)", text)
        assert {("P" if a == "sequences" else a, b) for a, b in told} == drawn[kind]


@each_chapter
def test_chapters_need_what_they_say(number: int) -> None:
    intro = read(SOURCES / f"{STEMS[number]}.md").split("**What you need.**")[1].split("\n\n")[0]
    links = re.findall(r"\]\((\d\d)_(\w+)\.ipynb\)", intro)
    said = {"P" if name == "sequences" else str(int(n)) for n, name in links if name != "triton"}
    arrows = edges()["needs"] | edges()["part"]
    assert {a for a, b in arrows if b == str(number)} <= said
    assert said <= before(str(number), arrows)


def test_routes_leave_nothing_out_that_they_need() -> None:
    drawn = dict(
        re.findall(r'<text x="\d+" y="\d+">(\w+)[^<]*</text><text [^>]*>([^<]*)<', plans())
    )
    for name, taught, besides, _ in table(plans(), "Route", "In class", "To read besides"):
        letter = re.search(r"\((\w)\)", name)
        assert letter is not None
        chapters = set(re.findall(r"\d+", taught))
        assert {n for n, letters in drawn.items() if letter[1] in letters} - {
            "sequences"
        } == chapters
        there = chapters | set(re.findall(r"\d+", besides)) | {"P"}
        for chapter in chapters:
            missing = {a for a, b in edges()["needs"] if b == chapter} - there
            assert not missing, f"{name} teaches {chapter} without {missing}"
