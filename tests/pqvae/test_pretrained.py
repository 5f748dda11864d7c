"""Model folders: what the content hash covers, and what is refused."""

import errno
import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pqvae.errors import UserError
from pqvae.pretrained import hash_model, load_model, save_model

CONFIG: dict[str, Any] = {"image_size": 32, "architecture": {"widths": [16, 32], "rate": 0.5}}


def tensors_of() -> dict[str, Tensor]:
    return {
        "weight": torch.linspace(-1, 1, 12).view(3, 4),
        "half": torch.ones(5, dtype=torch.bfloat16),
        "count": torch.tensor(7),  # no dimensions
        "mask": torch.tensor([True, False]),
    }


def test_model_comes_back_with_config_types_and_hash(tmp_path: Path) -> None:
    content_hash = save_model(tmp_path / "model", "tokenizer", CONFIG, tensors_of())
    config, tensors, loaded_hash = load_model(tmp_path / "model", "tokenizer")
    assert config == CONFIG
    assert loaded_hash == content_hash == hash_model("tokenizer", CONFIG, tensors_of())
    assert tensors.keys() == tensors_of().keys()
    for name, tensor in tensors_of().items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
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
    save_model(tmp_path, "tokenizer", CONFIG, tensors_of())
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
    save_model(tmp_path, "tokenizer", CONFIG, tensors_of())
    values = json.loads((tmp_path / "config.json").read_text())
    values["config"]["architecture"]["widths"][1] = 64
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="weights and config do not belong together"):
        load_model(tmp_path, "tokenizer")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "a", "tokenizer", CONFIG, tensors_of())
    save_model(tmp_path / "b", "tokenizer", CONFIG, tensors_of() | {"count": torch.tensor(8)})
    (tmp_path / "b" / "model.safetensors").replace(tmp_path / "a" / "model.safetensors")
    with pytest.raises(UserError, match="weights and config do not belong together"):
        load_model(tmp_path / "a", "tokenizer")


def test_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "prior", CONFIG, tensors_of())
    with pytest.raises(UserError, match="holds a prior, but a tokenizer is needed") as caught:
        load_model(tmp_path, "tokenizer")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", '"kind"', "{}", '{"kind": "tokenizer"}', "\x00"]
)
def test_foreign_config_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    save_model(tmp_path, "tokenizer", CONFIG, tensors_of())
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json: not"):
        load_model(tmp_path, "tokenizer")


def test_newer_model_replaces_the_older_one(tmp_path: Path) -> None:
    save_model(tmp_path, "tokenizer", CONFIG, tensors_of())
    second = save_model(tmp_path, "tokenizer", CONFIG, {"other": torch.zeros(2)})
    _, tensors, content_hash = load_model(tmp_path, "tokenizer")
    assert content_hash == second
    assert list(tensors) == ["other"]


def test_full_disk_keeps_the_model_before(tmp_path: Path) -> None:
    before = save_model(tmp_path, "tokenizer", CONFIG, tensors_of())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # as a full disk would refuse
    try:
        with pytest.raises(OSError) as caught:
            save_model(tmp_path, "tokenizer", CONFIG, {"large": torch.zeros(5000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "model.safetensors")
    assert load_model(tmp_path, "tokenizer")[2] == before
    assert len(list(tmp_path.iterdir())) == 2
