"""Which run directory belongs to which trial."""

import re
from contextlib import suppress
from functools import cache
from pathlib import Path

from trainer.config.document import Document, nest, read_settings
from trainer.config.resolve import resolve, resolve_settings
from trainer.config.schema import Config, compute_identity, dump_yaml, hash_identity, is_in_identity, select_identity
from trainer.config.sweep import Trial
from trainer.errors import ConfigError
from trainer.runs.atomic import write_text
from trainer.runs.directory import RunDirectory


def locate_trials(folder: Path, trials: list[Trial]) -> list[Path]:
    """Return the run directories of trials, whether they exist or not; nothing is written.

    The name of a trial's directory ends with its identity. Otherwise it is a directory whose config.yaml, resolved
    today, is the trial's. ConfigError if a directory contains another config.
    """
    paths = match_directories(folder, trials)
    for trial, path in zip(trials, paths, strict=True):
        update_config(path, trial)
    return paths


def create_run_directories(folder: Path, trials: list[Trial]) -> list[Path]:
    """Return the run directories of trials; create those that are missing, and update their config.yaml.

    ConfigError as `locate_trials`, or if a directory cannot be written.
    """
    paths = match_directories(folder, trials)
    for trial, path in zip(trials, paths, strict=True):
        create_run_directory(path, trial)
    return paths


def create_run_directory(path: Path, trial: Trial) -> None:
    """Create the run directory of a trial at `path`, or update its config.yaml; ConfigError."""
    if text := update_config(path, trial):
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_text(RunDirectory(path).config_file, text)
        except OSError as error:
            raise ConfigError(f"{path}: cannot write there: {error.strerror}; give another --runs") from None


def match_directories(folder: Path, trials: list[Trial]) -> list[Path]:
    """Return the directory of each trial: by name, by the identity at the end of the name, or by today's identity."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"{existing}: is not a directory, so it cannot hold run directories; give another --runs")
    names = {path.name for path in folder.iterdir()} if existing == folder else set()
    by_identity = {get_digits(name): name for name in sorted(names)}
    matches = {t.identity: t.name if t.name in names else by_identity.get(t.identity) for t in trials}
    missing = {identity for identity, name in matches.items() if not name}
    older = find_older(folder, names - set(matches.values()), missing) if missing else {}
    return [folder / (matches[t.identity] or older.get(t.identity, t.name)) for t in trials]


def find_older(folder: Path, names: set[str], identities: set[str]) -> dict[str, str]:
    """Return {identity: directory} of trials that were started before their method had all of today's hyperparameters.

    The name of such a directory ends with the identity of its config.yaml as it is written, so that one that was edited
    by hand does not match; with today's defaults filled in, the identity is one of `identities`.
    """
    matches: dict[str, str] = {}
    for name in sorted(name for name in names if re.fullmatch("[0-9a-f]{8}", get_digits(name))):
        # Other entries of the folder, and configs of methods or datasets that no longer exist, match nothing.
        with suppress(ConfigError, OSError):
            document, identity = read_config(RunDirectory(folder / name))
            if compute_identity(document) == get_digits(name) and identity in identities:
                matches.setdefault(identity, name)
    return matches


def update_config(path: Path, trial: Trial) -> str:
    """Return the new text of a run directory's config.yaml, empty if it need not change; ConfigError.

    The settings of the identity stay as they are written: the checkpoints carry the identity of these.
    """
    run, text = RunDirectory(path), trial.config.to_yaml()
    if not run.exists():
        return text
    if run.config_file.read_text() == text:
        return ""
    document, identity = read_config(run)
    if identity != trial.identity:
        raise ConfigError(
            f"{path}: was made by another config ({identity}, not {trial.identity}); move it away, or change name:"
        )
    written, updated = select_identity(document), trial.config.to_document()
    for block in ("model", "data", "train"):
        outside = {key: value for key, value in updated[block].items() if not is_in_identity(f"{block}.{key}")}
        updated[block] = written[block] | outside
    return "" if updated == document else dump_yaml(updated)


def compute_written_identity(run: RunDirectory) -> str:
    """Return the identity of a run directory's config.yaml as it is written, without today's defaults; ConfigError.

    Its checkpoints carry it, because it stays the same when the method gets another hyperparameter.
    """
    return compute_identity(read_config(run)[0])


def is_of_earlier_revision(run: RunDirectory) -> bool:
    """Return whether a trial was trained before its network was corrected: its identity lacks the revision."""
    content = select_identity(run.config())
    return content.pop("revision", 0) != 0 and hash_identity(content) == get_digits(run.name)


def read_config(run: RunDirectory) -> tuple[Document, str]:
    """Return a run directory's config.yaml as it is written, and its identity with today's defaults; ConfigError."""
    return _read_config(run, run.config_file.stat().st_mtime_ns)


@cache
def _read_config(run: RunDirectory, time: int) -> tuple[Document, str]:
    """Read a file once for all the times that a command locates its trials, unless it has changed since `time`."""
    document, place = run.config(), str(run.config_file)
    if document.keys() == Config.model_fields.keys() and compute_identity(document) == get_digits(run.name):
        return document, resolve(document, place).identity()
    # Written or edited by hand: perhaps with dotted keys or a base file, and errors need line numbers.
    settings = read_settings(run.config_file)
    document = {"model": {}, "data": {}, "train": {}} | nest(settings)
    return document, resolve_settings(settings, place).identity()


def get_digits(name: str) -> str:
    """Return the identity at the end of a run directory's name."""
    return name.rpartition("-")[2]
