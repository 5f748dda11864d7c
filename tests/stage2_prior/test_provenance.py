"""A prior finds its tokenizer wherever the two have gone, and takes no other."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pqvae.errors import UserError
from stage1_tokenizer import Tokenizer
from stage2_prior import Prior, train
from stage2_prior.books import Codebooks
from stage2_prior.config import PriorConfig
from stage2_prior.provenance import open_tokenizer_of


@pytest.fixture
def work(tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with runs/tokenizer, and runs/prior that was trained on it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.copytree(tiny_run.tokenizer / "model", "runs/tokenizer/model")
    tokenizer = Tokenizer.from_pretrained("runs/tokenizer")
    config = PriorConfig(width=32, depth=1, heads=1, code_features=4)
    prior = Prior(config, Codebooks.of(tokenizer.quantizer), (), ())
    provenance = {"tokenizer": "runs/tokenizer", "codes_hash": tokenizer.codes_hash}
    prior.save_pretrained("runs/prior/model", provenance)
    return folder


def found(prior_folder: Path | str, given: Path | None = None) -> Path:
    """Where the tokenizer is found."""
    prior = Prior.from_pretrained(prior_folder)
    tokenizer, place = open_tokenizer_of(prior, Path(prior_folder), given)
    assert tokenizer.codes_hash == prior.provenance["codes_hash"]
    return place


def retrain(folder: Path | str, part: str) -> None:
    """Stand in for more training of the encoder or the decoder of a tokenizer."""
    tokenizer = Tokenizer.from_pretrained(folder)
    module = {"encoder": tokenizer.encoder, "decoder": tokenizer.decoder()}[part]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01)
    tokenizer.save_pretrained(Path(folder) / "model")


def test_it_is_found_where_it_was(work: Path) -> None:
    for prior in ("runs/prior", "runs/prior/model"):
        assert found(prior) == Path("runs/tokenizer")


def test_it_is_found_from_another_folder_and_when_both_have_moved(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert found("work/runs/prior") == work / "runs/tokenizer"
    work.rename(tmp_path / "moved")
    assert found("moved/runs/prior") == tmp_path / "moved/runs/tokenizer"


def test_it_is_found_beside_the_prior_under_any_name(work: Path, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    shutil.move("runs/prior", tmp_path / "copies" / "a")
    shutil.move("runs/tokenizer/model", tmp_path / "copies" / "b")  # a model folder alone
    shutil.rmtree(work / "runs")
    assert found(tmp_path / "copies/a") == tmp_path / "copies/b"


def test_another_one_in_its_place_is_passed_over(work: Path) -> None:
    shutil.copytree("runs/tokenizer", "runs/kept")
    retrain("runs/tokenizer", "encoder")
    assert found("runs/prior") == work / "runs/kept"


def test_the_one_that_is_given_is_the_only_one_tried(work: Path) -> None:
    shutil.copytree("runs/tokenizer", "other")
    assert found("runs/prior", Path("other")) == Path("other")
    retrain("other", "encoder")
    refusal = r"runs/prior was trained on tokenizer .*, but other is .*pass --tokenizer"
    with pytest.raises(UserError, match=refusal):
        found("runs/prior", Path("other"))


def test_only_what_makes_codes_counts(work: Path) -> None:
    retrain("runs/tokenizer", "decoder")
    assert found("runs/prior") == Path("runs/tokenizer")
    retrain("runs/tokenizer", "encoder")
    with pytest.raises(UserError, match=r"runs/prior was trained on tokenizer .*pass --tokenizer"):
        found("runs/prior")
    shutil.rmtree("runs/tokenizer")
    with pytest.raises(UserError, match=r"runs/tokenizer: no tokenizer here.*pass --tokenizer"):
        found("runs/prior")


def test_a_prior_of_version_1_knows_the_whole_tokenizer(work: Path) -> None:
    path = work / "runs/prior/model/config.json"
    tokenizer = Tokenizer.from_pretrained("runs/tokenizer")
    values = json.loads(path.read_text())
    values["provenance"] = {  # as it is after loading such a folder and saving it anew
        "tokenizer": "runs/tokenizer",
        "tokenizer_hash": tokenizer.content_hash,
        "home": values["provenance"]["home"],
    }
    path.write_text(json.dumps(values))
    prior = Prior.from_pretrained("runs/prior")
    assert open_tokenizer_of(prior, Path("runs/prior"))[1] == Path("runs/tokenizer")
    retrain("runs/tokenizer", "decoder")
    with pytest.raises(UserError, match="runs/prior was trained on tokenizer "):
        open_tokenizer_of(prior, Path("runs/prior"))


def test_stage_2_finds_the_images_where_they_are_now(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_run.tokenizer / "model", tmp_path / "tokenizer")  # the model folder alone
    shutil.copytree(tiny_run.data, tmp_path / "images")
    arguments = [f"tokenizer={tmp_path / 'tokenizer'}", f"out={tmp_path / 'prior'}", "device=cpu"]
    arguments += ["views=1", "prior.width=32", "prior.heads=1", "prior.depth=1"]
    arguments += ["trainer.steps=1", "trainer.batch_size=4"]
    moved = f"data.path={tmp_path / 'images'}"
    assert train.main([*arguments, moved]) == 0
    prior = Prior.from_pretrained(tmp_path / "prior")
    assert prior.provenance["data"]["path"] == str(tmp_path / "images")
    assert open_tokenizer_of(prior, tmp_path / "prior")[1] == tmp_path / "tokenizer"
    # Other images are not those that the tokenizer knows.
    next((tmp_path / "images" / "train").rglob("*.png")).unlink()
    capsys.readouterr()
    assert train.main([*arguments, moved, f"out={tmp_path / 'x'}"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert "was trained on other images than those in" in line
    assert "data.path=" in line
    assert not (tmp_path / "x").exists()
