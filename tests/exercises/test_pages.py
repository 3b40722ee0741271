"""Every chapter's exercises both ways: right answers pass, stubs and wrong ones say why not."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attn_course import CHAPTERS, _triton
from attn_course.exercises import CheckFailed
from tests.exercises.common import PAGES, Kernel, Page, run_script

Cells = Callable[[Page, bool], dict[str, Any]]

#: How many exercises a chapter has.
COUNTS = {1: 7, 2: 7, 3: 8, 4: 7, 5: 6, 6: 8, 7: 6, 8: 6, 9: 6, 10: 7}
EACH_PAGE = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
EACH_NUMBER = pytest.mark.parametrize(
    "page, number", [page.param(number) for page in PAGES.values() for number in page.checks]
)

EACH_KERNEL = pytest.mark.parametrize(
    "page, kernel",
    [pytest.param(page, k, id=k.name) for page in PAGES.values() for k in page.kernels],
)


def every(table: str) -> list[Any]:
    return [
        page.param(number, *row[1:], id=row[0])
        for page in PAGES.values()
        for number, rows in getattr(page.answers, table).items()
        for row in rows
    ]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Cells:
    """From a page, and whether it is solved, to the names that its cells define."""

    @functools.cache
    def run(page: Page, solved: bool) -> dict[str, Any]:
        return page.run_cells(tmp_path_factory.mktemp(page.name), solved)

    return run


def test_every_chapter_has_a_page() -> None:
    assert {page.chapter: page.name for page in PAGES.values()} == CHAPTERS


@EACH_PAGE
def test_all_are_there(page: Page) -> None:
    count = COUNTS[page.chapter]
    assert list(page.checks) == [f"{page.chapter}.{i}" for i in range(1, count + 1)]
    assert list(page.answers.WRONG) == list(page.answers.RIGHT) == list(page.checks)


@EACH_NUMBER
def test_the_solution_passes(
    page: Page, number: str, cells: Cells, capsys: pytest.CaptureFixture[str]
) -> None:
    solved = cells(page, True)
    capsys.readouterr()  # what the cells printed
    page.checks[number](*(solved[name] for name in page.arguments(number)))
    assert capsys.readouterr().out == f"Exercise {number} passed.\n"


@EACH_NUMBER
def test_the_stub_asks_for_an_answer(page: Page, number: str, cells: Cells) -> None:
    stubs, names = cells(page, False), page.arguments(number)
    with pytest.raises(CheckFailed) as failure:
        page.checks[number](*(stubs[name] for name in names))
    assert str(failure.value) == (
        f"Exercise {number} is still open: replace the `raise NotImplementedError` in "
        f"`{names[0]}`, run its cell, then this one."
    )


@pytest.mark.parametrize(
    "page, number",
    [
        page.param(number)
        for page in PAGES.values()
        for number in page.checks
        if len(page.arguments(number)) > 1
    ],
)
def test_a_later_stub_asks_for_its_own_answer(page: Page, number: str, cells: Cells) -> None:
    solved, stubs = cells(page, True), cells(page, False)
    *first, last = page.arguments(number)
    with pytest.raises(CheckFailed, match=f"still open: .* in `{last}`"):
        page.checks[number](*(solved[name] for name in first), stubs[last])


@pytest.mark.parametrize("page, number, function, fragment", every("WRONG"))
def test_a_wrong_answer_gets_its_own_message(
    page: Page, number: str, function: Any, fragment: str, cells: Cells
) -> None:
    names, solved = page.arguments(number), cells(page, True)
    functions = [function if name == function.__name__ else solved[name] for name in names]
    if len(names) == 1:
        functions = [function]
    assert function in functions
    with pytest.raises(CheckFailed) as failure:
        page.checks[number](*functions)
    message = str(failure.value)
    # A kernel and its launcher are judged together.
    together = number in page.kernel_numbers and len(names) > 1
    blamed = names if together else [function.__name__]
    assert any(message.startswith(f"Exercise {number}, `{name}`: ") for name in blamed), message
    assert fragment in message
    others = {other for _, _, other in page.answers.WRONG[number]} - {fragment}
    assert not [other for other in others if other in message], message


@EACH_PAGE
def test_every_known_mistake_is_seeded(page: Page) -> None:
    """A message without a wrong answer that gets it is a branch that no test reaches."""
    fragments = [part for rows in page.answers.WRONG.values() for _, _, part in rows]
    assert page.mistakes
    for mistake in page.mistakes:
        assert any(part in mistake.message for part in fragments), mistake.message


@EACH_NUMBER
def test_wrong_answers_are_told_apart(page: Page, number: str) -> None:
    assert len({fragment for _, _, fragment in page.answers.WRONG[number]}) >= 3


@pytest.mark.parametrize("page, number, functions", every("RIGHT"))
def test_a_correct_answer_written_differently_passes(
    page: Page, number: str, functions: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    page.checks[number](*functions)
    assert capsys.readouterr().out == f"Exercise {number} passed.\n"


# Kernels -----------------------------------------------------------------------------


@EACH_PAGE
def test_without_triton_the_check_says_so(
    page: Page, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    monkeypatch.setattr(_triton, "REASON", "triton is not installed")
    for number in page.kernel_numbers:
        page.checks[number](*(lambda *arguments: None for _ in page.arguments(number)))
        said = capsys.readouterr().out
        assert said == f"Exercise {number} needs triton: triton is not installed.\n"


@EACH_PAGE
def test_the_notebook_runs_without_triton(page: Page, tmp_path: Path) -> None:
    """In a process where triton cannot be imported, up to and with the kernel's cell."""
    run = run_script(
        tmp_path,
        f"""
sys.modules["triton"] = None  # import triton raises ImportError
import pathlib
from tests.exercises.common import PAGES

page = PAGES["{page.name}"]
cells = page.run_cells(pathlib.Path(sys.argv[1]), solved=True)
for number in page.kernel_numbers:
    page.checks[number](*(cells[name] for name in page.arguments(number)))
""",
    )
    assert run.returncode == 0, run.stderr
    for number in page.kernel_numbers:
        assert f"\nExercise {number} needs triton: " in f"\n{run.stdout}"


