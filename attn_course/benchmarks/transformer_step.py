"""A training step of the Transformer: ours, and d2l's modules with the same weights.

``python -m attn_course.benchmarks.transformer_step [--quick] [--output DIR] [--device D]``

A step is forward, cross-entropy, backward and Adam, without dropout. Short sentences in a
large batch, as translators see them, and long ones in a small batch; so that about as many
tokens are read. Two sizes: the model that chapter 6 trains, and the wider one of the lecture
behind it, with 1,000 words. With tens of thousands the map to logits would take most of the
time, and it is the same for both; so would wide feed-forward networks.

d2l's attention has no biases. Ours are zeros here and do not learn: both models compute the
same, and learn the same parameters. Checked are logits and all gradients, in training mode,
where d2l's decoder is causal; see ``to_check`` for what ReLU has to do with it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attn_course.benchmarks import environment, steps
from attn_course.benchmarks.d2l_transformer import LectureTransformer
from attn_course.benchmarks.results import Record
from attn_course.transformer import (
    PositionwiseFeedForward,
    Transformer,
    TransformerDecoder,
    TransformerEncoder,
)

NAME = "transformer_step"
TITLE = "Training step of a Transformer, sentences of up to n tokens"
OURS, D2L = "auto", "d2l"

#: The largest error allowed in logits and gradients, over the largest number there is.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Sizes:
    """How large everything is; ``batches`` are pairs of batch and length."""

    batches: tuple[tuple[int, int], ...]
    width: int
    hidden: int
    vocab: int
    layers: int = 2
    heads: int = 4

    @property
    def step(self) -> str:
        """What one call of this model is called in a record."""
        return f"training step, width {self.width}"


@dataclass(frozen=True)
class Models:
    """All that a run measures."""

    models: tuple[Sizes, ...]


CHAPTER = Sizes(batches=((128, 16), (8, 256)), width=72, hidden=144, vocab=275)
LECTURE = Sizes(batches=((64, 16), (8, 256)), width=256, hidden=64, vocab=1000)
FULL = Models((CHAPTER, LECTURE))
QUICK = Models((Sizes(batches=((4, 6), (2, 20)), width=16, hidden=32, heads=2, vocab=30),))


class Batch(NamedTuple):
    """Random sentences."""

    source: Tensor
    lens: Tensor
    target_input: Tensor
    labels: Tensor


def make_batch(sizes: Sizes, batch: int, length: int, device: torch.device) -> Batch:
    """The same on every device."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(sizes.vocab, (3, batch, length), generator=draw)
    lens = torch.randint((length + 2) // 3, length + 1, (batch,), generator=draw)
    return Batch(*(x.to(device) for x in (ids[0], lens, ids[1], ids[2])))


def make_ours(sizes: Sizes) -> Transformer:
    """Our Transformer, with biases of attention that do not learn."""
    arguments = (sizes.vocab, sizes.width, sizes.heads, sizes.hidden, sizes.layers)
    model = Transformer(TransformerEncoder(*arguments), TransformerDecoder(*arguments))
    for name, parameter in model.named_parameters():
        if "attention.W_" in name and name.endswith(".bias"):
            parameter.requires_grad_(False)
    return model


def make_d2ls(sizes: Sizes) -> LectureTransformer:
    """The lecture's, whose weights have their widths."""
    model = LectureTransformer(
        sizes.vocab, sizes.vocab, sizes.width, sizes.hidden, sizes.heads, sizes.layers
    )
    batch = make_batch(sizes, 1, 2, torch.device("cpu"))
    model(batch.source, batch.lens, batch.target_input)
    for part in (model.encoder, model.decoder):
        # As ours start. d2l's are scaled to 16 times a sinusoid: the first softmax is then
        # all but hard, and rounding is most of its gradient.
        nn.init.normal_(part.embedding.weight, std=sizes.width**-0.5)
    return model


def give(ours: Transformer, state: Mapping[str, Tensor]) -> None:
    """Copy what the lecture's model has for each parameter: its weights, or their gradients."""

    def below(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)
        }

    sides: dict[str, Any] = {"encoder": ours.encoder, "decoder": ours.decoder}
    for side, part in sides.items():
        part.embedding.tokens.load_state_dict(below(f"{side}.embedding."))
        for i, layer in enumerate(part.layers):
            layer.load_d2l(below(f"{side}.blks.block{i}."))
    ours.output.load_state_dict(below("decoder.dense."))


def models(sizes: Sizes, device: torch.device) -> dict[str, nn.Module]:
    """Both, with the same weights, in training mode."""
    torch.manual_seed(0)
    theirs, ours = make_d2ls(sizes), make_ours(sizes)
    give(ours, theirs.state_dict())
    return {OURS: ours.to(device), D2L: theirs.to(device)}


