"""Determine the state of a trial from its run directory and from what Slurm reports of its jobs.

The run directory wins where both know something: Slurm's accounting lags by seconds, and only a marker tells a trial
that has saved from one that crashed. Only Slurm knows why a trial exited without a marker, or that it is queued again.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.backends.base import Backend, Job
from jobs.backends.slurm.job_logs import explain_lines, last_message, list_log_files, newest_attempt
from jobs.deaths import DISK_REFUSED
from jobs.tracking.log_files import read_tail
from trainer.runs.attempt import Attempt
from trainer.runs.costs import summarize_costs
from trainer.runs.directory import RunDirectory
from trainer.runs.index import find_indexed_runs, read_steps
from trainer.runs.job_states import write_job_states

FRESH = 10.0  # seconds after a heartbeat (one is written every two) in which a trial counts as running in any case
SILENT = 60.0  # seconds without a heartbeat after which a running trial is flagged
REMEDY = {"out of memory": "raise resources.mem_gb", "time limit": "raise resources.time"}
INTERRUPTIONS = ("preempted", "node failure", "time limit", "requeued", "out of memory")  # causes to count


@dataclass(frozen=True)
class TrialStatus:
    """The line of a trial in jobs/status.py; each field is a key of its --json output."""

    trial: str
    state: str  # done, running, queued, failed, stopped, pending, pruned
    cause: str  # of failed, stopped or queued: exception, out of memory, time limit, killed, cancelled, preempted, …
    reason: str  # explains the state, and counts preemptions and other interruptions
    job: str  # the newest; <array>_<index> on Slurm
    slurm: str  # the newest job's state in Slurm's words
    node: str
    step: int
    steps: int | None
    rate: float | None  # steps/s, while running
    eta: float | None  # s, while running
    metrics: dict[str, float]  # of the evaluation, else the newest previews on validation data and losses
    error: str  # the failed process's own error message, without Slurm's words
    costs: dict[str, float]  # of the training, as trainer.runs.costs.summarize_costs returns them


def determine_status(run: RunDirectory, jobs: Sequence[Job] = ()) -> TrialStatus:
    """Return the status of a trial; `jobs` are the trial's own, oldest first."""
    training = [job for job in jobs if job.stage == "train"]
    job = training[-1] if training else None
    status, evaluation = run.status(), run.evaluation()
    disk = read_disk_state(run, status)
    state, cause = combine_states(disk, job)
    interruptions = find_interruptions(run, training)
    reason = ""
    if state == "failed":
        cause, reason = explain_failure(run, disk, job, cause)
    if cause in INTERRUPTIONS and state in ("failed", "stopped"):
        interruptions.setdefault(job.attempt if job else disk.attempt, cause)
    if reason == disk.error and cause in REMEDY:  # this error names its cause
        interruptions = {attempt: word for attempt, word in interruptions.items() if word != cause}
    if job and state == "queued":
        cause = next((word for word in reversed(interruptions.values()) if job.former_ends), "")
        reason = f"waiting: {'its turn in the job' if job.is_running else job.pending_reason}"
    elif job and state == "running":
        reason = describe_heartbeat(job, status)
    elif job and cause == "cancelled":
        reason = job.describe_end()
    elif job and state == "stopped" and cause == "killed":
        reason = f"{explain_job(run, job)[1]}; saved"
    elif state == "done":
        interruptions = {}
        cause, reason, job = check_evaluation(run, evaluation, jobs, job)
    return TrialStatus(
        trial=run.name,
        state=state,
        cause=cause,
        reason="; ".join(part for part in (count_causes(interruptions.values()), reason) if part),
        job=job.id if job else Attempt(disk.attempt).job,
        slurm=job.state if job else "",
        node=job.nodes if job and job.state else str(status.get("host", "")),
        step=int(status.get("step", 0)),
        steps=status.get("steps") or read_steps(run),
        rate=status.get("rate") if state == "running" else None,
        eta=status.get("eta") if state == "running" else None,
        metrics=evaluation.get("metrics") or select_validation(status) | (status.get("losses") or {}),
        error=disk.error if state == "failed" else "",
        costs=summarize_costs(status),
    )


