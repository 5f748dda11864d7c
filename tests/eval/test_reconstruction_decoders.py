"""``eval.reconstruction --decoder``: whose pictures are measured, and who may not judge them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from eval.reconstruction import main
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.images import psnr, to_float, to_uint8
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.decoder_config import DrawnConfig

if TYPE_CHECKING:
    from tests.conftest import TinyRun

TRAINED_WITH = "efficientnet-lite0, trained on labels"


@pytest.fixture
def brighter(tiny_run: "TinyRun", tmp_path: Path) -> Path:
    """The tiny tokenizer with a vivid decoder whose pictures are another."""
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    decoder = tokenizer.add_decoder("vivid", DrawnConfig(width=16, depth=0, full_width=16))
    with torch.no_grad():
        decoder.output[-1].bias.fill_(0.4)  # type: ignore[missing-attribute]
    provenance = {**tokenizer.provenance, "decoders": {"vivid": {"trained_with": TRAINED_WITH}}}
    tokenizer.save_pretrained(tmp_path / "brighter", provenance)
    return tmp_path / "brighter"


def run(tokenizer: Path, data: Path, *more: str) -> tuple[int, Path]:
    output = tokenizer / "out.json"
    where = ["--tokenizer", str(tokenizer), "--data", str(data), "--json", str(output)]
    return main([*where, "--device", "cpu", *more]), output


def test_the_decoder_asked_for_is_measured_at_the_prefixes_asked_for(
    brighter: Path, tiny_run: "TinyRun", capsys: pytest.CaptureFixture[str]
) -> None:
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in ("faithful", "vivid"):
        status, output = run(
            brighter, tiny_run.data, "--decoder", name, "--prefixes", "6,2", "--extractor",
            "none",
        )  # fmt: skip
        assert status == 0
        report = json.loads(output.read_text())
        rows[name] = report["rows"]
        assert report["facts"]["decoder"]["name"] == name
    assert [row["codes"] for row in rows["vivid"]] == [2, 6]
    tokenizer = Tokenizer.from_pretrained(brighter)
    images = open_dataset(DataConfig(path=str(tiny_run.data), image_size=16), "test")
    originals = images.images(range(len(images)))
    codes = tokenizer.encode(to_float(originals))
    for row in rows["vivid"]:
        pictures = to_uint8(tokenizer.decode(codes[:, : row["codes"]], "vivid"))
        assert row["psnr"] == pytest.approx(psnr(pictures, originals).mean().item(), abs=0.01)
    for vivid, faithful in zip(rows["vivid"], rows["faithful"], strict=True):
        assert vivid["psnr"] < faithful["psnr"] - 0.5
    assert "lite0_distance" not in rows["vivid"][0]  # it was trained with that network
    assert f"the decoder was trained with {TRAINED_WITH}" in capsys.readouterr().out


def test_a_network_does_not_judge_the_decoder_that_it_has_trained(
    brighter: Path, tiny_run: "TinyRun", capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--decoder", "vivid", "--extractor", "lite0"]
    assert run(brighter, tiny_run.data, *given)[0] == 2
    assert f"the decoder was trained with {TRAINED_WITH}" in capsys.readouterr().err


def test_unknown_decoders_and_prefixes_are_one_line(
    brighter: Path, tiny_run: "TinyRun", capsys: pytest.CaptureFixture[str]
) -> None:
    for given, said in (
        (["--decoder", "sharp"], "no decoder 'sharp', only faithful, vivid"),
        (["--prefixes", "7"], "--prefixes 7: an image has 1 to 6 codes"),
    ):
        assert run(brighter, tiny_run.data, *given)[0] == 2
        assert said in capsys.readouterr().err
