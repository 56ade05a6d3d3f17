"""Losses that several methods share."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

XI = 0.1  # length ξ of the step by which `virtual_adversarial` estimates a gradient; smaller ones drown in rounding


def domain_cross_entropy(logits: Tensor, domain: int) -> Tensor:
    """Return cross-entropy of domain logits [n, 2], or [n, 1] of the target, with one domain for all (1: target)."""
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, domain))
    return F.cross_entropy(logits, torch.full((len(logits),), domain, device=logits.device))


def conditional_entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy of the predictions of logits [n, classes], in nats."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def virtual_adversarial(
    classify: Callable[[Tensor], Tensor], images: Tensor, logits: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """Return KL(p(x) ‖ p(x + r)) of the perturbation r of norm `radius` that raises it most, and r [n, c, h, w].

    Miyato et al. (TPAMI 2018), algorithm 1 with one power iteration. `logits` [n, classes] are those of the images; no
    gradient flows through p(x) or r.
    """
    p = logits.detach()
    direction = (XI * unit(torch.randn_like(images))).requires_grad_()
    (gradient,) = torch.autograd.grad(divergence(p, classify(images + direction)), direction)
    perturbation = radius * unit(gradient)
    return divergence(p, classify(images + perturbation)), perturbation


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return the mean KL(p ‖ q) of the predictions of logits [n, classes], in nats."""
    return F.kl_div(q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="batchmean")


def unit(x: Tensor) -> Tensor:
    """Return x [n, …] with each row scaled to norm 1."""
    return F.normalize(x.flatten(1), dim=1).view_as(x)
