"""CelebA (Liu et al., ICCV 2015) from its download: the aligned photographs, the attributes and the official splits."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.data.pictures import Opened, pictures
from trainer.errors import DataError

if TYPE_CHECKING:
    from trainer.data.raw import Labelled

CELEBA = ("celeba/list_attr_celeba.txt", "celeba/list_eval_partition.txt")  # beside img_align_celeba(.zip)
DOWNLOAD = (
    "the CelebA download (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html: Anno/list_attr_celeba.txt, "
    "Eval/list_eval_partition.txt, Img/img_align_celeba.zip)"
)


def read_celeba(root: Path, label: str, size: int, left_out: list[str] | None) -> "dict[str, Labelled]":
    """Decode the aligned photographs, 178 x 218, of img_align_celeba.zip or the folder of that name.

    Returns the official splits; the label is one of the 40 attributes, 0 or 1. DataError if a file is missing or
    damaged, or has no such attribute. Photographs that cannot be read or are smaller than `size` are a DataError, or
    added to `left_out` if there is one.
    """
    import numpy as np

    table, partition = (root / file for file in CELEBA)
    archive = root / "celeba" / "img_align_celeba.zip"
    missing = [str(path) for path in (table, partition) if not path.exists()]
    if not archive.exists() and not archive.with_suffix("").is_dir():
        missing.append(f"{archive} (or the folder img_align_celeba)")
    if missing:
        raise DataError(
            f"celeba: missing: {', '.join(missing)}. Nothing is fetched: put there what has that name in {DOWNLOAD}, "
            "or point data.root (or TURNOUT_DATA) at a folder that has it."
        )
    (_, header, *rows), divided = words_of(table, 3), words_of(partition, 1)
    if label not in header:
        raise DataError(f"celeba#{label}: there is no such attribute; it has: {', '.join(header)}")
    column = header.index(label) + 1
    for row in rows:
        if len(row) != len(header) + 1 or row[column] not in ("1", "-1"):
            raise DataError(
                f"{table}: the row of {row[0]} is not a name and {len(header)} times 1 or -1; "
                f"take the file of {DOWNLOAD}"
            )
    for row in divided:
        if len(row) != 2:
            raise DataError(f"{partition}: the row of {row[0]} is not a name and a number; take the file of {DOWNLOAD}")
    values, numbers = {row[0]: int(row[column] == "1") for row in rows}, {row[0]: row[1] for row in divided}
    splits = {}
    with celeba_pictures(archive) as opened:
        where = str(archive if archive.exists() else archive.with_suffix(""))
        for number, split in enumerate(("train", "validation", "test")):
            files = [file for file in values if numbers.get(file) == str(number)]
            if not files:
                raise DataError(f"{partition}: has no {split} ({number}) of {table}; take both files of {DOWNLOAD}")
            images, kept = pictures(files, opened, size, where, left_out)
            splits[split] = images, np.array([values[file] for file in kept], np.int64)
    return splits


def words_of(path: Path, least: int) -> list[list[str]]:
    """Return the words of each line that is not empty; DataError if there are fewer than `least` lines."""
    try:
        lines = [words for line in path.read_text().splitlines() if (words := line.split())]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; take the file of {DOWNLOAD}") from None
    if len(lines) < least:
        raise DataError(f"{path}: has {len(lines)} lines; take the file of {DOWNLOAD}")
    return lines


@contextmanager
def celeba_pictures(archive: Path) -> Iterator[Opened]:
    """Yield a function that opens a photograph by its name, in the zip or else in the folder; DataError."""
    if not archive.exists():
        yield lambda file: (archive.with_suffix("") / file).open("rb")
        return
    try:
        zipped = zipfile.ZipFile(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: cannot be read as zip: {error}; take the file of {DOWNLOAD}") from None
    with zipped:
        yield lambda file: zipped.open(f"img_align_celeba/{file}")
