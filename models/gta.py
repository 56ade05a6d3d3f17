"""Generate-To-Adapt (Sankaranarayanan et al., CVPR 2018): features from which a GAN generates source images."""

from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim import Adam

from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets.translation import Discriminator, Embedding, Generator, classifier
from models.types import Share


class GTA(Method):
    """F embeds, C classifies, G generates a source image from an embedding, D is an auxiliary-classifier discriminator.

    One step is the paper's algorithm 1: D, G, C, F. G receives the class of a source image, and for a target image the
    additional class "target".
    """

    reads = ("source_images", "source_labels", "target_images")
    revisions: ClassVar[dict[str, int]] = {"": 1}  # the convolutions of D have biases

    def __init__(
        self,
        data: DataSpec,
        width: PositiveInt = 64,  # channels of the first convolutions; others are multiples of it
        noise: PositiveInt = 512,  # dimensions of the generator's noise
        adversarial: NonNegativeFloat = 0.1,  # α: weight of the discriminator's terms in the loss of the embedding
        target: NonNegativeFloat = 0.3,  # β: weight of the target's term, relative to α
        lr: PositiveFloat = 5e-4,  # learning rate of Adam
        beta1: Share = 0.8,  # β1 of Adam
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
            Update("discriminator", ("discriminator",), self.discriminator_loss, self.adam),
            Update("generator", ("generator",), self.generator_loss, self.adam),
            Update("classifier", ("classifier",), self.classifier_loss, self.adam),
            Update("embedding", ("embedding",), self.embedding_loss, self.adam),
        ]

    def discriminator_loss(self, batch: Batch, progress: float) -> Losses:
        """D: classify source images as real and by class, and generated images of both domains as not real."""
        label, real = self.discriminator(batch["source_images"])
        return {
            "label": F.cross_entropy(label, batch["source_labels"]),
            "real": cross_entropy(real, 1),
            "source_fake": cross_entropy(self.discriminator(self.generate_from_source(batch))[1], 0),
            "target_fake": cross_entropy(self.discriminator(self.generate_from_target(batch))[1], 0),
        }

    def generator_loss(self, batch: Batch, progress: float) -> Losses:
        """G: generate images from source embeddings that D classifies as real and correctly."""
        label, real = self.discriminator(self.generate_from_source(batch))
        return {"label": F.cross_entropy(label, batch["source_labels"]), "real": cross_entropy(real, 1)}

    def classifier_loss(self, batch: Batch, progress: float) -> Losses:
        """C: classify the source."""
        return {"label": F.cross_entropy(self.predict(batch["source_images"]), batch["source_labels"])}

    def embedding_loss(self, batch: Batch, progress: float) -> Losses:
        """F: let C and D classify the source correctly, and D take images generated from the target for real."""
        label, _ = self.discriminator(self.generate_from_source(batch))
        _, real = self.discriminator(self.generate_from_target(batch))
        return {
            **self.classifier_loss(batch, progress),
            "source": self.adversarial * F.cross_entropy(label, batch["source_labels"]),
            "target": self.adversarial * self.target * cross_entropy(real, 1),
        }

    def generate_from_source(self, batch: Batch) -> Tensor:
        return self.generate(batch["source_images"], batch["source_labels"])

    def generate_from_target(self, batch: Batch) -> Tensor:
        images = batch["target_images"]
        return self.generate(images, torch.full((len(images),), self.classes, device=images.device))

    def generate(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return what G generates from the embeddings of images, labels [n] (`classes` itself: target) and noise."""
        embedding = self.embedding(images)
        noise = torch.randn(len(images), self.noise, device=images.device, dtype=images.dtype)
        return self.generator(embedding, labels, noise)

    def features(self, images: Tensor) -> Tensor:
        return self.embedding(images)

    def predict(self, images: Tensor) -> Tensor:
        return self.classifier(self.embedding(images))


def cross_entropy(logits: Tensor, real: int) -> Tensor:
    """Return the binary cross-entropy of D's logits [n] with one label for all: real (1) or generated (0)."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))
