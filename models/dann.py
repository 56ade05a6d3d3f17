"""DANN (Ganin et al., JMLR 2016): features that tell classes apart but not domains, in a single update."""

from math import exp
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from models import optim
from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets import digits
from models.nets.layers import reverse_gradient
from models.types import ClassifierSchedule, DigitNet, OptimizerName, Share


class DANN(Method):
    reads = ("source_images", "source_labels", "target_images")

    def __init__(
        self,
        data: DataSpec,
        net: DigitNet = "lenet",
        strength: Literal["ramp", "constant"] = "ramp",  # of lambda: from 0 to weight, sec. 5.2.2, or always weight
        gamma: PositiveFloat = 10.0,  # steepness of the ramp of lambda, sec. 5.2.2
        weight: NonNegativeFloat = 1.0,  # lambda at the end of the ramp
        batch_norm: Literal["each", "both"] = "each",  # normalises each domain by itself, or both as one batch
        optimizer: OptimizerName = "sgd",
        lr: PositiveFloat = 0.01,  # mu_0
        schedule: ClassifierSchedule = "inverse",  # of lr: (1 + 10 p)^-0.75, half a cosine to 0, or 1
        momentum: Share = 0.9,  # beta_1 of Adam
        weight_decay: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__()
        self.extractor, self.classifier, self.domain, _ = digits.build(net, data.channels, data.size, data.classes)
        self.strength, self.gamma, self.weight, self.together = strength, gamma, weight, batch_norm == "both"
        self.optimizer = optim.optimizer(optimizer, lr, momentum, weight_decay)
        self.schedule = optim.schedule(schedule)

    def updates(self) -> list[Update]:
        return [Update("joint", ("extractor", "classifier", "domain"), self.loss, self.optimizer, self.schedule)]

    def loss(self, batch: Batch, progress: float) -> Losses:
        source, target = self.embed(batch)
        strength = self.ramp(progress)
        return {
            "label": F.cross_entropy(self.classifier(source), batch["source_labels"]),
            "source_domain": self.domain_loss(source, 0, strength),
            "target_domain": self.domain_loss(target, 1, strength),
        }

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features of the source and of the target images [n, features]."""
        source, target = batch["source_images"], batch["target_images"]
        if self.together:
            first, second = self.extractor(torch.cat([source, target])).split([len(source), len(target)])
            return first, second
        return self.extractor(source), self.extractor(target)

    def ramp(self, progress: float) -> float:
        """lambda_p = 2 / (1 + exp(-gamma p)) - 1, from 0 to `weight`, or `weight`; p in [0, 1]."""
        return self.weight * (2 / (1 + exp(-self.gamma * progress)) - 1 if self.strength == "ramp" else 1)

    def domain_loss(self, features: Tensor, domain: int, strength: float) -> Tensor:
        """Cross-entropy of telling the domain; the extractor is pushed to raise what the classifier lowers."""
        logits = self.domain(reverse_gradient(features, strength))
        if logits.shape[1] == 1:
            return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, domain))
        return F.cross_entropy(logits, torch.full((len(logits),), domain, device=logits.device))

    def features(self, images: Tensor) -> Tensor:
        return self.extractor(images)

    def predict(self, images: Tensor) -> Tensor:
        return self.classifier(self.extractor(images))
