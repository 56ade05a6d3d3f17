"""Official datasets of a training and a test file that torchvision downloads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.data.dataset import Dataset, Findings, Form, Labelled, Splits
from trainer.data.raw import fetch_files, find_files
from trainer.data.splits import split_official


@dataclass(frozen=True)
class Official:
    """A dataset with the functions that download its two files into a folder and read one of them."""

    dataset: Dataset
    download: Callable[[Path], None]
    read: Callable[[Path], Labelled]

    def describe(self) -> Dataset:
        """Return the dataset."""
        return self.dataset

    def fetch(self, root: Path, download: bool) -> None:
        """Check both files, and download missing ones if `download`; DataError."""
        fetch_files(self.dataset, root, self.download if download else None)

    def decode(self, root: Path, form: Form, findings: Findings) -> Splits:
        """Return the splits; DataError for a damaged file."""
        return split_official(self.dataset.name, *map(self.read, find_files(self.dataset, root)))

    def fingerprint(self) -> None:
        """Return None: the files are official."""
