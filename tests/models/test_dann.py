"""DANN against a second implementation of its formulae (Ganin et al., JMLR 2016)."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.dann import DANN
from models.nets.layers import reverse_gradient
from models.source_only import SourceOnly
from models.target_only import TargetOnly
from tests.models.test_methods import build_trainer
from tests.processes import SPEC, batches


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_gradient_reversal_has_the_exact_sign_and_scale(dtype: torch.dtype, strength: float) -> None:
    x = torch.tensor([[1.5, -2.0], [0.25, 3.0]], dtype=dtype, requires_grad=True)
    plain = x.detach().clone().requires_grad_(True)
    weight = torch.tensor([[0.5, -1.0]], dtype=dtype)
    out = reverse_gradient(x, strength)
    assert torch.equal(out, plain)
    assert out.dtype == dtype
    (out @ weight.T).square().sum().backward()
    (plain @ weight.T).square().sum().backward()
    assert x.grad is not None
    assert plain.grad is not None
    assert torch.equal(x.grad, -strength * plain.grad)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 10.0])
def test_lambda_and_learning_rate_match_their_formulae(gamma: float) -> None:
    method = DANN(SPEC, gamma=gamma, weight=0.7)
    for p in (0.0, 0.5, 1.0):
        assert method.reversal_strength(p) == pytest.approx(0.7 * (2 / (1 + math.exp(-gamma * p)) - 1))
        assert method.updates()[0].schedule(p) == pytest.approx(1 / (1 + 10 * p) ** 0.75)
    assert method.reversal_strength(0.0) == 0.0


def test_each_step_uses_the_scheduled_learning_rate() -> None:
    training = build_trainer(SourceOnly(SPEC, lr=0.02))
    for step in training.fit(batches("source_only", 0, 1)):
        progress = (step - 1) / training.train.steps
        (group,) = training.optimizers["supervised"].param_groups
        assert group["lr"] == pytest.approx(0.02 * (1 + 10 * progress) ** -0.75)


def test_losses_match_a_manual_computation() -> None:
    torch.manual_seed(0)
    method = DANN(SPEC).double().eval()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in next(batches("dann", 0, 1)).items()}
    losses = method.loss(batch, 0.25)

    def log_probability(logits: Tensor, labels: list[int]) -> float:
        rows = [
            math.log(math.exp(row[k]) / sum(math.exp(v) for v in row))
            for row, k in zip(logits.tolist(), labels, strict=True)
        ]
        return sum(rows) / len(rows)

    source = method.extractor(batch["source_images"])
    target = method.extractor(batch["target_images"])
    n = len(source)
    assert losses["label"].item() == pytest.approx(
        -log_probability(method.classifier(source), batch["source_labels"].tolist())
    )
    assert losses["source_domain"].item() == pytest.approx(-log_probability(method.domain(source), [0] * n))
    assert losses["target_domain"].item() == pytest.approx(-log_probability(method.domain(target), [1] * n))


def test_one_step_matches_a_manual_computation() -> None:
    """The saddle point of eq. 15: the extractor ascends what the domain classifier descends."""
    gamma, lr, steps, at = 10.0, 0.01, 5, 2
    torch.manual_seed(0)
    method = DANN(SPEC, gamma=gamma, lr=lr, momentum=0.0)
    reference = DANN(SPEC, gamma=gamma, lr=lr, momentum=0.0)
    reference.load_state_dict(method.state_dict())
    batch = next(batches("dann", 0, 1))
    training = build_trainer(method)
    training.step = at
    training.apply(training.updates[0], batch)

    p = at / steps
    strength = 2 / (1 + math.exp(-gamma * p)) - 1
    step = lr * (1 + 10 * p) ** -0.75
    source, target = reference.extractor(batch["source_images"]), reference.extractor(batch["target_images"])
    zeros, ones = torch.zeros(len(source), dtype=torch.long), torch.ones(len(target), dtype=torch.long)
    label = F.cross_entropy(reference.classifier(source), batch["source_labels"])
    domain = F.cross_entropy(reference.domain(source), zeros) + F.cross_entropy(reference.domain(target), ones)
    objectives = {"extractor": label - strength * domain, "classifier": label, "domain": domain}
    expected: dict[str, Tensor] = {}
    for name, objective in objectives.items():
        parameters = dict(reference.get_submodule(name).named_parameters())
        gradients = torch.autograd.grad(objective, list(parameters.values()), retain_graph=True)
        expected |= {
            f"{name}.{k}": v.detach() - step * g for (k, v), g in zip(parameters.items(), gradients, strict=True)
        }
    assert expected.keys() == dict(method.named_parameters()).keys()
    for key, value in method.named_parameters():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-6)


def test_bounds_read_only_their_own_domain() -> None:
    """Neither bound reads a key of the other domain."""
    for method, name in ((SourceOnly, "source_only"), (TargetOnly, "target_only")):
        domain = name.partition("_")[0]
        assert method.reads == (f"{domain}_images", f"{domain}_labels")
        batch = next(batches(name, 0, 1))
        images, labels = batch[f"{domain}_images"], batch[f"{domain}_labels"]
        torch.manual_seed(0)
        bound = method(SPEC).eval()
        assert bound.loss(batch, 0.0)["label"].item() == pytest.approx(
            F.cross_entropy(bound.predict(images), labels).item()
        )
