"""WGAN-GP (Gulrajani et al., NeurIPS 2017): the generator lowers a distance that a critic of bounded slope measures."""

from functools import partial

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Adam

from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets.convolutional import discriminator, generator
from models.types import Share


class WGANGP(Method):
    reads = ("images",)

    def __init__(
        self,
        data: DataSpec,
        critic_iters: PositiveInt = 5,  # updates of the critic per update of the generator, algorithm 1
        gp_weight: NonNegativeFloat = 10.0,  # lambda of the gradient penalty, eq. 3
        latent: PositiveInt = 100,  # dimensions of the noise
        width: PositiveInt = 64,  # channels next to the image; each stage away from it has twice as many
        lr: PositiveFloat = 1e-4,
        beta1: Share = 0.0,  # of Adam, algorithm 1
        beta2: Share = 0.9,
        ema: Share = 0.0,  # decay of the moving average of the generator that is exported; 0: none
    ) -> None:
        super().__init__()
        self.generator = generator(latent, data.channels, data.size, width)
        # Batch norm would make the penalty of one sample depend on the others, sec. 4.
        self.critic = discriminator(data.channels, data.size, width, norm=False)
        self.critic_iters, self.gp_weight = critic_iters, gp_weight
        self.averaged = {"generator": ema} if ema else {}
        self.adam = partial(Adam, lr=lr, betas=(beta1, beta2))

    def updates(self) -> list[Update]:
        return [
            Update("critic", ("critic",), self.criticise, self.adam),
            Update("generator", ("generator",), self.generate, self.adam, every=self.critic_iters),
        ]

    def criticise(self, batch: Batch, progress: float) -> Losses:
        """Eq. 3. `distance`, the critic's estimate of Wasserstein's, is only logged."""
        real = batch["images"]
        fake = self.generator.draw(len(real))
        difference = self.critic(fake).float().mean() - self.critic(real).float().mean()
        mix = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
        penalty = self.gp_weight * gradient_penalty(self.critic, real, fake.to(real.dtype), mix)
        return {"difference": difference, "penalty": penalty, "distance": -difference.detach()}

    def generate(self, batch: Batch, progress: float) -> Losses:
        return {"adversarial": -self.critic(self.generator.draw(len(batch["images"]))).float().mean()}

    def sample(self, n: int, labels: Tensor | None = None) -> Tensor:
        return self.generator.draw(n)


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Mean of (|gradient of the critic| - 1)² at mix * real + (1 - mix) * fake, eq. 3; mix [n, 1, 1, 1] in [0, 1].

    In full precision whatever surrounds it: a square of a derivative of a derivative is beyond half precision.
    """
    with torch.autocast(real.device.type, enabled=False):
        points = torch.lerp(fake, real, mix).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
