"""The folder of a prior: what is loaded is what was saved, the foreign or damaged is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pqvae.config import config_to_dict
from pqvae.errors import UserError
from pqvae.pretrained import save_model
from pqvae.randomness import generator_for
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.prior import Prior
from tests.stage2_prior.random_prior import CODEBOOKS, LABELS, SIZES, TINY, N, random_codes


@torch.inference_mode()
def test_saved_and_loaded_it_is_the_same(prior: Prior, tmp_path: Path) -> None:
    content_hash = prior.save_pretrained(tmp_path / "model", {"codes_hash": "of a tokenizer"})
    for folder in (tmp_path, tmp_path / "model"):  # a run folder or the model in it
        loaded = Prior.from_pretrained(folder)
        assert not loaded.training
        assert loaded.config == prior.config
        assert loaded.codebooks == CODEBOOKS
        assert loaded.sizes == SIZES
        assert loaded.sequence == prior.sequence
        assert loaded.class_names == prior.class_names
        assert loaded.class_counts == prior.class_counts
        assert loaded.provenance == {"codes_hash": "of a tokenizer", "home": os.getcwd()}
        assert loaded.content_hash == content_hash
        codes = random_codes()
        assert torch.equal(loaded(codes, LABELS), prior(codes, LABELS))


@torch.inference_mode()
def test_a_folder_of_the_first_version_is_the_same_prior(prior: Prior, tmp_path: Path) -> None:
    """That version had tables by position: the reference is its formula, on the same layers."""
    K, width, features = max(SIZES), TINY.width, TINY.code_features
    generator = generator_for(0)

    def random(*shape: int) -> Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    tables = {
        "code_embedding.weight": random(N * K, width),
        "head": random(N, K, width),
        "head_bias": random(N, K),
        "head_projection.weight": random(width, features),
        "code_features": 10 * random(N, K, features),
    }
    shared = ("layers.", "class_embedding.", "position_embedding", "feature_projection.")
    kept = {k: v for k, v in prior.state_dict().items() if k.startswith(shared)}
    config = {
        "prior": config_to_dict(TINY),
        "codebook_sizes": list(SIZES),
        "class_names": list(prior.class_names),
        "class_counts": list(prior.class_counts),
        "tokenizer_hash": "hash of a tokenizer",
    }
    content_hash = save_version_1(tmp_path, config, {**kept, **tables})

    codes, places = random_codes(), torch.arange(N - 1)
    meaning = tables["code_features"][places, codes[:, :-1]].cumsum(dim=1)
    embedded = tables["code_embedding.weight"][codes[:, :-1] + places * K]
    embedded = embedded + meaning @ kept["feature_projection.weight"].T
    embedded = embedded + kept["position_embedding"][:-1]
    start = kept["class_embedding.weight"][LABELS].unsqueeze(1)
    hidden = prior.layers(torch.cat([start, embedded], dim=1))
    said = nn.functional.normalize(tables["code_features"], dim=2)
    head = tables["head"] + said @ tables["head_projection.weight"].T
    expected = torch.einsum("bnd,nkd->bnk", hidden, head) + tables["head_bias"]
    expected[:, torch.arange(K) >= torch.tensor(SIZES).unsqueeze(1)] = -torch.inf

    loaded = Prior.from_pretrained(tmp_path)
    assert loaded.content_hash == content_hash
    assert loaded.provenance["tokenizer_hash"] == "hash of a tokenizer"
    assert loaded.sizes == SIZES
    torch.testing.assert_close(loaded(codes, LABELS), expected, atol=1e-5, rtol=0)
    # Saved anew, it is a prior of today.
    loaded.save_pretrained(tmp_path)
    again = Prior.from_pretrained(tmp_path)
    assert again.provenance["tokenizer_hash"] == "hash of a tokenizer"
    assert torch.equal(again(codes, LABELS), loaded(codes, LABELS))


def save_version_1(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Write a model folder as version 1 did: without version and provenance."""
    content_hash = save_model(folder, "prior", config, tensors, {})
    path = folder / "config.json"
    values = json.loads(path.read_text())
    kept = {key: values[key] for key in ("kind", "content_hash", "config")}
    path.write_text(json.dumps(kept))
    return content_hash


def test_a_foreign_or_damaged_folder_is_refused(
    prior: Prior, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            Prior.from_pretrained(tmp_path)

    refused(r"no prior here \(config.json is missing\)")
    config = tmp_path / "config.json"
    config.write_text("[]")
    refused(r"config.json: not the config of a model")
    Tokenizer(tiny_tokenizer.config).save_pretrained(tmp_path)
    refused("holds a tokenizer, but a prior is needed")
    prior.save_pretrained(tmp_path)
    config.write_text(config.read_text().replace("class 1", "class 9"))
    refused("do not belong together, or are damaged")
    prior.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refused("do not belong together, or are damaged")
    weights.write_bytes(data[: len(data) // 2])
    refused("model.safetensors: damaged")
    weights.unlink()
    refused("model.safetensors: no such file")
