"""Stage 2 says of every figure whether it was given a class."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from pqvae.plots import WIDTH
from stage1_tokenizer import Tokenizer
from stage2_prior import Prior, train
from stage2_prior.task import PREFIX_BITS

TINY = "views=1 prior.width=64 prior.depth=1 prior.heads=1 prior.code_features=8 trainer.steps=4"
SIZES = "trainer.batch_size=16 trainer.evaluate_every=2 device=cpu"


@pytest.fixture
def work(tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a tokenizer and its images, "data"."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run.tokenizer / "model", "tokenizer")
    shutil.copytree(tiny_run.data, "data")
    return tmp_path


def flatten(split: str) -> None:
    """Take the images of a split out of their class folders."""
    for path in list(Path("data", split).glob("*/*.png")):
        path.rename(Path("data", split, f"{path.parent.name}-{path.name}"))
    for folder in [path for path in Path("data", split).iterdir() if path.is_dir()]:
        folder.rmdir()


def run(*arguments: str) -> int:
    where = "tokenizer=tokenizer data.path=data out=prior"
    return train.main([*f"{TINY} {SIZES} {where}".split(), *arguments])


def result() -> dict[str, Any]:
    return json.loads(Path("prior", "result.json").read_text())


def logged() -> set[str]:
    lines = map(json.loads, Path("prior", "stats.jsonl").read_text().splitlines())
    return {name for line in lines for name in line}


def test_bits_of_images_with_classes_are_given_them(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    found = result()
    splits = ("test", "train", "test_unigram")
    assert [found[split]["class_conditional"] for split in splits] == [True, True, False]
    assert found["class_conditional"] is True
    assert {"val_bits_per_code", "val_bits_per_image"} <= logged()
    output = capsys.readouterr()
    assert "class_conditional: true" in output.err
    assert "without class" not in output.err + output.out


def test_bits_of_held_out_images_without_classes_are_called_that(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flatten("val")
    flatten("test")
    assert run() == 0
    found = result()
    assert found["class_conditional"] is True  # the prior; of its figures, those on train alone
    assert found["train"]["class_conditional"] is True
    assert found["test"]["class_conditional"] is False
    names = {name for name in logged() if name.startswith("val_")}
    assert names == {"val_bits_per_code_without_class", "val_bits_per_image_without_class"}
    output = capsys.readouterr()
    assert "| val bits per code without class " in output.err
    assert " without class (unigram model " in output.out
    assert " given class" in output.out


def test_a_prior_that_always_has_a_class_is_not_judged_without(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flatten("test")
    assert run("prior.label_dropout=0") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: data test: no classes, but train has some; put the images into")
    assert not Path("prior").exists()
    assert run("prior.label_dropout=0", "class_conditional=false") == 0


def test_data_without_classes_make_a_run_that_says_so_and_resumes(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer.from_pretrained("tokenizer")
    data = {key: value for key, value in tokenizer.provenance.items() if key != "data_hash"}
    tokenizer.save_pretrained("tokenizer", data)
    for split in ("train", "val", "test"):
        flatten(split)
    for _ in range(2):
        assert run() == 0
        assert "class_conditional: false" in capsys.readouterr().err
    assert yaml.safe_load(Path("prior", "config.yaml").read_text())["class_conditional"] is False
    found = result()
    assert found["class_conditional"] is found["test"]["class_conditional"] is False
    assert "val_bits_per_code" in logged()  # nothing is missing where there are no classes


def test_the_result_has_the_bits_of_each_position_on_each_split_and_a_picture_of_them(
    work: Path,
) -> None:
    assert run() == 0
    found = result()
    for split in ("test", "val", "train", "test_unigram"):
        bits = found[split]["bits_per_code"]
        assert len(bits) == len(Prior.from_pretrained("prior").sizes)
        assert sum(bits) == pytest.approx(found[split]["bits_per_image"], abs=0.01)
    # Those on val are the ones that the kept model was chosen by.
    lines = map(json.loads, Path("prior", "stats.jsonl").read_text().splitlines())
    best = min(line["val_bits_per_image"] for line in lines if "val_bits_per_image" in line)
    assert found["val"]["bits_per_image"] == pytest.approx(best, abs=0.01)
    with Image.open("prior/bits.png") as picture:
        assert picture.width == WIDTH


def test_a_prefix_is_trained_alone_and_decides_which_step_is_kept(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = "trainer.steps=10 trainer.evaluate_every=2 trainer.patience=0 trainer.beta2=0.9"
    assert run("prefix=2", *more.split()) == 0
    found = result()
    lines = map(json.loads, Path("prior", "stats.jsonl").read_text().splitlines())
    scores = [line[PREFIX_BITS] for line in lines if PREFIX_BITS in line]
    assert len(scores) == 5
    bits = found["val"]["bits_per_code"]
    assert sum(bits[:2]) / 2 == pytest.approx(min(scores), abs=1e-3)
    # The tables of later codes are as they began.
    first, *_, last = Prior.from_pretrained("prior").books
    assert first.head.any() and not last.head.any()
    output = capsys.readouterr().out
    assert output.endswith("sampling.generate --n 10000 --prior prior\n")
    assert run("prefix=7", "out=other") == 2
    assert capsys.readouterr().err.endswith("error: prefix=7: an image has 1 to 6 codes\n")
