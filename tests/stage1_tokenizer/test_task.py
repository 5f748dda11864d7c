"""Stage 1 in the training loop: cut runs, skipped steps, compiled networks."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

import stage1_tokenizer.task as stage1
from pqvae.config import load_config
from pqvae.errors import UserError
from pqvae.runtime import Runtime
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.config import Config, GumbelConfig, QuantizerConfig, ResidualConfig
from stage1_tokenizer.task import TokenizerTask

if TYPE_CHECKING:
    from tests.conftest import TinyRun

CPU = Runtime(torch.device("cpu"), bf16=False, reason="a test")


class CutError(Exception):
    """Stands for the power failing."""


def stats(folder: Path) -> list[dict[str, Any]]:
    """The lines of stats.jsonl without the one number that is a time."""
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    return lines


@pytest.mark.parametrize(
    "quantizer",
    [
        ResidualConfig(
            num_codes=6,
            codebook_sizes=(16,),
            revive_every=3,
            learned_codes=3,
            rank=8,
            subspace=4,
        ),
        GumbelConfig(num_codes=6, codebook_sizes=(16,), revive_every=3),
    ],
    ids=["residual", "gumbel"],
)
def test_cut_tokenizer_run_ends_as_a_straight_one_to_the_bit(
    quantizer: QuantizerConfig,
    tiny_run: "TinyRun",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = load_config(Config, tiny_run.tokenizer / "config.yaml", [])
    trainer = replace(written.trainer, steps=12, evaluate_every=4, log_every=2)
    straight = replace(
        written, out=str(tmp_path / "straight"), trainer=trainer, quantizer=quantizer
    )
    cut = replace(straight, out=str(tmp_path / "cut"))
    stage1.run(straight)

    after_step = TokenizerTask.after_step

    def fail_at_seven(task: TokenizerTask, step: int, finite: Tensor) -> None:
        after_step(task, step, finite)
        if step == 7:
            raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerTask, "after_step", fail_at_seven)
        with pytest.raises(CutError):
            stage1.run(cut)
    assert not (tmp_path / "cut" / "result.json").exists()
    stage1.run(cut)

    folders = [tmp_path / "straight", tmp_path / "cut"]
    assert stats(folders[0]) == stats(folders[1])
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    grids = [(folder / "grids" / "step-00000012.png").read_bytes() for folder in folders]
    assert grids[0] == grids[1]


def test_step_skipped_when_entries_are_due_for_revival_revives_none(
    tiny_run: "TinyRun", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = load_config(Config, tiny_run.tokenizer / "config.yaml", [])
    config = replace(
        written,
        out=str(tmp_path),
        quantizer=replace(written.quantizer, revive_every=2),
        trainer=replace(written.trainer, steps=3, skip_nonfinite=1),
    )
    load = TokenizerTask.load
    monkeypatch.setattr(
        TokenizerTask,
        "load",
        lambda task, step, part: load(task, step, part) * (torch.nan if step == 1 else 1),
    )
    stage1.run(config)
    for name, value in Tokenizer.from_pretrained(tmp_path).state_dict().items():
        assert value.isfinite().all(), name


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
# The compiler itself looks at the gradient of every tensor it meets.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
def test_compiled_networks_train_the_same_model(
    tiny_run: "TinyRun", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pqvae.training.run.select_runtime", lambda _: CPU)  # bf16 rounds far more
    written = load_config(Config, tiny_run.tokenizer / "config.yaml", [])
    plain = replace(written, out=str(tmp_path / "plain"), trainer=replace(written.trainer, steps=4))
    compiled = replace(
        plain, out=str(tmp_path / "compiled"), trainer=replace(plain.trainer, compile=True)
    )
    stage1.run(plain)
    stage1.run(compiled)
    expected = Tokenizer.from_pretrained(tmp_path / "plain").state_dict()
    found = Tokenizer.from_pretrained(tmp_path / "compiled").state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Fused sums round differently: float32, over four steps.
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5), name


def test_tokenizer_run_on_the_folder_of_another_is_refused_by_key(
    tiny_run: "TinyRun",
) -> None:
    written = load_config(Config, tiny_run.tokenizer / "config.yaml", [])
    assert written.out == str(tiny_run.tokenizer)
    before = (tiny_run.tokenizer / "result.json").read_bytes()
    changed = replace(written, quantizer=ResidualConfig(num_codes=5, codebook_sizes=(16,)))
    with pytest.raises(UserError, match=r"holds a run with another quantizer\.num_codes"):
        stage1.run(changed)
    assert (tiny_run.tokenizer / "result.json").read_bytes() == before
