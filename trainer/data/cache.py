"""Cache decoded datasets under the data root: memory-mapped arrays, written once, shared by every process."""

import errno
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.convert import convert
from trainer.data.dataset import SPLITS, Dataset
from trainer.data.decode import decode
from trainer.data.registry import find as find_source
from trainer.data.registry import get
from trainer.data.splits import SEED
from trainer.errors import DataError

LARGEST = 1024  # pixels


@dataclass(frozen=True, eq=False)
class Arrays:
    """One split of a dataset, memory-mapped copy-on-write: a write stays in the process and never reaches the cache."""

    images: np.ndarray  # uint8 [N, C, H, W]; channels are last in memory, as a batch has them
    labels: np.ndarray  # int64 [N]


def data_root(configured: str | None = None) -> Path:
    """Return `configured` (data.root), else $TURNOUT_DATA, else ~/.cache/turnout: absolute, perhaps not existing."""
    return Path(configured or os.environ.get("TURNOUT_DATA") or "~/.cache/turnout").expanduser().absolute()


def stage(
    name: str,
    root: Path,
    size: int | None = None,
    channels: int | None = None,
    download: bool = True,
    skip: bool = False,
) -> bool:
    """Decode and convert the dataset `name` into the cache below `root`; return whether this call wrote it.

    `size` resizes (antialiased), `channels` replicates grey or takes the luminance; None keeps the dataset's own.
    If several processes stage the same dataset at once, the first result is kept. `skip` leaves out pictures that
    cannot be read or are too small, and counts them in origin.json.
    Raises DataError on bad arguments, missing or damaged raw files, a root that cannot be written, and files of the
    user's own that have changed since they were staged.
    """
    target = folder(name, root, size, channels)
    if staged(name, root, size, channels):
        return False
    dataset, left_out = get(name), list[str]()
    fingerprint = find_source(name).fingerprint()  # before decoding, so that a change meanwhile is noticed later
    size, channels = size or dataset.size or 0, channels or dataset.channels
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with _writing(target.parent):  # before decoding, which may take minutes
            temporary.mkdir(parents=True)
        splits = decode(name, root, download, size, left_out if skip else None)
        converted = {split: (convert(images, size, channels), labels) for split, (images, labels) in splits.items()}
        with _writing(target.parent):
            _write(temporary, dataset, converted, fingerprint, left_out)
            return _publish(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def staged(name: str, root: Path, size: int | None = None, channels: int | None = None) -> bool:
    """Return whether the dataset is completely in the cache, from a few file sizes.

    Warn on stderr if pictures were left out. DataError if files of the user's own have changed since.
    """
    path = folder(name, root, size, channels)
    if not _is_complete(path):
        return False
    if origin(path).get("fingerprint") != find_source(name).fingerprint():
        raise DataError(f"{name} has changed since it was staged in {path}; remove that folder, or rename the dataset")
    _warn_left_out(path)
    return True


@lru_cache  # once in a process
def _warn_left_out(path: Path) -> None:
    """Warn on stderr if pictures were left out of the dataset in this folder of the cache."""
    left_out = origin(path).get("left_out") or {"count": 0}
    if left_out["count"]:
        print(
            f"{path}: {left_out['count']} pictures that could not be used were left out when it was staged, such as "
            f"{left_out['first'][0]}; to stage it again, repair them and remove that folder",
            file=sys.stderr,
        )


def load(name: str, split: str, root: Path, size: int | None = None, channels: int | None = None) -> Arrays:
    """Load a split (train, validation or test) of a staged dataset; DataError if it does not exist."""
    if split not in SPLITS:
        raise DataError(f"{name} has no split {split!r}; splits: {', '.join(SPLITS)}")
    return read(find(name, root, size, channels), split)


def find(name: str, root: Path, size: int | None = None, channels: int | None = None) -> Path:
    """Return the folder of a staged dataset in the cache; DataError if it is not staged."""
    path = folder(name, root, size, channels)
    if not _is_complete(path):
        state = "is incomplete" if os.path.exists(path) else "does not exist"
        raise DataError(
            f"{name} is not staged: {path} {state}. `python jobs/stage.py <sweep>.yaml` stages it where there is a "
            "network; data.root or TURNOUT_DATA names another data root."
        )
    return path


def read(path: Path, split: str) -> Arrays:
    """Load a split of the staged dataset in this folder of the cache."""
    images = np.load(path / f"{split}_images.npy", mmap_mode="c").transpose(0, 3, 1, 2)
    return Arrays(images, np.load(path / f"{split}_labels.npy", mmap_mode="c"))


def origin(path: Path) -> dict[str, Any]:
    """Return the record of a dataset in the cache: its name, shape, classes, splits and sha256s."""
    record: dict[str, Any] = json.loads((path / "origin.json").read_text())
    return record


def folder(name: str, root: Path, size: int | None = None, channels: int | None = None) -> Path:
    """Return the folder of a dataset in the cache, staged or not; its name contains all that its bytes depend on."""
    dataset = get(name)
    if size is not None and not 1 <= size <= LARGEST:
        raise DataError(f"{name}: size {size} is not between 1 and {LARGEST} pixels")
    if channels not in (None, 1, 3):
        raise DataError(f"{name}: channels {channels} is neither 1 (grey) nor 3 (RGB)")
    size, channels = size or dataset.size, channels or dataset.channels
    if size is None:
        raise DataError(f"{name} has no size of its own; set data.size")
    return root / "cache" / f"{dataset.cache_name or name}-{size}x{size}x{channels}-v{dataset.recipe}"


def _is_complete(path: Path) -> bool:
    """Return whether every file that origin.json names exists at its full length."""
    try:
        files = origin(path)["files"]
        return all((path / file).stat().st_size == facts["bytes"] for file, facts in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a failed write into a DataError with the remedy."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write the data cache {path}: {error.strerror or error}. Point data.root or TURNOUT_DATA at a "
            "writable folder with free space; raw files of a read-only folder can be linked into it."
        ) from error


def _write(
    folder: Path,
    dataset: Dataset,
    splits: dict[str, tuple[np.ndarray, np.ndarray]],
    fingerprint: str | None,
    left_out: list[str],
) -> None:
    """Write the arrays of every split, images [N, H, W, C] and labels [N], and origin.json."""
    files: dict[str, dict[str, int | str]] = {}
    for split, (images, labels) in splits.items():
        for kind, array in (("images", images), ("labels", labels)):
            path = folder / f"{split}_{kind}.npy"
            with path.open("wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            content = np.memmap(path, np.uint8, "r")
            files[path.name] = {"bytes": content.size, "sha256": hashlib.sha256(content.data).hexdigest()}
    size, channels = splits["train"][0].shape[2:]
    facts = {
        "dataset": dataset.name,
        "origin": dataset.origin,
        "size": size,
        "channels": channels,
        "classes": dataset.classes,
        "recipe": dataset.recipe,
        "seed": SEED,
        "splits": {split: len(labels) for split, (_, labels) in splits.items()},
        "files": files,
        "fingerprint": fingerprint,
        "left_out": {"count": len(left_out), "first": left_out[:10]},
    }
    with (folder / "origin.json").open("w") as file:
        file.write(json.dumps(facts, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk, so that they survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _publish(temporary: Path, target: Path) -> bool:
    """Rename a finished folder to its final name; return False if another process came first. Replace a damaged one."""
    while True:
        try:
            temporary.rename(target)
            _sync_folder(target.parent)
            return True
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if _is_complete(target):
                return False
            with suppress(FileNotFoundError):  # another process replaces it, too
                target.rename(temporary.with_name(temporary.name + ".damaged"))
                shutil.rmtree(temporary.with_name(temporary.name + ".damaged"))
