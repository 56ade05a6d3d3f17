"""GANs: layers as published, losses and steps against manual implementations, the penalty against Jacobians."""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

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
from models.checks import factor_size
from models.dcgan import DCGAN
from models.dcgan_resize import DCGANResize, noisy_cross_entropy
from models.nets.augment import PARTS, augmentation
from models.r3gan import R3GAN
from models.wgan_gp import WGANGP, gradient_penalty
from tests.models.test_methods import build_trainer
from trainer.config.schema import Train
from trainer.loop import Trainer
from trainer.seeds import seed_torch

FACES = DataSpec(channels=3, size=64, classes=2)
DIGITS = DataSpec(channels=3, size=28, classes=10)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def conv(inputs: int, outputs: int, kernel: int) -> int:
    """Count the weights of a convolution without bias, transposed or not."""
    return inputs * outputs * kernel**2


def create_images(n: int = 6, spec: DataSpec = DIGITS) -> Tensor:
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
def test_networks_have_the_published_number_of_parameters(method: type[Method], network: str, expected: int) -> None:
    assert count_parameters(getattr(method(FACES), network)) == expected


@pytest.mark.parametrize(("size", "expected"), [(64, (4, 4)), (32, (4, 3)), (28, (7, 2)), (48, (6, 3)), (8, (4, 1))])
def test_factor_size(size: int, expected: tuple[int, int]) -> None:
    assert factor_size(size) == expected


@pytest.mark.parametrize("size", [4, 7, 27, 30, 36])
def test_unsupported_image_sizes_are_rejected(size: int) -> None:
    with pytest.raises(ValueError, match=rf"data\.size: {size} must be"):
        DCGAN(DataSpec(3, size, 10))


def test_the_leaky_net_has_the_published_layers() -> None:
    method = DCGAN(FACES, net="leaky", latent=128)
    generator = GENERATOR + conv(28, 512, 4) + norms(512, 256, 128, 64)
    assert count_parameters(method.generator) == generator
    assert {layer.negative_slope for layer in method.generator if isinstance(layer, nn.LeakyReLU)} == {0.2}
    assert not any(isinstance(layer, nn.ReLU) for layer in method.generator)
    convolutions = [layer for layer in method.discriminator if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 1]
    assert [layer.stride[0] for layer in convolutions] == [2, 2, 2, 4]
    assert method.discriminator(create_images(2, FACES)).shape == (2, 4)


def test_weights_are_initialised_as_published() -> None:
    method = DCGAN(FACES)
    scales = torch.cat([layer.weight for layer in method.modules() if isinstance(layer, nn.BatchNorm2d)])
    assert scales.mean().item() == pytest.approx(1, abs=0.002)
    assert scales.std().item() == pytest.approx(0.02, rel=0.05)
    for network in method.children():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
                assert abs(layer.weight.mean().item()) < 0.002


def test_spectral_norm_bounds_every_convolution_of_the_discriminator() -> None:
    method = DCGANResize(DIGITS, width=8)
    for _ in range(50):  # each forward pass is a step of the power iteration
        method.discriminator(create_images())
    layers = [layer for layer in method.discriminator if isinstance(layer, nn.Conv2d)]
    assert len(layers) == 3
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, rel=1e-2)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in method.discriminator) == 1


# Losses


def log_sigmoid(x: Tensor) -> Tensor:
    return -torch.log1p(torch.exp(-x.double()))


