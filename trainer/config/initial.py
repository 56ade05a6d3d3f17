"""What a training starts from: the weights, or the whole state, of another trial; importable without torch."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from trainer.config.validators import Section
from trainer.runs import checkpoints
from trainer.runs.atomic import hash_file
from trainer.runs.directory import RunDirectory


class Init(Section):
    """The trial that a training starts from. Its path is not part of the identity; the sha256 of what is taken is."""

    trial: str  # run directory
    take: Literal["weights", "all"] = "weights"  # all: also optimizers and the step, to train a trial for longer
    sha256: str | None = None  # of the file that is taken; filled in when the sweep is read


def read_init(value: Any) -> Any:
    """Return {trial: path} for a path alone."""
    return {"trial": value} if isinstance(value, str) else value


def fill_in(init: Init, method: str, steps: int) -> Init:
    """Return an Init with an absolute path and the sha256 of what is taken now; ValueError where nothing can be."""
    if init.sha256:
        return init
    run = RunDirectory(Path(os.path.abspath(os.path.expanduser(init.trial))))
    if not run.exists():
        raise ValueError(f"trial: {init.trial!r} is no run directory; give logs/<sweep>/<trial>")
    other = run.config().get("method")
    if init.take == "all" and other != method:
        raise ValueError(
            f"take: 'all': {run.name} trains {other}, not {method}, so its optimizers do not fit; set take: weights"
        )
    step, file = locate(run, init.take)
    if init.take == "all" and step >= steps:
        raise ValueError(f"take: 'all': {run.name} is at step {step} already; set train.steps to more than {step}")
    status = file.stat()
    return Init(trial=str(run.path), take=init.take, sha256=hash_version(file, status.st_mtime_ns, status.st_size))


def locate(run: RunDirectory, take: str) -> tuple[int, Path]:
    """Return step and file of the newest weights, or of the manifest of the newest checkpoint; ValueError if none."""
    if take == "weights":
        if not (weights := run.exported_weights()):
            raise ValueError(f"trial: {run.name} has no weights yet (it is {run.state()}); wait until it is done")
        return max(weights.items())
    if (checkpoint := next(checkpoints.intact(run), None)) is None:
        raise ValueError(
            f"take: 'all': {run.name} has no checkpoint: those of a finished trial are removed, unless it was trained "
            "with train.keep_checkpoints; set take: weights"
        )
    return int(checkpoint.name.removeprefix("step-")), checkpoint / checkpoints.MANIFEST


@lru_cache
def hash_version(file: Path, modified: int, size: int) -> str:
    """Return the sha256 of a file, which is read once for all trials of a sweep."""
    return hash_file(file)
