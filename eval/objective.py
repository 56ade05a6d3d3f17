"""Measure the objective of a search: one metric of a trial at one exported step, on the validation split alone."""

import argparse
import sys
import tempfile
from dataclasses import replace
from math import isfinite
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, whatever else is installed

import models
from eval import distributed, metrics
from eval.runner import collect_errors
from trainer.config.schema import Config
from trainer.environment import prepare_environment, run_program
from trainer.errors import ConfigError
from trainer.runs.directory import RunDirectory
from trainer.runs.objective import write_objective

VALIDATION = "validation/"
INFORMATION = f"{VALIDATION}information/target"  # of accuracy: needs no labels


def list_objectives(config: Config) -> dict[str, str]:
    """Return objective → the metric that computes it: those of the validation split that need no target labels."""
    domains = [domain for domain in config.data.datasets() if domain != "target" or reads_target_labels(config)]
    objectives: dict[str, str] = {}
    for name in metrics.names():
        if "split" not in metrics.select_options(name, {"split": ""}):
            continue
        if metrics.capability(name) not in models.signature(config.method).functions:
            continue
        if metrics.capability(name) == "predict":
            objectives |= {f"{VALIDATION}{name}{f'/{domain}' if domain else ''}": name for domain in domains}
            objectives |= {INFORMATION: name} if "target" in config.data.datasets() else {}
        elif metrics.capability(name) == "sample":
            objectives[f"{VALIDATION}{name}"] = name
    return objectives


def reads_target_labels(config: Config) -> bool:
    """Return whether the method trains on the labels of the target."""
    return "target_labels" in models.signature(config.method).reads


def find_metric(objective: str, config: Config, place: str) -> str:
    """Return the metric that computes an objective; ConfigError, which begins with `place`, if it is not allowed."""
    objectives = list_objectives(config)
    if objective in objectives:
        return objectives[objective]
    valid = f"use one of {', '.join(objectives)}"
    if objective.startswith("oracle/") or objective == f"{VALIDATION}accuracy/target":
        raise ConfigError(
            f"{place}: search.metric: {objective}: needs labels of the target, which {config.method} does not train "
            f"on: an oracle, unavailable in practice; {valid}"
        )
    if f"{VALIDATION}{objective}" in (*objectives, f"{VALIDATION}accuracy/target"):
        raise ConfigError(
            f"{place}: search.metric: {objective}: is of the test split, which no search may see; {valid}"
        )
    raise ConfigError(f"{place}: search.metric: {objective}: no evaluation of {config.method} gives it; {valid}")


def is_maximized(metric: str) -> bool:
    """Return whether higher values of a metric are better, by its own declaration."""
    return metrics.declares(metric, "higher_is_better")


def main(arguments: list[str] | None = None) -> int:
    """Measure and record; return the exit code: 0, 1 if the metric crashed, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="eval/objective.py", description=__doc__)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("objective", help="such as validation/accuracy/source")
    parser.add_argument("step", type=int, help="of the exported weights")
    parser.add_argument("direction", nargs="?", default="", choices=["", "maximize", "minimize"], help="of the search")
    options = parser.parse_args(arguments)
    run, errors = RunDirectory(options.run), list[tuple[int, str]]()
    with distributed.process_group(), collect_errors(errors):
        prepare_environment()
        value = measure(run, options.objective, options.step)
        write_objective(run, options.step, options.objective, value, options.direction)
    run.fail_evaluation("; ".join(message for _, message in errors))
    return max((code for code, _ in errors), default=0)


def measure(run: RunDirectory, objective: str, step: int) -> float:
    """Return an objective of a trial at an exported step; ConfigError if it cannot be computed."""
    import torch

    from eval.trial import open_trial

    with tempfile.TemporaryDirectory() as folder:  # figures and arrays are of no use to a search
        trial = open_trial(run.path, step=step, folder=Path(folder))
        name = find_metric(objective, trial.config, str(run.path))
        evaluation = trial.config.eval.model_copy(update={"split": "validation"})
        config = trial.config.model_copy(update={"eval": evaluation})
        trial = replace(trial, config=config, weights={step: trial.weights[step]})
        module = metrics.load(name)
        torch.manual_seed(config.train.seed)
        trial.capability(module.METRIC.needs, name)
        result = module.evaluate(trial)
    values: dict[str, float] = result.history.get(step, {}) | result.metrics
    if objective not in values:
        raise ConfigError(f"{run.path}: search.metric: {objective}: {name} gives only {', '.join(values)}")
    if not isfinite(values[objective]):
        raise ConfigError(f"{run.path}: {objective} is {values[objective]} at step {step}, which cannot be compared")
    return values[objective]


if __name__ == "__main__":
    run_program(main)
