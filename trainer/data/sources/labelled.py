"""What sources of labelled pictures share: a description from the labels, splits, and checks of the classes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from trainer.data.classes import check_spelling, check_train, number_labels, sort_names
from trainer.data.dataset import RECIPE_OWN, Dataset, Findings, Form, Splits
from trainer.data.pictures import Pictures, printable
from trainer.data.sources.paths import accessing, hash_facts, name_cache, parse_path
from trainer.data.splits import split_own


@dataclass
class Part:
    """Pictures of a split, and the class of each: one string for all pictures of a class, None without one."""

    files: Sequence[str]
    labels: Sequence[str | None]
    open_file: Callable[[int], IO[bytes]]  # of a position in `files`


Parts = dict[str, Part]  # by split; '' for the only part of a dataset that is not split


class LabelledPictures(ABC):
    """Pictures of the user's own in `<kind>:<path>`, or `<kind>:<path>#<label>` if they have several labels."""

    def __init__(self, name: str) -> None:
        """Parse the name; DataError if there is nothing at its path."""
        self.kind = name.partition(":")[0]
        self.path, self.label = parse_path(name)
        with accessing(self.path):
            self.check_path(name)
        self.name = f"{self.kind}:{self.path}" + (f"#{self.label}" if self.label else "")

    @lru_cache  # noqa: B019 - sources live as long as the process
    def describe(self) -> Dataset:
        """Return the dataset, from labels alone; DataError."""
        parts = self.read_parts(Findings())
        names = sort_names(label for part in parts.values() for label in set(part.labels) if label is not None)
        return Dataset(
            name=self.name,
            size=None,
            channels=3,
            classes=len(names),
            origin=f"pictures of {self.path}, " + (f"classes: {', '.join(names)}" if names else "without labels"),
            recipe=RECIPE_OWN,
            cache_name=name_cache(self.name, self.path),
            class_names=names,
            unlabelled=tuple(split for split, part in parts.items() if None in part.labels),
        )

    def fetch(self, root: Path, download: bool) -> None:  # noqa: B027 - the same for every kind
        """Do nothing: the pictures are the user's own."""

    def decode(self, root: Path, form: Form, findings: Findings) -> Splits:
        """Return the splits; DataError."""
        splits: Splits = {}
        for split, part in self.read_parts(findings).items():
            pictures = Pictures(part.files, part.open_file, printable(str(self.path)))
            splits[split] = pictures, number_labels(part.labels, self.describe().names, self.name)
        return split_own(self.name, splits)

    def fingerprint(self) -> str:
        """Return a hash of the names, sizes and modification times of the files."""
        return hash_facts(self.list_files())

    @abstractmethod
    def check_path(self, name: str) -> None:
        """Check that there is something at the path; DataError, which begins with the dataset's name."""

    @abstractmethod
    def list_files(self) -> Iterable[str]:
        """Return the path of every file that the dataset is read from."""

    @abstractmethod
    def read_parts(self, findings: Findings) -> Parts:
        """Return the class of each picture, and add what is ignored to `findings`; DataError."""


def check_parts(where: str, parts: Parts) -> None:
    """Check that the training split has every class, spelt in one way; DataError, which names a picture."""
    examples: dict[str, str] = {}
    for part in parts.values():
        last = {name: position for position, name in enumerate(part.labels) if name is not None}
        examples |= {name: f"picture {printable(part.files[position])}" for name, position in last.items()}
    check_spelling(examples, where)
    labels = {split: part.labels for split, part in parts.items()}
    check_train(
        labels, lambda split, position: parts[split].files[position], where, "move, rename or remove its pictures"
    )