@EACH_KERNEL
@pytest.mark.triton
def test_the_kernel_compiles_and_its_stub_does_not(
    page: Page, kernel: Kernel, tmp_path: Path
) -> None:
    """For every architecture, in a process that does not interpret; no GPU is needed."""
    run = run_script(
        tmp_path,
        f"""
import pathlib
from attn_course import _triton
from tests.exercises.common import PAGES
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompilationError

page = PAGES["{page.name}"]
(exercise,) = (kernel for kernel in page.kernels if kernel.name == "{kernel.name}")
for solved in (True, False):
    folder = pathlib.Path(sys.argv[1]) / str(solved)
    folder.mkdir()
    kernel = page.run_cells(folder, solved)[exercise.name]
    pointers = [name for name in kernel.arg_names if name.endswith("_ptr")]
    signature = dict.fromkeys(pointers, "*fp32") | exercise.types
    signature |= dict.fromkeys(exercise.constants, "constexpr")
    source = ASTSource(kernel, signature, exercise.constants)
    for arch in _triton.ARCHITECTURES if solved else (90,):
        try:
            print("ptx" in triton.compile(source, target=GPUTarget("cuda", arch, 32)).asm)
        except CompilationError:
            print("not compiled")
""",
        TRITON_INTERPRET="0",
    )
    said = [line for line in run.stdout.splitlines() if line in ("True", "not compiled")]
    assert said == ["True"] * len(_triton.ARCHITECTURES) + ["not compiled"], run.stderr


# The page ----------------------------------------------------------------------------


@EACH_PAGE
def test_the_table_of_exercises_agrees_with_their_headings(page: Page) -> None:
    number = rf"({page.chapter}\.\d)"
    rows = re.findall(rf"^\| {number} \| (.+?) \| (★+) \| (\d+) \|", page.text, re.M)
    heads = re.findall(rf"^## {number} (.+)\n\n(★+) · (\d+) minutes", page.text, re.M)
    assert rows == heads and len(rows) == len(page.checks)
    assert int(rows[0][3]) <= 5


@EACH_PAGE
def test_every_exercise_has_hints_a_stub_and_a_reason(page: Page) -> None:
    for part in page.parts:
        assert 1 <= part.count("<summary>Hint") <= 3
        assert part.count("<details>") == part.count("</details>")
        assert "<!-- BEGIN SOLUTION -->\n**Why.**" in part
        assert len(re.findall(r"^check_\w+\(", part, re.M)) == 1
        assert part.count("### BEGIN SOLUTION") == part.count("### END SOLUTION") > 0


@EACH_PAGE
def test_stubs_are_typed_and_documented(page: Page, cells: Cells) -> None:
    stubs = cells(page, False)
    for number in page.checks:
        for name in page.arguments(number):
            function = stubs[name]
            assert inspect.getdoc(getattr(function, "fn", function))
            if name not in [kernel.name for kernel in page.kernels]:
                hints = inspect.get_annotations(function)
                assert set(hints) == {*inspect.signature(function).parameters, "return"}
