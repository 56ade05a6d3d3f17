"""What may stand in a YAML, and what a trial resolves to; importable without torch, so that checking is instant."""

import hashlib
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

import models
from trainer.config.validators import Section, duration, folder_name, gres_name, sbatch_options
from trainer.data import registry
from trainer.errors import check_known

# What cannot change the trained weights, and so is no part of a trial's identity: True, or keys of a section.
OUTSIDE: dict[str, Any] = {
    "name": True,
    "data": {"root"},
    "train": {"log_every", "checkpoint_every", "export_every"},
    "eval": True,
    "resources": True,
}


def known_metric(name: str) -> str:
    """Check that eval/ has a file of that name with an `evaluate`; ValueError with the nearest name otherwise."""
    return check_known(name, metrics(), "metric")


def known_dataset(name: str) -> str:
    """Check that trainer/data/registry.py lists the set; ValueError with the nearest name otherwise."""
    return registry.get(name).name


Dataset = Annotated[str, AfterValidator(known_dataset)]
Metric = Annotated[str, AfterValidator(known_metric)]


class Data(Section):
    """Which sets: one `dataset`, or a `source` with labels and a `target` without."""

    dataset: Dataset | None = None
    source: Dataset | None = None
    target: Dataset | None = None
    size: PositiveInt | None = None  # pixels; resize every image to it
    channels: Literal[1, 3] | None = None  # default: 3 as soon as one of the sets is in colour
    balanced: bool = False  # each class as often as any other in the batches of a domain whose labels are read
    flip: bool = False  # mirror half of the training images, left to right
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0  # largest change of size, slant and place of these, as a share
    root: str | None = None  # default: $TURNOUT_DATA, else ~/.cache/turnout

    def datasets(self) -> dict[str, str]:
        """Domain -> name of the set; the domain of a lone `dataset` is ''."""
        pairs = {"": self.dataset, "source": self.source, "target": self.target}
        return {domain: name for domain, name in pairs.items() if name is not None}

    def shape(self) -> tuple[int, int, int]:
        """(channels, size, classes) of every image and label; ValueError where the sets do not agree."""
        found = [registry.get(name) for name in self.datasets().values()]
        sizes, classes = {d.size for d in found}, {d.classes for d in found}
        if self.size is None and (shapeless := [d.name for d in found if d.size is None]):
            raise ValueError(f"{shapeless[0]} has no size of its own; set data.size")
        names = " and ".join(f"{d.name} ({d.size} px, {d.classes} classes)" for d in found)
        if len(classes) != 1:
            raise ValueError(f"{names} have different classes; choose sets that share them")
        if self.size is None and len(sizes) != 1:
            raise ValueError(f"{names} differ in size; set data.size")
        return self.channels or max(d.channels for d in found), self.size or sizes.pop() or 0, classes.pop()


class Train(Section):
    """How long, how large, how precise."""

    steps: PositiveInt = 1000
    batch_size: PositiveInt = 64  # per domain, over all processes
    micro_batches: PositiveInt = 1  # parts of a process's share that are backpropagated one after the other
    seed: NonNegativeInt = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    clip: NonNegativeFloat = 0.0  # largest gradient norm of an update; 0: not clipped
    log_every: PositiveInt = 50  # steps
    checkpoint_every: PositiveInt = 500  # steps
    export_every: NonNegativeInt = 0  # steps between weights kept for evaluation; 0: only the last


def known_plugin(name: str) -> str:
    """Check that models/ has a method of that name; ValueError with the nearest name otherwise."""
    return check_known(name, models.names(), "method")


def span(low_high: tuple[float, float]) -> tuple[float, float]:
    """Check that the first number is not above the second."""
    if low_high[0] > low_high[1]:
        raise ValueError("must be [lowest, highest]")
    return low_high


class Eval(Section):
    """What the evaluation job measures once training is done."""

    metrics: list[Metric] = Field(default_factory=list)
    # Method -> lowest and highest accuracy/target in public reports, shown beside ours.
    reference: dict[
        Annotated[str, AfterValidator(known_plugin)], Annotated[tuple[float, float], AfterValidator(span)]
    ] = Field(default_factory=dict)


class Resources(Section):
    """What a trial asks of the cluster; no part of its identity."""

    nodes: PositiveInt = 1
    gpus_per_node: NonNegativeInt = 1
    gres: Annotated[str, AfterValidator(gres_name)] | None = None  # as --gres=<gres>:N, such as gpu:a100
    processes_per_node: PositiveInt | None = None  # default: one per GPU, one where there is none
    cpus_per_gpu: PositiveInt = 4
    mem_gb: PositiveFloat = 16
    time: Annotated[str, BeforeValidator(duration)] = "02:00:00"
    signal_delay: PositiveInt = 120  # seconds before the time limit at which a trial is told to save
    max_requeues: NonNegativeInt = 10  # times that a trial may reach its time limit and be given another turn
    max_parallel: PositiveInt = 20  # trials of a sweep that run at the same time on the cluster
    # Further sbatch options, such as {partition: gpu, account: vision}.
    slurm: Annotated[dict[str, str | int | bool], AfterValidator(sbatch_options)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def leave_time_to_save(self) -> "Resources":
        """A warning that comes as soon as the trial starts would have it requeued for ever."""
        if 60 * self.minutes() <= self.signal_delay:
            raise ValueError(
                f"time {self.time!r} is over before signal_delay ({self.signal_delay} s) has begun; "
                "give more time or a smaller signal_delay"
            )
        return self

    def minutes(self) -> int:
        """The time limit in minutes, rounded up."""
        days, _, clock = self.time.rpartition("-")
        parts = [int(p) for p in clock.split(":")]
        if days:  # D-HH[:MM[:SS]]
            hours, mins, seconds = (*parts, 0, 0)[:3]
        else:  # MM, MM:SS or HH:MM:SS
            hours, mins, seconds = (0, *parts, 0)[:3] if len(parts) < 3 else parts
        return max(1, math.ceil((int(days or 0) * 24 + hours) * 60 + mins + seconds / 60))

    def processes(self) -> int:
        """Processes on each node."""
        return self.processes_per_node or max(1, self.gpus_per_node)


class Config(Section):
    """A trial, resolved: nothing is left to defaults that could change under it."""

    name: Annotated[str, AfterValidator(folder_name)]
    method: str
    model: Any  # an object of the method's own schema, see config_schema
    data: Data = Data()
    train: Train = Train()
    eval: Eval = Eval()
    resources: Resources = Resources()

    def identity(self) -> str:
        """8 hex digits that change whenever anything that can change the trained weights does."""
        content = self.model_dump(mode="json", exclude=OUTSIDE)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    def model_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of the method's constructor."""
        arguments: dict[str, Any] = self.model.model_dump()
        return arguments

    def to_yaml(self) -> str:
        """The text of a run directory's config.yaml."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=yaml.CSafeDumper, sort_keys=False)


def identifies(key: str) -> bool:
    """Whether a dotted key is part of a trial's identity."""
    block, _, name = key.partition(".")
    outside = OUTSIDE.get(block, ())
    return outside is not True and name not in outside


@lru_cache
def metrics() -> list[str]:
    """Names of the evaluations: the files of eval/ that define `evaluate`."""
    folder = Path(__file__).parents[2] / "eval" / "metrics"
    return sorted(p.stem for p in folder.glob("*.py") if "\ndef evaluate(" in p.read_text())
