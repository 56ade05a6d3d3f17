"""What became of a sweep's jobs: one call of squeue for those that wait or run, one of sacct for all their turns.

Squeue knows the present, and an ended job for some minutes (MinJobAge); sacct knows the past, but lags by seconds, and
not every cluster has it. What neither says is left open: the run directories know more.
"""

import pwd
import signal
import subprocess
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.tracking import submissions

# Slurm's words for what has ended, in the users' words.
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
# By which a job may die; none of them is an exit code of its own.
SIGNALS = (signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR2, signal.SIGTERM)
MOST = 5000  # ids on a command line: the kernel takes 128 KiB


@dataclass(frozen=True)
class Job:
    """One job of a trial: its present turn, and how the turns before ended."""

    id: str  # <array>_<index>, or the plain id of a lone job
    stage: str  # train or eval
    state: str = ""  # Slurm's word, such as RUNNING; empty if Slurm does not know, or not any more
    nodes: str = ""  # such as n[1-2]
    waits: str = ""  # why it is pending, in Slurm's word, such as Resources
    code: str = ""  # <exit code>:<signal>
    by: str = ""  # who cancelled it
    former: tuple[str, ...] = ()  # Slurm's words for the turns that were followed by another one, oldest first

    @property
    def attempt(self) -> str:
        """The current or last attempt, as the run directory names it."""
        return f"{self.id}.{len(self.former)}"

    @property
    def is_queued(self) -> bool:
        """Whether it waits for its first or another attempt."""
        return self.state in WAITING

    @property
    def is_running(self) -> bool:
        """Whether its processes may be alive."""
        return bool(self.state) and self.state not in ENDED and not self.is_queued

    @property
    def phase(self) -> str:
        """What a running job is doing instead of computing, such as completing; '' if it computes."""
        return "" if self.state == "RUNNING" else self.state.lower()

    @property
    def pending_reason(self) -> str:
        """Why a queued job waits, in Slurm's word."""
        return self.waits or self.state

    @property
    def end(self) -> str:
        """Why the last attempt ended, in the users' words; '' if it completed or has not ended."""
        return ENDED.get(self.state, "")

    @property
    def former_ends(self) -> tuple[str, ...]:
        """Why each attempt ended that another one followed, oldest first, in the users' words."""
        return tuple(ENDED.get(state, "") for state in self.former)

    def describe_end(self) -> str:
        """Return why the last attempt ended, with user, signal or exit code; '' if it completed or has not ended."""
        if self.state == "CANCELLED" and self.by:
            return f"cancelled by {self.by}"
        if self.state != "FAILED":
            return self.end
        code, _, number = self.code.partition(":")
        # srun reports the death of a task by a signal as exit code 128 + signal; sacct subtracts the 128 again.
        signals = {int(number or 0), int(code or 0) - 128, int(code or 0)} & set(SIGNALS)
        return f"killed by {signal.Signals(signals.pop()).name}" if signals else f"exit code {code}"


def read(sweep: Path) -> tuple[dict[str, list[Job]], list[str]]:
    """Trial -> its jobs, oldest first; and, in a line each, what could not be asked. Nothing is asked of Slurm for a
    sweep that was never there."""
    lines = submissions.read(sweep)
    arrays = [array for line in lines for array in line.get("arrays", [])]
    if not arrays:
        return {}, []
    ids = list(dict.fromkeys(array["id"] for array in arrays))[-MOST:]
    live: dict[str, Live] | None = None
    turns: dict[str, list[Job]] = {}
    notes = []
    if away := submissions.unavailable():
        notes.append(f"squeue was not asked: {away}")
    else:
        text, problem = ask("squeue", "-h", "-r", "-t", "all", "-j", ",".join(ids), "-O", f"{':|,'.join(LIVE)}:|")
        if problem and "Invalid job id" not in problem:  # it has forgotten a lone job
            notes.append(f"squeue: {problem}")
        else:
            live = listed(text)
    since = time.strftime(
        "%Y-%m-%dT%H:%M:%S", time.localtime(min(line.get("time", time.time()) for line in lines) - 86400)
    )
    text, problem = ask(
        "sacct", "-D", "-n", "-P", "-S", since, "-j", ",".join(ids), "-o", "JobID,State,ExitCode,NodeList"
    )
    if problem:
        notes.append(f"sacct: {problem}; how jobs ended is known as far as squeue and the run directories tell")
    else:
        turns = accounted(text)
    found = defaultdict[str, list[Job]](list)
    for array in arrays:
        for job, trials in submissions.trials_by_job(array).items():
            known = join(Job(job, array["stage"]), turns.get(job) or turns.get(f"{array['id']}_[]", []), live)
            for trial in trials:
                found[trial].append(known)
    return dict(found), notes


