"""Training a decoder that draws: codes stay, what is kept is an average, cut runs end the same."""

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from pqvae import lite0
from pqvae.files import read_json
from pqvae.runtime import select_runtime
from pqvae.training.checkpoint import digest_of, load_newest_state
from stage1_tokenizer import train_drawn
from stage1_tokenizer.drawn_config import Config
from stage1_tokenizer.drawn_task import DrawnTask
from stage1_tokenizer.tokenizer import DRAWN, FAITHFUL, VIVID, Tokenizer

if TYPE_CHECKING:
    from tests.conftest import TinyRun

pytestmark = pytest.mark.skipif(
    lite0.installed_weights() is None, reason=f"{lite0.PACKAGE} is not installed"
)
TINY = ["device=cpu", "trainer.batch_size=16", "trainer.evaluate_every=4"]
TINY += ["decoder.width=16", "decoder.full_width=16", "decoder.depth=1"]


@pytest.fixture
def work(tiny_run: "TinyRun", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of the tiny run in ``tokenizer``."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run.tokenizer, "tokenizer")
    return tmp_path


def train(*arguments: str) -> int:
    return train_drawn.main(["tokenizer=tokenizer", "out=drawn", *TINY, *arguments])


def test_the_tokenizer_gets_a_decoder_and_keeps_codes_and_the_others(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Tokenizer.from_pretrained("tokenizer")
    assert train("trainer.steps=8") == 0
    after = Tokenizer.from_pretrained("tokenizer")
    assert after.decoder_to_see == DRAWN
    assert after.decoder(DRAWN).class_names == ("circles", "squares", "stripes")
    assert after.codes_hash == before.codes_hash
    assert after.decoder_hash() == before.decoder_hash()
    assert "ImageNet" in after.trained_with(DRAWN)
    assert VIVID not in after.decoders
    result = read_json(Path("drawn/result.json"))
    assert result["prefix_lengths"] == [1, 2, 4, 6]
    assert len(result[DRAWN]["kernel"]) == len(result[FAITHFUL]["kernel"]) == 4
    assert "gave tokenizer/model its decoder 'drawn'" in capsys.readouterr().out


def test_a_run_that_was_cut_ends_as_a_straight_one(work: Path) -> None:
    def ended() -> str:
        newest = load_newest_state(Path("drawn/state"))
        assert newest is not None and newest[0] == 8
        return digest_of(newest[1]["task"])

    assert train("trainer.steps=8") == 0
    straight = ended()
    shutil.rmtree(sorted(Path("drawn/state").iterdir())[-1])  # as if killed after step 4
    assert train("trainer.steps=8") == 0
    assert ended() == straight


def make_task(work: Path, accumulate: int) -> DrawnTask:
    trainer = dataclasses.replace(Config().trainer, accumulate=accumulate)
    config = Config(tokenizer="tokenizer", out="drawn", trainer=trainer)
    task = DrawnTask(config, select_runtime("cpu"), work / "drawn")
    task.start()
    return task


@pytest.fixture
def task(work: Path) -> DrawnTask:
    return make_task(work, 1)


def test_parts_of_a_batch_have_the_loss_of_the_whole(work: Path, task: DrawnTask) -> None:
    in_parts = make_task(work, 4)
    whole = task.loss(3, *task.parts)
    parts = [in_parts.loss(3, part) for part in in_parts.parts]
    assert len(parts) == 4
    for name, value in whole.items():
        mean = torch.stack([part[name].detach() for part in parts]).mean()
        torch.testing.assert_close(mean, value.detach(), rtol=1e-3, atol=1e-4)


def test_some_are_told_no_class_and_some_no_codes(task: DrawnTask) -> None:
    drawn = [task._drawn(step) for step in range(40)]
    lengths = torch.cat([each[0] for each in drawn])
    labels = torch.cat([each[2] for each in drawn])
    assert 0.05 < (lengths == 0).float().mean() < 0.16
    assert 0.05 < (labels == 3).float().mean() < 0.16
    told = labels != 3
    order = torch.cat([task.images.order(step) for step in range(40)])
    assert task.train_images.labels is not None
    assert torch.equal(labels[told], task.train_images.labels[order][told])
    assert not torch.equal(drawn[0][1][0], drawn[0][1][1])  # two draws of each


def test_what_is_kept_follows_what_is_trained_but_for_steps_that_are_not_finite(
    task: DrawnTask,
) -> None:
    def kept() -> torch.Tensor:
        return task.decoder.get_parameter("output.4.weight").clone()

    with torch.no_grad():
        task.trained.get_parameter("output.4.weight").fill_(1.0)
    before = kept()
    task.after_step(1000, torch.tensor(False))
    assert torch.equal(kept(), before)
    task.after_step(1000, torch.tensor(True))
    torch.testing.assert_close(kept(), before + (1 - before) / 101)
    task.after_step(10**6, torch.tensor(True))
    assert (kept() > before + (1 - before) / 101).all()
    task.after_step(0, torch.tensor(True))
    torch.testing.assert_close(kept(), torch.ones_like(before))
