"""Several processes that work as one: what they make is what one process makes."""

import json
import shlex
import shutil
import signal
import socket
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from pqvae import distributed
from pqvae.config import config_from_dict
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.errors import UserError
from pqvae.files import read_json, write_json
from pqvae.runtime import select_runtime
from pqvae.training.checkpoint import digest_of, load_newest_state
from sampling import generate
from stage1_tokenizer import train as train_tokenizer
from stage2_prior import train as train_prior

if TYPE_CHECKING:
    from tests.conftest import Process, Start, TinyRun

STAGE_1 = "stage1_tokenizer.train"
STAGE_2 = "stage2_prior.train"
MAINS = {
    STAGE_1: (train_tokenizer.main, "tokenizer.yaml"),
    STAGE_2: (train_prior.main, "prior.yaml"),
}
TORCHRUN = "-m", "torch.distributed.run"

# A batch of 8 is small enough to be divided unevenly; its codebooks are revived twice.
TRAINER = {"steps": 4, "batch_size": 8, "log_every": 1, "evaluate_every": 4}

# Float32 sums in another order, over four steps. Adam divides a gradient by its own size, so that
# the rounding of small gradients is not small in their weights: measured, 2e-4 of the largest in
# the tensor. A share that is lost or counted twice changes the moments by tens of percent.
ROUNDING = 5e-3
# In bfloat16 the gradients of each part are rounded to three digits before they are summed.
FLOAT32 = not select_runtime("cpu").bf16

PRIOR = {
    "device": "cpu",
    "views": 2,
    "prior": {"width": 64, "depth": 1, "heads": 1, "code_features": 8},
    "trainer": TRAINER,
}


@pytest.fixture(scope="module")
def work(tiny_run: "TinyRun", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configs of both stages, and a tokenizer whose data take two blocks."""
    folder = tmp_path_factory.mktemp("ranks")
    shutil.copytree(tiny_run.data, folder / "data")
    for image in list((folder / "data" / "train").rglob("*.png")):
        for copy in range(4):
            shutil.copy(image, image.with_name(f"{copy}-{image.name}"))
    shutil.copytree(tiny_run.tokenizer, folder / "given")
    config = yaml.safe_load((folder / "given" / "config.yaml").read_text())
    # It was trained on fewer images, and is made to say that it was on these: they take two blocks.
    record = read_json(folder / "given" / "model" / "config.json")
    record["provenance"]["data"]["path"] = str(folder / "data")
    data = config_from_dict(DataConfig, record["provenance"]["data"], "the record")
    record["provenance"]["data_hash"] = open_dataset(data, "train").content_hash
    write_json(folder / "given" / "model" / "config.json", record)
    config |= {
        "trainer": TRAINER,
        "quantizer": {**config["quantizer"], "revive_every": 2, "learned_codes": 4},
    }
    config["data"]["path"] = str(tiny_run.data)
    (folder / "tokenizer.yaml").write_text(yaml.safe_dump(config))
    config = {**PRIOR, "tokenizer": str(folder / "given")}
    (folder / "prior.yaml").write_text(yaml.safe_dump(config))
    return folder


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


@pytest.fixture(scope="module")
def priors(work: Path, start: "Start") -> list["Process"]:
    """Four steps of stage 2: `prior` in one process, `nodes` on two "machines", `three` by hand."""
    port = free_port()
    processes = [
        start(
            work,
            *TORCHRUN,
            "--nnodes=2",
            f"--node_rank={node}",
            "--master_addr=127.0.0.1",
            f"--master_port={port}",
            "--nproc_per_node=1",
            *("-m", STAGE_2, "prior.yaml", "out=nodes"),
        )
        for node in range(2)
    ]
    processes += start_by_hand(start, work, 3, "-m", STAGE_2, "prior.yaml", "out=three")
    in_one(work, STAGE_2, "prior")
    in_one(work, STAGE_2, "prior-of-2", "trainer.accumulate=2")
    for process in processes:
        process.succeed()
    return processes


def test_nodes_and_uneven_shares_train_the_prior_of_one_process(
    work: Path, priors: list["Process"]
) -> None:
    for name in ("nodes", "three"):
        assert codes_in(work / name) == codes_in(work / "prior")
    assert_alike(work / "nodes", work / "prior-of-2")
    if FLOAT32:
        for name in ("nodes", "three"):
            assert_alike(work / name, work / "prior", ROUNDING)
    assert_said_once(priors[0])
    assert_said_once(priors[2])
    for index in (1, 3, 4):
        assert priors[index].told() == priors[index].stdout.read_text() == ""


def test_processes_draw_the_images_that_one_draws(
    work: Path, priors: list["Process"], start: "Start", monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--n", "35", "--batch-size", "5", "--device", "cpu", "--prior", "prior"]
    arguments = ["--nproc_per_node=2", "-m", "sampling.generate", "--", *common, "--out", "shared"]
    process = start(work, *TORCHRUN, *arguments)  # without the -- torchrun takes --n for its own
    monkeypatch.chdir(work)
    assert generate.main([*common, "--out", "alone"]) == 0
    process.succeed()
    assert_said_once(process)
    images, expected = (
        {path.name: path.read_bytes() for path in (work / name).rglob("*.png")}
        for name in ("shared", "alone")
    )
    assert len(expected) == 35 + 1  # and the grid
    assert images == expected
    records = [
        json.loads((work / name / "samples.json").read_text()) for name in ("shared", "alone")
    ]
    assert [shlex.split(record.pop("command"))[-1] for record in records] == ["shared", "alone"]
    assert records[0]["complete"] is True
    assert records[0] == records[1]


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


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def fail() -> str:
    raise AssertionError("called")


@pytest.mark.usefixtures("alone")
def test_without_an_environment_there_is_one_process_and_nothing_is_exchanged() -> None:
    assert (distributed.rank(), distributed.local_rank(), distributed.world_size()) == (0, 0, 1)
    assert distributed.is_rank_zero()
    with distributed.process_group(torch.device("cpu")):
        assert not torch.distributed.is_initialized()
        value = object()
        assert distributed.broadcast(value) is value
        assert distributed.on_rank_zero(lambda: value) is value
        with pytest.raises(AssertionError, match="called"):
            distributed.on_rank_zero(fail)
        assert distributed.any_rank(True) is True
        assert distributed.any_rank(False) is False
        rows = torch.arange(6.0).view(3, 2)
        assert distributed.gather(rows, 0, 3) is rows
        distributed.all_reduce_sum([rows])
        assert torch.equal(rows, torch.arange(6.0).view(3, 2))
        distributed.check_ranks_agree(fail, "nothing is compared")
        distributed.barrier()


@pytest.mark.usefixtures("alone")
def test_place_among_the_processes_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert (distributed.rank(), distributed.local_rank(), distributed.world_size()) == (5, 1, 8)
    assert not distributed.is_rank_zero()
    monkeypatch.setenv("RANK", "")  # as good as not set
    assert distributed.is_rank_zero()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("value", ["x", "-1", "1.5", "٣"])
def test_environment_that_is_no_number_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("RANK", value)
    with pytest.raises(UserError, match=f"environment: RANK must be a whole number, not '{value}'"):
        distributed.rank()


@pytest.mark.usefixtures("alone")
def test_processes_without_a_meeting_place_are_told_to_use_torchrun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    message = r"environment: .*MASTER_ADDR.*; start several processes by torchrun"
    with pytest.raises(UserError, match=message), distributed.process_group(torch.device("cpu")):
        pass
