"""A prior of the first codes alone: what is drawn by it stops where its knowledge does."""

from pathlib import Path
from typing import Any

import pytest

from pqvae.files import read_json
from sampling import gallery, generate, tune
from stage2_prior import Prior, train
from tests.sampling.gallery_page import content_of


@pytest.fixture(scope="module")
def short_prior(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stage2") / "short"
    arguments = [f"tokenizer={tiny_run.tokenizer}", f"out={out}", "device=cpu", "views=1"]
    arguments += ["prior.width=64", "prior.heads=1", "prior.depth=1", "prior.code_features=8"]
    arguments += ["trainer.steps=4", "trainer.batch_size=16", "prefix=3"]
    assert train.main(arguments) == 0
    return out


def test_the_model_knows_how_many_codes_it_knows(short_prior: Path, prior: Path) -> None:
    assert Prior.from_pretrained(short_prior).known_codes == 3
    assert Prior.from_pretrained(prior).known_codes == 6


def test_samples_have_as_many_codes_and_no_more(
    short_prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--n", "3", "--prior", str(short_prior), "--device", "cpu"]
    assert generate.main([*given, "--out", str(tmp_path / "samples")]) == 0
    assert read_json(tmp_path / "samples" / "samples.json")["settings"]["prefix"] == 3
    assert generate.main([*given, "--out", str(tmp_path / "two"), "--prefix", "2"]) == 0
    capsys.readouterr()
    assert generate.main([*given, "--out", str(tmp_path / "more"), "--prefix", "4"]) == 2
    said = "--prefix 4: this prior was trained on the first 3 codes alone"
    assert said in capsys.readouterr().err


def test_no_more_codes_are_kept_than_it_knows_but_a_mix_draws_none(
    short_prior: Path, tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, details = [str(path) for path in sorted(tiny_run.data.rglob("*.png"))[:2]]
    given = ["--prior", str(short_prior), "--device", "cpu", "--keep", "4"]
    varied = [*given, "--n", "2", "--from", plan, "--out", str(tmp_path / "varied")]
    assert generate.main(varied) == 2
    said = "--keep 4: this prior was trained on the first 3 codes alone"
    assert said in capsys.readouterr().err
    mixed = [*given, "--mix", plan, details, "--prefix", "5", "--out", str(tmp_path / "mixed")]
    assert generate.main(mixed) == 0


def test_the_gallery_and_the_search_for_settings_stop_there(
    short_prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    given = ["--prior", str(short_prior), "--device", "cpu"]
    assert gallery.main([*given, "--out", str(page), "--per-class", "1"]) == 0
    content = content_of(page)
    assert (content["codes"], content["lengths"][-1]) == (3, 3)
    assert not content["found"]  # nothing was tuned
    assert tune.main([*given, "--prefixes", "4"]) == 2
    assert "this prior was trained on the first 3 codes alone" in capsys.readouterr().err
