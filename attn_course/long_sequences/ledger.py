"""A ledger of what autograd keeps: which tensor, how large, made by which line.

A training step holds two kinds of memory. Parameters, their gradients and the optimiser's
moments are there whatever the batch. The rest is what the forward pass keeps so that the
backward pass can be computed, and it grows with batch and length. PyTorch tells of each such
tensor: `torch.autograd.graph.saved_tensors_hooks`
<https://docs.pytorch.org/docs/stable/autograd.html#saved-tensors-hooks-semantic>.
"""

from __future__ import annotations

import gc
import linecache
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

#: What a row is: computed inside the block, or there before as a parameter or otherwise.
ACTIVATION, PARAMETER, INPUT = "activation", "parameter", "input"

#: What an ``autograd.Function`` is called: PyTorch does not tell which one it is.
FUNCTION = "Function"

#: Frames of files below these are not whom a reader looks for.
_INSIDE = (str(Path(torch.__file__).parent), __file__)


@dataclass(frozen=True)
class Row:
    """A storage that autograd keeps; what views share is one storage.

    Attributes:
        shape: The shape of the tensor through which it was kept first.
        dtype: The type of its numbers.
        bytes: The size of the whole storage, which a small view keeps alive as well.
        kind: ``activation``: made inside the block; ``parameter`` and ``input``: there
            before, so that it would be kept without autograd, too.
        op: The function that keeps it, as PyTorch calls it.
        line: ``file:number  source`` of the innermost line outside of PyTorch.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int
    kind: str
    op: str
    line: str


@dataclass
class _Entry:
    """A row, from the moment its storage is kept to the moment it is given back."""

    row: Row
    key: int
    born: int
    died: float = float("inf")
    users: int = 0


class _Kept:
    """What a node of the graph holds in place of a tensor. Its end is the tensor's release."""

    __slots__ = ("entries", "tensor", "version")

    def __init__(self, tensor: Tensor, entries: list[tuple[MemoryLedger, _Entry]]) -> None:
        self.tensor, self.version, self.entries = tensor, tensor._version, entries

    def __del__(self) -> None:
        for ledger, entry in self.entries:
            ledger._release(entry)


class _Operation(TorchFunctionMode):
    """Knows which function of PyTorch has been called."""

    name = FUNCTION

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before, self.name = self.name, func.__name__.strip("_")
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.name = before


class MemoryLedger:
    """What autograd keeps; made by ``memory_ledger``.

    It holds no tensor: what is dropped while the block runs, or after it, is freed as ever.

    Attributes:
        total: Bytes of the activations at the moment when most of them were kept, each
            storage counted once.
        held: Bytes of those that are still kept now.
        peak: On CUDA the most memory in use inside the block, beside what was in use
            before; it counts temporaries too. ``None`` elsewhere.
    """

    def __init__(self) -> None:
        self.total = self.held = 0
        self.peak: int | None = None
        self._start = 0
        self._entries: list[_Entry] = []
        self._open: dict[int, _Entry] = {}
        self._clock = self._moment = 0
        self._before = _there_already()

    @property
    def rows(self) -> list[Row]:
        """What was kept at the moment of ``total``, in the order in which it was kept."""
        return [e.row for e in self._entries if e.born <= self._moment < e.died]

    @property
    def parameters(self) -> int:
        """Bytes of the parameters among the rows."""
        return sum(row.bytes for row in self.rows if row.kind == PARAMETER)

    @property
    def inputs(self) -> int:
        """Bytes of whatever else among the rows was there before."""
        return sum(row.bytes for row in self.rows if row.kind == INPUT)

    def by_line(self) -> dict[str, int]:
        """Bytes of activations by the line that made them, the largest first."""
        return self._largest_first(lambda row: row.line)

    def by_op(self) -> dict[str, int]:
        """Bytes of activations by the function that keeps them, the largest first."""
        return self._largest_first(lambda row: row.op)

    def _largest_first(self, label: Any) -> dict[str, int]:
        sums: dict[str, int] = {}
        for row in self.rows:
            if row.kind == ACTIVATION:
                sums[label(row)] = sums.get(label(row), 0) + row.bytes
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def table(self, limit: int = 12) -> str:
        """The ledger as text: equal tensors of one line together, the largest first.

        Args:
            limit: The most lines; what is left out is summed up in one more.
        """
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            if row.kind == ACTIVATION:
                groups.setdefault((row.line, row.op, row.shape, row.dtype), []).append(row)
        sums = [(sum(row.bytes for row in rows), rows) for rows in groups.values()]
        sums.sort(key=lambda item: -item[0])
        cells = [("bytes", "share", "tensors", "kept by", "line")]
        for size, rows in sums[:limit]:
            row, count = rows[0], f"{len(rows)} x " if len(rows) > 1 else ""
            tensors = f"{count}{list(row.shape)} {str(row.dtype).removeprefix('torch.')}"
            cells.append((_readable(size), f"{size / self.total:.1%}", tensors, row.op, row.line))
        wide, by = (max(len(cell[k]) for cell in cells) for k in (2, 3))
        lines = [
            f"{size:>10} {share:>6}  {tensors:{wide}}  {op:{by}}  {line}"
            for size, share, tensors, op, line in cells
        ]
        if rest := sum(size for size, _ in sums[limit:]):
            count = f"{len(sums) - limit} smaller"
            lines.append(f"{_readable(rest):>10} {rest / self.total:>6.1%}  {count}")
        lines.append(f"{_readable(self.total):>10} kept for the backward pass")
        lines.append(
            f"{'':10} beside {_readable(self.parameters)} of parameters and "
            f"{_readable(self.inputs)} of inputs, which were there before"
        )
        if self.peak is not None:
            lines.append(f"{_readable(self.peak):>10} in use at most, temporaries included")
        return "\n".join(lines)

    def __str__(self) -> str:
        """The table."""
        return self.table()

    def _keep(self, tensor: Tensor, op: str, line: str) -> _Entry:
        key, size = _storage(tensor)
        entry = self._open.get(key)
        self._clock += 1
        if entry is None:
            kind = self._kind(key)
            row = Row(tuple(tensor.shape), tensor.dtype, size, kind, op, line)
            entry = self._open[key] = _Entry(row, key, self._clock)
            self._entries.append(entry)
            if kind == ACTIVATION:
                self.held += size
        entry.users += 1
        if self.held >= self.total:
            self.total, self._moment = self.held, self._clock
        return entry

    def _kind(self, key: int) -> str:
        """What a storage was before the block, if whoever had it then still has it."""
        known = [tensor for ref in self._before.get(key, ()) if (tensor := ref()) is not None]
        known = [tensor for tensor in known if _storage(tensor)[0] == key]
        if any(isinstance(tensor, nn.Parameter) for tensor in known):
            return PARAMETER
        return INPUT if known else ACTIVATION

    def _release(self, entry: _Entry) -> None:
        entry.users -= 1
        if entry.users == 0:
            self._clock += 1
            entry.died = self._clock
            del self._open[entry.key]
            if entry.row.kind == ACTIVATION:
                self.held -= entry.row.bytes


