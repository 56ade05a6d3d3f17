"""What a training costs: every second belongs to one phase, and attempts add up."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.costs import Costs
from trainer.runs.costs import read_costs, sum_costs
from trainer.runs.directory import RunDirectory


class Clock:
    """A clock that only moves when it is told to."""

    now = 1000.0

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def batches(self) -> Iterator[int]:
        for step in (1, 2):
            self.spend(1)
            yield step

    def fit(self, batches: Iterator[int]) -> Iterator[int]:
        for step in batches:
            self.spend(4)
            yield step


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


def train(costs: Costs, clock: Clock) -> None:
    """Two steps: 1 s of data, 4 s of updates, 2 s of checkpoints with 1 s of logging inside, 1 s of something else."""
    costs.enter()
    for _ in costs.iterate("updates", clock.fit(costs.iterate("data", clock.batches()))):
        with costs.during("checkpoints"):
            clock.spend(1)
            with costs.during("logging"):
                clock.spend(1)
            clock.spend(1)
        clock.spend(1)


def test_every_second_belongs_to_one_phase_and_attempts_add_up(tmp_path: Path, clock: Clock) -> None:
    first = Costs(2.0, 10, {})
    train(first, clock)
    before = first.total(12)
    second = Costs(2.0, 11, before)  # one of the steps is trained again
    train(second, clock)
    clock.spend(4)
    (tmp_path / "status.json").write_text(json.dumps({"costs": second.total(13)}))
    costs = read_costs(RunDirectory(tmp_path))
    phases = ("data", "updates", "checkpoints", "logging")
    assert [costs[f"{phase}_share"] for phase in phases] == pytest.approx([4 / 40, 16 / 40, 8 / 40, 4 / 40], abs=1e-4)
    assert costs["steps_per_second"] == pytest.approx(4 / 40, abs=1e-4)
    assert costs["attempts"] == 2
    assert costs["startup_seconds"] > before["seconds"]["startup"] > 0  # of this process
    assert costs["device_hours"] == pytest.approx(2 * (40 + costs["startup_seconds"]) / 3600, abs=1e-5)
    assert 0.01 < costs["memory_gib"] < 100
    assert "device_memory_gib" not in costs


def test_an_error_ends_a_phase(clock: Clock) -> None:
    costs = Costs(1.0, 0, {})
    costs.enter()

    def refuse() -> Iterator[int]:
        clock.spend(3)
        raise OSError("full")
        yield 0

    with pytest.raises(OSError, match="full"):
        next(costs.iterate("checkpoints", refuse()))
    clock.spend(2)
    seconds = costs.total(0)["seconds"]
    assert (seconds["checkpoints"], seconds["other"]) == (3, 2)


def test_a_trial_without_costs_has_none_and_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"step": 3}')
    assert read_costs(RunDirectory(tmp_path)) == read_costs(RunDirectory(tmp_path / "none")) == {}
    measured = {"device_hours": 0.5, "attempts": 1, "startup_seconds": 2.0, "memory_gib": 1.0}
    assert sum_costs([{}, measured, measured]) == {"device_hours": 1.0, "attempts": 2, "startup_seconds": 4.0}
    assert sum_costs([]) == {"device_hours": 0, "attempts": 0, "startup_seconds": 0}