def select_validation(status: dict[str, Any]) -> dict[str, float]:
    """Return the validation metrics of a heartbeat; empty unless the training previews them."""
    return {name: value for name, value in status.get("monitor", {}).items() if name.startswith("validation/")}


def determine_statuses(sweep: Path, jobs: Mapping[str, Sequence[Job]]) -> list[TrialStatus]:
    """Return the status of every trial of a sweep."""
    return [determine_status(run, jobs.get(run.name, ())) for run in find_indexed_runs(sweep)]


def query_statuses(sweep: Path, backend: Backend) -> tuple[list[TrialStatus], list[str]]:
    """Return and record the statuses according to a backend; also return notes on what it could not tell."""
    jobs, notes = backend.jobs(sweep)
    statuses = determine_statuses(sweep, jobs)
    if jobs:
        record_statuses(sweep, statuses)
    return statuses, notes


def record_statuses(sweep: Path, statuses: Iterable[TrialStatus]) -> None:
    """Write the statuses to the sweep's directory, for the report."""
    write_job_states(sweep, {status.trial: (status.state, status.reason) for status in statuses})


def is_failed(status: TrialStatus) -> bool:
    """Return whether the training or the evaluation of a trial failed."""
    return status.state == "failed" or status.cause == "evaluation"


@dataclass(frozen=True)
class DiskState:
    """The state of a trial according to its run directory alone."""

    state: str  # as RunDirectory.state
    cause: str = ""  # of failed: exception, time limit or killed
    error: str = ""
    attempt: str = ""  # <job>.<number>, the attempt that left this state
    saved: bool = False  # whether that attempt left a checkpoint and a stopped marker
    age: float = 0.0  # seconds since its last heartbeat
    is_certain: bool = True  # the error is what ended it, not what another process or nobody reported


def read_disk_state(run: RunDirectory, status: dict[str, Any]) -> DiskState:
    """Return the state of a run directory whose status.json holds `status`.

    A trial whose heartbeat ended without a marker counts as failed (killed), not as stopped.
    """
    state, attempt, age = run.state(), str(status.get("attempt", "")), time.time() - status.get("time", 0)
    if state == "failed":
        marker = run.failure()
        attempt = str(marker.get("attempt", attempt))
        saved = run.has_stopped(attempt)
        # In markers of version 1 a trainer records its rank; the launcher's, for processes that left none, has no rank.
        cause = str(marker.get("cause", "exception" if "rank" in marker else "" if saved else "killed"))
        if run.interrupted_attempts().get(attempt) == "time limit":
            cause = "time limit"
        is_certain = not marker.get("consequence", False)
        return DiskState(state, cause, str(marker.get("error", "")), attempt, saved, age, is_certain)
    saved = state == "stopped" and run.has_stopped(attempt)
    if state == "stopped" and status.get("state") == "running" and not saved:
        error = f"exited without an error record after step {status.get('step')}"
        return DiskState("failed", "killed", error, attempt, False, age, is_certain=False)
    return DiskState(state, "", "", attempt, saved, age)


def combine_states(disk: DiskState, job: Job | None) -> tuple[str, str]:
    """Return state and cause of a trial from its disk state and its newest training job."""
    if disk.state in ("done", "pruned") or job is None or not job.state:
        return disk.state, disk.cause
    same_attempt = disk.attempt == job.attempt
    if job.is_queued:
        return "queued", ""
    if job.is_running and job.is_shared and not same_attempt and disk.state != "running":
        # A worker does not start a trial again that has failed in its job.
        failed = disk.state == "failed" and Attempt(disk.attempt).job == job.id
        return (disk.state, disk.cause) if failed else ("queued", "")
    if job.is_running:
        is_leaving = same_attempt and (disk.saved or disk.cause in ("exception", "time limit"))
        return (disk.state, disk.cause) if is_leaving else ("running", "")
    if disk.state == "running" and (disk.age < FRESH or not same_attempt):
        return "running", ""
    end = job.end
    if disk.state == "failed" and same_attempt:
        if disk.is_certain and disk.cause != "killed" and end not in ("out of memory", "node failure"):
            return disk.state, disk.cause
    elif disk.state == "failed" and end in ("", "cancelled"):
        return disk.state, disk.cause  # the later job never started
    if end in ("cancelled", "preempted", "requeued", "revoked") or (end and same_attempt and disk.saved):
        return "stopped", end if end != "failed" else "killed"
    if end == "":
        return ("stopped", "") if disk.state == "running" else (disk.state, disk.cause)
    return "failed", end if end != "failed" else disk.cause or "killed"


