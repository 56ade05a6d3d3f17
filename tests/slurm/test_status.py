"""What jobs/status.py says of trials on a real Slurm to which something happens: with accounting, with none, and with
a daemon dead; and that jobs/logs.py follows a trial over a requeue."""

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
FATES: dict[str, Any] = DANN | {
    "name": "fates",
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
# Without cgroups Slurm can only look now and then at how much memory a job has; then it kills it.
MEMORY = {"JobAcctGatherParams": "OverMemoryKill", "JobAcctGatherFrequency": "task=1"}
# State, cause and what the reason must match, once all has happened.
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
    """What jobs/status.py --json prints."""
    said = command(sweep, "status", "--json", *words)
    assert said.returncode == 0, said.stderr
    return [json.loads(line) for line in said.stdout.splitlines()]


def by_name(sweep: Submitted) -> dict[str, dict[str, Any]]:
    """Name in NAMES -> row."""
    found = {row["trial"]: row for row in rows(sweep)}
    return {name: found[run.name] for name, run in zip(NAMES, sweep.runs(), strict=True)}


def differences(sweep: Submitted) -> dict[str, Any]:
    """The rows that are not as expected."""
    wrong = {}
    for name, row in by_name(sweep).items():
        state, cause, reason = EXPECTED[name]
        if (row["state"], row["cause"]) != (state, cause) or not re.search(reason, row["reason"]):
            wrong[name] = row
    return wrong


def hold(cluster: Cluster, attempts: dict[str, RunDirectory]) -> None:
    """Wait until each attempt trains, and have it stand still then, so that it leaves others the processor."""
    free = dict(attempts)

    def all_are_held() -> bool:
        for attempt, run in list(free.items()):
            status = run.status()
            if status.get("attempt") == attempt and status["step"] > 0:
                send(workers(run.path), signal.SIGSTOP)
                del free[attempt]
        return not free

    cluster.wait(all_are_held, 120, f"{list(attempts)} to train")


class Fates:
    """A sweep, and what is done to its trials."""

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

    def hold(self, turn: int, *names: str) -> None:
        """Have trials stand still in a turn."""
        hold(self.cluster, {f"{self.jobs[name]}.{turn}": self.runs[name] for name in names})

    def release(self, name: str) -> None:
        """Let it go on."""
        send(workers(self.runs[name].path), signal.SIGCONT)

    def preempt(self) -> None:
        """Take its node away."""
        self.cluster.run(
            "sbatch", "--partition=high", "--exclusive", "--nodelist=n3", "--output=/dev/null", stdin="#!/bin/sh\n"
        )
        self.release("preempted")

    def warn(self) -> None:
        """As Slurm would by itself, but that it looks at the time limits only every 30 s."""
        self.cluster.run("scancel", "--signal=USR2", self.jobs["limited"], check=False)
        self.release("limited")


@pytest.fixture(scope="module")
def fates(slurm: None, tmp_path_factory: pytest.TempPathFactory, data_root: str) -> Iterator[Fates]:
    """All that is in EXPECTED has happened."""
    with Cluster(nodes=3, memory=32000, slurmd_timeout=5, kill_wait=20, settings=MEMORY) as cluster:
        fates = Fates(Submitted(cluster, tmp_path_factory.mktemp("fates"), data_root, FATES))
        fates.hold(0, "limited", "cancelled", "on a bad node", "preempted")
        cluster.kill_daemon("slurmd-n2")
        fates.preempt()
        cluster.run("scontrol", "update", f"JobId={fates.jobs['limited']}", "TimeLimit=2")
        fates.warn()
        said = command(fates.sweep, "cancel", fates.runs["cancelled"].name)
        assert said.returncode == 0, said.stderr
        assert re.search(r": saved at step [1-9]\d*$", said.stdout, re.MULTILINE)
        fates.hold(1, "preempted")
        fates.preempt()
        cluster.wait(lambda: workers(fates.runs["limited"].path) or fates.runs["limited"].error(), 60, "another turn")
        fates.warn()
        # It is not to start again: there would be other reasons.
        cluster.wait(
            lambda: cluster.job_states(fates.jobs["preempted"]) == {fates.jobs["preempted"]: "PENDING"}, 60, "it"
        )
        cluster.run("scontrol", "hold", fates.jobs["preempted"])
        try:
            cluster.wait(lambda: not differences(fates.sweep), 30, "all that is expected")
        except TimeoutError as error:
            raise AssertionError(f"{differences(fates.sweep)}\n{error}") from None
        # Accounting hears of another turn once Slurm may begin it; until then, only slurmctld knows that it comes.
        sacct = ("sacct", "-XnP", "-j", fates.jobs["on a bad node"], "-o", "State")
        cluster.wait(lambda: cluster.run(*sacct).stdout == "PENDING\n", 60, "sacct to know of another turn")
        yield fates


def test_with_accounting_every_reason_is_told(fates: Fates) -> None:
    found = by_name(fates.sweep)
    assert {name: row["job"] for name, row in found.items()} == fates.jobs
    fates.cluster.wait(
        lambda: by_name(fates.sweep)["cancelled"]["reason"] == "cancelled by root", 30, "sacct to know who cancelled it"
    )
    assert found["good"]["node"] == "n1"
    assert RunDirectory(fates.runs["cancelled"].path).state() == "stopped"
    failed = {row["trial"] for row in rows(fates.sweep, "--failed")}
    assert failed == {fates.runs[name].name for name, (state, _, _) in EXPECTED.items() if state == "failed"}
    shown = command(fates.sweep, "status")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "3 failed (" in shown.stdout
    assert "note:" not in shown.stdout


@pytest.mark.parametrize("daemon", ["slurmdbd", "slurmctld"])
def test_with_a_daemon_dead_as_much_is_told_and_a_line_says_why(fates: Fates, daemon: str) -> None:
    fates.cluster.kill_daemon(daemon)
    try:
        shown = command(fates.sweep, "status")
        wrong = differences(fates.sweep)
    finally:
        fates.cluster.start_daemon(daemon)
    assert (shown.returncode, shown.stderr) == (0, "")
    (note,) = [line for line in shown.stdout.splitlines() if line.startswith("note:")]
    assert {"slurmdbd": "sacct", "slurmctld": "squeue"}[daemon] in note
    if daemon == "slurmdbd":  # that a turn ended with its node is known to nobody else
        lost = wrong.pop("on a bad node")
        assert (lost["state"], lost["cause"], lost["slurm"]) == ("queued", "requeued", "PENDING")
    assert not wrong, json.dumps(wrong, indent=1)


def test_without_accounting_a_crash_is_told_and_logs_follow_a_trial_over_a_requeue(
    slurm: None, tmp_path: Path, data_root: str
) -> None:
    content = FATES | {"name": "unaccounted", "trials": [LONG | {"train.seed": 0}, LONG | {"train.seed": 1}]}
    with Cluster(accounting=False, kill_wait=20, min_job_age=2) as cluster:
        sweep = Submitted(cluster, tmp_path, data_root, content)
        sweep.submit()
        (followed, killed), jobs = sweep.runs(), sweep.jobs("train")
        hold(cluster, {f"{jobs[0]}.0": followed, f"{jobs[1]}.0": killed})
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
            hold(cluster, {f"{jobs[0]}.1": followed})
            (one, two) = rows(sweep)
            assert (one["state"], one["reason"][:8], one["slurm"]) == ("running", "requeued", "RUNNING")
            assert (two["state"], two["cause"]) == ("failed", "killed")
            assert "killed by SIGKILL" in two["reason"]
            assert "note: sacct: " in command(sweep, "status").stdout
            said = command(sweep, "cancel", "--yes")
            assert said.returncode == 0, said.stderr
            assert "1 train" in said.stdout
            assert follower.wait(60) == 0
        finally:
            follower.kill()
            reader.join()
            follower.communicate()
        text = "".join(lines)
        assert re.search(r": stopped at step \d+(.|\n)*goes on from step \d+(.|\n)*: stopped at step \d+", text), text
        assert text.endswith(f"{followed.name}: stopped\n")
        assert "nothing to cancel" in command(sweep, "cancel", "--yes").stdout
        # Squeue has soon forgotten them.
        cluster.wait(lambda: not cluster.run("squeue", "-h", "-t", "all").stdout, 60, "squeue to forget")
        (one, two) = rows(sweep)
        assert (one["state"], two["state"], two["cause"]) == ("stopped", "failed", "killed")
