"""DCGAN (Radford et al., ICLR 2016): a GAN of strided convolutions with the non-saturating loss."""

from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim import Adam

from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets.augment import augmentation
from models.nets.convolutional import discriminator, generator, init_norms, patch_discriminator
from models.types import Augment, Share


class DCGAN(Method):
    reads = ("images",)
    check = "doublings"
    revisions: ClassVar[dict[str, int]] = {"paper": 1}  # weights of batch norm start from N(1, 0.02²), not at 1
    added_later: ClassVar[dict[str, object]] = {"net": "paper", "disc_iters": 1, "augment": "none"}

    def __init__(
        self,
        data: DataSpec,
        net: Literal["paper", "leaky"] = "paper",  # leaky: leaky ReLU in both, last convolution of stride 4
        latent: PositiveInt = 100,  # dimensions of the latent noise
        width: PositiveInt = 64,  # channels of the layer next to the image; doubled at each halving of its size
        disc_iters: PositiveInt = 1,  # discriminator updates per generator update
        lr: PositiveFloat = 2e-4,  # learning rate of Adam
        beta1: Share = 0.5,  # β1 of Adam
        smoothing: Share = 0.0,  # real images are labelled 1 - smoothing (Salimans et al., 2016, sec. 3.4)
        ema: Share = 0.0,  # decay of the moving average of the generator that is exported; 0: no average
        augment: Augment = "none",  # differentiable augmentation of real and generated images (nets/augment.py)
    ) -> None:
        super().__init__()
        leaky = net == "leaky"
        self.generator = generator(latent, data.channels, data.size, width, slope=0.2 if leaky else 0.0)
        build_discriminator = patch_discriminator if leaky else discriminator
        self.discriminator = build_discriminator(data.channels, data.size, width)
        init_norms(self)
        self.smoothing, self.disc_iters, self.augment = smoothing, disc_iters, augmentation(augment)
        self.averaged = {"generator": ema} if ema else {}
        self.adam = partial(Adam, lr=lr, betas=(beta1, 0.999))

    def updates(self) -> list[Update]:
        return [
            Update("discriminator", ("discriminator",), self.discriminator_loss, self.adam),
            Update("generator", ("generator",), self.generator_loss, self.adam, every=self.disc_iters),
        ]

    def discriminator_loss(self, batch: Batch, progress: float) -> Losses:
        """Classify real images as 1 and generated ones as 0, in separate batches for batch norm."""
        real = batch["images"]
        return {
            "real": cross_entropy(self.discriminator(self.augment(real)), 1 - self.smoothing),
            "fake": cross_entropy(self.discriminator(self.augment(self.generator.sample(len(real)))), 0),
        }

    def generator_loss(self, batch: Batch, progress: float) -> Losses:
        """Return the non-saturating generator loss (Goodfellow et al., 2014, sec. 3)."""
        fake = self.augment(self.generator.sample(len(batch["images"])))
        return {"adversarial": cross_entropy(self.discriminator(fake), 1)}

    def sample(self, n: int, labels: Tensor | None = None) -> Tensor:
        return self.generator.sample(n)


def cross_entropy(logits: Tensor, label: float) -> Tensor:
    """Return the binary cross-entropy of logits [n, …] with one label for all."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
