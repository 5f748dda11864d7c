"""Codes -> probabilities: a causal transformer over the coarse-to-fine sequence.

        class   c_1     c_2    ...  c_{N-1}
          |      |       |             |
      [ x-transformers: RoPE, RMSNorm, SwiGLU, QK-norm, causal ]
          |      |       |             |
        p(c_1) p(c_2)  p(c_3)  ...   p(c_N)

A code enters as a free embedding plus what it *means*: the latent f_i that the codes up to it add
up to, projected to the model's width. Entries that look alike are thus alike to the prior too, even
where it has hardly seen them. Positions that read one codebook share its tables (``books.py``); the
order of the codes is ``sequence.py``'s, and here they come and go by place.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pqvae.config import config_from_dict, config_to_dict
from pqvae.errors import UserError
from pqvae.pretrained import load_model, save_model
from stage1_tokenizer.quantizers.codes import Codes, as_codes, check_codes
from stage1_tokenizer.quantizers.contract import Quantizer
from stage2_prior.books import Books, Codebooks
from stage2_prior.config import PriorConfig
from stage2_prior.layers import build_layers
from stage2_prior.sequence import Sequence, coarse_to_fine
from stage2_prior.version1 import upgrade


class Prior(nn.Module):
    """p(c_1 ... c_N), or p(c_1 ... c_N | class), with a learned row for "no class".

    Attributes:
        content_hash: Of the whole model; set by ``save_pretrained`` and ``from_pretrained``.
        provenance: What it was trained on; see ``pqvae.pretrained`` and ``provenance.py``.
    """

    def __init__(
        self,
        config: PriorConfig,
        codebooks: Codebooks,
        class_names: tuple[str, ...],
        class_counts: tuple[int, ...],
        sequence: Sequence | None = None,
    ) -> None:
        """Build an untrained prior.

        Args:
            config: Sizes and dropout.
            codebooks: Which codebook each position reads, and how large they are.
            class_names: () for a prior without classes.
            class_counts: Training images of each class: how often each is to be sampled.
            sequence: The order of the codes; None is coarse to fine.
        """
        super().__init__()
        self.config, self.codebooks = config, codebooks
        self.sequence = sequence = sequence or coarse_to_fine(len(codebooks.sizes))
        self.class_names, self.class_counts = class_names, class_counts
        self.content_hash = ""
        self.provenance: Mapping[str, Any] = {}
        width = config.width
        self.class_embedding = nn.Embedding(len(class_names) + 1, width)
        self.position_embedding = nn.Parameter(torch.empty(len(sequence.steps), width))
        self.feature_projection = nn.Linear(config.code_features, width, bias=False)
        self.head_projection = nn.Linear(width, config.code_features, bias=False)
        self.layers = build_layers(config)
        self.dropout = nn.Dropout(config.dropout)
        self.books = Books(codebooks, sequence, width, config.code_features)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set every weight, before anything is known of the codes.

        | weights | start as |
        |---|---|
        | class_embedding, embedding of a book | normal, deviation 0.02 |
        | feature_projection | uniform in +- 1 / sqrt(F), as torch's linear layers |
        | position_embedding, head of a book, head_projection | 0: no code matters yet |
        | gain of a book | 1 |
        | bias of a book | 0: codes are equally likely, until ``init_from_codes`` |
        | layers | as x-transformers builds them |

        ``set_code_features`` sets the buffers that say what codes mean.
        """
        nn.init.normal_(self.class_embedding.weight, std=0.02)
        reach = self.config.code_features**-0.5
        nn.init.uniform_(self.feature_projection.weight, -reach, reach)
        nn.init.zeros_(self.position_embedding)
        nn.init.zeros_(self.head_projection.weight)
        for book in self.books:
            nn.init.normal_(book.embedding.weight, std=0.02)
            nn.init.zeros_(book.head)
            nn.init.ones_(book.gain)
            nn.init.zeros_(book.bias)

    def init_from_codes(self, codes: Tensor) -> None:
        """Start as the unigram model of training codes (n, N), an add-one histogram a position."""
        self.books.set_bias(codes)

    def set_code_features(self, quantizer: Quantizer) -> None:
        """Take the meaning of the codes over from the quantizer that makes them."""
        self.books.set_meaning(quantizer, self.config.code_features)

    @property
    def device(self) -> torch.device:
        """Where the model is, and where its inputs must be."""
        return self.position_embedding.device

    @property
    def sizes(self) -> tuple[int, ...]:
        """K_i of every position."""
        return self.codebooks.sizes

    @property
    def known_codes(self) -> int:
        """How many codes of an image it was trained on, the first ones."""
        return self.provenance.get("prefix") or len(self.sizes)

    @property
    def no_class(self) -> int:
        """The label that stands for no class."""
        return len(self.class_names)

    def forward(self, codes: Codes, labels: Tensor | None = None) -> Tensor:
        """Logits of every code given the codes of the steps before it, and the class.

        Args:
            codes: Of the first steps, by place: whole numbers (B, n) in [0, K_i), 0 <= n <= N.
            labels: int64 (B,) in [0, classes], the last number being "no class"; None is that too.

        Returns:
            float32 (B, m, K), by place, of these steps and the next one, where there is one: -inf
            where there is no such code. With a code a step, m is min(n + 1, N).
        """
        if labels is None:
            labels = torch.full((len(codes),), self.no_class, device=self.device)
        # The codes of the last step precede nothing.
        steps = min(self.sequence.steps_in(codes.shape[1]), len(self.sequence.steps) - 1)
        inputs = self.embed_labels(labels)
        if steps:
            embedded, _ = self.embed_codes(codes[:, : self.sequence.bounds[steps]])
            inputs = torch.cat([inputs, embedded], dim=1)
        return self.logits(self.layers(self.dropout(inputs)))

    def bits(self, codes: Codes, labels: Tensor | None = None) -> Tensor:
        """The cost of each code under the prior, in bits: codes (B, k) -> float32 (B, k).

        Args:
            codes: Whole numbers of any type, the first k of each image: all N, or those that the
                first steps of the sequence hold.
            labels: As in ``forward``.

        Raises:
            ValueError: These are not such codes, or one is no whole number in [0, K_i).
        """
        codes = as_codes(codes, self.device)
        k, N = codes.shape[-1] if codes.ndim == 2 else 0, len(self.sizes)
        if not 0 < k <= N or max(self.sequence.order[:k]) >= k:
            raise ValueError(f"codes must be (B, {N}) or a prefix, not {tuple(codes.shape)}")
        if not self.training:  # those of training are our own, and a GPU need not be waited for
            check_codes(codes, self.sizes[:k])
        codes = self.sequence.by_place(codes)
        steps = self.sequence.steps_in(k)
        logits = self(codes[:, : self.sequence.bounds[steps - 1]], labels)
        nats = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")
        return self.sequence.by_position(nats / math.log(2))

    def embed_labels(self, labels: Tensor) -> Tensor:
        """The input of the first step: labels (B,) -> (B, 1, width)."""
        return self.class_embedding(labels).unsqueeze(1)

    def embed_codes(
        self, codes: Codes, first: int = 0, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The inputs of the steps after those that the codes fill.

        Args:
            codes: By place, whole numbers (B, n), from the first place of step ``first`` on.
            first: The step.
            before: What the codes before describe of the latent, float (B, F); None before any.

        Returns:
            Inputs, (B, t, width) for t steps; and what all codes up to here describe, (B, F).
        """
        codes = as_codes(codes, self.device)
        embedded, described = self.books.read(codes, self.sequence.bounds[first])
        latents = described.cumsum(dim=1)
        if before is not None:
            latents = latents + before.unsqueeze(1)
        latents = self.sequence.last_of_steps(latents, first)
        positions = self.position_embedding[first : first + latents.shape[1]]
        inputs = self.sequence.sum_steps(embedded, first)
        return inputs + self.feature_projection(latents) + positions, latents[:, -1]

    def logits(self, hidden: Tensor, first: int = 0) -> Tensor:
        """Hidden states (B, t, width) of steps from ``first`` on -> logits (B, n, K) by place."""
        hidden = self.sequence.repeat_steps(hidden, first)
        begin = self.sequence.bounds[first]
        return self.books.logits(hidden, self.head_projection(hidden), begin)

    def save_pretrained(
        self, folder: str | Path, provenance: Mapping[str, Any] | None = None
    ) -> str:
        """Write a model folder; returns its content hash.

        Args:
            folder: Where to.
            provenance: What it was trained on; by default what it says already.
        """
        self.provenance = self.provenance if provenance is None else provenance
        config: dict[str, Any] = {
            "prior": config_to_dict(self.config),
            "sizes": list(self.sizes),
            "books": list(self.codebooks.books),
            "placed": list(self.codebooks.placed),
            "steps": [list(positions) for positions in self.sequence.steps],
            "class_names": list(self.class_names),
            "class_counts": list(self.class_counts),
        }
        self.content_hash = save_model(
            Path(folder), "prior", config, self.state_dict(), self.provenance
        )
        return self.content_hash

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Prior":
        """Load a model or run folder, in evaluation mode, on the CPU.

        Raises:
            UserError: The folder is missing, damaged, or holds another kind of model.
        """
        folder = Path(folder)
        stored = load_model(folder, "prior")
        try:
            if stored.version == 1:
                stored = upgrade(stored)
            config = stored.config
            prior = cls(
                config_from_dict(PriorConfig, config["prior"], str(folder)),
                Codebooks(*(tuple(config[key]) for key in ("sizes", "books", "placed"))),
                tuple(config["class_names"]),
                tuple(config["class_counts"]),
                Sequence(tuple(tuple(positions) for positions in config["steps"])),
            )
            prior.load_state_dict(stored.tensors)
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{folder}: the prior there is of another version") from error
        prior.content_hash, prior.provenance = stored.content_hash, stored.provenance
        return prior.eval()
