"""Classifier, of which evaluation trains one to judge samples: LeNet (LeCun et al., Proc. IEEE 1998) or deeper."""

from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.optim import Adam

from models import optim
from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets.digits import convolution, count_features, lenet

MIN_SIZE = 28  # pixels; smaller images are enlarged


class Classifier(Method):
    reads = ("images", "labels")
    least_batch = "pair"
    added_later: ClassVar[dict[str, object]] = {"network": "lenet"}

    def __init__(
        self,
        data: DataSpec,
        lr: PositiveFloat = 1e-3,  # learning rate of Adam at the start; decays to 0 along a cosine
        network: Literal["lenet", "judge"] = "lenet",  # lenet with batch norm, or judge: the one that evaluation trains
    ) -> None:
        super().__init__()
        self.network = BUILDERS[network](data.channels, data.size, data.classes)
        self.adam = partial(Adam, lr=lr)

    def updates(self) -> list[Update]:
        return [Update("supervised", ("network",), self.loss, self.adam, optim.schedule("cosine"))]

    def loss(self, batch: Batch, progress: float) -> Losses:
        return {"label": F.cross_entropy(self.predict(batch["images"]), batch["labels"])}

    def predict(self, images: Tensor) -> Tensor:
        return self.network(enlarge(images))

    def features(self, images: Tensor) -> Tensor:
        """Return the inputs of the last layer, [n, 100] of lenet, [n, 128] of judge."""
        return self.network[:-1](enlarge(images))


def build_lenet(channels: int, size: int, classes: int) -> nn.Sequential:
    """Return LeNet with batch norm, from images in [-1, 1], enlarged, to logits [n, classes]."""
    parts = lenet(channels, max(size, MIN_SIZE), classes)
    assert isinstance(parts.classifier, nn.Sequential)
    return nn.Sequential(parts.extractor, *parts.classifier)


def build_judge(channels: int, size: int, classes: int) -> nn.Sequential:
    """Return four convolutions and a hidden layer of 128 with dropout, from images as of `build_lenet` to logits."""
    widths, layers = (channels, 32, 64, 128), list[nn.Module]()
    for (before, width), kernel in zip(pairwise(widths), (5, 3, 3), strict=True):
        layer, norm = convolution(before, width, kernel)
        layers += [layer, nn.MaxPool2d(2), norm, nn.ReLU()]
    extractor = nn.Sequential(*layers, *convolution(128, 128, 3), nn.ReLU(), nn.Flatten())
    features = count_features(extractor, channels, max(size, MIN_SIZE))
    hidden = nn.Linear(features, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.3)
    return nn.Sequential(extractor, *hidden, nn.Linear(128, classes))


BUILDERS = {"lenet": build_lenet, "judge": build_judge}


def enlarge(images: Tensor) -> Tensor:
    """Return images [n, c, h, h], enlarged to MIN_SIZE pixels if they are smaller."""
    if images.shape[-1] >= MIN_SIZE:
        return images
    return F.interpolate(images, size=(MIN_SIZE, MIN_SIZE), mode="bilinear", align_corners=False)
