"""Checks of chapter 9's exercises.

Each check hands a student's function small inputs and holds what comes back against an
oracle in float64 and against what the likely mistakes would answer. 9.3's inputs are
layers, and 9.4's answers are in part a matter of chance, for which a seed is set. 9.6 looks
further: at who writes what, in which type, and at how much of the sum each program does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attn_course.exercises.framework import (
    Attempt,
    Case,
    Outcome,
    _is_stub_kernel,
    _short,
    describe,
    exercise,
)
from attn_course.exercises.kernels import device_for, guard, look_at_inputs
from attn_course.exercises.launches import Accesses, watch
from attn_course.exercises.linformer_cases import (
    _DIRECTIONS_CASES,
    _ENERGY_CASES,
    _LEAK_CASES,
    _LINFORMER_CASES,
    _MEASURED_CASES,
    _NEEDED_CASES,
    _PADDED_CASES,
    _SPLIT_CASES,
    _SPREAD_CASES,
    _SUSPECTS,
    PARTS,
    Suspect,
    _directions,
    _draw,
    _energy,
    _leaks,
    _linformer,
    _measured,
    _padded,
    _project,
    _slots_needed,
    _spread,
)
from attn_course.exercises.linformer_mistakes import (
    _ALONE,
    _APART,
    _CLUES,
    _DEPENDS_ON_N,
    _DIRECTIONS_MISTAKES,
    _DTYPE,
    _ENERGY_MISTAKES,
    _FROM_NAN,
    _HALF,
    _LEAK_MISTAKES,
    _LEFT,
    _LINFORMER_MISTAKES,
    _MEASURED_MISTAKES,
    _NEEDED_MISTAKES,
    _NOT_A_TABLE,
    _NOT_DRAWN,
    _NOTHING_STORED,
    _ONE_ANSWER,
    _ONE_DRAW,
    _PADDED_MISTAKES,
    _PYTORCH,
    _RACE,
    _REACHES_PAST,
    _READS_PAST,
    _SPLIT_MISTAKES,
    _SPREAD_MISTAKES,
    _WRITES_PAST,
)
from attn_course.exercises.seq2seq import _Allocations
from attn_course.exercises.several import verify_diagnosis

__all__ = [
    "Suspect",
    "check_causality",
    "check_distances",
    "check_linformer",
    "check_padding",
    "check_spectra",
    "check_split",
    "suspects",
    "tokens",
]


# 9.1 ---------------------------------------------------------------------------------


@exercise("9.1")
def check_linformer(attempt: Attempt, linformer: Callable[..., Tensor]) -> None:
    """Check 9.1, full attention changed into Linformer's.

    Args:
        attempt: Given by the decorator.
        linformer: (query ``[m, d]``, key ``[n, d]``, value ``[n, c]``, E ``[k, n]``, F_
            ``[k, n]``) -> ``[m, c]``.
    """
    attempt.verify(linformer, _LINFORMER_CASES, _linformer, _LINFORMER_MISTAKES)
    attempt.gradient(linformer, _LINFORMER_CASES[1].inputs, "E")


# 9.2 ---------------------------------------------------------------------------------


@exercise("9.2")
def check_padding(attempt: Attempt, padded: Callable[..., Tensor]) -> None:
    """Check 9.2, padding that does not get into the slots.

    Args:
        attempt: Given by the decorator.
        padded: (query ``[batch, m, d]``, key ``[batch, n, d]``, value ``[batch, n, c]``, E
            ``[k, n]``, F_ ``[k, n]``, lens ``[batch]``) -> ``[batch, m, c]``.
    """
    attempt.verify(padded, _PADDED_CASES, _padded, _PADDED_MISTAKES)
    attempt.gradient(padded, _PADDED_CASES[0].inputs, "key")


# 9.3 ---------------------------------------------------------------------------------


def suspects() -> dict[str, Suspect]:
    """Four layers for exercise 9.3, of which one is causal.

    Returns:
        Name -> a module that maps ``[8, 16]`` to ``[8, 16]``.

    Example:
        >>> suspects()["A"](tokens()).shape
        torch.Size([8, 16])
    """
    return {name: Suspect(fault, 8, seed=5) for name, fault in _SUSPECTS.items()}


def tokens() -> Tensor:
    """What to try the ``suspects`` on: eight positions of 16 numbers.

    Example:
        >>> tokens().shape
        torch.Size([8, 16])
    """
    return _draw(8, seed=6)


@exercise("9.3")
def check_causality(
    attempt: Attempt,
    leaks: Callable[..., Tensor],
    diagnosis: Callable[[], dict[str, str]],
) -> None:
    """Check 9.3, a test that finds what leaks from the future.

    Args:
        attempt: Given by the decorator.
        leaks: (layer, x ``[n, 16]``) -> booleans ``[n, n]``.
        diagnosis: () -> for each of ``suspects()`` the name of its fault, or ``"causal"``.
    """

    def outcome(case: Case) -> Outcome:
        layer, x = case.inputs.values()
        training, n = layer.training, len(x)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                result = attempt.call(leaks, case.inputs)
        finally:
            after = layer.training
            layer.train(training)
        if isinstance(result, bool) or (isinstance(result, Tensor) and result.ndim == 0 and n > 1):
            attempt.fail(_ONE_ANSWER.format(bool(result), n=n), leaks)
        if isinstance(result, Tensor):
            if result.dtype != torch.bool and not bool(((result == 0) | (result == 1)).all()):
                attempt.fail(_NOT_A_TABLE.format(_short(result.dtype), n=n), leaks)
            result = result.double()  # 0 and 1 are as good as booleans
        got = attempt.tensor(leaks, result, [n, n], describe(case.inputs))
        found = Outcome.of(case, _leaks, got)
        if after != training and torch.equal(found.got, found.expected):
            modes = {True: "in training", False: "in evaluation mode"}
            attempt.fail(_LEFT.format(modes[after], modes[training]), leaks)
        return found

    note = "(1 stands for True.)"
    attempt.judge_each(leaks, _LEAK_CASES, outcome, _LEAK_MISTAKES, note=note)
    verify_diagnosis(attempt, diagnosis, _SUSPECTS, _CLUES)


# 9.4 ---------------------------------------------------------------------------------


@exercise("9.4")
def check_distances(
    attempt: Attempt,
    spread: Callable[..., Any],
    slots_needed: Callable[..., Any],
    measured: Callable[..., Tensor],
) -> None:
    """Check 9.4, what a random projection does to distances.

    Args:
        attempt: Given by the decorator.
        spread: (k, n) -> the standard deviation of a squared distance's ratio.
        slots_needed: (points, n, error, failure) -> the least k.
        measured: (x ``[n]``, y ``[n]``, k, draws) -> mean and standard deviation, ``[2]``.
    """
    attempt.verify(spread, _SPREAD_CASES, _spread, _SPREAD_MISTAKES, atol=1e-6)

    def needed(case: Case) -> Tensor:
        result = attempt.call(slots_needed, case.inputs)
        result = result.double() if isinstance(result, Tensor) else result
        return attempt.tensor(slots_needed, result, [], describe(case.inputs))

    counts = [needed(case) for case in _NEEDED_CASES[:2]]
    if counts[0] != counts[1]:
        n, other = (case.inputs["n"] for case in _NEEDED_CASES[:2])
        more, less = map(float, counts)
        attempt.fail(_DEPENDS_ON_N.format(n, more, other, less), slots_needed)
    attempt.judge_each(
        slots_needed,
        _NEEDED_CASES,
        lambda case: Outcome.of(case, _slots_needed, needed(case)),
        _NEEDED_MISTAKES,
        rtol=1e-6,
    )

    found: dict[int, list[Tensor]] = {}

    def outcome(case: Case) -> Outcome:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            result = attempt.call(measured, case.inputs)
        if isinstance(result, tuple | list) and len(result) == 2:
            result = torch.tensor([float(part) for part in result], dtype=torch.float64)
        got = attempt.tensor(measured, result, [2], describe(case.inputs))
        if abs(float(got[1])) < 1e-4 * abs(float(got[0])):
            attempt.fail(_ONE_DRAW, measured)
        # Even a generator that starts alike each time finds other numbers for other points.
        alike = found.setdefault(case.inputs["k"], [])
        if any(torch.equal(got, other) for other in alike):
            attempt.fail(_NOT_DRAWN, measured)
        alike.append(got)
        return Outcome.of(case, _measured, got)

    note = "(The mean, and the standard deviation.)"
    attempt.judge_each(
        measured, _MEASURED_CASES, outcome, _MEASURED_MISTAKES, rtol=0.1, atol=0.0, note=note
    )


# 9.5 ---------------------------------------------------------------------------------


@exercise("9.5")
def check_spectra(
    attempt: Attempt, energy: Callable[..., Tensor], directions: Callable[..., Any]
) -> None:
    """Check 9.5, how many directions attention needs.

    Args:
        attempt: Given by the decorator.
        energy: (query ``[heads, n, d]``, key ``[heads, n, d]``) -> ``[n]``.
        directions: (held ``[n]``, share) -> how many directions hold it.
    """
    attempt.verify(energy, _ENERGY_CASES, _energy, _ENERGY_MISTAKES)

    def outcome(case: Case) -> Outcome:
        result = attempt.call(directions, case.inputs)
        result = result.double() if isinstance(result, Tensor) else result
        got = attempt.tensor(directions, result, [], describe(case.inputs))
        return Outcome.of(case, _directions, got)

    attempt.judge_each(directions, _DIRECTIONS_CASES, outcome, _DIRECTIONS_MISTAKES)


# 9.6 ---------------------------------------------------------------------------------


class _Products(_Allocations):
    """Also whether PyTorch multiplies matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplied = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = str(function)
        self.multiplied |= any(word in name for word in ("aten.mm", "aten.bmm", "aten.addmm"))
        return super().__torch_dispatch__(function, types, args, kwargs)


