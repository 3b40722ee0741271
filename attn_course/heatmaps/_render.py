"""From a drawing function to the bytes of a PNG, leaving no figure open."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render_png(draw: Callable[..., Figure], /, *args: Any, dpi: float, **kwargs: Any) -> bytes:
    """Call ``draw`` and return its figure as a PNG on white.

    Every figure that ``draw`` opened is closed, also when it fails.

    Raises:
        TypeError: ``draw`` returned something else than a figure.
    """
    from matplotlib import pyplot as plt
    from matplotlib.figure import Figure
    from PIL import Image

    before = set(plt.get_fignums())
    try:
        figure = draw(*args, **kwargs)
        if not isinstance(figure, Figure):
            raise TypeError(
                f"draw must return a matplotlib Figure, got {type(figure).__name__}. "
                "End it with 'return figure'."
            )
        png = BytesIO()
        # Without the name of the software, the same figure gives the same bytes.
        figure.savefig(
            png, format="png", dpi=dpi, facecolor="white", transparent=False,
            metadata={"Software": None},
        )  # fmt: skip
        # 255 colours are enough for a figure, and take a third of the room.
        small = BytesIO()
        image = Image.open(png).convert("RGB")
        image.quantize(255, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
        return small.getvalue()
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)


def png_width(png: bytes) -> int:
    """Pixels across, from the PNG's header."""
    return int.from_bytes(png[16:20], "big")
