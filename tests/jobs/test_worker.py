"""The worker: trials side by side in slots, forked from one warm process, each as if it ran alone and cold."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from jobs import processes
from jobs.backends.base import Allocation
from jobs.backends.local import count_slots, share_devices, visible_gpus
from jobs.processes import Task
from jobs.tracking.local_work import read_local_work, write_local_work
from jobs.worker import Worker
from tests import warm
from trainer.config.sweep import load_trials
from trainer.runs.attempt import Attempt
from trainer.runs.directory import RunDirectory
from trainer.runs.placement import create_run_directories

ROOT = Path(__file__).parents[2]
STEPS = 30
SWEEP = {
    "method": "source_only",
    "train": {"steps": STEPS, "batch_size": 8, "log_every": 7, "checkpoint_every": 10},
    "grid": {"train.seed": [0, 1, 2]},
    "resources": {"gpus_per_node": 0},
}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def create(tmp_path: Path, data_root: str) -> Callable[..., list[RunDirectory]]:
    """Create the run directories of the sweep in a folder of a name, with some settings of its own."""

    def create(name: str, **train: Any) -> list[RunDirectory]:
        data = {"source": "mnist5k", "target": "mnistm5k", "root": data_root}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(SWEEP | {"data": data, "train": SWEEP["train"] | train}))  # type: ignore[operator]
        return [RunDirectory(path) for path in create_run_directories(tmp_path / name, load_trials(file, []))]

    return create


@pytest.fixture
def start() -> Callable[..., "subprocess.Popen[str]"]:
    """Start a worker of this machine on tasks."""

    def begin(runs: list[RunDirectory], **settings: Any) -> "subprocess.Popen[str]":
        sweep = runs[0].path.parent
        tasks = [{"stage": "train", "path": str(run.path)} for run in runs]
        worker = warm.Popen(
            [sys.executable, "jobs/worker.py"], cwd=ROOT, env=ENVIRONMENT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert worker.stdin
        worker.stdin.write(json.dumps({"sweep": str(sweep), "tasks": tasks} | settings))
        worker.stdin.close()
        worker.stdin = None
        return worker

    return begin


def finish(worker: "subprocess.Popen[str]", code: int = 0) -> str:
    output, _ = worker.communicate(timeout=120)
    assert worker.returncode == code, output
    return output


def until(condition: Callable[[], Any], worker: "subprocess.Popen[str]") -> Any:
    deadline = time.monotonic() + 120
    while not (value := condition()):
        assert worker.poll() is None, worker.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def results(run: RunDirectory) -> tuple[list[dict[str, Any]], dict[int, bytes]]:
    """Losses by step, and exported weights."""
    lines = [{key: v for key, v in line.items() if key not in ("time", "rate")} for line in run.metrics()]
    return lines, {step: file.read_bytes() for step, file in run.exported_weights().items()}


def train_alone(run: RunDirectory) -> None:
    command = [sys.executable, "trainer/main.py", str(run.path)]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True, timeout=120)


def processes_of(worker: "subprocess.Popen[str]", sweep: Path) -> dict[str, int]:
    """Trial → process of what runs."""
    work = read_local_work(sweep)
    assert work is None or work.pid == worker.pid
    return {trial: pid for pid, (_, trial) in work.tasks.items()} if work else {}


def test_trials_in_slots_are_those_that_ran_alone_and_cold(
    create: Callable[..., list[RunDirectory]], start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    """Stopped and resumed in between, all of them."""
    runs, alone = create("slots"), create("alone")
    for run in alone:
        train_alone(run)
    worker = start(runs, slots=2)
    until(lambda: all(run.metrics() for run in runs[:2]), worker)
    worker.terminate()
    finish(worker, 130)
    assert {run.state() for run in runs[:2]} <= {"stopped", "done"}
    assert runs[2].state() == "pending"
    finish(start(runs, slots=3))
    assert [results(run) for run in runs] == [results(run) for run in alone]
    assert not (runs[0].path.parent / ".worker.json").exists()


def test_a_failed_and_a_killed_trial_leave_the_others_alone(
    create: Callable[..., list[RunDirectory]], start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    failing, killed, whole = create("faults", steps=100000)
    (failing.path / "config.yaml").write_text(failing.config_file.read_text().replace("batch_size: 8", "batch_size: 0"))
    worker = start([failing, killed, whole], slots=2)
    until(lambda: killed.metrics() and whole.metrics(), worker)
    os.kill(processes_of(worker, whole.path.parent)[killed.name], signal.SIGKILL)
    until(lambda: killed.state() == "failed", worker)
    step = whole.status()["step"]
    until(lambda: whole.status()["step"] > step, worker)
    worker.terminate()
    output = finish(worker, 130)
    assert "batch_size" in failing.log_file("train").read_text()
    assert "killed by SIGKILL" in killed.error()
    assert killed.name in output
    assert whole.state() == "stopped"


def test_trials_end_with_their_worker(
    create: Callable[..., list[RunDirectory]], start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    runs = create("orphans", steps=100000)[:2]
    worker = start(runs, slots=2)
    until(lambda: all(run.metrics() for run in runs), worker)
    children = psutil.Process(worker.pid).children()
    assert len(children) == 2
    worker.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert read_local_work(runs[0].path.parent) is None


def test_an_evaluation_follows_its_training(
    create: Callable[..., list[RunDirectory]], start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    runs = create("evaluated")[:2]
    config = runs[0].config_file
    config.write_text(config.read_text().replace("metrics: []", "metrics: [accuracy]"))
    tasks = [{"stage": "train", "path": str(run.path), "evaluate": run is runs[0]} for run in runs]
    finish(start(runs, slots=1, tasks=tasks))
    assert runs[0].evaluation()["step"] == STEPS
    assert not runs[1].evaluation()
    assert "accuracy/target" in runs[0].log_file("eval").read_text()


class Recorder(Worker):
    """A worker whose processes end at once; it records where they started."""

    def start(self, task: Task, slot: int, *_: Any) -> processes.Child:
        with open(task.run.path.parent / "started", "a") as file:
            file.write(f"{task.run.name} {slot}\n")
        return subprocess.Popen(["true"])


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the handlers of signals that a worker in this process replaces; let it kill no child of other tests."""
    monkeypatch.setattr(processes, "kill_orphans", lambda own: None)
    numbers = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGCONT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_slots_take_tasks_in_order(tmp_path: Path) -> None:
    tasks = [Task("report", str(tmp_path / name)) for name in "abcd"]
    failures, unfinished = Recorder(tasks, slots=2).work(Allocation.local())
    assert (failures, unfinished) == ([], [])
    assert [line.split()[0] for line in (tmp_path / "started").read_text().splitlines()] == ["a", "b", "c", "d"]


