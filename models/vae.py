"""VAE (Kingma & Welling, ICLR 2014) of five strided convolutions, with a KL weight."""

from functools import partial
from math import ceil

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Adam

from models import optim
from models.base import Batch, DataSpec, Losses, Method, Update
from models.types import CooldownSchedule

BLOCKS = 5


class VAE(Method):
    reads = ("images",)
    least_batch = "five_halvings"

    def __init__(
        self,
        data: DataSpec,
        kl_weight: NonNegativeFloat = 1e-5,  # weight of the KL divergence, nats per image, in the loss
        latent: PositiveInt = 512,  # dimensions of the latent code
        width: PositiveInt = 32,  # channels of the first block; doubled in each further one
        lr: PositiveFloat = 5e-4,  # learning rate at the start
        decay: CooldownSchedule = "cooldown",  # learning rate: cooldown (to 0 in the last fifth), cosine or constant
    ) -> None:
        super().__init__()
        sizes = [data.size]  # of the maps: 64, 32, 16, 8, 4, 2, or 28, 14, 7, 4, 2, 1
        while len(sizes) <= BLOCKS:
            sizes.append(ceil(sizes[-1] / 2))
        widths = [width * 2**i for i in range(BLOCKS)]
        flat = widths[-1] * sizes[-1] ** 2
        down = [block(a, b) for a, b in zip([data.channels, *widths], widths, strict=False)]
        self.encoder = nn.Sequential(*down, nn.Flatten())
        self.mean, self.log_variance = nn.Linear(flat, latent), nn.Linear(flat, latent)
        up = [
            block(a, b, padding=sizes[i] - 2 * sizes[i + 1] + 1)
            for i, a, b in zip(reversed(range(BLOCKS)), widths[::-1], [*widths[-2::-1], width], strict=True)
        ]
        shape = (widths[-1], sizes[-1], sizes[-1])
        last = nn.Conv2d(width, data.channels, 3, padding=1)
        self.decoder = nn.Sequential(nn.Linear(latent, flat), nn.Unflatten(1, shape), *up, last, nn.Tanh())
        self.kl_weight, self.latent = kl_weight, latent
        self.adam, self.schedule = partial(Adam, lr=lr), optim.schedule(decay)

    def updates(self) -> list[Update]:
        return [Update("vae", ("encoder", "mean", "log_variance", "decoder"), self.loss, self.adam, self.schedule)]

    def loss(self, batch: Batch, progress: float) -> Losses:
        """Return mean squared error per value and weighted KL divergence; `kl`, in nats per image, is only logged."""
        images = batch["images"]
        mean, log_variance = self.encode(images)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        kl = kl_divergence(mean, log_variance).sum(1).mean()
        error = F.mse_loss(self.decoder(code), images)
        return {"reconstruction": error, "weighted_kl": self.kl_weight * kl, "kl": kl.detach()}

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the codes, each [n, latent], in the dtype of the images."""
        hidden = self.encoder(images)
        return self.mean(hidden).to(images.dtype), self.log_variance(hidden).to(images.dtype)

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.decoder(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        return self.encode(images)[0]

    def sample(self, n: int, labels: Tensor | None = None) -> Tensor:
        weight = self.mean.weight
        return self.decoder(torch.randn(n, self.latent, device=weight.device, dtype=weight.dtype))


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of N(mean, variance) from N(0, 1), in nats per value (appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def block(in_channels: int, out_channels: int, padding: int | None = None) -> nn.Sequential:
    """Return layers that halve a map or, with an output padding of 0 or 1, enlarge it from h to 2 h - 1 + padding."""
    layer: nn.Module = (
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        if padding is None
        else nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=padding)
    )
    return nn.Sequential(layer, nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.01))
