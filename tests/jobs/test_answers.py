"""What the commands make of Slurm's answers, or of none, without any Slurm: its commands are replaced by scripts."""

import argparse
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import plan, status
from jobs.backends.slurm import client, limits
from jobs.backends.slurm.accounting import SlurmJob
from jobs.backends.slurm.backend import SlurmBackend
from jobs.backends.slurm.presets import Preset
from trainer.config.document import Setting
from trainer.config.schema import Resources
from trainer.config.sweep import load_trials
from trainer.errors import ConfigError
from trainer.runs.directory import RunDirectory
from trainer.runs.placement import create_run_directories

DANN = "name: x\nmethod: dann\ndata: {source: mnist5k, target: mnistm5k}\ngrid: {train.seed: [0, 1, 2, 3]}\n"
Replace = Callable[..., None]
PARTITIONS = """\
PartitionName=short AllowGroups=ALL Default=YES MaxTime=01:00:00 State=UP
PartitionName=long AllowGroups=ALL Default=NO MaxTime=2-00:00:00 State=UP
PartitionName=free AllowGroups=ALL Default=NO MaxTime=UNLIMITED State=UP
"""


@pytest.fixture
def replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replace:
    """Replaces Slurm's commands by shell scripts: `replace(squeue="echo 7 RUNNING")`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(**scripts: str) -> None:
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)

    return write


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep of four trials that Slurm has a job of."""
    (tmp_path / "x.yaml").write_text(DANN)
    create_run_directories(tmp_path / "logs" / "x", load_trials(tmp_path / "x.yaml", []))
    array = {"stage": "train", "id": "5", "trials": [], "each": 1}
    (tmp_path / "logs" / "x" / "submissions.jsonl").write_text(json.dumps({"time": 0, "arrays": [array]}) + "\n")
    return tmp_path / "logs" / "x"


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"time": "01:00:01"}, r"x.yaml:3: resources.time: '01:00:01' is more than partition short allows"),
        ({"time": "01:00:00"}, ""),
        ({"time": "3-00:00:00", "slurm": {"partition": "long"}}, r"partition long allows \(MaxTime 2-00:00:00\)"),
        ({"time": "3-00:00:00", "slurm": {"partition": "short,long"}}, r"partition long allows"),
        ({"time": "1-00:00:00", "slurm": {"partition": "short,long"}}, ""),
        ({"time": "30-00:00:00", "slurm": {"partition": "free"}}, ""),
        ({"time": "30-00:00:00", "slurm": {"partition": "unknown"}}, ""),  # sbatch says so itself
        ({"time": "3-00:00:00", "slurm": {"qos": "long"}}, ""),  # which may lift the limit
    ],
)
def test_a_time_above_the_limit_of_the_partition_is_refused(
    replace: Replace, resources: dict[str, Any], message: str
) -> None:
    replace(scontrol=f"cat <<'END'\n{PARTITIONS}END")
    settings = {"resources.time": Setting(resources["time"], "x.yaml:3")}
    if not message:
        limits.check_time(settings, "resources", Resources(**resources))
        return
    with pytest.raises(ConfigError, match=message):
        limits.check_time(settings, "resources", Resources(**resources))


def test_an_unresponsive_slurm_causes_no_traceback(
    replace: Replace, sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.3)
    config = "AccountingStorageEnforce = limits\nClusterName = c\nMaxJobCount = 9\nMaxArraySize = 5"
    replace(
        **dict.fromkeys(("squeue", "sacct", "sacctmgr", "scancel"), "exec sleep 60"),
        sbatch="exit 1",
        scontrol=f'[ "$1" = ping ] && echo "Slurmctld(primary) at n1 is UP" || echo "{config}"',
    )
    assert limits.read_limits([Resources()], Preset()).array == 5
    limits.check_time({}, "resources", Resources())
    with pytest.raises(ConfigError, match=r"has jobs on Slurm, but squeue does not answer: no answer within 0"):
        SlurmBackend().active(sweep)
    assert client.cancel(["5"]) == ""
    assert status.main([str(sweep)]) == 0
    output = capsys.readouterr().out
    assert "4 pending" in output
    assert "note: squeue: no answer within 0 s" in output
    assert "note: sacct: no answer within 0 s" in output


def test_an_answer_that_is_not_utf8_causes_no_traceback(replace: Replace) -> None:
    replace(squeue=r"printf '5_0 \377\n'")
    assert client.queue(["5"]) == {"5_0": "\N{REPLACEMENT CHARACTER}"}


class Backend(SlurmBackend):
    """Slurm, with jobs that have ended and are known to accounting only."""

    def active(self, sweep: Path) -> list[Any]:
        return []

    def jobs(self, sweep: Path) -> tuple[dict[str, list[Any]], list[str]]:
        names = sorted(path.parent.name for path in sweep.glob("*/config.yaml"))
        return {
            names[0]: [SlurmJob("5_0", "train", "FAILED", code="1:0")],
            names[1]: [SlurmJob("5_1", "train", "CANCELLED")],
            names[2]: [SlurmJob("5_2", "train", "COMPLETED"), SlurmJob("6_2", "eval", "OUT_OF_MEMORY")],
        }, []


