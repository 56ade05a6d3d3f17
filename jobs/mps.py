"""NVIDIA's Multi-Process Service (MPS): kernels of the trials that share a GPU run at the same time, not in turns.

Each worker starts its own, in its own directory, and stops it: those of other jobs and users are left alone.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jobs.processes import tie_to_parent
from trainer.runs.disk import say

CONTROL = "nvidia-cuda-mps-control"
DIRECTORIES = {"CUDA_MPS_PIPE_DIRECTORY": "pipe", "CUDA_MPS_LOG_DIRECTORY": "log"}
TIMEOUT = 30.0  # seconds for MPS to start, to serve a first process, and to end
QUIET: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
# Exits with 0 if a process gets a context on its first GPU.
PROBE = """
import ctypes, sys
cuda, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
sys.exit(min(255, cuda.cuInit(0) or cuda.cuCtxCreate_v2(ctypes.byref(context), 0, 0)))
"""


class MpsUnavailable(RuntimeError):
    """MPS cannot be used here; the message says why."""


@contextmanager
def share_gpu(mode: str, slots: int, device: str, is_container: bool) -> Iterator[int]:
    """Let what is started inside share GPUs through MPS, and say whether it does; yield its process id, or 0.

    `mode`: auto, yes (SystemExit where MPS is unavailable), no, or empty if none do. `device`: CUDA_VISIBLE_DEVICES of
    a slot, if that is not the worker's own.
    """
    if not mode:
        yield 0
        return
    folder = Path(tempfile.mkdtemp(prefix="turnout-mps-"))  # a short path: the names of sockets are limited
    control, way = None, "by time slicing, as resources.mps: no asks"
    try:
        if mode != "no":
            try:
                control, way = start(folder, device, is_container), "through MPS"
            except MpsUnavailable as error:
                if mode == "yes":
                    sys.exit(f"error: resources.mps: 'yes': {error}; set auto or no to share GPUs by time slicing")
                way = f"by time slicing, without MPS: {error}"
        say(f"{slots} trials at a time share the GPU {way}")
        yield control.pid if control else 0
    finally:
        if control:
            stop(control)
        shutil.rmtree(folder, ignore_errors=True)


def start(folder: Path, device: str, is_container: bool) -> "subprocess.Popen[bytes]":
    """Start MPS, try it, and set the environment for its clients; MpsUnavailable."""
    if is_container:
        raise MpsUnavailable("trials run in a container")
    if shutil.which(CONTROL) is None:
        raise MpsUnavailable(f"{CONTROL} is not on the PATH")
    directories = {name: str(folder / part) for name, part in DIRECTORIES.items()}
    for directory in directories.values():
        Path(directory).mkdir()
    # It would give the GPUs that it sees numbers of its own, by which its clients would not find theirs.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | directories
    try:
        # In the foreground: as a daemon it would be an orphan, which workers kill. It ignores signals to stop, so that
        # it serves the trials while they save.
        control = subprocess.Popen([CONTROL, "-f"], env=environment, preexec_fn=tie_to_parent, **QUIET)
    except OSError as error:
        raise MpsUnavailable(f"{CONTROL} did not start ({error.strerror})") from None
    os.environ.update(directories)
    deadline = time.monotonic() + TIMEOUT
    while not (folder / "pipe" / "control").exists():
        if control.poll() is not None or time.monotonic() > deadline:
            stop(control)
            raise MpsUnavailable(f"{CONTROL} did not start (exit code {control.returncode})")
        time.sleep(0.05)
    if problem := probe(device):
        stop(control)
        raise MpsUnavailable(f"a process cannot use the GPU through it ({problem})")
    return control


def probe(device: str) -> str:
    """Return why a process cannot use the GPU; empty if it can."""
    visible = {"CUDA_VISIBLE_DEVICES": device} if device else {}
    try:
        command = [sys.executable, "-c", PROBE]
        code = subprocess.run(command, env=os.environ | visible, timeout=TIMEOUT, check=False, **QUIET).returncode
    except subprocess.TimeoutExpired:
        return f"no answer in {TIMEOUT:.0f} s"
    return f"CUDA error {code}" if code else ""


def stop(control: "subprocess.Popen[bytes]") -> None:
    """End MPS with its servers, and remove what clients would find it by."""
    with suppress(OSError, subprocess.TimeoutExpired):
        if control.poll() is None:
            subprocess.run([CONTROL], input=b"quit\n", timeout=TIMEOUT, check=False, stdout=subprocess.DEVNULL)
            control.wait(TIMEOUT)
    control.kill()
    control.wait()
    for name in DIRECTORIES:
        os.environ.pop(name, None)
