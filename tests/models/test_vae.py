"""VAEs: layers as published, and losses against torch.distributions."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from models.base import DataSpec
from models.vae import VAE
from models.vae import kl_divergence as our_kl_divergence
from models.vae_wide import VAEWide
from trainer.seeds import seed_torch

FACES = DataSpec(channels=3, size=64, classes=2)
DIGITS = DataSpec(channels=3, size=28, classes=10)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def conv(inputs: int, outputs: int, kernel: int, norm: bool = True) -> int:
    """Count the parameters of a convolution with bias and the batch norm after it."""
    return inputs * outputs * kernel**2 + outputs + 2 * outputs * norm


def create_images(n: int = 6, spec: DataSpec = DIGITS) -> Tensor:
    return torch.rand(n, spec.channels, spec.size, spec.size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_vae_has_the_published_number_of_parameters() -> None:
    method = VAE(FACES)
    widths = [3, 32, 64, 128, 256, 512]
    assert count_parameters(method.encoder) == sum(conv(a, b, 3) for a, b in itertools.pairwise(widths))
    assert (method.mean.in_features, method.mean.out_features) == (2048, 512)
    up = [512, 256, 128, 64, 32, 32]
    blocks = sum(conv(a, b, 3) for a, b in itertools.pairwise(up))
    assert count_parameters(method.decoder) == (512 * 2048 + 2048) + blocks + conv(32, 3, 3, norm=False)


def test_vae_wide_has_the_published_number_of_parameters() -> None:
    method = VAEWide(FACES)
    sizes = [(3, 128, 3), (128, 128, 3), (128, 256, 5), (256, 256, 5), (256, 512, 5), (512, 512, 5)]
    assert count_parameters(method.encoder) == sum(conv(*size, norm=False) for size in sizes)
    up = [(512, 512, 4), (512, 512, 4), (512, 3, 4)]
    flat = 512 * 8 * 8
    assert count_parameters(method.decoder) == (128 * flat + flat) + sum(conv(*size, norm=False) for size in up)
    assert count_parameters(method.mean) == flat * 128 + 128
    assert count_parameters(method) == pytest.approx(33.5e6, rel=2e-3)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [("cooldown", [1, 1, 1, 0.5, 0]), ("cosine", [1, 0.5, 0.0955, 0.0245, 0]), ("constant", [1] * 5)],
)
def test_learning_rate_follows_its_schedule(decay: Any, expected: list[float]) -> None:
    (update,) = VAE(DIGITS, width=4, decay=decay).updates()
    assert [update.schedule(p) for p in (0.0, 0.5, 0.8, 0.9, 1.0)] == pytest.approx(expected, abs=1e-4)


def test_kl_divergence_matches_torch() -> None:
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    reference = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(our_kl_divergence(mean, log_variance), reference)


@pytest.mark.parametrize("method", [VAE(DIGITS, kl_weight=0.3, width=4), VAEWide(DIGITS, kl_weight=0.3, width=4)])
def test_loss_matches_a_manual_computation(method: VAE | VAEWide) -> None:
    method.eval()  # so that batch norm gives equal results in both calls
    x = create_images()
    seed_torch(0)
    losses = method.loss({"images": x}, 0.5)
    seed_torch(0)
    mean, log_variance = method.encode(x)
    scale = (0.5 * log_variance).exp()
    kl = kl_divergence(Normal(mean, scale), Normal(0.0, 1.0))
    code = mean + torch.randn(mean.shape) * scale
    wide = isinstance(method, VAEWide)
    decoded = method.decode(code) if isinstance(method, VAEWide) else method.decoder(code)
    # VAEWide compares images in [0, 1] and takes the mean over the dimensions of the code.
    error = F.mse_loss((decoded + 1) / 2, (x + 1) / 2) if wide else F.mse_loss(decoded, x)
    weighted = 0.3 * (kl.mean() if wide else kl.sum(1).mean())
    assert losses["reconstruction"].item() == pytest.approx(error.item(), rel=1e-5)
    assert losses["weighted_kl"].item() == pytest.approx(weighted.item(), rel=1e-5)
    assert losses["kl"].item() == pytest.approx(kl.sum(1).mean().item(), rel=1e-5)
    assert not losses["kl"].requires_grad


@pytest.mark.parametrize("size", [28, 32, 48, 64])
@pytest.mark.parametrize("kind", [VAE, VAEWide])
def test_all_image_sizes_are_reconstructed_and_sampled(kind: type[VAE] | type[VAEWide], size: int) -> None:
    method = kind(DataSpec(1, size, 10), width=4).eval()
    x = torch.rand(2, 1, size, size) * 2 - 1
    assert method.reconstruct(x).shape == x.shape
    assert method.features(x).shape == (2, method.latent)
    assert method.sample(3).shape == (3, 1, size, size)
    assert method.sample(3).abs().max() <= 1


def test_reconstruction_decodes_the_mean_code() -> None:
    method = VAE(DIGITS, width=4).eval()
    assert torch.equal(method.reconstruct(create_images()), method.decoder(method.encode(create_images())[0]))
