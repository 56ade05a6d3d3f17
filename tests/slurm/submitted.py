"""Helpers for tests of sweeps on a cluster: submit a YAML file, wait for its jobs, find and signal processes."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from safetensors.numpy import load_file

from tests.slurm.cluster import Cluster
from tests.slurm.steps import RECORDER
from trainer.config.sweep import load_trials
from trainer.runs.directory import RunDirectory

ROOT = Path(__file__).parents[2]
TIMEOUT = 300.0  # seconds; long, because a busy machine must not fail a test
STEPS = 240
DANN: dict[str, Any] = {
    "method": "dann",
    "data": {"source": "mnist5k", "target": "mnistm5k"},
    "train": {"steps": STEPS, "batch_size": 8, "log_every": 1, "checkpoint_every": 50},
    "resources": {"gpus_per_node": 0, "cpus_per_gpu": 1, "mem_gb": 1, "time": "00:10:00"},
}


class Submitted:
    """One sweep on one cluster, with `content` as its YAML file."""

    def __init__(self, cluster: Cluster, folder: Path, data_root: str, content: dict[str, Any]) -> None:
        self.cluster, self.file, self.logs = cluster, folder / f"{content['name']}.yaml", folder / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        self.file.write_text(yaml.safe_dump(content))
        self.checkout = ROOT
        self.folder: Path = self.logs / content["name"]
        self.environment = cluster.environment | {"OMP_NUM_THREADS": "1", "TURNOUT_DATA": data_root, "COLUMNS": "200"}
        # Every process of every job records each of its steps.
        self.steps = folder / "steps"
        path = [str(RECORDER), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment |= {"TURNOUT_TEST_STEPS": str(self.steps), "PYTHONPATH": os.pathsep.join(path)}

    def submit(self, *words: str) -> str:
        """Run jobs/submit.py and return its output."""
        done = subprocess.run(
            [sys.executable, "jobs/submit.py", str(self.file), "--cluster", "slurm", "--runs", str(self.logs), *words],
            cwd=self.checkout, env=self.environment, timeout=TIMEOUT,
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submissions(self) -> list[dict[str, Any]]:
        """Return the lines of submissions.jsonl."""
        return [json.loads(line) for line in (self.folder / "submissions.jsonl").read_text().splitlines()]

    def jobs(self, stage: str) -> list[str]:
        """Return the ids of all jobs of a stage in the order of submission, array elements as `<array>_<index>`."""
        arrays = [array for line in self.submissions() for array in line["arrays"] if array["stage"] == stage]
        return [job for a in arrays for job in elements(a["id"], len(a["trials"]))]

    def runs(self) -> list[RunDirectory]:
        """Return the run directories in the order of the trials."""
        return [RunDirectory(self.folder / trial.name) for trial in load_trials(self.file, [])]

    def state(self, job: str) -> str:
        """Return Slurm's state of a job or array element."""
        return self.cluster.job_states(job).get(job, "")

    def wait_for(self, job: str, *states: str, timeout: float = TIMEOUT) -> None:
        """Wait until Slurm reports a job in one of `states`."""
        try:
            self.cluster.wait(lambda: self.state(job) in states, timeout, f"job {job} to be {' or '.join(states)}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.output()}") from None

    def output(self, characters: int = 1500) -> str:
        """Return the last characters of each job's log files."""
        logs = sorted((self.folder / "slurm").glob("*/*log.*"))
        return "\n".join(f"---- {log.name}\n{log.read_text()[-characters:]}" for log in logs)


def restarts(cluster: Cluster, job: str) -> int:
    """Return how often Slurm has requeued a job."""
    output = cluster.run("scontrol", "show", "job", job, "-o").stdout
    return int(re.findall(r" Restarts=(\d+)", output)[0])


def elements(job: str, count: int) -> list[str]:
    """Return the ids of the elements of an array; a single job has the plain id."""
    return [job] if count == 1 else [f"{job}_{i}" for i in range(count)]


def workers(run: Path) -> list[int]:
    """Return the pids of the processes that train a trial, without torchrun's agents."""
    return [pid for pid, words in commands() if words[-1] == str(run) and trains(words) and not is_agent(words)]


