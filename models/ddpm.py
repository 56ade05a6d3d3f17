"""DDPM (Ho et al., NeurIPS 2020) with classifier-free guidance (Ho & Salimans, 2022) and DDIM sampling."""

from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim import AdamW

from models import optim, sampling
from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets import unet
from models.nets.diffusion import Diffusion
from models.types import Share, UNetName, at_most


class DDPM(Method):
    """Guidance of weight w is (1 + w) eps(x, class) - w eps(x), eq. 6 of Ho & Salimans; 0 means no guidance.

    The scale s of eps(x) + s (eps(x, class) - eps(x)), which others use, is 1 + w. Each sampling step clips the
    predicted image to [-1, 1] and derives the noise from it (diffusers: clip_sample and use_clipped_model_output).
    """

    reads: ClassVar[tuple[str, ...]] = ("images", "labels")
    check = "unet"
    conditional = True
    revisions: ClassVar[dict[str, int]] = {
        "attention_unet": 1
    }  # the second block of each upward stage has a middle of half the width
    added_later: ClassVar[dict[str, object]] = {"residual": "all"}

    def __init__(
        self,
        data: DataSpec,
        timesteps: PositiveInt = 400,  # T: noise levels in training; sampling may take fewer steps
        net: UNetName = "context_unet",  # context_unet or attention_unet (in nets/)
        width: PositiveInt | None = None,  # channels of the first block; default: as published, 128 or 64
        residual: Literal[
            "all", "first"
        ] = "all",  # residual blocks of context_unet: all, or only the first as published
        drop: Share = 0.1,  # probability of dropping the class label (classifier-free guidance)
        schedule: Literal["linear", "cosine"] = "linear",  # noise schedule: linear or cosine
        beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4,  # linear schedule: noise variance added at time 0
        beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02,  # linear schedule: noise variance added at time T - 1
        predicts: Literal["noise", "velocity"] = "noise",  # target of the network: noise, or velocity a noise - s x_0
        lr: PositiveFloat = 1e-4,  # learning rate at the start
        decay: Literal["cosine", "constant"] = "cosine",  # learning rate: cosine or constant
        floor: Annotated[float, Field(ge=0, le=1)] = 0.01,  # final learning rate of the cosine, relative to lr
        weight_decay: NonNegativeFloat = 0.0,  # decoupled weight decay of AdamW
        ema: Share = 0.999,  # decay of the moving average of the network that is exported; 0: no average
        sampling_steps: Annotated[PositiveInt | None, at_most("timesteps")] = None,  # sampling steps; default: T
        eta: Annotated[float, Field(ge=0, le=1)] | None = None,  # 0: DDIM, 1: DDPM; default: 1 at T steps, else 0
        guidance: NonNegativeFloat = 2.0,  # w: weight of classifier-free guidance; 0: no guidance
    ) -> None:
        super().__init__()
        self.classes = data.classes if self.conditional else 0
        self.shape = (data.channels, data.size, data.size)
        options = {"residual": residual} if net == "context_unet" else {}
        self.network = unet.build(net, data, self.classes, width, timesteps, **options)
        self.diffusion = Diffusion(timesteps, schedule, beta_start, beta_end)
        self.drop, self.predicts = drop, predicts
        self.sampling_steps, self.eta, self.guidance = sampling_steps, eta, guidance
        self.check_steps(sampling_steps, "model.sampling_steps")
        self.averaged = {"network": ema} if ema else {}
        self.optimizer = partial(AdamW, lr=lr, weight_decay=weight_decay)
        self.lr_schedule = optim.schedule(decay, floor)

    @property
    def timesteps(self) -> int:
        """Return the number of noise levels T that the network is trained at."""
        return self.diffusion.timesteps

    def updates(self) -> list[Update]:
        return [Update("denoise", ("network",), self.loss, self.optimizer, self.lr_schedule)]

    def loss(self, batch: Batch, progress: float) -> Losses:
        """Return the mean squared error of the predicted noise (eq. 14) or velocity, at uniformly drawn times."""
        images = batch["images"]
        t = torch.randint(self.timesteps, (len(images),), device=images.device)
        noise = torch.randn_like(images)
        a, s = self.diffusion.scales(t, images.dtype)
        target = noise if self.predicts == "noise" else a * noise - s * images
        labels = sampling.drop_labels(batch, self.classes, self.drop)
        return {"mse": F.mse_loss(self.network(self.diffusion.add_noise(images, t, noise), t, labels), target)}

    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        *,
        steps: PositiveInt | None = None,  # at most T; default of this, eta and guidance: the hyperparameter
        eta: Annotated[float, Field(ge=0, le=1)] | None = None,
        guidance: NonNegativeFloat | None = None,
        noise: Tensor | None = None,  # [n, channels, size, size] to start from; default: drawn
        batch: PositiveInt | None = None,  # images per call of the network; default: all n
        precision: Literal["no", "bf16"] = "no",  # of the network
        compile: bool = False,  # compile the network: takes a minute, pays off for many images
        watch: sampling.Watch | None = None,
    ) -> Tensor:
        """Return n images of classes int64 [n], default: drawn. The noise depends neither on classes nor on `batch`.

        `watch` is called before the first and after each step with the time, T - 1 down to -1, and x
        [n, channels, size, size] at that time. ValueError names an invalid argument.
        """
        steps = self.check_steps(self.sampling_steps if steps is None else steps, "steps")
        eta = self.eta if eta is None else eta
        eta = float(steps == self.timesteps) if eta is None else eta
        if not 0 <= eta <= 1:
            raise ValueError(f"eta: {eta} is not 0 (DDIM) to 1 (DDPM)")
        x, labels, network = sampling.start(self, n, labels, noise, guidance, batch, precision, compile)
        times = sampling.spaced_times(self.timesteps, steps)
        step = sampling.ddim(self.diffusion, times, self.predicts, eta, x)
        return sampling.integrate(network, step, times, x, labels, watch)

    def check_steps(self, steps: int | None, name: str) -> int:
        """Return the number of sampling steps, T if None; ValueError if it is not 1 to T."""
        if steps is not None and not 1 <= steps <= self.timesteps:
            raise ValueError(
                f"{name}: {steps} is not 1 to {self.timesteps}, the timesteps that the network is trained at"
            )
        return steps or self.timesteps
