"""EDM (Karras et al., NeurIPS 2022): a preconditioned denoiser at continuous noise levels, sampled by Heun's method."""

from functools import partial
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim import Adam

from models import optim, sampling
from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets import unet
from models.types import Share, Solver, UNetName


class EDM(Method):
    """Symbols are those of table 1. Guidance of weight w is that of DDPM."""

    check = "unet"
    conditional = True

    def __init__(
        self,
        data: DataSpec,
        net: UNetName = "context_unet",  # context_unet or attention_unet (in nets/)
        width: PositiveInt | None = None,  # channels of the first block; default: as published, 128 or 64
        drop: Share = 0.1,  # probability of dropping the class label (classifier-free guidance)
        sigma_data: PositiveFloat = 0.5,  # σ_data: standard deviation of the pixels
        lr: PositiveFloat = 1e-4,  # learning rate at the start
        decay: Literal["cosine", "constant"] = "cosine",  # learning rate: cosine to lr / 100, or constant
        ema: Share = 0.999,  # decay of the moving average of the network that is exported; 0: no average
        noise_mean: float = -1.2,  # P_mean: mean of ln σ in training
        noise_std: PositiveFloat = 1.2,  # P_std: standard deviation of ln σ in training
        sampling_steps: PositiveInt = 18,  # N; calls of the network: 2 N - 1 (heun) or N (euler)
        solver: Solver = "heun",  # euler or heun, whose last step is Euler's
        churn: NonNegativeFloat = 0.0,  # S_churn: stochasticity, at all noise levels; 0: none
        guidance: NonNegativeFloat = 2.0,  # w: weight of classifier-free guidance; 0: no guidance
    ) -> None:
        super().__init__()
        self.classes, self.shape = data.classes, (data.channels, data.size, data.size)
        self.network = unet.build(net, data, self.classes, width)
        self.drop, self.sigma_data, self.noise_mean, self.noise_std = drop, sigma_data, noise_mean, noise_std
        self.sampling_steps, self.solver, self.churn, self.guidance = sampling_steps, solver, churn, guidance
        self.averaged = {"network": ema} if ema else {}
        self.optimizer, self.lr_schedule = partial(Adam, lr=lr), optim.schedule(decay, floor=0.01)

    def updates(self) -> list[Update]:
        return [Update("denoise", ("network",), self.loss, self.optimizer, self.lr_schedule)]

    def loss(self, batch: Batch, progress: float) -> Losses:
        """Return the weighted squared error of the denoised images, with ln σ drawn from a normal distribution."""
        images = batch["images"]
        sigma = (self.noise_mean + self.noise_std * torch.randn_like(images[:, :1, :1, :1])).exp()
        x = images + sigma * torch.randn_like(images)
        labels = sampling.drop_labels(batch, self.classes, self.drop)
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        error = self.denoise(self.network, x, sigma, labels) - images
        return {"mse": (weight * error**2).mean()}

    def denoise(self, network: sampling.Network, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """Return D(x; σ) = c_skip x + c_out F(c_in x; ln σ / 4) at noise levels σ [n, 1, 1, 1] (eq. 7)."""
        total = sigma**2 + self.sigma_data**2
        c_skip, c_out, c_in = self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), total.rsqrt()
        return c_skip * x + c_out * network(c_in * x, unet.TIMES * sigma.log().flatten() / 4, labels)

    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        *,
        steps: PositiveInt | None = None,  # default of this, solver, churn and guidance: the hyperparameter
        solver: Solver | None = None,
        churn: NonNegativeFloat | None = None,
        guidance: NonNegativeFloat | None = None,
        noise: Tensor | None = None,  # [n, channels, size, size] to start from; default: drawn
        batch: PositiveInt | None = None,  # images per call of the network; default: all n
        precision: Literal["no", "bf16"] = "no",  # of the network
        compile: bool = False,  # compile the network: takes a minute, pays off for many images
        watch: sampling.Watch | None = None,
    ) -> Tensor:
        """Return n images of classes int64 [n], default: drawn, by algorithm 2 from σ_max to 0."""
        x, labels, network = sampling.start(self, n, labels, noise, guidance, batch, precision, compile)
        steps, churn = self.sampling_steps if steps is None else steps, self.churn if churn is None else churn

        def slope(x: Tensor, sigma: float) -> Tensor:
            return (x - self.denoise(network, x, x.new_full((n, 1, 1, 1), sigma), labels)) / sigma

        levels, add_noise = sampling.noise_levels(steps), sampling.churn(churn / steps)
        return sampling.solve(slope, levels, levels[0] * x, solver or self.solver, watch, add_noise).clamp(-1, 1)
