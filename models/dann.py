"""DANN (Ganin et al., JMLR 2016): features that tell classes apart but not domains, in a single update."""

from functools import partial
from math import exp
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.optim import SGD

from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets import digits
from models.nets.layers import reverse_gradient


class DANN(Method):
    reads = ("source_images", "source_labels", "target_images")

    def __init__(
        self,
        data: DataSpec,
        net: Literal["lenet", "compact"] = "lenet",
        gamma: PositiveFloat = 10.0,  # steepness of the ramp of lambda, sec. 5.2.2
        weight: NonNegativeFloat = 1.0,  # lambda at the end of the ramp
        lr: PositiveFloat = 0.01,  # mu_0; falls as (1 + 10 p)^-0.75, sec. 5.2.2
        momentum: NonNegativeFloat = 0.9,
        weight_decay: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__()
        self.extractor, self.classifier, self.domain, _ = digits.build(net, data.channels, data.size, data.classes)
        self.gamma, self.weight = gamma, weight
        self.sgd = partial(SGD, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def updates(self) -> list[Update]:
        networks = ("extractor", "classifier", "domain")
        return [Update("joint", networks, self.loss, self.sgd, schedule=lambda p: (1 + 10 * p) ** -0.75)]

    def loss(self, batch: Batch, progress: float) -> Losses:
        # Pass the domains one by one: batch norm then normalises each by its own statistics.
        source, target = self.features(batch["source_images"]), self.features(batch["target_images"])
        strength = self.ramp(progress)
        return {
            "label": F.cross_entropy(self.classifier(source), batch["source_labels"]),
            "source_domain": self.domain_loss(source, 0, strength),
            "target_domain": self.domain_loss(target, 1, strength),
        }

    def ramp(self, progress: float) -> float:
        """lambda_p = 2 / (1 + exp(-gamma p)) - 1, from 0 to `weight`; p in [0, 1]."""
        return self.weight * (2 / (1 + exp(-self.gamma * progress)) - 1)

    def domain_loss(self, features: Tensor, domain: int, strength: float) -> Tensor:
        """Cross-entropy of telling the domain; the extractor is pushed to raise what the classifier lowers."""
        logits = self.domain(reverse_gradient(features, strength))
        return F.cross_entropy(logits, torch.full((len(logits),), domain, device=logits.device))

    def features(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.extractor(images)
        return vectors

    def predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.extractor(images))
        return logits
