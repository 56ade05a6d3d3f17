"""The record of what was submitted: submissions.jsonl in the sweep's directory."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.runs.atomic import read_json, write_json

UNFINISHED = ".submission.json"  # in the sweep's directory: the submission of a command that has not ended yet


def write_unfinished(sweep: Path, submission: dict[str, Any]) -> None:
    """Record what a command is about to submit, so that its jobs are known if it is killed meanwhile."""
    submission.setdefault("time", round(time.time(), 3))
    write_json(sweep / UNFINISHED, submission)


def is_unfinished(sweep: Path) -> bool:
    """Return whether a command is submitting jobs of a sweep, or was killed while it did."""
    return (sweep / UNFINISHED).exists()


def finish(sweep: Path, submission: dict[str, Any] | None) -> None:
    """Append a submission, which `read` has returned as unfinished until now; None or one without jobs is dropped."""
    times = [line.get("time") for line in read_lines(sweep)]
    if submission and submission["arrays"] and submission["time"] not in times:
        append(sweep, submission)
    (sweep / UNFINISHED).unlink(missing_ok=True)


def append(sweep: Path, submission: dict[str, Any]) -> None:
    """Append a submission with the current time to the sweep's submissions.jsonl."""
    with (sweep / "submissions.jsonl").open("a+") as file:
        file.seek(0)
        text = file.read()
        # A full disk may have cut the last line short.
        separator = "\n" if text and not text.endswith("\n") else ""
        file.write(separator + json.dumps({"time": round(time.time(), 3), **submission}) + "\n")


def read(sweep: Path) -> list[dict[str, Any]]:
    """Return all submissions of a sweep, oldest first.

    In an unfinished one, which is the last, an array whose `id` is empty may or may not have been accepted.
    """
    submissions, unfinished = read_lines(sweep), read_json(sweep / UNFINISHED)
    # A command that was killed at its very end has left both.
    if unfinished and unfinished["time"] not in [line.get("time") for line in submissions]:
        submissions.append(unfinished)
    return submissions


def read_lines(sweep: Path) -> list[dict[str, Any]]:
    """Return the complete lines of submissions.jsonl, oldest first."""
    submissions = []
    with suppress(FileNotFoundError):
        for line in (sweep / "submissions.jsonl").read_text().splitlines():
            with suppress(json.JSONDecodeError):
                submissions.append(json.loads(line))
    return submissions


def trials_by_job(array: dict[str, Any]) -> dict[str, list[str]]:
    """Return job id -> trials for an array of a submission; ids are `<array>_<index>`, or plain if there is one job."""
    trials, each = array["trials"] if array["id"] else [], array.get("each", 1)
    parts = [trials[first : first + each] for first in range(0, len(trials), each)]
    return {array["id"] if len(parts) == 1 else f"{array['id']}_{i}": part for i, part in enumerate(parts)}


def newest_jobs(sweep: Path) -> dict[str, dict[str, str]]:
    """Return trial → stage → id of the newest job that a backend was given for it."""
    jobs: dict[str, dict[str, str]] = {}
    for submission in read(sweep):
        for array in submission.get("arrays", []):
            for job, trials in trials_by_job(array).items():
                for trial in trials:
                    jobs.setdefault(trial, {})[array["stage"]] = job
    return jobs
