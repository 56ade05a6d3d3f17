"""Job arrays: how the trials of a sweep are split over them within Slurm's limits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.backends.base import Plan
from jobs.backends.slurm.limits import read_limits
from jobs.backends.slurm.presets import Preset
from trainer.config.schema import Resources
from trainer.errors import ConfigError
from trainer.runs.directory import RunDirectory


@dataclass(frozen=True)
class Array:
    """What one sbatch submits: jobs that each run `each` trials, as an array unless there is only one job.

    In a job `slots` trials run side by side, and the others in turn.
    """

    stage: str  # train, eval or report
    resources: Resources
    runs: list[RunDirectory]
    each: int = 1
    waits_for: tuple[str, int] | None = None  # kind of dependency, position of the array that it depends on
    is_search: bool = False  # whether its workers ask the study of the sweep for trials
    earlier: tuple[str, ...] = ()  # ids of arrays of former submissions that leave no room for this one

    @property
    def slots(self) -> int:
        """The number of trials that run side by side in a job."""
        return 1 if self.stage == "report" else self.resources.trials_per_gpu

    def jobs(self) -> list[list[RunDirectory]]:
        """Return the run directories of each job."""
        return [self.runs[first : first + self.each] for first in range(0, len(self.runs), self.each)]

    def dependency(self, ids: list[str], after: Sequence[str] = ()) -> dict[str, str]:
        """Return the dependency as sbatch options.

        `ids` are those of all arrays before this one; where it waits for none of them, it waits for the jobs `after`.
        """
        after = (*after, *self.earlier)
        if self.waits_for is None:
            return {"dependency": f"afterany:{':'.join(after)}"} if after else {}
        kind, position = self.waits_for
        # With aftercorr an element depends on one of the other array, and must not wait forever if that fails.
        options = {"kill-on-invalid-dep": "yes"} if kind == "aftercorr" else {}
        return {"dependency": f"{kind}:{ids[position]}", **options}


def fit_arrays(sweep: Path, plans: Sequence[Plan], preset: Preset) -> list[Array]:
    """Return the arrays of all plans within Slurm's limits.

    Where the limits do not allow that many jobs, each job runs several trials in turn. ConfigError if even that does
    not fit.
    """
    if not plans:
        return []
    limits = read_limits([plan.stage_resources(stage) for plan in plans for stage in ("train", "eval")], preset)
    longest = max((len(runs) for plan in plans for runs in (plan.train, plan.evaluate_now)), default=0)
    for each in range(1, longest + 1):
        arrays = split_arrays(plans, limits.array, each)
        if sum(len(array.jobs()) for array in arrays) < limits.jobs:  # one more is for the report
            return arrays
    fewest = sum(len(array.jobs()) for array in split_arrays(plans, limits.array, longest)) + 1
    raise ConfigError(
        f"{sweep}: Slurm takes {limits.jobs:.0f} more jobs from you ({limits.reason}), at least {fewest} are needed; "
        "wait for queued ones, or cancel some; nothing was queued"
    )


def leave_room(plans: Sequence[Plan], training: Mapping[str, int]) -> tuple[list[Plan], tuple[str, ...]]:
    """Return plans that keep to `max_parallel` beside former submissions, and the ids that new trainings must wait for.

    `training`: id of an array → how many of its trials may train at the same time. New trainings get what these leave,
    and wait for their end if that is not enough for one job.
    """
    used = sum(training.values())
    free = [plan.resources.max_parallel - used for plan in plans]
    if any(left < plan.resources.trials_per_gpu for left, plan in zip(free, plans, strict=True)):
        return list(plans), tuple(sorted(training, key=int))
    resources = [plan.resources.model_copy(update={"max_parallel": n}) for plan, n in zip(plans, free, strict=True)]
    return [replace(plan, resources=own) for plan, own in zip(plans, resources, strict=True)], ()


def split_arrays(plans: Sequence[Plan], largest: int, each: int = 1) -> list[Array]:
    """Return the arrays of all plans, none with more than `largest` elements, `each` trials to a slot of an element.

    Parts of an array that had to be split share its max_parallel. If there are more parts than that, a part waits for
    the end of an earlier one.
    """
    arrays: list[Array] = []
    for plan in plans:
        slots = plan.resources.trials_per_gpu
        size = each * slots
        for stage, runs in (("train", plan.train), ("eval", plan.evaluate_now)):
            lanes = max(1, plan.stage_resources(stage).max_parallel // slots)
            parts: list[int] = []  # positions of this stage's parts in `arrays`
            jobs = math.ceil(len(runs) / size)
            count = math.ceil(jobs / largest)
            for number in range(count):
                part = runs[number * jobs // count * size : (number + 1) * jobs // count * size]
                waits_for = ("afterany", parts[-lanes]) if number >= lanes else None
                parts.append(len(arrays))
                arrays.append(Array(stage, share(plan, stage, number, count), part, size, waits_for, plan.is_search))
                if stage == "train" and plan.evaluate_after:
                    arrays.append(
                        Array("eval", share(plan, "eval", number, count), part, size, ("aftercorr", parts[-1]))
                    )
    return arrays


def share(plan: Plan, stage: str, number: int, count: int) -> Resources:
    """Return the resources of part `number` of `count` of a stage, with its share of max_parallel, in jobs."""
    resources = plan.stage_resources(stage)
    lanes = max(1, resources.max_parallel // resources.trials_per_gpu)
    return resources.model_copy(update={"max_parallel": max(1, (lanes + number) // count)})
