"""Generate-To-Adapt against a second implementation of its four losses (Sankaranarayanan et al., CVPR 2018)."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Batch, DataSpec
from models.gta import GTA
from models.source_only import SourceOnly
from tests.models.test_adaptation import conv, count_parameters, linear, norm
from tests.models.test_methods import build_trainer, copy_state
from trainer.seeds import seed_torch

CLASSES, N = 10, 6
SPEC = DataSpec(channels=3, size=32, classes=CLASSES)
LR, BETAS = 5e-4, (0.8, 0.999)


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, N, 3, 32, 32, generator=generator, dtype=torch.float64) * 2 - 1
    labels = torch.randint(CLASSES, (N,), generator=generator)
    return {"source_images": images[0], "target_images": images[1], "source_labels": labels}


@pytest.fixture
def method() -> GTA:
    torch.manual_seed(0)
    return GTA(SPEC).double()  # Adam's first step has the sign of the gradient, which rounding may flip


def transposed(inputs: int, outputs: int, kernel: int) -> int:
    """Count the parameters of a transposed convolution without bias."""
    return inputs * outputs * kernel**2


def test_networks_have_the_published_number_of_parameters(method: GTA) -> None:
    assert count_parameters(method.embedding) == conv(3, 64, 5) + conv(64, 64, 5) + conv(64, 128, 5)
    assert count_parameters(method.classifier) == linear(128, 128) + linear(128, 10)
    pairs = [(512, 256, 4), (256, 128, 4), (128, 64, 4), (64, 3, 4)]
    generator = transposed(128 + 11 + 512, 512, 2) + sum(transposed(*p) for p in pairs) + norm(512 + 256 + 128 + 64)
    assert count_parameters(method.generator) == generator
    widths = [(3, 64), (64, 128), (128, 256), (256, 128)]
    trunk = sum(conv(a, b, 3) + norm(b) for a, b in widths)
    assert count_parameters(method.discriminator) == trunk + linear(128, 10) + linear(128, 1)


def test_the_net_of_its_bounds_is_its_embedding_and_classifier(method: GTA) -> None:
    bound = SourceOnly(SPEC, net="gta").double()
    bound.extractor.load_state_dict(method.embedding.state_dict())
    bound.classifier.load_state_dict(method.classifier.state_dict())
    images = torch.rand(4, 3, 32, 32).double()
    assert torch.equal(bound.predict(images), method.predict(images))


def test_grey_images_are_embedded_and_generated(batch: Batch) -> None:
    grey = {key: value.mean(1, keepdim=True) if "images" in key else value for key, value in batch.items()}
    method = GTA(DataSpec(channels=1, size=32, classes=CLASSES), width=8).double()
    for update in method.updates():
        assert all(term.isfinite() for term in update.loss(grey, 0.5).values())
    assert method.generate_from_source(grey).shape == (N, 1, 32, 32)


def test_generator_doubles_its_maps_up_to_32_pixels(method: GTA) -> None:
    sides: list[int] = []
    for layer in method.generator.layers:
        if isinstance(layer, nn.ConvTranspose2d):
            layer.register_forward_hook(lambda _m, _i, out: sides.append(out.shape[-1]))
    images = method.generator(torch.randn(4, 128).double(), torch.tensor([0, 3, 9, 10]), torch.randn(4, 512).double())
    assert images.shape == (4, 3, 32, 32)
    assert sides == [2, 4, 8, 16, 32]
    assert images.abs().max() <= 1


def test_embedding_and_discriminator_have_the_published_shapes(method: GTA) -> None:
    images = torch.rand(4, 3, 32, 32).double()
    assert method.embedding(images).shape == (4, 128)
    label, real = method.discriminator(images)
    assert label.shape == (4, 10)
    assert real.shape == (4,)
    slopes = {layer.negative_slope for layer in method.discriminator.modules() if isinstance(layer, nn.LeakyReLU)}
    assert slopes == {0.2}


class ManualGTA:
    """The four losses of F, C, G and D, implemented a second time on a copy of the networks."""

    def __init__(self, method: GTA, adversarial: float, target: float) -> None:
        copied = copy.deepcopy(method).requires_grad_(True).train()
        self.F, self.C, self.G, self.D = copied.embedding, copied.classifier, copied.generator, copied.discriminator
        self.alpha, self.beta = adversarial, target

    def loss(self, which: str, batch: Batch, noise: list[Tensor]) -> Tensor:
        """Return the loss of a network; `noise` is that of source and of target images."""
        xs, xt, ys = batch["source_images"], batch["target_images"], batch["source_labels"]
        one_hot = torch.zeros(2, N, CLASSES + 1)
        one_hot[0, torch.arange(N), ys] = 1
        one_hot[1, :, CLASSES] = 1

        def generate(x: Tensor, domain: int) -> Tensor:
            z = torch.cat([self.F(x), one_hot[domain], noise[domain]], 1)
            out: Tensor = self.G.layers(z.reshape(N, -1, 1, 1))
            return out

        def class_loss(logits: Tensor) -> Tensor:
            return -logits.log_softmax(1)[torch.arange(N), ys].mean()

        def real_loss(logits: Tensor, real: bool) -> Tensor:
            probability = torch.sigmoid(logits)
            return -(probability if real else 1 - probability).log().mean()

        if which == "D":
            c, s = self.D(xs)
            _, fake_s = self.D(generate(xs, 0))
            _, fake_t = self.D(generate(xt, 1))
            return class_loss(c) + real_loss(s, True) + real_loss(fake_s, False) + real_loss(fake_t, False)
        if which == "G":
            c, s = self.D(generate(xs, 0))
            return class_loss(c) + real_loss(s, True)
        if which == "C":
            return class_loss(self.C(self.F(xs)))
        c, _ = self.D(generate(xs, 0))
        _, t = self.D(generate(xt, 1))
        return class_loss(self.C(self.F(xs))) + self.alpha * class_loss(c) + self.alpha * self.beta * real_loss(t, True)


ORDER = {"D": "discriminator", "G": "generator", "C": "classifier", "F": "embedding"}


def draw_noises(which: str) -> list[Tensor]:
    """Draw the noise of a loss: for source and target images; for G the source alone, for C none."""
    return [torch.randn(N, 512, dtype=torch.float64) for _ in range({"D": 2, "G": 1, "C": 0, "F": 2}[which])]


def test_updates_run_in_the_order_d_g_c_f_on_one_network_each(method: GTA) -> None:
    updates = method.updates()
    assert [update.name for update in updates] == list(ORDER.values())
    assert [update.trains for update in updates] == [(network,) for network in ORDER.values()]
    assert {update.every for update in updates} == {1}
    optimizer = updates[0].optimizer([nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.Adam)
    assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (LR, BETAS)


@pytest.mark.parametrize("weights", [{}, {"adversarial": 0.5, "target": 0.2}])
def test_losses_match_a_manual_computation(batch: Batch, weights: dict[str, Any]) -> None:
    torch.manual_seed(0)
    method = GTA(SPEC, **weights).double()
    reference = ManualGTA(method, weights.get("adversarial", 0.1), weights.get("target", 0.3))
    for update, which in zip(method.updates(), ORDER, strict=True):
        seed_torch("noise", which)
        loss = sum(term.item() for term in update.loss(batch, 0.5).values())
        seed_torch("noise", which)
        assert loss == pytest.approx(reference.loss(which, batch, draw_noises(which)).item(), rel=1e-5)


def test_one_step_matches_a_manual_implementation(method: GTA, batch: Batch) -> None:
    """Compare the steps of D, G, C and F, in order; each changes its own network alone."""
    reference = ManualGTA(method, 0.1, 0.3)
    training = build_trainer(method)
    for update, (which, network) in zip(training.updates, ORDER.items(), strict=True):
        module: nn.Module = getattr(reference, which)
        seed_torch("noise", which)
        gradients = torch.autograd.grad(reference.loss(which, batch, draw_noises(which)), list(module.parameters()))
        before = copy_state(method)
        seed_torch("noise", which)
        training.apply(update, batch)
        for (name, p), gradient in zip(module.named_parameters(), gradients, strict=True):
            # Adam's first step: lr g / (|g| + eps), that is, lr in the direction of the gradient.
            step = LR * gradient / (gradient.abs() + 1e-8)
            change = before[f"{network}.{name}"] - method.get_parameter(f"{network}.{name}")
            torch.testing.assert_close(change, step, rtol=1e-5, atol=1e-9, msg=f"{network}.{name}")
            with torch.no_grad():
                p.copy_(method.get_parameter(f"{network}.{name}"))


def test_target_images_are_generated_with_the_target_label_and_fresh_noise(method: GTA, batch: Batch) -> None:
    seen: list[Tensor] = []
    method.generator.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[1]))
    one, two = method.generate_from_target(batch), method.generate_from_target(batch)
    assert not torch.allclose(one, two)
    method.generate_from_source(batch)
    assert [s.tolist() for s in seen] == [[CLASSES] * N, [CLASSES] * N, batch["source_labels"].tolist()]


def test_images_of_other_sizes_are_resized() -> None:
    torch.manual_seed(0)
    small = GTA(DataSpec(channels=1, size=28, classes=4)).eval()
    images = torch.rand(3, 1, 28, 28)
    larger = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    assert torch.equal(small.predict(images), small.predict(larger))
    assert small.generate(images, torch.zeros(3, dtype=torch.long)).shape == (3, 1, 32, 32)
