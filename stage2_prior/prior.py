"""Codes -> probabilities: a causal transformer over the coarse-to-fine sequence.

        class   c_1     c_2    ...  c_{N-1}
          |      |       |             |
      [ x-transformers: RoPE, RMSNorm, SwiGLU, QK-norm, causal ]
          |      |       |             |
        p(c_1) p(c_2)  p(c_3)  ...   p(c_N)

Every position has a vocabulary of its own. A code enters as a free embedding plus what it *means*:
the latent f_i that the codes up to it add up to, projected to the model's width. Entries that look
alike are thus alike to the prior too, even where it has hardly seen them.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pqvae.config import config_from_dict, config_to_dict
from pqvae.errors import UserError
from pqvae.pretrained import load_model, save_model
from stage1_tokenizer.quantizers.residual import ProgressiveQuantizer
from stage2_prior.config import PriorConfig

with warnings.catch_warnings():  # it scripts a function on import, which torch has deprecated
    for category in (DeprecationWarning, FutureWarning):  # which one depends on torch's version
        warnings.simplefilter("ignore", category)
    from x_transformers import Decoder
    from x_transformers.x_transformers import LayerIntermediates


class Prior(nn.Module):
    """p(c_1 ... c_N), or p(c_1 ... c_N | class), with a learned row for "no class"."""

    code_features: Tensor  # (N, K, F): the quantizer's entries in their F principal directions

    def __init__(
        self,
        config: PriorConfig,
        sizes: tuple[int, ...],
        class_names: tuple[str, ...],
        class_counts: tuple[int, ...],
        tokenizer_hash: str,
    ) -> None:
        """Build an untrained prior.

        Args:
            config: Sizes and dropout.
            sizes: K_i of each position.
            class_names: () for a prior without classes.
            class_counts: Training images of each class: how often each is to be sampled.
            tokenizer_hash: Content hash of the tokenizer whose codes these are.
        """
        super().__init__()
        self.config, self.sizes = config, sizes
        self.class_names, self.class_counts = class_names, class_counts
        self.content_hash = ""  # set by save_pretrained and from_pretrained
        self.tokenizer_hash = tokenizer_hash
        N, K, width = len(sizes), max(sizes), config.width
        self.class_embedding = nn.Embedding(len(class_names) + 1, width)
        self.code_embedding = nn.Embedding(N * K, width)
        self.position_embedding = nn.Parameter(torch.zeros(N, width))
        self.feature_projection = nn.Linear(config.code_features, width, bias=False)
        self.head_projection = nn.Linear(config.code_features, width, bias=False)
        self.layers = Decoder(
            dim=width,
            depth=config.depth,
            heads=config.heads,
            attn_dim_head=width // config.heads,
            attn_flash=True,
            attn_qk_norm=True,
            rotary_pos_emb=True,
            rotary_emb_dim=width // config.heads,  # all of a head
            use_rmsnorm=True,
            ff_mult=8 / 3,  # as many weights as a plain feed-forward of 4 (Shazeer 2020)
            ff_glu=True,
            ff_swish=True,
            ff_no_bias=True,
            ff_dropout=config.dropout,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Parameter(torch.empty(N, K, width))
        self.head_bias = nn.Parameter(torch.zeros(N, K))
        self.register_buffer("code_features", torch.zeros(N, K, config.code_features))
        nn.init.normal_(self.class_embedding.weight, std=0.02)
        nn.init.normal_(self.code_embedding.weight, std=0.02)
        nn.init.normal_(self.head, std=0.02)
        nn.init.zeros_(self.head_projection.weight)
        illegal = torch.arange(K) >= torch.tensor(sizes).unsqueeze(1)
        self.register_buffer("illegal", illegal, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model is, and where its inputs must be."""
        return self.head.device

    def embed(self, codes: Tensor, labels: Tensor | None) -> Tensor:
        """Inputs (B, k + 1, width): the class, then the codes of the prefix (B, k)."""
        return torch.cat([self._embed_labels(len(codes), labels), self._embed_codes(codes)], dim=1)

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits of every code given the codes before it and the class.

        Args:
            codes: A prefix, int64 (B, k) in [0, K), 0 <= k <= N.
            labels: int64 (B,) in [0, classes], the last number being "no class"; None is that too.

        Returns:
            float32 (B, min(k + 1, N), K): position i holds the logits of code i + 1, -inf where
            there is no such code.
        """
        codes = codes[:, : len(self.sizes) - 1]
        hidden = self.layers(self.dropout(self.embed(codes, labels)))
        return self._logits(hidden, 0)

    def bits(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """The cost of each code under the prior, in bits: codes (B, N) -> float32 (B, N)."""
        logits = self(codes, labels)
        nats = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")
        return nats / math.log(2)

    def next_logits(
        self, codes: Tensor, labels: Tensor | None, cache: LayerIntermediates | None
    ) -> tuple[Tensor, LayerIntermediates]:
        """Logits (B, K) of the code after the prefix (B, k), with the keys and values of before."""
        position = codes.shape[1]
        if position == 0:
            inputs = self._embed_labels(len(codes), labels)
        else:
            inputs = self._embed_codes(codes)[:, -1:]
        hidden, cache = self.layers(inputs, cache=cache, return_hiddens=True)
        return self._logits(hidden, position).squeeze(1), cache

    @torch.no_grad()
    def init_from_codes(self, codes: Tensor) -> None:
        """Start as the unigram model of training codes (n, N), an add-one histogram a position."""
        for position, size in enumerate(self.sizes):
            counts = torch.bincount(codes[:, position], minlength=size) + 1.0
            self.head_bias[position, :size] = (counts / counts.mean()).log()
        nn.init.zeros_(self.head)

    @torch.no_grad()
    def set_code_features(self, quantizer: ProgressiveQuantizer) -> None:
        """Take the meaning of the codes over from the quantizer that makes them."""
        step = max(1, sum(self.sizes) // 16384)
        sample = torch.cat([quantizer.entries(i)[::step] for i in range(len(self.sizes))])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, _, directions = torch.svd_lowrank(
                sample, q=min(self.config.code_features, *sample.shape)
            )
        self.code_features.zero_()
        for position, size in enumerate(self.sizes):
            features = quantizer.entries(position) @ directions
            self.code_features[position, :size, : features.shape[1]] = features
        # The cumulative sum of N entries has about unit size per image then.
        self.code_features /= self.code_features.norm(dim=2).max()

    def _embed_labels(self, batch_size: int, labels: Tensor | None) -> Tensor:
        if labels is None:
            shape, device = (batch_size,), self.head.device
            labels = torch.full(shape, len(self.class_names), device=device)
        return self.class_embedding(labels).unsqueeze(1)

    def _embed_codes(self, codes: Tensor) -> Tensor:
        k, K = codes.shape[1], max(self.sizes)
        positions = torch.arange(k, device=codes.device)
        meaning = self.code_features[positions, codes].cumsum(dim=1)
        embedded = self.code_embedding(codes + positions * K)
        return embedded + self.feature_projection(meaning) + self.position_embedding[:k]

    def _logits(self, hidden: Tensor, first: int) -> Tensor:
        last = first + hidden.shape[1]
        meaning = F.normalize(self.code_features[first:last], dim=2)
        head = self.head[first:last] + self.head_projection(meaning)
        logits = torch.einsum("bnd,nkd->bnk", hidden, head)
        logits = logits.float() + self.head_bias[first:last]
        return logits.masked_fill(self.illegal[first:last], -torch.inf)

    def save_pretrained(self, folder: str | Path) -> str:
        """Write a model folder; returns its content hash."""
        config: dict[str, Any] = {
            "prior": config_to_dict(self.config),
            "codebook_sizes": list(self.sizes),
            "class_names": list(self.class_names),
            "class_counts": list(self.class_counts),
            "tokenizer_hash": self.tokenizer_hash,
        }
        self.content_hash = save_model(Path(folder), "prior", config, self.state_dict())
        return self.content_hash

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Prior":
        """Load a model or run folder, in evaluation mode, on the CPU.

        Raises:
            UserError: The folder is missing, damaged, or holds another kind of model.
        """
        folder = Path(folder)
        config, tensors, content_hash = load_model(folder, "prior")
        try:
            prior = cls(
                config_from_dict(PriorConfig, config["prior"], str(folder)),
                tuple(config["codebook_sizes"]),
                tuple(config["class_names"]),
                tuple(config["class_counts"]),
                config["tokenizer_hash"],
            )
            prior.load_state_dict(tensors)
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{folder}: the prior there is of another version") from error
        prior.content_hash = content_hash
        return prior.eval()
