"""What a search has measured of a trial: the value of one metric at each rung that it has reached."""

from trainer.runs.atomic import read_json, write_json
from trainer.runs.directory import RunDirectory


def read_objectives(run: RunDirectory, metric: str) -> dict[int, float]:
    """Return step → value of a metric; {} if another one was measured, or none."""
    record = read_json(run.objective_file)
    return {int(step): value for step, value in record.get("values", {}).items() if record["metric"] == metric}


def newest_objective(run: RunDirectory) -> dict[str, float]:
    """Return the name and the newest value of the metric that a search went by; {} outside searches."""
    record = read_json(run.objective_file)
    values = record.get("values", {})
    return {record["metric"]: values[max(values, key=int)]} if values else {}


def write_objective(run: RunDirectory, step: int, metric: str, value: float) -> None:
    """Add the value of a metric at a step; values of another metric are dropped."""
    write_json(run.objective_file, {"metric": metric, "values": read_objectives(run, metric) | {step: value}})
