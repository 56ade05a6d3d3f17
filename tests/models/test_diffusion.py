"""Diffusion: networks as published, arithmetic as in diffusers, samples that are a function of seed and settings."""

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
from models.nets.context_unet import ContextUNet
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
def test_shapes_that_do_not_fit_a_network_are_refused(net: Any, size: int, width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DDPM(DataSpec(3, size, 10), net=net, width=width)


# --- arithmetic, against diffusers


def schedulers(timesteps: int, schedule: str, exact: bool = True, **options: Any) -> tuple[Any, Any]:
    """DDPM's and DDIM's of diffusers, which count in float32, told to count in float64 if `exact`."""
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
def test_schedule_and_noised_images_are_those_of_diffusers(timesteps: int, schedule: str) -> None:
    diffusion, (reference, _) = Diffusion(timesteps, schedule), schedulers(timesteps, schedule)
    torch.testing.assert_close(diffusion.share, reference.alphas_cumprod, rtol=1e-5, atol=1e-7)
    plain, _ = schedulers(timesteps, schedule, exact=False)
    torch.testing.assert_close(diffusion.share.float(), plain.alphas_cumprod, rtol=0, atol=1e-5)
    images, noise, t = torch.rand(6, 3, 4, 4) * 2 - 1, torch.randn(6, 3, 4, 4), torch.randint(timesteps, (6,))
    expected = reference.add_noise(images.double(), noise.double(), t).float()
    torch.testing.assert_close(diffusion.add_noise(images, t, noise), expected, rtol=1e-5, atol=1e-5)


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
            assert deviation.square().item() == pytest.approx(reference._get_variance(t).item(), rel=1e-5)
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
    assert [*reference.timesteps.tolist(), -1] == spaced_times(timesteps, steps)
    labels, start = torch.tensor([1, 7]), torch.randn(2, 3, 28, 28).double()
    ours: list[tuple[int, Tensor]] = []
    seed_torch(5)
    last = method.sample(
        2, labels, steps=steps, eta=eta, guidance=guidance, noise=start, watch=lambda t, x: ours.append((t, x))
    )
    seed_torch(5)
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
    assert [t for t, _ in ours] == spaced_times(timesteps, steps)
    for (_, a), b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-5, atol=1e-5)
    assert last.abs().max() <= 1


@needs_diffusers
def test_slerp_is_that_of_diffusers() -> None:
    from diffusers.pipelines.deprecated.audio_diffusion import AudioDiffusionPipeline

    a, b = torch.randn(3, 8, 8), torch.randn(3, 8, 8)
    for share in (0.1, 0.5, 0.9):
        torch.testing.assert_close(slerp(a, b, share), AudioDiffusionPipeline.slerp(a, b, share), rtol=1e-5, atol=1e-5)


# --- between noises


@pytest.mark.parametrize("way", [slerp, lerp])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_an_interpolation_are_exact(way: Any, dtype: torch.dtype) -> None:
    a = torch.randn(3, 5, 5, dtype=dtype)
    for b in (torch.randn(3, 5, 5, dtype=dtype), -a, a.clone()):
        assert torch.equal(way(a, b, 0.0), a)
        assert torch.equal(way(a, b, 1.0), b)


def test_an_arc_keeps_the_length_that_a_straight_line_loses() -> None:
    a, b = torch.randn(3, 28, 28), torch.randn(3, 28, 28)
    length = (a.norm() + b.norm()) / 2
    assert slerp(a, b, 0.5).norm() == pytest.approx(length.item(), rel=0.02)
    assert lerp(a, b, 0.5).norm() < 0.75 * length


@pytest.mark.parametrize("size", [48, 49])
def test_equal_and_opposite_noises_are_interpolated_too(size: int) -> None:
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


def tiny(**options: Any) -> DDPM:
    seed_torch(0, "weights")
    return DDPM(TINY, **{"width": 8, "timesteps": 12, **options}).eval()


