"""Weights of 8 bits: how near they are, and that a packed model is one like any other."""

from pathlib import Path

import pytest
import torch

from pqvae.images import psnr, to_float, to_uint8
from stage1_tokenizer import Tokenizer, pack
from stage1_tokenizer.packing import pack_weights, unpack_weights
from stage1_tokenizer.quantizers.shared import SharedCodebook
from stage1_tokenizer.shipped import find_model, shipped_models
from tests.conftest import SIZE, BlobImages


def test_weights_are_within_half_a_step_of_their_row() -> None:
    tensor = torch.randn(8, 32, 3, 3) * torch.logspace(-4, 4, 8).view(8, 1, 1, 1)
    packed = pack_weights({"a": tensor})
    assert packed["a.int8"].dtype == torch.int8
    error = (unpack_weights(packed)["a"] - tensor).abs().flatten(1).amax(1)
    step = tensor.abs().flatten(1).amax(1) / 127
    assert (error <= 0.5001 * step).all()


def test_entries_of_codebooks_have_a_scale_each() -> None:
    entries = torch.randn(2, 16, 64)
    entries[1, 3] *= 1e-3
    entries[0, 5] = 0
    restored = unpack_weights(pack_weights({"entries": entries}))["entries"]
    assert (restored[1, 3] - entries[1, 3]).abs().max() < 1e-2 * entries[1, 3].abs().max()
    assert (restored[0, 5] == 0).all()


def test_entries_near_few_directions_are_stored_along_these() -> None:
    entries = torch.randn(2, 64, 5) @ torch.randn(5, 256) + 0.01 * torch.randn(2, 64, 256)
    entries *= torch.logspace(-2, 2, 64).view(1, 64, 1)
    entries[0, 5] = 0
    packed = pack_weights({"entries": entries})
    assert packed["entries.left"].shape == (2, 64, 5)
    restored = unpack_weights(packed)["entries"]
    left_out = (restored - entries).square().sum(2)
    assert (left_out <= 0.005 * entries.square().sum(2)).all()
    left, right = packed["entries.left"][1, 7], packed["entries.right"][:, 3]
    whole = sum(a * b for a, b in zip(left.tolist(), right.tolist(), strict=True))
    assert restored[1, 7, 3] == torch.tensor(float(whole)) * packed["entries.scales"][64 + 7]


def test_half_the_squared_norms_of_shared_entries_follow() -> None:
    shared = SharedCodebook((32, 64), dim=128, rank=64, subspace=16)
    shared.start(torch.randn(512, 128), torch.Generator().manual_seed(0))
    whole = {f"quantizer.shared.{name}": each for name, each in shared.state_dict().items()}
    packed = pack_weights(whole)
    assert "quantizer.shared.biases" not in packed
    restored = unpack_weights(packed)
    assert restored.keys() == whole.keys()
    entries = restored["quantizer.shared.vectors"] * restored["quantizer.shared.spreads"][1]
    expected = entries.square().sum(1) / 2
    torch.testing.assert_close(restored["quantizer.shared.biases"][1], expected)


def test_what_is_small_or_whole_stays_as_it_is() -> None:
    tensors = {"bias": torch.randn(3000), "few": torch.randn(8, 8), "whole": torch.arange(70_000)}
    restored = unpack_weights(pack_weights(tensors))
    assert all(torch.equal(restored[name], tensor) for name, tensor in tensors.items())


def test_a_packed_model_is_small_and_hardly_worse(
    tiny_tokenizer: Tokenizer, blob_images: BlobImages, tmp_path: Path
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path / "whole")
    assert pack.main([str(tmp_path / "whole"), "--out", str(tmp_path / "packed")]) == 0
    packed = Tokenizer.from_pretrained(tmp_path / "packed")
    assert packed.codes_hash != tiny_tokenizer.codes_hash
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "packed")]
    assert sizes[1] < 0.4 * sizes[0]
    images = to_uint8(blob_images(64, SIZE, 5))

    def quality(tokenizer: Tokenizer) -> float:
        made = tokenizer.decode(tokenizer.encode(to_float(images)))
        return float(psnr(to_uint8(made), images).mean())

    assert quality(packed) > quality(tiny_tokenizer) - 0.1


def test_a_model_is_not_packed_onto_itself(
    tiny_tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    assert pack.main([str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "is the model itself" in capsys.readouterr().err
    assert Tokenizer.from_pretrained(tmp_path).codes_hash == tiny_tokenizer.codes_hash


def test_a_folder_called_as_a_shipped_model_is_reached_by_its_path() -> None:
    for name in shipped_models():
        assert find_model(name).is_absolute()
        assert find_model(Path(name)) == Path(name)
        assert find_model(f"./{name}/") == Path(name)  # as Path puts it
    assert find_model("runs/tokenizer") == Path("runs/tokenizer")
