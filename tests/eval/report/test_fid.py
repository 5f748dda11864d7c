"""``eval.fid`` as a command: what it compares with, what it prints, and what is never lost."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eval.fid import main
from eval.measures.fidelity import fid
from eval.measures.statistics import Reference, Statistics, frechet_distance, write_statistics
from eval.networks import NETWORKS
from eval.networks.features import FeatureNetwork, Features, Images
from eval.subjects.samples import open_samples
from eval.subjects.selection import subset
from pqvae import lite0
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.images import encode_png
from tests.eval.full_disk import full_disk
from tests.eval.scoring import tiny_network

SIZE = 8
needs_lite0 = pytest.mark.skipif(
    lite0.installed_weights() is None, reason=f"{lite0.PACKAGE} is not installed"
)


class Tiny(nn.Module):
    """A stand-in for Inception: mean colours as features."""

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1),)


def load_tiny(weights: Path | None) -> FeatureNetwork:
    return FeatureNetwork(Tiny(), "tiny", 12, "2x2", "none", "0" * 64, False, "")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "inception", f"{__name__}:load_tiny")


def write_images(folder: Path, n: int, seed: int) -> None:
    """Four random colours an image."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (n, 3, 2, 2), dtype=torch.uint8, generator=generator)
    for index, image in enumerate(colours.repeat_interleave(4, 2).repeat_interleave(4, 3)):
        (folder / f"{index:06d}.png").write_bytes(encode_png(image))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: samples of another program, a plain reference, and one with splits."""
    monkeypatch.chdir(tmp_path)
    write_images(Path("samples"), 30, seed=0)
    write_images(Path("plain"), 50, seed=1)
    for seed, (split, n) in enumerate({"train": 40, "val": 12, "test": 20}.items()):
        write_images(Path("splits", split), n, seed=2 + seed)
    return tmp_path


def report_of(*arguments: str) -> dict[str, Any]:
    output = Path("report.json")
    paths = ["--samples", "samples", "--json", str(output), "--device", "cpu"]
    assert main([*paths, "--metrics", "fid", *arguments]) == 0
    return json.loads(output.read_text())


def plain_fid(first: str, second: str) -> float:
    """Of two folders, every image counted."""
    pools = []
    for folder in (first, second):
        images = open_samples(Path(folder))
        pools.append(Features(Tiny()(images.images(range(len(images))))[0], None, ""))
    return fid(pools[0], Reference(pools[1]))["fid"]


def test_all_images_of_a_plain_reference_count_and_none_are_a_floor(work: Path) -> None:
    report = report_of("--reference", "plain")
    (row,) = report["rows"]
    assert row["fid"] == pytest.approx(plain_fid("samples", "plain"), rel=1e-5)
    assert row["against"] == "all images"
    assert (
        report["facts"]["reference"] | {"data": "plain", "images": 50}
        == (report["facts"]["reference"])
    )
    assert any("no floor" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("arguments", "split", "floor"),
    [
        ([], "train", "test"),
        (["--split", "train"], "train", "test"),
        (["--split", "val"], "val", "test"),
        (["--split", "test"], "test", "val"),
    ],
)
def test_the_split_that_is_used_can_be_chosen_and_is_named(
    work: Path, arguments: list[str], split: str, floor: str, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, beside = report_of("--reference", "splits", *arguments)["rows"]
    assert samples["fid"] == pytest.approx(plain_fid("samples", f"splits/{split}"), rel=1e-5)
    assert samples["against"] == beside["against"] == f"{split} split"
    assert beside["subject"] == f"floor: {floor} split"
    assert f"{split} split" in capsys.readouterr().out.splitlines()[1]


def test_the_samples_own_data_keep_the_split_that_was_held_out(work: Path) -> None:
    record = {"n": 30, "data": dataclasses.asdict(DataConfig(path="plain", image_size=SIZE))}
    Path("samples", "samples.json").write_text(json.dumps(record))
    for arguments in ([], ["--reference", "./plain/"]):
        samples, floor = report_of(*arguments)["rows"]
        assert (samples["against"], floor["subject"]) == ("train split", "floor: test split")
        assert floor["images"] < 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reference", "plain", "--split", "test"], "--split test: plain has no splits"),
        (["--reference", "r.npz", "--split", "test"], "--split test: r.npz is statistics, witho"),
        (["--reference", "r.npz", "--by-class"], "--by-class: statistics alone have no classes"),
        (["--reference", "splits/train", "--by-class"], "the reference has no classes; put splits"),
        (["--samples", "s.npy"], "s.npy: not an .npz file; give one (numpy.savez makes it of"),
        (["--samples", "plain/000000.png"], "plain/000000.png: not an .npz file; give one"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    work: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("s.npy", np.zeros((4, SIZE, SIZE, 3), np.uint8))
    known = Statistics(torch.zeros(12), torch.eye(12), {})
    write_statistics(Path("r.npz"), known, load_tiny(None))
    command = ["--samples", "samples", "--json", "x.json", "--metrics", "fid", *arguments]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("x.json").exists()


def test_where_the_floor_has_no_classes_its_rows_of_classes_are_left_out(work: Path) -> None:
    for seed, name in enumerate(("dark", "light")):
        write_images(Path("flat", "train", name), 20, seed)
    write_images(Path("flat", "test"), 20, seed=9)
    pixels = open_samples(Path("samples")).images(range(30)).permute(0, 2, 3, 1).numpy()
    np.savez("samples.npz", pixels, np.array(["dark", "light"] * 15))
    report = report_of("--samples", "samples.npz", "--reference", "flat", "--by-class")
    subjects = [row["subject"] for row in report["rows"]]
    assert subjects == ["samples", "floor: test split", "dark, samples", "light, samples"]
    assert "no floor of each class: flat test has no classes" in report["notes"]


def test_equal_images_are_at_distance_zero_without_a_sign(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("samples", "copies")
    (row,) = report_of("--reference", "copies")["rows"]
    assert row["fid"] >= 0
    assert capsys.readouterr().out.splitlines()[1].split()[-1] == "0.00"
    for seed in range(12):  # of some, rounding takes the distance below 0
        points = torch.rand(20, 12, generator=torch.Generator().manual_seed(seed)).double()
        one = Statistics(points.mean(0), points.T.cov(), {})
        assert not str(frechet_distance(one, one)).startswith("-")


@torch.inference_mode()
def is_lite0(images: Images) -> float:
    """The Inception Score of images, step by step, by lite0's classifier."""
    network = lite0.load_network()
    n, order = len(images), np.random.RandomState(2020).permutation(len(images))
    shares = [network.classify(network(images.images([i]))[0])[0].softmax(0) for i in order]
    scores = []
    for part in range(10):
        split = shares[part * n // 10 : (part + 1) * n // 10]
        mean = torch.stack(split).double().mean(0)
        gains = [float((one.double() * (one.double() / mean).log()).sum()) for one in split]
        scores.append(np.exp(np.mean(gains)))
    return float(np.mean(scores))


@needs_lite0
def test_where_the_classifier_is_missing_that_of_lite0_scores_under_its_own_name(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_of("--reference", "splits", "--metrics", "fid,isc")
    samples, floor, reference = report["rows"]
    assert reference["subject"] == "reference"
    assert samples["is_lite0"] == pytest.approx(is_lite0(open_samples(Path("samples"))), rel=1e-4)
    data = DataConfig(path="splits", image_size=SIZE)
    assert floor["is_lite0"] == pytest.approx(
        is_lite0(subset(open_dataset(data, "test"))), rel=1e-4
    )
    assert reference["is_lite0"] == pytest.approx(
        is_lite0(subset(open_dataset(data, "train"))), rel=1e-4
    )
    for row in report["rows"]:
        assert not {"isc", "IS", "fd_lite0"} & row.keys()
    assert (samples["images"], floor["images"], reference["images"]) == (30, 20, 40)
    assert samples["fid"] == pytest.approx(plain_fid("samples", "splits/train"), rel=1e-5)
    assert "fid" not in reference
    assert report["facts"]["extractor"]["name"] == "tiny"
    assert report["facts"]["stand-in"]["sha256"] == lite0.WEIGHTS_SHA256
    assert any(note.startswith("is_lite0: the arithmetic of") for note in report["notes"])
    assert capsys.readouterr().out.splitlines()[0].split()[-1] == "is_lite0"
    # Asked for alone, and of the network by its name, it is the same.
    for more in (["--metrics", "isc"], ["--extractor", "lite0", "--metrics", "fid,isc"]):
        rows = report_of("--reference", "splits", *more)["rows"]
        assert [row["is_lite0"] for row in rows] == [
            row["is_lite0"] for row in (samples, floor, reference)
        ]


@needs_lite0
def test_a_decoders_own_network_is_named_as_no_independent_judge(work: Path) -> None:
    record = {"n": 30, "decoder_trained_with": "efficientnet-lite0, trained on labels"}
    Path("samples", "samples.json").write_text(json.dumps(record))
    judged = "no independent judge of them (is_lite0)"
    found = report_of("--reference", "splits", "--metrics", "fid,isc")["notes"]
    assert sum(judged in note for note in found) == 1
    Path("samples", "samples.json").write_text(json.dumps({"n": 30}))
    found = report_of("--reference", "splits", "--metrics", "fid,isc")["notes"]
    assert not any("no independent judge" in note for note in found)


def test_where_lite0_is_missing_too_one_note_says_why(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lite0, "PACKAGE", "no_such_package")
    report = report_of("--reference", "splits", "--metrics", "fid,isc")
    assert [row["subject"] for row in report["rows"]] == ["samples", "floor: test split"]
    (why,) = [note for note in report["notes"] if "lite0" in note]
    assert why.startswith("nor by lite0 in its place: no lite0 weights: no_such_package is not")


def load_classifier(weights: Path | None) -> FeatureNetwork:
    return tiny_network()


def test_nothing_stands_in_for_a_classifier_that_is_there(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "inception", f"{__name__}:load_classifier")
    monkeypatch.delitem(NETWORKS, "lite0")
    report = report_of("--reference", "splits", "--metrics", "fid,isc")
    assert [set(row) & {"isc", "is_lite0"} for row in report["rows"]] == [{"isc"}] * 3
    assert "stand-in" not in report["facts"]


@contextlib.contextmanager
def left() -> Iterator[io.TextIOWrapper]:
    """A pipe that nobody reads from any more."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        yield stream


@pytest.mark.parametrize(("stdout", "code"), [(full_disk, 2), (left, 0)])
def test_scores_that_cannot_be_printed_are_written(
    work: Path,
    stdout: Any,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--samples", "samples", "--reference", "plain", "--export-reference", "r.npz"]
    with stdout() as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert main([*arguments, "--metrics", "fid", "--device", "cpu"]) == code
    expected = ["error: output: no space left on the disk"] if code else []
    assert capsys.readouterr().err.splitlines() == expected
    assert json.loads(Path("samples-fid.json").read_text())["rows"][0]["fid"] > 0
    assert Path("r.npz").is_file()


def test_a_deviation_is_shown_in_ascii_where_there_is_nothing_else(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.measures.fidelity.KID_SUBSET_SIZE", 10)
    printed = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(printed, "ascii"))
        report_of("--reference", "plain", "--metrics", "kid")
        shown = printed.getvalue().decode("ascii")
    assert " +- " in shown.splitlines()[1]
