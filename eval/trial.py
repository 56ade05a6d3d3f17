"""What an evaluation is handed: a trained method's capabilities, its data, and a folder for what it finds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import models
from models.base import DataSpec, Method
from trainer.config.schema import Config
from trainer.data.cache import Arrays, data_root, find, read
from trainer.errors import ConfigError
from trainer.runs.directory import RunDirectory

CAPABILITIES = ("predict", "features", "sample", "reconstruct")
BATCH = 500  # images, of which at most VALUES values are handed to a method at a time
VALUES = 1 << 22


@dataclass(eq=False)
class Subject:
    """A run at one of its exported steps."""

    run: RunDirectory
    config: Config
    weights: dict[int, Path]  # of every exported step, oldest first
    step: int
    method: Method  # with the weights of that step
    device: torch.device
    folder: Path  # where figures (*.png) and arrays (*.npz) go

    @property
    def domains(self) -> dict[str, str]:
        """Domain -> name of its set; the domain of a lone set is ''."""
        return self.config.data.datasets()

    def milestones(self) -> "Iterator[Subject]":
        """This run at each exported step, oldest first, itself last; weights are read one after the other."""
        for step, path in self.weights.items():
            if step == self.step:
                yield self
            else:
                yield replace(self, step=step, method=read_method(self.config, path, self.device))

    def capability(self, name: str, metric: str) -> Callable[..., Tensor]:
        """A method's function such as `predict`; ConfigError that says which ones it has instead."""
        function: Callable[..., Tensor] | None = getattr(self.method, name, None)
        if function is None:
            has = ", ".join(f"{c}()" for c in CAPABILITIES if hasattr(self.method, c)) or "none"
            raise ConfigError(
                f"{self.run.path}: eval.metrics: {metric} needs {name}(), {self.config.method} has: {has}; "
                f"leave {metric} out, or define {name}() in models/{self.config.method}.py"
            )
        return function

    def place(self, domain: str) -> Path:
        """The folder of a domain's set in the cache; DataError if it is not staged."""
        channels, size, _ = self.config.data.shape()
        return find(self.domains[domain], data_root(self.config.data.root), size, channels)

    def arrays(self, domain: str, split: str) -> Arrays:
        """The images and labels of one split, as they are on disk."""
        return read(self.place(domain), split)

    def over(self, function: Callable[[Tensor], Tensor], images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Apply a capability to images [n, c, h, w], n ≥ 1, by batches: float32 [n, …]; ConfigError if not finite."""
        batch = max(1, min(BATCH, VALUES // images[0].size))
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                x = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).to(self.device)
                x = (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
                parts.append(function(x).float().cpu().numpy())
        result = np.concatenate(parts)
        if not np.isfinite(result).all():
            raise ConfigError(f"{self.run.path}: step {self.step}: the method's outputs are not finite; train it anew")
        return result


def read_method(config: Config, weights: Path, device: torch.device) -> Method:
    """A method with exported weights, float32, in evaluation mode and frozen.

    ConfigError if the file is damaged, holds another network or a value that is not finite.
    """
    run = weights.parents[1]
    method = models.load(config.method)(DataSpec(*config.data.shape()), **config.model_arguments())
    try:
        state = load_file(weights, device="cpu")
        method.load_state_dict(state)
    except (OSError, SafetensorError) as error:
        again = f"remove it; without {run / 'done'}, too, the last one is written anew by: python trainer/main.py {run}"
        raise ConfigError(f"{weights}: cannot be read: {error}; {again}") from None
    except RuntimeError as error:
        what = shorten(str(error), 300)
        raise ConfigError(f"{weights}: does not hold the weights of this {config.method}: {what}") from None
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ConfigError(f"{weights}: {name} is not finite; train it anew, with a smaller learning rate say")
    return method.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
