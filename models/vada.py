"""VADA (Shu et al., ICLR 2018): DANN whose decision boundaries keep away from images of both domains."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import cross_entropy

from models import optim
from models.base import Batch, DataSpec, Losses, Method, Update
from models.losses import conditional_entropy, domain_cross_entropy, virtual_adversarial
from models.nets import digits
from models.nets.layers import embed_domains, frozen_running_stats
from models.types import ClassifierSchedule, DigitNet, OptimizerName, Share


class VADA(Method):
    """Equation 8: L_y + λ_d L_d + λ_s L_v(source) + λ_t (L_v(target) + L_c(target))."""

    reads = ("source_images", "source_labels", "target_images")
    check = "digit_net"
    least_batch = "pair"

    def __init__(
        self,
        data: DataSpec,
        net: DigitNet = "lenet",  # lenet, slim, compact, svhn, usps, deep or gta (models/nets/digits.py)
        instance_norm: bool = False,  # normalise each channel of each image before the net
        domain_weight: NonNegativeFloat = 0.01,  # λ_d: weight of the adversarial loss
        source_weight: NonNegativeFloat = 1.0,  # λ_s: weight of virtual adversarial training on the source
        target_weight: NonNegativeFloat = 0.01,  # λ_t: weight of it, and of the conditional entropy, on the target
        radius: PositiveFloat = 3.5,  # ε: norm of the adversarial perturbation, pixels in [-1, 1]
        batch_norm: Literal["each", "both"] = "each",  # statistics of each domain, or of both as one batch
        optimizer: OptimizerName = "adam",  # sgd or adam
        lr: PositiveFloat = 1e-3,  # learning rate at the start
        schedule: ClassifierSchedule = "constant",  # inverse ((1 + 10 p)^-0.75), cosine, constant or multistep
        momentum: Share = 0.5,  # momentum of SGD, or β1 of Adam
        weight_decay: NonNegativeFloat = 0.0,  # L2 penalty
        ema: Share = 0.998,  # decay of the moving average of the classifier that is exported; 0: no average
    ) -> None:
        super().__init__()
        self.extractor, self.classifier, self.domain, _ = digits.build(
            net, data.channels, data.size, data.classes, instance_norm
        )
        self.domain_weight, self.source_weight, self.target_weight = domain_weight, source_weight, target_weight
        self.radius, self.joint_batch_norm = radius, batch_norm == "both"
        self.averaged = {"extractor": ema, "classifier": ema} if ema else {}
        self.optimizer = optim.optimizer(optimizer, lr, momentum, weight_decay)
        self.schedule = optim.schedule(schedule)

    def updates(self) -> list[Update]:
        return [
            Update("discriminate", ("domain",), self.domain_loss, self.optimizer, self.schedule),
            Update("adapt", ("extractor", "classifier"), self.loss, self.optimizer, self.schedule),
        ]

    def domain_loss(self, batch: Batch, progress: float) -> Losses:
        """Let the domain classifier tell source (0) from target (1)."""
        source, target = (self.domain(part) for part in embed_domains(self.extractor, batch, self.joint_batch_norm))
        return {"source": domain_cross_entropy(source, 0), "target": domain_cross_entropy(target, 1)}

    def loss(self, batch: Batch, progress: float) -> Losses:
        """Return eq. 8, with a domain classifier that is to be wrong: as Shu et al. train, instead of a reversal."""
        source, target = embed_domains(self.extractor, batch, self.joint_batch_norm)
        label, guess = self.classifier(source), self.classifier(target)
        confusion = domain_cross_entropy(self.domain(source), 1) + domain_cross_entropy(self.domain(target), 0)
        # Perturbed images do not count for the statistics of prediction.
        with frozen_running_stats(self.extractor, self.classifier):
            vat_source, _ = virtual_adversarial(self.predict, batch["source_images"], label, self.radius)
            vat_target, _ = virtual_adversarial(self.predict, batch["target_images"], guess, self.radius)
        return {
            "label": cross_entropy(label, batch["source_labels"]),
            "confusion": self.domain_weight * confusion / 2,
            "vat_source": self.source_weight * vat_source,
            "vat_target": self.target_weight * vat_target,
            "entropy": self.target_weight * conditional_entropy(guess),
        }

    def features(self, images: Tensor) -> Tensor:
        return self.extractor(images)

    def predict(self, images: Tensor) -> Tensor:
        return self.classifier(self.extractor(images))