def test_dcgan_losses_match_goodfellow() -> None:
    method, real = DCGAN(DIGITS, width=8, smoothing=0.1), create_images()
    losses = call_loss(method, method.discriminator_loss, {"images": real})
    seed_torch(0)
    d_real, d_fake = method.discriminator(real), method.discriminator(method.sample(6))
    expected = -(0.9 * log_sigmoid(d_real) + 0.1 * log_sigmoid(-d_real)).mean()
    assert losses["real"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["fake"].item() == pytest.approx(-log_sigmoid(-d_fake).mean().item(), rel=1e-5)
    generated = call_loss(method, method.generator_loss, {"images": real})
    assert generated["adversarial"].item() == pytest.approx(-log_sigmoid(d_fake).mean().item(), rel=1e-5)


def test_wgan_losses_match_equation_3() -> None:
    method, real = WGANGP(DIGITS, width=8, gp_weight=7.0), create_images()
    losses = call_loss(method, method.critic_loss, {"images": real})
    seed_torch(0)
    fake = method.sample(6)
    mix = torch.rand(6, 1, 1, 1)
    distance = method.critic(real).mean() - method.critic(fake).mean()
    assert losses["difference"].item() == pytest.approx(-distance.item(), rel=1e-5)
    assert losses["distance"].item() == pytest.approx(distance.item(), rel=1e-5)
    assert not losses["distance"].requires_grad
    penalty = 7 * gradient_penalty(method.critic, real, fake, mix)
    assert losses["penalty"].item() == pytest.approx(penalty.item(), rel=1e-5)
    assert call_loss(method, method.generator_loss, {"images": real})["adversarial"].item() == pytest.approx(
        -method.critic(fake).mean().item(), rel=1e-5
    )


def test_acgan_losses_of_both_heads() -> None:
    method, real = ACGAN(DIGITS, width=8, class_weight=0.5), create_images()
    labels = torch.tensor([0, 1, 2, 3, 4, 9])
    losses = call_loss(method, method.discriminator_loss, {"images": real, "labels": labels})
    seed_torch(0)
    classes = torch.randint(10, (6,))
    fake = method.decode(torch.randn(6, 100), classes)
    for kind, pictures, targets, sign in (("real", real, labels, 1), ("fake", fake, classes, -1)):
        logits = method.discriminator(pictures)
        assert logits.shape == (6, 11)
        assert losses[kind].item() == pytest.approx(-log_sigmoid(sign * logits[:, 0]).mean().item(), rel=1e-5)
        log_probability = F.log_softmax(logits[:, 1:], dim=1)[torch.arange(6), targets]
        assert losses[f"weighted_{kind}_class"].item() == pytest.approx(-0.5 * log_probability.mean().item(), rel=1e-5)
        assert losses[f"{kind}_class"].item() == pytest.approx(-log_probability.mean().item(), rel=1e-5)
        assert not losses[f"{kind}_class"].requires_grad


def test_acgan_samples_of_two_classes_share_their_noise() -> None:
    method = ACGAN(DIGITS, width=8).eval()
    pairs = []
    for label in (3, 5):
        seed_torch(0)
        pairs.append(method.sample(4, torch.full((4,), label)))
    seed_torch(0)
    noise = torch.randn(4, 100)
    assert torch.equal(pairs[0], method.decode(noise, torch.full((4,), 3)))
    assert not torch.equal(pairs[0], pairs[1])


def test_noisy_labels_have_the_expected_mean_and_spread() -> None:
    """Binary cross-entropy is linear in the label, so the mean over many labels is that of the mean label."""
    logits = torch.full((200_000, 1), 0.7)
    mean = (0.7 + 1.03) / 2
    expected = -(mean * log_sigmoid(logits[0]) + (1 - mean) * log_sigmoid(-logits[0]))
    assert noisy_cross_entropy(logits, 0.7, 1.03).item() == pytest.approx(expected.item(), rel=1e-3)
    spread = torch.stack([noisy_cross_entropy(logits[:1], 0.7, 1.03) for _ in range(200)]).std().item()
    assert spread == pytest.approx(0.7 * (1.03 - 0.7) / math.sqrt(12), rel=0.2)


# Whole steps, implemented manually: the loss terms of each update of a step, in float64


def cross_entropy(logits: Tensor, label: Tensor | float) -> Tensor:
    return -(label * log_sigmoid(logits) + (1 - label) * log_sigmoid(-logits)).mean()


draw_noise = partial(torch.randn, 6, 100, 1, 1, dtype=torch.float64)
draw_uniform = partial(torch.rand, 6, 1, dtype=torch.float64)


def dcgan(method: DCGAN, real: Tensor, labels: Tensor) -> Iterator[dict[str, Tensor]]:
    D, G = method.discriminator, method.generator
    yield {"real": cross_entropy(D(real), 0.9), "fake": cross_entropy(D(G(draw_noise())), 0)}
    yield {"adversarial": cross_entropy(D(G(draw_noise())), 1)}


def dcgan_resize(method: DCGANResize, real: Tensor, labels: Tensor) -> Iterator[dict[str, Tensor]]:
    D, G = method.discriminator, method.generator
    yield {
        "real": cross_entropy(D(real), 0.7 + (1.03 - 0.7) * draw_uniform()),
        "fake": cross_entropy(D(G(draw_noise())), 0.33 * draw_uniform()),
    }
    yield {"adversarial": cross_entropy(D(G(draw_noise())), 1)}


def wgan_gp(method: WGANGP, real: Tensor, labels: Tensor) -> Iterator[dict[str, Tensor]]:
    D, G = method.critic, method.generator
    fake = G(draw_noise()).detach()
    distance = (D(real) - D(fake)).mean()
    mix = draw_uniform()[:, :, None, None]
    penalty = penalty_by_jacobians(D, mix * real + (1 - mix) * fake)
    yield {"difference": -distance, "penalty": 10 * penalty, "distance": distance.detach()}
    yield {"adversarial": -D(G(draw_noise())).mean()}


def r3gan(method: R3GAN, real: Tensor, labels: Tensor) -> Iterator[dict[str, Tensor]]:
    D, G = method.discriminator, method.generator
    fake = G(draw_noise()).detach()
    r1, r2 = (2.5 * squared_slopes_by_jacobians(D, points).mean() for points in (real, fake))
    yield {"relativistic": -log_sigmoid(D(real) - D(fake)).mean(), "r1": r1, "r2": r2}
    yield {"relativistic": -log_sigmoid(D(G(draw_noise())) - D(real)).mean()}


def acgan(method: ACGAN, real: Tensor, labels: Tensor) -> Iterator[dict[str, Tensor]]:
    D, G = method.discriminator, method.generator

    def head_losses(pictures: Tensor, label: float, classes: Tensor) -> tuple[Tensor, Tensor]:
        logits = D(pictures)
        return cross_entropy(logits[:, 0], label), -F.log_softmax(logits[:, 1:], 1)[range(6), classes].mean()

    def generate() -> tuple[Tensor, Tensor]:
        classes = torch.randint(10, (6,))
        return G(torch.cat([draw_noise(), torch.eye(10)[classes, :, None, None]], 1)), classes

    (real_source, real_class), (pictures, classes) = head_losses(real, 1, labels), generate()
    fake_source, fake_class = head_losses(pictures, 0, classes)
    class_losses = {"real_class": real_class, "fake_class": fake_class}
    weighted = {f"weighted_{name}": 0.5 * loss for name, loss in class_losses.items()}
    logged = {name: loss.detach() for name, loss in class_losses.items()}
    yield {"real": real_source, "fake": fake_source, **weighted, **logged}
    pictures, classes = generate()
    source, class_loss = head_losses(pictures, 1, classes)
    yield {"adversarial": source, "weighted_class": 0.5 * class_loss, "class": class_loss.detach()}


ADAM = partial(Adam, lr=2e-4, betas=(0.5, 0.999))


@pytest.mark.parametrize(
    ("by_hand", "build", "optimizers", "every"),
    [
        (dcgan, partial(DCGAN, smoothing=0.1), (ADAM, ADAM), 1),
        (dcgan, partial(DCGAN, smoothing=0.1, disc_iters=3), (ADAM, ADAM), 3),
        (dcgan, partial(DCGAN, smoothing=0.1, net="leaky"), (ADAM, ADAM), 1),
        (dcgan_resize, DCGANResize, (partial(SGD, lr=1e-3, momentum=0.5), partial(ADAM, lr=1e-4)), 1),
        (wgan_gp, WGANGP, [partial(Adam, lr=1e-4, betas=(0.0, 0.9))] * 2, 5),
        (acgan, partial(ACGAN, class_weight=0.5), (ADAM, ADAM), 1),
        (r3gan, partial(R3GAN, gamma=5.0), [partial(Adam, lr=2e-4, betas=(0.0, 0.99))] * 2, 1),
    ],
)
def test_training_steps_match_a_manual_implementation(
    by_hand: Callable[[Method, Tensor, Tensor], Iterator[dict[str, Tensor]]],
    build: Callable[..., Method],
    optimizers: list[Callable[..., Optimizer]],
    every: int,
) -> None:
    seed_torch(0, "weights")
    method = build(DIGITS, width=4).double()
    expected = deepcopy(method).to(memory_format=torch.channels_last)  # as in training: dropout draws in memory order
    training = train_method(method, steps=6)
    rows = training.settle()
    networks = [getattr(expected, update.trains[0]) for update in training.updates]
    reference_optimizers = [create(network.parameters()) for create, network in zip(optimizers, networks, strict=True)]
    for optimizer, reference in zip(training.optimizers.values(), reference_optimizers, strict=True):
        assert type(optimizer) is type(reference)
        assert optimizer.defaults == reference.defaults
    for step in range(6):
        seed_torch(0, step, 0)
        row = {}
        due = [0] if step % every else [0, 1]
        for number, terms in zip(due, by_hand(expected, create_images().double(), torch.arange(6)), strict=False):
            reference_optimizers[number].zero_grad()
            sum(terms.values(), torch.zeros(())).backward()
            reference_optimizers[number].step()
            row.update({f"{training.updates[number].name}/{name}": term.item() for name, term in terms.items()})
        assert rows[step] == pytest.approx(row, rel=1e-5, abs=1e-7)
    actual = method.state_dict()
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(actual[key], value, rtol=1e-7, atol=1e-9)


# The gradient penalty


def penalty_by_jacobians(critic: nn.Module, points: Tensor) -> Tensor:
    return (squared_slopes_by_jacobians(critic, points).sqrt() - 1).square().mean()


def squared_slopes_by_jacobians(critic: nn.Module, points: Tensor) -> Tensor:
    """Compute ‖∇ critic‖² [n] of one sample at a time by functional Jacobians in float64."""
    parameters = {name: value.double() for name, value in critic.named_parameters()}

    def score(point: Tensor) -> Tensor:
        return torch.func.functional_call(critic, parameters, (point[None],)).squeeze()

    return vmap(jacrev(score))(points.double()).flatten(1).square().sum(1)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_gradient_penalty_and_its_gradient_match_jacobians(dtype: torch.dtype | None) -> None:
    """The penalty is computed in full precision, also within autocast."""
    critic = WGANGP(DIGITS, width=4).critic
    for parameter in critic.parameters():  # as if trained: with slopes far from 0
        parameter.data.mul_(5)
    real, fake = create_images(4), create_images(4).flip(0)
    mix = torch.tensor([0.0, 0.3, 0.7, 1.0]).view(4, 1, 1, 1)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        ours = gradient_penalty(critic, real, fake, mix)
    assert ours.dtype == torch.float32
    reference = penalty_by_jacobians(critic, mix * real + (1 - mix) * fake)
    assert ours.item() == pytest.approx(reference.item(), rel=1e-4)
    gradients = torch.autograd.grad(ours, list(critic.parameters()))
    expected = torch.autograd.grad(reference, list(critic.parameters()))
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "gp_weight", "tolerance"),
    [
        (torch.bfloat16, 10, 0.05),
        (torch.float16, 10, 2e-3),
        # A heavy penalty outweighs the distance, which is in half precision; the penalty itself is not.
        (torch.bfloat16, 1000, 1e-3),
        (torch.float16, 1000, 1e-4),
    ],
)
def test_critic_step_in_half_precision_matches_float64(dtype: torch.dtype, gp_weight: float, tolerance: float) -> None:
    """Compare its gradient with float64 at the same points; fp16 is set up here, as Accelerate refuses it on a CPU."""
    seed_torch(0, "weights")
    method, real = WGANGP(DIGITS, width=4, gp_weight=gp_weight), create_images(4)
    for parameter in method.critic.parameters():  # as if trained: with slopes far from 0
        parameter.data.mul_(5)
    training = build_trainer(method)
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
    # With β1 = 0, Adam's first moment is the unscaled gradient.
    first_moments = [state["exp_avg"] for state in training.optimizers["critic"].state.values()]
    for gradient, parameter in zip(first_moments, critic.parameters(), strict=True):
        assert parameter.grad is not None
        assert gradient.dtype == torch.float32
        assert (gradient - parameter.grad).norm() < tolerance * parameter.grad.norm()


