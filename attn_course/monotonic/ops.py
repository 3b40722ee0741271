"""Visit probabilities of monotonic paths: the public functions."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course import _triton
from attn_course._precision import widened
from attn_course._validation import check_choice, check_floating, check_tensor
from attn_course.monotonic import fronts, scan

IMPLEMENTATIONS = ("auto", "reference", "scan", "triton")
MODELS = ("many_to_many", "one_to_many")

#: So many logits that all lie in [0, 1] are probabilities: of standard normal numbers, 16 would
#: do so once in 30 million times.
_TELLING = 16


class Grid(NamedTuple):
    """Checked logits, ready to compute with.

    Attributes:
        logits: ``[batch, I, J]``, at least float32; 0 outside the lengths.
        inside: What lies within the lengths, ``[batch, I, J]``, or ``None`` for all.
        row_lens: ``[batch]``.
        column_lens: ``[batch]``.
    """

    logits: Tensor
    inside: Tensor | None
    row_lens: Tensor
    column_lens: Tensor


def many_to_many(
    logits: Tensor,
    *,
    row_lens: Tensor | None = None,
    column_lens: Tensor | None = None,
    log: bool = False,
    impl: str = "auto",
    validate: bool = True,
) -> Tensor:
    """The probability that a path visits each node, where each step goes right or down.

    From (0, 0), a path at (i, j) goes to (i, j + 1) with probability ``p = sigmoid(x_ij)`` and to
    (i + 1, j) with ``q = sigmoid(-x_ij)``. With queries as rows and keys as columns, p goes on to
    the next key and q to the next query. A path ends with its step out of the grid, so nodes past
    the middle lose mass: rows do not sum to 1, and may sum to more, since a row can visit
    several nodes.

    =================  ===========================================================
    ``impl``           what it does
    =================  ===========================================================
    ``"auto"``         ``"triton"`` on a GPU where triton is installed, else
                       ``"scan"``
    ``"scan"``         one sweep over time, all lanes at once, on every device;
                       log phi in float64
    ``"triton"``       a GPU kernel (interpreted where there is no GPU: slow): a
                       lane as one scan, tiles in waves; log phi in float32 with
                       an exponent of any size
    ``"reference"``    the loop over anti-diagonals in log space; log phi in
                       float64
    =================  ===========================================================

    Of 1,024 x 4,096 standard normal logits in float32, log phi goes down to -3,300, where float32
    has steps of 2e-4. Held against float64, ``"scan"`` is off by the last rounding alone, and so
    are the formulas of ``"triton"``, which know phi itself to 1e-5 there.

    Args:
        logits: x, ``[I, J]`` or ``[batch, ..., I, J]``. They may be infinite: p is then 0 or 1.
        row_lens: How many leading rows count, ``[batch]``; for ``[I, J]`` a scalar.
        column_lens: How many leading columns count, likewise.
        log: Return log phi, which does not underflow.
        impl: ``"auto"``, ``"reference"``, ``"scan"`` or ``"triton"``.
        validate: Refuse probabilities in place of logits. On CUDA devices numbers, lengths too,
            are taken on trust: looking would make the host wait.

    Returns:
        phi, or log phi, of the shape of ``logits``. Outside the lengths, and where no path
        leads, 0 or -inf, with a gradient of 0.

    Raises:
        TypeError: A tensor has the wrong kind of numbers.
        ValueError: A shape, a length or a name is out of place, or ``logits`` are
            probabilities: at least 16 numbers, all in [0, 1] and not all equal.
        RuntimeError: ``impl="triton"`` cannot be had.

    Reference:
        Bolte (2023), Monotonic attention, "Many-to-many monotonicity".

    Example:
        >>> many_to_many(torch.zeros(3, 3))
        tensor([[1.0000, 0.5000, 0.2500],
                [0.5000, 0.5000, 0.3750],
                [0.2500, 0.3750, 0.3750]])
    """
    return _visit(logits, "many_to_many", row_lens, column_lens, log, impl, validate)


def one_to_many(
    logits: Tensor,
    *,
    row_lens: Tensor | None = None,
    column_lens: Tensor | None = None,
    log: bool = False,
    impl: str = "auto",
    validate: bool = True,
) -> Tensor:
    """The probability that a path visits each node, where each step goes to the next row.

    From (0, 0), a path at (i, j) goes to (i + 1, j) with probability ``p = sigmoid(x_ij)`` and to
    (i + 1, j + 1) with ``q = sigmoid(-x_ij)``. Each row is visited once, so it sums to 1, less what
    left the grid past its last column. Column j cannot be reached before row j.

    The path holds no opinion on which side rows are: transpose the logits if the side that
    always advances (the longer one: speech, not text) is your columns.

    Args:
        logits: x, ``[I, J]`` or ``[batch, ..., I, J]``, I at least J. They may be infinite.
        row_lens: As in ``many_to_many``.
        column_lens: As in ``many_to_many``.
        log: As in ``many_to_many``.
        impl: As in ``many_to_many``; ``"reference"`` is the loop over rows in log space.
        validate: As in ``many_to_many``.

    Returns:
        As in ``many_to_many``.

    Raises:
        TypeError: As in ``many_to_many``.
        ValueError: As in ``many_to_many``.
        RuntimeError: As in ``many_to_many``.

    Warns:
        UserWarning: There are more columns than rows: some cannot be reached.

    Reference:
        Bolte (2023), Monotonic attention, "One-to-many monotonicity".

    Example:
        >>> one_to_many(torch.zeros(3, 3))
        tensor([[1.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.2500, 0.5000, 0.2500]])
    """
    return _visit(logits, "one_to_many", row_lens, column_lens, log, impl, validate)


def expected_alignment(
    logits: Tensor,
    *,
    row_lens: Tensor | None = None,
    column_lens: Tensor | None = None,
    log: bool = False,
    impl: str = "auto",
    validate: bool = True,
) -> Tensor:
    """The probability that query i stops at key j: hard monotonic attention in expectation.

    Query i starts at the key where query i - 1 stopped, asks at each key whether to go on, with
    probability ``p = sigmoid(x_ij)``, and attends to the one where it stops. That is the
    many-to-many path, seen only where it turns down:

        alpha_ij = phi_ij q_ij.

    Raffel et al. write the probability of stopping as ``sigmoid(e_ij)``: x = -e.

    Args:
        logits: x, ``[I, J]`` or ``[batch, ..., I, J]``; rows are queries, columns keys.
        row_lens: As in ``many_to_many``.
        column_lens: As in ``many_to_many``.
        log: Return log alpha.
        impl: As in ``many_to_many``.
        validate: As in ``many_to_many``.

    Returns:
        alpha, or log alpha, of the shape of ``logits``. A row sums to the probability that its
        query stops at all: 1, less what ran past the last key.

    Raises:
        TypeError: As in ``many_to_many``.
        ValueError: As in ``many_to_many``.
        RuntimeError: As in ``many_to_many``.

    Reference:
        Raffel et al. (2017), Online and linear-time attention by enforcing monotonic
        alignments, equation 9.

    Example:
        >>> expected_alignment(torch.tensor([[-torch.inf, 0.0], [torch.inf, -torch.inf]]))
        tensor([[1., 0.],
                [0., 1.]])
    """
    phi = _visit(logits, "many_to_many", row_lens, column_lens, log, impl, validate)
    reached = phi > (-math.inf if log else 0)
    x = -widened(logits).where(reached, 0.0)  # elsewhere logits may be NaN
    return (phi + F.logsigmoid(x) if log else phi * x.sigmoid()).to(logits.dtype)


def squeeze(logits: Tensor, *, epsilon: float = 1e-3, how: str = "soft") -> Tensor:
    """Keep probabilities away from 0 and 1, so that no path is ever impossible.

    ``"soft"`` maps p to p (1 - 2 epsilon) + epsilon, ``"hard"`` cuts it off at epsilon and at
    1 - epsilon, where its gradient is then 0. Both are done on logits, without rounding p.

    Args:
        logits: x, with ``p = sigmoid(x)``; any shape.
        epsilon: In (0, 0.5).
        how: ``"soft"`` or ``"hard"``.

    Returns:
        Logits of the squeezed probabilities, the same shape, signs kept.

    Raises:
        TypeError: ``logits`` are not floating-point numbers.
        ValueError: ``epsilon`` or ``how`` is out of place.

    Example:
        >>> x = torch.tensor([-torch.inf, -1.0, 0.0, torch.inf])
        >>> squeeze(x, epsilon=0.1).sigmoid()
        tensor([0.1000, 0.3152, 0.5000, 0.9000])
        >>> squeeze(x, epsilon=0.1, how="hard").sigmoid()
        tensor([0.1000, 0.2689, 0.5000, 0.9000])
    """
    check_floating("logits", logits)
    check_choice("how", how, ("soft", "hard"))
    if not 0 < epsilon < 0.5:
        raise ValueError(f"epsilon must lie in (0, 0.5), got {epsilon}.")
    if how == "hard":
        limit = math.log1p(-epsilon) - math.log(epsilon)
        return logits.clamp(-limit, limit)
    wide, share = widened(logits), 1 - 2 * epsilon
    p, q = wide.sigmoid(), (-wide).sigmoid()
    return ((share * p + epsilon).log() - (share * q + epsilon).log()).to(logits.dtype)


def check_grid(
    logits: Tensor,
    model: str,
    row_lens: Tensor | None,
    column_lens: Tensor | None,
    validate: bool = True,
) -> Grid:
    """Check what all functions here take, and give it one shape."""
    return _cut(*_checked(logits, model, row_lens, column_lens, validate))


def _checked(
    logits: Tensor,
    model: str,
    row_lens: Tensor | None,
    column_lens: Tensor | None,
    validate: bool,
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Logits as ``[batch, I, J]``, both lengths of each item, and whether any were given."""
    check_floating("logits", logits)
    check_choice("model", model, MODELS)
    if logits.ndim < 2 or 0 in logits.shape[-2:]:
        raise ValueError(
            f"logits must have shape [..., I, J] with I and J at least 1, got {list(logits.shape)}."
        )
    rows, columns = logits.shape[-2:]
    batch = logits.shape[:-2]
    count = math.prod(batch)
    lens = []
    for name, given, size in (("row_lens", row_lens, rows), ("column_lens", column_lens, columns)):
        check_lens(name, given, batch[:1], size, logits.device)
        if given is None:
            lens.append(torch.full((count,), size, device=logits.device))
        else:  # heads share the length of their item
            lens.append(given.reshape(-1).repeat_interleave(count // max(1, given.numel())))
    flat = logits.reshape(-1, rows, columns)
    shorter = row_lens is not None or column_lens is not None
    if validate and not logits.is_cuda:
        _check_logits(flat, _inside(flat, *lens) if shorter else None)
    if model == "one_to_many" and not (shorter and logits.is_cuda):
        _warn_unreachable(rows, columns, lens if shorter else None)
    return flat, lens[0], lens[1], shorter


def _cut(logits: Tensor, row_lens: Tensor, column_lens: Tensor, shorter: bool) -> Grid:
    """What has been checked, ready for the functions that know nothing of lengths."""
    inside = _inside(logits, row_lens, column_lens) if shorter else None
    wide = widened(logits)
    if inside is not None:
        wide = wide.where(inside, 0.0)  # NaN in padding reaches neither output nor gradient
    return Grid(wide, inside, row_lens, column_lens)


def _inside(logits: Tensor, row_lens: Tensor, column_lens: Tensor) -> Tensor:
    """What lies within the lengths, ``[batch, I, J]``."""
    row, column = (torch.arange(size, device=logits.device) for size in logits.shape[1:])
    return (row[:, None] < row_lens[:, None, None]) & (column < column_lens[:, None, None])


def check_lens(
    name: str, lens: Tensor | None, batch: tuple[int, ...], size: int, device: torch.device
) -> None:
    """Raise unless lengths, if any, fit a batch, ``[batch]`` or a scalar, and a size."""
    if lens is None:
        return
    check_tensor(name, lens)
    if lens.is_floating_point() or lens.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {lens.dtype}.")
    if tuple(lens.shape) != tuple(batch):
        raise ValueError(
            f"{name} must have shape {list(batch)}, a length for each item of the batch, got "
            f"{list(lens.shape)}."
        )
    if lens.device != device:
        raise ValueError(f"{name} must be on {device}, like what it cuts, got {lens.device}.")
    if device.type != "cuda" and lens.numel():
        low, high = (int(end) for end in lens.aminmax())
        if low < 0 or high > size:
            raise ValueError(f"{name} must lie in [0, {size}], got {low if low < 0 else high}.")


def _visit(
    logits: Tensor, model: str, row_lens: Tensor | None, column_lens: Tensor | None, log: bool,
    impl: str, validate: bool,
) -> Tensor:  # fmt: skip
    check_choice("impl", impl, IMPLEMENTATIONS)
    checked = _checked(logits, model, row_lens, column_lens, validate)
    if impl == "auto":
        impl = "triton" if logits.is_cuda and _triton.AVAILABLE else "scan"
    if impl == "triton":
        _triton.require(logits.device)
        from attn_course.monotonic.backward_kernel import visits

        phi = visits(*checked[:3], model=model, log=log)
        return phi.reshape(logits.shape).to(logits.dtype)
    grid = _cut(*checked)
    x = grid.logits
    if impl == "reference":
        log_phi = fronts.LogVisits.apply(x.double() if log else x, model)
        phi = log_phi if log else log_phi.exp()
    elif log:
        phi = scan.log_visits(F.logsigmoid(x), F.logsigmoid(-x), model=model)
    else:
        phi = scan.visits(x, model=model)
    if grid.inside is not None:
        phi = phi.where(grid.inside, -math.inf if log else 0.0)
    return phi.reshape(logits.shape).to(logits.dtype)


def _check_logits(logits: Tensor, inside: Tensor | None) -> None:
    """Raise if they are probabilities."""
    values = logits.detach() if inside is None else logits.detach()[inside]
    if values.numel() < _TELLING:
        return
    low, high = (end.item() for end in values.aminmax())
    if 0 <= low < high <= 1:
        raise ValueError(
            f"logits must be logits, and these look like probabilities: all {values.numel()} lie "
            f"in [0, 1], from {low:.3g} to {high:.3g}. Pass probs.logit(); or, if they are logits "
            "after all, validate=False."
        )


def _warn_unreachable(rows: int, columns: int, lens: list[Tensor] | None) -> None:
    """Warn if there are columns that no path has the time to reach."""
    if lens is not None:
        worse = (lens[1] - lens[0]).clamp_min(0)
        if not worse.numel() or not int(worse.amax()):
            return
        item = int(worse.argmax())
        rows, columns = int(lens[0][item]), int(lens[1][item])
    if columns > rows:
        warnings.warn(
            f"one_to_many has {columns} columns and only {rows} rows: each row goes on by one "
            f"column at most, so columns from {rows} on cannot be reached and get 0. Rows must be "
            "the longer side.",
            stacklevel=5,
        )
