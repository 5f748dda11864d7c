"""The tokenizer: the prefix rule, independence of neighbours, the linear start, model folders."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from pqvae.errors import UserError
from pqvae.pretrained import hash_model, save_model
from stage1_tokenizer.decoders.direct import DirectDecoder
from stage1_tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.conftest import BlobImages, TinyRun

SIZE = 16


def test_prefix_decodes_alike_whatever_follows(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    codes = tiny_tokenizer.encode(blob_images(8, SIZE, 1))
    others = tiny_tokenizer.encode(blob_images(8, SIZE, 2))
    before = None
    for k in range(1, tiny_tokenizer.num_codes + 1):
        continued = torch.cat([codes[:, :k], others[:, k:]], dim=1)
        images = tiny_tokenizer.decode(codes[:, :k])
        assert torch.equal(tiny_tokenizer.decode(continued[:, :k]), images)
        assert images.shape == (8, 3, SIZE, SIZE)
        assert images.dtype == torch.float32
        assert images.abs().max() <= 1
        lengths = torch.full((8,), k)
        with torch.inference_mode():
            latents, decoder = (
                tiny_tokenizer.quantizer.decode(codes[:, :k]),
                tiny_tokenizer.decoder(),
            )
            expected = decoder(latents, lengths).clamp(-1, 1)
            told_otherwise = decoder(latents, lengths % 6 + 1).clamp(-1, 1)
        # From the prefix alone, with its length told; another batch shape may round otherwise.
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
        assert not torch.allclose(images, told_otherwise, atol=1e-3)
        # And each code says something: one more gives other images.
        assert before is None or not torch.allclose(images, before, atol=0.01)
        before = images


def test_features_are_of_the_prefix_alone_and_what_the_picture_grows_from(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    codes = tiny_tokenizer.encode(blob_images(8, SIZE, 1))
    decoder = tiny_tokenizer.decoder()
    assert isinstance(decoder, DirectDecoder)
    for k in (1, 3, tiny_tokenizer.num_codes):
        latents = tiny_tokenizer.quantizer.decode(codes[:, :k])
        with torch.inference_mode():
            maps = decoder.features(latents, torch.full((8,), k))
            grown = decoder.network[decoder.coarse_layers :](maps)
            image = grown + decoder.shortcut(latents.view(-1, *decoder.latent_shape))
        assert torch.allclose(image.clamp(-1, 1), tiny_tokenizer.decode(codes[:, :k]), atol=1e-5)
        found = tiny_tokenizer.features(codes[:, :k])
        # A map of 4x4 as it is; channel by channel, row by row.
        assert torch.allclose(found.view(8, -1, 4, 4), maps, atol=1e-5)
    with pytest.raises(ValueError, match="prefix"):
        tiny_tokenizer.features(codes[:, :0])


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run with so many threads: kernels round by how they share the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_an_image_needs_no_other_to_the_bit(
    threads: int, tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    images = blob_images(64, SIZE, 1)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    codes = tiny_tokenizer.encode(images)
    assert codes.dtype == torch.int64
    assert len(codes.unique(dim=0)) > 32
    assert torch.equal(tiny_tokenizer.encode(images[order]), codes[order])
    many = images.repeat(1 + 2 * tiny_tokenizer.block_size // 64, 1, 1, 1)  # several blocks
    assert torch.equal(tiny_tokenizer.encode(many).view(-1, *codes.shape)[-1], codes)
    for k in (2, 6):
        decoded, features = (
            function(codes[:, :k]) for function in (tiny_tokenizer.decode, tiny_tokenizer.features)
        )
        assert torch.equal(tiny_tokenizer.decode(codes[order, :k]), decoded[order])
        assert torch.equal(tiny_tokenizer.features(codes[order, :k]), features[order])
        for row in (0, 31, 63):
            alone = tiny_tokenizer.encode(images[row : row + 1])
            assert torch.equal(alone[0], codes[row])
            assert torch.equal(tiny_tokenizer.decode(alone[:, :k])[0], decoded[row])
            assert torch.equal(tiny_tokenizer.features(alone[:, :k])[0], features[row])


def test_no_images_have_no_codes_and_no_pictures(tiny_tokenizer: Tokenizer) -> None:
    codes = tiny_tokenizer.encode(torch.zeros(0, 3, SIZE, SIZE))
    assert codes.shape == (0, 6)
    assert tiny_tokenizer.decode(codes[:, :2]).shape == (0, 3, SIZE, SIZE)
    assert tiny_tokenizer.features(codes).shape == (0, 16 * 32)


def test_held_out_distortion_falls_with_every_step_of_the_prefix(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    images = blob_images(256, SIZE, 1)
    codes = tiny_tokenizer.encode(images)
    errors = [
        float((tiny_tokenizer.decode(codes[:, :k]) - images).square().mean()) for k in (1, 2, 4, 6)
    ]
    assert errors == sorted(errors, reverse=True)
    # One code already beats the mean image, and six leave less than half of what one leaves.
    assert errors[0] < 0.8 * float((images - images.mean(0)).square().mean())
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, SIZE, SIZE), (3, SIZE, SIZE)])
def test_images_of_another_size_are_refused(
    tiny_tokenizer: Tokenizer, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=rf"images must be \(B, 3, {SIZE}, {SIZE}\), not"):
        tiny_tokenizer.encode(torch.zeros(shape))


@pytest.mark.parametrize("k", [0, 7])
def test_prefix_lengths_out_of_range_are_refused(tiny_tokenizer: Tokenizer, k: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 6 codes, but got {k}"):
        tiny_tokenizer.decode(torch.zeros(1, k, dtype=torch.int64))


def test_saved_tokenizer_comes_back_with_equal_codes_and_hash(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages", tmp_path: Path
) -> None:
    images = blob_images(16, SIZE, 1)
    content_hash = tiny_tokenizer.save_pretrained(tmp_path / "model")
    for folder in (tmp_path / "model", tmp_path):  # a model folder, or the run folder around it
        loaded = Tokenizer.from_pretrained(folder)
        assert loaded.config == tiny_tokenizer.config
        assert loaded.content_hash == content_hash
        assert not loaded.training
        codes = loaded.encode(images)
        assert torch.equal(codes, tiny_tokenizer.encode(images))
        assert torch.equal(loaded.decode(codes[:, :2]), tiny_tokenizer.decode(codes[:, :2]))
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.save_pretrained(tmp_path / "again") == content_hash


def test_tokenizer_of_a_training_run_loads(tiny_run: "TinyRun") -> None:
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    assert tokenizer.content_hash
    assert tokenizer.encode(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, tokenizer.num_codes)


def cut_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def change_weight(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def change_config(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    assert '"image_size": 16' in text
    (folder / "config.json").write_text(text.replace('"image_size": 16', '"image_size": 32'))


def other_kind(folder: Path) -> None:
    save_model(folder, "prior", {}, {"weight": torch.zeros(1)}, {})


def other_tensors(folder: Path) -> None:
    config = {"image_size": SIZE}
    save_model(folder, "tokenizer", config, {"weight": torch.zeros(1)}, {})


def unknown_key(folder: Path) -> None:
    save_model(folder, "tokenizer", {"image_sise": SIZE}, {"weight": torch.zeros(1)}, {})


def change_values(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change config.json so that its hash fits again."""
    values = json.loads((folder / "config.json").read_text())
    change(values)
    tensors = load_file(folder / "model.safetensors")
    values["content_hash"] = hash_model(values["kind"], values["config"], tensors)
    (folder / "config.json").write_text(json.dumps(values))


