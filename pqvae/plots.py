"""One look for every plot, and curves over whatever grows as one picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pqvae.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

WIDTH, DPI = 1200, 100  # pixels, dots per inch
NO_PLOT = "no plot: matplotlib is not installed"
PANEL_HEIGHT = 420  # pixels
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # of Okabe and Ito, for any eyes
PALETTE = (*COLOURS, "#E69F00", "#56B4E9", "#000000", "#7F7F7F")  # the first six of Okabe and Ito
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


@dataclass(frozen=True, slots=True)
class Panel:
    """One set of axes."""

    title: str
    across: str  # what grows to the right
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]  # by label: places, values
    log: bool = False  # to the right, by powers of two
    log_up: bool = False  # upward, by powers of ten


def save_plot(path: Path, panels: Sequence[Panel]) -> bool:
    """Draw the panels, one below the other, to a PNG; False where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    size = (WIDTH / DPI, PANEL_HEIGHT * len(panels) / DPI)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    labels = dict.fromkeys(label for panel in panels for label in panel.lines)
    colours = {label: PALETTE[place % len(PALETTE)] for place, label in enumerate(labels)}
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        ends = {}
        if panel.log:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        if panel.log_up:
            axes.set_yscale("log")
        for label, (places, values) in panel.lines.items():
            marker = "o" if len(places) <= 40 else None
            (line,) = axes.plot(
                places, values, color=colours[label], label=label, marker=marker, markersize=3.5
            )
            ends[line] = values[-1]
        axes.set_xlabel(panel.across, color=INK)
        finish_axes(axes, panel.title, ends)
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
    return True
