"""AdaMatch (Berthelot et al., ICLR 2022): train on confident predictions of the target, aligned with the source."""

from math import cos, pi

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import cross_entropy

from models import optim
from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets import digits
from models.nets.augment import augmentation
from models.nets.layers import frozen_running_stats
from models.types import ClassifierSchedule, DigitNet, OptimizerName, Share, StrongAugment


class AdaMatch(Method):
    """The weak view of an image is the image as it comes, the strong view has random augmentations."""

    reads = ("source_images", "source_labels", "target_images")
    check = "digit_net"

    def __init__(
        self,
        data: DataSpec,
        net: DigitNet = "lenet",  # lenet, slim, compact, svhn, usps, deep or gta (models/nets/digits.py)
        instance_norm: bool = False,  # normalise each channel of each image before the net
        threshold: Share = 0.9,  # τ: least confidence of a pseudo-label, relative to the mean confidence on the source
        weight: NonNegativeFloat = 1.0,  # of the target loss from the middle of training on; it grows before
        augment: StrongAugment = "invert+stretch+cutout",  # of the strong views, in this order (nets/augment.py)
        optimizer: OptimizerName = "adam",  # sgd or adam
        lr: PositiveFloat = 1e-3,  # learning rate at the start
        schedule: ClassifierSchedule = "cosine",  # inverse ((1 + 10 p)^-0.75), cosine, constant or multistep
        momentum: Share = 0.9,  # momentum of SGD, or β1 of Adam
        weight_decay: NonNegativeFloat = 5e-4,  # L2 penalty
        ema: Share = 0.999,  # decay of the moving average of the classifier that is exported; 0: no average
    ) -> None:
        super().__init__()
        self.extractor, self.classifier, _, _ = digits.build(net, data.channels, data.size, data.classes, instance_norm)
        self.threshold, self.weight, self.augment = threshold, weight, augmentation(augment)
        self.averaged = {"extractor": ema, "classifier": ema} if ema else {}
        self.optimizer, self.schedule = optim.optimizer(optimizer, lr, momentum, weight_decay), optim.schedule(schedule)

    def updates(self) -> list[Update]:
        return [Update("match", ("extractor", "classifier"), self.loss, self.optimizer, self.schedule)]

    def ramps(self, progress: float) -> dict[str, float]:
        return {"target_weight": self.target_weight(progress)}

    def target_weight(self, progress: float) -> float:
        """Return the weight of the target loss, μ: half a cosine from 0 to `weight` in the first half of training."""
        return self.weight * (1 - cos(min(pi, 2 * pi * progress))) / 2

    def loss(self, batch: Batch, progress: float) -> Losses:
        """Return the losses of the source's weak and strong views and of the target's strong views.

        `used`, the share of target images whose pseudo-label is confident enough, is only logged.
        """
        source, labels, target = (batch[key] for key in self.reads)
        sources = torch.cat([source, self.augment(source)])
        n = len(sources)
        together = self.predict(torch.cat([sources, target, self.augment(target)]))
        with frozen_running_stats(self.extractor, self.classifier):
            alone = self.predict(sources)
        # Each logit lies at random between the two domains' batch norm and that of the source.
        weak, strong = torch.lerp(alone, together[:n], torch.rand_like(alone)).chunk(2)
        target_weak, target_strong = together[n:].chunk(2)
        with torch.no_grad():
            on_source, pseudo = weak.softmax(1), target_weak.softmax(1)
            pseudo = align(pseudo, on_source)
            used = (pseudo.amax(1) >= self.threshold * on_source.amax(1).mean()).to(weak.dtype)
        return {
            "weak": cross_entropy(weak, labels),
            "strong": cross_entropy(strong, labels),
            "target": self.target_weight(progress)
            * (used * cross_entropy(target_strong, pseudo, reduction="none")).mean(),
            "used": used.mean(),
        }

    def features(self, images: Tensor) -> Tensor:
        return self.extractor(images)

    def predict(self, images: Tensor) -> Tensor:
        return self.classifier(self.extractor(images))


def align(target: Tensor, source: Tensor) -> Tensor:
    """Return probabilities [n, classes] of the target, with classes as frequent as on the source."""
    aligned = target * source.mean(0) / target.mean(0)
    return aligned / aligned.sum(1, keepdim=True)
