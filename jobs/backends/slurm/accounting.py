"""The jobs of a sweep: one squeue for those that wait or run, one sacct for how all their attempts ended.

squeue knows the present, and an ended job for some minutes (MinJobAge); sacct knows the past, but lags by seconds, and
not every cluster has it. What neither knows stays open: the run directories know more.
"""

import pwd
import signal
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.backends.base import ActiveJob
from jobs.backends.slurm.client import MAX_IDS, ask, jobs_of_script, queue, unavailable
from jobs.deaths import DISK_REFUSED
from trainer.errors import ConfigError
from trainer.runs import submissions
from trainer.runs.disk import DISK_CODE

# Slurm's words for the end of an attempt, in the user's words.
ENDED = {
    "COMPLETED": "",
    "FAILED": "failed",
    "OUT_OF_MEMORY": "out of memory",
    "TIMEOUT": "time limit",
    "NODE_FAIL": "node failure",
    "BOOT_FAIL": "node failure",
    "PREEMPTED": "preempted",
    "REQUEUED": "requeued",
    "CANCELLED": "cancelled",
    "DEADLINE": "deadline",
    "REVOKED": "revoked",
}
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
# Signals that may end a job; none of them equals an exit code of Turnout.
SIGNALS = (signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR2, signal.SIGTERM)


@dataclass(frozen=True)
class SlurmJob:
    """One job of a trial: its newest attempt, and how the earlier ones ended."""

    id: str  # <array>_<index>, or the plain id of a lone job
    stage: str  # train or eval
    state: str = ""  # Slurm's word, such as RUNNING; empty if Slurm does not know it any more
    nodes: str = ""  # such as n[1-2]
    waits: str = ""  # why it is pending, in Slurm's word, such as Resources
    code: str = ""  # <exit code>:<signal>
    by: str = ""  # the user who cancelled it
    former: tuple[str, ...] = ()  # Slurm's words for the ends of earlier attempts, oldest first
    is_shared: bool = False  # whether it runs several trials

    @property
    def attempt(self) -> str:
        """Return the newest attempt, as run directories name it."""
        return f"{self.id}.{len(self.former)}"

    @property
    def is_queued(self) -> bool:
        """Return whether it waits for its first or another attempt."""
        return self.state in WAITING

    @property
    def is_running(self) -> bool:
        """Return whether its processes may be alive."""
        return bool(self.state) and self.state not in ENDED and not self.is_queued

    @property
    def end(self) -> str:
        """Return how its newest attempt ended, in the user's words; '' if well or not yet."""
        return ENDED.get(self.state, "")

    @property
    def phase(self) -> str:
        """Return what a running job does instead of computing, such as completing; '' if it computes."""
        return "" if self.state == "RUNNING" else self.state.lower()

    @property
    def pending_reason(self) -> str:
        """Return why a queued job waits, in Slurm's word, and how to end that if only the user can."""
        reason = self.waits or self.state
        return f"{reason}: `scontrol release {self.id}`" if "held" in reason.lower() else reason

    def describe_end(self) -> str:
        """Return how its newest attempt ended, with user, signal or exit code; '' if well or not yet."""
        if self.state == "CANCELLED" and self.by:
            return f"cancelled by {self.by}"
        if self.state != "FAILED":
            return self.end
        code, _, number = self.code.partition(":")
        if int(number or 0) in SIGNALS:
            return f"the batch script was killed by {signal.Signals(int(number)).name}"
        if code == str(DISK_CODE):
            return DISK_REFUSED
        # srun reports the signal of a task as exit code 128 + signal; sacct subtracts 128 again.
        signals = {int(code or 0) - 128, int(code or 0)} & set(SIGNALS)
        return f"a task was killed by {signal.Signals(signals.pop()).name}" if signals else f"exit code {code}"

    @property
    def former_ends(self) -> tuple[str, ...]:
        """Return how each earlier attempt ended, oldest first."""
        return tuple(ENDED.get(state, "") for state in self.former)


