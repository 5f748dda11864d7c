"""Tokenizer folders of version 1: equal codes and pictures, whatever the quantizer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pqvae.pretrained import hash_model
from pqvae.randomness import generator_for
from stage1_tokenizer.config import (
    ArchitectureConfig,
    GumbelConfig,
    QuantizerConfig,
    ResidualConfig,
    TokenizerConfig,
)
from stage1_tokenizer.tokenizer import Tokenizer

SIZE = 8
MIXED = (8, 3, 16, 2, 5)
LEARNED = {"num_codes": 5, "codebook_sizes": MIXED, "rank": 20, "subspace": 4}


def tokenizer_of(quantizer: QuantizerConfig, images: Tensor) -> Tokenizer:
    torch.manual_seed(0)
    architecture = ArchitectureConfig(
        widths=(16,), encoder_blocks=(1,), decoder_blocks=(1,), latent_channels=4
    )
    config = TokenizerConfig(image_size=SIZE, architecture=architecture, quantizer=quantizer)
    tokenizer = Tokenizer(config)
    tokenizer.init_from_images(images)
    with torch.no_grad():
        for parameter in tokenizer.parameters():  # zero starts would hide what is lost
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator_for(7))
        tokenizer.quantizer.start(tokenizer.encoder(images), generator_for(1))
    return tokenizer.eval()


def tensors_of_version_1(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The state dict as version 1 named and padded it."""
    state = tokenizer.state_dict()
    old = {
        name.replace("decoders.faithful.", "decoder."): tensor
        for name, tensor in state.items()
        if not name.startswith("quantizer.")
    }
    N, K = tokenizer.num_codes, max(tokenizer.quantizer.sizes)
    D = state["quantizer.scale"].new_zeros(N, 0)
    quantizer = {"scale": state["quantizer.scale"], "shared": torch.zeros(0, 0)}
    if "quantizer.trained.vectors" in state:
        quantizer["vectors"] = state["quantizer.trained.vectors"]
        quantizer["factors"] = state["quantizer.trained.factors"].expand(N, K)
        quantizer["log_deviations"] = state["quantizer.log_deviations"]
    else:
        quantizer["vectors"] = state["quantizer.learned.vectors"]
        quantizer["factors"] = state["quantizer.learned.factors"]
        quantizer["biases"] = torch.zeros(N, K)
        learned = state["quantizer.learned.biases"]
        quantizer["biases"][: len(learned), : learned.shape[1]] = learned
    dim = quantizer["vectors"].shape[2]
    quantizer |= {"supports": D.long()[:0], "spreads": D[:0], "basis": torch.zeros(dim, 0)}
    if "quantizer.shared.vectors" in state:
        quantizer["shared"] = state["quantizer.shared.vectors"]
        for name in ("supports", "spreads", "basis"):
            quantizer[name] = state[f"quantizer.shared.{name}"]
        late = state["quantizer.shared.biases"]
        quantizer["biases"][N - len(late) :, : late.shape[1]] = late
    return old | {f"quantizer.{name}": tensor for name, tensor in quantizer.items()}


def write_version_1(folder: Path, tokenizer: Tokenizer, quantizer: dict[str, Any]) -> str:
    folder.mkdir(parents=True)
    config = {
        "image_size": SIZE,
        "architecture": {
            "widths": [16],
            "encoder_blocks": [1],
            "decoder_blocks": [1],
            "attention": False,
            "latent_channels": 4,
        },
        "quantizer": {
            "decay_start": 0.97,
            "decay_end": 0.9997,
            "revive_below": 0.1,
            "revive_every": 100,
            **quantizer,
        },
    }
    tensors = {k: v.contiguous() for k, v in tensors_of_version_1(tokenizer).items()}
    content_hash = hash_model("tokenizer", config, tensors)
    save_file(tensors, folder / "model.safetensors")
    values = {"kind": "tokenizer", "content_hash": content_hash, "config": config}
    (folder / "config.json").write_text(json.dumps(values))
    return content_hash


@pytest.mark.parametrize(
    ("config", "old"),
    [
        (
            ResidualConfig(learned_codes=5, **LEARNED),
            {**LEARNED, "learned_codes": 5, "assignment": "nearest"},
        ),
        (
            ResidualConfig(learned_codes=2, **LEARNED),
            {**LEARNED, "learned_codes": 2, "assignment": "nearest"},
        ),
        (
            ResidualConfig(learned_codes=2, **LEARNED),
            {**LEARNED, "learned_codes": 2},  # before there was another assignment
        ),
        (
            GumbelConfig(num_codes=5, codebook_sizes=(4, 4, 16, 16, 16)),
            {
                **LEARNED,
                "codebook_sizes": [4, 16],
                "learned_codes": 2,
                "assignment": "gumbel",
            },
        ),
        (
            GumbelConfig(num_codes=5, codebook_sizes=MIXED),
            {**LEARNED, "learned_codes": 32, "assignment": "gumbel"},
        ),
    ],
)
def test_folder_of_version_1_gives_equal_codes_and_pictures(
    config: QuantizerConfig, old: dict[str, Any], tmp_path: Path
) -> None:
    images = torch.rand(64, 3, SIZE, SIZE, generator=generator_for(0)) * 2 - 1
    tokenizer = tokenizer_of(config, images)
    content_hash = write_version_1(tmp_path / "model", tokenizer, old)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.content_hash == content_hash
    assert loaded.quantizer.sizes == tokenizer.quantizer.sizes
    codes = tokenizer.encode(images)
    assert len(codes.unique(dim=0)) > 20
    assert torch.equal(loaded.encode(images), codes)
    assert torch.equal(loaded.encode(images, beam=3), tokenizer.encode(images, beam=3))
    for k in (1, 3, 5):
        assert torch.equal(loaded.decode(codes[:, :k]), tokenizer.decode(codes[:, :k]))
    assert loaded.codes_hash == tokenizer.codes_hash

    # And it is written as version 2, with another content hash for equal codes.
    again = loaded.save_pretrained(tmp_path / "again")
    assert again != content_hash
    assert Tokenizer.from_pretrained(tmp_path / "again").codes_hash == tokenizer.codes_hash
