"""Inputs to try a mechanism on, and comparisons that say what is wrong.

Tests and exercises use the same ones. Results are held against an oracle: the plain
formula, computed in float64 on the same inputs. Single precision has fixed tolerances;
half precision may err twice as much as plain PyTorch does in that precision, plus one
rounding. Nothing outside a call, such as an environment variable, changes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

#: Name -> (query_len, key_len): around the tiles of a kernel, and at their edges.
LENGTHS = {
    "one_query_one_key": (1, 1),
    "one_query": (1, 9),
    "one_key": (9, 1),
    "less_than_a_tile": (5, 11),
    "one_tile": (16, 16),
    "one_past_a_tile": (17, 33),
    "one_short_of_a_tile": (15, 31),
    "many_keys": (3, 70),
    "many_queries": (70, 3),
}

#: How a tensor may lie in memory other than contiguously; see ``with_layout``.
LAYOUTS = ("transposed", "sliced", "expanded")

#: dtype -> (rtol, atol) of ``assert_close``.
TOLERANCES = {torch.float32: (1e-5, 1e-5), torch.float64: (1e-10, 1e-10)}


class QKV(NamedTuple):
    """Queries, keys and values, as ``make_qkv`` makes them."""

    query: Tensor
    key: Tensor
    value: Tensor


def make_qkv(
    batch_shape: Sequence[int] = (2,),
    query_len: int = 5,
    key_len: int = 7,
    dim: int = 4,
    value_dim: int = 3,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    requires_grad: bool = False,
) -> QKV:
    """Normally distributed queries, keys and values.

    They are drawn in float64 on the CPU and then converted: the same seed means the
    same numbers, up to rounding, in every dtype and on every device.

    Args:
        batch_shape: The leading dimensions.
        query_len: Number of queries.
        key_len: Number of keys and values.
        dim: Size of each query and key.
        value_dim: Size of each value.
        dtype: Their type.
        device: Where they live.
        seed: Chooses the numbers.
        requires_grad: Whether they are leaves that collect gradients.

    Returns:
        ``[*batch_shape, query_len, dim]``, ``[*batch_shape, key_len, dim]`` and
        ``[*batch_shape, key_len, value_dim]``.

    Example:
        >>> query, key, value = make_qkv((2, 8), query_len=1, value_dim=6)
        >>> query.shape, value.shape
        (torch.Size([2, 8, 1, 4]), torch.Size([2, 8, 7, 6]))
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = ((query_len, dim), (key_len, dim), (key_len, value_dim))
    drawn = (
        torch.randn(*batch_shape, *shape, dtype=torch.float64, generator=generator)
        for shape in shapes
    )
    return QKV(*(x.to(device, dtype).requires_grad_(requires_grad) for x in drawn))


def make_valid_lens(
    shape: Sequence[int], key_len: int, *, device: torch.device | str = "cpu", seed: int = 0
) -> Tensor:
    """Random lengths in [0, key_len], with both ends among them if there is room.

    Args:
        shape: ``[batch]`` or ``[batch, query_len]``.
        key_len: Number of keys.
        device: Where they live.
        seed: Chooses the lengths.

    Returns:
        int64 of the given shape; the first is ``key_len`` and the last is 0.

    Example:
        >>> lens = make_valid_lens((4,), key_len=7)
        >>> lens[0].item(), lens[-1].item(), lens.max().item()
        (7, 0, 7)
    """
    generator = torch.Generator().manual_seed(seed)
    lens = torch.randint(0, key_len + 1, tuple(shape), generator=generator)
    if lens.numel():
        lens.view(-1)[-1] = 0
        lens.view(-1)[0] = key_len
    return lens.to(device)


def poisoned_padding(tensor: Tensor, valid_lens: Tensor, fill: float = torch.nan) -> Tensor:
    """Fill what lies past each valid length with NaN: whoever reads it, shows it.

    Args:
        tensor: Keys or values, ``[batch, ..., key_len, dim]``.
        valid_lens: How many of the keys count, ``[batch]``, or a scalar. Where queries
            have lengths of their own, pass the longest, ``valid_lens.amax(-1)``.
        fill: What to put there instead of NaN.

    Returns:
        A copy; it requires a gradient if ``tensor`` does.

    Raises:
        ValueError: The lengths do not fit the tensor.

    Example:
        >>> poisoned_padding(torch.ones(2, 3, 1), torch.tensor([3, 1]))[..., 0]
        tensor([[1., 1., 1.],
                [1., nan, nan]])
    """
    if valid_lens.ndim > 1 or valid_lens.shape != tensor.shape[: valid_lens.ndim]:
        raise ValueError(
            f"valid_lens must have shape {list(tensor.shape[:1])} or [], "
            f"got {list(valid_lens.shape)}."
        )
    lens = valid_lens.reshape(*valid_lens.shape, *[1] * (tensor.ndim - valid_lens.ndim))
    position = torch.arange(tensor.shape[-2], device=tensor.device).unsqueeze(-1)  # [key_len, 1]
    poisoned = tensor.detach().masked_fill(position >= lens, fill)
    return poisoned.requires_grad_(tensor.requires_grad)


