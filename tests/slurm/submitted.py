"""A sweep as its user sees it on a cluster: a YAML, `jobs/submit.py`, run directories and jobs."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from safetensors.numpy import load_file

from tests.slurm.cluster import Cluster
from tests.slurm.steps import RECORDER
from trainer.config.sweep import load_trials
from trainer.runs.directory import RunDirectory

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds: what is tested is that something happens, not how busy the machine is
STEPS = 240
DANN: dict[str, Any] = {
    "method": "dann",
    "data": {"source": "mnist5k", "target": "mnistm5k"},
    "train": {"steps": STEPS, "batch_size": 8, "log_every": 1, "checkpoint_every": 50},
    "resources": {"gpus_per_node": 0, "cpus_per_gpu": 1, "mem_gb": 1, "time": "00:10:00"},
}


class Submitted:
    """One sweep on one cluster; `content` is its YAML."""

    def __init__(self, cluster: Cluster, folder: Path, data_root: str, content: dict[str, Any]) -> None:
        self.cluster, self.file, self.logs = cluster, folder / f"{content['name']}.yaml", folder / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        self.file.write_text(yaml.safe_dump(content))
        self.checkout = ROOT
        self.folder: Path = self.logs / content["name"]
        self.environment = cluster.environment | {"OMP_NUM_THREADS": "1", "TURNOUT_DATA": data_root, "COLUMNS": "200"}
        # Every process of every job says, step by step, what it does.
        self.steps = folder / "steps"
        path = [str(RECORDER), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment |= {"TURNOUT_TEST_STEPS": str(self.steps), "PYTHONPATH": os.pathsep.join(path)}

    def submit(self, *words: str) -> str:
        """Run the real command and return what it printed."""
        done = subprocess.run(
            [sys.executable, "jobs/submit.py", str(self.file), "--cluster", "slurm", "--runs", str(self.logs), *words],
            cwd=self.checkout, env=self.environment, timeout=60,
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submissions(self) -> list[dict[str, Any]]:
        """The lines of submissions.jsonl."""
        return [json.loads(line) for line in (self.folder / "submissions.jsonl").read_text().splitlines()]

    def jobs(self, stage: str) -> list[str]:
        """Ids of all jobs of a stage, elements of arrays as `<array>_<index>`, in the order of submission."""
        arrays = [array for line in self.submissions() for array in line["arrays"] if array["stage"] == stage]
        return [job for a in arrays for job in elements(a["id"], len(a["trials"]))]

    def runs(self) -> list[RunDirectory]:
        """The run directories, in the order of the trials."""
        return [RunDirectory(self.folder / trial.name) for trial in load_trials(self.file, [])]

    def state(self, job: str) -> str:
        """What Slurm says of a job or element."""
        return self.cluster.job_states(job).get(job, "")

    def wait_for(self, job: str, *states: str, timeout: float = PATIENCE) -> None:
        """Wait until Slurm says that a job is in one of `states`."""
        what = f"job {job} to be {' or '.join(states)}"
        try:
            self.cluster.wait(lambda: self.state(job) in states, timeout, what)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.output()}") from None

    def output(self, characters: int = 1500) -> str:
        """The ends of what the jobs printed."""
        logs = sorted((self.folder / "slurm").glob("*/*log.*"))
        return "\n".join(f"---- {log.name}\n{log.read_text()[-characters:]}" for log in logs)


def restarts(cluster: Cluster, job: str) -> int:
    """How often Slurm has requeued a job."""
    said = cluster.run("scontrol", "show", "job", job, "-o").stdout
    return int(re.findall(r" Restarts=(\d+)", said)[0])


def elements(job: str, count: int) -> list[str]:
    """Ids of the elements of an array; a lone job is none."""
    return [job] if count == 1 else [f"{job}_{i}" for i in range(count)]


def workers(run: Path) -> list[int]:
    """Pids of the trainers of a run, without torchrun's agents."""
    return [pid for pid, words in commands() if words[1:2] != ["-m"] and words[-1] == str(run) and trains(words)]


def agents(run: Path, *, node: int | None = None) -> list[int]:
    """Pids of the torchrun agents of a run, on one node or on all."""
    found = {pid: w for pid, w in commands() if w[1:3] == ["-m", "torch.distributed.run"] and w[-1] == str(run)}
    return [pid for pid, w in found.items() if node is None or w[w.index("--node-rank") + 1] == str(node)]


def evaluators(run: Path) -> list[int]:
    """Pids of the evaluations of a run."""
    return [pid for pid, words in commands() if words[-1] == str(run) and words[-2].endswith("eval/main.py")]


def launchers(sweep: Path) -> list[int]:
    """Pids of what Slurm has started for a sweep."""
    start = ["-u", "-m", "submitit.core._submit"]  # srun has these words too, but further back
    return [pid for pid, words in commands() if words[1:4] == start and words[-1].startswith(str(sweep))]


def parent(pid: int) -> int:
    """The pid of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    """The pids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def trains(words: list[str]) -> bool:
    return any(word.endswith("trainer/main.py") for word in words)


def commands() -> Iterator[tuple[int, list[str]]]:
    """Pid and command line of every process."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text(errors="replace").split("\0")[:-1]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if len(words) > 1:
            yield int(process.name), words


def weights(run: Path, steps: int = STEPS) -> dict[str, bytes]:
    """Name -> bytes of everything that a finished run exported."""
    return {name: array.tobytes() for name, array in load_file(run / f"weights/step-{steps:06d}.safetensors").items()}


def losses(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in ("time", "rate")} for line in RunDirectory(run).metrics()]


def undisturbed(folder: Path, data_root: str, content: dict[str, Any], processes: int, *overrides: str) -> Path:
    """Train one trial on this machine and return its run directory."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{content['name']}.yaml"
    file.write_text(yaml.safe_dump(content))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*(torchrun if processes > 1 else []), "trainer/main.py", str(file), *overrides, "--runs", str(folder)]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "TURNOUT_DATA": data_root}, timeout=PATIENCE,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (path.parent for path in (folder / content["name"]).glob("*/done"))
    return run


def send(pids: list[int], number: signal.Signals) -> None:
    """Signal processes that may have ended meanwhile."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def command(sweep: Submitted, program: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run jobs/<program>.py on a sweep's directory, as its user would."""
    return subprocess.run(
        [sys.executable, f"jobs/{program}.py", str(sweep.folder), *words],
        cwd=ROOT, env=sweep.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
