"""Model folders: what the content hash covers, and what is refused."""

import errno
import json
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pqvae.data.config import DataConfig
from pqvae.errors import UserError
from pqvae.pretrained import find_path, hash_model, load_model, recorded_data, save_model

CONFIG: dict[str, Any] = {"image_size": 32, "architecture": {"widths": [16, 32], "rate": 0.5}}


def tensors_of() -> dict[str, Tensor]:
    return {
        "weight": torch.linspace(-1, 1, 12).view(3, 4),
        "half": torch.ones(5, dtype=torch.bfloat16),
        "count": torch.tensor(7),  # no dimensions
        "mask": torch.tensor([True, False]),
    }


def test_model_comes_back_with_config_types_and_hash(tmp_path: Path) -> None:
    content_hash = save_model(tmp_path / "model", "tokenizer", CONFIG, tensors_of(), {})
    stored = load_model(tmp_path / "model", "tokenizer")
    assert stored.version == 2
    assert stored.config == CONFIG
    assert stored.content_hash == content_hash == hash_model("tokenizer", CONFIG, tensors_of())
    assert stored.tensors.keys() == tensors_of().keys()
    for name, tensor in tensors_of().items():
        assert stored.tensors[name].dtype == tensor.dtype
        assert torch.equal(stored.tensors[name], tensor)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_hash_depends_on_values_and_not_on_order_or_layout() -> None:
    tensors = tensors_of()
    content_hash = hash_model("tokenizer", CONFIG, tensors)
    turned = dict(reversed(tensors.items()))
    turned["weight"] = turned["weight"].T.contiguous().T  # same values, other strides
    config = {key: CONFIG[key] for key in reversed(CONFIG)}
    assert hash_model("tokenizer", config, turned) == content_hash


def test_every_bit_of_every_tensor_counts_into_the_hash() -> None:
    hashes = {hash_model("tokenizer", CONFIG, tensors_of())}
    expected = 1
    for name in ("weight", "half", "count"):
        for byte in range(tensors_of()[name].nbytes):
            for bit in range(8):
                tensors = tensors_of()
                tensors[name].view(-1).view(torch.uint8)[byte] ^= 1 << bit
                hashes.add(hash_model("tokenizer", CONFIG, tensors))
                expected += 1
    assert len(hashes) == expected


def test_config_kind_names_shapes_and_types_count_into_the_hash() -> None:
    tensors = tensors_of()
    renamed = {("weight2" if name == "weight" else name): t for name, t in tensors.items()}
    fewer = {name: tensor for name, tensor in tensors.items() if name != "count"}
    variants = [
        ("tokenizer", CONFIG, tensors),
        ("prior", CONFIG, tensors),
        ("tokenizer", CONFIG | {"image_size": 33}, tensors),
        ("tokenizer", CONFIG | {"architecture": {"widths": [16, 33], "rate": 0.5}}, tensors),
        ("tokenizer", CONFIG | {"architecture": {"widths": [16, 32], "rate": 0.25}}, tensors),
        ("tokenizer", CONFIG | {"more": 1}, tensors),
        ("tokenizer", CONFIG, renamed),
        ("tokenizer", CONFIG, fewer),
        ("tokenizer", CONFIG, tensors | {"weight": tensors["weight"].reshape(4, 3)}),
        ("tokenizer", CONFIG, tensors | {"half": tensors["half"].view(torch.int16)}),
    ]
    assert len({hash_model(*variant) for variant in variants}) == len(variants)


def test_no_byte_of_the_weights_can_change_unnoticed(tmp_path: Path) -> None:
    save_model(tmp_path, "tokenizer", CONFIG, tensors_of(), {})
    path = tmp_path / "model.safetensors"
    good = path.read_bytes()
    for place in range(len(good)):
        data = bytearray(good)
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"damaged"):
            load_model(tmp_path, "tokenizer")
    for length in range(0, len(good), 7):
        path.write_bytes(good[:length])
        with pytest.raises(UserError, match=r"damaged"):
            load_model(tmp_path, "tokenizer")


