"""WGAN-GP (Gulrajani et al., NeurIPS 2017): a Wasserstein GAN whose critic has a gradient penalty."""

from functools import partial
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Adam

from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets.augment import augmentation
from models.nets.convolutional import discriminator, generator
from models.nets.layers import input_gradient
from models.types import Augment, Share


class WGANGP(Method):
    reads = ("images",)
    check = "doublings"
    differentiated_twice = ("critic",)  # by the gradient penalty
    added_later: ClassVar[dict[str, object]] = {"augment": "none"}

    def __init__(
        self,
        data: DataSpec,
        critic_iters: PositiveInt = 5,  # critic updates per generator update (algorithm 1)
        gp_weight: NonNegativeFloat = 10.0,  # λ: weight of the gradient penalty (eq. 3)
        latent: PositiveInt = 100,  # dimensions of the latent noise
        width: PositiveInt = 64,  # channels of the layer next to the image; doubled at each halving of its size
        lr: PositiveFloat = 1e-4,  # learning rate of Adam
        beta1: Share = 0.0,  # β1 of Adam (algorithm 1)
        beta2: Share = 0.9,  # β2 of Adam
        ema: Share = 0.0,  # decay of the moving average of the generator that is exported; 0: no average
        augment: Augment = "none",  # differentiable augmentation of real and generated images (nets/augment.py)
    ) -> None:
        super().__init__()
        self.generator = generator(latent, data.channels, data.size, width)
        # Without batch norm, which would make the penalty of one sample depend on the others (sec. 4).
        self.critic = discriminator(data.channels, data.size, width, norm=False)
        self.critic_iters, self.gp_weight, self.augment = critic_iters, gp_weight, augmentation(augment)
        self.averaged = {"generator": ema} if ema else {}
        self.adam = partial(Adam, lr=lr, betas=(beta1, beta2))

    def updates(self) -> list[Update]:
        return [
            Update("critic", ("critic",), self.critic_loss, self.adam),
            Update("generator", ("generator",), self.generator_loss, self.adam, every=self.critic_iters),
        ]

    def critic_loss(self, batch: Batch, progress: float) -> Losses:
        """Return the terms of eq. 3; `distance`, the estimated Wasserstein distance, is only logged."""
        real = self.augment(batch["images"])
        fake = self.augment(self.generator.sample(len(real)))
        difference = self.critic(fake).float().mean() - self.critic(real).float().mean()
        mix = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
        penalty = self.gp_weight * gradient_penalty(self.critic, real, fake.to(real.dtype), mix)
        return {"difference": difference, "penalty": penalty, "distance": -difference.detach()}

    def generator_loss(self, batch: Batch, progress: float) -> Losses:
        fake = self.augment(self.generator.sample(len(batch["images"])))
        return {"adversarial": -self.critic(fake).float().mean()}

    def sample(self, n: int, labels: Tensor | None = None) -> Tensor:
        return self.generator.sample(n)


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Return the mean of (‖∇ critic(x)‖ - 1)² at x = mix * real + (1 - mix) * fake, with mix [n, 1, 1, 1] in [0, 1]."""
    return (input_gradient(critic, torch.lerp(fake, real, mix)).norm(dim=1) - 1).square().mean()
