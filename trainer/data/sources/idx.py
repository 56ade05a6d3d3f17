"""MNIST and Fashion-MNIST: pairs of idx files."""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.data.dataset import Dataset, Findings, Form, Labelled, Splits
from trainer.data.raw import fetch_files, find_files, reading
from trainer.data.splits import TENTH, split_official

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Idx:
    """A dataset in MNIST's format; each of the four files may also be gzipped."""

    name: str
    folder: str  # below the data root
    title: str
    class_names: tuple[str, ...] = ()

    def describe(self) -> Dataset:
        """Return the dataset."""
        kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
        files = tuple(f"{self.folder}/raw/{part}-{kind}" for part in ("train", "t10k") for kind in kinds)
        return Dataset(self.name, 28, 1, 10, f"{self.title}; {TENTH}", files, class_names=self.class_names)

    def fetch(self, root: Path, download: bool) -> None:
        """Check the four files, and download missing ones if `download`; DataError."""
        fetch_files(self.describe(), root, self._download if download else None)

    def _download(self, folder: Path) -> None:
        from torchvision import datasets

        getattr(datasets, self.folder)(folder, download=True)  # torchvision names class and folder alike

    def decode(self, root: Path, form: Form, findings: Findings) -> Splits:
        """Return the splits; DataError for a damaged file."""
        files = find_files(self.describe(), root)
        return split_official(self.name, read_pair(*files[:2]), read_pair(*files[2:]))

    def fingerprint(self) -> None:
        """Return None: the files are official."""


def read_pair(images: Path, labels: Path) -> Labelled:
    """Read a pair of idx files; DataError."""
    import numpy as np

    with reading(images):
        grey = read_idx(images)
        count, height, width = grey.shape
    with reading(labels):
        return grey.reshape(count, 1, height, width), read_idx(labels).astype(np.int64).reshape(count)


def read_idx(path: Path) -> "np.ndarray":
    """Read an array of bytes in MNIST's idx format, gzipped or not: uint8, its shape as in the header; DataError."""
    import numpy as np

    with reading(path):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, dimensions = int.from_bytes(data[:2], "big"), data[2], data[3]
        if zeros or kind != 0x08:
            raise ValueError("not an idx file of bytes")
        shape = np.frombuffer(data, ">u4", dimensions, offset=4).astype(int)
        body = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
        if body.size != shape.prod():
            raise ValueError(f"{body.size} bytes where its header promises {shape.prod()}")
        return body.reshape(tuple(shape))