def test_gradient_penalty_of_micro_batches_averages_to_the_whole() -> None:
    critic, real = WGANGP(DIGITS, width=4).critic, create_images(4)
    mix = torch.rand(4, 1, 1, 1)
    whole = gradient_penalty(critic, real, -real, mix)
    parts = [gradient_penalty(critic, real[i : i + 2], -real[i : i + 2], mix[i : i + 2]) for i in (0, 2)]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize("critic_iters", [1, 2, 5])
def test_critic_updates_critic_iters_times_per_generator_update(critic_iters: int) -> None:
    training = train_method(WGANGP(DIGITS, width=4, critic_iters=critic_iters), steps=10)
    rows = training.settle()
    assert [step for step, row in rows.items() if "critic/penalty" in row] == list(range(10))
    assert [step for step, row in rows.items() if "generator/adversarial" in row] == list(range(0, 10, critic_iters))


@pytest.mark.parametrize("name", ["dcgan", "dcgan_resize", "wgan_gp", "acgan"])
def test_generator_has_a_moving_average_only_if_ema_is_set(name: str) -> None:
    training = train_method(models.load(name)(DIGITS, width=4, ema=0.9), steps=3)
    assert list(training.averages) == ["generator"]
    now, mean = dict(training.method.named_parameters()), dict(training.averages.named_parameters())
    assert all(not torch.equal(mean[key], now[key]) for key in mean if "bias" not in key)
    assert not train_method(models.load(name)(DIGITS, width=4), steps=1).averages


