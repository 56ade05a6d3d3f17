"""A disk that is full for some seconds does not end a training, and nothing is missing afterwards."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import warm
from tests.disks import fill, small_disk
from trainer.runs.directory import RunDirectory

ROOT = Path(__file__).parents[2]
CONTENT: dict[str, Any] = {
    "name": "tiny",
    "method": "source_only",
    "data": {"source": "mnist5k", "target": "mnistm5k"},
    "train": {"steps": 200, "batch_size": 8, "log_every": 1, "checkpoint_every": 100},
}


def start(folder: Path, data_root: str) -> "subprocess.Popen[str]":
    """Start the training of CONTENT with run directories below `folder`, and a log beside it."""
    folder.mkdir(exist_ok=True)
    file = folder.parent / "tiny.yaml"
    file.write_text(yaml.safe_dump(CONTENT))
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        return warm.Popen(
            [sys.executable, "trainer/main.py", str(file), "--runs", str(folder)],
            cwd=ROOT, stdout=log, stderr=log, text=True,
            env=os.environ | {"TURNOUT_DATA": data_root, "TURNOUT_DISK_TIMEOUT": "120"},
        )  # fmt: skip


def wait_for(text: str, log: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 300
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def lines(run: RunDirectory) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("time", "rate")} for line in run.metrics()]


def scalars(run: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    """Those of TensorBoard that do not depend on the clock or on the allocator."""
    events = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"]) - {"speed/steps_per_second", "speed/memory_gib"}
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def test_a_training_waits_for_a_full_disk_and_loses_nothing(tmp_path: Path, data_root: str) -> None:
    process = start(tmp_path / "plain", data_root)
    assert process.wait(timeout=300) == 0, (tmp_path / "plain.log").read_text()
    disk, log = tmp_path / "small", tmp_path / "small.log"
    with small_disk(disk, 16):
        process = start(disk, data_root)
        try:
            wait_for("step 5/", log, process)
            filler = fill(disk, 0)
            # Until the checkpoint of step 100, metrics.jsonl grows by more than the page that it begins in.
            wait_for("training continues without writing its status", log, process)
            wait_for("No space left on device; trying again", log, process)
            filler.unlink()
            assert process.wait(timeout=300) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
        (plain,), (small,) = (
            [RunDirectory(path.parent) for path in folder.glob("*/*/done")] for folder in (tmp_path / "plain", disk)
        )
        assert lines(small) == lines(plain)
        assert len(lines(small)) == 200
        assert scalars(small) == scalars(plain)
        weights = [run.exported_weights()[200].read_bytes() for run in (plain, small)]
        assert weights[0] == weights[1]
        assert "status is written again, after" in log.read_text()
        assert "Traceback (most recent call last)" not in log.read_text()


def test_a_disk_that_stays_full_ends_the_training_with_one_line(
    tmp_path: Path, data_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, log = tmp_path / "small", tmp_path / "small.log"
    with small_disk(disk, 16):
        process = start(disk, data_root)
        wait_for("step 5/", log, process)
        process.kill()
        process.wait()
        fill(disk, 0)
        monkeypatch.setenv("TURNOUT_DISK_TIMEOUT", "1")
        (run,) = [path.parent for path in disk.glob("*/*/config.yaml")]
        done = warm.run(
            [sys.executable, "trainer/main.py", str(run)],
            cwd=ROOT, env=os.environ | {"TURNOUT_DATA": data_root}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == os.EX_IOERR
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "No space left on device" in error
    assert str(run) in error
    assert "Traceback" not in done.stderr
