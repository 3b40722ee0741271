"""Attention weights as pictures: queries run down, keys run across."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from attn_course.heatmaps.style import DIVERGING, MASKED_FILL, MASKED_HATCH, SEQUENTIAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_SHAPES = "[query_len, key_len], [cols, query_len, key_len] or [rows, cols, query_len, key_len]"

# Beyond this ratio of the sides cells are stretched, lest the picture be a line.
_MAX_RATIO = 4.0


def show_heatmaps(
    weights: Any,
    *,
    xlabel: str = "Keys",
    ylabel: str = "Queries",
    titles: str | Sequence[str] | None = None,
    row_titles: Sequence[str] | None = None,
    query_tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    mask: Any = None,
    shared_scale: bool = True,
    vmax: float | None = None,
    bar_label: str | None = None,
    figsize: tuple[float, float] | None = None,
    cmap: str | Colormap | None = None,
) -> Figure:
    """Draw attention weights, one panel for each matrix.

    The scale starts at zero; if a number is negative, it reaches equally far to both
    sides of zero. Masked cells are hatched in grey, never coloured as zero. The data
    are copied to the CPU, and the figure keeps nothing of the graph alive.

    Args:
        weights: A tensor or array ``[query_len, key_len]``,
            ``[cols, query_len, key_len]`` or ``[rows, cols, query_len, key_len]``.
        xlabel: Below the bottom panels.
        ylabel: Left of the leftmost panels.
        titles: One for each column, or one for each panel, row by row.
        row_titles: One for each row.
        query_tokens: Names of the queries, down the side.
        key_tokens: Names of the keys, across the bottom.
        mask: Booleans, ``True`` = may attend; broadcasts to ``weights``.
        shared_scale: One scale and one colour bar for all panels, or one for each.
        vmax: Where the scale ends; the largest weight by default.
        bar_label: Beside each colour bar: what the colours count.
        figsize: In inches; by default from the shape, at most 7 across.
        cmap: A colour map, in place of the course's.

    Returns:
        The figure, not yet shown: call ``plt.show()``.

    Raises:
        TypeError: ``mask`` does not hold booleans.
        ValueError: A shape, a number of titles or tokens, or ``vmax`` is out of place,
            or a weight is not finite.

    Example:
        >>> figure = show_heatmaps(torch.eye(3), key_tokens=["a", "b", "c"])
        >>> figure.axes[0].get_xlabel()
        'Keys'
    """
    from matplotlib import pyplot as plt

    data = _to_numpy(weights)
    if data.ndim not in (2, 3, 4) or 0 in data.shape:
        raise ValueError(
            f"weights must have shape {_SHAPES}, none of them 0, got {list(data.shape)}."
        )
    if data.dtype.kind not in "fiub":
        raise ValueError(f"weights must hold real numbers, got {data.dtype}.")
    data = data.astype(np.float64)
    hidden = _hidden(mask, data.shape)
    data = np.ma.masked_array(data, hidden)
    if not np.isfinite(data.compressed()).all():
        raise ValueError(
            "weights must be finite where they are shown, got NaN or infinity. A row that may "
            "attend to nothing should be zero: look at the softmax."
        )
    if vmax is not None and not 0 < vmax < float("inf"):
        raise ValueError(f"vmax must be positive and finite, got {vmax}.")
    data = data.reshape((1,) * (4 - data.ndim) + data.shape)
    rows, cols, query_len, key_len = data.shape
    names = _titles(titles, rows, cols)
    _check_count("row_titles", row_titles, rows, "rows")
    _check_count("query_tokens", query_tokens, query_len, "queries")
    _check_count("key_tokens", key_tokens, key_len, "keys")

    signed = bool((data < 0).any())
    colours = plt.get_cmap(cmap if cmap is not None else DIVERGING if signed else SEQUENTIAL)
    size = figsize or _figsize(
        rows,
        cols,
        query_len / key_len,
        left=0.7 + 0.08 * _longest(query_tokens) + (0.25 if row_titles else 0),
        right=0.7 if shared_scale else 0.7 * cols,
        below=0.75 if key_tokens is None else 0.75 + 0.055 * _longest(key_tokens),
    )
    figure, axes = plt.subplots(
        rows, cols, figsize=size, sharex=True, sharey=True, squeeze=False,
        layout="compressed", facecolor="white",
    )  # fmt: skip
    stretch = not 1 / _MAX_RATIO <= query_len / key_len <= _MAX_RATIO
    for i in range(rows):
        for j in range(cols):
            ax, panel = axes[i, j], data[i, j]
            top = vmax or _largest(data if shared_scale else panel)
            image = ax.imshow(
                panel.filled(0), cmap=colours, vmin=-top if signed else 0, vmax=top,
                interpolation="nearest", aspect="auto" if stretch else "equal",
            )  # fmt: skip
            for side in ax.spines.values():
                side.set(visible=True, color="#888888", linewidth=0.8)
            _hatch(ax, np.ma.getmaskarray(panel))
            ax.set_title(names[i][j])
            beyond = _extend(data if shared_scale else panel, top)
            if not shared_scale:
                figure.colorbar(image, ax=ax, extend=beyond, label=bar_label or "")
    if shared_scale:
        figure.colorbar(image, ax=axes, extend=beyond, label=bar_label or "")
    for ax in axes[-1]:
        ax.set_xlabel(xlabel)
    for i, ax in enumerate(axes[:, 0]):
        ax.set_ylabel(f"{row_titles[i]}\n{ylabel}" if row_titles else ylabel)
    # Panels share their axes: setting the first sets all.
    _label(axes[0, 0].xaxis, key_len, key_tokens, size[0] / cols)
    _label(axes[0, 0].yaxis, query_len, query_tokens, size[1] / rows)
    if key_tokens and _longest(key_tokens) > 1:  # single characters stand upright
        for ax in axes[-1]:
            plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    for ax in axes.flat:  # ticks outside only, and none for a token, which names its cell
        spec = ax.get_subplotspec()
        ax.tick_params(axis="x", bottom=spec.is_last_row() and not key_tokens)
        ax.tick_params(axis="y", left=spec.is_first_col() and not query_tokens)
    return figure


def _to_numpy(values: Any) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _hidden(mask: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which cells the mask hides, in the shape of the weights."""
    if mask is None:
        return np.zeros(shape, dtype=bool)
    allowed = _to_numpy(mask)
    if allowed.dtype != np.bool_:
        raise TypeError(f"mask must hold booleans (True = may attend), got {allowed.dtype}.")
    try:
        return ~np.broadcast_to(allowed, shape)
    except ValueError:
        raise ValueError(
            f"mask must broadcast to {list(shape)}, the shape of weights, "
            f"got {list(allowed.shape)}."
        ) from None


