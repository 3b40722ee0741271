"""A training step with additive attention: keys projected once a sentence, or at each step.

``python -m attn_course.benchmarks.bahdanau_step [--quick] [--output DIR] [--device D]``

The decoder of chapter 3 with the course's attention, and the same decoder, with the same
weights, calling d2l's ``AdditiveAttention`` at each step. Timed are the attention alone, all
its steps forward and backward, and a whole training step of the translator: forward,
backward and Adam. An optimiser has no place in a ``Case``, so this is a module of its own;
it checks first and stores the same kind of record.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attn_course import _d2l
from attn_course.benchmarks import environment, steps
from attn_course.benchmarks.results import Record
from attn_course.scoring import AdditiveAttention
from attn_course.seq2seq import AttentionDecoder, Encoder, Seq2Seq

NAME = "bahdanau_step"
TITLE = "Translator with additive attention, n sentences of up to {length} tokens"
ATTENTION, STEP = "attention, forward+backward", "training step"
OURS, D2L = "keys projected once", "d2l's attention at each step"

#: The largest error allowed in logits and gradients, over the largest number there is.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    batch: int = 128
    length: int = 15
    hidden: int = 256
    embed: int = 256
    vocab: int = 5000

    @property
    def memory(self) -> int:
        """The width of the memory: the encoder reads in both directions."""
        return 2 * self.hidden


QUICK = Sizes(batch=8, length=5, hidden=16, embed=16, vocab=50)


class D2LAttention(nn.Module):
    """d2l's ``AdditiveAttention``, weights and all, as a scoring of our decoder."""

    def __init__(self, ours: AdditiveAttention) -> None:
        super().__init__()
        copy = {f"{name}.weight": p.detach().clone() for name, p in _weights(ours).items()}
        copy["w_v.weight"] = copy["w_v.weight"].unsqueeze(0)
        self.net = _d2l.load().AdditiveAttention(ours.W_q.out_features, dropout=0.0)
        for name in ("W_q", "W_k", "w_v"):
            rows, columns = copy[f"{name}.weight"].shape
            setattr(self.net, name, nn.Linear(columns, rows, bias=False))
        self.net.load_state_dict(copy)

    def project_keys(self, key: Tensor) -> Tensor:
        """Nothing: d2l projects the keys whenever it is called."""
        return key

    def attend(
        self, query: Tensor, projected_key: Tensor, value: Tensor, *, valid_lens: Tensor, **_: Any
    ) -> Tensor:
        """Call d2l."""
        output: Tensor = self.net(query, projected_key, value, valid_lens)
        return output


def _weights(ours: AdditiveAttention) -> dict[str, Tensor]:
    return {"W_q": ours.W_q.weight, "W_k": ours.W_k.weight, "w_v": ours.w_v}


def translators(sizes: Sizes, device: torch.device) -> dict[str, Seq2Seq]:
    """Two translators with the same weights, by the name of their attention."""
    models = {}
    for name in (OURS, D2L):
        torch.manual_seed(0)
        encoder = Encoder(sizes.vocab, sizes.embed, sizes.hidden)
        decoder = AttentionDecoder(sizes.vocab, sizes.embed, sizes.hidden, encoder.width)
        models[name] = Seq2Seq(encoder, decoder)
        assert decoder.attention is not None
        if name == D2L:
            decoder.attention.scoring = D2LAttention(decoder.attention.scoring)
        models[name].to(device)
    return models


@dataclass(frozen=True)
class Batch:
    """Random sentences, and queries and a memory for the attention alone."""

    source: Tensor
    lens: Tensor
    target_input: Tensor
    labels: Tensor
    query: Tensor
    memory: Tensor


