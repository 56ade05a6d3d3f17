"""What trainings have cost, as their heartbeats tell."""

from collections.abc import Iterable
from typing import Any

from trainer.runs.directory import RunDirectory

STARTUP, OTHER = "startup", "other"
# What the seconds after the start-up are spent on; exports count as checkpoints, previews as logging.
PHASES = ("data", "updates", "checkpoints", "logging", OTHER)


def read_costs(run: RunDirectory) -> dict[str, float]:
    """Return what a trial's training has cost so far, as `summarize_costs` does."""
    return summarize_costs(run.status())


def summarize_costs(status: dict[str, Any]) -> dict[str, float]:
    """Return what a training has cost by its newest heartbeat, over all attempts; {} if that was not measured.

    device_hours (of its GPUs, of a shared one its share; without GPUs, of its processes), attempts, startup_seconds (of
    all attempts, until the first batch), steps_per_second (after the start-up, with steps that were trained again),
    data_share, updates_share, checkpoints_share, logging_share (of the time after the start-up), memory_gib (of the
    main process, at most) and, of a training on a GPU, device_memory_gib (likewise).
    """
    costs: dict[str, Any] = status.get("costs", {})
    if not costs:
        return {}
    seconds: dict[str, float] = costs["seconds"]
    training = sum(seconds[phase] for phase in PHASES)
    return {
        "device_hours": costs["device_hours"],
        "attempts": costs["attempts"],
        "startup_seconds": seconds[STARTUP],
        "steps_per_second": costs["steps"] / training if training else 0.0,
        **{f"{phase}_share": seconds[phase] / training if training else 0.0 for phase in PHASES if phase != OTHER},
        **{name: costs[name] for name in ("memory_gib", "device_memory_gib") if name in costs},
    }


def sum_costs(trials: Iterable[dict[str, float]]) -> dict[str, float]:
    """Return device_hours, attempts and startup_seconds of all trials together, from what `read_costs` returned."""
    known = [costs for costs in trials if costs]
    return {name: sum(costs[name] for costs in known) for name in ("device_hours", "attempts", "startup_seconds")}
