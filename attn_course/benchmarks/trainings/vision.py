"""Chapter 7: digits and clothes, told by a Vision Transformer and by its rivals."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_course.benchmarks.trainings.classifiers import (
    FASHION,
    LECTURE,
    PACE,
    SIZES,
    Enlarged,
    accuracy,
    build,
    learn,
    share,
    shuffle_patches,
)
from attn_course.benchmarks.trainings.common import Record
from attn_course.benchmarks.trainings.recipe import round_to_stored
from attn_course.data import digits, fashion_mnist, image_batches, random_affine, save_pretrained
from attn_course.kernel_regression import KernelClassifier
from attn_course.training import History, fit, seed_everything
from attn_course.vision import ViT

#: So many digits to learn from; the last are all of them.
COUNTS = (50, 100, 200, 500, 1347)

#: Steps of a whole and of a short training of the Vision Transformer.
STEPS, SHORT_STEPS = 3000, 1000

#: Steps on clothes, of 128 images each: ten passes.
FASHION_STEPS = 4690

#: How many moved copies of each digit are looked up as well.
COPIES = 20

#: What k and the width are chosen from, as in chapter 1.
NEIGHBOURS, WIDTHS = (1, 3, 5, 9, 15, 25, 50), (0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0)

#: (training images, their labels, test images, their labels)
Parts = tuple[Tensor, Tensor, Tensor, Tensor]


def digit_images(seed: int, count: int | None = None) -> Parts:
    """The digits as images; of the training part only so many, a larger number has them too."""
    data = digits(seed=seed)
    train, test = (x.view(-1, 1, 8, 8) for x in (data.train_images, data.test_images))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]
    return train[order], data.train_labels[order], test, data.test_labels


def paced(name: str, steps: int) -> int:
    """How many steps a model makes while the Vision Transformer makes ``steps``, in tens."""
    return 10 * round(steps * PACE[name] / 10)


def trained(
    name: str, parts: Parts, seed: int, *, steps: int, **training: Any
) -> tuple[nn.Module, Record]:
    """A classifier of digits, trained for as long as ``steps`` of the Vision Transformer take.

    Returns:
        The classifier, and the part of the record that ``about`` knows.
    """
    seed_everything(seed)
    model = build(name)
    steps, start = paced(name, steps), time.process_time()
    history = learn(model, *parts[:2], steps=steps, seed=seed, **training)
    return model, about(model, seed, steps, history, start)


def about(model: nn.Module, seed: int, steps: int, history: History, start: float) -> Record:
    """Seed, parameters that were learned, steps, seconds; and how long a core was at work."""
    return {
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "steps": steps,
        "seconds": round(history.seconds, 1),
        "core_seconds": round(time.process_time() - start, 1),
    }


def together(records: Sequence[Record]) -> Record:
    """Of several trainings alike: what one record says, with the seconds of all."""
    sums = {name: sum(r[name] for r in records) for name in ("seconds", "core_seconds")}
    return records[0] | {name: round(total, 1) for name, total in sums.items()}


def run_digits(name: str, seed: int) -> Record:
    """All digits of the training part, for the time that the chapter has."""
    parts = digit_images(seed)
    model, record = trained(name, parts, seed, steps=STEPS)
    return record | {"accuracy": accuracy(model, *parts[2:])}


def run_counts(name: str, seed: int, **training: Any) -> Record:
    """Few digits and many, for the same short time."""
    records, found = [], []
    for count in COUNTS:
        parts = digit_images(seed, count)
        model, record = trained(name, parts, seed, steps=SHORT_STEPS, **training)
        records.append(record)
        found.append(accuracy(model, *parts[2:]))
    return together(records) | {"counts": COUNTS, "accuracy": found}


def vote(distance: Tensor, labels: Tensor, k: int) -> Tensor:
    """The label that most of the k nearest have, for each row of distances."""
    nearest = labels[distance.topk(k, largest=False).indices]
    return F.one_hot(nearest, 10).sum(1).argmax(1)


def by_neighbours(parts: Parts, copies: int) -> tuple[int, float]:
    """The k that tells most training digits from the others, and the accuracy with it."""
    images, labels, test, truth = parts
    keys = torch.cat([images, *(random_affine(images) for _ in range(copies))]).flatten(1)
    own = torch.arange(len(keys)) % len(images) == torch.arange(len(images))[:, None]
    others = torch.cdist(images.flatten(1), keys).masked_fill(own, torch.inf)
    values = labels.repeat(copies + 1)
    k = max(
        (k for k in NEIGHBOURS if k < len(images)),
        key=lambda k: share(vote(others, values, k), labels),
    )
    return k, share(vote(torch.cdist(test.flatten(1), keys), values, k), truth)


def by_kernel(parts: Parts) -> tuple[float, float]:
    """Chapter 1's classifier: likewise its width, and the accuracy with it."""
    images, labels, test, truth = parts
    keys, others = images.flatten(1), ~torch.eye(len(images), dtype=torch.bool)

    def told(width: float, query: Tensor, mask: Tensor | None = None) -> Tensor:
        found: Any = KernelClassifier(10, width)(query, keys, labels, mask=mask)
        label: Tensor = found.argmax(1)
        return label

    width = max(WIDTHS, key=lambda width: share(told(width, keys, others), labels))
    return width, share(told(width, test.flatten(1)), truth)