def _check_count(name: str, given: Sequence[str] | None, expected: int, what: str) -> None:
    if given is not None and (isinstance(given, str) or len(given) != expected):
        came = repr(given) if isinstance(given, str) else str(len(given))
        raise ValueError(f"{name} must hold {expected}, one for each of the {what}, got {came}.")


def _titles(titles: str | Sequence[str] | None, rows: int, cols: int) -> list[list[str]]:
    """The title of each panel."""
    if titles is None:
        return [[""] * cols] * rows
    flat = [titles] if isinstance(titles, str) else list(titles)
    if len(flat) == rows * cols:
        return [flat[i * cols : (i + 1) * cols] for i in range(rows)]
    if len(flat) == cols:
        return [flat] + [[""] * cols] * (rows - 1)
    either = f"{cols}, one for each column" + (f", or {rows * cols}" if rows > 1 else "")
    raise ValueError(f"titles must hold {either}, got {len(flat)}.")


def _largest(data: np.ma.MaskedArray[Any, Any]) -> float:
    """Where the scale ends: the largest size of a number shown, 1 if there is none."""
    shown = np.abs(data.compressed())
    return float(shown.max(initial=0.0)) or 1.0


def _extend(data: np.ma.MaskedArray[Any, Any], top: float) -> str:
    """Which ends of the colour bar get an arrow, for numbers beyond the scale."""
    above, below = bool((data > top).any()), bool((data < -top).any())
    return "both" if above and below else "max" if above else "min" if below else "neither"


def _hatch(ax: Axes, hidden: NDArray[np.bool_]) -> None:
    """Lay one hatched patch over all cells that are hidden."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    runs = []
    for i, row in enumerate(hidden):
        edges = np.flatnonzero(np.diff(np.concatenate(([False], row, [False])).astype(int)))
        for start, stop in edges.reshape(-1, 2):  # neighbouring cells as one rectangle
            left, right, top, bottom = start - 0.5, stop - 0.5, i - 0.5, i + 0.5
            corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
            runs.append(Path(corners, closed=True))
    if runs:
        ax.add_patch(
            PathPatch(
                Path.make_compound_path(*runs), facecolor=MASKED_FILL, edgecolor=MASKED_HATCH,
                hatch="////", linewidth=0, label="masked",
            )
        )  # fmt: skip


def _longest(tokens: Sequence[str] | None) -> int:
    return max(map(len, tokens)) if tokens else 0


def _figsize(
    rows: int, cols: int, ratio: float, *, left: float, right: float, below: float
) -> tuple[float, float]:
    """Panels 2.2 to 3.2 inches wide, narrower where there are many; 7 inches at most."""
    ratio = min(max(ratio, 1 / _MAX_RATIO), _MAX_RATIO)
    panel = min(3.2 if cols == 1 else 2.2, (7.0 - left - right) / cols - 0.1, 6.0 / ratio)
    panel = max(panel, 0.5)
    return max(cols * (panel + 0.1) + left + right, 3.0), max(
        rows * (panel * ratio + 0.3) + below, 1.8
    )


def _label(axis: Axis, length: int, tokens: Sequence[str] | None, inches: float) -> None:
    """Name every position by its token, or number as many as there is room for."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator

    if tokens is None:
        bins = min(max(int(2.5 * inches), 1), 6)
        axis.set_major_locator(MaxNLocator(nbins=bins, integer=True, min_n_ticks=1))
        return
    axis.set_major_locator(FixedLocator(range(length)))
    axis.set_major_formatter(FixedFormatter(list(tokens)))
