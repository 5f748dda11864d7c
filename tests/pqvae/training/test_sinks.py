"""Optional sinks: what is recorded arrives, a run that goes on shows no step twice, faults pass."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pqvae.errors import UserError
from pqvae.training.sinks import Sinks

CONFIG = {"trainer": {"steps": 10}}


class ServiceModule(ModuleType):
    """Stands for trackio or wandb: notes the calls, prints as they do, fails where it is told."""

    def __init__(self, name: str, fails_in: str = "") -> None:
        super().__init__(name)
        self.fails_in = fails_in
        self.inits: list[dict[str, Any]] = []
        self.logs: list[tuple[dict[str, float], int]] = []
        self.finishes = 0

    def init(self, **options: Any) -> None:
        self._answer("init")
        self.inits.append(options)

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._answer("log")
        self.logs.append((metrics, step))

    def finish(self) -> None:
        self._answer("finish")
        self.finishes += 1

    def _answer(self, function: str) -> None:
        print(f"* {function}")
        if function == self.fails_in:
            raise RuntimeError("the server\nis away")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer"
    path.mkdir()
    return path


def stand_in(patch: pytest.MonkeyPatch, name: str, fails_in: str = "") -> ServiceModule:
    module = ServiceModule(name, fails_in)
    patch.setitem(sys.modules, name, module)
    return module


def record_steps(sinks: Sinks, steps: Sequence[int], scale: float = 1.0) -> None:
    for step in steps:
        sinks.record(step, {"loss": scale * step, "val_psnr_1": 20.0 + step})


def events(folder: Path, name: str) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def test_tensorboard_shows_what_was_recorded(folder: Path) -> None:
    sinks = Sinks(["tensorboard"], folder, CONFIG, 0)
    record_steps(sinks, [1, 2, 3])
    sinks.close()
    assert events(folder, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert events(folder, "val_psnr_1") == [(1, 21.0), (2, 22.0), (3, 23.0)]


def test_tensorboard_shows_a_step_that_is_done_again_once(folder: Path) -> None:
    killed = Sinks(["tensorboard"], folder, CONFIG, 0)
    record_steps(killed, [1, 2, 3, 4])  # not closed before the other one reads
    goes_on = Sinks(["tensorboard"], folder, CONFIG, 2)
    record_steps(goes_on, [3, 4, 5], scale=10.0)
    assert events(folder, "loss") == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]
    killed.close()
    goes_on.close()


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_service_gets_the_run_its_config_and_the_scalars(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = stand_in(monkeypatch, name)
    sinks = Sinks([name], folder, CONFIG, 0)
    record_steps(sinks, [1, 2])
    sinks.close()
    sinks.close()
    (options,) = module.inits
    assert options["project"] == "pqvae"
    assert options["name"].startswith("tokenizer")
    assert options["config"] == CONFIG
    assert module.logs == [
        ({"loss": 1.0, "val_psnr_1": 21.0}, 1),
        ({"loss": 2.0, "val_psnr_1": 22.0}, 2),
    ]
    assert module.finishes == 1


@pytest.mark.parametrize(("name", "key"), [("trackio", "name"), ("wandb", "id")])
def test_a_run_that_goes_on_is_the_same_one_to_a_service_and_a_new_run_another(
    name: str, key: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = stand_in(monkeypatch, name)
    elsewhere = folder.parent / "other" / folder.name
    elsewhere.mkdir(parents=True)
    for path, first_step in ((folder, 0), (elsewhere, 0), (folder, 5), (folder, 0)):
        Sinks([name], path, CONFIG, first_step).close()
    started, other, went_on, again = [options[key] for options in module.inits]
    assert {options["resume"] for options in module.inits} == {"allow"}
    assert went_on == started
    assert len({started, other, again}) == 3  # a false alarm once in 1.4 billion runs


def test_wandb_leaves_the_current_directory_and_the_console_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = stand_in(monkeypatch, "wandb")
    Sinks(["wandb"], folder, CONFIG, 0).close()
    assert module.inits[0]["dir"] == str(folder)
    assert module.inits[0]["settings"] == {"console": "off"}


def test_what_a_service_prints_stays_off_stdout(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, "trackio")
    sinks = Sinks(["trackio"], folder, CONFIG, 0)
    record_steps(sinks, [1])
    sinks.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "* init\n* log\n* finish\n"


@pytest.mark.parametrize(
    ("fails_in", "calls"),
    [("init", ["init"]), ("log", ["init", "log"]), ("finish", ["init", "log", "log", "finish"])],
)
def test_a_sink_that_fails_is_named_once_and_dropped_and_the_others_go_on(
    fails_in: str,
    calls: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in(monkeypatch, "trackio", fails_in)
    healthy = stand_in(monkeypatch, "wandb")
    sinks = Sinks(["trackio", "wandb"], folder, CONFIG, 0)
    record_steps(sinks, [1, 2])
    sinks.close()
    assert [step for _, step in healthy.logs] == [1, 2]
    assert healthy.finishes == 1
    lines = capsys.readouterr().err.splitlines()
    failures = [line for line in lines if not line.startswith("*")]
    assert failures == ["trackio is skipped from here on: the server is away"]
    healthy_calls = ["init", "log", "log", "finish"]
    asked = [line.removeprefix("* ") for line in lines if line.startswith("*")]
    assert sorted(asked) == sorted(calls + healthy_calls)  # none after the failure


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError) as caught:
        Sinks([name], folder, CONFIG, 0)
    assert str(caught.value) == (
        f"trainer.sinks: {name} is not installed; pip install 'pqvae[{name}]'"
    )


def test_a_package_that_breaks_while_it_is_imported_gives_its_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    (folder / "trackio.py").write_text("raise TypeError('too new\\na protobuf')\n")
    with pytest.raises(UserError, match=r"^trainer.sinks: trackio does not import: too new a pro"):
        Sinks(["trackio"], folder, CONFIG, 0)


def test_an_unknown_sink_is_an_error_before_any_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = stand_in(monkeypatch, "wandb")
    with pytest.raises(UserError, match="unknown sink 'wanbd'; known are tensorboard, trackio, wa"):
        Sinks(["wandb", "wanbd"], folder, CONFIG, 0)
    assert module.inits == []


def test_without_sinks_nothing_is_written(folder: Path) -> None:
    sinks = Sinks([], folder, CONFIG, 0)
    record_steps(sinks, [1])
    sinks.close()
    assert list(folder.iterdir()) == []
