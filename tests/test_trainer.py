"""The training loop: when it stops, what it keeps, and that a cut run ends as a straight one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from pqvae.cli import UserError
from pqvae.config import load_config
from pqvae.loader import generator_for
from pqvae.runtime import Runtime
from pqvae.trainer import Evaluation, TrainerConfig, open_run, train
from stage1_tokenizer import training
from stage1_tokenizer.training import TokenizerTask

if TYPE_CHECKING:
    from tests.conftest import TinyRun

CPU = Runtime(torch.device("cpu"), bf16=False, reason="a test")
TRUTH = torch.tensor([1.0, -2.0, 0.5])


class CutError(Exception):
    """Stands for the power failing."""


class Regression:
    """Find TRUTH from noisy examples; counts its steps as something learned without gradients."""

    def __init__(
        self, folder: Path, *, scores: Sequence[float] = (), cut_at: int | None = None
    ) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Linear(3, 1)
        self.folder, self.scores, self.cut_at = folder, list(scores), cut_at
        self.moving_mean = torch.zeros(())
        self.started = 0
        self.saved: list[int] = []
        self.evaluated: list[int] = []
        self.weights_at: dict[int, Tensor] = {}
        self._target = torch.zeros(())

    def start(self) -> None:
        self.started += 1

    def loss(self, step: int) -> dict[str, Tensor]:
        if step == self.cut_at:
            raise CutError
        generator = generator_for(1, step)
        inputs = torch.randn(16, 3, generator=generator)
        noise = 0.01 * torch.randn(16, generator=generator)
        self._target = inputs @ TRUTH + noise
        mse = (self.model(inputs).squeeze(1) - self._target).square().mean()
        return {"loss": mse, "mean": self._target.mean()}

    def after_step(self, step: int) -> None:
        self.moving_mean.lerp_(self._target.mean(), 0.1)

    def evaluate(self, step: int) -> Evaluation:
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
        def loss(self, step: int) -> dict[str, Tensor]:
            losses = super().loss(step)
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


@pytest.mark.parametrize("cut_at", [1, 4, 5, 9])
def test_cut_run_ends_as_a_straight_one_to_the_bit(tmp_path: Path, cut_at: int) -> None:
    straight_folder, cut_folder = tmp_path / "straight", tmp_path / "cut"
    straight_folder.mkdir()
    cut_folder.mkdir()
    straight = Regression(straight_folder)
    expected = train(straight, config_of(), CPU, straight_folder)

    with pytest.raises(CutError):
        train(Regression(cut_folder, cut_at=cut_at), config_of(), CPU, cut_folder)
    torch.manual_seed(12345)  # another process: nothing may hang on the global generator
    resumed = Regression(cut_folder)
    done = train(resumed, config_of(), CPU, cut_folder)

    assert resumed.started == (1 if cut_at == 1 else 0)  # nothing had been saved at step 1
    assert resumed.evaluated[0] == cut_at // 2 * 2 + 2
    for name, value in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)
    assert torch.equal(resumed.moving_mean, straight.moving_mean)
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
    for cut_at in (5, 9):
        with pytest.raises(CutError):
            train(Regression(cut_folder, cut_at=cut_at), config_of(), CPU, cut_folder)
    newest = cut_folder / "state" / "step-00000008.pt"
    newest.write_bytes(newest.read_bytes()[:700])
    with open(cut_folder / "stats.jsonl", "a") as file:
        file.write('{"step": 9, "lo')  # the line that the cut left unfinished
    resumed = Regression(cut_folder)
    train(resumed, config_of(), CPU, cut_folder)
    assert resumed.evaluated == [8, 10]
    assert stats(cut_folder) == stats(straight_folder)
    assert "step-00000008.pt: damaged" in capsys.readouterr().err


def test_finished_run_is_not_trained_again_and_a_longer_one_goes_on(tmp_path: Path) -> None:
    train(Regression(tmp_path), config_of(), CPU, tmp_path)
    again = Regression(tmp_path)
    assert train(again, config_of(), CPU, tmp_path)["steps"] == 10
    assert (again.started, again.evaluated) == (0, [])
    longer = Regression(tmp_path)
    assert train(longer, config_of(steps=14), CPU, tmp_path)["steps"] == 14
    assert longer.evaluated == [12, 14]


def test_gradient_that_is_not_finite_stops_the_run_at_that_step(tmp_path: Path) -> None:
    class Diverging(Regression):
        def loss(self, step: int) -> dict[str, Tensor]:
            losses = super().loss(step)
            return {"loss": losses["loss"] * (float("nan") if step == 7 else 1)}

    task = Diverging(tmp_path)
    with pytest.raises(UserError, match="step 7: the gradient is not finite"):
        train(task, config_of(evaluate_every=1), CPU, tmp_path)
    assert task.evaluated[-1] == 7  # seven good steps
    assert torch.equal(task.weights(), task.weights_at[7])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "trainer.steps must be at least 1, not 0"),
        ({"batch_size": 0}, "trainer.batch_size must be at least 1"),
        ({"log_every": 0}, "trainer.log_every must be at least 1"),
        ({"evaluate_every": -1}, "trainer.evaluate_every must be at least 1"),
        ({"warmup": 1.0}, "trainer.warmup is a share"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**changes)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    out: str = "runs/x"
    device: str = "auto"
    size: int = 3
    trainer: TrainerConfig = field(default_factory=config_of)


def test_run_folder_holds_a_config_that_loads_as_the_same(tmp_path: Path) -> None:
    config = RunConfig(size=4, trainer=config_of(steps=77, learning_rate=1e-4))
    open_run(config, tmp_path / "a" / "run")
    assert load_config(RunConfig, tmp_path / "a" / "run" / "config.yaml", []) == config


@pytest.mark.parametrize(
    ("changed", "keys"),
    [
        (RunConfig(size=4), "size"),
        (RunConfig(trainer=config_of(seed=1)), "trainer.seed"),
        (RunConfig(size=4, trainer=config_of(learning_rate=1.0)), "size, trainer.learning_rate"),
    ],
)
def test_folder_of_another_run_is_refused_by_key(
    tmp_path: Path, changed: RunConfig, keys: str
) -> None:
    open_run(RunConfig(), tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match=f"holds a run with another {keys};") as caught:
        open_run(changed, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert (tmp_path / "config.yaml").read_text() == text


def test_longer_runs_and_other_intervals_are_the_same_run(tmp_path: Path) -> None:
    open_run(RunConfig(), tmp_path)
    trainer = config_of(steps=999, log_every=7, evaluate_every=9)
    config = RunConfig(out="elsewhere", device="cpu", trainer=trainer)
    open_run(config, tmp_path)
    assert load_config(RunConfig, tmp_path / "config.yaml", []) == config


def test_foreign_folder_or_file_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    (tmp_path / "file").write_text("x")
    for name in ("photos", "file"):
        with pytest.raises(UserError, match=f"{name} exists and is not a run folder"):
            open_run(RunConfig(), tmp_path / name)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    (tmp_path / "empty").mkdir()
    open_run(RunConfig(), tmp_path / "empty")  # nothing in it to lose


def test_unreadable_config_of_a_run_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("trainer: {steps: many}")
    with pytest.raises(UserError, match=r"config\.yaml: 'trainer.steps' must be a whole number"):
        open_run(RunConfig(), tmp_path)


def test_cut_tokenizer_run_ends_as_a_straight_one_to_the_bit(
    tiny_run: "TinyRun", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = load_config(training.Config, tiny_run.tokenizer / "config.yaml", [])
    trainer = replace(written.trainer, steps=12, evaluate_every=4, log_every=2)
    quantizer = replace(written.quantizer, revive_every=3)
    straight = replace(
        written, out=str(tmp_path / "straight"), trainer=trainer, quantizer=quantizer
    )
    cut = replace(straight, out=str(tmp_path / "cut"))
    training.run(straight)

    after_step = TokenizerTask.after_step

    def fail_at_seven(task: TokenizerTask, step: int) -> None:
        after_step(task, step)
        if step == 7:
            raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerTask, "after_step", fail_at_seven)
        with pytest.raises(CutError):
            training.run(cut)
    assert not (tmp_path / "cut" / "result.json").exists()
    training.run(cut)

    folders = [tmp_path / "straight", tmp_path / "cut"]
    assert stats(folders[0]) == stats(folders[1])
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    grids = [(folder / "grids" / "step-00000012.png").read_bytes() for folder in folders]
    assert grids[0] == grids[1]


def test_tokenizer_run_on_the_folder_of_another_is_refused_by_key(
    tiny_run: "TinyRun",
) -> None:
    written = load_config(training.Config, tiny_run.tokenizer / "config.yaml", [])
    assert written.out == str(tiny_run.tokenizer)
    before = (tiny_run.tokenizer / "result.json").read_bytes()
    changed = replace(written, quantizer=replace(written.quantizer, num_codes=5))
    with pytest.raises(UserError, match=r"holds a run with another quantizer\.num_codes"):
        training.run(changed)
    assert (tiny_run.tokenizer / "result.json").read_bytes() == before
