"""The pool of this machine: trials side by side, GPUs shared out, one evaluation beside them."""

import os
import signal
import time
from pathlib import Path

import pytest

from jobs.backends.local import Pool, Task, visible_gpus
from trainer.config.sweep import load_trials
from trainer.runs.directory import RunDirectory
from trainer.runs.placement import create_run_directories


@pytest.fixture
def runs(tmp_path: Path, data_root: str) -> list[RunDirectory]:
    file = tmp_path / "pool.yaml"
    file.write_text(
        "method: source_only\n"
        f"data: {{source: mnist5k, target: mnistm5k, root: {data_root}}}\n"
        "train: {steps: 100000, batch_size: 8}\n"
        "grid: {train.seed: [0, 1, 2]}\n"
    )
    return [RunDirectory(path) for path in create_run_directories(tmp_path / "pool", load_trials(file, []))]


def pool(runs: list[RunDirectory], parallel: int, gpus: list[str], processes: int = 1) -> Pool:
    return Pool(
        to_train=list(runs),
        to_evaluate=[],
        evaluate_after=set(),
        processes={run.name: processes for run in runs},
        parallel=parallel,
        gpus=gpus,
    )


def environment(task: Task) -> dict[str, str]:
    """What a process was started with."""
    deadline = time.monotonic() + 30
    while b"TURNOUT" not in (raw := Path(f"/proc/{task.process.pid}/environ").read_bytes()) and b"OMP" not in raw:
        assert time.monotonic() < deadline
    return dict(entry.split("=", 1) for entry in raw.decode().split("\0") if "=" in entry)


def end(active: Pool) -> None:
    """Tell all to stop and wait for them."""
    active.receive(signal.SIGINT, None)
    for task in active.tasks:
        task.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 60
    while active.step():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("parallel", "gpus", "processes", "expected"),
    [
        (2, ["3", "5"], 1, ["3", "5"]),  # one each, by the names that this process was given
        (1, ["3", "5"], 2, ["3,5"]),  # a trial of two processes takes both
        (3, ["0", "1"], 1, ["0", "1", "0"]),  # more trials than GPUs, as asked for by --max-parallel
    ],
)
def test_gpus_are_shared_out(
    runs: list[RunDirectory], parallel: int, gpus: list[str], processes: int, expected: list[str]
) -> None:
    active = pool(runs, parallel, gpus, processes)
    try:
        assert active.step()
        assert len(active.tasks) == parallel
        assert [environment(task)["CUDA_VISIBLE_DEVICES"] for task in active.tasks] == expected
    finally:
        end(active)


def test_cores_are_shared_out_and_one_is_left(runs: list[RunDirectory], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    active = pool(runs, 2, [])
    try:
        active.step()
        cores = len(os.sched_getaffinity(0))
        assert {environment(task)["OMP_NUM_THREADS"] for task in active.tasks} == {str(max(1, (cores - 1) // 2))}
    finally:
        end(active)


@pytest.mark.parametrize(
    ("visible", "expected"), [("", []), ("0", ["0"]), ("2, 3", ["2", "3"]), ("GPU-ab12", ["GPU-ab12"])]
)
def test_visible_gpus_are_those_that_this_process_was_given(
    visible: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == expected
