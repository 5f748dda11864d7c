"""What every trainer does around the loop: device, processes, run folder, and what comes after."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from pqvae import distributed
from pqvae.config import config_to_dict, config_to_yaml
from pqvae.console import say
from pqvae.runtime import Runtime, select_runtime
from pqvae.training.compiler import require_compiler
from pqvae.training.config import TrainerConfig
from pqvae.training.loop import train
from pqvae.training.run_folder import open_run
from pqvae.training.task import Task

if TYPE_CHECKING:
    from dataclasses import Field


class StageConfig(Protocol):
    """The root config of a trainer."""

    __dataclass_fields__: ClassVar[dict[str, "Field[Any]"]]

    @property
    def out(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def trainer(self) -> TrainerConfig: ...


class StageTask(Task, Protocol):
    config: Any  # as given, or with what only the data tell


C = TypeVar("C", bound=StageConfig)
T = TypeVar("T", bound=StageTask)


def run_stage(
    config: C,
    make_task: Callable[[C, Runtime, Path], T],
    finish: Callable[[T, dict[str, float]], None],
    *,
    before: Callable[[T], None] | None = None,
    after: Callable[[T], None] | None = None,
) -> None:
    """Train as a config says, or resume.

    Args:
        config: Of the run.
        make_task: Opens data and models; nothing has been written yet.
        finish: Called at the end, on rank 0 only, with what ``train`` returns.
        before: Called in every process before the training, in the run folder.
        after: Called in every process after it.
    """
    folder, runtime = Path(config.out), select_runtime(config.device)
    if config.trainer.compile:
        require_compiler(runtime.device)
    with distributed.process_group(runtime.device):
        task = make_task(config, runtime, folder)
        with open_run(task.config, folder):
            if before is not None:
                before(task)
            say(f"training on {runtime}")
            say(config_to_yaml(task.config))
            settings = config_to_dict(task.config)
            trained = train(task, config.trainer, runtime, folder, settings)
            if after is not None:
                after(task)
            distributed.on_rank_zero(lambda: finish(task, trained))
