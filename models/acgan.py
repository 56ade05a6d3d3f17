"""ACGAN (Odena et al., ICML 2017): a class-conditional GAN whose discriminator also classifies."""

from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim import Adam

from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets.augment import augmentation
from models.nets.convolutional import discriminator, generator, to_maps
from models.types import Augment, Share


class ACGAN(Method):
    reads = ("images", "labels")
    check = "doublings"
    conditional = True
    added_later: ClassVar[dict[str, object]] = {"augment": "none"}

    def __init__(
        self,
        data: DataSpec,
        latent: PositiveInt = 100,  # dimensions of the latent noise
        width: PositiveInt = 64,  # channels of the layer next to the image; doubled at each halving of its size
        class_weight: NonNegativeFloat = 1.0,  # weight of the class loss L_C, relative to L_S (eq. 2 and 3)
        lr: PositiveFloat = 2e-4,  # learning rate of Adam
        beta1: Share = 0.5,  # β1 of Adam
        ema: Share = 0.0,  # decay of the moving average of the generator that is exported; 0: no average
        augment: Augment = "none",  # differentiable augmentation of real and generated images (nets/augment.py)
    ) -> None:
        super().__init__()
        self.generator = generator(latent + data.classes, data.channels, data.size, width)
        # Two heads on one trunk: the first logit is for real or generated, the others are for the class.
        self.discriminator = discriminator(data.channels, data.size, width, outputs=1 + data.classes)
        self.latent, self.classes, self.class_weight = latent, data.classes, class_weight
        self.averaged = {"generator": ema} if ema else {}
        self.augment, self.adam = augmentation(augment), partial(Adam, lr=lr, betas=(beta1, 0.999))

    def updates(self) -> list[Update]:
        return [
            Update("discriminator", ("discriminator",), self.discriminator_loss, self.adam),
            Update("generator", ("generator",), self.generator_loss, self.adam),
        ]

    def discriminator_loss(self, batch: Batch, progress: float) -> Losses:
        """Classify as real or generated, and by class; `real_class` and `fake_class` are only logged."""
        real, real_class = self.head_losses(batch["images"], batch["labels"], 1)
        fake, fake_class = self.head_losses(*self.generate(len(batch["images"])), 0)
        return {
            "real": real,
            "fake": fake,
            "weighted_real_class": self.class_weight * real_class,
            "weighted_fake_class": self.class_weight * fake_class,
            "real_class": real_class.detach(),
            "fake_class": fake_class.detach(),
        }

    def generator_loss(self, batch: Batch, progress: float) -> Losses:
        """Return the non-saturating loss and the loss of the requested class; `class` is only logged."""
        adversarial, label = self.head_losses(*self.generate(len(batch["images"])), 1)
        return {"adversarial": adversarial, "weighted_class": self.class_weight * label, "class": label.detach()}

    def head_losses(self, images: Tensor, labels: Tensor, real: float) -> tuple[Tensor, Tensor]:
        """Return the losses of the two heads: of the label `real` (1 or 0), and of the classes `labels` [n]."""
        logits = self.discriminator(self.augment(images))
        source = F.binary_cross_entropy_with_logits(logits[:, 0], torch.full_like(logits[:, 0], real))
        return source, F.cross_entropy(logits[:, 1:], labels)

    def generate(self, n: int) -> tuple[Tensor, Tensor]:
        """Return n images of uniformly drawn classes, and these classes."""
        labels = torch.randint(self.classes, (n,), device=next(self.generator.parameters()).device)
        return self.decode(self.draw_noise(n), labels), labels

    def draw_noise(self, n: int) -> Tensor:
        """Return normal noise [n, latent]."""
        weight = next(self.generator.parameters())
        return torch.randn(n, self.latent, device=weight.device, dtype=weight.dtype)

    def decode(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return the images of noise [n, latent] and classes [n]."""
        return self.generator(to_maps(torch.cat([noise, F.one_hot(labels, self.classes).to(noise.dtype)], dim=1)))

    def sample(self, n: int, labels: Tensor | None = None) -> Tensor:
        """Return n images of classes [n], default: drawn after the noise, which is the same for any classes."""
        noise = self.draw_noise(n)
        return self.decode(noise, torch.randint(self.classes, (n,), device=noise.device) if labels is None else labels)
