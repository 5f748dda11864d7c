"""benchmarks/tokenizers.py: equal bits, prefixes within the budgets, and a run from end to end."""

import itertools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks import tokenizers
from benchmarks.registers import RegistersConfig, RegistersQuantizer
from pqvae.images import encode_png, to_uint8
from pqvae.plots import PALETTE
from stage1_tokenizer import quantizers
from stage1_tokenizer.config import QUANTIZERS, TokenizerConfig
from stage1_tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.conftest import BlobImages

pytest.importorskip("vector_quantize_pytorch")


NAMES = ("ours", "spatial-vq", "spatial-fsq", "residual-vq", "registers", "gumbel")


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers are in the tables of kinds, for one test."""
    monkeypatch.setitem(QUANTIZERS, "registers", RegistersConfig)
    monkeypatch.setitem(quantizers.KINDS, RegistersConfig, RegistersQuantizer)


def tokenizer_of(name: str) -> Tokenizer:
    config = tokenizers.config_of(name, [])
    torch.manual_seed(3)
    return Tokenizer(
        TokenizerConfig(
            image_size=config.data.image_size,
            architecture=config.architecture,
            quantizer=config.quantizer,
        )
    )


def test_all_methods_are_there() -> None:
    assert tuple(tokenizers.METHODS) == NAMES
    assert len(set(PALETTE)) >= len(NAMES) + 1  # one of them has a line of refined codes, too


def test_methods_differ_in_the_quantizer_and_who_commits_alone() -> None:
    plain = tokenizers.config_of("ours", ["trainer.seed=5"])
    for name in NAMES:
        config = tokenizers.config_of(name, ["trainer.seed=5"])
        for part in ("data", "architecture", "trainer"):
            assert getattr(config, part) == getattr(plain, part)
        assert config.objective.full_share == plain.objective.full_share
        assert (config.objective.commitment == 0) == (name in ("spatial-fsq", "registers"))


@pytest.mark.parametrize("name", NAMES)
def test_all_codes_cost_576_bits_and_prefixes_keep_within_the_budgets(name: str) -> None:
    tokenizer = tokenizer_of(name)
    assert sum(tokenizer.quantizer.bits) == pytest.approx(576)
    lengths, bits = tokenizers.scored_prefixes(tokenizer)
    assert bits[-1] == 576 and lengths[-1] == tokenizer.num_codes
    assert set(lengths) <= set(tokenizer.quantizer.cuts)
    costs = [round(cost) for cost in itertools.accumulate(tokenizer.quantizer.bits)]
    assert bits == [costs[k - 1] for k in lengths]
    for budget in tokenizers.BUDGETS:  # the longest within each
        within = [k for k in tokenizer.quantizer.cuts if costs[k - 1] <= budget]
        assert not within or within[-1] in lengths
    if name == "residual-vq":
        assert bits == [144, 288, 432, 576]
    if name == "registers":
        assert bits == [9, 18, 36, 72, 144, 288, 576]


def test_encoders_are_equal_at_the_start() -> None:
    states = [tokenizer_of(name).encoder.state_dict() for name in NAMES]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[key], states[0][key]) for key in state)


def test_ours_is_compared_at_no_more_bits() -> None:
    def result(bits: list[int], psnr: list[float]) -> dict[str, Any]:
        one = {"bits": bits, "psnr": psnr, "code_entropy_bits": [7.5, 8.0]}
        return one | {"images_per_second": 100.0, "parameters": 1000}

    results = {
        "residual-vq": result([144, 576], [18.0, 22.0]),
        "ours": result([8, 136, 146, 576], [15.0, 19.0, 19.5, 23.0]),
    }
    lines = [line.split() for line in tokenizers.summary(results).splitlines()]
    assert ["residual-vq", "144", "18.00", "136", "19.00", "+1.00"] in lines
    assert ["residual-vq", "576", "22.00", "576", "23.00", "+1.00"] in lines
    assert "gain" not in tokenizers.summary({"ours": results["ours"]})


def test_speed_is_the_median_without_the_first_interval(tmp_path: Path) -> None:
    lines: list[dict[str, float]] = [{"images_per_second": speed} for speed in (5, 90, 110, 100)]
    lines.insert(2, {"val_psnr_1": 20.0})
    (tmp_path / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert tokenizers.speed_of(tmp_path) == 100


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--minutes", "0"], "--minutes 0"),
        (["--minutes", "nan"], "--minutes nan"),
        (["--methods", "theirs"], "'registers'"),
        (["--json", "nowhere/results.json"], "nowhere/results.json"),
        (["--json", "results.png"], "results.png"),
        (["--data", "nowhere"], "nowhere: no such file"),
        (["--set", "trainer.step=1"], "trainer.step"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tokenizers.main(["--json", "results.json", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and complaint in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_leaves_numbers_a_picture_and_run_folders(
    tmp_path: Path,
    blob_images: "BlobImages",
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(tokenizers.METHODS, "ours", "num_codes=9 codebook_sizes=16")
    monkeypatch.setitem(tokenizers.METHODS, "spatial-fsq", "kind=fsq levels=4,4")
    for index, image in enumerate(to_uint8(blob_images(14, 16, 1))):
        folder = tmp_path / "blobs" / ("test" if index < 4 else "val" if index < 6 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(encode_png(image))
    path = tmp_path / "results.json"
    arguments = ["--minutes", "0.01", "--data", str(tmp_path / "blobs"), "--json", str(path)]
    arguments += ["--methods", "ours", "spatial-fsq", "--set", "data.image_size=16", "device=cpu"]
    arguments += ["architecture.widths=16", "architecture.encoder_blocks=0"]
    arguments += ["architecture.decoder_blocks=0"]
    assert tokenizers.main([*arguments, "architecture.latent_channels=4"]) == 0
    report = json.loads(path.read_text())
    assert report["test_images"] == 4
    common = {"bits", "psnr", "code_entropy_bits", "dead_entries", "images_per_second"}
    common |= {"steps", "seconds", "parameters", "residual_train", "residual_test"}
    ours, fsq = report["methods"]["ours"], report["methods"]["spatial-fsq"]
    assert ours.keys() == common | {"psnr_beam8", "psnr_refine8"}
    assert fsq.keys() == common
    assert fsq["bits"] == [256]
    assert ours["bits"] == [8, 16, 32, 36]
    assert ours["psnr_refine8"][-1] >= ours["psnr"][-1]
    for result in (ours, fsq):
        assert len(result["psnr"]) == len(result["bits"])
        assert all(map(math.isfinite, result["psnr"]))
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "ours" in out and "spatial-fsq" in out
    for name in ("ours", "spatial-fsq"):
        Tokenizer.from_pretrained(tmp_path / "results" / name)

    assert tokenizers.main([*arguments, "architecture.latent_channels=4"]) == 2
    assert "results/ours is there already" in capsys.readouterr().err
