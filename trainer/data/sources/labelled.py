"""What sources of labelled pictures share: a description from the labels, splits, and checks of the classes."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import IO

from trainer.data.classes import check_spelling, check_train, sort_names
from trainer.data.dataset import RECIPE_OWN, UNLABELLED, Dataset, Findings, Form, Splits
from trainer.data.pictures import Pictures, printable
from trainer.data.sources.paths import hash_facts, name_cache, parse_path
from trainer.data.splits import split_own

Labels = dict[str, str | None]  # picture -> its class, None without one
Parts = dict[str, Labels]  # split -> labels of its pictures; '' for the only part of a dataset that is not split


class LabelledPictures(ABC):
    """Pictures of the user's own in `<kind>:<path>`, or `<kind>:<path>#<label>` if they have several labels."""

    def __init__(self, name: str) -> None:
        """Parse the name; DataError if there is nothing at its path."""
        self.kind = name.partition(":")[0]
        self.path, self.label = parse_path(name)
        self.check_path(name)
        self.name = f"{self.kind}:{self.path}" + (f"#{self.label}" if self.label else "")

    @lru_cache  # noqa: B019 - sources live as long as the process
    def describe(self) -> Dataset:
        """Return the dataset, from labels alone; DataError."""
        parts = self.read_parts(Findings())
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

    def fetch(self, root: Path, download: bool) -> None:  # noqa: B027 - the same for every kind
        """Do nothing: the pictures are the user's own."""

    def decode(self, root: Path, form: Form, findings: Findings) -> Splits:
        """Return the splits; DataError."""
        import numpy as np

        names, splits = self.describe().names, {}
        numbers = {name: number for number, name in enumerate(names)}
        for split, labels in self.read_parts(findings).items():
            pictures = Pictures(list(labels), self.open, printable(str(self.path)))
            values = [UNLABELLED if label is None else numbers[label] for label in labels.values()]
            splits[split] = pictures, np.array(values, np.int64)
        return split_own(self.name, splits)

    def fingerprint(self) -> str:
        """Return a hash of the names, sizes and modification times of the files."""
        return hash_facts((str(path), path) for path in self.list_files())

    @abstractmethod
    def check_path(self, name: str) -> None:
        """Check that there is something at the path; DataError, which begins with the dataset's name."""

    @abstractmethod
    def list_files(self) -> Iterable[Path]:
        """Return every file that the dataset is read from."""

    @abstractmethod
    def read_parts(self, findings: Findings) -> Parts:
        """Return the class of each picture, and add what is ignored to `findings`; DataError."""

    @abstractmethod
    def open(self, file: str) -> IO[bytes]:
        """Open a picture."""


def check_parts(where: str, parts: Parts) -> None:
    """Check that the training split has every class, spelt in one way; DataError, which names a picture."""
    examples = {name: file for part in parts.values() for file, name in part.items() if name}
    check_spelling({name: f"picture {printable(file)}" for name, file in examples.items()}, where)
    check_train(parts, where, "move, rename or remove its pictures")
