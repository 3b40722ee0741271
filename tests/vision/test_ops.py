"""Positions on another grid, and patches painted over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.testing import assert_unchanged
from attn_course.vision import occlude, patchify, resize_positions


def plane(rows: int, columns: int) -> Tensor:
    """Positions that rise evenly: by 10 a row in one column, by 1 a column in the other."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    middle = (y + 0.5) / rows * 10, (x + 0.5) / columns
    return torch.stack([middle[0], middle[1]], -1).flatten(0, 1).double()


@pytest.mark.parametrize("new", [(12, 4), (6, 10), (3, 5), (13, 11)], ids=str)
def test_an_even_slope_stays_one(new: tuple[int, int]) -> None:
    """Rows stay rows, and columns columns, to a fifth of a step of the old grid."""
    found = resize_positions(plane(6, 10), (6, 10), new, has_class=False)
    error = (found - plane(*new)).abs()
    assert bool((error <= 0.2 * torch.tensor([10 / 6, 1 / 10])).all())


@pytest.mark.parametrize("has_class", [True, False])
def test_is_pytorchs_bicubic_over_the_grid(has_class: bool) -> None:
    position = torch.randn(3 * 4 + has_class, 5, dtype=torch.float64)
    with assert_unchanged(position=position):
        found = resize_positions(position, (3, 4), (6, 2), has_class=has_class)
    assert found.shape == (12 + has_class, 5)
    for d in range(5):
        image = position[int(has_class) :, d].view(1, 1, 3, 4)
        expected = F.interpolate(image, (6, 2), mode="bicubic", align_corners=False)
        torch.testing.assert_close(found[int(has_class) :, d], expected.flatten())
    if has_class:
        assert torch.equal(found[0], position[0])


def test_the_class_position_has_no_part_in_the_others() -> None:
    position = torch.randn(13, 5)
    other = position.clone()
    other[0] += 100
    kept, moved = (resize_positions(p, (3, 4), (5, 5)) for p in (position, other))
    assert torch.equal(kept[1:], moved[1:])
    assert torch.equal(moved[0], other[0])


def test_the_same_grid_changes_nothing() -> None:
    position = torch.randn(7, 4)
    assert torch.equal(resize_positions(position, (2, 3), (2, 3)), position)
    # As many patches, but on another grid, are other positions.
    assert not torch.equal(resize_positions(position, (2, 3), (3, 2)), position)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_positions_keep_their_type(dtype: torch.dtype) -> None:
    position = torch.randn(7, 4).to(dtype)
    found = resize_positions(position, (2, 3), (4, 4))
    assert found.dtype == dtype
    exact = resize_positions(position.double(), (2, 3), (4, 4))
    torch.testing.assert_close(found, exact.to(dtype))


def test_positions_can_be_learned_through_it() -> None:
    position = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: resize_positions(p, (2, 3), (3, 4)), position)


BAD_POSITIONS: list[tuple[Any, Any, Any, type[Exception], str]] = [
    ([0.0], (2, 3), (4, 4), TypeError, "position must be a torch.Tensor"),
    (torch.zeros(7, 2).long(), (2, 3), (4, 4), TypeError, "position must hold floating-point"),
    (torch.zeros(6, 2), (2, 3), (4, 4), ValueError,
     r"\[7, embed_dim\], for a grid of 2 x 3 and a class token, got \[6, 2\]"),
    (torch.zeros(1, 7, 2), (2, 3), (4, 4), ValueError, r"got \[1, 7, 2\]"),
    (torch.zeros(7, 2), (2, 3), (4, 0), ValueError, "new_grid must be an integer of at least 1"),
    (torch.zeros(7, 2), 2.5, (4, 4), TypeError, "old_grid must be an integer or"),
]  # fmt: skip


@pytest.mark.parametrize(("position", "old", "new", "error", "message"), BAD_POSITIONS)
def test_bad_positions_are_named(
    position: Any, old: Any, new: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resize_positions(position, old, new)


def test_a_superfluous_class_position_is_named() -> None:
    with pytest.raises(ValueError, match="2 x 3 without a class token"):
        resize_positions(torch.zeros(7, 2), (2, 3), (4, 4), has_class=False)


# Occlusion


def test_occluded_patches_are_painted_and_no_others() -> None:
    images = torch.randn(3, 2, 6, 8)
    patches = torch.tensor([[0, 5], [7, 7], [3, 2]])
    with assert_unchanged(images=images, patches=patches):
        found = occlude(images, (3, 2), patches, fill=9.0)
    before, after = patchify(images, (3, 2)), patchify(found, (3, 2))
    for b, some in enumerate(patches.tolist()):
        for p in range(8):
            expected = torch.full_like(before[b, p], 9.0) if p in some else before[b, p]
            assert torch.equal(after[b, p], expected)


def test_the_same_patches_in_all_images() -> None:
    images = torch.randn(3, 1, 4, 4)
    some = torch.tensor([1, 2])
    assert torch.equal(occlude(images, 2, some), occlude(images, 2, some.expand(3, 2)))
    assert torch.equal(occlude(images, 2, torch.arange(4)), torch.zeros_like(images))


def test_no_patches_and_no_images() -> None:
    images = torch.randn(2, 1, 4, 4)
    for nothing in (torch.zeros(0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long)):
        found = occlude(images, 2, nothing)
        assert torch.equal(found, images) and found.data_ptr() != images.data_ptr()
    assert occlude(images[:0], 2, torch.tensor([1])).shape == (0, 1, 4, 4)


BAD_OCCLUSION: list[tuple[Any, type[Exception], str]] = [
    (torch.tensor([4]), ValueError, r"patches must hold integers in \[0, 4\), got 4"),
    (torch.tensor([-1]), ValueError, r"patches must hold integers in \[0, 4\), got -1"),
    (torch.tensor([1.0]), TypeError, "patches must hold integers"),
    (torch.tensor([True]), TypeError, "patches must hold integers"),
    (torch.tensor(1), ValueError, r"patches must have shape \[2, count\], got \[\]"),
    (torch.zeros(3, 1).long(), ValueError, r"patches must have shape \[2, count\], got \[3, 1\]"),
    ([1], TypeError, "patches must be a torch.Tensor"),
]


@pytest.mark.parametrize(("patches", "error", "message"), BAD_OCCLUSION)
def test_bad_occlusion_is_named(patches: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        occlude(torch.zeros(2, 1, 4, 4), 2, patches)
