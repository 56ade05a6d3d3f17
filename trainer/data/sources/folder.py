"""Datasets of pictures in a folder, labelled by its subfolders or by a table."""

import csv
import os
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from trainer.data.dataset import SPLIT_NAMES, Dataset, Splits
from trainer.data.pictures import pictures
from trainer.data.sources.paths import hash_facts, name_cache, parse_path
from trainer.data.splits import split_own
from trainer.errors import DataError

RECIPE = 2
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TABLE = "attributes.csv"  # in the folder: the file's name in the first column, an attribute in each other one


class Folder:
    """`folder:<path>`, or `folder:<path>#<label>` for a column of its table."""

    def __init__(self, name: str) -> None:
        """Find the folder; DataError if there is none."""
        self.path, self.label = parse_path(name)
        if not self.path.is_dir():
            raise DataError(f"{name}: there is no folder {self.path}; give the path of one")
        self.name = f"folder:{self.path}" + (f"#{self.label}" if self.label else "")

    @lru_cache  # noqa: B019 - sources live as long as the process
    def describe(self) -> Dataset:
        """Return the dataset, from table or subfolders alone; DataError."""
        words = sorted(set(folder_labels(self.path, self.label).values()))
        return Dataset(
            name=self.name,
            size=None,
            channels=3,
            classes=len(words),
            origin=f"pictures of {self.path}, classes: {', '.join(words)}",
            recipe=RECIPE,
            cache_name=name_cache(self.name, self.path),
        )

    def fetch(self, root: Path, download: bool) -> None:
        """Do nothing: the pictures are the user's own."""

    def decode(self, root: Path, size: int, left_out: list[str] | None) -> Splits:
        """Return the splits; DataError, also for pictures that cannot be used if `left_out` is None."""
        import numpy as np

        labels_of = folder_labels(self.path, self.label)
        classes = sorted(set(labels_of.values()))
        parts = {}
        for head, split in (folder_splits(self.path, labels_of) or {"": ""}).items():
            files = [file for file in labels_of if not head or file.startswith(f"{head}/")]
            images, kept = pictures(files, lambda file: (self.path / file).open("rb"), size, str(self.path), left_out)
            parts[split] = images, np.array([classes.index(labels_of[file]) for file in kept], np.int64)
        return split_own(self.name, parts)

    def fingerprint(self) -> str:
        """Return a hash of the names, sizes and modification times of the files."""
        files = [(str(self.path / file), self.path / file) for file in listed(self.path)]
        return hash_facts([*files, *((str(table), table) for table in self.path.glob(TABLE))])


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
    """Subfolder -> its split, by their names; {} where the set is not split, DataError where only some pictures are."""
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