#: The ledgers whose blocks are open, the outermost first.
_OPEN: ContextVar[tuple[MemoryLedger, ...]] = ContextVar("open ledgers", default=())


@contextmanager
def memory_ledger() -> Iterator[MemoryLedger]:
    """List what autograd keeps while the block runs.

    Run a forward pass inside, or a whole training step; after the block, read the ledger.
    Tensors that were there before it are listed apart. Blocks may be nested, and each sees
    what it encloses. What an inner pair of hooks takes is not listed: a checkpointed
    function's activations are not kept, and what it recomputes lives for a moment only.

    Yields:
        The ledger: ``rows``, ``total``, ``held``, ``by_line()``, ``by_op()``; ``print`` it
        for a table.

    Example:
        >>> x = torch.rand(8, 100)
        >>> layer = torch.nn.Linear(100, 50)
        >>> with memory_ledger() as ledger:
        ...     loss = layer(x).softmax(-1).square().sum()
        >>> ledger.total  # softmax keeps what it returns, which square keeps as well
        1600
        >>> [(row.shape, row.kind, row.op) for row in ledger.rows]
        [((8, 100), 'input', 'linear'), ((8, 50), 'activation', 'softmax')]
        >>> loss.backward()
        >>> ledger.held
        0
    """
    ledger, operation = MemoryLedger(), _Operation()
    outer = _OPEN.get()
    listening = (*outer, ledger)

    def pack(tensor: Tensor) -> _Kept:
        op, line = operation.name, _line()
        # A result comes with its graph, and would keep itself alive in it.
        return _Kept(tensor.detach(), [(one, one._keep(tensor, op, line)) for one in listening])

    def unpack(kept: _Kept) -> Tensor:
        if kept.tensor._version != kept.version:  # with hooks PyTorch does not look itself
            raise RuntimeError(
                "a tensor that the backward pass needs was changed in place: of shape "
                f"{list(kept.tensor.shape)}, kept by {kept.entries[0][1].row.line}"
            )
        return kept.tensor

    token = _OPEN.set(listening)
    _start_peak(ledger, outer)
    try:
        with saved_tensors_hooks(pack, unpack), operation:
            yield ledger
    finally:
        _OPEN.reset(token)
        _raise_peaks(listening)
        ledger._before.clear()


def _storage(tensor: Tensor) -> tuple[int, int]:
    """What tells a tensor's storage from all others that are alive, and its bytes."""
    try:
        storage = tensor.untyped_storage()
    except NotImplementedError:  # sparse tensors and such have none of their own
        return id(tensor), tensor.numel() * tensor.element_size()
    return storage._cdata, storage.nbytes()


def _there_already() -> dict[int, list[weakref.ref[Tensor]]]:
    """All tensors that Python knows of, by their storages, without keeping them alive."""
    found: dict[int, list[weakref.ref[Tensor]]] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor) and not is_lazy(thing):  # lazy: no storage yet
            found.setdefault(_storage(thing)[0], []).append(weakref.ref(thing))
    return found


def _line() -> str:
    """Where the innermost line is that is neither PyTorch's nor this file's."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_INSIDE):
        if frame.f_back is None:
            return "unknown"
        frame = frame.f_back
    path, number = frame.f_code.co_filename, frame.f_lineno
    # A cell of a notebook lies in a file whose name says nothing and changes with each run.
    name = "cell" if "ipykernel" in path else Path(path).name
    return f"{name}:{number}  {linecache.getline(path, number).strip()}"


def _readable(size: int) -> str:
    """Bytes as text, e.g. ``"10.2 MB"``."""
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if size >= 1000**power:
            return f"{size / 1000**power:.1f} {unit}"
    return f"{size} B"


def _start_peak(ledger: MemoryLedger, outer: tuple[MemoryLedger, ...]) -> None:
    """Let CUDA count the most memory in use from here, after telling those who asked before."""
    if torch.cuda.is_available():
        _raise_peaks(outer)
        torch.cuda.reset_peak_memory_stats()
        ledger._start, ledger.peak = torch.cuda.memory_allocated(), 0


def _raise_peaks(ledgers: tuple[MemoryLedger, ...]) -> None:
    for ledger in ledgers:
        if ledger.peak is not None:
            now = torch.cuda.max_memory_allocated() - ledger._start
            ledger.peak = max(ledger.peak, now)
