"""MCD (Saito et al., CVPR 2018): maximise, then minimise, the discrepancy of two classifiers on target images."""

from typing import ClassVar, Literal

import torch
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
    added_later: ClassVar[dict[str, object]] = {"instance_norm": False, "batch_norm": "each", "moments": "each"}

    def __init__(
        self,
        data: DataSpec,
        net: DigitNet = "lenet",  # lenet, slim, compact, svhn, usps, deep or gta (models/nets/digits.py)
        instance_norm: bool = False,  # normalise each channel of each image before the net
        rounds: PositiveInt = 4,  # n: updates of the extractor per step (step C)
        batch_norm: Literal["each", "both"] = "each",  # statistics of each domain, or of both as one batch
        moments: Literal["each", "shared"] = "each",  # optimizers: one for each of the steps A, B and C, or one for all
        optimizer: OptimizerName = "adam",  # sgd or adam
        lr: PositiveFloat = 2e-4,  # learning rate at the start
        schedule: ClassifierSchedule = "constant",  # inverse ((1 + 10 p)^-0.75), cosine, constant or multistep
        momentum: Share = 0.9,  # momentum of SGD, or β1 of Adam
        weight_decay: NonNegativeFloat = 5e-4,  # L2 penalty
    ) -> None:
        super().__init__()
        shape = (data.channels, data.size, data.classes, instance_norm)
        self.extractor, self.first, _, _ = digits.build(net, *shape)
        _, self.second, _, _ = digits.build(net, *shape)
        self.rounds, self.joint_batch_norm = rounds, batch_norm == "both"
        self.shares = "learn" if moments == "shared" else ""
        self.settings = optim.optimizer(optimizer, lr, momentum, weight_decay), optim.schedule(schedule)

    def updates(self) -> list[Update]:
        return [
            Update("learn", ("extractor", "first", "second"), self.source_loss, *self.settings),
            Update("disagree", ("first", "second"), self.classifier_loss, *self.settings, shares=self.shares),
            *(
                Update(f"bring_{k}", ("extractor",), self.discrepancy, *self.settings, shares=self.shares)
                for k in range(self.rounds)
            ),
        ]

    def source_loss(self, batch: Batch, progress: float) -> Losses:
        """Step A: classify the source."""
        return label_losses(*self.logits(batch, "source")[0], batch["source_labels"])

    def classifier_loss(self, batch: Batch, progress: float) -> Losses:
        """Step B: classify the source and maximise the discrepancy on the target."""
        source, target = self.logits(batch, "source", "target")
        return label_losses(*source, batch["source_labels"]) | {"agreement": -difference(*target)}

    def discrepancy(self, batch: Batch, progress: float) -> Losses:
        """Step C: minimise the discrepancy on the target, the mean absolute difference of probabilities (eq. 9)."""
        (target,) = self.logits(batch, "target")
        return {"discrepancy": difference(*target)}

    def logits(self, batch: Batch, *domains: str) -> list[tuple[Tensor, Tensor]]:
        """Return the logits of both classifiers for the images of each of the domains."""
        if self.joint_batch_norm:
            images = torch.cat([batch["source_images"], batch["target_images"]])
            source, target = zip(*(logits.chunk(2) for logits in self.classify(images)), strict=True)
            return [{"source": source, "target": target}[domain] for domain in domains]
        pairs = []
        for domain in domains:
            # Only the target updates the running statistics: prediction is for the target, and a mixture fits neither.
            with frozen_running_stats(*(self.children() if domain == "source" else ())):
                pairs.append(self.classify(batch[f"{domain}_images"]))
        return pairs

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.extractor(images)
        return self.first(features), self.second(features)

    def features(self, images: Tensor) -> Tensor:
        return self.extractor(images)

    def predict(self, images: Tensor) -> Tensor:
        first, second = self.classify(images)
        return (first + second) / 2


def label_losses(first: Tensor, second: Tensor, labels: Tensor) -> Losses:
    return {"first": F.cross_entropy(first, labels), "second": F.cross_entropy(second, labels)}


def difference(first: Tensor, second: Tensor) -> Tensor:
    return (first.softmax(1) - second.softmax(1)).abs().mean()
