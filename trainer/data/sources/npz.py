"""Datasets in an npz file: arrays `images` and `labels`, or `train_images`, `train_labels`, `test_images` and so on."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.dataset import SPLIT_NAMES, Dataset, Splits
from trainer.data.sources.paths import hash_facts, name_cache, parse_path
from trainer.data.splits import split_own
from trainer.errors import DataError

if TYPE_CHECKING:
    import numpy as np


RECIPE = 2


class Npz:
    """`npz:<path>`, or `npz:<path>#<label>` if it has several labels."""

    def __init__(self, name: str) -> None:
        """Find the file; DataError if there is none."""
        self.path, label = parse_path(name)
        if not self.path.is_file():
            raise DataError(f"{name}: there is no file {self.path}; give the path of one")
        self.label = label or "labels"
        self.name = f"npz:{self.path}" + (f"#{label}" if label else "")

    @lru_cache  # noqa: B019 - sources live as long as the process
    def describe(self) -> Dataset:
        """Return the dataset, from the headers alone; DataError."""
        shape, classes = npz_header(self.path, self.label)
        height, width = shape[1:3]
        if height != width:
            raise DataError(f"{self.name}: images are {height} x {width} pixels; cut them square")
        return Dataset(
            name=self.name,
            size=height,
            channels=3 if shape[3:] == (3,) else 1,
            classes=len(classes),
            origin=f"arrays of {self.path}, labelled by {self.label}",
            recipe=RECIPE,
            cache_name=name_cache(self.name, self.path),
        )

    def fetch(self, root: Path, download: bool) -> None:
        """Do nothing: the file is the user's own."""

    def decode(self, root: Path, size: int, left_out: list[str] | None) -> Splits:
        """Return the splits; DataError."""
        return split_own(self.name, npz_splits(self.path, self.label))

    def fingerprint(self) -> str:
        """Return a hash of path, size and modification time of the file."""
        return hash_facts([(str(self.path), self.path)])


def npz_header(path: Path, label: str) -> tuple[tuple[int, ...], "np.ndarray"]:
    """Return the shape of the (training) images and all classes."""
    import numpy as np

    with npz(path) as arrays:
        prefixes = npz_prefixes(path, arrays, label)
        with arrays.zip.open(f"{next(iter(prefixes))}images.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
            raise DataError(f"{path}: images are {dtype} {shape}; they must be uint8 [n, height, width(, 1 or 3)]")
        return shape, np.unique(np.concatenate([npz_labels(path, arrays, f"{prefix}{label}") for prefix in prefixes]))


def npz_labels(path: Path, arrays: Any, key: str) -> "np.ndarray":
    """Return labels [n] of an array [n] or [n, 1] of numbers or words; equal values are one class. DataError."""
    import numpy as np

    labels: np.ndarray = arrays[key]
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or labels.dtype.kind not in "biufSU":
        raise DataError(
            f"{path}: {key} are {labels.dtype} {labels.shape}; they must be [n], a number or a word for each image "
            "(of one-hot rows, their argmax)"
        )
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        first = np.flatnonzero(~np.isfinite(labels))[0]
        raise DataError(f"{path}: {key}[{first}] is {labels[first]}, which is no class; give it one or drop its image")
    return labels


def npz_prefixes(path: Path, arrays: Any, label: str) -> dict[str, str]:
    """Return prefix → split, such as `train_` → train; {'': ''} if the arrays are not split. DataError."""
    heads = [key.removesuffix("_images") for key in arrays if key.endswith("_images")]
    named = {head: SPLIT_NAMES[head.lower()] for head in heads if head.lower() in SPLIT_NAMES}
    if (named and "images" in arrays) or len(set(named.values())) < len(named):
        raise DataError(
            f"{path}: holds {', '.join(key for key in sorted(arrays) if key.endswith('images'))}; give either images, "
            "or train_images and test_images and perhaps validation_images (or val_, valid_), each split once"
        )
    prefixes = {"": ""}
    if "images" not in arrays:
        prefix_of = {split: f"{split}_" for split in ("train", "test")} | {named[head]: f"{head}_" for head in named}
        prefixes = {prefix: split for split, prefix in prefix_of.items()}
    for prefix in prefixes:
        for key in (f"{prefix}images", f"{prefix}{label}"):
            if key not in arrays:
                raise DataError(f"{path}: holds no {key!r}; it has: {', '.join(sorted(arrays))}")
    return prefixes


@contextmanager
def npz(path: Path) -> Iterator[Any]:
    """Yield the arrays of a file, without pickled objects, which could run code. DataError, also while it is read."""
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except DataError:
        raise
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as npz: {error}") from None


def npz_splits(path: Path, label: str) -> Splits:
    """Return split → (images uint8 [n, channels, height, width], labels [n]); DataError."""
    import numpy as np

    _, classes = npz_header(path, label)
    splits = {}
    with npz(path) as arrays:
        for prefix, split in npz_prefixes(path, arrays, label).items():
            images, labels = arrays[f"{prefix}images"], npz_labels(path, arrays, f"{prefix}{label}")
            if len(images) != len(labels):
                raise DataError(f"{path}: {len(images)} {prefix}images and {len(labels)} {prefix}{label}")
            images = images[..., None] if images.ndim == 3 else images
            splits[split] = images.transpose(0, 3, 1, 2), np.searchsorted(classes, labels)
    return splits
