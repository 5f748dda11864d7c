"""``eval.reconstruction`` of images that the tokenizer has never seen."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eval.reconstruction import main


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
