"""Classifier (LeNet: LeCun et al., Proc. IEEE 1998, with batch norm), which evaluation also uses to judge samples."""

from functools import partial

import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.optim import Adam

from models import optim
from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets.digits import lenet

MIN_SIZE = 28  # pixels; smaller images are enlarged


class Classifier(Method):
    reads = ("images", "labels")
    least_batch = "pair"

    def __init__(
        self,
        data: DataSpec,
        lr: PositiveFloat = 1e-3,  # learning rate of Adam at the start; decays to 0 along a cosine
    ) -> None:
        super().__init__()
        self.network = build(data.channels, data.size, data.classes)
        self.adam = partial(Adam, lr=lr)

    def updates(self) -> list[Update]:
        return [Update("supervised", ("network",), self.loss, self.adam, optim.schedule("cosine"))]

    def loss(self, batch: Batch, progress: float) -> Losses:
        return {"label": F.cross_entropy(self.predict(batch["images"]), batch["labels"])}

    def predict(self, images: Tensor) -> Tensor:
        return self.network(enlarge(images))

    def features(self, images: Tensor) -> Tensor:
        """Return the inputs of the last layer, [n, 100]."""
        return self.network[:-1](enlarge(images))


def build(channels: int, size: int, classes: int) -> nn.Sequential:
    """Return the network from images in [-1, 1], enlarged, to logits [n, classes]."""
    parts = lenet(channels, max(size, MIN_SIZE), classes)
    assert isinstance(parts.classifier, nn.Sequential)
    return nn.Sequential(parts.extractor, *parts.classifier)


def enlarge(images: Tensor) -> Tensor:
    """Return images [n, c, h, h], enlarged to MIN_SIZE pixels if they are smaller."""
    if images.shape[-1] >= MIN_SIZE:
        return images
    return F.interpolate(images, size=(MIN_SIZE, MIN_SIZE), mode="bilinear", align_corners=False)
