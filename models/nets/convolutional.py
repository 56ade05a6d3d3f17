"""The convolutional generator and discriminator of DCGAN (Radford et al., ICLR 2016), and parts for similar GANs."""

from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from models.checks import factor_size

convolution = partial(nn.Conv2d, kernel_size=4, stride=2, padding=1, bias=False)
transposed = partial(nn.ConvTranspose2d, kernel_size=4, stride=2, padding=1, bias=False)

Network = TypeVar("Network", bound=nn.Sequential)


class Generator(nn.Sequential):
    """Map noise [n, latent, 1, 1] to images [n, channels, size, size] in [-1, 1]."""

    def __init__(self, latent: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.latent = latent

    def sample(self, n: int) -> Tensor:
        """Return images [n, channels, size, size] from fresh normal noise."""
        weight = next(self.parameters())
        return self(to_maps(torch.randn(n, self.latent, device=weight.device, dtype=weight.dtype)))


def generator(latent: int, channels: int, size: int, width: int, slope: float = 0.0) -> Generator:
    """Return a generator of transposed convolutions; `width` channels before the last, doubled before each other.

    `slope` is that of its activations below 0: leaky ReLU, or ReLU at 0.
    """
    base, doublings = factor_size(size)
    widths = [width * 2**i for i in reversed(range(doublings))]
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(latent, widths[0], base, bias=False),
        *norm_and_relu(widths[0], slope),
    ]
    for wide, narrow in pairwise(widths):
        layers += [transposed(wide, narrow), *norm_and_relu(narrow, slope)]
    return init_weights(Generator(latent, *layers, transposed(width, channels), nn.Tanh()))


def discriminator(channels: int, size: int, width: int, outputs: int = 1, norm: bool = True) -> nn.Sequential:
    """Return a network from images to logits [n, outputs]; `norm`: batch norm except on the first and last layer."""
    base, doublings = factor_size(size)
    layers = downsampling(channels, [width * 2**i for i in range(doublings)], norm)
    last = nn.Conv2d(width * 2 ** (doublings - 1), outputs, base, bias=False)
    return init_weights(nn.Sequential(*layers, last, nn.Flatten()))


def patch_discriminator(channels: int, size: int, width: int) -> nn.Sequential:
    """Return a discriminator with a halving less and a last convolution of stride 4: a logit per patch [n, patches]."""
    _, doublings = factor_size(size)
    widths = [width * 2**i for i in range(max(1, doublings - 1))]
    last = nn.Conv2d(widths[-1], 1, 4, stride=4, bias=False)
    return init_weights(nn.Sequential(*downsampling(channels, widths, norm=True), last, nn.Flatten()))


def downsampling(channels: int, widths: list[int], norm: bool) -> list[nn.Module]:
    """Return convolutions to each of `widths`, of which each halves the image; `norm`: batch norm after the first."""
    layers: list[nn.Module] = [convolution(channels, widths[0]), nn.LeakyReLU(0.2)]
    for narrow, wide in pairwise(widths):
        layers += [convolution(narrow, wide), *([nn.BatchNorm2d(wide)] if norm else []), nn.LeakyReLU(0.2)]
    return layers


def norm_and_relu(width: int, slope: float) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.LeakyReLU(slope) if slope else nn.ReLU()]


def init_weights(network: Network) -> Network:
    """Initialise weights of convolutions from N(0, 0.02²), as in sec. 4; return the network."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
    return network


def init_norms(network: nn.Module) -> None:
    """Initialise weights of batch norm from N(1, 0.02²), as in PyTorch's tutorial on DCGAN."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)


def to_maps(vectors: Tensor) -> Tensor:
    """Return vectors [n, d] as maps [n, d, 1, 1]."""
    return vectors[:, :, None, None]
