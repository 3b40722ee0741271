"""Chapter 7's checks: their cases, their oracles and what else they see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from attn_course.exercises import vision_cases as cases
from attn_course.vision import class_rollout, patch_embedding, patchify, resize_positions
from tests.exercises.common import PAGES, exact, told

PAGE = PAGES["vision"]
ANSWERS, CHECKS = PAGE.answers, PAGE.checks


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
    solved: dict[str, Any], without_record: None
) -> None:
    """As on a GPU: the numbers, and what stands around them."""
    CHECKS["7.6"](solved["patch_kernel"])
    unseen = ("reads past the end", "an output that is not its own", "is never written", "Lanes")
    for name, kernel, fragment in ANSWERS.WRONG["7.6"]:
        if not fragment.startswith(unseen):
            assert fragment in told(CHECKS["7.6"], kernel), name
