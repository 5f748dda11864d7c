"""Tokenizer folders of version 1, as this version reads them: one decoder, other names."""

from typing import Any

from torch import Tensor


def upgrade_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a tokenizer folder of version 1, in today's keys."""
    quantizer = dict(config["quantizer"])
    gumbel = quantizer.pop("assignment", "nearest") == "gumbel"
    if gumbel:
        sizes = _sizes(quantizer)
        quantizer = {"kind": "gumbel", "num_codes": len(sizes), "codebook_sizes": sizes}
    return {**config, "quantizer": {"kind": "residual", **quantizer}}


def _sizes(quantizer: dict[str, Any]) -> list[int]:
    sizes, N = quantizer["codebook_sizes"], quantizer["num_codes"]
    L = min(quantizer["learned_codes"], N)
    return list(sizes) if len(sizes) == N else sizes[:1] * L + sizes[-1:] * (N - L)


def upgrade_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a tokenizer of version 1, by today's names."""
    upgraded = {}
    for name, tensor in tensors.items():
        if name.startswith("decoder."):
            upgraded[f"decoders.faithful.{name.removeprefix('decoder.')}"] = tensor
        elif not name.startswith("quantizer.") or name == "quantizer.scale":
            upgraded[name] = tensor
    vectors, factors = tensors["quantizer.vectors"], tensors["quantizer.factors"]
    if "quantizer.log_deviations" in tensors:
        upgraded["quantizer.log_deviations"] = tensors["quantizer.log_deviations"]
        upgraded["quantizer.trained.vectors"] = vectors
        upgraded["quantizer.trained.factors"] = factors[:, :1]
        return upgraded
    biases = tensors["quantizer.biases"]
    L, K = factors.shape
    upgraded["quantizer.learned.vectors"] = vectors
    upgraded["quantizer.learned.factors"] = factors
    upgraded["quantizer.learned.biases"] = biases[:L, :K]
    if len(biases) > L:
        shared = tensors["quantizer.shared"]
        upgraded["quantizer.shared.vectors"] = shared
        upgraded["quantizer.shared.biases"] = biases[L:, : len(shared)]
        for name in ("supports", "spreads", "basis"):
            upgraded[f"quantizer.shared.{name}"] = tensors[f"quantizer.{name}"]
    return upgraded
