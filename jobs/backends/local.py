"""This machine as a backend: one worker, whose progress is shown, and Ctrl-C that saves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.live import Live

from jobs.backends.base import ActiveJob, Job, Plan
from jobs.snapshot import import_environment
from jobs.tracking.local_work import read_local_work
from jobs.tracking.table import render_local, summarize_progress
from trainer.config.document import Settings
from trainer.config.resolve import load_config
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.runs import submissions
from trainer.runs.directory import find_runs

SUMMARY_INTERVAL = 15.0  # seconds between two lines of progress without a terminal
TRIAL_MEMORY = 2 << 30  # bytes that a small trial on the CPU may need
WORKER_LOG = "worker.log"  # in the sweep's directory
STOPPED = 130  # exit code of a worker that was asked to stop


@dataclass(frozen=True)
class LocalBackend:
    """This machine alone. Its jobs are the processes that a worker has started."""

    parallel: int | None = None  # trials at a time; default: one per GPU, or per core
    console: Console = field(default_factory=Console)
    name: str = "local"

    def unavailable(self) -> str | None:
        """Return None: this machine is always there."""
        return None

    def check(self, settings: Settings, config: Config) -> None:
        """Accept all resources: a trial uses what there is."""

    def scripts(self, sweep: Path, plans: Sequence[Plan], code: Path) -> Iterator[str]:
        """Return no scripts."""
        return iter(())

    def submit(self, sweep: Path, plans: Sequence[Plan], code: Path, notes: dict[str, Any]) -> dict[str, Any]:
        """Train and evaluate to the end, or until Ctrl-C; return the record with whether it `completed`.

        ConfigError if a worker is at work on the sweep.
        """
        refuse_second_worker(sweep)
        to_train = [run for plan in plans for run in plan.train]
        to_evaluate = [run for plan in plans for run in plan.evaluate_now]
        record = {"trials": [run.name for run in to_train], "evaluate": [run.name for run in to_evaluate]}
        submissions.append(sweep, {"cluster": self.name, **record, **notes})
        gpus, after = visible_gpus(), {run.path for plan in plans for run in plan.evaluate_after}
        tasks: list[dict[str, Any]] = [
            {
                "stage": "train",
                "path": str(run.path),
                "processes": count_processes(load_config(run.config_file), gpus),
                "evaluate": run.path in after,
            }
            for run in to_train
        ]
        tasks += [{"stage": "eval", "path": str(run.path)} for run in to_evaluate]
        largest = max((task.get("processes", 1) for task in tasks), default=1)
        shared = len(gpus) * max((plan.resources.trials_per_gpu for plan in plans), default=1)
        slots = min(self.parallel or count_slots(shared, largest), max(1, len(tasks)))
        mps = plans[0].resources.mps if plans else ""
        work = {"tasks": tasks, "slots": slots, "devices": share_devices(gpus, slots, largest), "mps": mps}
        return {**record, "completed": self.run_worker(sweep, work, code)}

    def search(self, sweep: Path, config: Config, settings: int, code: Path, notes: dict[str, Any]) -> bool:
        """Search until the study of a sweep is complete, or Ctrl-C; return whether it is complete.

        `config`: of the trials, as far as it is not searched; `settings`: how many are to be tried. ConfigError if a
        worker is at work on the sweep.
        """
        refuse_second_worker(sweep)
        submissions.append(sweep, {"cluster": self.name, **notes})
        gpus = visible_gpus()
        processes = count_processes(config, gpus)
        slots = min(self.parallel or count_slots(len(gpus) * config.resources.trials_per_gpu, processes), settings)
        work = {"tasks": [], "search": str(sweep), "search_processes": processes, "slots": slots}
        work |= {"devices": share_devices(gpus, slots, processes), "mps": config.resources.mps}
        return self.run_worker(sweep, work, code)

    def run_worker(self, sweep: Path, work: dict[str, Any], code: Path) -> bool:
        """Run a worker of some fields to its end, with progress; return whether it was not stopped."""
        if len({*work["devices"]}) == len(work["devices"]):  # no GPU is shared
            work["mps"] = ""
        with (sweep / WORKER_LOG).open("ab") as log:
            # In a session of its own, so that Ctrl-C reaches only this process.
            worker = subprocess.Popen(
                [sys.executable, str(code / "jobs" / "worker.py")],
                env=import_environment(code), stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            if worker.stdin:
                worker.stdin.write(json.dumps({"sweep": str(sweep), **work}).encode())
                worker.stdin.close()
            return self.follow(worker, sweep)
        finally:
            if worker.poll() is None:  # only after an error in this process itself
                worker.terminate()

    def follow(self, worker: "subprocess.Popen[bytes]", sweep: Path) -> bool:
        """Show the progress of a worker until it ends; Ctrl-C lets every trial save. Return whether it did all."""
        # A counter, not an exception: a second Ctrl-C means more than the first.
        interrupts: list[int] = []
        numbers = (signal.SIGINT, signal.SIGTERM)
        handlers = {number: signal.signal(number, lambda number, _: interrupts.append(number)) for number in numbers}
        handled, next_look = 0, 0.0
        try:
            with Live(console=self.console, auto_refresh=False, transient=True) as live:
                while worker.poll() is None:
                    started = time.monotonic()
                    if started > next_look and self.console.is_terminal:
                        live.update(render_local(find_runs(sweep)), refresh=True)
                        next_look = time.monotonic() + max(0.5, 20 * (time.monotonic() - started))
                    elif started > next_look:
                        if next_look:
                            self.console.print(summarize_progress(find_runs(sweep)), highlight=False)
                        next_look = started + SUMMARY_INTERVAL
                    while handled < len(interrupts):  # a second one may come while the first is handled
                        self.stop(worker, first=not handled)
                        handled += 1
                    time.sleep(0.1)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if worker.returncode not in (0, STOPPED) and not interrupts:
            cause = f"killed by {signal.Signals(-worker.returncode).name}" if worker.returncode < 0 else "failed"
            raise ConfigError(
                f"{sweep}: its worker was {cause}; see {sweep / WORKER_LOG}; run the same command to resume"
            )
        return worker.returncode == 0 and not interrupts

    def stop(self, worker: "subprocess.Popen[bytes]", first: bool) -> None:
        """Let every trial save and exit at its next step; after a second Ctrl-C kill them at once."""
        message = "stopping: every trial saves at its next step" if first else "killing every trial now"
        self.console.print(message, highlight=False)
        if first:
            worker.terminate()
        else:
            kill_tree(worker.pid)

    def jobs(self, sweep: Path) -> tuple[dict[str, list[Job]], list[str]]:
        """Return nothing: the run directories tell all of trials on this machine."""
        return {}, []

    def active(self, sweep: Path) -> list[ActiveJob]:
        """Return what a worker runs of a sweep; the ids are process ids."""
        work = read_local_work(sweep)
        tasks = work.tasks if work else {}
        return [ActiveJob(str(pid), stage, "RUNNING", (trial,)) for pid, (stage, trial) in tasks.items()]

    def cancel(self, jobs: Sequence[ActiveJob], whole: bool) -> None:
        """Ask trainings to save and stop, and end evaluations; with `whole` the worker, which then starts no others."""
        signalled: set[psutil.Process] = set()
        for job in jobs:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(job.id))
                # Not torchrun itself, which would kill its processes before they have saved.
                targets = {process.parent() or process} if whole else {*process.children()} or {process}
                for target in targets - signalled:
                    target.send_signal(signal.SIGTERM if whole or job.stage == "train" else signal.SIGKILL)
                signalled |= targets


def refuse_second_worker(sweep: Path) -> None:
    """Check that no worker of this machine is at work on a sweep; ConfigError."""
    if active := read_local_work(sweep):
        raise ConfigError(
            f"{sweep}: the worker of an earlier command (process {active.pid}) still runs its trials; wait for it, "
            f"or stop it with jobs/cancel.py {sweep}, then run this command again"
        )


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants, also those that left its session, as torchrun's workers do."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in (*process.children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                member.kill()


def count_slots(gpus: int, processes: int) -> int:
    """Return how many trials of some processes each run at a time by default: one per GPU, or per core with memory.

    `gpus`: their number, times the trials that share each.
    """
    if gpus:
        return max(1, gpus // processes)
    room = psutil.virtual_memory().available // (processes * TRIAL_MEMORY)
    return max(1, min(len(os.sched_getaffinity(0)) // processes, room))


def share_devices(gpus: list[str], slots: int, processes: int) -> list[str]:
    """Return CUDA_VISIBLE_DEVICES of each slot, whose trials have up to some processes; [] without GPUs."""
    each = min(processes, len(gpus))
    parts = [[gpus[(slot * processes + i) % len(gpus)] for i in range(each)] for slot in range(slots if gpus else 0)]
    return [",".join(part) for part in parts]


def visible_gpus() -> list[str]:
    """Return the devices that this process may use, as CUDA_VISIBLE_DEVICES names them, by asking nvidia-smi."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        devices = [device.strip() for device in visible.split(",")]
        return [device for device in devices if device and not device.startswith("-")]  # -1: none
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i in range(listing.stdout.count("GPU "))] if listing.returncode == 0 else []


def count_processes(config: Config, gpus: list[str]) -> int:
    """Return the processes of a training: as configured, but at most one per GPU, and a divisor of the batch."""
    if config.resources.processes_per_node:
        return config.resources.processes_per_node
    most = max(1, min(config.resources.gpus_per_node, len(gpus)))
    return next(n for n in range(most, 0, -1) if config.train.batch_size % (n * config.train.micro_batches) == 0)
