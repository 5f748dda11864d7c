"""``eval.rate_distortion`` where only some of the images have classes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eval.rate_distortion import main
from stage1_tokenizer import Tokenizer
from stage2_prior import Prior
from stage2_prior.books import Codebooks
from stage2_prior.config import PriorConfig


@pytest.mark.parametrize(
    ("flat", "label_dropout", "expected"),
    [
        ("test", 0.1, {"fixed", "prior", "train_prior", "train_class_prior"}),
        ("test", 0.0, {"fixed", "train_class_prior"}),
        ("train", 0.1, {"fixed", "prior", "class_prior", "train_prior"}),
    ],
)
def test_images_without_classes_have_no_bits_given_them(
    flat: str, label_dropout: float, expected: set[str], tiny_run: Any, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_run.data, data)
    names = tuple(sorted(folder.name for folder in (data / flat).iterdir()))
    for path in list((data / flat).glob("*/*.png")):
        path.rename(data / flat / f"{path.parent.name}-{path.name}")
    for name in names:
        (data / flat / name).rmdir()
    codebooks = Codebooks.of(Tokenizer.from_pretrained(tiny_run.tokenizer).quantizer)
    config = PriorConfig(width=32, depth=1, heads=1, code_features=4, label_dropout=label_dropout)
    prior = Prior(config, codebooks, names, (22, 22, 22))
    known = {"codes_hash": Tokenizer.from_pretrained(tiny_run.tokenizer).codes_hash}
    prior.save_pretrained(tmp_path / "prior" / "model", known)
    arguments = ["--prior", str(tmp_path / "prior"), "--tokenizer", str(tiny_run.tokenizer)]
    assert main([*arguments, "--data", str(data), "--n", "4", "--device", "cpu"]) == 0
    report = json.loads((tmp_path / "prior" / "rate_distortion.json").read_text())
    row = report["rows"][-1]
    assert {key.removesuffix("_bits") for key in row if key.endswith("_bits")} - {"gained"} == (
        expected
    )
    said = "nothing given the class: the test images have no classes" in report["notes"]
    assert said == (flat == "test")
