"""Layers that several methods use."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class ReverseGradient(torch.autograd.Function):
    """Identity forwards; multiplies the gradient by -strength backwards (Ganin et al., 2016, eq. 13)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        """Return x [...] as it is; `strength` >= 0 is lambda."""
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return -strength * grad in the dtype of grad."""
        return -ctx.strength * grad, None


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """Return x [...]; its gradient arrives multiplied by -strength."""
    return ReverseGradient.apply(x, strength)


@contextmanager
def running_statistics_kept(*networks: nn.Module) -> Iterator[None]:
    """Batch norm inside normalises by the batch as ever, but what it keeps for evaluation does not move."""
    norms = [module for network in networks for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
