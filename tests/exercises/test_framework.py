"""The checks' framework: what is told about an answer, and how it looks in a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from torch import Tensor

from attn_course import _triton
from attn_course.exercises import (
    Attempt,
    Case,
    CheckFailed,
    Mistake,
    Outcome,
    Skipped,
    exercise,
    tl,
    triton,
    watch,
)
from attn_course.exercises.kernels import Words, blank, device_for, guard, look, look_at_inputs

ROOT = Path(__file__).resolve().parents[2]

CASES = [
    Case("small numbers", {"x": torch.tensor([1.0, 2.0]), "scale": 2.0}),
    Case("negative ones", {"x": torch.tensor([-1.0, 4.0, 3.0]), "scale": 0.5}),
    Case("a long one", {"x": torch.arange(9.0), "scale": 3.0}),
]
MISTAKES = [
    Mistake("the scale is added.", (lambda x, scale: x + scale,)),
    Mistake("the scale is ignored.", (lambda x, scale: x,)),
]


@exercise("9.1")
def check_scaled(attempt: Attempt, scaled: Any) -> None:
    attempt.verify(scaled, CASES, lambda x, scale: x * scale, MISTAKES)


@exercise("9.2")
def check_total(attempt: Attempt, total: Any) -> None:
    attempt.verify(total, CASES, lambda x, scale: (x * scale).sum())


def message(function: Any, check: Any = check_scaled) -> str:
    with pytest.raises(CheckFailed) as failure:
        check(function)
    return str(failure.value)


def test_a_right_answer_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    check_scaled(lambda x, scale: x.double() * scale)
    assert capsys.readouterr().out == "Exercise 9.1 passed.\n"


def test_an_untouched_stub() -> None:
    def scaled(x: Tensor, scale: float) -> Tensor:
        raise NotImplementedError("exercise 9.1")

    assert message(scaled) == (
        "Exercise 9.1 is still open: replace the `raise NotImplementedError` in `scaled`, "
        "run its cell, then this one."
    )


def test_a_library_s_not_implemented_error_is_not_a_stub() -> None:
    def scaled(x: Tensor, scale: float) -> Tensor:
        return torch.empty(1, device="meta").cpu()

    with pytest.raises(NotImplementedError):
        scaled(torch.ones(1), 1.0)
    text = message(scaled)
    assert "still open" not in text
    assert "raised NotImplementedError at the line `return torch.empty" in text


def test_an_exception_is_told_with_its_line_and_the_inputs() -> None:
    def scaled(x: Tensor, scale: float) -> Tensor:
        wide = torch.ones(7)
        return x * wide

    text = message(scaled)
    assert text.startswith(
        "Exercise 9.1, `scaled`: your code raised RuntimeError at the line `return x * wide`: "
    )
    assert text.endswith("It was called with x [2] = [1, 2], scale = 2.")


def test_the_exception_stays_the_cause() -> None:
    with pytest.raises(CheckFailed) as failure:
        check_scaled(lambda x, scale: x[5])
    assert isinstance(failure.value.__cause__, IndexError)


def test_arguments_may_have_other_names() -> None:
    check_scaled(lambda numbers, factor: factor * numbers)


def test_functions_among_the_arguments_are_told_by_name() -> None:
    @exercise("9.7")
    def check(attempt: Attempt, applied: Any) -> None:
        case = Case("a half", {"x": torch.tensor([0.5]), "function": torch.relu})
        attempt.verify(applied, [case], lambda x, function: function(x))

    check(lambda x, function: function(x))
    assert "(x [1] = [0.5], function = relu)" in message(lambda x, function: x + 1, check)


def test_a_wrong_number_of_arguments() -> None:
    assert "raised TypeError" in message(lambda x: x)


@pytest.mark.parametrize(
    "result, fragment",
    [
        (None, "returned None: is the `return` missing?"),
        ([1.0, 2.0], "returned a list; expected a tensor of shape [2]. `torch.stack`"),
        ((1.0, 2.0), "returned a tuple; expected a tensor of shape [2]."),
        (torch.ones(2).max(0), "returned a tuple; expected"),
        (7, "returned an int; expected"),
        (3.0, "returned a float; expected a tensor of shape [2]."),
        (torch.ones(2, 1), "returned shape [2, 1]; expected [2], for x [2] = [1, 2], scale = 2."),
        (torch.tensor([2, 4]), "returned int64; expected floating-point numbers"),
        (torch.tensor([True, False]), "returned bool"),
    ],
)
def test_type_and_shape_come_before_numbers(result: Any, fragment: str) -> None:
    assert fragment in message(lambda x, scale: result)


@pytest.mark.parametrize(
    "form", [float, lambda y: y, lambda y: np.float32(y), lambda y: y[None], lambda y: y.double()]
)
def test_one_number_may_come_in_any_form(form: Any) -> None:
    check_total(lambda x, scale: form((x * scale).sum()))


def test_one_number_must_be_one() -> None:
    assert "returned shape [2]; expected []" in message(lambda x, scale: x, check_total)
    assert "returned a bool" in message(lambda x, scale: True, check_total)
    text = message(lambda x, scale: [3.0], check_total)
    assert text.endswith("returned a list; expected a number.")


def test_a_result_instead_of_a_function() -> None:
    assert "without parentheses" in message(torch.ones(3))


def test_changed_arguments_are_noticed() -> None:
    def scaled(x: Tensor, scale: float) -> Tensor:
        return x.mul_(scale)

    assert "it changes its argument `x`" in message(scaled)
    assert torch.equal(CASES[0].inputs["x"], torch.tensor([1.0, 2.0]))


def test_a_known_mistake_is_named() -> None:
    text = message(lambda x, scale: x + scale)
    assert text.splitlines()[0] == "Exercise 9.1, `<lambda>`: the scale is added."
    assert "small numbers" in text and "expected [2, 4], got [3, 4]" in text


def test_a_mistake_must_explain_every_case_if_one_can() -> None:
    """On the first case alone, this is what ignoring the scale gives as well."""

    @exercise("9.3")
    def check(attempt: Attempt, scaled: Any) -> None:
        ignored = Mistake("the scale is ignored.", (lambda x, scale: x,))
        once = Mistake(
            "only long inputs are scaled.", (lambda x, scale: x * scale if len(x) > 2 else x,)
        )
        attempt.verify(scaled, CASES, lambda x, scale: x * scale, [ignored, once])

    assert "only long inputs" in message(lambda x, scale: x * scale if len(x) > 2 else x, check)
    assert "is ignored" in message(lambda x, scale: x, check)


def test_a_mistake_that_explains_some_cases_alone_is_not_named() -> None:
    assert "does not know" in message(lambda x, scale: x if len(x) < 3 else x * 0 - 8)


def test_a_list_is_a_copy_and_must_stay_as_it_was() -> None:
    """A changed case would be wrong for every answer after this one."""
    case = Case("two words", {"words": ["a", "b"], "n": 1})

    @exercise("9.8")
    def check(attempt: Attempt, counted: Any) -> None:
        attempt.verify(counted, [case], lambda words, n: torch.tensor(1.0 * len(words)))

    assert message(lambda words, n: float(len(words) + bool(words.pop())), check) == (
        "Exercise 9.8, `<lambda>`: it changes its argument `words`. A caller's list is the "
        "caller's: which of your operations works in place?"
    )
    assert case.inputs["words"] == ["a", "b"]
    check(lambda words, n: float(len(words)))


def test_a_dictionary_of_tensors_must_keep_its_numbers() -> None:
    case = Case("a state", {"state": {"w": torch.arange(2000.0)}})

    @exercise("9.8")
    def check(attempt: Attempt, total: Any) -> None:
        attempt.verify(total, [case], lambda state: state["w"].double().sum())

    def halved(state: Any) -> Any:
        total = state["w"].sum()
        state["w"][1000] /= 2  # where a printed tensor has its dots
        return total

    assert "it changes its argument `state`" in message(halved, check)
    assert "it changes its argument `state`" in message(
        lambda state: state.popitem()[1].sum(), check
    )
    check(lambda state: state["w"].sum())


def test_a_mistake_may_raise_anything() -> None:
    @exercise("9.9")
    def check(attempt: Attempt, scaled: Any) -> None:
        mistakes = [Mistake("divided.", (lambda x, scale: x * (1 / 0),)), *MISTAKES]
        attempt.verify(scaled, CASES, lambda x, scale: x * scale, mistakes)

    assert "the scale is added" in message(lambda x, scale: x + scale, check)


def test_what_numbers_mean_can_be_noted() -> None:
    outcome = Outcome.of(CASES[0], lambda x, scale: x * scale, torch.zeros(2).double())
    with pytest.raises(CheckFailed, match=r"got \[0, 0\]\. \(Zero is nothing\.\)$"):
        Attempt("9.9").judge(None, [outcome], [], note="(Zero is nothing.)")


def test_a_gradient_is_asked_for() -> None:
    attempt, inputs = Attempt("9.9"), CASES[0].inputs
    double = attempt.gradient(lambda x, scale: x * scale, inputs, "x")
    assert torch.equal(double, 2 * 4 * inputs["x"])
    for cut in (lambda x, scale: x.detach(), lambda x, scale: x.sum().item()):
        with pytest.raises(CheckFailed, match="they have no gradient by `x`"):
            attempt.gradient(cut, inputs, "x")


def test_numbers_are_judged_before_a_later_exception() -> None:
    def scaled(x: Tensor, scale: float) -> Tensor:
        return x + scale if len(x) < 4 else x[100]

    assert "the scale is added" in message(scaled)


def test_an_unknown_mistake_says_where_expected_and_got() -> None:
    def scaled(x: Tensor, scale: float) -> Tensor:
        y = x * scale
        return torch.where(x > 7, torch.nan, y) if len(x) > 3 else y

    text = message(scaled)
    assert "in a way that this check does not know" in text
    assert "a long one (x [9], scale = 3): at [8] expected 24, got nan; 1 of 9 numbers" in text


def test_skipping_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    @exercise("9.4")
    def check(attempt: Attempt) -> None:
        raise Skipped("needs a telescope.")

    check()
    assert capsys.readouterr().out == "Exercise 9.4 needs a telescope.\n"


def test_a_fault_of_the_check_itself_is_not_the_student_s() -> None:
    @exercise("9.5")
    def check(attempt: Attempt) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        check()


def test_a_notebook_shows_the_message_alone(tmp_path: Path) -> None:
    """In a kernel of its own: no path through the check, no exception behind it."""
    cells = [
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from attn_course.exercises.kernel_regression import check_boxcar"
    ]
    bodies = {
        'raise NotImplementedError("exercise 1.1")': "is still open: replace the `raise",
        "return query[99]": "raised IndexError at the line `return query[99]`: index 99",
        "return key": "it returned shape [4]; expected [3], for query [3] =",
        "return 0 * query": "the numbers differ",
    }
    for body in bodies:
        cells.append(f"def boxcar(query, key, value, width):\n    {body}\n")
        cells.append("check_boxcar(boxcar)")
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", allow_errors=True)
    client.execute(cwd=str(tmp_path))
    assert not any(cell.outputs for cell in notebook.cells[:2])
    for cell, fragment in zip(notebook.cells[2::2], bodies.values(), strict=True):
        (output,) = cell.outputs
        assert output.ename == "CheckFailed"
        shown = output.traceback
        assert len(shown) <= 6 and all(len(line) <= 95 for line in shown)
        joined = " ".join(shown)
        assert joined.startswith("\x1b[1;31mExercise 1.1")
        assert fragment in joined, joined
        assert "Traceback" not in joined and "framework.py" not in joined


@triton.jit
def _copy_kernel(source_ptr, target_ptr, LENGTH: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    offs = i * BLOCK + tl.arange(0, BLOCK)
    tl.store(target_ptr + offs, tl.load(source_ptr + offs), mask=offs < LENGTH)
    tl.atomic_add(target_ptr, 0.0)


@pytest.mark.triton
@pytest.mark.skipif(not _triton.INTERPRETED, reason="a GPU does not tell who wrote what")
def test_a_launch_is_recorded() -> None:
    """Fails if a new triton has another interpreter, so that checks would see less."""
    memory = torch.arange(12.0)
    source, target = memory[:6], torch.zeros(6)
    with watch() as accesses:
        _copy_kernel[(2,)](source, target, LENGTH=6, BLOCK=4)
    assert accesses.recorded
    assert torch.equal(target, source)
    first, second = (0, 0, 0), (1, 0, 0)
    assert accesses.writers(target) == [
        [first, first, second],  # the copy, and an atomic addition of each program
        *[[first]] * 3,
        *[[second]] * 2,
    ]
    assert accesses.outside(source) and not accesses.outside(memory)
    _copy_kernel[(2,)](memory, target, LENGTH=6, BLOCK=4)
    assert len(accesses.loads) == 2, "recording went on after the with"


@triton.jit
def _stub_kernel(source_ptr):
    tl.program_id(0)
    raise NotImplementedError("exercise 9.6")


@pytest.mark.triton
@pytest.mark.parametrize(
    "error", [NotImplementedError("exercise 9.6"), ValueError("unsupported AST node type: Raise")]
)
def test_a_stub_inside_a_kernel_is_recognised(error: Exception) -> None:
    """By the interpreter's exception, or by whatever a compiler makes of the line."""
    with pytest.raises(CheckFailed, match=r"still open: .* in `_stub_kernel`"):
        with Attempt("9.6").watching(_stub_kernel, {}):
            raise error


