"""Chapter 7's exercises: what answers are tried on, and the right ones, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.exercises.framework import Case


def _random(seed: int) -> Callable[..., Tensor]:
    """Normal numbers in float32, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


# 7.1 ---------------------------------------------------------------------------------


def _patches(images: Tensor, rows: int, columns: int) -> Tensor:
    """One patch after the other, by slices."""
    _, _, height, width = images.shape
    cut = [
        images[:, :, top : top + rows, left : left + columns].flatten(1)
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]
    return torch.stack(cut, 1)


def _images(name: str, shape: tuple[int, ...], rows: int, columns: int, seed: int) -> Case:
    return Case(name, {"images": _random(seed)(*shape), "rows": rows, "columns": columns})


# The first can also be cut into patches of 3 x 2, and into as many.
_PATCH_CASES = (
    _images("images that are not square", (2, 3, 6, 12), 2, 3, 10),
    _images("square images and patches", (2, 2, 6, 6), 2, 2, 11),
    _images("a square image, flat patches", (1, 3, 6, 6), 2, 3, 12),
    _images("one channel", (3, 1, 4, 6), 2, 3, 13),
    _images("one patch", (2, 2, 3, 4), 3, 4, 14),
    _images("patches of one pixel", (1, 3, 2, 3), 1, 1, 15),
    _images("patches as wide as the image", (2, 2, 4, 5), 1, 5, 16),
)


# 7.2 ---------------------------------------------------------------------------------


