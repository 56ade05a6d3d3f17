"""The forward process of diffusion: noise schedules, noisy images, and the posterior of an earlier time."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class Diffusion(nn.Module):
    """x_t = a_t x_0 + s_t noise at times t = 0 … T - 1, with a_t² + s_t² = 1; time -1 is the image x_0 itself.

    a_t² (alpha-bar of Ho et al., NeurIPS 2020) is saved with the weights, and weights of another schedule are refused.
    """

    share: Tensor  # a_t², the image's share of the variance, float64 [T]

    def __init__(self, timesteps: int, schedule: str, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        super().__init__()
        beta = betas(timesteps, schedule, beta_start, beta_end)
        self.timesteps = timesteps
        self.register_buffer("share", (1 - beta).cumprod(0))

    def scales(self, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return a_t and s_t at times int64 [n], each [n, 1, 1, 1]."""
        share = self.share[t].view(-1, 1, 1, 1)
        return share.sqrt().to(dtype), (1 - share).sqrt().to(dtype)

    def add_noise(self, images: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_t [n, c, h, w] of images and noise [n, c, h, w] at times [n]: eq. 4 of Ho et al."""
        a, s = self.scales(t, images.dtype)
        return a * images + s * noise

    def posterior(self, t: Tensor, earlier: Tensor, eta: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Return weight of x_0, weight of x_t and deviation of q(x_earlier | x_t, x_0), float64, shaped like t.

        Song et al. (ICLR 2021), eq. 7 and 16, for any earlier time. At eta = 1 and earlier = t - 1 it is the posterior
        of Ho et al., eq. 6 and 7; at eta = 0 the deviation is 0.
        """
        share = self.share[t]
        earlier_share = torch.where(earlier < 0, 1.0, self.share[earlier.clamp(min=0)])
        variance = eta**2 * (1 - earlier_share) / (1 - share) * (1 - share / earlier_share)
        x_weight = ((1 - earlier_share - variance).clamp(min=0) / (1 - share)).sqrt()
        return earlier_share.sqrt() - x_weight * share.sqrt(), x_weight, variance.sqrt()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load weights; report an error if they were trained with another noise schedule."""
        saved, errors = state.get(f"{prefix}share"), rest[-1]
        if saved is not None and saved.shape != self.share.shape:
            trained = len(saved)
            errors.append(f"trained at {trained} timesteps, not {self.timesteps}; set model.timesteps: {trained}")
        elif saved is not None and not torch.allclose(saved.double().cpu(), self.share.cpu(), rtol=1e-6):
            errors.append(
                "trained with another noise schedule; set model.schedule, model.beta_start and model.beta_end to the "
                "values of the training"
            )
        else:
            super()._load_from_state_dict(state, prefix, *rest)


def betas(timesteps: int, schedule: str, beta_start: float, beta_end: float) -> Tensor:
    """Return the variance of the noise that each time adds, float64 [T].

    "linear": evenly spaced from beta_start to beta_end. "cosine": so that a_t² follows a squared cosine (Nichol &
    Dhariwal, ICML 2021, eq. 17).
    """
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
    share = [math.cos((t / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(timesteps + 1)]
    return torch.tensor([min(1 - b / a, 0.999) for a, b in pairwise(share)], dtype=torch.float64)
