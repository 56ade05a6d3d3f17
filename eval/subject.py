"""What an evaluation is handed: a trained method's capabilities, its data, and a folder for what it finds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

import models
from models.base import DataSpec, Method
from trainer.config import Config, ConfigError
from trainer.data.cache import Arrays, data_root, load
from trainer.run import Run

CAPABILITIES = ("predict", "features", "sample", "reconstruct")


@dataclass
class Result:
    """What one evaluation found: names such as accuracy/target, values in the unit that its file states."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95 %
    provenance: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, float]] = field(default_factory=dict)  # step -> metrics, where milestones were kept
    figures: list[Path] = field(default_factory=list)


@dataclass
class Subject:
    """A run at one of its exported steps."""

    run: Run
    config: Config
    step: int
    device: torch.device

    @cached_property
    def method(self) -> Method:
        """The method with its exported weights, in evaluation mode and frozen."""
        method = models.load(self.config.method)(DataSpec(*self.config.data.shape()), **self.config.model)
        method.load_state_dict(load_file(weights(self.run)[self.step], device="cpu"))
        return method.to(self.device).to(memory_format=torch.channels_last).eval().requires_grad_(False)

    @property
    def folder(self) -> Path:
        """Where figures and arrays go."""
        return self.run.path / "eval"

    @property
    def domains(self) -> dict[str, str]:
        """Domain -> name of its set; the domain of a lone set is ''."""
        return self.config.data.sets()

    def milestones(self) -> "list[Subject]":
        """This run at each exported step, oldest first."""
        return [Subject(self.run, self.config, step, self.device) for step in weights(self.run)]

    def capability(self, name: str, metric: str) -> Callable[..., Tensor]:
        """A method's function such as `predict`; ConfigError that says which ones it has instead."""
        if not hasattr(self.method, name):
            has = ", ".join(c for c in CAPABILITIES if hasattr(self.method, c)) or "none"
            raise ConfigError(
                f"{self.run.path}: eval.metrics: {metric} needs {name}(), {self.config.method} has: {has}"
            )
        function: Callable[..., Tensor] = getattr(self.method, name)
        return function

    def arrays(self, domain: str, split: str) -> Arrays:
        """The images and labels of one split, as they are on disk."""
        channels, size, _ = self.config.data.shape()
        return load(self.domains[domain], split, data_root(self.config.data.root), size, channels)

    def over(
        self, function: Callable[[Tensor], Tensor], images: "np.ndarray[Any, Any]", batch: int = 500
    ) -> "np.ndarray[Any, Any]":
        """Apply a capability to uint8 images [n, c, h, w] by batches: float32 [n, …]; ConfigError if not finite."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                x = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).to(self.device)
                parts.append(
                    function((x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last))
                    .float()
                    .cpu()
                    .numpy()
                )
        result = np.concatenate(parts)
        if not np.isfinite(result).all():
            raise ConfigError(f"{self.run.path}: step {self.step}: the method's outputs are not finite; train it anew")
        return result


def weights(run: Run) -> dict[int, Path]:
    """Step -> exported weights, oldest first."""
    files = (run.path / "weights").glob("step-*.safetensors")
    return dict(sorted((int(p.stem.removeprefix("step-")), p) for p in files))
