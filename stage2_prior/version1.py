"""Folders of version 1 are read as those of today.

They held tables (N, K, ...) by position, so a codebook for each position, and knew the hash of the
whole tokenizer, not that of its codes.
"""

from dataclasses import replace

import torch

from pqvae.pretrained import StoredModel
from stage2_prior.books import TINY, Codebooks
from stage2_prior.sequence import coarse_to_fine


def upgrade(stored: StoredModel) -> StoredModel:
    """A stored prior of version 1 as one of today."""
    sizes = stored.config["codebook_sizes"]
    codebooks = Codebooks.separate(sizes)
    config = {
        **stored.config,
        "sizes": codebooks.sizes,
        "books": codebooks.books,
        "placed": codebooks.placed,
        "steps": coarse_to_fine(len(sizes)).steps,
    }
    tensors = dict(stored.tensors)
    head, bias, features = (tensors.pop(key) for key in ("head", "head_bias", "code_features"))
    embedding = tensors.pop("code_embedding.weight").view_as(head)
    tensors["head_projection.weight"] = tensors["head_projection.weight"].T.contiguous()
    for position, size in enumerate(sizes):
        book = f"books.{position}"
        tensors[f"{book}.embedding.weight"] = embedding[position, :size]
        tensors[f"{book}.head"] = head[position, :size]
        tensors[f"{book}.gain"] = torch.ones(1, head.shape[2])
        tensors[f"{book}.bias"] = bias[position : position + 1, :size]
        tensors[f"{book}.meaning"] = features[position, :size]
        norms = features[position, :size].norm(dim=1).clamp_min(TINY)
        tensors[f"{book}.norms"] = norms.unsqueeze(0)
    known = {"tokenizer_hash": stored.config["tokenizer_hash"]}
    return replace(
        stored, config=config, tensors=tensors, provenance={**stored.provenance, **known}
    )
