"""The page: what it shows is what the models make, and no name or path in it can do harm."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.images import to_float, to_uint8
from sampling.found import write_found
from sampling.sampler import sample_codes
from sampling.settings import SamplingSettings
from stage1_tokenizer import Tokenizer
from stage2_prior import Prior
from tests.sampling.gallery_page import HOSTILE, pictures_of, sections_of, tiles

CLASSES = ("circles", "squares", "stripes")
ALL = ["Held-out pictures", "Samples", "Variations", "Nearest training pictures"]

Gallery = Callable[..., dict[str, Any]]


def images_of(tiny_run: Any, split: Any) -> torch.Tensor:
    dataset = open_dataset(DataConfig(path=str(tiny_run.data), image_size=16), split)
    return dataset.images(range(len(dataset)))


def test_equal_models_and_options_make_equal_bytes(gallery: Gallery, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    gallery()
    first = page.read_bytes()
    gallery()
    assert page.read_bytes() == first
    gallery("--seed", 1)
    assert page.read_bytes() != first


def test_nothing_in_the_page_leads_out_of_it(gallery: Gallery, tmp_path: Path) -> None:
    gallery()
    text = (tmp_path / "page.html").read_text("utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert text.index(policy.group(0)) < min(text.index("<style"), text.index("<script"))
    rules = dict(rule.split(" ", 1) for rule in policy.group(1).split("; "))
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    for outward in ("://", "<link", "@import", "url(", "<iframe", "fetch("):
        assert outward not in text
    assert str(tmp_path) not in text


def test_names_of_classes_cannot_end_the_script_that_holds_them(
    gallery: Gallery, copied_prior: Path, tmp_path: Path
) -> None:
    model = Prior.from_pretrained(copied_prior)
    model.class_names = (HOSTILE, "{{js}}{{css}}", "b")
    model.save_pretrained(copied_prior)
    content = gallery("--prior", copied_prior)
    groups = sections_of(content)["Samples"]["groups"]
    assert [group["name"] for group in groups] == [HOSTILE, "{{js}}{{css}}", "b"]
    text = (tmp_path / "page.html").read_text("utf-8")
    assert text.count("</script") == text.count("<script") == 2
    assert "<img" not in text


def test_every_class_has_its_samples_and_more_begin_with_the_same(gallery: Gallery) -> None:
    def samples(content: dict[str, Any]) -> dict[str, torch.Tensor]:
        section = sections_of(content)["Samples"]
        drawn = tiles(content, content["sheets"]["faithful"][-1])
        numbers = {
            group["name"]: [p["at"] for p in pictures_of({"groups": [group]})]
            for group in section["groups"]
        }
        return {name: drawn[at] for name, at in numbers.items()}

    few, many = samples(gallery()), samples(gallery("--per-class", 3))
    assert tuple(few) == tuple(many) == CLASSES
    for name in CLASSES:
        assert (len(few[name]), len(many[name])) == (2, 3)
        assert torch.equal(many[name][:2], few[name])


def test_held_out_pictures_are_their_own_prefixes_beside_the_originals(
    gallery: Gallery, tiny_run: Any
) -> None:
    content = gallery()
    assert list(sections_of(content)) == ALL
    shown = pictures_of(sections_of(content)["Held-out pictures"])
    originals = images_of(tiny_run, "test")[torch.linspace(0, 11, 5).long()]
    assert torch.equal(
        tiles(content, content["stills"])[[one["beside"] for one in shown]], originals
    )
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    codes = tokenizer.encode(to_float(originals))
    assert content["lengths"] == [1, 2, 4, 6]
    for k, sheet in zip(content["lengths"], content["sheets"]["faithful"], strict=True):
        drawn = tiles(content, sheet)[[one["at"] for one in shown]]
        assert torch.equal(drawn, to_uint8(tokenizer.decode(codes[:, :k])))
    assert content["bits"] == [4, 8, 16, 24]
    assert shown[0]["name"] == "circles, held-out picture 1"


def test_the_bits_are_those_of_the_prior_summed_over_the_prefix(
    gallery: Gallery, prior: Path, tiny_run: Any
) -> None:
    content = gallery()
    originals = images_of(tiny_run, "test")[[0, 11]]
    codes = Tokenizer.from_pretrained(tiny_run.tokenizer).encode(to_float(originals))
    with torch.no_grad():
        bits = Prior.from_pretrained(prior).bits(codes, torch.tensor([0, 2])).cumsum(1)
    shown = pictures_of(sections_of(content)["Held-out pictures"])
    for one, own in zip((shown[0], shown[-1]), bits, strict=True):
        assert one["bits"] == pytest.approx(own[[0, 1, 3, 5]].tolist(), abs=0.051)  # of rounding
    samples = pictures_of(sections_of(content)["Samples"])
    mean = [sum(one["bits"][step] for one in samples) / len(samples) for step in range(4)]
    assert content["meanBits"] == pytest.approx(mean, abs=0.051)


def test_variations_keep_the_first_codes_and_differ_after_them(gallery: Gallery) -> None:
    content = gallery()
    groups = sections_of(content)["Variations"]["groups"]
    assert len(groups) == 3
    held_out = {one["beside"]: one["at"] for one in pictures_of(content["sections"][0])}
    drawn = [tiles(content, sheet) for sheet in content["sheets"]["faithful"]]
    for group in groups:
        for row in group["rows"]:
            kept = int(row["name"].split()[0])
            at = [picture["at"] for picture in row["pictures"]]
            for k, pictures in zip(content["lengths"], drawn, strict=True):
                alike = (pictures[at] == pictures[held_out[group["still"]]]).flatten(1).all(1)
                assert alike.all() if k <= kept else not alike.all()


def test_the_nearest_training_pictures_are_the_nearest_by_features(
    gallery: Gallery, prior: Path, tiny_run: Any
) -> None:
    content = gallery("--temperature", "0.01")  # so that some are the same as training pictures
    model, tokenizer = Prior.from_pretrained(prior), Tokenizer.from_pretrained(tiny_run.tokenizer)
    numbers = torch.arange(6)
    settings = SamplingSettings(temperature=0.01, top_p=0.95)
    codes = sample_codes(model, numbers % 3, numbers, 0, 6, settings)
    train = images_of(tiny_run, "train")
    known = tokenizer.encode(to_float(train))
    distances = torch.cdist(tokenizer.features(codes).double(), tokenizer.features(known).double())
    samples = sorted(pictures_of(sections_of(content)["Samples"]), key=lambda one: one["at"])
    stills = tiles(content, content["stills"])
    for one, own, row in zip(samples, codes, distances, strict=True):
        equal = (train == stills[one["near"]].unsqueeze(1)).flatten(2).all(2)
        nearest = row.sort().values[:3].tolist()
        assert row[equal.int().argmax(1)].tolist() == pytest.approx(nearest, rel=1e-6)
        assert row[equal.int().argmax(1)].tolist() == pytest.approx(
            row.sort().values[:3].tolist(), rel=1e-6
        )
        assert one["same"] == (known == own).all(1).any().item()
    pairs = pictures_of(sections_of(content)["Nearest training pictures"])
    order = distances.min(1).values[[one["at"] for one in pairs]]
    assert torch.equal(order, order.sort().values)


def test_the_slider_starts_at_the_length_that_was_found(
    gallery: Gallery, copied_prior: Path
) -> None:
    content_hash = Prior.from_pretrained(copied_prior).content_hash
    found = {"prefix": 3, "temperature": 0.5, "top_p": 0.9, "guidance": 2.0}
    write_found(copied_prior, {**found, "prior_hash": content_hash})
    content = gallery("--prior", copied_prior, "--guidance", "1")
    assert (content["start"], content["found"], content["lengths"]) == (3, True, [1, 2, 3, 4, 6])
    assert "temperature 0.5, top-p 0.9, guidance 1, seed 0" in content["notes"][0]
    content = gallery()  # of the prior for which nothing was found
    assert (content["start"], content["found"]) == (6, False)
