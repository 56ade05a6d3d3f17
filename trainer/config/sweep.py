"""A sweep file, fanned out into trials: grid, zip, random, trials, base file and command line; no torch anywhere."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import models
from trainer.config.axes import AXES, Axis, combinations, merge_axes, replace_axes, split_axes
from trainer.config.document import (
    Document,
    leaves,
    merge,
    nested,
    parse_overrides,
    put,
    read_settings,
    touches,
    whence,
)
from trainer.config.resolve import known_method, resolve, takes_list
from trainer.config.schema import Config, identifies
from trainer.errors import ConfigError, check_known


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


def load_trials(path: Path, words: list[str], defaults: Document | None = None) -> list[Trial]:
    """The trials of a sweep file over `defaults` and under `key=value` overrides, in order; ConfigError names file,
    key and remedy."""
    return expand(merge(defaults or {}, {"name": path.stem, **read_settings(path)}), parse_overrides(words), path)


def load_single_trial(path: Path, words: list[str]) -> Trial:
    """The trial of a file's own settings, without its axes and `trials:`, under overrides; ConfigError."""
    own = {key: value for key, value in read_settings(path).items() if key not in (*AXES, "trials")}
    found = expand({"name": path.stem, **own}, parse_overrides(words), path)
    if len(found) > 1:
        raise ConfigError(f"command line: lists make {len(found)} trials; give one value each, or use jobs/submit.py")
    return found[0]


def expand(document: Document, overrides: Document, path: Path) -> list[Trial]:
    """Resolve every combination. What is shared by all trials (the file's `model:` block and axes, the command line)
    reaches a trial as far as its method has such a key; a shared key that no method has is an error."""
    shared, shared_axes = split_axes({k: v for k, v in document.items() if k != "trials"}, partial(whence, path))
    entries = document.get("trials", [{}])
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise ConfigError(f"{whence(path, 'trials')}: trials: must be a list of mappings such as [{{method: dann}}]")
    keys = [*(key for key, _ in leaves(shared)), *shared_axes, *overrides]
    wanted = {hyperparameter(key) for key in keys if key.startswith("model.")}
    unknown, valid, trials = set(wanted), set[str](), list[Trial]()
    for number, entry in enumerate(map(nested, entries)):
        here = f"{whence(path, 'trials')}: trials[{number}]" if len(entries) > 1 else ""
        where = partial(origin, path, here, overrides, [key for key, _ in leaves(entry)])
        settings, own_axes = split_axes(entry, where)
        own = dict(leaves(settings))
        for method in methods(overrides, own_axes, own, shared_axes, shared):
            has = {f"model.{h.name}" for h in models.signature(known_method(method, where)).hyperparameters}
            foreign, unknown, valid = wanted - has, unknown - has, valid | has
            given = {k: v for k, v in overrides.items() if hyperparameter(k) not in foreign and k != "method"}
            swept = {k: v for k, v in given.items() if is_axis(method, k, v)}
            fixed = {k: v for k, v in given.items() if k not in swept}
            common = {k: axis for k, axis in shared_axes.items() if hyperparameter(k) not in foreign and k not in own}
            axes = {k: axis for k, axis in merge_axes(common, own_axes).items() if k not in fixed and k != "method"}
            base = merge(without(shared, foreign), settings) | {"method": method}
            for combination in combinations(replace_axes(axes, swept)):
                trial = dict(base)
                for key, value in (combination | fixed).items():
                    put(trial, key, value)
                config = resolve(trial, where)
                told = label(method, own | dict(leaves(combination)) | fixed)
                trials.append(Trial(config, told, config.identity()))
    if unknown:
        key = min(unknown)
        try:
            check_known(key, sorted(valid), "key")
        except ValueError as error:
            raise ConfigError(f"{origin(path, '', overrides, [], key)}: {key}: {error}") from None
    refuse_twins(trials, path)
    return trials


def methods(
    overrides: Document, own_axes: dict[str, Axis], own: Document, axes: dict[str, Axis], shared: Document
) -> Any:
    """The methods of an entry of `trials:`, usually one: whoever is nearest to it decides."""
    said = (
        overrides.get("method"),
        own_axes.get("method"),
        own.get("method"),
        axes.get("method"),
        shared.get("method"),
    )
    found = next((value for value in said if value is not None), None)
    found = found.values if isinstance(found, Axis) else found
    return found if isinstance(found, list) and found else [found]


def hyperparameter(key: str) -> str:
    """`model.<name>` of a key that sets it or a part of it; any other key as it is."""
    return ".".join(key.split(".")[:2]) if key.startswith("model.") else key


def is_axis(method: str, key: str, value: Any) -> bool:
    """Whether the command line gives several values to a key: a list, or a list of lists where one value is a list."""
    if isinstance(value, list) and takes_list(method, key):
        return bool(value) and all(isinstance(v, list) for v in value)
    return isinstance(value, list)


def without(document: Document, foreign: set[str]) -> Document:
    """The document less the `model.` keys that the trial's method does not have."""
    block = document.get("model")
    if not isinstance(block, dict):
        return document
    return {**document, "model": {k: v for k, v in block.items() if f"model.{k}" not in foreign}}


def label(method: str, settings: Document) -> str:
    """The readable part of a run directory's name, such as dann,gamma=10,seed=0: safe on any file system."""
    pairs = [
        f"{key.rpartition('.')[2]}={value}" for key, value in settings.items() if identifies(key) and key != "method"
    ]
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "_", ",".join([method, *pairs]))[:100].rstrip(",._")


def refuse_twins(trials: list[Trial], path: Path) -> None:
    """ConfigError if two trials are the same run under two names, or the sweep has two names."""
    seen: dict[str, Trial] = {}
    for trial in trials:
        if trial.config.name != trials[0].config.name:
            raise ConfigError(f"{path}: name: {trial.config.name!r}: the sweep has one name; set it once, at the top")
        if twin := seen.get(trial.identity):
            raise ConfigError(
                f"{path}: two trials are the same: {twin.label} and {trial.label}; "
                "remove one, or let them differ (is a value repeated, or an axis made idle by an override?)"
            )
        seen[trial.identity] = trial


def origin(path: Path, here: str, overrides: Document, own: list[str], key: str) -> str:
    """Where a key was written: the command line, `here` (an entry of `trials:`), the file or one of its bases."""
    if any(touches(written, key) for written in overrides):
        return "command line"
    return here if here and any(touches(written, key) for written in own) else whence(path, key)
