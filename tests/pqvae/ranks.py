"""Runs of one and of several processes, and how to compare what they made."""

import json
import socket
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from pqvae.runtime import select_runtime
from pqvae.training.checkpoint import digest_of, load_newest_state
from stage1_tokenizer import train as train_tokenizer
from stage2_prior import train as train_prior

if TYPE_CHECKING:
    from tests.conftest import Process, Start

STAGE_1 = "stage1_tokenizer.train"
STAGE_2 = "stage2_prior.train"
MAINS = {
    STAGE_1: (train_tokenizer.main, "tokenizer.yaml"),
    STAGE_2: (train_prior.main, "prior.yaml"),
}
TORCHRUN = "-m", "torch.distributed.run"

# Float32 sums in another order, over four steps. Adam divides a gradient by its own size, so that
# the rounding of small gradients is not small in their weights: measured, 2e-4 of the largest in
# the tensor. A share that is lost or counted twice changes the moments by tens of percent.
ROUNDING = 5e-3
# In bfloat16 the gradients of each part are rounded to three digits before they are summed.
FLOAT32 = not select_runtime("cpu").bf16


def free_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def start_by_hand(start: "Start", folder: Path, count: int, *arguments: str) -> list["Process"]:
    """Start processes with what torchrun, `accelerate launch` and others set."""
    places = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        start(folder, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **places)
        for rank in range(count)
    ]


def in_one(work: Path, stage: str, out: str, *arguments: str) -> Path:
    """Train in this one process, without the seconds that a new one takes to start."""
    main, config = MAINS[stage]
    assert main([str(work / config), f"out={work / out}", *arguments]) == 0
    return work / out


def state_of(run: Path) -> tuple[int, dict[str, Any]]:
    """The newest state, but for how long it took, with everything in it by its path."""
    found = load_newest_state(run / "state")
    assert found is not None
    return found[0], flat({name: value for name, value in found[1].items() if name != "seconds"})


def flat(state: Any, path: str = "") -> dict[str, Any]:
    if isinstance(state, dict):
        parts = list(state.items())
    elif isinstance(state, list | tuple):
        parts = list(enumerate(state))
    else:
        return {path: state}
    return {
        key: value for name, part in parts for key, value in flat(part, f"{path}.{name}").items()
    }


def stats(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    return lines


def codes_in(run: Path) -> dict[str, list[Any]]:
    return {path.name: load_file(path)["codes"].tolist() for path in run.glob("codes/*")}


def assert_alike(run: Path, expected: Path, tolerance: float = 0.0) -> None:
    """The two have come to the same.

    Args:
        run: A run folder.
        expected: Another.
        tolerance: Of a number in the state, as a share of the largest in its tensor; what is logged
            must be nearer by two digits. 0 demands equal bits.
    """
    (step, state), (expected_step, expected_state) = state_of(run), state_of(expected)
    assert step == expected_step
    assert state.keys() == expected_state.keys()
    for name, value in expected_state.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            worst = float((state[name] - value).abs().max())
            assert worst <= tolerance * float(value.abs().max()), name
        elif isinstance(value, float):
            assert state[name] == pytest.approx(value, rel=tolerance / 100, abs=0), name
        else:
            assert digest_of(state[name]) == digest_of(value), name
    for line, expected_line in zip(stats(run), stats(expected), strict=True):
        assert line == pytest.approx(expected_line, rel=tolerance / 100, abs=0)


def assert_said_once(process: "Process") -> None:
    """No line stands twice in what the processes have said together."""
    lines = [*process.told().splitlines(), *process.stdout.read_text().splitlines()]
    assert [line for line, count in Counter(lines).items() if line and count > 1] == []
