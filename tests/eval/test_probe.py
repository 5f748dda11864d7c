"""The probe finds what codes hold, and nothing where there is nothing; and it says what it did."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.measures.probes import Labelled, Parts, score_codes, score_features
from eval.measures.representations import SPLITS, random_encoder
from eval.probe import main
from pqvae.data.sample import Split
from pqvae.images import encode_png, to_float
from pqvae.randomness import generator_for
from stage1_tokenizer.config import (
    ArchitectureConfig,
    QuantizerConfig,
    ResidualConfig,
    SpatialConfig,
    TokenizerConfig,
)
from stage1_tokenizer.tokenizer import Tokenizer

SIZE = 16
IMAGES = {"train": 120, "val": 40, "test": 60}
LENGTHS = [1, 2, 4]
SMALL = ArchitectureConfig(
    widths=(16, 32), encoder_blocks=(0, 1), decoder_blocks=(0, 1), latent_channels=4
)


def draw(n: int, seed: int) -> torch.Tensor:
    """Noise, half of it on a dark ground and half on a bright one; uint8 (n, 3, SIZE, SIZE)."""
    noise = torch.randint(80, (n, 3, SIZE, SIZE), generator=generator_for(seed))
    ground = 140 * (torch.arange(n) % 2)
    return (noise + ground[:, None, None, None]).to(torch.uint8)


def write_images(folder: Path, name: Callable[[int], str]) -> str:
    """Splits of class folders: ``name`` tells the class of the image of a number."""
    for seed, (split, n) in enumerate(IMAGES.items()):
        for number, image in enumerate(draw(n, seed)):
            path = folder / split / name(number) / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(image))
    return str(folder)


def save_tokenizer(folder: Path, quantizer: QuantizerConfig) -> Path:
    """A model folder of a tokenizer that has been started, but not trained."""
    torch.manual_seed(0)
    config = TokenizerConfig(image_size=SIZE, architecture=SMALL, quantizer=quantizer)
    model = Tokenizer(config)
    images = to_float(draw(200, seed=9))
    model.init_from_images(images)
    with torch.no_grad():
        model.quantizer.start(model.encoder(images), generator_for(0))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; its first code tells dark from bright, and has two bits for the noise."""
    quantizer = ResidualConfig(num_codes=4, codebook_sizes=(8,), learned_codes=2)
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), quantizer)


