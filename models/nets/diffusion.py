"""The arithmetic of diffusion: how noise is added to an image, and how it is taken away again, a step at a time."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class Diffusion(nn.Module):
    """x_t = a_t x_0 + s_t noise at the times t = 0 … T - 1, with a_t² + s_t² = 1; time -1 is the image itself.

    The share of the image a_t² (alpha-bar of Ho et al., NeurIPS 2020) is kept with the weights: those of another
    schedule are refused.
    """

    share: Tensor  # float64 [T], a_t²

    def __init__(self, timesteps: int, schedule: str, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        super().__init__()
        beta = betas(timesteps, schedule, beta_start, beta_end)
        self.timesteps = timesteps
        self.register_buffer("share", (1 - beta).cumprod(0))

    def scales(self, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """a_t and s_t at times int64 [n], as [n, 1, 1, 1]."""
        share = self.share[t].view(-1, 1, 1, 1)
        return share.sqrt().to(dtype), (1 - share).sqrt().to(dtype)

    def noised(self, images: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw from q(x_t | x_0) by its noise, eq. 4: images and noise [n, c, h, w], times [n]."""
        a, s = self.scales(t, images.dtype)
        return a * images + s * noise

    def posterior(self, t: Tensor, to: Tensor, eta: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """What q(x_to | x_t, x_0) is made of, float64 like the times: (weight of x_0, weight of x_t, deviation).

        Of Song et al. (ICLR 2021), eq. 7 and 16, for any earlier time `to`. At eta = 1 and to = t - 1 it is the
        posterior of Ho et al., eq. 6 and 7; at eta = 0 it has no deviation.
        """
        share = self.share[t]
        earlier = torch.where(to < 0, 1.0, self.share[to.clamp(min=0)])
        variance = eta**2 * (1 - earlier) / (1 - share) * (1 - share / earlier)
        of_noise = ((1 - earlier - variance).clamp(min=0) / (1 - share)).sqrt()
        return earlier.sqrt() - of_noise * share.sqrt(), of_noise, variance.sqrt()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take the weights only if they were trained at these times of this schedule."""
        saved, errors = state.get(f"{prefix}share"), rest[-1]
        if saved is not None and saved.shape != self.share.shape:
            trained = len(saved)
            errors.append(f"trained at {trained} timesteps, not {self.timesteps}; set model.timesteps: {trained}")
        elif saved is not None and not torch.allclose(saved.double().cpu(), self.share.cpu(), rtol=1e-6):
            errors.append("trained with other betas; set model.schedule, model.beta_start and model.beta_end as then")
        else:
            super()._load_from_state_dict(state, prefix, *rest)


def betas(timesteps: int, schedule: str, beta_start: float, beta_end: float) -> Tensor:
    """Variances of the noise that each time adds, float64 [T]: evenly spaced from beta_start to beta_end ("linear"),
    or so that the share of the image falls like a cosine ("cosine": Nichol & Dhariwal, ICML 2021, eq. 17)."""
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
    share = [math.cos((t / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(timesteps + 1)]
    return torch.tensor([min(1 - b / a, 0.999) for a, b in pairwise(share)], dtype=torch.float64)


def spaced(timesteps: int, steps: int) -> list[int]:
    """The times that so many sampling steps go through, evenly spaced and from the last one, T - 1, down."""
    return [round(timesteps - i * timesteps / steps) - 1 for i in range(steps)]


def lerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """A point on the straight line between two tensors; between noises it is shorter than they are."""
    return (1 - share) * start + share * end


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """A point on the arc between two noises of one shape (Shoemake, SIGGRAPH 1985); share from 0, start, to 1, end.

    Where they are equal there is no arc, nor is there for a single value, and it is the straight line; where they are
    opposite there are many, and it is the one through the noise that has the values of each pair swapped, and the first
    of them negated.
    """
    if share in (0, 1):
        return (end if share else start).clone()
    a, b = start.double().flatten(), end.double().flatten()
    length, other = a.norm(), b.norm()
    cosine = float((a / length) @ (b / other)) if length > 0 and other > 0 else 1.0
    if cosine > 1 - 1e-12 or a.numel() == 1:
        point = lerp(a, b, share)
    elif cosine < -1 + 1e-12:
        even = a.numel() // 2 * 2
        aside = torch.zeros_like(a)
        aside[0:even:2], aside[1:even:2] = -a[1:even:2], a[0:even:2]
        aside = aside / aside.norm() if aside.norm() > 0 else torch.eye(1, a.numel(), dtype=a.dtype, device=a.device)[0]
        size = lerp(length, other, share)
        point = size * (math.cos(math.pi * share) * a / length + math.sin(math.pi * share) * aside)
    else:
        angle = math.acos(cosine)
        point = (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)
    return point.view_as(start).to(start.dtype)
