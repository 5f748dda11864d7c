"""Run folders: one run each, in one process at a time; and the settings of the trainer."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from pqvae.config import HARMLESS, PLACE, config_class, config_to_yaml, load_config
from pqvae.errors import UserError
from pqvae.training.config import TrainerConfig
from pqvae.training.run_folder import open_run


def config_of(**changes: Any) -> TrainerConfig:
    return replace(TrainerConfig(steps=10, batch_size=16, learning_rate=0.3), **changes)


@config_class
class RunConfig:
    out: Annotated[str, HARMLESS] = "runs/x"
    device: Annotated[str, HARMLESS] = "auto"
    images: Annotated[str, PLACE] = "photos"
    size: int = 3
    trainer: TrainerConfig = Field(default_factory=config_of)


class CutError(Exception):
    """Stands for the power failing."""


@pytest.mark.parametrize(
    "setting",
    [
        *("steps=0", "batch_size=0", "learning_rate=0", "log_every=0", "evaluate_every=-1"),
        *("warmup=1.0", "accumulate=0", "skip_nonfinite=-1", "patience=-1", "sinks=printer"),
    ],
)
def test_impossible_settings_are_refused_by_key(setting: str) -> None:
    key = setting.partition("=")[0]
    with pytest.raises(UserError, match=f"^command line: 'trainer.{key}' must be "):
        load_config(RunConfig, None, [f"trainer.{setting}"])


def enter(config: RunConfig, folder: Path) -> None:
    with open_run(config, folder):
        pass


def save_something(folder: Path, name: str = "state/step-00000002") -> None:
    (folder / name).mkdir(parents=True)


def test_run_folder_holds_a_config_that_loads_as_the_same(tmp_path: Path) -> None:
    config = RunConfig(size=4, trainer=config_of(steps=77, learning_rate=1e-4))
    enter(config, tmp_path / "a" / "run")
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
    enter(RunConfig(), tmp_path)
    save_something(tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match=f"holds a run with another {keys};") as caught:
        enter(changed, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert (tmp_path / "config.yaml").read_text() == text


def test_longer_runs_and_other_intervals_are_the_same_run(tmp_path: Path) -> None:
    enter(RunConfig(), tmp_path)
    save_something(tmp_path)
    harmless = {"accumulate": 2, "skip_nonfinite": 1, "compile": True, "sinks": ("trackio",)}
    trainer = config_of(steps=999, log_every=7, evaluate_every=9, **harmless)
    config = RunConfig(out="elsewhere", device="cpu", trainer=trainer)
    enter(config, tmp_path)
    assert load_config(RunConfig, tmp_path / "config.yaml", []) == config


def test_a_place_may_change_where_a_state_knows_the_hash_of_what_lies_there(tmp_path: Path) -> None:
    moved = RunConfig(images="elsewhere/photos")
    for name in ("hashed", "unhashed"):
        enter(RunConfig(), tmp_path / name)
    save_something(tmp_path / "hashed")
    enter(moved, tmp_path / "hashed")
    assert load_config(RunConfig, tmp_path / "hashed" / "config.yaml", []) == moved
    save_something(tmp_path / "unhashed", "model")
    with pytest.raises(UserError, match="holds a run with another images;"):
        enter(moved, tmp_path / "unhashed")


def test_a_run_of_which_nothing_is_saved_gives_way_to_the_next_try(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too fast"), open_run(RunConfig(), tmp_path):
        raise UserError("too fast")
    with pytest.raises(CutError), open_run(RunConfig(size=5), tmp_path):
        raise CutError
    corrected = RunConfig(size=4)
    with pytest.raises(UserError, match="not finite"), open_run(corrected, tmp_path):
        save_something(tmp_path)
        raise UserError("not finite")
    enter(corrected, tmp_path)
    assert load_config(RunConfig, tmp_path / "config.yaml", []) == corrected


def test_a_config_that_a_user_has_written_is_never_replaced_by_another(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("size: 3  # as in the paper\n")
    with pytest.raises(UserError, match="holds a run with another size;"):
        enter(RunConfig(size=4), tmp_path)
    assert "paper" in (tmp_path / "config.yaml").read_text()


def test_a_run_that_refuses_to_go_on_keeps_its_config(tmp_path: Path) -> None:
    enter(RunConfig(), tmp_path)
    save_something(tmp_path)
    moved = RunConfig(images="other/photos")
    with pytest.raises(UserError, match="other images"), open_run(moved, tmp_path):
        raise UserError("other images")
    assert load_config(RunConfig, tmp_path / "config.yaml", []) == RunConfig()


def test_foreign_folder_or_file_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    (tmp_path / "file").write_text("x")
    for name in ("photos", "file"):
        with pytest.raises(UserError, match=f"{name} exists and is not a run folder"):
            enter(RunConfig(), tmp_path / name)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    (tmp_path / "empty").mkdir()
    enter(RunConfig(), tmp_path / "empty")  # nothing in it to lose


def test_unreadable_config_of_a_run_folder_is_named(tmp_path: Path) -> None:
    text = config_to_yaml(RunConfig())
    for wrong, problem in (
        ("trainer: {steps: many}", "'trainer.steps' must be a whole number"),
        (f"{text}assignment: nearest\n", "unknown key 'assignment'"),  # of another version
    ):
        (tmp_path / "config.yaml").write_text(wrong)
        message = rf"config\.yaml: {problem}.*; this run cannot be resumed: choose another folder"
        with pytest.raises(UserError, match=message):
            enter(RunConfig(), tmp_path)


def test_run_folder_in_use_is_refused_and_free_again_afterwards(tmp_path: Path) -> None:
    # A lock belongs to the open file: a second opening in this process is another one.
    message = "another process is at work in this folder"
    with open_run(RunConfig(), tmp_path), pytest.raises(UserError, match=message):
        enter(RunConfig(), tmp_path)
    with pytest.raises(CutError), open_run(RunConfig(), tmp_path):
        raise CutError
    enter(RunConfig(), tmp_path)


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config_to_yaml(RunConfig()))
    (tmp_path / "state" / "step-00000002.tmp77").mkdir(parents=True)
    (tmp_path / "state" / "step-00000002.tmp77" / "state.pt").write_bytes(b"half")
    (tmp_path / "model.safetensors.tmp123").write_bytes(b"half")
    (tmp_path / "notes.tmp").write_text("a user's")
    enter(RunConfig(), tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left - {"lock"} == {"config.yaml", "notes.tmp", "state"}
