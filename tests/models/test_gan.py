"""GANs: layers as published, losses as written down by hand, the penalty against another way to compute it."""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.optim import SGD, Adam, Optimizer

import models
from models.acgan import ACGAN
from models.base import Batch, DataSpec, Method
from models.dcgan import DCGAN
from models.dcgan_resize import DCGANResize, noisy_cross_entropy
from models.nets.convolutional import factor_size
from models.wgan_gp import WGANGP, gradient_penalty
from tests.models.test_methods import trainer
from trainer.config.schema import Train
from trainer.loop import Trainer
from trainer.seeds import seed_torch

FACES = DataSpec(channels=3, size=64, classes=2)
DIGITS = DataSpec(channels=3, size=28, classes=10)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def conv(given: int, made: int, kernel: int) -> int:
    """Weights of a convolution without bias, transposed or not."""
    return given * made * kernel**2


def images(n: int = 6, spec: DataSpec = DIGITS) -> Tensor:
    return torch.rand(n, spec.channels, spec.size, spec.size, generator=torch.Generator().manual_seed(1)) * 2 - 1


# Layers

GENERATOR = conv(100, 512, 4) + conv(512, 256, 4) + conv(256, 128, 4) + conv(128, 64, 4) + conv(64, 3, 4)
TRUNK = conv(3, 64, 4) + conv(64, 128, 4) + conv(128, 256, 4) + conv(256, 512, 4)
HEAD = conv(512, 1, 4)
RESIZING = (conv(100, 256, 3) + 256) + (conv(64, 256, 3) + 256) + (conv(64, 128, 3) + 128) + (conv(32, 128, 3) + 128)


def norms(*widths: int) -> int:
    return 2 * sum(widths)


@pytest.mark.parametrize(
    ("method", "network", "expected"),
    [
        (DCGAN, "generator", GENERATOR + norms(512, 256, 128, 64)),
        (DCGAN, "discriminator", TRUNK + HEAD + norms(128, 256, 512)),
        (WGANGP, "critic", TRUNK + HEAD),
        (ACGAN, "generator", GENERATOR + conv(2, 512, 4) + norms(512, 256, 128, 64)),
        (ACGAN, "discriminator", TRUNK + 3 * HEAD + norms(128, 256, 512)),
        (DCGANResize, "generator", RESIZING + conv(32, 3, 3) + 3 + norms(256, 256, 128, 128)),
        (DCGANResize, "discriminator", TRUNK + HEAD + norms(128, 256, 512)),
    ],
)
def test_parameters_of_the_published_networks(method: type[Method], network: str, expected: int) -> None:
    assert count(getattr(method(FACES), network)) == expected


@pytest.mark.parametrize(("size", "expected"), [(64, (4, 4)), (32, (4, 3)), (28, (7, 2)), (48, (6, 3)), (8, (4, 1))])
def test_stages(size: int, expected: tuple[int, int]) -> None:
    assert factor_size(size) == expected


@pytest.mark.parametrize("size", [4, 7, 27, 30, 36])
def test_a_size_that_cannot_be_halved_down_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"data\.size: {size} is not"):
        DCGAN(DataSpec(3, size, 10))


def test_weights_are_drawn_as_published() -> None:
    for network in DCGAN(FACES).children():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
                assert abs(layer.weight.mean().item()) < 0.002


def test_spectral_norm_bounds_every_convolution_of_the_discriminator() -> None:
    method = DCGANResize(DIGITS, width=8)
    for _ in range(50):  # each forward pass is a step of the power iteration
        method.discriminator(images())
    layers = [layer for layer in method.discriminator if isinstance(layer, nn.Conv2d)]
    assert len(layers) == 3
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, rel=1e-2)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in method.discriminator) == 1


# Losses


def log_sigmoid(x: Tensor) -> Tensor:
    return -torch.log1p(torch.exp(-x.double()))


