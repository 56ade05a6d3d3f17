"""Layers that several networks share."""

from collections.abc import Iterator, Mapping
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


def input_gradient(network: nn.Module, points: Tensor) -> Tensor:
    """Return ∇ network(x) at points x [n, …], flattened to [n, d], through which gradients reach the network.

    Computed without autocast: squared second derivatives exceed half precision.
    """
    with torch.autocast(points.device.type, enabled=False):
        points = points.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(network(points).sum(), points, create_graph=True)
        return gradient.flatten(1)


def embed_domains(extractor: nn.Module, batch: Mapping[str, Tensor], joint: bool) -> tuple[Tensor, Tensor]:
    """Return the features [n, features] of source and target images; `joint`: batch norm takes both as one batch."""
    source, target = batch["source_images"], batch["target_images"]
    if not joint:
        return extractor(source), extractor(target)
    source, target = extractor(torch.cat([source, target])).split([len(source), len(target)])
    return source, target


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
