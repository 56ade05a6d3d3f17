"""Expand a sweep file into trials: axes, `trials:`, base files and the command line; without torch."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import models
from trainer.config.axes import Axis, combine, merge_axes, replace_axes, split_axes
from trainer.config.document import SWEEP_KEYS, Setting, Settings, find_place, merge, parse_overrides, read_settings
from trainer.config.resolve import find_method, resolve_settings, takes_list
from trainer.config.schema import Config, is_in_identity
from trainer.errors import ConfigError, check_known

Layer = TypeVar("Layer")


@dataclass(frozen=True)
class Trial:
    """One training with fixed settings."""

    config: Config
    label: str  # the settings that distinguish it from the sweep's other trials, readable
    identity: str
    settings: Settings = field(compare=False, repr=False)  # as written, with their places

    @property
    def name(self) -> str:
        """Return the name of its run directory."""
        return f"{self.label}-{self.identity}"


def load_trials(path: Path, words: list[str], defaults: Settings | None = None) -> list[Trial]:
    """Return the trials of a sweep file over `defaults` and under `key=value` words, in order; ConfigError.

    Of a file with `search:`, these are the trials of its fixed settings: see trainer.config.search.
    """
    settings = {"name": Setting(path.stem, str(path))} | read_settings(path)
    layers = (merge(defaults or {}, settings), parse_overrides(words))
    is_search = any(key.split(".")[0] == "search" for layer in layers for key in layer)
    settings, overrides = ({k: s for k, s in layer.items() if k.split(".")[0] != "search"} for layer in layers)
    if is_search and isinstance(entries := settings.get("trials", Setting(None, "")).value, list):
        entries = [without_space(entry) if isinstance(entry, dict) else entry for entry in entries]
        settings["trials"] = Setting(entries, settings["trials"].place)
    return expand(settings, overrides, str(path))


def without_space(entry: Settings) -> Settings:
    """Return an entry of `trials:` without what a search varies in it."""
    return {key: setting for key, setting in entry.items() if key.split(".")[0] != "space"}


def load_single_trial(path: Path, words: list[str], defaults: Settings | None = None) -> Trial:
    """Return the trial of a file without its axes and `trials:`, as `load_trials`; ConfigError."""
    settings = {k: s for k, s in read_settings(path).items() if k.split(".")[0] not in SWEEP_KEYS}
    settings = {"name": Setting(path.stem, str(path))} | settings
    trials = expand(merge(defaults or {}, settings), parse_overrides(words), str(path))
    if len(trials) > 1:
        raise ConfigError(f"command line: lists make {len(trials)} trials; give one value each, or use jobs/submit.py")
    return trials[0]


def expand(settings: Settings, overrides: Settings, file: str) -> list[Trial]:
    """Resolve every combination; ConfigError.

    Settings that all trials share (the file's `model:` block and axes, the command line) apply to the methods that have
    such a hyperparameter; it is an error if none has.
    """
    entries = settings.get("trials", Setting([{}], file))
    if not isinstance(entries.value, list) or not entries.value or not all(isinstance(e, dict) for e in entries.value):
        raise ConfigError(f"{entries.place}: trials: must be a list of mappings such as [{{method: dann}}]")
    shared, shared_axes = split_axes({key: s for key, s in settings.items() if key != "trials"})
    places = {get_hyperparameter(key): s.place for key, s in (shared | shared_axes | overrides).items()}
    places = {key: place for key, place in places.items() if key.startswith("model.")}
    unknown, valid, trials = set(places), set[str](), list[Trial]()
    for entry in entries.value:
        own, own_axes = split_axes(entry)
        for method in find_methods(overrides, own_axes, own, shared_axes, shared, file):
            signature = models.signature(find_method({"method": method}, file))
            hyperparameters = {f"model.{h.name}" for h in signature.hyperparameters}
            foreign, unknown, valid = set(places) - hyperparameters, unknown - hyperparameters, valid | hyperparameters
            base = merge(without(shared, foreign), own) | {"method": method}
            axes = merge_axes({k: a for k, a in without(shared_axes, foreign).items() if k not in own}, own_axes)
            trials += combine_trials(base, own, axes, without(overrides, foreign), file)
    if unknown:
        key = min(unknown)
        try:
            check_known(key, sorted(valid), "key")
        except ValueError as error:
            raise ConfigError(f"{places[key]}: {key}: {error}") from None
    check_unique(trials, file)
    return trials


def combine_trials(
    base: Settings, own: Settings, axes: dict[str, Axis], overrides: Settings, file: str
) -> Iterator[Trial]:
    """Yield a trial of one method for every combination of the axes; `own` are its settings in `trials:`."""
    method = str(base["method"].value)
    overrides = {key: s for key, s in overrides.items() if key != "method"}
    lists = {key: s for key, s in overrides.items() if is_axis(method, key, s.value)}
    fixed = {key: s for key, s in overrides.items() if key not in lists}
    axes = {key: axis for key, axis in axes.items() if key not in fixed and key != "method"}
    for combination in combine(replace_axes(axes, lists)):
        settings = merge(base, combination | fixed)
        config = resolve_settings(settings, file)
        yield Trial(
            config, make_label(method, restore_words(config, own | combination | fixed)), config.identity(), settings
        )


def find_methods(
    overrides: Settings, own_axes: dict[str, Axis], own: Settings, axes: dict[str, Axis], shared: Settings, file: str
) -> list[Setting]:
    """Return the methods of an entry of `trials:`, usually one; the innermost setting wins."""
    for layer in (overrides, own_axes, own, axes, shared):
        choice = layer.get("method")
        values = choice.values if isinstance(choice, Axis) else choice and choice.value
        if choice is not None and values is not None:
            return [
                Setting(value, choice.place) for value in (values if isinstance(values, list) and values else [values])
            ]
    return [Setting(None, file)]


def get_hyperparameter(key: str) -> str:
    """Return `model.<name>` for a key that sets it or a part of it; any other key unchanged."""
    return ".".join(key.split(".")[:2]) if key.startswith("model.") else key


def without(layer: dict[str, Layer], foreign: set[str]) -> dict[str, Layer]:
    """Return a layer of settings or axes without the hyperparameters that a method does not have."""
    return {key: value for key, value in layer.items() if get_hyperparameter(key) not in foreign}


def is_axis(method: str, key: str, value: Any) -> bool:
    """Return whether a value of the command line lists several values of its key."""
    if isinstance(value, list) and takes_list(method, key):
        return bool(value) and all(isinstance(v, list) for v in value)
    return isinstance(value, list)


def restore_words(config: Config, settings: Settings) -> Settings:
    """Return settings with the word of the config where YAML reads it as a boolean: precision `no`, not False."""
    words: Settings = {}
    for key, setting in settings.items():
        block, _, name = key.partition(".")
        word = getattr(getattr(config, block, None), name, None)
        if isinstance(setting.value, bool) and isinstance(word, str):
            words[key] = Setting(word, setting.place)
    return settings | words


def make_label(method: str, settings: Settings) -> str:
    """Return the readable part of a run directory's name, such as dann,gamma=10,seed=0: safe on any file system."""
    pairs = [
        f"{key.rpartition('.')[2]}={setting.value}"
        for key, setting in settings.items()
        if is_in_identity(key) and key not in ("method", "train.init") and setting.value != {}
    ]
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "_", ",".join([method, *pairs]))[:100].rstrip(",._")


def check_unique(trials: list[Trial], file: str) -> None:
    """Check that no two trials have the same settings, and that the sweep has one name; ConfigError."""
    labels: dict[str, str] = {}
    for trial in trials:
        if trial.config.name != trials[0].config.name:
            raise ConfigError(
                f"{find_place(trial.settings, 'name', file)}: name: {trial.config.name!r}: "
                "the sweep has one name; set it once, at the top"
            )
        if other := labels.get(trial.identity):
            raise ConfigError(
                f"{file}: two trials are the same: {other} and {trial.label}; remove one, or make them differ "
                "(is a value repeated, or does an override replace what an axis sweeps?)"
            )
        labels[trial.identity] = trial.label