def newer_version(folder: Path) -> None:
    change_values(folder, lambda values: values.update(version=3))


def unknown_decoder(folder: Path) -> None:
    def add(values: dict[str, Any]) -> None:
        values["config"]["decoders"]["sharp"] = {"kind": "flow"}

    change_values(folder, add)


def overwrite(path: Path, text: str) -> None:
    path.write_text(text)


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (lambda folder: (folder / "model.safetensors").unlink(), "no such file"),
    (lambda folder: (folder / "config.json").unlink(), "no tokenizer here"),
    (lambda folder: overwrite(folder / "config.json", "{"), "not a JSON file"),
    (lambda folder: overwrite(folder / "config.json", "[1]"), "not the config"),
    (lambda folder: overwrite(folder / "model.safetensors", "no"), "damaged"),
    (lambda folder: shutil.rmtree(folder), "no tokenizer here"),
    (cut_weights, "damaged"),
    (change_weight, "damaged"),
    (change_config, "do not belong together"),
    (other_kind, "holds a prior, but a tokenizer is needed"),
    (other_tensors, "another version"),
    (newer_version, "of version 3, but this program knows up to 2"),
    (unknown_decoder, "another version"),
    (unknown_key, "unknown key 'image_sise'"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_or_foreign_model_folder_is_refused_by_name(
    tiny_tokenizer: Tokenizer, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "some-model"
    Tokenizer(tiny_tokenizer.config).save_pretrained(folder)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        Tokenizer.from_pretrained(folder)
    assert "some-model" in str(caught.value)
    assert "\n" not in str(caught.value)
