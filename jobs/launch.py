"""What runs on a node: takes trials one after the other, starts their processes, owns the signals, asks for a requeue.

One instance per node. Slurm signals every process of a job step: the trainers behind torchrun ignore the signals that
this process turns into a stop file, save at a step boundary that all ranks agree on, and leave a marker. Only that
marker, never an exit code, tells a stop from a crash.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from trainer.run import Run, read_json, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED_WITHIN = 300.0  # seconds that a node waits for the head node to publish the rendezvous


class TrialFailed(RuntimeError):
    """A trial ended without having finished or saved; the message is its error."""


@dataclass(frozen=True)
class Allocation:
    """Where this process stands: in a Slurm job, or on a machine of its own."""

    job: str  # <array>_<index> in an array: the raw id of its last element would name the whole array
    attempt: str  # of this job: changes with every requeue, and fences its markers
    nodes: int = 1
    node: int = 0
    slurm: bool = False

    @staticmethod
    def here() -> "Allocation":
        """Read it from the environment."""
        env = os.environ
        if "SLURM_JOB_ID" not in env:
            return Allocation("local", f"local.{os.getpid()}")
        array = env.get("SLURM_ARRAY_JOB_ID")
        job = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"]
        attempt = f"{job}.{env.get('SLURM_RESTART_COUNT', '0')}"
        return Allocation(job, attempt, int(env.get("SLURM_NNODES", "1")), int(env.get("SLURM_NODEID", "0")), True)


@dataclass
class Launch:
    """A job: trains (or evaluates) a list of runs. Picklable, called by submitit on every node, or by `main`."""

    stage: str  # train, eval or report
    runs: list[str]  # run directories; for a report, the sweep's
    processes: int = 1  # per node
    asked: list[int] = field(default_factory=list)  # signals that have come

    def __call__(self) -> None:
        """Work through the list; TrialFailed at the end if any run failed, SystemExit where it was told to stop."""
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.receive)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)  # comes with every signal of Slurm
        allocation = Allocation.here()
        work = {"train": self.train, "eval": self.evaluate, "report": self.report}[self.stage]
        failures = []
        for position, run in enumerate(map(Path, self.runs)):
            try:
                finished = work(run, allocation)
            except TrialFailed as error:
                failures.append(f"{run.name}: {error}")
                continue
            if self.asked and not failures:
                leave(allocation, work_left=not finished or position + 1 < len(self.runs))
        if failures:
            raise TrialFailed("; ".join(failures))

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Only remember the signal."""
        self.asked.append(number)

    def train(self, run: Path, allocation: Allocation) -> bool:
        """Train one run on this node's share of processes; whether it is finished. TrialFailed with the run's error."""
        if (run / "done").exists():
            return True
        command = [str(ROOT / "trainer" / "main.py"), str(run)]
        if allocation.nodes * self.processes > 1:
            command = [*torchrun(run, allocation, self.processes), *command]
        code = self.follow(command, allocation, stop_file=run / f"stop.{allocation.attempt}")
        if allocation.node == 0:
            for published in run.glob(".rendezvous.*"):
                published.unlink(missing_ok=True)
        failed = list(run.glob(f"failed.{allocation.attempt}.*"))
        if failed or not self.left_well(run, allocation, code):
            if not failed:
                cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                error = f"its processes ended without a word ({cause}); see the log"
                marker = run / f"failed.{allocation.attempt}.node{allocation.node}.json"
                write_json(marker, {"error": error, "attempt": allocation.attempt, "time": time.time()})
            raise TrialFailed(Run(run).error())
        return (run / "done").exists()

    def left_well(self, run: Path, allocation: Allocation, code: int) -> bool:
        """Whether the processes of this node ended as they should: done, or saved and stopped."""
        if allocation.node:  # the markers of the head node may reach this one late
            return code == 0
        return (run / "done").exists() or (run / f"stopped.{allocation.attempt}.json").exists()

    def evaluate(self, run: Path, allocation: Allocation) -> bool:
        """Evaluate one run; whether that is finished. TrialFailed if it did not work."""
        code = self.follow([str(ROOT / "eval" / "main.py"), str(run)], allocation, None)
        if code and not self.asked:
            raise TrialFailed(
                str(read_json(run / "eval" / "failed.json").get("error", f"exit code {code}; see the log"))
            )
        return code == 0

    def report(self, sweep: Path, allocation: Allocation) -> bool:
        """Write a sweep's report; whether it was written."""
        code = self.follow([str(ROOT / "eval" / "report.py"), str(sweep)], allocation, None)
        if code and not self.asked:
            raise TrialFailed(f"the report was not written (exit code {code}); see the log")
        return code == 0

    def follow(self, command: list[str], allocation: Allocation, stop_file: Path | None) -> int:
        """Run a Python command to its end, handing on a request to stop; return its exit code."""
        environment = {**os.environ, "TURNOUT_ATTEMPT": allocation.attempt}
        child = subprocess.Popen([sys.executable, *command], env=environment, preexec_fn=ignore_signals)
        told = False
        while child.poll() is None:
            if self.asked and not told:
                # Sticky: also workers that are not up yet will see the file.
                stop_file.touch() if stop_file else child.kill()
                told = True
            time.sleep(0.05)
        if stop_file:
            stop_file.unlink(missing_ok=True)
        return child.returncode


