"""CDAN+E (Long et al., NeurIPS 2018): domains made alike class by class, above all where the classifier is sure."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from models.base import Batch, DataSpec, Losses
from models.dann import DANN
from models.nets import digits
from models.nets.layers import reverse_gradient


class CDAN(DANN):
    def __init__(
        self,
        data: DataSpec,
        net: Literal["lenet", "slim", "compact", "svhn", "usps", "deep"] = "lenet",
        hidden: PositiveInt = 256,  # width of the domain classifier, which takes features x classes values
        entropy: bool = True,  # weigh a sample by 1 + exp(-entropy of its prediction), eq. 8 and 9; False: CDAN
        strength: Literal["ramp", "constant"] = "ramp",  # of lambda: from 0 to weight, or always weight
        gamma: PositiveFloat = 10.0,  # steepness of the ramp of lambda
        weight: NonNegativeFloat = 1.0,  # lambda at the end of the ramp
        batch_norm: Literal["each", "both"] = "each",  # normalises each domain by itself, or both as one batch
        optimizer: Literal["sgd", "adam"] = "sgd",
        lr: PositiveFloat = 0.01,  # mu_0
        schedule: Literal["inverse", "constant"] = "inverse",  # of the learning rate: mu_0 (1 + 10 p)^-0.75, or mu_0
        momentum: NonNegativeFloat = 0.9,  # beta_1 of Adam
        weight_decay: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(
            data, net, strength, gamma, weight, batch_norm, optimizer, lr, schedule, momentum, weight_decay
        )
        self.entropy = entropy
        joint = digits.width(self.extractor, data.channels, data.size) * data.classes
        self.domain = nn.Sequential(
            nn.Linear(joint, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def loss(self, batch: Batch, progress: float) -> Losses:
        features, strength = self.embed(batch), self.ramp(progress)
        logits = [self.classifier(f) for f in features]
        source, target = (
            self.conditional_loss(f, g, domain, strength)
            for domain, (f, g) in enumerate(zip(features, logits, strict=True))
        )
        return {
            "label": F.cross_entropy(logits[0], batch["source_labels"]),
            "source_domain": source,
            "target_domain": target,
        }

    def conditional_loss(self, features: Tensor, logits: Tensor, domain: int, strength: float) -> Tensor:
        """Cross-entropy of telling the domain from f (x) g, the outer product of features and class probabilities."""
        g = logits.softmax(1).detach()
        joint = torch.einsum("nk,nd->nkd", g, reverse_gradient(features, strength)).flatten(1)
        told = self.domain(joint)[:, 0]
        losses = F.binary_cross_entropy_with_logits(told, torch.full_like(told, domain), reduction="none")
        # Where the classifier is sure the weight is 2, where it is at a loss it is little more than 1.
        weights = 1 + torch.exp(torch.special.entr(g).sum(1).neg()) if self.entropy else torch.ones_like(losses)
        return (weights * losses).mean()
