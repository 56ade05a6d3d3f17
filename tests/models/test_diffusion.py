"""Diffusion: networks as published, arithmetic as in diffusers, samples that depend only on seed and options."""

import importlib.util
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.base import DataSpec
from models.classifier import Classifier
from models.ddpm import DDPM
from models.ddpm_unconditional import DDPMUnconditional
from models.nets.attention_unet import Attention, AttentionUNet, sinusoids
from models.nets.context_unet import Block, ContextUNet
from models.nets.diffusion import Diffusion
from models.sampling import lerp, slerp, spaced_times
from trainer.data.batches import Batches
from trainer.data.cache import load, stage
from trainer.seeds import seed_torch

DIGITS = DataSpec(channels=3, size=28, classes=10)
CPU = torch.device("cpu")
TINY = DataSpec(channels=1, size=8, classes=3)
SCHEDULES = [(1, "linear"), (50, "linear"), (400, "linear"), (1000, "linear"), (1000, "cosine")]
needs_diffusers = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed: pip install -e '.[test]'"
)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def conv(inputs: int, outputs: int, kernel: int = 3, norm: bool = True, bias: bool = True) -> int:
    return inputs * outputs * kernel**2 + outputs * bias + 2 * outputs * norm


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


# --- networks


def test_context_unet_has_the_published_number_of_parameters() -> None:
    n = 128
    residual = lambda a, b: conv(a, b) + conv(b, b)  # noqa: E731
    embed = lambda a, b: linear(a, b) + linear(b, b)  # noqa: E731
    down = residual(3, n) + residual(n, n) + residual(n, 2 * n)
    embeddings = embed(1, 256) + embed(1, 128) + embed(10, 256) + embed(10, 128)
    up0 = conv(256, 256, 7)
    up1 = conv(512, 128, 2, norm=False) + 2 * residual(128, 128)
    up2 = conv(256, 128, 2, norm=False) + 2 * residual(128, 128)
    out = conv(256, 128) + conv(128, 3, norm=False)
    assert count_parameters(ContextUNet(3, 28, 10, 400)) == down + embeddings + up0 + up1 + up2 + out
    assert count_parameters(ContextUNet(3, 28, 0, 400)) == down + embed(1, 256) + embed(1, 128) + up0 + up1 + up2 + out


def test_attention_unet_has_the_published_number_of_parameters() -> None:
    block = lambda a, b, middle=None: conv(a, middle or b, bias=False) + conv(middle or b, b, bias=False)  # noqa: E731
    stage = lambda a, b, middle=None: block(a, a) + block(a, b, middle) + linear(256, b)  # noqa: E731

    def attention(n: int) -> int:
        return count_parameters(nn.MultiheadAttention(n, 4)) + 2 * count_parameters(nn.LayerNorm(n)) + 2 * linear(n, n)

    down = block(3, 64) + stage(64, 128) + attention(128) + stage(128, 128) + attention(128)
    middle = block(128, 256) + block(256, 128)
    up = stage(256, 64, middle=128) + attention(64) + stage(128, 64, middle=64) + attention(64)
    expected = 10 * 256 + down + middle + up + linear(64, 3)
    assert expected == 4_561_027  # as printed in the report
    assert count_parameters(AttentionUNet(3, 28, 10, 1000)) == expected


def test_only_the_first_block_is_residual_as_in_the_cited_code() -> None:
    """Zero convolutions leave the input of a residual block, and nothing of another one."""
    for residual, expected in (("first", [True, False, False]), ("all", [True, True, True])):
        network = ContextUNet(3, 28, 10, 400, 8, residual).eval()
        blocks = [m for m in network.modules() if isinstance(m, Block)]
        assert len(blocks) == 7
        for block in blocks:
            for weights in block.second.parameters():
                nn.init.zeros_(weights)
        x = torch.randn(2, 3, 8, 8)
        first = network.start(x)
        inner, last = network.down1[0](first), network.up2[2](first)
        assert [out.abs().sum().item() > 0 for out in (first, inner, last)] == expected


