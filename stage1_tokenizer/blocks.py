"""Building blocks that the encoder and the decoders share."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


def group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(width // 16, width)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, added to the input; the identity at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(width), group_norm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


class AttentionBlock(nn.Module):
    """Every place of the map looks at all others, added to the input; starts as the identity."""

    def __init__(self, width: int, head_width: int = 32) -> None:
        super().__init__()
        self.heads = max(1, width // head_width)
        self.norm = group_norm(width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(self.norm(x)), "b (t n d) h w -> t b n (h w) d", t=3, n=self.heads
        )
        if x.device.type == "cpu":  # whose bfloat16 takes three times as long here
            with torch.autocast("cpu", enabled=False):
                attended = F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q)
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(attended, "b n (h w) d -> b (n d) h w", h=x.shape[2]))


def blocks(width: int, count: int, attention: bool) -> list[nn.Module]:
    """This many residual blocks, each followed by an attention block if asked for."""
    pair = [ResidualBlock, AttentionBlock] if attention else [ResidualBlock]
    return [block(width) for _ in range(count) for block in pair]
