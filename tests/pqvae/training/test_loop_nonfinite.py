"""Steps that go wrong: what is not finite stops the run or is skipped whole, a spike is logged."""

from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pqvae.errors import UserError
from pqvae.training.checkpoint import digest_of, load_newest_state
from pqvae.training.loop import train
from tests.pqvae.training.regression_task import (
    CPU,
    CutError,
    Regression,
    alike,
    config_of,
    cut_at,
    stats,
)


class Diverging(Regression):
    """The loss, or else only the gradient, is not finite at some steps."""

    def __init__(self, folder: Path, bad: Collection[int], *, gradient: bool = False) -> None:
        super().__init__(folder)
        self.bad, self.gradient = bad, gradient

    def loss(self, step: int, part: slice) -> dict[str, Tensor]:
        losses = super().loss(step, part)
        if step in self.bad:
            zero = self.model.get_parameter("weight").sum() * 0
            # The root of zero is zero, and its slope infinite.
            losses["loss"] = losses["loss"] + (zero.abs().sqrt() if self.gradient else zero / 0)
        return losses


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_step_that_is_not_finite_stops_the_run_before_the_update(tmp_path: Path, what: str) -> None:
    task = Diverging(tmp_path, {7}, gradient=what == "gradient")
    message = (
        rf"step 8: the {what} is not finite \(samples example-7-0, .*, example-7-2 and 13 more\)"
    )
    with pytest.raises(UserError, match=message):
        train(task, config_of(evaluate_every=1), CPU, tmp_path)
    assert task.evaluated[-1] == 7  # seven good steps
    assert torch.equal(task.weights(), task.weights_at[7])
    again = Diverging(tmp_path, {7}, gradient=what == "gradient")
    with pytest.raises(UserError, match=message):  # it goes on from the last good state
        train(again, config_of(evaluate_every=1), CPU, tmp_path)
    assert again.evaluated == []


@pytest.mark.parametrize("gradient", [False, True])
def test_steps_that_are_not_finite_are_skipped_where_the_config_says_so(
    tmp_path: Path, gradient: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {3, 4, 6, 7}
    task = Diverging(tmp_path, bad, gradient=gradient)
    config = config_of(evaluate_every=1, log_every=5, skip_nonfinite=2)
    assert train(task, config, CPU, tmp_path)["steps"] == 10
    for step in range(2, 11):
        kept = torch.equal(task.weights_at[step], task.weights_at[step - 1])
        assert kept == (step - 1 in bad)
    assert "step 4/10 | skipped: the " in capsys.readouterr().err
    lines = stats(tmp_path)
    assert [line["step"] for line in lines if "skipped" in line] == [4, 5, 7, 8]
    # Means are over what was not skipped.
    assert all(torch.tensor(line["loss"]).isfinite() for line in lines if "loss" in line)

    (tmp_path / "third").mkdir()
    third = Diverging(tmp_path / "third", {3, 4, 5})
    with pytest.raises(UserError, match="step 6: the loss"):
        train(third, config, CPU, tmp_path / "third")


def test_an_interval_of_skipped_steps_alone_has_no_means(tmp_path: Path) -> None:
    config = config_of(evaluate_every=10, log_every=1, skip_nonfinite=2)
    train(Diverging(tmp_path, {3, 4}), config, CPU, tmp_path)
    lines = [line for line in stats(tmp_path) if line.keys().isdisjoint({"skipped", "error"})]
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert [line["step"] for line in lines if "loss" not in line] == [4, 5]


def test_skipped_step_changes_neither_moments_nor_averages(tmp_path: Path) -> None:
    # Step 9 is the last: without it, the run is one of nine steps, but for the learning rate.
    task, nine = Diverging(tmp_path, {9}), Regression(tmp_path)
    config = config_of(skip_nonfinite=1, warmup=0.0, evaluate_every=9)
    (tmp_path / "ten").mkdir()
    (tmp_path / "nine").mkdir()
    train(task, config, CPU, tmp_path / "ten")
    with pytest.raises(CutError):
        nine.events = cut_at(9)
        train(nine, config, CPU, tmp_path / "nine")
    assert alike(task, nine)
    states = [load_newest_state(tmp_path / name / "state") for name in ("ten", "nine")]
    assert [state[0] for state in states if state] == [10, 9]
    optimizers = [digest_of(state[1]["optimizer"]["state"]) for state in states if state]
    assert optimizers[0] == optimizers[1]


def test_spike_of_the_gradient_norm_is_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Spiking(Regression):
        def loss(self, step: int, part: slice) -> dict[str, Tensor]:
            losses = super().loss(step, part)
            return {"loss": losses["loss"] * (100.0 if step in (5, 70) else 1.0)}

    # With hardly any learning, norms differ by the batch alone: by less than a factor of five.
    config = config_of(steps=80, learning_rate=1e-9, evaluate_every=40)
    train(Spiking(tmp_path), config, CPU, tmp_path)
    spikes = [line for line in stats(tmp_path) if "gradient_spike" in line]
    assert [line["step"] for line in spikes] == [71]  # at step 6 nothing was usual yet
    assert "step 71/80 | gradient norm" in capsys.readouterr().err


def test_held_out_score_that_is_not_a_number_stops_the_run(tmp_path: Path) -> None:
    task = Regression(tmp_path, scores=[1.0, float("nan")])
    with pytest.raises(UserError, match="step 4: the held-out score is nan"):
        train(task, config_of(), CPU, tmp_path)
    assert task.saved == [2]
