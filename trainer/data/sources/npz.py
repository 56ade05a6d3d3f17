"""Datasets in an npz file: arrays `images` and `labels`, or `train_images`, `train_labels`, `test_images` and so on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.classes import check_missing, check_spelling, check_train, clean_labels, number_labels, sort_names
from trainer.data.dataset import RECIPE_OWN, SPLIT_NAMES, Dataset, Findings, Form, Splits
from trainer.data.sources.arrays import find_axes, fit_arrays, to_bytes
from trainer.data.sources.paths import accessing, hash_facts, name_cache, parse_path
from trainer.data.splits import split_own
from trainer.errors import DataError

if TYPE_CHECKING:
    import numpy as np

Labels = dict[str, list[str | None]]  # prefix of the arrays, such as `train_` -> the class of each image


class Npz:
    """`npz:<path>`, or `npz:<path>#<label>` if it has several labels."""

    def __init__(self, name: str) -> None:
        """Find the file; DataError if there is none."""
        self.path, label = parse_path(name)
        with accessing(self.path):
            if not self.path.is_file():
                raise DataError(f"{name}: there is no file {self.path}; give the path of one")
        self.label = label or "labels"
        self.name = f"npz:{self.path}" + (f"#{label}" if label else "")

    @lru_cache  # noqa: B019 - sources live as long as the process
    def describe(self) -> Dataset:
        """Return the dataset, from headers and labels; DataError."""
        with npz(self.path) as arrays:
            prefixes = npz_prefixes(self.path, arrays, self.label)
            shape = npz_shape(self.path, arrays, f"{next(iter(prefixes))}images")
            labels = npz_labels(self.path, arrays, self.label, prefixes, Findings())
        names = sort_names(label for part in labels.values() for label in part if label is not None)
        _, height, width, channels = shape
        return Dataset(
            name=self.name,
            size=height if height == width else None,
            channels=1 if channels == 1 else 3,
            classes=len(names),
            origin=f"arrays of {self.path}, " + (f"labelled by {self.label}" if names else "without labels"),
            recipe=RECIPE_OWN,
            cache_name=name_cache(self.name, self.path),
            class_names=names,
            unlabelled=tuple(prefixes[prefix] for prefix, part in labels.items() if None in part),
        )

    def fetch(self, root: Path, download: bool) -> None:
        """Do nothing: the file is the user's own."""

    def decode(self, root: Path, form: Form, findings: Findings) -> Splits:
        """Return the splits; DataError."""
        with npz(self.path) as arrays:
            prefixes = npz_prefixes(self.path, arrays, self.label)
            labels = npz_labels(self.path, arrays, self.label, prefixes, findings)
            images = {prefix: arrays[f"{prefix}images"] for prefix in prefixes}
        for prefix, part in images.items():
            if len(part) != len(labels[prefix]):
                raise DataError(f"{self.path}: {len(part)} {prefix}images and {len(labels[prefix])} labels of them")
        pixels = to_bytes(images, str(self.path), findings)
        fitted = {prefix: fit_arrays(part, form, findings) for prefix, part in pixels.items()}
        splits = {
            prefixes[prefix]: (part, number_labels(labels[prefix], self.describe().names, str(self.path)))
            for prefix, part in fitted.items()
        }
        return split_own(self.name, splits)

    def fingerprint(self) -> str:
        """Return a hash of path, size and modification time of the file."""
        return hash_facts([str(self.path)])


def npz_shape(path: Path, arrays: Any, key: str) -> tuple[int, int, int, int]:
    """Return (n, height, width, channels) of an array of images, from its header; DataError if it holds none."""
    import numpy as np

    with arrays.zip.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    if dtype.kind not in "buif" or not (axes := find_axes(shape)) or not all(shape[1:]):
        raise DataError(
            f"{path}: {key} are {dtype} {shape}; they must be numbers [n, height, width], [n, height, width, channels] "
            "or [n, channels, height, width] with 1, 3 or 4 channels"
        )
    height, width, channels = (shape[axis] if axis else 1 for axis in axes)
    return shape[0], height, width, channels


def npz_labels(path: Path, arrays: Any, label: str, prefixes: Mapping[str, str], findings: Findings) -> Labels:
    """Return the class of each image; DataError if only some labels of a split are missing."""
    texts: dict[str, list[str]] = {}
    for prefix in prefixes:
        key = f"{prefix}{label}"
        if key in arrays:
            texts[prefix] = npz_texts(path, arrays[key], key, findings)
        else:  # npz_prefixes has checked that the file holds nothing but images
            texts[prefix] = [""] * npz_shape(path, arrays, f"{prefix}images")[0]
    flat = iter(clean_labels([text for part in texts.values() for text in part]))
    labels = {prefix: [next(flat) for _ in part] for prefix, part in texts.items()}
    spellings: dict[str, str] = {}
    prefix_of = {split: prefix for prefix, split in prefixes.items()}

    def describe(split: str, number: int) -> str:
        return f"{prefix_of[split]}{label}[{number}]"

    for prefix, part in labels.items():
        check_missing(part, partial(describe, prefixes[prefix]), str(path))
        last = {name: number for number, name in enumerate(part) if name is not None}
        spellings |= {name: describe(prefixes[prefix], number) for name, number in last.items()}
    check_spelling(spellings, str(path))
    check_train({prefixes[prefix]: part for prefix, part in labels.items()}, describe, str(path), "correct it")
    return labels


def npz_texts(path: Path, labels: "np.ndarray", key: str, findings: Findings) -> list[str]:
    """Return labels [n] or [n, 1] of numbers or words, or one-hot rows [n, k], as text; DataError for others."""
    import numpy as np

    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim == 2 and labels.dtype.kind in "biuf" and labels.shape[1] > 1:
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()):
            raise DataError(f"{path}: {key} are {labels.dtype} {labels.shape}, but not one-hot rows; give [n] labels")
        findings.notes.append(f"{key}: one-hot rows, read as their index")
        labels = labels.argmax(1)
    if labels.ndim != 1 or labels.dtype.kind not in "biufSU":
        raise DataError(
            f"{path}: {key} are {labels.dtype} {labels.shape}; they must be [n], a number or a word for each image, "
            "or one-hot rows"
        )
    if labels.dtype.kind == "f" and np.isinf(labels).any():
        first = np.flatnonzero(np.isinf(labels))[0]
        raise DataError(f"{path}: {key}[{first}] is {labels[first]}, which is no class; give it one or drop its image")
    if labels.dtype.kind == "S":
        return [label.decode(errors="backslashreplace") for label in labels.tolist()]
    return [str(int(label) if isinstance(label, bool) else label) for label in labels.tolist()]


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
    keys = [f"{prefix}images" for prefix in prefixes]
    if label != "labels" or set(arrays) - set(keys):  # a file of nothing but images has no labels
        keys += [f"{prefix}{label}" for prefix in prefixes]
    for key in keys:
        if key not in arrays:
            remedy = "; #<name> after the path selects another array" if key.endswith(label) else ""
            raise DataError(f"{path}: holds no {key!r}; it has: {', '.join(sorted(arrays))}{remedy}")
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
    except Exception as error:  # zip, zlib and the parser of headers raise anything on a damaged file
        raise DataError(f"{path}: cannot be read as npz: {' '.join(str(error).split())}; write it again") from error
