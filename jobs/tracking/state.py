"""Where a trial stands: its run directory, joined with what Slurm says of its jobs.

Disk wins where both speak: Slurm's accounting lags, and only a marker tells a trial that has saved from one that
crashed. But a trial that died without a marker, or that waits for its next turn, is known to Slurm alone.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.backends.slurm.accounting import ENDED, Job, counts, ending
from jobs.tracking.log_files import end, printed
from trainer.runs.atomic import read_json
from trainer.runs.directory import RunDirectory

FRESH = 10.0  # seconds: a heartbeat is written every two; after these, Slurm's word that a job has ended counts
SILENT = 60.0  # seconds without a heartbeat that are worth a word
# What Slurm or Linux say in a log when they kill what uses too much memory.
MEMORY = re.compile(r"oom.?kill|exceeded (job |step )?memory limit|out.of.memory handler", re.IGNORECASE)
NOISE = re.compile(r"srun: |slurmstepd\S*: |submitit ")  # lines that follow whatever went wrong
STEPS = re.compile(r"^train:\n(?: .*\n)*?  steps: (\d+)$", re.MULTILINE)
REMEDY = {"out of memory": "raise resources.mem_gb", "time limit": "raise resources.time"}
REPEATED = ("preempted", "node failure", "time limit", "requeued", "out of memory")  # causes that are counted


@dataclass(frozen=True)
class Row:
    """What jobs/status.py shows of a trial; every field is in its --json."""

    trial: str
    state: str  # done, running, queued, failed, stopped, pending
    cause: str  # of failed, stopped or queued: exception, out of memory, time limit, killed, cancelled, preempted, …
    reason: str  # in words: why it failed or waits, and how often it was preempted and such
    job: str  # the newest; <array>_<index> on Slurm
    slurm: str  # Slurm's word for that job
    node: str
    step: int
    steps: int | None
    rate: float | None  # steps/s
    eta: float | None  # s; while it runs
    metrics: dict[str, float]  # of the evaluation, else the newest losses
    error: str  # of what failed: what its process said, without Slurm's word


def stand(run: RunDirectory, jobs: Sequence[Job] = ()) -> Row:
    """Where a trial stands; `jobs` are its own, oldest first."""
    training = [job for job in jobs if job.stage == "train"]
    job = training[-1] if training else None
    status, evaluation = run.status(), run.evaluation()
    disk = on_disk(run, status)
    state, cause = judge(disk, job)
    turns = past(run, training)
    said = ""
    if state == "failed":
        cause, said = explain(run, disk, job, cause)
    if cause in REPEATED and state in ("failed", "stopped"):
        turns.setdefault(job.turn if job else disk.attempt, cause)
    if said == disk.error and cause == "time limit":  # which counts by itself
        turns = {turn: word for turn, word in turns.items() if word != cause}
    if job and state == "queued":
        cause = next((word for word in reversed(turns.values()) if job.former), "")
        said = f"waits: {job.waits or job.state}"
    elif job and state == "running":
        said = liveliness(job, status)
    elif job and cause == "cancelled":
        said = ending(job)
    elif state == "done":
        turns = {}
        cause, said, job = unevaluated(run, evaluation, jobs, job)
    return Row(
        trial=run.name,
        state=state,
        cause=cause,
        reason="; ".join(part for part in (counts(turns.values()), said) if part),
        job=job.id if job else disk.attempt.rpartition(".")[0],
        slurm=job.state if job else "",
        node=job.nodes if job and job.state else str(status.get("host", "")),
        step=int(status.get("step", 0)),
        steps=status.get("steps") or planned(run),
        rate=status.get("rate") if state == "running" else None,
        eta=status.get("eta") if state == "running" else None,
        metrics=evaluation.get("metrics") or status.get("losses") or {},
        error=disk.error if state == "failed" else "",
    )


@dataclass(frozen=True)
class Disk:
    """What the run directory alone says."""

    state: str  # as Run.state
    cause: str = ""  # of failed: exception, time limit or killed
    error: str = ""
    attempt: str = ""  # <job>.<number>, from which this comes
    saved: bool = False  # it left a checkpoint, and said so
    age: float = 0.0  # seconds since its last heartbeat


def on_disk(run: RunDirectory, status: dict[str, Any]) -> Disk:
    """Read it; `status` is its status.json. One that died without a marker is failed: killed."""
    state, attempt, age = run.state(), str(status.get("attempt", "")), time.time() - status.get("time", 0)
    if state == "failed":
        markers = [read_json(path) for path in run.path.glob("failed.*")]
        marker = min(markers, key=lambda found: found.get("time", 0), default={})
        attempt = str(marker.get("attempt", attempt))
        saved = (run.path / f"stopped.{attempt}.json").exists()
        # The trainer tells its rank; the launcher speaks for one that could not.
        cause = "exception" if "rank" in marker else "" if saved else "killed"
        if attempt in read_json(run.path / ".time_limits.json").get("attempts", ()):
            cause = "time limit"
        return Disk(state, cause, str(marker.get("error", "")), attempt, saved, age)
    saved = state == "stopped" and (run.path / f"stopped.{attempt}.json").exists()
    if state == "stopped" and status.get("state") == "running" and not saved:
        return Disk("failed", "killed", f"died without a word after step {status.get('step')}", attempt, False, age)
    return Disk(state, "", "", attempt, saved, age)


def judge(disk: Disk, job: Job | None) -> tuple[str, str]:
    """State and cause, given what the disk says and the newest job of the training."""
    if disk.state == "done" or job is None or not job.state:
        return disk.state, disk.cause
    own = disk.attempt == job.turn
    if job.queued:
        return "queued", ""
    if job.runs:
        leaves = own and (disk.saved or disk.cause in ("exception", "time limit"))
        return (disk.state, disk.cause) if leaves else ("running", "")
    if disk.state == "running" and (disk.age < FRESH or not own):
        return "running", ""
    why = ENDED[job.state]
    if disk.state == "failed" and own and disk.cause != "killed" and why not in ("out of memory", "node failure"):
        return disk.state, disk.cause
    if disk.state == "failed" and not own and why in ("", "cancelled"):
        return disk.state, disk.cause  # the job that came after it never started
    if why in ("cancelled", "preempted", "requeued", "revoked") or (why and own and disk.saved):
        return "stopped", why
    if why == "":
        return ("stopped", "") if disk.state == "running" else (disk.state, disk.cause)
    return "failed", why if why != "failed" else disk.cause or "killed"


def past(run: RunDirectory, training: Sequence[Job]) -> dict[str, str]:
    """Attempt -> why it ended, for those that were followed by another one of the same trial, oldest first.

    Slurm says REQUEUED where a job has asked for that itself: the launcher has written down why it did.
    """
    noted: dict[str, str] = {}
    for name, word in (("preemptions", "preempted"), ("time_limits", "time limit")):
        noted |= dict.fromkeys(read_json(run.path / f".{name}.json").get("attempts", ()), word)
    turns = {}
    for job in training:
        words = [*job.former, *([job.state] if job is not training[-1] else [])]
        for number, word in enumerate(words):
            turn = f"{job.id}.{number}"
            turns[turn] = noted.pop(turn, "") or ENDED.get(word, "")
    return {turn: word for turn, word in (noted | turns).items() if word in REPEATED}


def explain(run: RunDirectory, disk: Disk, job: Job | None, cause: str) -> tuple[str, str]:
    """The cause of a failure, looked up in the log where nobody else knows it, and the words beside it."""
    own = job is None or not job.state or disk.attempt == job.turn
    error = disk.error if own else ""
    if cause in ("killed", "") and job:
        lines = [line for file in printed(run.path.parent, job.id) for line in end(file)[0].splitlines()]
        if any(MEMORY.search(line) for line in lines):
            cause = "out of memory"
        elif job.state and not (own and disk.cause):
            said = [line.strip() for line in lines if line.strip() and not NOISE.match(line)]
            error = ": ".join([ending(job) or "died", *said[-1:]])
            cause = "exit code" if error.startswith("exit code") else "killed"
    if cause in REMEDY and not (cause == "time limit" and error):
        error = REMEDY[cause]
    return cause, error


def liveliness(job: Job, status: dict[str, Any]) -> str:
    """A word on a job that runs without a heartbeat of its own; '' where there is one."""
    if job.state != "RUNNING":
        return job.state.lower()
    if status.get("attempt") != job.turn:
        return "starts"
    silent = time.time() - status.get("time", 0)
    return f"no heartbeat for {silent:.0f} s" if silent > SILENT else ""


def unevaluated(
    run: RunDirectory, evaluation: dict[str, Any], jobs: Sequence[Job], trained: Job | None
) -> tuple[str, str, Job | None]:
    """Of a trial that is done: cause, what is to be said of its evaluation, and the job that is to be shown."""
    job = next((job for job in reversed(jobs) if job.stage == "eval"), None)
    if job and (job.queued or job.runs):
        return "", f"evaluation waits: {job.waits or job.state}" if job.queued else "is evaluated", job
    if error := read_json(run.path / "eval" / "failed.json").get("error"):
        return "evaluation", f"evaluation failed: {error}", job or trained
    if job and not evaluation and (ended := ending(job)):
        lines = [line for file in printed(run.path.parent, job.id) for line in end(file)[0].splitlines()]
        ended = "out of memory" if any(MEMORY.search(line) for line in lines) else ended
        return "" if job.state == "CANCELLED" else "evaluation", f"evaluation: {ended}", job
    return "", "", trained


def planned(run: RunDirectory) -> int | None:
    """The steps of a trial that has not begun; a few bytes are searched, since parsing takes a millisecond."""
    try:
        found = STEPS.search((run.path / "config.yaml").read_text())
    except (OSError, ValueError):
        return None
    return int(found[1]) if found else None
