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
    added_later: ClassVar[dict[str, object]] = {"instance_norm": False, "batch_norm": "each", "anchor": False}

    def __init__(
        self,
        data: DataSpec,
        net: DigitNet = "lenet",  # lenet, slim, compact, svhn, usps, deep or gta (models/nets/digits.py)
        instance_norm: bool = False,  # normalise each channel of each image before the net
        rounds: PositiveInt = 4,  # n: updates of the extractor per step (step C)
        batch_norm: Literal["each", "both"] = "each",  # statistics of each domain, or of both as one batch
        anchor: bool = False,  # step C keeps the source loss, against which Adam scales the discrepancy
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
        self.rounds, self.anchor, self.joint_batch_norm = rounds, anchor, batch_norm == "both"
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
        (source,) = self.logits(batch, "source")
        return label_losses(source, batch)

    def classifier_loss(self, batch: Batch, progress: float) -> Losses:
        """Step B: classify the source and maximise the discrepancy on the target."""
        source, target = self.logits(batch, "source", "target")
        return label_losses(source, batch) | {"agreement": -difference(target)}

    def discrepancy(self, batch: Batch, progress: float) -> Losses:
        """Step C: minimise the discrepancy on the target, and with `anchor` the loss of step A as well."""
        if not self.anchor:
            return {"discrepancy": difference(*self.logits(batch, "target"))}
        source, target = self.logits(batch, "source", "target")
        return label_losses(source, batch) | {"discrepancy": difference(target)}

    def logits(self, batch: Batch, *domains: str) -> list[tuple[Tensor, Tensor]]:
        """Return the logits of both classifiers for the images of each of the domains."""
        if self.joint_batch_norm:
            images = [batch["source_images"], batch["target_images"]]
            first, second = (logits.split([*map(len, images)]) for logits in self.classify(torch.cat(images)))
            pairs = {"source": (first[0], second[0]), "target": (first[1], second[1])}
            return [pairs[domain] for domain in domains]
        separate = []
        for domain in domains:
            # Only the target updates the running statistics: prediction is for the target, and a mixture fits neither.
            with frozen_running_stats(*(self.children() if domain == "source" else ())):
                separate.append(self.classify(batch[f"{domain}_images"]))
        return separate

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.extractor(images)
        return self.first(features), self.second(features)

    def features(self, images: Tensor) -> Tensor:
        return self.extractor(images)

    def predict(self, images: Tensor) -> Tensor:
        first, second = self.classify(images)
        return (first + second) / 2


def label_losses(logits: tuple[Tensor, Tensor], batch: Batch) -> Losses:
    first, second = (F.cross_entropy(part, batch["source_labels"]) for part in logits)
    return {"first": first, "second": second}


def difference(logits: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean absolute difference of the classifiers' probabilities (eq. 9)."""
    first, second = logits
    return (first.softmax(1) - second.softmax(1)).abs().mean()
