"""Generate-To-Adapt (Sankaranarayanan et al., CVPR 2018): features from which a GAN can draw the source domain."""

from functools import partial

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim import Adam

from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets.translation import Discriminator, Embedding, Generator, classifier
from models.types import Share


class GTA(Method):
    """F embeds, C classifies, G draws a source image from an embedding, D tells real from drawn and the class.

    One iteration is the paper's algorithm 1: D, G, C, F. A drawn image of a target embedding bears the class "target".
    """

    reads = ("source_images", "source_labels", "target_images")

    def __init__(
        self,
        data: DataSpec,
        width: PositiveInt = 64,  # channels of the first convolutions; all others are multiples of it
        noise: PositiveInt = 512,  # dimensions
        adversarial: NonNegativeFloat = 0.1,  # alpha: weight of D's terms in F's loss
        target: NonNegativeFloat = 0.3,  # beta: weight of the target's term among these
        lr: PositiveFloat = 5e-4,
        beta1: Share = 0.8,  # of Adam
    ) -> None:
        super().__init__()
        self.embedding = Embedding(data.channels, width)
        self.classifier = classifier(data.classes, width)
        self.generator = Generator(data.channels, data.classes, noise, width)
        self.discriminator = Discriminator(data.channels, data.classes, width)
        self.classes, self.noise = data.classes, noise
        self.adversarial, self.target = adversarial, target
        self.adam = partial(Adam, lr=lr, betas=(beta1, 0.999))

    def updates(self) -> list[Update]:
        return [
            Update("discriminator", ("discriminator",), self.discriminate, self.adam),
            Update("generator", ("generator",), self.generate, self.adam),
            Update("classifier", ("classifier",), self.classify, self.adam),
            Update("embedding", ("embedding",), self.embed, self.adam),
        ]

    def discriminate(self, batch: Batch, progress: float) -> Losses:
        """D: real source images are real and of their class, what G draws of either domain is not real."""
        label, real = self.discriminator(batch["source_images"])
        return {
            "label": F.cross_entropy(label, batch["source_labels"]),
            "real": judge(real, 1),
            "source_fake": judge(self.discriminator(self.draw_source(batch))[1], 0),
            "target_fake": judge(self.discriminator(self.draw_target(batch))[1], 0),
        }

    def generate(self, batch: Batch, progress: float) -> Losses:
        """G: what it draws of the source passes for real, and for its class."""
        label, real = self.discriminator(self.draw_source(batch))
        return {"label": F.cross_entropy(label, batch["source_labels"]), "real": judge(real, 1)}

    def classify(self, batch: Batch, progress: float) -> Losses:
        """C: the class of the source."""
        return {"label": F.cross_entropy(self.predict(batch["source_images"]), batch["source_labels"])}

    def embed(self, batch: Batch, progress: float) -> Losses:
        """F: C knows the class, D the class of what is drawn of the source, and what is drawn of the target passes."""
        label, _ = self.discriminator(self.draw_source(batch))
        _, real = self.discriminator(self.draw_target(batch))
        return {
            **self.classify(batch, progress),
            "source": self.adversarial * F.cross_entropy(label, batch["source_labels"]),
            "target": self.adversarial * self.target * judge(real, 1),
        }

    def draw_source(self, batch: Batch) -> Tensor:
        return self.draw(batch["source_images"], batch["source_labels"])

    def draw_target(self, batch: Batch) -> Tensor:
        images = batch["target_images"]
        return self.draw(images, torch.full((len(images),), self.classes, device=images.device))

    def draw(self, images: Tensor, number: Tensor) -> Tensor:
        """What G draws from the embeddings of images, of the class numbers [n], with fresh noise."""
        embedding = self.embedding(images)
        noise = torch.randn(len(images), self.noise, device=images.device, dtype=images.dtype)
        return self.generator(embedding, number, noise)

    def features(self, images: Tensor) -> Tensor:
        return self.embedding(images)

    def predict(self, images: Tensor) -> Tensor:
        return self.classifier(self.embedding(images))


def judge(logits: Tensor, real: int) -> Tensor:
    """Binary cross-entropy of D's verdicts [n] against all real (1) or all drawn (0)."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))
