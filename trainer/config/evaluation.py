"""The block `eval:` of a YAML file; importable without torch."""

from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

import models
from trainer.config.validators import (
    Section,
    check_gres,
    check_metric_name,
    check_range,
    check_sbatch_options,
    check_time_limit,
)
from trainer.errors import check_known

OPTIONS = {"split", "samples", "real", "grid", "diffusion"}  # keys that change what a metric computes


@lru_cache  # listing the folder for every trial of a large sweep takes seconds
def check_method(name: str) -> str:
    """Check that models/ has a method of that name; ValueError with the nearest name otherwise."""
    return check_known(name, models.names(), "method")


MethodName = Annotated[str, AfterValidator(check_method)]
MetricName = Annotated[str, AfterValidator(check_metric_name)]
Range = Annotated[tuple[float, float], AfterValidator(check_range)]


class EvalResources(Section):
    """What an evaluation requests instead of a training: one process on one node; null: the same as a training."""

    gpus_per_node: Literal[0, 1] | None = None
    gres: Annotated[str, AfterValidator(check_gres)] | None = None
    cpus_per_gpu: PositiveInt | None = None
    mem_gb: PositiveFloat | None = None
    time: Annotated[str, BeforeValidator(check_time_limit)] | None = None
    max_parallel: PositiveInt | None = None
    # An option of null is left out although the training has it.
    slurm: Annotated[dict[str, str | int | bool | None], AfterValidator(check_sbatch_options)] = Field(
        default_factory=dict
    )


class Diffusion(Section):
    """The figures of methods that sample in steps; an empty list: those of eval/metrics/diffusion.py."""

    times: list[NonNegativeInt] = Field(default_factory=list)  # of the reverse process; the nearest ones are drawn
    steps: list[PositiveInt] = Field(default_factory=list)  # numbers of sampling steps that are compared


class Eval(Section):
    """The metrics that are computed after training."""

    metrics: list[MetricName] = Field(default_factory=list)
    # Method -> lowest and highest accuracy/target in published reports, shown beside ours.
    reference: dict[MethodName, Range] = Field(default_factory=dict)
    # Methods whose settings were chosen with target labels in sight; every table of the report marks them.
    tuned: list[MethodName] = Field(default_factory=list)
    split: Literal["test", "validation"] = "test"  # real images of accuracy, tsne, fid and fid_classifier
    samples: PositiveInt | None = None  # drawn for fid and fid_classifier; default: as many as real, at most 10,000
    real: PositiveInt | None = None  # images of the split, at random, that samples are compared with; default: all
    grid: tuple[PositiveInt, PositiveInt] = (8, 8)  # rows and columns of samples.png
    diffusion: Diffusion = Diffusion()
    resources: EvalResources | None = None  # where an evaluation needs other ones than `resources:`

    def options(self) -> dict[str, Any]:
        """Return the options that differ from their defaults: a metric that reads one is then computed again."""
        values, defaults = (block.model_dump(mode="json", include=OPTIONS) for block in (self, Eval()))
        return {name: value for name, value in values.items() if value != defaults[name]}
