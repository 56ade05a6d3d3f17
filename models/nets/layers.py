"""Layers that several networks share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class ReverseGradient(torch.autograd.Function):
    """Return the input; multiply its gradient by -strength (Ganin et al., 2016, eq. 13)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        """Return x [...] unchanged; `strength` >= 0 is λ."""
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return -strength * grad in the dtype of grad."""
        return -ctx.strength * grad, None


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """Return x [...], and multiply its gradient by -strength on the way back."""
    return ReverseGradient.apply(x, strength)


@contextmanager
def frozen_running_stats(*networks: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norm unchanged; it still normalises by the statistics of the batch."""
    norms = [module for network in networks for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
