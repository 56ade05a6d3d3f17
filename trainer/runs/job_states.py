"""The state of every trial as the backend last reported it: `<sweep>/jobs.json`.

Commands that query a backend write it for the report: only the backend knows why a trial exited without a marker.
"""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.runs.atomic import read_json, write_json


@dataclass(frozen=True)
class JobState:
    """The state of a trial at the time when the backend was queried."""

    state: str  # as jobs/status.py shows it
    reason: str  # why it is in that state
    time: float  # seconds since the epoch


def write_job_states(sweep: Path, states: dict[str, tuple[str, str]]) -> None:
    """Write trial → (state, reason) with the current time; ignore a failing write, the report works without it."""
    trials = {trial: asdict(JobState(*state, round(time.time(), 3))) for trial, state in states.items()}
    with suppress(OSError):
        write_json(sweep / "jobs.json", trials)


def read_job_states(sweep: Path) -> dict[str, JobState]:
    """Return trial → the state last reported; {} if no backend was queried or the file is damaged."""
    states = {}
    for trial, content in read_json(sweep / "jobs.json").items():
        with suppress(TypeError):
            states[trial] = JobState(**content)
    return states
