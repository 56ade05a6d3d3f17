"""A U-Net for small images, eps(x_t, t, class): class embeddings scale, time embeddings shift the upward maps."""

import torch
from torch import Tensor, nn

from models.checks import check_unet


class ContextUNet(nn.Module):
    """Halve the image twice, pool it to one vector, and expand it again; 128 channels as published.

    Maps x_t [n, channels, size, size], times int64 [n] in 0 … timesteps - 1 and labels int64 [n] (`classes` itself: no
    class) to the shape of x_t. With `classes` 0 the labels are ignored. With `residual` "first" only the first block is
    residual, as in the code that the reports cite (github.com/TeaPearce/Conditional_Diffusion_MNIST).
    """

    def __init__(
        self, channels: int, size: int, classes: int, timesteps: int, width: int = 128, residual: str = "all"
    ) -> None:
        super().__init__()
        check_unet(size, {"net": "context_unet", "width": width})
        self.timesteps, self.classes = timesteps, classes
        every = residual == "all"
        self.start = Block(channels, width)
        self.down1 = nn.Sequential(Block(width, width, every), nn.MaxPool2d(2))
        self.down2 = nn.Sequential(Block(width, 2 * width, every), nn.MaxPool2d(2))
        self.to_vector = nn.Sequential(nn.AvgPool2d(size // 4), nn.GELU())
        self.time1, self.time2 = embedding(1, 2 * width), embedding(1, width)
        if classes:
            self.context1, self.context2 = embedding(classes, 2 * width), embedding(classes, width)
        self.up0 = nn.Sequential(
            nn.ConvTranspose2d(2 * width, 2 * width, size // 4, size // 4), nn.GroupNorm(8, 2 * width), nn.ReLU()
        )
        self.up1, self.up2 = up(4 * width, width, every), up(2 * width, width, every)
        self.out = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        time = ((t + 1) / self.timesteps).to(x.dtype)[:, None]
        start = self.start(x)
        down1 = self.down1(start)
        down2 = self.down2(down1)
        hidden = self.up0(self.to_vector(down2))
        if self.classes:
            # One-hot, and zeros for no class; F.one_hot would read the labels, and the host wait for the device.
            context = (labels[:, None] == torch.arange(self.classes, device=labels.device)).to(x.dtype)
            hidden = self.context1(context) * hidden
        hidden = self.up1(torch.cat([hidden + self.time1(time), down2], 1))
        if self.classes:
            hidden = self.context2(context) * hidden
        hidden = self.up2(torch.cat([hidden + self.time2(time), down1], 1))
        return self.out(torch.cat([hidden, start], 1))


class Block(nn.Module):
    """Two 3×3 convolutions; a residual is the block's input, or that of the second convolution if widths differ."""

    def __init__(self, in_channels: int, out_channels: int, residual: bool = True) -> None:
        super().__init__()
        self.first, self.second = convolution(in_channels, out_channels), convolution(out_channels, out_channels)
        self.residual, self.same_width = residual, in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second: Tensor = self.second(first)
        if not self.residual:
            return second
        return ((x if self.same_width else first) + second) * 0.5**0.5  # keeps the variance of one term


def convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.GELU())


def up(in_channels: int, out_channels: int, residual: bool) -> nn.Sequential:
    """Return layers that double the size of a map."""
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, 2, 2),
        Block(out_channels, out_channels, residual),
        Block(out_channels, out_channels, residual),
    )


def embedding(in_features: int, out_features: int) -> nn.Sequential:
    """Return layers from vectors [n, in_features] to maps [n, out_features, 1, 1]."""
    return nn.Sequential(
        nn.Linear(in_features, out_features),
        nn.GELU(),
        nn.Linear(out_features, out_features),
        nn.Unflatten(1, (out_features, 1, 1)),
    )
