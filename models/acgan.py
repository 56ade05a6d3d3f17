"""ACGAN (Odena et al., ICML 2017): a DCGAN whose generator is given a class that the discriminator must name."""

from functools import partial

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim import Adam

from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets.convolutional import as_map, discriminator, generator
from models.types import Share


class ACGAN(Method):
    reads = ("images", "labels")
    conditional = True

    def __init__(
        self,
        data: DataSpec,
        latent: PositiveInt = 100,  # dimensions of the noise
        width: PositiveInt = 64,  # channels next to the image; each stage away from it has twice as many
        class_weight: NonNegativeFloat = 1.0,  # of L_C against L_S, eq. 2 and 3
        lr: PositiveFloat = 2e-4,
        beta1: Share = 0.5,  # of Adam
        ema: Share = 0.0,  # decay of the moving average of the generator that is exported; 0: none
    ) -> None:
        super().__init__()
        self.generator = generator(latent + data.classes, data.channels, data.size, width)
        # Two heads on one trunk: the first logit says real, the others the class.
        self.discriminator = discriminator(data.channels, data.size, width, outputs=1 + data.classes)
        self.latent, self.classes, self.class_weight = latent, data.classes, class_weight
        self.averaged = {"generator": ema} if ema else {}
        self.adam = partial(Adam, lr=lr, betas=(beta1, 0.999))

    def updates(self) -> list[Update]:
        return [
            Update("discriminator", ("discriminator",), self.discriminate, self.adam),
            Update("generator", ("generator",), self.generate, self.adam),
        ]

    def discriminate(self, batch: Batch, progress: float) -> Losses:
        """Tell real from generated, and the class of both; `real_class` and `fake_class` are only logged."""
        real, real_class = self.judge(batch["images"], batch["labels"], 1)
        fake, fake_class = self.judge(*self.draw(batch["images"]), 0)
        return {
            "real": real,
            "fake": fake,
            "weighted_real_class": self.class_weight * real_class,
            "weighted_fake_class": self.class_weight * fake_class,
            "real_class": real_class.detach(),
            "fake_class": fake_class.detach(),
        }

    def generate(self, batch: Batch, progress: float) -> Losses:
        """Be taken for real and for the class that was asked for; `class` is only logged."""
        real, named = self.judge(*self.draw(batch["images"]), 1)
        return {"adversarial": real, "weighted_class": self.class_weight * named, "class": named.detach()}

    def judge(self, images: Tensor, labels: Tensor, real: float) -> tuple[Tensor, Tensor]:
        """Losses of the two heads: binary cross-entropy with `real`, cross-entropy with labels [n]."""
        logits = self.discriminator(images)
        source = F.binary_cross_entropy_with_logits(logits[:, 0], torch.full_like(logits[:, 0], real))
        return source, F.cross_entropy(logits[:, 1:], labels)

    def draw(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """As many images as in `like` of classes drawn at random, and these classes."""
        labels = torch.randint(self.classes, (len(like),), device=like.device)
        return self.image(torch.randn(len(like), self.latent, device=like.device, dtype=like.dtype), labels), labels

    def image(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Images of noise [n, latent] and classes [n]."""
        latent_and_class = torch.cat([noise, F.one_hot(labels, self.classes).to(noise.dtype)], dim=1)
        return self.generator(as_map(latent_and_class))

    def sample(self, n: int, labels: Tensor | None = None) -> Tensor:
        """Of classes [n], or of classes drawn at random. The same noise for any classes, so that pairs can be drawn."""
        like = next(self.generator.parameters())
        noise = torch.randn(n, self.latent, device=like.device, dtype=like.dtype)
        return self.image(noise, torch.randint(self.classes, (n,), device=like.device) if labels is None else labels)