def test_attention_matches_torch() -> None:
    attention, reference = Attention(16), nn.MultiheadAttention(16, 4, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": attention.project.weight,
            "in_proj_bias": attention.project.bias,
            "out_proj.weight": attention.merge.weight,
            "out_proj.bias": attention.merge.bias,
        }
    )
    x = torch.randn(2, 16, 3, 3)
    tokens = x.flatten(2).transpose(1, 2)
    normed = attention.norm(tokens)
    tokens = tokens + reference(normed, normed, normed)[0]
    tokens = tokens + attention.forward_layers(tokens)
    torch.testing.assert_close(attention(x), tokens.transpose(1, 2).reshape(x.shape), rtol=1e-4, atol=1e-5)


def test_time_embeddings_are_distinct() -> None:
    vectors = sinusoids(torch.arange(1000))
    assert vectors.shape == (1000, 256)
    assert torch.cdist(vectors, vectors).add(torch.eye(1000) * 9).min() > 0.1


@pytest.mark.parametrize("net", [ContextUNet, AttentionUNet])
def test_network_output_depends_on_image_time_and_class(net: type[ContextUNet] | type[AttentionUNet]) -> None:
    seed_torch(0)
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
    ("net", "size", "width", "message"),
    [
        ("context_unet", 30, 8, r"data\.size: 30 is not divisible by 4"),
        ("context_unet", 28, 4, r"model\.width: 4 is not divisible by 8"),
        ("attention_unet", 30, 8, r"data\.size: 30 is not divisible by 4"),
        ("attention_unet", 28, 6, r"model\.width: 6 is not divisible by 4"),
    ],
)
def test_indivisible_sizes_and_widths_are_rejected(net: Any, size: int, width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DDPM(DataSpec(3, size, 10), net=net, width=width)


# --- arithmetic, against diffusers


def build_schedulers(timesteps: int, schedule: str, exact: bool = True, **options: Any) -> tuple[Any, Any]:
    """Return the DDPM and DDIM schedulers of diffusers, changed from float32 to float64 if `exact`."""
    from diffusers import DDIMScheduler, DDPMScheduler

    kind = {"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule]
    shared = {"num_train_timesteps": timesteps, "beta_schedule": kind, "timestep_spacing": "trailing", **options}
    both = DDPMScheduler(**shared, variance_type="fixed_small"), DDIMScheduler(**shared)
    for scheduler in both if exact else ():
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
def test_noise_schedule_and_noisy_images_match_diffusers(timesteps: int, schedule: str) -> None:
    diffusion, (reference, _) = Diffusion(timesteps, schedule), build_schedulers(timesteps, schedule)
    torch.testing.assert_close(diffusion.share, reference.alphas_cumprod, rtol=1e-5, atol=1e-7)
    plain, _ = build_schedulers(timesteps, schedule, exact=False)
    torch.testing.assert_close(diffusion.share.float(), plain.alphas_cumprod, rtol=0, atol=1e-5)
    images, noise, t = torch.rand(6, 3, 4, 4) * 2 - 1, torch.randn(6, 3, 4, 4), torch.randint(timesteps, (6,))
    expected = reference.add_noise(images.double(), noise.double(), t).float()
    torch.testing.assert_close(diffusion.add_noise(images, t, noise), expected, rtol=1e-5, atol=1e-5)


@needs_diffusers
@pytest.mark.parametrize(("timesteps", "schedule"), SCHEDULES)
def test_posterior_matches_diffusers(timesteps: int, schedule: str) -> None:
    """Compare the mean, from a step of diffusers with the same noise, and the variance."""
    diffusion, (reference, _) = (
        Diffusion(timesteps, schedule),
        build_schedulers(timesteps, schedule, prediction_type="sample"),
    )
    reference.set_timesteps(timesteps)
    for t in {0, 1, timesteps // 2, timesteps - 1} & set(range(timesteps)):
        of_image, of_x, deviation = diffusion.posterior(torch.tensor(t), torch.tensor(t - 1))
        image, x = torch.rand(1, 3, 4, 4) * 2 - 1, torch.randn(1, 3, 4, 4)
        noise_before = torch.get_rng_state()
        sample = reference.step(image, t, x).prev_sample.float()
        torch.set_rng_state(noise_before)
        expected = of_image * image + of_x * x + (deviation * torch.randn(1, 3, 4, 4) if t else 0)
        torch.testing.assert_close(sample, expected.float(), rtol=1e-5, atol=1e-5)
        if t:
            assert deviation.square().item() == pytest.approx(reference._get_variance(t).item(), rel=1e-5)
        else:
            assert deviation == 0


class FixedNetwork(nn.Module):
    """A network whose output is smooth in the image, the time and the class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 1, 1, generator=torch.Generator().manual_seed(2)) * 0.4)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        scaled: Tensor = F.conv2d(x, self.weight) * (1 + 0.002 * t[:, None, None, None])
        return scaled + 0.1 * labels[:, None, None, None]


def build_with_fixed_network(**options: Any) -> DDPM:
    method = DDPM(DIGITS, width=8, **options)
    method.network = FixedNetwork()
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
def test_samples_from_the_same_noise_match_diffusers(
    predicts: Any, timesteps: int, schedule: Any, steps: int, eta: float | None, guidance: float
) -> None:
    """Compare whole trajectories with the DDPM scheduler (ancestral) or the DDIM scheduler; guidance is by hand."""
    method = build_with_fixed_network(timesteps=timesteps, schedule=schedule, predicts=predicts).double()
    kind = {"noise": "epsilon", "velocity": "v_prediction"}[predicts]
    ddpm, ddim = build_schedulers(timesteps, schedule, prediction_type=kind, clip_sample=True)
    reference = ddpm if eta is None else ddim
    reference.set_timesteps(steps)
    assert [*reference.timesteps.tolist(), -1] == spaced_times(timesteps, steps)
    labels, start = torch.tensor([1, 7]), torch.randn(2, 3, 28, 28).double()
    trajectory: list[tuple[int, Tensor]] = []
    seed_torch(5)
    last = method.sample(
        2, labels, steps=steps, eta=eta, guidance=guidance, noise=start, watch=lambda t, x: trajectory.append((t, x))
    )
    seed_torch(5)
    x, expected = start, [start]
    for t in reference.timesteps:
        with torch.no_grad():
            conditional, unconditional = (method.network(x, t.expand(2), c) for c in (labels, torch.full((2,), 10)))
        prediction = unconditional + (1 + guidance) * (conditional - unconditional)
        if eta is None:
            x = reference.step(prediction, t, x).prev_sample
        else:
            fresh_noise = torch.randn_like(x) if eta and t != reference.timesteps[-1] else torch.zeros_like(x)
            options = {"eta": eta, "use_clipped_model_output": True, "variance_noise": fresh_noise}
            x = reference.step(prediction, t, x, **options).prev_sample
        expected.append(x)
    assert [t for t, _ in trajectory] == spaced_times(timesteps, steps)
    for (_, a), b in zip(trajectory, expected, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-5, atol=1e-5)
    assert last.abs().max() <= 1


@needs_diffusers
def test_slerp_matches_diffusers() -> None:
    from diffusers.pipelines.deprecated.audio_diffusion import AudioDiffusionPipeline

    a, b = torch.randn(3, 8, 8), torch.randn(3, 8, 8)
    for share in (0.1, 0.5, 0.9):
        torch.testing.assert_close(slerp(a, b, share), AudioDiffusionPipeline.slerp(a, b, share), rtol=1e-5, atol=1e-5)


# --- interpolation


@pytest.mark.parametrize("interpolate", [slerp, lerp])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_interpolation_endpoints_are_exact(interpolate: Any, dtype: torch.dtype) -> None:
    a = torch.randn(3, 5, 5, dtype=dtype)
    for b in (torch.randn(3, 5, 5, dtype=dtype), -a, a.clone()):
        assert torch.equal(interpolate(a, b, 0.0), a)
        assert torch.equal(interpolate(a, b, 1.0), b)


def test_slerp_keeps_the_norm_that_lerp_reduces() -> None:
    a, b = torch.randn(3, 28, 28), torch.randn(3, 28, 28)
    length = (a.norm() + b.norm()) / 2
    assert slerp(a, b, 0.5).norm() == pytest.approx(length.item(), rel=0.02)
    assert lerp(a, b, 0.5).norm() < 0.75 * length


@pytest.mark.parametrize("size", [48, 49])
def test_slerp_handles_equal_and_opposite_noises(size: int) -> None:
    a = torch.randn(size)
    for share in (0.0, 0.3, 1.0):
        torch.testing.assert_close(slerp(a, a, share), a)
    path = torch.stack([slerp(a, -a, share / 10) for share in range(11)])
    assert torch.equal(path[0], a)
    assert torch.equal(path[-1], -a)
    torch.testing.assert_close(path.norm(dim=1), a.norm().expand(11), rtol=1e-5, atol=0)
    steps = (path[1:] - path[:-1]).norm(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand(10), rtol=1e-4, atol=0)
    assert slerp(torch.zeros(4), torch.ones(4), 0.5).isfinite().all()
    torch.testing.assert_close(slerp(torch.tensor([0.3]), torch.tensor([-0.7]), 0.5), torch.tensor([-0.2]))


# --- samples


def build_tiny(**options: Any) -> DDPM:
    seed_torch(0, "weights")
    return DDPM(TINY, **{"width": 8, "timesteps": 12, **options}).eval()


@torch.inference_mode()
def draw_samples(method: DDPM, n: int = 4, seed: int = 3, labels: Tensor | None = None, **options: Any) -> Tensor:
    seed_torch(seed)
    return method.sample(n, labels, **options)


@pytest.mark.parametrize("net", ["context_unet", "attention_unet"])
@pytest.mark.parametrize("options", [{}, {"steps": 5}, {"steps": 5, "eta": 0.5}, {"guidance": 0.0}])
def test_samples_depend_on_the_seed_but_not_on_the_batch_size(net: Any, options: Any) -> None:
    method, labels = build_tiny(net=net), torch.tensor([0, 1, 2, 1])
    first = draw_samples(method, labels=labels, **options)
    assert torch.equal(draw_samples(method, labels=labels, **options), first)
    assert not torch.equal(draw_samples(method, seed=4, labels=labels, **options), first)
    for batch in (1, 3):
        torch.testing.assert_close(
            draw_samples(method, labels=labels, batch=batch, **options), first, rtol=1e-4, atol=1e-5
        )


def test_samples_at_eta_0_depend_on_the_initial_noise_alone() -> None:
    method, noise, labels = build_tiny(), torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    options: dict[str, Any] = {"labels": labels, "noise": noise, "steps": 6}
    assert torch.equal(draw_samples(method, seed=1, **options), draw_samples(method, seed=2, **options)), (
        "eta is 0 below T steps"
    )
    assert not torch.equal(
        draw_samples(method, seed=1, eta=0.1, **options),
        draw_samples(method, seed=2, eta=0.1, **options),
    )
    options["steps"] = 12
    assert not torch.equal(draw_samples(method, seed=1, **options), draw_samples(method, seed=2, **options)), (
        "and 1 at T"
    )


def test_sampling_defaults_come_from_the_hyperparameters() -> None:
    default, configured = build_tiny(), build_tiny(sampling_steps=5, eta=0.3, guidance=1.0)
    assert torch.equal(draw_samples(configured), draw_samples(default, steps=5, eta=0.3, guidance=1.0))


class Operations(TorchDispatchMode):
    """Record the names of the operations that run inside; `_local_scalar_dense` waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.names.append(function.overloadpacket.__name__)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_guided_step_calls_the_network_once_and_never_synchronises(eta: float) -> None:
    method, times, positions = build_tiny(), list[int](), list[int]()
    calls: list[tuple[int, ...]] = []
    method.network.register_forward_hook(lambda _module, _inputs, output: calls.append(tuple(output.shape)))
    with torch.no_grad(), Operations() as seen:  # in inference mode, compound operations would hide their parts

        def watch(t: int, x: Tensor) -> None:
            times.append(t)
            positions.append(len(seen.names))

        method.sample(4, steps=5, eta=eta, watch=watch)
        within = seen.names[positions[0] : positions[-1]]
        torch.ones(1).item()
    assert times == [11, 9, 6, 4, 1, -1]
    assert calls == [(8, 1, 8, 8)] * 5
    assert "_local_scalar_dense" in seen.names, "a wait is recognised by this operation"
    assert not {"_local_scalar_dense", "nonzero", "equal"} & set(within)
    calls.clear()
    draw_samples(method, steps=5, guidance=0.0)
    assert calls == [(4, 1, 8, 8)] * 5


def test_bf16_and_compiled_samples_match_within_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compile the graph only; the benchmark also generates code, which takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    method = build_tiny()
    exact = draw_samples(method, steps=5)
    compiled = draw_samples(method, steps=5, compile=True)
    torch.testing.assert_close(compiled, exact, rtol=1e-3, atol=1e-3)
    half = draw_samples(method, steps=5, precision="bf16")
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().mean() < 0.05


def test_unconditional_method_rejects_labels() -> None:
    method = DDPMUnconditional(TINY, width=8, timesteps=12).eval()
    assert method.reads == ("images",)
    assert not any("context" in key for key in method.state_dict())
    assert draw_samples(method).shape == (4, 1, 8, 8)
    with pytest.raises(ValueError, match="is unconditional"):
        method.sample(2, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 13}, r"steps: 13 is not 1 to 12"),
        ({"steps": 0}, r"steps: 0 is not 1 to 12"),
        ({"guidance": -0.5}, r"guidance: -0\.5"),
        ({"eta": 1.5}, r"eta: 1\.5"),
        (
            {"noise": torch.zeros(4, 3, 8, 8)},
            r"noise: has the shape \(4, 3, 8, 8\); 4 images start from \(4, 1, 8, 8\)",
        ),
        ({"guidance": math.nan}, r"guidance: nan"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, r"labels: 3 is not a class; classes are 0 to 2"),
        ({"labels": torch.tensor([0, 1])}, r"labels: have the shape \(2,\); 4 images need \(4,\)"),
    ],
)
def test_invalid_sampling_arguments_are_rejected(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_samples(build_tiny(), **options)


def test_more_sampling_steps_than_timesteps_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"model\.sampling_steps: 13 is not 1 to 12"):
        build_tiny(sampling_steps=13)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"timesteps": 8}, r"trained at 8 timesteps, not 12; set model\.timesteps: 8"),
        ({"schedule": "cosine"}, "another noise schedule"),
    ],
)
def test_weights_of_another_noise_schedule_are_rejected(other: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        build_tiny().load_state_dict(build_tiny(**other).state_dict())


# --- training


@pytest.mark.parametrize("predicts", ["noise", "velocity"])
def test_loss_matches_a_manual_computation(predicts: Any) -> None:
    """A class is dropped with probability 0.5, by the last random numbers, and where it is unknown (-1)."""
    method = build_tiny(predicts=predicts, drop=0.5)
    images, labels = torch.rand(8, 1, 8, 8) * 2 - 1, torch.tensor([0, 1, 2, -1, 0, 1, 2, 0])
    seed_torch(7)
    loss = method.loss({"images": images, "labels": labels}, 0.0)["mse"]
    seed_torch(7)
    t, noise, dropped = torch.randint(12, (8,)), torch.randn(8, 1, 8, 8), torch.rand(8) < 0.5
    beta = torch.linspace(1e-4, 0.02, 12)
    total = 0.0
    for i in range(8):
        share = torch.prod(1 - beta[: t[i] + 1])
        x = share.sqrt() * images[i] + (1 - share).sqrt() * noise[i]
        label = 3 if dropped[i] or labels[i] < 0 else labels[i]
        prediction = method.network(x[None], t[i : i + 1], torch.tensor([label]))[0]
        velocity = share.sqrt() * noise[i] - (1 - share).sqrt() * images[i]
        total += (prediction - (noise[i] if predicts == "noise" else velocity)).square().mean().item() / 8
    assert 0 < dropped.sum() < 8
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_learning_rate_decays_to_its_floor() -> None:
    (update,) = build_tiny(floor=0.01).updates()
    assert [update.schedule(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.505, 0.01])
    (update,) = build_tiny(decay="constant").updates()
    assert update.schedule(0.7) == 1.0


def test_one_batch_is_memorised_and_reconstructed_by_ddim() -> None:
    """Start from the noisy batch at the last time: a third of the variance is the image, two thirds are noise."""
    seed_torch(0, "images")
    images, labels = torch.rand(6, 1, 8, 8).mul(2).sub(1).round(), torch.arange(6) % 3
    method = build_tiny(timesteps=100, width=16, drop=0.0).train()
    optimizer = torch.optim.Adam(method.network.parameters(), 3e-3)
    batch = {"images": images.repeat(8, 1, 1, 1), "labels": labels.repeat(8)}
    noised = method.diffusion.add_noise(images, torch.full((6,), 99), torch.randn_like(images))

    def error() -> float:
        reconstructed = draw_samples(method.eval(), 6, labels=labels, noise=noised, steps=20, eta=0.0, guidance=0.0)
        return F.mse_loss(reconstructed, images).item()

    before = error()
    method.train()
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 + math.cos(math.pi * step / 300)) / 2
        optimizer.zero_grad()
        method.loss(batch, 0.0)["mse"].backward()
        optimizer.step()
    after = error()
    assert after < 0.05, (before, after)
    assert after < before / 5, (before, after)


