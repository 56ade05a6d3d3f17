"""Write a dataset into a folder of the cache: temporary first, described by origin.json, renamed when complete."""

import errno
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from trainer.data.convert import convert
from trainer.data.dataset import UNLABELLED, Dataset, Findings, Form, Splits
from trainer.data.pictures import Pictures, decode_pictures, drop_faults, report_faults
from trainer.data.splits import SEED
from trainer.errors import DataError
from trainer.runs.atomic import hash_file, synchronise

LISTED = 10  # files of a kind that origin.json names
SAMPLES, SAMPLE = 16, 1 << 14  # blocks of a file that are checked at the start of a trial, and their size in bytes
KEY = "key.json"  # in a temporary folder: what its rows were decoded from


def create_temporary(target: Path, key: str) -> Path:
    """Return a temporary folder beside `target`: one that a dead process left with the same key, else a new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    start = f".{target.name}.{socket.gethostname()}~"
    temporary = target.with_name(f"{start}{os.getpid()}~{uuid.uuid4().hex[:8]}")
    boot = Path("/proc/sys/kernel/random/boot_id")  # after a crash of the machine, rows may be lost that were marked
    key = f"{key} {boot.read_text().strip() if boot.exists() else ''}"
    for other in [path for path in target.parent.iterdir() if path.name.startswith(start)]:
        process = other.name.removeprefix(start).partition("~")[0]
        if not process.isdecimal() or psutil.pid_exists(int(process)):
            continue
        with suppress(OSError):  # another process claims it, too
            other.rename(temporary)
            if (temporary / KEY).is_file() and (temporary / KEY).read_text() == key:
                return temporary
            shutil.rmtree(temporary)
    temporary.mkdir()
    (temporary / KEY).write_text(key)
    return temporary


def write_splits(folder: Path, splits: Splits, form: Form, findings: Findings) -> dict[str, np.ndarray]:
    """Write the arrays of every split, images [N, size, size, channels] and labels [N]; return the labels.

    DataError if pictures cannot be used, unless they may be skipped.
    """
    paths = {split: folder / f"{split}_images.npy" for split in splits}
    pictures = {split: images for split, (images, _) in splits.items() if isinstance(images, Pictures)}
    faults = {split: decode_pictures(images, paths[split], form, findings) for split, images in pictures.items()}
    if pictures:
        problems = {pictures[split].name(i): text for split, part in faults.items() for i, text in part.items()}
        count, where = sum(map(len, pictures.values())), next(iter(pictures.values())).where
        report_faults(problems, count, where, form, findings)
    labels_by_split = {}
    for split, (images, labels) in splits.items():
        if split in pictures:
            labels = labels[drop_faults(paths[split], faults[split])]
            if not len(labels):
                raise DataError(f"{pictures[split].where}: no picture of {split} can be used; repair or add some")
        else:
            _write_array(paths[split], convert(images, form.size or 0, form.channels or 3))
        _write_array(folder / f"{split}_labels.npy", labels)
        labels_by_split[split] = labels
    return labels_by_split


def write_origin(
    folder: Path,
    dataset: Dataset,
    form: Form,
    labels: dict[str, np.ndarray],
    fingerprint: str | None,
    findings: Findings,
) -> None:
    """Describe the arrays of a folder in its origin.json."""
    names = [f"{split}_{kind}.npy" for split in labels for kind in ("images", "labels")]
    origin: dict[str, Any] = {
        "dataset": dataset.name,
        "origin": dataset.origin,
        "size": form.size,
        "channels": form.channels,
        "classes": dataset.classes,
        "recipe": dataset.recipe,
        "seed": SEED,
        "splits": {split: len(part) for split, part in labels.items()},
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": hash_file(folder / name)} for name in names
        },
        "fingerprint": fingerprint,
        "left_out": {"count": len(findings.left_out), "first": findings.left_out[:LISTED]},
    }
    if dataset.is_own:
        origin["class_names"] = list(dataset.names)
        origin["found"] = describe_findings(findings)
        origin["samples"] = {name: hash_sample(folder / name) for name in names if name.endswith("_images.npy")}
    (folder / KEY).unlink(missing_ok=True)
    (folder / "origin.json").write_text(json.dumps(origin, indent=1) + "\n")
    synchronise(folder / "origin.json")
    synchronise(folder)


def describe_findings(findings: Findings) -> dict[str, Any]:
    """Return what a source ignored and assumed, for origin.json."""
    ignored = {reason: {"count": len(files), "first": files[:LISTED]} for reason, files in findings.ignored.items()}
    least, largest = findings.least, findings.largest
    sizes = {"least": list(least), "largest": list(largest)} if least and largest else {}
    return {"ignored": ignored, "notes": list(dict.fromkeys(findings.notes)), "sizes": sizes}


def count_classes(labels: np.ndarray, names: tuple[str, ...]) -> dict[str, int]:
    """Return class -> number of images, 'without label' for those without."""
    counts = Counter(labels.tolist())
    numbered = {name: counts[number] for number, name in enumerate(names)}
    return numbered | ({"without label": counts[UNLABELLED]} if counts[UNLABELLED] else {})


def publish(temporary: Path, target: Path, is_complete: Callable[[Path], bool]) -> bool:
    """Rename a finished folder to its final name; return False if another process came first.

    A damaged one is replaced.
    """
    while True:
        try:
            temporary.rename(target)
            synchronise(target.parent)
            return True
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if is_complete(target):
                return False
            with suppress(FileNotFoundError):  # another process replaces it, too
                target.rename(temporary.with_name(temporary.name + ".damaged"))
                shutil.rmtree(temporary.with_name(temporary.name + ".damaged"))


def check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Check size and sha256 of every file of a dataset in the cache; DataError for the first that differs."""
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["bytes"] or hash_file(path) != expected["sha256"]:
            raise DataError(f"{path}: differs from what was staged; remove {folder} and stage it again")


def check_sample(folder: Path, origin: dict[str, Any]) -> None:
    """Check the labels of a dataset in the cache and, where it was recorded, a sample of its images; DataError.

    This takes milliseconds, so every trial does it before it starts.
    """
    labels = {name: facts["sha256"] for name, facts in origin["files"].items() if name.endswith("_labels.npy")}
    for hashes, compute in ((labels, hash_file), (origin.get("samples", {}), hash_sample)):
        for name, expected in hashes.items():
            if compute(folder / name) != expected:
                raise DataError(f"{folder / name}: differs from what was staged; remove {folder} and stage it again")


def hash_sample(path: Path) -> str:
    """Return the sha256 of SAMPLES blocks that are spread evenly over a file."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek(max(0, size - SAMPLE) * number // (SAMPLES - 1))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def _write_array(path: Path, array: np.ndarray) -> None:
    np.save(path, array, allow_pickle=False)
    synchronise(path)
