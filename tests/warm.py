"""Start Python programs from a process that has imported torch already: half the time of most of them is that import.

`warm.Popen` and `warm.run` are those of subprocess, and so are the processes: children of this one, with their own pid,
session, environment, working directory, output, signals and exit code. They import the project's own modules again, and
the programs that they start in turn are warm, too. Use subprocess itself in a test that counts imports, that sets what
Python or a library reads when it starts, or that finds processes by their command line.

One server, started with the first program, forks them: the process of the tests has threads, which no fork survives.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil

from jobs.backends.local import kill_tree

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("eval", "jobs", "models", "tests", "trainer", "turnout")  # every program imports these itself
# What programs import at their start, for the libraries behind it.
IMPORTS = (
    *("accelerate", "eval.main", "eval.metrics.accuracy", "eval.report", "jobs.submit", "torch.utils.tensorboard"),
    *("trainer.main", "trainer.session"),
)
SINGLE = {"OMP_NUM_THREADS": "1"}  # read when torch is loaded; more threads could not be forked
MAX_REQUEST = 1 << 20
PR_SET_CHILD_SUBREAPER = 36
Program = Sequence[Any]  # arguments of Python, environment, working directory, whether it gets a session of its own


class Popen(subprocess.Popen[Any]):
    """A subprocess.Popen that forks a Python program from a warm process, where that shows no difference."""

    fork: Callable[..., int] | None = None  # in a warm process: forks from itself

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if not Popen.fork:
            started.append(self)

    def _execute_child(self, *arguments: Any) -> None:
        """Do what the base class does between opening and closing the child's ends of the pipes."""
        options = inspect.signature(subprocess_execute).bind(self, *arguments).arguments
        environment = dict(os.environ if options["env"] is None else options["env"])
        if not can_be_warm(options, environment) or (Popen.fork is None and options["preexec_fn"]):
            subprocess_execute(self, *arguments)
            return
        ends = [options[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        streams = [own if end == -1 else end for own, end in enumerate(ends)]
        directory = os.path.abspath(options["cwd"] or ".")
        program = ([*map(str, options["args"][1:])], environment, directory, bool(options["start_new_session"]))
        if Popen.fork:
            self.pid = Popen.fork(program, streams, options["preexec_fn"])
        else:
            self.pid = server.start(program, streams)
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(options[name] for name in pipes))  # type: ignore[attr-defined]


subprocess_execute = subprocess.Popen._execute_child  # type: ignore[attr-defined]
started: list[Popen] = []  # by the current test


def kill_remaining() -> None:
    """Kill what a test has left running, and close what it has left open: the next test is not to suffer from it."""
    for process in started:
        if process.poll() is None:
            kill_tree(process.pid)
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()
    started.clear()


def run(
    command: Sequence[str], *, check: bool = False, capture_output: bool = False, timeout: float = 300, **options: Any
) -> "subprocess.CompletedProcess[Any]":
    """Run a program to its end, like subprocess.run."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


def can_be_warm(options: dict[str, Any], environment: dict[str, str]) -> bool:
    """Return whether a command is a Python program for this interpreter that a fork of a warm process can run."""
    command, folders = options["args"], environment.get("PYTHONPATH", "").split(os.pathsep)
    if sys.platform != "linux" or options["shell"] or options["pass_fds"] or isinstance(command, str | os.PathLike):
        return False
    is_program = len(command) > 1 and command[0] == sys.executable and str(command[1]).endswith((".py", "-m", "-c"))
    has_hook = any(Path(folder, "sitecustomize.py").exists() for folder in folders)
    # Torchrun has threads when it starts its processes, so none of them is forked.
    is_alone = "TORCHELASTIC_RUN_ID" not in environment and (not Popen.fork or count_threads() == 1)
    return is_program and is_alone and not has_hook and environment.items() >= SINGLE.items()


def count_threads() -> int:
    """Return the threads of this process, those of libraries included."""
    return len(os.listdir("/proc/self/task"))


class Server:
    """The process that forks warm ones for this process; started at the first request, and again if a test kills it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.socket: socket.socket | None = None

    def start(self, program: Program, streams: list[int]) -> int:
        """Start a program with these descriptors as its standard streams; return its process id."""
        with self.lock, adopt():
            connection = self.connect()
            socket.send_fds(connection, [json.dumps(program).encode()], streams)
            answer = connection.recv(20)
        if not answer:
            raise RuntimeError("the server of warm processes has ended; its output says why")
        if psutil.Process(int(answer)).ppid() != os.getpid():  # its exit code would be lost, and read as 0
            raise RuntimeError(f"process {answer.decode()} is no child of the process of the tests")
        return int(answer)

    def connect(self) -> socket.socket:
        """Return the connection to a running server."""
        if self.socket and self.process and self.process.poll() is None:
            return self.socket
        self.stop()
        self.socket, end = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with end:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm", str(end.fileno())], cwd=ROOT, pass_fds=[end.fileno()],
                env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | SINGLE,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        return self.socket

    def stop(self) -> None:
        """End the server, if there is one, but none of its processes."""
        if self.socket and self.process:
            self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()
            self.process.wait(60)
        self.socket = None


server = Server()


@contextlib.contextmanager
def adopt() -> Iterator[None]:
    """Be the parent of a grandchild whose parent ends meanwhile."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


# In the server and its children


def serve(connection: socket.socket, path: list[str]) -> None:
    """Fork a process for every request, until the other end is closed; each becomes a child of who asked for it."""
    while True:
        request, streams, _, _ = socket.recv_fds(connection, MAX_REQUEST, 3)
        if not request:
            return
        receiver, sender = os.pipe()
        between = os.fork()
        if not between:
            parent = os.getpid()
            child = os.fork()
            if child:
                os.write(sender, str(child).encode())
                os._exit(0)
            while os.getppid() == parent:  # until the process of the tests has adopted this one
                time.sleep(0.0005)
            become(json.loads(request), streams, path)
        os.waitpid(between, 0)
        connection.send(os.read(receiver, 20))
        for descriptor in (receiver, sender, *streams):
            os.close(descriptor)


def fork(program: Program, streams: list[int], prepare: Callable[[], None] | None, path: list[str]) -> int:
    """Fork a program from this warm process; return its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if prepare:
            prepare()
        become(program, streams, path)
    return child


def become(program: Program, streams: list[int], path: list[str]) -> NoReturn:
    """Run a program in this process, which has just been forked, as if Python had been started for it.

    `path`: the module search path of Python itself.
    """
    words, environment, directory, new_session = program
    code = 1
    try:
        for number, descriptor in enumerate([os.dup(stream) for stream in streams]):
            os.dup2(descriptor, number)
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor > 2:
                with contextlib.suppress(OSError):  # the one that listed them
                    os.close(descriptor)
        if new_session:
            os.setsid()
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        atexit._clear()
        forget_project()
        Popen.fork = lambda program, streams, prepare: fork(program, streams, prepare, path)
        subprocess.Popen = Popen  # type: ignore[misc]
        sys.path[:] = [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *path]
        code = call(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 (the end of a program, as Python itself would print it)
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def call(words: list[str]) -> int:
    """Run what the arguments of Python name, a file, a module or a program text, as __main__."""
    kind, program = words[:2] if words[0] in ("-m", "-c") else ("", words[0])
    sys.argv = [kind or program, *words[2 if kind else 1 :]]
    sys.path.insert(0, "" if kind == "-c" else os.getcwd() if kind else str(Path(program).resolve().parent))
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(program, {"__name__": "__main__"})  # noqa: S102 (as Python itself does)
    else:
        runpy.run_path(program, run_name="__main__")
    return 0


def forget_project() -> None:
    """Make programs import the project's modules themselves, from the code that they are of."""
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]


def main() -> None:
    """Import the libraries, then serve."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=int(sys.argv[1]))
    for name in IMPORTS:
        importlib.import_module(name)
    forget_project()
    if (threads := count_threads()) > 1:
        sys.exit(f"warm processes cannot be forked from a process with {threads} threads")
    gc.collect()
    gc.freeze()
    serve(connection, sys.path[1:])


if __name__ == "__main__":
    main()
