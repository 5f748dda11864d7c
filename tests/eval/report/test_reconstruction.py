"""The report of reconstructions: what it is of, and which images its picture shows."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.reconstruction import main
from eval.report.reconstruction import picture_rows


def test_a_folder_without_splits_is_measured_whole(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_run.data / "val" / "circles", tmp_path / "plain")
    output = tmp_path / "r.json"
    arguments = ["--tokenizer", str(tiny_run.tokenizer), "--data", str(tmp_path / "plain")]
    arguments += ["--extractor", "none", "--json", str(output), "--device", "cpu"]
    assert main(arguments) == 0
    facts = json.loads(output.read_text())["facts"]["images"]
    assert facts | {"data": str(tmp_path / "plain"), "images": 4} == facts
    capsys.readouterr()
    assert main([*arguments, "--split", "test"]) == 2
    assert "--split test: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("n", "rows"),
    [
        (1, {"best": [0], "median": [], "worst": []}),
        (3, {"best": [0, 1], "median": [], "worst": [2]}),
        (5, {"best": [0, 1], "median": [2], "worst": [3, 4]}),
        (9, {"best": [0, 1], "median": [3, 4], "worst": [7, 8]}),
        (100, {"best": [0, 1], "median": [49, 50], "worst": [98, 99]}),
    ],
)
def test_rows_of_the_picture_are_by_rank_and_none_twice(n: int, rows: dict[str, list[int]]) -> None:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    psnrs = torch.empty(n)
    psnrs[order] = torch.arange(n, 0, -1).float()
    expected = {title: order[ranks].tolist() for title, ranks in rows.items()}
    assert picture_rows(psnrs) == expected
