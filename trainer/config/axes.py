"""The axes of a sweep: keys that take several values, as a grid, zipped or drawn at random, and their combinations."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from trainer.config.document import Document, leaves
from trainer.errors import ConfigError

AXES = ("grid", "zip", "random")
DRAWS = ("uniform", "loguniform", "integer", "choice")


@dataclass(frozen=True)
class Axis:
    """Values that a key takes."""

    kind: str  # grid, zip or random
    group: str  # axes of one group move together, groups are crossed
    values: list[Any]


def split_axes(entry: Document, where: Callable[[str], str]) -> tuple[Document, dict[str, Axis]]:
    """Part a block into its settings and its axes {dotted key: Axis}; `where` says whence a key comes; ConfigError."""
    settings = {key: value for key, value in entry.items() if key not in AXES}
    axes: dict[str, Axis] = {}
    for kind in (kind for kind in AXES if kind in entry):
        block = entry[kind]
        if not isinstance(block, dict):
            raise ConfigError(
                f"{where(kind)}: {kind}: must be a mapping of keys to lists, such as {{train.seed: [0, 1, 2]}}"
            )
        columns = draw(block, where) if kind == "random" else dict(leaves(block))
        for key, values in columns.items():
            at = f"{where(f'{kind}.{key}')}: {kind}.{key}"
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{at}: {values!r}: must be a list of at least one value")
            if key in axes:
                raise ConfigError(f"{at}: is swept twice; keep one of grid, zip and random")
            if key == "method" and kind != "grid":
                raise ConfigError(f"{at}: methods are swept by grid: or trials:, since each has keys of its own")
            if kind == "zip" and len({len(column) for column in columns.values() if isinstance(column, list)}) > 1:
                lengths = ", ".join(f"{k} {len(v)}" for k, v in columns.items() if isinstance(v, list))
                raise ConfigError(f"{at}: zipped lists go together one by one, but have lengths {lengths}")
            axes[key] = Axis(kind, key if kind == "grid" else kind, values)
    return settings, axes


def merge_axes(shared: dict[str, Axis], own: dict[str, Axis]) -> dict[str, Axis]:
    """A trial's own axis replaces the shared one of that key; own and shared groups are crossed."""
    return {key: Axis(axis.kind, f"own {axis.group}", axis.values) for key, axis in own.items()} | {
        key: axis for key, axis in shared.items() if key not in own
    }


def replace_axes(axes: dict[str, Axis], given: Document) -> dict[str, Axis]:
    """Let lists of the command line take the place of an axis' values, or be an axis of their own; ConfigError."""
    result = dict(axes)
    for key, values in given.items():
        old = axes.get(key)
        # What was drawn with others goes on without them; what was zipped stays zipped.
        result[key] = Axis("zip", old.group, values) if old and old.kind == "zip" else Axis("grid", key, values)
    for key, values in given.items():
        others = [axis for axis in result.values() if axis.group == result[key].group]
        length = next((len(axis.values) for axis in others if len(axis.values) != len(values)), len(values))
        if not values or length != len(values):
            raise ConfigError(
                f"command line: {key}: {values}: must be a list of {length if values else 'at least one value'}"
                + (", as long as the lists that it is zipped with" if values else "")
            )
    return result


def combinations(axes: dict[str, Axis]) -> Iterator[Document]:
    """Yield every combination of the axes' values once."""
    groups: dict[str, list[Document]] = {}
    drawn = {axis.group for axis in axes.values() if axis.kind == "random"}
    for key, axis in axes.items():
        rows = groups.get(axis.group, [{} for _ in axis.values])
        groups[axis.group] = [row | {key: value} for row, value in zip(rows, axis.values, strict=True)]
    for group in drawn:  # chance may draw the same again
        rows = groups[group]
        groups[group] = [row for i, row in enumerate(rows) if row not in rows[:i]]
    for combination in product(*groups.values()):
        yield {key: value for part in combination for key, value in part.items()}


def draw(block: Document, where: Callable[[str], str]) -> dict[str, list[Any]]:
    """Draw random values: a pure function of (seed, key, number), so that more draws keep the former ones."""
    specs = {key: spec for key, spec in block.items() if key not in ("draws", "seed")}
    count, seed = block.get("draws"), block.get("seed", 0)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"{where('random')}: random.draws: {count!r}: must say how many to draw, such as draws: 20")
    if not specs:
        raise ConfigError(
            f"{where('random')}: random: draws no key; add one, such as model.lr: {{loguniform: [1e-5, 1e-2]}}"
        )
    columns: dict[str, list[Any]] = {}
    for key, spec in specs.items():
        at = f"{where(f'random.{key}')}: random.{key}"
        if not isinstance(spec, dict) or len(spec) != 1 or not set(spec) <= set(DRAWS):
            raise ConfigError(f"{at}: {spec!r}: must be one of {{{' | '.join(DRAWS)}: [low, high]}}")
        ((kind, bounds),) = spec.items()
        try:
            if not isinstance(bounds, list):
                raise ValueError("must be a list")
            columns[key] = [draw_one(kind, bounds, random.Random(f"{seed} {key} {i}")) for i in range(count)]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{at}: {kind}: {bounds!r}: {error}") from None
    return columns


def draw_one(kind: str, bounds: list[Any], rng: random.Random) -> Any:
    """One value: of the list for a choice, else between low and high, both included; ValueError on bad bounds."""
    if kind == "choice":
        if not bounds:
            raise ValueError("must hold at least one value")
        return rng.choice(bounds)
    if len(bounds) != 2:
        raise ValueError("must be [low, high]")
    low, high = (float(b) for b in bounds)  # also 1e-5, which YAML reads as text
    if not low < high or math.isinf(high - low):
        raise ValueError("low must be less than high")
    if kind == "integer":
        if low % 1 or high % 1:
            raise ValueError("low and high must be whole numbers")
        return rng.randint(int(low), int(high))
    if kind == "loguniform" and low <= 0:
        raise ValueError("low must be greater than 0")
    value = rng.uniform(low, high) if kind == "uniform" else math.exp(rng.uniform(math.log(low), math.log(high)))
    # Few digits make short names; they must not step over the bounds.
    return min(max(float(f"{value:.6g}"), low), high)
