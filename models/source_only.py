"""Source only: a classifier trained on the source domain alone, the lower bound of domain adaptation."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from models import optim
from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets import digits
from models.types import ClassifierSchedule, DigitNet, OptimizerName, Share


class SourceOnly(Method):
    reads = ("source_images", "source_labels")
    check = "digit_net"
    least_batch = "digit_net"
    role = "lower_bound"
    added_later: ClassVar[dict[str, object]] = {"instance_norm": False}

    def __init__(
        self,
        data: DataSpec,
        net: DigitNet = "lenet",  # lenet, slim, compact, svhn, usps, deep or gta (models/nets/digits.py)
        instance_norm: bool = False,  # normalise each channel of each image before the net
        optimizer: OptimizerName = "sgd",  # sgd or adam
        lr: PositiveFloat = 0.01,  # learning rate at the start
        schedule: ClassifierSchedule = "inverse",  # inverse ((1 + 10 p)^-0.75), cosine, constant or multistep
        momentum: Share = 0.9,  # momentum of SGD, or β1 of Adam
        weight_decay: NonNegativeFloat = 0.0,  # L2 penalty
    ) -> None:
        super().__init__()
        self.extractor, self.classifier, _, _ = digits.build(net, data.channels, data.size, data.classes, instance_norm)
        self.optimizer = optim.optimizer(optimizer, lr, momentum, weight_decay)
        self.schedule = optim.schedule(schedule)

    def updates(self) -> list[Update]:
        return [Update("supervised", ("extractor", "classifier"), self.loss, self.optimizer, self.schedule)]

    def loss(self, batch: Batch, progress: float) -> Losses:
        images, labels = (batch[key] for key in self.reads)
        return {"label": F.cross_entropy(self.predict(images), labels)}

    def features(self, images: Tensor) -> Tensor:
        return self.extractor(images)

    def predict(self, images: Tensor) -> Tensor:
        return self.classifier(self.extractor(images))
