"""A small classifier of a run's own set: it names the class of samples, and its features stand in for Inception's.

It is trained once on the training split, as models/classifier.py says, on the CPU, and kept under the data root for
all trials of all sweeps. Its distances compare trials on one set with each other, and with nothing that anybody else
has published.
"""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from eval.features.cached_file import once
from eval.features.extractor import Extractor
from models.base import DataSpec
from models.classifier import LEAST, Classifier, build, enlarged
from trainer.data import cache
from trainer.data.batches import Batches
from trainer.data.cache import Arrays
from trainer.errors import DataError
from trainer.seeds import seed_torch

RECIPE = 1  # raise it when anything below changes what is trained
SEED, STEPS, BATCH = 0, 1000, 64
WIDTH = 100  # of the layer before the last


@dataclass(frozen=True)
class Judge:
    """The classifier of a set."""

    file: Path  # where it is kept
    network: nn.Sequential  # enlarged images to logits
    sha256: str  # of its weights
    facts: dict[str, Any]  # how it was trained, and its accuracy on the test split

    def logits(self, images: Tensor) -> Tensor:
        """Images uint8 [n, c, h, h] on the device to logits [n, classes]."""
        logits: Tensor = self.network(signed(images))
        return logits


def judge(place: Path, device: torch.device) -> Judge:
    """Read the classifier of the set in a folder of the cache, `<data root>/cache/<set>`; train it if it is not there.

    DataError if the set has no two classes to tell apart, or if what is kept is damaged.
    """
    train, about = cache.read(place, "train"), cache.origin(place)
    name, channels, size, classes = (about[key] for key in ("dataset", "channels", "size", "classes"))
    if train.labels.ndim != 1 or len(np.unique(train.labels)) < 2:
        raise DataError(
            f"fid_classifier and class_accuracy tell classes apart, and {name} has no labels of two classes; "
            "use fid, which needs Inception's weights"
        )
    data = [about["files"][f"train_{kind}.npy"]["sha256"] for kind in ("images", "labels")]
    key = hashlib.sha256(json.dumps([data, RECIPE, SEED]).encode()).hexdigest()[:8]
    path = place.parents[1] / "classifiers" / f"{place.name}-{key}.safetensors"
    content = once(path, lambda: trained(train, channels, size, classes))
    network = build(channels, size, classes)
    try:
        network.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: is no classifier of {name}: {reason}; remove it, and it is trained anew") from None
    network = network.to(device).eval().requires_grad_(False)
    test, right = cache.read(place, "test"), 0
    with torch.inference_mode():
        for start in range(0, len(test.labels), BATCH):
            images = torch.from_numpy(np.ascontiguousarray(test.images[start : start + BATCH])).to(device)
            named = network(signed(images)).argmax(1).cpu().numpy()
            right += int((named == test.labels[start : start + BATCH]).sum())
    facts = {
        "test accuracy": right / len(test.labels),
        "trained": {"set": name, "split": "train", "n": len(train.labels), "steps": STEPS, "seed": SEED},
    }
    return Judge(path, network, hashlib.sha256(content).hexdigest(), facts)


def signed(images: Tensor) -> Tensor:
    """Images uint8 [n, c, h, h] as the network takes them: in [-1, 1], enlarged where they are small."""
    return enlarged(images.float() / 127.5 - 1)


def extractor(place: Path, device: torch.device) -> Extractor:
    """Features of the layer before the last; errors as of `judge`."""
    found = judge(place, device)
    return Extractor(
        name="classifier",
        sha256=found.sha256,
        width=WIDTH,
        batch=500,
        resize=f"bilinear to {LEAST} px if smaller, else none",
        function=lambda images: found.network[:-1](signed(images)),
        device=device,
        remedy=f"remove {found.file}, and it is trained anew",
        provenance=found.facts,
    )


def trained(train: Arrays, channels: int, size: int, classes: int) -> bytes:
    """Weights as safetensors, a function of the data alone on one machine; the random generators stay as they are."""
    device = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        seed_torch(SEED, "classifier")
        method = Classifier(DataSpec(channels, size, classes)).train()
        (update,) = method.updates()
        batches = Batches({"": train}, method.reads, BATCH, SEED, 0, 1, device)
        optimizer = update.optimizer(method.network.parameters())
        rate = optimizer.param_groups[0]["lr"]
        quiet = not sys.stderr.isatty()
        for step in track(range(STEPS), "a classifier is trained", console=Console(stderr=True), disable=quiet):
            optimizer.param_groups[0]["lr"] = rate * update.schedule(step / STEPS)
            optimizer.zero_grad()
            update.loss(batches.at(step), step / STEPS)["label"].backward()
            optimizer.step()
    return save({key: value.contiguous() for key, value in method.network.state_dict().items()})
