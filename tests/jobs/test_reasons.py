"""The one-line reason of a failure, from markers, logs and Slurm's word as real faults left them."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.backends.slurm.accounting import SlurmJob
from jobs.deaths import count_oom_kills, describe_death
from jobs.tracking.state import TrialStatus, determine_status
from tests.jobs.test_launch import children, finish, losses, new_run, start_worker, until
from trainer.errors import ConfigError
from trainer.failures import explain
from trainer.runs.attempt import Attempt
from trainer.runs.directory import RunDirectory

LOST = "lost the connection to another process of the trial: Read error: Connection reset by peer"
NO_RECORD = "its processes exited without an error record (exit code 1); see the log"
# Lines that Slurm 22.05, bash and the launcher wrote to the log of the first task.
START = "train: attempt 5.0 on n1"
KILLED_TASK = """\
srun: error: n2: task 1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=6.0
slurmstepd-n1: error: *** STEP 6.0 ON n1 CANCELLED AT 2026-11-27T01:33:20 ***
srun: error: n1: task 0: Killed
srun: Force Terminated StepId=6.0"""
KILLED_SRUN = """\
/var/spool/slurmd/job00010/slurm_script: line 19:  5157 Killed                  srun --unbuffered --output /lab/logs/v
slurmstepd-n1: error: *** STEP 10.0 ON n1 CANCELLED AT 2026-11-27T01:33:23 ***"""
FAILED_PEER = """\
srun: error: n2: task 1: Exited with exit code 1
srun: launch/slurm: _step_signal: Terminating StepId=3.0
slurmstepd-n1: error: *** STEP 3.0 ON n1 CANCELLED AT 2026-11-27T01:33:28 ***
error: dann: process 1 was killed by SIGKILL on n2
srun: error: n1: task 0: Exited with exit code 1"""
KILLED_SCRIPT = """\
slurmstepd-n1: error: *** STEP 5.0 ON n1 FAILED (non-zero exit code or other failure mode) ***
srun: Job step aborted: Waiting up to 22 seconds for job step to finish.
srun: error: n1: task 0: Killed
srun: launch/slurm: _step_signal: Terminating StepId=5.0"""
SETUP = "error: setup line failed: module load cuda/12.8 (exit code 1)"
OOM = "slurmstepd: error: Detected 1 oom_kill event in StepId=5.0. Some of the step tasks have been OOM Killed."
NODE_FAILURE = """\
srun: error: Node failure on n2
slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-11-27T01:33:23 DUE TO NODE FAILURE, SEE SLURMCTLD LOG"""
TIME_LIMIT = "slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-11-27T01:33:23 DUE TO TIME LIMIT ***"
NO_STEP = "srun: error: Unable to create step for job 5: Memory required by task is not available"


def marker(error: str, cause: str, *, consequence: bool, at: float = 1.0) -> dict[str, Any]:
    return {"error": error, "cause": cause, "consequence": consequence, "attempt": "5.0", "time": at}


# Markers, log of the job, Slurm's state and code, and what status says: state, cause, reason.
CASES: dict[str, tuple[list[dict[str, Any]], str, tuple[str, str], tuple[str, str, str]]] = {
    "a process, whose peer reported first": (
        [
            marker(LOST, "lost peer", consequence=True),
            marker("process 1 was killed by SIGKILL on n2", "killed", consequence=False, at=2.0),
        ],
        FAILED_PEER,
        ("FAILED", "1:0"),
        ("failed", "killed", "process 1 was killed by SIGKILL on n2"),
    ),
    "a process that had not yet removed the marker of an earlier attempt": (
        [
            marker("process 0 was killed by SIGKILL on n1", "killed", consequence=False) | {"attempt": "4.1"},
            marker("process 1 was killed by SIGKILL on n2", "killed", consequence=False, at=2.0),
        ],
        FAILED_PEER,
        ("FAILED", "1:0"),
        ("failed", "killed", "process 1 was killed by SIGKILL on n2"),
    ),
    "a launcher, before it could record anything": (
        [marker(LOST, "lost peer", consequence=True), marker(NO_RECORD, "killed", consequence=True)],
        KILLED_TASK,
        ("FAILED", "9:0"),
        ("failed", "killed", "the worker on n2 was killed by SIGKILL"),
    ),
    "the batch script, and the launcher was killed because it took long to end": (
        [],
        f"batch: attempt 5.0 on n1\n{KILLED_SCRIPT}\n{START}",
        ("FAILED", "0:9"),
        ("failed", "killed", "the batch script was killed by SIGKILL"),
    ),
    "a launcher, and accounting knows nothing yet": (
        [],
        KILLED_TASK,
        ("FAILED", "9:0"),
        ("failed", "killed", "the worker on n2 was killed by SIGKILL"),
    ),
    "a task, and its log is lost": (
        [],
        "",
        ("FAILED", "137:0"),
        ("failed", "killed", "a task was killed by SIGKILL"),
    ),
    "a cancelled trial that did not save in time": (
        [marker(LOST, "lost peer", consequence=True)],
        "slurmstepd-n1: error: *** STEP 5.0 ON n1 CANCELLED AT 2026-11-27T02:20:12 ***\n"
        "srun: error: n1: task 0: Killed",
        ("CANCELLED", "0:0"),
        ("stopped", "cancelled", "cancelled"),
    ),
    "srun": (
        [],
        KILLED_SRUN,
        ("FAILED", "137:0"),
        ("failed", "killed", "srun, which runs the job's tasks, was killed by SIGKILL"),
    ),
    "the batch script": (
        [],
        "",
        ("FAILED", "0:9"),
        ("failed", "killed", "the batch script was killed by SIGKILL"),
    ),
    "the batch script, TERM": (
        [],
        "slurmstepd-n1: error: *** STEP 8.0 ON n1 FAILED (non-zero exit code or other failure mode) ***",
        ("FAILED", "0:15"),
        ("failed", "killed", "the batch script was killed by SIGTERM"),
    ),
    "a Python error": (
        [
            marker(LOST, "lost peer", consequence=True),
            marker("ZeroDivisionError: division by zero", "exception", consequence=False, at=2.0),
        ],
        FAILED_PEER,
        ("FAILED", "1:0"),
        ("failed", "exception", "ZeroDivisionError: division by zero"),
    ),
    "memory of the job": (
        [],
        OOM,
        ("FAILED", "1:0"),
        ("failed", "out of memory", "out of memory; raise resources.mem_gb"),
    ),
    "memory of the job, which took a process": (
        [marker("process 0 was killed by SIGKILL on n1", "killed", consequence=False)],
        "",
        ("OUT_OF_MEMORY", "0:125"),
        (
            "failed",
            "out of memory",
            "out of memory; process 0 was killed by SIGKILL on n1; raise resources.mem_gb",
        ),
    ),
    "memory, by the kernel's count": (
        [
            marker(
                "out of memory: the kernel killed process 0 on n1; raise resources.mem_gb",
                "out of memory",
                consequence=False,
            )
        ],
        "",
        ("FAILED", "1:0"),
        ("failed", "out of memory", "out of memory: the kernel killed process 0 on n1; raise resources.mem_gb"),
    ),
    "a full disk, recorded": (
        [marker("/lab/logs/a: checkpoint not written: No space left on device", "disk error", consequence=False)],
        "",
        ("FAILED", "74:0"),
        ("failed", "disk error", "/lab/logs/a: checkpoint not written: No space left on device"),
    ),
    "a full disk, on which nothing could be recorded": (
        [],
        "",
        ("FAILED", "74:0"),
        (
            "failed",
            "disk error",
            "the disk of the run directory refuses to be written (full, over quota, read-only or unreachable)",
        ),
    ),
    "a full disk, and a peer that was killed because it did not end": (
        [],
        "srun: error: n1: task 0: Exited with exit code 74\nsrun: error: n2: task 1: Killed",
        ("FAILED", "74:0"),
        (
            "failed",
            "disk error",
            "the disk of the run directory refuses to be written (full, over quota, read-only or unreachable)",
        ),
    ),
    "a full disk, and a peer that was killed, whose code Slurm keeps": (
        [],
        "srun: error: n2: task 1: Killed\nsrun: error: n1: task 0: Exited with exit code 74",
        ("FAILED", "9:0"),
        (
            "failed",
            "disk error",
            "the disk of the run directory refuses to be written (full, over quota, read-only or unreachable)",
        ),
    ),
    "a node": ([], NODE_FAILURE, ("NODE_FAIL", "0:0"), ("failed", "node failure", "node failure; node n2 went down")),
    "a node, and its log is lost": (
        [],
        "",
        ("NODE_FAIL", "0:0"),
        ("failed", "node failure", "node failure; n1 went down"),
    ),
    "the time limit": (
        [],
        TIME_LIMIT,
        ("TIMEOUT", "0:0"),
        ("failed", "time limit", "time limit; raise resources.time"),
    ),
    "a setup line": ([], SETUP, ("FAILED", "1:0"), ("failed", "exit code", SETUP.removeprefix("error: "))),
    "a setup line after a requeue": (
        [],
        f"{START}\n{KILLED_TASK}\n{SETUP}",
        ("FAILED", "1:0"),
        ("failed", "exit code", SETUP.removeprefix("error: ")),
    ),
    "an error after a requeue because a task was killed": (
        [],
        f"{KILLED_TASK}\n{START}\nImportError: no torch",
        ("FAILED", "1:0"),
        ("failed", "exit code", "exit code 1: ImportError: no torch"),
    ),
    "an exit without a word": (
        [],
        f"batch: attempt 5.0 on n1\n{START}",
        ("FAILED", "3:0"),
        ("failed", "exit code", "exit code 3"),
    ),
    "a step that srun cannot create": (
        [],
        NO_STEP,
        ("FAILED", "1:0"),
        ("failed", "exit code", f"exit code 1: {NO_STEP}"),
    ),
}


def explained(folder: Path, markers: list[dict[str, Any]], log: str, slurm: tuple[str, str]) -> TrialStatus:
    """Return the status of a trial that trained until a fault left these markers and this log."""
    run = RunDirectory(folder / "dann")
    run.path.mkdir()
    run.config_file.write_text("method: dann\n")
    run.write_status({"state": "running", "attempt": "5.0", "step": 9, "time": time.time() - 1000})
    for number, content in enumerate(markers):
        (run.path / f"failed.5.0.node{number}.json").write_text(json.dumps(content))
    (folder / "slurm" / "5").mkdir(parents=True)
    (folder / "slurm" / "5" / "5_0_log.err").write_text(log)
    return determine_status(run, [SlurmJob("5", "train", slurm[0], "n1", code=slurm[1])])


@pytest.mark.parametrize("name", CASES)
def test_the_reason_names_the_cause(name: str, tmp_path: Path) -> None:
    markers, log, slurm, expected = CASES[name]
    row = explained(tmp_path, markers, log, slurm)
    assert (row.state, row.cause, row.reason) == expected


def test_a_trial_that_saved_before_its_batch_script_died_is_stopped_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    run = RunDirectory(tmp_path / "a" / "dann")
    run.path.mkdir()
    run.config_file.write_text("method: dann\n")
    run.write_status({"state": "stopped", "attempt": "5.0", "step": 9, "time": time.time() - 1000})
    run.stop(Attempt("5.0"), 9)
    row = determine_status(run, [SlurmJob("5", "train", "FAILED", "n1", code="0:15")])
    assert (row.state, row.cause) == ("stopped", "killed")
    assert row.reason == "the batch script was killed by SIGTERM; saved"


GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:51899: Connection reset by peer"
)
CUDA = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB of which 9 MiB is free."


def allocate() -> None:
    torch.empty(1 << 50)


def test_a_failed_memory_allocation_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        allocate()
    failure = explain(caught.value, processes=2)
    assert failure.cause == "out of memory"
    assert "can't allocate memory" in failure.reason
    assert failure.reason.endswith("; lower train.batch_size or raise train.micro_batches, or raise resources.mem_gb")


@pytest.mark.parametrize(
    ("error", "processes", "cause", "reason"),
    [
        (RuntimeError(GLOO), 2, "lost peer", f"lost the connection to another process of the trial: {GLOO}"),
        (RuntimeError(GLOO), 1, "exception", f"RuntimeError: {GLOO}"),
        (
            torch.OutOfMemoryError(f"{CUDA} Of the allocated memory 78 GiB is allocated by PyTorch."),
            2,
            "out of memory",
            "out of memory: CUDA out of memory. Tried to allocate 20.00 MiB; "
            "lower train.batch_size or raise train.micro_batches",
        ),
        (MemoryError(), 1, "out of memory", None),
        (ConfigError("a.yaml: model.lr: expected a number"), 2, "exception", "a.yaml: model.lr: expected a number"),
        (OSError(28, "No space left on device", "/a"), 2, "disk error", "[Errno 28] No space left on device: '/a'"),
        (OSError(2, "No such file or directory"), 2, "exception", None),
        (ValueError("Connection closed by peer"), 2, "exception", "ValueError: Connection closed by peer"),
    ],
)
def test_exceptions_are_sorted_by_cause(error: Exception, processes: int, cause: str, reason: str | None) -> None:
    failure = explain(error, processes)
    assert failure.cause == cause
    assert failure.is_consequence == (cause == "lost peer")
    assert reason is None or failure.reason == reason


@pytest.mark.parametrize(
    ("groups", "file", "text"),
    [
        ("0::/job_5/step_0\n", "sys/fs/cgroup/job_5/step_0/memory.events", "oom 4\noom_kill 3\noom_group_kill 0\n"),
        ("4:memory:/job_5\n0::/\n", "sys/fs/cgroup/memory/job_5/memory.oom_control", "under_oom 0\noom_kill 3\n"),
        ("0::/\n", "proc/vmstat", "pgfault 12\noom_kill 3\n"),
        ("0::/\n", "", ""),
    ],
)
def test_kills_by_the_kernel_for_lack_of_memory_are_counted(groups: str, file: str, text: str, tmp_path: Path) -> None:
    for name, content in (("proc/self/cgroup", groups), (file or "empty", text)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert count_oom_kills(tmp_path) == (3 if file else 0)


def test_only_a_sigkill_beside_an_oom_kill_counts_as_out_of_memory() -> None:
    assert describe_death("process 1", -9, "n2", 1)[1] == "out of memory"
    assert describe_death("process 1", -9, "n2", 0) == ("process 1 was killed by SIGKILL on n2", "killed")
    assert describe_death("process 1", -11, "n2", 1) == ("process 1 was killed by SIGSEGV on n2", "killed")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_root: str) -> RunDirectory:
    """Return a finished trial."""
    run = new_run(tmp_path_factory.mktemp("trained") / "a", data_root, steps=10)
    finish(start_worker(run, 1))
    return RunDirectory(run)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_process_is_the_reason_of_its_trial(processes: int, tmp_path: Path, data_root: str) -> None:
    run = RunDirectory(new_run(tmp_path / "killed", data_root, steps=100000))
    worker = start_worker(run.path, processes)
    until(lambda: losses(run.path), worker)
    (process,) = children(worker.pid)
    os.kill(process if processes == 1 else children(process)[1], signal.SIGKILL)
    output = finish(worker)
    name = "the training process" if processes == 1 else "process 1"
    assert run.error() == f"{name} was killed by SIGKILL on {os.uname().nodename}", output
    assert determine_status(run).cause == "killed"


def test_a_killed_evaluation_is_the_reason(trained: RunDirectory) -> None:
    trained.fail_evaluation("an error of an earlier evaluation")
    worker = start_worker(trained.path, 1, stage="eval")
    until(lambda: children(worker.pid), worker)
    os.kill(children(worker.pid)[0], signal.SIGKILL)
    finish(worker)
    reason = f"the evaluation was killed by SIGKILL on {os.uname().nodename}"
    assert trained.evaluation_error() == reason
    assert determine_status(trained).reason == f"evaluation failed: {reason}"