@torch.inference_mode()
def drawn(method: DDPM, n: int = 4, number: int = 3, labels: Tensor | None = None, **options: Any) -> Tensor:
    seed_torch(number)
    return method.sample(n, labels, **options)


@pytest.mark.parametrize("net", ["context_unet", "attention_unet"])
@pytest.mark.parametrize("options", [{}, {"steps": 5}, {"steps": 5, "eta": 0.5}, {"guidance": 0.0}])
def test_samples_are_a_function_of_the_seed_whatever_goes_through_the_network_together(net: Any, options: Any) -> None:
    method, labels = tiny(net=net), torch.tensor([0, 1, 2, 1])
    first = drawn(method, labels=labels, **options)
    assert torch.equal(drawn(method, labels=labels, **options), first)
    assert not torch.equal(drawn(method, number=4, labels=labels, **options), first)
    for batch in (1, 3):
        torch.testing.assert_close(drawn(method, labels=labels, batch=batch, **options), first, rtol=1e-4, atol=1e-5)


def test_without_fresh_noise_the_start_decides_everything() -> None:
    method, noise, labels = tiny(), torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    how: dict[str, Any] = {"labels": labels, "noise": noise, "steps": 6}
    assert torch.equal(drawn(method, number=1, **how), drawn(method, number=2, **how)), "eta is 0 below T steps"
    assert not torch.equal(drawn(method, number=1, eta=0.1, **how), drawn(method, number=2, eta=0.1, **how))
    how["steps"] = 12
    assert not torch.equal(drawn(method, number=1, **how), drawn(method, number=2, **how)), "and 1 at T"


def test_defaults_are_those_of_the_constructor() -> None:
    usual, set_up = tiny(), tiny(sampling_steps=5, eta=0.3, guidance=1.0)
    assert torch.equal(drawn(set_up), drawn(usual, steps=5, eta=0.3, guidance=1.0))


