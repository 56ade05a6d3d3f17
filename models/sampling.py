"""Sample from noise in steps: what diffusion and flow methods share."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol, get_args

import torch
from torch import Tensor, nn

from models.base import Batch
from models.nets.diffusion import Diffusion
from models.types import Solver

Network = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, times [n], labels [n]) -> prediction, shaped like x
Step = Callable[[int, Tensor, Tensor], Tensor]  # (i, x at times[i], prediction) -> x at times[i + 1]
Watch = Callable[[int, Tensor], None]  # called with a time and x at that time
Slope = Callable[[Tensor, float], Tensor]  # (x, time) -> dx/dt, shaped like x
Churn = Callable[[Tensor, float], tuple[Tensor, float]]  # (x, time) -> x with more noise, and its time
SOLVERS = get_args(Solver)


def integrate(
    network: Network,
    step: Step,
    times: list[int],
    x: Tensor,
    labels: Tensor,
    watch: Watch | None = None,
) -> Tensor:
    """Return x [n, c, h, w] at times[-1], from x at times[0] and one call of the network per step.

    `watch` is called before the first and after each step.
    """
    # Copy all times to the device before the first step, so that no step waits for a transfer.
    t = torch.tensor(times[:-1], device=x.device)[:, None].expand(-1, len(x))
    watch = watch or (lambda time, x: None)
    watch(times[0], x)
    for i, time in enumerate(times[1:]):
        x = step(i, x, network(x, t[i], labels))
        watch(time, x)
    return x


def solve(
    slope: Slope, times: list[float], x: Tensor, solver: str, watch: Watch | None = None, churn: Churn | None = None
) -> Tensor:
    """Return x [n, c, h, w] at times[-1], from x at times[0] and its slope dx/dt.

    "euler" computes the slope once a step, "heun" twice but in the last step: 2 steps - 1 calls of the network. `churn`
    adds noise before each step. This is algorithm 2 of Karras et al. (NeurIPS 2022). `watch` is called before the first
    and after each step with the number of steps to come less one. ValueError for another solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver: {solver!r} is not one of {', '.join(SOLVERS)}")
    watch = watch or (lambda time, x: None)
    last = len(times) - 2
    watch(last, x)
    for i, (time, end) in enumerate(pairwise(times)):
        if churn:
            x, time = churn(x, time)
        d = slope(x, time)
        if solver == "heun" and i < last:
            d = (d + slope(x + (end - time) * d, end)) / 2
        x = x + (end - time) * d
        watch(last - 1 - i, x)
    return x


def unit_times(steps: int) -> list[float]:
    """Return the times of that many equal steps from 0 to 1; ValueError for less than a step."""
    check_steps(steps)
    return [i / steps for i in range(steps + 1)]


def check_steps(steps: int) -> None:
    """Raise ValueError for less than a step."""
    if steps < 1:
        raise ValueError(f"steps: {steps} is not 1 or more")


def noise_levels(steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> list[float]:
    """Return the noise levels of that many steps, from `high` to `low`, and 0 at the end: eq. 5 of Karras et al.

    ValueError for less than a step.
    """
    check_steps(steps)
    start, end = high ** (1 / rho), low ** (1 / rho)
    return [*((start + i / max(1, steps - 1) * (end - start)) ** rho for i in range(steps)), 0.0]


def churn(strength: float) -> Churn | None:
    """Return a function that raises a noise level by the factor 1 + min(strength, √2 - 1); None for no strength.

    Lines 5 and 6 of algorithm 2 of Karras et al., with S_churn / N as strength, at all noise levels, and S_noise 1.
    ValueError for a negative strength.
    """
    if not strength >= 0:
        raise ValueError(f"churn: {strength} is not 0 (no noise) or more")
    gamma = min(strength, 2**0.5 - 1)

    def add_noise(x: Tensor, sigma: float) -> tuple[Tensor, float]:
        higher = (1 + gamma) * sigma
        return x + (higher**2 - sigma**2) ** 0.5 * torch.randn_like(x), higher

    return add_noise if gamma else None


def ddim(diffusion: Diffusion, times: list[int], predicts: str, eta: float, like: Tensor) -> Step:
    """Return the step of DDIM (Song et al., ICLR 2021), of DDPM at eta = 1, for predicted "noise" or "velocity".

    The predicted image is clipped to [-1, 1]. Coefficients have the dtype and device of `like`.
    """
    t = torch.tensor(times, device=like.device)
    a, s = diffusion.scales(t[:-1], like.dtype)
    image_weight, x_weight, deviation = (part.to(like.dtype) for part in diffusion.posterior(t[:-1], t[1:], eta))

    def step(i: int, x: Tensor, prediction: Tensor) -> Tensor:
        image = (x - s[i] * prediction) / a[i] if predicts == "noise" else a[i] * x - s[i] * prediction
        x = image_weight[i] * image.clamp(-1, 1) + x_weight[i] * x
        if eta > 0 and times[i + 1] >= 0:
            x = x + deviation[i] * torch.randn(x.shape, dtype=x.dtype, device=x.device)
        return x

    return step


class Conditional(Protocol):
    """A method that samples with classifier-free guidance; `classes` is 0 if it is unconditional."""

    network: nn.Module
    shape: tuple[int, int, int]
    classes: int
    guidance: float


def start(
    method: Conditional,
    n: int,
    labels: Tensor | None,
    noise: Tensor | None,
    guidance: float | None,
    batch: int | None,
    precision: str,
    compile: bool,
) -> tuple[Tensor, Tensor, Network]:
    """Return the noise [n, c, h, w] to start from, labels [n], and the network under guidance.

    The network is called for at most `batch` images at a time, in `precision` ("no" or "bf16"), and returns the dtype
    of x. ValueError names an invalid argument.
    """
    guidance = method.guidance if guidance is None else guidance
    if not guidance >= 0:
        raise ValueError(f"guidance: {guidance} is not 0 (no guidance) or more")
    x = start_noise((n, *method.shape), noise, next(method.network.parameters()))
    labels = start_labels(n, method.classes, labels, x.device)
    network = torch.compile(method.network) if compile else method.network
    whole = guide(network, guidance, method.classes) if method.classes and guidance else network

    def call(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            chunks = zip(*(tensor.split(batch or len(x)) for tensor in (x, t, labels)), strict=True)
            prediction = torch.cat([whole(*chunk) for chunk in chunks]) if batch else whole(x, t, labels)
        return prediction.to(x.dtype)

    return x, labels, call


def drop_labels(batch: Batch, classes: int, drop: float) -> Tensor:
    """Return labels int64 [n] with a share `drop` of them, and unknown ones (-1), replaced by `classes`: no class."""
    images = batch["images"]
    labels = torch.full((len(images),), classes, device=images.device)
    if not classes:
        return labels
    dropped = torch.rand(len(images), device=images.device) < drop
    return torch.where(dropped | (batch["labels"] < 0), labels, batch["labels"])


def guide(network: Network, weight: float, no_class: int) -> Network:
    """Return the network under classifier-free guidance: (1 + w) eps(x, class) - w eps(x), in one call for both.

    The label `no_class` stands for no class. Ho & Salimans (2022), eq. 6.
    """

    def guided(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        both = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, torch.full_like(labels, no_class)]))
        conditional, unconditional = both.to(x.dtype).chunk(2)
        return torch.lerp(unconditional, conditional, 1 + weight)

    return guided


