"""One look for every plot."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

WIDTH, DPI = 1200, 100  # pixels, dots per inch
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # of Okabe and Ito, for any eyes
INK, FRAME, GRID = "#333333", "#999999", "#e6e6e6"


def finish_axes(axes: "Axes", title: str, ends: Mapping["Line2D", float]) -> None:
    """Give axes the look of every plot here, and a legend.

    Args:
        axes: With their lines drawn.
        title: Stands above them.
        ends: Each line's last value: the legend is in this order, beside the axes.
    """
    axes.set_title(title, loc="left", fontsize=12, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)
    axes.tick_params(color=FRAME, labelcolor=INK, labelsize=10)
    # Beside the axes, where it hides nothing; in the order in which the lines end.
    handles = sorted(ends, key=lambda line: -ends[line])
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1.03), frameon=False)