def ask(*command: str) -> tuple[str, str]:
    """What one of Slurm's commands prints, and in one line why it fails, or ''."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        return "", "is not installed here"
    except subprocess.TimeoutExpired:
        return "", "no answer within a minute"
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return (done.stdout, "") if done.returncode == 0 else ("", said[-1].removeprefix(f"{command[0]}: error: "))


LIVE = ("JobArrayID", "State", "Reason", "NodeList", "RestartCnt", "exit_code")
Live = tuple[Job, int]  # as squeue knows a job, and how often it was requeued


def listed(text: str) -> "dict[str, Live]":
    """Job id -> what squeue says, given its lines of `LIVE`, divided by |."""
    found: dict[str, Live] = {}
    for line in text.splitlines():
        words = line.split("|")
        if len(words) > len(LIVE):
            job, state, reason, nodes, restarts, code = (word.strip() for word in words[: len(LIVE)])
            if code.isdigit():  # the status as wait() returns it
                code = f"{int(code) >> 8}:{int(code) & 127}"
            waits = reason if state in WAITING and reason != "None" else ""
            found[job] = Job(job, "", state, nodes, waits, code), int(restarts or 0)
    return found


def accounted(text: str) -> dict[str, list[Job]]:
    """Job id -> its turns, oldest first, given lines of `sacct -D` without -X: <id>|<state>|<code>|<nodes>.

    Elements of an array that have never started share one line, under `<array>_[]`.
    """
    found = defaultdict[str, list[Job]](list)
    for line in text.splitlines():
        words = line.split("|")
        if len(words) < 4 or not words[1]:
            continue
        name, said, code, nodes = words[:4]
        state, _, by = said.partition(" by ")
        job, _, step = name.partition(".")
        if step:
            # Where only a step ran out of memory, the job itself says no more than that it failed.
            if state == "OUT_OF_MEMORY" and found[job] and found[job][-1].state == "FAILED":
                found[job][-1] = replace(found[job][-1], state=state)
            continue
        if "[" in job:
            job = f"{job.partition('[')[0]}[]"
        found[job].append(Job(job, "", state, "" if "assigned" in nodes else nodes, "", code, user(by)))
    return dict(found)


def join(job: Job, turns: list[Job], live: "dict[str, Live] | None") -> Job:
    """A job, given its turns by sacct and what squeue lists; None if squeue did not answer."""
    if live is None or job.id not in live:
        if not turns:
            return job
        last, former = turns[-1], [turn.state for turn in turns[:-1]]
        # What has left the queue has ended, even if the news did not reach sacct.
        state = last.state if live is None or last.state in ENDED else ""
        return replace(last, id=job.id, stage=job.stage, state=state, former=tuple(former))
    now, restarts = live[job.id]
    former = [turn.state if turn.state in ENDED else "REQUEUED" for turn in turns[:restarts]]
    former += ["REQUEUED"] * (restarts - len(former))
    state, by, nodes = now.state, "", now.nodes
    if len(turns) > restarts:
        last = turns[-1]
        state, by = last.state if state == "COMPLETING" and last.state in ENDED else state, last.by
        nodes = nodes or last.nodes
    return replace(now, stage=job.stage, state=state, by=by, nodes=nodes, former=tuple(former))


def user(number: str) -> str:
    """The name of a user id; the id itself where there is none."""
    try:
        return pwd.getpwuid(int(number)).pw_name
    except (KeyError, ValueError):
        return number
