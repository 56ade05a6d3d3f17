"""Source only: a classifier that never sees the target domain; the lower bound of domain adaptation."""

from functools import partial
from typing import Literal

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.optim import SGD

from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets import digits


class SourceOnly(Method):
    reads = ("source_images", "source_labels")

    def __init__(
        self,
        data: DataSpec,
        net: Literal["lenet", "compact"] = "lenet",
        lr: PositiveFloat = 0.01,  # at the start; falls as (1 + 10 p)^-0.75
        momentum: NonNegativeFloat = 0.9,
        weight_decay: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__()
        self.extractor, self.classifier, _, _ = digits.build(net, data.channels, data.size, data.classes)
        self.sgd = partial(SGD, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def updates(self) -> list[Update]:
        networks = ("extractor", "classifier")
        return [Update("supervised", networks, self.loss, self.sgd, schedule=lambda p: (1 + 10 * p) ** -0.75)]

    def loss(self, batch: Batch, progress: float) -> Losses:
        images, labels = (batch[key] for key in self.reads)
        return {"label": F.cross_entropy(self.predict(images), labels)}

    def features(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.extractor(images)
        return vectors

    def predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.extractor(images))
        return logits
