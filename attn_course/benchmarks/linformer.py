"""Linformer, 4 heads of 64 columns, n positions and 128 slots; and Table 3 of its paper.

Full attention computes something else, and yet it is a peer here, checked like the others: keys
and values repeat, in stretches of n / k positions, and rows of E add up to 1 over one stretch and
to 0 over each other one. Then E K has the keys that there are, and full attention, in which each
of them counts n / k times, gives the same answer. Time and memory do not depend on it.

On a GPU everybody computes in bfloat16 and converts the float32 inputs first, in the time that is
measured. On a CPU, float32. In the first case E is learned: it is an input, and has a gradient,
which full attention knows nothing of; so that is compared forward only.

Table 3 tells the time and memory that one saves against a standard Transformer, which in 2020
stored every weight ("full, plain"). Today's fused attention does not. Both stand beside
Linformer in an encoder layer: attention, a network of 1024 hidden units, and two normalisations,
the weights of the layer being inputs. There E is fixed, an average of each stretch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attn_course.benchmarks.cases import BOTH, FORWARD, Case, Function, Peer, random_inputs
from attn_course.benchmarks.peers import kernel_peer, no_tensor_cores, not_compiled
from attn_course.linformer import linformer_attention

HEADS, DIM, SLOTS, HIDDEN = 4, 64, 128, 1024
WIDTH = HEADS * DIM

#: bfloat16 has 8 bits: its numbers lie 1/128 apart, and keys and values are rounded to them once
#: more after their projection. Float32 is held to the same; the tests of the operation ask for
#: more. A layer rounds eight times on its way.
TOLERANCE, LAYER_TOLERANCE = 2e-2, 3e-2


def split(x: Tensor) -> Tensor:
    """``[1, heads, n, dim]``, without a copy."""
    return x.unflatten(-1, (HEADS, DIM)).transpose(0, 1).unsqueeze(0)


def merge(x: Tensor) -> Tensor:
    """``[n, heads * dim]``."""
    return x[0].transpose(0, 1).flatten(1)


def number(x: Tensor) -> torch.dtype:
    """What everybody computes in, where ``x`` lies."""
    return torch.bfloat16 if x.is_cuda else torch.float32


def averages(slots: int, size: int) -> Tensor:
    """Each slot the mean of a stretch, ``[slots, size]``."""
    return torch.eye(slots).repeat_interleave(size // slots, 1) * (slots / size)


def inputs(size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Queries, and keys and values that repeat, ``[n, heads * dim]``; E, ``[slots, n]``."""
    shapes = [(size, WIDTH), (SLOTS, WIDTH), (SLOTS, WIDTH), (SLOTS, size)]
    query, key, value, noise = random_inputs(shapes, device, seed=size)
    key, value = (x.repeat_interleave(size // SLOTS, 0) for x in (key, value))
    noise = noise.unflatten(1, (SLOTS, -1))  # [slots, stretches, n / slots]
    noise = (noise - noise.mean(-1, keepdim=True)).flatten(1) * (SLOTS**0.5 / size)
    return query, key, value, averages(SLOTS, size).to(device) + noise


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What one writes by hand, and everybody wrote in 2020: every weight stored."""
    return (query @ key.mT / DIM**0.5).softmax(-1) @ value


def expected(inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """The formula, for some of the queries."""
    query, key, value, matrix = inputs
    return merge(plain(split(query[rows]), split(matrix @ key), split(matrix @ value)))


def on_heads(function: Function) -> Function:
    """A function of heads and a matrix as one of the inputs."""

    def call(query: Tensor, key: Tensor, value: Tensor, matrix: Tensor) -> Tensor:
        heads = (split(x.to(number(x))) for x in (query, key, value))
        return merge(function(*heads, matrix.to(number(matrix)))).float()

    return call


def ours(device: torch.device, impl: str) -> Function:
    """The package's function, through one implementation; keys and values share E."""

    def attend(query: Tensor, key: Tensor, value: Tensor, matrix: Tensor) -> Tensor:
        return linformer_attention(query, key, value, matrix, matrix, impl=impl)

    return on_heads(attend)


def libraries(query: Tensor, key: Tensor, value: Tensor, matrix: Tensor) -> Tensor:
    """What one writes by hand: two products, and PyTorch's fused attention."""
    return F.scaled_dot_product_attention(query, matrix @ key, matrix @ value)


def published(device: torch.device) -> Function:
    """The attention of linformer-pytorch, which loops over heads."""
    from linformer_pytorch.linformer_pytorch import LinearAttentionHead

    def attend(query: Tensor, key: Tensor, value: Tensor, matrix: Tensor) -> Tensor:
        head = LinearAttentionHead(DIM, 0.0, matrix.T, matrix.T, None)
        return torch.stack([head(query[:, h], key[:, h], value[:, h]) for h in range(HEADS)], 1)

    return on_heads(attend)


def no_package(device: torch.device) -> str:
    """Why linformer-pytorch cannot run."""
    return "" if find_spec("linformer_pytorch") else "not installed"


def fused(query: Tensor, key: Tensor, value: Tensor, backend: SDPBackend | None = None) -> Tensor:
    """Full attention by PyTorch's operation, by one of its backends or by its own choice."""
    if backend is None:
        return F.scaled_dot_product_attention(query, key, value)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value)


def matrices(count: int, count_backward: int, size: int, direction: str) -> int:
    """Bytes of as many tensors of heads x n x n, in what everybody computes in."""
    each = 2 if torch.cuda.is_available() else 4
    return each * HEADS * size * size * (count if direction == FORWARD else count_backward)


def full(wrap: Callable[[Function], Function], directions: tuple[str, ...]) -> tuple[Peer, ...]:
    """Full attention: as in 2020, and fused.

    Args:
        wrap: From a function of heads to one of the inputs.
        directions: What to compare.
    """

    def peer(name: str, function: Function, gpu_only: bool = False) -> Peer:
        return Peer(
            name,
            lambda device: wrap(function),
            devices=("cuda",) if gpu_only else ("cpu", "cuda"),
            why_not=no_tensor_cores if gpu_only else lambda device: "",
            need=partial(matrices, 3, 5) if function is plain else lambda size, direction: 0,
            directions=directions,
        )

    return (
        peer("full, plain", plain),
        peer("full, SDPA", fused),
        peer("full, cuDNN", partial(fused, backend=SDPBackend.CUDNN_ATTENTION), True),
        peer("full, FlashAttention", partial(fused, backend=SDPBackend.FLASH_ATTENTION), True),
    )


def without_matrix(function: Function) -> Function:
    """A function of heads alone as one of the inputs."""
    return on_heads(lambda query, key, value, matrix: function(query, key, value))


def flops(size: int, direction: str) -> int:
    """Products of n x slots x dim: two for projections, two for attention.

    Backward: each projection twice, the score and g . v, and the three sums.
    """
    products = 4 if direction == FORWARD else 4 + 4 + 5
    return products * 2 * size * SLOTS * WIDTH


def bytes_moved(size: int, direction: str) -> int:
    """Heads and E read, the output written; backward reads all and their gradients."""
    numbers = size * (4 * WIDTH + SLOTS)
    return 4 * numbers * (1 if direction == FORWARD else 3)


CASE = Case(
    name="linformer",
    title="Linformer attention, n positions and 128 slots, 4 heads of 64 columns",
    inputs=inputs,
    expected=expected,
    peers=(
        Peer("auto", partial(ours, impl="auto"), ours=True),
        kernel_peer(partial(ours, impl="triton")),
        Peer("matmul, SDPA", lambda device: on_heads(libraries)),
        Peer("linformer-pytorch", published, why_not=no_package),
        *full(without_matrix, (FORWARD,)),
    ),
    sizes={
        "cpu": {FORWARD: (512, 2048, 8192), BOTH: (512, 2048, 8192)},
        "cuda": {FORWARD: (512, 4096, 1 << 14, 1 << 16), BOTH: (512, 4096, 1 << 14, 1 << 16)},
    },
    quick_sizes={FORWARD: (512,), BOTH: (512,)},
    flops=flops,
    bytes_moved=bytes_moved,
    tiny=SLOTS,
    tolerance=TOLERANCE,
)


# Table 3


def layer_inputs(slots: int, size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Tokens that repeat, ``[n, width]``, and the six matrices of a layer."""
    shapes = [(slots, WIDTH)] + [(WIDTH, WIDTH)] * 4 + [(HIDDEN, WIDTH), (WIDTH, HIDDEN)]
    tokens, *weights = random_inputs(shapes, device, seed=size)
    scaled = (weight / weight.shape[1] ** 0.5 for weight in weights)
    return tokens.repeat_interleave(size // slots, 0), *scaled


def layer(attend: Function, tokens: Tensor, rows: Tensor | None, *weights: Tensor) -> Tensor:
    """An encoder layer, for all tokens or some."""
    w_q, w_k, w_v, w_o, w_1, w_2 = weights
    some = tokens if rows is None else tokens[rows]
    answers = attend(split(some @ w_q.T), split(tokens @ w_k.T), split(tokens @ w_v.T))
    x = F.layer_norm(some + merge(answers) @ w_o.T, (WIDTH,))
    return F.layer_norm(x + F.gelu(x @ w_1.T) @ w_2.T, (WIDTH,))


def layer_expected(slots: int, inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """The formula, for some of the tokens."""
    tokens, *weights = inputs
    matrix = averages(slots, len(tokens)).to(tokens)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return plain(query, matrix @ key, matrix @ value)

    return layer(attend, tokens, rows, *weights)


def in_layer(attend: Function) -> Function:
    """A function of heads, in the layer, as one of the inputs."""

    def call(*tensors: Tensor) -> Tensor:
        tokens, *weights = (x.to(number(x)) for x in tensors)
        return layer(attend, tokens, None, *weights).float()

    return call


@lru_cache(maxsize=1)
def fixed(slots: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """E, made once."""
    return averages(slots, size).to(device, dtype)


def our_layer(slots: int, device: torch.device, impl: str) -> Function:
    """The layer with the package's attention."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        matrix = fixed(slots, key.shape[2], key.dtype, key.device)
        return linformer_attention(query, key, value, matrix, matrix, impl=impl)

    return in_layer(attend)


def layer_flops(slots: int, size: int, direction: str) -> int:
    """Attention as above with E fixed, four products of width x width, two of width x hidden."""
    attention = 2 * size * slots * WIDTH
    others = 2 * size * WIDTH * (4 * WIDTH + 2 * HIDDEN)
    if direction == FORWARD:
        return 4 * attention + others
    return (4 + 2 + 5) * attention + 3 * others


def layer_bytes(slots: int, size: int, direction: str) -> int:
    """Tokens, weights and E read, tokens written; backward reads all and writes gradients."""
    numbers = 2 * size * WIDTH + WIDTH * (4 * WIDTH + 2 * HIDDEN) + slots * size
    return 4 * numbers * (1 if direction == FORWARD else 3)


def table3(name: str, slots: int) -> Case:
    """A column of the table."""
    gpu = tuple(n for n in (1 << power for power in range(9, 17)) if n > slots)
    cpu = tuple(n for n in gpu if n <= 8192)
    return Case(
        name=name,
        title=f"Encoder layer, width 256, 4 heads, n tokens: Linformer with {slots} slots, or full",
        inputs=partial(layer_inputs, slots),
        expected=partial(layer_expected, slots),
        peers=(
            Peer("auto", partial(our_layer, slots, impl="auto"), ours=True),
            Peer(
                "triton",
                partial(our_layer, slots, impl="triton"),
                ours=True,
                why_not=not_compiled,
            ),
            *full(in_layer, (FORWARD, BOTH)),
        ),
        sizes={"cpu": {FORWARD: cpu, BOTH: cpu[:-1]}, "cuda": {FORWARD: gpu, BOTH: gpu}},
        quick_sizes={FORWARD: (2 * slots,), BOTH: (2 * slots,)},
        flops=partial(layer_flops, slots),
        bytes_moved=partial(layer_bytes, slots),
        tiny=2 * slots,
        tolerance=LAYER_TOLERANCE,
    )


MORE = (
    table3("linformer_table3", 128),
    table3("linformer_table3_256", 256),
    table3("linformer_table3_512", 512),
)
