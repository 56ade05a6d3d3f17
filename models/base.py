"""Define the contract between a method and the trainer: a method lists its updates, the trainer runs them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

Batch: TypeAlias = dict[str, Tensor]
Losses: TypeAlias = dict[str, Tensor]  # named scalars; their sum is minimised, and a detached one is only logged


@dataclass(frozen=True)
class DataSpec:
    """Describe the shape of the data, which is known before the first batch."""

    channels: int
    size: int  # height and width of an image, pixels
    classes: int  # labels are 0 … classes - 1


@dataclass(frozen=True)
class Update:
    """Describe one optimizer step: minimise `loss` over the networks in `trains` while all others are frozen."""

    name: str
    trains: tuple[str, ...]
    loss: Callable[[Batch, float], Losses]  # (batch, progress in [0, 1]) -> loss terms
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    schedule: Callable[[float], float] = lambda progress: 1.0  # progress -> learning-rate multiplier
    every: int = 1  # run at steps divisible by this number
    shares: str = ""  # earlier update whose optimizer, with its moments, this one uses for part of its networks


class Method(nn.Module):
    """Base class of all methods: networks, their updates, and capabilities for evaluation.

    A file in models/ defines exactly one subclass. Its constructor takes a `DataSpec` and then the hyperparameters:
    its signature is the schema of the YAML's `model:` block. Images are float32 [n, channels, size, size] in [-1, 1],
    labels int64 [n]. Each of the capabilities below is optional.
    """

    reads: ClassVar[tuple[str, ...]] = ("images", "labels")  # keys of a batch; `source_…` and `target_…` name a domain
    conditional: ClassVar[bool] = False  # whether `sample` takes class labels
    check: ClassVar[str] = ""  # of models/checks.py: sizes and widths that the constructor refuses
    least_batch: ClassVar[str] = ""  # of models/checks.py: fewest images that batch norm takes; default: one
    role: ClassVar[str] = ""  # "lower_bound" or "upper_bound" of domain adaptation, for baselines
    # Net (value of the hyperparameter `net`; "" without one) -> revision, part of the identity of its trials. Raise it
    # when a network is corrected, so that its earlier trials are neither resumed nor averaged with new ones.
    revisions: ClassVar[Mapping[str, int]] = MappingProxyType({})
    # Hyperparameter that was added later -> default that keeps the earlier behaviour: no part of an identity at it.
    added_later: ClassVar[Mapping[str, object]] = MappingProxyType({})
    differentiated_twice: ClassVar[tuple[str, ...]] = ()  # networks that torch.compile cannot compile for that reason
    averaged: Mapping[str, float] = MappingProxyType({})  # network -> EMA decay; the average is what is exported

    def updates(self) -> list[Update]:
        """Return the updates of one step, in order."""
        raise NotImplementedError(f"{type(self).__name__} must define updates()")

    def ramps(self, progress: float) -> dict[str, float]:
        """Return the weights that change with progress in [0, 1], beside learning rates: name → value, for the log."""
        return {}


@runtime_checkable
class Predictor(Protocol):
    """A method that classifies images."""

    def predict(self, images: Tensor) -> Tensor:
        """Return logits [n, classes]."""


@runtime_checkable
class FeatureExtractor(Protocol):
    """A method that embeds images."""

    def features(self, images: Tensor) -> Tensor:
        """Return one vector per image [n, d]."""


@runtime_checkable
class Sampler(Protocol):
    """A method that generates images."""

    def sample(self, n: int, labels: Tensor | None = None) -> Tensor:
        """Return n images in [-1, 1]. Conditional methods take classes int64 [n], default: drawn uniformly."""


@runtime_checkable
class Reconstructor(Protocol):
    """A method that encodes images and decodes them again."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return images of the same shape, in [-1, 1]."""


@runtime_checkable
class StepwiseSampler(Protocol):
    """A method that generates images step by step from noise, such as diffusion."""

    @property
    def timesteps(self) -> int:
        """Return the number of noise levels T in training, the largest number of sampling steps."""

    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        *,
        steps: int | None = None,
        eta: float | None = None,
        noise: Tensor | None = None,
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Return n images in [-1, 1], from `noise` [n, channels, size, size] if given.

        `eta` scales the fresh noise of each step, from 0 (DDIM) to 1 (DDPM). `watch` is called before the first and
        after each step with a time, T - 1 down to -1, and the images at that time.
        """