def read_jobs(sweep: Path) -> tuple[dict[str, list[SlurmJob]], list[str]]:
    """Return trial → its jobs, oldest first, and notes on what could not be queried.

    Slurm is not asked about a sweep that has no jobs there.
    """
    records = read_submissions(sweep)
    arrays = [array for record in records for array in record.get("arrays", [])]
    if not arrays:
        return {}, []
    ids = list(dict.fromkeys(array["id"] for array in arrays))[-MAX_IDS:]
    since = min(record.get("time", time.time()) for record in records) - 86400
    live, notes = query_squeue(ids)
    attempts, problem = query_sacct(ids, since)
    if problem:
        notes.append(f"sacct: {problem}; how jobs ended is known only from squeue and the run directories")
    jobs = defaultdict[str, list[SlurmJob]](list)
    for array in arrays:
        for job, trials in submissions.trials_by_job(array).items():
            ended = attempts.get(job) or attempts.get(f"{array['id']}_[]", [])
            known = replace(combine(SlurmJob(job, array["stage"]), ended, live), is_shared=len(trials) > 1)
            for trial in trials:
                jobs[trial].append(known)
    return dict(jobs), notes


def active_jobs(sweep: Path) -> list[ActiveJob]:
    """Return the jobs of a sweep that wait or run; ConfigError if it has jobs and Slurm does not answer."""
    known: dict[str, tuple[str, tuple[str, ...]]] = {}
    ids: list[str] = []  # as sbatch returned them
    for record in read_submissions(sweep):
        for array in record.get("arrays", []):
            ids.append(array["id"])
            known |= {job: (array["stage"], tuple(names)) for job, names in submissions.trials_by_job(array).items()}
        if report := record.get("report"):
            ids.append(report)
            known[report] = "report", ()
    try:
        states = queue(ids)
    except ConfigError as error:
        raise ConfigError(f"{sweep}: has jobs on Slurm, but {error}; try again where and when it answers") from None
    active = []
    for job, state in states.items():
        if job in known:
            stage, trials = known[job]
            active.append(ActiveJob(job, stage, state, trials, is_queued=state in WAITING))
    return active


def count_training(sweep: Path) -> dict[str, int]:
    """Return id of an array → how many of its trials may train at the same time; {} where none waits or runs."""
    jobs = Counter(job.id.partition("_")[0] for job in active_jobs(sweep) if job.stage == "train")
    arrays = {array["id"]: array for record in read_submissions(sweep) for array in record.get("arrays", [])}
    counts: dict[str, int] = {}
    for job, count in jobs.items():
        slots = arrays[job].get("slots", 1)
        counts[job] = min(count * slots, arrays[job].get("max_parallel", count * slots))
    return counts


def read_submissions(sweep: Path) -> list[dict[str, Any]]:
    """Return a sweep's submissions; in an unfinished one, look in the queue for the job whose id is not recorded."""
    records = submissions.read(sweep)
    if records and "" in submitted_ids(records[-1]):
        records[-1] = adopt(sweep, records[-1])
    return records


def adopt(sweep: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Complete an unfinished submission with what is in the queue, and drop what is not.

    The command that wrote it was killed, or is still at work, between the sbatch of a job and the record of its id.
    """
    known = {job for submission in [*submissions.read(sweep), record] for job in submitted_ids(submission)}

    def newest(stage: str) -> str:
        jobs = jobs_of_script((sweep / "slurm").absolute(), f"{sweep.name}-{stage}")
        return next((job for job in reversed(jobs) if job not in known), "")

    arrays = [array if array["id"] else array | {"id": newest(array["stage"])} for array in record["arrays"]]
    completed = record | {"arrays": [array for array in arrays if array["id"]]}
    if "report" in record:
        completed["report"] = record["report"] or newest("report")
    return {key: value for key, value in completed.items() if value != ""}


def submitted_ids(record: dict[str, Any]) -> list[str]:
    """Return the ids of a submission's jobs as sbatch printed them; '' for one whose id is not recorded."""
    return [array["id"] for array in record.get("arrays", [])] + ([record["report"]] if "report" in record else [])


def query_squeue(ids: list[str]) -> "tuple[dict[str, Live] | None, list[str]]":
    """Return what squeue lists of jobs, None if it does not answer, and notes."""
    if reason := unavailable():
        return None, [f"squeue was not asked: {reason}"]
    answer = ask("squeue", "-h", "-r", "-t", "all", "-j", ",".join(ids), "-O", f"{':|,'.join(LIVE)}:|")
    if answer.error and "Invalid job id" not in answer.error:  # squeue forgets a lone job that ended
        return None, [f"squeue: {answer.error}"]
    return parse_squeue(answer.output if not answer.error else ""), []


def query_sacct(ids: list[str], since: float) -> tuple[dict[str, list[SlurmJob]], str]:
    """Return job id → its attempts by accounting, oldest first, and why accounting does not answer."""
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since))
    columns = ("-o", "JobID,State,ExitCode,NodeList")
    answer = ask("sacct", "-D", "-n", "-P", "-S", start, "-j", ",".join(ids), *columns)
    return ({}, answer.error) if answer.error else (parse_sacct(answer.output), "")


