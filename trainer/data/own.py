"""Sets that a user has as files: `npz:<path>`, `folder:<path>` and `celeba`, each with `#<label>` where it has several.

Photographs are cut to their centre square and resized, antialiased, to the size that a run asks for.
"""

import csv
import hashlib
import os
import sys
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trainer.data.registry import Dataset
from trainer.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from trainer.data.raw import Labelled

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TABLE = "attributes.csv"  # in a folder: the file's name in the first column, an attribute in each other one
CELEBA = ("celeba/list_attr_celeba.txt", "celeba/list_eval_partition.txt")  # beside img_align_celeba(.zip)
DOWNLOAD = (
    "the CelebA download (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html: Anno/list_attr_celeba.txt, "
    "Eval/list_eval_partition.txt, Img/img_align_celeba.zip)"
)
# What subfolders, and arrays before _images, are called that hold a split.
NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "val", "valid"), "validation"
)
Opened = Callable[[str], IO[bytes]]


@lru_cache
def describe(name: str) -> Dataset:
    """What is behind npz:<path> or folder:<path>, by its headers, table or subfolders alone; DataError."""
    kind, path, label = parts(name)
    name = f"{kind}:{path}" + (f"#{label}" if label else "")
    if kind == "npz":
        images, classes = npz_header(path, label or "labels")
        height, width = images[1:3]
        if height != width:
            raise DataError(f"{name}: images are {height} x {width} pixels; cut them square")
        channels = 3 if images[3:] == (3,) else 1
        return Dataset(name, height, channels, len(classes), f"arrays of {path}, labelled by {label or 'labels'}")
    words = sorted(set(folder_labels(path, label).values()))
    return Dataset(name, None, 3, len(words), f"pictures of {path}, classes: {', '.join(words)}")


def parts(name: str) -> tuple[str, Path, str]:
    """(kind, absolute path, label) of a name; DataError where nothing is there."""
    kind, _, rest = name.partition(":")
    text, _, label = rest.partition("#")
    path = Path(text).expanduser().absolute()
    if not (path.is_file() if kind == "npz" else path.is_dir()):
        raise DataError(f"{name}: there is no {'file' if kind == 'npz' else 'folder'} {path}; give the path of one")
    return kind, path, label