def train_method(method: Method, steps: int) -> Trainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    training = Trainer(method, Accelerator(cpu=True), Train(steps=steps, batch_size=6))
    batch = {"images": create_images().to(next(method.parameters()).dtype), "labels": torch.arange(6)}
    for _ in training.fit(batch for _ in range(steps)):
        pass
    return training


def call_loss(method: Method, loss: object, batch: Batch) -> dict[str, Tensor]:
    """Return the loss terms with the noise of seed 0, in training mode."""
    method.train()
    seed_torch(0)
    terms: dict[str, Tensor] = loss(batch, 0.5)  # type: ignore[operator]
    return terms


# Differentiable augmentation


@pytest.mark.parametrize("policy", [*PARTS, "color+translation+cutout"])
def test_augmentations_are_differentiable_and_act_alike_on_equal_images(policy: str) -> None:
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)

    def augment(images: Tensor) -> Tensor:
        seed_torch(1)
        return augmentation(policy)(images)

    assert torch.autograd.gradcheck(augment, (images,))
    assert not torch.equal(augment(images), images)
    assert torch.equal(augment(images), augment(images.detach().clone()))  # real or generated
    one, other = augmentation(policy)(images.detach()[:1].repeat(64, 1, 1, 1)).split(32)
    assert not torch.equal(one, other)  # each image has its own random numbers