def start_noise(shape: tuple[int, ...], noise: Tensor | None, like: Tensor) -> Tensor:
    """Return `noise`, or draw it if None, in the dtype and on the device of `like`; ValueError for another shape."""
    if noise is not None and tuple(noise.shape) != shape:
        raise ValueError(f"noise: has the shape {tuple(noise.shape)}; {shape[0]} images start from {shape}")
    x = torch.randn(shape, dtype=like.dtype, device=like.device) if noise is None else noise.to(like)
    return x.contiguous(memory_format=torch.channels_last)


def start_labels(n: int, classes: int, labels: Tensor | None, device: torch.device) -> Tensor:
    """Return `labels` int64 [n], or draw them uniformly if None; ValueError if there are no such classes."""
    if labels is None:
        return torch.randint(max(1, classes), (n,), device=device)
    if not classes:
        raise ValueError("labels: this method is unconditional; leave them out")
    if tuple(labels.shape) != (n,):
        raise ValueError(f"labels: have the shape {tuple(labels.shape)}; {n} images need ({n},)")
    if (invalid := (labels < 0) | (labels >= classes)).any():
        raise ValueError(f"labels: {labels[invalid][0].item()} is not a class; classes are 0 to {classes - 1}")
    return labels.to(device)


def spaced_times(timesteps: int, steps: int) -> list[int]:
    """Return the times of that many sampling steps: evenly spaced from T - 1 down, and -1, the image, at the end."""
    return [*(round(timesteps - i * timesteps / steps) - 1 for i in range(steps)), -1]


def lerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Interpolate linearly between two tensors. Between two noises the result is shorter than either."""
    return (1 - share) * start + share * end


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Interpolate along the arc between two noises of one shape (Shoemake, SIGGRAPH 1985), share from 0 to 1.

    Equal noises, and single values, are interpolated linearly. Between opposite noises there are many arcs; this one
    goes through the first noise with its values swapped in pairs and the first of each pair negated.
    """
    if share in (0, 1):
        return (end if share else start).clone()
    a, b = start.double().flatten(), end.double().flatten()
    a_norm, b_norm = a.norm(), b.norm()
    cosine = float((a / a_norm) @ (b / b_norm)) if a_norm > 0 and b_norm > 0 else 1.0
    if cosine > 1 - 1e-12 or a.numel() == 1:
        point = lerp(a, b, share)
    elif cosine < -1 + 1e-12:
        even = a.numel() // 2 * 2
        normal = torch.zeros_like(a)
        normal[0:even:2], normal[1:even:2] = -a[1:even:2], a[0:even:2]
        if not normal.any():
            normal[0] = 1
        direction = math.cos(math.pi * share) * a / a_norm + math.sin(math.pi * share) * (normal / normal.norm())
        point = lerp(a_norm, b_norm, share) * direction
    else:
        angle = math.acos(cosine)
        point = (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)
    return point.view_as(start).to(start.dtype)
