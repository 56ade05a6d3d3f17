"""The worker and the lock of a run, without Slurm; what needs one is in tests/slurm."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from jobs.backends.base import Allocation
from jobs.backends.slurm.client import parse_time_left
from jobs.rendezvous import rendezvous
from tests import warm
from trainer.config.sweep import load_trials
from trainer.runs import checkpoints
from trainer.runs.attempt import DIRECT, Attempt
from trainer.runs.directory import RunDirectory
from trainer.runs.lock import Lock, Superseded, competitor, is_superseded, take
from trainer.runs.placement import create_run_directories

ROOT = Path(__file__).parents[2]
STEPS = 60


def start(*command: str, **environment: str) -> "subprocess.Popen[str]":
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return warm.Popen(
        [sys.executable, *command], cwd=ROOT, env=env, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def start_worker(run: Path, processes: int, stage: str = "train", **environment: str) -> "subprocess.Popen[str]":
    """The worker of this machine on one stage of a trial."""
    worker = start("jobs/worker.py", **environment)
    assert worker.stdin
    task = {"stage": stage, "path": str(run), "processes": processes}
    worker.stdin.write(json.dumps({"sweep": str(run.parent), "tasks": [task]}))
    worker.stdin.close()
    worker.stdin = None
    return worker


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code, said
    return said


def group(run: Path, attempt: str) -> "subprocess.Popen[str]":
    """Two processes that train a run as an attempt of a job."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return start(*torchrun, "trainer/main.py", str(run), TURNOUT_ATTEMPT=attempt)


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def until(look: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not look():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def new_run(folder: Path, data_root: str, steps: int = STEPS) -> Path:
    folder.mkdir()
    file = folder / "one.yaml"
    file.write_text(
        f"method: dann\ndata: {{source: mnist5k, target: mnistm5k, root: {data_root}}}\n"
        f"train: {{steps: {steps}, batch_size: 8, log_every: 1, checkpoint_every: 10}}\n"
        "resources: {gpus_per_node: 0}\n"
    )
    return create_run_directories(folder / "one", load_trials(file, []))[0]


def losses(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k not in ("time", "rate")} for line in RunDirectory(run).metrics()]


def content(run: Path) -> dict[Path, bytes]:
    """All files, less those of TensorBoard, which a writer cannot take back."""
    return {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and "tensorboard" not in file.parts}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data_root: str) -> Path:
    """A run that one attempt of two processes has trained."""
    run = new_run(tmp_path_factory.mktemp("runs") / "whole", data_root)
    finish(group(run, "6.0"))
    return run


@pytest.mark.parametrize("peer", ["awake", "gone"])
def test_an_attempt_from_a_lost_node_exits_without_changing_the_run(
    peer: str, whole: Path, tmp_path: Path, data_root: str
) -> None:
    """It stood still with the lock in its hands while the next attempt did the work; then it wakes up.

    Where its peer does not answer, it waits for that one in vain, and must leave all the same.
    """
    run = new_run(tmp_path / "lost", data_root)
    lost = group(run, "7.0")
    until(lambda: len(losses(run)) > 12, lost)
    held = children(lost.pid)
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    assert RunDirectory(run).status()["attempt"] == "7.0"
    assert "done at step" in finish(group(run, "7.1"))
    after = content(run)
    os.kill(held[0], signal.SIGCONT)
    if peer == "gone":
        until(lambda: held[0] not in children(lost.pid), lost)
    os.kill(held[1], signal.SIGCONT)
    said, _ = lost.communicate(timeout=60)
    assert "a newer attempt has taken over; 7.0 exits" in said
    assert content(run) == after
    weights = f"weights/step-{STEPS:06d}.safetensors"
    assert (run / weights).read_bytes() == (whole / weights).read_bytes()
    assert losses(run) == losses(whole)


SUCCESSOR = """
import os, subprocess, sys
from trainer import main, session

def take_lock(*arguments, original=session.take_lock):
    command = [sys.executable, "trainer/main.py", sys.argv[1]]
    subprocess.run(command, env=os.environ | {"TURNOUT_ATTEMPT": "7.0"}, check=True)
    return original(*arguments)

session.take_lock = take_lock
sys.exit(main.main(sys.argv[1:]))
"""


def test_a_trial_that_ends_while_the_next_attempt_starts_is_not_trained_again(tmp_path: Path, data_root: str) -> None:
    """The lost attempt ends, and removes its checkpoints, after the next one has looked, before it has the lock."""
    run = RunDirectory(new_run(tmp_path / "ended", data_root))
    output = finish(start("-c", SUCCESSOR, str(run.path), TURNOUT_ATTEMPT="7.1"))
    assert output.count("done at step 60") == output.count("already done") == 1
    assert checkpoints.steps(run) == []
    assert [line["step"] for line in losses(run.path)] == [*range(1, STEPS + 1)]
    assert run.state() == "done"
    assert run.status()["attempt"] == json.loads((run.path / "done").read_text())["attempt"] == "7.0"


def writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "a").write_text(text)

    return write


@pytest.fixture
def hold() -> Iterator[Callable[[Path, str], Lock]]:
    """Take a run and let it go when the test ends."""
    with contextlib.ExitStack() as held:

        def taken(run: Path, attempt: str) -> Lock:
            lock = take(RunDirectory(run), Attempt(attempt))
            assert lock
            held.callback(lock.close)
            return lock

        yield taken


