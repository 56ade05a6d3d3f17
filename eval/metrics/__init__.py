"""One file per metric; nothing here imports torch."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from trainer.errors import ConfigError, check_known


@lru_cache
def names() -> list[str]:
    """Return the names of all metrics: the files of this folder that define `evaluate`."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if "\ndef evaluate(" in p.read_text())


def check_names(metrics: Iterable[str], place: str) -> None:
    """Check that metrics exist; ConfigError, which begins with `place`, with the nearest name otherwise."""
    for number, metric in enumerate(metrics):
        try:
            check_known(metric, names(), "metric")
        except ValueError as error:
            raise ConfigError(f"{place}: eval.metrics.{number}: {error}") from None
