"""Several processes that train a prior and draw images as one: as one process does."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sampling import generate
from tests.pqvae.ranks import (
    FLOAT32,
    ROUNDING,
    STAGE_2,
    TORCHRUN,
    assert_alike,
    assert_said_once,
    codes_in,
    free_port,
    in_one,
    start_by_hand,
)

if TYPE_CHECKING:
    from tests.conftest import Process, Start


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
