"""Optimizers and learning-rate schedules that methods share."""

from collections.abc import Callable, Iterable
from functools import partial
from math import cos, pi

from torch import nn
from torch.optim import SGD, Adam, Optimizer

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


def optimizer(name: str, lr: float, momentum: float, weight_decay: float) -> OptimizerFactory:
    """Return a factory of "sgd", or of "adam" with `momentum` as its β1."""
    if name == "adam":
        return partial(Adam, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)
    return partial(SGD, lr=lr, momentum=momentum, weight_decay=weight_decay)


def schedule(name: str, floor: float = 0.0) -> Callable[[float], float]:
    """Return one of SCHEDULES, between `floor` and 1 instead of 0 and 1: progress p in [0, 1] -> lr multiplier."""
    multiplier = SCHEDULES[name]
    return lambda p: floor + (1 - floor) * multiplier(p)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "inverse": lambda p: float((1 + 10 * p) ** -0.75),  # from 1 to 0.166 (Ganin et al., 2016, sec. 5.2.2)
    "cosine": lambda p: (1 + cos(pi * p)) / 2,  # from 1 to 0 (Loshchilov & Hutter, ICLR 2017, without restarts)
    "cooldown": lambda p: min(1.0, 5 * (1 - p)),  # 1, and from 0.8 on to 0 (Hägele et al., NeurIPS 2024)
    "constant": lambda p: 1.0,
    "multistep": lambda p: 1.0 if p < 0.5 else 0.1 if p < 0.75 else 0.01,  # as in He et al., CVPR 2016, sec. 4.2
}
