"""From arrays to sbatch, by submitit: options, scripts, and the workers that it pickles."""

import math
import os
import re
import shlex
from pathlib import Path
from typing import Any

from jobs.backends.slurm.allocation import SlurmWorker
from jobs.backends.slurm.arrays import Array
from jobs.backends.slurm.client import clean_environment, release
from jobs.backends.slurm.presets import Preset
from jobs.processes import Task
from jobs.worker import Worker
from trainer.config.schema import Resources
from trainer.errors import ConfigError
from trainer.runs.directory import RunDirectory

REPORT_MEMORY_GB = 4.0
# sbatch options of trials that a report does not get: it needs one core, and waits for them in any case.
TRIAL_OPTIONS = re.compile(r"gres|gpu|mem-per|exclusive|licenses|constraint|core-spec|tmp|hold|begin")

# The log tells where an attempt begins. Nobody tells Slurm that a batch script has ended whose slurmstepd was killed:
# its job would look running for minutes, or until its time limit. So the script asks for another attempt, which ends at
# once if the trials are done.
START = """\
turnout_job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
turnout_job=${turnout_job:-$SLURM_JOB_ID}
echo "batch: attempt $turnout_job.${SLURM_RESTART_COUNT:-0} on $SLURMD_NODENAME" >&2
turnout_end() {
    read -r _ _ _ parent _ < /proc/$$/stat
    [ "$parent" = "$PPID" ] || [ -z "$(squeue -h -t RUNNING -j "$turnout_job" -o %T)" ] ||
        scontrol requeue "$turnout_job" || scancel "$turnout_job"
}
trap turnout_end EXIT"""


def submit_array(sweep: Path, array: Array, options: dict[str, str], preset: Preset, code: Path) -> str:
    """Submit an array and return its id; ConfigError with Slurm's own words.

    It is held until submitit has made the folder of each job, without which Slurm cannot open a log and fails the job.
    """
    import submitit

    executor = submitit.SlurmExecutor(folder=submitit_folder(sweep), python=preset.launcher_command(code))
    executor.update_parameters(**parameters(sweep, array.stage, array.resources, options, preset))
    try:
        with clean_environment(), executor.batch():
            jobs = [executor.submit(create_worker(array, runs, preset)) for runs in array.jobs()]
    except submitit.core.utils.FailedJobError as error:
        reason = " ".join(str(error).split())[-400:]
        is_gpu = "gres" in reason.lower() or "generic resource" in reason.lower()
        remedy = "set gpus_per_node: 0 or the cluster's gres in" if is_gpu else "fix"
        raise ConfigError(
            f"{sweep.name}: Slurm refused the {array.stage} job: {reason}; {remedy} the `resources:` block"
        ) from None
    job = str(jobs[0].job_id).partition("_")[0]
    if array.stage == "report" or not array.resources.slurm.get("hold"):
        release(job)
    return job


def create_worker(array: Array, runs: list[RunDirectory], preset: Preset) -> SlurmWorker:
    """Return the worker of one job of an array."""
    resources = array.resources
    processes = resources.processes() if array.stage == "train" else 1
    tasks = [Task(array.stage, str(run.path.absolute()), processes) for run in runs if not array.is_search]
    return SlurmWorker(
        Worker(
            tasks,
            search=str(runs[0].path.parent.absolute()) if array.is_search else "",
            search_processes=processes,
            slots=array.slots,
            mps=resources.mps if array.slots > 1 and resources.gpus_per_node else "",
            own_logs=array.slots > 1 or array.is_search,
            signal_delay=resources.signal_delay,
            max_requeues=resources.max_requeues,
            directory=os.getcwd(),
            container=preset.container_command(),
        )
    )


def script(sweep: Path, array: Array, options: dict[str, str], preset: Preset, code: Path) -> str:
    """Return the batch script of an array."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = submitit_folder(sweep)
    command = f"{preset.launcher_command(code)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    count = len(array.jobs())
    requested = parameters(sweep, array.stage, array.resources, options, preset)
    text: str = _make_sbatch_string(command, folder, map_count=count if count > 1 else None, **requested)
    return text


def parameters(
    sweep: Path, stage: str, resources: Resources, options: dict[str, str], preset: Preset
) -> dict[str, Any]:
    """Return what a stage requests from Slurm, as submitit names it."""
    training, reporting = stage == "train", stage == "report"
    gpus = 0 if reporting else resources.gpus_per_node if training else min(1, resources.gpus_per_node)
    cpus = 1 if reporting else resources.cpus_per_gpu * (resources.processes() if training else 1)
    memory = min(REPORT_MEMORY_GB, resources.mem_gb or REPORT_MEMORY_GB) if reporting else resources.mem_gb
    additional = {k: v for k, v in resources.slurm.items() if not (reporting and TRIAL_OPTIONS.match(k))}
    if gpus and resources.gres:
        others = [str(additional["gres"])] if "gres" in additional else []
        additional["gres"] = ",".join([f"{resources.gres}:{gpus}", *others])
    request: dict[str, Any] = {
        "job_name": f"{sweep.name}-{stage}",
        "nodes": resources.nodes if training else 1,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        "mem": f"{math.ceil(1024 * memory)}M" if memory else None,
        "time": resources.minutes(),
        "signal_delay_s": resources.signal_delay,
        "array_parallelism": resources.max_parallel,
        # A node that fails ends the job step on the others. srun does not inherit -c from sbatch.
        # A site that sets SLURM_EXPORT_ENV in jobs would hide their environment from srun's processes.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}", "--export=ALL", *preset.srun],
        "setup": [START, *map(end_job_on_error, preset.setup)],
        "wckey": None,  # submitit's own is refused where wckeys are enforced
        "additional_parameters": {"requeue": True, **additional, **options, "hold": True},
    }
    return request | ({"gpus_per_node": gpus} if gpus and not resources.gres else {})


def end_job_on_error(line: str) -> str:
    """Return the shell commands of a `setup:` line that end the job if it fails: it would train in another setup."""
    message = shlex.quote(f"error: setup line failed: {line}")
    return f"{{\n{line}\n}} || {{ printf '%s (exit code %s)\\n' {message} $? >&2; exit 1; }}"


def submitit_folder(sweep: Path) -> Path:
    """Return where submitit keeps what it hands to jobs, and their logs, one folder per job."""
    return (sweep / "slurm" / "%j").absolute()
