"""Diffusion: networks as published, arithmetic as in diffusers, samples that are a function of seed and settings."""

import importlib.util
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import DataSpec
from models.ddpm import DDPM
from models.nets.attention_unet import Attention, AttentionUNet, sinusoids
from models.nets.context_unet import ContextUNet
from models.nets.diffusion import Diffusion, slerp, spaced
from trainer.loop import seed

DIGITS = DataSpec(channels=3, size=28, classes=10)
TINY = DataSpec(channels=1, size=8, classes=3)
SCHEDULES = [(1, "linear"), (50, "linear"), (400, "linear"), (1000, "linear"), (1000, "cosine")]
needs_diffusers = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed: pip install -e '.[test]'"
)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def conv(given: int, made: int, kernel: int = 3, norm: bool = True, bias: bool = True) -> int:
    return given * made * kernel**2 + made * bias + 2 * made * norm


def linear(given: int, made: int) -> int:
    return given * made + made


# --- networks


def test_parameters_of_the_context_unet() -> None:
    n = 128
    residual = lambda given, made: conv(given, made) + conv(made, made)  # noqa: E731
    embed = lambda given, made: linear(given, made) + linear(made, made)  # noqa: E731
    down = residual(3, n) + residual(n, n) + residual(n, 2 * n)
    embeddings = embed(1, 256) + embed(1, 128) + embed(10, 256) + embed(10, 128)
    up0 = conv(256, 256, 7)
    up1 = conv(512, 128, 2, norm=False) + 2 * residual(128, 128)
    up2 = conv(256, 128, 2, norm=False) + 2 * residual(128, 128)
    out = conv(256, 128) + conv(128, 3, norm=False)
    assert count(ContextUNet(3, 28, 10, 400)) == down + embeddings + up0 + up1 + up2 + out
    assert count(ContextUNet(3, 28, 0, 400)) == down + embed(1, 256) + embed(1, 128) + up0 + up1 + up2 + out


def test_parameters_of_the_attention_unet() -> None:
    block = lambda given, made: conv(given, made, bias=False) + conv(made, made, bias=False)  # noqa: E731
    stage = lambda given, made: block(given, given) + block(given, made) + linear(256, made)  # noqa: E731
    torchs = lambda n: count(nn.MultiheadAttention(n, 4)) + 2 * count(nn.LayerNorm(n)) + 2 * linear(n, n)  # noqa: E731
    down = block(3, 64) + stage(64, 128) + torchs(128) + stage(128, 128) + torchs(128)
    middle = block(128, 256) + block(256, 128)
    up = stage(256, 64) + torchs(64) + stage(128, 64) + torchs(64)
    assert count(AttentionUNet(3, 28, 10, 1000)) == 10 * 256 + down + middle + up + linear(64, 3)


def test_attention_is_that_of_torch() -> None:
    ours, torchs = Attention(16), nn.MultiheadAttention(16, 4, batch_first=True)
    torchs.load_state_dict(
        {
            "in_proj_weight": ours.project.weight,
            "in_proj_bias": ours.project.bias,
            "out_proj.weight": ours.merge.weight,
            "out_proj.bias": ours.merge.bias,
        }
    )
    x = torch.randn(2, 16, 3, 3)
    tokens = x.flatten(2).transpose(1, 2)
    normed = ours.norm(tokens)
    tokens = tokens + torchs(normed, normed, normed)[0]
    tokens = tokens + ours.forward_layers(tokens)
    torch.testing.assert_close(ours(x), tokens.transpose(1, 2).reshape(x.shape), rtol=1e-4, atol=1e-5)


def test_times_are_told_apart() -> None:
    vectors = sinusoids(torch.arange(1000))
    assert vectors.shape == (1000, 256)
    assert torch.cdist(vectors, vectors).add(torch.eye(1000) * 9).min() > 0.1


@pytest.mark.parametrize("net", [ContextUNet, AttentionUNet])
def test_a_network_looks_at_image_time_and_class(net: type[ContextUNet] | type[AttentionUNet]) -> None:
    seed(0)
    network = net(3, 12, 10, 50, 8).eval()
    x, t, labels = torch.randn(2, 3, 12, 12), torch.tensor([3, 3]), torch.tensor([4, 4])
    first = network(x, t, labels)
    assert first.shape == x.shape
    for other in (
        network(x, t + 20, labels),
        network(x, t, labels + 1),
        network(x, t, labels + 6),
        network(-x, t, labels),
    ):
        assert not torch.allclose(first, other, atol=1e-6)
    assert not torch.allclose(network(x, t, labels + 1), network(x, t, labels + 6), atol=1e-6)


@pytest.mark.parametrize(
    ("net", "size", "width"), [("context_unet", 30, 8), ("context_unet", 28, 4), ("attention_unet", 30, 8)]
)
def test_shapes_that_do_not_fit_a_network_are_refused(net: Any, size: int, width: int) -> None:
    with pytest.raises(ValueError, match=rf"data\.size:? {size} .*model\.width {width}"):
        DDPM(DataSpec(3, size, 10), net=net, width=width)


# --- arithmetic, against diffusers


def schedulers(timesteps: int, schedule: str, **options: Any) -> tuple[Any, Any]:
    """DDPM's and DDIM's of diffusers, which count in float32, told to count in float64."""
    from diffusers import DDIMScheduler, DDPMScheduler

    kind = {"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule]
    shared = {"num_train_timesteps": timesteps, "beta_schedule": kind, "timestep_spacing": "trailing", **options}
    both = DDPMScheduler(**shared, variance_type="fixed_small"), DDIMScheduler(**shared)
    for scheduler in both:
        beta = (
            torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64)
            if schedule == "linear"
            else scheduler.betas.double()
        )
        scheduler.betas, scheduler.alphas, scheduler.alphas_cumprod = beta, 1 - beta, (1 - beta).cumprod(0)
        scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return both


