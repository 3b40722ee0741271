"""Variants both ways: their own answers pass; the book's, a neighbour's and wrong ones do not."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_course import CHAPTERS
from attn_course.exercises import Attempt, CheckFailed
from attn_course.exercises.framework import _exact
from attn_course.exercises.variants import Variant, check_variant, variants
from tests.exercises.common import PAGES
from tools.notebooks import stubbed
from tools.variants import IMPORTS

ALL = {v.label: v for chapter in CHAPTERS for v in variants(chapter)}
STUDENTS = ("17", "ada", "2027-0031")
KEY = "a key for tests alone"
EACH = pytest.mark.parametrize("variant", ALL.values(), ids=ALL)
EACH_STUDENT = pytest.mark.parametrize("student", STUDENTS)

#: From a variant to the solution of the exercise that it varies.
Solutions = Callable[[Variant], Any]


@pytest.fixture(scope="module")
def solution(tmp_path_factory: pytest.TempPathFactory) -> Solutions:
    @functools.cache
    def cells(name: str) -> dict[str, Any]:
        return PAGES[name].run_cells(tmp_path_factory.mktemp(name), True)

    return lambda variant: cells(CHAPTERS[chapter_of(variant)])[variant.function]


def chapter_of(variant: Variant) -> int:
    return int(variant.varies.split(".")[0])


def defined(variant: Variant, code: str) -> Callable[..., Any]:
    """The student's function, as a notebook's cells define it."""
    namespace: dict[str, Any] = {"__name__": "cells"}
    exec(IMPORTS + "\n" + code, namespace)
    function: Callable[..., Any] = namespace[variant.function]
    return function


def answer(variant: Variant, setting: dict[str, Any]) -> Callable[..., Any]:
    return defined(variant, variant.code(setting))


def said(variant: Variant, setting: dict[str, Any], function: Any) -> str:
    """What the check says; nothing if it passes."""
    try:
        variant.check(Attempt(variant.label), setting, function)
    except CheckFailed as failure:
        return str(failure)
    return ""


def made(variant: Variant, wrong: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A student's function that makes a known mistake."""
    names = list(next(iter(variant.cases)).inputs)

    def function(*values: Any) -> Tensor:
        inputs = {name: _exact(value) for name, value in zip(names, values, strict=True)}
        result = wrong(**inputs)
        return result.bool() if variant.booleans else result

    return function


def test_two_exercises_of_each_chapter_are_varied() -> None:
    for chapter in CHAPTERS:
        table = variants(chapter)
        assert len(table) >= 2
        assert {chapter_of(variant) for variant in table} == {chapter}
        assert len({variant.function for variant in table}) == len(table)


@EACH
def test_the_worked_answer_passes_in_every_setting(variant: Variant) -> None:
    for setting in variant.settings():
        assert said(variant, setting, answer(variant, setting)) == "", setting


@EACH
def test_the_book_s_solution_fails_in_every_setting(variant: Variant, solution: Solutions) -> None:
    for setting in variant.settings():
        text = said(variant, setting, solution(variant))
        assert text.startswith(f"Exercise {variant.label}, "), setting
        assert "your code raised" not in text  # it runs, and answers something else


@EACH
def test_the_book_s_solution_is_named_as_such(variant: Variant, solution: Solutions) -> None:
    texts = [said(variant, setting, solution(variant)) for setting in variant.settings()]
    slips = [variant.fill(s.message, p) for s in variant.slips for p in variant.settings()]
    known = [f"exercise {variant.varies} of the book", *slips]
    assert any(message in text for text in texts for message in known)


@EACH
def test_an_answer_to_one_setting_fails_in_another(variant: Variant) -> None:
    settings = variant.settings()
    answers = [answer(variant, setting) for setting in settings]
    for student in STUDENTS[:2]:
        mine = variant.draw(student, KEY)
        for setting, function in zip(settings, answers, strict=True):
            if setting != mine:
                assert said(variant, mine, function), f"{setting} passes for {mine}"


@EACH
@EACH_STUDENT
def test_an_untouched_stub_says_so(variant: Variant, student: str) -> None:
    setting = variant.draw(student, KEY)
    function = defined(variant, stubbed(variant.code(setting)))
    assert said(variant, setting, function).startswith(f"Exercise {variant.label} is still open")


