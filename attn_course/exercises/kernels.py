"""What checks of kernels share: guarded memory, and a look at what a launch did.

The numbers of an interpreted launch can be right although a program reads past the end of
a tensor, or writes what is another program's. So inputs and output lie in memory with
something bad behind their end, and the record of ``watch`` is read before the numbers are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_course import _triton
from attn_course.exercises.framework import Attempt, Skipped, _same
from attn_course.exercises.launches import Accesses

#: Numbers behind the end of a guarded tensor. What is interpreted writes wherever it is told
#: to: with little room a wrong stride or mask would reach Python's own memory, and end it.
BEHIND = 1 << 13


class Guarded(NamedTuple):
    """A tensor with something bad behind its end: who reads on, shows it.

    Attributes:
        tensor: What a kernel gets, contiguous.
        memory: The same numbers flat, and those behind them: NaN, or a large integer.
        source: What it is a copy of.
    """

    tensor: Tensor
    memory: Tensor
    source: Tensor


class Words(NamedTuple):
    """What to say of a launch that went wrong; each a question or a nudge.

    Attributes:
        outside: A load reads what belongs to no tensor.
        foreign: A program writes what is another's; goes on after "is not its own.".
        nan: The answer is NaN; goes on after "the answer is NaN.". Empty: NaN is not
            looked for, since the exercise's mistakes tell one NaN from another.
        missing: Nothing is written somewhere; goes on after "is never written.".
    """

    outside: str
    foreign: str
    nan: str = ""
    missing: str = "Where does the program store its answer?"


def device_for(attempt: Attempt, kernel: Any) -> str:
    """Where the student's kernel can run.

    Args:
        attempt: The check's.
        kernel: What the student wrote.

    Returns:
        ``"cpu"`` if kernels are interpreted, else ``"cuda"``.

    Raises:
        Skipped: There is no triton here.
        CheckFailed: It is not a kernel.
    """
    if not _triton.AVAILABLE:
        raise Skipped(f"needs triton: {_triton.REASON}.")
    if not hasattr(kernel, "fn"):
        attempt.fail("it is not a kernel: is `@triton.jit` still above it?", kernel)
    return _triton.kernel_device()


def guard(tensor: Tensor, device: str = "cpu") -> Guarded:
    """Copy a tensor to where its end is guarded.

    Args:
        tensor: Any shape; floating-point numbers or integers.
        device: Where to.

    Returns:
        The copy, and the memory that it lies in.

    Example:
        >>> guard(torch.ones(2, 3)).memory[:8]
        tensor([1., 1., 1., 1., 1., 1., nan, nan])
    """
    bad = torch.nan if tensor.is_floating_point() else 1 << 20
    memory = torch.cat([tensor.flatten(), tensor.new_full((BEHIND,), bad)]).to(device)
    return Guarded(memory[: tensor.numel()].view(tensor.shape), memory, tensor)


def blank(shape: Sequence[int], device: str = "cpu") -> Guarded:
    """An output to be written: NaN throughout.

    Args:
        shape: Its shape.
        device: Where.
    """
    return guard(torch.full(tuple(shape), torch.nan), device)


def look_at_inputs(attempt: Attempt, kernel: Any, inputs: Sequence[Guarded], seen: str) -> None:
    """Fail if an input is not what it was before the launch."""
    if not all(_same(given.tensor.cpu(), given.source.cpu()) for given in inputs):
        attempt.fail(
            "an input is not what it was before: a caller's tensor is the caller's. What is "
            f"written to it, and where does the answer belong?\n{seen}",
            kernel,
        )


def look(
    attempt: Attempt,
    kernel: Any,
    accesses: Accesses,
    inputs: Sequence[Guarded],
    output: Guarded,
    *,
    owner: Callable[[int], tuple[int, int, int]],
    words: Words,
    seen: str,
) -> Tensor:
    """What a launch wrote, once it is known to be that launch's to write.

    Args:
        attempt: The check's.
        kernel: What the student wrote.
        accesses: What ``watch`` recorded of the launch; on a GPU, nothing.
        inputs: All that the kernel may read.
        output: What it is to write, from ``blank``.
        owner: Place in the flat output -> the program, by its index in the grid, that
            alone may write it.
        words: What to say.
        seen: The launch in a few words, the last line of a message.

    Returns:
        The output in float64, on the CPU.

    Raises:
        CheckFailed: A load reads past an end, an input has changed, a program writes what
            is not its own, a place is never written, or NaN where ``words`` has something
            to say of it.
    """
    if accesses.outside(*(given.memory[: given.tensor.numel()] for given in inputs), output.memory):
        attempt.fail(f"{words.outside}\n{seen}", kernel)
    look_at_inputs(attempt, kernel, inputs, seen)
    size = output.tensor.numel()
    writers = accesses.writers(output.memory)
    foreign = [
        (place, program)
        for place, programs in enumerate(writers)
        for program in programs
        if place >= size or program != owner(place)
    ]
    if foreign or not bool(output.memory[size:].isnan().all()):
        what = ""
        if foreign:
            place, program = foreign[0]
            number = program if any(program[1:]) else program[0]
            what = f"Program {number} wrote output {_place(place, output.tensor)}. "
        attempt.fail(
            f"a program writes an output that is not its own. {what}{words.foreign}\n{seen}",
            kernel,
        )
    if accesses.recorded and not all(writers[:size]):
        missing = _place(writers[:size].index([]), output.tensor)
        attempt.fail(
            f"output {missing} is never written. {words.missing}\n{seen}",
            kernel,
        )
    got = output.tensor.cpu().double()
    if words.nan and bool(got.isnan().any()):
        attempt.fail(f"the answer is NaN. {words.nan}\n{seen}", kernel)
    return got


def _place(flat: int, tensor: Tensor) -> str:
    """A place in a tensor, as an index; behind its end, as in flat memory."""
    if tensor.ndim == 1 or flat >= tensor.numel():
        return str(flat)
    return str([int(i) for i in torch.unravel_index(torch.tensor(flat), tensor.shape)])