def loss(logits: Tensor, batch: Batch) -> Tensor:
    """The cross-entropy of the labels."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())


def answers(model: nn.Module, batch: Batch, sizes: Sizes) -> list[Tensor]:
    """Logits, and the gradient of each parameter that learns, in the order of ours."""
    logits = model(batch.source, batch.lens, batch.target_input)
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss(logits, batch), list(learned.values()))
    if isinstance(model, LectureTransformer):
        holder = make_ours(sizes).to(logits)
        give(holder, dict(zip(learned, found, strict=True)))
        found = tuple(p.detach() for p in holder.parameters() if p.requires_grad)
    return [logits, *found]


def to_check(model: nn.Module, batch: Batch, sizes: Sizes) -> list[Tensor]:
    """Logits, and logits and gradients with GELU in place of ReLU, which is put into the model.

    ReLU has a kink: of millions of hidden numbers a few are so close to zero that rounding
    takes them across it, and a gradient changes by far more than rounding. That is nobody's
    fault, and would hide what is. GELU is smooth.
    """
    with torch.no_grad():
        logits = model(batch.source, batch.lens, batch.target_input)
    for module in model.modules():
        part: Any = module
        if isinstance(part, PositionwiseFeedForward):
            part.activation = "gelu"
        elif hasattr(part, "relu"):
            part.relu = nn.GELU()
    return [logits, *answers(model, batch, sizes)]


def training_step(model: nn.Module, batch: Batch) -> Callable[[], object]:
    """Forward, backward and Adam."""
    optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)

    def step() -> None:
        optimizer.zero_grad()
        loss(model(batch.source, batch.lens, batch.target_input), batch).backward()
        optimizer.step()

    return step


def check(sizes: Sizes, device: torch.device) -> dict[int, dict[str, float]]:
    """The error of each model, length by length, against d2l's in float64.

    Raises:
        CheckFailed: An error is over ``TOLERANCE``.
    """
    cpu = torch.device("cpu")
    errors: dict[int, dict[str, float]] = {}
    for count, length in sizes.batches:
        exact_model = models(sizes, cpu)[D2L].double()
        exact = to_check(exact_model, make_batch(sizes, count, length, cpu), sizes)
        batch = make_batch(sizes, count, length, device)
        errors[length] = {}
        for name, model in models(sizes, device).items():
            error = steps.largest_error(to_check(model, batch, sizes), exact)
            steps.refuse_above(TOLERANCE, error, f"{NAME}: {name}, {length} tokens")
            errors[length][name] = error
    return errors


def run(sizes: Models, device: torch.device, *, budget_s: float = steps.BUDGET_S) -> Record:
    """Check, then time both in one run, taking turns.

    Args:
        sizes: How large everything is, model by model.
        device: Where.
        budget_s: Seconds for each of the two, of each model and at each length.

    Returns:
        A record as ``python -m attn_course.benchmarks`` stores them.

    Raises:
        CheckFailed: An answer is wrong. Nothing was timed.
        ImportError: d2l is missing.
    """
    errors = [check(model, device) for model in sizes.models]
    start = environment.describe(device)
    results = []
    for model, error in zip(sizes.models, errors, strict=True):
        results += measure(model, device, error, budget_s)
    return steps.make_record(
        NAME, TITLE, start, results, quick=sizes == QUICK, tolerance=TOLERANCE, sizes=sizes
    )


def measure(
    sizes: Sizes, device: torch.device, errors: dict[int, dict[str, float]], budget_s: float
) -> list[Record]:
    """The results of one model, for ``run``."""
    results = []
    for count, length in sizes.batches:
        both, batch = models(sizes, device), make_batch(sizes, count, length, device)
        learned = sum(p.numel() for p in both[OURS].parameters() if p.requires_grad)
        results += steps.time_calls(
            {name: training_step(model, batch) for name, model in both.items()},
            device, ours=[OURS], errors=errors[length], direction=sizes.step, size=length,
            flops=3 * 2 * products(sizes, count, length, length),
            # Adam's: gradient, and both moments and the parameter read and written.
            bytes_moved=4 * 7 * learned, budget_s=budget_s,
        )  # fmt: skip
    return results


def products(sizes: Any, batch: int, source_len: int, target_len: int) -> int:
    """The fewest multiplications of a pass forward; norms, softmax and such are extra.

    Args:
        sizes: With ``width``, ``hidden``, ``layers`` and ``vocab``.
        batch: How many sentences, all as long as the longest.
        source_len: Of the source.
        target_len: Of the target, whose token i attends to i + 1 of its own.
    """
    width = sizes.width
    feed_forward = 2 * width * sizes.hidden
    encoder = source_len * (4 * width**2 + feed_forward + 2 * source_len * width)
    own = 4 * width**2 + (target_len + 1) * width
    # Of cross-attention's four maps two are of the source.
    cross = 2 * width**2 + 2 * source_len * width
    decoder = target_len * (own + cross + feed_forward) + source_len * 2 * width**2
    return int(batch * (sizes.layers * (encoder + decoder) + target_len * width * sizes.vocab))


def run_either(quick: bool, device: torch.device, budget_s: float) -> Record:
    """A quick run or a full one."""
    return run(QUICK if quick else FULL, device, budget_s=budget_s)


if __name__ == "__main__":
    sys.exit(steps.main(NAME, __doc__, run_either))
