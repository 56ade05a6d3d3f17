"""The cache of decoded datasets: memory-mapped arrays under the data root, written once, shared by every process."""

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
from trainer.data.decode import SEED, decode
from trainer.data.own import fingerprint, parts
from trainer.data.registry import SPLITS, Dataset, get
from trainer.errors import DataError

RECIPE = 1  # raise it when a set, a split or a conversion changes: what an older recipe staged is then not used
RECIPE_OWN = 2  # the same for files of the user's own; 2: val and valid, too, are validation
LARGEST = 1024  # pixels


@dataclass(frozen=True, eq=False)
class Arrays:
    """One split of a dataset, memory-mapped copy-on-write: a write stays in the process and never reaches the cache."""

    images: np.ndarray  # uint8 [N, C, H, W]; channels are last in memory, as a batch has them
    labels: np.ndarray  # int64 [N]


def data_root(configured: str | None = None) -> Path:
    """`configured` (data.root), else $TURNOUT_DATA, else ~/.cache/turnout; absolute, not necessarily there yet."""
    return Path(configured or os.environ.get("TURNOUT_DATA") or "~/.cache/turnout").expanduser().absolute()


def stage(
    name: str,
    root: Path,
    size: int | None = None,
    channels: int | None = None,
    download: bool = True,
    skip: bool = False,
) -> bool:
    """Decode and convert the dataset `name` into the cache below `root`; True if this call put it there.

    `size` resizes (antialiased), `channels` replicates grey or takes the luminance; None keeps the set's own.
    Of several processes that stage the same set at once, the first to finish is kept. `skip` leaves out, and counts in
    origin.json, pictures that cannot be read or are too small.
    Raises DataError on bad arguments, raw files that cannot be had or read, a root that cannot be written, and a set
    of the user's own that has changed since it was staged.
    """
    target = folder(name, root, size, channels)
    if staged(name, root, size, channels):
        return False
    dataset, left_out = get(name), list[str]()
    facts = fingerprint(name) if _own(name) else None  # before decoding: what changes meanwhile is noticed later
    size, channels = size or dataset.size or 0, channels or dataset.channels
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with _writing(target.parent):  # learn that the root is read-only before minutes of decoding, not after
            temporary.mkdir(parents=True)
        splits = decode(name, root, download, size, left_out if skip else None)
        converted = {split: (convert(images, size, channels), labels) for split, (images, labels) in splits.items()}
        with _writing(target.parent):
            _write(temporary, dataset, converted, facts, left_out)
            return _publish(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def staged(name: str, root: Path, size: int | None = None, channels: int | None = None) -> bool:
    """Whether `load` would find the set complete; reads a few file sizes, no array.

    Says on stderr if pictures were left out of it. DataError if files of the user's own are no longer those that were
    staged.
    """
    place = folder(name, root, size, channels)
    complete = _complete(place)
    if complete and _own(name) and origin(place).get("fingerprint") != fingerprint(name):
        raise DataError(f"{name} has changed since it was staged in {place}; remove that folder, or rename the set")
    if complete:
        _say_left_out(place)
    return complete


@lru_cache  # once in a process
def _say_left_out(place: Path) -> None:
    """Recall on stderr what the set in this folder lacks, if it was staged without pictures that cannot be used."""
    left_out = origin(place).get("left_out") or {"count": 0}
    if left_out["count"]:
        print(
            f"{place}: {left_out['count']} pictures that could not be used were left out when it was staged, such as "
            f"{left_out['first'][0]}; to stage it again, repair them and remove that folder",
            file=sys.stderr,
        )


def load(name: str, split: str, root: Path, size: int | None = None, channels: int | None = None) -> Arrays:
    """A split (train, validation or test) of a staged set; DataError if there is no such split or it is not staged."""
    if split not in SPLITS:
        raise DataError(f"{name} has no split {split!r}; splits: {', '.join(SPLITS)}")
    return read(find(name, root, size, channels), split)


def find(name: str, root: Path, size: int | None = None, channels: int | None = None) -> Path:
    """The folder of a staged set; DataError if it is not staged."""
    place = folder(name, root, size, channels)
    if not _complete(place):
        state = "is incomplete" if os.path.exists(place) else "does not exist"
        raise DataError(
            f"{name} is not staged: {place} {state}. `python jobs/stage.py <sweep>.yaml` stages it where there is a "
            "network; data.root or TURNOUT_DATA names another data root."
        )
    return place


def read(place: Path, split: str) -> Arrays:
    """A split of the staged set that lies in this folder."""
    images = np.load(place / f"{split}_images.npy", mmap_mode="c").transpose(0, 3, 1, 2)
    return Arrays(images, np.load(place / f"{split}_labels.npy", mmap_mode="c"))


def origin(place: Path) -> dict[str, Any]:
    """What was written down of the set in this folder when it was staged: its name, shape, classes and sha256s."""
    record: dict[str, Any] = json.loads((place / "origin.json").read_text())
    return record


def folder(name: str, root: Path, size: int | None = None, channels: int | None = None) -> Path:
    """Where the set lies in the cache, there or not: its name says all that its bytes depend on."""
    dataset = get(name)
    if size is not None and not 1 <= size <= LARGEST:
        raise DataError(f"{name}: size {size} is not between 1 and {LARGEST} pixels")
    if channels not in (None, 1, 3):
        raise DataError(f"{name}: channels {channels} is neither 1 (grey) nor 3 (RGB)")
    size, channels = size or dataset.size, channels or dataset.channels
    if size is None:
        raise DataError(f"{name} has no size of its own; set data.size")
    if _own(name):
        kind, path, _ = parts(name)
        name = f"{kind}-{path.stem}-{hashlib.sha256(dataset.name.encode()).hexdigest()[:8]}"
    return root / "cache" / f"{name}-{size}x{size}x{channels}-v{_recipe(dataset.name)}"


def _own(name: str) -> bool:
    """Whether a set is made of files that only the user knows."""
    return name.startswith(("npz:", "folder:"))


def _recipe(name: str) -> int:
    """The recipe by which a set is staged."""
    return RECIPE_OWN if _own(name) else RECIPE


def _complete(place: Path) -> bool:
    """Whether every file that origin.json names is there at its full length."""
    try:
        files = origin(place)["files"]
        return all((place / file).stat().st_size == facts["bytes"] for file, facts in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Turn a failed write into a DataError with the remedy."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write the data cache {place}: {error.strerror or error}. Point data.root or TURNOUT_DATA at a "
            "folder with room that you may write; raw files of a read-only folder can be linked into it."
        ) from error


def _write(
    place: Path,
    dataset: Dataset,
    splits: dict[str, tuple[np.ndarray, np.ndarray]],
    fingerprint: str | None,
    left_out: list[str],
) -> None:
    """Write the arrays of every split, images [N, H, W, C] and labels [N], and where they come from."""
    files: dict[str, dict[str, int | str]] = {}
    for split, (images, labels) in splits.items():
        for kind, array in (("images", images), ("labels", labels)):
            path = place / f"{split}_{kind}.npy"
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
        "recipe": _recipe(dataset.name),
        "seed": SEED,
        "splits": {split: len(labels) for split, (_, labels) in splits.items()},
        "files": files,
        "fingerprint": fingerprint,
        "left_out": {"count": len(left_out), "first": left_out[:10]},
    }
    with (place / "origin.json").open("w") as file:
        file.write(json.dumps(facts, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(place)


def _sync_folder(place: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _publish(temporary: Path, target: Path) -> bool:
    """Give a finished folder its name; False if another process came first. A damaged one is replaced."""
    while True:
        try:
            temporary.rename(target)
            _sync_folder(target.parent)
            return True
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if _complete(target):
                return False
            with suppress(FileNotFoundError):  # another process is replacing it, too
                target.rename(temporary.with_name(temporary.name + ".damaged"))
                shutil.rmtree(temporary.with_name(temporary.name + ".damaged"))
