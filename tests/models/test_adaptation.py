"""Adaptation methods: networks as published, MCD against a second implementation, target labels without effect."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
from models.adamatch import AdaMatch, align
from models.base import DataSpec
from models.dann import DANN
from models.losses import conditional_entropy, virtual_adversarial
from models.mcd import MCD
from models.nets import digits
from models.nets.layers import embed_domains
from models.source_only import SourceOnly
from models.vada import VADA
from tests.models.test_methods import build_trainer, copy_state
from tests.processes import SPEC, batches, small
from trainer.data.batches import Batches
from trainer.data.cache import Arrays
from trainer.seeds import seed_torch

CPU = torch.device("cpu")


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return outputs * (inputs * kernel**2 + 1)


def linear(inputs: int, outputs: int) -> int:
    return outputs * (inputs + 1)


def norm(width: int) -> int:
    return 2 * width


# net -> side of the images, width of the features, and parameters of extractor, classifier and domain classifier,
# from the published lists of layers.
PUBLISHED = {
    "svhn": (
        28,
        64 * 7 * 7,
        conv(3, 48, 5) + norm(48) + conv(48, 64, 5) + norm(64) + conv(64, 64, 3) + norm(64),
        linear(3136, 1024) + norm(1024) + linear(1024, 128) + norm(128) + linear(128, 10),
        linear(3136, 256) + norm(256) + linear(256, 2),
    ),
    "usps": (
        28,
        128 * 7 * 7,
        conv(3, 32, 5) + norm(32) + conv(32, 64, 5) + norm(64) + conv(64, 128, 3) + norm(128),
        linear(6272, 1024) + norm(1024) + linear(1024, 128) + norm(128) + linear(128, 10),
        linear(6272, 256) + norm(256) + linear(256, 2),
    ),
    "compact": (
        28,
        50 * 4 * 4,
        conv(3, 64, 5) + norm(64) + conv(64, 50, 5) + norm(50),
        linear(800, 100) + norm(100) + linear(100, 100) + norm(100) + linear(100, 10),
        linear(800, 100) + norm(100) + linear(100, 2),
    ),
    "deep": (
        32,
        512,
        sum(conv(a, b, 3) + norm(b) for a, b in ((3, 64), (64, 128), (128, 256), (256, 256), (256, 512))),
        linear(512, 512) * 2 + linear(512, 10),
        4 * (linear(512, 512) + norm(512)) + linear(512, 1),
    ),
}
KINDS = {  # layers of extractor | classifier | domain classifier, each by its initials
    "svhn": "C B R M C B D R M C B R F | L B R L B R L | L B R L",
    "usps": "C B R M C B R M C B R F | L B D R L B D R L | L B D R L",
    "compact": "C B M R C B D M R F | L B R D L B R L | L B R L",
    "deep": "C B R M C B R M C B R M C B R M C B R M F | L R L R L | L B R L B R L B R L B R L",
}
INITIALS = {"Conv2d": "C", "BatchNorm2d": "B", "BatchNorm1d": "B", "ReLU": "R", "MaxPool2d": "M", "Flatten": "F"}
INITIALS |= {"Linear": "L", "Dropout": "D", "Dropout2d": "D"}


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("net", PUBLISHED)
def test_networks_match_the_published_layers(net: str) -> None:
    size, features, *parameters = PUBLISHED[net]
    parts = digits.build(net, 3, size, 10)
    assert parts.features == features
    assert [count_parameters(part) for part in parts[:3]] == parameters
    kinds = " | ".join(" ".join(INITIALS[type(layer).__name__] for layer in part) for part in parts[:3])  # type: ignore[attr-defined]
    assert kinds == KINDS[net]


def test_dropout_rates_match_the_published_ones() -> None:
    rates = {
        net: [layer.p for layer in nn.ModuleList(digits.build(net, 3, 32, 10)[:3]).modules() if isinstance(layer, drop)]
        for net in PUBLISHED
        for drop in [(nn.Dropout, nn.Dropout2d)]
    }
    assert rates == {"svhn": [0.5], "usps": [0.2] * 3, "compact": [0.5, 0.5], "deep": []}


def test_too_small_images_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"images of 28 pixels are too small for this network; set data\.size"):
        DANN(SPEC, net="deep")


# --- DANN's options


def test_constant_lambda_and_learning_rate() -> None:
    method = DANN(SPEC, strength="constant", weight=0.3, schedule="constant")
    for p in (0.0, 0.5, 1.0):
        assert method.reversal_strength(p) == 0.3
        assert method.updates()[0].schedule(p) == 1.0
    assert SourceOnly(SPEC, schedule="constant").updates()[0].schedule(1.0) == 1.0


@pytest.mark.parametrize("method", [DANN, SourceOnly, MCD])
def test_schedules_match_their_formulae(method: Any) -> None:
    """Compare the beginning, the middle and the end."""
    formulae = {"inverse": (1.0, 1 / 6**0.75, 1 / 11**0.75), "cosine": (1.0, 0.5, 0.0), "constant": (1.0, 1.0, 1.0)}
    formulae["multistep"] = (1.0, 0.1, 0.01)  # divided by ten at a half and at three quarters
    for name, expected in formulae.items():
        multipliers = [method(SPEC, schedule=name).updates()[0].schedule(p) for p in (0.0, 0.5, 1.0)]
        assert multipliers == pytest.approx(expected), name


def test_optimizers_use_the_configured_settings() -> None:
    weights = [nn.Parameter(torch.zeros(1))]
    adam = DANN(SPEC, optimizer="adam", lr=2e-3, momentum=0.5, weight_decay=1e-4).updates()[0].optimizer(weights)
    assert isinstance(adam, torch.optim.Adam)
    assert adam.defaults["lr"] == 2e-3
    assert adam.defaults["betas"] == (0.5, 0.999)
    assert adam.defaults["weight_decay"] == 1e-4
    sgd = DANN(SPEC, lr=2e-3, momentum=0.5).updates()[0].optimizer(weights)
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"]) == (2e-3, 0.5)


def test_single_domain_logit_gives_binary_cross_entropy() -> None:
    """The loss is -log(1 - s) for the source and -log s for the target, with s the sigmoid of the logit."""
    spec = DataSpec(channels=3, size=32, classes=10)
    torch.manual_seed(0)
    method = DANN(spec, net="deep").eval()
    images = torch.rand(6, 3, 32, 32)
    logits = method.domain(method.extractor(images))[:, 0].tolist()
    probabilities = [1 / (1 + math.exp(-logit)) for logit in logits]
    batch = {"source_images": images, "target_images": images, "source_labels": torch.arange(6)}
    losses = method.loss(batch, 0.5)
    assert losses["source_domain"].item() == pytest.approx(-sum(math.log(1 - s) for s in probabilities) / 6)
    assert losses["target_domain"].item() == pytest.approx(-sum(math.log(s) for s in probabilities) / 6)


def test_batch_norm_separates_or_joins_the_domains() -> None:
    batch = next(batches("dann", 0, 1))
    for kind, joint in (("each", False), ("both", True)):
        torch.manual_seed(0)
        method = DANN(SPEC, batch_norm=kind)  # type: ignore[arg-type]
        first = copy.deepcopy(method.extractor)
        source, target = embed_domains(method.extractor, batch, joint=method.joint_batch_norm)
        whole = first(torch.cat([batch["source_images"], batch["target_images"]]))
        assert torch.equal(torch.cat([source, target]), whole) == joint


# --- VADA


def test_adversarial_perturbation_has_its_norm_and_raises_the_divergence() -> None:
    """It raises the divergence more than perturbations of the same norm in random directions do."""
    torch.manual_seed(0)
    classify = nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 4, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    logits = classify(images)
    loss, perturbation = virtual_adversarial(classify, images, logits, radius=0.5)
    torch.testing.assert_close(perturbation.flatten(1).norm(dim=1), torch.full((3,), 0.5, dtype=torch.float64))
    assert not perturbation.requires_grad
    assert loss.item() == pytest.approx(kl_divergence(logits, classify(images + perturbation)), rel=1e-12)
    for _ in range(50):
        direction = torch.randn_like(images).flatten(1)
        random = (0.5 * direction / direction.norm(dim=1, keepdim=True)).view_as(images)
        assert loss.item() > kl_divergence(logits, classify(images + random))


def kl_divergence(p: Tensor, q: Tensor) -> float:
    """Return the mean KL(p ‖ q) of the predictions of logits, from probabilities."""
    a, b = (torch.exp(x) / torch.exp(x).sum(1, keepdim=True) for x in (p, q))
    return (a * (a / b).log()).sum().item() / len(p)


def test_vada_loss_matches_equation_8() -> None:
    torch.manual_seed(0)
    weights = {"domain_weight": 0.3, "source_weight": 0.7, "target_weight": 0.2, "radius": 0.9}
    method = VADA(SPEC, net="slim", **weights).double().eval()  # type: ignore[arg-type]
    batch = {
        key: value.double() if value.is_floating_point() else value
        for key, value in next(batches("vada", 0, 1)).items()
    }
    source, target = batch["source_images"], batch["target_images"]
    torch.manual_seed(1)
    losses = method.loss(batch, 0.5)
    torch.manual_seed(1)
    logits, guess = method.predict(source), method.predict(target)
    probabilities = torch.exp(guess) / torch.exp(guess).sum(1, keepdim=True)
    domain = [
        torch.exp(d) / torch.exp(d).sum(1, keepdim=True)
        for d in map(method.domain, map(method.extractor, (source, target)))
    ]
    perturbations = [virtual_adversarial(method.predict, x, y, 0.9)[1] for x, y in ((source, logits), (target, guess))]
    expected = {
        "label": -(logits - logits.logsumexp(1, keepdim=True)).gather(1, batch["source_labels"][:, None]).mean().item(),
        "confusion": -0.3 * (domain[0][:, 1].log().mean() + domain[1][:, 0].log().mean()).item() / 2,
        "vat_source": 0.7 * kl_divergence(logits, method.predict(source + perturbations[0])),
        "vat_target": 0.2 * kl_divergence(guess, method.predict(target + perturbations[1])),
        "entropy": -0.2 * (probabilities * probabilities.log()).sum(1).mean().item(),
    }
    assert {key: loss.item() for key, loss in losses.items()} == pytest.approx(expected, rel=1e-9)
    discriminated = method.domain_loss(batch, 0.5)
    assert discriminated["source"].item() == pytest.approx(-domain[0][:, 0].log().mean().item())
    assert discriminated["target"].item() == pytest.approx(-domain[1][:, 1].log().mean().item())


def test_entropy_is_zero_for_certain_and_log_classes_for_uniform_predictions() -> None:
    assert conditional_entropy(100 * torch.eye(4)).item() == pytest.approx(0, abs=1e-6)
    assert conditional_entropy(torch.zeros(3, 4)).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("method", [SourceOnly, DANN, MCD, VADA, AdaMatch])
def test_instance_norm_makes_predictions_independent_of_brightness_and_contrast(method: Any) -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 3, 28, 28) - 0.5
    for instance_norm in (False, True):
        torch.manual_seed(0)
        adapted = method(SPEC, net="slim", instance_norm=instance_norm).eval()
        with torch.no_grad():
            same = torch.allclose(adapted.predict(images), adapted.predict(0.7 * images + 0.2), rtol=1e-3, atol=1e-3)
        assert same == instance_norm


# --- AdaMatch


def test_adamatch_loss_matches_its_formulae() -> None:
    """Both domains' batch norm, random logit interpolation, alignment, relative threshold, weight of the target."""
    torch.manual_seed(0)
    method = AdaMatch(SPEC, net="slim", threshold=0.99, weight=0.7).double()
    batch = {
        key: part.double() if part.is_floating_point() else part for key, part in next(batches("vada", 0, 1)).items()
    }
    source, target, labels, n = batch["source_images"], batch["target_images"], batch["source_labels"], 12
    twin = copy.deepcopy(method)
    seed_torch(1)
    losses = method.loss(batch, 0.125)
    seed_torch(1)
    strong_source, strong_target = twin.augment(source), twin.augment(target)
    together = twin.predict(torch.cat([source, strong_source, target, strong_target]))
    running = copy_state(twin)
    alone = twin.predict(torch.cat([source, strong_source]))
    share = torch.rand_like(alone)
    logits = share * together[: 2 * n] + (1 - share) * alone
    p_source, p_target = (torch.exp(z) / torch.exp(z).sum(1, keepdim=True) for z in (logits[:n], together[2 * n : -n]))
    pseudo = p_target * (p_source.mean(0) / p_target.mean(0))
    pseudo = (pseudo / pseudo.sum(1, keepdim=True)).detach()
    used = pseudo.max(1).values >= 0.99 * p_source.max(1).values.mean()
    assert 0 < used.sum() < n, "the threshold must divide the images"
    log_strong = together[-n:] - together[-n:].logsumexp(1, keepdim=True)
    log_source = (logits - logits.logsumexp(1, keepdim=True)).gather(1, labels.repeat(2)[:, None])[:, 0]
    mu = 0.7 * (0.5 - math.cos(math.pi / 4) / 2)
    target_loss = -mu * (pseudo * log_strong).sum(1)[used].sum() / n
    expected = {
        "weak": -log_source[:n].mean().item(),
        "strong": -log_source[n:].mean().item(),
        "target": target_loss.item(),
        "used": used.double().mean().item(),
    }
    assert {key: loss.item() for key, loss in losses.items()} == pytest.approx(expected, rel=1e-9)
    weight, expected_weight = (m.get_parameter("classifier.0.weight") for m in (method, twin))
    # Of the target loss alone: none flows through the pseudo-labels.
    (gradient,) = torch.autograd.grad(losses["target"], weight)
    (expected_gradient,) = torch.autograd.grad(target_loss, expected_weight)
    torch.testing.assert_close(gradient, expected_gradient)
    # The call on the source alone leaves the running statistics of prediction as they are.
    assert all(torch.equal(running[key], value) for key, value in copy_state(method).items() if "running" in key)


