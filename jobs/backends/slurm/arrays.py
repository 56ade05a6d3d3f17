"""A sweep on Slurm: one array that trains, one that evaluates whatever has been trained, a job that reports."""

import math
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.backends.slurm.limits import limits
from jobs.backends.slurm.presets import Preset, Site
from jobs.tracking import submissions
from trainer.config.schema import Resources
from trainer.errors import ConfigError
from trainer.runs.directory import RunDirectory


@dataclass(frozen=True)
class Plan:
    """The jobs of trials that share their resources."""

    resources: Resources
    train: list[RunDirectory]
    evaluate_after: list[RunDirectory]  # of `train`: evaluated as each one ends; either all of them or none
    evaluate_now: list[RunDirectory]  # trained before


def submit(sweep: Path, plans: Sequence[Plan], site: Site, notes: dict[str, Any]) -> dict[str, Any]:
    """Hand the plans to sbatch and write the submission's line, with `notes`; return it.

    ConfigError with Slurm's own words if it refuses a job; those it had accepted are then cancelled.
    """
    line: dict[str, Any] = {"cluster": "slurm", "arrays": [], **notes}
    ids: list[str] = []
    try:
        for array in fitting(sweep, plans, site.preset):
            ids.append(send(sweep, array, array.dependency(ids), site))
            trials = [run.name for run in array.runs]
            line["arrays"].append({"stage": array.stage, "id": ids[-1], "trials": trials, "each": array.each})
        line["report"] = send(sweep, report(sweep, plans), after_all(ids), site)
    except BaseException:
        if ids:
            subprocess.run(["scancel", *ids], check=False)
        raise
    submissions.append(sweep, line)
    return line


def scripts(sweep: Path, plans: Sequence[Plan], site: Site) -> Iterator[str]:
    """The texts that sbatch would get, with words in place of the ids that there are not yet."""
    ids: list[str] = []
    for array in fitting(sweep, plans, site.preset):
        yield script(sweep, array, array.dependency(ids), site)
        ids.append(f"{array.stage.upper()}{len(ids)}")
    if plans:
        yield script(sweep, report(sweep, plans), after_all(ids), site)


@dataclass(frozen=True)
class Array:
    """What one sbatch submits: jobs that work through `each` runs, as elements of an array unless there is one only."""

    stage: str  # train, eval or report
    resources: Resources
    runs: list[RunDirectory]
    each: int = 1
    waits: tuple[str, int] | None = None  # kind of dependency, position of the array that it waits for

    def jobs(self) -> list[list[RunDirectory]]:
        """The runs of each job."""
        return [self.runs[first : first + self.each] for first in range(0, len(self.runs), self.each)]

    def dependency(self, ids: list[str]) -> dict[str, str]:
        """As sbatch options, given the ids of all arrays before this one."""
        if self.waits is None:
            return {}
        kind, position = self.waits
        # Each element waits for that of the other array, and not for ever where that one fails.
        patience = {"kill-on-invalid-dep": "yes"} if kind == "aftercorr" else {}
        return {"dependency": f"{kind}:{ids[position]}", **patience}


def fitting(sweep: Path, plans: Sequence[Plan], preset: Preset) -> list[Array]:
    """The arrays of all plans, within Slurm's limits: where these do not allow a job per trial, a job carries as many
    trials as it takes. ConfigError if that does not help."""
    most = limits([plan.resources for plan in plans], preset)
    longest = max((len(runs) for plan in plans for runs in (plan.train, plan.evaluate_now)), default=0)
    for each in range(1, longest + 1):
        found = arrays(plans, most.array, each)
        if sum(len(array.jobs()) for array in found) < most.jobs:  # and one for the report
            return found
    if not plans:
        return []
    needed = sum(len(array.jobs()) for array in arrays(plans, most.array, longest)) + 1
    raise ConfigError(
        f"{sweep}: Slurm takes {most.jobs:.0f} more jobs from you ({most.reason}), and {needed} are the fewest; "
        "wait for queued ones, or cancel some; nothing was queued"
    )


