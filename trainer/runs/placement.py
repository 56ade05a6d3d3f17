"""Which run directory belongs to which trial."""

from pathlib import Path

from trainer.config.resolve import load_config
from trainer.config.sweep import Trial
from trainer.errors import ConfigError
from trainer.runs.atomic import write_text


def create_run_directories(folder: Path, trials: list[Trial]) -> list[Path]:
    """Return the run directories of trials; create those that are missing, with their config.yaml.

    ConfigError as `locate_trials`, or where a directory cannot be written.
    """
    paths = locate_trials(folder, trials)
    for trial, path in zip(trials, paths, strict=True):
        file, text = path / "config.yaml", trial.config.to_yaml()
        if file.exists() and file.read_text() == text:
            continue
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_text(file, text)
        except OSError as error:
            raise ConfigError(f"{path}: cannot write there: {error.strerror}; give another --runs") from None
    return paths


def locate_trials(folder: Path, trials: list[Trial]) -> list[Path]:
    """Return the run directories of trials, whether they exist or not; nothing is written.

    A trial is found by the identity at the end of the name. ConfigError if a directory holds another config.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"{existing}: is not a directory, so it cannot hold run directories; give another --runs")
    names = {path.name for path in folder.iterdir()} if existing == folder else set()
    by_identity = {name.rpartition("-")[2]: name for name in sorted(names)}
    paths = [folder / (t.name if t.name in names else by_identity.get(t.identity, t.name)) for t in trials]
    for trial, path in zip(trials, paths, strict=True):
        file = path / "config.yaml"
        if not file.exists() or file.read_text() == trial.config.to_yaml():
            continue
        if (identity := load_config(file).identity()) != trial.identity:
            raise ConfigError(
                f"{path}: was made by another config ({identity}, not {trial.identity}); move it away, or change name:"
            )
    return paths
