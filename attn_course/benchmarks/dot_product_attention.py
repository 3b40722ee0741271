"""Dot-product attention: 4 heads of 128 columns, n queries and n keys, causal.

On a GPU everybody computes in bfloat16, as attention is used there, and converts the float32
inputs first, in the time that is measured. On a CPU, float32.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attn_course import _d2l
from attn_course.benchmarks.cases import BOTH, FORWARD, Case, Function, Peer, random_inputs
from attn_course.benchmarks.peers import kernel_peer, no_d2l, no_tensor_cores
from attn_course.dot_product import dot_product_attention

HEADS, DIM = 4, 128

#: bfloat16 has 8 bits: its numbers lie 1/128 apart. Float32 is held to the same; the tests of
#: the operation ask for more.
TOLERANCE = 1e-2


def inputs(size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Normally distributed queries, keys and values, ``[n, heads * dim]``."""
    return random_inputs([(size, HEADS * DIM)] * 3, device, seed=size)


def split(x: Tensor) -> Tensor:
    """``[1, heads, n, dim]``, without a copy."""
    return x.unflatten(-1, (HEADS, DIM)).transpose(0, 1).unsqueeze(0)


def merge(x: Tensor) -> Tensor:
    """``[n, heads * dim]``."""
    return x[0].transpose(0, 1).flatten(1)


def expected(inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """The formula, for some of the queries."""
    query, key, value = (split(x) for x in inputs)
    seen = torch.arange(key.shape[2]) <= rows[:, None]
    scores = query[:, :, rows] @ key.mT / DIM**0.5
    return merge(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value)


def on_heads(function: Function) -> Function:
    """A function of heads as one of the inputs."""

    def call(*tensors: Tensor) -> Tensor:
        dtype = torch.bfloat16 if tensors[0].is_cuda else torch.float32
        return merge(function(*(split(x.to(dtype)) for x in tensors))).float()

    return call


def ours(device: torch.device, impl: str) -> Function:
    """The package's function, through one implementation."""
    return on_heads(partial(dot_product_attention, is_causal=True, impl=impl))


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What one writes by hand, every weight stored."""
    n = query.shape[-2]
    scores = query @ key.mT / DIM**0.5
    hidden = torch.ones(n, n, dtype=torch.bool, device=query.device).triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value


def fused(device: torch.device, backend: SDPBackend | None = None) -> Function:
    """PyTorch's operation, by one of its backends or by its own choice."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if backend is None:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    return on_heads(attend)


@lru_cache
def causal_blocks(n: int, device: torch.device) -> Any:
    """FlexAttention's form of the causal mask, made once."""
    from torch.nn.attention.flex_attention import create_block_mask

    def causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return j <= i

    return create_block_mask(causal, None, None, n, n, device=device)


def flex(device: torch.device) -> Function:
    """FlexAttention through torch.compile, forgetting what it compiled for other sizes."""
    from torch.nn.attention.flex_attention import flex_attention

    torch.compiler.reset()
    compiled: Any = torch.compile(flex_attention, fullgraph=True, dynamic=False)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        blocks = causal_blocks(query.shape[-2], query.device)
        output: Tensor = compiled(query, key, value, block_mask=blocks)
        return output

    return on_heads(attend)


def d2l(device: torch.device) -> Function:
    """Zhang et al.'s layer, whose valid lengths make the causal mask."""
    layer = _d2l.load().DotProductAttention(dropout=0.0)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        n = query.shape[-2]
        lens = torch.arange(1, n + 1, device=query.device).expand(HEADS, n)
        output: Tensor = layer(query[0], key[0], value[0], lens)
        return output.unsqueeze(0)

    return on_heads(attend)


def matrices(count: int, count_backward: int, size: int, direction: str) -> int:
    """Bytes of as many float32 tensors of heads x n x n."""
    return 4 * HEADS * size * size * (count if direction == FORWARD else count_backward)


def flops(size: int, direction: str) -> int:
    """Of half the pairs 2 d for the score and 2 d for the output.

    Backward: the score and g . v, and the three sums.
    """
    products = 2 if direction == FORWARD else 2 + 5
    return HEADS * (size * (size + 1) // 2) * products * 2 * DIM


def bytes_moved(size: int, direction: str) -> int:
    """Query, key and value read, the output written; backward reads all and their gradients."""
    tensors = 4 * size * HEADS * DIM * 4
    return tensors if direction == FORWARD else 3 * tensors


CASE = Case(
    name="dot_product_attention",
    title="Causal dot-product attention, n queries and n keys, 4 heads of 128 columns",
    inputs=inputs,
    expected=expected,
    peers=(
        Peer("auto", partial(ours, impl="auto"), ours=True, devices=("cpu",)),
        kernel_peer(partial(ours, impl="triton")),
        Peer("plain", lambda device: on_heads(plain), need=partial(matrices, 3, 5)),
        Peer("SDPA", fused, devices=("cuda",)),
        Peer(
            "SDPA, cuDNN",
            partial(fused, backend=SDPBackend.CUDNN_ATTENTION),
            devices=("cuda",),
            why_not=no_tensor_cores,
        ),
        Peer(
            "SDPA, FlashAttention",
            partial(fused, backend=SDPBackend.FLASH_ATTENTION),
            devices=("cuda",),
            why_not=no_tensor_cores,
        ),
        Peer("FlexAttention, torch.compile", flex, devices=("cuda",), why_not=no_tensor_cores),
        Peer("d2l", d2l, devices=("cpu",), why_not=no_d2l, need=partial(matrices, 4, 6)),
    ),
    sizes={
        "cpu": {FORWARD: (512, 1024, 4096), BOTH: (512, 1024, 2048)},
        "cuda": {FORWARD: (1024, 4096, 1 << 14), BOTH: (1024, 4096, 1 << 14)},
    },
    quick_sizes={FORWARD: (256,), BOTH: (256,)},
    flops=flops,
    bytes_moved=bytes_moved,
    tiny=64,
    tolerance=TOLERANCE,
)