@pytest.mark.parametrize("retry", [False, True])
def test_retry_failed_starts_the_trials_that_status_shows_as_failed(sweep: Path, retry: bool) -> None:
    """One trial failed before it wrote anything, one was cancelled, the evaluation of one was killed, one is new."""
    trials = load_trials(sweep.parents[1] / "x.yaml", ["eval.metrics=[accuracy]"])
    runs = [RunDirectory(path) for path in sorted(path.parent for path in sweep.glob("*/config.yaml"))]
    (runs[2].path / "done").write_text("{}")
    options = argparse.Namespace(runs=sweep.parent, retry_failed=retry, max_parallel=None)
    submission = plan.plan_sweep(options, trials, Backend(), reachable=True)
    names = [trial.name for trial in submission.runs]
    to_train = {names[i] for i in submission.to_train}
    assert to_train == ({runs[0].name} if retry else {runs[0].name, runs[1].name, runs[3].name})
    assert [names[i] for i in submission.to_evaluate] == [runs[2].name]


EVALUATION = """\
resources:
  {nodes: 2, gpus_per_node: 2, time: "08:00:00", mem_gb: 32, slurm: {partition: long, account: lab, constraint: a100}}
eval:
  metrics: [accuracy]
  resources: {gpus_per_node: 0, time: "00:02:00", mem_gb: 4, slurm: {partition: short, constraint: null}}
train: {batch_size: 64}
"""


def scripts(file: Path, backend: SlurmBackend) -> list[str]:
    """Return the batch scripts of a sweep file, none of whose trials has started."""
    options = argparse.Namespace(runs=file.parent / "new", retry_failed=False, max_parallel=None)
    submission = plan.plan_sweep(options, load_trials(file, []), backend, reachable=False)
    return list(backend.scripts(submission.sweep, plan.group_trials(submission), Path("/code")))


def test_an_evaluation_may_have_resources_of_its_own(tmp_path: Path, replace: Replace) -> None:
    replace(scontrol="exit 1", squeue="exit 1")
    (tmp_path / "x.yaml").write_text(DANN + EVALUATION)
    train, evaluate, report = scripts(tmp_path / "x.yaml", SlurmBackend())
    for line in (
        "--nodes=2",
        "--gpus-per-node=2",
        "--time=480",
        "--partition=long",
        "--account=lab",
        "--constraint=a100",
        "--mem=32768M",
    ):
        assert f"#SBATCH {line}\n" in train
    for line in ("--nodes=1", "--time=2", "--partition=short", "--account=lab", "--mem=4096M"):
        assert f"#SBATCH {line}\n" in evaluate
        assert f"#SBATCH {line}\n" in report
    assert "gpus" not in evaluate
    assert "constraint" not in evaluate + report, "null leaves an option of the training out"
    with_own, without = (load_trials(tmp_path / "x.yaml", words) for words in ([], ["eval.resources=null"]))
    assert [trial.identity for trial in with_own] == [trial.identity for trial in without]
    assert without[0].config.evaluation_resources() is without[0].config.resources
    assert "resources" not in without[0].config.to_yaml().partition("eval:")[2].partition("resources:\n  nodes")[0]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("eval.resources.tiem=00:10:00", "eval.resources.tiem: unknown key 'tiem'; did you mean 'time'"),
        ("eval.resources.time=soon", "eval.resources.time: 'soon': must look like"),
        ("eval.resources.gpus_per_node=4", "eval.resources.gpus_per_node: 4: "),
        ("eval.resources.slurm.time=4", "eval.resources.slurm: .*use resources.time"),
        ("resources={mem_gb: null, slurm: {mem-per-cpu: 2G}}", "eval.resources: .*exclude each other"),
    ],
)
def test_invalid_resources_of_an_evaluation_are_refused(tmp_path: Path, word: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(DANN + "eval: {resources: {mem_gb: 4}}\n")
    with pytest.raises(ConfigError, match=message):
        load_trials(tmp_path / "x.yaml", [word])


def test_a_sweep_may_start_after_a_job_or_another_sweep(tmp_path: Path, sweep: Path, replace: Replace) -> None:
    record = json.loads((sweep / "submissions.jsonl").read_text()) | {"report": "6"}
    record["arrays"][0]["trials"] = ["a", "b"]
    (sweep / "submissions.jsonl").write_text(json.dumps(record) + "\n")
    jobs = "5_0 RUNNING\n5_1 PENDING\n6 PENDING"
    replace(scontrol="exit 1", squeue=f"case $* in *77*) echo 77 RUNNING;; *5*) echo '{jobs}';; esac")
    backend = SlurmBackend().wait_for(str(sweep)).wait_for("77").wait_for("88")
    assert backend.after == ("5", "6", "77"), "88 has ended"
    (tmp_path / "y.yaml").write_text(DANN + "eval: {metrics: [accuracy]}\n")
    dependencies = [re.findall("--dependency=(.*)", script)[-1] for script in scripts(tmp_path / "y.yaml", backend)]
    assert dependencies == ["afterany:5:6:77", "aftercorr:TRAIN0", "afterany:TRAIN0:EVAL1"]
    with pytest.raises(ConfigError, match="--after: nowhere: give a job id or the directory of a sweep"):
        backend.wait_for("nowhere")