def agents(run: Path, *, node: int | None = None) -> list[int]:
    """Return the pids of the torchrun agents of a trial, on one node or on all."""
    return [
        pid
        for pid, words in commands()
        if is_agent(words) and words[-1] == str(run)
        if node is None or words[words.index("--node-rank") + 1] == str(node)
    ]


def evaluators(run: Path) -> list[int]:
    """Return the pids of the evaluations of a trial."""
    return [pid for pid, words in commands() if words[-1] == str(run) and words[-2].endswith("eval/main.py")]


def launchers(sweep: Path) -> list[int]:
    """Return the pids of the launchers that Slurm has started for a sweep."""
    start = ["-u", "-m", "submitit.core._submit"]  # srun has these words, too, but later in its command line
    return [pid for pid, words in commands() if words[1:4] == start and words[-1].startswith(str(sweep))]


def sruns(sweep: Path) -> list[int]:
    """Return the pid of the srun that each running batch script of a sweep has started."""
    pids = [pid for pid, words in commands() if words[0] == "srun" and any(str(sweep) in word for word in words)]
    with suppress(psutil.NoSuchProcess):
        return sorted(pid for pid in pids if parent(pid) not in pids)  # srun has a child of its own name
    return []


def parent(pid: int) -> int:
    """Return the pid of a process's parent."""
    return psutil.Process(pid).ppid()


def children(pid: int) -> list[int]:
    """Return the pids of a process's children; psutil's own would miss some when the clock is adjusted."""
    return [process.pid for process in psutil.process_iter(["ppid"]) if process.info["ppid"] == pid]


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def is_agent(words: list[str]) -> bool:
    return words[1].endswith("jobs/agent.py")


def trains(words: list[str]) -> bool:
    return any(word.endswith("trainer/main.py") for word in words)


def commands() -> Iterator[tuple[int, list[str]]]:
    """Yield pid and command line of every process."""
    for process in psutil.process_iter(["cmdline"]):
        words: list[str] = process.info["cmdline"] or []  # None for a process that has ended
        if len(words) > 1:
            yield process.pid, words


def weights(run: Path, steps: int = STEPS) -> dict[str, bytes]:
    """Return tensor name → bytes of the exported weights of a finished trial."""
    return {name: array.tobytes() for name, array in load_file(run / f"weights/step-{steps:06d}.safetensors").items()}


def losses(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without the fields that depend on the clock."""
    return [{k: v for k, v in line.items() if k not in ("time", "rate")} for line in RunDirectory(run).metrics()]


def train_uninterrupted(folder: Path, data_root: str, content: dict[str, Any], processes: int, *overrides: str) -> Path:
    """Train one trial on this machine without interruption and return its run directory."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{content['name']}.yaml"
    file.write_text(yaml.safe_dump(content))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*(torchrun if processes > 1 else []), "trainer/main.py", str(file), *overrides, "--runs", str(folder)]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "TURNOUT_DATA": data_root}, timeout=TIMEOUT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (path.parent for path in (folder / content["name"]).glob("*/done"))
    return run


def train_seeds(folder: Path, data_root: str, content: dict[str, Any], seeds: Iterable[int]) -> dict[int, Path]:
    """Train a trial on this machine with each seed, in one process; return seed → run directory."""
    file, words, results = folder / f"{content['name']}.yaml", folder / "arguments", folder / "results"
    file.write_text(yaml.safe_dump(content))
    lines = [[str(file), f"train.seed={seed}", "--runs", str(folder)] for seed in seeds]
    words.write_text("\n".join(map(json.dumps, lines)))
    done = subprocess.run(
        [sys.executable, "tests/launched.py", str(words), str(results)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "TURNOUT_DATA": data_root}, timeout=TIMEOUT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(json.loads(line)[0] == 0 for line in results.read_text().splitlines()), results.read_text()
    names = {seed: load_trials(file, [f"train.seed={seed}"])[0].name for seed in seeds}
    return {seed: folder / content["name"] / name for seed, name in names.items()}


def send(pids: list[int], number: signal.Signals) -> None:
    """Signal processes; it is no error that some have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def command(sweep: Submitted, program: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run jobs/<program>.py on a sweep's directory."""
    return subprocess.run(
        [sys.executable, f"jobs/{program}.py", str(sweep.folder), *words],
        cwd=ROOT, env=sweep.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
