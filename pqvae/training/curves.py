"""Curves of a training run: the numbers in its ``stats.jsonl`` as one picture."""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pqvae.files import atomic_path
from pqvae.plots import COLOURS, DPI, INK, WIDTH, finish_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_HEIGHT = 300  # pixels

Curve = tuple[list[int], list[float]]  # steps, values


def draw_curves(stats: Path, path: Path, panels: Mapping[str, Sequence[str]]) -> bool:
    """Draw a run's numbers over its steps, a panel for each title, to a PNG.

    Args:
        stats: The run's ``stats.jsonl``.
        path: The picture.
        panels: For each title the names of scalars; ``val_psnr_*`` stands for all that begin so.

    Returns:
        Whether there is a picture: not without matplotlib, nor without numbers.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        return False
    figure = curves_figure(read_curves(stats), panels)
    if figure is None:
        return False
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
    return True


def read_curves(stats: Path) -> dict[str, Curve]:
    """Each scalar's steps and values."""
    curves: dict[str, Curve] = {}
    for line in stats.read_text().splitlines() if stats.exists() else ():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that a kill cut short
        for name in values.keys() - {"step"}:
            steps, numbers = curves.setdefault(name, ([], []))
            steps.append(values["step"])
            numbers.append(values[name])
    return curves


def matching(names: Iterable[str], pattern: str) -> dict[str, str]:
    """The names that a pattern stands for, by the number at their end; and a label for each."""
    stem, star, _ = pattern.partition("*")
    if not star:
        return {pattern: pattern} if pattern in names else {}
    found = [name for name in names if name.startswith(stem)]
    found.sort(key=lambda name: (int("0" + re.split(r"\D", name)[-1]), name))
    return {name: name.removeprefix(stem) for name in found}


def curves_figure(
    curves: Mapping[str, Curve], panels: Mapping[str, Sequence[str]]
) -> "Figure | None":
    """The figure, as matplotlib has it; None where no panel has a number."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    chosen = {title: [matching(curves, one) for one in names] for title, names in panels.items()}
    chosen = {title: groups for title, groups in chosen.items() if any(groups)}
    if not chosen:
        return None
    size = (WIDTH / DPI, PANEL_HEIGHT * len(chosen) / DPI)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)  # inches
    figure = Figure(figsize=size, dpi=DPI, layout=layout, facecolor="white")
    axes = figure.subplots(len(chosen), sharex=True, squeeze=False)[:, 0]
    for panel, (title, groups) in zip(axes, chosen.items(), strict=True):
        _draw_panel(panel, title, groups, curves)
    axes[-1].set_xlabel("step", color=INK)
    return figure


def _draw_panel(
    panel: "Axes", title: str, groups: Sequence[Mapping[str, str]], curves: Mapping[str, Curve]
) -> None:
    from matplotlib import colormaps

    ends = {}  # each line's last value
    unused = itertools.cycle(COLOURS)
    for names in groups:
        for place, (name, label) in enumerate(names.items()):
            # An order is shown as one, without the yellow, which is too light on white.
            share = 0.12 + 0.83 * place / max(len(names) - 1, 1)
            colour = colormaps["viridis_r"](share) if len(names) > 1 else next(unused)
            steps, values = curves[name]
            (line,) = panel.plot(steps, values, label=label, color=colour, linewidth=1.6)
            ends[line] = values[-1]
            if len(steps) <= 40:
                line.set(marker="o", markersize=3.5)
    finish_axes(panel, title, ends)
