"""What users of a cluster do every day: submit from inside a job, lose a connection, make mistakes in a preset."""

import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.slurm.cluster import Cluster
from tests.slurm.submitted import (
    DANN,
    ROOT,
    Submitted,
    command,
    launchers,
    parent,
    restarts,
    send,
    sruns,
)

TINY: dict[str, Any] = DANN | {"method": "source_only", "train": {"steps": 20, "batch_size": 8}}
# Each of these would change what sbatch, srun or squeue does if it reached them.
HOSTILE = {
    "SBATCH_PARTITION": "nowhere",
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_ARRAY_INX": "0-7",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_WAIT": "1",
    "SBATCH_EXPORT": "NONE",
    "SLURM_EXPORT_ENV": "NONE",
    "SQUEUE_FORMAT": "%j",
    "SQUEUE_STATES": "COMPLETED",
    "SLURM_MEM_PER_CPU": "300",
    "SLURM_NTASKS": "4",
}


@pytest.fixture
def sweep(cluster: Cluster, tmp_path: Path, data_root: str) -> Iterator[Submitted]:
    """Yield a sweep of two short trials that is not submitted yet."""
    content = TINY | {"name": "daily", "grid": {"train.seed": [0, 1]}, "eval": {"metrics": ["accuracy"]}}
    yield Submitted(cluster, tmp_path, data_root, content)
    cluster.cancel_jobs()


def queued(cluster: Cluster) -> list[str]:
    return cluster.run("squeue", "-h", "-r", "-o", "%i").stdout.split()


