"""Visit probabilities of monotonic paths: many-to-many, n rows; and one-to-many; and logarithms.

All take logits and give phi, or log phi in the cases of that name; what the source's loop is
compared with returns what it returns:

    "source's loop"             The source's vectorised form, in log space: rows of the one-to-many
                                grid, anti-diagonals of the other, found by index; its own
                                logaddexp of five operations; and its gradient by hand, in which
                                log(1 - p) is computed once more at each step. Its logaddexp is
                                NaN where nothing leads; there it starts from -1e4, as its kernel
                                does. It squeezes probabilities first, which is left out here.
    "source's loop, logaddexp"  The same with PyTorch's logaddexp, and -inf.
    "autograd"                  What a reader writes who leaves gradients to PyTorch: a loop over
                                time on our slanted grid, in probabilities.
    "autograd, logs"            The same in log space, from -1e4: PyTorch's gradient of logaddexp
                                is NaN where both terms are -inf.
    "Triton, time steps"        What the source's kernel does, a barrier a step; in probabilities.
    "most likely path" cases    The search for the best path, by ours, and by a loop in which the
                                maximum stands where "autograd, logs" has logaddexp. What is
                                checked is the log probability of the path.

Rows of the answer are grids: so many are compared with the reference in float64. In one-to-many
nodes that nothing can reach count as 0 in place of -inf, so that they can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.benchmarks.cases import BOTH, FORWARD, Case, Function, Peer, random_inputs
from attn_course.benchmarks.peers import interpreted, kernel_peer, no_triton
from attn_course.monotonic import best_path, many_to_many, one_to_many, scan
from attn_course.monotonic.fronts import LogVisits
from attn_course.monotonic.reference import STEPS

#: What the source takes for the logarithm of nothing.
FLOOR = -1e4

MANY, ONE = "many_to_many", "one_to_many"

#: Model -> size, the number of rows -> batch, rows and columns.
SHAPES = {
    MANY: {
        20: (2, 20, 15),
        64: (4, 64, 50),
        256: (16, 256, 200),
        1024: (16, 1024, 4096),
        2048: (16, 2048, 8192),
    },
    ONE: {
        20: (2, 20, 15),
        64: (4, 64, 20),
        1000: (32, 1000, 150),
        4096: (16, 4096, 1024),
        8192: (16, 8192, 2048),
    },
}


def inputs(model: str, size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Normally distributed logits."""
    return random_inputs([SHAPES[model][size]], device, seed=size)


def reached(x: Tensor, model: str) -> Tensor:
    """Which nodes something leads to, ``[I, J]``."""
    everywhere = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device)
    return everywhere if model == MANY else everywhere.tril()


def answer(log_phi: Tensor, model: str, log: bool) -> Tensor:
    """What a peer in log space returns."""
    return log_phi.where(reached(log_phi, model), 0.0) if log else log_phi.exp()


