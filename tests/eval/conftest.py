"""Images to score and to score against."""

import dataclasses
import json
from pathlib import Path

import pytest

from pqvae.data.config import DataConfig
from tests.eval.pictures import SIZE, random_images, write_images


@pytest.fixture
def reference(tmp_path: Path) -> DataConfig:
    """A folder with splits of random colours."""
    for split, n in (("train", 60), ("val", 10), ("test", 20)):
        write_images(tmp_path / "data" / split, random_images(n, seed=n))
    return DataConfig(path=str(tmp_path / "data"), image_size=SIZE)


@pytest.fixture
def samples(tmp_path: Path, reference: DataConfig) -> Path:
    """A folder such as ``sampling.generate`` writes."""
    folder = tmp_path / "samples"
    write_images(folder / "images", random_images(30, seed=1))
    record = {
        "n": 30,
        "seed": 5,
        "settings": {"temperature": 1.0},
        "data": dataclasses.asdict(reference),
        "complete": True,
    }
    (folder / "samples.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def classes(tmp_path: Path) -> DataConfig:
    """Class "dark" and class "light", told apart by every pixel."""
    for split, n in (("train", 40), ("val", 4), ("test", 20)):
        for name, low in (("dark", 0), ("light", 128)):
            write_images(
                tmp_path / "classes" / split / name, random_images(n, seed=n + low, low=low)
            )
    return DataConfig(path=str(tmp_path / "classes"), image_size=SIZE)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Splits drawn from one distribution. Do not change them."""
    folder = tmp_path_factory.mktemp("memorization")
    for seed, (split, n) in enumerate((("train", 200), ("val", 5), ("test", 100))):
        write_images(folder / split, random_images(n, seed))
    return DataConfig(path=str(folder), image_size=SIZE)
