"""The folder in which both stages are trained by several processes."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from pqvae.config import config_from_dict
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.files import read_json, write_json

if TYPE_CHECKING:
    from tests.conftest import TinyRun

pytest.register_assert_rewrite("tests.pqvae.ranks")  # it compares for the tests

# A batch of 8 is small enough to be divided unevenly; its codebooks are revived twice.
TRAINER = {"steps": 4, "batch_size": 8, "log_every": 1, "evaluate_every": 4}

PRIOR = {
    "device": "cpu",
    "views": 2,
    "prior": {"width": 64, "depth": 1, "heads": 1, "code_features": 8},
    "trainer": TRAINER,
}


@pytest.fixture(scope="session")
def work(tiny_run: "TinyRun", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configs of both stages, and a tokenizer whose data take two blocks.

    Runs are made in it under names of their own.
    """
    folder = tmp_path_factory.mktemp("ranks")
    shutil.copytree(tiny_run.data, folder / "data")
    for image in list((folder / "data" / "train").rglob("*.png")):
        for copy in range(4):
            shutil.copy(image, image.with_name(f"{copy}-{image.name}"))
    shutil.copytree(tiny_run.tokenizer, folder / "given")
    config = yaml.safe_load((folder / "given" / "config.yaml").read_text())
    # It was trained on fewer images, and is made to say that it was on these: they take two blocks.
    record = read_json(folder / "given" / "model" / "config.json")
    record["provenance"]["data"]["path"] = str(folder / "data")
    data = config_from_dict(DataConfig, record["provenance"]["data"], "the record")
    record["provenance"]["data_hash"] = open_dataset(data, "train").content_hash
    write_json(folder / "given" / "model" / "config.json", record)
    config |= {
        "trainer": TRAINER,
        "quantizer": {**config["quantizer"], "revive_every": 2, "learned_codes": 4},
    }
    config["data"]["path"] = str(tiny_run.data)
    (folder / "tokenizer.yaml").write_text(yaml.safe_dump(config))
    config = {**PRIOR, "tokenizer": str(folder / "given")}
    (folder / "prior.yaml").write_text(yaml.safe_dump(config))
    return folder
