"""jobs/cancel.py on this machine: what runs saves and stops, what waits does not start. On Slurm: tests/slurm/."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import yaml

from jobs.tracking.local_work import read_local_work
from tests import warm
from trainer.runs.directory import RunDirectory, find_runs

ROOT = Path(__file__).parents[2]
SWEEP = {
    "name": "long",
    "method": "source_only",
    "data": {"source": "mnist5k", "target": "mnistm5k"},
    "train": {"steps": 10**6, "batch_size": 8, "log_every": 100},
    "grid": {"train.seed": [0, 1, 2]},
}


@pytest.fixture
def start(tmp_path: Path, data_root: str) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start a program of the checkout; what is left of it after the test is killed."""
    started = []

    def begin(*words: str) -> "subprocess.Popen[str]":
        process = warm.Popen(
            [sys.executable, *words], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "TURNOUT_DATA": data_root},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def wait_for(condition: Callable[[], Any], process: "subprocess.Popen[str]") -> None:
    deadline = monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert monotonic() < deadline
        sleep(0.05)


def trains(run: RunDirectory) -> bool:
    return run.state() == "running" and run.status()["step"] > 0


def test_trials_of_this_machine_save_and_stop(tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"]) -> None:
    """One of a sweep, upon which the next begins; then all that is left of it, with one that was started by hand."""

    def cancel(*words: str) -> "subprocess.CompletedProcess[str]":
        said = start("jobs/cancel.py", str(tmp_path / "long"), *words)
        output, _ = said.communicate(timeout=120)
        return subprocess.CompletedProcess(said.args, said.returncode, output)

    file = tmp_path / "long.yaml"
    file.write_text(yaml.safe_dump(SWEEP))
    words = (str(file), "--runs", str(tmp_path))
    submission = start("jobs/submit.py", *words, "--cluster", "local", "--max-parallel", "1")
    wait_for(lambda: find_runs(tmp_path / "long") and trains(find_runs(tmp_path / "long")[0]), submission)
    first, second, third = find_runs(tmp_path / "long")

    said = cancel("seed=0")
    assert said.returncode == 0, said.stdout
    assert f"{first.name}: saved at step {first.status()['step']}\n" in said.stdout
    assert first.state() == "stopped"

    by_hand = start("trainer/main.py", str(third.path))
    wait_for(lambda: trains(second), submission)
    wait_for(lambda: trains(third), by_hand)
    refused = cancel()
    assert refused.returncode == 2
    assert "2 train" in refused.stdout
    assert "--yes" in refused.stdout
    assert (second.state(), third.state()) == ("running", "running")

    said = cancel("--yes")
    assert said.returncode == 0, said.stdout
    assert [run.state() for run in (first, second, third)] == ["stopped"] * 3
    output, _ = submission.communicate(timeout=60)
    assert submission.returncode == 130, output
    assert by_hand.wait(60) == 0
    assert read_local_work(tmp_path / "long") is None
    assert "nothing to cancel" in cancel("--yes").stdout


def test_a_worker_outlives_its_command_and_keeps_the_next_one_out(
    tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    """The command was killed; what it had started goes on, and can be cancelled."""
    file = tmp_path / "long.yaml"
    file.write_text(yaml.safe_dump(SWEEP))
    words = (str(file), "--runs", str(tmp_path), "--cluster", "local", "--max-parallel", "1")
    submission = start("jobs/submit.py", *words)
    wait_for(lambda: find_runs(tmp_path / "long") and trains(find_runs(tmp_path / "long")[0]), submission)
    submission.kill()
    work = read_local_work(tmp_path / "long")
    assert work
    again = start("jobs/submit.py", *words)
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 2, output
    assert f"the worker of an earlier command (process {work.pid}) still runs its trials" in output
    said = start("jobs/cancel.py", str(tmp_path / "long"), "--yes")
    output, _ = said.communicate(timeout=120)
    assert said.returncode == 0, output
    assert [run.state() for run in find_runs(tmp_path / "long")] == ["stopped", "pending", "pending"]
    assert read_local_work(tmp_path / "long") is None
