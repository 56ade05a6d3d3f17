"""Labels of a folder's pictures from its table, attributes.csv."""

import csv
import posixpath
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from trainer.data.classes import check_missing, clean_labels
from trainer.data.dataset import Findings
from trainer.data.pictures import printable
from trainer.data.sources.listing import TABLE
from trainer.errors import DataError


def read_table(
    folder: Path, label: str, members: Mapping[str, Sequence[str]], findings: Findings
) -> dict[str, list[str | None]]:
    """Return split -> the class of each of its pictures in a column of the table, by default the first; None without.

    `members` are the pictures of each split, sorted. DataError if the table cannot be read or has no such column, if a
    picture has no row or two that contradict each other, or if only some pictures of a split have a label.
    """
    table = folder / TABLE
    cells: dict[str, list[str | None]] = {split: [None] * len(files) for split, files in members.items()}
    lines = {split: array("L", bytes(8 * len(files))) for split, files in members.items()}
    others = set[str]()
    for line, name, cell in read_rows(table, label):
        file = posixpath.normpath(name.strip())
        places = [(split, position) for split, files in members.items() if (position := find_file(files, file)) >= 0]
        for split, position in places:
            first, number = cells[split][position], lines[split][position]
            if first is not None and first.strip() != cell.strip():
                raise DataError(
                    f"{table}:{line}: {file} is labelled {cell!r}, and {first!r} on line {number}; keep one "
                    "of these rows"
                )
            if first is None:
                cells[split][position], lines[split][position] = cell, line
        if not places:
            others.add(file)
    missing = [(split, position) for split, part in lines.items() for position, line in enumerate(part) if not line]
    if missing:
        split, position = missing[0]
        raise DataError(
            f"{table}: says nothing of {printable(members[split][position])} and {len(missing) - 1} more pictures; add "
            "their rows"
        )
    findings.ignore("rows without a picture", sorted(others))
    cleaned = iter(clean_labels([cell for part in cells.values() for cell in part]))
    labels = {split: list(islice(cleaned, len(part))) for split, part in cells.items()}
    for split, part in labels.items():

        def describe(position: int, split: str = split) -> str:
            return f"line {lines[split][position]} ({members[split][position]})"

        check_missing(part, describe, str(table))
    return labels


def find_file(files: Sequence[str], file: str) -> int:
    """Return the position of a file in sorted ones, -1 if it is not among them."""
    position = bisect_left(files, file)
    return position if position < len(files) and files[position] == file else -1


def read_rows(table: Path, label: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, file and cell in the label's column of each row below the header; DataError."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.reader(opened)
            header = [cell.strip() for cell in next(filter(None, reader), [])]
            column = find_column(table, header, label)
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise DataError(
                        f"{table}:{reader.line_num}: has {len(row)} cells, the header {len(header)}; complete this row "
                        "(is the file cut?)"
                    )
                yield reader.line_num, row[0], sys.intern(row[column])
    except DataError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        remedy = "save it as UTF-8" if isinstance(error, UnicodeDecodeError) else "repair or remove it"
        raise DataError(f"{table}: cannot be read: {error}; {remedy}") from None


def find_column(table: Path, header: Sequence[str], label: str) -> int:
    """Return the index of the label's column; DataError if there is none or more than one."""
    column = 1 if not label and len(header) > 1 else header.index(label) if label in header[1:] else 0
    if not column:
        separator = "; its cells must be separated by commas" if len(header) == 1 else ""
        raise DataError(f"{table}: has no column {label!r}; it has: {', '.join(header[1:]) or 'none'}{separator}")
    if header.count(header[column]) > 1:
        raise DataError(f"{table}: has several columns {header[column]!r}; rename all but one")
    return column
