"""Checkpoints: written to a temporary directory, described by a manifest, fsynced, and renamed into place."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError
from trainer.runs.atomic import hash_file, read_json, replace_directory, write_text
from trainer.runs.directory import RunDirectory
from trainer.runs.disk import disk_error, persist

MANIFEST = "manifest.json"


def save(
    run: RunDirectory,
    step: int,
    identity: str,
    write: Callable[[Path], None],
    check: Callable[[], None] = lambda: None,
    keep: int = 2,
) -> Path:
    """Write checkpoints/step-<step> by `write(directory)`, point `latest` at it, and keep the newest `keep`.

    `check` is called right before the checkpoint is put in place, and may raise to prevent that. Raises CheckpointError
    if the disk refuses; earlier checkpoints are then untouched and temporary files removed.
    """
    final = run.checkpoints / f"step-{step:06d}"

    def put_in_place() -> None:
        # A checkpoint of this very step exists where training resumed from an older one.
        with replace_directory(final, check) as temporary:
            write(temporary)
            files = {path.name: describe(path) for path in sorted(temporary.iterdir())}
            manifest = {"step": step, "identity": identity, "files": files}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        write_text(run.latest_file, final.name + "\n")

    problem = f"{final}: checkpoint not written"
    with explain_refusal(problem, lambda: _resume_hint(run)):
        persist(put_in_place, problem)
    paths = steps(run)
    # Checkpoints of later steps are damaged, else training would have resumed from them.
    later = paths[: paths.index(final)]
    for old in [*later, *paths[len(later) + keep :]]:
        shutil.rmtree(old, ignore_errors=True)
    return final


class Writer:
    """Write one checkpoint at a time, in a thread, while the training continues; leave it as a context to wait."""

    def __init__(self) -> None:
        self.thread, self.pending = ThreadPoolExecutor(1, "checkpoint"), Future[Any]()
        self.pending.set_result(None)

    def __enter__(self) -> "Writer":
        return self

    def submit(self, write: Callable[[], Any]) -> None:
        """Call `write` in the thread, when the checkpoint before is written; the error of that one is raised."""
        self.pending.result()
        self.pending = self.thread.submit(write)

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Wait until the newest checkpoint is written; raise its error, unless another one ends the training."""
        self.thread.shutdown()
        if error is None:
            self.pending.result()


def export_weights(
    run: RunDirectory, step: int, write: Callable[[Path], None], check: Callable[[], None] = lambda: None
) -> None:
    """Write the weights for evaluation by `write(file)`, after a last `check`; CheckpointError if the disk refuses."""
    message = f"{run.path}: weights of step {step} not written"
    with explain_refusal(message, lambda: "rerun the same command to resume"):
        persist(lambda: run.write_weights(step, write, check), message)


def newest(run: RunDirectory, identities: set[str], say: Callable[[str], None]) -> Path | None:
    """Return the newest intact checkpoint; None if the trial has no checkpoint at all, or is done.

    `say` reports each damaged one. Raises CheckpointError if none is intact, or if its settings have none of
    `identities`.
    """
    checkpoint = next(intact(run, say), None)
    if run.is_done():  # the attempt that finished it may be removing its checkpoints now
        return None
    if checkpoint is None and (paths := steps(run)):
        raise CheckpointError(
            f"{run.path}: none of its {len(paths)} checkpoints is intact; remove {run.checkpoints} to start over"
        )
    if checkpoint and (written := read_json(checkpoint / MANIFEST).get("identity")) not in identities:
        expected = " or ".join(sorted(identities))
        raise CheckpointError(
            f"{checkpoint}: belongs to another config ({written}, not {expected}); use another directory"
        )
    return checkpoint


def intact(run: RunDirectory, say: Callable[[str], None] = lambda line: None) -> Iterator[Path]:
    """Yield the intact checkpoints, newest first; `say` reports the damaged ones."""
    for path in steps(run):
        if problem := damage(path):
            say(f"{path}: {problem}; falling back to the previous checkpoint")
        else:
            yield path


def steps(run: RunDirectory) -> list[Path]:
    """Return the checkpoints of a trial, intact or not, newest first."""
    paths = [path for path in run.checkpoints.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]  # not backups
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def remove_all(run: RunDirectory) -> None:
    """Remove the checkpoints of a finished trial, which will not be resumed."""
    run.latest_file.unlink(missing_ok=True)
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def damage(path: Path) -> str:
    """Say what is wrong with a checkpoint; empty if every file has the size and the sha256 of its manifest."""
    files: dict[str, Any] = read_json(path / MANIFEST).get("files", {})
    if not files:
        return "its manifest is missing or unreadable"
    for name, expected in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if describe(path / name) != expected:
            return f"{name} differs from what was written"
    return ""


def describe(path: Path) -> dict[str, Any]:
    """Return size in bytes and sha256 of a file."""
    return {"size": path.stat().st_size, "sha256": hash_file(path)}


@contextmanager
def explain_refusal(message: str, remedy: Callable[[], str]) -> Iterator[None]:
    """Turn the refusal of the disk to write a file into a CheckpointError; other errors pass."""
    try:
        yield
    except Exception as error:
        if not (reason := disk_error(error)):
            raise
        raise CheckpointError(f"{message}: {reason}; free space there and run again; {remedy()}") from error


def _resume_hint(run: RunDirectory) -> str:
    checkpoint = next(intact(run), None)
    if checkpoint is None:
        return "there is no earlier one"
    return f"{checkpoint} is intact: rerun the same command to resume from it"