def expected(model: str, log: bool, inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """The reference, which tests hold against the sum over all paths, for some of the grids."""
    return answer(LogVisits.apply(inputs[0][rows], model), model, log)


def ours(device: torch.device, model: str, log: bool, impl: str) -> Function:
    """The package's function, through one implementation."""
    visit = many_to_many if model == MANY else one_to_many

    def call(x: Tensor) -> Tensor:
        phi = visit(x, log=log, impl=impl, validate=False)
        return phi.where(reached(x, model), 0.0) if log else phi

    return call


# The source's loop


def log_1mexp(x: Tensor) -> Tensor:
    """``log(1 - exp(x))``, as the source has it."""
    return (-x.expm1()).log()


def slope_of_log_1mexp(x: Tensor) -> Tensor:
    """Its derivative."""
    return 1 + 1 / x.expm1()


def own_logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """The source's: by stacking twice."""
    most = torch.stack((a, b), -1).amax(-1)
    return most + torch.stack(((a - most).exp(), (b - most).exp()), -1).sum(-1).log()


class SourceLoop(torch.autograd.Function):
    """log phi from log p, ``[batch, I, J]``: the source's vectorised loops and its gradients."""

    @staticmethod
    def forward(
        ctx: Any, log_p: Tensor, model: str, add: Callable[[Tensor, Tensor], Tensor], floor: float
    ) -> Tensor:
        """Remember what the gradient needs."""
        log_phi = (by_diagonals if model == MANY else by_rows)(log_p, add, floor)
        ctx.save_for_backward(log_p, log_phi)
        ctx.model = model
        return log_phi

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """From ``dL/dlog phi``, which is kept as it is."""
        log_p, log_phi = ctx.saved_tensors
        backward = diagonals_backward if ctx.model == MANY else rows_backward
        return backward(log_p, log_phi, grad.clone()), None, None, None


def diagonals(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rows and columns of the nodes of each anti-diagonal of ``[batch, I, J]``."""
    rows, columns = x.shape[1:]
    found = []
    for t in range(rows + columns - 1):
        i = torch.arange(max(0, t - columns + 1), min(t + 1, rows), device=x.device)
        found.append((i, t - i))
    return found


def by_diagonals(log_p: Tensor, add: Callable[[Tensor, Tensor], Tensor], floor: float) -> Tensor:
    """Many-to-many, forward."""
    border = (1, 0, 1, 0)
    padded = F.pad(log_p, border, value=-math.inf)
    padded_q = F.pad(log_1mexp(log_p), border, value=-math.inf)
    log_phi = torch.full_like(padded, -math.inf)
    log_phi[:, 1, 1] = 0
    for i, j in diagonals(log_p)[1:]:
        log_phi[:, i + 1, j + 1] = add(
            log_phi[:, i + 1, j] + padded[:, i + 1, j],
            log_phi[:, i, j + 1] + padded_q[:, i, j + 1],
        )
    return log_phi[:, 1:, 1:]


def diagonals_backward(log_p: Tensor, log_phi: Tensor, total: Tensor) -> Tensor:
    """Many-to-many, backward; ``total`` is overwritten."""
    grad = torch.zeros_like(log_p)
    total, log_phi = F.pad(total, (0, 1, 0, 1)), F.pad(log_phi, (0, 1, 0, 1))
    for i, j in reversed(diagonals(log_p)):
        here, p = log_phi[:, i, j], log_p[:, i, j]
        right = total[:, i, j + 1] * (here + p - log_phi[:, i, j + 1]).exp()
        down = total[:, i + 1, j] * (here + log_1mexp(p) - log_phi[:, i + 1, j]).exp()
        grad[:, i, j] = right + down * slope_of_log_1mexp(p)
        total[:, i, j] += right + down
    return grad


def by_rows(log_p: Tensor, add: Callable[[Tensor, Tensor], Tensor], floor: float) -> Tensor:
    """One-to-many, forward."""
    log_phi = torch.full_like(log_p, floor)
    log_phi[:, 0, 0] = 0
    for i in range(1, log_p.shape[1]):
        log_phi[:, i, 0] = log_phi[:, i - 1, 0] + log_p[:, i - 1, 0]
        log_phi[:, i, 1:] = add(
            log_phi[:, i - 1, 1:] + log_p[:, i - 1, 1:],
            log_phi[:, i - 1, :-1] + log_1mexp(log_p[:, i - 1, :-1]),
        )
    return log_phi


def rows_backward(log_p: Tensor, log_phi: Tensor, total: Tensor) -> Tensor:
    """One-to-many, backward; ``total`` is overwritten."""
    grad = torch.zeros_like(log_p)
    for i in range(log_p.shape[1] - 2, -1, -1):
        after = log_phi[:, i + 1].clamp_min(FLOOR)
        stay = total[:, i + 1] * (log_phi[:, i] + log_p[:, i] - after).exp()
        share = (log_phi[:, i, :-1] + log_1mexp(log_p[:, i, :-1]) - after[:, 1:]).exp()
        move = total[:, i + 1, 1:] * share
        grad[:, i] = stay
        grad[:, i, :-1] += move * slope_of_log_1mexp(log_p[:, i, :-1])
        total[:, i] += stay
        total[:, i, :-1] += move
    return grad


def source(device: torch.device, model: str, log: bool, plain: bool) -> Function:
    """The source's loop; ``plain`` is with its own logaddexp."""
    add, floor = (own_logaddexp, FLOOR) if plain else (torch.logaddexp, -math.inf)

    def call(x: Tensor) -> Tensor:
        return answer(SourceLoop.apply(F.logsigmoid(x), model, add, floor), model, log)

    return call


# A loop over time, with PyTorch's gradients


def autograd(device: torch.device, model: str, log: bool) -> Function:
    """A loop over time in probabilities."""

    def call(x: Tensor) -> Tensor:
        p, q = scan.lane_pair(x.sigmoid(), (-x).sigmoid(), model)
        now = torch.zeros_like(p[0])
        now[:, 0] = 1
        found = [now]
        for stay, move in zip(p[:-1].unbind(0), q[:-1, :, :-1].unbind(0), strict=True):
            now = now * stay + F.pad(now[:, :-1] * move, (1, 0))
            found.append(now)
        return scan.from_lanes(torch.stack(found), tuple(x.shape), model)

    return call


def log_loop(
    x: Tensor, model: str, join: Callable[[Tensor, Tensor], Tensor], floor: float
) -> Tensor:
    """A loop over time in log space, ``[batch, I, J]``."""
    log_p, log_q = scan.lane_pair(F.logsigmoid(x), F.logsigmoid(-x), model)
    now = torch.full_like(log_p[0], floor)
    now[:, 0] = 0
    found = [now]
    for stay, move in zip(log_p[:-1].unbind(0), log_q[:-1, :, :-1].unbind(0), strict=True):
        now = join(now + stay, F.pad(now[:, :-1] + move, (1, 0), value=floor))
        found.append(now)
    return scan.from_lanes(torch.stack(found), tuple(x.shape), model)


def autograd_logs(device: torch.device, model: str, log: bool) -> Function:
    """A loop over time in log space."""

    def call(x: Tensor) -> Tensor:
        return answer(log_loop(x, model, torch.logaddexp, FLOOR), model, log)

    return call


# The most likely path


def our_path(device: torch.device, model: str) -> Function:
    """The package's search: the path, and its log probability."""
    return lambda x: best_path(x, model=model, validate=False)[1]


def path_by_loop(device: torch.device, model: str) -> Function:
    """The loop with a maximum, and back along what won."""
    steps = STEPS[model]

    def call(x: Tensor) -> Tensor:
        best = log_loop(x, model, torch.maximum, -math.inf)
        log_steps = F.logsigmoid(x), F.logsigmoid(-x)
        item = torch.arange(len(x), device=x.device)
        i, j = (torch.full_like(item, size - 1) for size in x.shape[1:])
        visited = torch.zeros_like(x, dtype=torch.bool)
        visited[item, i, j] = True
        for _ in range(sum(x.shape[1:]) - 2 if model == MANY else x.shape[1] - 1):
            before = [(i - down, j - right) for down, right in steps]
            ways = [
                (best[item, a, b] + log_step[item, a, b]).where((a >= 0) & (b >= 0), -math.inf)
                for log_step, (a, b) in zip(log_steps, before, strict=True)
            ]
            by_p = ways[0] >= ways[1]
            i, j = (torch.where(by_p, a, b) for a, b in zip(*before, strict=True))
            visited[item, i, j] = True
        return best[:, -1, -1]

    return call


def expected_path(model: str, inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """The log probability of the best path that arrives, for some of the grids."""
    return log_loop(inputs[0][rows], model, torch.maximum, -math.inf)[:, -1, -1]


# The cases


def nodes(model: str, size: int) -> int:
    """Of all grids."""
    return math.prod(SHAPES[model][size])


def flops(model: str, size: int, direction: str) -> int:
    """A node costs 3, two products and their sum; backward 8: two of these, and the slope."""
    return nodes(model, size) * (3 if direction == FORWARD else 11)


def bytes_moved(model: str, size: int, direction: str) -> int:
    """Logits read, phi written; backward reads both and what comes in, and writes a gradient."""
    return 4 * nodes(model, size) * (2 if direction == FORWARD else 6)


def grids(model: str, size: int) -> int:
    """How many there are."""
    return SHAPES[model][size][0]


def sizes_of(model: str, directions: tuple[str, ...]) -> dict[str, Any]:
    """The sizes of a case, by device and direction."""
    _, quick, cpu, *larger = SHAPES[model]
    return {
        "sizes": {
            "cpu": {direction: (cpu,) for direction in directions},
            "cuda": {direction: (cpu, *larger) for direction in directions},
        },
        "quick_sizes": {direction: (quick,) for direction in directions},
    }


def time_steps(model: str) -> Peer:
    """A Triton loop over time."""

    def make(device: torch.device) -> Function:
        from attn_course.benchmarks.time_steps_kernel import TimeSteps

        return lambda x: TimeSteps.apply(x, model)

    return Peer("Triton, time steps", make, why_not=no_triton, why_untimed=interpreted)


def visits_case(model: str, log: bool, name: str, title: str) -> Case:
    """A model, in probabilities or in logarithms."""
    options: dict[str, Any] = {"model": model, "log": log}
    plain = () if log else (Peer("autograd", partial(autograd, **options)),)
    steps = () if log else (time_steps(model),)
    return Case(
        name=name,
        title=title,
        inputs=partial(inputs, model),
        expected=partial(expected, model, log),
        peers=(
            Peer("auto", partial(ours, **options, impl="auto"), ours=True),
            Peer("scan", partial(ours, **options, impl="scan"), ours=True, devices=("cuda",)),
            kernel_peer(partial(ours, **options, impl="triton")),
            Peer("reference", partial(ours, **options, impl="reference"), ours=True),
            Peer("source's loop", partial(source, **options, plain=True)),
            Peer("source's loop, logaddexp", partial(source, **options, plain=False)),
            *plain,
            Peer("autograd, logs", partial(autograd_logs, **options)),
            *steps,
        ),
        **sizes_of(model, (FORWARD, BOTH)),
        flops=partial(flops, model),
        bytes_moved=partial(bytes_moved, model),
        rows=partial(grids, model),
        max_rows=4,
        tiny=20,
    )


def path_case(model: str, name: str, title: str) -> Case:
    """The search for the most likely path."""
    return Case(
        name=name,
        title=title,
        inputs=partial(inputs, model),
        expected=partial(expected_path, model),
        peers=(
            Peer("auto", partial(our_path, model=model), ours=True),
            Peer("loop", partial(path_by_loop, model=model)),
        ),
        **sizes_of(model, (FORWARD,)),
        flops=partial(flops, model),
        bytes_moved=partial(bytes_moved, model),
        rows=partial(grids, model),
        max_rows=4,
        tiny=20,
    )


CASE = visits_case(MANY, False, "monotonic", "Many-to-many visit probabilities, n rows")

MORE = (
    visits_case(MANY, True, "monotonic_log", "Many-to-many, log visit probabilities, n rows"),
    visits_case(ONE, False, "monotonic_one", "One-to-many visit probabilities, n rows"),
    visits_case(ONE, True, "monotonic_one_log", "One-to-many, log visit probabilities, n rows"),
    path_case(MANY, "monotonic_path", "Many-to-many, the most likely path, n rows"),
    path_case(ONE, "monotonic_one_path", "One-to-many, the most likely path, n rows"),
)
