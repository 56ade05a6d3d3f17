"""The convolutional generator and discriminator of DCGAN (Radford et al., ICLR 2016), and what others make of them."""

from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

convolution = partial(nn.Conv2d, kernel_size=4, stride=2, padding=1, bias=False)
transposed = partial(nn.ConvTranspose2d, kernel_size=4, stride=2, padding=1, bias=False)


Network = TypeVar("Network", bound=nn.Sequential)


class Generator(nn.Sequential):
    """Layers from noise [n, latent, 1, 1] to images [n, channels, size, size] in [-1, 1]."""

    def __init__(self, latent: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.latent = latent

    def draw(self, n: int) -> Tensor:
        """Images [n, channels, size, size] from fresh normal noise."""
        weight = next(self.parameters())
        return self(as_map(torch.randn(n, self.latent, device=weight.device, dtype=weight.dtype)))


def stages(size: int) -> tuple[int, int]:
    """(height and width of the smallest map, number of doublings up to `size`): 64 -> (4, 4), 28 -> (7, 2).

    ValueError unless `size` is 4 to 7 times a power of two.
    """
    base, doublings = size, 0
    while base >= 8 and base % 2 == 0:
        base, doublings = base // 2, doublings + 1
    if not 4 <= base < 8 or not doublings:
        raise ValueError(f"data.size: {size} must be 4, 5, 6 or 7 times 2, 4, 8, …: 28, 32, 48, 64, 128; set data.size")
    return base, doublings


def generator(latent: int, channels: int, size: int, width: int) -> Generator:
    """By transposed convolutions; `width` channels before the last one, twice as many before the one before that, …"""
    base, doublings = stages(size)
    widths = [width * 2**i for i in reversed(range(doublings))]
    layers: list[nn.Module] = [nn.ConvTranspose2d(latent, widths[0], base, bias=False), *normalised(widths[0])]
    for wide, narrow in pairwise(widths):
        layers += [transposed(wide, narrow), *normalised(narrow)]
    return draw_weights(Generator(latent, *layers, transposed(width, channels), nn.Tanh()))


def discriminator(channels: int, size: int, width: int, outputs: int = 1, norm: bool = True) -> nn.Sequential:
    """Images [n, channels, size, size] to logits [n, outputs]; `norm`: batch norm on all but the first and the last."""
    base, doublings = stages(size)
    widths = [width * 2**i for i in range(doublings)]
    layers: list[nn.Module] = [convolution(channels, width), nn.LeakyReLU(0.2)]
    for narrow, wide in pairwise(widths):
        layers += [convolution(narrow, wide), *([nn.BatchNorm2d(wide)] if norm else []), nn.LeakyReLU(0.2)]
    return draw_weights(nn.Sequential(*layers, nn.Conv2d(widths[-1], outputs, base, bias=False), nn.Flatten()))


def normalised(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU()]


def draw_weights(network: Network) -> Network:
    """Draw all weights of convolutions from a normal distribution of standard deviation 0.02, sec. 4 of the paper."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
    return network


def as_map(vectors: Tensor) -> Tensor:
    """Vectors [n, d] as maps [n, d, 1, 1]."""
    return vectors[:, :, None, None]
