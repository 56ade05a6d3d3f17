"""Datasets of pictures in a folder, labelled by its subfolders or by a table."""

import io
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import partial
from typing import IO

from trainer.data.classes import check_spelling, list_names
from trainer.data.dataset import SPLIT_NAMES, Findings
from trainer.data.pictures import printable
from trainer.data.sources.labelled import LabelledPictures, Part, Parts, check_parts
from trainer.data.sources.listing import PICTURES, TABLE, list_folder
from trainer.data.sources.table import read_table
from trainer.errors import DataError


class Folder(LabelledPictures):
    """`folder:<path>`, or `folder:<path>#<label>` for a column of its table."""

    def check_path(self, name: str) -> None:
        """Check that the folder exists; DataError."""
        if not self.path.is_dir():
            raise DataError(f"{name}: there is no folder {self.path}; give the path of one")

    def list_files(self) -> Iterator[str]:
        """Yield the pictures and the table."""
        yield from (f"{self.path}/{file}" for file in list_folder(self.path).files)
        yield from map(str, self.path.glob(TABLE))

    def read_parts(self, findings: Findings) -> Parts:
        """Return the class of each picture; DataError."""
        listing = list_folder(self.path)
        findings.ignore("not pictures", listing.others)
        findings.ignore("hidden or of the system", listing.hidden)
        findings.ignore("circular links", listing.circular)
        files, where = listing.files, printable(str(self.path))
        if len(files) < 2:
            others = f", but {len(listing.others)} other files such as {listing.others[0]}" if listing.others else ""
            raise DataError(
                f"{where}: holds {len(files)} pictures ({', '.join(PICTURES)}){others}; at least two are needed"
            )
        heads = find_splits(where, files) or {"": ""}
        # The names are sorted, so those below a folder follow each other; 0 is the character after /.
        members = {
            split: files[bisect_left(files, f"{head}/") : bisect_left(files, f"{head}0")] if head else files
            for head, split in heads.items()
        }
        if self.label or os.path.lexists(self.path / TABLE):
            labels = read_table(self.path, self.label, members, findings)
        else:
            empty = [path for path in listing.empty if path.count("/") == (1 if heads != {"": ""} else 0)]
            empty = [path for path in empty if heads == {"": ""} or path.split("/")[0] in heads]
            labels = {
                split: label_by_folder(where, members[split], f"{head}/" if head else "", empty)
                for head, split in heads.items()
            }
        parts = {split: Part(names, labels[split], partial(self.open, names)) for split, names in members.items()}
        check_parts(where, parts)
        return parts

    def open(self, files: Sequence[str], position: int) -> IO[bytes]:
        """Read a picture; Pillow decodes it from memory in less time than from a file."""
        with open(f"{self.path}/{files[position]}", "rb", buffering=0) as file:
            return io.BytesIO(file.read())


def label_by_folder(where: str, files: Sequence[str], head: str, empty: Sequence[str]) -> list[str | None]:
    """Label pictures by the first folder below `head`, as torchvision's ImageFolder does; None if there are none.

    DataError if only some pictures are in a folder of a class, or if a folder of a class is empty.
    """
    start = len(head)  # folders are computed where they are used: a list of them would take more memory than the names
    beside = sum("/" not in file[start:] for file in files)
    if beside == len(files):
        return [None] * len(files)
    names = sorted({file[start:].partition("/")[0] for file in files if "/" in file[start:]})
    if beside:
        first = next(file for file in files if "/" not in file[start:])
        raise DataError(
            f"{where}: {printable(first)} and {beside - 1} more pictures are beside the folders of "
            f"classes ({printable(list_names(names))}); move them into one, or remove them"
        )
    if empty:
        raise DataError(f"{where}: {printable(empty[0])}/ holds no pictures; add some, or remove this folder")
    deeper = sorted({file[start:].split("/")[1] for file in files if file.count("/", start) > 1})
    if len(names) == 1 and len(deeper) > 1 and all(file.count("/", start) > 1 for file in files):
        raise DataError(
            f"{where}: all pictures are in {printable(names[0])}/, so there is one class; if its folders "
            f"({printable(list_names(deeper))}) are the classes, give the path {where}/{head}{printable(names[0])}"
        )
    check_spelling({name: f"folder {head}{name}" for name in names}, where)
    classes = {name: printable(name) for name in names}  # one string for all pictures of a class
    return [classes[file[start:].partition("/")[0]] for file in files]


def find_splits(where: str, files: Sequence[str]) -> dict[str, str]:
    """Return subfolder -> split, by their names; {} if the folder is not split, DataError if only some pictures are."""
    heads = {file.partition("/")[0] for file in files}
    named = {head: SPLIT_NAMES[head.lower()] for head in sorted(heads) if head.lower() in SPLIT_NAMES}
    if {head.lower() for head in named} <= {"valid"}:  # which, beside invalid, is a class
        deeper = {SPLIT_NAMES.get(folder.lower()) for file in files for folder in file.split("/")[1:-1]}
        if {"train", "test"} <= deeper:
            raise DataError(
                f"{where}: train and test lie further down; give the path of the folder that train/ and test/ are in, "
                "and put the folders of classes into these"
            )
        return {}
    missing = [split for split in ("train", "test") if split not in named.values()]
    beside = sorted(printable(head) for head in heads - named.keys())
    if missing or beside or len(set(named.values())) < len(named):
        lacking = f", none in {' or '.join(missing)}" if missing else ""
        more = f" and {len(beside) - 1} more" if beside[1:] else ""
        others = f", others in {beside[0]}{more}" if beside else ""
        raise DataError(
            f"{where}: is split incompletely: pictures are in {', '.join(named)}{lacking}{others}; a dataset that is "
            "split has train/ and test/, perhaps validation/ (or val/, valid/), each once, and nothing beside them: "
            "add or move pictures, or rename a folder that is a class"
        )
    return named
