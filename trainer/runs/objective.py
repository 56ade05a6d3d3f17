"""What a search has measured: of a trial, one metric at each rung that it has reached; of all, what mattered."""

from pathlib import Path
from typing import Any

from trainer.runs.atomic import read_json, write_json
from trainer.runs.directory import RunDirectory

IMPORTANCE = "importance.json"  # in the sweep's directory


def read_objectives(run: RunDirectory, metric: str) -> dict[int, float]:
    """Return step → value of a metric; {} if another one was measured, or none."""
    record = read_json(run.objective_file)
    return {int(step): value for step, value in record.get("values", {}).items() if record["metric"] == metric}


def newest_objective(run: RunDirectory) -> dict[str, float]:
    """Return the name and the newest value of the metric that a search went by; {} outside searches."""
    record = read_json(run.objective_file)
    values = record.get("values", {})
    return {record["metric"]: values[max(values, key=int)]} if values else {}


def read_direction(run: RunDirectory) -> str:
    """Return maximize or minimize, as a search went by its metric; empty if that was not recorded."""
    direction: str = read_json(run.objective_file).get("direction", "")
    return direction


def write_objective(run: RunDirectory, step: int, metric: str, value: float, direction: str = "") -> None:
    """Add the value of a metric at a step, and the direction of its search; values of another metric are dropped."""
    values = read_objectives(run, metric) | {step: value}
    write_json(run.objective_file, {"metric": metric, "direction": direction, "values": values})


def read_importance(sweep: Path) -> dict[str, Any]:
    """Return the step at which the parameters of a search were compared, and the share of each; {} outside searches."""
    return read_json(sweep / IMPORTANCE)


def write_importance(sweep: Path, step: int, shares: dict[str, float]) -> None:
    """Write the shares of the parameters of a search, which add up to 1."""
    write_json(sweep / IMPORTANCE, {"step": step, "importance": shares})