def test_changed_config_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "tokenizer", CONFIG, tensors_of(), {})
    values = json.loads((tmp_path / "config.json").read_text())
    values["config"]["architecture"]["widths"][1] = 64
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="weights and config do not belong together"):
        load_model(tmp_path, "tokenizer")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "a", "tokenizer", CONFIG, tensors_of(), {})
    save_model(tmp_path / "b", "tokenizer", CONFIG, tensors_of() | {"count": torch.tensor(8)}, {})
    (tmp_path / "b" / "model.safetensors").replace(tmp_path / "a" / "model.safetensors")
    with pytest.raises(UserError, match="weights and config do not belong together"):
        load_model(tmp_path / "a", "tokenizer")


def test_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "prior", CONFIG, tensors_of(), {})
    with pytest.raises(UserError, match="holds a prior, but a tokenizer is needed") as caught:
        load_model(tmp_path, "tokenizer")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", '"kind"', "{}", '{"kind": "tokenizer"}', "\x00"]
)
def test_foreign_config_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    save_model(tmp_path, "tokenizer", CONFIG, tensors_of(), {})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json: not"):
        load_model(tmp_path, "tokenizer")


def test_newer_model_replaces_the_older_one(tmp_path: Path) -> None:
    save_model(tmp_path, "tokenizer", CONFIG, tensors_of(), {})
    second = save_model(tmp_path, "tokenizer", CONFIG, {"other": torch.zeros(2)}, {})
    stored = load_model(tmp_path, "tokenizer")
    assert stored.content_hash == second
    assert list(stored.tensors) == ["other"]