def with_layout(tensor: Tensor, layout: str) -> Tensor:
    """The tensor, lying differently in memory.

    ``transposed``: its last two dimensions are stored the other way round. ``sliced``:
    every second row and column of a larger tensor, with NaN between. ``expanded``: its
    first batch item seen again and again, without a copy; these are other values, so
    compare with the result for its ``.contiguous()``.

    Args:
        tensor: At least two dimensions; at least three for ``expanded``.
        layout: One of ``LAYOUTS``.

    Returns:
        A tensor of the same shape; it requires a gradient if ``tensor`` does.

    Raises:
        ValueError: The layout is unknown or needs more dimensions.

    Example:
        >>> x = torch.rand(2, 3, 4)
        >>> torch.equal(with_layout(x, "sliced"), x), with_layout(x, "sliced").stride()
        (True, (48, 16, 2))
    """
    source = tensor.detach()
    if layout == "transposed" and tensor.ndim >= 2:
        result = source.mT.contiguous().mT
    elif layout == "sliced" and tensor.ndim >= 2:
        *batch, rows, columns = tensor.shape
        result = source.new_full((*batch, 2 * rows, 2 * columns), torch.nan)[..., ::2, ::2]
        result.copy_(source)
    elif layout == "expanded" and tensor.ndim >= 3:
        result = source[:1].clone().expand_as(source)
    else:
        raise ValueError(
            f"layout must be one of {LAYOUTS}, for at least 2 dimensions, or 3 if expanded, "
            f"got {layout!r} for shape {list(tensor.shape)}."
        )
    return result.requires_grad_(tensor.requires_grad)


def assert_close(
    actual: Tensor,
    expected: Tensor,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    name: str = "the result",
) -> None:
    """Raise unless each element is within ``atol + rtol * |expected|`` of the oracle's.

    Args:
        actual: float32 or float64, any shape.
        expected: The oracle's result, float64, of the same shape.
        rtol: Instead of the one in ``TOLERANCES``.
        atol: Instead of the one in ``TOLERANCES``.
        name: What to call the result in messages.

    Raises:
        AssertionError: The shapes or values differ; says where and by how much.
        TypeError: ``expected`` is not float64, or ``actual`` is of another type.
        ValueError: The oracle itself holds NaN.

    Example:
        >>> assert_close(torch.ones(2), torch.ones(2, dtype=torch.float64))
        >>> wrong = torch.tensor([1.0, 2.0])
        >>> assert_close(wrong, torch.ones(2, dtype=torch.float64))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        AssertionError: the result: error 1 at [1]: got 2, expected 1; 1 of 2 elements ...
    """
    if actual.dtype not in TOLERANCES:
        raise TypeError(
            f"{name} is {actual.dtype}; assert_close compares float32 and float64, "
            "assert_within_budget float16 and bfloat16."
        )
    standard = TOLERANCES[actual.dtype]
    rtol = standard[0] if rtol is None else rtol
    atol = standard[1] if atol is None else atol
    error = _error(actual, expected, name)
    # An infinite expectation allows no error at all, rather than any.
    allowed = atol + rtol * expected.detach().cpu().abs().nan_to_num(posinf=0.0)
    _raise_where_over(error, allowed, actual, expected, name, f"atol={atol:g}, rtol={rtol:g}")


