"""Near-copies: found where there are some, as frequent as by chance where there are none."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eval.measures import near_copies, neighbours
from eval.measures.near_copies import (
    Comparison,
    compare,
    find_neighbours,
    nearest_point,
    open_generator,
)
from eval.measures.rates import position_bits
from eval.networks.extractor import FeatureExtractor
from eval.networks.features import FeatureNetwork
from eval.subjects.selection import asked_subset, subset
from pqvae.data import batches
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.errors import UserError
from pqvae.images import to_float
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.prefixes import reconstruct
from stage2_prior import Prior
from stage2_prior.books import Codebooks
from stage2_prior.config import PriorConfig
from tests.eval.pictures import SIZE, in_memory, random_images, write_images

CPU = torch.device("cpu")


class Tiny(nn.Module):
    """A stand-in for a network: mean colours as features."""

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1),)


NETWORK = FeatureNetwork(Tiny(), "tiny", 12, "none", "no weights", "0" * 64, False, "_tiny")
TINY = FeatureExtractor(NETWORK, CPU)


def compared(images: Tensor, data: DataConfig, reference_n: int | None = None) -> Comparison:
    seen = asked_subset(open_dataset(data, "train"), reference_n, "--reference-n")
    held_out = subset(open_dataset(data, "test"), len(images))
    return compare(in_memory(images), seen, held_out, TINY)


@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_the_nearest_is_that_of_a_plain_search_whatever_the_blocks(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    points, queries = (256 * torch.rand(n, 40, generator=generator) for n in (50, 20))
    if kind == "uint8":
        points, queries = points.to(torch.uint8), queries.to(torch.uint8)
    else:  # far from 0, so that |a|^2 + |b|^2 - 2ab of equal points is not quite 0
        points, queries = points + 1000, queries + 1000
    itself = torch.randperm(50, generator=generator)[:20]
    queries[10:] = points[itself[10:]]
    table = (queries.double().unsqueeze(1) - points.double()).square().mean(2).sqrt()
    others = table.clone()
    others[torch.arange(20), itself] = torch.inf
    for sizes in ((1024, 4096), (7, 11), (1, 1)):
        monkeypatch.setattr(neighbours, "QUERIES", sizes[0])
        monkeypatch.setattr(neighbours, "ROWS", sizes[1])
        for expected, left_out in ((table, None), (others, itself)):
            distances, numbers = nearest_point(queries, points, CPU, left_out)
            torch.testing.assert_close(distances, expected.min(1).values)
            assert torch.equal(numbers, expected.argmin(1))
        distances, _ = nearest_point(queries, points, CPU)
        assert (distances[10:] == 0).all()


def test_by_chance_as_many_are_near_copies_as_nearest_neighbours_are_mutual() -> None:
    # 6 pi / (8 pi + 3 sqrt(3)) in a plane (Clark and Evans 1955). Of 3,000, the share has a
    # deviation of about 0.01; the border changes it by less.
    generator = torch.Generator().manual_seed(0)
    images, training = (torch.rand(3000, 2, generator=generator) for _ in range(2))
    share = find_neighbours(images, training, CPU).copies.double().mean().item()
    assert share == pytest.approx(6 * math.pi / (8 * math.pi + 3 * math.sqrt(3)), abs=0.04)


def test_copies_are_near_copies_and_what_lies_between_is_not() -> None:
    training = torch.tensor([[0.0], [1.0], [10.0], [10.0], [30.0]])
    images = torch.tensor([[0.1], [0.9], [10.0], [10.1], [2.1], [45.0], [51.0]])
    found = find_neighbours(images, training, CPU)
    # 10.0 is in the training twice, so that only its exact copy is as near to it.
    assert found.copies.tolist() == [True, True, True, False, False, True, False]
    assert found.indices[:2].tolist() == [0, 1]
    assert found.distances.tolist() == pytest.approx([0.1, 0.1, 0, 0.1, 1.1, 15, 21], abs=1e-5)


def test_copies_among_samples_are_told_and_counted(data: DataConfig) -> None:
    train = open_dataset(data, "train").images(range(40))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-9, 10, (20, 3, SIZE, SIZE), generator=generator)
    noisy = (train[20:] + noise).clamp(0, 255)
    images = torch.cat([train[:20], noisy.to(torch.uint8), random_images(40, seed=9)])
    found = compared(images, data)
    samples, held_out, ratio = found.rows
    order = subset(open_dataset(data, "train")).indices
    assert (samples["images"], held_out["images"]) == (80, 80)
    assert (samples["equal"], held_out["equal"]) == (20, 0)
    for space in ("features", "pixels"):
        near = found.neighbours[space]
        assert near.copies[:40].all()
        assert [order[place] for place in near.indices[:40].tolist()] == list(range(40))
        fresh = near.copies[40:].double().mean().item()
        assert samples[f"{space}_copies"] == pytest.approx((1 + fresh) / 2)
        assert samples[f"{space}_copies"] > held_out[f"{space}_copies"] + 0.2
        assert ratio[f"{space}_distance"] < 0.8
        names = [pair["training_image"] for pair in samples[f"{space}_closest"]]
        assert names == [f"{pair['sample']:06d}.png" for pair in samples[f"{space}_closest"]]
        assert all(pair["distance"] == 0 for pair in samples[f"{space}_closest"])
    assert found.facts["training"]["images"] == 200


def test_independent_draws_have_the_share_of_held_out_images(data: DataConfig) -> None:
    samples, held_out, ratio = compared(random_images(100, seed=9), data).rows
    assert samples["equal"] == held_out["equal"] == 0
    for space in ("features", "pixels"):
        # Four deviations of the difference: false alarms are rarer than 1 in 10,000.
        errors = (samples[f"{space}_copies_error"], held_out[f"{space}_copies_error"])
        assert 0.02 < errors[0] < 0.06
        difference = samples[f"{space}_copies"] - held_out[f"{space}_copies"]
        assert abs(difference) < 4 * math.hypot(*errors)
        assert ratio[f"{space}_distance"] == pytest.approx(1, abs=0.1)


def test_figures_depend_on_neither_order_nor_chunks(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = open_dataset(data, "train").images(range(5))
    images = torch.cat([train, random_images(25, seed=9)])
    first = compared(images, data)
    monkeypatch.setattr(near_copies, "CHUNK", 7)
    monkeypatch.setattr(neighbours, "QUERIES", 11)
    monkeypatch.setattr(neighbours, "ROWS", 13)
    monkeypatch.setattr(batches, "CHUNK_PIXELS", 1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    second = compared(images[order], data)
    for space in ("features", "pixels"):
        one, other = first.neighbours[space], second.neighbours[space]
        assert torch.equal(one.copies[order], other.copies)
        torch.testing.assert_close(one.distances[order], other.distances)
    for row, again in zip(first.rows, second.rows, strict=True):
        for key, value in row.items():
            if not key.endswith("closest"):
                assert again[key] == pytest.approx(value), key


def test_large_images_are_compared_small_but_equal_only_as_they_are(tmp_path: Path) -> None:
    small = random_images(30, seed=0, size=32)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    figures = []
    for images in (small, large):
        size = images.shape[2]
        for split, part in (("train", images[:20]), ("val", images[:1]), ("test", images[20:])):
            write_images(tmp_path / str(size) / split, part)
        config = DataConfig(path=str(tmp_path / str(size)), image_size=size)
        copy = images[:2].clone()
        copy[1, :, :2, :2] += torch.tensor([[1, 0], [0, 0]], dtype=torch.uint8)
        row = compared(copy, config).rows[0]
        figures.append((row["pixels_distance"], row["equal"]))
    assert figures[0][1] == figures[1][1] == 1
    # One pixel of 32x32 by 1; at 64x64 the mean of four hides it.
    assert figures[0][0] > 0
    assert figures[1][0] == 0


def test_a_subset_of_the_training_images_is_fixed_and_stated(data: DataConfig) -> None:
    images = random_images(10, seed=9)
    found = [compared(images, data, reference_n=n) for n in (50, 50, None)]
    assert found[0].rows == found[1].rows
    assert (found[0].rows[0]["pixels_distance"]) > found[2].rows[0]["pixels_distance"]
    assert found[0].facts["training"] | {"images": 50, "of": 200} == found[0].facts["training"]
    with pytest.raises(UserError, match=r"--reference-n 201: .* train holds 200 images"):
        compared(images, data, reference_n=201)
    with pytest.raises(UserError, match="2 training images or more are needed, not 1"):
        compared(images, data, reference_n=1)


def test_without_held_out_images_the_samples_stand_alone(data: DataConfig) -> None:
    images = random_images(10, seed=9)
    seen = subset(open_dataset(data, "train"))
    alone = compare(in_memory(images), seen, None, TINY)
    (row,) = alone.rows
    beside = compared(images, data).rows[0]
    assert row["pixels_copies"] == beside["pixels_copies"]
    assert row["features_distance"] == beside["features_distance"]
    assert alone.facts["held-out"] == {}


def test_controls_are_decoded_by_the_generator_that_made_the_samples(
    tiny_run: Any, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    config = DataConfig(path=str(tiny_run.data), image_size=16)
    train, test = open_dataset(config, "train"), open_dataset(config, "test")
    settings = PriorConfig(width=32, depth=1, heads=1, code_features=4)
    codebooks, counts = Codebooks.separate((16,) * 6), (22,) * 3
    prior = Prior(settings, codebooks, train.class_names, counts)
    for book in prior.books:
        nn.init.normal_(book.head)
    record = {
        "prior": str(tmp_path / "prior"),
        "prior_hash": prior.save_pretrained(tmp_path / "prior"),
        "tokenizer": str(tiny_run.tokenizer),
        "tokenizer_hash": tokenizer.content_hash,
        "settings": {"prefix": 3},
        "data": asdict(config),
    }
    samples = replace(in_memory(train.images(range(9))), record=record)
    generator = open_generator(samples, config.path, CPU)
    seen, held_out = subset(train), subset(test, 9)
    rows = compare(samples, seen, held_out, TINY, generator).rows
    subjects = ["samples", "held-out", "held-out, decoded", "training, decoded"]
    assert [row["subject"] for row in rows] == [*subjects, "samples / held-out, decoded"]
    for row, chosen in ((rows[2], held_out), (rows[3], seen.first(9))):
        images = chosen.images(range(9))
        decoded = in_memory(reconstruct(tokenizer, images, [3])[0])
        plain = compare(decoded, seen, held_out, TINY).rows[0]
        for key in ("images", "features_copies", "pixels_copies", "pixels_distance"):
            assert row[key] == pytest.approx(plain[key])
        codes = tokenizer.encode(to_float(images))
        expected = position_bits(prior.eval(), codes, chosen.labels).sum().item()
        assert row["class_prior_bits"] == pytest.approx(expected, rel=1e-5)
    assert "class_prior_bits" not in rows[0] | rows[1]

    def refused(message: str, data: str = config.path, **changes: Any) -> None:
        with pytest.raises(UserError, match=message):
            open_generator(replace(samples, record=record | changes), data, CPU)

    refused("names no prior and tokenizer", prior=None)
    refused("no prior here", prior=str(tmp_path))
    refused("prior or its tokenizer has changed since", prior_hash="0" * 64)
    refused("trained on other data than emoji", data="emoji")
    # Newer records know what decides the pictures, whatever else the tokenizer can do.
    known = {"tokenizer_hash": "0" * 64, "decoder_hash": tokenizer.decoder_hash()}
    newer = replace(samples, record=record | known)
    assert open_generator(newer, config.path, CPU).prefix_length == 3
    refused("has changed since", tokenizer_hash="0" * 64, decoder_hash="0" * 64)