LIVE = ("JobArrayID", "State", "Reason", "NodeList", "RestartCnt", "exit_code")
Live = tuple[SlurmJob, int]  # a job as squeue knows it, and how often it was requeued


def parse_squeue(text: str) -> "dict[str, Live]":
    """Return job id → what squeue knows, from its lines of the columns LIVE, separated by |."""
    jobs: dict[str, Live] = {}
    for line in text.splitlines():
        words = line.split("|")
        if len(words) > len(LIVE):
            job, state, reason, nodes, restarts, code = (word.strip() for word in words[: len(LIVE)])
            if code.isdigit():  # the status as wait() returns it
                code = f"{int(code) >> 8}:{int(code) & 127}"
            waits = reason if state in WAITING and reason != "None" else ""
            jobs[job] = SlurmJob(job, "", state, nodes, waits, code), int(restarts or 0)
    return jobs


def parse_sacct(text: str) -> dict[str, list[SlurmJob]]:
    """Return job id → its attempts, oldest first, from lines of `sacct -D` without -X: <id>|<state>|<code>|<nodes>.

    Elements of an array that have never started share one line, under `<array>_[]`.
    """
    attempts = defaultdict[str, list[SlurmJob]](list)
    for line in text.splitlines():
        words = line.split("|")
        if len(words) < 4 or not words[1]:
            continue
        name, description, code, nodes = words[:4]
        state, _, user_id = description.partition(" by ")
        job, _, step = name.partition(".")
        if step:
            # If only a step ran out of memory, the job itself is reported as FAILED.
            if state == "OUT_OF_MEMORY" and attempts[job] and attempts[job][-1].state == "FAILED":
                attempts[job][-1] = replace(attempts[job][-1], state=state)
            continue
        if "[" in job:
            job = f"{job.partition('[')[0]}[]"
        nodes = "" if "assigned" in nodes else nodes
        attempts[job].append(SlurmJob(job, "", state, nodes, "", code, user_name(user_id)))
    return dict(attempts)


def combine(job: SlurmJob, attempts: list[SlurmJob], live: "dict[str, Live] | None") -> SlurmJob:
    """Join what sacct and squeue know of a job; `live` is None if squeue did not answer."""
    if live is None or job.id not in live:
        if not attempts:
            return job
        last, former = attempts[-1], [attempt.state for attempt in attempts[:-1]]
        # A job that left the queue has ended, even if sacct does not know it yet.
        state = last.state if live is None or last.state in ENDED else ""
        return replace(last, id=job.id, stage=job.stage, state=state, former=tuple(former))
    now, restarts = live[job.id]
    former = [attempt.state if attempt.state in ENDED else "REQUEUED" for attempt in attempts[:restarts]]
    former += ["REQUEUED"] * (restarts - len(former))
    state, by, nodes = now.state, "", now.nodes
    if len(attempts) > restarts:
        last = attempts[-1]
        state, by = last.state if state == "COMPLETING" and last.state in ENDED else state, last.by
        nodes = nodes or last.nodes
    return replace(now, stage=job.stage, state=state, by=by, nodes=nodes, former=tuple(former))


def user_name(number: str) -> str:
    """Return the name of a user id; the id itself if it has none."""
    try:
        return pwd.getpwuid(int(number)).pw_name
    except (KeyError, ValueError):
        return number
