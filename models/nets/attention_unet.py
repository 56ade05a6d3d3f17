"""A small U-Net with self-attention after each stage, and class and time in one embedding: eps(x_t, t, class)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBEDDING = 256  # dimensions of time and class


class AttentionUNet(nn.Module):
    """Channels 64 – 128 – 256 as published; `width` is the first of these.

    Maps x_t [n, channels, size, size], times int64 [n] in 0 … timesteps - 1 and classes int64 [n] (`classes` itself:
    none) to the shape of x_t. Without classes (0) the third argument is not looked at.
    """

    def __init__(self, channels: int, size: int, classes: int, timesteps: int, width: int = 64) -> None:
        super().__init__()
        if size % 4 or width % 4:
            raise ValueError(
                f"attention_unet halves images twice and has four heads: data.size {size} and model.width {width} "
                "must divide by 4"
            )
        self.classes = classes
        if classes:
            self.context = nn.Embedding(classes, EMBEDDING)
        wide = 2 * width
        self.start = Block(channels, width)
        self.down1, self.attention1 = Stage(width, wide), Attention(wide)
        self.down2, self.attention2 = Stage(wide, wide), Attention(wide)
        self.middle = nn.Sequential(Block(wide, 2 * wide), Block(2 * wide, wide))
        self.up1, self.attention3 = Stage(2 * wide, width), Attention(width)
        self.up2, self.attention4 = Stage(wide, width), Attention(width)
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        condition = sinusoids(t).to(x.dtype)
        if self.classes:
            known = (labels < self.classes)[:, None]
            condition = condition + known * self.context(labels.clamp(max=self.classes - 1))
        start = self.start(x)
        down1 = self.attention1(self.down1(F.max_pool2d(start, 2), condition))
        down2 = self.attention2(self.down2(F.max_pool2d(down1, 2), condition))
        hidden = self.middle(down2)
        hidden = self.attention3(self.up1(torch.cat([down1, doubled(hidden)], 1), condition))
        hidden = self.attention4(self.up2(torch.cat([start, doubled(hidden)], 1), condition))
        return self.out(hidden)


class Block(nn.Module):
    """Two 3×3 convolutions without bias, each with a norm over all of an image; added to the input if as wide."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.GroupNorm(1, out_channels), nn.GELU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), nn.GroupNorm(1, out_channels),
        )  # fmt: skip
        self.same = in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.layers(x)
        return F.gelu(x + change) if self.same else change


class Stage(nn.Module):
    """Two blocks, the second of which changes the width; then the condition [n, 256] shifts each channel."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(in_channels, in_channels), Block(in_channels, out_channels))
        self.move = nn.Sequential(nn.SiLU(), nn.Linear(EMBEDDING, out_channels))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.blocks(x) + self.move(condition)[:, :, None, None]


class Attention(nn.Module):
    """Each pixel looks at every other with four heads, and goes through a feed-forward layer of equal width."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.project, self.merge = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.forward_layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # [n, h w, channels]
        query, key, value = self.project(self.norm(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        looked = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.merge(looked)
        tokens = tokens + self.forward_layers(tokens)
        return tokens.transpose(1, 2).reshape(x.shape)


def sinusoids(t: Tensor) -> Tensor:
    """Times [n] as sines and cosines of 128 frequencies from 1 down to 1/10,000: [n, 256] (Vaswani et al., 2017)."""
    powers = torch.arange(0, EMBEDDING, 2, device=t.device) / EMBEDDING
    angles = t[:, None] * torch.exp(-math.log(10_000) * powers)
    return torch.cat([angles.sin(), angles.cos()], 1)


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
