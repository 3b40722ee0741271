"""Linformer on long sequences: a README's example, ours and the published package's.

``python -m attn_course.benchmarks.linformer_long [--quick] [--output DIR] [--device D]``

Every number is measured in a process of its own: the median time of a call, and the most
memory in use in its first one beside what was in use before. A step is forward and backward,
in training mode. What is measured, by ``direction``:

    example               a step of the README's model, with its dropout, over the length n
    example, no dropout   the same without, at the largest n
    example, forward      without autograd, at 1.23 million tokens
    over depth, heads     a step with each checkpoint level; ``kept_bytes`` is what autograd
                          keeps, by the ledger of chapter 8
    autocast              a step in float32, and under autocast to bfloat16
    over d, over k        a step of ``linformer_attention`` alone, over the width of a head and
                          over the number of slots: ``exponent`` tells how time and memory grow

The package is ``linformer-pytorch`` (pip install --no-deps linformer-pytorch); where it cannot
be imported the record says so under ``package``, and ours stand alone.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attn_course.benchmarks import environment, memory, steps
from attn_course.benchmarks.clock import summarise
from attn_course.benchmarks.plot import as_bytes
from attn_course.benchmarks.results import Record
from attn_course.benchmarks.verify import MEASURED, Result
from attn_course.linformer import compat, linformer_attention
from attn_course.long_sequences import memory_ledger

NAME = "linformer_long"
TITLE = "Linformer of a README's example on long sequences"
OURS, PACKAGE = "attn_course", "linformer-pytorch"
LEVELS = ("C0", "C1", "C2")
EXAMPLE, NO_DROPOUT, FORWARD = "example", "example, no dropout", "example, forward"
DEPTH, HEADS, AUTOCAST, WIDTH, SLOTS = "over depth", "over heads", "autocast", "over d", "over k"
FLOAT, HALF = "float32", "bfloat16"
DOES_NOT_FIT = "does not fit"

#: The largest error allowed in outputs and gradients, over the largest number there is.
TOLERANCE = 1e-4
#: Where products are computed in bfloat16, which has 8 bits.
HALF_TOLERANCE = 0.2
BUDGET_S = 6.0

#: Calls of each that are timed, at most.
MOST = 5

#: From how many bytes on the system is asked for a block: for its memory to be counted, and
#: in calls that are timed, where it is the most that glibc gets to by itself.
MAPPED, MAPPED_IN_CALLS = 1 << 16, 1 << 25


@dataclass(frozen=True)
class Sizes:
    """How large everything is; the first five are the README's."""

    channels: int = 64
    head_dim: int = 256
    projected_len: int = 128
    hidden: int = 128
    lengths: tuple[int, ...] = (16_384, 32_768, 65_536, 131_072, 262_144)
    longest: int = 1_230_000
    #: Of the steps over depth and heads; heads there are narrower than a token.
    level_length: int = 16_384
    level_head_dim: int = 32
    counts: tuple[int, ...] = (1, 2, 4, 8)
    #: Of attention alone, with four heads.
    attention_length: int = 16_384
    attention_head_dim: int = 64
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    slots: tuple[int, ...] = (32, 64, 128, 256, 512)
    check_length: int = 512


