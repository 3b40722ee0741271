"""Figures for the book, from stored runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn_course.benchmarks.results import RESULTS, Record, find_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX*"

#: Benchmarks that are started as modules of their own; see ``steps``.
STEPS = ("bahdanau_step", "transformer_step", "cached_decoding", "long_sequences", "linformer_long")


def describe_run(name: str, device: str = "cuda", directory: Path = RESULTS) -> str:
    """One line about a stored run: device, versions, date; or that there is none.

    Args:
        name: Of the case.
        device: As in ``plot_results``.
        directory: Where runs lie.

    Returns:
        A text to print or to put under a figure.

    Example:
        >>> describe_run("no_such_case")
        'No run on a GPU is stored; make one: python -m attn_course.benchmarks no_such_case'
    """
    record = find_run(name, device, directory)
    if record is not None:
        return _line(record)
    where = {"cuda": "a GPU", "cpu": "a CPU"}.get(device, device)
    between = "." if name in STEPS else " "
    command = f"python -m attn_course.benchmarks{between}{name}"
    # A case runs on a GPU if there is one, a module of its own on the CPU.
    if device == ("cuda" if name in STEPS else "cpu"):
        command += f" --device {device}"
    return f"No run on {where} is stored; make one: {command}"


def _line(record: Record) -> str:
    about, versions = record["device"], record["versions"]
    parts = [about["name"]]
    if about["capability"]:
        parts[0] += f" (compute capability {about['capability']})"
    parts += [f"{name} {versions[name]}" for name in ("torch", "triton") if versions.get(name)]
    return ", ".join([*parts, record["date"][:10]])


def plot_results(
    name: str,
    *,
    device: str = "cuda",
    direction: str = "forward",
    peers: Sequence[str] | None = None,
    directory: Path = RESULTS,
    figsize: tuple[float, float] = (7.0, 3.6),
) -> Figure:
    """Draw time and memory of a stored run against the size, both axes logarithmic.

    Where memory was not measured, time stands alone.

    The band about a line reaches from the fastest tenth of the calls to the slowest.
    Below the axes stand the device, the versions and the date. Where no run is stored,
    the figure says so.

    Args:
        name: Of the case, e.g. ``"kernel_regression"``.
        device: ``"cuda"`` or ``"cpu"`` for the newest run on any such device, or a part
            of its name.
        direction: ``"forward"`` or ``"forward+backward"``.
        peers: Which ones to draw; all that were measured by default.
        directory: Where runs lie.
        figsize: In inches.

    Returns:
        The figure.

    Raises:
        ValueError: The run has nothing measured for the direction or a peer.
    """
    import matplotlib.pyplot as plt

    from attn_course.heatmaps import PALETTE, use_style

    record = find_run(name, device, directory)
    with plt.rc_context():
        use_style()
        if record is None:
            return _empty(describe_run(name, device, directory), figsize)
        rows = [
            row
            for row in record["results"]
            if row["status"] == "measured" and row["direction"] == direction
        ]
        known = list(dict.fromkeys(row["peer"] for row in rows))
        names = known if peers is None else list(peers)
        missing = [peer for peer in names if peer not in known]
        if missing or not names:
            raise ValueError(
                f"nothing is measured for {missing or direction}; {direction} has {known}."
            )
        panels = 2 if any(row["peak_bytes"] for row in rows) else 1
        figure, (axes,) = plt.subplots(1, panels, figsize=figsize, squeeze=False)
        for index, peer in enumerate(known):
            if peer in names:
                mine = sorted((row for row in rows if row["peer"] == peer), key=lambda r: r["size"])
                style = {"color": PALETTE[index % 8], "marker": MARKERS[index % 8]}
                _draw(axes, peer, mine, style)
        _label(axes, direction, sorted({row["size"] for row in rows}))
        figure.suptitle(record["title"], fontsize=11)
        axes[0].legend()
        figure.supxlabel(_line(record), fontsize=8)
    return figure


def _draw(axes: Sequence[Axes], peer: str, rows: list[Record], style: dict[str, Any]) -> None:
    left = axes[0]
    sizes = [row["size"] for row in rows]
    left.plot(sizes, [row["median_s"] for row in rows], label=peer, **style)
    low, high = ([row[key] for row in rows] for key in ("p10_s", "p90_s"))
    left.fill_between(sizes, low, high, color=style["color"], alpha=0.2, linewidth=0)
    held = [(row["size"], row["peak_bytes"]) for row in rows if row["peak_bytes"]]
    if held:
        axes[1].plot(*zip(*held, strict=True), **style)


def _label(panels: Sequence[Axes], direction: str, sizes: list[int]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    units = ((as_seconds, "time"), (as_bytes, "memory"))
    for axes, (unit, what) in zip(panels, units, strict=False):  # memory may not be known
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(f"{what}, {direction}")
        axes.set_xlabel("n")
        axes.set_xticks(sizes, [_count(size) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(unit))
        axes.yaxis.set_minor_formatter(NullFormatter())
        low, high = axes.get_ylim()
        if high < 100 * low:  # powers of ten alone might be a single tick
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.grid(True, which="major", alpha=0.3)


def _empty(text: str, figsize: tuple[float, float]) -> Figure:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(figsize[0], 1.2))
    axes.axis("off")
    axes.text(0.5, 0.5, text.replace(". ", ".\n"), ha="center", va="center")
    return figure


def _count(size: int) -> str:
    """A size, short where it is a multiple of 1,024.

    Example:
        >>> _count(65_536), _count(1 << 20), _count(20_000)
        ('64k', '1M', '20,000')
    """
    for unit, factor in (("M", 1 << 20), ("k", 1 << 10)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size:,}"


def as_seconds(value: float, _: object = None) -> str:
    """Seconds in a unit that fits.

    Example:
        >>> as_seconds(0.002)
        '2 ms'
    """
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= 0.9999 * factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def as_bytes(value: float, _: object = None) -> str:
    """Bytes in a unit that fits.

    Example:
        >>> as_bytes(2_000_000)
        '2 MB'
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= 0.9999 * factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g} B"
