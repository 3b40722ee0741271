"""Chapter 1's exercises both ways: right answers pass, stubs and wrong ones say why not."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attn_course import _triton
from attn_course.exercises import Accesses, CheckFailed
from attn_course.exercises import kernel_regression as checks

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "book" / "exercises" / "01_kernel_regression.md"
CELL = re.compile(r"^```\{code-cell\} ipython3\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SOLUTION = re.compile(
    r"^([ \t]*)### BEGIN SOLUTION\n.*?### END SOLUTION$", re.DOTALL | re.MULTILINE
)

CHECKS: dict[str, Callable[..., None]] = {
    check.number: check for name, check in vars(checks).items() if name.startswith("check_")
}


def _answers() -> Any:
    path = Path(__file__).with_name("kernel_regression_answers.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ANSWERS = _answers()


def run_cells(folder: Path, solved: bool) -> dict[str, Any]:
    """Run the source's cells but the checks, each from a file of its own, as triton needs."""
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(CELL.findall(SOURCE.read_text(encoding="utf-8"))):
        if "# generated" in cell or cell.startswith("check_"):
            continue
        if not solved:
            cell = SOLUTION.sub(r'\1raise NotImplementedError("your code here")', cell)
        path = folder / f"cell_{number}.py"
        path.write_text(cell, encoding="utf-8")
        exec(compile(cell, str(path), "exec"), namespace)
    return namespace


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_cells(tmp_path_factory.mktemp("solved"), solved=True)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_cells(tmp_path_factory.mktemp("stubs"), solved=False)


def arguments(number: str) -> list[str]:
    """The student's functions that a check takes, as its cell calls it."""
    call = re.search(rf"^{CHECKS[number].__name__}\((.*)\)$", SOURCE.read_text("utf-8"), re.M)
    assert call is not None
    return call[1].split(", ")


def needs_triton(number: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.triton] if number == "1.7" else []


def every(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(number, *row[1:], id=f"{number} {row[0]}", marks=needs_triton(number))
        for number, rows in table.items()
        for row in rows
    ]


NUMBERS = [pytest.param(number, marks=needs_triton(number)) for number in CHECKS]


