"""The contract between a method and the trainer: a method names its updates, the trainer runs them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

Batch: TypeAlias = dict[str, Tensor]
Losses: TypeAlias = dict[str, Tensor]  # scalars, summed and minimised; each is logged, and a detached one only that


@dataclass(frozen=True)
class DataSpec:
    """What a method may know of its data before it sees a batch."""

    channels: int  # of an image
    size: int  # height and width in pixels
    classes: int  # labels are 0 … classes - 1


@dataclass(frozen=True)
class Update:
    """One optimizer step: minimise `loss` over the networks in `trains`, all others held fixed."""

    name: str
    trains: tuple[str, ...]
    loss: Callable[[Batch, float], Losses]  # (batch, progress in [0, 1]) -> named terms
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    schedule: Callable[[float], float] = lambda progress: 1.0  # progress -> learning-rate multiplier
    every: int = 1  # run on iterations divisible by this


class Method(nn.Module):
    """Networks, how they are updated, and how they are used. One file, one subclass.

    The constructor takes a `DataSpec` and then the hyperparameters: its signature is the schema of the YAML's `model:`.
    Images are float32 [n, channels, size, size] in [-1, 1], labels int64 [n].

    Evaluation looks for capabilities, none of them obligatory:
    `predict(images) -> logits [n, classes]`, `features(images) -> vectors [n, d]`,
    `sample(n, labels=None) -> images`, `reconstruct(images) -> images`.
    """

    reads: ClassVar[tuple[str, ...]] = ("images", "labels")  # keys of the batch; `source_…`/`target_…` name a domain
    averaged: Mapping[str, float] = MappingProxyType({})  # network -> EMA decay; the average is what is exported

    def updates(self) -> list[Update]:
        """The updates of one iteration, in order."""
        raise NotImplementedError(f"{type(self).__name__} must define updates()")
