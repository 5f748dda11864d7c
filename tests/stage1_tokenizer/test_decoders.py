"""Several decoders of the same codes: kept by name, hashed apart."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from pqvae.config import config_class
from pqvae.errors import UserError
from stage1_tokenizer import decoders
from stage1_tokenizer.config import ArchitectureConfig
from stage1_tokenizer.decoder_config import DECODERS, DecoderConfig
from stage1_tokenizer.decoders.contract import Decoder
from stage1_tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.conftest import BlobImages

SIZE = 16


@config_class
class FlatConfig(DecoderConfig):
    kind: Literal["flat"] = Field(default="flat", description="one colour all over")
    brightness: float = Field(default=0.0, description="added to it")


class FlatDecoder(Decoder):
    def __init__(
        self,
        config: FlatConfig,
        architecture: ArchitectureConfig,
        latent_shape: tuple[int, int, int],
        num_codes: int,
    ) -> None:
        super().__init__(config)
        self.brightness, self.size = config.brightness, latent_shape[1] * architecture.downsampling
        self.colour = nn.Linear(math.prod(latent_shape), 3)

    def forward(
        self,
        latents: Tensor,
        prefix_lengths: Tensor,
        noise: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        colours = self.colour(latents) + self.brightness
        return colours[:, :, None, None].expand(-1, -1, self.size, self.size)


def test_a_second_decoder_leaves_codes_and_the_first_as_they_are(
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
    blob_images: "BlobImages",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(DECODERS, "flat", FlatConfig)
    monkeypatch.setitem(decoders.KINDS, FlatConfig, FlatDecoder)
    before = tiny_tokenizer.save_pretrained(tmp_path / "one")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "one")
    codes_hash, faithful = tokenizer.codes_hash, tokenizer.decoder_hash()
    decoder = tokenizer.add_decoder("other", FlatConfig(brightness=0.25))
    assert tokenizer.save_pretrained(tmp_path / "two") != before
    loaded = Tokenizer.from_pretrained(tmp_path / "two")
    assert loaded.decoder("other").config == FlatConfig(brightness=0.25)
    images = blob_images(8, SIZE, 1)
    for each in (tokenizer, loaded):
        assert each.codes_hash == codes_hash
        assert each.decoder_hash("faithful") == each.decoder_hash() == faithful
        assert each.decoder_hash("other") == tokenizer.decoder_hash("other") != faithful
        codes = each.encode(images)
        assert torch.equal(codes, tiny_tokenizer.encode(images))
        assert torch.equal(each.decode(codes), tiny_tokenizer.decode(codes))
        with torch.no_grad():
            latents = each.quantizer.decode(codes[:, :3])
            expected = decoder(latents, torch.full((8,), 3)).clamp(-1, 1)
        found = each.decode(codes[:, :3], decoder="other")
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert not torch.allclose(found, each.decode(codes[:, :3]), atol=0.1)

    with torch.no_grad():
        loaded.decoder("other").get_parameter("colour.bias").add_(0.1)  # trained further
    assert loaded.codes_hash == codes_hash
    assert loaded.decoder_hash() == faithful
    assert loaded.decoder_hash("other") != tokenizer.decoder_hash("other")
    with pytest.raises(UserError, match="no decoder 'sharp', only faithful, other"):
        loaded.decode(codes, decoder="sharp")
    with pytest.raises(NotImplementedError, match="FlatDecoder has no features"):
        loaded.decoder("other").features(latents, torch.full((8,), 3))
