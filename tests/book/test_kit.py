"""The instructor's kit: its sheet is made, and what its tables name exists."""

import re

import pytest

pytest.importorskip("torch", reason="the assistant's sheet is made from the exercises' tests")

from attn_course import CHAPTERS
from tests.book.kit import BOOK, STEMS, TEACHING, each_chapter, exercises, read, table
from tools import assistant
from tools.assistant_questions import ANY_EXERCISE, ASK
from tools.course import CHAPTERS as SOURCES

VERBS = (
    "bound build choose compute count cut decode derive diagnose explain find implement judge "
    "measure name predict prove read resize say show split state test trace train translate turn "
    "unloop"
).split()


# The assistant's sheet ---------------------------------------------------------------


def test_the_assistants_sheet_is_made_from_the_wrong_answers() -> None:
    made = assistant.made()
    assert set(made) == set(assistant.PAGES.iterdir())
    for path, text in made.items():
        assert read(path) == text, f"{path.name}: run python -m tools.assistant"


def test_every_function_has_a_question_and_every_general_mistake_an_exercise() -> None:
    assert list(ASK) == [number for n in CHAPTERS for number in exercises(n)]
    for n, mechanism in CHAPTERS.items():
        page = read(SOURCES.parent / "exercises" / f"{n:02d}_{mechanism}.md")
        for number in exercises(n):
            section = page.split(f"## {number} ")[1].split("\n## ")[0]
            for function in ASK[number]:
                assert f"def {function}(" in section, (number, function)
    questions = [question for of_exercise in ASK.values() for question in of_exercise.values()]
    assert all(q.endswith(("?", ".")) and "?" in q for q in questions)
    assert len(set(questions)) == len(questions)
    answers = (row for name in CHAPTERS.values() for row in assistant.wrong_answers(name))
    assert {assistant.general(message) for *_, message in answers} - {None} == set(ANY_EXERCISE)


def test_the_sheet_has_each_message_whole() -> None:
    whole = assistant.message_of("seq2seq", "3.1", "W_k was called 4 times")
    assert re.match("the numbers are right, but W_k was called … times in … steps. The", whole)
    assert whole.endswith("at every step?")
    assert assistant.fits("was called 14 times", "`rnn` was called … times")
    assert assistant.fits("rnn was called 14 times, not 3,", "… was called … times, not …, is it?")
    assert not assistant.fits("called 14 times a", "`rnn` was called … times")
    assert not assistant.fits("14 times", "… times")  # too little to go by
    assert assistant.cell("a < b | `x[0]`") == r"a \< b \| `x[0]`"
    assert assistant.general("it changes its argument `x`") is not None
    assert assistant.general("it changes its argument `x`: whose is it?") is None


# Outcomes, quiz, exercises, exam -----------------------------------------------------


def outcomes(number: int) -> list[list[str]]:
    page = read(TEACHING / "chapters" / f"{STEMS[number]}.md")
    return table(page, "Outcome", "Quiz item", "Exercise", "Exam")


@each_chapter
def test_outcomes_have_testable_verbs_and_are_tested_three_times(number: int) -> None:
    rows = outcomes(number)
    assert len(rows) >= 5
    for row in rows:
        assert all(row), row
        verbs = re.findall(r"\*\*(\w+)\*\*", row[0])
        assert verbs and set(verbs) <= set(VERBS), row[0]


@each_chapter
def test_quiz_items_of_the_outcomes_exist(number: int) -> None:
    quiz = re.findall(r"<summary>(\d+)\. ", read(SOURCES / f"{STEMS[number]}.md"))
    exit_test = re.findall(r"^\*\*(\d+)\.\*\*", read(BOOK / "exit_test.md"), re.MULTILINE)
    for _, items, *_ in outcomes(number):
        assert set(re.findall(r"exit test (\d+)", items)) <= set(exit_test)
        own = re.sub(r"exit test \d+|\([^)]*\)|exercise [\d.]+|Figure \d+|\d+\.\d", "", items)
        if re.match(r"\d", own):
            assert set(re.findall(r"\b\d\b", own)) <= set(quiz), items


@each_chapter
def test_exercises_of_the_outcomes_exist_under_these_titles(number: int) -> None:
    known = exercises(number)
    named = set()
    for *_, cell, _ in outcomes(number):
        for entry in re.split(r", (?=\d)", cell):
            if found := re.match(r"(\d+\.\d)(?: (.+))?$", entry):
                assert found[1] in known, cell
                assert known[found[1]][0].startswith(found[2] or ""), entry
                named.add(found[1])
    assert len(known) - len(named) <= 1, f"no outcome for {set(known) - named}"


def test_every_exam_question_has_one_home_an_answer_and_an_outcome() -> None:
    page = read(TEACHING / "exam.md")
    twenty, more = page.split("## Twenty questions")[1].split("## Further questions")
    targets = re.findall(r"^\(exam-(\w+)\)=\n\*\*(\w+)\.\*\*", page, re.MULTILINE)
    names = [name for _, name in targets]
    assert all(target == name for target, name in targets) and len(set(names)) == len(names)
    assert re.findall(r"^\(exam-(\w+)\)=", twenty, re.MULTILINE) == [
        f"{n}{letter}" for n in CHAPTERS for letter in "ab"
    ]
    for name in names:  # once as a question, once as an answer
        assert len(re.findall(rf"^\*\*{name}\.\*\* .{{10}}", page, re.MULTILINE)) == 2, name
    cells = " ".join(row[3] for n in CHAPTERS for row in outcomes(n))
    assert sorted(re.findall(r"<exam-(\w+)>", cells)) == sorted(names)
    assert more.count("### Chapter") == len(CHAPTERS)


@pytest.mark.parametrize(("page", "count"), [("entry_test.md", 10), ("exit_test.md", 20)])
def test_each_question_is_followed_by_its_answer(page: str, count: int) -> None:
    text = read(BOOK / page)
    parts = re.split(r"^\*\*(\d+)\.\*\* ", text, flags=re.MULTILINE)[1:]
    assert [int(n) for n in parts[::2]] == list(range(1, count + 1))
    for n, part in zip(parts[::2], parts[1::2], strict=True):
        question, answer = part.split(f":::{{dropdown}} Answer {n}\n")
        assert "?" in question or "Write" in question
        assert len(answer.split(":::")[0]) > 60, f"question {n}: an answer has a reason"
    if page == "exit_test.md":
        assert len(set(re.findall(r"notebooks/(?!00)(\d\d_\w+)\.ipynb", text))) == len(CHAPTERS)
    else:
        rows = table(text, "Missed", "Read", "Hours")
        missed = [int(n) for row in rows for n in re.findall(r"\d+", row[0])]
        assert sorted(missed) == list(range(1, count + 1))


# Minutes -----------------------------------------------------------------------------


@each_chapter
def test_a_class_takes_45_minutes(number: int) -> None:
    page = read(TEACHING / "chapters" / f"{STEMS[number]}.md")
    rows = table(page, "Minutes", "What")
    assert sum(int(row[0]) for row in rows) == 45
    assert rows[0][0] == "5" and len(rows) >= 5