def assert_within_budget(
    actual: Tensor, plain: Tensor, oracle: Tensor, *, name: str = "the result"
) -> None:
    """Raise unless a half-precision result is about as exact as plain PyTorch's.

    The budget for the largest error is twice the largest error of ``plain``, plus one
    rounding: half the spacing of numbers near the largest one of the oracle.

    Args:
        actual: The result to judge, float16 or bfloat16, any shape.
        plain: The same by plain PyTorch operations in the same dtype.
        oracle: The same in float64, computed from the same half-precision inputs.
        name: What to call the result in messages.

    Raises:
        AssertionError: The shapes differ or an error is over the budget; says where
            and by how much.
        TypeError: A dtype is not the one described.
        ValueError: The plain result overflows or the oracle holds NaN, so that there is
            no budget.

    Example:
        >>> exact = torch.tensor([1.0, 3.0], dtype=torch.float64) / 3
        >>> rounded = exact.to(torch.float16)
        >>> assert_within_budget(rounded, rounded, exact)
        >>> assert_within_budget(rounded + 0.01, rounded, exact)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        AssertionError: the result: error 0.00993 at [0]: got 0.3433, ...
    """
    if actual.dtype not in (torch.float16, torch.bfloat16) or plain.dtype != actual.dtype:
        raise TypeError(
            f"{name} and the plain result must both be float16 or both bfloat16, "
            f"got {actual.dtype} and {plain.dtype}."
        )
    plain_error = _largest(_error(plain, oracle, f"the plain result beside {name}"))
    if plain_error == torch.inf:
        raise ValueError(
            f"the plain {actual.dtype} result beside {name} is wrong by infinity or holds NaN, "
            "so there is no budget: compare on smaller inputs."
        )
    limits = torch.finfo(actual.dtype)
    largest = _largest(oracle.detach().abs().nan_to_num(posinf=0.0))
    rounding = limits.eps / 2 * max(largest, limits.tiny)
    budget = 2 * plain_error + rounding
    rule = f"{budget:.3g} = 2 x {plain_error:.3g} (plain PyTorch) + {rounding:.3g} (one rounding)"
    error = _error(actual, oracle, name)
    _raise_where_over(error, torch.full_like(error, budget), actual, oracle, name, rule)


@contextmanager
def assert_unchanged(*tensors: Tensor, **named: Tensor) -> Iterator[None]:
    """Raise if the body of the ``with`` changes one of the tensors.

    Args:
        tensors: Called ``argument 1``, ``argument 2``, ... in messages.
        named: Called by their names.

    Raises:
        AssertionError: One was changed; says which and where.

    Example:
        >>> scores = torch.zeros(2)
        >>> with assert_unchanged(scores=scores):
        ...     scores[1] = 5
        Traceback (most recent call last):
        AssertionError: scores was changed in 1 of 2 elements, first at [1]: 0 became 5.
    """
    watched = {f"argument {i}": tensor for i, tensor in enumerate(tensors, start=1)} | named
    copies = {name: tensor.detach().clone() for name, tensor in watched.items()}
    yield
    for name, copy in copies.items():
        now = watched[name].detach()
        if now.shape != copy.shape or now.dtype != copy.dtype:
            raise AssertionError(
                f"{name} was {copy.dtype} {list(copy.shape)} and became {now.dtype} "
                f"{list(now.shape)}."
            )
        changed = (now != copy) & ~((now != now) & (copy != copy))  # NaN stays NaN
        if bool(changed.any()):
            index = tuple(changed.nonzero()[0].tolist())
            raise AssertionError(
                f"{name} was changed in {int(changed.sum())} of {changed.numel()} elements, "
                f"first at {list(index)}: {copy[index].item():.4g} became "
                f"{now[index].item():.4g}."
            )


def _error(actual: Tensor, oracle: Tensor, name: str) -> Tensor:
    """The absolute error of each element, float64 on the CPU; infinite for NaN."""
    if oracle.dtype != torch.float64:
        raise TypeError(
            f"the oracle for {name} must be float64, got {oracle.dtype}: compute it from "
            "inputs.double()."
        )
    if bool(oracle.isnan().any()):
        raise ValueError(f"the oracle for {name} holds NaN, so nothing can be held against it.")
    if actual.shape != oracle.shape:
        raise AssertionError(
            f"{name} has shape {list(actual.shape)}, expected {list(oracle.shape)}."
        )
    ours, theirs = actual.detach().cpu().double(), oracle.detach().cpu()
    error = (ours - theirs).abs().masked_fill(ours == theirs, 0)  # inf - inf is NaN
    return error.nan_to_num(nan=torch.inf, posinf=torch.inf)


def _largest(tensor: Tensor) -> float:
    return tensor.amax().item() if tensor.numel() else 0.0


def _raise_where_over(
    error: Tensor, allowed: Tensor, actual: Tensor, oracle: Tensor, name: str, rule: str
) -> None:
    """Raise an ``AssertionError`` about the largest error that is not allowed."""
    over = error > allowed
    if not bool(over.any()):
        return
    worst = int(error.masked_fill(~over, -1).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape))
    raise AssertionError(
        f"{name}: error {error[index].item():.3g} at {list(index)}: "
        f"got {actual[index].item():.4g}, expected {oracle[index].item():.4g}; "
        f"{int(over.sum())} of {over.numel()} elements are over the limit ({rule})."
    )