QUICK = Sizes(
    channels=8, head_dim=16, projected_len=4, hidden=8, lengths=(24, 48), longest=60,
    level_length=24, level_head_dim=4, counts=(1, 2), attention_length=24,
    attention_head_dim=8, widths=(4, 8), slots=(2, 4), check_length=20,
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Attributes:
        direction: As in the record, and so the next two.
        peer: The package, a checkpoint level, a type of numbers or an implementation.
        size: How large that is which is varied.
        length: Of the sequence.
        heads: How many.
        head_dim: Width of each.
        projected_len: Slots.
        depth: Layers; 0: attention alone.
        channels: Width of a token.
        hidden: Width of the feed-forward networks.
        level: Of the checkpoints.
        dropout: Whether with the README's.
        backward: Whether a step, not only forward.
        half: Whether under autocast to bfloat16.
        impl: Of attention alone.
        package: Whether the published package is measured.
    """

    direction: str
    peer: str
    size: int
    length: int
    heads: int
    head_dim: int
    projected_len: int
    depth: int
    channels: int
    hidden: int
    level: str = "C0"
    dropout: bool = False
    backward: bool = True
    half: bool = False
    impl: str = "auto"
    package: bool = False


class Measured(NamedTuple):
    """What a process found."""

    seconds: list[float]
    peak_bytes: int | None
    kept_bytes: int | None


def package_version() -> str | None:
    """Of the published package; ``None`` where there is none."""
    try:
        importlib.import_module("linformer_pytorch")
        return version("linformer-pytorch")
    except (ImportError, PackageNotFoundError):
        return None


def jobs(sizes: Sizes, *, package: bool) -> list[Job]:
    """All that is measured.

    Args:
        sizes: How large everything is.
        package: Whether the published package is there to be measured as well.
    """
    example = Job(
        EXAMPLE, OURS, 0, 0, heads=4, head_dim=sizes.head_dim, depth=2, dropout=True,
        projected_len=sizes.projected_len, channels=sizes.channels, hidden=sizes.hidden,
    )  # fmt: skip
    found = [replace(example, size=n, length=n) for n in sizes.lengths]
    last = found[-1]
    found.append(replace(last, direction=NO_DROPOUT, dropout=False))
    n = sizes.longest
    found.append(replace(last, direction=FORWARD, size=n, length=n, backward=False))

    level = replace(
        example, length=sizes.level_length, head_dim=sizes.level_head_dim, dropout=False
    )
    ends = (sizes.counts[0], sizes.counts[-1])
    levels = []
    for name in LEVELS:
        for count in sizes.counts:
            levels += [
                replace(level, direction=DEPTH, peer=name, level=name, size=count, depth=count),
                replace(level, direction=HEADS, peer=name, level=name, size=count, heads=count),
            ]
    theirs = [replace(job, peer=PACKAGE) for job in found]
    theirs += [replace(j, peer=f"{j.peer}, {PACKAGE}") for j in levels if j.size in ends]
    found += levels
    if package:
        found += [replace(job, package=True) for job in theirs]

    n = sizes.lengths[0]
    for peer in (FLOAT, HALF):
        cast = replace(example, direction=AUTOCAST, peer=peer, size=n, length=n, dropout=False)
        found.append(replace(cast, half=peer == HALF))

    alone = replace(
        level, depth=0, length=sizes.attention_length, head_dim=sizes.attention_head_dim
    )
    for impl in ("auto", "reference"):
        here = replace(alone, peer=impl, impl=impl)
        found += [replace(here, direction=WIDTH, size=d, head_dim=d) for d in sizes.widths]
        found += [replace(here, direction=SLOTS, size=k, projected_len=k) for k in sizes.slots]
    order = {name: i for i, name in enumerate(dict.fromkeys(job.direction for job in found))}
    return sorted(found, key=lambda job: (order[job.direction], job.size))


def make_model(job: Job) -> nn.Module:
    """A Linformer, ours or the package's, in training mode."""
    torch.manual_seed(0)
    theirs: Any = importlib.import_module("linformer_pytorch") if job.package else compat
    model: nn.Module = theirs.Linformer(
        input_size=job.length, channels=job.channels, dim_d=job.head_dim,
        dim_k=job.projected_len, dim_ff=job.hidden, nhead=job.heads, depth=job.depth,
        dropout_ff=0.15 if job.dropout else 0.0, dropout=0.1 if job.dropout else 0.0,
        activation="gelu", checkpoint_level=job.level,
    )  # fmt: skip
    return model.train(job.backward)


def make_call(job: Job, device: torch.device) -> Callable[[], Tensor]:
    """What computes the output, or for a step a sum of it with random weights.

    A sum, or one of squares, would not do: that of a row that has been normalised does not
    change, and its gradients would be rounding alone.
    """
    draw = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(device).requires_grad_(job.backward)

    if not job.depth:
        query, key, value = (random(1, job.heads, job.length, job.head_dim) for _ in range(3))
        projections = [random(job.projected_len, job.length) for _ in range(2)]
        with torch.no_grad():
            for projection in projections:
                projection.mul_(job.length**-0.5)
        incoming = torch.randn(value.shape, generator=draw).to(device)
        return lambda: (
            linformer_attention(query, key, value, *projections, impl=job.impl).mul(incoming).sum()
        )
    model = make_model(job).to(device)
    tokens = random(1, job.length, job.channels)
    weights = torch.randn(tokens.shape, generator=draw).to(device)

    def forward() -> Tensor:
        with _precision(job, device), torch.set_grad_enabled(job.backward):
            output: Tensor = model(tokens)
        return output.mul(weights).sum() if job.backward else output

    return forward


def _precision(job: Job, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if job.half else nullcontext()


def measure(job: Job, device: torch.device, budget_s: float) -> Measured:
    """Measure in this process; peaks mean nothing where others have been measured in it.

    Args:
        job: What to measure.
        device: Where.
        budget_s: Seconds for the calls that are timed, of which there is at least one.
    """
    forward = make_call(job, device)

    def call() -> None:
        result = forward()
        if job.backward:
            result.backward()

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def seconds() -> float:
        start = time.perf_counter()
        call()
        wait()
        return time.perf_counter() - start

    _map_blocks_of(MAPPED)
    peak = _Peak(device)
    estimate = seconds()  # with the gradients, which are there from now on
    found = peak.bytes()
    _map_blocks_of(MAPPED_IN_CALLS)
    repeats = int(min(max(budget_s / estimate, 1), MOST))
    taken = [seconds() for _ in range(repeats)]
    kept = None
    if job.direction in (DEPTH, HEADS):
        with memory_ledger() as ledger:
            forward()
        kept = ledger.total
    return Measured(taken, found, kept)


def _map_blocks_of(size: int) -> None:
    """Let glibc take blocks of so many bytes from the system, and give each back when it is free.

    What it keeps of smaller ones for later lies in holes, and would count as memory in use.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(-3, size)  # M_MMAP_THRESHOLD


class _Peak:
    """The most memory in use since it was made, beside what was in use then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        elif self.told:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
            self.before = memory.process_status("VmRSS")

    @property
    def told(self) -> bool:
        """Whether this system tells it of a CPU."""
        return Path("/proc/self/status").exists()

    def bytes(self) -> int | None:
        """How many."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return max(memory.process_status("VmHWM") - self.before, 0) if self.told else None


def measure_apart(job: Job, device: torch.device, budget_s: float) -> Measured | None:
    """Measure in a process of its own; ``None``: it asked for more memory than there is.

    Raises:
        RuntimeError: It failed otherwise.
    """
    code = f"from {__spec__.name} import print_measured; print_measured()"
    told = json.dumps([asdict(job), device.type, budget_s])
    run = subprocess.run([sys.executable, "-c", code, told], capture_output=True, text=True)
    if run.returncode == -9 or "out of memory" in run.stderr or "can't allocate" in run.stderr:
        return None
    if run.returncode:
        raise RuntimeError(f"measuring {job.direction}, {job.peer}: {run.stderr[-500:]}")
    return Measured(*json.loads(run.stdout.splitlines()[-1]))


def print_measured() -> None:
    """What the process does."""
    options, kind, budget_s = json.loads(sys.argv[1])
    job, device = Job(**options), torch.device(kind)
    with suppress(OSError):  # if memory runs out, this process is to end, and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
    small = replace(job, length=2 * job.projected_len, depth=min(job.depth, 1))
    measure(small, device, 0.0)  # loads what is loaded lazily
    print(json.dumps(measure(job, device, budget_s)))


def answers(forward: Callable[[], Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """An output, and the gradients that a random one of it gives."""
    output = forward()
    draw = torch.Generator().manual_seed(3)
    incoming = torch.randn(output.shape, generator=draw).to(output)
    return [output, *torch.autograd.grad(output, inputs, incoming)]


def check(sizes: Sizes, device: torch.device, *, package: bool) -> dict[str, float]:
    """The error of each peer at a small size, in output and all gradients, by its name.

    Exact is, in float64 and on the CPU, ours with ``impl="reference"``; of the package's
    gradients that of the input is compared. Checkpoint levels are checked with dropout, from
    the same seed: what they compute again must drop the same.

    Raises:
        CheckFailed: An error is over its tolerance.
    """
    n, cpu = sizes.check_length, torch.device("cpu")
    first = next(iter(jobs(sizes, package=False)))
    job = replace(first, size=n, length=n, dropout=False)
    plain: Any = make_model(job)
    x = torch.randn(1, n, sizes.channels, generator=torch.Generator().manual_seed(1))
    theirs: Any = None
    if package:
        theirs = make_model(replace(job, package=True))
        compat.load_published(plain, theirs)
    state = plain.state_dict()

    def of(model: nn.Module, x: Tensor, *, half: bool = False) -> list[Tensor]:
        x = x.detach().requires_grad_()

        def forward() -> Tensor:
            torch.manual_seed(0)  # the same is dropped
            with _precision(replace(job, half=half), x.device):
                output: Tensor = model(x)
            return output.to(torch.promote_types(output.dtype, torch.float32))

        return answers(forward, [x] if model is theirs else [x, *model.parameters()])

    def ours(level: str = "C0", dropout: bool = False, impl: str = "auto") -> nn.Module:
        model: Any = make_model(replace(job, level=level, dropout=dropout))
        model.load_state_dict(state)
        for block in model.blocks:
            block.attention.impl = impl
        made: nn.Module = model
        return made

    exact = of(ours(impl="reference").double(), x.double())
    errors = {
        OURS: steps.largest_error(of(ours().to(device), x.to(device)), exact),
        HALF: steps.largest_error(of(ours().to(device), x.to(device), half=True), exact),
    }
    errors[FLOAT] = errors[OURS]
    if package:
        found = of(theirs.to(device), x.to(device))
        errors[PACKAGE] = steps.largest_error(found, exact[:2])
    dropped = of(ours(dropout=True).double(), x.double())
    for level in LEVELS:
        model = ours(level, dropout=True).double()
        errors[level] = steps.largest_error(of(model, x.double()), dropped)

    alone = next(j for j in jobs(sizes, package=False) if j.direction == WIDTH)
    draw = torch.Generator().manual_seed(2)
    qkv = [torch.randn(1, alone.heads, n, alone.head_dim, generator=draw) for _ in range(3)]
    E, F = (torch.randn(sizes.projected_len, n, generator=draw) * n**-0.5 for _ in range(2))

    def attend(impl: str, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        tensors = [t.to(device, dtype).requires_grad_() for t in (*qkv, E, F)]
        return answers(lambda: linformer_attention(*tensors, impl=impl), tensors)

    truth = attend("reference", cpu, torch.float64)
    for impl in ("auto", "reference"):
        errors[impl] = steps.largest_error(attend(impl, device, torch.float32), truth)
    for peer, error in errors.items():
        allowed = HALF_TOLERANCE if peer == HALF else TOLERANCE
        steps.refuse_above(allowed, error, f"{NAME}: {peer}")
    return errors


def run(sizes: Sizes, device: torch.device, *, budget_s: float = BUDGET_S) -> Record:
    """Check, then measure.

    Args:
        sizes: How large everything is; those of ``QUICK`` are measured in this process, and
            their peaks are not.
        device: Where.
        budget_s: Seconds for each job.

    Returns:
        A record as ``python -m attn_course.benchmarks`` stores them; its entries have
        ``kept_bytes`` as well, and it tells the version of the ``package``.

    Raises:
        CheckFailed: An answer is wrong. Nothing was timed.
    """
    published = package_version()
    package = published is not None
    errors = check(sizes, device, package=package)
    start = environment.describe(device)
    results = []
    for job in jobs(sizes, package=package):
        found: Measured | None
        if sizes == QUICK:
            found = measure(job, device, budget_s)._replace(peak_bytes=None)
        else:
            found = measure_apart(job, device, budget_s)
        entry = Result(job.peer, not job.package, job.direction, job.size)
        entry.max_error = errors[PACKAGE if job.package else job.peer]
        if found is None:
            entry.status, entry.reason = DOES_NOT_FIT, "it asks for more memory than there is"
        else:
            entry.status, entry.repeats = MEASURED, len(found.seconds)
            entry.peak_bytes = found.peak_bytes
            for key, value in summarise(found.seconds).items():
                setattr(entry, key, value)
        results.append(
            asdict(entry)
            | {"flops": flops(job), "bytes_moved": bytes_moved(job)}
            | {"kept_bytes": None if found is None else found.kept_bytes}
        )
        if sizes != QUICK:
            print(_line(results[-1]), flush=True)
    record = steps.make_record(
        NAME, TITLE, start, results, quick=sizes == QUICK, tolerance=TOLERANCE, sizes=sizes
    )
    return record | {"package": published or "not installed"}


def flops(job: Job) -> int:
    """The fewest: products of a pass, and twice as many backward.

    A projection that all heads share is of tokens, once; queries and answers of the width of
    a head need not be made where that is the wider.
    """
    n, k, d, c, h = job.length, job.projected_len, job.head_dim, job.channels, job.heads
    if not job.depth:
        products = 4 * n * k * d * h
    else:
        maps = 0 if d >= c else 2 * n * c * d * h
        attention = 2 * n * k * h * min(c, d)
        products = job.depth * (n * k * c + maps + attention + 2 * n * c * job.hidden)
    return 2 * products * (3 if job.backward else 1)


def bytes_moved(job: Job) -> int:
    """The fewest: what comes, what goes and the projection, and backward their gradients."""
    n, k, d, c, h = job.length, job.projected_len, job.head_dim, job.channels, job.heads
    numbers = 2 * n * c + n * k if job.depth else 4 * n * d * h + 2 * n * k
    return 4 * numbers * (2 if job.backward else 1)


def exponent(record: Record, direction: str, peer: str, key: str = "median_s") -> float:
    """How a number grows with the size: p, if it grows as size to the p.

    Args:
        record: A stored run.
        direction: What is varied.
        peer: Whose.
        key: ``"median_s"``, ``"peak_bytes"`` or ``"kept_bytes"``.

    Returns:
        The slope of the line of least squares through the logarithms.

    Example:
        >>> row = {"direction": "over d", "peer": "auto", "status": "measured"}
        >>> rows = [row | {"size": n, "median_s": 3.0 * n**2} for n in (10, 20, 40)]
        >>> round(exponent({"results": rows}, "over d", "auto"), 3)
        2.0
    """
    rows = [
        row for row in record["results"]
        if (row["direction"], row["peer"], row["status"]) == (direction, peer, MEASURED)
    ]  # fmt: skip
    x, y = (torch.tensor([math.log(row[k]) for row in rows]).double() for k in ("size", key))
    x = x - x.mean()
    return ((x * y).sum() / x.square().sum()).item()


def _line(row: Record) -> str:
    """A result as text, while others are measured."""
    about = f"{row['direction']:20} {row['size']:>9,}  {row['peer']:22}"
    if row["status"] != MEASURED:
        return f"{about} {row['status']}: {row['reason']}"
    told = [f"{row['median_s']:8.3f} s"]
    for key, name in (("peak_bytes", "most in use"), ("kept_bytes", "kept")):
        if row[key] is not None:
            told.append(f"{name} {as_bytes(row[key]):>9}")
    return f"{about} {', '.join(told)}"


def run_either(quick: bool, device: torch.device, budget_s: float) -> Record:
    """A quick run or a full one."""
    return run(QUICK if quick else Sizes(), device, budget_s=min(budget_s, BUDGET_S))


if __name__ == "__main__":
    sys.exit(steps.main(NAME, __doc__, run_either))
