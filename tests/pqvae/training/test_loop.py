"""The training loop: when it stops, what it keeps, and that a cut run ends as a straight one."""

import json
import math
import os
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pqvae.errors import UserError
from pqvae.randomness import generator_for
from pqvae.runtime import Runtime
from pqvae.signals import Stopped
from pqvae.training.checkpoint import digest_of, load_newest_state
from pqvae.training.config import TrainerConfig
from pqvae.training.loop import train
from pqvae.training.task import Evaluation

CPU = Runtime(torch.device("cpu"), bf16=False, reason="a test")
TRUTH = torch.tensor([1.0, -2.0, 0.5])


class CutError(Exception):
    """Stands for the power failing."""


class Regression:
    """Find TRUTH from noisy examples; keeps a moving mean as something learned without gradients.

    Args:
        scores: What the evaluations shall find; () for the real error.
        events: Called with the step when a part of its loss is computed, or "evaluate".
    """

    def __init__(
        self,
        folder: Path,
        *,
        scores: Sequence[float] = (),
        events: Callable[[int | str], None] = lambda _: None,
    ) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Linear(3, 1)
        self.networks: Sequence[nn.Module] = (self.model,)
        self.curves: Mapping[str, Sequence[str]] = {}  # drawing takes longer than all the rest
        self.folder, self.scores, self.events = folder, list(scores), events
        self.moving_mean = torch.zeros(())
        self.started = 0
        self.saved: list[int] = []
        self.evaluated: list[int] = []
        self.weights_at: dict[int, Tensor] = {}
        self._targets: list[Tensor] = []

    def start(self) -> None:
        self.started += 1

    def loss(self, step: int, part: slice) -> dict[str, Tensor]:
        self.events(step)
        generator = generator_for(1, step)
        inputs = torch.randn(16, 3, generator=generator)[part]
        targets = inputs @ TRUTH + 0.01 * torch.randn(16, generator=generator)[part]
        self._targets.append(targets)
        mse = (self.model(inputs).squeeze(1) - targets).square().mean()
        return {"loss": mse, "mean": targets.mean()}

    def after_step(self, step: int, finite: Tensor) -> None:
        targets, self._targets = torch.cat(self._targets), []
        self.moving_mean.lerp_(targets.mean(), 0.1 * finite)

    def keys(self, step: int) -> list[str]:
        return [f"example-{step}-{index}" for index in range(16)]

    def evaluate(self, step: int) -> Evaluation:
        self.events("evaluate")
        self.evaluated.append(step)
        self.weights_at[step] = self.weights().clone()
        error = float((self.weights() - TRUTH).square().mean())
        score = self.scores[len(self.evaluated) - 1] if self.scores else error
        return Evaluation(score, f"error {error:.4f}", {"error": error})

    def weights(self) -> Tensor:
        return self.model.get_parameter("weight").detach().squeeze(0)

    def save_model(self) -> None:
        self.saved.append(self.evaluated[-1])
        torch.save(self.model.state_dict(), self.folder / "best.pt")

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "moving_mean": self.moving_mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.moving_mean.copy_(state["moving_mean"])


def cut_at(*steps: int) -> Callable[[int | str], None]:
    """Events of which the ones at these steps are the power failing, once each."""
    left = list(steps)

    def event(step: int | str) -> None:
        if step in left:
            left.remove(int(step))
            raise CutError

    return event


def signal_at(event: int | str, number: signal.Signals) -> Callable[[int | str], None]:
    """Events at one of which this process gets a signal."""

    def on(happened: int | str) -> None:
        if happened == event:
            os.kill(os.getpid(), number)

    return on


def config_of(**changes: Any) -> TrainerConfig:
    config = TrainerConfig(
        steps=10, batch_size=16, learning_rate=0.3, log_every=2, evaluate_every=2
    )
    return replace(config, **changes)


def stats(folder: Path) -> list[dict[str, Any]]:
    """The lines of stats.jsonl without the one number that is a time."""
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    return lines


