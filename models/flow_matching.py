"""Flow matching (Lipman et al., ICLR 2023) along the straight paths of rectified flow (Liu et al., ICLR 2023)."""

from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim import Adam

from models import optim, sampling
from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets import unet
from models.types import Share, Solver, UNetName


class FlowMatching(Method):
    """A path is x_t = (1 - t) noise + t image, its velocity image - noise. Guidance of weight w is that of DDPM."""

    reads: ClassVar[tuple[str, ...]] = ("images", "labels")
    check = "unet"
    conditional = True

    def __init__(
        self,
        data: DataSpec,
        net: UNetName = "context_unet",  # context_unet or attention_unet (in nets/)
        width: PositiveInt | None = None,  # channels of the first block; default: as published, 128 or 64
        drop: Share = 0.1,  # probability of dropping the class label (classifier-free guidance)
        times: Literal["uniform", "logit_normal"] = "uniform",  # of training; logit_normal: Esser et al. (ICML 2024)
        lr: PositiveFloat = 1e-4,  # learning rate at the start
        decay: Literal["cosine", "constant"] = "cosine",  # learning rate: cosine to lr / 100, or constant
        ema: Share = 0.999,  # decay of the moving average of the network that is exported; 0: no average
        sampling_steps: PositiveInt = 10,  # N; calls of the network: N (euler) or 2 N - 1 (heun)
        solver: Solver = "euler",  # euler or heun, whose last step is Euler's
        guidance: NonNegativeFloat = 2.0,  # w: weight of classifier-free guidance; 0: no guidance
    ) -> None:
        super().__init__()
        self.classes, self.shape = data.classes if self.conditional else 0, (data.channels, data.size, data.size)
        self.network = unet.build(net, data, self.classes, width)
        self.drop, self.times = drop, times
        self.sampling_steps, self.solver, self.guidance = sampling_steps, solver, guidance
        self.averaged = {"network": ema} if ema else {}
        self.optimizer = partial(Adam, lr=lr)
        self.lr_schedule = optim.schedule(decay, floor=0.01)

    def updates(self) -> list[Update]:
        return [Update("match", ("network",), self.loss, self.optimizer, self.lr_schedule)]

    def loss(self, batch: Batch, progress: float) -> Losses:
        """Return the mean squared error of the velocity (Lipman et al., eq. 23 at σ_min = 0)."""
        images = batch["images"]
        t, noise = torch.rand_like(images[:, 0, 0, 0]), torch.randn_like(images)
        if self.times == "logit_normal":
            t = torch.sigmoid(torch.randn_like(t))
        x = torch.lerp(noise, images, t.view(-1, 1, 1, 1))
        labels = sampling.drop_labels(batch, self.classes, self.drop)
        return {"mse": F.mse_loss(self.network(x, unet.TIMES * t, labels), images - noise)}

    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        *,
        steps: PositiveInt | None = None,  # default of this, solver and guidance: the hyperparameter
        solver: Solver | None = None,
        guidance: NonNegativeFloat | None = None,
        noise: Tensor | None = None,  # [n, channels, size, size] to start from; default: drawn
        batch: PositiveInt | None = None,  # images per call of the network; default: all n
        precision: Literal["no", "bf16"] = "no",  # of the network
        compile: bool = False,  # compile the network: takes a minute, pays off for many images
        watch: sampling.Watch | None = None,
    ) -> Tensor:
        """Return n images of classes int64 [n], default: drawn. They are the noise, moved from t = 0 to t = 1."""
        x, labels, network = sampling.start(self, n, labels, noise, guidance, batch, precision, compile)

        def velocity(x: Tensor, t: float) -> Tensor:
            return network(x, x.new_full((n,), unet.TIMES * t), labels)

        times = sampling.unit_times(self.sampling_steps if steps is None else steps)
        return sampling.solve(velocity, times, x, solver or self.solver, watch).clamp(-1, 1)
