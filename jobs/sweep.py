"""A sweep file, fanned out into trials: grid, zip, random, trials, base file and command line; no torch anywhere."""

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import models
from trainer.config import Config, ConfigError, Document, nearest, resolve
from trainer.document import leaves, merge, parse_overrides, put, read
from trainer.run import write_text

AXES = ("grid", "zip", "random")
DRAWS = ("uniform", "loguniform", "integer", "choice")


@dataclass(frozen=True)
class Trial:
    """One training run that a sweep asks for."""

    config: Config
    label: str  # the settings that tell it from its siblings, readable
    identity: str

    @property
    def name(self) -> str:
        """Name of its run directory."""
        return f"{self.label}-{self.identity}"


def load(path: Path, words: list[str]) -> list[Trial]:
    """The trials of a sweep file under `key=value` overrides, in order; ConfigError names file, key and remedy."""
    document = {"name": path.stem, **read(path)}
    return expand(document, parse_overrides(words), str(path))


def single(path: Path, words: list[str]) -> Trial:
    """The trial of a file's own settings, without its axes and `trials:`, under overrides."""
    document = {"name": path.stem, **read(path)}
    own = {key: value for key, value in document.items() if key not in (*AXES, "trials")}
    (trial,) = expand(own, parse_overrides(words), str(path))
    return trial


def expand(document: Document, overrides: Document, origin: str) -> list[Trial]:
    """Resolve every combination. What is shared by all trials (the file's `model:` block and axes, the command line)
    reaches a trial as far as its method has such a key; a shared key that no method has is an error."""
    document = dict(document)
    entries = document.pop("trials", [{}])
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries) or not entries:
        raise ConfigError(f"{origin}: trials: must be a list of mappings such as [{{method: dann}}]")
    shared, own_axes = split_axes(document, origin)
    trials: list[Trial] = []
    wanted = {k for k, _ in leaves({"model": shared.get("model") or {}})} | set(own_axes) | set(overrides)
    wanted = {k for k in wanted if k.startswith("model.")}
    unknown, hyperparameters = set(wanted), set[str]()
    for number, entry in enumerate(entries):
        where = f"{origin}: trials[{number}]" if len(entries) > 1 else origin
        settings, axes = split_axes(entry, where)
        method = overrides.get("method", settings.get("method", shared.get("method")))
        try:
            nearest(str(method), models.names(), "method")
        except ValueError as error:
            raise ConfigError(f"{_origin(origin, where, overrides, settings, 'method')}: method: {error}") from None
        keys = {f"model.{h.name}" for h in models.signature(str(method)).hyperparameters}
        foreign, unknown, hyperparameters = wanted - keys, unknown - keys, hyperparameters | keys
        common = _without(shared, foreign)
        # An override of a swept key takes the place of its values.
        given = {k: v for k, v in overrides.items() if k not in foreign}
        every = merge_axes(own_axes, axes)
        every = {k: v for k, v in every.items() if k not in foreign}
        swept = {k: v for k, v in given.items() if k in every and isinstance(v, list)}
        for combination in combinations(every, given, swept):
            trial = merge(common, {k: v for k, v in settings.items() if "." not in k})
            chosen = (
                {k: v for k, v in settings.items() if "." in k}
                | combination
                | {k: v for k, v in given.items() if k not in swept}
            )
            for key, value in chosen.items():
                put(trial, key, value)
            config = resolve(trial, partial(_origin, origin, where, overrides, settings))
            told = dict(leaves(settings)) | chosen
            trials.append(Trial(config, label(config.method, told), config.identity()))
    if unknown:
        key = sorted(unknown)[0]
        try:
            nearest(key, sorted(hyperparameters), "key")
        except ValueError as error:
            raise ConfigError(f"{_origin(origin, origin, overrides, {}, key)}: {key}: {error}") from None
    refuse_twins(trials, origin)
    return trials


@dataclass(frozen=True)
class Axis:
    """Values that a key takes; axes of one group move together (zip, random), groups are crossed."""

    group: str
    values: list[Any]


def split_axes(entry: Document, origin: str) -> tuple[Document, dict[str, Axis]]:
    """Part a block into its settings and its axes {dotted key: Axis}."""
    settings = {key: value for key, value in entry.items() if key not in AXES}
    axes: dict[str, Axis] = {}
    for kind in AXES:
        block = entry.get(kind) or {}
        if not isinstance(block, dict):
            raise ConfigError(
                f"{origin}: {kind}: must be a mapping of keys to lists, such as {{train.seed: [0, 1, 2]}}"
            )
        columns = draw(block, origin) if kind == "random" else block
        for key, values in columns.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{origin}: {kind}.{key}: {values!r}: must be a list of at least one value")
            if key in axes:
                raise ConfigError(f"{origin}: {kind}.{key}: is swept twice; keep one of grid, zip and random")
            axes[key] = Axis(key if kind == "grid" else kind, values)
        lengths = {key: len(values) for key, values in columns.items()} if kind == "zip" else {}
        if len(set(lengths.values())) > 1:
            raise ConfigError(f"{origin}: zip: lists differ in length: {lengths}; zipped values go together one by one")
    return settings, axes


