"""The command of near-copies: its table, its report, its pictures, and what it refuses."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.measures.near_copies import Neighbours
from eval.memorization import main
from eval.report.memorization import save_pairs
from eval.subjects.selection import Selection
from pqvae import lite0
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from tests.eval.pictures import SIZE, in_memory, random_images, write_images

needs_lite0 = pytest.mark.skipif(
    lite0.installed_weights() is None, reason=f"{lite0.PACKAGE} is not installed"
)


def test_pairs_are_drawn_with_the_sample_above(data: DataConfig, tmp_path: Path) -> None:
    images = random_images(3, seed=9)
    indices, distances = torch.tensor([7, 5, 6]), torch.tensor([2.0, 3.0, 1.0])
    found = Neighbours(indices, distances, torch.ones(3, dtype=torch.bool))
    train = open_dataset(data, "train")
    seen = Selection(train, range(len(train)))
    save_pairs(tmp_path / "pairs.png", in_memory(images), seen, found)
    with Image.open(tmp_path / "pairs.png") as file:
        grid = np.array(file)
    zoom = 96 // SIZE
    for column, (sample, training_image) in enumerate([(2, 6), (0, 7), (1, 5)]):
        for row, expected in enumerate((images[sample], train.images([training_image])[0])):
            top, left = (2 + place * (SIZE * zoom + 2) for place in (row, column))
            cell = grid[top : top + SIZE * zoom : zoom, left : left + SIZE * zoom : zoom]
            assert np.array_equal(cell, expected.permute(1, 2, 0).numpy())


@pytest.fixture
def samples(tmp_path: Path, data: DataConfig) -> Path:
    """A folder such as ``sampling.generate`` writes, without its prior."""
    folder = tmp_path / "samples"
    write_images(folder / "images", random_images(12, seed=9))
    record = {"n": 12, "seed": 5, "data": asdict(data), "complete": True}
    (folder / "samples.json").write_text(json.dumps(record))
    return folder


def nothing(samples: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (nothing, ["--samples", "no/such"], "no/such: no such folder"),
        (nothing, ["--n", "13"], "--n 13: .* holds 12 images"),
        (nothing, ["--n", "0"], "not a whole number of at least 1"),
        (nothing, ["--reference", "no/data"], "no/data: no such file or folder"),
        (nothing, ["--extractor", "vgg"], "invalid choice: 'vgg'"),
        (nothing, ["--weights", __file__], "test_memorization.py: sha256 is .*, expected 57934424"),
        (nothing, ["--json", "no/such/copies.json"], "there is no folder no/such"),
        (nothing, ["--json", "copies.txt"], "--json copies.txt: must end in .json"),
        (nothing, ["--device", "abacus"], "device 'abacus'"),
        (lambda s: (s / "images" / "000003.png").write_text("x"), [], "000003.png: not an image"),
        (lambda s: (s / "samples.json").write_text("{"), [], "samples.json: not a JSON file"),
        (lambda s: (s / "samples.json").write_text('{"n": 12}'), [], "names no data"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    samples: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], object],
    arguments: list[str],
    message: str,
) -> None:
    spoil(samples)
    assert main(["--samples", str(samples), *arguments]) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert re.match(f"error: .*{message}", line)
    assert output.out == ""
    assert {path.name for path in samples.iterdir()} == {"images", "samples.json"}


@needs_lite0
def test_command_prints_the_table_and_writes_report_and_pictures(
    samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--samples", str(samples), "--reference-n", "20", "--device", "cpu"]
    assert main(arguments) == 0
    output = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in output[1:4]] == ["samples", "held-out", "samples"]
    assert any("no bits of the prior: " in line and "names no prior" in line for line in output)
    assert output[-1].startswith(f"wrote {samples}/memorization.json")
    report = json.loads((samples / "memorization.json").read_text())
    assert report["facts"]["extractor"]["sha256"] == lite0.WEIGHTS_SHA256
    assert report["facts"]["sampler"]["seed"] == 5
    pictures = {path.name for path in samples.glob("*.png")}
    assert pictures == {"memorization-features.png", "memorization-pixels.png"}


@needs_lite0
def test_all_images_of_a_plain_reference_count_as_training_images(
    samples: Path, tmp_path: Path
) -> None:
    write_images(tmp_path / "plain", random_images(20, seed=9))  # those of the samples, and more
    arguments = ["--samples", str(samples), "--reference", str(tmp_path / "plain")]
    assert main([*arguments, "--device", "cpu"]) == 0
    report = json.loads((samples / "memorization.json").read_text())
    (row,) = report["rows"]
    assert (row["images"], row["equal"]) == (12, 12)
    assert report["facts"]["training"]["images"] == 20
    assert any(note.startswith("no held-out images: ") for note in report["notes"])


@needs_lite0
def test_pictures_of_a_plain_folder_do_not_become_samples(
    samples: Path, data: DataConfig, tmp_path: Path
) -> None:
    (samples / "images").rename(tmp_path / "plain")
    arguments = ["--samples", str(tmp_path / "plain"), "--reference", data.path, "--n", "2"]
    assert main([*arguments, "--reference-n", "2", "--device", "cpu"]) == 0
    assert len(list((tmp_path / "plain").iterdir())) == 12
    assert (tmp_path / "plain-memorization.json").is_file()
    assert (tmp_path / "plain-memorization-pixels.png").is_file()