def test_color_changes_brightness_saturation_and_contrast_as_published() -> None:
    images = create_images(2).double()
    seed_torch(1)
    augmented = augmentation("color")(images)
    seed_torch(1)
    brightness, saturation, contrast = (torch.rand(2, 1, 1, 1, dtype=torch.float64) for _ in range(3))
    for i in range(2):
        x = images[i] + brightness[i] - 0.5
        grey = x.sum(0) / 3
        x = (x - grey) * saturation[i] * 2 + grey
        x = (x - x.mean()) * (contrast[i] + 0.5) + x.mean()
        torch.testing.assert_close(augmented[i], x)


def test_translation_moves_by_at_most_an_eighth_and_fills_with_zeros() -> None:
    image = torch.arange(1.0, 257.0).view(1, 1, 16, 16)
    shifts = set()
    for moved in augmentation("translation")(image.repeat(400, 1, 1, 1)):
        row, column = divmod(int(moved[0, 8, 8]) - 1, 16)
        padded = F.pad(image[0], (2, 2, 2, 2))
        assert torch.equal(moved, padded[:, row - 6 : row + 10, column - 6 : column + 10])
        shifts.add((row - 8, column - 8))
    assert shifts == {(row, column) for row in range(-2, 3) for column in range(-2, 3)}


