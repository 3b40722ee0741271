"""Chapter 7: is a patch that a map is bright on one that the answer needs?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.benchmarks.trainings.classifiers import share
from attn_course.benchmarks.trainings.common import Record
from attn_course.benchmarks.trainings.vision import STEPS, digit_images, trained
from attn_course.vision import ViT, class_rollout, occlude, patchify

#: How many patches are painted over at most.
MOST = 8

#: How often the patches of other images are drawn.
DRAWS = 5


def patch_maps(model: ViT, images: Tensor) -> dict[str, Tensor]:
    """What different maps say of each patch, each ``[batch, patches]``; the last is chance.

    Args:
        model: With a class token.
        images: ``[batch, channels, height, width]``; 0 is paper.
    """
    with torch.no_grad():
        weights = model(images, need_weights=True)[1]
    size = model.embed.patch_size
    return {
        "weights, last layer": weights[:, -1, :, 0, 1:].mean(1),
        "weights, first layer": weights[:, 0, :, 0, 1:].mean(1),
        "rollout": class_rollout(weights)[:, 1:],
        "influence": influence(model, images),
        "ink": patchify(images, size).sum(-1),
        "chance": torch.rand(
            len(images), model.embed.num_patches, generator=torch.Generator().manual_seed(0)
        ),
    }


def influence(model: ViT, images: Tensor) -> Tensor:
    """How far the logit of the answer moves with each patch, ``[batch, patches]``."""
    pixels = images.clone().requires_grad_()
    said: Any = model(pixels).amax(1).sum()  # images do not meet: one sum will do
    return patchify(torch.autograd.grad(said, pixels)[0], model.embed.patch_size).norm(dim=-1)


def painted_over(model: ViT, images: Tensor, labels: Tensor, patches: Tensor) -> float:
    """The share of right answers with some patches painted over, ``[batch, count]``."""
    with torch.no_grad():
        logits: Tensor = model(occlude(images, model.embed.patch_size, patches))
    return share(logits.argmax(1), labels)


def exchanged(model: ViT, images: Tensor, labels: Tensor, patches: Tensor) -> float:
    """As ``painted_over``, with the patches of other images in their place, not paper.

    Paper on paper changes nothing, so only this shows whether an empty place counts. The other
    images are drawn from the same ones; the share is a mean over ``DRAWS`` draws.
    """
    generator = torch.Generator().manual_seed(0)
    size = model.embed.patch_size
    item = torch.arange(len(images))[:, None]
    rights = []
    for _ in range(DRAWS):
        cut = patchify(images, size)
        other = torch.randint(len(images), (len(images), 1), generator=generator)
        cut[item, patches] = cut[other, patches]
        mixed = F.fold(cut.mT, images.shape[-2:], size, stride=size)
        with torch.no_grad():
            rights.append(share(model(mixed).argmax(1), labels))
    return sum(rights) / DRAWS


def run_occluded(seed: int) -> Record:
    """Change what each map is brightest on, patch by patch; and what it is palest on.

    ``paper`` and ``exchanged``: by what is changed; ``most`` and ``least``: by which end of the
    map; for each map, the share of right answers with 0, 1, 2, ... patches changed.
    """
    parts = digit_images(seed)
    model, record = trained("vit", parts, seed, steps=STEPS)
    assert isinstance(model, ViT)
    *_, images, labels = parts
    for kind, change in (("paper", painted_over), ("exchanged", exchanged)):
        sides: dict[str, dict[str, list[float]]] = {"most": {}, "least": {}}
        for name, values in patch_maps(model, images).items():
            ranked = values.argsort(1, descending=True)
            for side, end in (("most", ranked), ("least", ranked.flip(1))):
                sides[side][name] = [
                    round(change(model, images, labels, end[:, :count]), 4)
                    for count in range(MOST + 1)
                ]
        record[kind] = sides
    return record


#: Name -> the training, a function of the seed.
RUNS: dict[str, Callable[[int], Record]] = {"digits_occluded": run_occluded}

#: Nothing of this comes with the course.
PRETRAINED: dict[str, Callable[[], Path]] = {}
