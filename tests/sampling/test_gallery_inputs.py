"""A gallery of other models, of images that are gone, and of bad input."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.gallery.album import sheet
from pqvae.errors import UserError
from pqvae.files import read_json, write_json
from sampling.gallery import main
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.config import ArchitectureConfig, SpatialConfig, TokenizerConfig
from stage1_tokenizer.decoder_config import DirectConfig
from stage2_prior import Prior
from stage2_prior.books import Codebooks
from stage2_prior.config import PriorConfig
from tests.sampling.gallery_page import content_of, pictures_of, sections_of, tiles

CLASSES = ("circles", "squares", "stripes")
ALL = ["Held-out pictures", "Samples", "Variations", "Nearest training pictures"]

Gallery = Callable[..., dict[str, Any]]


def test_a_prior_without_classes_has_one_group_without_a_name(
    gallery: Gallery, prior: Path, tmp_path: Path
) -> None:
    known = Prior.from_pretrained(prior)
    bare = Prior(known.config, known.codebooks, (), (), known.sequence)
    state = known.state_dict()
    state["class_embedding.weight"] = state["class_embedding.weight"][-1:]
    bare.load_state_dict(state)
    bare.save_pretrained(tmp_path / "bare", known.provenance)
    content = gallery("--prior", tmp_path / "bare", "--per-class", 1)
    (group,) = sections_of(content)["Samples"]["groups"]
    assert group["name"] == ""
    assert len(pictures_of({"groups": [group]})) == 8
    assert list(sections_of(content)) == ALL


def test_the_vivid_decoder_has_sheets_of_its_own_and_comes_first(
    gallery: Gallery, tiny_run: Any, tmp_path: Path
) -> None:
    assert gallery()["decoders"] == ["faithful"]
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    tokenizer.add_decoder("vivid", DirectConfig())
    trained_with = {"vivid": {"trained_with": "a network that has seen labels"}}
    tokenizer.save_pretrained(
        tmp_path / "vivid", {**tokenizer.provenance, "decoders": trained_with}
    )
    content = gallery("--tokenizer", tmp_path / "vivid")
    assert content["decoders"] == ["vivid", "faithful"]
    vivid, faithful = (tiles(content, content["sheets"][name][-1]) for name in content["decoders"])
    assert vivid.shape == faithful.shape
    assert not torch.equal(vivid, faithful)
    assert "a network that has seen labels" in content["notes"][-1]


@pytest.mark.parametrize(("levels", "lengths", "titles"), [(3, [16, 32, 48], ALL), (1, [16], ALL)])
def test_a_code_for_each_place_is_cut_where_it_decodes(
    gallery: Gallery, tiny_run: Any, tmp_path: Path, levels: int, lengths: list[int], titles: Any
) -> None:
    pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    trained = Tokenizer.from_pretrained(tiny_run.tokenizer)
    architecture = ArchitectureConfig(
        widths=(16, 32), encoder_blocks=(0, 1), decoder_blocks=(0, 1), latent_channels=4
    )
    config = TokenizerConfig(
        image_size=16,
        architecture=architecture,
        quantizer=SpatialConfig(codebook_size=8, levels=levels),
    )
    tokenizer = Tokenizer(config).eval()
    tokenizer.save_pretrained(tmp_path / "spatial", trained.provenance)
    prior = Prior(
        PriorConfig(width=32, heads=1, depth=1, code_features=4),
        Codebooks.of(tokenizer.quantizer),
        CLASSES,
        (22,) * 3,
    )
    provenance = {**trained.provenance, "codes_hash": tokenizer.codes_hash}
    prior.save_pretrained(tmp_path / "spatial-prior", provenance)
    content = gallery("--prior", tmp_path / "spatial-prior", "--tokenizer", tmp_path / "spatial")
    assert content["lengths"] == lengths
    assert content["start"] == lengths[-1]
    assert len(content["sheets"]["faithful"]) == len(lengths)
    has_variations = "Variations" in sections_of(content)
    assert has_variations == (levels > 1)  # a single cut keeps all codes or none


def test_of_many_classes_some_from_all_over_the_list_are_shown(
    gallery: Gallery, prior: Path, tmp_path: Path
) -> None:
    known, names = Prior.from_pretrained(prior), tuple(f"class {i}" for i in range(39))
    many = Prior(known.config, known.codebooks, names, (1,) * 39)
    many.save_pretrained(tmp_path / "many", known.provenance)
    section = sections_of(gallery("--prior", tmp_path / "many", "--per-class", 1))["Samples"]
    assert [group["name"] for group in section["groups"]] == list(names[::2])
    assert "1 of each of 20 classes, of 39" in section["text"]


def test_more_pictures_than_a_file_holds_are_refused_before_they_are_drawn() -> None:
    pictures = torch.zeros(1, dtype=torch.uint8).expand(4, 3, 8192, 8192)
    with pytest.raises(UserError, match="--per-class: 4 pictures of 8192 pixels are too many"):
        sheet(pictures)


def test_where_the_images_are_gone_there_are_samples_alone(
    gallery: Gallery, copied_prior: Path, tiny_run: Any, tmp_path: Path, capsys: Any
) -> None:
    record = read_json(copied_prior / "config.json")
    record["provenance"]["data"]["path"] = str(tmp_path / "gone")
    write_json(copied_prior / "config.json", record)
    capsys.readouterr()
    content = gallery("--prior", copied_prior, "--tokenizer", tiny_run.tokenizer)
    lines = [line for line in capsys.readouterr().err.splitlines() if "training pictures" in line]
    assert len(lines) == 1
    assert lines[0].startswith("without held-out and training pictures: ")
    assert f"{tmp_path / 'gone'}: no such file or folder" in lines[0]
    assert list(sections_of(content)) == ["Samples"]
    assert content["stills"] is None
    moved = gallery(
        *("--prior", copied_prior, "--tokenizer", tiny_run.tokenizer, "--data", tiny_run.data)
    )
    assert list(sections_of(moved)) == ALL


REFUSED = [
    (["--out", "page.png"], "--out page.png: must end in .html, as it becomes a page"),
    (["--out", "mine.html"], "--out mine.html: is there already and no gallery; give another name"),
    (["--out", "folder.html"], "--out folder.html: is there already and no gallery"),
    (["--out", "new/page.html"], "--out new/page.html: there is no folder new"),
    (["--prior", "nowhere"], "nowhere: no prior here; run python -m stage2_prior.train"),
    (["--data", "nowhere"], "nowhere: no such file or folder"),
    (["--data", "other"], "other: not the images that "),
    (["--temperature", "-1"], "--temperature must be 0 to 10, not -1"),
    (["--per-class", "0"], "argument --per-class: '0' is not a whole number of at least 1"),
]


@pytest.mark.parametrize(("more", "message"), REFUSED)
def test_bad_input_is_one_line_and_leaves_all_as_it_was(
    prior: Path,
    tiny_run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    more: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.html").write_text("<!doctype html><p>a page of my own")
    Path("folder.html").mkdir()
    for split in ("train", "test"):
        shutil.copytree(tiny_run.data / "test", f"other/{split}")
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert main(["--prior", str(prior), "--per-class", "1", "--device", "cpu", *more]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {message}")
    assert sorted(Path().rglob("*")) == before
    assert Path("mine.html").read_text() == "<!doctype html><p>a page of my own"


def test_the_last_line_names_the_page_and_what_to_do_with_it(
    gallery: Gallery, tmp_path: Path, capsys: Any
) -> None:
    gallery()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"made {tmp_path / 'page.html'}, ")
    assert last.endswith("; open it in a browser")


def test_the_default_page_is_made_where_nothing_has_been_trained(
    prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--prior", str(prior), "--per-class", "1", "--device", "cpu"]) == 0
    assert content_of(Path("runs/gallery.html"))["sections"]
