"""The axes of a sweep: keys that take several values, as a grid, zipped or drawn at random, and their combinations."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from trainer.config.document import AXES, Document, Setting, Settings, find_place, to_settings
from trainer.errors import ConfigError

DISTRIBUTIONS = ("uniform", "loguniform", "integer", "choice")


@dataclass(frozen=True)
class Axis:
    """The values that a key takes, and the place where they were written."""

    kind: str  # grid, zip or random
    group: str  # the axes of a group advance together; groups are crossed
    values: list[Any]
    place: str


def split_axes(settings: Settings) -> tuple[Settings, dict[str, Axis]]:
    """Split settings into fixed ones and axes {dotted key: Axis}; ConfigError."""
    axes: dict[str, Axis] = {}
    for kind in AXES:
        if kind in settings and settings[kind].value != {}:
            raise ConfigError(
                f"{settings[kind].place}: {kind}: must be a mapping of keys to lists, such as {{train.seed: [0, 1, 2]}}"
            )
        block = {key.removeprefix(f"{kind}."): s for key, s in settings.items() if key.startswith(f"{kind}.")}
        if kind == "random" and (block or kind in settings):
            block = draw_columns(block, find_place(settings, kind, ""))
        columns = {key: setting.value for key, setting in block.items() if isinstance(setting.value, list)}
        for key, setting in block.items():
            values, where = setting.value, f"{setting.place}: {kind}.{key}"
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{where}: {values!r}: must be a list of at least one value")
            if key in axes:
                raise ConfigError(f"{where}: is swept twice; keep one of grid, zip and random")
            if key == "method" and kind != "grid":
                raise ConfigError(f"{where}: methods are swept by grid: or trials:, since each has keys of its own")
            if kind == "zip" and len({len(column) for column in columns.values()}) > 1:
                lengths = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
                raise ConfigError(f"{where}: zipped lists must have the same length, but have {lengths}")
            axes[key] = Axis(kind, key if kind == "grid" else kind, values, setting.place)
    return {key: s for key, s in settings.items() if key.split(".")[0] not in AXES}, axes


def merge_axes(shared: dict[str, Axis], own: dict[str, Axis]) -> dict[str, Axis]:
    """Let a trial's own axis replace the shared one of that key; own and shared groups are crossed."""
    return {key: Axis(axis.kind, f"own {axis.group}", axis.values, axis.place) for key, axis in own.items()} | {
        key: axis for key, axis in shared.items() if key not in own
    }


def replace_axes(axes: dict[str, Axis], lists: Settings) -> dict[str, Axis]:
    """Replace the values of axes by lists of the command line, or add an axis; ConfigError."""
    result = dict(axes)
    for key, setting in lists.items():
        # A key that was zipped stays zipped; one that was drawn at random becomes a grid.
        zipped = key in axes and axes[key].kind == "zip"
        old = axes[key] if zipped else Axis("grid", key, [], "")
        result[key] = Axis(old.kind, old.group, setting.value, setting.place)
    for key, setting in lists.items():
        values, group = setting.value, [axis for axis in result.values() if axis.group == result[key].group]
        length = next((len(axis.values) for axis in group if len(axis.values) != len(values)), len(values))
        if not values or length != len(values):
            raise ConfigError(
                f"{setting.place}: {key}: {values}: must be a list of {length if values else 'at least one value'}"
                + (", as long as the lists that it is zipped with" if values else "")
            )
    return result


def combine(axes: dict[str, Axis]) -> Iterator[Settings]:
    """Yield every combination of the axes' values once."""
    groups: dict[str, list[Document]] = {}
    for key, axis in axes.items():
        rows = groups.get(axis.group, [{} for _ in axis.values])
        groups[axis.group] = [row | {key: value} for row, value in zip(rows, axis.values, strict=True)]
    for group in {axis.group for axis in axes.values() if axis.kind == "random"}:
        rows = groups[group]  # The same values may be drawn twice.
        groups[group] = [row for i, row in enumerate(rows) if row not in rows[:i]]
    for combination in product(*groups.values()):
        settings: Settings = {}
        for key, value in (pair for row in combination for pair in row.items()):
            settings |= to_settings({key: value}, axes[key].place)
        yield settings


def draw_columns(block: Settings, place: str) -> Settings:
    """Draw the values of a `random:` block: {dotted key: list of `draws` values}; ConfigError.

    A value depends on seed, key and number alone, so that a larger `draws` keeps the existing trials.
    """
    specs = {key: setting for key, setting in block.items() if key not in ("draws", "seed")}
    count = block["draws"].value if "draws" in block else None
    seed = block["seed"].value if "seed" in block else 0
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"{place}: random.draws: {count!r}: must be the number of draws, such as draws: 20")
    if not specs:
        raise ConfigError(f"{place}: random: draws no key; add one, such as model.lr: {{loguniform: [1e-5, 1e-2]}}")
    columns: Settings = {}
    for spec, setting in specs.items():
        key, _, distribution = spec.rpartition(".")
        where = f"{setting.place}: random.{spec}: {setting.value!r}"
        if distribution not in DISTRIBUTIONS or not key:
            raise ConfigError(f"{where}: must be one of {{{' | '.join(DISTRIBUTIONS)}: [low, high]}}")
        if key in columns:
            raise ConfigError(f"{where}: {key} has two distributions; remove one")
        try:
            if not isinstance(setting.value, list):
                raise ValueError("must be a list")
            values = [draw_value(distribution, setting.value, random.Random(f"{seed} {key} {i}")) for i in range(count)]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {error}") from None
        columns[key] = Setting(values, setting.place)
    return columns


def draw_value(distribution: str, bounds: list[Any], generator: random.Random) -> Any:
    """Draw one value: from the list for a choice, else from [low, high], both included; ValueError for bad bounds."""
    check_bounds(distribution, bounds)
    if distribution == "choice":
        return generator.choice(bounds)
    low, high = (float(bound) for bound in bounds)
    if distribution == "integer":
        return generator.randint(int(low), int(high))
    if distribution == "uniform":
        return round_within(generator.uniform(low, high), low, high)
    return round_within(math.exp(generator.uniform(math.log(low), math.log(high))), low, high)


def check_bounds(distribution: str, bounds: list[Any]) -> None:
    """Check the values of a choice, or [low, high] of another distribution; ValueError or TypeError."""
    if distribution == "choice":
        if not bounds:
            raise ValueError("must contain at least one value")
        return
    if len(bounds) != 2:
        raise ValueError("must be [low, high]")
    low, high = (float(bound) for bound in bounds)  # YAML reads 1e-5 as text
    if not low < high or math.isinf(high - low):
        raise ValueError("low must be less than high")
    if distribution == "integer" and (low % 1 or high % 1):
        raise ValueError("low and high must be whole numbers")
    if distribution == "loguniform" and low <= 0:
        raise ValueError("low must be greater than 0")


def round_within(value: float, low: float, high: float) -> float:
    """Round a drawn value to 6 digits, which keeps names short, but within its bounds."""
    return min(max(float(f"{value:.6g}"), low), high)
