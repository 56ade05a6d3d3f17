"""Where the slots of a worker get their tasks from: a list, or the study of a search."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from jobs.processes import Task
from trainer.runs.attempt import Attempt
from trainer.runs.directory import RunDirectory


class Source(Protocol):
    """What a worker asks for tasks, and tells how each one ended."""

    def kinds(self) -> Sequence[Task]:
        """Return tasks of each kind that it will give and that may be forked: what they import is imported first."""

    def take(self) -> Task | None:
        """Return the next task for a free slot; None if there is none now."""

    def end(self, task: Task, finished: bool) -> None:
        """Take note that a task has ended without failing; `finished` unless it stopped before its end."""

    def fail(self, task: Task, error: str) -> None:
        """Take note that a task has failed."""

    def rest(self) -> list[RunDirectory]:
        """Return the trials that still are this worker's, which it has no process for."""


class TaskList:
    """Tasks that are known from the start; those that ask for it are followed by an evaluation."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks, self.waiting = tasks, deque(tasks)

    def kinds(self) -> Sequence[Task]:
        """Return all tasks."""
        return self.tasks

    def take(self) -> Task | None:
        """Return the next task."""
        return self.waiting.popleft() if self.waiting else None

    def end(self, task: Task, finished: bool) -> None:
        """Let the evaluation follow, if the task is finished and asks for one."""
        if finished and task.evaluate:
            self.waiting.appendleft(Task("eval", task.path))

    def fail(self, task: Task, error: str) -> None:
        """Leave the other tasks as they are."""

    def rest(self) -> list[RunDirectory]:
        """Return the trials whose turn has not come."""
        return [task.run for task in self.waiting]


def open_source(tasks: Sequence[Task], search: str, processes: int, attempt: Attempt) -> Source:
    """Return the source of some tasks or, of a sweep's directory `search`, of its study, with Optuna imported.

    `processes`: of each training of a search, per node.
    """
    if not search:
        return TaskList(tasks)
    from jobs.search.source import StudySource

    return StudySource(Path(search), attempt, processes)