def make_batch(sizes: Sizes, device: torch.device) -> Batch:
    """The same on every device."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(sizes.vocab, (3, sizes.batch, sizes.length), generator=draw)
    lens = torch.randint((sizes.length + 2) // 3, sizes.length + 1, (sizes.batch,), generator=draw)
    query = torch.randn(sizes.length, sizes.batch, 1, sizes.hidden, generator=draw)
    memory = torch.randn(sizes.batch, sizes.length, sizes.memory, generator=draw)
    return Batch(*(x.to(device) for x in (ids[0], lens, ids[1], ids[2], query, memory)))


def attend(model: Seq2Seq, batch: Batch) -> list[Tensor]:
    """All steps of the attention alone: their contexts, and every gradient."""
    assert model.decoder.attention is not None
    net = model.decoder.attention.scoring
    query, memory = (x.detach().requires_grad_() for x in (batch.query, batch.memory))
    keys = net.project_keys(memory)
    steps = [net.attend(q, keys, memory, valid_lens=batch.lens) for q in query]
    contexts = torch.cat(steps, dim=1)
    inputs = [query, memory, *_in_order(net)]
    return [contexts, *torch.autograd.grad(contexts.square().sum(), inputs)]


def _in_order(net: nn.Module) -> list[Tensor]:
    """W_q, W_k and w_v, whosever they are."""
    weights = {
        name.split(".")[-2 if "weight" in name else -1]: p for name, p in net.named_parameters()
    }
    return [weights[name] for name in ("W_q", "W_k", "w_v")]


def loss(model: Seq2Seq, batch: Batch) -> Tensor:
    """The cross-entropy of the labels."""
    logits = model(batch.source, batch.lens, batch.target_input)
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())


def gradients(model: Seq2Seq, batch: Batch) -> list[Tensor]:
    """The loss, and its gradient by each of the weights."""
    net = model.decoder.attention
    assert net is not None
    mine = _in_order(net.scoring)
    others = [p for name, p in model.named_parameters() if ".scoring." not in name]
    value = loss(model, batch)
    return [value, *torch.autograd.grad(value, [*mine, *others])]


def training_step(model: Seq2Seq, batch: Batch) -> Callable[[], object]:
    """Forward, backward and Adam."""
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()

    return step


def check(sizes: Sizes, device: torch.device) -> dict[str, dict[str, float]]:
    """The error of each translator, direction by direction, against d2l's in float64.

    Raises:
        CheckFailed: An error is over ``TOLERANCE``.
    """
    batch, cpu = make_batch(sizes, device), torch.device("cpu")
    exact_model = translators(sizes, cpu)[D2L].double()
    exact_batch = make_batch(sizes, cpu)
    exact_batch = Batch(
        *(x.double() if x.is_floating_point() else x for x in vars(exact_batch).values())
    )
    errors: dict[str, dict[str, float]] = {}
    for direction, function in ((ATTENTION, attend), (STEP, gradients)):
        exact = function(exact_model, exact_batch)
        errors[direction] = {}
        for name, model in translators(sizes, device).items():
            worst = steps.largest_error(function(model, batch), exact)
            steps.refuse_above(TOLERANCE, worst, f"{NAME}: {name}, {direction}")
            errors[direction][name] = worst
    return errors


def run(sizes: Sizes, device: torch.device, *, budget_s: float = steps.BUDGET_S) -> Record:
    """Check, then time both in one run, taking turns.

    Args:
        sizes: How large everything is.
        device: Where.
        budget_s: Seconds for each of the two in each direction.

    Returns:
        A record as ``python -m attn_course.benchmarks`` stores them.

    Raises:
        CheckFailed: An answer is wrong. Nothing was timed.
        ImportError: d2l is missing.
    """
    errors = check(sizes, device)
    start = environment.describe(device)
    batch, models = make_batch(sizes, device), translators(sizes, device)
    results = []
    for direction in (ATTENTION, STEP):
        calls: dict[str, Callable[[], object]] = {}
        for name, model in models.items():
            calls[name] = (
                training_step(model, batch)
                if direction == STEP
                else lambda model=model: attend(model, batch)  # type: ignore[misc]
            )
        results += steps.time_calls(
            calls, device, ours=[OURS], errors=errors[direction], direction=direction,
            size=sizes.batch, flops=flops(sizes, direction),
            bytes_moved=bytes_moved(sizes, direction), budget_s=budget_s,
        )  # fmt: skip
    return steps.make_record(
        NAME, TITLE.format(length=sizes.length), start, results,
        quick=sizes == QUICK, tolerance=TOLERANCE, sizes=sizes,
    )  # fmt: skip


def flops(sizes: Sizes, direction: str) -> int:
    """The fewest: products forward, and twice as many backward; tanh and such are extra."""
    tokens, hidden = sizes.batch * sizes.length, sizes.hidden
    projections = tokens * hidden * (sizes.memory + hidden)
    pairs = tokens * sizes.length * (hidden + sizes.memory)
    total = projections + pairs
    if direction == STEP:
        encoder = 2 * 3 * hidden * (sizes.embed + hidden)
        decoder = 3 * hidden * (sizes.memory + sizes.embed + hidden)
        total += tokens * (encoder + decoder + hidden * sizes.vocab)
        total += sizes.batch * sizes.memory * hidden  # the bridge
    return 3 * 2 * total


def bytes_moved(sizes: Sizes, direction: str) -> int:
    """Queries and memory read and their gradients written; for a step, what Adam touches."""
    if direction == ATTENTION:
        return 4 * 2 * sizes.batch * sizes.length * (sizes.hidden + 2 * sizes.memory)
    parameters = sum(p.numel() for p in translators(sizes, torch.device("cpu"))[OURS].parameters())
    return 4 * 7 * parameters  # gradient, and both moments and the parameter read and written


def run_either(quick: bool, device: torch.device, budget_s: float) -> Record:
    """A quick run or a full one."""
    return run(QUICK if quick else Sizes(), device, budget_s=budget_s)


if __name__ == "__main__":
    sys.exit(steps.main(NAME, __doc__, run_either))
