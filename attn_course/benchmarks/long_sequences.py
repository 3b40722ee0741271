"""The forum's recogniser: a training step with each approach and remedy, its time and memory.

``python -m attn_course.benchmarks.long_sequences [--quick] [--output DIR] [--device D]``

A step is forward, CTC loss, backward and Adam. The recurrent layers alone read sequences of
800 steps, 128 wide: a bidirectional LSTM with 64 numbers in each direction, attention, and
one more layer, a GRU as in the question or an LSTM. The whole recogniser has three
convolutions in front, on images of 32 x 1600 pixels. Approaches 2.1 and 2.2 have those faults
with which they run at these sizes; their second layer is a bidirectional LSTM, always.

Beside time and the peak of memory each entry tells what autograd keeps, by the ledger of
chapter 8: ``kept_bytes``; and from that, which is linear in the batch, ``largest_batch``: how
many sequences fit 8 GiB together with parameters, gradients and Adam's moments. Temporaries of
the backward pass and work space of GPU libraries are not in it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attn_course.benchmarks import environment, memory, steps
from attn_course.benchmarks.plot import as_bytes
from attn_course.benchmarks.results import Record
from attn_course.benchmarks.verify import CheckFailed
from attn_course.long_sequences.forum import Approach1, Approach21, Approach22
from attn_course.long_sequences.ledger import memory_ledger

NAME = "long_sequences"
TITLE = "Training step of the forum's recogniser, n sequences of {length} steps"
GRU, LSTM = "RNNs, GRU", "RNNs, LSTM"
WHOLE_GRU, WHOLE_LSTM = "recogniser, GRU", "recogniser, LSTM"
NONE, LOOP, BATCHED = "no attention", "approach 1", "batched"
HALF = "batched, bfloat16"
POSTED = ("approach 2.1", "approach 2.2")

#: Peers -> ``Approach1(how=...)``.
HOW = {
    NONE: None,
    LOOP: "loop",
    BATCHED: "batched",
    "fused": "fused",
    "checkpointed": "checkpointed",
    HALF: "batched",
    "local, masked": "local",
    "sliding window": "sliding",
    "block-local": "block",
}
PEERS = (*HOW, *POSTED)

#: Which computes the same in the plainest way; others are held against themselves in float64.
EXACT = {LOOP: BATCHED, "fused": BATCHED, "checkpointed": BATCHED, HALF: BATCHED,
         "sliding window": "local, masked"}  # fmt: skip

#: The largest error allowed in logits and gradients, over the largest number there is.
TOLERANCE = 1e-4
#: Where products are computed in bfloat16, which has 8 bits.
HALF_TOLERANCE = 0.2
GIB = 1 << 30
BUDGET_S = 6.0


@dataclass(frozen=True)
class Sizes:
    """How large everything is; ``work`` tells the batches of each direction.

    ``linear`` is how far what is kept may lie from a line, as a part of it. Libraries round
    their space up, which matters where all is small.
    """

    work: tuple[tuple[str, tuple[int, ...]], ...] = (
        (GRU, (1, 4, 16, 64)),
        (LSTM, (4,)),
        (WHOLE_GRU, (4,)),
        (WHOLE_LSTM, (4,)),
    )
    length: int = 800
    width: int = 128
    labels: int = 43
    classes: int = 11
    window: int = 40
    channels: tuple[int, int] = (32, 64)
    linear: float = 0.01


QUICK = Sizes(
    work=((GRU, (1, 3)), (WHOLE_LSTM, (1,))), length=24, width=8, labels=4, window=4,
    channels=(2, 3), linear=0.15,
)  # fmt: skip


class Batch(NamedTuple):
    """What is read, ``[len, batch, width]`` or images, and random labels."""

    x: Tensor
    labels: Tensor


class Recogniser(nn.Module):
    """Convolutions, if any, and a model of sequences.

    Args:
        front: From images to ``[batch, width, 1, len]``.
        model: One of the approaches.
        in_half: Whether to compute products in bfloat16.
        axis: Where the model's output has the batch.
    """

    def __init__(self, front: nn.Module | None, model: nn.Module, in_half: bool, axis: int) -> None:
        super().__init__()
        self.front, self.model, self.in_half, self.axis = front, model, in_half, axis

    def forward(self, x: Tensor) -> Tensor:
        """``[len, batch, classes]``."""
        with self._precision(x):
            return self.answer(self.read(x))

    def read(self, x: Tensor) -> Tensor:
        """What the recurrent layers read, ``[len, batch, width]``."""
        return x if self.front is None else self.front(x).squeeze(2).permute(2, 0, 1)

    def answer(self, read: Tensor) -> Tensor:
        """From there to ``[len, batch, classes]``."""
        with self._precision(read):
            logits: Tensor = self.model(read)
        return logits.movedim(self.axis, 1).to(torch.promote_types(logits.dtype, torch.float32))

    def _precision(self, x: Tensor) -> AbstractContextManager[object]:
        return torch.autocast(x.device.type, torch.bfloat16) if self.in_half else nullcontext()


def make_batch(sizes: Sizes, direction: str, batch: int, device: torch.device) -> Batch:
    """The same on every device."""
    draw = torch.Generator().manual_seed(1)
    whole = direction in (WHOLE_GRU, WHOLE_LSTM)
    shape = (batch, 1, 32, 2 * sizes.length) if whole else (sizes.length, batch, sizes.width)
    x = torch.randn(shape, generator=draw)
    labels = torch.randint(1, sizes.classes, (batch, sizes.labels), generator=draw)
    return Batch(x.to(device), labels.to(device))


def make_model(sizes: Sizes, direction: str, peer: str, device: torch.device) -> Recogniser:
    """A recogniser; those with the same parameters have the same numbers in them."""
    arguments = (sizes.width, sizes.width // 2, sizes.classes)
    cell = "gru" if direction in (GRU, WHOLE_GRU) else "lstm"
    torch.manual_seed(0)
    model: nn.Module
    if peer == "approach 2.1":
        model = Approach21(*arguments, faults=("axis", "layout"))
    elif peer == "approach 2.2":
        model = Approach22(*arguments, faults=("axis", "layout"), window=sizes.window)
    else:
        model = Approach1(*arguments, cell=cell, how=HOW[peer], window=sizes.window)
    whole = direction in (WHOLE_GRU, WHOLE_LSTM)
    front = convolutions(sizes) if whole else None
    return Recogniser(front, model, peer == HALF, 0 if peer in POSTED else 1).to(device)


def convolutions(sizes: Sizes) -> nn.Module:
    """Three layers, from ``[batch, 1, 32, 2 len]`` to ``[batch, width, 1, len]``."""
    widths = (1, *sizes.channels, sizes.width)
    pools: tuple[int | tuple[int, int], ...] = (2, (2, 1), (8, 1))
    parts: list[nn.Module] = []
    for before, after, pool in zip(widths[:-1], widths[1:], pools, strict=True):
        parts += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(pool)]
    return nn.Sequential(*parts)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """CTC's, of all items together."""
    log_probs = model(batch.x).log_softmax(-1)
    count, length = batch.labels.shape
    steps_each, labels_each = (torch.full((count,), n) for n in (len(log_probs), length))
    return nn.functional.ctc_loss(log_probs, batch.labels, steps_each, labels_each, reduction="sum")