def fingerprint(name: str) -> str:
    """Changes whenever a file of the set does: of their names, sizes and times of change."""
    kind, path, _ = parts(name)
    files = [path] if kind == "npz" else [path / file for file in listed(path)] + [*path.glob(TABLE)]
    facts = [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def decode_own(name: str, size: int, left_out: list[str] | None) -> "dict[str, Labelled]":
    """Splits `train`, `test` and perhaps `validation`, or '' where the set is not split; images [N, C, size, size].

    Pictures that cannot be read or are smaller than `size` are a DataError, or, given `left_out`, added to it.
    """
    import numpy as np

    kind, path, label = parts(name)
    if kind == "npz":
        return npz_splits(path, label or "labels")
    found = folder_labels(path, label)
    classes = sorted(set(found.values()))
    splits = {}
    for head, split in (folder_splits(path, found) or {"": ""}).items():
        files = [file for file in found if not head or file.startswith(f"{head}/")]
        images, kept = pictures(files, lambda file: (path / file).open("rb"), size, str(path), left_out)
        labels = np.array([classes.index(found[file]) for file in kept], np.int64)
        splits[split] = images, labels
    return splits


# npz


def npz_header(path: Path, label: str) -> tuple[tuple[int, ...], "np.ndarray"]:
    """Shape of the (training) images and all classes."""
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
    """Labels [n], or a column [n, 1] of them, numbers or words, of which equal ones are a class: [n]; DataError."""
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
    """'train_', 'test_' and perhaps 'validation_' -> split, or '' -> '' where the arrays are not split; DataError."""
    heads = [key.removesuffix("_images") for key in arrays if key.endswith("_images")]
    named = {head: NAMES[head.lower()] for head in heads if head.lower() in NAMES}
    if (named and "images" in arrays) or len(set(named.values())) < len(named):
        raise DataError(
            f"{path}: holds {', '.join(key for key in sorted(arrays) if key.endswith('images'))}; give either images, "
            "or train_images and test_images and perhaps validation_images (or val_, valid_), each split once"
        )
    prefixes = {"": ""}
    if "images" not in arrays:
        wanted = {split: f"{split}_" for split in ("train", "test")} | {named[head]: f"{head}_" for head in named}
        prefixes = {prefix: split for split, prefix in wanted.items()}
    for prefix in prefixes:
        for key in (f"{prefix}images", f"{prefix}{label}"):
            if key not in arrays:
                raise DataError(f"{path}: holds no {key!r}; it has: {', '.join(sorted(arrays))}")
    return prefixes


@contextmanager
def npz(path: Path) -> Iterator[Any]:
    """The arrays of a file, none of them an object that could run code; DataError, also where it is damaged within."""
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except DataError:
        raise
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as npz: {error}") from None


def npz_splits(path: Path, label: str) -> "dict[str, Labelled]":
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


# Pictures


def listed(folder: Path) -> list[str]:
    """All pictures below a folder, by their paths from there, sorted; hidden ones are none."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(place).relative_to(folder)
        found += [
            (relative / file).as_posix()
            for file in files
            if file.lower().endswith(PICTURES) and not file.startswith(".")
        ]
    return sorted(found)


def folder_labels(folder: Path, label: str) -> dict[str, str]:
    """Picture -> its class in words: a column of attributes.csv, else its subfolder, else '0' for all; DataError."""
    files = listed(folder)
    if len(files) < 2:
        raise DataError(f"{folder}: holds {len(files)} pictures ({', '.join(PICTURES)}); at least two are needed")
    splits = folder_splits(folder, files)
    table = folder / TABLE
    if not label and not table.exists():
        inner = [file.split("/")[:-1] for file in files]
        inner = [places[1:] if splits else places for places in inner]
        return {file: "/".join(places) or "0" for file, places in zip(files, inner, strict=True)}
    try:
        with table.open(newline="", encoding="utf-8") as opened:
            rows = list(csv.reader(opened))
    except (OSError, ValueError) as error:
        raise DataError(f"{table}: cannot be read: {error}; #{label} asks for a column of it") from None
    header = rows[0] if rows else []
    column = header.index(label) if label in header[1:] else 1 if not label and len(header) > 1 else 0
    if not column:
        raise DataError(f"{table}: has no column {label!r}; it has: {', '.join(header[1:]) or 'none'}")
    values = {row[0]: row[column] for row in rows[1:] if len(row) > column}
    missing = [file for file in files if file not in values]
    if missing:
        raise DataError(f"{table}: says nothing of {missing[0]} and {len(missing) - 1} more pictures; add their rows")
    return {file: values[file] for file in files}


def folder_splits(folder: Path, files: Collection[str]) -> dict[str, str]:
    """Subfolder -> its split, by their names; {} where the set is not split, DataError where it is so by halves."""
    heads = {file.partition("/")[0] for file in files}
    named = {head: NAMES[head.lower()] for head in sorted(heads) if head.lower() in NAMES}
    if {head.lower() for head in named} <= {"valid"}:  # which, beside invalid, is a class
        deeper = {NAMES.get(place.lower()) for file in files for place in file.split("/")[1:-1]}
        if {"train", "test"} <= deeper:
            raise DataError(
                f"{folder}: train and test lie further down; give the path of the folder that train/ and test/ are in, "
                "and put the folders of classes into these"
            )
        return {}
    missing = [split for split in ("train", "test") if split not in named.values()]
    beside = sorted(heads - named.keys())
    if missing or beside or len(set(named.values())) < len(named):
        lacking = f", none in {' or '.join(missing)}" if missing else ""
        more = f" and {len(beside) - 1} more" if beside[1:] else ""
        others = f", others in {beside[0]}{more}" if beside else ""
        raise DataError(
            f"{folder}: is split by halves: pictures are in {', '.join(named)}{lacking}{others}; a set that is split "
            "has train/ and test/, perhaps validation/ (or val/, valid/), each once, and nothing beside them: add or "
            "move pictures, or rename a folder that is a class"
        )
    return named


def pictures(
    files: Sequence[str], opened: Opened, size: int, where: str, left_out: list[str] | None
) -> "tuple[np.ndarray, list[str]]":
    """Decode pictures, cut to their centre square and resized: uint8 [n, 3, size, size], and the names of these n.

    The others are added to `left_out`; without it, and where none is left, they are a DataError.
    """
    import numpy as np

    images = np.empty((len(files), size, size, 3), np.uint8)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        faults = dict(faulty(pool.map(partial(decode_into, images, files, opened), range(len(files)))))
    for position, problem in [*faults.items()][:10]:
        print(f"{where}: {files[position]}: {problem}", file=sys.stderr)
    if faults and (left_out is None or len(faults) == len(files)):
        first = min(faults)
        remedy = (
            f"mend them, or, if they are small, set a data.size below {size}"
            if len(faults) == len(files)
            else "mend or remove them, or leave them out with: python jobs/stage.py <sweep>.yaml --skip-unreadable"
        )
        raise DataError(
            f"{where}: {len(faults)} of {len(files)} pictures cannot be used, such as {files[first]}: {faults[first]}; "
            f"{remedy}"
        )
    if left_out is not None and faults:
        left_out += [files[position] for position in faults]
        print(f"{where}: left out {len(faults)} of {len(files)} pictures", file=sys.stderr)
    kept = [position for position in range(len(files)) if position not in faults]
    images = images[kept] if faults else images
    return images.transpose(0, 3, 1, 2), [files[position] for position in kept]


def faulty(problems: "Iterator[str]") -> "Iterator[tuple[int, str]]":
    """(position, problem) of what could not be decoded, with a bar on a terminal."""
    from rich.progress import track

    shown = track(problems, "decoding", disable=not sys.stderr.isatty())
    yield from ((position, problem) for position, problem in enumerate(shown) if problem)


def decode_into(images: "np.ndarray", files: Sequence[str], opened: Opened, position: int) -> str:
    """Decode one picture into its place; return what is wrong with it, or ''."""
    import numpy as np
    from PIL import Image

    size = images.shape[1]
    try:
        with opened(files[position]) as file, Image.open(file) as picture:
            width, height = picture.size
            side = min(width, height)
            if side < size:
                return f"{width} x {height} pixels are less than {size}"
            left, top = (width - side) // 2, (height - side) // 2
            square = picture.convert("RGB").crop((left, top, left + side, top + side))
            images[position] = np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
    except Exception as error:  # noqa: BLE001 - a decoder raises anything on a damaged file
        return f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
    return ""


# CelebA


def read_celeba(root: Path, label: str, size: int, left_out: list[str] | None) -> "dict[str, Labelled]":
    """The aligned photographs, 178 x 218, of img_align_celeba.zip or the folder of that name, in the official splits.

    The label is one of the 40 attributes, 0 or 1. DataError if a file is missing or damaged, or has no such attribute.
    Photographs that cannot be read or are smaller than `size` are a DataError, or, given `left_out`, added to it.
    """
    import numpy as np

    table, partition = (root / file for file in CELEBA)
    archive = root / "celeba" / "img_align_celeba.zip"
    missing = [str(path) for path in (table, partition) if not path.exists()]
    if not archive.exists() and not archive.with_suffix("").is_dir():
        missing.append(f"{archive} (or the folder img_align_celeba)")
    if missing:
        raise DataError(
            f"celeba: missing: {', '.join(missing)}. Nothing is fetched: put there what has that name in {DOWNLOAD}, "
            "or point data.root (or TURNOUT_DATA) at a folder that has it."
        )
    (_, header, *rows), divided = words_of(table, 3), words_of(partition, 1)
    if label not in header:
        raise DataError(f"celeba#{label}: there is no such attribute; it has: {', '.join(header)}")
    column = header.index(label) + 1
    for row in rows:
        if len(row) != len(header) + 1 or row[column] not in ("1", "-1"):
            raise DataError(
                f"{table}: the row of {row[0]} is not a name and {len(header)} times 1 or -1; "
                f"take the file of {DOWNLOAD}"
            )
    for row in divided:
        if len(row) != 2:
            raise DataError(f"{partition}: the row of {row[0]} is not a name and a number; take the file of {DOWNLOAD}")
    values, numbers = {row[0]: int(row[column] == "1") for row in rows}, {row[0]: row[1] for row in divided}
    splits = {}
    with celeba_pictures(archive) as opened:
        where = str(archive if archive.exists() else archive.with_suffix(""))
        for number, split in enumerate(("train", "validation", "test")):
            files = [file for file in values if numbers.get(file) == str(number)]
            if not files:
                raise DataError(f"{partition}: has no {split} ({number}) of {table}; take both files of {DOWNLOAD}")
            images, kept = pictures(files, opened, size, where, left_out)
            splits[split] = images, np.array([values[file] for file in kept], np.int64)
    return splits


def words_of(path: Path, least: int) -> list[list[str]]:
    """The words of each line that has some, of `least` lines or more; DataError."""
    try:
        lines = [words for line in path.read_text().splitlines() if (words := line.split())]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; take the file of {DOWNLOAD}") from None
    if len(lines) < least:
        raise DataError(f"{path}: has {len(lines)} lines; take the file of {DOWNLOAD}")
    return lines


@contextmanager
def celeba_pictures(archive: Path) -> Iterator[Opened]:
    """What opens a photograph by its name, in the zip, or in the folder where there is none; DataError."""
    if not archive.exists():
        yield lambda file: (archive.with_suffix("") / file).open("rb")
        return
    try:
        zipped = zipfile.ZipFile(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: cannot be read as zip: {error}; take the file of {DOWNLOAD}") from None
    with zipped:
        yield lambda file: zipped.open(f"img_align_celeba/{file}")