def test_dcgan_plays_the_game_of_goodfellow() -> None:
    method, real = DCGAN(DIGITS, width=8, smoothing=0.1), images()
    losses = called(method, method.discriminator_loss, {"images": real})
    seed_torch(0)
    d_real, d_fake = method.discriminator(real), method.discriminator(method.sample(6))
    expected = -(0.9 * log_sigmoid(d_real) + 0.1 * log_sigmoid(-d_real)).mean()
    assert losses["real"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["fake"].item() == pytest.approx(-log_sigmoid(-d_fake).mean().item(), rel=1e-5)
    generated = called(method, method.generator_loss, {"images": real})
    assert generated["adversarial"].item() == pytest.approx(-log_sigmoid(d_fake).mean().item(), rel=1e-5)


def test_wgan_follows_equation_3() -> None:
    method, real = WGANGP(DIGITS, width=8, gp_weight=7.0), images()
    losses = called(method, method.critic_loss, {"images": real})
    seed_torch(0)
    fake = method.sample(6)
    mix = torch.rand(6, 1, 1, 1)
    distance = method.critic(real).mean() - method.critic(fake).mean()
    assert losses["difference"].item() == pytest.approx(-distance.item(), rel=1e-5)
    assert losses["distance"].item() == pytest.approx(distance.item(), rel=1e-5)
    assert not losses["distance"].requires_grad
    penalty = 7 * gradient_penalty(method.critic, real, fake, mix)
    assert losses["penalty"].item() == pytest.approx(penalty.item(), rel=1e-5)
    assert called(method, method.generator_loss, {"images": real})["adversarial"].item() == pytest.approx(
        -method.critic(fake).mean().item(), rel=1e-5
    )


def test_the_two_heads_of_acgan() -> None:
    method, real = ACGAN(DIGITS, width=8, class_weight=0.5), images()
    labels = torch.tensor([0, 1, 2, 3, 4, 9])
    losses = called(method, method.discriminator_loss, {"images": real, "labels": labels})
    seed_torch(0)
    given = torch.randint(10, (6,))
    fake = method.decode(torch.randn(6, 100), given)
    for kind, picture, truth, sign in (("real", real, labels, 1), ("fake", fake, given, -1)):
        logits = method.discriminator(picture)
        assert logits.shape == (6, 11)
        assert losses[kind].item() == pytest.approx(-log_sigmoid(sign * logits[:, 0]).mean().item(), rel=1e-5)
        named = F.log_softmax(logits[:, 1:], dim=1)[torch.arange(6), truth]
        assert losses[f"weighted_{kind}_class"].item() == pytest.approx(-0.5 * named.mean().item(), rel=1e-5)
        assert losses[f"{kind}_class"].item() == pytest.approx(-named.mean().item(), rel=1e-5)
        assert not losses[f"{kind}_class"].requires_grad


def test_acgan_draws_pairs_from_the_same_noise() -> None:
    method = ACGAN(DIGITS, width=8).eval()
    pairs = []
    for label in (3, 5):
        seed_torch(0)
        pairs.append(method.sample(4, torch.full((4,), label)))
    seed_torch(0)
    noise = torch.randn(4, 100)
    assert torch.equal(pairs[0], method.decode(noise, torch.full((4,), 3)))
    assert not torch.equal(pairs[0], pairs[1])


def test_soft_and_noisy_labels() -> None:
    """Binary cross-entropy is linear in the label: many draws end at that of the mean label."""
    logits = torch.full((200_000, 1), 0.7)
    mean = (0.7 + 1.03) / 2
    expected = -(mean * log_sigmoid(logits[0]) + (1 - mean) * log_sigmoid(-logits[0]))
    assert noisy_cross_entropy(logits, 0.7, 1.03).item() == pytest.approx(expected.item(), rel=1e-3)
    spread = torch.stack([noisy_cross_entropy(logits[:1], 0.7, 1.03) for _ in range(200)]).std().item()
    assert spread == pytest.approx(0.7 * (1.03 - 0.7) / math.sqrt(12), rel=0.2)


# Whole steps, as written by hand: the terms of each update of an iteration, in float64


def cross_entropy(logits: Tensor, truth: Tensor | float) -> Tensor:
    return -(truth * log_sigmoid(logits) + (1 - truth) * log_sigmoid(-logits)).mean()


noise = partial(torch.randn, 6, 100, 1, 1, dtype=torch.float64)
uniform = partial(torch.rand, 6, 1, dtype=torch.float64)


def dcgan(method: DCGAN, real: Tensor, labels: Tensor) -> Iterator[dict[str, Tensor]]:
    D, G = method.discriminator, method.generator
    yield {"real": cross_entropy(D(real), 0.9), "fake": cross_entropy(D(G(noise())), 0)}
    yield {"adversarial": cross_entropy(D(G(noise())), 1)}


def dcgan_resize(method: DCGANResize, real: Tensor, labels: Tensor) -> Iterator[dict[str, Tensor]]:
    D, G = method.discriminator, method.generator
    yield {
        "real": cross_entropy(D(real), 0.7 + (1.03 - 0.7) * uniform()),
        "fake": cross_entropy(D(G(noise())), 0.33 * uniform()),
    }
    yield {"adversarial": cross_entropy(D(G(noise())), 1)}


def wgan_gp(method: WGANGP, real: Tensor, labels: Tensor) -> Iterator[dict[str, Tensor]]:
    D, G = method.critic, method.generator
    fake = G(noise()).detach()
    distance = (D(real) - D(fake)).mean()
    mix = uniform()[:, :, None, None]
    penalty = penalty_by_jacobians(D, mix * real + (1 - mix) * fake)
    yield {"difference": -distance, "penalty": 10 * penalty, "distance": distance.detach()}
    yield {"adversarial": -D(G(noise())).mean()}


def acgan(method: ACGAN, real: Tensor, labels: Tensor) -> Iterator[dict[str, Tensor]]:
    D, G = method.discriminator, method.generator

    def judged(pictures: Tensor, truth: float, named: Tensor) -> tuple[Tensor, Tensor]:
        logits = D(pictures)
        return cross_entropy(logits[:, 0], truth), -F.log_softmax(logits[:, 1:], 1)[range(6), named].mean()

    def drawn() -> tuple[Tensor, Tensor]:
        asked = torch.randint(10, (6,))
        return G(torch.cat([noise(), torch.eye(10)[asked, :, None, None]], 1)), asked

    (real_source, real_class), (pictures, asked) = judged(real, 1, labels), drawn()
    fake_source, fake_class = judged(pictures, 0, asked)
    classes = {"real_class": real_class, "fake_class": fake_class}
    weighted = {f"weighted_{name}": 0.5 * loss for name, loss in classes.items()}
    logged = {name: loss.detach() for name, loss in classes.items()}
    yield {"real": real_source, "fake": fake_source, **weighted, **logged}
    pictures, asked = drawn()
    source, named = judged(pictures, 1, asked)
    yield {"adversarial": source, "weighted_class": 0.5 * named, "class": named.detach()}


ADAM = partial(Adam, lr=2e-4, betas=(0.5, 0.999))


@pytest.mark.parametrize(
    ("by_hand", "build", "optimizers", "every"),
    [
        (dcgan, partial(DCGAN, smoothing=0.1), (ADAM, ADAM), 1),
        (dcgan_resize, DCGANResize, (partial(SGD, lr=1e-3, momentum=0.5), partial(ADAM, lr=1e-4)), 1),
        (wgan_gp, WGANGP, [partial(Adam, lr=1e-4, betas=(0.0, 0.9))] * 2, 5),
        (acgan, partial(ACGAN, class_weight=0.5), (ADAM, ADAM), 1),
    ],
)
def test_steps_are_those_written_by_hand_with_the_published_optimizers(
    by_hand: Callable[[Method, Tensor, Tensor], Iterator[dict[str, Tensor]]],
    build: Callable[..., Method],
    optimizers: list[Callable[..., Optimizer]],
    every: int,
) -> None:
    seed_torch(0, "weights")
    method = build(DIGITS, width=4).double()
    expected = deepcopy(method).to(memory_format=torch.channels_last)  # as trained: dropout draws in memory's order
    training = trained(method, steps=6)
    rows = training.settle()
    networks = [getattr(expected, update.trains[0]) for update in training.updates]
    hand = [make(network.parameters()) for make, network in zip(optimizers, networks, strict=True)]
    for ours, theirs in zip(training.optimizers.values(), hand, strict=True):
        assert type(ours) is type(theirs)
        assert ours.defaults == theirs.defaults
    for step in range(6):
        seed_torch(0, step, 0)
        row = {}
        due = [0] if step % every else [0, 1]
        for number, terms in zip(due, by_hand(expected, images().double(), torch.arange(6)), strict=False):
            hand[number].zero_grad()
            sum(terms.values(), torch.zeros(())).backward()
            hand[number].step()
            row.update({f"{training.updates[number].name}/{name}": term.item() for name, term in terms.items()})
        assert rows[step] == pytest.approx(row, rel=1e-5, abs=1e-7)
    found = method.state_dict()
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(found[key], value, rtol=1e-7, atol=1e-9)


# The gradient penalty


def penalty_by_jacobians(critic: nn.Module, points: Tensor) -> Tensor:
    """One sample at a time, by functional Jacobians in float64."""
    parameters = {name: value.double() for name, value in critic.named_parameters()}

    def score(point: Tensor) -> Tensor:
        return torch.func.functional_call(critic, parameters, (point[None],)).squeeze()

    gradients = vmap(jacrev(score))(points.double())
    return (gradients.flatten(1).square().sum(1).sqrt() - 1).square().mean()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_gradient_penalty_and_its_gradient(dtype: torch.dtype | None) -> None:
    """Of points in full precision, also within autocast."""
    critic = WGANGP(DIGITS, width=4).critic
    for parameter in critic.parameters():  # as trained: with slopes that matter
        parameter.data.mul_(5)
    real, fake = images(4), images(4).flip(0)
    mix = torch.tensor([0.0, 0.3, 0.7, 1.0]).view(4, 1, 1, 1)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        ours = gradient_penalty(critic, real, fake, mix)
    assert ours.dtype == torch.float32
    reference = penalty_by_jacobians(critic, mix * real + (1 - mix) * fake)
    assert ours.item() == pytest.approx(reference.item(), rel=1e-4)
    found = torch.autograd.grad(ours, list(critic.parameters()))
    expected = torch.autograd.grad(reference, list(critic.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "gp_weight", "tolerance"),
    [
        (torch.bfloat16, 10, 0.05),
        (torch.float16, 10, 2e-3),
        # So heavy a penalty hides that the distance is in half precision, and shows that the penalty is not.
        (torch.bfloat16, 1000, 1e-3),
        (torch.float16, 1000, 1e-4),
    ],
)
def test_a_step_of_the_critic_in_half_precision(dtype: torch.dtype, gp_weight: float, tolerance: float) -> None:
    """Its gradient is that in float64 at the same points; fp16, which Accelerate denies to a CPU, as on a GPU."""
    seed_torch(0, "weights")
    method, real = WGANGP(DIGITS, width=4, gp_weight=gp_weight), images(4)
    for parameter in method.critic.parameters():  # as trained: with slopes that matter
        parameter.data.mul_(5)
    training = trainer(method)
    training.accelerator.autocast = lambda: torch.autocast("cpu", dtype)  # type: ignore[method-assign]
    if dtype is torch.float16:
        training.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # type: ignore[misc]
    seed_torch(0)
    with torch.no_grad(), training.accelerator.autocast():
        fake, mix = method.sample(4).double(), torch.rand(4, 1, 1, 1)
    critic = deepcopy(method.critic).double().requires_grad_()
    difference = critic(fake).mean() - critic(real.double()).mean()
    (difference + gp_weight * penalty_by_jacobians(critic, mix * real + (1 - mix) * fake)).backward()
    seed_torch(0)
    training.apply(training.updates[0], {"images": real})
    # With a beta1 of 0 Adam keeps the gradient as it was, unscaled.
    kept = [state["exp_avg"] for state in training.optimizers["critic"].state.values()]
    for found, parameter in zip(kept, critic.parameters(), strict=True):
        assert parameter.grad is not None
        assert found.dtype == torch.float32
        assert (found - parameter.grad).norm() < tolerance * parameter.grad.norm()


def test_gradient_penalty_of_parts_is_that_of_the_whole() -> None:
    critic, real = WGANGP(DIGITS, width=4).critic, images(4)
    mix = torch.rand(4, 1, 1, 1)
    whole = gradient_penalty(critic, real, -real, mix)
    parts = [gradient_penalty(critic, real[i : i + 2], -real[i : i + 2], mix[i : i + 2]) for i in (0, 2)]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize("critic_iters", [1, 2, 5])
def test_the_critic_is_updated_critic_iters_times_per_generator(critic_iters: int) -> None:
    training = trained(WGANGP(DIGITS, width=4, critic_iters=critic_iters), steps=10)
    rows = training.settle()
    assert [step for step, row in rows.items() if "critic/penalty" in row] == list(range(10))
    assert [step for step, row in rows.items() if "generator/adversarial" in row] == list(range(0, 10, critic_iters))


@pytest.mark.parametrize("name", ["dcgan", "dcgan_resize", "wgan_gp", "acgan"])
def test_a_moving_average_of_the_generator_is_exported_where_asked(name: str) -> None:
    training = trained(models.load(name)(DIGITS, width=4, ema=0.9), steps=3)
    assert list(training.averages) == ["generator"]
    now, mean = dict(training.method.named_parameters()), dict(training.averages.named_parameters())
    assert all(not torch.equal(mean[key], now[key]) for key in mean if "bias" not in key)
    assert not trained(models.load(name)(DIGITS, width=4), steps=1).averages


def trained(method: Method, steps: int) -> Trainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    training = Trainer(method, Accelerator(cpu=True), Train(steps=steps, batch_size=6))
    batch = {"images": images().to(next(method.parameters()).dtype), "labels": torch.arange(6)}
    for _ in training.fit(batch for _ in range(steps)):
        pass
    return training


def called(method: Method, loss: object, batch: Batch) -> dict[str, Tensor]:
    """The loss on one draw of noise; batch norm leaves no trace that the next call could see."""
    method.train()
    seed_torch(0)
    terms: dict[str, Tensor] = loss(batch, 0.5)  # type: ignore[operator]
    return terms