def find_interruptions(run: RunDirectory, training: Sequence[Job]) -> dict[str, str]:
    """Return attempt -> cause for the interrupted attempts that another one followed, oldest first.

    Slurm reports REQUEUED for a job that asked for it; the worker has then recorded the reason in the run directory.
    """
    recorded, ended = run.interrupted_attempts(), dict[str, str]()
    for job in training:
        causes = [*job.former_ends, *([job.end] if job is not training[-1] else [])]
        for number, cause in enumerate(causes):
            attempt = f"{job.id}.{number}"
            ended[attempt] = recorded.pop(attempt, "") or cause
    return {attempt: cause for attempt, cause in (recorded | ended).items() if cause in INTERRUPTIONS}


def explain_failure(run: RunDirectory, disk: DiskState, job: Job | None, cause: str) -> tuple[str, str]:
    """Return the cause of a failure and its explanation.

    A process that knows its own end is believed first, then Slurm, then processes that only lost a peer.
    """
    same_attempt = job is None or not job.state or disk.attempt == job.attempt
    error, is_certain = (disk.error, disk.is_certain and bool(disk.error)) if same_attempt else ("", False)
    if job and (not is_certain or cause == "killed"):
        job_cause, reason = explain_job(run, job)
        if job_cause == "out of memory":
            cause = job_cause
        elif not is_certain and reason:
            cause, error = job_cause, reason
    if cause in REMEDY and not (is_certain and REMEDY[cause] in error):
        error = "; ".join(filter(None, (error if is_certain else "", REMEDY[cause])))
    return "exception" if cause == "lost peer" else cause, error


def explain_job(run: RunDirectory, job: Job) -> tuple[str, str]:
    """Return cause and reason of the end of a job, from its log and from Slurm; empty while it is unknown."""
    lines = read_job_lines(run, job)
    cause, reason = explain_lines(lines)
    if cause or not job.end:
        return cause, reason
    reason = job.describe_end()
    if job.end == "node failure":
        return job.end, f"{job.nodes} went down" if job.nodes else ""
    if job.end != "failed":
        return job.end, reason
    if reason.startswith("exit code"):
        return "exit code", ": ".join(filter(None, (reason, last_message(lines))))
    return "disk error" if reason == DISK_REFUSED else "killed", reason


def describe_heartbeat(job: Job, status: dict[str, Any]) -> str:
    """Return what is unusual about a running trial's heartbeat; '' if nothing is."""
    if job.phase:
        return job.phase
    if status.get("attempt") != job.attempt:
        return "starting"
    silence = time.time() - status.get("time", 0)
    return f"no heartbeat for {silence:.0f} s" if silence > SILENT else ""


def check_evaluation(
    run: RunDirectory, evaluation: dict[str, Any], jobs: Sequence[Job], trained: Job | None
) -> tuple[str, str, Job | None]:
    """Return, for a done trial, the cause and reason that its evaluation adds, and the job to show."""
    job = next((job for job in reversed(jobs) if job.stage == "eval"), None)
    if job and job.is_queued:
        return "", f"evaluation waiting: {job.pending_reason}", job
    if job and job.is_running:
        return "", "evaluating", job
    if error := run.evaluation_error():
        return "evaluation", f"evaluation failed: {error}", job or trained
    if job and not evaluation and (end := job.describe_end()):
        end = ": ".join(dict.fromkeys(filter(None, explain_job(run, job)))) or end
        return "" if job.end == "cancelled" else "evaluation", f"evaluation: {end}", job
    return "", "", trained


def read_job_lines(run: RunDirectory, job: Job) -> list[str]:
    """Return the last lines of all log files of a job's newest attempt."""
    files = list_log_files(run.path.parent, job.id)
    return [line for file in files for line in newest_attempt(read_tail(file)[0].splitlines())]


def count_causes(causes: Iterable[str]) -> str:
    """Return causes with their number, such as `preempted ×2, node failure`, in the order of first appearance."""
    return ", ".join(cause if count == 1 else f"{cause} ×{count}" for cause, count in Counter(causes).items())
