"""jobs/status.py explains the state of trials on a real Slurm, with and without accounting and with a dead daemon.

jobs/logs.py follows a trial across a requeue.
"""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.submitted import DANN, ROOT, Submitted, command, send, workers
from trainer.runs.directory import RunDirectory

RESOURCES = DANN["resources"] | {"mem_gb": 3, "signal_delay": 60, "max_requeues": 1, "slurm": {"nodelist": "n1"}}
LONG = {"train.steps": 10**6, "train.log_every": 100}
SWEEP: dict[str, Any] = DANN | {
    "name": "events",
    "train": {"steps": 5, "batch_size": 8, "log_every": 1},
    "resources": RESOURCES,
    "trials": [
        {"train.seed": 0},
        {"model.lr": 1e30},
        LONG | {"train.seed": 2},
        LONG | {"train.seed": 3},
        LONG | {"train.seed": 4, "resources.mem_gb": 0.1},
        LONG | {"train.seed": 5, "resources.slurm": {"nodelist": "n2"}},
        LONG | {"train.seed": 6, "resources.slurm": {"nodelist": "n3"}},
    ],
}
NAMES = ("good", "crashes", "limited", "cancelled", "too large", "on a bad node", "preempted")
# Without cgroups Slurm polls the memory of a job, and kills it if it is too large.
MEMORY = {"JobAcctGatherParams": "OverMemoryKill", "JobAcctGatherFrequency": "task=1"}
# Trial → its state, cause and a regular expression for its reason, after all events.
EXPECTED = {
    "good": ("done", "", "^$"),
    "crashes": ("failed", "exception", r"^NonFiniteLoss: .* at step \d+"),
    "limited": ("failed", "time limit", "^reached its time limit 2 times .*; raise resources.time"),
    "cancelled": ("stopped", "cancelled", "^cancelled"),
    "too large": ("failed", "out of memory", "^out of memory; raise resources.mem_gb$"),
    "on a bad node": ("queued", "node failure", "^node failure; waiting: "),
    "preempted": ("queued", "preempted", "^preempted ×2; waiting: "),
}


def rows(sweep: Submitted, *words: str) -> list[dict[str, Any]]:
    """Return the rows that jobs/status.py --json prints."""
    result = command(sweep, "status", "--json", *words)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def by_name(sweep: Submitted) -> dict[str, dict[str, Any]]:
    """Return name in NAMES → row."""
    by_trial = {row["trial"]: row for row in rows(sweep)}
    return {name: by_trial[run.name] for name, run in zip(NAMES, sweep.runs(), strict=True)}


def differences(sweep: Submitted) -> dict[str, Any]:
    """Return the rows that are not as expected."""
    wrong = {}
    for name, row in by_name(sweep).items():
        state, cause, reason = EXPECTED[name]
        if (row["state"], row["cause"]) != (state, cause) or not re.search(reason, row["reason"]):
            wrong[name] = row
    return wrong


def pause(cluster: Cluster, attempts: dict[str, RunDirectory]) -> None:
    """Wait until each attempt trains, then pause its processes, so that they leave the CPU to others."""
    unpaused = dict(attempts)

    def pause_all() -> bool:
        for attempt, run in list(unpaused.items()):
            status = run.status()
            if status.get("attempt") == attempt and status["step"] > 0:
                send(workers(run.path), signal.SIGSTOP)
                del unpaused[attempt]
        return not unpaused

    cluster.wait(pause_all, 120, f"{list(attempts)} to train")


class Events:
    """A sweep, and what happens to its trials."""

    def __init__(self, sweep: Submitted) -> None:
        self.sweep, self.cluster = sweep, sweep.cluster
        self.runs = dict(zip(NAMES, sweep.runs(), strict=True))
        sweep.submit()
        (line,) = sweep.submissions()
        self.jobs = {
            name: array["id"] if len(array["trials"]) == 1 else f"{array['id']}_{array['trials'].index(run.name)}"
            for name, run in self.runs.items()
            for array in line["arrays"]
            if run.name in array["trials"]
        }

    def pause(self, number: int, *names: str) -> None:
        """Pause the attempts of trials that have this number."""
        pause(self.cluster, {f"{self.jobs[name]}.{number}": self.runs[name] for name in names})

    def resume(self, name: str) -> None:
        """Let a paused trial continue."""
        send(workers(self.runs[name].path), signal.SIGCONT)

    def preempt(self) -> None:
        """Preempt the trial on n3."""
        self.cluster.run(
            "sbatch", "--partition=high", "--exclusive", "--nodelist=n3", "--output=/dev/null", stdin="#!/bin/sh\n"
        )
        self.resume("preempted")

    def signal_time_limit(self) -> None:
        """Send the signal before the time limit, as Slurm would, which checks time limits only every 30 s."""
        self.cluster.run("scancel", "--signal=USR2", self.jobs["limited"], check=False)
        self.resume("limited")


