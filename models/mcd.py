"""MCD (Saito et al., CVPR 2018): two classifiers find target images they disagree on, the extractor brings these in."""

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from models import optim
from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets import digits
from models.nets.layers import running_statistics_kept
from models.types import ClassifierSchedule, DigitNet, OptimizerName, Share


class MCD(Method):
    reads = ("source_images", "source_labels", "target_images")

    def __init__(
        self,
        data: DataSpec,
        net: DigitNet = "lenet",
        rounds: PositiveInt = 4,  # updates of the extractor per iteration, n of step C
        optimizer: OptimizerName = "adam",
        lr: PositiveFloat = 2e-4,
        schedule: ClassifierSchedule = "constant",  # of lr: (1 + 10 p)^-0.75, half a cosine to 0, or 1
        momentum: Share = 0.9,  # beta_1 of Adam
        weight_decay: NonNegativeFloat = 5e-4,
    ) -> None:
        super().__init__()
        self.extractor, self.first, _, _ = digits.build(net, data.channels, data.size, data.classes)
        _, self.second, _, _ = digits.build(net, data.channels, data.size, data.classes)
        self.rounds = rounds
        self.optimizer = optim.optimizer(optimizer, lr, momentum, weight_decay)
        self.schedule = optim.schedule(schedule)

    def updates(self) -> list[Update]:
        how = (self.optimizer, self.schedule)
        bring = [Update(f"bring_{k}", ("extractor",), self.disagreement, *how) for k in range(self.rounds)]
        return [
            Update("learn", ("extractor", "first", "second"), self.label, *how),
            Update("disagree", ("first", "second"), self.widen, *how),
            *bring,
        ]

    def label(self, batch: Batch, progress: float) -> Losses:
        """Step A: classify the source."""
        # What batch norm keeps for prediction is of the target alone: a mixture of the two would fit neither.
        with running_statistics_kept(self.extractor, self.first, self.second):
            features = self.extractor(batch["source_images"])
            logits = self.first(features), self.second(features)
        first, second = (F.cross_entropy(g, batch["source_labels"]) for g in logits)
        return {"first": first, "second": second}

    def widen(self, batch: Batch, progress: float) -> Losses:
        """Step B: still classify the source, but disagree on the target."""
        return self.label(batch, progress) | {"agreement": -self.disagreement(batch, progress)["discrepancy"]}

    def disagreement(self, batch: Batch, progress: float) -> Losses:
        """Step C: the mean absolute difference of the two classifiers' probabilities on the target, eq. 9."""
        features = self.extractor(batch["target_images"])
        return {"discrepancy": (self.first(features).softmax(1) - self.second(features).softmax(1)).abs().mean()}

    def features(self, images: Tensor) -> Tensor:
        return self.extractor(images)

    def predict(self, images: Tensor) -> Tensor:
        features = self.extractor(images)
        return (self.first(features) + self.second(features)) / 2
