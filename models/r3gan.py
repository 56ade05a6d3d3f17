"""R3GAN (Huang et al., NeurIPS 2024): a GAN with a loss of pairs, real and generated, and two gradient penalties."""

from functools import partial

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim import Adam

from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets.augment import augmentation
from models.nets.convolutional import discriminator, generator
from models.nets.layers import input_gradient
from models.types import Augment, Share


class R3GAN(Method):
    """The paper's loss on the networks of DCGAN; its own networks, residual and without batch norm, are not here."""

    reads = ("images",)
    check = "doublings"
    differentiated_twice = ("discriminator",)  # by the gradient penalties

    def __init__(
        self,
        data: DataSpec,
        gamma: NonNegativeFloat = 1.0,  # γ: weight of both penalties, R1 and R2 (sec. 2.2)
        latent: PositiveInt = 100,  # dimensions of the latent noise
        width: PositiveInt = 64,  # channels of the layer next to the image; doubled at each halving of its size
        lr: PositiveFloat = 2e-4,  # learning rate of Adam
        beta1: Share = 0.0,  # β1 of Adam
        beta2: Share = 0.99,  # β2 of Adam
        augment: Augment = "none",  # differentiable augmentation of real and generated images (nets/augment.py)
        ema: Share = 0.999,  # decay of the moving average of the generator that is exported; 0: no average
    ) -> None:
        super().__init__()
        self.generator = generator(latent, data.channels, data.size, width)
        # Without batch norm, which would make the penalty of one sample depend on the others.
        self.discriminator = discriminator(data.channels, data.size, width, norm=False)
        self.gamma, self.augment = gamma, augmentation(augment)
        self.averaged = {"generator": ema} if ema else {}
        self.adam = partial(Adam, lr=lr, betas=(beta1, beta2))

    def updates(self) -> list[Update]:
        return [
            Update("discriminator", ("discriminator",), self.discriminator_loss, self.adam),
            Update("generator", ("generator",), self.generator_loss, self.adam),
        ]

    def discriminator_loss(self, batch: Batch, progress: float) -> Losses:
        """Return the relativistic loss and the penalties: γ/2 times the mean of ‖∇D‖² at real (R1) and fake (R2)."""
        real, fake = self.pair(batch)
        return {
            "relativistic": F.softplus(self.discriminator(fake) - self.discriminator(real)).mean(),
            "r1": self.gamma / 2 * input_gradient(self.discriminator, real).square().sum(1).mean(),
            "r2": self.gamma / 2 * input_gradient(self.discriminator, fake.to(real.dtype)).square().sum(1).mean(),
        }

    def generator_loss(self, batch: Batch, progress: float) -> Losses:
        real, fake = self.pair(batch)
        return {"relativistic": F.softplus(self.discriminator(real) - self.discriminator(fake)).mean()}

    def pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the real images and as many generated ones, all augmented: a pair for each D(real) - D(fake)."""
        real = batch["images"]
        return self.augment(real), self.augment(self.generator.sample(len(real)))

    def sample(self, n: int, labels: Tensor | None = None) -> Tensor:
        return self.generator.sample(n)
