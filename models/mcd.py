"""MCD (Saito et al., CVPR 2018): maximise, then minimise, the discrepancy of two classifiers on target images."""

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from models import optim
from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets import digits
from models.nets.layers import frozen_running_stats
from models.types import ClassifierSchedule, DigitNet, OptimizerName, Share


class MCD(Method):
    reads = ("source_images", "source_labels", "target_images")
    check = "digit_net"
    least_batch = "digit_net"

    def __init__(
        self,
        data: DataSpec,
        net: DigitNet = "lenet",  # lenet, slim, compact, svhn, usps, deep or gta (models/nets/digits.py)
        rounds: PositiveInt = 4,  # n: updates of the extractor per step (step C)
        optimizer: OptimizerName = "adam",  # sgd or adam
        lr: PositiveFloat = 2e-4,  # learning rate at the start
        schedule: ClassifierSchedule = "constant",  # inverse ((1 + 10 p)^-0.75), cosine, constant or multistep
        momentum: Share = 0.9,  # momentum of SGD, or β1 of Adam
        weight_decay: NonNegativeFloat = 5e-4,  # L2 penalty
    ) -> None:
        super().__init__()
        self.extractor, self.first, _, _ = digits.build(net, data.channels, data.size, data.classes)
        _, self.second, _, _ = digits.build(net, data.channels, data.size, data.classes)
        self.rounds = rounds
        self.optimizer = optim.optimizer(optimizer, lr, momentum, weight_decay)
        self.schedule = optim.schedule(schedule)

    def updates(self) -> list[Update]:
        settings = (self.optimizer, self.schedule)
        return [
            Update("learn", ("extractor", "first", "second"), self.source_loss, *settings),
            Update("disagree", ("first", "second"), self.classifier_loss, *settings),
            *(Update(f"bring_{k}", ("extractor",), self.discrepancy, *settings) for k in range(self.rounds)),
        ]

    def source_loss(self, batch: Batch, progress: float) -> Losses:
        """Step A: classify the source."""
        # Only the target updates the running statistics: prediction is for the target, and a mixture fits neither.
        with frozen_running_stats(self.extractor, self.first, self.second):
            features = self.extractor(batch["source_images"])
            logits = self.first(features), self.second(features)
        first, second = (F.cross_entropy(g, batch["source_labels"]) for g in logits)
        return {"first": first, "second": second}

    def classifier_loss(self, batch: Batch, progress: float) -> Losses:
        """Step B: classify the source and maximise the discrepancy on the target."""
        return self.source_loss(batch, progress) | {"agreement": -self.discrepancy(batch, progress)["discrepancy"]}

    def discrepancy(self, batch: Batch, progress: float) -> Losses:
        """Step C: minimise the mean absolute difference of the classifiers' probabilities on the target (eq. 9)."""
        features = self.extractor(batch["target_images"])
        return {"discrepancy": (self.first(features).softmax(1) - self.second(features).softmax(1)).abs().mean()}

    def features(self, images: Tensor) -> Tensor:
        return self.extractor(images)

    def predict(self, images: Tensor) -> Tensor:
        features = self.extractor(images)
        return (self.first(features) + self.second(features)) / 2
