"""DANN (Ganin et al., JMLR 2016): adversarial training of features that do not reveal the domain."""

from math import exp
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from models import optim
from models.base import Batch, DataSpec, Losses, Method, Update
from models.losses import domain_cross_entropy
from models.nets import digits
from models.nets.layers import embed_domains, reverse_gradient
from models.types import ClassifierSchedule, DigitNet, OptimizerName, Share


class DANN(Method):
    reads = ("source_images", "source_labels", "target_images")
    check = "digit_net"
    least_batch = "pair"
    added_later: ClassVar[dict[str, object]] = {"instance_norm": False}

    def __init__(
        self,
        data: DataSpec,
        net: DigitNet = "lenet",  # lenet, slim, compact, svhn, usps, deep or gta (models/nets/digits.py)
        instance_norm: bool = False,  # normalise each channel of each image before the net
        strength: Literal["ramp", "constant"] = "ramp",  # λ schedule: ramp from 0 to weight (sec. 5.2.2) or constant
        gamma: PositiveFloat = 10.0,  # γ: steepness of the λ schedule (eq. in sec. 5.2.2)
        weight: NonNegativeFloat = 1.0,  # λ at the end of its schedule
        batch_norm: Literal["each", "both"] = "each",  # statistics of each domain, or of both as one batch
        optimizer: OptimizerName = "sgd",  # sgd or adam
        lr: PositiveFloat = 0.01,  # learning rate at the start, μ_0
        schedule: ClassifierSchedule = "inverse",  # inverse ((1 + 10 p)^-0.75), cosine, constant or multistep
        momentum: Share = 0.9,  # momentum of SGD, or β1 of Adam
        weight_decay: NonNegativeFloat = 0.0,  # L2 penalty
    ) -> None:
        super().__init__()
        self.extractor, self.classifier, self.domain, _ = digits.build(
            net, data.channels, data.size, data.classes, instance_norm
        )
        self.strength, self.gamma, self.weight, self.joint_batch_norm = strength, gamma, weight, batch_norm == "both"
        self.optimizer = optim.optimizer(optimizer, lr, momentum, weight_decay)
        self.schedule = optim.schedule(schedule)

    def updates(self) -> list[Update]:
        return [Update("joint", ("extractor", "classifier", "domain"), self.loss, self.optimizer, self.schedule)]

    def ramps(self, progress: float) -> dict[str, float]:
        return {"lambda": self.reversal_strength(progress)}

    def loss(self, batch: Batch, progress: float) -> Losses:
        source, target = embed_domains(self.extractor, batch, self.joint_batch_norm)
        lambda_p = self.reversal_strength(progress)
        return {
            "label": F.cross_entropy(self.classifier(source), batch["source_labels"]),
            "source_domain": self.domain_loss(source, 0, lambda_p),
            "target_domain": self.domain_loss(target, 1, lambda_p),
        }

    def reversal_strength(self, progress: float) -> float:
        """Return λ_p: weight * (2 / (1 + exp(-γ p)) - 1) at progress p in [0, 1], or the constant weight."""
        return self.weight * (2 / (1 + exp(-self.gamma * progress)) - 1 if self.strength == "ramp" else 1)

    def domain_loss(self, features: Tensor, domain: int, lambda_p: float) -> Tensor:
        """Return the loss of the domain classifier, whose gradient reaches the extractor multiplied by -λ_p."""
        return domain_cross_entropy(self.domain(reverse_gradient(features, lambda_p)), domain)

    def features(self, images: Tensor) -> Tensor:
        return self.extractor(images)

    def predict(self, images: Tensor) -> Tensor:
        return self.classifier(self.extractor(images))