def merge_axes(shared: dict[str, Axis], own: dict[str, Axis]) -> dict[str, Axis]:
    """A trial's own axis replaces the shared one of that key; own and shared groups are crossed."""
    return {key: Axis(f"own {axis.group}", axis.values) for key, axis in own.items()} | {
        key: axis for key, axis in shared.items() if key not in own
    }


def combinations(axes: dict[str, Axis], overrides: Document, swept: Document) -> Iterator[Document]:
    """Yield every combination of the axes' values, leaving out what the command line fixes."""
    groups: dict[str, list[Document]] = {}
    for key, axis in axes.items():
        if key in swept:
            axis = Axis(key, swept[key])
        elif key in overrides:
            continue
        column = [{key: value} for value in axis.values]
        old = groups.get(axis.group, [{} for _ in column])
        groups[axis.group] = [a | b for a, b in zip(old, column, strict=True)]
    for combination in product(*groups.values()):
        yield {key: value for part in combination for key, value in part.items()}


def draw(block: Document, origin: str) -> dict[str, list[Any]]:
    """Draw random values: a pure function of (seed, key, number), so that more draws keep the former ones."""
    keys = {key: spec for key, spec in block.items() if key not in ("draws", "seed")}
    count, seed = block.get("draws"), block.get("seed", 0)
    if keys and (not isinstance(count, int) or count < 1):
        raise ConfigError(f"{origin}: random.draws: {count!r}: must say how many trials to draw, such as draws: 20")
    columns: dict[str, list[Any]] = {}
    for key, spec in keys.items():
        if not isinstance(spec, dict) or len(spec) != 1 or not set(spec) <= set(DRAWS):
            raise ConfigError(f"{origin}: random.{key}: {spec!r}: must be one of {{{' | '.join(DRAWS)}: [low, high]}}")
        ((kind, bounds),) = spec.items()
        try:
            columns[key] = [_draw(kind, bounds, random.Random(f"{seed} {key} {i}")) for i in range(count or 0)]
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{origin}: random.{key}: {kind}: {bounds!r}: {error}; give [low, high], low < high"
            ) from None
    return columns


def _draw(kind: str, bounds: Any, rng: random.Random) -> Any:
    if kind == "choice":
        return rng.choice(list(bounds))
    low, high = (float(b) for b in bounds)  # also 1e-5, which YAML reads as text
    if low >= high:
        raise ValueError("low must be less than high")
    if kind == "integer":
        return rng.randint(int(low), int(high))
    if kind == "uniform":
        return float(f"{rng.uniform(low, high):.6g}")
    return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.6g}")


def label(method: str, settings: Document) -> str:
    """The readable part of a run directory's name, such as dann,gamma=10,seed=0."""
    pairs = [
        f"{key.rpartition('.')[2]}={value}"
        for key, value in settings.items()
        if key != "method" and not key.startswith("resources.")
    ]
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "_", ",".join([method, *pairs]))[:100].rstrip(",._")


def refuse_twins(trials: list[Trial], origin: str) -> None:
    """ConfigError if two trials are the same run under two names."""
    seen: dict[str, Trial] = {}
    for trial in trials:
        if trial.identity in seen:
            raise ConfigError(
                f"{origin}: two trials are the same: {seen[trial.identity].label} and {trial.label}; "
                "remove one, or give them different settings (is a value repeated, or an axis made idle by an override?)"
            )
        seen[trial.identity] = trial


def _origin(file: str, entry: str, overrides: Document, settings: Document, key: str) -> str:
    """Where a key was written: on the command line, in an entry of `trials:`, or in the file's own blocks."""
    if any(key == k or key.startswith(f"{k}.") for k in overrides):
        return "command line"
    return entry if any(key == k or key.startswith(f"{k}.") for k, _ in leaves(settings)) else file


def _without(document: Document, keys: set[str]) -> Document:
    """The document less the `model.` keys that the trial's method does not have."""
    block = document.get("model") or {}
    return {**document, "model": {k: v for k, v in block.items() if f"model.{k}" not in keys}}


def place(folder: Path, trials: list[Trial], write: bool = True) -> list[Path]:
    """The run directories of the trials, made with their config.yaml where missing (`write`).

    The identity at the end of a name finds a trial again, whatever words described it then. ConfigError if a
    directory holds another config.
    """
    there = {path.name.rpartition("-")[2]: path for path in folder.iterdir()} if folder.is_dir() else {}
    places = [there.get(trial.identity, folder / trial.name) for trial in trials]
    for trial, path in zip(trials, places, strict=True):
        file = path / "config.yaml"
        text = trial.config.to_yaml()
        if file.exists() and file.read_text() == text:
            continue
        if file.exists() and (found := resolve(read(file), str(file)).identity()) != trial.identity:
            raise ConfigError(
                f"{path}: was made by another config ({found}, not {trial.identity}); move it away, or change name:"
            )
        if write:
            path.mkdir(parents=True, exist_ok=True)
            write_text(file, text)
    return places
