"""Controls that redraw a figure, for a notebook with a running kernel."""

from __future__ import annotations

import inspect
from base64 import b64encode
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from attn_course.heatmaps._render import render_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110


def explore(
    draw: Callable[..., Figure], /, **controls: tuple[float, ...] | list[Any]
) -> Any:  # an ipywidgets.VBox, which may not be installed
    """Redraw a figure whenever a control is moved; needs a running kernel.

    For pages without one use ``slider``, whose frames are drawn ahead.

    Args:
        draw: Called with one keyword argument for each control; returns a figure,
            which is shown and closed. A parameter's default is where its control
            starts; without one, a slider starts halfway and a menu at its first entry.
        **controls: ``name=(low, high)`` or ``name=(low, high, step)`` gives a slider,
            whole-numbered if all are integers; ``name=[...]`` gives a menu.

    Returns:
        The widget, an ``ipywidgets.VBox``; let it be the last value of the cell.

    Raises:
        ImportError: ``ipywidgets`` is not installed.
        ValueError: There is no control, or one is neither kind.
    """
    if not controls:
        raise ValueError("explore needs at least one control, e.g. width=(0.1, 2.0); got none.")
    for name, control in controls.items():
        _check_control(name, control)
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise ImportError(
            "explore needs ipywidgets, which cannot be imported here "
            f"({error}): install it with 'pip install ipywidgets', or use "
            "attn_course.heatmaps.slider, which needs nothing."
        ) from error

    parameters = inspect.signature(draw).parameters
    inputs = {}
    for name, control in controls.items():
        known = name in parameters and parameters[name].default is not inspect.Parameter.empty
        start = parameters[name].default if known else None
        inputs[name] = _make(widgets, name, control, start)
    picture = widgets.HTML()

    def redraw() -> str:
        values = {name: widget.value for name, widget in inputs.items()}
        png = b64encode(render_png(draw, dpi=_DPI, **values)).decode()
        described = ", ".join(f"{name} = {value}" for name, value in values.items())
        return (
            f'<img src="data:image/png;base64,{png}" alt="Figure for {escape(described)}" '
            'style="max-width:100%;height:auto">'
        )

    def on_change(_: object) -> None:
        try:
            picture.value = redraw()
        except Exception as error:  # a callback's traceback would be lost: show what it says
            picture.value = f"<pre>{escape(type(error).__name__)}: {escape(str(error))}</pre>"

    picture.value = redraw()
    for widget in inputs.values():
        widget.observe(on_change, names="value")
    return widgets.VBox([*inputs.values(), picture])


def _check_control(name: str, control: object) -> None:
    if isinstance(control, list) and control:
        return
    numbers = isinstance(control, tuple) and all(
        isinstance(number, int | float) and not isinstance(number, bool) for number in control
    )
    if not numbers or len(control) not in (2, 3) or control[0] >= control[1]:  # type: ignore[arg-type, index]
        raise ValueError(
            f"{name} must be (low, high) or (low, high, step) with low < high, or a list "
            f"of choices that is not empty, got {control!r}."
        )
    if len(control) == 3 and control[2] <= 0:  # type: ignore[arg-type, index]
        raise ValueError(f"{name} must have a step above zero, got {control!r}.")


def _make(widgets: Any, name: str, control: Any, start: Any) -> Any:
    """One widget for one control."""
    if isinstance(control, list):
        chosen = start if start in control else control[0]
        return widgets.Dropdown(options=control, value=chosen, description=name)
    low, high, *step = control
    whole = all(isinstance(number, int) for number in control)
    if start is None:
        start = (low + high) // 2 if whole else (low + high) / 2
    make = widgets.IntSlider if whole else widgets.FloatSlider
    spacing = step[0] if step else (1 if whole else (high - low) / 50)
    # Redraw when the handle is let go, not at every pixel on the way.
    return make(
        min=low, max=high, step=spacing, value=min(max(start, low), high),
        description=name, continuous_update=False,
    )  # fmt: skip
