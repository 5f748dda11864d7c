"""One optimizer step: micro-batches, sums over ranks, clipping, an update if all is finite."""

import torch
from torch import Tensor, nn

from pqvae import distributed
from pqvae.data.batches import parts_of_batch
from pqvae.randomness import generator_for
from pqvae.runtime import Runtime
from pqvae.training.config import TrainerConfig
from pqvae.training.optim import adamw, scheduled_rate
from pqvae.training.task import Task


class TrainStep:
    """Does the steps of a run. Between them it keeps the optimizer's state, and nothing else."""

    def __init__(self, task: Task, config: TrainerConfig, runtime: Runtime) -> None:
        self._task, self._config, self._runtime = task, config, runtime
        self._parts = parts_of_batch(config.batch_size, config.accumulate)
        self._parameters = list(task.model.parameters())
        self.optimizer = adamw(task.model, config.weight_decay, (config.beta1, config.beta2))

    def __call__(self, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Do the step that comes after so many.

        Returns:
            The scalars of the whole batch with the ``gradient_norm``; and whether loss and gradient
            were finite, a bool on the device: if not, nothing has changed.
        """
        config = self._config
        self._task.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = scheduled_rate(config, step)

        # Each rank takes its parts of the batch; sums over ranks make the batch's gradient.
        self.optimizer.zero_grad(set_to_none=True)
        scalars = self._accumulate(step)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        distributed.all_reduce_sum([*gradients, *scalars.values()])
        norm = nn.utils.clip_grad_norm_(self._parameters, config.clip_norm)
        finite = norm.isfinite() & scalars["loss"].isfinite()

        # The fused step changes nothing then, and nothing has to wait for the device to know.
        self.optimizer.found_inf = (~finite).float()  # type: ignore[missing-attribute]
        self.optimizer.step()
        self._task.after_step(step, finite)
        return {**scalars, "gradient_norm": norm}, finite

    def _accumulate(self, step: int) -> dict[str, Tensor]:
        """Add up gradients and scalars over this rank's parts, as shares of the whole batch's."""
        scalars: dict[str, Tensor] = {}
        for part in self._parts:
            # Dropout is the one thing that draws from the global generator.
            torch.manual_seed(generator_for(self._config.seed, step, part.start).initial_seed())
            with self._runtime.autocast():
                losses = self._task.loss(step, part)
            share = (part.stop - part.start) / self._config.batch_size
            (losses["loss"] * share).backward()
            for name, value in losses.items():
                scaled = value.detach().float() * share
                scalars[name] = scalars[name] + scaled if name in scalars else scaled
        return scalars