def test_alignment_gives_the_target_the_class_frequencies_of_the_source() -> None:
    random = torch.Generator().manual_seed(0)
    certain = torch.eye(4, dtype=torch.float64)[torch.arange(40) % 4]
    source = torch.rand(40, 4, generator=random, dtype=torch.float64).softmax(1)
    for target in (source.roll(1, 0), certain):
        torch.testing.assert_close(align(target, target), target)
    aligned = align(torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(aligned, torch.full((2, 2), 0.5))


def test_target_weight_of_adamatch_grows_in_the_first_half() -> None:
    method = AdaMatch(SPEC, weight=2.0)
    weights = [method.ramps(p)["target_weight"] for p in (0, 0.25, 0.5, 0.75, 1)]
    assert weights == pytest.approx([0, 1, 2, 2, 2])


# --- MCD


def test_mcd_steps_match_a_manual_computation() -> None:
    lr = 0.05
    torch.manual_seed(0)
    method = MCD(SPEC, optimizer="sgd", lr=lr, momentum=0.0, weight_decay=0.0, rounds=1)
    batch = next(batches("mcd", 0, 1))

    def label(m: MCD) -> Tensor:
        f, y = m.extractor(batch["source_images"]), batch["source_labels"]
        return -(m.first(f).log_softmax(1) + m.second(f).log_softmax(1)).gather(1, y[:, None]).mean()

    def distance(m: MCD) -> Tensor:
        f = m.extractor(batch["target_images"])
        one, two = (torch.exp(g(f)) / torch.exp(g(f)).sum(1, keepdim=True) for g in (m.first, m.second))
        return (one - two).abs().sum() / (len(f) * SPEC.classes)

    steps = [
        (("extractor", "first", "second"), label),
        (("first", "second"), lambda m: label(m) - distance(m)),
        (("extractor",), distance),
    ]
    training = build_trainer(method)
    assert [update.name for update in training.updates] == ["learn", "disagree", "bring_0"]
    for update, (trains, objective) in zip(training.updates, steps, strict=True):
        assert update.trains == trains
        reference = copy.deepcopy(method).requires_grad_(True)
        moving = {k: p for k, p in reference.named_parameters() if k.startswith(tuple(f"{t}." for t in trains))}
        gradients = torch.autograd.grad(objective(reference), list(moving.values()))
        training.apply(update, batch)
        for (key, p), gradient in zip(moving.items(), gradients, strict=True):
            torch.testing.assert_close(method.get_parameter(key), p - lr * gradient, rtol=1e-4, atol=1e-6)


def test_mcd_updates_running_statistics_with_target_images_only() -> None:
    batch = next(batches("mcd", 0, 1)) | {"source_images": torch.full((12, 3, 28, 28), 0.5)}
    method = MCD(SPEC)
    norm = next(m for m in method.extractor.modules() if isinstance(m, nn.BatchNorm2d))
    before = norm.running_mean.clone()  # type: ignore[union-attr]
    method.source_loss(batch, 0.0)
    assert torch.equal(norm.running_mean, before)  # type: ignore[arg-type]
    assert norm.momentum == 0.1
    method.discrepancy(batch, 0.0)
    expected = 0.1 * method.extractor[:2](batch["target_images"]).mean((0, 2, 3))  # type: ignore[index]
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_norm", ["each", "both"])
def test_mcd_losses_match_a_manual_computation(batch_norm: Any) -> None:
    """Statistics of batch norm are those of each domain, or of both."""
    torch.manual_seed(0)
    method = MCD(SPEC, batch_norm=batch_norm).double()
    batch = {
        key: part.double() if part.is_floating_point() else part for key, part in next(batches("mcd", 0, 1)).items()
    }
    source, target, labels = batch["source_images"], batch["target_images"], batch["source_labels"]
    with torch.no_grad():
        if batch_norm == "both":
            features = method.extractor(torch.cat([source, target]))
            logits = [classifier(features) for classifier in (method.first, method.second)]
            of_source, of_target = [z[: len(source)] for z in logits], [z[len(source) :] for z in logits]
        else:
            of_source, of_target = (
                [classifier(method.extractor(images)) for classifier in (method.first, method.second)]
                for images in (source, target)
            )
        first, second = (torch.exp(z) / torch.exp(z).sum(1, keepdim=True) for z in of_target)
        difference = (first - second).abs().mean().item()
        names = ("first", "second")
        label = {
            k: -z.log_softmax(1).gather(1, labels[:, None]).mean().item() for k, z in zip(names, of_source, strict=True)
        }
        losses = [update.loss(batch, 0.5) for update in method.updates()[:3]]
    expected = [label, label | {"agreement": -difference}, {"discrepancy": difference}]
    for terms, values in zip(losses, expected, strict=True):
        assert {key: term.item() for key, term in terms.items()} == pytest.approx(values, rel=1e-9)


def test_mcd_may_share_the_moments_of_its_steps() -> None:
    for moments, owners in (("each", ["learn", "disagree", "bring_0", "bring_1"]), ("shared", ["learn"])):
        training = build_trainer(MCD(SPEC, net="slim", rounds=2, moments=moments))  # type: ignore[arg-type]
        assert len({id(optimizer) for optimizer in training.optimizers.values()}) == len(owners)
        assert list(training.state()["optimizers"]) == owners


def test_mcd_prediction_averages_both_classifiers() -> None:
    method = MCD(SPEC).eval()
    images = next(batches("mcd", 0, 1))["source_images"]
    f = method.features(images)
    assert torch.allclose(method.predict(images), (method.first(f) + method.second(f)) / 2)
    assert not torch.allclose(method.first(f), method.second(f)), "the classifiers must be initialised differently"


# --- target labels


def build_domains(target_labels: np.ndarray) -> dict[str, Arrays]:
    random = np.random.RandomState(0)
    domains = {}
    for domain in ("source", "target"):
        images = random.randint(256, size=(40, 28, 28, 3)).astype(np.uint8).transpose(0, 3, 1, 2)
        domains[domain] = Arrays(images, np.arange(40, dtype=np.int64) % 10 if domain == "source" else target_labels)
    return domains


ADAPTING = [n for n in models.names() if {"source_images", "target_images"} <= set(models.signature(n).reads)]


@pytest.mark.parametrize("name", [*ADAPTING, "source_only"])
def test_target_labels_do_not_change_the_weights(name: str) -> None:
    """Train with correct, constant and unknown target labels in Batches, the only path of data into training."""
    trained = []
    for labels in (np.arange(40) % 10, np.full(40, 3), np.full(40, -1)):
        torch.manual_seed(0)
        training = build_trainer(small(name, SPEC))
        batch_source = Batches(
            build_domains(labels), models.load(name).reads, 12, 0, 0, 1, CPU, balanced=True, jitter=0.2
        )
        for _ in training.fit(batch_source.at(step) for step in range(3)):
            pass
        trained.append(copy_state(training.method))
    for other in trained[1:]:
        assert all(torch.equal(trained[0][key], other[key]) for key in trained[0])


def test_target_labels_change_the_upper_bound() -> None:
    """Show that the test above can fail."""
    trained = []
    for labels in (np.arange(40) % 10, np.full(40, 3)):
        torch.manual_seed(0)
        training = build_trainer(models.load("target_only")(SPEC))
        batch_source = Batches(build_domains(labels), ("target_images", "target_labels"), 12, 0, 0, 1, CPU)
        for _ in training.fit(batch_source.at(step) for step in range(3)):
            pass
        trained.append(copy_state(training.method))
    assert not torch.equal(trained[0]["classifier.3.bias"], trained[1]["classifier.3.bias"])


# --- balanced batches and jitter


def test_balanced_batches_contain_each_class_equally_often() -> None:
    labels = np.repeat(np.arange(4), (3, 10, 20, 67)).astype(np.int64)
    images = np.arange(100, dtype=np.uint8)[:, None, None, None].repeat(3, 1)
    arrays = {"": Arrays(images.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2), labels)}
    one = Batches(arrays, ("images", "labels"), 20, 0, 0, 1, CPU, balanced=True)
    seen: list[int] = []
    for step in range(7):
        batch = one.at(step)
        assert batch["labels"].bincount().tolist() == [5, 5, 5, 5]
        number = ((batch["images"][:, 0, 0, 0] + 1) * 127.5).round().long()
        assert torch.equal(torch.from_numpy(labels)[number], batch["labels"]), "an image and its label stay together"
        seen += number[batch["labels"] == 1].tolist()
        parts = [
            Batches(arrays, ("images", "labels"), 20, 0, rank, 2, CPU, balanced=True).at(step)["images"]
            for rank in (0, 1)
        ]
        assert torch.equal(torch.cat(parts), batch["images"])
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(3, 13)), "an epoch shows every sample once"
    assert seen[:10] != seen[10:20]
    for size in (6, 2, 1):
        uneven = Batches(arrays, ("labels",), size, 0, 0, 1, CPU, balanced=True)
        labels_of_steps = torch.cat([uneven.at(step)["labels"] for step in range(8)])
        assert labels_of_steps.tolist() == [0, 1, 2, 3] * (2 * size), f"batches of {size}"


