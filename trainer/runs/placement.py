"""Which run directory belongs to which trial."""

import re
from pathlib import Path
from typing import Any

from trainer.config.document import nest, read_settings
from trainer.config.resolve import load_config, resolve
from trainer.config.schema import Config, compute_identity, dump_yaml, is_in_identity, select_identity
from trainer.config.sweep import Trial
from trainer.errors import ConfigError
from trainer.runs.atomic import write_text
from trainer.runs.directory import RunDirectory


def locate_trials(folder: Path, trials: list[Trial]) -> list[Path]:
    """Return the run directories of trials, whether they exist or not; nothing is written.

    A trial's directory ends with its identity. Otherwise it is a directory whose config.yaml, resolved today, is the
    trial's. ConfigError if a directory contains another config.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"{existing}: is not a directory, so it cannot hold run directories; give another --runs")
    names = {path.name for path in folder.iterdir()} if existing == folder else set()
    by_identity = {name.rpartition("-")[2]: name for name in sorted(names)}
    matches = {t.identity: t.name if t.name in names else by_identity.get(t.identity) for t in trials}
    missing = {identity for identity, name in matches.items() if name is None}
    older = find_older(folder, names - set(matches.values()), missing) if missing else {}
    paths = [folder / (matches[t.identity] or older.get(t.identity, t.name)) for t in trials]
    for trial, path in zip(trials, paths, strict=True):
        file = RunDirectory(path).config_file
        if not file.exists() or file.read_text() == trial.config.to_yaml():
            continue
        if (identity := load_config(file).identity()) != trial.identity:
            raise ConfigError(
                f"{path}: was made by another config ({identity}, not {trial.identity}); move it away, or change name:"
            )
    return paths


def find_older(folder: Path, names: set[str], identities: set[str]) -> dict[str, str]:
    """Return {identity: directory} of trials that were started before their method had all of today's hyperparameters.

    Such a directory ends with the identity of its config.yaml as it is written; with today's defaults filled in, its
    identity is one of `identities`.
    """
    matches: dict[str, str] = {}
    for name in sorted(name for name in names if re.search("-[0-9a-f]{8}$", name)):
        document = RunDirectory(folder / name).config()
        if compute_identity(document) != name.rpartition("-")[2]:
            continue  # edited by hand, or not a run directory
        try:
            identity = resolve(document, name).identity()
        except ConfigError:
            continue  # written for a method or a dataset that no longer exists
        if identity in identities:
            matches.setdefault(identity, name)
    return matches


def create_run_directories(folder: Path, trials: list[Trial]) -> list[Path]:
    """Return the run directories of trials; create those that are missing, and update their config.yaml.

    ConfigError as `locate_trials`, or if a directory cannot be written.
    """
    paths = locate_trials(folder, trials)
    for trial, path in zip(trials, paths, strict=True):
        file, text = RunDirectory(path).config_file, trial.config.to_yaml()
        current = file.read_text() if file.exists() else ""
        if current and current != text:
            text = update_document(read_document(file), trial.config)
        if current == text:
            continue
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_text(file, text)
        except OSError as error:
            raise ConfigError(f"{path}: cannot write there: {error.strerror}; give another --runs") from None
    return paths


def update_document(document: dict[str, Any], config: Config) -> str:
    """Return the text of a config.yaml for `config`, with the settings of its identity as `document` has them.

    The checkpoints beside it carry the identity of these settings.
    """
    written, updated = select_identity(document), config.model_dump(mode="json")
    for block in ("model", "data", "train"):
        outside = {key: v for key, v in updated[block].items() if not is_in_identity(f"{block}.{key}")}
        updated[block] = written[block] | outside
    return dump_yaml(updated)


def read_document(file: Path) -> dict[str, Any]:
    """Return a config.yaml as it is written, without defaults; ConfigError."""
    return {"model": {}, "data": {}, "train": {}} | nest(read_settings(file))


def compute_written_identity(run: RunDirectory) -> str:
    """Return the identity of a run directory's config.yaml as it is written, without today's defaults; ConfigError.

    Its checkpoints carry it: it stays the same when the method gets another hyperparameter.
    """
    return compute_identity(read_document(run.config_file))
