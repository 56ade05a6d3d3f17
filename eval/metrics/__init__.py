"""Metrics: each file of this folder defines one by `METRIC` and `evaluate(trial) -> Result`, and is found by its name.

Nothing here imports torch before a metric is loaded, so that names are checked in an instant.
"""

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import ConfigError, check_known

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Metric:
    """The properties of a metric that others need to know."""

    needs: str  # capability of the method: predict, features, sample or reconstruct
    higher_is_better: bool = False  # decides which milestone is best
    options: tuple[str, ...] = ()  # keys of `eval:` that it reads
    recipe: int = 1  # raise it when values change: evaluations of an older recipe are then out of date
    shared: bool = False  # whether all processes of an evaluation run it: see eval/distributed.py
    stage: "Callable[[Path, torch.device], None] | None" = None  # computes what is cached for a dataset's folder
    weights: Callable[[], Path] | None = None  # path of downloaded weights, present or not
    substitute: str = ""  # a metric that needs no download


@lru_cache
def names() -> list[str]:
    """Return the names of all metrics: the files of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def load(name: str) -> Any:
    """Import the module of a metric, which has METRIC and evaluate; this may import torch."""
    return import_module(f"eval.metrics.{name}")


def declares(name: str, field: str) -> bool:
    """Return whether the METRIC of a metric sets a field, read from its source without importing it."""
    return field in _declaration(name)


def capability(name: str) -> str:
    """Return the capability that a metric needs, read from its source without importing it."""
    needed: str = ast.literal_eval(_declaration(name)["needs"])
    return needed


def recipe(name: str) -> int:
    """Return the recipe of a metric, read from its source without importing it."""
    node = _declaration(name).get("recipe")
    return int(ast.literal_eval(node)) if node else Metric.recipe


def select_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options of `eval:` that a metric reads."""
    node = _declaration(name).get("options")
    return {key: options[key] for key in (ast.literal_eval(node) if node else ()) if key in options}


@lru_cache
def _declaration(name: str) -> dict[str | None, ast.expr]:
    """Return the arguments of the METRIC of a metric, read from its source; {} if there is no such file."""
    path = Path(__file__).parent / f"{name}.py"
    tree = ast.parse(path.read_text() if path.exists() else "")
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "Metric")
    return {keyword.arg: keyword.value for call in calls for keyword in call.keywords}


def check_names(metrics: Iterable[str], place: str) -> None:
    """Check that metrics exist; ConfigError, which begins with `place`, with the nearest name otherwise."""
    for number, metric in enumerate(metrics):
        try:
            check_known(metric, names(), "metric")
        except ValueError as error:
            raise ConfigError(f"{place}: eval.metrics.{number}: {error}") from None