class Operations(TorchDispatchMode):
    """Names of the operations that run inside, of which `_local_scalar_dense` waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), options: Any = None) -> Any:
        self.names.append(function.overloadpacket.__name__)
        return function(*given, **(options or {}))


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_a_step_calls_the_network_once_for_both_halves_and_waits_for_nothing(eta: float) -> None:
    method, times, at = tiny(), list[int](), list[int]()
    calls: list[tuple[int, ...]] = []
    method.network.register_forward_hook(lambda _, given, made: calls.append(tuple(made.shape)))
    with torch.no_grad(), Operations() as seen:  # in inference mode compound operations would hide what they do

        def watch(t: int, x: Tensor) -> None:
            times.append(t)
            at.append(len(seen.names))

        method.sample(4, steps=5, eta=eta, watch=watch)
        within = seen.names[at[0] : at[-1]]
        torch.ones(1).item()
    assert times == [11, 9, 6, 4, 1, -1]
    assert calls == [(8, 1, 8, 8)] * 5
    assert "_local_scalar_dense" in seen.names, "which is how a wait is seen"
    assert not {"_local_scalar_dense", "nonzero", "equal"} & set(within)
    calls.clear()
    drawn(method, steps=5, guidance=0.0)
    assert calls == [(4, 1, 8, 8)] * 5


def test_bf16_and_compiled_networks_give_the_same_images_within_their_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compiled as far as the graph; the benchmark has it turned into code as well, which takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    method = tiny()
    exact = drawn(method, steps=5)
    compiled = drawn(method, steps=5, compile=True)
    torch.testing.assert_close(compiled, exact, rtol=1e-3, atol=1e-3)
    half = drawn(method, steps=5, precision="bf16")
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().mean() < 0.05


def test_a_method_without_labels_reads_and_takes_none() -> None:
    method = DDPMUnconditional(TINY, width=8, timesteps=12).eval()
    assert method.reads == ("images",)
    assert not any("context" in key for key in method.state_dict())
    assert drawn(method).shape == (4, 1, 8, 8)
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
def test_what_cannot_be_sampled_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drawn(tiny(), **options)


def test_a_constructor_refuses_more_sampling_steps_than_there_are_times() -> None:
    with pytest.raises(ValueError, match=r"model\.sampling_steps: 13 is not 1 to 12"):
        tiny(sampling_steps=13)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"timesteps": 8}, r"trained at 8 timesteps, not 12; set model\.timesteps: 8"),
        ({"schedule": "cosine"}, "another noise schedule"),
    ],
)
def test_weights_of_other_times_are_refused(other: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        tiny().load_state_dict(tiny(**other).state_dict())


# --- training


@pytest.mark.parametrize("predicts", ["noise", "velocity"])
def test_the_loss_is_that_of_a_computation_by_hand(predicts: Any) -> None:
    """With drop 0.5: a class is hidden where the last of the numbers drawn says so, and where it is not known."""
    method = tiny(predicts=predicts, drop=0.5)
    images, labels = torch.rand(8, 1, 8, 8) * 2 - 1, torch.tensor([0, 1, 2, -1, 0, 1, 2, 0])
    seed_torch(7)
    loss = method.loss({"images": images, "labels": labels}, 0.0)["mse"]
    seed_torch(7)
    t, noise, hidden = torch.randint(12, (8,)), torch.randn(8, 1, 8, 8), torch.rand(8) < 0.5
    beta = torch.linspace(1e-4, 0.02, 12)
    total = 0.0
    for i in range(8):
        share = torch.prod(1 - beta[: t[i] + 1])
        x = share.sqrt() * images[i] + (1 - share).sqrt() * noise[i]
        label = 3 if hidden[i] or labels[i] < 0 else labels[i]
        made = method.network(x[None], t[i : i + 1], torch.tensor([label]))[0]
        velocity = share.sqrt() * noise[i] - (1 - share).sqrt() * images[i]
        total += (made - (noise[i] if predicts == "noise" else velocity)).square().mean().item() / 8
    assert 0 < hidden.sum() < 8
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_the_learning_rate_falls_to_its_floor() -> None:
    (update,) = tiny(floor=0.01).updates()
    assert [update.schedule(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.505, 0.01])
    (update,) = tiny(decay="constant").updates()
    assert update.schedule(0.7) == 1.0


def test_one_batch_is_learned_by_heart_and_reconstructed_through_ddim() -> None:
    """From the batch as the last time leaves it, a third of its variance and two of noise, drawn again."""
    seed_torch(0, "images")
    images, labels = torch.rand(6, 1, 8, 8).mul(2).sub(1).round(), torch.arange(6) % 3
    method = tiny(timesteps=100, width=16, drop=0.0).train()
    optimizer = torch.optim.Adam(method.network.parameters(), 3e-3)
    batch = {"images": images.repeat(8, 1, 1, 1), "labels": labels.repeat(8)}
    noised = method.diffusion.add_noise(images, torch.full((6,), 99), torch.randn_like(images))

    def error() -> float:
        again = drawn(method.eval(), 6, labels=labels, noise=noised, steps=20, eta=0.0, guidance=0.0)
        return F.mse_loss(again, images).item()

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


def test_after_a_few_seconds_of_training_samples_are_of_their_class(tmp_path: Path) -> None:
    """Of 8×8 digits, judged by a classifier that is right about test images: chance would be 0.1."""
    stage("digits", tmp_path)
    train, test = (load("digits", split, tmp_path) for split in ("train", "test"))
    spec = DataSpec(channels=1, size=8, classes=10)

    def fitted(method: Any, steps: int) -> Any:
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
    classifier = fitted(Classifier(spec), 150)
    with torch.no_grad():
        named = classifier.predict(torch.from_numpy(np.array(test.images)).float() / 127.5 - 1).argmax(1).numpy()
    assert (named == test.labels).mean() > 0.95
    method = fitted(DDPM(spec, width=16, timesteps=100, schedule="cosine", lr=3e-3), 300)
    labels = torch.arange(10).repeat_interleave(20)
    with torch.no_grad():
        named = classifier.predict(drawn(method, 200, labels=labels, steps=10)).argmax(1)
    assert (named == labels).float().mean() > 0.5
