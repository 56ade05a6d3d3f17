"""Labels of a folder's pictures from its table, attributes.csv."""

import csv
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.data.classes import check_missing, clean_labels
from trainer.data.dataset import Findings
from trainer.data.pictures import printable
from trainer.data.sources.listing import TABLE
from trainer.errors import DataError


def read_table(
    folder: Path, label: str, members: Mapping[str, Sequence[str]], findings: Findings
) -> dict[str, dict[str, str | None]]:
    """Return split -> picture -> its class in a column of the table, by default the first; None without one.

    DataError if the table cannot be read or has no such column, if a picture has no row or two that contradict each
    other, or if only some pictures of a split have a label.
    """
    table = folder / TABLE
    rows, column = read_rows(table, label)
    values: dict[str, tuple[str, int]] = {}
    for line, row in rows:
        file, value = posixpath.normpath(row[0].strip()), row[column]
        if file in values and values[file][0].strip() != value.strip():
            first, number = values[file]
            raise DataError(
                f"{table}:{line}: {file} is labelled {value!r}, and {first!r} on line {number}; keep one of these rows"
            )
        values.setdefault(file, (value, line))
    files = [file for names in members.values() for file in names]
    missing = [file for file in files if file not in values]
    if missing:
        raise DataError(
            f"{table}: says nothing of {printable(missing[0])} and {len(missing) - 1} more pictures; add their rows"
        )
    findings.ignore("rows without a picture", sorted(values.keys() - set(files)))
    labels = dict(zip(files, clean_labels([values[file][0] for file in files]), strict=True))
    parts = {split: {file: labels[file] for file in names} for split, names in members.items()}
    for part in parts.values():
        check_missing([*part.values()], [f"line {values[file][1]} ({file})" for file in part], str(table))
    return parts


def read_rows(table: Path, label: str) -> tuple[list[tuple[int, list[str]]], int]:
    """Return (line, cells) of each row below the header, and the index of the label's column; DataError."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.reader(opened)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, ValueError, csv.Error) as error:
        remedy = "save it as UTF-8" if isinstance(error, UnicodeDecodeError) else "repair or remove it"
        raise DataError(f"{table}: cannot be read: {error}; {remedy}") from None
    header = [cell.strip() for cell in rows[0][1]] if rows else []
    column = header.index(label) if label in header[1:] else 1 if not label and len(header) > 1 else 0
    if not column:
        separator = "; its cells must be separated by commas" if len(header) == 1 else ""
        raise DataError(f"{table}: has no column {label!r}; it has: {', '.join(header[1:]) or 'none'}{separator}")
    if header.count(header[column]) > 1:
        raise DataError(f"{table}: has several columns {header[column]!r}; rename all but one")
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(
                f"{table}:{line}: has {len(row)} cells, the header {len(header)}; complete this row (is the file cut?)"
            )
    return rows[1:], column
