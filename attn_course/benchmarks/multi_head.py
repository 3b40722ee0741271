"""Multi-head self-attention as a layer: 8 sequences of n tokens, width 512, 8 heads.

Once without padding, and once as batches of sentences are: sequence i has i eighths of the
tokens, and the rest is padding. A layer's weights are inputs here, so that their gradients are
checked and counted too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attn_course import _d2l
from attn_course.benchmarks.cases import BOTH, FORWARD, Case, Function, Peer, random_inputs
from attn_course.benchmarks.peers import no_d2l
from attn_course.multi_head import MultiHeadAttention

BATCH, WIDTH, HEADS = 8, 512, 8


def inputs(size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Tokens ``[n, batch * width]`` and W_q, W_k, W_v and W_o, ``[width, width]`` each.

    Scaled so that queries, keys and values vary as much as the tokens.
    """
    shapes = [(size, BATCH * WIDTH)] + [(WIDTH, WIDTH)] * 4
    tokens, *weights = random_inputs(shapes, device, seed=size)
    return tokens, *(weight / WIDTH**0.5 for weight in weights)


def lengths(size: int, device: torch.device | str = "cpu") -> Tensor:
    """How many tokens count: 1/8 of them, 2/8, ..., all. ``[batch]``."""
    return torch.arange(1, BATCH + 1, device=device) * size // BATCH


def expected(inputs: tuple[Tensor, ...], rows: Tensor, *, padded: bool = False) -> Tensor:
    """The formula, for some of the positions."""
    tokens, w_q, w_k, w_v, w_o = inputs
    n = len(tokens)
    memory = tokens.unflatten(1, (BATCH, WIDTH)).transpose(0, 1)  # [batch, n, width]

    def heads(x: Tensor, weight: Tensor) -> Tensor:
        return (x @ weight.T).unflatten(-1, (HEADS, -1)).transpose(1, 2)

    query, key, value = heads(memory[:, rows], w_q), heads(memory, w_k), heads(memory, w_v)
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if padded:
        hidden = torch.arange(n) >= lengths(n)[:, None]  # [batch, n]
        scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
    weights = scores.softmax(-1)
    answers = (weights @ value).transpose(1, 2).flatten(2)  # [batch, rows, width]
    return (answers @ w_o.T).transpose(0, 1).flatten(1)


def with_weights(
    layer: nn.Module, options: Callable[[Tensor], dict[str, object]], *, stacked: bool = False
) -> Function:
    """A layer without biases as a function of the inputs.

    Args:
        layer: Called with the same tokens as queries, keys and values.
        options: For the call, from the lengths.
        stacked: Whether it names and keeps its weights as PyTorch's layer does.
    """

    def call(tokens: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor) -> Tensor:
        if stacked:
            state = {"in_proj_weight": torch.cat([w_q, w_k, w_v]), "out_proj.weight": w_o}
        else:
            names = ("W_q.weight", "W_k.weight", "W_v.weight", "W_o.weight")
            state = dict(zip(names, (w_q, w_k, w_v, w_o), strict=True))
        x = tokens.unflatten(1, (BATCH, WIDTH)).transpose(0, 1).contiguous()
        lens = lengths(len(tokens), tokens.device)
        output = functional_call(layer, state, (x, x, x), options(lens))
        output = output[0] if stacked else output
        return output.transpose(0, 1).flatten(1)

    return call


def ours(device: torch.device, *, padded: bool = False) -> Function:
    """The package's layer."""
    layer = MultiHeadAttention(WIDTH, HEADS, bias=False).to(device)
    return with_weights(layer, lambda lens: {"valid_lens": lens if padded else None})


def pytorch(device: torch.device, *, padded: bool = False) -> Function:
    """PyTorch's layer, asked for no weights, so that it may take its fused operation."""
    layer = nn.MultiheadAttention(WIDTH, HEADS, bias=False, batch_first=True, device=device)

    def options(lens: Tensor) -> dict[str, object]:
        place = torch.arange(int(lens[-1]), device=lens.device)
        hidden = place >= lens[:, None] if padded else None
        return {"need_weights": False, "key_padding_mask": hidden}

    return with_weights(layer, options, stacked=True)


def d2l(device: torch.device, *, padded: bool = False) -> Function:
    """Zhang et al.'s layer."""
    layer = _d2l.load().MultiHeadAttention(WIDTH, HEADS, dropout=0.0)
    tokens = torch.zeros(1, 1, WIDTH)
    layer(tokens, tokens, tokens, None)  # tells its widths
    return with_weights(layer.to(device), lambda lens: {"valid_lens": lens if padded else None})


def matrices(count: int, count_backward: int, size: int, direction: str) -> int:
    """Bytes of as many float32 tensors of batch x heads x n x n."""
    count = count if direction == FORWARD else count_backward
    return 4 * BATCH * HEADS * size * size * count


def flops(size: int, direction: str, *, padded: bool = False) -> int:
    """Four projections, and of each pair of tokens the score and the output.

    Backward: each projection twice, the score and g . v again, and the three sums.
    """
    projections = 4 * 2 * BATCH * size * WIDTH * WIDTH
    keys = int(lengths(size).sum()) if padded else BATCH * size
    pairs = 2 * keys * size * WIDTH
    return (projections + 2 * pairs) if direction == FORWARD else 3 * projections + 7 * pairs


def bytes_moved(size: int, direction: str) -> int:
    """Tokens and weights read, the output written; backward reads all and their gradients."""
    numbers = 2 * size * BATCH * WIDTH + 4 * WIDTH * WIDTH
    return 4 * numbers * (1 if direction == FORWARD else 3)


def make(name: str, title: str, *, padded: bool) -> Case:
    """The case with or without padding."""
    return Case(
        name=name,
        title=title,
        inputs=inputs,
        expected=partial(expected, padded=padded),
        peers=(
            Peer("auto", partial(ours, padded=padded), ours=True),
            Peer("nn.MultiheadAttention", partial(pytorch, padded=padded)),
            Peer("d2l", partial(d2l, padded=padded), why_not=no_d2l, need=partial(matrices, 3, 5)),
        ),
        sizes={
            "cpu": {FORWARD: (128, 512), BOTH: (128, 512)},
            "cuda": {FORWARD: (512, 2048), BOTH: (512, 2048)},
        },
        quick_sizes={FORWARD: (16,), BOTH: (16,)},
        flops=partial(flops, padded=padded),
        bytes_moved=bytes_moved,
        tiny=16,
    )


TITLE = "Multi-head self-attention, 8 sequences of n tokens, width 512, 8 heads"
CASE = make("multi_head", TITLE, padded=False)
MORE = (
    make(
        "multi_head_padded",
        "Multi-head self-attention, 8 sequences of n/8 to n tokens, width 512, 8 heads",
        padded=True,
    ),
)
