"""Greedy decoding with a key-value cache and without, and reading a known target at once.

``python -m attn_course.benchmarks.cached_decoding [--quick] [--output DIR] [--device D]``

A Transformer that was not trained writes a fixed number of tokens: with the cache each step
computes one token, without it all of those so far. The teacher-forced pass over the same
tokens is what training does: all steps side by side, in one call. Checked is that all three
come to the same tokens, and that their logits are right.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from attn_course.benchmarks import environment, steps
from attn_course.benchmarks.cases import FORWARD
from attn_course.benchmarks.results import Record
from attn_course.benchmarks.transformer_step import products
from attn_course.benchmarks.verify import CheckFailed
from attn_course.transformer import Transformer, TransformerDecoder, TransformerEncoder

NAME = "cached_decoding"
TITLE = "A Transformer writes n tokens, {batch} sentences"
CACHED, UNCACHED, PARALLEL = "with a cache", "without", "teacher forcing, at once"
BOS = 1

#: The largest error allowed in logits, over the largest number there is.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Sizes:
    """How large everything is: the chapter's model for real sentences."""

    lengths: tuple[int, ...] = (16, 32, 64, 128, 256)
    batch: int = 8
    source_len: int = 16
    width: int = 128
    hidden: int = 512
    layers: int = 3
    heads: int = 4
    vocab: int = 1000


QUICK = Sizes(
    lengths=(4, 8), batch=2, source_len=5, width=16, hidden=32, layers=2, heads=2, vocab=30
)


class Source(NamedTuple):
    """Random sentences to translate."""

    ids: Tensor
    lens: Tensor


def make_source(sizes: Sizes, device: torch.device) -> Source:
    """The same on every device."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(sizes.vocab, (sizes.batch, sizes.source_len), generator=draw)
    low = (sizes.source_len + 2) // 3
    lens = torch.randint(low, sizes.source_len + 1, (sizes.batch,), generator=draw)
    return Source(ids.to(device), lens.to(device))


def make_model(sizes: Sizes, device: torch.device) -> Transformer:
    """In evaluation mode."""
    torch.manual_seed(0)
    arguments = (sizes.vocab, sizes.width, sizes.heads, sizes.hidden, sizes.layers)
    encoder = TransformerEncoder(*arguments, norm="pre")
    decoder = TransformerDecoder(*arguments, norm="pre")
    return Transformer(encoder, decoder).to(device).eval()


@torch.no_grad()
def write(model: Transformer, source: Source, length: int, *, use_cache: bool) -> Tensor:
    """Take the likeliest token ``length`` times, whatever it is: no token ends a sentence.

    Returns:
        The logits of each step, ``[batch, length, vocab_size]``.
    """
    state = model.start(*source, use_cache=use_cache)
    token = torch.full((len(source.ids),), BOS, device=model.device)
    rows = []
    for _ in range(length):
        logits, state, _ = model.step(token, state)
        token = logits.argmax(-1)
        rows.append(logits)
    return torch.stack(rows, dim=1)


@torch.no_grad()
def read(model: Transformer, source: Source, tokens: Tensor) -> Tensor:
    """The logits of ``tokens``, ``[batch, length]``, each given those before it."""
    first = torch.full_like(tokens[:, :1], BOS)
    logits = model(*source, torch.cat([first, tokens[:, :-1]], dim=1))
    assert isinstance(logits, Tensor)  # no weights were asked for
    return logits


def calls(
    model: Transformer, source: Source, length: int
) -> tuple[dict[str, Callable[[], Tensor]], Tensor]:
    """All three, by name, and the tokens that are written."""
    write_on = partial(write, model, source, length)
    tokens = write_on(use_cache=True).argmax(-1)
    return {
        CACHED: partial(write_on, use_cache=True),
        UNCACHED: partial(write_on, use_cache=False),
        PARALLEL: partial(read, model, source, tokens),
    }, tokens


def check(sizes: Sizes, device: torch.device) -> dict[int, dict[str, float]]:
    """The error of each in its logits, length by length, against a pass in float64.

    Raises:
        CheckFailed: Tokens differ, or an error is over ``TOLERANCE``.
    """
    cpu = torch.device("cpu")
    model, source = make_model(sizes, device), make_source(sizes, device)
    exact_model, exact_source = deepcopy(model).to(cpu).double(), make_source(sizes, cpu)
    errors: dict[int, dict[str, float]] = {}
    for length in sizes.lengths:
        by_name, tokens = calls(model, source, length)
        exact = read(exact_model, exact_source, tokens.cpu())
        errors[length] = {}
        for name, call in by_name.items():
            logits, what = call(), f"{NAME}: {name}, {length} tokens"
            if not torch.equal(logits.argmax(-1), tokens):
                raise CheckFailed(f"{what}: other tokens than {CACHED}.")
            errors[length][name] = steps.largest_error([logits], [exact])
            steps.refuse_above(TOLERANCE, errors[length][name], what)
    return errors


def run(sizes: Sizes, device: torch.device, *, budget_s: float = steps.BUDGET_S) -> Record:
    """Check, then time all three in one run, taking turns.

    Args:
        sizes: How large everything is.
        device: Where.
        budget_s: Seconds for each of the three at each length.

    Returns:
        A record as ``python -m attn_course.benchmarks`` stores them.

    Raises:
        CheckFailed: An answer is wrong. Nothing was timed.
    """
    errors = check(sizes, device)
    start = environment.describe(device)
    model, source = make_model(sizes, device), make_source(sizes, device)
    parameters = sum(p.numel() for p in model.parameters())
    results = []
    for length in sizes.lengths:
        by_name, _ = calls(model, source, length)
        results += steps.time_calls(
            by_name, device, ours=by_name, errors=errors[length], direction=FORWARD, size=length,
            flops=2 * products(sizes, sizes.batch, sizes.source_len, length),
            bytes_moved=4 * parameters + 8 * sizes.batch * (sizes.source_len + length),
            budget_s=budget_s,
        )  # fmt: skip
    return steps.make_record(
        NAME, TITLE.format(batch=sizes.batch), start, results,
        quick=sizes == QUICK, tolerance=TOLERANCE, sizes=sizes,
    )  # fmt: skip


def run_either(quick: bool, device: torch.device, budget_s: float) -> Record:
    """A quick run or a full one."""
    return run(QUICK if quick else Sizes(), device, budget_s=budget_s)


if __name__ == "__main__":
    sys.exit(steps.main(NAME, __doc__, run_either))
