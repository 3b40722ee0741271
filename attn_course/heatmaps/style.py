"""The course's colours and its matplotlib settings.

Eight colours that stay apart for readers with the common forms of colour blindness
(Okabe and Ito, 2008, Color universal design), and two colour maps made from them.
"""

from __future__ import annotations

import matplotlib
from cycler import cycler
from matplotlib.colors import LinearSegmentedColormap

BLACK = "#000000"
ORANGE = "#E69F00"
SKY_BLUE = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
BLUE = "#0072B2"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"

#: The order in which lines take colours; yellow comes late, being faint on white.
PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY_BLUE, BLACK, YELLOW)

#: What a cell that may not be attended to is filled and hatched with.
MASKED_FILL = "#E4E4E4"
MASKED_HATCH = "#8A8A8A"

#: For weights: nearly white at zero, darker all the way up.
SEQUENTIAL = LinearSegmentedColormap.from_list(
    "course_weights", ["#FBFCFE", "#C6DEF0", "#72B1DA", BLUE, "#003A66", "#001A33"]
)

#: For numbers of both signs: vermillion below zero, nearly white at it, blue above.
DIVERGING = LinearSegmentedColormap.from_list(
    "course_signed", ["#5C2600", VERMILLION, "#F3B48A", "#FBFCFE", "#83BADF", BLUE, "#00294D"]
)


def use_style() -> None:
    """Set matplotlib up for the course: palette, sizes, an opaque white background.

    Figures stay white on a dark page, where transparent ones would lose their black
    text. Sizes are chosen to be legible when a figure is shown 400 pixels wide.

    Example:
        >>> import matplotlib
        >>> use_style()
        >>> matplotlib.rcParams["figure.dpi"]
        110.0
    """
    matplotlib.rcParams.update(
        {
            "figure.figsize": (5.0, 3.2),
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "savefig.facecolor": "white",
            "savefig.transparent": False,
            "axes.facecolor": "white",
            "axes.edgecolor": "#444444",
            "axes.prop_cycle": cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 12,
            "axes.labelsize": 11,
            "font.size": 11,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "legend.fontsize": 10,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "image.cmap": SEQUENTIAL.name,
            "text.color": "black",
            "axes.labelcolor": "black",
            "xtick.color": "black",
            "ytick.color": "black",
        }
    )


for _cmap in (SEQUENTIAL, DIVERGING):
    # By name too; importing the module again must not fail.
    matplotlib.colormaps.register(_cmap, force=True)
