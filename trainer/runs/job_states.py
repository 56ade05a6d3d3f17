"""What a backend knows of the trials of a sweep, kept in its directory for the report: `<sweep>/jobs.json`.

The commands that ask a backend write the file. The report reads it: only a backend knows why a trial exited without a
marker.
"""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.runs.atomic import read_json, write_json


@dataclass(frozen=True)
class JobState:
    """The state of a trial when the backend was asked."""

    state: str  # as jobs/status.py shows it
    reason: str  # explains the state
    time: float  # seconds since the epoch


def write_job_states(sweep: Path, states: dict[str, tuple[str, str]]) -> None:
    """Write trial → (state, reason), as of now; a disk that refuses is ignored, since the report works without it."""
    trials = {trial: asdict(JobState(*state, round(time.time(), 3))) for trial, state in states.items()}
    with suppress(OSError):
        write_json(sweep / "jobs.json", trials)


def read_job_states(sweep: Path) -> dict[str, JobState]:
    """Return the newest states of trials; {} if no backend was asked or the file is damaged."""
    states = {}
    for trial, content in read_json(sweep / "jobs.json").items():
        with suppress(TypeError):
            states[trial] = JobState(**content)
    return states
