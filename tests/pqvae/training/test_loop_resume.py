"""A run that is cut, stopped or made longer: it ends as a straight one."""

import signal
from pathlib import Path

import pytest
import torch

from pqvae.signals import Stopped
from pqvae.training.loop import train
from tests.pqvae.training.regression_task import (
    CPU,
    CutError,
    Regression,
    alike,
    config_of,
    cut_at,
    signal_at,
    stats,
)


@pytest.mark.parametrize("step", [1, 4, 5, 9])
def test_cut_run_ends_as_a_straight_one_to_the_bit(tmp_path: Path, step: int) -> None:
    straight_folder, cut_folder = tmp_path / "straight", tmp_path / "cut"
    straight_folder.mkdir()
    cut_folder.mkdir()
    straight = Regression(straight_folder)
    expected = train(straight, config_of(), CPU, straight_folder)

    with pytest.raises(CutError):
        train(Regression(cut_folder, events=cut_at(step)), config_of(), CPU, cut_folder)
    torch.manual_seed(12345)  # another process: nothing may hang on the global generator
    resumed = Regression(cut_folder)
    done = train(resumed, config_of(), CPU, cut_folder)

    assert resumed.started == (1 if step == 1 else 0)  # nothing had been saved at step 1
    assert resumed.evaluated[0] == step // 2 * 2 + 2
    assert alike(resumed, straight)
    assert stats(cut_folder) == stats(straight_folder)
    assert done["score"] == expected["score"]
    best = [torch.load(f / "best.pt", weights_only=True) for f in (cut_folder, straight_folder)]
    assert torch.equal(best[0]["weight"], best[1]["weight"])


def test_run_cut_twice_with_a_damaged_newest_state_still_ends_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight_folder, cut_folder = tmp_path / "straight", tmp_path / "cut"
    straight_folder.mkdir()
    cut_folder.mkdir()
    train(Regression(straight_folder), config_of(), CPU, straight_folder)
    for step in (5, 9):
        with pytest.raises(CutError):
            train(Regression(cut_folder, events=cut_at(step)), config_of(), CPU, cut_folder)
    newest = cut_folder / "state" / "step-00000008" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:700])
    with open(cut_folder / "stats.jsonl", "a") as file:
        file.write('{"step": 9, "lo')  # the line that the cut left unfinished
    resumed = Regression(cut_folder)
    train(resumed, config_of(), CPU, cut_folder)
    assert resumed.evaluated == [8, 10]
    assert stats(cut_folder) == stats(straight_folder)
    assert "step-00000008: damaged" in capsys.readouterr().err


def test_a_run_made_longer_says_what_becomes_of_the_learning_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(Regression(tmp_path), config_of(warmup=0.0), CPU, tmp_path)
    train(Regression(tmp_path), config_of(warmup=0.0), CPU, tmp_path)
    assert "learning rate" not in capsys.readouterr().err
    train(Regression(tmp_path), config_of(steps=20, warmup=0.0), CPU, tmp_path)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "learning rate" in line)
    assert line.startswith("trainer.steps was 10 and is 20: ")
    assert line.endswith("at 0.15 instead of 0")  # half of the peak of 0.3, at half of the way
    (first, *_) = (line for line in stats(tmp_path) if line["step"] > 10)
    assert 0.1 < first["learning_rate"] < 0.15


def test_finished_run_is_not_trained_again_and_a_longer_one_goes_on(tmp_path: Path) -> None:
    train(Regression(tmp_path), config_of(), CPU, tmp_path)
    again = Regression(tmp_path)
    assert train(again, config_of(), CPU, tmp_path)["steps"] == 10
    assert (again.started, again.evaluated) == (0, [])
    longer = Regression(tmp_path)
    assert train(longer, config_of(steps=14), CPU, tmp_path)["steps"] == 14
    assert longer.evaluated == [12, 14]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [0, 4, 6])
def test_signal_finishes_the_step_saves_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals, step: int
) -> None:
    straight_folder, cut_folder = tmp_path / "straight", tmp_path / "cut"
    straight_folder.mkdir()
    cut_folder.mkdir()
    straight = Regression(straight_folder)
    config = config_of(evaluate_every=5, log_every=3)
    train(straight, config, CPU, straight_folder)
    before = signal.getsignal(number)
    stopped = Regression(cut_folder, events=signal_at(step, number))
    with pytest.raises(Stopped, match=f"stopped after step {step + 1} of 10, saved in") as caught:
        train(stopped, config, CPU, cut_folder)
    assert caught.value.signum == number
    assert signal.getsignal(number) is before
    assert stopped.evaluated == [5] * (step > 5)

    resumed = Regression(cut_folder)
    train(resumed, config, CPU, cut_folder)
    assert (resumed.started, resumed.evaluated[0]) == (0, 5 if step < 5 else 10)
    assert alike(resumed, straight)
    assert stats(cut_folder) == stats(straight_folder)


def test_signal_during_an_evaluation_leaves_it_for_the_next_time(tmp_path: Path) -> None:
    straight_folder, cut_folder = tmp_path / "straight", tmp_path / "cut"
    straight_folder.mkdir()
    cut_folder.mkdir()
    straight = Regression(straight_folder)
    train(straight, config_of(evaluate_every=5), CPU, straight_folder)
    stopped = Regression(cut_folder, events=signal_at("evaluate", signal.SIGTERM))
    with pytest.raises(Stopped, match="stopped after step 5 of 10"):
        train(stopped, config_of(evaluate_every=5), CPU, cut_folder)
    assert stopped.evaluated == []  # it did not wait for it
    assert stopped.saved == []
    resumed = Regression(cut_folder)
    train(resumed, config_of(evaluate_every=5), CPU, cut_folder)
    assert resumed.evaluated == [5, 10]
    assert alike(resumed, straight)
    assert stats(cut_folder) == stats(straight_folder)
