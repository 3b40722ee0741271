"""Images to train on: batches in random order, and images that are moved a little."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course._validation import check_counts, check_floating, check_tensor


def random_affine(
    images: Tensor,
    *,
    rotation: float = 10.0,
    shift: float = 0.5,
    scale: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Turn, move and stretch each image a little, as another hand would have written it.

    Pixels are interpolated, and what comes in from outside is 0, the paper.

    Args:
        images: ``[batch, channels, height, width]``.
        rotation: The most degrees to turn by, to either side.
        shift: The most pixels to move by, to each of the four sides.
        scale: The largest change in size: 0.1 for 0.9 to 1.1 times.
        generator: Where the random numbers come from, on the CPU; ``None`` for PyTorch's own.

    Returns:
        As many images of the same shape and type.

    Raises:
        TypeError: ``images`` does not hold floating-point numbers.
        ValueError: ``images`` has another shape, or a number is out of range.

    Example:
        >>> images = torch.rand(2, 1, 8, 8)
        >>> torch.allclose(random_affine(images, rotation=0, shift=0, scale=0), images)
        True
        >>> torch.allclose(random_affine(images), images)
        False
    """
    check_floating("images", images)
    if images.ndim != 4:
        raise ValueError(
            f"images must have shape [batch, channels, height, width], got {list(images.shape)}."
        )
    for name, most, end in (
        ("rotation", rotation, math.inf),
        ("shift", shift, math.inf),
        ("scale", scale, 1.0),
    ):
        if not 0 <= most < end:
            raise ValueError(f"{name} must lie in [0, {end:g}), got {most}.")
    batch, _, height, width = images.shape
    turn, right, down, size = (
        torch.rand(4, batch, generator=generator).mul(2).sub(1).to(images.device)
    )
    angle, size = turn * math.radians(rotation), 1 + size * scale
    # Where each pixel of the result comes from: turned back and shrunk, then moved back.
    # grid_sample counts from -1 to 1 over height and width alike, so pixels are no squares.
    across, along = angle.cos() / size, angle.sin() / size
    theta = torch.stack(
        [
            torch.stack([across, along * (height / width), right * (2 * shift / width)], -1),
            torch.stack([-along * (width / height), across, down * (2 * shift / height)], -1),
        ],
        1,
    )
    grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


class ImageBatches:
    """Batches for one iteration after another, each on from the last; see ``image_batches``."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        count: int,
        augment: Callable[[Tensor], Tensor] | None,
        seed: int,
    ) -> None:
        self._images, self._labels = images, labels
        self._batch_size, self._count, self._augment = batch_size, count, augment
        self._generator = torch.Generator().manual_seed(seed)
        self._rows = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        """The number of batches."""
        return self._count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The next batches; passes over the images follow each other without a gap."""
        for _ in range(self._count):
            while len(self._rows) < self._batch_size:
                again = torch.randperm(len(self._images), generator=self._generator)
                self._rows = torch.cat([self._rows, again])
            rows, self._rows = self._rows.split(
                [self._batch_size, len(self._rows) - self._batch_size]
            )
            rows = rows.to(self._images.device)
            images = self._images[rows]
            yield self._augment(images) if self._augment else images, self._labels[rows]


def image_batches(
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 64,
    count: int | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> ImageBatches:
    """Batches of images and labels in random order, the ``(inputs, target)`` of ``fit``.

    All batches are equally large. Images come in passes, each pass in another order, and a
    batch may hold the end of one pass and the beginning of the next: so a training of a
    given number of steps costs the same, however few images there are.

    Args:
        images: ``[n, ...]``.
        labels: ``[n, ...]``.
        batch_size: How many images a batch holds.
        count: How many batches to give each time; ``None`` for one pass, rounded up.
        augment: Called with the images of each batch, to change them.
        seed: Of the order.

    Returns:
        Batches that can be iterated over again and again; each time goes on where the last
        one stopped.

    Raises:
        TypeError: ``images`` or ``labels`` is not a tensor.
        ValueError: There are no images, not one label for each, or a number is below 1.

    Example:
        >>> batches = image_batches(torch.rand(10, 64), torch.arange(10), batch_size=4)
        >>> [len(labels) for _, labels in batches]
        [4, 4, 4]
    """
    check_tensor("images", images)
    check_tensor("labels", labels)
    if not images.ndim or not len(images):
        raise ValueError(f"images must hold at least one image, got {list(images.shape)}.")
    if labels.shape[:1] != images.shape[:1]:
        raise ValueError(
            f"labels must have one for each of {len(images)} images, got {list(labels.shape)}."
        )
    if count is None:
        count = -(-len(images) // max(1, batch_size))
    check_counts(batch_size=batch_size, count=count)
    return ImageBatches(images, labels, batch_size, count, augment, seed)