def test_samples_match_their_class_after_short_training(tmp_path: Path) -> None:
    """Judge samples of 8×8 digits by a classifier that is accurate on test images; chance is 0.1."""
    stage("digits", tmp_path)
    train, test = (load("digits", split, tmp_path) for split in ("train", "test"))
    spec = DataSpec(channels=1, size=8, classes=10)

    def fit(method: Any, steps: int) -> Any:
        (update,) = method.updates()
        optimizer = update.optimizer(method.network.parameters())
        rate, batches = optimizer.param_groups[0]["lr"], Batches({"": train}, method.reads, 64, 0, 0, 1, CPU)
        for step in range(steps):
            seed_torch(step)
            optimizer.param_groups[0]["lr"] = rate * update.schedule(step / steps)
            optimizer.zero_grad()
            sum(update.loss(batches.at(step), step / steps).values()).backward()
            optimizer.step()
        return method.eval()

    seed_torch(0, "weights")
    classifier = fit(Classifier(spec), 150)
    with torch.no_grad():
        predictions = classifier.predict(torch.from_numpy(np.array(test.images)).float() / 127.5 - 1).argmax(1).numpy()
    assert (predictions == test.labels).mean() > 0.95
    method = fit(DDPM(spec, width=16, timesteps=100, schedule="cosine", lr=3e-3), 300)
    labels = torch.arange(10).repeat_interleave(20)
    with torch.no_grad():
        predictions = classifier.predict(draw_samples(method, 200, labels=labels, steps=10)).argmax(1)
    assert (predictions == labels).float().mean() > 0.5
