"""A sweep on Slurm: one array that trains, one that evaluates whatever has been trained, a job that reports."""

import json
import math
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import ConfigError, Resources
from trainer.run import Run

# A signal that comes before the launcher has set its handlers would kill it: so it starts deaf.
PYTHON = f"env --ignore-signal=USR2 --ignore-signal=TERM {shlex.quote(sys.executable)}"


@dataclass(frozen=True)
class Plan:
    """The jobs of trials that share their resources."""

    resources: Resources
    train: list[Run]
    evaluate_after: list[Run]  # of `train`: evaluated as each one ends; either all of them or none
    evaluate_now: list[Run]  # trained before


def unavailable() -> str | None:
    """Why there is no Slurm to submit to; None if there is one."""
    if shutil.which("sbatch") is None:
        return "there is no sbatch here"
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol ping: {error}"
    return None if " UP" in ping.stdout else f"no controller answers: {(ping.stdout + ping.stderr).strip()}"


def submit(sweep: Path, plans: Sequence[Plan], requested: list[str]) -> dict[str, Any]:
    """Hand the plans to sbatch and write the submission's line; return it.

    ConfigError with Slurm's own words if it refuses a job; those it had accepted are then cancelled.
    """
    line: dict[str, Any] = {"cluster": "slurm", "arrays": [], "overrides": requested}
    try:
        for plan in plans:
            for stage, runs, waits in stages(plan):
                extra = after(line["arrays"][-1]["id"]) if waits else {}
                job = send(sweep, stage, plan.resources, runs, extra)
                line["arrays"].append({"stage": stage, "id": job, "trials": [run.name for run in runs]})
        last = after_all([array["id"] for array in line["arrays"]])
        line["report"] = send(sweep, "report", plans[0].resources, [Run(sweep)], last)
    except BaseException:
        if line["arrays"]:
            subprocess.run(["scancel", *(array["id"] for array in line["arrays"])], check=False)
        raise
    record(sweep, line)
    return line


def scripts(sweep: Path, plans: Sequence[Plan]) -> Iterator[str]:
    """The texts that sbatch would get, with words in place of the ids that there are not yet."""
    names: list[str] = []
    for plan in plans:
        for stage, runs, waits in stages(plan):
            yield script(sweep, stage, plan.resources, len(runs), after(names[-1]) if waits else {})
            names.append(f"{stage.upper()}{len(names)}")
    if plans:
        yield script(sweep, "report", plans[0].resources, 1, after_all(names))


def stages(plan: Plan) -> Iterator[tuple[str, list[Run], bool]]:
    """The arrays of a plan: stage, runs, and whether each element waits for that of the array before."""
    found = [("train", plan.train, False), ("eval", plan.evaluate_after, True), ("eval", plan.evaluate_now, False)]
    return (array for array in found if array[1])


def record(sweep: Path, line: dict[str, Any]) -> None:
    """Append to the sweep's submissions.jsonl."""
    with (sweep / "submissions.jsonl").open("a") as file:
        file.write(json.dumps({"time": round(time.time(), 3), **line}) + "\n")


def after(train: str) -> dict[str, str]:
    """Let each element wait for that of another array, and not for ever where that one fails."""
    return {"dependency": f"aftercorr:{train}", "kill-on-invalid-dep": "yes"}


def after_all(ids: list[str]) -> dict[str, str]:
    """Wait for the end of arrays, however they end."""
    return {"dependency": f"afterany:{':'.join(ids)}"}