def test_cutout_removes_a_square_of_half_the_size() -> None:
    removed = augmentation("cutout")(torch.ones(400, 1, 16, 16)) == 0
    rows, columns = removed.any(3).sum(2), removed.any(2).sum(2)
    assert torch.equal(removed.sum((1, 2, 3)), (rows * columns)[:, 0])
    assert rows.max() == columns.max() == 8
    assert rows.min() == columns.min() == 4  # half of the square is outside


def test_inversion_swaps_dark_and_bright_in_some_images() -> None:
    images = create_images(64)
    inverted = [torch.equal(a, -b) for a, b in zip(augmentation("invert")(images), images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(augmentation("invert")(images), images, strict=True)]
    assert 10 < sum(inverted) < 54
    assert 10 < sum(kept) < 54


def test_stretching_scales_by_at_most_a_half_and_extends_the_border() -> None:
    square = -torch.ones(200, 1, 40, 40)
    square[:, :, 10:30, 10:30] = 1
    stretched = augmentation("stretch")(square)
    heights = (stretched.amax(3) > 0).sum(2).flatten() / 20
    assert 0.6 < heights.min() < 0.75
    assert 1.3 < heights.max() < 1.6 + 0.2  # sheared by up to a fifth as well
    torch.testing.assert_close(augmentation("stretch")(torch.ones(3, 1, 8, 8)), torch.ones(3, 1, 8, 8))


@pytest.mark.parametrize("method", [DCGAN, DCGANResize, ACGAN, WGANGP, R3GAN])
def test_discriminators_see_augmented_images_alone(method: type[Method]) -> None:
    built: Any = method(DIGITS, width=4, augment="color+translation+cutout")
    augment, augmented, seen = built.augment, list[Tensor](), list[Tensor]()

    def watch(images: Tensor) -> Tensor:
        augmented.append(augment(images))
        return augmented[-1]

    built.augment = watch
    discriminator = built.critic if method is WGANGP else built.discriminator
    discriminator.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    for update in built.updates():
        augmented.clear()
        seen.clear()
        images = create_images()
        update.loss({"images": images, "labels": torch.arange(len(images)) % 10}, 0.0)
        mixed = 1 if method is WGANGP and update.name == "critic" else 0  # the points of its penalty are between them
        own = [any(torch.equal(images, other) for other in augmented) for images in seen]
        assert own.count(False) == mixed
        assert len(seen) >= len(augmented) > 0


def test_no_augmentation_draws_no_random_numbers() -> None:
    before, images = torch.get_rng_state(), create_images()
    assert augmentation("none")(images) is images
    assert torch.equal(torch.get_rng_state(), before)