@exercise("9.6")
def check_split(attempt: Attempt, kernel: Any, project: Callable[..., Tensor]) -> None:
    """Check 9.6, one sum for four programs.

    Args:
        attempt: Given by the decorator.
        kernel: A ``@triton.jit`` function that ``project`` launches.
        project: (matrix ``[k, n]``, x ``[n, d]``, block_k, block_n) -> ``[k, d]``.
    """
    device = device_for(attempt, kernel)
    if _is_stub_kernel(kernel):
        with attempt.watching(kernel, {}):
            raise NotImplementedError
    alone: list[str] = []

    def outcome(case: Case) -> Outcome:
        matrix, x, block_k, block_n = case.inputs.values()
        (k, n), d = matrix.shape, x.shape[1]
        seen = (
            f"Seen with {case.name}: {k} slots, {n} positions, {d} columns, {_short(x.dtype)}, "
            f"block_k = {block_k}, block_n = {block_n}."
        )
        given = [guard(matrix, device), guard(x, device)]
        products = _Products()
        with attempt.watching(project, case.inputs), products, watch() as accesses:
            result = project(given[0].tensor, given[1].tensor, block_k, block_n)
        inputs = [guarded.tensor for guarded in given]
        if products.multiplied:
            attempt.fail(f"{_PYTORCH}\n{seen}", project)
        _look_at(attempt, kernel, accesses, inputs, products.made, PARTS * k * d, seen)
        look_at_inputs(attempt, project, given, seen)
        alone.extend(f"{said}\n{seen}" for said in _alone(accesses, inputs[1], block_n))
        if isinstance(result, Tensor) and result.ndim == 3 and result.shape[1:] == (k, d):
            attempt.fail(f"{_APART.format(list(result.shape))}\n{seen}", project)
        got = attempt.tensor(project, result, [k, d], describe(case.inputs))
        if bool(got.isnan().any()):
            attempt.fail(f"{_FROM_NAN}\n{seen}", project)
        if result.dtype != x.dtype:
            found = Outcome.of(case, _project, got)
            attempt.judge(project, [found], _SPLIT_MISTAKES)
            attempt.fail(f"{_DTYPE.format(_short(result.dtype), _short(x.dtype))}\n{seen}", project)
        return Outcome.of(case, _project, got)

    attempt.judge_each(project, _SPLIT_CASES, outcome, _SPLIT_MISTAKES)
    if alone:
        attempt.fail(alone[0], kernel)


