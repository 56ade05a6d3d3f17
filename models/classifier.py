"""A small classifier (LeNet: LeCun et al., Proc. IEEE 1998, with batch norm) that evaluation judges samples by."""

from functools import partial

import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.optim import Adam

from models import optim
from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets.digits import lenet

LEAST = 28  # pixels; smaller images are enlarged to it


class Classifier(Method):
    reads = ("images", "labels")

    def __init__(
        self,
        data: DataSpec,
        lr: PositiveFloat = 1e-3,  # of Adam, at the start; it falls to zero along a cosine
    ) -> None:
        super().__init__()
        self.network = build(data.channels, data.size, data.classes)
        self.adam = partial(Adam, lr=lr)

    def updates(self) -> list[Update]:
        return [Update("supervised", ("network",), self.loss, self.adam, optim.schedule("cosine"))]

    def loss(self, batch: Batch, progress: float) -> Losses:
        return {"label": F.cross_entropy(self.predict(batch["images"]), batch["labels"])}

    def predict(self, images: Tensor) -> Tensor:
        return self.network(enlarged(images))

    def features(self, images: Tensor) -> Tensor:
        """What the last layer is given, [n, 100]."""
        return self.network[:-1](enlarged(images))


def build(channels: int, size: int, classes: int) -> nn.Sequential:
    """The network: images [n, channels, size, size] in [-1, 1], enlarged, to logits [n, classes]."""
    parts = lenet(channels, max(size, LEAST), classes)
    assert isinstance(parts.classifier, nn.Sequential)
    return nn.Sequential(parts.extractor, *parts.classifier)


def enlarged(images: Tensor) -> Tensor:
    """Images [n, c, h, h] of at least LEAST pixels."""
    if images.shape[-1] >= LEAST:
        return images
    return F.interpolate(images, size=(LEAST, LEAST), mode="bilinear", align_corners=False)
