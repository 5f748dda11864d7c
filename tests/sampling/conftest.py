"""One tiny trained prior for all tests of sampling."""

from pathlib import Path
from typing import Any

import pytest

from stage2_prior import train


@pytest.fixture(scope="session")
def prior(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny prior, made by the real training command. Do not change it."""
    out = tmp_path_factory.mktemp("stage2") / "prior"
    arguments = [f"tokenizer={tiny_run.tokenizer}", f"out={out}", "device=cpu", "views=2"]
    arguments += ["prior.width=64", "prior.heads=1", "prior.depth=1", "prior.code_features=8"]
    arguments += ["trainer.steps=20", "trainer.batch_size=16", "trainer.evaluate_every=10"]
    assert train.main(arguments) == 0
    return out