def test_run_ends_at_its_steps_and_has_learned(tmp_path: Path) -> None:
    task = Regression(tmp_path)
    done = train(task, config_of(steps=101, evaluate_every=25, log_every=10), CPU, tmp_path)
    assert done["steps"] == 101
    assert task.started == 1
    assert task.evaluated == [25, 50, 75, 100, 101]  # the last step always
    assert torch.allclose(task.weights(), TRUTH, atol=0.05)
    lines = stats(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == [*range(10, 101, 10), 101]
    assert [line["step"] for line in lines if "error" in line] == task.evaluated
    assert all(line["images_seen"] == 16 * line["step"] for line in lines)


def test_logged_losses_are_means_over_their_interval(tmp_path: Path) -> None:
    class Counting(Regression):
        def loss(self, step: int, part: slice) -> dict[str, Tensor]:
            losses = super().loss(step, part)
            return {**losses, "step_number": torch.tensor(float(step))}

    train(Counting(tmp_path), config_of(steps=8, log_every=3), CPU, tmp_path)
    logged = {line["step"]: line["step_number"] for line in stats(tmp_path) if "loss" in line}
    assert logged == {3: 1.0, 6: 4.0, 8: 6.5}


def test_best_weights_are_kept(tmp_path: Path) -> None:
    task = Regression(tmp_path, scores=[5, 3, 4, 3, 2])
    done = train(task, config_of(), CPU, tmp_path)
    assert task.saved == [2, 4, 10]  # an equal score is no better one
    assert done["score"] == 2
    other = Regression(tmp_path, scores=[5, 3, 4, 4, 4])
    (tmp_path / "other").mkdir()
    train(other, config_of(), CPU, tmp_path / "other")
    kept = torch.load(tmp_path / "best.pt", weights_only=True)["weight"].squeeze(0)
    assert torch.equal(kept, other.weights_at[4])
    assert not torch.equal(kept, other.weights())


def test_patience_stops_after_so_many_evaluations_without_a_better_score(tmp_path: Path) -> None:
    task = Regression(tmp_path, scores=[5, 4, 6, 3, 3, 9, 9, 9])
    done = train(task, config_of(steps=100, patience=2), CPU, tmp_path)
    assert done["steps"] == 12
    assert task.evaluated == [2, 4, 6, 8, 10, 12]
    again = Regression(tmp_path, scores=[0])
    assert train(again, config_of(steps=100, patience=2), CPU, tmp_path)["steps"] == 12
    assert again.evaluated == []  # it has ended, and the same command does not go on


def alike(task: Regression, other: Regression) -> bool:
    """Whether everything that training changes is the same to the bit."""
    return digest_of(task.state_dict()) == digest_of(other.state_dict())


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


def test_every_logged_interval_knows_the_learning_rate_of_its_last_step(tmp_path: Path) -> None:
    config = config_of(steps=8, log_every=3, warmup=0.25)
    train(Regression(tmp_path), config, CPU, tmp_path)
    logged = {line["step"]: line["learning_rate"] for line in stats(tmp_path) if "loss" in line}
    # The peak at step 2 of 8, then a cosine: the last step is the one that comes after seven.
    half = {step: 0.5 * (1 + math.cos(math.pi * (step - 3) / 6)) for step in (3, 6, 8)}
    assert logged == pytest.approx({step: 0.3 * share for step, share in half.items()})


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


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_accumulated_micro_batches_are_the_whole_batch(tmp_path: Path, parts: int) -> None:
    whole, accumulated = Regression(tmp_path), Regression(tmp_path)
    for task, accumulate in ((whole, 1), (accumulated, parts)):
        folder = tmp_path / str(accumulate)
        folder.mkdir()
        train(task, config_of(accumulate=accumulate), CPU, folder)
    # Sums in another order: float32 rounding, over ten steps.
    assert torch.allclose(accumulated.weights(), whole.weights(), rtol=1e-5, atol=1e-6)
    assert torch.allclose(accumulated.moving_mean, whole.moving_mean, rtol=1e-5, atol=1e-6)
    for line, other in zip(stats(tmp_path / "1"), stats(tmp_path / str(parts)), strict=True):
        assert line == pytest.approx(other, rel=1e-4)


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


def test_held_out_score_that_is_not_a_number_stops_the_run(tmp_path: Path) -> None:
    task = Regression(tmp_path, scores=[1.0, float("nan")])
    with pytest.raises(UserError, match="step 4: the held-out score is nan"):
        train(task, config_of(), CPU, tmp_path)
    assert task.saved == [2]


def test_state_of_the_best_score_is_kept_with_the_newest_two(tmp_path: Path) -> None:
    train(Regression(tmp_path, scores=[5, 3, 4, 4, 4]), config_of(), CPU, tmp_path)
    names = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert names == ["step-00000004", "step-00000008", "step-00000010"]


def test_curves_are_drawn_at_the_end(tmp_path: Path) -> None:
    task = Regression(tmp_path)
    task.curves = {"loss": ["loss"], "error": ["error"]}
    train(task, config_of(), CPU, tmp_path)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width >= 600
