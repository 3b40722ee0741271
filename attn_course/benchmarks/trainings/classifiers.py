"""Classifiers of images: what chapter 7 trains, how, and how it is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_course._validation import check_choice
from attn_course.benchmarks.trainings.recipe import one_cycle
from attn_course.data import image_batches, random_affine
from attn_course.training import History, fit
from attn_course.vision import ViT, patchify

#: The chapter's Vision Transformer, for digits.
SIZES: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 2,
    "channels": 1,
    "embed_dim": 48,
    "num_heads": 4,
    "hidden_dim": 96,
    "num_layers": 2,
    "num_classes": 10,
}

#: One for clothes that a CPU trains in minutes.
FASHION: dict[str, Any] = SIZES | {
    "image_size": 28,
    "patch_size": 4,
    "embed_dim": 64,
    "hidden_dim": 128,
    "num_layers": 4,
}

#: The lecture's, for clothes enlarged to 96 x 96.
LECTURE: dict[str, Any] = {
    "image_size": 96,
    "patch_size": 16,
    "channels": 1,
    "embed_dim": 512,
    "num_heads": 8,
    "hidden_dim": 2048,
    "num_layers": 2,
    "num_classes": 10,
    "embedding_dropout": 0.1,
    "dropout": 0.1,
}

#: Steps that others make in the time of one of its steps.
PACE = {"vit": 1.0, "vit_unplaced": 1.0, "vit_stem": 0.8, "cnn": 1.6}


def convolve(channels_in: int, channels: int) -> Iterable[nn.Module]:
    """A 3 x 3 convolution, normalised over the batch."""
    return nn.Conv2d(channels_in, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()


def build(name: str, sizes: dict[str, Any] = SIZES) -> nn.Module:
    """An untrained classifier of images.

    Args:
        name: ``"vit"``; ``"vit_unplaced"``, whose tokens do not know where they come from;
            ``"vit_stem"``, whose patches are taken from the features of two convolutions;
            ``"cnn"``, three convolutions and a linear map.
        sizes: Of the Vision Transformer; of the CNN, what image and answer ask for.
    """
    check_choice("name", name, PACE)
    channels = sizes["channels"]
    if name == "cnn":
        side = sizes["image_size"] // 4
        return nn.Sequential(
            *convolve(channels, 16),
            *convolve(16, 32),
            nn.MaxPool2d(2),
            *convolve(32, 64),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * side * side, sizes["num_classes"]),
        )
    if name == "vit_stem":
        stem = (*convolve(channels, 16), *convolve(16, 16))
        return nn.Sequential(*stem, ViT(**sizes | {"channels": 16}))
    vit = ViT(**sizes)
    if name == "vit_unplaced":
        nn.init.zeros_(vit.position).requires_grad_(False)
    return vit


def learn(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    batch_size: int = 64,
    max_lr: float = 3e-3,
    augment: Callable[[Tensor], Tensor] | None = random_affine,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train a classifier, with a learning rate that rises fast and then falls as a cosine.

    Args:
        model: What to train, in place.
        images: ``[n, channels, height, width]``.
        labels: ``[n]``.
        steps: How many steps to make, a multiple of 10; ``fit`` sees ten epochs.
        batch_size: Images a step.
        max_lr: The highest learning rate.
        augment: As in ``image_batches``.
        seed: Of the order and of all that is random.
        progress: Show a progress bar where someone can see it.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = one_cycle(parameters, max_lr, steps, betas=(0.9, 0.99), warmup=0.05)
    batches = image_batches(
        images, labels, batch_size=batch_size, count=steps // 10, augment=augment, seed=seed
    )
    return fit(
        model,
        batches,
        F.cross_entropy,
        epochs=10,
        optimizer=optimizer,
        clip_norm=1.0,
        seed=seed,
        progress=progress,
    )


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that are given their label."""
    device = next(model.parameters()).device
    told = [model(some.to(device)).argmax(1).cpu() for some in images.split(500)]
    return share(torch.cat(told), labels)


def share(told: Tensor, labels: Tensor) -> float:
    """The share of right answers."""
    return round((told == labels).float().mean().item(), 4)


def shuffle_patches(images: Tensor, order: Tensor, patch_size: int = 2) -> Tensor:
    """The same patches in other places; place i gets patch ``order[i]``.

    Args:
        images: ``[batch, channels, height, width]``.
        order: A permutation of the patches, counted row by row.
        patch_size: Of a patch, which is a square.
    """
    patches = patchify(images, patch_size)[:, order].transpose(1, 2)
    return F.fold(patches, images.shape[-2:], patch_size, stride=patch_size)


class Enlarged(nn.Module):
    """Enlarge images, then classify them."""

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images of any size."""
        logits: Tensor = self.model(F.interpolate(images, self.size, mode="bilinear"))
        return logits