@pytest.fixture(scope="module")
def events(slurm: None, tmp_path_factory: pytest.TempPathFactory, data_root: str) -> Iterator[Events]:
    """Cause all events that EXPECTED lists."""
    with Cluster(nodes=3, memory=32000, slurmd_timeout=5, kill_wait=20, settings=MEMORY) as cluster:
        events = Events(Submitted(cluster, tmp_path_factory.mktemp("events"), data_root, SWEEP))
        events.pause(0, "limited", "cancelled", "on a bad node", "preempted")
        cluster.kill_daemon("slurmd-n2")
        events.preempt()
        cluster.run("scontrol", "update", f"JobId={events.jobs['limited']}", "TimeLimit=2")
        events.signal_time_limit()
        result = command(events.sweep, "cancel", events.runs["cancelled"].name)
        assert result.returncode == 0, result.stderr
        assert re.search(r": saved at step [1-9]\d*$", result.stdout, re.MULTILINE)
        events.pause(1, "preempted")
        events.preempt()
        limited = events.runs["limited"]
        cluster.wait(lambda: workers(limited.path) or limited.error(), 60, "another attempt")
        events.signal_time_limit()
        # Hold the preempted job, so that it does not start again, which would change its reason.
        job = events.jobs["preempted"]
        cluster.wait(lambda: cluster.job_states(job) == {job: "PENDING"}, 60, f"{job} to be pending")
        cluster.run("scontrol", "hold", job)
        try:
            cluster.wait(lambda: not differences(events.sweep), 30, "the expected states")
        except TimeoutError as error:
            raise AssertionError(f"{differences(events.sweep)}\n{error}") from None
        # Accounting knows of another attempt once it may start; until then, only slurmctld does.
        sacct = ("sacct", "-XnP", "-j", events.jobs["on a bad node"], "-o", "State")
        cluster.wait(lambda: cluster.run(*sacct).stdout == "PENDING\n", 60, "sacct to know of another attempt")
        yield events


def test_with_accounting_every_reason_is_reported(events: Events) -> None:
    by_trial = by_name(events.sweep)
    assert {name: row["job"] for name, row in by_trial.items()} == events.jobs
    events.cluster.wait(
        lambda: by_name(events.sweep)["cancelled"]["reason"] == "cancelled by root", 30, "sacct to know who cancelled"
    )
    assert by_trial["good"]["node"] == "n1"
    assert RunDirectory(events.runs["cancelled"].path).state() == "stopped"
    failed = {row["trial"] for row in rows(events.sweep, "--failed")}
    assert failed == {events.runs[name].name for name, (state, _, _) in EXPECTED.items() if state == "failed"}
    shown = command(events.sweep, "status")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "3 failed (" in shown.stdout
    assert "note:" not in shown.stdout


@pytest.mark.parametrize("daemon", ["slurmdbd", "slurmctld"])
def test_with_a_dead_daemon_a_note_says_what_is_unknown(events: Events, daemon: str) -> None:
    events.cluster.kill_daemon(daemon)
    try:
        shown = command(events.sweep, "status")
        wrong = differences(events.sweep)
    finally:
        events.cluster.start_daemon(daemon)
    assert (shown.returncode, shown.stderr) == (0, "")
    (note,) = [line for line in shown.stdout.splitlines() if line.startswith("note:")]
    assert {"slurmdbd": "sacct", "slurmctld": "squeue"}[daemon] in note
    if daemon == "slurmdbd":  # only accounting knows that an attempt ended with its node
        lost = wrong.pop("on a bad node")
        assert (lost["state"], lost["cause"], lost["slurm"]) == ("queued", "requeued", "PENDING")
    assert not wrong, json.dumps(wrong, indent=1)


def test_without_accounting_a_crash_is_reported_and_logs_follow_a_trial_across_a_requeue(
    slurm: None, tmp_path: Path, data_root: str
) -> None:
    content = SWEEP | {"name": "unaccounted", "trials": [LONG | {"train.seed": 0}, LONG | {"train.seed": 1}]}
    with Cluster(accounting=False, kill_wait=20, min_job_age=2) as cluster:
        sweep = Submitted(cluster, tmp_path, data_root, content)
        sweep.submit()
        (followed, killed), jobs = sweep.runs(), sweep.jobs("train")
        pause(cluster, {f"{jobs[0]}.0": followed, f"{jobs[1]}.0": killed})
        lines: list[str] = []
        follower = subprocess.Popen(
            [sys.executable, "jobs/logs.py", str(sweep.folder), "seed=0", "-f"],
            cwd=ROOT, env=sweep.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert follower.stdout
        reader = threading.Thread(target=lines.extend, args=(follower.stdout,))
        reader.start()
        try:
            send(workers(killed.path), signal.SIGKILL)
            cluster.run("scancel", "--signal=USR2", jobs[0])
            send(workers(followed.path), signal.SIGCONT)
            pause(cluster, {f"{jobs[0]}.1": followed})
            (one, two) = rows(sweep)
            assert (one["state"], one["reason"][:8], one["slurm"]) == ("running", "requeued", "RUNNING")
            assert (two["state"], two["cause"]) == ("failed", "killed")
            assert "killed by SIGKILL" in two["reason"]
            assert "note: sacct: " in command(sweep, "status").stdout
            result = command(sweep, "cancel", "--yes")
            assert result.returncode == 0, result.stderr
            assert "1 train" in result.stdout
            assert follower.wait(60) == 0
        finally:
            follower.kill()
            reader.join()
            follower.communicate()
        text = "".join(lines)
        assert re.search(r": stopped at step \d+(.|\n)*resuming from step \d+(.|\n)*: stopped at step \d+", text), text
        assert text.endswith(f"{followed.name}: stopped\n")
        assert "nothing to cancel" in command(sweep, "cancel", "--yes").stdout
        # squeue forgets the jobs soon.
        cluster.wait(lambda: not cluster.run("squeue", "-h", "-t", "all").stdout, 60, "squeue to forget")
        (one, two) = rows(sweep)
        assert (one["state"], two["state"], two["cause"]) == ("stopped", "failed", "killed")
