"""Measure what a training costs: what its seconds are spent on, and its memory."""

import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psutil
import torch

from trainer.runs.costs import OTHER, PHASES, STARTUP

T = TypeVar("T")


class Costs:
    """Count the seconds of an attempt since its process was started; each belongs to one phase, the innermost."""

    def __init__(self, devices: float, step: int, earlier: dict[str, Any]) -> None:
        """Count as start-up until `enter` is called; `earlier` is what `total` returned in the attempt before."""
        self.devices, self.first_step, self.earlier = devices, step, earlier
        self.seconds = dict.fromkeys((STARTUP, *PHASES), 0.0)
        self.phase = STARTUP
        self.since = time.monotonic() - max(0.0, time.time() - psutil.Process().create_time())

    def enter(self, phase: str = OTHER) -> str:
        """Begin a phase; return the one that ends."""
        before, now = self.phase, time.monotonic()
        self.seconds[before] += now - self.since
        self.phase, self.since = phase, now
        return before

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Spend the seconds inside on a phase."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def iterate(self, phase: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; the seconds that each takes to come are spent on a phase."""
        iterator = iter(items)
        while True:
            with self.during(phase):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def total(self, step: int) -> dict[str, Any]:
        """Return the costs of this attempt and the earlier ones, as `trainer.runs.costs` reads them."""
        self.enter(self.phase)
        before = self.earlier.get("seconds", {})
        memory = {"memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}  # Linux counts in KiB
        if torch.cuda.is_initialized():
            memory["device_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        hours = self.devices * sum(self.seconds.values()) / 3600
        return {
            "attempts": self.earlier.get("attempts", 0) + 1,
            "steps": self.earlier.get("steps", 0) + step - self.first_step,
            "device_hours": round(self.earlier.get("device_hours", 0.0) + hours, 6),
            "seconds": {name: round(value + before.get(name, 0.0), 3) for name, value in self.seconds.items()},
            **{name: round(max(value, self.earlier.get(name, 0.0)), 3) for name, value in memory.items()},
        }
