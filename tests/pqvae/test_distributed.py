"""The place among processes: read from the environment, and alone nothing is exchanged."""

import pytest
import torch

from pqvae import distributed
from pqvae.errors import UserError


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
