"""The transformer of the prior: as x-transformers builds and trains it, and one step at a time."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stage2_prior.config import PriorConfig

with warnings.catch_warnings():  # it scripts a function on import, which torch has deprecated
    for category in (DeprecationWarning, FutureWarning):  # which one depends on torch's version
        warnings.simplefilter("ignore", category)
    from x_transformers import Attention, Decoder


def build_layers(config: PriorConfig) -> Decoder:
    """Causal layers: inputs (B, n, width) -> hidden states (B, n, width)."""
    return Decoder(
        dim=config.width,
        depth=config.depth,
        heads=config.heads,
        attn_dim_head=config.width // config.heads,
        attn_flash=True,
        attn_qk_norm=True,
        rotary_pos_emb=True,
        rotary_emb_dim=config.width // config.heads,  # all of a head
        use_rmsnorm=True,
        ff_mult=8 / 3,  # as many weights as a plain feed-forward of 4 (Shazeer 2020)
        ff_glu=True,
        ff_swish=True,
        ff_no_bias=True,
        ff_dropout=config.dropout,
    )


class CachedLayers:
    """The same function of the same weights, for sequences that grow by a position at each call.

    x-transformers caches keys as they are before they are turned to their position, and so copies
    and turns all of them anew at every step: three quarters of its time where a step is short.
    """

    def __init__(self, layers: Decoder, rows: int, steps: int) -> None:
        """Make room for keys and values.

        Args:
            layers: Of ``build_layers``, in evaluation mode; they must not change meanwhile.
            rows: B, how many sequences.
            steps: The most positions that they will have.
        """
        assert layers.rotary_pos_emb is not None
        angles, _ = layers.rotary_pos_emb.forward_from_seq_len(steps)
        weight = next(layers.parameters())
        precision = torch.promote_types(weight.dtype, torch.float32)
        angles = angles[0, :, ::2].to(precision)  # each is there twice
        turns = torch.polar(torch.ones_like(angles), angles)
        self.blocks: list[tuple[nn.Module, nn.Module | CachedAttention]] = []
        for norms, block, _ in layers.layers:  # type: ignore[not-iterable]
            if isinstance(block, Attention):
                block = CachedAttention(block, turns, rows)
            self.blocks.append((norms[0], block))
        self.final_norm = layers.final_norm

    def __call__(self, inputs: Tensor) -> Tensor:
        """Hidden states of the next position, (B, 1, width), from its inputs (B, 1, width)."""
        for norm, block in self.blocks:
            inputs = inputs + block(norm(inputs))
        return self.final_norm(inputs)


class CachedAttention:
    """Attention of the newest position to all so far."""

    def __init__(self, attention: Attention, turns: Tensor, rows: int) -> None:
        """Make room; ``turns`` complex (steps, d / 2), for a head of d numbers."""
        projections = (attention.to_q, attention.to_k, attention.to_v)
        self.weight = torch.cat([projection.weight for projection in projections])
        self.heads, self.scale = attention.heads, attention.qk_norm_scale
        self.to_out = attention.to_out
        self.turns = turns
        shape = (2, rows, self.heads, len(turns), 2 * turns.shape[1])
        self.kept = self.weight.new_empty(shape)  # keys, values
        self.length = 0

    def __call__(self, inputs: Tensor) -> Tensor:
        projected = F.linear(inputs, self.weight).unflatten(-1, (3, self.heads, -1))
        directions = F.normalize(projected[:, 0, :2].to(self.turns.real.dtype), dim=-1)
        turned = torch.view_as_complex(directions.unflatten(-1, (-1, 2))) * self.turns[self.length]
        queries, keys = torch.view_as_real(turned).flatten(-2).to(self.kept.dtype).unbind(1)
        self.kept[0, :, :, self.length] = keys
        self.kept[1, :, :, self.length] = projected[:, 0, 2]
        self.length += 1
        keys, values = self.kept[..., : self.length, :]
        queries = queries.unsqueeze(2)
        found = F.scaled_dot_product_attention(queries, keys, values, scale=self.scale)
        return self.to_out(found.transpose(1, 2).flatten(2))