@needs_diffusers
@pytest.mark.parametrize(("timesteps", "schedule"), SCHEDULES)
def test_schedule_and_noised_images_are_those_of_diffusers(timesteps: int, schedule: str) -> None:
    diffusion, (reference, _) = Diffusion(timesteps, schedule), schedulers(timesteps, schedule)
    torch.testing.assert_close(diffusion.share, reference.alphas_cumprod, rtol=1e-5, atol=1e-7)
    images, noise, t = torch.rand(6, 3, 4, 4) * 2 - 1, torch.randn(6, 3, 4, 4), torch.randint(timesteps, (6,))
    expected = reference.add_noise(images.double(), noise.double(), t).float()
    torch.testing.assert_close(diffusion.noised(images, t, noise), expected, rtol=1e-5, atol=1e-5)


@needs_diffusers
@pytest.mark.parametrize(("timesteps", "schedule"), SCHEDULES)
def test_the_posterior_is_that_of_diffusers(timesteps: int, schedule: str) -> None:
    """Mean, by what a step of diffusers makes without noise of two images, and variance."""
    diffusion, (reference, _) = (
        Diffusion(timesteps, schedule),
        schedulers(timesteps, schedule, prediction_type="sample"),
    )
    reference.set_timesteps(timesteps)
    for t in {0, 1, timesteps // 2, timesteps - 1} & set(range(timesteps)):
        of_image, of_x, deviation = diffusion.posterior(torch.tensor(t), torch.tensor(t - 1))
        image, x = torch.rand(1, 3, 4, 4) * 2 - 1, torch.randn(1, 3, 4, 4)
        noise_before = torch.get_rng_state()
        made = reference.step(image, t, x).prev_sample.float()
        torch.set_rng_state(noise_before)
        expected = of_image * image + of_x * x + (deviation * torch.randn(1, 3, 4, 4) if t else 0)
        torch.testing.assert_close(made, expected.float(), rtol=1e-5, atol=1e-5)
        if t:
            assert deviation.square().item() == pytest.approx(reference._get_variance(t).item(), rel=1e-3, abs=1e-9)
        else:
            assert deviation == 0


class Fixed(nn.Module):
    """A network whose answer is smooth in the image, the time and the class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 1, 1, generator=torch.Generator().manual_seed(2)) * 0.4)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        moved: Tensor = F.conv2d(x, self.weight) * (1 + 0.002 * t[:, None, None, None])
        return moved + 0.1 * labels[:, None, None, None]


def with_fixed(**options: Any) -> DDPM:
    method = DDPM(DIGITS, width=8, **options)
    method.network = Fixed()  # type: ignore[assignment]
    return method


@needs_diffusers
@pytest.mark.parametrize("predicts", ["noise", "velocity"])
@pytest.mark.parametrize(
    ("timesteps", "schedule", "steps", "eta"),
    [
        (60, "linear", 60, None),
        (60, "cosine", 60, None),
        (1000, "linear", 10, 0.0),
        (1000, "linear", 20, 0.5),
        (1000, "cosine", 20, 1.0),
        (400, "linear", 50, 0.0),
        (1, "linear", 1, None),
    ],
)
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_samples_are_those_of_diffusers_from_the_same_noise(
    predicts: Any, timesteps: int, schedule: Any, steps: int, eta: float | None, guidance: float
) -> None:
    """Whole trajectories: ancestral ones by its DDPM scheduler, the others by its DDIM scheduler; guidance by hand."""
    method = with_fixed(timesteps=timesteps, schedule=schedule, predicts=predicts).double()
    kind = {"noise": "epsilon", "velocity": "v_prediction"}[predicts]
    ddpm, ddim = schedulers(timesteps, schedule, prediction_type=kind, clip_sample=True)
    reference = ddpm if eta is None else ddim
    reference.set_timesteps(steps)
    assert reference.timesteps.tolist() == spaced(timesteps, steps)
    labels, start = torch.tensor([1, 7]), torch.randn(2, 3, 28, 28).double()
    ours: list[tuple[int, Tensor]] = []
    seed(5)
    last = method.sample(
        2, labels, steps=steps, eta=eta, guidance=guidance, noise=start, watch=lambda t, x: ours.append((t, x))
    )
    seed(5)
    x, theirs = start, [start]
    for t in reference.timesteps:
        with torch.no_grad():
            known, free = (method.network(x, t.expand(2), c) for c in (labels, torch.full((2,), 10)))
        made = free + (1 + guidance) * (known - free)
        if eta is None:
            x = reference.step(made, t, x).prev_sample
        else:
            drawn = torch.randn_like(x) if eta and t != reference.timesteps[-1] else torch.zeros_like(x)
            options = {"eta": eta, "use_clipped_model_output": True, "variance_noise": drawn}
            x = reference.step(made, t, x, **options).prev_sample
        theirs.append(x)
    assert [t for t, _ in ours] == [*spaced(timesteps, steps), -1]
    for (_, a), b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-5, atol=1e-5)
    assert last.abs().max() <= 1


@needs_diffusers
def test_slerp_is_that_of_diffusers() -> None:
    from diffusers.pipelines.deprecated.audio_diffusion import AudioDiffusionPipeline

    a, b = torch.randn(3, 8, 8), torch.randn(3, 8, 8)
    for share in (0.1, 0.5, 0.9):
        torch.testing.assert_close(slerp(a, b, share), AudioDiffusionPipeline.slerp(a, b, share), rtol=1e-5, atol=1e-5)