def answers(model: Recogniser, batch: Batch) -> list[Tensor]:
    """Logits, and the gradients of what the recurrent layers read and of their parameters.

    But not of the bias of approaches 2.1 and 2.2: it adds the same to all scores that their
    softmax, which runs over the wrong axis, compares. That gradient is rounding, and nothing else.
    Nor of the convolutions, the same for all peers: where two pixels are equal but for rounding,
    pooling picks one in float32 and the other in float64, and gradients jump.
    """
    read = model.read(batch.x).detach().requires_grad_()
    logits = model.answer(read)
    sequence = model.model.named_parameters()
    learned = [read, *(p for name, p in sequence if name != "w.bias")]
    # CTC's gradient would carry the errors of the sum over paths; this one carries the model's.
    draw = torch.Generator().manual_seed(2)
    incoming = torch.randn(logits.shape, generator=draw).to(logits)
    return [logits, *torch.autograd.grad(logits, learned, incoming)]


def training_step(model: nn.Module, batch: Batch) -> Callable[[], object]:
    """Forward, backward and Adam."""
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()

    return step


def check(sizes: Sizes, device: torch.device) -> dict[str, dict[str, float]]:
    """The error of each peer, direction by direction, against float64, for two sequences.

    With one, approaches 2.1 and 2.2 would have no recurrence: to them the batch is time.

    Raises:
        CheckFailed: An error is over its tolerance.
    """
    cpu = torch.device("cpu")
    errors: dict[str, dict[str, float]] = {}
    for direction, _ in sizes.work:
        batch = make_batch(sizes, direction, 2, device)
        exact_batch = Batch(batch.x.cpu().double(), batch.labels.cpu())
        errors[direction] = {}
        exact: dict[str, list[Tensor]] = {}
        for peer in PEERS:
            plain = EXACT.get(peer, peer)
            if plain not in exact:
                model = make_model(sizes, direction, plain, cpu).double()
                exact[plain] = answers(model, exact_batch)
            model = make_model(sizes, direction, peer, device)
            error = steps.largest_error(answers(model, batch), exact[plain])
            allowed = HALF_TOLERANCE if peer == HALF else TOLERANCE
            steps.refuse_above(allowed, error, f"{NAME}: {peer}, {direction}")
            errors[direction][peer] = error
    return errors