def test_jitter_changes_labelled_images_and_depends_only_on_seed_and_step() -> None:
    arrays, keys = build_domains(np.zeros(40, np.int64)), ("source_images", "source_labels", "target_images")
    plain, jittered = (Batches(arrays, keys, 8, 0, 0, 1, CPU, jitter=amount) for amount in (0.0, 0.3))
    repeated = Batches(arrays, keys, 8, 0, 0, 1, CPU, jitter=0.3)
    for step in (3, 1):
        a, b = plain.at(step), jittered.at(step)
        assert torch.equal(a["target_images"], b["target_images"])
        assert torch.equal(a["source_labels"], b["source_labels"])
        assert not torch.allclose(a["source_images"], b["source_images"])
        assert b["source_images"].shape == a["source_images"].shape
        assert b["source_images"].abs().max() <= 1
        assert b["source_images"].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(b["source_images"], repeated.at(step)["source_images"])
    other = Batches(arrays, keys, 8, 1, 0, 1, CPU, jitter=0.3)
    assert not torch.equal(other.at(1)["source_images"], repeated.at(1)["source_images"])


def test_jitter_stays_within_its_amount() -> None:
    """The centre of a disc moves by at most a quarter of the amount, and its width changes by at most the amount."""
    from trainer.data.augment import jitter

    side, amount = 65, 0.4
    y, x = np.mgrid[:side, :side] - side // 2
    disc = torch.from_numpy((x**2 + y**2 < 15**2).astype(np.float32)).expand(200, 1, side, side)
    jittered = jitter(disc, amount, seed=1)
    heights = (jittered.amax(3) > 0.5).sum(2).flatten() / (disc.amax(3) > 0.5).sum(2).flatten()
    assert heights.min() > 1 / (1 + amount) - 0.08
    assert heights.max() < 1 + amount + 0.08
    assert heights.max() - heights.min() > 0.4
    rows = (jittered.sum((1, 3)) * torch.arange(side)).sum(1) / jittered.sum((1, 2, 3)) - side // 2
    assert rows.abs().max() < (amount / 4 + 0.02) * side * (1 + amount)
    assert rows.std() > 0.02 * side
    assert torch.equal(jitter(disc, amount, seed=1), jittered)
