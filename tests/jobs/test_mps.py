"""MPS for the trials that share a GPU, with a stand-in for NVIDIA's program."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs import mps
from jobs.backends.local import LocalBackend
from jobs.backends.slurm.arrays import Array
from jobs.backends.slurm.presets import Preset
from jobs.backends.slurm.sbatch import create_worker
from trainer.config.schema import Resources
from trainer.runs.directory import RunDirectory

CPUS = {"trials_per_gpu": 2, "gpus_per_node": 0}
NEVER = {"trials_per_gpu": 2, "mps": "no"}

# In the foreground it makes its pipe and waits; asked to quit, it ends that process.
CONTROL = """#!/bin/sh
if [ "$1" = -f ]; then
    {start}
    echo $$ > "$CUDA_MPS_LOG_DIRECTORY/pid"; echo "${{CUDA_VISIBLE_DEVICES-none}}" > "{folder}/devices"
    touch "$CUDA_MPS_PIPE_DIRECTORY/control"; exec sleep 60
fi
read word; echo "$word" >> "{folder}/words"; kill -9 $(cat "$CUDA_MPS_LOG_DIRECTORY/pid")
"""


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a control program that works, first on the PATH; temporary files are there as well."""
    program = tmp_path / mps.CONTROL
    program.write_text(CONTROL.format(folder=tmp_path, start=""))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(mps, "PROBE", "import os; assert os.environ['CUDA_VISIBLE_DEVICES'] == '5'")
    return program


def nothing_is_left(folder: Path) -> bool:
    return not [*folder.glob("turnout-mps-*")] and not {*mps.DIRECTORIES} & {*os.environ}


@pytest.mark.parametrize("mode", ["auto", "yes"])
def test_mps_serves_what_is_started_inside_and_ends(
    mode: str, control: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = control.parent
    with mps.share_gpu(mode, 2, "5", False) as pid:
        pipes = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
        assert pipes.parent.parent == folder
        assert (pipes / "control").exists()
        assert psutil.Process(pid).ppid() == os.getpid()
    assert not psutil.pid_exists(pid)
    assert ((folder / "words").read_text(), (folder / "devices").read_text()) == ("quit\n", "none\n")
    assert nothing_is_left(folder)
    assert capsys.readouterr().err == "2 trials at a time share the GPU through MPS\n"


@pytest.mark.parametrize("fault", ["missing", "does not start", "does not serve", "container", "no"])
def test_without_mps_the_gpu_is_shared_by_time_slicing(
    fault: str, control: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if fault == "missing":
        monkeypatch.setenv("PATH", "/nowhere")
    elif fault == "does not start":
        control.write_text(CONTROL.format(folder=control.parent, start="exit 7"))
    elif fault == "does not serve":
        monkeypatch.setattr(mps, "PROBE", "raise SystemExit(37)")
    reasons = {
        "missing": "not on the PATH",
        "does not start": "(exit code 7)",
        "does not serve": "(CUDA error 37)",
        "container": "in a container",
        "no": "resources.mps: no",
    }
    with mps.share_gpu("no" if fault == "no" else "auto", 4, "5", fault == "container") as pid:
        assert pid == 0
    message = capsys.readouterr().err
    assert "by time slicing" in message
    assert reasons[fault] in message
    assert nothing_is_left(control.parent)
    if fault != "no":
        with pytest.raises(SystemExit, match="set auto or no"), mps.share_gpu("yes", 4, "5", fault == "container"):
            pass
        assert nothing_is_left(control.parent)


@pytest.mark.parametrize(("resources", "mode"), [({}, ""), ({"trials_per_gpu": 2}, "auto"), (CPUS, ""), (NEVER, "no")])
def test_jobs_in_which_trials_share_a_gpu_ask_for_mps(resources: dict[str, Any], mode: str, tmp_path: Path) -> None:
    array = Array("train", Resources(**resources), [RunDirectory(tmp_path)])
    worker = create_worker(array, array.runs, Preset()).worker
    assert worker.mps == mode  # type: ignore[attr-defined]


@pytest.mark.parametrize(("devices", "mode"), [([], ""), (["0", "1"], ""), (["0", "1", "0"], "yes")])
def test_a_worker_of_this_machine_asks_for_mps_where_a_gpu_is_shared(
    devices: list[str], mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalBackend, "follow", lambda self, worker, sweep: bool(worker.wait()))
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "worker.py").write_text("import sys; open('work', 'w').write(sys.stdin.read())")
    monkeypatch.chdir(tmp_path)
    LocalBackend().run_worker(tmp_path, {"devices": devices, "mps": "yes"}, tmp_path)
    assert json.loads((tmp_path / "work").read_text())["mps"] == mode
