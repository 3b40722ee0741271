"""A slider over frames drawn ahead of time: no kernel, no network, one HTML snippet."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from hashlib import sha256
from html import escape
from typing import TYPE_CHECKING, Any

from attn_course.heatmaps._render import png_width, render_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Everything is found from the input itself, so that sliders on one page, or one slider
# shown twice, do not touch each other.
_ON_INPUT = (
    "var b=this.closest('.attn-slider'),f=b.querySelectorAll('img'),i=+this.value;"
    "for(var k=0;k!==f.length;k++)f[k].style.display=k===i?'block':'none';"
    "var t=f[i].dataset.text;this.setAttribute('aria-valuetext',t);"
    "b.querySelector('output').textContent=t"
)


class Slider:
    """Frames and the HTML that switches them; notebooks show it as it is.

    Attributes:
        id: The ``id`` of the HTML element, made from the content.
        texts: The values as they are shown.
    """

    def __init__(
        self, frames: list[bytes], texts: list[str], alts: list[str], *,
        label: str, start: int, width: int,
    ) -> None:  # fmt: skip
        """Keep PNG frames, one text and one alternative text for each."""
        self._frames, self.texts, self._alts = frames, texts, alts
        self._label, self._start, self._width = label, start, width
        digest = sha256(repr((label, texts, alts, start, width)).encode())
        for frame in frames:
            digest.update(sha256(frame).digest())
        self.id = f"attn-slider-{digest.hexdigest()[:12]}"

    def __repr__(self) -> str:
        """For example ``<Slider 'width': 5 frames>``."""
        return f"<Slider {self._label!r}: {len(self._frames)} frames>"

    def _repr_html_(self) -> str:
        images = "\n".join(
            f'<img src="data:image/png;base64,{b64encode(frame).decode()}" '
            f'alt="{escape(alt)}" data-text="{escape(text)}" '
            f'style="display:{"block" if i == self._start else "none"};'
            f'width:{self._width}px;max-width:100%;height:auto;margin:0;background:white">'
            for i, (frame, text, alt) in enumerate(
                zip(self._frames, self.texts, self._alts, strict=True)
            )
        )
        label, shown, control = escape(self._label), escape(self.texts[self._start]), self.id
        return (
            f'<div class="attn-slider" id="{control}" '
            f'style="max-width:{self._width}px;color:inherit;font:inherit">\n{images}\n'
            '<div style="display:flex;flex-wrap:wrap;gap:0 1em;align-items:center;'
            'padding:0.4em 0">'
            f'<label for="{control}-range">{label}: '
            f'<output for="{control}-range" aria-live="off" style="display:inline;'
            'padding:0;color:inherit;font-weight:bold;font-variant-numeric:tabular-nums">'
            f"{shown}</output></label>"
            f'<input type="range" id="{control}-range" min="0" max="{len(self.texts) - 1}" '
            f'step="1" value="{self._start}" autocomplete="off" aria-label="{label}" '
            f'aria-valuetext="{shown}" oninput="{escape(_ON_INPUT)}" '
            'style="flex:1 1 12em;min-width:8em;height:2em;margin:0;accent-color:#0072B2">'
            "</div>\n</div>"
        )


def slider(
    draw: Callable[[Any], Figure],
    values: Sequence[Any],
    *,
    label: str,
    alt: str | Callable[[Any], str],
    fmt: str | Callable[[Any], str] = "{:g}",
    start: int = 0,
    width: int | None = None,
    dpi: float = 110,
) -> Slider:
    """Draw a figure for each value, and let the reader slide through them.

    The frames are drawn now and stored as images, so that the slider works on a
    plain page as it does in a notebook. Without JavaScript the start frame shows.

    Args:
        draw: Takes one value and returns a matplotlib figure, which is closed. Give
            all of them one size and one scale, lest the page jump.
        values: What to draw, in the order of the slider.
        label: What the values are, e.g. ``"kernel width"``.
        alt: What a frame shows, for someone who cannot see it: a text with
            ``{value}`` where the value goes, or a function of the value.
        fmt: How a value is written: a format such as ``"{:.2f}"``, or a function.
            Strings are written as they are.
        start: Index of the value shown first.
        width: In pixels on the page, at most; that of the start frame by default.
        dpi: Pixels to the inch.

    Returns:
        An object that notebooks show, with ``_repr_html_``.

    Raises:
        TypeError: ``draw`` does not return a figure.
        ValueError: There are no values, ``start`` is none of their indices, or a
            label or alternative text is missing.

    Example:
        >>> from matplotlib.figure import Figure
        >>> slider(lambda size: Figure((size, 1)), [1, 2], label="size", alt="Size {value}.")
        <Slider 'size': 2 frames>
    """
    values = list(values)
    if not values:
        raise ValueError("values must hold at least one value, got none.")
    if not 0 <= start < len(values):
        raise ValueError(f"start must lie in [0, {len(values) - 1}], got {start}.")
    if not label.strip():
        raise ValueError(f"label must say what the values are, got {label!r}.")
    if isinstance(alt, str) and "{value}" not in alt and len(values) > 1:
        raise ValueError(f"alt must have a place for '{{value}}' or be a function, got {alt!r}.")
    if width is not None and width < 1:
        raise ValueError(f"width must be at least 1 pixel, got {width}.")
    texts = [_text(value, fmt) for value in values]
    alts = [
        alt.replace("{value}", text) if isinstance(alt, str) else alt(value)
        for value, text in zip(values, texts, strict=True)
    ]
    for value, described in zip(values, alts, strict=True):
        if not described.strip():
            raise ValueError(f"alt must describe every frame, got {described!r} for {value!r}.")
    frames = [render_png(draw, value, dpi=dpi) for value in values]
    shown = png_width(frames[start]) if width is None else width
    return Slider(frames, texts, alts, label=label, start=start, width=shown)


def _text(value: Any, fmt: str | Callable[[Any], str]) -> str:
    if callable(fmt):
        return fmt(value)
    return value if isinstance(value, str) else fmt.format(value)