def kept(sizes: Sizes, direction: str, peer: str, batch: int, device: torch.device) -> int:
    """Bytes that autograd keeps of a forward pass, activations only."""
    model = make_model(sizes, direction, peer, device)
    data = make_batch(sizes, direction, batch, device)
    with memory_ledger() as ledger:
        loss(model, data)
    return ledger.total


class Line(NamedTuple):
    """Bytes that are kept whatever the batch, and by each item of it."""

    fixed: int
    each: int

    def at(self, batch: int) -> int:
        """Bytes that a batch keeps."""
        return self.fixed + batch * self.each


def kept_line(sizes: Sizes, direction: str, peer: str, device: torch.device) -> Line:
    """What is kept as a line, through a batch of two and a batch of four.

    A batch of one keeps less at times: turned around, it is contiguous still.
    """
    two, four = (kept(sizes, direction, peer, batch, device) for batch in (2, 4))
    each = (four - two) // 2
    return Line(two - 2 * each, each)


def largest_batch(model: nn.Module, item: Tensor, line: Line, room: int = 8 * GIB) -> int:
    """How many items fit, beside parameters, their gradients and Adam's two moments.

    Args:
        model: Has the parameters.
        item: What the model reads, of one item; as many bytes are there for each.
        line: What is kept.
        room: Bytes.
    """
    learned = sum(p.numel() * p.element_size() for p in model.parameters())
    each = line.each + item.numel() * item.element_size()
    return max(0, (room - 4 * learned - line.fixed) // each)


def peak_bytes(direction: str, peer: str, batch: int, device: torch.device) -> int | None:
    """The most memory in use in a training step beside what was in use before, at full size.

    On a CPU it is measured in a process of its own, as in ``memory``.

    Raises:
        RuntimeError: The process that measures failed.
    """
    if device.type == "cuda":
        step = _step(Sizes(), direction, peer, batch, device)
        step()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not Path("/proc/self/status").exists():
        return None
    code = f"from {__spec__.name} import print_peak; print_peak({direction!r}, {peer!r}, {batch})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"measuring memory of {peer}, {direction}: {run.stderr[-500:]}")
    return int(run.stdout.split()[-1])


def print_peak(direction: str, peer: str, batch: int) -> None:
    """Print the peak of the resident set in one training step, less the set before it."""
    cpu = torch.device("cpu")
    _step(QUICK, direction, peer, 1, cpu)()  # loads what is loaded lazily
    step = _step(Sizes(), direction, peer, batch, cpu)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = memory.process_status("VmRSS")
    step()
    print(max(memory.process_status("VmHWM") - before, 0))


def _step(
    sizes: Sizes, direction: str, peer: str, batch: int, device: torch.device
) -> Callable[[], object]:
    model = make_model(sizes, direction, peer, device)
    return training_step(model, make_batch(sizes, direction, batch, device))


def run(sizes: Sizes, device: torch.device, *, budget_s: float = BUDGET_S) -> Record:
    """Check; then see what each keeps, and time all in one run, taking turns.

    Args:
        sizes: How large everything is; the peak of memory is measured for ``Sizes()`` only.
        device: Where.
        budget_s: Seconds for each peer in each direction and at each batch.

    Returns:
        A record as ``python -m attn_course.benchmarks`` stores them; its entries have
        ``kept_bytes`` and ``largest_batch`` as well.

    Raises:
        CheckFailed: An answer is wrong, or what is kept is not linear in the batch. Nothing
            was timed.
    """
    errors = check(sizes, device)
    ledger = ledgers(sizes, device)
    start = environment.describe(device)
    results = []
    for direction, batches in sizes.work:
        models = {peer: make_model(sizes, direction, peer, device) for peer in PEERS}
        for batch in batches:
            data = make_batch(sizes, direction, batch, device)
            item = make_batch(sizes, direction, 1, device).x
            entries = steps.time_calls(
                {peer: training_step(deepcopy(model), data) for peer, model in models.items()},
                device, ours=PEERS[:-2], errors=errors[direction], direction=direction,
                size=batch, flops=flops(sizes, direction, batch),
                bytes_moved=4 * 7 * sum(p.numel() for p in models[BATCHED].parameters()),
                budget_s=budget_s,
            )  # fmt: skip
            for entry in entries:
                peer = entry["peer"]
                entry["kept_bytes"] = kept(sizes, direction, peer, batch, device)
                line = ledger[direction, peer]
                entry["largest_batch"] = largest_batch(models[peer], item, line)
                if sizes == Sizes():
                    entry["peak_bytes"] = peak_bytes(direction, peer, batch, device)
            results += entries
    return steps.make_record(
        NAME, TITLE.format(length=sizes.length), start, results,
        quick=sizes == QUICK, tolerance=TOLERANCE, sizes=sizes,
    )  # fmt: skip


def ledgers(sizes: Sizes, device: torch.device) -> dict[tuple[str, str], Line]:
    """What each peer keeps, by direction and peer.

    Raises:
        CheckFailed: It is not linear in the batch: a batch of eight is off the line.
    """
    found = {}
    for direction, _ in sizes.work:
        for peer in PEERS:
            line = found[direction, peer] = kept_line(sizes, direction, peer, device)
            there = kept(sizes, direction, peer, 8, device)
            if abs(there - line.at(8)) > sizes.linear * there:
                raise CheckFailed(
                    f"{NAME}: {peer}, {direction}: a batch of 8 keeps {there} bytes, the line "
                    f"through 2 and 4 says {line.at(8)}."
                )
    return found


def flops(sizes: Sizes, direction: str, batch: int) -> int:
    """The fewest, of batched attention: products forward, and twice as many backward."""
    n, width = sizes.length, sizes.width
    first = 2 * 4 * (width // 2) * (width + width // 2)
    second = (3 if direction in (GRU, WHOLE_GRU) else 4) * width * 2 * width
    a_step = first + second + 2 * width * width + width * sizes.classes + 2 * n * width
    if direction in (WHOLE_GRU, WHOLE_LSTM):
        one, two = sizes.channels
        a_step += 9 * (64 * one + 16 * one * two + 8 * two * width)  # rows x columns a step
    return 3 * 2 * batch * n * a_step


def memory_table(record: Record) -> str:
    """What is kept, as text: by each item, and how many items fit 8 GiB."""
    lines = [f"{'':16} {'n':>4}  {'peer':20} {'kept':>9} {'most in use':>12} {'fit 8 GiB':>10}"]
    for row in record["results"]:
        peak = "" if row["peak_bytes"] is None else as_bytes(row["peak_bytes"])
        lines.append(
            f"{row['direction']:16} {row['size']:>4}  {row['peer']:20} "
            f"{as_bytes(row['kept_bytes']):>9} {peak:>12} {row['largest_batch']:>10,}"
        )
    return "\n".join(lines)


def run_either(quick: bool, device: torch.device, budget_s: float) -> Record:
    """A quick run or a full one."""
    record = run(QUICK if quick else Sizes(), device, budget_s=min(budget_s, BUDGET_S))
    print(memory_table(record))
    return record


if __name__ == "__main__":
    sys.exit(steps.main(NAME, __doc__, run_either))
