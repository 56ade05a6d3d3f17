"""Record submissions in the sweep's submissions.jsonl, and look up their jobs in Slurm's queue."""

import json
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError


def unavailable() -> str | None:
    """Why there is no Slurm to submit to; None if there is one."""
    if shutil.which("sbatch") is None:
        return "there is no sbatch here"
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol ping: {error}"
    said = (ping.stderr.strip() or ping.stdout.strip() or "scontrol ping is silent").splitlines()
    return None if " UP" in ping.stdout else f"no controller answers: {said[-1]}"


def append(sweep: Path, submission: dict[str, Any]) -> None:
    """Append a submission with the current time to the sweep's submissions.jsonl."""
    with (sweep / "submissions.jsonl").open("a+") as file:
        file.seek(0)
        text = file.read()
        # A full disk may have cut the last line short.
        separator = "\n" if text and not text.endswith("\n") else ""
        file.write(separator + json.dumps({"time": round(time.time(), 3), **submission}) + "\n")


def read(sweep: Path) -> list[dict[str, Any]]:
    """Return all submissions of a sweep, oldest first, without incomplete lines."""
    submissions = []
    with suppress(FileNotFoundError):
        for line in (sweep / "submissions.jsonl").read_text().splitlines():
            with suppress(json.JSONDecodeError):
                submissions.append(json.loads(line))
    return submissions


def trials_by_job(array: dict[str, Any]) -> dict[str, list[str]]:
    """Return job id -> trials for an array of a submission; ids are `<array>_<index>`, or plain if there is one job."""
    trials, each = array["trials"], array.get("each", 1)
    parts = [trials[first : first + each] for first in range(0, len(trials), each)]
    return {array["id"] if len(parts) == 1 else f"{array['id']}_{i}": part for i, part in enumerate(parts)}


def queue(sweep: Path) -> dict[str, str]:
    """Job id -> state of everything that waits or runs on the cluster; ConfigError where the queue does not answer."""
    listing = subprocess.run(
        ["squeue", "-h", "-r", "-o", "%i %T"], capture_output=True, text=True, check=False, timeout=60
    )
    if listing.returncode:
        raise ConfigError(
            f"{sweep}: squeue does not answer: {listing.stderr.strip()}; try again when the controller is back"
        )
    return dict(line.split()[:2] for line in listing.stdout.splitlines())


def queued(sweep: Path, stage: str) -> dict[str, str]:
    """Trial -> `<array>_<index> <state>` of its job of a stage that waits or runs, by squeue and submissions.jsonl."""
    found = [array for line in read(sweep) for array in line.get("arrays", []) if array["stage"] == stage]
    trials = {job: names for array in found for job, names in trials_by_job(array).items()}
    return {name: f"{job} {state}" for job, state in queue(sweep).items() for name in trials.get(job, ())}
