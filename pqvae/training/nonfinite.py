"""Watches loss and gradient norm: steps that are not finite, and gradients out of the usual."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pqvae.errors import UserError
from pqvae.training.run_log import RunLog

SPIKE = 5.0  # times the usual gradient norm
MEMORY = 0.98  # of the moving average that is the usual norm
USUAL_AFTER = 20  # steps, before which nothing is usual
NAMED = 3  # samples of a bad batch


class NonFiniteGuard:
    """Judges steps after the fact, so that a GPU need not be waited for at each of them.

    The steps themselves must see to it that one that is not finite changes nothing.
    """

    def __init__(
        self, skip_nonfinite: int, keys: Callable[[int], Sequence[str]], log: RunLog
    ) -> None:
        """Start with nothing seen.

        Args:
            skip_nonfinite: How many steps in a row may be skipped for not being finite.
            keys: The names of the samples of a step.
            log: Is told of skipped steps and of spikes.
        """
        self._skip_nonfinite, self._keys, self._log = skip_nonfinite, keys, log
        self._pending: list[tuple[int, Tensor]] = []
        self._usual, self._seen, self._bad_in_a_row = 0.0, 0, 0

    def add(self, step: int, loss: Tensor, gradient_norm: Tensor) -> None:
        """Note the scalars of the step that comes after so many; no device is waited for."""
        self._pending.append((step, torch.stack([loss.float(), gradient_norm.float()])))

    def check(self) -> None:
        """Judge the steps noted since the last call.

        Raises:
            UserError: Too many in a row were not finite.
        """
        if not self._pending:
            return
        values = torch.stack([pair for _, pair in self._pending]).tolist()
        steps = [step for step, _ in self._pending]
        self._pending.clear()
        for step, (loss, norm) in zip(steps, values, strict=True):
            if not math.isfinite(loss) or not math.isfinite(norm):
                self._judge_bad(step, "loss" if not math.isfinite(loss) else "gradient")
                continue
            self._bad_in_a_row = 0
            if self._seen >= USUAL_AFTER and norm > SPIKE * self._usual:
                text = f"gradient norm {norm:.3g}, {norm / self._usual:.0f} times the usual"
                self._log.note(step + 1, text, {"gradient_spike": norm})
            self._seen += 1
            share = max(1 - MEMORY, 1 / self._seen)
            self._usual += share * (min(norm, SPIKE * self._usual or norm) - self._usual)

    def _judge_bad(self, step: int, what: str) -> None:
        self._bad_in_a_row += 1
        keys = self._keys(step)
        more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
        text = f"the {what} is not finite (samples {', '.join(keys[:NAMED])}{more})"
        if self._bad_in_a_row > self._skip_nonfinite:
            raise UserError(
                f"step {step + 1}: {text}; the weights are as before it; a lower "
                "trainer.learning_rate usually helps, and trainer.skip_nonfinite=3 skips up to 3 "
                "such steps in a row"
            )
        self._log.note(step + 1, f"skipped: {text}", {"skipped": 1})

    def state_dict(self) -> dict[str, Any]:
        """All that later judgements depend on."""
        return {"usual": self._usual, "seen": self._seen, "bad_in_a_row": self._bad_in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._usual, self._seen = state["usual"], state["seen"]
        self._bad_in_a_row = state["bad_in_a_row"]
