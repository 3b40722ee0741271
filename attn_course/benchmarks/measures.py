"""What a cell of a notebook measures: time, memory, right answers, likeness, a kernel's answer.

For a look in passing, on a CPU. The stored runs take more care: see ``measure`` in
``clock``, and ``memory``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from attn_course import _triton
from attn_course._validation import check_counts, check_floating, check_rank, check_tensor
from attn_course.benchmarks.clock import cpu_timer
from attn_course.long_sequences import memory_ledger


def median_ms(call: Callable[[], object], *, repeats: int = 9) -> float:
    """The milliseconds that a call takes on a CPU, the median of some.

    A first call is not counted: it may load, compile or allocate what later ones find there.

    Args:
        call: What to time, without arguments. It has to end when it returns: a GPU goes on
            working, and is timed by ``python -m attn_course.benchmarks``.
        repeats: How many calls to count.

    Raises:
        TypeError: ``call`` cannot be called, e.g. since it is the result of a call.
        ValueError: ``repeats`` is no integer of at least 1.

    Example:
        >>> x = torch.rand(200, 200)
        >>> 0 < median_ms(lambda: x @ x, repeats=3) < 1e3
        True
    """
    _check_call(call)
    check_counts(repeats=repeats)
    call()
    return 1e3 * statistics.median(cpu_timer(call) for _ in range(repeats))


def kept_megabytes(call: Callable[[], object]) -> float:
    """The megabytes that autograd keeps of what a call computes, for the backward pass.

    Every storage counts once, and in full: parameters and inputs too, where autograd refers
    to them. ``memory_ledger`` tells these apart from what the call has made.

    Args:
        call: The forward pass, without arguments.

    Raises:
        TypeError: ``call`` cannot be called, e.g. since it is the result of a call.

    Example:
        >>> x = torch.rand(1000, 250, requires_grad=True)
        >>> kept_megabytes(lambda: x.exp())  # what exp returns is also its derivative
        1.0
    """
    _check_call(call)
    with memory_ledger() as ledger:
        call()
    return (ledger.total + ledger.parameters + ledger.inputs) / 1e6


def share_right(votes: Tensor, labels: Tensor) -> float:
    """The share of rows whose largest vote is for the right class.

    Args:
        votes: A number for each class, ``[n, classes]``: logits, probabilities or sums.
        labels: The right classes, ``[n]``.

    Raises:
        TypeError: One of them is no tensor.
        ValueError: The shapes do not fit each other, or there are no rows.

    Example:
        >>> share_right(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
        0.5
    """
    check_tensor("votes", votes)
    check_tensor("labels", labels)
    if votes.ndim != 2 or not votes.numel():
        raise ValueError(f"votes must have shape [n, classes], n > 0, got {list(votes.shape)}.")
    if labels.shape != votes.shape[:1]:
        raise ValueError(f"labels must have shape [{len(votes)}], got {list(labels.shape)}.")
    return (votes.argmax(1) == labels).float().mean().item()


def likeness(tokens: Tensor) -> float:
    """How alike the tokens of a sequence are: the mean cosine between two different ones.

    Args:
        tokens: ``[..., length, dim]``; of several sequences the mean.

    Returns:
        1 where all point the same way, about 0 where their directions are random.

    Raises:
        TypeError: The tokens are no floating-point tensor.
        ValueError: There are not at least two.

    Example:
        >>> likeness(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        0.0
        >>> likeness(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        1.0
    """
    check_floating("tokens", tokens)
    check_rank("tokens", tokens, 2, "[..., length, dim]")
    length = tokens.shape[-2]
    if length < 2 or not tokens.numel():
        raise ValueError(f"tokens must be at least two in a sequence, got {list(tokens.shape)}.")
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    pairs = (unit @ unit.mT).sum((-2, -1)) - length  # without each with itself
    return (pairs / (length * (length - 1))).mean().item()


def kernel_agreement(
    function: Callable[..., Tensor],
    leaves: Mapping[str, Tensor | tuple[int, ...]],
    *,
    atol: float = 1e-5,
    **options: object,
) -> str:
    """Whether a kernel computes what its reference does, forward and backward, as text.

    Called twice: ``impl="reference"`` on the CPU, and ``impl="triton"`` where kernels run
    here. Backward starts from the sum of the output's sines, so that every element of the
    output has a gradient of its own.

    Args:
        function: Takes ``leaves`` and ``options`` by name, and ``impl``; returns one tensor.
        leaves: Name -> what to differentiate with respect to: a floating-point tensor, or
            the shape of one, which is then drawn, normally distributed, always the same.
        atol: The largest difference that counts as equal.
        **options: What else it takes; tensors among them are moved to the kernel's device.

    Returns:
        A line for the output and one for each gradient; or why there is no kernel here.

    Raises:
        TypeError: A leaf is neither a shape nor a tensor of floating-point numbers.
        ValueError: ``leaves`` is empty.

    Example:
        >>> from attn_course.kernel_regression import kernel_regression
        >>> leaves = {"query": (2, 1), "key": (3, 1), "value": (3, 1)}
        >>> print(kernel_agreement(kernel_regression, leaves, width=0.5))  # doctest: +SKIP
        output   equal to 1e-5: True
        d query  equal to 1e-5: True
        d key    equal to 1e-5: True
        d value  equal to 1e-5: True
    """
    if not leaves:
        raise ValueError("leaves must name at least one tensor, got none.")
    for name, leaf in leaves.items():
        if not isinstance(leaf, tuple):
            check_floating(f"leaves[{name!r}]", leaf)
    if not _triton.AVAILABLE:
        return f"No kernel runs here: {_triton.REASON}."
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.randn(leaf, generator=generator) if isinstance(leaf, tuple) else leaf
        for name, leaf in leaves.items()
    }
    results = []
    for impl, device in (("reference", "cpu"), ("triton", _triton.kernel_device())):
        inputs = {name: x.detach().to(device).requires_grad_() for name, x in drawn.items()}
        others = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in options.items()}
        output = function(**inputs, **others, impl=impl)
        grads = torch.autograd.grad(output.sin().sum(), list(inputs.values()))
        results.append([x.detach().cpu() for x in (output, *grads)])
    names = ["output", *(f"d {name}" for name in leaves)]
    wide = max(map(len, names))
    close = np.format_float_scientific(atol, trim="-", exp_digits=1)
    return "\n".join(
        f"{name:{wide}}  equal to {close}: {bool((ours - theirs).abs().max() < atol)}"
        for name, ours, theirs in zip(names, *results, strict=True)
    )


def _check_call(call: object) -> None:
    if not callable(call):
        raise TypeError(
            f"call must be a function without arguments, got {type(call).__name__}. "
            "Put lambda: before what is to be computed."
        )
