"""Cluster presets take effect on a real Slurm, and settings of a sweep file override them."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.slurm.cluster import Cluster
from tests.slurm.submitted import DANN, Submitted, losses

STEPS = 100
SWEEP: dict[str, Any] = {
    "method": "dann",
    "data": DANN["data"],
    "train": {"steps": STEPS, "batch_size": 8, "log_every": 1, "checkpoint_every": 50},
    "eval": {"metrics": ["accuracy"]},
    "resources": {"mem_gb": 1},
}
SMALL = {"cpus_per_gpu": 1, "time": "00:10:00"}
# A container with its own environment, which records the command it runs and waits for its end.
BOX = """\
#!/bin/sh
echo "$SEEN $FROM_SRUN $CUDA_VISIBLE_DEVICES $*" >> "$NOTES"
unset PYTHONPATH TURNOUT_ATTEMPT
"$@"
code=$?
exit $code
"""


@pytest.fixture(autouse=True)
def cancel_jobs(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.cancel_jobs()


def prepare(
    cluster: Cluster, folder: Path, data_root: str, preset: dict[str, Any], **content: Any
) -> tuple[Submitted, str]:
    """Write a sweep and its preset; return the sweep and the path of the preset."""
    sweep = Submitted(cluster, folder, data_root, SWEEP | {"name": "preset"} | content)
    (folder / "lab.yaml").write_text(yaml.safe_dump(preset))
    return sweep, str(folder / "lab.yaml")


def describe(cluster: Cluster, job: str) -> dict[str, str]:
    """Return what `scontrol show job` reports."""
    words = cluster.run("scontrol", "show", "job", job, "-o").stdout.split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def test_options_of_the_preset_reach_slurm_unless_the_file_overrides_them(
    cluster: Cluster, tmp_path: Path, data_root: str
) -> None:
    cluster.run("sacctmgr", "-i", "add", "qos", "fast", check=False)
    cluster.run("scontrol", "update", "NodeName=n1,n2", "AvailableFeatures=big", "ActiveFeatures=big")
    options = {"partition": "high", "qos": "fast", "constraint": "big", "comment": "preset", "hold": True}
    resources = SMALL | {"gpus_per_node": 2, "gres": "gpu", "mem_gb": 3, "slurm": options}
    own = {"mem_gb": 1, "time": "00:07:00", "slurm": {"comment": "file"}}
    sweep, lab = prepare(cluster, tmp_path, data_root, {"resources": resources}, resources=own)
    sweep.submit("--cluster", lab, "resources.slurm.partition=main")
    (line,) = sweep.submissions()
    assert line["preset"] == lab
    train, evaluate = (describe(cluster, array["id"]) for array in line["arrays"])
    for job in (train, evaluate):
        keys = ("Partition", "QOS", "Features", "Comment", "TimeLimit", "MinMemoryNode")
        assert {key: job[key] for key in keys} == {
            "Partition": "main",
            "QOS": "fast",
            "Features": "big",
            "Comment": "file",
            "TimeLimit": "00:07:00",
            "MinMemoryNode": "1G",
        }
    assert [job["TresPerNode"].removeprefix("gres:").removeprefix("gres/") for job in (train, evaluate)] == [
        "gpu:2",
        "gpu:1",
    ]
    assert describe(cluster, line["report"])["QOS"] == "fast"
    assert "0 to train" in sweep.submit(), "a preset does not change the identity of trials"


def test_setup_container_and_srun_arguments(cluster: Cluster, tmp_path: Path, data_root: str) -> None:
    """All of them apply to a trial that is stopped and resumed."""
    box, notes = tmp_path / "the box.sh", tmp_path / "notes"
    box.write_text(BOX)
    box.chmod(0o755)
    preset = {
        "resources": SMALL | {"gres": "gpu"},
        # The GPU that Slurm allocates does not exist.
        "setup": [f"export NOTES={notes}", 'export SEEN="set $SLURM_JOB_NAME"', "export ACCELERATE_USE_CPU=true"],
        "container": f"'{box}'",
        "python": sys.executable,
        "srun": ["--export=ALL,FROM_SRUN=by srun"],
    }
    sweep, lab = prepare(cluster, tmp_path, data_root, preset)
    shown = sweep.submit("--cluster", lab, "--dry-run")
    sweep.submit("--cluster", lab)
    (line,) = sweep.submissions()
    (train,) = sweep.jobs("train")
    script = next((sweep.folder / "slurm").rglob(f"{train}_submission.sh")).read_text()
    assert re.sub("code/[0-9a-f]{12}", "", script) in re.sub("code/[0-9a-f]{12}", "", shown)
    assert f"start with: '{box}' {sys.executable}" in shown
    (run,) = sweep.runs()
    cluster.wait(lambda: len(run.metrics()) > 5, 60, "some steps of training")
    cluster.run("scancel", "--signal=USR2", train)
    sweep.wait_for(line["report"], "COMPLETED")
    assert [row["step"] for row in losses(run.path)] == list(range(1, STEPS + 1))
    assert describe(cluster, train)["Restarts"] == "1"
    assert run.evaluation()["metrics"]
    lines = notes.read_text().splitlines()
    scripts = ["trainer/main.py", "trainer/main.py", "eval/main.py", "eval/report.py"]
    assert [next(word for word in reversed(text.split()) if word.endswith(".py")) for text in lines] == [
        str(sweep.folder / line["code"] / script) for script in scripts
    ]
    assert all(" TURNOUT_OFFLINE=1 HF_HUB_OFFLINE=1 " in text for text in lines)
    seen = [text.partition(" env ")[0] for text in lines]
    assert seen == [f"set preset-{stage} by srun {gpu}" for stage, gpu in (*[("train", "0")] * 2, ("eval", "0"))] + [
        "set preset-report by srun "
    ]


def test_the_preset_can_lower_the_limits_of_slurm(cluster: Cluster, tmp_path: Path, data_root: str) -> None:
    preset = {"resources": SMALL, "max_array": 2, "max_jobs": 9}
    own = {"eval": {"metrics": []}, "grid": {"train.seed": [*range(5)]}}
    sweep, lab = prepare(cluster, tmp_path, data_root, preset, **own)
    arrays = re.findall(r"--array=(\S+)", sweep.submit("--cluster", lab, "--dry-run"))
    assert arrays == ["0-1%2", "0-1%2"], "the fifth trial is a single job"
    sweep, lab = prepare(cluster, tmp_path, data_root, preset | {"max_jobs": 1}, **own)
    with pytest.raises(AssertionError, match=r"Slurm takes 1 more jobs from you \(max_jobs"):
        sweep.submit("--cluster", lab)


@pytest.mark.parametrize(
    ("where", "key", "value", "message"),
    [
        ("preset", "partishun", "main", "unknown sbatch option 'partishun'; did you mean 'partition'"),
        ("file", "qoss", "x", "unknown sbatch option 'qoss'; did you mean 'qos'"),
        ("command line", "reservatoin", "x", "unknown sbatch option 'reservatoin'; did you mean 'reservation'"),
        ("file", "hold", "now", "'now': sbatch refuses it: .*doesn't allow an argument"),
    ],
)
def test_invalid_sbatch_options_are_rejected(
    where: str, key: str, value: str, message: str, cluster: Cluster, tmp_path: Path, data_root: str
) -> None:
    slurm = {"slurm": {key: value}}
    preset = {"resources": slurm if where == "preset" else {}}
    own = SWEEP["resources"] | (slurm if where == "file" else {})
    sweep, lab = prepare(cluster, tmp_path, data_root, preset, resources=own)
    words = [f"resources.slurm.{key}={value}"] if where == "command line" else []
    file = {"preset": "lab.yaml", "file": "preset.yaml", "command line": "command line"}[where]
    with pytest.raises(AssertionError, match=rf"error: \S*{file}(:\d+)?: resources\.slurm\.{key}: {message}"):
        sweep.submit("--cluster", lab, *words)
    assert not sweep.logs.exists()
    assert cluster.run("squeue", "-h").stdout == ""


def test_valid_sbatch_options_that_its_help_does_not_list_are_accepted(
    cluster: Cluster, tmp_path: Path, data_root: str
) -> None:
    options = {"hint": "nomultithread", "exclusive": "user", "no-kill": True, "nice": 5, "hold": True}
    sweep, lab = prepare(cluster, tmp_path, data_root, {"resources": SMALL | {"slurm": options}})
    sweep.submit("--cluster", lab)
    (train,) = sweep.jobs("train")
    assert describe(cluster, train)["Nice"] == "5"
