"""The reason of a failure names who or what ended which process, not what its peers saw of that."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.submitted import (
    DANN,
    Submitted,
    agents,
    command,
    commands,
    is_alive,
    parent,
    send,
    workers,
)

LONG = {"steps": 10**6, "batch_size": 8, "log_every": 100}
RESOURCES = DANN["resources"] | {"mem_gb": 0.5}
TIMEOUT = 600.0  # eight trials start at once, on two cores beside other tests


def environment(pid: int, name: str) -> str:
    try:
        return psutil.Process(pid).environ().get(name, "")
    except psutil.Error:
        return ""


def on_node(pids: list[int], node: str) -> list[int]:
    return [pid for pid in pids if environment(pid, "SLURMD_NODENAME") == node]


def launchers_of(run: Path) -> list[int]:
    """Return the launchers of a trial, which has two processes."""
    return [parent(pid) for pid in agents(run)]


def job_of(pid: int) -> tuple[str, str]:
    """Return the job of a process, and its cluster: several clusters of this machine may have jobs of one number."""
    return environment(pid, "SLURM_JOB_ID"), environment(pid, "SLURM_CONF")


def srun_of(run: Path) -> int:
    """Return the srun that the batch script of a trial has started."""
    jobs = set(map(job_of, launchers_of(run)))
    sruns = [pid for pid, words in commands() if words[0] == "srun" and job_of(pid) in jobs]
    (srun,) = {pid for pid in sruns if parent(pid) not in sruns}  # it has a child of the same name
    return srun


# Name → what is killed, the signal, and the state and reason that status then shows.
VICTIMS: dict[str, tuple[Callable[[Path], list[int]], signal.Signals, str, str]] = {
    "rank": (
        lambda run: on_node(workers(run), "n2"),
        signal.SIGKILL,
        "failed",
        "process 1 was killed by SIGKILL on n2",
    ),
    "first rank": (
        lambda run: on_node(workers(run), "n1"),
        signal.SIGSEGV,
        "failed",
        "process 0 was killed by SIGSEGV on n1",
    ),
    "torchrun": (
        lambda run: on_node(agents(run), "n2"),
        signal.SIGKILL,
        "failed",
        "torchrun was killed by SIGKILL on n2",
    ),
    "launcher": (
        lambda run: on_node(launchers_of(run), "n2"),
        signal.SIGKILL,
        "failed|stopped",  # the other node may still save
        "the worker on n2 was killed by SIGKILL(; saved)?",
    ),
    "slurmstepd": (
        lambda run: [parent(pid) for pid in on_node(launchers_of(run), "n2")],
        signal.SIGKILL,
        "failed",
        "slurmstepd, which supervises the job on n2, was killed",
    ),
    "batch script": (
        lambda run: [parent(srun_of(run))],
        signal.SIGKILL,
        "stopped",
        r"the batch script was killed by SIGKILL; saved",
    ),
    "batch script, TERM": (
        lambda run: [parent(srun_of(run))],
        signal.SIGTERM,
        "stopped",
        r"the batch script was killed by SIGTERM; saved",
    ),
    "srun": (
        lambda run: [srun_of(run)],
        signal.SIGKILL,
        "failed",
        "srun, which runs the job's tasks, was killed by SIGKILL",
    ),
}


@pytest.fixture(scope="module")
def rows(slurm: None, tmp_path_factory: pytest.TempPathFactory, data_root: str) -> Iterator[dict[str, dict[str, Any]]]:
    """Kill a process of each trial of a sweep; yield what status shows of each once all jobs have ended."""
    content = DANN | {
        "name": "victims",
        "train": LONG,
        "resources": RESOURCES | {"nodes": 2},
        "grid": {"train.seed": [*range(len(VICTIMS))]},
    }
    with Cluster(cpus=16, memory=32000, kill_wait=20) as cluster:
        sweep = Submitted(cluster, tmp_path_factory.mktemp("victims"), data_root, content)
        sweep.submit()
        runs = sweep.runs()
        waiting = list(runs)

        def pause_all() -> bool:
            """Pause the trials that train, so that they leave the CPU to the others."""
            for run in [run for run in waiting if run.status().get("step")]:
                send(workers(run.path), signal.SIGSTOP)
                waiting.remove(run)
            return not waiting

        cluster.wait(pause_all, TIMEOUT, "all trials to train")
        pids = [pid for run in runs for pid in (*launchers_of(run.path), *agents(run.path), *workers(run.path))]
        assert len(pids) == 6 * len(VICTIMS)
        for run in runs:
            send(workers(run.path), signal.SIGCONT)
        for run, (find, number, *_) in zip(runs, VICTIMS.values(), strict=True):
            (pid,) = find(run.path)
            send([pid], number)
        cluster.wait(lambda: not any(map(is_alive, pids)), 60, "all processes of the trials to end")
        rows: dict[str, dict[str, Any]] = {}

        def are_explained() -> bool:
            by_trial = {row["trial"]: row for row in map(json.loads, status().splitlines())}
            rows.update({name: by_trial[run.name] for name, run in zip(VICTIMS, runs, strict=True)})
            return all(is_explained(name, row) for name, row in rows.items())

        def status() -> str:
            return command(sweep, "status", "--json").stdout

        with suppress(TimeoutError):  # the tests show what is wrong
            cluster.wait(are_explained, 90, "accounting to know how the jobs ended")
        print(sweep.output(4000))
        yield rows


def is_explained(name: str, row: dict[str, Any]) -> bool:
    *_, state, reason = VICTIMS[name]
    pattern, text = rf"({state}) killed: {reason}", f"{row['state']} {row['cause']}: {row['reason']}"
    return re.fullmatch(pattern, text) is not None


@pytest.mark.parametrize("name", VICTIMS)
def test_the_reason_names_what_was_killed(name: str, rows: dict[str, dict[str, Any]]) -> None:
    assert is_explained(name, rows[name]), rows[name]
