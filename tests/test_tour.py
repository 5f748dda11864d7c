"""The notebook runs from top to bottom on freshly trained models."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stage2_prior.train import main as train_prior

if TYPE_CHECKING:
    from tests.conftest import TinyRun

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tour.ipynb"


def test_every_cell_of_the_tour_runs(
    tiny_run: "TinyRun", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, samples = tmp_path / "prior", tmp_path / "samples"
    sizes = ["trainer.steps=2", "trainer.batch_size=8", "views=1", "prior.width=32"]
    sizes += ["prior.heads=1", "prior.depth=1"]
    assert train_prior([f"tokenizer={tiny_run.tokenizer}", f"out={prior}", *sizes]) == 0

    monkeypatch.chdir(NOTEBOOK.parent.parent)  # the notebook starts a command there
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    settings, *others = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    names: dict[str, Any] = {}
    exec(settings, names)
    assert {"TOKENIZER", "PRIOR", "SAMPLES", "DATA"} <= names.keys()
    names |= {"TOKENIZER": str(tiny_run.tokenizer), "PRIOR": str(prior)}
    names |= {"SAMPLES": str(samples), "DATA": str(tiny_run.data)}
    for source in others:
        exec(source, names)
    assert len(names["decoded"]) == len(names["lengths"])
    assert names["bits"].shape == names["codes"].shape
    assert len(list((samples / "images").glob("*.png"))) == 32


def test_the_tour_is_stored_without_results() -> None:
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert cell["cell_type"] == "markdown" or not cell["outputs"]
