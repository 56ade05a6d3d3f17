"""Datasets of pictures in a folder, labelled by its subfolders or by a table."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO

from trainer.data.classes import check_spelling, list_names, sort_names
from trainer.data.dataset import RECIPE_OWN, SPLIT_NAMES, UNLABELLED, Dataset, Findings, Form, Splits
from trainer.data.pictures import Pictures, printable
from trainer.data.sources.listing import PICTURES, Listing, list_folder
from trainer.data.sources.paths import hash_facts, name_cache, parse_path
from trainer.data.sources.table import TABLE, read_table
from trainer.data.splits import split_own
from trainer.errors import DataError

Labels = dict[str, str | None]  # picture -> its class, None without one


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
        parts, _ = self.read_parts()
        names = sort_names(label for labels in parts.values() for label in labels.values() if label is not None)
        return Dataset(
            name=self.name,
            size=None,
            channels=3,
            classes=len(names),
            origin=f"pictures of {self.path}, " + (f"classes: {', '.join(names)}" if names else "without labels"),
            recipe=RECIPE_OWN,
            cache_name=name_cache(self.name, self.path),
            class_names=names,
            unlabelled=tuple(split for split, labels in parts.items() if None in labels.values()),
        )

    def fetch(self, root: Path, download: bool) -> None:
        """Do nothing: the pictures are the user's own."""

    def decode(self, root: Path, form: Form, findings: Findings) -> Splits:
        """Return the splits; DataError."""
        import numpy as np

        names, splits = self.describe().names, {}
        parts, listing = self.read_parts(findings)
        numbers = {name: number for number, name in enumerate(names)}
        for split, labels in parts.items():
            pictures = Pictures(list(labels), self.open, printable(str(self.path)))
            values = [UNLABELLED if label is None else numbers[label] for label in labels.values()]
            splits[split] = pictures, np.array(values, np.int64)
        findings.ignore("not pictures", listing.others)
        findings.ignore("hidden or of the system", listing.hidden)
        findings.ignore("circular links", listing.circular)
        return split_own(self.name, splits)

    def open(self, file: str) -> IO[bytes]:
        """Open a picture."""
        return open(f"{self.path}/{file}", "rb")  # twice as fast as Path.open

    def fingerprint(self) -> str:
        """Return a hash of the names, sizes and modification times of the files."""
        files = [(str(self.path / file), self.path / file) for file in list_folder(self.path).pictures]
        return hash_facts([*files, *((str(table), table) for table in self.path.glob(TABLE))])

    def read_parts(self, findings: Findings | None = None) -> tuple[dict[str, Labels], Listing]:
        """Return split -> labels of its pictures, '' if the folder is not split, and all files; DataError."""
        listing = list_folder(self.path)
        files, where = listing.pictures, printable(str(self.path))
        if len(files) < 2:
            others = f", but {len(listing.others)} other files such as {listing.others[0]}" if listing.others else ""
            raise DataError(
                f"{where}: holds {len(files)} pictures ({', '.join(PICTURES)}){others}; at least two are needed"
            )
        heads = find_splits(where, files) or {"": ""}
        members = {
            split: [file for file in files if not head or file.startswith(f"{head}/")] for head, split in heads.items()
        }
        if self.label or (self.path / TABLE).exists():
            parts = read_table(self.path, self.label, members, findings)
        else:
            empty = [path for path in listing.empty if path.count("/") == (1 if heads != {"": ""} else 0)]
            empty = [path for path in empty if heads == {"": ""} or path.split("/")[0] in heads]
            parts = {
                split: label_by_folder(where, members[split], f"{head}/" if head else "", empty)
                for head, split in heads.items()
            }
        check_parts(where, parts)
        return parts, listing


def label_by_folder(where: str, files: Sequence[str], head: str, empty: Sequence[str]) -> Labels:
    """Label pictures by the first folder below `head`, as torchvision's ImageFolder does; None if there are none.

    DataError if only some pictures are in a folder of a class, or if a folder of a class is empty.
    """
    inner = {file: file.removeprefix(head).split("/")[:-1] for file in files}
    beside = [file for file, folders in inner.items() if not folders]
    if len(beside) == len(files):
        return dict.fromkeys(files)
    names = sorted({folders[0] for folders in inner.values() if folders})
    if beside:
        raise DataError(
            f"{where}: {printable(beside[0])} and {len(beside) - 1} more pictures are beside the folders of classes "
            f"({printable(list_names(names))}); move them into one, or remove them"
        )
    if empty:
        raise DataError(f"{where}: {printable(empty[0])}/ holds no pictures; add some, or remove this folder")
    deeper = sorted({folders[1] for folders in inner.values() if len(folders) > 1})
    if len(names) == 1 and len(deeper) > 1 and all(len(folders) > 1 for folders in inner.values()):
        raise DataError(
            f"{where}: all pictures are in {printable(names[0])}/, so there is one class; if its folders "
            f"({printable(list_names(deeper))}) are the classes, give the path {where}/{head}{printable(names[0])}"
        )
    check_spelling({name: f"folder {head}{name}" for name in names}, where)
    return {file: printable(folders[0]) for file, folders in inner.items()}


def check_parts(where: str, parts: dict[str, Labels]) -> None:
    """Check that the training split has every class, spelt in one way; DataError, which names a picture."""
    spellings = {
        label: f"picture {printable(file)}" for labels in parts.values() for file, label in labels.items() if label
    }
    check_spelling(spellings, where)
    train = set(parts.get("train", {}).values())
    for split, labels in parts.items():
        for file, label in labels.items():
            if split in ("validation", "test") and label is not None and None not in train and label not in train:
                raise DataError(
                    f"{where}: {printable(file)}: class {label!r} is in {split} but not in train, which has: "
                    f"{list_names(sort_names(name for name in train if name is not None))}; "
                    "move, rename or remove its pictures"
                )


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
