"""The settings of sweeps/reports/: networks by their lists of layers, optimizers, and epochs turned into steps."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import models
from models.base import DataSpec, Method
from trainer.config.sweep import Trial, load_trials

FOLDER = Path(__file__).parents[1] / "sweeps" / "reports"
CELEBA, MNISTM = 162_770, 54_000  # training images

GENERATOR = "T(100,512,4) BN T(512,256,4) BN T(256,128,4) BN T(128,64,4) BN T(64,3,4)"
DISCRIMINATOR = "C(3,64,4) C(64,128,4) BN C(128,256,4) BN C(256,512,4) BN C(512,1,4)"
RESIZING = "C(100,256,3) BN C(64,256,3) BN C(64,128,3) BN C(32,128,3) BN C(32,3,3)"
VAE_DOWN = "C(3,32,3) BN C(32,64,3) BN C(64,128,3) BN C(128,256,3) BN C(256,512,3) BN"
VAE_UP = "L(512,2048) T(512,256,3) BN T(256,128,3) BN T(128,64,3) BN T(64,32,3) BN T(32,32,3) BN C(32,3,3)"
WIDE_DOWN = "C(3,128,3) C(128,128,3) C(128,256,5) C(256,256,5) C(256,512,5) C(512,512,5)"
WIDE_UP = "L(128,32768) T(512,512,4) T(512,512,4) T(512,3,4)"
SVHN = {
    "extractor": "C(3,48,5) BN C(48,64,5) BN C(64,64,3) BN",
    "classifier": "L(3136,1024) BN L(1024,128) BN L(128,10)",
    "domain": "L(3136,256) BN L(256,2)",
}
USPS = {
    "extractor": "C(3,32,5) BN C(32,64,5) BN C(64,128,3) BN",
    "classifier": "L(6272,1024) BN L(1024,128) BN L(128,10)",
    "domain": "L(6272,256) BN L(256,2)",
}
COMPACT = {
    "extractor": "C(3,64,5) BN C(64,50,5) BN",
    "classifier": "L(800,100) BN L(100,100) BN L(100,10)",
    "domain": "L(800,100) BN L(100,2)",
}
DEEP = {
    "extractor": "C(3,64,3) BN C(64,128,3) BN C(128,256,3) BN C(256,256,3) BN C(256,512,3) BN",
    "classifier": "L(512,512) L(512,512) L(512,10)",
    "domain": "L(512,512) BN L(512,512) BN L(512,512) BN L(512,512) BN L(512,1)",
}
GTA = {
    "embedding": "C(3,64,5) C(64,64,5) C(64,128,5)",
    "classifier": "L(128,128) L(128,10)",
    "discriminator": "C(3,64,3) BN C(64,128,3) BN C(128,256,3) BN C(256,128,3) BN L(128,10) L(128,1)",
}
CONTEXT_UNET = (
    "C(3,128,3) BN C(128,128,3) BN  C(128,128,3) BN C(128,128,3) BN  C(128,256,3) BN C(256,256,3) BN "
    "L(1,256) L(256,256) L(1,128) L(128,128) L(10,256) L(256,256) L(10,128) L(128,128) "
    "T(256,256,7) GN  T(512,128,2) C(128,128,3) BN C(128,128,3) BN C(128,128,3) BN C(128,128,3) BN "
    "T(256,128,2) C(128,128,3) BN C(128,128,3) BN C(128,128,3) BN C(128,128,3) BN C(256,128,3) GN C(128,3,3)"
)
# Report -> layers of each network; "no bias": its convolutions have none.
LAYERS: dict[str, dict[str, str]] = {
    "dcgan_s1": {"generator": "no bias " + GENERATOR, "discriminator": "no bias " + DISCRIMINATOR},
    "wgan_gp_s1": {"generator": "no bias " + GENERATOR, "critic": "no bias " + DISCRIMINATOR.replace(" BN", "")},
    "dann_s1": COMPACT,
    "ddpm_s2": {"network": CONTEXT_UNET},
    "dann_svhn_s2": SVHN,
    "dann_usps_s2": USPS,
    "dcgan_s3": {"generator": "no bias " + GENERATOR, "discriminator": "no bias " + DISCRIMINATOR},
    "vae_s3": {"encoder": VAE_DOWN, "mean": "L(2048,512)", "log_variance": "L(2048,512)", "decoder": VAE_UP},
    "adaptation_s3": COMPACT,
    "dcgan_s4": {"generator": "no bias " + GENERATOR, "discriminator": "no bias " + DISCRIMINATOR},
    "dcgan_resize_s4": {"generator": RESIZING, "discriminator": "no bias " + DISCRIMINATOR},
    "ddpm_s4": {"network": CONTEXT_UNET},
    "dann_s4": DEEP,
    "dcgan_s5": {
        "generator": "no bias " + GENERATOR.replace("100", "128"),
        "discriminator": "no bias C(3,64,4) C(64,128,4) BN C(128,256,4) BN C(256,1,4)",
    },
    "acgan_s5": {
        "generator": "no bias " + GENERATOR.replace("100", "102"),
        "discriminator": "no bias " + DISCRIMINATOR.replace("512,1", "512,3"),
    },
    "vae_wide_s5": {"encoder": WIDE_DOWN, "mean": "L(32768,128)", "log_variance": "L(32768,128)", "decoder": WIDE_UP},
}
# Report -> optimizer and learning rate of each update, for the adapted method where there are bounds.
OPTIMIZERS = {
    "dcgan_s1": ["Adam 0.0002", "Adam 0.0002"],
    "wgan_gp_s1": ["Adam 0.0001", "Adam 0.0001"],
    "ddpm_s1": ["AdamW 0.0003"],
    "dann_s1": ["Adam 0.001"],
    "ddpm_s2": ["AdamW 0.0001"],
    "dann_svhn_s2": ["Adam 0.002"],
    "dann_usps_s2": ["Adam 0.0002"],
    "dcgan_s3": ["Adam 0.0002", "Adam 0.0002"],
    "vae_s3": ["Adam 0.0005"],
    "adaptation_s3": ["Adam 0.001"],
    "dcgan_s4": ["Adam 0.0001", "Adam 0.0001"],
    "dcgan_resize_s4": ["SGD 0.001", "Adam 0.0001"],
    "ddpm_s4": ["AdamW 0.0001"],
    "dann_s4": ["Adam 0.001"],
    "dcgan_s5": ["Adam 0.0005", "Adam 0.0005"],
    "acgan_s5": ["Adam 0.0002", "Adam 0.0002"],
    "vae_wide_s5": ["Adamax 0.0005"],
}
# Report -> epochs, training images and batch size that the report states.
EPOCHS = {
    "ddpm_s2": (100, MNISTM, 256),
    "dann_svhn_s2": (200, MNISTM, 1024),
    "dcgan_s4": (600, CELEBA, 256),
    "dcgan_resize_s4": (300, CELEBA, 256),
    "ddpm_s4": (300, MNISTM, 128),
    "dann_s4": (200, MNISTM, 256),
}


def load(name: str) -> list[Trial]:
    return load_trials(FOLDER / f"{name}.yaml", [])


def build(trial: Trial) -> Method:
    """Return the method of a trial, whose networks occupy no memory."""
    with torch.device("meta"):
        return models.load(trial.config.method)(DataSpec(*trial.config.data.shape()), **trial.config.model_arguments())


def adapted(trials: list[Trial]) -> Trial:
    """Return the first trial that is no bound."""
    return next(trial for trial in trials if not models.signature(trial.config.method).role)


def count(layers: str) -> int:
    """Return the number of parameters of layers C, T (inputs, outputs, kernel), L (inputs, outputs) and norms."""
    bias, total, width = "no bias" not in layers, 0, 0
    for kind, sizes in re.findall(r"\b(C|T|L|BN|GN)(?:\(([\d,]+)\))?", layers):
        inputs, outputs, kernel = ([*map(int, sizes.split(",")), 1] if sizes else [0, 0, 0])[:3]
        width = outputs or width
        total += inputs * outputs * kernel**2 + (outputs if bias or kind == "L" else 0) if sizes else 2 * width
    return total


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_every_report_is_tested() -> None:
    names = {path.stem for path in FOLDER.glob("*.yaml")}
    assert set(OPTIMIZERS) == names
    assert set(LAYERS) == names - {"ddpm_s1"}


@pytest.mark.parametrize("name", LAYERS)
def test_networks_have_the_parameters_of_the_report(name: str) -> None:
    method = build(adapted(load(name)))
    assert {key: count_parameters(getattr(method, key)) for key in LAYERS[name]} == {
        key: count(layers) for key, layers in LAYERS[name].items()
    }


def test_networks_of_generate_to_adapt_have_the_parameters_of_the_report() -> None:
    method = build(next(t for t in load("adaptation_s3") if t.config.method == "gta" and t.config.data.channels == 3))
    generator = "no bias T(651,512,2) BN T(512,256,4) BN T(256,128,4) BN T(128,64,4) BN T(64,3,4)"
    for key, layers in (GTA | {"generator": generator}).items():
        assert count_parameters(getattr(method, key)) == count(layers), key


def test_the_attention_unet_has_the_parameters_that_its_report_prints() -> None:
    assert count_parameters(build(load("ddpm_s1")[0])) == 4_561_027


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_those_of_the_report(name: str) -> None:
    weights = [nn.Parameter(torch.zeros(1))]
    optimizers = [update.optimizer(weights) for update in build(adapted(load(name))).updates()]
    assert [f"{type(o).__name__} {o.defaults['lr']:g}" for o in optimizers] == OPTIMIZERS[name]


@pytest.mark.parametrize("name", EPOCHS)
def test_epochs_are_turned_into_steps(name: str) -> None:
    epochs, images, batch_size = EPOCHS[name]
    for trial in load(name):
        assert trial.config.train.batch_size == batch_size
        assert trial.config.train.steps == epochs * images // batch_size


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_bounds_share_network_optimizer_and_images_with_what_is_adapted(name: str) -> None:
    """Compare each bound with the DANN of its pair of domains."""
    trials = [trial for trial in load(name) if trial.config.data.source and trial.config.method != "gta"]
    for trial in trials:
        pair = (trial.config.data, trial.config.train)
        (dann,) = [t for t in trials if t.config.method == "dann" and (t.config.data, t.config.train) == pair]
        settings = trial.config.model_arguments()
        assert settings == {key: dann.config.model_arguments()[key] for key in settings}