@pytest.mark.usefixtures("handlers")
def test_one_requeue_for_all_slots(tmp_path: Path) -> None:
    requeued: list[list[str]] = []

    class Busy(Allocation):
        def requeue(self, runs: Any, signal_delay: int, max_requeues: int) -> str:
            requeued.append([run.name for run in runs])
            return "Slurm says no"

    tasks = [Task("eval", str(tmp_path / name)) for name in "abc"]
    for task in tasks:
        task.run.path.mkdir()
        (task.run.path / "done").touch()
    worker = Worker(tasks, slots=2)
    worker.start = lambda *_: subprocess.Popen(["sleep", "60"])  # type: ignore[method-assign]
    worker.signals.append(signal.SIGTERM)
    with pytest.raises(SystemExit, match="Slurm says no"):
        worker(Busy("7", Attempt("7.0")))
    assert requeued == [["a", "b", "c"]]
    assert all("Slurm says no" in task.run.error() for task in tasks)


# Sharing the machine


@pytest.mark.parametrize(
    ("slots", "gpus", "largest", "expected"),
    [
        (2, ["3", "5"], 1, ["3", "5"]),  # one each, by the names that this process was given
        (1, ["3", "5"], 2, ["3,5"]),  # a trial of two processes takes both
        (2, ["4", "5", "6", "7"], 2, ["4,5", "6,7"]),
        (3, ["0", "1"], 1, ["0", "1", "0"]),  # more trials than GPUs, as asked for by --max-parallel
        (2, [], 1, []),
    ],
)
def test_gpus_are_assigned_to_slots(slots: int, gpus: list[str], largest: int, expected: list[str]) -> None:
    assert share_devices(gpus, slots, largest) == expected


