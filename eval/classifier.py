"""A small classifier of a run's own set, whose features stand in where Inception's weights cannot be had.

It is trained once on the training split, on the CPU, and kept under the data root for all trials of all sweeps. Its
distances compare trials on one set with each other, and with nothing that anybody else has published.
"""

import hashlib
import json
import math

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from eval.extractor import Extractor
from eval.once import once
from eval.reference import cached, fingerprint
from eval.subject import Subject
from models.nets.digits import lenet
from trainer.config import ConfigError
from trainer.data.batches import Batches
from trainer.data.cache import Arrays, data_root
from trainer.data.registry import DataError
from trainer.loop import seed

RECIPE = 1  # raise it when anything below changes what is trained
SEED, STEPS, BATCH, RATE = 0, 1000, 64, 1e-3  # Adam, its rate falling to zero along a cosine
LEAST = 28  # pixels; smaller images are enlarged to it
WIDTH = 100  # of the layer before the last


def extractor(subject: Subject, domain: str) -> Extractor:
    """Features of the layer before the last; ConfigError if the set has no two classes to tell apart."""
    train = subject.arrays(domain, "train")
    channels, size, classes = subject.config.data.shape()
    name = subject.domains[domain]
    if train.labels.ndim != 1 or len(np.unique(train.labels)) < 2:
        raise ConfigError(
            f"{subject.run.path}: eval.metrics: fid_classifier learns to tell classes apart, and {name} has "
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
    return Extractor(
        name="classifier",
        sha256=hashlib.sha256(content).hexdigest(),
        width=WIDTH,
        batch=500,
        resize=f"bilinear to {LEAST} px if smaller, else none",
        function=lambda images: network[:-1](enlarged(images.float() / 127.5 - 1)),
        device=subject.device,
        provenance={
            "test accuracy": float((predicted == np.asarray(test.labels)).mean()),
            "trained": {"set": name, "split": "train", "n": len(train.labels), "steps": STEPS, "seed": SEED},
        },
    )


def trained(train: Arrays, channels: int, size: int, classes: int) -> bytes:
    """Weights as safetensors, a function of the data alone on one machine; the random generators stay as they are."""
    device = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        seed(SEED, "classifier")
        network = build(channels, size, classes).train()
        batches = Batches({"": train}, ("images", "labels"), BATCH, SEED, 0, 1, device)
        adam = torch.optim.Adam(network.parameters(), RATE)
        for step in range(STEPS):
            batch = batches.at(step)
            adam.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / STEPS)) / 2
            adam.zero_grad()
            F.cross_entropy(network(enlarged(batch["images"])), batch["labels"]).backward()
            adam.step()
    return save({key: value.contiguous() for key, value in network.state_dict().items()})


def build(channels: int, size: int, classes: int) -> nn.Sequential:
    """The network: images [n, channels, size, size] in [-1, 1], enlarged, to logits [n, classes]."""
    parts = lenet(channels, max(size, LEAST), classes)
    assert isinstance(parts.classifier, nn.Sequential)
    return nn.Sequential(parts.extractor, *parts.classifier)


def enlarged(images: Tensor) -> Tensor:
    """Images [n, c, h, h] of at least LEAST pixels."""
    if images.shape[-1] >= LEAST:
        return images
    return F.interpolate(images, size=(LEAST, LEAST), mode="bilinear", align_corners=False)