@EACH
@EACH_STUDENT
def test_known_mistakes_are_named(variant: Variant, student: str) -> None:
    setting = variant.draw(student, KEY)
    texts = {
        variant.fill(slip.message, setting): said(
            variant, setting, made(variant, functools.partial(slip.answer, setting))
        )
        for slip in variant.slips
    }
    # In some settings a slip is none, or is the same as another one.
    assert all(any(m in text for m in texts) for text in texts.values() if text)
    assert any(message in text for message, text in texts.items())


@EACH
def test_each_mistake_is_named_in_some_setting(variant: Variant) -> None:
    for slip in variant.slips:
        assert any(
            variant.fill(slip.message, setting)
            in said(variant, setting, made(variant, functools.partial(slip.answer, setting)))
            for setting in variant.settings()
        ), slip.message


@EACH
def test_an_answer_of_another_shape_is_told(variant: Variant) -> None:
    setting = variant.settings()[0]
    assert "it returned None" in said(variant, setting, lambda *inputs: None)


@EACH
def test_the_signature_is_the_book_s(variant: Variant, solution: Solutions) -> None:
    book, own = solution(variant), answer(variant, variant.settings()[0])
    assert len(inspect.signature(book).parameters) == len(inspect.signature(own).parameters)
    assert inspect.getdoc(own)


@EACH
def test_texts_are_complete(variant: Variant) -> None:
    for setting in variant.settings():
        parts = (variant.title, variant.shapes, variant.task, variant.why)
        texts = [variant.fill(part, setting) for part in parts]
        texts += [variant.fill(slip.message, setting) for slip in variant.slips]
        code = variant.code(setting)
        assert not any("<<" in text or ">>" in text for text in (*texts, code))
        long = [line for line in f"{code}\n{variant.call(setting)}".splitlines() if len(line) > 75]
        assert not long
        # A line of a paragraph that begins like an item of a list would be one.
        assert not re.search(r"[^\n]\n[-+*] ", texts[2] + "\n\n" + texts[3])
        assert texts[2].count("$$") % 2 == 0 and texts[2].replace("$$", "").count("$") % 2 == 0


@EACH
def test_the_call_checks(variant: Variant, capsys: pytest.CaptureFixture[str]) -> None:
    setting = variant.draw("17", KEY)
    call = variant.call(setting)
    exec(call, {"check_variant": check_variant, variant.function: answer(variant, setting)})
    assert capsys.readouterr().out == f"Exercise {variant.label} passed.\n"


@EACH
def test_settings_are_drawn(variant: Variant) -> None:
    drawn = [variant.draw(str(n), KEY) for n in range(400)]
    assert all(setting in drawn for setting in variant.settings())
    assert drawn == [variant.draw(str(n), KEY) for n in range(400)]
    assert drawn != [variant.draw(str(n), KEY + "!") for n in range(400)]
    assert all(setting in variant.settings() for setting in drawn)


def test_a_class_gets_many_settings() -> None:
    for chapter in CHAPTERS:
        table = variants(chapter)
        assert all(len(variant.settings()) >= 6 for variant in table)
        drawn = {repr([v.draw(str(n), KEY) for v in table]) for n in range(30)}
        assert len(drawn) > 15


def test_an_answer_changes_none_of_its_arguments() -> None:
    def attend(scores: Tensor, value: Tensor) -> Tensor:
        return scores.mul_(2).softmax(2) @ value

    variant = ALL["2.1v"]
    assert "it changes its argument `scores`" in said(variant, variant.settings()[0], attend)


@pytest.mark.parametrize("label", ["1.2v", "1.1", "11.1v", "boxcar", ""])
def test_an_unknown_variant(label: str) -> None:
    with pytest.raises(ValueError, match=r"label: expected|chapter: expected"):
        check_variant(label, torch.abs)


@pytest.mark.parametrize("parameters", [{}, {"kernel": "triangle", "reach": 1}])
def test_unknown_parameters(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"parameters of 1\.1v: expected kernel of .*, reach of"):
        check_variant("1.1v", torch.abs, **parameters)


def test_an_unknown_chapter() -> None:
    with pytest.raises(ValueError, match="chapter: expected a number from 1 to 10, got 11"):
        variants(11)
