"""Layers that several methods use."""

from typing import Any

import torch
from torch import Tensor


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
    result: Tensor = ReverseGradient.apply(x, strength)
    return result
