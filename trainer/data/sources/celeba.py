"""CelebA (Liu et al., ICCV 2015) from its download: the aligned photographs, the attributes and the official splits."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from trainer.data.dataset import SPLITS, Dataset, Findings, Form, Splits
from trainer.data.pictures import Pictures
from trainer.errors import DataError

CELEBA = ("celeba/list_attr_celeba.txt", "celeba/list_eval_partition.txt")
ARCHIVE = "celeba/img_align_celeba.zip"  # or the folder img_align_celeba
DOWNLOAD = (
    "the CelebA download (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html: Anno/list_attr_celeba.txt, "
    "Eval/list_eval_partition.txt, Img/img_align_celeba.zip)"
)


@dataclass(frozen=True)
class CelebA:
    """`celeba`, labelled by Male, or `celeba#<attribute>`."""

    name: str

    def describe(self) -> Dataset:
        """Return the dataset."""
        return Dataset(
            name=self.name,
            size=None,
            channels=3,
            classes=2,
            origin="CelebA, 202,599 aligned photographs of faces, centre squares of 178 pixels, labelled by Male or, "
            "as celeba#Smiling, by another of its 40 attributes; official splits. Nothing is fetched: put "
            "img_align_celeba.zip (or the folder), list_attr_celeba.txt and list_eval_partition.txt into celeba/",
            files=CELEBA,
        )

    def fetch(self, root: Path, download: bool) -> None:
        """Check that tables and photographs are there; DataError."""
        archive = root / ARCHIVE
        missing = [str(root / file) for file in CELEBA if not (root / file).exists()]
        if not archive.exists() and not archive.with_suffix("").is_dir():
            missing.append(f"{archive} (or the folder img_align_celeba)")
        if missing:
            raise DataError(
                f"celeba: missing: {', '.join(missing)}. Nothing is fetched: put there what has that name in "
                f"{DOWNLOAD}, or point data.root (or TURNOUT_DATA) at a folder that has it."
            )

    def decode(self, root: Path, form: Form, findings: Findings) -> Splits:
        """Return the official splits; DataError if a table is damaged."""
        return read_celeba(root, self.name.partition("#")[2] or "Male")

    def fingerprint(self) -> None:
        """Return None: the files are official."""


def read_celeba(root: Path, label: str) -> Splits:
    """Return the official splits: aligned photographs, 178 x 218, of img_align_celeba.zip or the folder of that name.

    The label is one of the 40 attributes, 0 or 1. DataError if a table is damaged, cut short, or has no such attribute.
    """
    import numpy as np

    table, partition = (root / file for file in CELEBA)
    (count, *_), header, *rows = words_of(table, 3)
    if label not in header:
        raise DataError(f"celeba#{label}: there is no such attribute; it has: {', '.join(header)}")
    column = header.index(label) + 1
    for row in rows:
        if len(row) != len(header) + 1 or row[column] not in ("1", "-1"):
            raise DataError(
                f"{table}: the row of {row[0]} is not a name and {len(header)} times 1 or -1; "
                f"take the file of {DOWNLOAD}"
            )
    if count != str(len(rows)):
        raise DataError(f"{table}: has {len(rows)} rows, its first line says {count}; take the file of {DOWNLOAD}")
    numbers = {}
    for row in words_of(partition, 1):
        if len(row) != 2 or row[1] not in ("0", "1", "2"):
            raise DataError(
                f"{partition}: the row of {row[0]} is not a name and a number 0, 1 or 2; take the file of {DOWNLOAD}"
            )
        numbers[row[0]] = int(row[1])
    values = {row[0]: int(row[column] == "1") for row in rows}
    if missing := [file for file in values if file not in numbers]:
        raise DataError(
            f"{partition}: has no row of {missing[0]} and {len(missing) - 1} more of {table}; take both of {DOWNLOAD}"
        )
    archive = root / ARCHIVE
    opener, where = open_archive(archive), str(archive if archive.exists() else archive.with_suffix(""))
    splits = {}
    for number, split in enumerate(SPLITS):
        files = [file for file in values if numbers[file] == number]
        if not files:
            raise DataError(f"{partition}: has no {split} ({number}) of {table}; take both files of {DOWNLOAD}")
        splits[split] = (
            Pictures(files, partial(open_named, opener, files), where),
            np.array([values[file] for file in files], np.int64),
        )
    return splits


def open_named(opener: Callable[[str], IO[bytes]], files: list[str], position: int) -> IO[bytes]:
    """Open the photograph at a position of `files`."""
    return opener(files[position])


def words_of(path: Path, least: int) -> list[list[str]]:
    """Return the words of each line that is not empty; DataError if there are fewer than `least` lines."""
    try:
        lines = [words for line in path.read_text().splitlines() if (words := line.split())]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; take the file of {DOWNLOAD}") from None
    if len(lines) < least:
        raise DataError(f"{path}: has {len(lines)} lines; take the file of {DOWNLOAD}")
    return lines


def open_archive(archive: Path) -> Callable[[str], IO[bytes]]:
    """Return a function that opens a photograph by its name, in the zip or else in the folder; DataError."""
    if not archive.exists():
        return lambda file: (archive.with_suffix("") / file).open("rb")
    try:
        zipped = zipfile.ZipFile(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: cannot be read as zip: {error}; take the file of {DOWNLOAD}") from None
    return lambda file: zipped.open(f"img_align_celeba/{file}")
