"""A small U-Net with self-attention after each stage, eps(x_t, t, class): one embedding holds class and time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checks import check_unet

EMBEDDING = 256  # dimensions of the embedding of time and class


class AttentionUNet(nn.Module):
    """Halve the image twice and double it again, with 64, 128 and 256 channels as published; `width` is the first.

    Maps x_t [n, channels, size, size], times int64 [n] in 0 … timesteps - 1 and labels int64 [n] (`classes` itself: no
    class) to the shape of x_t. With `classes` 0 the labels are ignored.
    """

    def __init__(self, channels: int, size: int, classes: int, timesteps: int, width: int = 64) -> None:
        super().__init__()
        check_unet(size, {"net": "attention_unet", "width": width})
        self.classes = classes
        if classes:
            self.context = nn.Embedding(classes, EMBEDDING)
        wide = 2 * width
        self.start = Block(channels, width)
        self.down1, self.attention1 = Stage(width, wide), Attention(wide)
        self.down2, self.attention2 = Stage(wide, wide), Attention(wide)
        self.middle = nn.Sequential(Block(wide, 2 * wide), Block(2 * wide, wide))
        self.up1, self.attention3 = Stage(2 * wide, width, wide), Attention(width)
        self.up2, self.attention4 = Stage(wide, width, width), Attention(width)
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
        hidden = self.attention3(self.up1(torch.cat([down1, upsample(hidden)], 1), condition))
        hidden = self.attention4(self.up2(torch.cat([start, upsample(hidden)], 1), condition))
        return self.out(hidden)


class Block(nn.Module):
    """Two 3×3 convolutions without bias, each with a norm over the whole image; residual if the width is kept.

    `middle` channels lie between the convolutions, by default as many as they return.
    """

    def __init__(self, in_channels: int, out_channels: int, middle: int | None = None) -> None:
        super().__init__()
        middle = middle or out_channels
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, middle, 3, padding=1, bias=False), nn.GroupNorm(1, middle), nn.GELU(),
            nn.Conv2d(middle, out_channels, 3, padding=1, bias=False), nn.GroupNorm(1, out_channels),
        )  # fmt: skip
        self.same_width = in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        change = self.layers(x)
        return F.gelu(x + change) if self.same_width else change


class Stage(nn.Module):
    """Two blocks, the second of which changes the width; then the condition [n, 256] shifts each channel."""

    def __init__(self, in_channels: int, out_channels: int, middle: int | None = None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(in_channels, in_channels), Block(in_channels, out_channels, middle))
        self.move = nn.Sequential(nn.SiLU(), nn.Linear(EMBEDDING, out_channels))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.blocks(x) + self.move(condition)[:, :, None, None]


class Attention(nn.Module):
    """Self-attention of all pixels, then a feed-forward layer of equal width, both residual."""

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
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.merge(attended)
        tokens = tokens + self.forward_layers(tokens)
        return tokens.transpose(1, 2).reshape(x.shape)


def sinusoids(t: Tensor) -> Tensor:
    """Embed times [n] as sines and cosines of 128 frequencies from 1 to 1/10,000: [n, 256] (Vaswani et al., 2017)."""
    powers = torch.arange(0, EMBEDDING, 2, device=t.device) / EMBEDDING
    angles = t[:, None] * torch.exp(-math.log(10_000) * powers)
    return torch.cat([angles.sin(), angles.cos()], 1)


def upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
