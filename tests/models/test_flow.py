"""Flow matching and EDM: losses, preconditioning and samplers against the papers' equations in float64."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import sampling
from models.base import DataSpec, Method
from models.edm import EDM
from models.flow_matching import FlowMatching
from models.flow_matching_unconditional import FlowMatchingUnconditional
from trainer.seeds import seed_torch

SPEC = DataSpec(channels=1, size=8, classes=3)
BATCH = {"images": torch.rand(6, 1, 8, 8).double() * 2 - 1, "labels": torch.tensor([0, 1, 2, -1, 0, 1])}


class FixedNetwork(nn.Module):
    """A network whose output is smooth in the image, the time and the class; it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        return self.output(x, t[:, None, None, None] / 1000, labels[:, None, None, None].to(x.dtype))

    def output(self, x: Any, time: Any, label: Any) -> Any:
        return 0.3 * self.weight * x + 0.2 * x * time + 0.1 * label


class Zero(nn.Module):
    """A network that returns zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return 0 * x


def build(method: type[Method], network: nn.Module | None = None, **options: Any) -> Any:
    seed_torch(0, "weights")
    built = method(SPEC, width=8, **options).double().eval()
    built.network = network or FixedNetwork()
    return built


@torch.inference_mode()
def draw(method: Any, n: int = 4, seed: int = 3, labels: Tensor | None = None, **options: Any) -> Tensor:
    seed_torch(seed)
    samples: Tensor = method.sample(n, labels, **options)
    return samples


def draw_labels(drop: float) -> list[int]:
    """Return the labels of BATCH with a share dropped by the next random numbers, or unknown: 3."""
    dropped = torch.rand(6) < drop
    return [3 if lost or label < 0 else int(label) for lost, label in zip(dropped, BATCH["labels"], strict=True)]


# --- losses


@pytest.mark.parametrize("times", ["uniform", "logit_normal"])
def test_flow_matching_loss_matches_a_manual_computation(times: Any) -> None:
    method = build(FlowMatching, times=times, drop=0.5)
    seed_torch(7)
    loss = method.loss(BATCH, 0.0)["mse"]
    seed_torch(7)
    t, noise = torch.rand(6, dtype=torch.float64), torch.randn(6, 1, 8, 8, dtype=torch.float64)
    if times == "logit_normal":
        t = 1 / (1 + torch.exp(-torch.randn(6, dtype=torch.float64)))
    labels, total = draw_labels(0.5), 0.0
    assert 0 < labels.count(3) < 6
    for i, image in enumerate(BATCH["images"]):
        x = t[i] * image + (1 - t[i]) * noise[i]
        total += (method.network.output(x, t[i], labels[i]) - (image - noise[i])).square().mean().item() / 6
    assert loss.item() == pytest.approx(total, rel=1e-12)


def test_edm_loss_matches_table_1() -> None:
    """λ(σ) c_out² is 1, so the loss is that of F with the target (y - c_skip (y + n)) / c_out."""
    method = build(EDM, sigma_data=0.4, noise_mean=-0.7, noise_std=0.9, drop=0.5)
    seed_torch(7)
    loss = method.loss(BATCH, 0.0)["mse"]
    seed_torch(7)
    sigmas = torch.exp(-0.7 + 0.9 * torch.randn(6, 1, 1, 1, dtype=torch.float64)).flatten().tolist()
    noise, labels = torch.randn(6, 1, 8, 8, dtype=torch.float64), draw_labels(0.5)
    total = 0.0
    for y, n, s, label in zip(BATCH["images"], noise, sigmas, labels, strict=True):
        c_skip, c_out, c_in = precondition(s, 0.4)
        target = (y - c_skip * (y + s * n)) / c_out
        raw = method.network.output(c_in * (y + s * n), math.log(s) / 4, label)
        total += (raw - target).square().mean().item() / 6
    assert loss.item() == pytest.approx(total, rel=1e-12)


def precondition(s: float, data: float) -> tuple[float, float, float]:
    """Return c_skip, c_out and c_in of table 1."""
    return data**2 / (s**2 + data**2), s * data / math.sqrt(s**2 + data**2), 1 / math.sqrt(s**2 + data**2)


def test_edm_input_and_target_have_unit_variance() -> None:
    """Appendix B.6: that is what the preconditioning is derived from."""
    seed_torch(0)
    y, n = 0.5 * torch.randn(200_000), torch.randn(200_000)
    for s in (0.01, 0.5, 20.0):
        c_skip, c_out, c_in = precondition(s, 0.5)
        assert (c_in * (y + s * n)).std().item() == pytest.approx(1, abs=0.01)
        assert ((y - c_skip * (y + s * n)) / c_out).std().item() == pytest.approx(1, abs=0.01)


# --- samplers


def step(slope: Any, x: Tensor, start: float, end: float, heun: bool) -> Tensor:
    """Return x at `end`, as lines 7 to 11 of algorithm 2 of Karras et al. are printed."""
    d = slope(x, start)
    after = x + (end - start) * d
    return x + (end - start) * (0.5 * d + 0.5 * slope(after, end)) if heun else after


@pytest.mark.parametrize("guidance", [0.0, 2.0])
@pytest.mark.parametrize(("solver", "calls"), [("euler", 5), ("heun", 9)])
def test_flow_matching_samples_match_a_manual_integration(solver: Any, calls: int, guidance: float) -> None:
    method, labels = build(FlowMatching, solver=solver), torch.tensor([2, 0])
    noise, seen = 0.3 * torch.randn(2, 1, 8, 8, dtype=torch.float64), list[int]()
    samples = draw(method, 2, labels=labels, noise=noise, steps=5, guidance=guidance, watch=lambda t, x: seen.append(t))
    assert method.network.calls == calls  # guidance costs no calls, but each has twice the images
    assert seen == [4, 3, 2, 1, 0, -1]

    def velocity(x: Tensor, t: float) -> Tensor:
        known, unknown = (method.network.output(x, t, c) for c in (labels.view(2, 1, 1, 1).double(), 3))
        return (1 + guidance) * known - guidance * unknown

    x = noise
    with torch.no_grad():
        for i in range(5):
            x = step(velocity, x, i / 5, (i + 1) / 5, heun=solver == "heun" and i < 4)
    torch.testing.assert_close(samples, x.clamp(-1, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("churn", [0.0, 2.0, 30.0])
@pytest.mark.parametrize(("solver", "calls"), [("euler", 5), ("heun", 9)])
def test_edm_samples_match_algorithm_2(solver: Any, calls: int, churn: float) -> None:
    method, labels = build(EDM, sigma_data=0.4, solver=solver), torch.tensor([2, 0])
    noise = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    samples = draw(method, 2, labels=labels, noise=noise, steps=5, churn=churn, guidance=0.0)
    assert method.network.calls == calls
    seed_torch(3)
    rho, high, low = 7, 80.0, 0.002
    times = [(high ** (1 / rho) + i / 4 * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(5)] + [0.0]

    def denoise(x: Tensor, s: float) -> Tensor:
        c_skip, c_out, c_in = precondition(s, 0.4)
        return c_skip * x + c_out * method.network.output(c_in * x, math.log(s) / 4, labels.view(2, 1, 1, 1).double())

    x, gamma = 80.0 * noise, min(churn / 5, math.sqrt(2) - 1)
    with torch.no_grad():
        for t, end in pairwise(times):
            raised = t + gamma * t
            if gamma:
                x = x + math.sqrt(raised**2 - t**2) * torch.randn(2, 1, 8, 8, dtype=torch.float64)
            x = step(lambda x, s: (x - denoise(x, s)) / s, x, raised, end, heun=solver == "heun" and end > 0)
    torch.testing.assert_close(samples, x.clamp(-1, 1), rtol=1e-9, atol=1e-11)


def test_samplers_reach_the_exact_solution_for_normal_images() -> None:
    """Of N(0, σ²) images both flows are known: they scale the noise. Heun's error falls faster than Euler's."""
    x = 0.2 * torch.randn(2, 1, 8, 8, dtype=torch.float64)
    deviation = 0.5

    class Normal(Zero):
        def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            t = t[:, None, None, None] / 1000
            return (t * deviation**2 - (1 - t)) / (t**2 * deviation**2 + (1 - t) ** 2) * x

    exact = {FlowMatching: deviation * x, EDM: deviation / math.sqrt(1 + (deviation / 80) ** 2) * x}
    methods = {FlowMatching: build(FlowMatching, Normal()), EDM: build(EDM, Zero(), sigma_data=deviation)}
    for kind, method in methods.items():
        errors = {
            (solver, steps): (draw(method, 2, noise=x, solver=solver, steps=steps) - exact[kind]).norm().item()
            for solver in sampling.SOLVERS
            for steps in (20, 40)
        }
        assert errors["heun", 40] < 0.01 * x.norm()
        assert errors["heun", 20] < errors["euler", 40]  # at equal calls of the network
        assert errors["euler", 20] / errors["euler", 40] == pytest.approx(2, rel=0.25)  # of first order
        assert errors["heun", 20] / errors["heun", 40] > 3  # of second order


@pytest.mark.parametrize("method", [FlowMatching, EDM])
@pytest.mark.parametrize("net", ["context_unet", "attention_unet"])
def test_samples_depend_on_seed_and_class_but_not_on_the_batch_size(method: type[Method], net: str) -> None:
    labels = torch.tensor([0, 1, 2, 1])
    seed_torch(0, "weights")
    built = method(SPEC, width=8, net=net, sampling_steps=2).eval()
    first = draw(built, labels=labels)
    assert torch.equal(draw(built, labels=labels), first)
    assert not torch.equal(draw(built, labels=labels, seed=4), first)
    assert not torch.allclose(draw(built, labels=2 - labels, guidance=5.0), draw(built, labels=labels, guidance=5.0))
    torch.testing.assert_close(draw(built, labels=labels, batch=3), first, rtol=1e-4, atol=1e-5)
    half = draw(built, labels=labels, precision="bf16")
    assert half.dtype == torch.float32
    assert 0 < (half - first).abs().mean() < 0.1


@pytest.mark.parametrize("method", [FlowMatching, EDM])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: 0 is not 1 or more"),
        ({"solver": "rk4"}, "solver: 'rk4' is not one of euler, heun"),
        ({"guidance": -1.0}, r"guidance: -1\.0"),
        ({"noise": torch.zeros(4, 3, 8, 8)}, r"4 images start from \(4, 1, 8, 8\)"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, "labels: 3 is not a class"),
    ],
)
def test_invalid_sampling_arguments_are_rejected(method: type[Method], options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(build(method), **options)


def test_negative_churn_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"churn: -0\.25"):
        draw(build(EDM), steps=4, churn=-1.0)


def test_unconditional_flow_reads_no_labels() -> None:
    method = build(FlowMatchingUnconditional)
    assert method.reads == ("images",)
    assert method.loss({"images": BATCH["images"]}, 0.0)["mse"].isfinite()
    with pytest.raises(ValueError, match="is unconditional"):
        draw(method, 2, labels=torch.zeros(2, dtype=torch.int64))
