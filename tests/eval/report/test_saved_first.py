"""Every score writes its report and its pictures before it prints: a lost log costs neither."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from eval.networks import NETWORKS
from eval.networks.features import FeatureNetwork
from pqvae import lite0
from tests.eval.full_disk import full_disk


class Tiny(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1),)


def load_tiny(weights: Path | None) -> FeatureNetwork:
    return FeatureNetwork(Tiny(), "tiny", 12, "2x2", "none", "0" * 64, False, "_tiny")


@pytest.mark.parametrize(
    ("command", "arguments", "pictures"),
    [
        ("reconstruction", "--tokenizer {run} --extractor none", ["", "-images"]),
        ("rate_distortion", "--prior none --tokenizer {run}", [""]),
        ("probe", "--tokenizer {run} --train-n 12 --test-n 6", ["", "-hits"]),
        (
            "memorization",
            "--samples {data}/val/circles --reference {data} --extractor inception",
            ["-features", "-pixels"],
        ),
    ],
)
def test_a_full_log_costs_neither_report_nor_pictures(
    command: str,
    arguments: str,
    pictures: list[str],
    tiny_run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(NETWORKS, "inception", f"{__name__}:load_tiny")
    monkeypatch.setattr(lite0, "installed_weights", lambda: None)
    given = arguments.format(run=tiny_run.tokenizer, data=tiny_run.data).split()
    main = importlib.import_module(f"eval.{command}").main
    with full_disk() as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert main([*given, "--json", str(tmp_path / "r.json"), "--device", "cpu"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "error: output: no space left on the disk"
    assert json.loads((tmp_path / "r.json").read_text())["rows"]
    made = {path.name for path in tmp_path.iterdir()} - {"r.json"}
    assert made == {f"r{picture}.png" for picture in pictures}
