"""Control by prefix: variations keep the first codes of a picture; a mix joins those of two."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from pqvae.images import read_picture, to_float, to_uint8
from sampling.control import class_weights
from sampling.found import write_found
from sampling.generate import main
from sampling.sampler import sample_codes
from sampling.settings import SamplingSettings
from stage1_tokenizer import Tokenizer
from stage2_prior import Prior
from stage2_prior.drawing import class_labels

SIZE, N = 16, 6
BUILT_IN = SamplingSettings(top_p=0.95)

Generate = Callable[..., int]


@pytest.fixture
def generate(prior: Path, tmp_path: Path) -> Generate:
    """``generate(*more)`` runs the command into ``tmp_path / "samples"``."""

    def generate(*more: object) -> int:
        arguments = ["--prior", prior, "--out", tmp_path / "samples", "--device", "cpu", *more]
        return main([str(argument) for argument in arguments])

    return generate


@pytest.fixture
def circle(tiny_run: Any) -> Path:
    """A picture that neither model has seen."""
    return tiny_run.data / "test" / "circles" / "00.png"


@pytest.fixture
def stripes(tiny_run: Any) -> Path:
    return tiny_run.data / "test" / "stripes" / "01.png"


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}


def codes_of(tokenizer: Tokenizer, picture: Path) -> Tensor:
    return tokenizer.encode(to_float(read_picture(picture, SIZE).unsqueeze(0)))


def assert_drawn(folder: Path, expected: Tensor) -> None:
    """These are the images of the folder, uint8 (n, 3, SIZE, SIZE)."""
    assert len(pictures(folder)) == len(expected)
    for index, image in enumerate(expected):
        found = read_picture(folder / "images" / f"{index:06d}.png", SIZE)
        # Convolutions of another batch shape may round the other way.
        assert (found.int() - image.int()).abs().max() <= 1


def test_variations_begin_with_the_pictures_codes_and_are_drawn_on_from_there(
    generate: Generate, prior: Path, tiny_run: Any, circle: Path, tmp_path: Path
) -> None:
    assert generate("--n", 8, "--from", circle, "--keep", 2, "--prefix", 5, "--seed", 3) == 0
    model, tokenizer = Prior.from_pretrained(prior), Tokenizer.from_pretrained(tiny_run.tokenizer)
    codes, indices = codes_of(tokenizer, circle), torch.arange(8)
    labels = class_labels(3, indices, class_weights(model, codes, 2))
    kept = codes[:, :2].expand(8, 2)
    drawn = sample_codes(model, labels, indices, 3, 5, BUILT_IN, kept)
    assert torch.equal(drawn[:, :2], kept)
    assert len(drawn.unique(dim=0)) == 8  # no two variations are the same
    assert_drawn(tmp_path / "samples", to_uint8(tokenizer.decode(drawn)))
    record = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert record["labels"] == labels.tolist()
    assert (record["settings"]["keep"], record["settings"]["prefix"]) == (2, 5)


def test_where_all_codes_are_kept_each_image_is_the_reconstruction(
    generate: Generate, tiny_run: Any, circle: Path, tmp_path: Path
) -> None:
    assert generate("--n", 3, "--from", circle, "--keep", 4, "--prefix", 4) == 0
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    once = to_uint8(tokenizer.decode(codes_of(tokenizer, circle)[:, :4]))
    assert_drawn(tmp_path / "samples", once.expand(3, -1, -1, -1))


def test_a_class_is_as_likely_as_its_share_times_what_it_makes_of_the_kept_codes(
    prior: Path, tiny_run: Any, circle: Path
) -> None:
    model, tokenizer = Prior.from_pretrained(prior), Tokenizer.from_pretrained(tiny_run.tokenizer)
    model.class_counts = (5, 1, 2)
    codes = codes_of(tokenizer, circle)
    for keep in (1, 3, N):
        joint = []
        for label, count in enumerate(model.class_counts):
            probability = float(count)
            for position in range(keep):
                with torch.no_grad():
                    logits = model(codes[:, :position], torch.tensor([label]))[0, -1]
                probability *= logits.double().softmax(0)[codes[0, position]].item()
            joint.append(probability)
        found = class_weights(model, codes, keep)
        shares = [one / sum(found) for one in found]
        assert shares == pytest.approx([one / sum(joint) for one in joint], rel=1e-4)


def test_variations_of_one_class_are_all_of_that_class(
    generate: Generate, circle: Path, tmp_path: Path
) -> None:
    assert generate("--n", 6, "--from", circle, "--keep", 1, "--class", "squares") == 0
    record = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert record["labels"] == [1] * 6


def test_a_mix_adds_what_the_later_codes_of_one_say_to_the_first_codes_of_the_other(
    generate: Generate, tiny_run: Any, circle: Path, stripes: Path, tmp_path: Path
) -> None:
    assert generate("--mix", circle, stripes, "--keep", 2, "--prefix", 5) == 0
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    plan, details = codes_of(tokenizer, circle), codes_of(tokenizer, stripes)
    codes = torch.cat([plan[:, :2], details[:, 2:5]], dim=1)
    assert_drawn(tmp_path / "samples", to_uint8(tokenizer.decode(codes)))
    entries = [tokenizer.quantizer.entries(i)[codes[0, i]] for i in range(5)]
    said = tokenizer.quantizer.decode
    latent = said(plan[:, :2]) + said(details[:, :5]) - said(details[:, :2])
    torch.testing.assert_close(latent, sum(entries, torch.zeros(1)).unsqueeze(0))
    record = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert (record["n"], record["labels"], record["settings"]["keep"]) == (1, None, 2)
    # Of the same picture twice, it is that picture again.
    shutil.rmtree(tmp_path / "samples")
    assert generate("--mix", circle, circle, "--keep", 2) == 0
    assert_drawn(tmp_path / "samples", to_uint8(tokenizer.decode(plan)))


def test_variations_are_the_same_in_any_batch_and_go_on_where_they_were_cut(
    generate: Generate, circle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--n", 140, "--from", circle, "--keep", 1, "--guidance", 2]
    assert generate(*command) == 0
    folder = tmp_path / "samples"
    expected, record = pictures(folder), (folder / "samples.json").read_bytes()
    for index in (0, 5, 139):
        (folder / "images" / f"{index:06d}.png").unlink()
    capsys.readouterr()
    assert generate(*command) == 0
    assert "(3 new" in capsys.readouterr().out
    assert pictures(folder) == expected
    assert (folder / "samples.json").read_bytes() == record
    folder.rename(tmp_path / "before")
    assert generate(*command, "--batch-size", 1) == 0
    assert pictures(folder) == expected
    folder.rename(tmp_path / "whole batches")
    assert generate(*command, "--seed", 1) == 0
    assert pictures(folder) != expected


def test_another_picture_is_refused_and_the_same_one_by_another_name_is_not(
    generate: Generate, circle: Path, stripes: Path, tmp_path: Path, capsys: Any
) -> None:
    assert generate("--n", 2, "--from", circle, "--keep", 2) == 0
    before = pictures(tmp_path / "samples")
    with Image.open(circle) as image:
        image.save(tmp_path / "moved.bmp")
    assert generate("--n", 3, "--from", tmp_path / "moved.bmp", "--keep", 2) == 0
    more = pictures(tmp_path / "samples")
    assert {name: more[name] for name in before} == before
    for changed in (["--from", stripes, "--keep", 2], ["--from", circle, "--keep", 3], []):
        capsys.readouterr()
        assert generate("--n", 4, *changed) == 2
        assert "holds samples of another settings" in capsys.readouterr().err
    assert pictures(tmp_path / "samples") == more


def test_a_found_prefix_counts_only_where_it_leaves_something_to_draw(
    prior: Path, tiny_run: Any, circle: Path, tmp_path: Path, capsys: Any
) -> None:
    own = tmp_path / "prior"
    shutil.copytree(prior / "model", own)
    found = {"prefix": 3, "temperature": 0.5, "top_p": 0.9, "guidance": 1.0}
    write_found(own, {**found, "prior_hash": Prior.from_pretrained(own).content_hash})
    arguments = ["--prior", str(own), "--tokenizer", str(tiny_run.tokenizer), "--device", "cpu"]

    def settings_of(name: str, *more: object) -> dict[str, Any]:
        out = tmp_path / name
        assert main([*arguments, "--out", str(out), *map(str, more)]) == 0
        return json.loads((out / "samples.json").read_text())["settings"]

    variations = "--n", 2, "--from", circle, "--keep"
    assert settings_of("shorter", *variations, 2).items() >= found.items()
    capsys.readouterr()
    assert settings_of("longer", *variations, 3).items() >= {**found, "prefix": N}.items()
    said = capsys.readouterr().err
    assert "all codes, as the prefix 3 that sampling.tune has found is kept" in said
    assert settings_of("asked", *variations, 3, "--prefix", 4)["prefix"] == 4
    assert settings_of("mix", "--mix", circle, circle, "--keep", 1)["prefix"] == N


def test_each_way_has_a_folder_of_its_own_and_says_what_to_do_next(
    prior: Path, circle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--prior", str(prior), "--keep", "1", "--device", "cpu"]
    assert main([*arguments, "--n", "2", "--from", str(circle)]) == 0
    assert main([*arguments, "--mix", str(circle), str(circle)]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["mix", "variations"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert "made 1 images in runs/mix/images" in last
    assert f"then: python -m stage1_tokenizer.reconstruct {circle} {circle} --token" in last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--keep 2", "--keep 2: say of which picture: --from IMAGE, or --mix A B"),
        ("--from CIRCLE", "--from: say how many first codes are kept: --keep K"),
        ("--mix CIRCLE CIRCLE", "--mix: say how many first codes are kept: --keep K"),
        ("--mix CIRCLE --keep 1", "argument --mix: expected 2 arguments"),
        ("--from CIRCLE --mix CIRCLE CIRCLE --keep 1", "--from with --mix: give one of them"),
        ("--from CIRCLE --keep 0", "argument --keep: '0' is not a whole number of at least 1"),
        ("--from CIRCLE --keep 7", "--keep 7: an image has 1 to 6 codes"),
        ("--from CIRCLE --keep 4 --prefix 3", "--keep 4: an image gets 3 codes by --prefix"),
        ("--from none.png --keep 1", "none.png: no such picture file"),
        ("--mix CIRCLE none.png --keep 1", "none.png: no such picture file"),
        ("--from . --keep 1", ".: no such picture file"),
        ("--from prior.json --keep 1", "prior.json: not an image; a picture file is needed"),
        ("--mix CIRCLE CIRCLE --keep 1 --top-p 1", "--top-p with --mix: nothing is drawn"),
        ("--mix CIRCLE CIRCLE --keep 1 --class 1", "--class with --mix: nothing is drawn"),
    ],
)
def test_bad_control_is_one_line_and_leaves_nothing(
    generate: Generate,
    circle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prior.json").write_text("{}")
    count = [] if "--mix" in arguments else ["--n", "2"]
    assert generate(*count, *arguments.replace("CIRCLE", str(circle)).split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["prior.json"]


def test_a_mix_is_one_picture(generate: Generate, circle: Path, capsys: Any) -> None:
    assert generate("--n", 2, "--mix", circle, circle, "--keep", 1) == 2
    assert "--n 2 with --mix: a mix is one picture; leave --n out" in capsys.readouterr().err
