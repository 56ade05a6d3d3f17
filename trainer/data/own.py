"""Datasets of the user's own files: `npz:<path>` and `folder:<path>`, each with `#<label>` if it has several labels."""

import csv
import hashlib
import os
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.data.npz import npz_header, npz_splits
from trainer.data.pictures import pictures
from trainer.data.registry import SPLIT_NAMES, Dataset
from trainer.errors import DataError

if TYPE_CHECKING:
    from trainer.data.raw import Labelled

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TABLE = "attributes.csv"  # in a folder: the file's name in the first column, an attribute in each other one


@lru_cache
def describe(name: str) -> Dataset:
    """Return the entry of npz:<path> or folder:<path>, from headers, table or subfolders alone; DataError."""
    kind, path, label = parts(name)
    name = f"{kind}:{path}" + (f"#{label}" if label else "")
    if kind == "npz":
        images, classes = npz_header(path, label or "labels")
        height, width = images[1:3]
        if height != width:
            raise DataError(f"{name}: images are {height} x {width} pixels; cut them square")
        channels = 3 if images[3:] == (3,) else 1
        return Dataset(name, height, channels, len(classes), f"arrays of {path}, labelled by {label or 'labels'}")
    words = sorted(set(folder_labels(path, label).values()))
    return Dataset(name, None, 3, len(words), f"pictures of {path}, classes: {', '.join(words)}")


def parts(name: str) -> tuple[str, Path, str]:
    """Return (kind, absolute path, label) of a name; DataError if the path does not exist."""
    kind, _, rest = name.partition(":")
    text, _, label = rest.partition("#")
    path = Path(text).expanduser().absolute()
    if not (path.is_file() if kind == "npz" else path.is_dir()):
        raise DataError(f"{name}: there is no {'file' if kind == 'npz' else 'folder'} {path}; give the path of one")
    return kind, path, label


def fingerprint(name: str) -> str:
    """Return a hash of the names, sizes and modification times of the dataset's files."""
    kind, path, _ = parts(name)
    files = [path] if kind == "npz" else [path / file for file in listed(path)] + [*path.glob(TABLE)]
    facts = [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def decode_own(name: str, size: int, left_out: list[str] | None) -> "dict[str, Labelled]":
    """Splits `train`, `test` and perhaps `validation`, or '' where the set is not split; images [N, C, size, size].

    Pictures that cannot be read or are smaller than `size` are a DataError, or, given `left_out`, added to it.
    """
    import numpy as np

    kind, path, label = parts(name)
    if kind == "npz":
        return npz_splits(path, label or "labels")
    labels_of = folder_labels(path, label)
    classes = sorted(set(labels_of.values()))
    splits = {}
    for head, split in (folder_splits(path, labels_of) or {"": ""}).items():
        files = [file for file in labels_of if not head or file.startswith(f"{head}/")]
        images, kept = pictures(files, lambda file: (path / file).open("rb"), size, str(path), left_out)
        labels = np.array([classes.index(labels_of[file]) for file in kept], np.int64)
        splits[split] = images, labels
    return splits


# Folders


def listed(folder: Path) -> list[str]:
    """Return the paths of all pictures below a folder, relative to it and sorted, without hidden ones."""
    pictures_below = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(place).relative_to(folder)
        pictures_below += [
            (relative / file).as_posix()
            for file in files
            if file.lower().endswith(PICTURES) and not file.startswith(".")
        ]
    return sorted(pictures_below)


def folder_labels(folder: Path, label: str) -> dict[str, str]:
    """Picture -> its class in words: a column of attributes.csv, else its subfolder, else '0' for all; DataError."""
    files = listed(folder)
    if len(files) < 2:
        raise DataError(f"{folder}: holds {len(files)} pictures ({', '.join(PICTURES)}); at least two are needed")
    splits = folder_splits(folder, files)
    table = folder / TABLE
    if not label and not table.exists():
        inner = [file.split("/")[:-1] for file in files]
        inner = [places[1:] if splits else places for places in inner]
        return {file: "/".join(places) or "0" for file, places in zip(files, inner, strict=True)}
    try:
        with table.open(newline="", encoding="utf-8") as opened:
            rows = list(csv.reader(opened))
    except (OSError, ValueError) as error:
        raise DataError(f"{table}: cannot be read: {error}; #{label} asks for a column of it") from None
    header = rows[0] if rows else []
    column = header.index(label) if label in header[1:] else 1 if not label and len(header) > 1 else 0
    if not column:
        raise DataError(f"{table}: has no column {label!r}; it has: {', '.join(header[1:]) or 'none'}")
    values = {row[0]: row[column] for row in rows[1:] if len(row) > column}
    missing = [file for file in files if file not in values]
    if missing:
        raise DataError(f"{table}: says nothing of {missing[0]} and {len(missing) - 1} more pictures; add their rows")
    return {file: values[file] for file in files}


def folder_splits(folder: Path, files: Collection[str]) -> dict[str, str]:
    """Subfolder -> its split, by their names; {} where the set is not split, DataError where it is so by halves."""
    heads = {file.partition("/")[0] for file in files}
    named = {head: SPLIT_NAMES[head.lower()] for head in sorted(heads) if head.lower() in SPLIT_NAMES}
    if {head.lower() for head in named} <= {"valid"}:  # which, beside invalid, is a class
        deeper = {SPLIT_NAMES.get(place.lower()) for file in files for place in file.split("/")[1:-1]}
        if {"train", "test"} <= deeper:
            raise DataError(
                f"{folder}: train and test lie further down; give the path of the folder that train/ and test/ are in, "
                "and put the folders of classes into these"
            )
        return {}
    missing = [split for split in ("train", "test") if split not in named.values()]
    beside = sorted(heads - named.keys())
    if missing or beside or len(set(named.values())) < len(named):
        lacking = f", none in {' or '.join(missing)}" if missing else ""
        more = f" and {len(beside) - 1} more" if beside[1:] else ""
        others = f", others in {beside[0]}{more}" if beside else ""
        raise DataError(
            f"{folder}: is split by halves: pictures are in {', '.join(named)}{lacking}{others}; a set that is split "
            "has train/ and test/, perhaps validation/ (or val/, valid/), each once, and nothing beside them: add or "
            "move pictures, or rename a folder that is a class"
        )
    return named
