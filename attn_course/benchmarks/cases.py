"""What a benchmark is made of, and the list of those there are.

A case belongs to one mechanism. It makes inputs of a size, knows the exact answer for some
rows of the output, and has peers: functions that compute the same. A later chapter adds a
module beside this one, with a ``CASE`` and perhaps ``MORE`` of them, and its name to
``MODULES``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

#: The modules of this package that hold a ``CASE``, named as they are, and may hold ``MORE``.
MODULES = (
    "kernel_regression",
    "heatmaps",
    "masked_softmax",
    "additive_attention",
    "dot_product_attention",
    "multi_head",
    "add_norm",
    "rotary",
    "patch_embedding",
    "windowed_attention",
    "linformer",
    "monotonic",
)

FORWARD = "forward"
BOTH = "forward+backward"

#: How many pairs the exact answer is computed for, or four rows if that is more.
ORACLE_ELEMENTS = 1 << 24

Function = Callable[..., Tensor]


def nothing(device: torch.device) -> str:
    """The reason of a peer that has none: it is available."""
    return ""


def no_memory(size: int, direction: str) -> int:
    """The need of a peer whose memory grows no faster than its inputs."""
    return 0


def as_many(size: int) -> int:
    """The rows of an output that has one for each query."""
    return size


@dataclass(frozen=True)
class Peer:
    """One way to compute what a case is about.

    Attributes:
        name: How tables and figures call it.
        make: From the device to a function of the case's inputs. Called afresh for each
            size and direction.
        ours: Whether the package holds it: then a failed check stops the whole run.
        devices: The types of device on which it is tried at all.
        why_not: From the device to the reason why it cannot run there; empty if it can.
        why_untimed: Likewise, why it is checked at the tiny size but not measured.
        need: From size and direction to the bytes it needs beside its inputs, where they
            grow faster than those; it is left out where there are fewer.
        directions: Which of ``forward`` and ``forward+backward`` it can do.
    """

    name: str
    make: Callable[[torch.device], Function]
    ours: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    why_not: Callable[[torch.device], str] = nothing
    why_untimed: Callable[[torch.device], str] = nothing
    need: Callable[[int, str], int] = no_memory
    directions: tuple[str, ...] = (FORWARD, BOTH)


@dataclass(frozen=True)
class Case:
    """A computation, the sizes to try, and the peers that compute it.

    Attributes:
        name: The name of the mechanism, and of its stored runs.
        title: What is computed, for tables and figures; ``n`` stands for the size.
        inputs: From size and device to the input tensors, random but repeatable.
        expected: From the inputs, in float64 on the CPU, and a few rows to those rows of
            the output; differentiable if the case has a backward direction.
        peers: The first one that is ours is what others are compared with in tables.
        sizes: Device type -> direction -> the sizes.
        quick_sizes: Direction -> the sizes of a quick run, on any device.
        flops: From size and direction to the fewest operations that the task takes.
        bytes_moved: Likewise, the fewest bytes: inputs read once, outputs written once.
        rows: From the size to how many rows the output has.
        max_rows: How many of them are held against the exact answer, at most.
        tiny: The size at which every peer is checked first, interpreted kernels too.
        tolerance: The largest error allowed: the largest absolute difference from the
            exact answer, over the largest absolute number in it.
    """

    name: str
    title: str
    inputs: Callable[[int, torch.device], tuple[Tensor, ...]]
    expected: Callable[[tuple[Tensor, ...], Tensor], Tensor]
    peers: tuple[Peer, ...]
    sizes: dict[str, dict[str, tuple[int, ...]]]
    quick_sizes: dict[str, tuple[int, ...]]
    flops: Callable[[int, str], int]
    bytes_moved: Callable[[int, str], int]
    rows: Callable[[int], int] = as_many
    max_rows: int = 256
    tiny: int = 64
    tolerance: float = 1e-4

    def work(self, device: torch.device, quick: bool) -> list[tuple[str, int]]:
        """The pairs of direction and size to measure, smallest first."""
        sizes = self.quick_sizes if quick else self.sizes[device.type]
        return [(direction, size) for direction in sizes for size in sorted(sizes[direction])]

    def peers_on(self, device: torch.device) -> list[Peer]:
        """The peers that belong on a device, whether or not they are available."""
        return [peer for peer in self.peers if device.type in peer.devices]


def all_cases(modules: Sequence[str] = MODULES) -> dict[str, Case]:
    """Every case, by name.

    Example:
        >>> list(all_cases(["masked_softmax", "heatmaps"]))
        ['masked_softmax', 'heatmaps', 'heatmaps_causal', 'heatmaps_windowed']
    """
    found: list[Case] = []
    for name in modules:
        module = import_module(f"{__package__}.{name}")
        found += [module.CASE, *getattr(module, "MORE", ())]
    return {case.name: case for case in found}


def random_inputs(
    shapes: Sequence[tuple[int, ...]], device: torch.device, seed: int, *, uniform: bool = False
) -> tuple[Tensor, ...]:
    """Random float32 tensors, the same on every device.

    Args:
        shapes: One for each tensor.
        device: Where they go.
        seed: Chooses the numbers.
        uniform: In [0, 1) instead of normally distributed.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand if uniform else torch.randn
    return tuple(draw(shape, generator=generator).to(device) for shape in shapes)
