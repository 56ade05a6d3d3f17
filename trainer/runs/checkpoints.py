"""Checkpoints that are whole or not there: written aside, checked by a manifest, renamed into place."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from trainer.errors import CheckpointError
from trainer.runs.atomic import read_json, write_text

MANIFEST = "manifest.json"


def save(
    run: Path,
    step: int,
    identity: str,
    write: Callable[[Path], None],
    check: Callable[[], None] = lambda: None,
    keep: int = 2,
) -> Path:
    """Write checkpoints/step-<step> by calling `write(folder)`, point `latest` at it, drop all but the newest `keep`.

    `check` is called when all is written, right before it is put in place, and may raise to prevent that.
    Raises CheckpointError if the disk refuses; what was there before is then untouched and the scraps are removed.
    """
    folder = run / "checkpoints"
    final, temporary = folder / f"step-{step:06d}", folder / f".step-{step:06d}.{uuid4().hex[:8]}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        write(temporary)
        files = {path.name: describe(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps({"step": step, "identity": identity, "files": files}, indent=1))
        for path in temporary.iterdir():
            synchronise(path)
        synchronise(temporary)
        check()
        shutil.rmtree(final, ignore_errors=True)  # of this very step: replayed after an older one was taken up
        os.replace(temporary, final)
        synchronise(folder)
        write_text(run / "latest", final.name + "\n")
    except Exception as error:
        if not (reason := refusal(error)):
            raise
        good = next(verified(run, lambda line: None), None)
        kept = f"{good} is good and the same command goes on from it" if good else "there is no earlier one"
        raise CheckpointError(
            f"{final}: checkpoint not written: {reason}; free space there and run again; {kept}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    there = steps(run)
    # What lies ahead of this step is damaged, else it would have been taken up: it must not crowd out what is good.
    ahead = there[: there.index(final)]
    for old in [*ahead, *there[len(ahead) + keep :]]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def refusal(error: BaseException | None) -> str:
    """What the operating system said when a file could not be written; empty where an error has another cause.

    The writers of safetensors and torch wrap it: one leaves nothing but its number in a text, the other raises an
    error of its own on the way out.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            return os.strerror(int(number[1]))
        error = error.__cause__ or error.__context__
    return ""


def clear_scraps(run: Path) -> None:
    """Remove what processes left that died while saving; only for who has the run to itself."""
    for scraps in (run / "checkpoints").glob(".step-*.tmp"):
        shutil.rmtree(scraps, ignore_errors=True)
    for scrap in (run / "weights").glob(".step-*.tmp"):
        scrap.unlink(missing_ok=True)


def newest(run: Path, identities: set[str], say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose every byte is as it was written; None if the run has none at all.

    Says each one that had to be passed over. Raises CheckpointError if there are some but none is good, or if its
    configuration has none of `identities`.
    """
    found = next(verified(run, say), None)
    if found is None and steps(run):
        raise CheckpointError(
            f"{run}: none of its {len(steps(run))} checkpoints is intact; remove {run / 'checkpoints'} to start anew"
        )
    if found and (made_by := read_json(found / MANIFEST).get("identity")) not in identities:
        now = " or ".join(sorted(identities))
        raise CheckpointError(f"{found}: was made by another config ({made_by}, now {now}); use another directory")
    return found


def verified(run: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """Yield the intact checkpoints, newest first."""
    for path in steps(run):
        if problem := damage(path):
            say(f"{path}: {problem}; falling back to the one before")
        else:
            yield path


def steps(run: Path) -> list[Path]:
    """Checkpoints of a run, newest first, intact or not."""
    return sorted((run / "checkpoints").glob("step-*"), key=lambda p: int(p.name.removeprefix("step-")), reverse=True)


def damage(path: Path) -> str:
    """What is wrong with a checkpoint; empty if every file has the size and the sha256 that its manifest says."""
    files: dict[str, Any] = read_json(path / MANIFEST).get("files", {})
    if not files:
        return "its manifest is missing or unreadable"
    for name, expected in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if describe(path / name) != expected:
            return f"{name} is not what was written"
    return ""


def describe(path: Path) -> dict[str, Any]:
    """Size in bytes and sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def synchronise(path: Path) -> None:
    """Have the kernel put a file or folder on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
