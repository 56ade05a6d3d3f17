"""VAE (Kingma & Welling, ICLR 2014) of three wide stages with pooling, its error on images in [0, 1]."""

from functools import partial
from math import ceil
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Adamax

from models import optim
from models.base import Batch, DataSpec, Losses, Method, Update
from models.types import CooldownSchedule
from models.vae import kl_divergence


class VAEWide(Method):
    reads = ("images",)
    revisions: ClassVar[dict[str, int]] = {"": 1}  # the third stage is 5×5, and the decoder keeps its width

    def __init__(
        self,
        data: DataSpec,
        kl_weight: NonNegativeFloat = 5e-3,  # weight of the KL divergence, nats per dimension, in the loss
        latent: PositiveInt = 128,  # dimensions of the latent code
        width: PositiveInt = 128,  # channels of the first stage; doubled in each further one
        lr: PositiveFloat = 5e-4,  # learning rate at the start
        decay: CooldownSchedule = "cooldown",  # learning rate: cooldown (to 0 in the last fifth), cosine or constant
    ) -> None:
        super().__init__()
        base = ceil(data.size / 8)
        flat = 4 * width * base**2
        self.encoder = nn.Sequential(
            *stage(data.channels, width, 3), *stage(width, 2 * width, 5), *stage(2 * width, 4 * width, 5), nn.Flatten()
        )
        self.mean, self.log_variance = nn.Linear(flat, latent), nn.Linear(flat, latent)
        double = partial(nn.ConvTranspose2d, kernel_size=4, stride=2, padding=1)
        self.decoder = nn.Sequential(
            *(nn.Linear(latent, flat), nn.Unflatten(1, (4 * width, base, base))),
            *(double(4 * width, 4 * width), nn.ReLU(), double(4 * width, 4 * width), nn.ReLU()),
            *(double(4 * width, data.channels), nn.Sigmoid()),
        )
        self.kl_weight, self.latent, self.size = kl_weight, latent, data.size
        self.adamax, self.schedule = partial(Adamax, lr=lr), optim.schedule(decay)

    def updates(self) -> list[Update]:
        return [Update("vae", ("encoder", "mean", "log_variance", "decoder"), self.loss, self.adamax, self.schedule)]

    def loss(self, batch: Batch, progress: float) -> Losses:
        """Return mean squared error and weighted KL divergence per value; `kl`, in nats per image, is only logged."""
        images = batch["images"]
        mean, log_variance = self.encode(images)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        kl = kl_divergence(mean, log_variance).mean()
        error = F.mse_loss(self.decode(code), images) / 4  # the squared error of images in [0, 1]
        return {"reconstruction": error, "weighted_kl": self.kl_weight * kl, "kl": self.latent * kl.detach()}

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the codes, each [n, latent], in the dtype of the images."""
        hidden = self.encoder(images)
        return self.mean(hidden).to(images.dtype), self.log_variance(hidden).to(images.dtype)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the images in [-1, 1] of codes [n, latent], cropped to the image size if it is no multiple of 8."""
        return 2 * self.decoder(codes)[:, :, : self.size, : self.size] - 1

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.decode(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        return self.encode(images)[0]

    def sample(self, n: int, labels: Tensor | None = None) -> Tensor:
        weight = self.mean.weight
        return self.decode(torch.randn(n, self.latent, device=weight.device, dtype=weight.dtype))


def stage(in_channels: int, out_channels: int, kernel: int) -> list[nn.Module]:
    """Return two convolutions and a pooling that halves the size, rounding up."""
    first = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    second = nn.Conv2d(out_channels, out_channels, kernel, padding=kernel // 2)
    return [first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
