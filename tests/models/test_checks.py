"""Sizes, widths and batches that are refused without torch are those that a constructor or batch norm refuses."""

from typing import Any, get_args

import pytest
import torch

import models
from models.base import DataSpec
from models.checks import CHECKS, LEAST_BATCHES
from trainer.config.resolve import resolve
from trainer.errors import ConfigError

SIZES = [*range(1, 50), 56, 64, 96]


def settings(name: str) -> list[dict[str, Any]]:
    """Return every net of a method with several widths."""
    annotations = {h.name: h.annotation for h in models.signature(name).hyperparameters}
    nets = [net for net in get_args(annotations.get("net", ())) if isinstance(net, str)]
    widths = [None, 4, 8, 12, 30] if models.signature(name).check == "unet" else []
    return [{"net": net, **({"width": width} if widths else {})} for net in nets for width in widths or [0]] or [{}]


def is_built(name: str, size: int, arguments: dict[str, Any]) -> bool:
    try:
        with torch.device("meta"):
            models.load(name)(DataSpec(3, size, 10), **arguments)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", models.names())
def test_a_check_refuses_what_the_constructor_refuses(name: str) -> None:
    check = models.signature(name).check
    sizes = SIZES if check else [8, 27, 28, 33, 64]  # without a check the constructor takes any usual size
    for arguments in settings(name):
        for size in sizes if "width" not in arguments else (1, 4, 27, 28, 30, 32):
            try:
                CHECKS[check](size, arguments) if check else None
                accepted = True
            except ValueError:
                accepted = False
            assert accepted == is_built(name, size, arguments), (size, arguments)


def takes_one_image(name: str, size: int, arguments: dict[str, Any]) -> bool:
    """Return whether every loss of a method can be computed from a batch of one image."""
    method = models.load(name)(DataSpec(3, size, 10), **arguments)
    labels, images = torch.zeros(1, dtype=torch.long), torch.zeros(1, 3, size, size)
    batch = {key: labels if key.endswith("labels") else images for key in method.reads}
    try:
        for update in method.updates():
            update.loss(batch, 0.5)
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            return False
        raise
    return True


@pytest.mark.parametrize("name", models.names())
def test_a_single_image_is_refused_where_batch_norm_cannot_normalise_it(name: str) -> None:
    described = models.signature(name)
    hyperparameters = {h.name: h.default for h in described.hyperparameters}
    narrow = {key: 8 for key in ("width", "latent", "noise", "rounds") if key in hyperparameters}
    for net in {change.get("net") for change in settings(name)}:
        arguments = hyperparameters | narrow | ({"net": net} if net else {})
        for size in (32, 36):
            if described.check:
                try:
                    CHECKS[described.check](size, arguments)
                except ValueError:
                    continue
            least = LEAST_BATCHES[described.least_batch](size, arguments) if described.least_batch else 1
            assert (least == 1) == takes_one_image(name, size, arguments), (size, arguments)


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("dcgan", {"data.size": 27}, r"a\.yaml: data\.size: 27 must be 4, 5, 6 or 7 times 2, 4, 8"),
        ("ddpm", {"data.size": 33}, r"a\.yaml: data\.size: 33 is not divisible by 4 .*; use 32"),
        ("ddpm", {"model.width": 20}, r"a\.yaml: model\.width: 20 is not divisible by 8 .*; use 16"),
        ("classifier", {"train.batch_size": 0}, r"train\.batch_size: 0: "),
        (
            "classifier",
            {"train.batch_size": 1},
            r"a\.yaml: train\.batch_size: 1 is too small: .* needs 2 images .*; use 2",
        ),
        ("vae", {"train.batch_size": 4, "train.micro_batches": 4}, r"train\.batch_size: 4 is too small: .*; use 8"),
        ("vae", {"train.batch_size": 6, "resources.gpus_per_node": 3, "train.micro_batches": 2}, r"; use 12 or more"),
        ("vae", {"train.batch_size": 3, "resources.nodes": 2}, r"train\.batch_size: 3 is too small: .*; use 4 or more"),
    ],
)
def test_a_refusal_names_key_value_and_remedy(method: str, change: dict[str, Any], message: str) -> None:
    document = {"name": "a", "method": method, "data.dataset": "mnist5k", "data.size": 28} | change
    with pytest.raises(ConfigError, match=message):
        resolve(document, "a.yaml")
