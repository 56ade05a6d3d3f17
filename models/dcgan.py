"""DCGAN (Radford et al., ICLR 2016): a convolutional generator and discriminator play the game of Goodfellow et al."""

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

    def __init__(
        self,
        data: DataSpec,
        latent: PositiveInt = 100,  # dimensions of the noise
        width: PositiveInt = 64,  # channels next to the image; each stage away from it has twice as many
        lr: PositiveFloat = 2e-4,
        beta1: Share = 0.5,  # of Adam
        smoothing: Share = 0.0,  # taken from the label 1 of real images (Salimans et al., 2016, sec. 3.4)
        ema: Share = 0.0,  # decay of the moving average of the generator that is exported; 0: none
    ) -> None:
        super().__init__()
        self.generator = generator(latent, data.channels, data.size, width)
        self.discriminator = discriminator(data.channels, data.size, width)
        self.smoothing = smoothing
        self.averaged = {"generator": ema} if ema else {}
        self.adam = partial(Adam, lr=lr, betas=(beta1, 0.999))

    def updates(self) -> list[Update]:
        return [
            Update("discriminator", ("discriminator",), self.discriminate, self.adam),
            Update("generator", ("generator",), self.generate, self.adam),
        ]

    def discriminate(self, batch: Batch, progress: float) -> Losses:
        """Tell real images (1) from generated ones (0); each kind is a batch of its own for batch norm."""
        real = batch["images"]
        return {
            "real": verdict(self.discriminator(real), 1 - self.smoothing),
            "fake": verdict(self.discriminator(self.generator.draw(len(real))), 0),
        }

    def generate(self, batch: Batch, progress: float) -> Losses:
        """Be taken for real: the loss that does not saturate (Goodfellow et al., 2014, sec. 3)."""
        return {"adversarial": verdict(self.discriminator(self.generator.draw(len(batch["images"]))), 1)}

    def sample(self, n: int, labels: Tensor | None = None) -> Tensor:
        return self.generator.draw(n)


def verdict(logits: Tensor, truth: float) -> Tensor:
    """Binary cross-entropy of logits [n, 1] with one label for all."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))