def arrays(plans: Sequence[Plan], largest: int, each: int = 1) -> list[Array]:
    """The arrays of all plans, none with more than `largest` elements, `each` runs to an element.

    The parts of one that had to be divided share its max_parallel; where that does not give one to each, a part waits
    for the end of an earlier one.
    """
    found: list[Array] = []
    for plan in plans:
        lanes = plan.resources.max_parallel
        for stage, runs in (("train", plan.train), ("eval", plan.evaluate_now)):
            begun: list[int] = []  # positions of this stage's parts
            jobs = math.ceil(len(runs) / each)
            count = math.ceil(jobs / largest)
            for number in range(count):
                part = runs[number * jobs // count * each : (number + 1) * jobs // count * each]
                share = plan.resources.model_copy(update={"max_parallel": max(1, (lanes + number) // count)})
                waits = ("afterany", begun[-lanes]) if number >= lanes else None
                begun.append(len(found))
                found.append(Array(stage, share, part, each, waits))
                if stage == "train" and plan.evaluate_after:
                    found.append(Array("eval", share, part, each, ("aftercorr", begun[-1])))
    return found


def report(sweep: Path, plans: Sequence[Plan]) -> Array:
    """The job that comes last."""
    return Array("report", plans[0].resources, [RunDirectory(sweep)])


def after_all(ids: list[str]) -> dict[str, str]:
    """Wait for the end of arrays, however they end."""
    return {"dependency": f"afterany:{':'.join(ids)}"}


def send(sweep: Path, array: Array, extra: dict[str, str], site: Site) -> str:
    """Submit it and return its id; ConfigError with Slurm's own words."""
    import submitit

    from jobs.worker import Launch

    resources = array.resources
    executor = submitit.SlurmExecutor(folder=folder(sweep), python=site.launcher())
    executor.update_parameters(**parameters(sweep, array.stage, resources, extra, site.preset))
    processes = resources.processes() if array.stage == "train" else 1

    def launch(runs: list[RunDirectory]) -> Launch:
        paths = [str(run.path.absolute()) for run in runs]
        turns = (resources.signal_delay, resources.max_requeues)
        return Launch(array.stage, paths, processes, *turns, os.getcwd(), site.container())

    try:
        with executor.batch():
            jobs = [executor.submit(launch(runs)) for runs in array.jobs()]
    except submitit.core.utils.FailedJobError as error:
        words = " ".join(str(error).split())[-400:]
        raise ConfigError(f"{sweep.name}: Slurm refused the {array.stage} job: {words}; mend resources:") from None
    return str(jobs[0].job_id).partition("_")[0]


def script(sweep: Path, array: Array, extra: dict[str, str], site: Site) -> str:
    """The text that sbatch gets."""
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{site.launcher()} -u -m submitit.core._submit {shlex.quote(str(folder(sweep)))}"
    given = parameters(sweep, array.stage, array.resources, extra, site.preset)
    count = len(array.jobs())
    text: str = _make_sbatch_string(command, folder(sweep), map_count=count if count > 1 else None, **given)
    return text


def parameters(sweep: Path, stage: str, resources: Resources, extra: dict[str, str], preset: Preset) -> dict[str, Any]:
    """What a stage asks of Slurm, as submitit names it."""
    training, reporting = stage == "train", stage == "report"
    gpus = 0 if reporting else resources.gpus_per_node if training else min(1, resources.gpus_per_node)
    cpus = 1 if reporting else resources.cpus_per_gpu * (resources.processes() if training else 1)
    # A report needs nothing but somewhere to run.
    asked = {k: v for k, v in resources.slurm.items() if not reporting or k in ("partition", "account", "qos")}
    if gpus and resources.gres:
        asked["gres"] = ",".join([f"{resources.gres}:{gpus}", *([str(asked["gres"])] if "gres" in asked else [])])
    result: dict[str, Any] = {
        "job_name": f"{sweep.name}-{stage}",
        "nodes": resources.nodes if training else 1,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        "mem": f"{math.ceil(1024 * (min(4.0, resources.mem_gb) if reporting else resources.mem_gb))}M",
        "time": resources.minutes(),
        "signal_delay_s": resources.signal_delay,
        "array_parallelism": resources.max_parallel,
        # A node that fails takes the others with it; srun does not take -c over from sbatch.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}", *preset.srun],
        "setup": preset.setup or None,
        "additional_parameters": {"requeue": True, **asked, **extra},
    }
    return result | ({"gpus_per_node": gpus} if gpus and not resources.gres else {})


def folder(sweep: Path) -> Path:
    """Where submitit keeps what it hands to jobs, and their logs, one folder per job."""
    return (sweep / "slurm" / "%j").absolute()