def run_look_up(classify: Callable[[Parts], tuple[float, float]], seed: int) -> Record:
    """A classifier that learns nothing but how far to look."""
    seed_everything(seed)
    start, clock = time.perf_counter(), time.process_time()
    found = [classify(digit_images(seed, count)) for count in COUNTS]
    return {
        "seed": seed,
        "seconds": round(time.perf_counter() - start, 1),
        "core_seconds": round(time.process_time() - clock, 1),
        "counts": COUNTS,
        "accuracy": [right for _, right in found],
        "chosen": [chosen for chosen, _ in found],
    }


def run_shuffled(name: str, seed: int) -> Record:
    """Whole images, and the same images cut up, in one and the same new order.

    ``accuracy``: learned from whole images and judged on whole ones; likewise for shuffled
    ones; learned from whole ones and judged on shuffled ones.
    """
    parts = digit_images(seed)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))

    def cut_up(images: Tensor) -> Tensor:
        return shuffle_patches(random_affine(images), order)  # a digit is moved as a whole

    on_whole, one = trained(name, parts, seed, steps=SHORT_STEPS)
    on_shuffled, two = trained(name, parts, seed, steps=SHORT_STEPS, augment=cut_up)
    *_, test, truth = parts
    shuffled = shuffle_patches(test, order)
    return together([one, two]) | {
        "accuracy": {
            "whole": accuracy(on_whole, test, truth),
            "shuffled": accuracy(on_shuffled, shuffled, truth),
            "whole, then shuffled": accuracy(on_whole, shuffled, truth),
        },
    }


def run_fashion(name: str, seed: int) -> Record:
    """Clothes, in a setting for a CPU."""
    data = fashion_mnist()
    seed_everything(seed)
    model, start = build(name, FASHION), time.process_time()
    history = learn(
        model,
        data.train_images,
        data.train_labels,
        steps=FASHION_STEPS,
        batch_size=128,
        max_lr=2e-3,
        augment=partial(random_affine, rotation=5, shift=1),
        seed=seed,
    )
    return about(model, seed, FASHION_STEPS, history, start) | {
        "settings": FASHION | {"batch_size": 128, "max_lr": 2e-3, "rotation": 5, "shift": 1},
        "loss": [round(loss, 4) for loss in history.train_loss],
        "accuracy": accuracy(model, data.test_images, data.test_labels),
    }


def run_lecture(seed: int) -> Record:
    """Clothes, at the lecture's settings: minutes on a GPU, many hours on a CPU."""
    data = fashion_mnist()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seed_everything(seed)
    model, start = Enlarged(ViT(**LECTURE), LECTURE["image_size"]).to(device), time.process_time()
    batches = image_batches(data.train_images, data.train_labels, batch_size=128, seed=seed)
    history = fit(
        model,
        batches,
        F.cross_entropy,
        epochs=10,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        seed=seed,
    )
    return about(model, seed, 10 * len(batches), history, start) | {
        "settings": LECTURE | {"batch_size": 128, "lr": 0.1, "optimizer": "SGD", "epochs": 10},
        "trained_on": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "loss": [round(loss, 4) for loss in history.train_loss],
        "accuracy": accuracy(model, data.test_images, data.test_labels),
    }


#: Name -> the training, a function of the seed.
RUNS: dict[str, Callable[[int], Record]] = {
    "digits_vit": partial(run_digits, "vit"),
    "digits_cnn": partial(run_digits, "cnn"),
    **{f"digits_counts_{name}": partial(run_counts, name) for name in ("vit", "vit_stem", "cnn")},
    **{
        f"digits_counts_{name}_unmoved": partial(run_counts, name, augment=None)
        for name in ("vit", "cnn")
    },
    **{
        f"digits_counts_{name}": partial(run_look_up, classify)
        for name, classify in (
            ("neighbours", partial(by_neighbours, copies=0)),
            ("neighbours_moved", partial(by_neighbours, copies=COPIES)),
            ("kernel", by_kernel),
        )
    },
    **{
        f"digits_shuffled_{name}": partial(run_shuffled, name)
        for name in ("vit", "vit_unplaced", "cnn")
    },
    "fashion_vit": partial(run_fashion, "vit"),
    "fashion_cnn": partial(run_fashion, "cnn"),
    "fashion_lecture": run_lecture,
}


def _keep(name: str) -> Path:
    """Train and store the chapter's model; it is judged as it is stored, in half precision."""
    parts = digit_images(0)
    model, _ = trained("vit", parts, 0, steps=STEPS)
    round_to_stored(model)
    config = {"model": SIZES, "seed": 0, "steps": STEPS, "accuracy": accuracy(model, *parts[2:])}
    return save_pretrained(name, config, model.state_dict())


#: Name of a model that comes with the course -> what trains and stores it.
PRETRAINED: dict[str, Callable[[], Path]] = {"digits_vit": partial(_keep, "digits_vit")}
