"""DDPM (Ho et al., NeurIPS 2020) with classifier-free guidance (Ho & Salimans, 2022) and DDIM sampling."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim import AdamW

from models import optim
from models.base import Batch, DataSpec, Losses, Method, Update
from models.nets.attention_unet import AttentionUNet
from models.nets.context_unet import ContextUNet
from models.nets.diffusion import Diffusion, spaced
from models.types import Share, at_most

NETS: dict[str, type[ContextUNet] | type[AttentionUNet]] = {
    "context_unet": ContextUNet,
    "attention_unet": AttentionUNet,
}
PUBLISHED = {"context_unet": 128, "attention_unet": 64}  # width


class DDPM(Method):
    """Guidance of weight w follows (1 + w) eps(x, class) - w eps(x), as eq. 6 of Ho & Salimans: 0 is none.

    Where others write eps(x) + s (eps(x, class) - eps(x)), s is 1 + w. What is left of the image is clipped to [-1, 1]
    in each step, from which the noise follows (diffusers: clip_sample and use_clipped_model_output).
    """

    reads: ClassVar[tuple[str, ...]] = ("images", "labels")
    conditional = True

    def __init__(
        self,
        data: DataSpec,
        timesteps: PositiveInt = 400,  # T that the network is trained at; sampling may take fewer steps
        net: Literal["context_unet", "attention_unet"] = "context_unet",  # the file in models/nets/
        width: PositiveInt | None = None,  # channels of the first block; default: as published, 128 or 64
        drop: Share = 0.1,  # share of images trained without their class, for guidance
        schedule: Literal["linear", "cosine"] = "linear",  # of the noise
        beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4,  # of the linear schedule, variance added at time 0
        beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02,  # and at T - 1
        predicts: Literal["noise", "velocity"] = "noise",  # the velocity is a noise - s x_0
        lr: PositiveFloat = 1e-4,  # at the start
        decay: Literal["cosine", "constant"] = "cosine",  # of lr, over the training
        floor: Annotated[float, Field(ge=0, le=1)] = 0.01,  # share of lr at the end of the cosine
        weight_decay: NonNegativeFloat = 0.0,  # of AdamW; 0: Adam
        ema: Share = 0.999,  # decay of the moving average that is exported; 0: none
        sampling_steps: Annotated[PositiveInt | None, at_most("timesteps")] = None,  # default: all T
        eta: Annotated[float, Field(ge=0, le=1)] | None = None,  # fresh noise: 0 DDIM, 1 DDPM; default: 1 at T steps
        guidance: NonNegativeFloat = 2.0,  # w
    ) -> None:
        super().__init__()
        self.classes = data.classes if self.conditional else 0
        self.shape = (data.channels, data.size, data.size)
        width = width or PUBLISHED[net]
        self.network = NETS[net](data.channels, data.size, self.classes, timesteps, width)
        self.diffusion = Diffusion(timesteps, schedule, beta_start, beta_end)
        self.drop, self.predicts = drop, predicts
        self.sampling_steps, self.eta, self.guidance = sampling_steps, eta, guidance
        self.steps(sampling_steps, "model.sampling_steps")
        self.averaged = {"network": ema} if ema else {}
        self.adam = partial(AdamW, lr=lr, weight_decay=weight_decay)
        falling = optim.schedule(decay)
        self.falling = lambda progress: floor + (1 - floor) * falling(progress)

    @property
    def timesteps(self) -> int:
        """Number of noise levels T that the network is trained at."""
        return self.diffusion.timesteps

    def updates(self) -> list[Update]:
        return [Update("denoise", ("network",), self.loss, self.adam, self.falling)]

    def loss(self, batch: Batch, progress: float) -> Losses:
        """Mean squared error of the noise, eq. 14, or of the velocity, at times drawn evenly."""
        images = batch["images"]
        t = torch.randint(self.diffusion.timesteps, (len(images),), device=images.device)
        noise = torch.randn_like(images)
        a, s = self.diffusion.scales(t, images.dtype)
        target = noise if self.predicts == "noise" else a * noise - s * images
        labels = torch.full_like(t, self.classes)
        if self.classes:
            dropped = torch.rand(len(images), device=images.device) < self.drop
            labels = torch.where(dropped | (batch["labels"] < 0), labels, batch["labels"])
        return {"mse": F.mse_loss(self.network(self.diffusion.noised(images, t, noise), t, labels), target)}

    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        *,
        steps: PositiveInt | None = None,  # at most T; each of these three: default as in the constructor
        eta: Annotated[float, Field(ge=0, le=1)] | None = None,
        guidance: NonNegativeFloat | None = None,
        noise: Tensor | None = None,  # [n, channels, size, size], to start from; default: drawn
        batch: PositiveInt | None = None,  # images that go through the network together; default: all n
        precision: Literal["no", "bf16"] = "no",  # of the network
        compile: bool = False,  # the network: it takes a minute, and pays where many images are made
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Of classes int64 [n], or of classes drawn at random. The noise is the same whatever classes and `batch`.

        `watch` is called with T - 1 and the noise, and after each step with the time that was reached, -1 at last, and
        x [n, channels, size, size] there. ValueError names what cannot be.
        """
        steps = self.steps(self.sampling_steps if steps is None else steps, "steps")
        eta = self.eta if eta is None else eta
        eta = float(steps == self.diffusion.timesteps) if eta is None else eta
        guidance = self.guidance if guidance is None else guidance
        if not guidance >= 0:
            raise ValueError(f"guidance: {guidance} must be 0, none, or more")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta: {eta} must be 0, DDIM, to 1, DDPM")
        x, labels = self.start(n, noise, labels)
        network = torch.compile(self.network) if compile else self.network

        def guided(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            if not (self.classes and guidance):
                return network(x, t, labels)
            none = torch.full_like(labels, self.classes)
            both = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, none]))
            known, free = both.to(x.dtype).chunk(2)
            return torch.lerp(free, known, 1 + guidance)

        # All that depends on the time alone is made, and lies on the device, before the first step.
        times = [*spaced(self.diffusion.timesteps, steps), -1]
        t = torch.tensor(times, device=x.device)
        a, s = self.diffusion.scales(t[:-1], x.dtype)
        of_image, of_x, deviation = (part.to(x.dtype) for part in self.diffusion.posterior(t[:-1], t[1:], eta))
        at = t[:, None].expand(-1, n)
        watch = watch or (lambda t, x: None)
        watch(times[0], x)
        for i in range(steps):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
                parts = zip(*(tensor.split(batch or n) for tensor in (x, at[i], labels)), strict=True)
                prediction = torch.cat([guided(*part) for part in parts]) if batch else guided(x, at[i], labels)
            prediction = prediction.to(x.dtype)
            image = (x - s[i] * prediction) / a[i] if self.predicts == "noise" else a[i] * x - s[i] * prediction
            x = of_image[i] * image.clamp(-1, 1) + of_x[i] * x
            if eta > 0 and times[i + 1] >= 0:
                x = x + deviation[i] * torch.randn(x.shape, dtype=x.dtype, device=x.device)
            watch(times[i + 1], x)
        return x

    def steps(self, steps: int | None, name: str) -> int:
        """Sampling steps, all T where none are given; ValueError if there are more than that."""
        timesteps = self.diffusion.timesteps
        if steps is not None and not 1 <= steps <= timesteps:
            raise ValueError(f"{name}: {steps} is not 1 to {timesteps}, the timesteps that the network is trained at")
        return steps or timesteps

    def start(self, n: int, noise: Tensor | None, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Noise [n, channels, size, size] and classes [n] to start from, drawn if not given; ValueError."""
        like, shape = next(self.network.parameters()), (n, *self.shape)
        if noise is not None and tuple(noise.shape) != shape:
            raise ValueError(f"noise: has the shape {tuple(noise.shape)}; {n} images start from {shape}")
        x = torch.randn(shape, dtype=like.dtype, device=like.device) if noise is None else noise.to(like)
        if labels is None:
            labels = torch.randint(max(1, self.classes), (n,), device=like.device)
        elif not self.classes:
            raise ValueError("labels: this method learns from none; leave them out")
        elif tuple(labels.shape) != (n,):
            raise ValueError(f"labels: have the shape {tuple(labels.shape)}; {n} images want {n}")
        elif (wrong := (labels < 0) | (labels >= self.classes)).any():
            raise ValueError(f"labels: {labels[wrong][0].item()} is none of the classes 0 to {self.classes - 1}")
        return x.contiguous(memory_format=torch.channels_last), labels.to(like.device)
