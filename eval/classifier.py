"""A small classifier of a run's own set: it names the class of samples, and its features stand in for Inception's.

It is trained once on the training split, as models/classifier.py says, on the CPU, and kept under the data root for
all trials of all sweeps. Its distances compare trials on one set with each other, and with nothing that anybody else
has published.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from eval.extractor import Extractor
from eval.once import once
from eval.reference import cached, fingerprint
from eval.subject import Subject
from models.base import DataSpec
from models.classifier import LEAST, Classifier, build, enlarged
from trainer.config import ConfigError
from trainer.data.batches import Batches
from trainer.data.cache import Arrays, data_root
from trainer.data.registry import DataError
from trainer.loop import seed

RECIPE = 1  # raise it when anything below changes what is trained
SEED, STEPS, BATCH = 0, 1000, 64
WIDTH = 100  # of the layer before the last


@dataclass(frozen=True)
class Judge:
    """The classifier of a set."""

    network: nn.Sequential  # enlarged images to logits
    sha256: str  # of its weights
    facts: dict[str, Any]  # how it was trained, and its accuracy on the test split

    def logits(self, images: Tensor) -> Tensor:
        """Images uint8 [n, c, h, h] on the device to logits [n, classes]."""
        logits: Tensor = self.network(enlarged(images.float() / 127.5 - 1))
        return logits


def judge(subject: Subject, domain: str, metric: str) -> Judge:
    """Read the classifier, trained if it is not there yet; ConfigError if the set has no two classes to tell apart."""
    train = subject.arrays(domain, "train")
    channels, size, classes = subject.config.data.shape()
    name = subject.domains[domain]
    if train.labels.ndim != 1 or len(np.unique(train.labels)) < 2:
        raise ConfigError(
            f"{subject.run.path}: eval.metrics: {metric} learns to tell classes apart, and {name} has "
            "no labels of two classes; use fid, which needs Inception's weights"
        )
    place = cached(subject, domain)
    data = [fingerprint(place, f"train_{kind}.npy") for kind in ("images", "labels")]
    key = hashlib.sha256(json.dumps([data, RECIPE, SEED]).encode()).hexdigest()[:8]
    path = data_root(subject.config.data.root) / "classifiers" / f"{place.name}-{key}.safetensors"
    content = once(path, lambda: trained(train, channels, size, classes))
    network = build(channels, size, classes)
    try:
        network.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: is no classifier of {name}: {reason}; remove it, and it is trained anew") from None
    network = network.to(subject.device).eval().requires_grad_(False)
    test = subject.arrays(domain, "test")
    predicted = subject.over(lambda images: network(enlarged(images)), test.images).argmax(1)
    facts = {
        "test accuracy": float((predicted == np.asarray(test.labels)).mean()),
        "trained": {"set": name, "split": "train", "n": len(train.labels), "steps": STEPS, "seed": SEED},
    }
    return Judge(network, hashlib.sha256(content).hexdigest(), facts)


def extractor(subject: Subject, domain: str) -> Extractor:
    """Features of the layer before the last; ConfigError if the set has no two classes to tell apart."""
    found = judge(subject, domain, "fid_classifier")
    return Extractor(
        name="classifier",
        sha256=found.sha256,
        width=WIDTH,
        batch=500,
        resize=f"bilinear to {LEAST} px if smaller, else none",
        function=lambda images: found.network[:-1](enlarged(images.float() / 127.5 - 1)),
        device=subject.device,
        provenance=found.facts,
    )


def trained(train: Arrays, channels: int, size: int, classes: int) -> bytes:
    """Weights as safetensors, a function of the data alone on one machine; the random generators stay as they are."""
    device = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        seed(SEED, "classifier")
        method = Classifier(DataSpec(channels, size, classes)).train()
        (update,) = method.updates()
        batches = Batches({"": train}, method.reads, BATCH, SEED, 0, 1, device)
        optimizer = update.optimizer(method.network.parameters())
        rate = optimizer.param_groups[0]["lr"]
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = rate * update.schedule(step / STEPS)
            optimizer.zero_grad()
            update.loss(batches.at(step), step / STEPS)["label"].backward()
            optimizer.step()
    return save({key: value.contiguous() for key, value in method.network.state_dict().items()})
