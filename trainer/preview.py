"""A look at a training between two steps: validation metrics, or samples from fixed noise, in TensorBoard and status.

It works on copies of the networks, on the training device, so that the training continues bit for bit as without it.
No test split is read, nor labels of a target.
"""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import entr, softmax
from torch import Tensor

from models.base import Method, Predictor, Sampler, StepwiseSampler
from trainer.config.schema import Config
from trainer.data.cache import data_root, load
from trainer.data.pixels import to_bytes, to_signed
from trainer.loop import Trainer
from trainer.lost_source import METRIC, warn_of_lost_source
from trainer.seeds import seed_torch

IMAGES, BATCH = 1000, 500  # validation images of each domain, and of a batch of them
ROWS, COLUMNS = 4, 8  # of samples
STEPS = 10  # of methods that sample in steps


class Preview:
    """Measure and draw with a copy of the method in training."""

    def __init__(self, config: Config) -> None:
        """Prepare; the validation splits are read at the first look. DataError if they are not staged."""
        self.data, self.seed = config.data, config.train.seed
        self.method: Method | None = None
        self.validation: dict[str, tuple[Tensor, NDArray[np.int64]]] = {}
        self.source: dict[int, float] = {}  # step → accuracy on the source, since this attempt began

    def look(self, trainer: Trainer) -> tuple[dict[str, float], NDArray[np.uint8] | None, str]:
        """Return metrics by name, samples as one picture [h, w, 3], and a warning, perhaps empty.

        A method that predicts nothing has no metrics, one that makes no images no picture: None.
        """
        if self.method is None:
            self.method = deepcopy(trainer.method).eval()
        self.method.load_state_dict(trainer.method.state_dict() | trainer.averages.state_dict())
        device = trainer.accelerator.device
        with torch.inference_mode():
            metrics = self.measure(self.method, device) if isinstance(self.method, Predictor) else {}
            picture = self.draw(self.method, device) if isinstance(self.method, Sampler) else None
        if METRIC in metrics and "source_labels" in self.method.reads:
            self.source[trainer.step] = metrics[METRIC]
        return metrics, picture, warn_of_lost_source(self.source)

    def measure(self, method: Predictor, device: torch.device) -> dict[str, float]:
        """Return the accuracy on validation labels, of a target the information in predictions, which needs none."""
        metrics = {}
        for domain in self.data.datasets():
            images, labels = self.read(domain, device)
            logits = torch.cat([method.predict(to_signed(part)) for part in images.split(BATCH)]).float().cpu().numpy()
            if domain == "target":
                metrics["validation/information/target"] = information(logits)
            elif len(labels) and labels.min() >= 0:
                name = "/".join(filter(None, ("validation/accuracy", domain)))
                metrics[name] = float((logits.argmax(1) == labels).mean())
        return metrics

    def read(self, domain: str, device: torch.device) -> tuple[Tensor, NDArray[np.int64]]:
        """Return images uint8 on the device and labels of a domain's validation split, evenly spread, read once."""
        if domain not in self.validation:
            data = self.data
            root, order = data_root(data.root), data.class_order(domain)
            arrays = load(data.datasets()[domain], "validation", root, form=data.form(), order=order)
            chosen = np.linspace(0, len(arrays.labels) - 1, min(IMAGES, len(arrays.labels))).astype(np.int64)
            images = torch.from_numpy(np.ascontiguousarray(arrays.images[chosen])).to(device)
            self.validation[domain] = images, np.asarray(arrays.labels)[chosen]
        return self.validation[domain]

    def draw(self, method: Sampler, device: torch.device) -> NDArray[np.uint8]:
        """Return samples of the same noise at every look, each column of one class, as one picture [h, w, 3]."""
        n, options = ROWS * COLUMNS, dict[str, Any]()
        if isinstance(method, StepwiseSampler):
            options["steps"] = min(STEPS, method.timesteps)
        if method.conditional:  # type: ignore[attr-defined]
            options["labels"] = (torch.arange(n, device=device) % COLUMNS) % self.data.shape()[2]
        seed_torch(self.seed, "preview")  # the next step of training seeds again
        images = to_bytes(method.sample(n, **options)).cpu().numpy()
        rows = images.reshape(ROWS, COLUMNS, *images.shape[1:]).transpose(0, 3, 1, 4, 2)
        picture = rows.reshape(ROWS * rows.shape[1], COLUMNS * rows.shape[3], rows.shape[4])
        return np.broadcast_to(picture, (*picture.shape[:2], 3))


def information(logits: NDArray[np.floating[Any]]) -> float:
    """Return the mutual information of image and predicted class in nats: H(mean p) - mean H(p), 0 to log(classes).

    It is high if predictions are confident and spread over the classes (Bridle et al., NIPS 1991; for model selection
    without labels: Musgrave et al., 2021). logits [n, classes].
    """
    p = softmax(logits.astype(np.float64), axis=1)
    return float(entr(p.mean(0)).sum() - entr(p).sum(1).mean())
