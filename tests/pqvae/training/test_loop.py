"""The training loop: when it stops, what it logs and what it keeps."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from pqvae.training.loop import train
from tests.pqvae.training.regression_task import CPU, TRUTH, Regression, config_of, stats


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


def test_every_logged_interval_knows_the_learning_rate_of_its_last_step(tmp_path: Path) -> None:
    config = config_of(steps=8, log_every=3, warmup=0.25)
    train(Regression(tmp_path), config, CPU, tmp_path)
    logged = {line["step"]: line["learning_rate"] for line in stats(tmp_path) if "loss" in line}
    # The peak at step 2 of 8, then a cosine: the last step is the one that comes after seven.
    half = {step: 0.5 * (1 + math.cos(math.pi * (step - 3) / 6)) for step in (3, 6, 8)}
    assert logged == pytest.approx({step: 0.3 * share for step, share in half.items()})


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