def test_there_are_seven() -> None:
    assert list(CHECKS) == [f"1.{i}" for i in range(1, 8)]
    assert list(ANSWERS.WRONG) == list(ANSWERS.RIGHT) == list(CHECKS)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_solution_passes(
    number: str, solved: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    CHECKS[number](*(solved[name] for name in arguments(number)))
    assert capsys.readouterr().out == f"Exercise {number} passed.\n"


@pytest.mark.parametrize("number", NUMBERS)
def test_the_stub_asks_for_an_answer(number: str, stubs: dict[str, Any]) -> None:
    functions = [stubs[name] for name in arguments(number)]
    with pytest.raises(CheckFailed) as failure:
        CHECKS[number](*functions)
    assert str(failure.value) == (
        f"Exercise {number} is still open: replace the `raise NotImplementedError` in "
        f"`{arguments(number)[0]}`, run its cell, then this one."
    )


@pytest.mark.parametrize("number", ["1.2", "1.5"])
def test_a_later_stub_asks_for_its_own_answer(
    number: str, solved: dict[str, Any], stubs: dict[str, Any]
) -> None:
    *first, last = arguments(number)
    with pytest.raises(CheckFailed, match=f"still open: .* in `{last}`"):
        CHECKS[number](*(solved[name] for name in first), stubs[last])


@pytest.mark.parametrize("number, function, fragment", every(ANSWERS.WRONG))
def test_a_wrong_answer_gets_its_own_message(
    number: str, function: Any, fragment: str, solved: dict[str, Any]
) -> None:
    names = arguments(number)
    functions = [function if name == function.__name__ else solved[name] for name in names]
    if len(names) == 1:
        functions = [function]
    assert function in functions
    with pytest.raises(CheckFailed) as failure:
        CHECKS[number](*functions)
    message = str(failure.value)
    assert message.startswith(f"Exercise {number}, `{function.__name__}`: ")
    assert fragment in message
    others = {other for _, _, other in ANSWERS.WRONG[number]} - {fragment}
    assert not [other for other in others if other in message], message


def test_every_known_mistake_is_seeded() -> None:
    """A message without a wrong answer that gets it is a branch that no test reaches."""
    fragments = [part for rows in ANSWERS.WRONG.values() for _, _, part in rows]
    for name, table in vars(checks).items():
        for mistake in table if name.endswith("_MISTAKES") else ():
            assert any(part in mistake.message for part in fragments), mistake.message


@pytest.mark.parametrize("number", list(CHECKS))
def test_wrong_answers_are_told_apart(number: str) -> None:
    assert len({fragment for _, _, fragment in ANSWERS.WRONG[number]}) >= 3


@pytest.mark.parametrize("number, functions", every(ANSWERS.RIGHT))
def test_a_correct_answer_written_differently_passes(
    number: str, functions: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    CHECKS[number](*functions)
    assert capsys.readouterr().out == f"Exercise {number} passed.\n"


def test_messages_do_not_depend_on_what_ran_before(solved: dict[str, Any]) -> None:
    def message() -> str:
        with pytest.raises(CheckFailed) as failure:
            CHECKS["1.4"](lambda query, key, value, width: query)
        return str(failure.value)

    torch.manual_seed(1)
    first = message()
    torch.randn(5)
    assert message() == first
    assert "does not know" in first and "expected [" in first and "got [" in first


def test_no_boxcar_case_lies_on_the_edge_of_a_window() -> None:
    """So that < and <= both pass."""
    for case in checks._BOXCAR_CASES:
        gap = (case.inputs["query"][:, None] - case.inputs["key"]).abs()
        assert ((gap - case.inputs["width"]).abs() > 1e-3).all(), case.name


def test_mistakes_do_not_answer_correctly() -> None:
    """Every formula of a known mistake differs from the oracle on some case."""
    tables = [
        (checks._BOXCAR_CASES, checks._boxcar, checks._BOXCAR_MISTAKES),
        (checks._WEIGHT_CASES, checks._gaussian, checks._WEIGHT_MISTAKES),
        (checks._LIMIT_CASES, checks._nearest, checks._NARROW_MISTAKES),
        (checks._LIMIT_CASES, checks._everything, checks._WIDE_MISTAKES),
        (checks._HELD_OUT_CASES, checks._held_out, checks._HELD_OUT_MISTAKES),
        (checks._SLOPE_CASES, checks._slope, checks._SLOPE_MISTAKES),
        (checks._SCALED_CASES, checks._scaled, checks._SCALED_MISTAKES),
        (checks._TOP_K_CASES, checks._top_k, checks._TOP_K_MISTAKES),
        (checks._STREAM_CASES, checks._stream, checks._STREAM_MISTAKES),
    ]
    for cases, oracle, mistakes in tables:
        for mistake in mistakes:
            for answer in mistake.answers:
                differs = False
                for case in cases:
                    inputs = {
                        k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
                        for k, v in case.inputs.items()
                    }
                    expected = oracle(**inputs)
                    assert not expected.isnan().any()
                    try:
                        got = answer(**inputs).double()
                    except RuntimeError:
                        continue
                    if got.shape == expected.shape:
                        differs |= not torch.allclose(got, expected, rtol=1e-2, atol=1e-2)
                assert differs, (oracle, mistake.message)


@pytest.mark.triton
def test_what_the_kernel_s_check_sees_without_a_record(
    solved: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the numbers, and what stands around them."""
    monkeypatch.setattr(checks, "watch", lambda: contextlib.nullcontext(Accesses()))
    checks.check_streaming_kernel(solved["gaussian_stream_kernel"])
    wrong = {name: (function, part) for name, function, part in ANSWERS.WRONG["1.7"]}
    for name, (function, fragment) in wrong.items():
        if name == "loads without a mask, right numbers":
            continue  # nothing to be seen
        if name == "nothing stored":
            fragment = "the answer is NaN"
        with pytest.raises(CheckFailed) as failure:
            checks.check_streaming_kernel(function)
        assert fragment in str(failure.value)


def test_without_triton_the_check_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    monkeypatch.setattr(_triton, "REASON", "triton is not installed")
    checks.check_streaming_kernel(lambda *arguments: None)
    assert capsys.readouterr().out == "Exercise 1.7 needs triton: triton is not installed.\n"


def test_the_notebook_runs_without_triton(tmp_path: Path) -> None:
    """In a process where triton cannot be imported, up to and with the kernel's cell."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "sys.modules['triton'] = None\n"  # import triton raises ImportError
        f"sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
        "import pathlib\n"
        "from test_kernel_regression import run_cells, CHECKS\n"
        "cells = run_cells(pathlib.Path(sys.argv[1]), solved=True)\n"
        "CHECKS['1.7'](cells['gaussian_stream_kernel'])\n",
        encoding="utf-8",
    )
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1].startswith("Exercise 1.7 needs triton: ")


@pytest.mark.triton
def test_the_kernel_compiles_and_its_stub_does_not(tmp_path: Path) -> None:
    """For every architecture, in a process that does not interpret; no GPU is needed."""
    script = tmp_path / "compile.py"
    script.write_text(
        f"""
import pathlib, sys
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
from attn_course import _triton
from attn_course.exercises import triton
from test_kernel_regression import run_cells
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompilationError

for solved in (True, False):
    folder = pathlib.Path(sys.argv[1]) / str(solved)
    folder.mkdir()
    kernel = run_cells(folder, solved)["gaussian_stream_kernel"]
    signature = dict.fromkeys(kernel.arg_names[:4], "*fp32") | {{"width": "fp32"}}
    signature |= {{"KEY_LEN": "constexpr", "BLOCK": "constexpr"}}
    source = ASTSource(kernel, signature, {{"KEY_LEN": 40, "BLOCK": 16}})
    for arch in _triton.ARCHITECTURES if solved else (90,):
        try:
            print("ptx" in triton.compile(source, target=GPUTarget("cuda", arch, 32)).asm)
        except CompilationError:
            print("not compiled")
""",
        encoding="utf-8",
    )
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    said = [line for line in run.stdout.splitlines() if line in ("True", "not compiled")]
    assert said == ["True"] * 3 + ["not compiled"], run.stderr


def test_the_table_of_exercises_agrees_with_their_headings() -> None:
    text = SOURCE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (1\.\d) \| (.+?) \| (★+) \| (\d+) \|", text, re.M)
    heads = re.findall(r"^## (1\.\d) (.+)\n\n(★+) · (\d+) minutes", text, re.M)
    assert rows == heads and len(rows) == 7
    assert int(rows[0][3]) <= 5


def test_every_exercise_has_hints_a_typed_stub_and_a_reason() -> None:
    parts = re.split(r"^## ", SOURCE.read_text(encoding="utf-8"), flags=re.M)[1:]
    for part in parts:
        assert 1 <= part.count("<summary>Hint") <= 3
        assert part.count("<details>") == part.count("</details>")
        assert "<!-- BEGIN SOLUTION -->\n**Why.**" in part
        assert len(re.findall(r"^check_\w+\(", part, re.M)) == 1
        assert part.count("### BEGIN SOLUTION") == part.count('"""') // 2


def test_stubs_are_typed_and_documented(stubs: dict[str, Any]) -> None:
    for number in CHECKS:
        for name in arguments(number):
            function = getattr(stubs[name], "fn", stubs[name])
            assert inspect.getdoc(function)
            if number != "1.7":
                hints = inspect.get_annotations(function)
                assert set(hints) == {*inspect.signature(function).parameters, "return"}
