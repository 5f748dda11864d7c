"""Optional places for a training run's scalars, besides the console and ``stats.jsonl``."""

import contextlib
import importlib
import secrets
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pqvae.console import say
from pqvae.errors import UserError
from pqvae.files import atomic_path

SINKS = ("tensorboard", "trackio", "wandb")


class Sink(NamedTuple):
    record: Callable[[int, dict[str, float]], None]
    close: Callable[[], None]


class Sinks:
    """The sinks of one training run. One that fails is dropped with a line; training continues.

    Args:
        names: Some of ``SINKS``.
        folder: The run folder, there already.
        config: What the services show beside the run.
        first_step: How many steps are done; above 0, a sink resumes what it has of the run.

    Raises:
        UserError: A name is unknown, or its package is not installed.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, config: Mapping[str, Any], first_step: int
    ) -> None:
        modules = {name: _load(name) for name in names}
        self._sinks: dict[str, Sink] = {}
        for name, module in modules.items():
            with self._or_drop(name):
                if name == "tensorboard":
                    self._sinks[name] = _event_files(module, folder, first_step)
                else:
                    self._sinks[name] = _service(name, module, folder, dict(config), first_step)

    def record(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, sink in list(self._sinks.items()):
            with self._or_drop(name):
                sink.record(step, dict(scalars))

    def close(self) -> None:
        while self._sinks:
            name, sink = self._sinks.popitem()
            with self._or_drop(name):
                sink.close()

    @contextlib.contextmanager
    def _or_drop(self, name: str) -> Generator[None]:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # our stdout is for results
                yield
        except Exception as error:  # whatever it is, training matters more
            self._sinks.pop(name, None)
            say(f"{name} is skipped from here on: {_one_line(error)}")


def _load(name: str) -> ModuleType:
    if name not in SINKS:
        raise UserError(f"trainer.sinks: unknown sink {name!r}; known are {', '.join(SINKS)}")
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return importlib.import_module(module)
    except ModuleNotFoundError:
        install = f"pip install 'pqvae[{name}]'"
        raise UserError(f"trainer.sinks: {name} is not installed; {install}") from None
    except Exception as error:
        raise UserError(f"trainer.sinks: {name} does not import: {_one_line(error)}") from error


def _event_files(module: ModuleType, folder: Path, first_step: int) -> Sink:
    # TensorBoard hides from `purge_step` on what was written before: the steps done again.
    writer = module.SummaryWriter(folder / "tensorboard", purge_step=first_step + 1)

    def record(step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)
        writer.flush()  # a kill may come any time, and what was before the last state is not redone

    return Sink(record, writer.close)


def _service(
    name: str, module: ModuleType, folder: Path, config: dict[str, Any], first_step: int
) -> Sink:
    id_file = folder / f"{name}_run_id.txt"
    if first_step == 0 or not id_file.exists():  # a fresh start: another run, even in this folder
        with atomic_path(id_file) as temporary:
            temporary.write_text(secrets.token_hex(4))
    run_id, title = id_file.read_text(), folder.resolve().name
    if name == "trackio":  # has no ids: the name must tell runs apart
        identity = {"name": f"{title}-{run_id}"}
    else:  # wandb would use the current directory, and copy our stdout and stderr
        settings = {"console": "off"}
        identity = {"name": title, "id": run_id, "dir": str(folder), "settings": settings}
    module.init(project="pqvae", config=config, resume="allow", **identity)
    return Sink(lambda step, scalars: module.log(scalars, step=step), module.finish)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
