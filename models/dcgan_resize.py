"""DCGAN with pixel-shuffle upsampling and spectral norm in the discriminator (Miyato et al., ICLR 2018)."""

from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import SGD, Adam

from models.base import Batch, DataSpec, Losses, Method, Update
from models.checks import factor_size
from models.nets.augment import augmentation
from models.nets.convolutional import Generator, discriminator, init_weights
from models.types import Augment, Share


class DCGANResize(Method):
    reads = ("images",)
    check = "doublings"
    added_later: ClassVar[dict[str, object]] = {"augment": "none"}

    def __init__(
        self,
        data: DataSpec,
        latent: PositiveInt = 100,  # dimensions of the latent noise
        width: PositiveInt = 64,  # channels of the discriminator's first layer; the generator has up to 4 times as many
        dropout: Share = 0.2,  # dropout probability in the generator
        lr: PositiveFloat = 1e-4,  # learning rate of the generator (Adam)
        beta1: Share = 0.5,  # β1 of the generator's Adam
        discriminator_lr: PositiveFloat = 1e-3,  # learning rate of the discriminator (SGD)
        momentum: Share = 0.5,  # momentum of the discriminator's SGD
        ema: Share = 0.0,  # decay of the moving average of the generator that is exported; 0: no average
        augment: Augment = "none",  # differentiable augmentation of real and generated images (nets/augment.py)
    ) -> None:
        super().__init__()
        self.generator = resize_generator(latent, data.channels, data.size, width, dropout)
        self.discriminator = discriminator(data.channels, data.size, width)
        for layer in self.discriminator:
            if isinstance(layer, nn.Conv2d):
                spectral_norm(layer)
        self.augment = augmentation(augment)
        self.averaged = {"generator": ema} if ema else {}
        self.adam = partial(Adam, lr=lr, betas=(beta1, 0.999))
        self.sgd = partial(SGD, lr=discriminator_lr, momentum=momentum)

    def updates(self) -> list[Update]:
        return [
            Update("discriminator", ("discriminator",), self.discriminator_loss, self.sgd),
            Update("generator", ("generator",), self.generator_loss, self.adam),
        ]

    def discriminator_loss(self, batch: Batch, progress: float) -> Losses:
        """Classify real and generated images with soft, noisy labels (Salimans et al., 2016, sec. 3.4)."""
        real = self.discriminator(self.augment(batch["images"]))
        return {
            "real": noisy_cross_entropy(real, 0.7, 1.03),
            "fake": noisy_cross_entropy(self.discriminator(self.augment(self.generator.sample(len(real)))), 0.0, 0.33),
        }

    def generator_loss(self, batch: Batch, progress: float) -> Losses:
        fake = self.augment(self.generator.sample(len(batch["images"])))
        return {"adversarial": noisy_cross_entropy(self.discriminator(fake), 1.0, 1.0)}

    def sample(self, n: int, labels: Tensor | None = None) -> Tensor:
        return self.generator.sample(n)


def noisy_cross_entropy(logits: Tensor, low: float, high: float) -> Tensor:
    """Return the binary cross-entropy of logits [n, 1] with one label each, uniform in [low, high]."""
    return F.binary_cross_entropy_with_logits(logits, torch.empty_like(logits).uniform_(low, high))


def resize_generator(latent: int, channels: int, size: int, width: int, dropout: float) -> Generator:
    """Return a generator that doubles the size of its maps by pixel shuffles, 4 * width channels at the widest."""
    base, doublings = factor_size(size)
    layers: list[nn.Module] = [nn.Upsample(scale_factor=base)]
    in_channels = latent
    for stage in range(doublings):
        wide = 4 * width if stage < (doublings + 1) // 2 else 2 * width
        layers += [nn.Conv2d(in_channels, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU(), nn.Dropout(dropout)]
        layers.append(nn.PixelShuffle(2))
        in_channels = wide // 4
    return init_weights(Generator(latent, *layers, nn.Conv2d(in_channels, channels, 3, padding=1), nn.Tanh()))
