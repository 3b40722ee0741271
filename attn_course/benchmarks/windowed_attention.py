"""Windowed attention: 4 heads of 128 columns, n queries and n keys, of which each sees few.

Three windows: one that slides, one that slides over every fourth position, one that ends with
its block. On a GPU everybody computes in bfloat16 and converts the float32 inputs first, in
the time that is measured. On a CPU, float32. Masks are made once, before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.benchmarks.cases import BOTH, FORWARD, Case, Function, Peer
from attn_course.benchmarks.dot_product_attention import (
    DIM,
    HEADS,
    TOLERANCE,
    bytes_moved,
    inputs,
    merge,
    on_heads,
    split,
)
from attn_course.benchmarks.peers import kernel_peer, no_tensor_cores
from attn_course.long_sequences import windowed_attention


class Pattern(NamedTuple):
    """A window as everybody is told of it, and what it costs.

    Attributes:
        sees: Whether query i sees key j, of tensors that broadcast.
        options: The same for ``windowed_attention``.
        keys: How many keys a query sees, away from the ends.
    """

    sees: Callable[[Tensor, Tensor], Tensor]
    options: dict[str, Any]
    keys: int


def near(i: Tensor, j: Tensor) -> Tensor:
    """At most 128 positions away."""
    return (j - i).abs() <= 128


def every_fourth(i: Tensor, j: Tensor) -> Tensor:
    """At most 128 steps of four positions away."""
    return ((j - i).abs() <= 512) & ((j - i) % 4 == 0)


def same_block(i: Tensor, j: Tensor) -> Tensor:
    """In the same 256 positions."""
    return i // 256 == j // 256


SLIDING = Pattern(near, {"window": 128}, 257)
DILATED = Pattern(every_fourth, {"window": 128, "dilation": 4}, 257)
BLOCK = Pattern(same_block, {"window": 256, "kind": "block"}, 256)


def expected(pattern: Pattern, inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """The formula, for some of the queries."""
    query, key, value = (split(x) for x in inputs)
    seen = pattern.sees(rows[:, None], torch.arange(key.shape[2]))
    scores = query[:, :, rows] @ key.mT / DIM**0.5
    return merge(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value)


def ours(pattern: Pattern, device: torch.device, impl: str) -> Function:
    """The package's function, through one implementation."""
    return on_heads(partial(windowed_attention, impl=impl, **pattern.options))


@lru_cache(maxsize=1)
def mask(sees: Callable[[Tensor, Tensor], Tensor], n: int, device: torch.device) -> Tensor:
    """Every pair, a byte each, made once."""
    place = torch.arange(n, device=device)
    return sees(place[:, None], place)


def masked(pattern: Pattern, device: torch.device) -> Function:
    """PyTorch's fused operation with a mask: what is hidden is computed all the same."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        allowed = mask(pattern.sees, query.shape[-2], query.device)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)

    return on_heads(attend)


@lru_cache(maxsize=1)
def blocks(sees: Callable[[Tensor, Tensor], Tensor], n: int, device: torch.device) -> Any:
    """FlexAttention's form of the mask, made once."""
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return sees(i, j)

    # Compiled, it never holds all pairs.
    return torch.compile(create_block_mask)(seen, None, None, n, n, device=device)


def flex(pattern: Pattern, device: torch.device) -> Function:
    """FlexAttention through torch.compile, forgetting what it compiled for other sizes."""
    from torch.nn.attention.flex_attention import flex_attention

    torch.compiler.reset()
    compiled: Any = torch.compile(flex_attention, fullgraph=True, dynamic=False)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = blocks(pattern.sees, query.shape[-2], query.device)
        output: Tensor = compiled(query, key, value, block_mask=found)
        return output

    return on_heads(attend)


def mask_bytes(size: int, direction: str) -> int:
    """Of a mask, and of what PyTorch adds to the scores in its place."""
    return size * size * (1 + 4)


def flops(pattern: Pattern, size: int, direction: str) -> int:
    """Of the pairs that are seen 2 d for the score and 2 d for the output.

    Backward: the score and g . v, and the three sums.
    """
    products = 2 if direction == FORWARD else 2 + 5
    return HEADS * size * min(pattern.keys, size) * products * 2 * DIM


def case(name: str, title: str, pattern: Pattern) -> Case:
    """A case of one window."""
    return Case(
        name=name,
        title=f"{title}, n queries and n keys, 4 heads of 128 columns",
        inputs=inputs,
        expected=partial(expected, pattern),
        peers=(
            Peer("auto", partial(ours, pattern, impl="auto"), ours=True),
            kernel_peer(partial(ours, pattern, impl="triton")),
            Peer("SDPA, mask", partial(masked, pattern), need=mask_bytes),
            Peer(
                "FlexAttention, torch.compile",
                partial(flex, pattern),
                devices=("cuda",),
                why_not=no_tensor_cores,
            ),
        ),
        sizes={
            "cpu": {FORWARD: (512, 1024, 2048, 4096), BOTH: (512, 1024, 2048)},
            "cuda": {FORWARD: (4096, 1 << 14, 1 << 16), BOTH: (4096, 1 << 14, 1 << 16)},
        },
        quick_sizes={FORWARD: (1024,), BOTH: (1024,)},
        flops=partial(flops, pattern),
        bytes_moved=bytes_moved,
        tiny=160,  # longer than a window reaches
        tolerance=TOLERANCE,
    )


CASE = case("windowed_attention", "Sliding window, 128 keys to each side", SLIDING)
MORE = (
    case("windowed_attention_dilated", "Dilated window, 128 steps of four to each side", DILATED),
    case("windowed_attention_block", "Blocks of 256", BLOCK),
)
