"""Several processes that train a tokenizer as one: what they make is what one makes."""

import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pqvae.training.checkpoint import load_newest_state
from stage1_tokenizer import train as train_tokenizer
from tests.pqvae.ranks import (
    FLOAT32,
    ROUNDING,
    STAGE_1,
    TORCHRUN,
    assert_alike,
    assert_said_once,
    in_one,
    start_by_hand,
    state_of,
    stats,
)

if TYPE_CHECKING:
    from tests.conftest import Process, Start


@pytest.fixture(scope="module")
def four_steps(work: Path, start: "Start") -> list["Process"]:
    """Four steps of stage 1: `one` process, `accumulated` in micro-batches, and `two` processes."""
    processes = start_by_hand(start, work, 2, "-m", STAGE_1, "tokenizer.yaml", "out=two")
    in_one(work, STAGE_1, "one")
    in_one(work, STAGE_1, "accumulated", "trainer.accumulate=2")
    for process in processes:
        process.succeed()
    return processes


def test_two_processes_train_the_tokenizer_of_one(work: Path, four_steps: list["Process"]) -> None:
    # A sum of two is the same in either order, so these two do the same arithmetic: equal bits.
    assert_alike(work / "two", work / "accumulated")
    # Sums of gradients in another order, and no more: 48 codes are chosen in a step, and none is so
    # near a tie that float32 rounding would flip it. One that did would change whole counts.
    if FLOAT32:
        assert_alike(work / "two", work / "one", ROUNDING)


def test_only_one_process_speaks_and_writes(work: Path, four_steps: list["Process"]) -> None:
    assert_said_once(four_steps[0])
    assert "2 processes" in four_steps[0].told()
    assert four_steps[1].told() == four_steps[1].stdout.read_text() == ""
    assert [line["step"] for line in stats(work / "two")] == [1, 2, 3, 4, 4]
    names = {path.relative_to(work / "one") for path in (work / "one").rglob("*")}
    assert {path.relative_to(work / "two") for path in (work / "two").rglob("*")} == names


def test_run_goes_on_with_another_number_of_processes(
    work: Path, four_steps: list["Process"], start: "Start"
) -> None:
    for name in ("two", "accumulated"):
        shutil.copytree(work / name, work / f"{name}-then-one")
    shutil.copytree(work / "accumulated", work / "one-then-two")
    arguments = STAGE_1, "tokenizer.yaml", "out=one-then-two", "trainer.steps=6"
    processes = start_by_hand(start, work, 2, "-m", *arguments)
    for name in ("two", "accumulated"):
        in_one(work, STAGE_1, f"{name}-then-one", "trainer.steps=6", "trainer.accumulate=2")
    for process in processes:
        process.succeed()
    assert "resuming from step 4 in one-then-two" in processes[0].told()
    assert processes[1].told() == ""
    assert state_of(work / "one-then-two")[0] == 6
    assert_alike(work / "two-then-one", work / "accumulated-then-one")
    assert_alike(work / "one-then-two", work / "accumulated-then-one")


def test_sigterm_to_torchrun_saves_once_and_the_run_goes_on(
    work: Path, four_steps: list["Process"], start: "Start"
) -> None:
    run = work / "stopped"
    shutil.copytree(work / "two", run)
    arguments = STAGE_1, "tokenizer.yaml", "out=stopped", "trainer.steps=3000"
    long = "trainer.evaluate_every=3000"
    process = start(work, *TORCHRUN, "--nproc_per_node=2", "-m", *arguments, long)
    process.wait_for("step 8/3000")
    process.send(signal.SIGTERM)
    assert process.end() not in (0, 2)
    step, _ = state_of(run)
    assert 8 <= step < 3000
    lines = [line for line in process.told().splitlines() if line.startswith("stopped")]
    assert lines == [
        f"stopped after step {step} of 3000, saved in stopped; the same command resumes from there"
    ]
    assert list(run.rglob("*.tmp*")) == []
    in_one(work, STAGE_1, "stopped", f"trainer.steps={step + 1}")
    assert state_of(run)[0] == step + 1
    assert [line["step"] for line in stats(run) if "loss" in line] == list(range(1, step + 2))


COMES_APART = """\
import sys

import torch

from pqvae import distributed
from stage1_tokenizer import train
from stage1_tokenizer.task import TokenizerTask

after_step = TokenizerTask.after_step


def perturbed(task, step, finite):
    after_step(task, step, finite)
    if distributed.rank() == 1 and step == 2:
        with torch.no_grad():
            next(task.model.parameters()).mul_(1.001)


TokenizerTask.after_step = perturbed
sys.exit(train.main())
"""


def test_processes_that_cannot_work_as_one_end_with_a_line(
    work: Path,
    four_steps: list["Process"],
    start: "Start",
    capsys: pytest.CaptureFixture[str],
) -> None:
    (work / "apart.py").write_text(COMES_APART)
    before = (work / "two" / "config.yaml").read_text()
    cases = {
        ("apart.py", "tokenizer.yaml", "out=apart"): (
            "step 4: the state: not the same in all processes (rank 1 has ",
            2,
        ),
        # What only rank 0 checks, only it says.
        ("-m", STAGE_1, "tokenizer.yaml", "out=two", "data.shift=0"): (
            "two holds a run with another data.shift; ",
            1,
        ),
    }
    started = [start_by_hand(start, work, 2, *arguments) for arguments in cases]
    # Too many for the batch, be they processes or micro-batches: refused before a folder is made.
    arguments = [str(work / "tokenizer.yaml"), f"out={work / 'many'}", "trainer.accumulate=9"]
    assert train_tokenizer.main(arguments) == 2
    assert "8, but 1 processes with trainer.accumulate=9 need at" in capsys.readouterr().err
    for (message, count), processes in zip(cases.values(), started, strict=True):
        for process in processes[:count]:
            assert process.refusal().startswith(message)
        for process in processes[count:]:
            assert process.end() == 2
            assert process.told() == ""
    assert not (work / "many").exists()
    assert load_newest_state(work / "apart" / "state") is None
    assert (work / "two" / "config.yaml").read_text() == before