def torchrun(run: Path, allocation: Allocation, processes: int) -> list[str]:
    """The static rendezvous: no store of its own to lose, rank order = node order."""
    address, port = rendezvous(run, allocation)
    return [
        *("-m", "torch.distributed.run", "--nnodes", str(allocation.nodes), "--node-rank", str(allocation.node)),
        *("--nproc-per-node", str(processes), "--rdzv-backend", "static"),
        *("--master-addr", address, "--master-port", str(port)),
        # The agent must survive Slurm's signals: it would kill its workers before they have saved.
        *("--signals-to-handle", "SIGINT"),
    ]


def rendezvous(run: Path, allocation: Allocation) -> tuple[str, int]:
    """Address and port of the head node, which picks a free port and publishes it in the run directory."""
    file = run / f".rendezvous.{allocation.attempt}.{os.environ.get('SLURM_STEP_ID', '0')}.json"
    if allocation.node == 0:
        for old in run.glob(".rendezvous.*"):
            old.unlink(missing_ok=True)
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        write_text(file, json.dumps([head_address() if allocation.nodes > 1 else "127.0.0.1", port]))
    deadline = time.monotonic() + PUBLISHED_WITHIN
    while not file.exists():
        if time.monotonic() > deadline:
            raise TrialFailed(
                f"the head node published no rendezvous in {PUBLISHED_WITHIN:.0f} s; is {run} on a shared disk?"
            )
        time.sleep(0.1)
    address, port = json.loads(file.read_text())
    return address, port


def head_address() -> str:
    """The job's first node: by name where that resolves, else by the address that Slurm itself uses."""
    hosts = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]], capture_output=True, text=True, check=True
    )
    name = hosts.stdout.split()[0]
    try:
        socket.getaddrinfo(name, None)
    except socket.gaierror:
        node = subprocess.run(["scontrol", "show", "node", name, "-o"], capture_output=True, text=True, check=True)
        return next(w.removeprefix("NodeAddr=") for w in node.stdout.split() if w.startswith("NodeAddr="))
    return name


def leave(allocation: Allocation, work_left: bool) -> None:
    """End a job that was told to stop; ask Slurm for another turn if work is left and nobody else has decided."""
    if allocation.slurm and allocation.node == 0 and work_left:
        # After scancel or scontrol requeue the job is COMPLETING: a requeue would revive what was cancelled.
        squeue = ["squeue", "-h", "-t", "all", "-j", allocation.job, "-o", "%T"]
        state = subprocess.run(squeue, capture_output=True, text=True, check=False).stdout.strip()
        print(f"stopped with work left; Slurm says {state or 'nothing'}", flush=True)
        if state == "RUNNING":
            # The signal that the requeue sends may reach scontrol itself: its exit code says nothing.
            subprocess.run(["scontrol", "requeue", allocation.job], check=False, preexec_fn=ignore_signals)
    sys.stdout.flush()
    # No result, no exception: submitit would take either for the end of the job.
    os._exit(0)


def ignore_signals() -> None:
    """Before exec: the child starts deaf, so that a warning during its start-up does not kill it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def main(arguments: list[str]) -> int:
    """`launch.py train|eval PROCESSES RUN…`: how jobs/local.py starts what Slurm would start elsewhere."""
    stage, processes, *runs = arguments
    try:
        Launch(stage, runs, int(processes))()
    except TrialFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
