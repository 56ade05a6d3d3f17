"""The interface of a backend, where jobs run: what submit, status and cancel need, and what a job knows of itself."""

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainer.config.document import Settings
from trainer.config.schema import Config, Resources
from trainer.runs.attempt import Attempt
from trainer.runs.directory import RunDirectory

# Starts a program that ignores the signals, as `ignore_signals` does.
IGNORE_SIGNALS = ("env", "--ignore-signal=USR2", "--ignore-signal=TERM")


def ignore_signals() -> None:
    """Ignore SIGUSR2 and SIGTERM in a child before exec, so that a signal during its start-up does not kill it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@dataclass(frozen=True)
class Plan:
    """Trials to start that share their resources."""

    resources: Resources
    train: list[RunDirectory]
    evaluate_after: list[RunDirectory]  # of `train`: evaluated as each one ends; either all of them or none
    evaluate_now: list[RunDirectory]  # trained before
    evaluation: Resources | None = None  # of the evaluations, if they need other ones
    is_search: bool = False  # whether `train` are names of slots that ask the study of the sweep for trials

    def stage_resources(self, stage: str) -> Resources:
        """Return the resources of a stage; the report has those of the evaluations."""
        return self.resources if stage == "train" else self.evaluation or self.resources


class Job(Protocol):
    """One job of a trial, with all of its attempts."""

    @property
    def id(self) -> str: ...
    @property
    def stage(self) -> str:
        """Return train or eval."""

    @property
    def state(self) -> str:
        """Return the backend's own word for its state; empty if the backend does not know it any more."""

    @property
    def nodes(self) -> str: ...
    @property
    def attempt(self) -> str:
        """Return the newest attempt, as run directories name it."""

    @property
    def is_queued(self) -> bool:
        """Return whether it waits for its first or another attempt."""

    @property
    def is_running(self) -> bool:
        """Return whether its processes may be alive."""

    @property
    def is_shared(self) -> bool:
        """Return whether it runs several trials, each of which may have to wait for its turn."""

    @property
    def phase(self) -> str:
        """Return what a running job does instead of computing, such as completing; '' if it computes."""

    @property
    def pending_reason(self) -> str:
        """Return why a queued job waits, in the backend's word."""

    @property
    def end(self) -> str:
        """Return how its newest attempt ended: failed, out of memory, time limit, …; '' if well or not yet."""

    @property
    def former_ends(self) -> tuple[str, ...]:
        """Return how each earlier attempt ended, oldest first."""

    def describe_end(self) -> str:
        """Return `end` with what is known of it, such as `killed by SIGKILL` or `cancelled by <user>`."""


@dataclass(frozen=True)
class ActiveJob:
    """A job that waits or runs now, of which only the state is known."""

    id: str
    stage: str  # train, eval or report
    state: str  # the backend's own word
    trials: tuple[str, ...]  # none for a report
    is_queued: bool = False
    nodes: str = ""
    phase: str = ""
    end: str = ""
    former_ends: tuple[str, ...] = ()

    @property
    def is_running(self) -> bool:
        """Return whether its processes may be alive."""
        return not self.is_queued

    @property
    def is_shared(self) -> bool:
        """Return whether it runs several trials."""
        return len(self.trials) > 1

    @property
    def attempt(self) -> str:
        """Return its first attempt."""
        return f"{self.id}.0"

    @property
    def pending_reason(self) -> str:
        """Return its state: the reason is not known."""
        return self.state

    def describe_end(self) -> str:
        """Return nothing: it has not ended."""
        return ""


class Backend(Protocol):
    """A place where jobs run. Methods raise ConfigError with the backend's reason and the remedy."""

    @property
    def name(self) -> str: ...

    def unavailable(self) -> str | None:
        """Return why it cannot take jobs here; None if it can."""

    def check(self, settings: Settings, config: Config) -> None:
        """Refuse resources of a trial that it does not have."""

    def scripts(self, sweep: Path, plans: Sequence[Plan], code: Path) -> Iterator[str]:
        """Yield the job scripts that `submit` would use, with placeholders for ids."""

    def submit(self, sweep: Path, plans: Sequence[Plan], code: Path, notes: dict[str, Any]) -> dict[str, Any]:
        """Queue all jobs of the plans, or none; record and return the submission."""

    def jobs(self, sweep: Path) -> tuple[dict[str, list[Job]], list[str]]:
        """Return trial → its jobs, oldest first, and notes on what could not be queried."""

    def active(self, sweep: Path) -> list[ActiveJob]:
        """Return the jobs of a sweep that wait or run."""

    def cancel(self, jobs: Sequence[ActiveJob], whole: bool) -> None:
        """Cancel jobs so that trainings save first; `whole`: what started them must not start further ones."""


@dataclass(frozen=True)
class Allocation:
    """What a worker runs on: this machine, or the nodes of a job."""

    job: str
    attempt: Attempt  # of the job; its number grows with every requeue
    nodes: int = 1
    node: int = 0
    step: str = "0"  # tells apart workers that run side by side in one attempt
    offline: bool = False  # whether its processes must not look for a network

    @staticmethod
    def local() -> "Allocation":
        """Return this machine alone, even inside somebody's job."""
        return Allocation("local", Attempt(f"local-{os.getpid()}"))

    def node_name(self) -> str:
        """Return the name of this node."""
        return socket.gethostname()

    def first_address(self) -> str:
        """Return the address of the first node."""
        return "127.0.0.1"

    def record_statuses(self, sweep: Path) -> None:
        """Write what the backend knows of a sweep's trials to its directory, for the report."""

    def requeue(self, runs: Sequence[RunDirectory], signal_delay: int, max_requeues: int) -> str:
        """Ask for another attempt after a stop; return why there will be none, '' if there will or none is due."""
        return ""
