"""DCGAN (Radford et al., ICLR 2016): a GAN of strided convolutions with the non-saturating loss."""

from functools import partial

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim import Adam

from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets.convolutional import discriminator, generator
from models.types import Share


class DCGAN(Method):
    reads = ("images",)
    check = "doublings"

    def __init__(
        self,
        data: DataSpec,
        latent: PositiveInt = 100,  # dimensions of the latent noise
        width: PositiveInt = 64,  # channels of the layer next to the image; doubled at each halving of its size
        lr: PositiveFloat = 2e-4,  # learning rate of Adam
        beta1: Share = 0.5,  # β1 of Adam
        smoothing: Share = 0.0,  # real images are labelled 1 - smoothing (Salimans et al., 2016, sec. 3.4)
        ema: Share = 0.0,  # decay of the moving average of the generator that is exported; 0: no average
    ) -> None:
        super().__init__()
        self.generator = generator(latent, data.channels, data.size, width)
        self.discriminator = discriminator(data.channels, data.size, width)
        self.smoothing = smoothing
        self.averaged = {"generator": ema} if ema else {}
        self.adam = partial(Adam, lr=lr, betas=(beta1, 0.999))

    def updates(self) -> list[Update]:
        return [
            Update("discriminator", ("discriminator",), self.discriminator_loss, self.adam),
            Update("generator", ("generator",), self.generator_loss, self.adam),
        ]

    def discriminator_loss(self, batch: Batch, progress: float) -> Losses:
        """Classify real images as 1 and generated ones as 0, in separate batches for batch norm."""
        real = batch["images"]
        return {
            "real": cross_entropy(self.discriminator(real), 1 - self.smoothing),
            "fake": cross_entropy(self.discriminator(self.generator.sample(len(real))), 0),
        }

    def generator_loss(self, batch: Batch, progress: float) -> Losses:
        """Return the non-saturating generator loss (Goodfellow et al., 2014, sec. 3)."""
        return {"adversarial": cross_entropy(self.discriminator(self.generator.sample(len(batch["images"]))), 1)}

    def sample(self, n: int, labels: Tensor | None = None) -> Tensor:
        return self.generator.sample(n)


def cross_entropy(logits: Tensor, label: float) -> Tensor:
    """Return the binary cross-entropy of logits [n, 1] with one label for all."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
