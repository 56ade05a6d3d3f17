"""Which run directory belongs to which trial."""

from pathlib import Path

from trainer.config.document import read
from trainer.config.schema import resolve
from trainer.config.sweep import Trial
from trainer.errors import ConfigError
from trainer.runs.atomic import write_text


def place(folder: Path, trials: list[Trial], write: bool = True) -> list[Path]:
    """The run directories of the trials, made with their config.yaml where missing (`write`).

    The identity at the end of a name finds a trial again, whatever words described it then. ConfigError if a
    directory holds another config or cannot be written.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"{there}: is no directory, so runs cannot lie there; give another --runs")
    names = {path.name for path in folder.iterdir()} if there == folder else set()
    found = {name.rpartition("-")[2]: name for name in sorted(names)}
    places = [folder / (t.name if t.name in names else found.get(t.identity, t.name)) for t in trials]
    for trial, path in zip(trials, places, strict=True):
        file = path / "config.yaml"
        if file.exists():
            if file.read_text() == trial.config.to_yaml():
                continue
            if (made_by := resolve(read(file), str(file)).identity()) != trial.identity:
                raise ConfigError(
                    f"{path}: was made by another config ({made_by}, not {trial.identity}); "
                    "move it away, or change name:"
                )
        if write:
            try:
                path.mkdir(parents=True, exist_ok=True)
                write_text(file, trial.config.to_yaml())
            except OSError as error:
                raise ConfigError(f"{path}: cannot write there: {error.strerror}; give another --runs") from None
    return places
