"""Samples whose decoder draws: functions of seed and number, told the class, from no codes too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eval.subjects.samples import open_samples
from sampling.generate import main
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.decoder_config import DrawnConfig
from stage2_prior import Prior
from stage2_prior.provenance import labels_to_decode

CLASSES = ("circles", "squares", "stripes")

Draw = Callable[..., Tensor]


def drawing_tokenizer(folder: Path, target: Path, class_names: tuple[str, ...]) -> Tokenizer:
    """A copy whose decoder draws, untrained but with weights that count."""
    tokenizer = Tokenizer.from_pretrained(folder)
    config = DrawnConfig(width=16, depth=1, full_width=16, class_names=class_names)
    torch.manual_seed(0)
    decoder = tokenizer.add_decoder("drawn", config)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.2)
    tokenizer.save_pretrained(target, {**tokenizer.provenance})
    return tokenizer


@pytest.fixture
def draw(prior: Path, tiny_run: Any, tmp_path: Path) -> Draw:
    """``draw(name, n, *more)``: the images of the command, into a folder of that name."""
    drawing_tokenizer(tiny_run.tokenizer, tmp_path / "tokenizer", CLASSES)

    def draw(name: str, n: int, *more: object) -> Tensor:
        folder = tmp_path / name
        models = ["--prior", prior, "--tokenizer", tmp_path / "tokenizer", "--device", "cpu"]
        given = ["--n", n, "--out", folder, *models, *more]
        assert main([str(argument) for argument in given]) == 0
        return open_samples(folder).images(range(n))

    return draw


def test_image_i_is_the_same_whatever_is_made_beside_it(draw: Draw) -> None:
    whole = draw("whole", 9, "--prefix", 2)
    assert len({image.numpy().tobytes() for image in whole}) == 9
    draw("parts", 4, "--prefix", 2)
    assert torch.equal(draw("parts", 9, "--prefix", 2), whole)
    assert not torch.equal(draw("other", 9, "--prefix", 2, "--seed", 1), whole)


def test_equal_codes_give_other_pictures(draw: Draw) -> None:
    alike = draw("cold", 6, "--prefix", 2, "--temperature", 0, "--class", "squares")
    assert len({image.numpy().tobytes() for image in alike}) == 6
    faithful = draw("faithful", 6, "--prefix", 2, "--temperature", 0, "--class", "squares",
                    "--decoder", "faithful")  # fmt: skip
    assert len({image.numpy().tobytes() for image in faithful}) == 1


def test_the_decoder_is_told_the_class_and_needs_no_codes(
    draw: Draw, prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    squares, stripes = (
        draw(name, 5, "--prefix", 0, "--class", name) for name in ("squares", "stripes")
    )
    assert not torch.equal(squares, stripes)  # nothing else is another
    tokenizer = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    pictures = tokenizer.decode(
        torch.zeros(5, 0, dtype=torch.int64), "drawn", labels=torch.full((5,), 1)
    )
    levels = ((pictures + 1) * 127.5).round()
    assert (squares.float() - levels).abs().mean() < 1  # bfloat16, where the hardware has it
    given = ["--n", "5", "--prefix", "0", "--decoder", "faithful", "--out", str(tmp_path / "no")]
    models = ["--prior", str(prior), "--tokenizer", str(tmp_path / "tokenizer")]
    assert main([*given, *models]) == 2
    assert "--prefix 0: an image has 1 to 6 codes" in capsys.readouterr().err


def test_labels_of_other_classes_are_not_told(prior: Path, tiny_run: Any, tmp_path: Path) -> None:
    known, labels = Prior.from_pretrained(prior), torch.tensor([0, 2])
    for names, told in ((CLASSES, labels), (("cats", "dogs"), None), ((), None)):
        tokenizer = drawing_tokenizer(tiny_run.tokenizer, tmp_path / "model", names)
        assert labels_to_decode(known, tokenizer, "drawn", labels) is told
        assert labels_to_decode(known, tokenizer, "faithful", labels) is None