def test_full_disk_keeps_the_model_before(tmp_path: Path) -> None:
    before = save_model(tmp_path, "tokenizer", CONFIG, tensors_of(), {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # as a full disk would refuse
    try:
        with pytest.raises(OSError) as caught:
            save_model(tmp_path, "tokenizer", CONFIG, {"large": torch.zeros(5000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "model.safetensors")
    assert load_model(tmp_path, "tokenizer").content_hash == before
    assert len(list(tmp_path.iterdir())) == 2


# Provenance: where the images are that a model was trained on.


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with pictures/ and runs/, in which commands are typed."""
    home = tmp_path / "home"
    (home / "pictures").mkdir(parents=True)
    (home / "runs").mkdir()
    monkeypatch.chdir(home)
    return home


PROVENANCE = {"data": {"path": "pictures", "image_size": 16}, "data_hash": "ab"}


def data_of(folder: Path, given: str | None = None) -> DataConfig:
    stored = load_model(folder, "tokenizer")
    return recorded_data(stored.provenance, str(folder), given, "--data")


def test_home_is_kept_relative_to_the_model(home: Path) -> None:
    save_model(Path("runs/model"), "tokenizer", CONFIG, tensors_of(), PROVENANCE)
    values = json.loads(Path("runs/model/config.json").read_text())
    assert values["provenance"] == {**PROVENANCE, "home": "../.."}
    stored = load_model(Path("runs/model"), "tokenizer")
    assert stored.provenance == {**PROVENANCE, "home": str(home)}


def test_what_it_was_trained_on_plays_no_part_in_the_hash(home: Path) -> None:
    first = save_model(Path("runs/a"), "tokenizer", CONFIG, tensors_of(), PROVENANCE)
    assert save_model(Path("runs/b"), "tokenizer", CONFIG, tensors_of(), {}) == first


def test_data_are_found_from_any_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(Path("runs/model"), "tokenizer", CONFIG, tensors_of(), PROVENANCE)
    expected = DataConfig(path="pictures", image_size=16)
    assert data_of(Path("runs/model")) == expected  # as it was typed
    monkeypatch.chdir(home.parent)
    found = data_of(Path("home/runs/model"))
    assert found == replace(expected, path=str(home / "pictures"))


def test_data_are_found_where_all_has_moved_together(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(Path("runs/model"), "tokenizer", CONFIG, tensors_of(), PROVENANCE)
    moved = home.rename(home.parent / "elsewhere")
    monkeypatch.chdir(home.parent)
    assert data_of(moved / "runs" / "model").path == str(moved / "pictures")


def test_model_moved_alone_takes_the_data_that_are_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(Path("runs/model"), "tokenizer", CONFIG, tensors_of(), PROVENANCE)
    alone = (home / "runs" / "model").rename(home.parent / "alone")
    monkeypatch.chdir(home.parent)
    with pytest.raises(UserError, match=r"^pictures: no such file or folder; .* now: --data$"):
        data_of(alone)
    stored = load_model(alone, "tokenizer")  # for a record nothing needs to be there
    assert recorded_data(stored.provenance, "alone", None, None).path == "pictures"
    found = data_of(alone, given=str(home / "pictures"))
    assert found == DataConfig(path=str(home / "pictures"), image_size=16)
    assert data_of(alone, given="emoji").path == "emoji"


def test_named_sources_are_no_paths(home: Path) -> None:
    (home / "emoji").mkdir()  # a folder that only looks like it
    provenance = {"data": {"path": "emoji", "image_size": 32}}
    save_model(Path("runs/model"), "tokenizer", CONFIG, tensors_of(), provenance)
    assert data_of(Path("runs/model")).path == "emoji"


def test_globs_of_shards_are_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "pictures" / "a-0.tar").touch()
    assert find_path("pictures/a-*.tar", {"home": str(home)}) == "pictures/a-*.tar"
    monkeypatch.chdir(home.parent)
    found = find_path("pictures/a-*.tar", {"home": str(home)})
    assert found == str(home / "pictures" / "a-*.tar")


def test_home_of_a_model_written_again_stays_where_its_data_are(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(Path("runs/model"), "tokenizer", CONFIG, tensors_of(), PROVENANCE)
    stored = load_model(Path("runs/model"), "tokenizer")
    monkeypatch.chdir(home.parent)
    save_model(Path("copy"), "tokenizer", stored.config, stored.tensors, stored.provenance)
    assert data_of(Path("copy")).path == str(home / "pictures")


def test_model_without_provenance_asks_for_the_data(home: Path) -> None:
    save_model(Path("runs/model"), "tokenizer", CONFIG, tensors_of(), {})
    with pytest.raises(UserError, match=r"runs/model: does not say .* trained on; pass --data"):
        data_of(Path("runs/model"))
    with pytest.raises(UserError, match=r"runs/model: does not say how its images were prepared"):
        data_of(Path("runs/model"), given="pictures")


def write_version_1(folder: Path, run_config: str | None) -> None:
    """A run folder whose model has no version and no provenance."""
    save_model(folder / "model", "tokenizer", CONFIG, tensors_of(), {})
    values = json.loads((folder / "model" / "config.json").read_text())
    del values["version"], values["provenance"]
    (folder / "model" / "config.json").write_text(json.dumps(values))
    if run_config is not None:
        (folder / "config.yaml").write_text(run_config)


def test_provenance_of_version_1_is_in_its_run_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_version_1(home / "runs/old", "out: runs/old\ndata:\n  path: pictures\n  image_size: 16\n")
    monkeypatch.chdir(home.parent)
    for folder in (Path("home/runs/old"), Path("home/runs/old/model")):
        assert load_model(folder, "tokenizer").version == 1
        assert data_of(folder) == DataConfig(path=str(home / "pictures"), image_size=16)


def test_version_1_without_its_run_folder_says_nothing(home: Path) -> None:
    write_version_1(home / "runs/old", None)
    assert load_model(Path("runs/old"), "tokenizer").provenance == {}
    write_version_1(home / "runs/odd", "- a list")
    assert load_model(Path("runs/odd"), "tokenizer").provenance == {}
    write_version_1(home / "runs/torn", "data: {")
    with pytest.raises(UserError, match=r"runs/torn/config.yaml: not valid yaml"):
        load_model(Path("runs/torn"), "tokenizer")
