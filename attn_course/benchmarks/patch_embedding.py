"""Patch embedding: n images of 224 x 224 in color, patches of 16 x 16, 768 columns.

Those of the Vision Transformer's base model: 197 tokens an image, the class token among them,
with positions. On a GPU everybody computes in bfloat16, as such models are used there, and
converts the float32 inputs first, in the time that is measured; on a CPU in float32. Backward,
the gradient of the images is asked for as well, which the first layer of a network does without.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.benchmarks.cases import BOTH, FORWARD, Case, Function, Peer, random_inputs
from attn_course.benchmarks.peers import not_compiled
from attn_course.vision import patch_embedding

CHANNELS, EDGE, PATCH, DIM = 3, 224, 16, 768
PATCHES, NUMBERS = (EDGE // PATCH) ** 2, CHANNELS * PATCH**2

#: bfloat16 has 8 bits: its numbers lie 1/128 apart, and gradients of the bias are sums of them.
#: Float32 is held to the same; the tests of the operation ask for more.
TOLERANCE = 1e-2


def inputs(size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Images, ``[n, numbers]``; weight ``[dim, numbers]``, bias, positions, class token."""
    shapes = [(size, PATCHES * NUMBERS), (DIM, NUMBERS), (DIM,), (1 + PATCHES, DIM), (DIM,)]
    images, weight, *vectors = random_inputs(shapes, device, seed=size)
    return images, weight / NUMBERS**0.5, *vectors


def shaped(images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """``[n, 3, 224, 224]`` and ``[dim, 3, 16, 16]``."""
    pixels = images.unflatten(1, (CHANNELS, EDGE, EDGE))
    return pixels, weight.unflatten(1, (CHANNELS, PATCH, PATCH))


def expected(inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """The formula, for some of the images."""
    images, weight, bias, position, class_token = inputs
    cut, _ = shaped(images[rows], weight)
    patches = F.unfold(cut, PATCH, stride=PATCH).mT  # [rows, patches, numbers]
    tokens = torch.cat([class_token.expand(len(rows), 1, -1), patches @ weight.T + bias], 1)
    return (tokens + position).flatten(1)


def on_images(function: Function) -> Function:
    """A function of images and a convolution's weight as one of the inputs."""

    def call(*tensors: Tensor) -> Tensor:
        dtype = torch.bfloat16 if tensors[0].is_cuda else torch.float32
        images, weight, *vectors = (x.to(dtype) for x in tensors)
        return function(*shaped(images, weight), *vectors).flatten(1).float()

    return call


def ours(device: torch.device, impl: str) -> Function:
    """The package's function, through one implementation."""

    def embed(
        images: Tensor, weight: Tensor, bias: Tensor, position: Tensor, class_token: Tensor
    ) -> Tensor:
        return patch_embedding(
            images, weight, bias, position=position, class_token=class_token, impl=impl
        )

    return on_images(embed)


def convolve(
    images: Tensor, weight: Tensor, bias: Tensor, position: Tensor, class_token: Tensor
) -> Tensor:
    """What one writes by hand, with a convolution."""
    tokens = F.conv2d(images, weight, bias, stride=PATCH).flatten(2).mT
    return torch.cat([class_token.expand(len(tokens), 1, -1), tokens], 1) + position


def linear(
    images: Tensor, weight: Tensor, bias: Tensor, position: Tensor, class_token: Tensor
) -> Tensor:
    """What one writes by hand, with a matrix product."""
    cut = images.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))
    patches = cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    tokens = F.linear(patches, weight.flatten(1), bias)
    return torch.cat([class_token.expand(len(tokens), 1, -1), tokens], 1) + position


def compiled(device: torch.device, function: Function) -> Function:
    """Either through torch.compile, forgetting what it compiled for other sizes."""
    torch.compiler.reset()
    return on_images(torch.compile(function, fullgraph=True, dynamic=False))


def flops(size: int, direction: str) -> int:
    """A product; backward one for the weight and one for the images."""
    product = 2 * size * PATCHES * NUMBERS * DIM
    return product if direction == FORWARD else 3 * product


def bytes_moved(size: int, direction: str) -> int:
    """Images and weight read, tokens written; backward reads all and writes their gradients."""
    numbers = size * PATCHES * NUMBERS + DIM * NUMBERS + size * (1 + PATCHES) * DIM
    return 4 * numbers * (1 if direction == FORWARD else 3)


CASE = Case(
    name="patch_embedding",
    title="Patch embedding, n images of 224 x 224, patches of 16 x 16, 768 columns",
    inputs=inputs,
    expected=expected,
    peers=(
        Peer("auto", partial(ours, impl="auto"), ours=True),
        Peer(
            "triton",
            partial(ours, impl="triton"),
            ours=True,
            why_not=not_compiled,
        ),
        Peer("conv2d", lambda device: on_images(convolve)),
        Peer("reshape, linear", lambda device: on_images(linear)),
        Peer("conv2d, torch.compile", partial(compiled, function=convolve), devices=("cuda",)),
        Peer("linear, torch.compile", partial(compiled, function=linear), devices=("cuda",)),
    ),
    sizes={
        "cpu": {FORWARD: (1, 4, 16), BOTH: (1, 4, 16)},
        "cuda": {FORWARD: (8, 64, 512), BOTH: (8, 64, 512)},
    },
    quick_sizes={FORWARD: (1,), BOTH: (1,)},
    flops=flops,
    bytes_moved=bytes_moved,
    max_rows=8,
    tiny=1,
    tolerance=TOLERANCE,
)
