"""The timing of the sampler: all ways compute the same, and pictures are written."""

import re

import pytest
import torch

from benchmarks.sampler import OURS, main, time_sampling
from tests.stage2_prior.random_prior import LABELS, N, make_prior


def test_greedy_codes_of_x_transformers_are_ours() -> None:
    prior = make_prior()
    timings = time_sampling(prior, LABELS, temperature=0.0, rounds=2)
    ours = timings[OURS].codes
    assert ours.shape == (len(LABELS), N)
    assert len(ours.unique(dim=0)) > 1  # classes differ
    same = [name for name in timings if not name.endswith("head")]
    assert len(same) == 3
    for name in same:
        assert torch.equal(timings[name].codes, ours)
    assert not prior.training
    assert all(len(timing.seconds) == 2 for timing in timings.values())


def test_it_prints_a_ratio_for_each_way_and_the_seconds_of_pictures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--batch", "2", "--rounds", "1", "--n", "3", "--prefix", "1"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"codes/s   ours +\d+\.\d\dx", out)) == 8
    assert out.count("100.00% of codes equal") == 3
    assert re.search(r"^3 pictures of 1 codes, all included: \d", out, re.MULTILINE)
    assert re.search(r"^alone: codes \S+ s, decoding \S+ s, PNG \S+ s$", out, re.MULTILINE)
