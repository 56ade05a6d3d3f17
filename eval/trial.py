"""A trained trial: its method with exported weights, its data, and a folder for the results of an evaluation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import models
from models.base import DataSpec, Method
from trainer.config.resolve import load_config
from trainer.config.schema import Config
from trainer.data.cache import Arrays, data_root, find, read
from trainer.data.convert import convert
from trainer.data.dataset import Form
from trainer.data.pixels import to_signed
from trainer.data.provenance import compute_fingerprint
from trainer.data.rgb import fit, parse_colour, to_rgb
from trainer.errors import ConfigError, DataError
from trainer.runs.archive import locate
from trainer.runs.directory import RunDirectory

CAPABILITIES = ("predict", "features", "sample", "reconstruct")
MAX_BATCH = 500  # images that a method is given at a time
MAX_VALUES = 1 << 22  # values of these images


@dataclass(eq=False)
class TrainedTrial:
    """A trial at one of its exported steps."""

    run: RunDirectory
    config: Config
    weights: dict[int, Path]  # exported weights by step, oldest first
    step: int
    method: Method  # with the weights of that step
    device: torch.device
    folder: Path  # for figures (*.png) and arrays (*.npz)

    @property
    def domains(self) -> dict[str, str]:
        """Domain → name of its dataset; the domain of a lone dataset is ''."""
        return self.config.data.datasets()

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.config.data.shape()[2]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels; empty without labels."""
        return self.config.data.class_names()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, size, _ = self.config.data.shape()
        return channels, size, size

    def milestones(self) -> "Iterator[TrainedTrial]":
        """Yield the trial at each exported step, oldest first; weights are loaded one after the other."""
        for step, path in self.weights.items():
            if step == self.step:
                yield self
            else:
                yield replace(self, step=step, method=load_method(self.config, path, self.device))

    def capability(self, name: str, metric: str) -> Callable[..., Tensor]:
        """Return a function of the method such as `predict`; ConfigError if it has none, with those that it has."""
        function: Callable[..., Tensor] | None = getattr(self.method, name, None)
        if function is None:
            others = ", ".join(f"{other}()" for other in CAPABILITIES if hasattr(self.method, other)) or "none"
            raise ConfigError(
                f"{self.run.path}: eval.metrics: {metric} needs {name}(), {self.config.method} has: {others}; "
                f"leave {metric} out, or define {name}() in models/{self.config.method}.py"
            )
        return function

    def cache_folder(self, domain: str) -> Path:
        """Return the folder of a domain's dataset in the cache; DataError if it is not staged or has other content."""
        data = self.config.data
        folder = find(self.domains[domain], data_root(data.root), form=data.form())
        trained = self.run.data().get("domains", {}).get(domain or "dataset", {}).get("fingerprint")
        if trained and trained != (current := compute_fingerprint(folder, data.class_order(domain))):
            raise DataError(
                f"{self.run.path}: was trained on other data than {folder} holds ({trained}, not {current}); "
                "restore the data, or remove the run directory and train again"
            )
        return folder

    def arrays(self, domain: str, split: str) -> Arrays:
        """Return the images and labels of a split; -1 is no label."""
        return read(self.cache_folder(domain), split, self.config.data.class_order(domain))

    def predict(self, images: NDArray[np.uint8] | Sequence[Image]) -> NDArray[np.float32]:
        """Return the method's logits [n, classes] of images: uint8 [n, c, size, size], or Pillow's of any size.

        Pictures are brought to the form of the trial's data. ConfigError if the method has no `predict`, or the arrays
        have another shape.
        """
        function = self.capability("predict", "predict()")
        arrays = images if isinstance(images, np.ndarray) else fit_pictures(images, self.config.data.form())
        if arrays.shape[1:] != self.image_shape or arrays.dtype != np.uint8 or not len(arrays):
            shape = "uint8 [n, {}, {}, {}]".format(*self.image_shape)
            raise ConfigError(f"{self.run.path}: images are {arrays.dtype} {list(arrays.shape)}; give {shape}")
        return self.apply(function, arrays)

    def sample(self, n: int, seed: int = 0) -> NDArray[np.uint8]:
        """Return n samples, uint8 [n, c, size, size], the same for the same seed; ConfigError without `sample`."""
        from eval.sampling import draw_samples

        return np.concatenate([images.cpu().numpy() for images in draw_samples(self, n, seed, "sample()")])

    def apply(self, function: Callable[[Tensor], Tensor], images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Apply a capability to images [n, c, h, w], n ≥ 1, in batches: float32 [n, …]; ConfigError if not finite."""
        batch = max(1, min(MAX_BATCH, MAX_VALUES // images[0].size))
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                x = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).to(self.device)
                x = to_signed(x).contiguous(memory_format=torch.channels_last)
                parts.append(function(x).float().cpu().numpy())
        result = np.concatenate(parts)
        if not np.isfinite(result).all():
            raise ConfigError(f"{self.run.path}: step {self.step}: the method's outputs are not finite; train it again")
        return result


def open_trial(
    path: str | Path, step: int | None = None, device: torch.device | None = None, folder: Path | None = None
) -> TrainedTrial:
    """Open a trained trial from its run directory, or from `<sweep>.tar/<trial>`, at its last exported step or `step`.

    `device` is the GPU by default, if there is one; `folder`, where results go, the current directory. ConfigError if
    the path is not a run directory, nothing was exported, or the weights are damaged.
    """
    run = RunDirectory(locate(Path(path)))
    if not run.exists():
        raise ConfigError(f"{run.path}: is not a run directory: it has no config.yaml; give logs/<sweep>/<trial>")
    config, weights = load_config(run.config_file), run.exported_weights()
    if not weights:
        raise ConfigError(f"{run.path}: has no exported weights yet; train it first: python trainer/main.py {run.path}")
    if step is not None and step not in weights:
        raise ConfigError(f"{run.path}: has no weights of step {step}; --step: one of {', '.join(map(str, weights))}")
    step = max(weights) if step is None else step
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method = load_method(config, weights[step], device)
    return TrainedTrial(run, config, weights, step, method, device, folder or Path())


def load_method(config: Config, weights: Path, device: torch.device) -> Method:
    """Return a method with exported weights, float32, in evaluation mode and frozen.

    ConfigError if the file is damaged, belongs to another network, or has a value that is not finite.
    """
    run = weights.parents[1]
    method = models.load(config.method)(DataSpec(*config.data.shape()), **config.model_arguments())
    try:
        state = load_file(weights, device="cpu")
        method.load_state_dict(state)
    except (OSError, SafetensorError) as error:
        remedy = f"remove it and {run / 'done'}, and export the last one again by: python trainer/main.py {run}"
        raise ConfigError(f"{weights}: cannot be read: {error}; {remedy}") from None
    except RuntimeError as error:
        reason = shorten(str(error), 300)
        raise ConfigError(f"{weights}: are not the weights of this {config.method}: {reason}") from None
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ConfigError(f"{weights}: {name} is not finite; train it again, such as with a smaller learning rate")
    return method.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def fit_pictures(pictures: Sequence[Image], form: Form) -> NDArray[np.uint8]:
    """Return Pillow's pictures in the form of a dataset: uint8 [n, c, size, size]; ValueError without colours."""
    size, background = form.size or 0, parse_colour(form.background)
    squares = [np.asarray(fit(to_rgb(picture.copy(), background), size, form.crop, background)) for picture in pictures]
    rgb = np.stack(squares).transpose(0, 3, 1, 2)
    return convert(rgb, size, form.channels or 3).transpose(0, 3, 1, 2).copy()  # writable, as torch demands