def send(sweep: Path, stage: str, resources: Resources, runs: list[Run], extra: dict[str, str]) -> str:
    """Submit an array with one element per run, or a plain job for a single one; return its id."""
    import submitit

    from jobs.launch import Launch

    executor = submitit.SlurmExecutor(folder=folder(sweep), python=PYTHON)
    executor.update_parameters(**parameters(sweep, stage, resources, extra))
    processes = resources.processes() if stage == "train" else 1

    def launch(run: Run) -> Launch:
        path = str(run.path.absolute())
        return Launch(stage, [path], processes, resources.signal_delay, resources.max_requeues)

    try:
        with executor.batch():
            jobs = [executor.submit(launch(run)) for run in runs]
    except submitit.core.utils.FailedJobError as error:
        raise ConfigError(
            f"{sweep.name}: Slurm refused the {stage} job: {' '.join(str(error).split())[-400:]}; mend resources:"
        ) from None
    return str(jobs[0].job_id).partition("_")[0]


def script(sweep: Path, stage: str, resources: Resources, count: int, extra: dict[str, str]) -> str:
    """The text that sbatch gets."""
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{PYTHON} -u -m submitit.core._submit {shlex.quote(str(folder(sweep)))}"
    given = parameters(sweep, stage, resources, extra)
    text: str = _make_sbatch_string(command, folder(sweep), map_count=count if count > 1 else None, **given)
    return text


def parameters(sweep: Path, stage: str, resources: Resources, extra: dict[str, str]) -> dict[str, Any]:
    """What a stage asks of Slurm, as submitit names it."""
    training, reporting = stage == "train", stage == "report"
    gpus = 0 if reporting else resources.gpus_per_node if training else min(1, resources.gpus_per_node)
    cpus = 1 if reporting else resources.cpus_per_gpu * (resources.processes() if training else 1)
    result: dict[str, Any] = {
        "job_name": f"{sweep.name}-{stage}",
        "nodes": resources.nodes if training else 1,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        "mem": f"{math.ceil(1024 * (min(4.0, resources.mem_gb) if reporting else resources.mem_gb))}M",
        "time": minutes(resources.time),
        "signal_delay_s": resources.signal_delay,
        "array_parallelism": resources.max_parallel,
        # A node that fails takes the others with it; srun does not take -c over from sbatch.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}"],
        "additional_parameters": {"requeue": True, **resources.slurm, **extra},
    }
    return result | ({"gpus_per_node": gpus} if gpus else {})


def minutes(limit: str) -> int:
    """A Slurm time limit in minutes, rounded up."""
    days, _, clock = limit.rpartition("-")
    parts = [int(p) for p in clock.split(":")]
    if days:  # D-HH[:MM[:SS]]
        hours, mins, seconds = (*parts, 0, 0)[:3]
    else:  # MM, MM:SS or HH:MM:SS
        hours, mins, seconds = (0, *parts, 0)[:3] if len(parts) < 3 else parts
    return max(1, math.ceil((int(days or 0) * 24 + hours) * 60 + mins + seconds / 60))


def folder(sweep: Path) -> Path:
    """Where submitit keeps what it hands to jobs, and their logs, one folder per job."""
    return (sweep / "slurm" / "%j").absolute()


def queued(sweep: Path) -> dict[str, str]:
    """Trial -> `<array>_<index> <state>` of its training that waits or runs now, by squeue and submissions.jsonl."""
    names: dict[str, str] = {}
    for line in lines(sweep):
        for array in (a for a in line.get("arrays", []) if a["stage"] == "train"):
            single = len(array["trials"]) == 1
            names |= {array["id"] if single else f"{array['id']}_{i}": name for i, name in enumerate(array["trials"])}
    listing = subprocess.run(
        ["squeue", "-h", "-r", "-o", "%i %T"], capture_output=True, text=True, check=False, timeout=60
    )
    if listing.returncode:
        raise ConfigError(
            f"{sweep}: squeue does not answer: {listing.stderr.strip()}; try again when the controller is back"
        )
    rows = (line.split() for line in listing.stdout.splitlines())
    return {names[job]: f"{job} {state}" for job, state in rows if job in names}


def lines(sweep: Path) -> list[dict[str, Any]]:
    """All submissions of a sweep, oldest first."""
    try:
        return [json.loads(line) for line in (sweep / "submissions.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []
