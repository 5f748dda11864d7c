"""The tokenizer: the prefix rule, independence of neighbours, the linear start, model folders."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.errors import UserError
from pqvae.images import to_float
from pqvae.pretrained import save_model
from stage1_tokenizer.config import ArchitectureConfig, QuantizerConfig, TokenizerConfig
from stage1_tokenizer.prefixes import residual_shares
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
            latents = tiny_tokenizer.quantizer.dequantize(codes[:, :k])
            expected = tiny_tokenizer.decoder(latents, lengths).clamp(-1, 1)
            told_otherwise = tiny_tokenizer.decoder(latents, lengths % 6 + 1).clamp(-1, 1)
        assert torch.equal(images, expected)  # from the prefix alone, with its length told
        assert not torch.allclose(images, told_otherwise, atol=1e-3)
        # And each code says something: one more gives other images.
        assert before is None or not torch.allclose(images, before, atol=0.01)
        before = images


def test_features_are_of_the_prefix_alone_and_what_the_picture_grows_from(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    codes = tiny_tokenizer.encode(blob_images(8, SIZE, 1))
    decoder = tiny_tokenizer.decoder
    for k in (1, 3, tiny_tokenizer.num_codes):
        latents = tiny_tokenizer.quantizer.dequantize(codes[:, :k])
        with torch.inference_mode():
            maps = decoder.features(latents, torch.full((8,), k))
            grown = decoder.network[decoder.coarse_layers :](maps)
            image = grown + decoder.shortcut(latents.view(-1, *decoder.latent_shape))
        assert torch.allclose(image.clamp(-1, 1), tiny_tokenizer.decode(codes[:, :k]), atol=1e-5)
        found = tiny_tokenizer.features(codes[:, :k])
        # A map of 4x4 as it is; channel by channel, row by row.
        assert torch.allclose(found.view(8, -1, 4, 4), maps)
        alone = torch.cat([tiny_tokenizer.features(row[None, :k]) for row in codes])
        assert torch.allclose(alone, found, atol=1e-5)
    with pytest.raises(ValueError, match="prefix"):
        tiny_tokenizer.features(codes[:, :0])


def test_decoding_an_image_needs_no_other(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    codes = tiny_tokenizer.encode(blob_images(8, SIZE, 1))
    together = tiny_tokenizer.decode(codes)
    alone = torch.cat([tiny_tokenizer.decode(row[None]) for row in codes])
    # Float32 convolutions may sum in another order for another batch size.
    assert torch.allclose(alone, together, atol=1e-5)


def test_codes_do_not_depend_on_batch_neighbours(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    images = blob_images(16, SIZE, 1)
    codes = tiny_tokenizer.encode(images)
    assert codes.dtype == torch.int64
    assert len(codes.unique(dim=0)) > 8
    by_eight = torch.cat([tiny_tokenizer.encode(images[:8]), tiny_tokenizer.encode(images[8:])])
    alone = torch.cat([tiny_tokenizer.encode(image[None]) for image in images])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(by_eight, codes)
    assert torch.equal(alone, codes)
    assert torch.equal(tiny_tokenizer.encode(images[order]), codes[order])


def test_wider_beams_describe_held_out_images_better(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    images = blob_images(64, 16, 99)
    latents = tiny_tokenizer.quantizer.normalize(tiny_tokenizer.encoder(images)).detach()
    errors = []
    for beam in (1, 4, 16):
        codes = tiny_tokenizer.encode(images, beam=beam)
        left = latents - tiny_tokenizer.quantizer.dequantize(codes)
        errors.append(float(left.square().mean()))
    assert errors[0] > errors[1] > errors[2]
    with pytest.raises(ValueError, match="beam is 0, but must be at least 1"):
        tiny_tokenizer.encode(images, beam=0)


def test_refined_codes_decode_better_and_never_worse(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    images = blob_images(64, 16, 99)

    def errors(codes: Tensor) -> Tensor:
        return (tiny_tokenizer.decode(codes) - images).square().mean((1, 2, 3))

    greedy, refined = tiny_tokenizer.encode(images), tiny_tokenizer.encode(images, refine=8)
    assert (errors(refined) <= errors(greedy)).all()
    assert errors(refined).mean() < 0.99 * errors(greedy).mean()
    unchanged = (refined == greedy).all(1)
    assert torch.equal(errors(refined)[unchanged], errors(greedy)[unchanged])
    with torch.inference_mode():
        assert torch.equal(tiny_tokenizer.encode(images, refine=8), refined)
    alone = torch.cat([tiny_tokenizer.encode(image[None], refine=8) for image in images[:16]])
    # Rounding may depend on the batch, and a step near a tie then ends at another code.
    assert (alone == refined[:16]).all(1).sum() >= 14
    with pytest.raises(ValueError, match="refine is -1, but must be at least 0"):
        tiny_tokenizer.encode(images, refine=-1)


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


def test_untrained_network_reconstructs_as_well_as_principal_components(
    blob_images: "BlobImages",
) -> None:
    patch, channels = 4, 5
    architecture = ArchitectureConfig(
        widths=(16, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent_channels=channels
    )
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(image_size=SIZE, architecture=architecture))
    images = blob_images(64, SIZE, 3)
    tokenizer.init_from_images(images)
    with torch.no_grad():
        latents = tokenizer.encoder(images)
        decoded = tokenizer.decoder(latents, torch.ones(64, dtype=torch.int64))
    error = float((decoded - images).square().mean())

    patches = []  # the reference: every patch by itself, projected by an SVD in float64
    for image in images.double():
        for top in range(0, SIZE, patch):
            for left in range(0, SIZE, patch):
                patches.append(image[:, top : top + patch, left : left + patch].flatten())
    rows = torch.stack(patches)
    centred = rows - rows.mean(0)
    basis = torch.linalg.svd(centred, full_matrices=False).Vh[:channels]
    reference = float((centred @ basis.T @ basis - centred).square().mean())

    # The only difference allowed: the mean patch is replaced by its mean colour.
    colours = rows.mean(0).view(3, -1).mean(1, keepdim=True).expand(3, patch**2).flatten()
    lost = rows.mean(0) - colours
    lost = float((lost - lost @ basis.T @ basis).square().mean())
    assert reference <= error * 1.0001
    assert error <= (reference + lost) * 1.01
    assert error < 0.2 * float(centred.square().mean())  # five of 48 numbers say a lot
    assert float(latents.std()) == pytest.approx(1, abs=0.05)


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


def test_residual_shares_are_what_prefix_sums_leave(tiny_run: "TinyRun") -> None:
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    dataset = open_dataset(DataConfig(path=str(tiny_run.data), image_size=SIZE), "val")
    with torch.inference_mode():
        images = to_float(dataset.images(range(len(dataset))))
        latents = tokenizer.quantizer.normalize(tokenizer.encoder(images))
        codes = tokenizer.encode(images)
        left = [
            (latents - tokenizer.quantizer.dequantize(codes[:, :k])).square().sum()
            for k in range(1, tokenizer.num_codes + 1)
        ]
        expected = torch.stack(left) / latents.square().sum()
    found = residual_shares(tokenizer, dataset, 1000)
    assert found == pytest.approx(expected.tolist(), rel=1e-4)


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
    save_model(folder, "prior", {}, {"weight": torch.zeros(1)})


def other_version(folder: Path) -> None:
    config = {"image_size": SIZE}
    save_model(folder, "tokenizer", config, {"weight": torch.zeros(1)})


def unknown_key(folder: Path) -> None:
    save_model(folder, "tokenizer", {"image_sise": SIZE}, {"weight": torch.zeros(1)})


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
    (other_version, "another version"),
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (16, 32), "encoder_blocks": (1,)}, "equally long"),
        ({"widths": (16, 24)}, "multiples of 16"),
        ({"widths": (16, 16), "decoder_blocks": (0, -1)}, "cannot be negative"),
        ({"latent_channels": 0}, "latent_channels is 0"),
        ({"widths": (16, 16), "latent_channels": 49}, "a patch has 48 numbers"),
    ],
)
def test_impossible_architectures_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArchitectureConfig(**settings)  # type: ignore[bad-argument-type]


def test_image_size_that_cannot_be_halved_so_often_is_refused() -> None:
    architecture = ArchitectureConfig(widths=(16, 16), latent_channels=4)
    with pytest.raises(ValueError, match="image_size 18 must be a multiple of 4"):
        Tokenizer(TokenizerConfig(image_size=18, architecture=architecture))


def test_attention_looks_at_the_whole_map_and_keeps_rows_apart() -> None:
    architecture = ArchitectureConfig(
        widths=(16, 32),
        encoder_blocks=(0, 1),
        decoder_blocks=(0, 1),
        attention=True,
        latent_channels=4,
    )
    torch.manual_seed(0)
    config = TokenizerConfig(
        image_size=SIZE,
        architecture=architecture,
        quantizer=QuantizerConfig(num_codes=2, codebook_sizes=(4,)),
    )
    encoder = Tokenizer(config).encoder
    for parameter in encoder.parameters():  # the zero starts would hide what the blocks do
        torch.nn.init.normal_(parameter, std=0.2)
    images = torch.rand(3, 3, SIZE, SIZE) * 2 - 1
    changed = images.clone()
    changed[1, :, :4, :4] += 0.5  # one corner of one image

    def difference(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().view(3, 4, 4, 4).amax(1)

    with torch.no_grad():
        moved = difference(encoder(images), encoder(changed))
    assert (moved[1] > 1e-6).all()  # felt at every place of its map
    assert moved[[0, 2]].max() == 0
