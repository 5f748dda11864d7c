"""Trainers whose first command was wrong, or whose inputs have moved: the next command works."""

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pqvae.config import load_config
from pqvae.files import read_json, write_json
from pqvae.images import encode_png
from pqvae.training.run_folder import open_run
from stage1_tokenizer import Tokenizer
from stage1_tokenizer import train as train_tokenizer
from stage1_tokenizer.config import Config
from stage2_prior import train as train_prior

if TYPE_CHECKING:
    from tests.conftest import TinyRun

COMMON = ["device=cpu", "trainer.steps=2", "trainer.batch_size=64", "trainer.evaluate_every=1"]
STAGE_1 = [
    *("data.image_size=16", "data.shift=1", "architecture.widths=16,16"),
    *("architecture.encoder_blocks=0,0", "architecture.decoder_blocks=0,0"),
    *("architecture.latent_channels=4", "quantizer.num_codes=2", "quantizer.codebook_sizes=8"),
    *("quantizer.rank=8", "quantizer.subspace=4"),
]
STAGE_2 = ["views=1", "prior.width=32", "prior.heads=1", "prior.depth=1", "prior.code_features=4"]


@pytest.fixture
def work(tiny_run: "TinyRun", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with photos/ and a tokenizer in t/ that was trained on them."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run.data, "photos")
    shutil.copytree(tiny_run.tokenizer / "model", "t/model")
    record = read_json(Path("t/model/config.json"))
    record["provenance"] |= {"home": "../..", "data": record["provenance"]["data"]}
    record["provenance"]["data"]["path"] = "photos"
    write_json(Path("t/model/config.json"), record)
    return tmp_path


def stage_1(*arguments: str) -> int:
    return train_tokenizer.main([*COMMON, *STAGE_1, "data.path=photos", "out=x", *arguments])


def stage_2(*arguments: str) -> int:
    return train_prior.main([*COMMON, *STAGE_2, "tokenizer=t", "out=x", *arguments])


both = pytest.mark.parametrize("stage", [stage_1, stage_2])


def refusal(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The one line with which a command has refused."""
    assert code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert len(lines[-1]) <= 220
    return lines[-1].removeprefix("error: ")


def use_images(name: str, draw: Callable[[int], torch.Tensor]) -> None:
    Path(name).mkdir()
    for index in range(60):
        Path(name, f"{index:02d}.png").write_bytes(encode_png(draw(index)))


@both
def test_a_run_that_fails_before_its_first_step_does_not_block_the_corrected_one(
    stage: Callable[..., int],
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # which so is not installed
    wrong = ["trainer.sinks=wandb", "trainer.beta2=0.5", "trainer.learning_rate=9"]
    assert "wandb is not installed" in refusal(capsys, stage(*wrong))
    assert Path("x/config.yaml").is_file()
    assert stage("trainer.beta2=0.9") == 0
    assert "beta2: 0.9\n" in Path("x/config.yaml").read_text()
    assert json.loads(Path("x/result.json").read_text())["steps"] == 2
    message = refusal(capsys, stage("trainer.beta2=0.5"))
    assert message.startswith("x holds a run with another trainer.beta2; ")


def test_stage_1_goes_on_with_the_same_images_wherever_they_are(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage_1() == 0
    for spelling in ("photos/", "./photos", str(work / "photos")):
        with open_run(
            load_config(Config, Path("x/config.yaml"), [f"data.path={spelling}"]), Path("x")
        ):
            pass
    Path("photos").rename("elsewhere")
    assert refusal(capsys, stage_1()).startswith("photos: no such file or folder; ")
    assert stage_1("trainer.steps=3", "data.path=elsewhere/") == 0
    assert "resuming from step 2 in x" in capsys.readouterr().err
    config = Path("x/config.yaml").read_text()
    assert "path: elsewhere/\n" in config
    shutil.copytree("elsewhere", "others")
    next(Path("others/train").rglob("*.png")).unlink()
    message = refusal(capsys, stage_1("trainer.steps=3", "data.path=others"))
    assert "the training images in others are not those that this run began with" in message
    assert Path("x/config.yaml").read_text() == config


def test_stage_2_goes_on_with_the_same_tokenizer_and_images_wherever_they_are(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage_2() == 0
    Path("t").rename("u")
    Path("photos").rename("elsewhere")
    message = refusal(capsys, stage_2("tokenizer=t"))
    assert message.startswith("t: no tokenizer here; ")
    assert message.endswith("tokenizer=FOLDER")
    message = refusal(capsys, stage_2("tokenizer=u"))
    assert message.startswith("photos: no such file or folder; ")
    assert message.endswith("data.path=...")
    assert stage_2("tokenizer=u/", "data.path=elsewhere", "trainer.steps=3") == 0
    assert "resuming from step 2 in x" in capsys.readouterr().err
    tokenizer = Tokenizer.from_pretrained("u")
    with torch.no_grad():
        next(tokenizer.encoder.parameters()).add_(0.1)
    tokenizer.save_pretrained("other/model")
    moved = ("data.path=elsewhere", "trainer.steps=4")
    message = refusal(capsys, stage_2("tokenizer=other", *moved))
    assert message.startswith("x was trained on tokenizer ")
    assert "tokenizer: u/\n" in Path("x/config.yaml").read_text()


def plain(index: int) -> torch.Tensor:
    return torch.full((3, 16, 16), 128, dtype=torch.uint8)


def red(index: int) -> torch.Tensor:
    return torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16)


def stripes(index: int) -> torch.Tensor:
    return (torch.arange(16) % 2 * 200).to(torch.uint8).expand(3, 16, 16)


@pytest.mark.parametrize("draw", [plain, red, stripes])
def test_images_without_variance_are_refused_before_the_training(
    draw: Callable[[int], torch.Tensor], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use_images("flat", draw)
    message = refusal(capsys, stage_1("data.path=flat"))
    assert message.startswith("flat: there is no variance in the training images, ")
    assert not Path("x").exists()


def grey_of_its_own(index: int) -> torch.Tensor:
    return torch.full((3, 16, 16), 2 * index, dtype=torch.uint8)


def one_picture(index: int) -> torch.Tensor:
    return torch.arange(3 * 16 * 16).view(3, 16, 16).fmod(251).to(torch.uint8)


@pytest.mark.parametrize("draw", [grey_of_its_own, one_picture])
def test_images_with_little_variance_are_trained_on(
    draw: Callable[[int], torch.Tensor], work: Path
) -> None:
    use_images("few", draw)
    assert stage_1("data.path=few") == 0


@both
def test_a_missing_compiler_is_named_before_anything_is_read(
    stage: Callable[..., int],
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in (("PATH", "/nowhere"), ("CXX", "no-such-compiler")):
        monkeypatch.setenv(name, value)
    find = importlib.import_module("torch._inductor.cpp_builder").cpp_compiler_search
    find.cache_clear()  # another test may have compiled
    arguments = ["trainer.compile=true", "data.path=no/such", "tokenizer=no/such"]
    arguments = arguments[:2] if stage is stage_1 else arguments
    message = refusal(capsys, stage(*arguments))
    find.cache_clear()
    assert message.startswith("trainer.compile=true needs a C++ compiler")
    assert not Path("x").exists()


def test_next_commands_are_quoted_and_lose_their_last_slash(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def last() -> Any:
        return capsys.readouterr().out.splitlines()[-1].partition("then: ")[2]

    assert stage_1("out=./my run//") == 0
    stage_2_next = "python -m stage2_prior.train 'tokenizer=my run' 'out=my run-prior'"
    assert last() == stage_2_next
    assert stage_2("out=my prior/") == 0
    assert last() == "python -m sampling.generate --n 10000 --prior 'my prior'"
