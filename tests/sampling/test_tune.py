"""Settings that are found: tried side by side, kept with the prior, used where none are given."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eval.report.tuning import SEED, choose, repeats
from pqvae import lite0
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.images import to_float, to_uint8
from sampling import generate, tune
from sampling.found import read_found, write_found
from sampling.sampler import sample_codes
from sampling.settings import SamplingSettings
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.decoder_config import DirectConfig
from stage2_prior import Prior
from stage2_prior.drawing import class_labels

needs_lite0 = pytest.mark.skipif(
    lite0.installed_weights() is None, reason=f"{lite0.PACKAGE} is not installed"
)


@pytest.fixture
def own_prior(prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny prior's model, in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(prior / "model", "prior")
    return Path("prior")


def settings_of(tiny_run: Any, *more: str) -> dict[str, Any]:
    arguments = ["--n", "2", "--prior", "prior", "--tokenizer", str(tiny_run.tokenizer)]
    shutil.rmtree("samples", ignore_errors=True)
    assert generate.main([*arguments, "--out", "samples", "--device", "cpu", *more]) == 0
    settings = json.loads(Path("samples/samples.json").read_text())["settings"]
    return {name: settings[name] for name in ("prefix", "temperature", "top_p", "guidance")}


def test_what_was_given_comes_before_what_was_found_and_that_before_the_defaults(
    own_prior: Path, tiny_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    built_in = {"prefix": 6, "temperature": 1.0, "top_p": 0.95, "guidance": 1.0}
    assert settings_of(tiny_run) == built_in
    assert "has found" not in capsys.readouterr().err
    content_hash = Prior.from_pretrained(own_prior).content_hash
    found = {"prefix": 2, "temperature": 0.5, "top_p": 0.9, "guidance": 2.0}
    write_found(own_prior, {**found, "prior_hash": content_hash})
    assert settings_of(tiny_run) == found
    assert "sampling.tune has found: prefix 2, temperature 0.5, top_p" in capsys.readouterr().err
    given = settings_of(tiny_run, "--prefix", "4", "--guidance", "1")
    assert given == {**found, "prefix": 4, "guidance": 1.0}
    assert "has found: temperature 0.5, top_p 0.9\n" in capsys.readouterr().err
    write_found(own_prior, {**found, "prior_hash": "of a prior that was trained further"})
    assert read_found(own_prior, content_hash) == {}
    assert settings_of(tiny_run) == built_in


def test_the_row_of_most_recall_is_kept_where_kid_is_nearly_the_lowest() -> None:
    rows = [row(0.0100, 0.30), row(0.0119, 0.40), row(0.0121, 0.90)]
    assert choose(rows) is rows[1]
    assert choose(rows[:1]) is rows[0]
    unbiased = [row(-0.001, 0.1), row(0.0, 0.9)]  # below zero by chance
    assert choose(unbiased) is unbiased[0]


def test_a_row_of_more_near_copies_than_held_out_images_have_is_kept_only_if_all_have_more() -> (
    None
):
    # Of both sides the error is 0.03, so of the difference 0.042.
    rows = [row(0.01, 0.9, copies=0.25), row(0.02, 0.5, copies=0.24), row(0.02, 0.4, copies=0.1)]
    assert [repeats(one) for one in rows] == [True, False, False]
    assert choose(rows) is rows[1]
    assert choose([rows[0], row(0.02, 0.5, copies=0.9)]) is rows[0]


def row(kid: float, recall: float, copies: float = 0.2) -> dict[str, float]:
    """Beside held-out images of which a fifth are near-copies."""
    beside = {"held_out_near_copies": 0.2, "held_out_near_copies_error": 0.03}
    return {
        "kid": kid,
        "recall": recall,
        "near_copies": copies,
        "near_copies_error": 0.03,
        **beside,
    }


def near_copies(codes: Tensor, tiny_run: Any) -> float:
    """The share of decoded codes whose nearest training image has no nearer one, by pixels."""
    decoded = to_uint8(Tokenizer.from_pretrained(tiny_run.tokenizer).decode(codes)).double()
    data = open_dataset(DataConfig(path=str(tiny_run.data), image_size=16), "train")
    training = data.images(range(len(data))).double()
    copies = 0
    for picture in decoded:
        distances = (training - picture).square().sum((1, 2, 3))
        nearest = int(distances.argmin())
        others = (training - training[nearest]).square().sum((1, 2, 3))
        others[nearest] = torch.inf
        copies += bool(distances[nearest] <= others.min())
    return copies / len(decoded)


def drawn_by(prior: Path, tiny_run: Any, setting: dict[str, Any]) -> Tensor:
    model, indices = Prior.from_pretrained(prior), torch.arange(8)
    labels = class_labels(SEED, indices, model.class_counts)
    settings = SamplingSettings(temperature=setting["temperature"], top_p=setting["top_p"])
    return sample_codes(model, labels, indices, SEED, setting["prefix"], settings)


def own_codes(tiny_run: Any, k: int) -> Tensor:
    """The first codes of the validation images."""
    data = open_dataset(DataConfig(path=str(tiny_run.data), image_size=16), "val")
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    return tokenizer.encode(to_float(data.images(range(len(data)))))[:, :k]


@needs_lite0
def test_settings_are_tried_and_the_best_is_kept(
    own_prior: Path, tiny_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--prior", "prior", "--tokenizer", str(tiny_run.tokenizer), "--device", "cpu"]
    arguments += ["--extractor", "lite0", "--n", "8", "--prefixes", "6,2", "--guidances", "1,2"]
    assert tune.main(arguments) == 0
    found = json.loads((own_prior / "sampling.json").read_text())
    tried = [(row["guidance"], row["temperature"], row["prefix"]) for row in found["tried"]]
    assert tried == [(g, t, k) for g in (1.0, 2.0) for t in (0.5, 1.0) for k in (2, 6)]
    kept = {name: found[name] for name in ("prefix", "temperature", "top_p", "guidance")}
    best = choose(found["tried"])
    assert kept == {name: best[name] for name in kept}
    assert found["against"]["data"].endswith("val")
    assert found["copies_of"]["data"].endswith("train")
    for one in found["tried"]:
        if one["guidance"] == 1:
            assert one["near_copies"] == near_copies(drawn_by(own_prior, tiny_run, one), tiny_run)
        held_out = near_copies(own_codes(tiny_run, one["prefix"]), tiny_run)
        assert one["held_out_near_copies"] == held_out
    said = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("<- kept") for line in said) == 1
    assert said[-1].startswith("wrote prior/sampling.json in ")
    assert settings_of(tiny_run) == kept


@needs_lite0
def test_a_network_does_not_judge_the_decoder_that_it_trained(
    own_prior: Path, tiny_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    tokenizer.add_decoder("vivid", DirectConfig())
    trained_with = {"vivid": {"trained_with": "efficientnet-lite0, trained on labels"}}
    tokenizer.save_pretrained("tokenizer", {**tokenizer.provenance, "decoders": trained_with})
    arguments = ["--prior", "prior", "--tokenizer", "tokenizer", "--n", "8", "--device", "cpu"]
    assert tune.main([*arguments, "--extractor", "lite0"]) == 2
    assert "the vivid decoder was trained with efficientnet-lite0" in capsys.readouterr().err
    assert not (own_prior / "sampling.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prefixes", "7"], "--prefixes 7: an image has 1 to 6 codes"),
        (["--prefixes", "2,x"], "'x' is not a whole number"),
        (["--temperatures", "a"], "'a' is no list of numbers, as in 0.5,1"),
        (["--temperatures", "0.5,-1"], "--temperature must be 0 to 10, not -1"),
        (
            ["--prior", "nowhere"],
            "nowhere: no prior here; run python -m stage2_prior.train, or give --prior",
        ),
    ],
)
def test_bad_settings_are_one_line(
    own_prior: Path,
    tiny_run: Any,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    arguments = ["--prior", "prior", "--tokenizer", str(tiny_run.tokenizer), "--device", "cpu"]
    assert tune.main([*arguments, *more]) == 2
    assert message in capsys.readouterr().err
