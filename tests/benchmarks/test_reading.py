"""The timing of reading: it compares what it says it does."""

import re

import pytest

from benchmarks.reading import main


def test_both_ways_are_timed_and_the_present_one_is_nearer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--n", "6", "--pixels", "256", "--size", "32"]) == 0
    out = capsys.readouterr().out
    now, once = map(float, re.findall(r"at least (\S+) dB", out))
    assert now > 50 > once
    assert re.search(r"^ratio \d", out, re.MULTILINE)
