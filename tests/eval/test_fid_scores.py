"""Scores: those of plain torch-fidelity, with their floor, their protocol and their names."""

import io
from pathlib import Path

import pytest
import torch
import torch_fidelity
from torch import Tensor
from torch.utils.data import Dataset

from eval.measures.fidelity import fid
from eval.measures.generation import score
from eval.measures.statistics import Reference
from eval.networks import inception
from eval.networks.extractor import FeatureExtractor
from eval.subjects.samples import open_samples
from eval.subjects.selection import subset
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.errors import UserError
from tests.eval.pictures import SIZE, random_images, write_images
from tests.eval.scoring import CPU, TRUNK, Tiny, as_features, needs_trunk, score_with, tiny_network


def test_score_has_the_floor_and_the_protocol(samples: Path, reference: DataConfig) -> None:
    result = score_with(tiny_network(), samples, reference, ["fid", "kid", "isc"])
    opened = open_samples(samples)
    train = open_dataset(reference, "train")
    scored, floor, real = result.rows
    assert {"fid", "kid", "isc"} <= scored.keys() == floor.keys()
    assert (scored["images"], floor["images"], real["images"]) == (30, 20, 60)
    assert real.keys() == {"subject", "images", "isc", "isc_std"}
    assert result.facts["reference"]["images"] == 60
    assert result.facts["reference"]["content"] == train.content_hash
    assert result.facts["sampler"]["seed"] == 5
    assert result.facts["sampler"]["temperature"] == 1.0
    assert result.facts["extractor"]["sha256"] == "0" * 64
    # The same numbers from features made here.
    pools = [Tiny()(images)[0] for images in (opened.images(range(30)), train.images(range(60)))]
    by_hand = fid(as_features(pools[0]), Reference(as_features(pools[1])))
    assert scored["fid"] == pytest.approx(by_hand["fid"], rel=1e-5)


def test_few_images_are_warned_of(samples: Path, reference: DataConfig) -> None:
    few = score_with(tiny_network(), samples, reference, ["fid"], n=11)
    assert any("biased upwards" in note for note in few.notes)  # 11 images, 12 features
    enough = score_with(tiny_network(), samples, reference, ["fid"], n=12)
    assert not any("biased upwards" in note for note in enough.notes)


def test_scores_of_another_network_never_bear_the_plain_names(
    samples: Path, reference: DataConfig
) -> None:
    metrics = ["fid", "kid", "prc"]
    other = score_with(tiny_network(suffix="_tiny"), samples, reference, metrics, n=11).rows[0]
    plain = score_with(tiny_network(), samples, reference, metrics, n=11).rows[0]
    assert other.pop("fd_tiny") == plain.pop("fid")
    assert other.pop("kd_tiny") == plain.pop("kid")
    assert other.pop("precision_tiny") == plain.pop("precision")
    assert not {"fid", "kid", "precision"} & other.keys()


def test_score_of_the_reference_itself_is_zero(reference: DataConfig) -> None:
    result = score_with(tiny_network(), Path(reference.path) / "train", reference, ["fid"])
    assert result.rows[0]["fid"] == pytest.approx(0, abs=1e-6)
    assert result.rows[1]["fid"] > 0.01


def test_subset_of_the_reference_is_fixed_and_stated(samples: Path, reference: DataConfig) -> None:
    results = [
        score_with(tiny_network(), samples, reference, ["fid"], reference_n=n) for n in (20, 20, 60)
    ]
    fids = [result.rows[0]["fid"] for result in results]
    assert fids[0] == fids[1] != fids[2]
    about = results[0].facts["reference"]
    assert (about["images"], about["of"], about["subset_seed"]) == (20, 60, 0)
    with pytest.raises(UserError, match=r"--reference-n 61: .* holds 60"):
        score_with(tiny_network(), samples, reference, ["fid"], reference_n=61)


def test_inception_score_is_left_out_without_the_classifier(
    samples: Path, reference: DataConfig
) -> None:
    network = tiny_network(has_logits=False)
    result = score_with(network, samples, reference, ["kid", "isc"])
    assert "isc" not in result.rows[0]
    assert any("left out: Inception Score needs the classifier" in note for note in result.notes)
    with pytest.raises(UserError, match=r"--metrics isc: .*weights-inception-2015-12-05"):
        score_with(network, samples, reference, ["isc"])


def test_too_few_images_are_refused_or_cost_the_floor(samples: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "few" / "train", random_images(30, seed=0))
    write_images(tmp_path / "few" / "val", random_images(1, seed=2))
    write_images(tmp_path / "few" / "test", random_images(1, seed=1))
    few = DataConfig(path=str(tmp_path / "few"), image_size=SIZE)
    result = score_with(tiny_network(), samples, few, ["kid"])
    assert len(result.rows) == 1
    assert any("no floor" in note for note in result.notes)
    with pytest.raises(UserError, match="kid needs 2 images or more, not 1"):
        score_with(tiny_network(), samples, few, ["kid"], n=1)


@needs_trunk
def test_scores_are_those_of_plain_torch_fidelity(samples: Path, reference: DataConfig) -> None:
    network = inception.load(TRUNK)
    n, metrics = 8, ["fid", "kid", "prc"]
    real = subset(open_dataset(reference, "train"), n)
    opened, extractor = open_samples(samples, n), FeatureExtractor(network, CPU)
    result = score(opened, real, None, extractor, metrics)

    class Plain(Dataset):
        def __init__(self, images: Tensor) -> None:
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> Tensor:
            return self.images[index]

    weights = io.BytesIO()
    torch.save(network.module.state_dict(), weights)
    path = samples / "weights.pth"
    path.write_bytes(weights.getvalue())
    plain = torch_fidelity.calculate_metrics(
        input1=Plain(opened.images(range(n))),
        input2=Plain(real.images(range(n))),
        fid=True,
        kid=True,
        kid_subset_size=n,
        prc=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(path),
        cuda=False,
        batch_size=6,
        save_cpu_ram=True,
        verbose=False,
        cache=False,
    )
    ours = result.rows[0]
    assert ours["fid"] == pytest.approx(plain["frechet_inception_distance"], rel=1e-6)
    # A difference of kernels of about 1, which torch-fidelity takes in float32.
    assert ours["kid"] == pytest.approx(plain["kernel_inception_distance_mean"], abs=1e-6)
    assert ours["precision"] == plain["precision"]
    assert ours["recall"] == plain["recall"]
