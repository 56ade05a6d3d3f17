"""Submitting repeatedly starts no trial twice and misses none, and never queues more jobs than Slurm takes."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.backends.base import Plan
from jobs.backends.slurm import limits
from jobs.backends.slurm.arrays import split_arrays
from jobs.backends.slurm.presets import Preset
from tests.slurm.cluster import Cluster
from tests.slurm.submitted import DANN, ROOT, Submitted
from trainer.config.schema import Resources
from trainer.runs import submissions
from trainer.runs.directory import RunDirectory

HELD: dict[str, Any] = DANN | {
    "grid": {"train.seed": [0, 1, 2]},
    "eval": {"metrics": ["accuracy"]},
    "resources": DANN["resources"] | {"slurm": {"hold": True}},
}


def queue(cluster: Cluster, name: str) -> list[str]:
    """Return the ids of the queued and running jobs of a sweep."""
    rows = cluster.run("squeue", "-h", "-r", "-o", "%i %j").stdout.splitlines()
    return [job for job, _, job_name in (row.partition(" ") for row in rows) if job_name.startswith(f"{name}-")]


def test_two_commands_at_the_same_moment_start_every_trial_once(
    cluster: Cluster, tmp_path: Path, data_root: str
) -> None:
    sweep = Submitted(cluster, tmp_path, data_root, HELD | {"name": "twice"})
    command = [sys.executable, "jobs/submit.py", str(sweep.file), "--cluster", "slurm", "--runs", str(sweep.logs)]
    both = [
        subprocess.Popen(command, cwd=ROOT, env=sweep.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sorted("nothing to do" in output for output in outputs) == [False, True]
    (line,) = sweep.submissions()
    assert sorted(len(array["trials"]) for array in line["arrays"]) == [3, 3]
    assert len(queue(cluster, "twice")) == 7
    cluster.cancel_jobs()


def test_submissions_of_a_sweep_share_max_parallel(cluster: Cluster, tmp_path: Path, data_root: str) -> None:
    sweep = Submitted(cluster, tmp_path, data_root, HELD | {"name": "shared"})
    sweep.submit("--max-parallel", "2")
    sweep.submit("train.seed=[3,4]", "--max-parallel", "3")
    assert "after job " not in sweep.submit("train.seed=[5]")  # of 20
    output = sweep.submit("train.seed=[6,7]", "--max-parallel", "4")
    arrays = [next(a for a in line["arrays"] if a["stage"] == "train") for line in sweep.submissions()]
    assert [array["max_parallel"] for array in arrays] == [2, 1, 17, 4]
    assert arrays[3]["after"] == [array["id"] for array in arrays[:3]]
    assert f"after job {', '.join(arrays[3]['after'])}: max_parallel" in output
    shown = [cluster.run("scontrol", "show", "job", array["id"], "-o").stdout for array in arrays]
    throttles = [re.findall(r"ArrayTaskThrottle=(\d+)", text) for text in shown]
    assert throttles == [["2"], ["1"], [], ["2"]]  # submitit asks for no more than there are elements
    assert "Dependency=afterany:" in shown[3]
    assert not any("afterany" in text for text in shown[:3])
    cluster.cancel_jobs()


def test_trials_that_left_the_file_are_cancelled_only_with_prune(
    cluster: Cluster, tmp_path: Path, data_root: str
) -> None:
    sweep = Submitted(cluster, tmp_path, data_root, HELD | {"name": "pruned"})
    sweep.submit()
    assert "2 queued trials are not in the file" in sweep.submit("train.seed=[0,3]")
    first, second = sweep.submissions()
    assert [len(array["trials"]) for array in (*first["arrays"], *second["arrays"])] == [3, 3, 1, 1]
    assert len(queue(cluster, "pruned")) == 7 + 3
    assert "cancelled 4 jobs of 2 trials" in sweep.submit("train.seed=[0,3]", "--prune")
    cancelled = {f"{array['id']}_{i}" for array in first["arrays"] for i in (1, 2)}
    assert cancelled.isdisjoint(queue(cluster, "pruned"))
    assert len(queue(cluster, "pruned")) == 7 + 3 - 4
    assert len(sweep.submissions()) == 2
    assert all((run.path / "config.yaml").exists() for run in sweep.runs()), "run directories stay"
    cluster.cancel_jobs()


MANY: dict[str, Any] = DANN | {
    "name": "many",
    "train": {"steps": 60, "batch_size": 8, "log_every": 1},
    "trials": [
        {"method": "source_only", "model.lr": 1e30},
        {"method": "source_only", "grid": {"train.seed": [0, 1, 2, 3]}},
    ],
    "eval": {"metrics": ["accuracy"]},
}


def test_jobs_run_several_trials_each_if_a_user_may_not_have_a_job_per_trial(
    slurm: None, tmp_path: Path, data_root: str
) -> None:
    """One of the trials fails, and one job is stopped in the middle and requeued."""
    with Cluster(settings={"AccountingStorageEnforce": "associations,limits,qos"}) as own:
        own.run("sacctmgr", "-i", "add", "account", "vision")
        own.run("sacctmgr", "-i", "add", "user", "root", "account=vision", "defaultaccount=vision")
        own.run("sacctmgr", "-i", "modify", "user", "root", "where", "account=vision", "set", "MaxSubmitJobs=2")
        own.wait(lambda: "vision" in own.run("scontrol", "show", "assoc_mgr", "flags=assoc").stdout, 30, "limits")
        sweep = Submitted(own, tmp_path, data_root, MANY)
        with pytest.raises(AssertionError, match=r"Slurm takes 2 more jobs from you \(MaxSubmitJobs of account vision"):
            sweep.submit()
        assert not queue(own, "many")
        own.run("sacctmgr", "-i", "modify", "user", "root", "where", "account=vision", "set", "MaxSubmitJobs=5")
        own.wait(
            lambda: "MaxSubmitJobs=5" in own.run("scontrol", "show", "assoc_mgr", "flags=assoc").stdout, 30, "5 jobs"
        )
        assert "5 trials, up to 3 in each job" in sweep.submit()
        assert len(queue(own, "many")) == 5
        assert "0 to train" in sweep.submit(), "trials of packed jobs count as queued"
        (line,) = sweep.submissions()
        first = next(iter(submissions.trials_by_job(line["arrays"][0])))
        runs = sweep.runs()
        own.wait(lambda: len(runs[1].metrics()) > 5, 90, "the second trial of the first job")
        own.run("scancel", "--signal=USR2", first)
        own.wait(lambda: any(runs[1].path.glob("stopped.*")), 60, "the trial to stop")
        for stage in line["arrays"]:
            for job in submissions.trials_by_job(stage):
                sweep.wait_for(job, "COMPLETED")
        sweep.wait_for(line["report"], "COMPLETED")
        assert " Restarts=1 " in own.run("scontrol", "show", "job", first, "-o").stdout
    assert [run.state() for run in runs] == ["failed", "done", "done", "done", "done"]
    assert all(run.evaluation()["metrics"] for run in runs[1:])
    (marker,) = runs[0].path.glob("failed.*")
    assert marker.name == f"failed.{first}.0.json", "the attempt after the stop did not try the failed trial again"


def test_a_packed_array_has_several_trials_per_job() -> None:
    runs = [RunDirectory(Path(str(number))) for number in range(10)]
    plan = Plan(Resources(max_parallel=20), runs, runs, [])
    parts = split_arrays([plan], largest=3, each=2)
    assert [(p.stage, [[run.name for run in job] for job in p.jobs()]) for p in parts[::2]] == [
        ("train", [["0", "1"], ["2", "3"]]),
        ("train", [["4", "5"], ["6", "7"], ["8", "9"]]),
    ]
    assert [p.jobs() for p in parts[1::2]] == [p.jobs() for p in parts[::2]]
    (odd,) = split_arrays([Plan(Resources(), runs, [], [])], largest=100, each=4)
    assert [len(job) for job in odd.jobs()] == [4, 4, 2]
    record = {"id": "7", "trials": [run.name for run in odd.runs], "each": 4}
    assert submissions.trials_by_job(record) == {
        f"7_{i}": [run.name for run in job] for i, job in enumerate(odd.jobs())
    }


def test_limits_are_those_that_slurm_enforces(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    current = limits.read_limits([Resources()], Preset())
    assert (current.array, current.reason) == (1001, "MaxJobCount")
    assert 9000 < current.jobs <= 10000
    monkeypatch.setenv("PATH", "")
    assert limits.read_limits([Resources()], Preset()) == limits.Limits()