def test_slots_are_gpus_or_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr("jobs.backends.local.TRIAL_MEMORY", 1)
    assert [count_slots(0, 1), count_slots(0, 2), count_slots(0, 2 * cores)] == [cores, max(1, cores // 2), 1]
    assert [count_slots(4, 1), count_slots(4, 2), count_slots(1, 2)] == [4, 2, 1]
    monkeypatch.setattr("jobs.backends.local.TRIAL_MEMORY", psutil.virtual_memory().total)
    assert count_slots(0, 1) == 1


@pytest.mark.parametrize(
    ("visible", "expected"), [("", []), ("-1", []), ("0", ["0"]), ("2, 3", ["2", "3"]), ("GPU-ab12", ["GPU-ab12"])]
)
def test_visible_gpus_are_those_that_this_process_was_given(
    visible: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == expected


def test_the_trials_of_a_running_worker_are_known(tmp_path: Path) -> None:
    assert read_local_work(tmp_path) is None
    write_local_work(tmp_path, {12: ("train", "a"), 13: ("eval", "b")})
    work = read_local_work(tmp_path)
    assert work
    assert (work.pid, work.tasks) == (os.getpid(), {12: ("train", "a"), 13: ("eval", "b")})
    record = json.loads((tmp_path / ".worker.json").read_text())
    for change in ({"created": 1.0}, {"host": "elsewhere"}, {"pid": 2**22}):
        (tmp_path / ".worker.json").write_text(json.dumps(record | change))
        assert read_local_work(tmp_path) is None
    write_local_work(tmp_path, {})
    assert list(tmp_path.iterdir()) == []


# Forks, each from a process of its own: that of the tests has threads

PROGRAM = """
import os, sys, time
from jobs.processes import Fork
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
def work():
    print(os.environ["COLOUR"], sys.stdin.read() == "", flush=True)
    {work}
child = Fork(work, {{"COLOUR": "blue"}}, log)
{after}
print(child.wait(), "COLOUR" in os.environ)
"""


def fork(log: Path, work: str, after: str = "") -> tuple[str, str]:
    """Return what the parent printed, and the child's output."""
    program = PROGRAM.format(work=work, after=after)
    result = subprocess.run(
        [sys.executable, "-c", program, str(log)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout, log.read_text()


@pytest.mark.parametrize(
    ("work", "after", "code", "output"),
    [
        ("return 3", "", 3, ""),
        ("sys.exit(2)", "", 2, ""),
        ("raise ValueError('seven')", "", 1, "ValueError: seven"),
        ("time.sleep(60)", "time.sleep(.5); assert child.poll() is None; child.kill()", -9, ""),
        ("os.kill(os.getpid(), 15); return 4", "", 4, ""),  # ignored until the program takes it
    ],
)
def test_a_fork_runs_as_a_program_of_its_own(work: str, after: str, code: int, output: str, tmp_path: Path) -> None:
    printed, written = fork(tmp_path / "log", work, after)
    assert printed == f"{code} False\n"
    assert written.startswith("blue True\n")
    assert output in written


def test_a_process_with_threads_or_cuda_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait, name="prefetch")
    thread.start()
    with pytest.raises(RuntimeError, match="prefetch"):
        processes.check_forkable()
    ended.set()
    thread.join()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA"):
        processes.check_forkable()


def test_imports_start_neither_threads_nor_cuda_nor_what_takes_long() -> None:
    """An evaluation of accuracy needs neither scikit-learn nor scipy.stats, nor a training torch.compile's compiler."""
    program = (
        "import sys, threading, jobs.processes as p; tasks = [p.Task('train', 'a', evaluate=True)] * 2;"
        "assert p.import_for(tasks); p.check_forkable();"
        "import torch; print(torch.cuda.is_initialized(), threading.active_count());"
        "print({'torch._dynamo', 'sklearn', 'scipy.stats'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "False 1\nset()\n"


def test_orphans_are_killed_and_own_children_are_not() -> None:
    with processes.adopt_orphans():
        own = subprocess.Popen(["sleep", "60"])
        parent = subprocess.run(
            ["sh", "-c", "sleep 61 >/dev/null & echo $!"], stdout=subprocess.PIPE, check=True, text=True
        )
        others = {child.pid for child in psutil.Process().children()} - {int(parent.stdout)}
        processes.kill_orphans(others)
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(int(parent.stdout)).status() == psutil.STATUS_ZOMBIE
    assert own.poll() is None
    own.kill()
    own.wait()
