"""One tiny trained prior for all tests of sampling, and galleries of it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pqvae.files import read_json, write_json
from sampling.gallery import main
from stage2_prior import train
from tests.sampling.gallery_page import content_of

Gallery = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def prior(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny prior, made by the real training command. Do not change it."""
    out = tmp_path_factory.mktemp("stage2") / "prior"
    arguments = [f"tokenizer={tiny_run.tokenizer}", f"out={out}", "device=cpu", "views=2"]
    arguments += ["prior.width=64", "prior.heads=1", "prior.depth=1", "prior.code_features=8"]
    arguments += ["trainer.steps=20", "trainer.batch_size=16", "trainer.evaluate_every=10"]
    assert train.main(arguments) == 0
    return out


@pytest.fixture
def gallery(prior: Path, tmp_path: Path) -> Gallery:
    """``gallery(*more)`` runs the command and reads its page, ``tmp_path / "page.html"``."""

    def gallery(*more: object) -> dict[str, Any]:
        page = tmp_path / "page.html"
        arguments = ["--prior", prior, "--out", page, "--per-class", 2, "--device", "cpu", *more]
        assert main([str(argument) for argument in arguments]) == 0
        return content_of(page)

    return gallery


@pytest.fixture
def copied_prior(prior: Path, tmp_path: Path) -> Path:
    """A copy of the tiny prior's model that may be changed."""
    shutil.copytree(prior / "model", tmp_path / "prior")
    record = read_json(tmp_path / "prior" / "config.json")
    record["provenance"]["home"] = "/"
    write_json(tmp_path / "prior" / "config.json", record)
    return tmp_path / "prior"
