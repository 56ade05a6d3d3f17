"""Child processes of a worker: programs started cold, or forked from the worker once it has imported what they need.

A fork saves the seconds that each training and evaluation spends on importing torch. What a child gets from the worker
is the imported modules and nothing else: neither CUDA nor a thread may have been started there.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import psutil

from jobs.backends.base import IGNORE_SIGNALS, ignore_signals
from trainer.runs.directory import RunDirectory
from trainer.runs.disk import persist

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {
    "train": "trainer/main.py",
    "eval": "eval/main.py",
    "objective": "eval/objective.py",
    "report": "eval/report.py",
}
# What a stage imports and takes long.
IMPORTS = {
    "train": ("accelerate", "models.base", "trainer.data.batches", "trainer.data.provenance", "trainer.log"),
    "eval": ("accelerate", "eval.runner", "eval.trial", "eval.metrics.accuracy", "eval.figures"),
    "objective": ("accelerate", "eval.runner", "eval.trial", "eval.metrics.accuracy", "eval.figures"),
    "report": (),
}
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl: signal when the parent dies; adopt orphans instead of init


@dataclass(frozen=True)
class Task:
    """One stage of one trial."""

    stage: str  # train, eval, objective or report
    path: str  # run directory; for a report, the sweep's
    processes: int = 1  # per node
    evaluate: bool = False  # whether its evaluation follows in the same worker
    arguments: tuple[str, ...] = ()  # of its program, after the path

    @property
    def run(self) -> RunDirectory:
        """The run directory."""
        return RunDirectory(Path(self.path))


class Child(Protocol):
    """A running child process; both subprocess.Popen and Fork are one."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""

    def kill(self) -> None: ...
    def wait(self) -> int: ...


class Fork:
    """A child process that calls a function, with an output and environment variables of its own."""

    def __init__(self, function: Callable[[], int], variables: dict[str, str], output: int) -> None:
        """Fork; RuntimeError if this process has started CUDA or threads, which a fork does not survive."""
        check_forkable()
        sys.stdout.flush()
        sys.stderr.flush()
        self.code: int | None = None
        worker = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            run_and_exit(function, variables, output, worker)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self) -> int:
        """Wait for the end; return the exit code."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def kill(self) -> None:
        """Send SIGKILL, unless its end was already seen."""
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)


def check_forkable() -> None:
    """Check that this process has started neither CUDA nor threads; RuntimeError."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("the worker has started CUDA, so its children could not use it")
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        raise RuntimeError(f"the worker has threads ({names}), whose locks its children would wait for")


def run_and_exit(function: Callable[[], int], variables: dict[str, str], output: int, worker: int) -> NoReturn:
    """In a forked child: call a function with its output and variables, and exit with what it returns."""
    code = 1
    try:
        tie_to_parent()
        if os.getppid() != worker:  # it was killed before this process was tied to it
            os._exit(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(variables)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = function()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except Exception:  # noqa: BLE001 (the end of a program, as Python itself would print it)
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        # Whatever the worker has registered for its own end is none of the child's.
        os._exit(code)


def start(
    task: Task,
    variables: dict[str, str],
    log: Path | None = None,
    prefix: Sequence[str] = (),
    container: Sequence[str] = (),
) -> Child:
    """Start the program of a task, cold; without a log it writes to this process's own output.

    `prefix`: arguments of Python that start several processes. `container`: command that starts a Python in one.
    """
    python = [sys.executable]
    if container:
        # The container's own start-up may restore signal handlers, and drop the environment or PYTHONPATH.
        inside = [f"{name}={value}" for name, value in (variables | {"PYTHONPATH": str(ROOT)}).items()]
        python = [*container[:-1], *IGNORE_SIGNALS, *inside, container[-1]]
    command = [*python, *prefix, str(ROOT / PROGRAMS[task.stage]), task.path, *task.arguments]
    with open_log(log) as output:
        return subprocess.Popen(
            command, env=os.environ | variables, preexec_fn=tie_to_parent, stdout=output, stderr=output
        )


def fork(task: Task, variables: dict[str, str], log: Path | None = None) -> Child:
    """Fork a child that runs the program of a task; without a log it writes to this process's own output."""
    with open_log(log) as output:
        return Fork(lambda: call(task), variables, output)


def call(task: Task) -> int:
    """Run the program of a task in this process; return its exit code."""
    program = PROGRAMS[task.stage]
    sys.argv = [program, task.path, *task.arguments]
    code: int = importlib.import_module(program.removesuffix(".py").replace("/", ".")).main(sys.argv[1:])
    return code


@contextlib.contextmanager
def open_log(file: Path | None) -> Iterator[int]:
    """Yield the descriptor of a log file to append to; without one, that of this process's output."""
    if file is None:
        yield 1
        return
    with persist(lambda: file.open("ab"), str(file)) as log:
        yield log.fileno()


def import_for(tasks: Sequence[Task]) -> bool:
    """Import what the processes of tasks need, if that saves imports; return whether they can be forked from now on."""
    single = [task.stage for task in tasks if task.processes == 1] + ["eval" for task in tasks if task.evaluate]
    if len(single) < 2:
        return False
    for name in sorted({name for stage in single for name in IMPORTS[stage]}):
        importlib.import_module(name)
    gc.freeze()  # a collection in a child would otherwise write to, and so copy, the memory that all of them share
    return True


def tie_to_parent() -> None:
    """Prepare a child: it ignores signals to stop, and is killed when the worker is."""
    ignore_signals()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@contextlib.contextmanager
def adopt_orphans() -> Iterator[None]:
    """Make this process, instead of init, the parent of what its descendants leave behind; see `kill_orphans`."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else lambda *_: None
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def kill_orphans(own: set[int]) -> None:
    """Kill every child of this process but its `own`: workers of a killed torchrun would continue training."""
    if sys.platform != "linux":
        return
    this = psutil.Process()
    while orphans := {child.pid for child in this.children()} - own:
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # whatever it saved is complete
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