def _embed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each patch is an image of its own, and the convolution has one place to go to."""
    batch, m, _ = x.shape
    alone = x.reshape(batch * m, *weight.shape[1:])
    return F.conv2d(alone, weight, bias).reshape(batch, m, -1)


def _embed_backward(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """By automatic differentiation of the convolution; linear, so that any weight will do."""
    leaves = torch.zeros_like(weight), torch.zeros_like(weight[:, 0, 0, 0])
    leaf, bias = (zeros.requires_grad_() for zeros in leaves)
    with torch.enable_grad():
        by_weight, by_bias = torch.autograd.grad(_embed(x, leaf, bias), (leaf, bias), grad)
    return by_weight, by_bias


def _convolution(
    name: str, batch: int, m: int, d: int, patch: tuple[int, int, int], seed: int
) -> tuple[Case, Case]:
    """Forward, and back."""
    random = _random(seed)
    channels, rows, columns = patch
    x, weight = random(batch, m, channels * rows * columns), random(d, *patch)
    return (
        Case(name, {"x": x, "weight": weight, "bias": random(d)}),
        Case(name, {"x": x, "weight": weight, "grad": random(batch, m, d)}),
    )


# The first has as many columns in a token as numbers in a patch: nothing raises there.
_EMBED_CASES, _EMBED_BACKWARD_CASES = zip(
    _convolution("tokens as wide as patches", 2, 5, 24, (2, 3, 4), 20),
    _convolution("color patches", 3, 4, 5, (3, 2, 4), 21),
    _convolution("one channel", 2, 6, 7, (1, 2, 3), 22),
    _convolution("one image", 1, 6, 4, (2, 2, 2), 23),
    _convolution("one patch an image", 4, 1, 3, (2, 3, 1), 24),
    _convolution("one patch of one pixel", 1, 1, 3, (1, 1, 1), 25),
    strict=True,
)


# 7.3 ---------------------------------------------------------------------------------


def _between(old: int, new: int) -> Tensor:
    """How much of each old place is in each new one, ``[new, old]``: linear, centres at halves."""
    place = ((torch.arange(new).double() + 0.5) * old / new - 0.5).clamp(0, old - 1)
    return (1 - (place[:, None] - torch.arange(old)).abs()).clamp(min=0)


def _resize(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """By a matrix for each axis of the grid."""
    down, across = (_between(*sizes) for sizes in zip(old, new, strict=True))
    grid = table[1:].double().unflatten(0, old)
    return torch.cat([table[:1].double(), torch.einsum("ir,jc,rcd->ijd", down, across, grid)
                      .flatten(0, 1)])  # fmt: skip


def _table(name: str, old: tuple[int, int], new: tuple[int, int], d: int, seed: int) -> Case:
    return Case(name, {"table": _random(seed)(1 + old[0] * old[1], d), "old": old, "new": new})


_RESIZE_CASES = (
    _table("grids that are not square", (3, 5), (6, 7), 4, 30),
    _table("larger images", (4, 4), (6, 8), 6, 31),
    _table("square grids", (3, 3), (5, 5), 4, 32),
    _table("smaller images", (6, 8), (2, 3), 4, 33),
    _table("twice as large", (2, 3), (4, 6), 3, 34),
    _table("the same grid", (4, 3), (4, 3), 5, 35),
    _table("grids of one row", (1, 6), (1, 9), 4, 36),
    _table("one patch that becomes several", (1, 1), (2, 3), 4, 37),
)


# 7.4 ---------------------------------------------------------------------------------


def _rollout(weights: Tensor) -> Tensor:
    """Each input in turn is one, and the others zero: how much of it comes through?"""
    state = torch.eye(weights.shape[-1], dtype=torch.float64)
    for layer in weights.double():
        heads = [(state + head @ state) / 2 for head in layer]
        state = torch.stack(heads).mean(0)
    return state[0]


def _weights(name: str, layers: int, heads: int, n: int, seed: int, sharp: float = 2.0) -> Case:
    scores = sharp * _random(seed)(layers, heads, n, n)
    return Case(name, {"weights": scores.softmax(-1)})


_ROLLOUT_CASES = (
    _weights("three layers", 3, 2, 5, 40),
    _weights("two layers", 2, 3, 4, 41),
    _weights("six layers", 6, 4, 7, 42),
    _weights("one head", 3, 1, 5, 43),
    _weights("one layer", 1, 4, 6, 44),
    _weights("heads that read one token each", 4, 2, 6, 45, sharp=60.0),
    _weights("two tokens", 3, 2, 2, 46),
)


# 7.5 ---------------------------------------------------------------------------------


def _class_token(tokens: Tensor, counts: Tensor) -> Tensor:
    return torch.stack([image[0] for image in tokens])


def _mean_patch(tokens: Tensor, counts: Tensor) -> Tensor:
    """One image after the other, without its padding."""
    pairs = zip(tokens, counts.tolist(), strict=True)
    return torch.stack([image[1 : 1 + count].mean(0) for image, count in pairs])


def _padded(
    name: str, counts: list[int], m: int, d: int, seed: int, padding: float | None = None
) -> Case:
    """Patches, and behind them other numbers or one number."""
    tokens = 1 + _random(seed)(len(counts), 1 + m, d)  # not around zero: what is lost is seen
    if padding is not None:
        for image, count in zip(tokens, counts, strict=True):
            image[1 + count :] = padding
    return Case(name, {"tokens": tokens, "counts": torch.tensor(counts)})


# The first has as many images as tokens, and as many patches as columns: nothing raises there.
_POOL_CASES = (
    _padded("padding that holds numbers", [4, 2, 1, 3, 2], 4, 4, 50),
    _padded("no padding", [5, 5, 5], 5, 3, 51),
    _padded("padding that holds NaN", [2, 6, 4], 6, 5, 52, torch.nan),
    _padded("one patch each", [1, 1], 3, 4, 53),
    _padded("padding that holds zeros", [1, 3, 2, 4], 4, 3, 54, 0.0),
    _padded("infinite padding", [3, 1], 4, 2, 55, torch.inf),
    _padded("one image of one patch", [1], 1, 3, 56),
)


# 7.6 ---------------------------------------------------------------------------------


def _patch_tokens(
    image: Tensor,
    weight: Tensor,
    bias: Tensor,
    class_token: Tensor,
    position: Tensor,
    patch: tuple[int, int],
    blocks: tuple[int, int, int],
) -> Tensor:
    """By slices, and by the formulas of the exercise."""
    x = _patches(image[None], *patch)[0]
    return torch.cat([class_token[None], x @ weight.T + bias]) + position


def _image(
    name: str,
    grid: tuple[int, int],
    channels: int,
    patch: tuple[int, int],
    d: int,
    blocks: tuple[int, int, int],
    seed: int,
) -> Case:
    random = _random(seed)
    rows, columns = grid
    inputs = {
        "image": random(channels, rows * patch[0], columns * patch[1]),
        "weight": random(d, channels * patch[0] * patch[1]),
        "bias": random(d),
        "class_token": random(d),
        "position": random(1 + rows * columns, d),
    }
    return Case(name, {**inputs, "patch": patch, "blocks": blocks})


# In the first no tile fits, and a patch takes two steps. Its grid is higher than wide, so that
# who exchanges its sides stays within the image.
_IMAGE_CASES = (
    _image("tiles that do not fit", (3, 2), 2, (3, 2), 10, (4, 8, 8), 60),
    _image("flat patches, one step", (2, 3), 3, (1, 4), 8, (8, 8, 16), 61),
    _image("square patches in a square grid", (3, 3), 1, (2, 2), 16, (2, 16, 4), 62),
    _image("one patch, three steps", (1, 1), 2, (2, 3), 5, (2, 4, 4), 63),
    _image("one channel, four steps", (2, 4), 1, (5, 3), 6, (16, 8, 4), 64),
    _image("tokens of one number", (2, 2), 2, (2, 1), 1, (4, 1, 2), 65),
)
