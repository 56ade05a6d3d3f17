"""A small classifier of a trial's own dataset: it judges the class of samples, and its features replace Inception's.

It is trained once per dataset on the training split, with random scaling, shear and shift, as models/classifier.py
says, on the CPU, and kept under the data root for all trials of all sweeps. Its distances compare trials on one dataset
with each other. They are not comparable with published FIDs.
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

from eval.features.cached_file import read_or_compute
from eval.features.extractor import Extractor
from models.base import DataSpec
from models.classifier import MIN_SIZE, Classifier, build_judge, enlarge
from trainer.config.schema import Train
from trainer.data import cache
from trainer.data.batches import Batches
from trainer.data.cache import Arrays
from trainer.data.pixels import to_signed
from trainer.errors import DataError
from trainer.loop import Trainer
from trainer.parallel import SingleProcess
from trainer.seeds import seed_torch

RECIPE = 2  # raise it when a change below changes the weights
SEED, BATCH, LR = 0, 128, 2e-3
JITTER = 0.1  # of trainer/data/augment.py
STEPS, EPOCHS = 500, 6  # whichever is longer
WIDTH = 128  # of the layer before the last


@dataclass(frozen=True)
class Judge:
    """The classifier of a dataset."""

    file: Path  # of its weights
    network: nn.Sequential  # enlarged images to logits
    sha256: str  # of its weights
    facts: dict[str, Any]  # how it was trained, and its accuracy on the test split

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits [n, classes] of images uint8 [n, c, h, h] on the device."""
        return self.network(prepare(images))


def load_judge(folder: Path, device: torch.device) -> Judge:
    """Return the classifier of the dataset in a folder of the cache, `<data root>/cache/<dataset>`; train it if needed.

    DataError if the dataset has fewer than two classes, or if the kept file is damaged.
    """
    train, origin = cache.read(folder, "train"), cache.origin(folder)
    name, channels, size, classes = (origin[key] for key in ("dataset", "channels", "size", "classes"))
    if train.labels.ndim != 1 or len(np.unique(train.labels)) < 2:
        raise DataError(
            f"fid_classifier and class_accuracy tell classes apart, and {name} has no labels of two classes; use fid, "
            "which needs Inception's weights"
        )
    data = [origin["files"][f"train_{kind}.npy"]["sha256"] for kind in ("images", "labels")]
    key = hashlib.sha256(json.dumps([data, RECIPE, SEED]).encode()).hexdigest()[:8]
    path = folder.parents[1] / "classifiers" / f"{folder.name}-{key}.safetensors"
    content = read_or_compute(path, lambda: train_classifier(train, channels, size, classes))
    network = build_judge(channels, size, classes)
    try:
        network.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: is not a classifier of {name}: {reason}; remove it, and it is trained again"
        ) from None
    network = network.to(device).eval().requires_grad_(False)
    test, correct = cache.read(folder, "test"), 0
    with torch.inference_mode():
        for start in range(0, len(test.labels), BATCH):
            images = torch.from_numpy(np.ascontiguousarray(test.images[start : start + BATCH])).to(device)
            predicted = network(prepare(images)).argmax(1).cpu().numpy()
            correct += int((predicted == test.labels[start : start + BATCH]).sum())
    n = len(train.labels)
    facts = {
        "recipe": RECIPE,
        "test accuracy": correct / len(test.labels),
        "trained": {"set": name, "split": "train", "n": n, "steps": count_steps(n), "seed": SEED},
    }
    return Judge(path, network, hashlib.sha256(content).hexdigest(), facts)


def prepare(images: Tensor) -> Tensor:
    """Return images uint8 [n, c, h, h] as the network takes them: in [-1, 1], enlarged if they are small."""
    return enlarge(to_signed(images))


def extractor(folder: Path, device: torch.device) -> Extractor:
    """Return the layer before the last as feature extractor; errors as of `load_judge`."""
    judge = load_judge(folder, device)
    return Extractor(
        name="classifier",
        sha256=judge.sha256,
        width=WIDTH,
        batch=500,
        resize=f"bilinear to {MIN_SIZE} px if smaller, else none",
        function=lambda images: judge.network[:-1](prepare(images)),
        device=device,
        remedy=f"remove {judge.file}, and it is trained again",
        provenance=judge.facts,
    )


def count_steps(n: int) -> int:
    """Return the number of training steps for n images."""
    return max(STEPS, EPOCHS * n // BATCH)


def train_classifier(train: Arrays, channels: int, size: int, classes: int) -> bytes:
    """Return weights as safetensors, a function of the data alone on one machine; random generators are unchanged."""
    device, steps = torch.device("cpu"), count_steps(len(train.labels))
    with torch.random.fork_rng(devices=[]):
        seed_torch(SEED, "classifier")
        method = Classifier(DataSpec(channels, size, classes), lr=LR, network="judge")
        trainer = Trainer(method, SingleProcess(device), Train(steps=steps, batch_size=BATCH, seed=SEED))
        batches = Batches({"": train}, method.reads, BATCH, SEED, 0, 1, device, jitter=JITTER)
        progress = trainer.fit(batches.at(step) for step in range(steps))
        quiet = not sys.stderr.isatty()
        for _ in track(progress, "training a classifier", steps, console=Console(stderr=True), disable=quiet):
            pass
    return save({key: value.contiguous() for key, value in method.network.state_dict().items()})
