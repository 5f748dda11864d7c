"""Scores by class: each against its own, and only where the classes are known."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.measures.generation import open_floor, score
from eval.networks.extractor import FeatureExtractor
from eval.subjects.real import open_trained_on
from eval.subjects.samples import open_samples
from eval.subjects.selection import subset
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.errors import UserError
from tests.eval.pictures import SIZE
from tests.eval.scoring import CPU, tiny_network


def test_each_class_is_scored_against_its_own(classes: DataConfig, tmp_path: Path) -> None:
    train = open_dataset(classes, "train")
    assert train.labels is not None
    chosen = [*range(30), *range(40, 75)]  # 30 dark, 35 light
    pixels = train.images(chosen).permute(0, 2, 3, 1).numpy()
    wrong = np.array(["light"] * 30 + ["dark"] * 35)
    found = {}
    for name, labels in (("right", train.labels[chosen].numpy()), ("wrong", wrong)):
        np.savez(tmp_path / f"{name}.npz", pixels, labels)
        opened = open_samples(tmp_path / f"{name}.npz")
        test = open_floor(open_trained_on(classes), "train")
        extractor = FeatureExtractor(tiny_network(), CPU)
        result = score(opened, subset(train), test, extractor, ["fid", "prc"], by_class=True)
        found[name] = {row["subject"]: row for row in result.rows}
    right, wrong_rows = found["right"], found["wrong"]
    assert right["dark, samples"]["images"] == 30
    assert right["light, samples"]["images"] == 35
    assert right["light, floor: test split"]["images"] == 20
    assert "precision" not in right["dark, samples"]
    assert right["samples"]["fid"] == wrong_rows["samples"]["fid"]
    for subject in ("dark, samples", "light, samples"):
        assert right[subject]["fid"] < 0.1 < wrong_rows[subject]["fid"]


def test_classes_that_cannot_be_told_apart_are_refused(
    samples: Path, reference: DataConfig, classes: DataConfig, tmp_path: Path
) -> None:
    def by_class(path: Path, data: DataConfig) -> None:
        train, extractor = open_dataset(data, "train"), FeatureExtractor(tiny_network(), CPU)
        score(open_samples(path), subset(train), None, extractor, ["fid"], by_class=True)

    with pytest.raises(UserError, match="--by-class: the reference has no classes"):
        by_class(samples, reference)
    with pytest.raises(UserError, match=r"does not record the classes of its samples$"):
        by_class(samples, classes)
    np.savez(tmp_path / "a.npz", np.zeros((4, SIZE, SIZE, 3), np.uint8), np.arange(4))
    with pytest.raises(UserError, match=r"has class 2, but .*dark, light"):
        by_class(tmp_path / "a.npz", classes)


def test_labels_of_samples_are_those_of_the_record(samples: Path, classes: DataConfig) -> None:
    record = json.loads((samples / "samples.json").read_text())
    record["class_counts"] = {"dark": 40, "light": 40}

    def labels(**changes: object) -> tuple[str, ...] | None:
        (samples / "samples.json").write_text(json.dumps({**record, **changes}))
        return open_samples(samples, 3).labels

    numbers = [1, 0, 0, *[1] * 27]
    assert labels(labels=numbers) == ("light", "dark", "dark")
    (samples / "images" / "000001.png").unlink()
    assert labels(labels=numbers) == ("light", "dark", "light")
    assert labels(labels=None) is None
    assert labels(labels=[1, 0, -1, 1]) is None
    assert labels(labels=[1, 0, 0]) is None
    assert labels(settings={"class": "dark"}) == ("dark",) * 3
    # A folder of an older version: what is to be done is said.
    assert labels(command="python -m sampling.generate --n 30") is None
    extractor = FeatureExtractor(tiny_network(), CPU)
    train = subset(open_dataset(classes, "train"))
    with pytest.raises(UserError, match=r"classes .*; `python -m sampling.generate --n 30` adds"):
        score(open_samples(samples), train, None, extractor, ["fid"], by_class=True)