def test_a_superseded_attempt_publishes_no_checkpoint(tmp_path: Path, hold: Callable[[Path, str], Lock]) -> None:
    lock = hold(tmp_path, "7.0")
    checkpoints.save(RunDirectory(tmp_path), 1, "cafe0123", writer("1"), lock.check)

    def overtaken(folder: Path) -> None:
        writer("2")(folder)
        hold(tmp_path, "7.1")
        checkpoints.save(RunDirectory(tmp_path), 2, "cafe0123", writer("new"))

    with pytest.raises(Superseded, match=r"7\.1 has taken over from 7\.0"):
        checkpoints.save(RunDirectory(tmp_path), 2, "cafe0123", overtaken, lock.check)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000001", "step-000002"]
    assert (tmp_path / "checkpoints" / "step-000002" / "a").read_text() == "new"


def test_only_a_newer_attempt_of_the_same_job_takes_over(tmp_path: Path, hold: Callable[[Path, str], Lock]) -> None:
    run, lock = RunDirectory(tmp_path), hold(tmp_path, "7_1.2")
    for attempt in ("7_1.1", "7_1.2", "7_10.3", "8.3", "direct", "local-3"):
        assert take(RunDirectory(tmp_path), Attempt(attempt)) is None
    others = {name: competitor(run, Attempt(name)) for name in ("7_1.3", "8.0", "direct")}
    assert others == {"7_1.3": "", "8.0": "7_1.2", "direct": "7_1.2"}
    assert is_superseded(run, Attempt("7_1.1"))
    assert not is_superseded(run, Attempt("7_1.2"))
    newest = hold(tmp_path, "7_1.10")
    newest.check()
    with pytest.raises(Superseded):
        lock.check()
    lock.close()
    assert take(RunDirectory(tmp_path), Attempt("8.0")) is None, "the old file's lock is not that of the new one"
    newest.close()
    assert competitor(run, Attempt("8.0")) == ""
    hold(tmp_path, "8.0")
    assert not DIRECT.supersedes(DIRECT)
    assert not Attempt("local-4").supersedes(Attempt("local-3"))


def test_a_trial_that_another_job_trains_is_not_touched(tmp_path: Path, data_root: str) -> None:
    run = new_run(tmp_path / "busy", data_root, steps=100000)
    other = start("trainer/main.py", str(run), TURNOUT_ATTEMPT="7.0")
    until(lambda: losses(run), other)
    assert "already being trained by 7.0" in finish(start_worker(run, 1))
    # Gloo's threads may abort Python's shutdown, so no process of a group goes through it: here it always aborts.
    abort = 'import atexit, os\n"RANK" in os.environ and atexit.register(os.abort)\n'
    (tmp_path / "sitecustomize.py").write_text(abort)
    assert "already being trained by 7.0" in finish(start_worker(run, 2, PYTHONPATH=str(tmp_path)))
    assert not list(run.glob("failed.*"))
    other.terminate()
    assert "stopped at step" in finish(other)
    assert RunDirectory(run).state() == "stopped"


def test_workers_end_with_their_torchrun(tmp_path: Path, data_root: str) -> None:
    """Nobody would tell them to stop any more, and they would train what has failed, and what is started again."""
    run = new_run(tmp_path / "orphans", data_root, steps=100000)
    worker = start_worker(run, 2)
    until(lambda: losses(run), worker)
    (torchrun,) = children(worker.pid)
    held = children(torchrun)
    assert len(held) == 2
    os.kill(torchrun, signal.SIGKILL)
    assert "killed by SIGKILL" in finish(worker)
    assert not any(Path(f"/proc/{pid}").exists() for pid in held)
    assert (RunDirectory(run).state(), "killed by SIGKILL" in RunDirectory(run).error()) == ("failed", True)


def test_a_local_worker_inside_a_slurm_job_does_not_use_that_job(tmp_path: Path, data_root: str) -> None:
    """Somebody's interactive job of two nodes: it is neither spread over them nor requeued."""
    run = new_run(tmp_path / "inside", data_root, steps=100000)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("squeue", "scontrol"):
        (tools / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\necho RUNNING 10:00\n")
        (tools / name).chmod(0o755)
    environment = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "PATH": f"{tools}:{os.environ['PATH']}"}
    worker = start_worker(run, 1, **environment)
    until(lambda: losses(run), worker)
    worker.terminate()
    finish(worker, code=130)
    (marker,) = run.glob("stopped.*")
    assert json.loads(marker.read_text())["attempt"].startswith("local-")
    assert not (tmp_path / "asked").exists()


def test_workers_of_one_node_never_share_a_rendezvous(tmp_path: Path) -> None:
    with contextlib.ExitStack() as all_at_once:
        places = []
        for job in range(200):
            run = tmp_path / str(job)
            run.mkdir()
            places.append(
                all_at_once.enter_context(rendezvous(RunDirectory(run), Allocation(str(job), Attempt(f"{job}.0"))))
            )
        assert len(set(places)) == 200
        # Torchrun can listen there all the same, and nobody beside it.
        address, port = places[0]
        store = TCPStore(address, port, 1, is_master=True, timeout=timedelta(seconds=10))
        store.set("key", "value")
        with pytest.raises(RuntimeError, match="EADDRINUSE"):
            TCPStore(address, port, 1, is_master=True, timeout=timedelta(seconds=10))


@pytest.mark.parametrize(
    ("clock", "expected"),
    [("0:45", 45), ("9:58", 598), ("1:02:03", 3723), ("2-00:00:01", 172801), ("UNLIMITED", float("inf"))]
    + [(word, float("inf")) for word in ("INVALID", "NOT_SET", "")],
)
def test_times_of_squeue_are_parsed(clock: str, expected: float) -> None:
    assert parse_time_left(clock) == expected