@pytest.mark.triton
@pytest.mark.skipif(not _triton.INTERPRETED, reason="launches on a CPU")
def test_an_interpreted_stub_raises_what_it_says() -> None:
    with pytest.raises(CheckFailed, match=r"still open: .* in `_stub_kernel`"):
        with Attempt("9.6").watching(_stub_kernel, {}):
            _stub_kernel[(1,)](torch.zeros(1))


WORDS = Words("reads on.", "Each owns its row.", "Something was NaN.")
ROWS = guard(torch.arange(6.0).view(3, 2))


@triton.jit
def _rows_kernel(
    source_ptr, target_ptr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, REACH: tl.constexpr
):
    i = tl.program_id(0)
    offs = tl.arange(0, 4)
    read = tl.load(source_ptr + i * 2 + offs, mask=offs < REACH, other=0.0)
    tl.store(target_ptr + i * 2 + SHIFT + offs, read, mask=offs < WIDTH)


def looked(shift: int, width: int, reach: int, words: Words = WORDS, owners: int = 9) -> Tensor:
    output = blank([3, 2])
    with watch() as accesses:
        _rows_kernel[(3,)](ROWS.tensor, output.tensor, SHIFT=shift, WIDTH=width, REACH=reach)
    return look(
        Attempt("9.8"),
        _rows_kernel,
        accesses,
        [ROWS],
        output,
        owner=lambda place: (place // 2 % owners, 0, 0),
        words=words,
        seen="Seen here.",
    )


@pytest.mark.triton
@pytest.mark.skipif(not _triton.INTERPRETED, reason="a GPU does not tell who wrote what")
def test_a_launch_is_looked_at() -> None:
    assert torch.equal(looked(0, 2, 2), ROWS.tensor.double())
    for arguments, fragment in {
        (0, 2, 4): "reads on.\nSeen here.",
        (0, 3, 2): "not its own. Program 0 wrote output [1, 0]. Each owns its row.\nSeen here.",
        (1, 2, 2): "not its own. Program 0 wrote output [1, 0]. Each owns its row.\nSeen here.",
        (4, 2, 2): "not its own. Program 0 wrote output [2, 0].",
        (9, 1, 2): "not its own. Program 0 wrote output 9.",
        (0, 1, 2): "output [0, 1] is never written. Where does the program store",
    }.items():
        with pytest.raises(CheckFailed) as failure:
            looked(*arguments)
        assert fragment in str(failure.value), arguments
    with pytest.raises(CheckFailed, match="Program 0 wrote output 9"):
        looked(9, 1, 2, owners=4)  # nobody owns what is behind the end


@triton.jit
def _bare_kernel(source_ptr, target_ptr):
    offs = tl.arange(0, 4)
    tl.store(target_ptr + offs, tl.load(source_ptr + offs, mask=offs < 2))


@pytest.mark.triton
@pytest.mark.skipif(not _triton.INTERPRETED, reason="a GPU does what it likes")
def test_a_lane_without_a_number_is_nan_if_watched() -> None:
    target = torch.zeros(4)
    with watch():
        _bare_kernel[(1,)](torch.ones(4), target)
    assert target[:2].tolist() == [1, 1] and target[2:].isnan().all()
    _bare_kernel[(1,)](torch.ones(4), target)
    assert target.tolist() == [1, 1, 0, 0]


def test_inputs_of_a_launch_must_stay_as_they_were() -> None:
    numbers, ids = guard(torch.tensor([1.0, torch.nan])), guard(torch.tensor([3, 4]))
    look_at_inputs(Attempt("9.8"), "kernel", [numbers, ids], "Seen here.")
    ids.tensor[0] = 5
    with pytest.raises(CheckFailed, match="an input is not what it was"):
        look_at_inputs(Attempt("9.8"), "kernel", [numbers, ids], "Seen here.")


@pytest.mark.triton
@pytest.mark.skipif(not _triton.INTERPRETED, reason="a CPU's launch")
def test_nan_is_told_where_there_are_words_for_it() -> None:
    memory = ROWS.memory.clone()
    try:
        ROWS.memory[3] = ROWS.source[1, 1] = torch.nan
        with pytest.raises(CheckFailed, match=r"the answer is NaN\. Something was NaN\."):
            looked(0, 2, 2)
        assert looked(0, 2, 2, WORDS._replace(nan="")).isnan().sum() == 1
    finally:
        ROWS.memory.copy_(memory)
        ROWS.source.copy_(ROWS.tensor)


def test_guarded_memory() -> None:
    numbers, whole, _ = guard(torch.tensor([[3, 4]]))
    assert numbers.tolist() == [[3, 4]] and (whole[2:] > 1000).all()
    assert blank([2, 3]).tensor.isnan().all()


@pytest.mark.triton
def test_a_function_is_no_kernel() -> None:
    with pytest.raises(CheckFailed, match=r"is `@triton\.jit` still above it"):
        device_for(Attempt("9.9"), lambda x: x)
