"""Curves: the numbers of stats.jsonl are what is drawn."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pqvae.training.curves import curves_figure, draw_curves, matching, read_curves

LINES: list[dict[str, Any]] = [
    {"step": 50, "images_seen": 100, "loss": 3.0, "mse": 1.5},
    {"step": 100, "images_seen": 200, "loss": 2.0, "mse": 1.0},
    {"step": 100, "images_seen": 200, "val_psnr_1": 15.0, "val_psnr_2": 16.0, "val_psnr_16": 19.0},
    {"step": 150, "images_seen": 300, "loss": 1.0, "mse": 0.5},
    {"step": 200, "images_seen": 400, "val_psnr_1": 15.5, "val_psnr_2": 17.0, "val_psnr_16": 21.0},
]
PANELS = {"loss": ["loss", "mse"], "PSNR, dB": ["val_psnr_*"]}


@pytest.fixture
def stats(tmp_path: Path) -> Path:
    path = tmp_path / "stats.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def drawn(stats: Path, panels: dict[str, list[str]]) -> dict[str, dict[str, list[list[float]]]]:
    """For each panel's title its lines: label -> points."""
    figure = curves_figure(read_curves(stats), panels)
    assert figure is not None
    return {
        axes.get_title("left"): {
            str(line.get_label()): np.asarray(line.get_xydata()).tolist()
            for line in axes.get_lines()
        }
        for axes in figure.axes
    }


def test_the_lines_are_the_numbers_of_the_file(stats: Path) -> None:
    assert drawn(stats, PANELS) == {
        "loss": {
            "loss": [[50, 3.0], [100, 2.0], [150, 1.0]],
            "mse": [[50, 1.5], [100, 1.0], [150, 0.5]],
        },
        "PSNR, dB": {
            "1": [[100, 15.0], [200, 15.5]],
            "2": [[100, 16.0], [200, 17.0]],
            "16": [[100, 19.0], [200, 21.0]],
        },
    }


def test_a_pattern_stands_for_its_names_by_their_numbers() -> None:
    names = ["val_psnr_16", "loss", "val_psnr_2", "val_psnr_1", "val_psnr_128", "val_psnr"]
    found = matching(names, "val_psnr_*")
    assert list(found) == ["val_psnr_1", "val_psnr_2", "val_psnr_16", "val_psnr_128"]
    assert list(found.values()) == ["1", "2", "16", "128"]
    assert matching(names, "loss") == {"loss": "loss"}
    assert matching(names, "los") == {}


def test_an_order_has_a_colour_for_each_and_the_legend_is_in_the_order_of_the_ends(
    stats: Path,
) -> None:
    figure = curves_figure(read_curves(stats), PANELS)
    assert figure is not None
    legends = [axes.get_legend() for axes in figure.axes]
    texts = [[text.get_text() for text in legend.get_texts()] for legend in legends if legend]
    assert texts == [["loss", "mse"], ["16", "2", "1"]]
    for axes in figure.axes:
        colours = [line.get_color() for line in axes.get_lines()]
        assert len(set(colours)) == len(colours)


def test_a_line_that_a_kill_cut_is_skipped(stats: Path) -> None:
    whole = read_curves(stats)
    with open(stats, "a") as file:
        file.write('{"step": 250, "loss": 0.')
    assert read_curves(stats) == whole


@pytest.mark.parametrize("text", ["", '{"step": 50, "lr": 1.0}\n', None])
def test_no_numbers_make_no_picture(text: str | None, tmp_path: Path) -> None:
    stats = tmp_path / "stats.jsonl"
    if text is not None:
        stats.write_text(text)
    assert not draw_curves(stats, tmp_path / "curves.png", PANELS)
    assert not (tmp_path / "curves.png").exists()


def test_without_matplotlib_nothing_is_written(
    stats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not draw_curves(stats, stats.parent / "curves.png", PANELS)
    assert list(stats.parent.iterdir()) == [stats]


def test_the_picture_is_1200_pixels_wide_with_300_for_each_panel_that_has_numbers(
    stats: Path,
) -> None:
    path = stats.parent / "curves.png"
    path.write_bytes(b"an older one")
    assert draw_curves(stats, path, {**PANELS, "of another stage": ["val_bits_per_code"]})
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (1200, 600)
        colours = image.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert (0x00, 0x72, 0xB2) in [colour for _, colour in colours]  # the first curve is there
    assert sorted(file.name for file in stats.parent.iterdir()) == ["curves.png", "stats.jsonl"]


def test_numbers_that_are_not_finite_do_not_stop_the_drawing(tmp_path: Path) -> None:
    stats = tmp_path / "stats.jsonl"
    values = [math.nan, 1.0, 2.0, math.inf]
    lines = [{"step": step, "loss": value} for step, value in enumerate(values, 1)]
    stats.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert draw_curves(stats, tmp_path / "curves.png", PANELS)
    stats.write_text('{"step": 1, "loss": NaN}\n')
    assert draw_curves(stats, tmp_path / "curves.png", PANELS)
