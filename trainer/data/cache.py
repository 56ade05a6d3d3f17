"""Cache decoded datasets under the data root: memory-mapped arrays, written once, shared by every process."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data import store
from trainer.data.dataset import SPLITS, UNLABELLED, Findings, Form
from trainer.data.decode import decode
from trainer.data.registry import find as find_source
from trainer.data.registry import get
from trainer.data.sources.paths import expand_path
from trainer.errors import DataError

LARGEST = 1024  # pixels
OWN_FORM = Form()  # the dataset's own


@dataclass(frozen=True, eq=False)
class Arrays:
    """One split of a dataset, memory-mapped copy-on-write: a write stays in the process and never reaches the cache."""

    images: np.ndarray  # uint8 [N, C, H, W]; channels are last in memory, as a batch has them
    labels: np.ndarray  # int64 [N]


def data_root(configured: str | None = None) -> Path:
    """Return `configured` (data.root), else $TURNOUT_DATA, else ~/.cache/turnout: absolute, perhaps not existing."""
    root = configured or os.environ.get("TURNOUT_DATA") or "~/.cache/turnout"
    return expand_path(root, "data.root" if configured else "TURNOUT_DATA")


def stage(name: str, root: Path, form: Form = OWN_FORM, download: bool = True, skip: bool = False) -> bool:
    """Decode and convert the dataset `name` into the cache below `root`; return whether this call wrote it.

    Images are resized with antialiasing; grey is replicated to RGB, and RGB reduced to its luminance. If several
    processes stage the same dataset at once, the first result is kept. `skip` leaves out pictures that cannot be read
    or are too small, and counts them in origin.json. Raises DataError on bad arguments, missing or damaged raw files, a
    root that cannot be written, and files of the user's own that have changed since they were staged.
    """
    target = folder(name, root, form)
    if staged(name, root, form):
        return False
    dataset, findings = get(name), Findings(skip)
    fingerprint = find_source(name).fingerprint()  # before decoding, so that a change meanwhile is noticed later
    form = replace(form, size=form.size or dataset.size, channels=form.channels or dataset.channels)
    with _writing(target.parent):  # before decoding, which may take minutes
        temporary = store.create_temporary(target, f"{fingerprint} {form}")
    try:
        splits = decode(name, root, download, form, findings)
        with _writing(target.parent):
            labels = store.write_splits(temporary, splits, form, findings)
            store.write_origin(temporary, dataset, form, labels, fingerprint, findings)
            return store.publish(temporary, target, _is_complete)
    except KeyboardInterrupt:  # the next call continues with the pictures that are decoded
        raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        if target.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def staged(name: str, root: Path, form: Form = OWN_FORM) -> bool:
    """Return whether the dataset is completely in the cache, from a few file sizes.

    Warn on stderr if pictures were left out. DataError if files of the user's own have changed since.
    """
    path = folder(name, root, form)
    if not _is_complete(path):
        return False
    if origin(path).get("fingerprint") != find_source(name).fingerprint():
        raise DataError(
            f"{name} has changed since it was staged in {path}; remove that folder and the trials that were trained on "
            "it, or rename the dataset"
        )
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


def load(name: str, split: str, root: Path, form: Form = OWN_FORM, order: Sequence[int] | None = None) -> Arrays:
    """Load a split (train, validation or test) of a staged dataset, see `read`; DataError if it does not exist."""
    if split not in SPLITS:
        raise DataError(f"{name} has no split {split!r}; splits: {', '.join(SPLITS)}")
    return read(find(name, root, form), split, order)


def find(name: str, root: Path, form: Form = OWN_FORM) -> Path:
    """Return the folder of a staged dataset in the cache; DataError if it is not staged."""
    path = folder(name, root, form)
    if not _is_complete(path):
        state = "is incomplete" if os.path.exists(path) else "does not exist"
        raise DataError(
            f"{name} is not staged: {path} {state}. `python jobs/stage.py <sweep>.yaml` stages it where there is a "
            "network; data.root or TURNOUT_DATA names another data root."
        )
    return path


def read(path: Path, split: str, order: Sequence[int] | None = None) -> Arrays:
    """Load a split of the staged dataset in this folder of the cache.

    `order` renumbers the classes: class k of the dataset becomes order[k]; -1, no label, stays.
    """
    images = np.load(path / f"{split}_images.npy", mmap_mode="c").transpose(0, 3, 1, 2)
    labels = np.load(path / f"{split}_labels.npy", mmap_mode="c")
    if order is not None and list(order) != list(range(len(order))):
        labels = np.array([*order, UNLABELLED], np.int64)[labels]
    return Arrays(images, labels)


def origin(path: Path) -> dict[str, Any]:
    """Return the record of a dataset in the cache: its name, shape, classes, splits and sha256s."""
    record: dict[str, Any] = json.loads((path / "origin.json").read_text())
    return record


def folder(name: str, root: Path, form: Form = OWN_FORM) -> Path:
    """Return the folder of a dataset in the cache, staged or not; its name contains all that its bytes depend on."""
    dataset, size, channels = get(name), form.size, form.channels
    if size is not None and not 1 <= size <= LARGEST:
        raise DataError(f"{name}: size {size} is not between 1 and {LARGEST} pixels")
    if channels not in (None, 1, 3):
        raise DataError(f"{name}: channels {channels} is neither 1 (grey) nor 3 (RGB)")
    size, channels = size or dataset.size, channels or dataset.channels
    if size is None:
        raise DataError(f"{name} has no size of its own; set data.size")
    suffix = form.suffix() if dataset.is_own or dataset.size is None else ""  # official arrays are square and opaque
    return root / "cache" / f"{dataset.cache_name or name}-{size}x{size}x{channels}{suffix}-v{dataset.recipe}"


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