def _spans(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors]


def _look_at(
    attempt: Attempt,
    kernel: Any,
    accesses: Accesses,
    inputs: list[Tensor],
    made: list[Tensor],
    size: int,
    seen: str,
) -> None:
    """Fail unless programs read and write known memory, each place one program's own.

    ``size`` is how many numbers all parts have together.
    """
    if not accesses.recorded:
        return
    if not accesses.stores:
        attempt.fail(f"{_NOTHING_STORED}\n{seen}", kernel)
    known = [tensor for tensor in (*inputs, *made) if tensor.is_contiguous()]
    if accesses.outside(*known):
        attempt.fail(f"{_READS_PAST}\n{seen}", kernel)
    spans = _spans(known)
    owner: dict[int, tuple[int, ...]] = {}
    for program, addresses in accesses.stores:
        for address in addresses:
            if not any(start <= address < stop for start, stop in spans):
                attempt.fail(f"{_WRITES_PAST}\n{seen}", kernel)
            first = owner.setdefault(address, program)
            if first != program:
                both = [p[:2] for p in (first, program)]
                said = _REACHES_PAST if _unmasked(accesses, (first, program), size) else _RACE
                attempt.fail(f"{said.format(*both)}\n{seen}", kernel)
    for tensor, (start, stop) in zip(known, spans, strict=True):
        if tensor.element_size() < 4 and any(start <= address < stop for address in owner):
            attempt.fail(f"{_HALF}\n{seen}", kernel)


def _unmasked(accesses: Accesses, both: tuple[Any, Any], size: int) -> bool:
    """Whether two programs meet because stores write more than there is to be written.

    Programs that take one place for their own write the same addresses, or no more than
    ``size`` all together.
    """
    written: dict[tuple[int, ...], set[int]] = {}
    for program, addresses in accesses.stores:
        written.setdefault(program, set()).update(addresses)
    one, other = (written[program] for program in both)
    return one != other and sum(map(len, written.values())) > size


def _alone(accesses: Accesses, x: Tensor, block: int) -> list[str]:
    """What to say of programs that read more than a part of the positions, and a tile."""
    n, d = x.shape
    first, row = x.data_ptr(), x.element_size() * d
    rows: dict[tuple[int, ...], set[int]] = {}
    for program, addresses in accesses.loads:
        found = {(address - first) // row for address in addresses}
        rows.setdefault(program[:2], set()).update(i for i in found if 0 <= i < n)
    most = max(-(-n // PARTS) + block, n // 2)
    return [
        _ALONE.format(program, len(read), n) for program, read in rows.items() if len(read) > most
    ]
