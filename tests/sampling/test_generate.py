"""Generation into a folder: goes on where it was cut, extends, and refuses what does not fit."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eval.subjects.samples import open_samples
from pqvae.images import to_uint8
from pqvae.runtime import select_runtime
from sampling.folder import image_path, read_record
from sampling.generate import main
from sampling.sampler import BLOCK_IMAGES, sample_codes
from sampling.settings import SamplingSettings
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.decoder_config import DirectConfig
from stage2_prior import Prior
from stage2_prior.drawing import class_labels

CLASSES = ("circles", "squares", "stripes")
SIZE = 16


Generate = Callable[..., int]


@pytest.fixture
def generate(prior: Path, tmp_path: Path) -> Generate:
    """``generate(n, *more)`` runs the command into ``tmp_path / "samples"``."""

    def generate(n: int, *more: object) -> int:
        arguments = ["--n", n, "--prior", prior, "--out", tmp_path / "samples", "--device", "cpu"]
        return main([str(argument) for argument in [*arguments, *more]])

    return generate


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "samples.json").read_text())


def test_one_file_holds_the_images_of_the_folder(generate: Generate, tmp_path: Path) -> None:
    assert generate(12, "--npz", tmp_path / "samples.npz") == 0
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0"]
        array = file["arr_0"]
    assert (array.dtype, array.shape) == (np.uint8, (12, SIZE, SIZE, 3))
    folder, one_file = (open_samples(tmp_path / name) for name in ("samples", "samples.npz"))
    assert torch.equal(folder.images(range(12)), one_file.images(range(12)))
    # From a folder that is complete already.
    assert generate(12, "--npz", tmp_path / "again.npz") == 0
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "samples.npz").read_bytes()


def test_the_record_names_the_class_of_each_image(
    generate: Generate, prior: Path, tmp_path: Path
) -> None:
    assert generate(12, "--seed", 3) == 0
    counts = Prior.from_pretrained(prior).class_counts
    drawn = class_labels(3, torch.arange(12), counts).tolist()
    record = read_record(tmp_path / "samples")
    assert record["labels"] == drawn
    assert list(record["class_counts"]) == list(CLASSES)
    assert open_samples(tmp_path / "samples").labels == tuple(CLASSES[label] for label in drawn)
    assert generate(12, "--seed", 3, "--class", "squares", "--out", tmp_path / "squares") == 0
    assert read_record(tmp_path / "squares")["labels"] == [CLASSES.index("squares")] * 12


def test_an_older_record_gets_its_labels_without_new_images(
    generate: Generate, tmp_path: Path, capsys: Any
) -> None:
    assert generate(12, "--seed", 3) == 0
    folder = tmp_path / "samples"
    record = record_of(folder)
    older = {key: value for key, value in record.items() if key != "labels"}
    (folder / "samples.json").write_text(json.dumps(older))
    times = {path: path.stat().st_mtime_ns for path in (folder / "images").iterdir()}
    capsys.readouterr()
    assert generate(12, "--seed", 3) == 0
    assert "(0 new" in capsys.readouterr().out
    assert record_of(folder) == record
    assert {path: path.stat().st_mtime_ns for path in (folder / "images").iterdir()} == times


def test_a_prior_without_classes_leaves_the_labels_out(
    generate: Generate, prior: Path, tmp_path: Path
) -> None:
    classless = Prior.from_pretrained(prior)
    classless.class_names, classless.class_counts = (), ()
    classless.class_embedding = torch.nn.Embedding(1, classless.config.width)
    classless.save_pretrained(tmp_path / "classless")
    assert generate(3, "--prior", tmp_path / "classless") == 0
    record = record_of(tmp_path / "samples")
    assert (record["labels"], record["class_counts"]) == (None, {})


def test_the_tokenizer_may_be_given(generate: Generate, tiny_run: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run.tokenizer / "model", copy)
    assert generate(3, "--tokenizer", copy) == 0
    assert record_of(tmp_path / "samples")["tokenizer"] == str(copy)


def test_the_folder_says_what_it_holds(
    generate: Generate, prior: Path, tiny_run: Any, tmp_path: Path, capsys: Any
) -> None:
    assert generate(12, "--seed", 5, "--temperature", 0.9, "--prefix", 4) == 0
    folder = tmp_path / "samples"
    assert sorted(path.name for path in folder.iterdir()) == ["grid.png", "images", "samples.json"]
    assert list(pictures(folder)) == [f"{index:06d}.png" for index in range(12)]
    record = record_of(folder)
    assert (record["n"], record["seed"], record["complete"]) == (12, 5, True)
    assert record["settings"]["temperature"] == 0.9
    assert record["settings"]["prefix"] == 4
    assert record["settings"]["class"] is None
    assert record["prior_hash"] == Prior.from_pretrained(prior).content_hash
    assert record["tokenizer_hash"] == Tokenizer.from_pretrained(tiny_run.tokenizer).content_hash
    assert record["data"]["path"] == str(tiny_run.data)
    assert record["command"].startswith("python -m sampling.generate --n 12 --prior")
    assert "torch" in record["versions"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"made 12 images in {folder}/images (12 new")
    assert last.endswith(f"then: python -m eval.fid --samples {folder}")


def test_the_pictures_are_the_decoded_prefixes_of_the_sampled_codes(
    generate: Generate, prior: Path, tiny_run: Any, tmp_path: Path
) -> None:
    assert generate(5, "--class", "squares", "--prefix", 3, "--top-p", 0.8, "--guidance", 2) == 0
    label = torch.full((5,), CLASSES.index("squares"))
    settings = SamplingSettings(top_p=0.8, guidance=2.0)
    model = Prior.from_pretrained(prior)
    codes = sample_codes(model, label, torch.arange(5), 0, 3, settings)
    with select_runtime("cpu").autocast():
        expected = to_uint8(Tokenizer.from_pretrained(tiny_run.tokenizer).decode(codes))
    for index, image in enumerate(expected):
        with Image.open(tmp_path / "samples" / "images" / f"{index:06d}.png") as file:
            found = torch.from_numpy(np.array(file)).permute(2, 0, 1)
        # Convolutions of another batch shape may round the other way.
        assert (found.int() - image.int()).abs().max() <= 1
    # The grid shows them in their order, two pixels for one, two pixels between.
    with Image.open(tmp_path / "samples" / "grid.png") as file:
        grid = np.array(file)
    assert grid.shape == (2 * SIZE + 4, 5 * (2 * SIZE + 2) + 2, 3)
    for index, image in enumerate(expected):
        left = 2 + index * (2 * SIZE + 2)
        cell = grid[2 : 2 + 2 * SIZE : 2, left : left + 2 * SIZE : 2]
        assert np.abs(cell.astype(int) - image.permute(1, 2, 0).numpy().astype(int)).max() <= 1


@pytest.mark.parametrize("guidance", [1, 2])
def test_the_files_are_the_same_whatever_is_made_beside_them(
    generate: Generate, tmp_path: Path, guidance: int
) -> None:
    n = 2 * BLOCK_IMAGES + 2
    assert generate(n, "--guidance", guidance) == 0
    folder = tmp_path / "samples"
    expected = pictures(folder)
    assert len({hashlib.sha256(data).digest() for data in expected.values()}) > n / 2
    for size in (1, 100):
        folder.rename(tmp_path / f"before {size}")
        assert generate(n, "--guidance", guidance, "--batch-size", size) == 0
        assert pictures(folder) == expected
    for index in (3, n - 3, n - 1):  # as a kill leaves it
        image_path(folder, index).unlink()
    assert generate(n, "--guidance", guidance) == 0
    assert pictures(folder) == expected
    folder.rename(tmp_path / "before fewer")
    assert generate(5, "--guidance", guidance) == 0
    assert pictures(folder) == dict(list(expected.items())[:5])


def test_it_goes_on_where_it_was_cut(generate: Generate, tmp_path: Path, capsys: Any) -> None:
    assert generate(12) == 0
    folder = tmp_path / "samples"
    expected, grid = pictures(folder), (folder / "grid.png").read_bytes()
    record = record_of(folder)
    # As a kill leaves it: some pictures missing, no grid, the record says that it is incomplete.
    for index in (3, 7, 8, 11):
        (folder / "images" / f"{index:06d}.png").unlink()
    (folder / "images" / "000011.tmp").write_bytes(b"half a pict")
    (folder / "grid.png").unlink()
    (folder / "samples.json").write_text(json.dumps({**record, "complete": False}))
    kept = (folder / "images" / "000000.png").stat().st_mtime_ns
    capsys.readouterr()
    assert generate(12) == 0
    assert "(4 new" in capsys.readouterr().out
    assert pictures(folder) == expected
    assert (folder / "grid.png").read_bytes() == grid
    assert record_of(folder) == record
    assert (folder / "images" / "000000.png").stat().st_mtime_ns == kept
    assert generate(12) == 0
    assert "(0 new" in capsys.readouterr().out
    assert record_of(folder) == record


def test_a_larger_n_extends_and_a_smaller_one_is_refused(
    generate: Generate, tmp_path: Path, capsys: Any
) -> None:
    assert generate(4) == 0
    folder = tmp_path / "samples"
    first = pictures(folder)
    assert generate(9) == 0
    extended = pictures(folder)
    assert len(extended) == 9
    assert {name: extended[name] for name in first} == first
    assert record_of(folder)["n"] == 9
    capsys.readouterr()
    assert generate(4) == 2
    assert "holds 9 samples already; python -m eval.fid --samples " in (
        error := capsys.readouterr().err
    )
    assert " --n 4 scores the first 4 of them" in error
    assert pictures(folder) == extended
    folder.rename(tmp_path / "extended")
    assert generate(9) == 0
    assert pictures(folder) == extended


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        (["--seed", 1], "seed"),
        (["--temperature", 0.5], "settings"),
        (["--top-p", 0.5], "settings"),
        (["--guidance", 3], "settings"),
        (["--class", "circles"], "settings"),
        (["--prefix", 2], "settings"),
    ],
)
def test_other_settings_on_the_same_folder_are_refused(
    generate: Generate, tmp_path: Path, capsys: Any, changed: list[object], key: str
) -> None:
    folder = tmp_path / "samples"
    assert generate(2) == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert generate(3, *changed) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {folder} holds samples of another {key}; choose another folder")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_class_may_be_given_by_name_or_number(generate: Generate, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    assert generate(3, "--class", "squares") == 0
    by_name = pictures(folder)
    assert record_of(folder)["settings"]["class"] == "squares"
    assert generate(3, "--class", "1") == 0  # the same samples: the folder is accepted
    folder.rename(tmp_path / "by name")
    assert generate(3, "--class", "1") == 0
    assert pictures(folder) == by_name
    folder.rename(tmp_path / "by number")
    assert generate(3, "--class", "stripes") == 0
    assert pictures(folder) != by_name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "triangles"], "--class triangles: the classes are circles, squares, stripes"),
        (["--class", "3"], "--class 3: the classes are circles, squares, stripes"),
        (["--class", "-1"], "--class"),
        (["--prefix", "7"], "--prefix 7: an image has 1 to 6 codes"),
        (["--prefix", "0"], "--prefix 0: an image has 1 to 6 codes"),
        (["--temperature", "-1"], "--temperature must be 0 to 10, not -1.0"),
        (["--temperature", "hot"], "argument --temperature: invalid float value: 'hot'"),
        (["--temperature", "nan"], "--temperature must be 0 to 10, not nan"),
        (["--top-p", "0"], "--top-p must be above 0 and at most 1, not 0.0"),
        (["--top-p", "1.5"], "--top-p must be above 0 and at most 1, not 1.5"),
        (["--guidance", "-2"], "--guidance must be 0 to 20, not -2.0"),
        (["--temperature", "inf"], "--temperature must be 0 to 10, not inf"),
        (["--top-p", "1e-400"], "--top-p must be above 0 and at most 1, not 0.0"),
        (["--guidance", "1e308"], "--guidance must be 0 to 20, not 1e+308"),
        (["--n", "9" * 5000], "argument --n: '999999999999...9999999999999' is not a whole number"),
        (["--batch-size", "1e6"], "argument --batch-size: '1e6' is not a whole number of at least"),
        (["--seed", str(2**63)], f"argument --seed: '{2**63}' is not a whole number of at least"),
        (["--class", "9" * 5000], "--class "),
        (["--npz", "prior/model/model.safetensors"], "--npz prior/model/model.safetensors: must e"),
        (["--seed", "-1"], "argument --seed: '-1' is not a whole number of at least 0"),
        (["--n", "0"], "argument --n: '0' is not a whole number of at least 1"),
        (["--batch-size", "0"], "argument --batch-size: '0' is not a whole number of at least 1"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--prior", "no/such"], "no/such: no prior here; run python -m stage2_prior.train"),
        (["--priors", "x"], "unrecognized arguments: --priors x"),
    ],
)
def test_bad_arguments_are_refused_and_leave_nothing(
    generate: Generate, tmp_path: Path, capsys: Any, arguments: list[str], message: str
) -> None:
    assert generate(2, *arguments) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith(f"error: {message}")
    assert output.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_folder_is_left_alone(generate: Generate, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "thesis.txt").write_text("draft")
    assert generate(2) == 2
    assert "is not a folder of samples; choose another one (--out)" in capsys.readouterr().err
    (folder / "samples.json").write_text("[1]")
    assert generate(2) == 2
    assert "samples.json: not a JSON object, so no record of samples" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["samples.json", "thesis.txt"]


def test_training_another_decoder_leaves_samples_and_prior_valid(
    prior: Path, tiny_run: Any, tmp_path: Path
) -> None:
    copy = tmp_path / "tokenizer"
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    tokenizer.save_pretrained(copy)
    arguments = ["--prior", str(prior), "--tokenizer", str(copy), "--device", "cpu"]
    arguments += ["--out", str(tmp_path / "samples")]
    assert main(["--n", "3", *arguments]) == 0
    tokenizer.add_decoder("other", DirectConfig())
    tokenizer.save_pretrained(copy)
    assert main(["--n", "4", *arguments]) == 0
    record = record_of(tmp_path / "samples")
    assert record["tokenizer_hash"] == Tokenizer.from_pretrained(copy).content_hash
    with torch.no_grad():
        next(tokenizer.decoder().parameters()).add_(0.1)
    tokenizer.save_pretrained(copy)
    assert main(["--n", "5", *arguments]) == 2  # these would be other pictures


def test_pictures_are_drawn_by_the_vivid_decoder_where_there_is_one(
    prior: Path, tiny_run: Any, tmp_path: Path, capsys: Any
) -> None:
    copy = tmp_path / "tokenizer"
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    tokenizer.add_decoder("vivid", DirectConfig())
    trained_with = {"decoders": {"vivid": {"trained_with": "a network of labels"}}}
    tokenizer.save_pretrained(copy, {**tokenizer.provenance, **trained_with})
    arguments = ["--n", "3", "--prior", str(prior), "--tokenizer", str(copy), "--device", "cpu"]
    asked: dict[str, list[str]] = {"vivid": [], "faithful": ["--decoder", "faithful"]}
    for name, more in asked.items():
        assert main([*arguments, "--out", str(tmp_path / name), *more]) == 0
        record = record_of(tmp_path / name)
        assert record["decoder"] == name
        assert record["decoder_hash"] == tokenizer.decoder_hash(name)
        assert record["decoder_trained_with"] == (
            "a network of labels" if name == "vivid" else None
        )
    capsys.readouterr()
    assert main([*arguments, "--out", str(tmp_path / "no"), "--decoder", "lively"]) == 2
    assert "no decoder 'lively', only faithful, vivid" in capsys.readouterr().err