def replace_sbatch(sweep: Submitted, then: str, after: int = 2) -> None:
    """Let a wrapper stand before sbatch, which runs shell commands after a number of jobs were accepted."""
    folder = sweep.file.parent / "bin"
    folder.mkdir()
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
    script = folder / "sbatch"
    count = f"printf x >> {folder}/count; case $(cat {folder}/count) in {'x' * after}) {then};; esac"
    script.write_text(f'#!/bin/sh\ncase "$*" in *--usage*|*--help*) exec {real} "$@";; esac\n{real} "$@"\n{count}\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    sweep.environment["PATH"] = f"{folder}:{sweep.environment['PATH']}"


def test_variables_of_an_outer_job_and_of_the_user_reach_no_job(sweep: Submitted, cluster: Cluster) -> None:
    submit = [sys.executable, "jobs/submit.py", str(sweep.file), "--cluster", "slurm", "--runs", str(sweep.logs)]
    outer = [
        "srun",
        "--gres=gpu:1",
        "--mem-per-cpu=200",
        "--ntasks=1",
        "env",
        *(f"{k}={v}" for k, v in HOSTILE.items()),
    ]
    done = subprocess.run(
        [*outer, *submit], cwd=ROOT, env=sweep.environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sweep.wait_for(sweep.submissions()[-1]["report"], "COMPLETED")
    assert all(run.is_done() and run.evaluation() for run in sweep.runs()), sweep.output()


def test_evaluations_have_resources_of_their_own_and_another_sweep_waits(
    sweep: Submitted, cluster: Cluster, tmp_path: Path, data_root: str
) -> None:
    sweep.submit("train.seed=[0]", "eval.resources={time: '00:03:00', cpus_per_gpu: 2, slurm: {partition: high}}")
    later = Submitted(cluster, tmp_path / "later", data_root, TINY | {"name": "later"})
    later.submit("--after", str(sweep.folder))
    (first,), (evaluation,), (waiting,) = sweep.jobs("train"), sweep.jobs("eval"), later.jobs("train")
    report = sweep.submissions()[-1]["report"]
    later.wait_for(later.submissions()[-1]["report"], "COMPLETED")
    jobs = {
        job: dict(re.findall(r"(\w+)=(\S+)", cluster.run("scontrol", "show", "job", job, "-o").stdout))
        for job in (first, evaluation, report, waiting)
    }
    requested = [[jobs[job][key] for key in ("Partition", "TimeLimit")] for job in (first, evaluation, report)]
    assert requested == [["main", "00:10:00"], ["high", "00:03:00"], ["high", "00:03:00"]]
    assert jobs[evaluation]["Task"] == "2", "CPUs/Task"
    assert jobs[waiting]["StartTime"] >= jobs[report]["EndTime"], "times of one clock, in the order of their text"
    run = sweep.runs()[0]
    assert run.is_done()
    assert run.evaluation()
    assert not run.checkpoints.exists()
    assert command(sweep, "tidy", "--yes").returncode == 0
    assert not list(sweep.folder.glob("slurm/*/*.pkl"))
    archived = command(sweep, "tidy", "--archive", "--yes")
    assert archived.returncode == 0, archived.stderr
    assert not sweep.folder.exists()


def test_a_slow_submission_and_a_batch_script_without_its_slurmstepd_leave_no_job_behind(
    sweep: Submitted, cluster: Cluster
) -> None:
    """Slurm could start the jobs before submitit has made the folder of their logs, and never learns of an end."""
    replace_sbatch(sweep, "sleep 3", after=1)
    sweep.submit("eval.metrics=[]")
    srun, *_ = cluster.wait(lambda: launchers(sweep.folder) and sruns(sweep.folder), 60, "a batch script")
    batch_script = parent(srun)
    send([parent(batch_script)], signal.SIGKILL)
    sweep.wait_for(sweep.submissions()[-1]["report"], "COMPLETED")
    assert [sweep.state(job) for job in sweep.jobs("train")] == ["COMPLETED"] * 2
    assert sorted(restarts(cluster, job) for job in sweep.jobs("train")) == [0, 1]
    assert all(run.is_done() for run in sweep.runs()), sweep.output()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_submission_that_ends_between_two_jobs_leaves_no_job_behind(
    number: signal.Signals, sweep: Submitted, cluster: Cluster
) -> None:
    """SIGKILL leaves jobs that status and cancel know and the next submission does not repeat; SIGHUP leaves none."""
    replace_sbatch(sweep, f"kill -{number.value} $PPID; sleep 1")
    done = subprocess.run(
        [sys.executable, "jobs/submit.py", str(sweep.file), "--cluster", "slurm", "--runs", str(sweep.logs)],
        cwd=ROOT, env=sweep.environment | {"SBATCH_HOLD": "1"}, capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # these tests may run under nohup
    )  # fmt: skip
    if number == signal.SIGHUP:
        assert done.returncode == 130, done.stderr
        cluster.wait(lambda: not queued(cluster), 60, "the accepted jobs to be cancelled")
        assert not (sweep.folder / "submissions.jsonl").exists()
        return
    assert done.returncode == -number
    before = sorted(queued(cluster))
    assert len(before) == 4  # two to train, two to evaluate
    statuses = command(sweep, "status").stdout
    assert statuses.count(" queued ") + statuses.count(" running ") + statuses.count(" done ") >= 2, statuses
    assert "0 to train" in sweep.submit()
    cancelled = command(sweep, "cancel", "--yes")
    assert cancelled.returncode == 0, cancelled.stderr
    assert not queued(cluster)


def test_without_an_answering_controller_nothing_is_trained_here(sweep: Submitted, cluster: Cluster) -> None:
    cluster.kill_daemon("slurmctld")
    try:
        done = subprocess.run(
            [sys.executable, "jobs/submit.py", str(sweep.file), "--runs", str(sweep.logs)],
            cwd=ROOT, env=sweep.environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    finally:
        cluster.start_daemon("slurmctld")
    assert done.returncode == 2
    assert done.stderr.startswith("error: Slurm: no controller answers: Slurmctld(primary) at ")
    assert done.stderr.strip().endswith("use --cluster local to train on this machine")
    assert "*" not in done.stderr
    assert not sweep.folder.exists()


def test_a_job_that_may_not_be_requeued_fails_at_once_and_resumes_when_submitted_again(
    cluster: Cluster, tmp_path: Path, data_root: str
) -> None:
    sweep = Submitted(cluster, tmp_path, data_root, DANN | {"name": "fixed"})
    sweep.submit()
    (job,) = sweep.jobs("train")
    (run,) = sweep.runs()
    cluster.wait(lambda: run.status().get("step", 0) > 10, 120, "the training to start")
    cluster.run("scontrol", "update", f"JobId={job}", "Requeue=0")
    cluster.run("scancel", "--signal=USR2", job)
    sweep.wait_for(job, "FAILED", timeout=60)
    error = run.error()
    assert error.startswith("saved, but Slurm does not requeue the job: "), error
    assert error.endswith("submit again to resume")
    assert error in command(sweep, "status").stdout.replace("\n", " ")
    step = run.latest_step()
    sweep.submit()
    sweep.wait_for(sweep.jobs("train")[-1], "COMPLETED")
    assert run.is_done()
    assert step > 0
    assert f"resuming from step {step}" in sweep.output(10**6)


def test_a_failing_setup_line_ends_the_job_and_is_the_reason(sweep: Submitted, tmp_path: Path) -> None:
    preset = tmp_path / "lab.yaml"
    preset.write_text(yaml.safe_dump({"setup": ["true", "ls /no/such/module > /dev/null 2>&1"]}))
    sweep.submit("--cluster", str(preset))
    for job in sweep.jobs("train"):
        sweep.wait_for(job, "FAILED")
    statuses = command(sweep, "status").stdout
    assert statuses.count("setup line failed: ls /no/such/module") == 2, statuses
    assert not any(run.status() for run in sweep.runs())


def test_a_job_that_was_given_a_gpu_does_not_train_without_one(
    cluster: Cluster, tmp_path: Path, data_root: str
) -> None:
    """The nodes have GPUs for Slurm to allocate, but no driver."""
    sweep = Submitted(cluster, tmp_path, data_root, TINY | {"name": "gpu", "resources": {"mem_gb": 1}})
    sweep.submit()
    (job,) = sweep.jobs("train")
    sweep.wait_for(job, "FAILED")
    error = sweep.runs()[0].error()
    assert "resources.gpus_per_node: 1: torch " in error
    assert "CUDA_VISIBLE_DEVICES: 0" in error
    assert error.endswith("set gpus_per_node: 0 to train on CPUs")
    assert not sweep.runs()[0].status()