@pytest.fixture(scope="module")
def dark_or_bright(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("known")
    return write_images(folder, lambda number: ("dark", "bright")[number % 2])


def probe(tokenizer: Path, data: str, out: Path, *arguments: str) -> dict[str, Any]:
    arguments = ("--data", data, "--json", str(out / "probe.json"), *arguments)
    assert main(["--tokenizer", str(tokenizer), "--device", "cpu", *arguments]) == 0
    return json.loads((out / "probe.json").read_text())


def test_classes_that_the_first_code_tells_are_told(
    tokenizer: Path, dark_or_bright: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = probe(tokenizer, dark_or_bright, tmp_path)
    rows = {(row["representation"], row["k"]): row for row in report["rows"]}
    assert rows["chance", None]["linear"] == 50
    assert rows["chance", None]["precision"] == pytest.approx(100 * 29 / 59)
    for name in ("pixels", "latent f, no codes", "random encoder"):
        assert rows[name, None]["linear"] == rows[name, None]["knn"] == 100
    for k in LENGTHS:
        for name in ("partial latent f_k", "decoder's features"):
            row = rows[name, k]
            assert row["linear"] == row["knn"] == row["precision"] == 100
            assert row["bits"] == 3 * k
        assert rows["codes, one-hot", k]["linear"] > 95
        pca = rows["PCA of pixels, k dimensions", k]
        assert (pca["dimensions"], pca["linear"], pca["knn"]) == (k, 100, 100)
    assert rows["codes, one-hot", 1]["linear"] == rows["codes, one-hot", 1]["knn"] == 100
    assert rows["shared prefix", 4]["precision"] == 100
    facts = report["facts"]
    assert [facts[split]["images"] for split in IMAGES] == list(IMAGES.values())
    output = capsys.readouterr().out
    assert output.splitlines()[0].split()[0] == "representation,"
    assert "wrote" in output and str(tmp_path / "probe-hits.png") in output
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["probe-hits.png", "probe.json", "probe.png"]


def test_random_classes_give_chance(tokenizer: Path, tmp_path: Path) -> None:
    coin = torch.randint(2, (200,), generator=generator_for(5)).tolist()
    data = write_images(tmp_path / "data", lambda number: ("heads", "tails")[coin[number]])
    report = probe(tokenizer, data, tmp_path)
    for row in report["rows"]:
        for key in ("linear", "knn"):
            # Of 60 fair coins; 4.5 deviations of 6.5.
            assert abs(row.get(key, 50) - 50) < 29


def test_a_class_that_a_split_lacks_does_no_harm(
    tokenizer: Path, dark_or_bright: str, tmp_path: Path
) -> None:
    for split in IMAGES:
        for source in sorted(Path(dark_or_bright, split).rglob("*.png")):
            target = tmp_path / "data" / split / source.parent.name / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        # In each split, a class that no other has.
        alone = tmp_path / "data" / split / f"a {split}" / "alone.png"
        alone.parent.mkdir()
        alone.write_bytes(encode_png(draw(1, seed=3)[0]))
    data = str(tmp_path / "data")
    report = probe(tokenizer, data, tmp_path, "--train-n", "100")
    assert report["facts"]["classes"]["number"] == 5
    assert report["facts"]["train"]["images"] == 100
    rows = {(row["representation"], row["k"]): row for row in report["rows"]}
    for name, k in (("pixels", None), ("codes, one-hot", 1), ("partial latent f_k", 4)):
        assert rows[name, k]["linear"] == pytest.approx(100 * 60 / 61)


def some_parts(draw: Callable[..., torch.Tensor], width: int) -> Parts:
    """Random features, of which the first tells the class in most cases."""
    generator = generator_for(0)
    parts: dict[Split, Labelled] = {}
    for split in SPLITS:
        features = draw(80, width, generator)
        noise = torch.randint(2, (80,), generator=generator) * (torch.arange(80) % 2)
        parts[split] = Labelled(features, (features[:, 0].long() + noise) % 3)
    return parts


def turned(parts: Parts, turn: int) -> Parts:
    """Other labels of the test split."""
    test = parts["test"]
    return {**parts, "test": Labelled(test.features, (test.labels + turn) % 3)}


def test_labels_of_the_test_split_decide_nothing_but_the_score() -> None:
    parts = some_parts(lambda n, D, generator: 3 * torch.rand(n, D, generator=generator), 20)
    codes = some_parts(lambda n, N, generator: torch.randint(3, (n, N), generator=generator), 4)
    strengths, values = set(), set()
    for turn in range(3):
        row = score_features(turned(parts, turn))
        of_codes = score_codes(turned(codes, turn), (3,) * 4)
        strengths.add((row["strength"], of_codes["strength"]))
        values.add(row["linear"])
    assert len(strengths) == 1
    assert len(values) > 1


def test_the_random_encoder_is_no_linear_map_and_the_same_each_time() -> None:
    encoder = random_encoder(SMALL, seed=0)
    images = to_float(draw(2, seed=0))
    with torch.no_grad():
        first, second, middle = encoder(torch.cat([images, images.mean(0, keepdim=True)]))
        again = random_encoder(SMALL, seed=0)(images)
        other = random_encoder(SMALL, seed=1)(images)
    torch.testing.assert_close(again, torch.stack([first, second]))
    assert (other - again).abs().max() > 0.1
    assert ((first + second) / 2 - middle).abs().max() > 0.01


def test_another_tokenizer_is_compared_by_its_codes_one_hot(
    tokenizer: Path, dark_or_bright: str, tmp_path: Path
) -> None:
    report = probe(tokenizer, dark_or_bright, tmp_path, "--against", str(tokenizer))
    rows = {(row["representation"], row["k"]): row for row in report["rows"]}
    other, own = rows[f"codes of {tokenizer}, one-hot", None], rows["codes, one-hot", 4]
    for key in ("dimensions", "linear", "knn"):
        assert other[key] == own[key]
    assert report["facts"][f"against {tokenizer}"]["codes"] == 4
    assert not any("counted" in note for note in report["notes"])


def test_of_a_spatial_tokenizer_its_codes_are_counted(
    tokenizer: Path, dark_or_bright: str, tmp_path: Path
) -> None:
    pytest.importorskip("vector_quantize_pytorch")
    other = save_tokenizer(tmp_path / "spatial", SpatialConfig(codebook_size=32))
    report = probe(tokenizer, dark_or_bright, tmp_path, "--against", str(other))
    rows = {row["representation"]: row for row in report["rows"]}
    row = rows[f"codes of {other}, counted"]
    assert (row["dimensions"], row["linear"]) == (32, 100)
    assert any(note.startswith("codes, counted: ") for note in report["notes"])


def test_another_tokenizer_must_be_of_the_same_size(
    tokenizer: Path, dark_or_bright: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = TokenizerConfig(image_size=2 * SIZE, architecture=SMALL, quantizer=ResidualConfig())
    Tokenizer(config).save_pretrained(tmp_path)
    arguments = ["--tokenizer", str(tokenizer), "--data", dark_or_bright]
    assert main([*arguments, "--against", str(tmp_path), "--device", "cpu"]) == 2
    assert (
        "made for images of 32 pixels, but those compared here have 16" in capsys.readouterr().err
    )


def test_without_scikit_learn_a_line_says_what_to_do(
    tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(["--tokenizer", str(tokenizer)]) == 2
    assert capsys.readouterr().err == (
        "error: eval.probe needs scikit-learn; pip install 'pqvae[eval]'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{flat}"], "flat train: no classes to tell apart"),
        (["--data", "{single}"], "single train: no classes to tell apart"),
        (["--data", "no/such"], "no/such: no such file or folder"),
        (["--tokenizer", "no/such"], "no/such: no tokenizer here"),
        (["--data", "{data}", "--train-n", "121"], "--train-n 121: .* train holds 120 images"),
        (["--data", "{data}", "--test-n", "61"], "--test-n 61: .* test holds 60 images"),
        (["--data", "{data}", "--test-n", "1"], "test: 1 image, but retrieval needs 2 or more"),
        (["--test-n", "0"], "argument --test-n: '0' is not a whole number of at least 1"),
        (["--against", "no/such"], "no/such: no tokenizer here; .* give --against FOLDER"),
        (["--json", "no/such/probe.json"], "--json no/such/probe.json: there is no folder"),
        (["--json", "probe.txt"], "--json probe.txt: must end in .json"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        ([], "does not say which images it was trained on; pass --data"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tokenizer: Path,
    dark_or_bright: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    for number, image in enumerate(draw(60, seed=0)):
        for name in ("flat", "single/one"):
            path = tmp_path / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(image))
    places = {"flat": tmp_path / "flat", "single": tmp_path / "single", "data": dark_or_bright}
    before = sorted(tokenizer.iterdir())
    given = [argument.format(**places) for argument in arguments]
    assert main(["--tokenizer", str(tokenizer), *given]) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert re.match(f"error: .*{message}", line)
    assert output.out == ""
    assert sorted(tokenizer.iterdir()) == before
