"""Chapter 7's checks: their cases, their mistakes, their oracles and what else they see."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from attn_course.exercises import Accesses, CheckFailed
from attn_course.exercises import vision as checks
from attn_course.exercises import vision_cases as cases
from attn_course.exercises import vision_mistakes as mistakes
from attn_course.exercises.framework import _exact
from attn_course.vision import class_rollout, patch_embedding, patchify, resize_positions
from tests.exercises.common import (
    PAGES,
    assert_formulas_are_wrong,
    assert_formulas_get_their_messages,
)

PAGE = PAGES["vision"]
ANSWERS, CHECKS = PAGE.answers, PAGE.checks


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return PAGE.run_cells(tmp_path_factory.mktemp("solved"), solved=True)


TABLES = [
    (cases._PATCH_CASES, cases._patches, mistakes._PATCH_MISTAKES),
    (cases._EMBED_CASES, cases._embed, mistakes._EMBED_MISTAKES),
    (cases._EMBED_BACKWARD_CASES, checks._by_weight, mistakes._DKERNEL_MISTAKES),
    (cases._EMBED_BACKWARD_CASES, checks._by_bias, mistakes._DBIAS_MISTAKES),
    (cases._RESIZE_CASES, cases._resize, mistakes._RESIZE_MISTAKES),
    (cases._ROLLOUT_CASES, cases._rollout, mistakes._ROLLOUT_MISTAKES),
    (cases._POOL_CASES, cases._class_token, mistakes._CLASS_MISTAKES),
    (cases._POOL_CASES, cases._mean_patch, mistakes._MEAN_MISTAKES),
    (cases._IMAGE_CASES, cases._patch_tokens, mistakes._IMAGE_MISTAKES),
]
EACH_TABLE = pytest.mark.parametrize(
    "table, oracle, known", TABLES, ids=[oracle.__name__ for _, oracle, _ in TABLES]
)


def exact(case: Any) -> dict[str, Any]:
    return {name: _exact(value) for name, value in case.inputs.items()}


@EACH_TABLE
def test_mistakes_do_not_answer_correctly(table: Any, oracle: Any, known: Any) -> None:
    assert_formulas_are_wrong(table, oracle, known)


@EACH_TABLE
def test_each_formula_of_a_mistake_gets_its_message(table: Any, oracle: Any, known: Any) -> None:
    assert_formulas_get_their_messages(table, oracle, known)


@EACH_TABLE
def test_each_formula_speaks_of_the_first_case(table: Any, oracle: Any, known: Any) -> None:
    """So that no mistake goes unnamed because a later case stops the answer that makes it."""
    inputs = exact(table[0])
    for mistake in known:
        for answer in mistake.answers:
            assert answer(**inputs).shape == oracle(**inputs).shape, mistake.message


# Oracles, and the page's solutions ---------------------------------------------------


def test_patches_are_the_package_s() -> None:
    for case in cases._PATCH_CASES:
        images, rows, columns = case.inputs.values()
        theirs = patchify(images, (rows, columns))
        torch.testing.assert_close(cases._patches(images, rows, columns), theirs)


def test_embedding_is_the_package_s(solved: dict[str, Any]) -> None:
    """Of whole images, cut by the solution of 7.1, and back through its autograd."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(2, 3, 6, 8, generator=generator)
    weight = torch.randn(5, 3, 2, 4, generator=generator, requires_grad=True)
    bias = torch.randn(5, generator=generator, requires_grad=True)
    theirs = patch_embedding(images, weight, bias, impl="conv")
    x = solved["patches"](images, 2, 4)
    torch.testing.assert_close(solved["embed"](x, weight, bias), theirs)
    torch.testing.assert_close(cases._embed(x, weight, bias), theirs)
    grad = torch.randn(theirs.shape, generator=generator)
    gradients = torch.autograd.grad(theirs, (weight, bias), grad)
    for back in (solved["embed_backward"], cases._embed_backward):
        for mine, wanted in zip(back(x, weight, grad), gradients, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def test_resizing_is_pytorch_s_and_the_package_s_but_for_the_mode(solved: dict[str, Any]) -> None:
    for case in cases._RESIZE_CASES:
        table, old, new = exact(case).values()
        picture = table[1:].reshape(1, *old, -1).movedim(3, 1)
        linear, cubic = (
            torch.cat([table[:1], F.interpolate(picture, new, mode=mode)[0].flatten(1).T])
            for mode in ("bilinear", "bicubic")
        )
        torch.testing.assert_close(cases._resize(table, old, new), linear)
        torch.testing.assert_close(solved["resize"](table, old, new), linear)
        torch.testing.assert_close(resize_positions(table, old, new), cubic)


def test_rollout_is_the_package_s() -> None:
    for case in cases._ROLLOUT_CASES:
        weights = exact(case)["weights"]
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        torch.testing.assert_close(cases._rollout(weights), class_rollout(weights[None])[0])


def test_pooling_forgets_the_padding() -> None:
    for case in cases._POOL_CASES:
        tokens, counts = exact(case).values()
        expected = cases._mean_patch(tokens, counts)
        assert expected.isfinite().all()
        for image, count, mean in zip(tokens, counts, expected, strict=True):
            torch.testing.assert_close(mean, image[1:][:count].mean(0))


def test_tokens_of_an_image_are_the_package_s() -> None:
    for case in cases._IMAGE_CASES:
        given = exact(case)
        image, weight = given["image"], given["weight"]
        theirs = patch_embedding(
            image[None],
            weight.unflatten(1, (len(image), *given["patch"])),
            given["bias"],
            position=given["position"],
            class_token=given["class_token"],
            impl="reference",
        )
        torch.testing.assert_close(cases._patch_tokens(**given), theirs[0])


# What a check sees besides numbers ---------------------------------------------------


@pytest.mark.triton
def test_what_the_kernel_s_check_sees_without_a_record(
    solved: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the numbers, and what stands around them."""
    monkeypatch.setattr(checks, "watch", lambda: contextlib.nullcontext(Accesses()))
    CHECKS["7.6"](solved["patch_kernel"])
    unseen = ("reads past the end", "an output that is not its own", "is never written", "Lanes")
    for name, kernel, fragment in ANSWERS.WRONG["7.6"]:
        if not fragment.startswith(unseen):
            with pytest.raises(CheckFailed) as failure:
                CHECKS["7.6"](kernel)
            assert fragment in str(failure.value), name
