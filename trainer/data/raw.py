"""Raw files in torchvision's layout: find, fetch and read them. A bad file is a DataError that names it."""

import gzip
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from trainer.data.registry import Dataset
from trainer.errors import DataError

Labelled = tuple[np.ndarray, np.ndarray]  # images uint8 [N, C, H, W], labels int64 [N]

REMEDY = (
    "Put it there, run the same command where there is a network, "
    "or point data.root (or TURNOUT_DATA) at a folder that has it."
)
TIMEOUT = 30.0  # seconds without a byte before a download is given up


def locate(path: Path) -> Path | None:
    """`path` or `path`.gz, whichever exists."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if os.path.exists(p)), None)


def fetch(dataset: Dataset, root: Path, download: bool) -> list[Path]:
    """The raw files of `dataset` below `root`, in the order of its `files`, downloaded by torchvision where missing."""
    missing = [root / file for file in dataset.files if not locate(root / file)]
    online = os.environ.get("TURNOUT_OFFLINE", "") in ("", "0")  # a job on Slurm is offline
    if missing and download and online:
        _download(dataset, root, missing)
        missing = [path for path in missing if not locate(path)]
    if missing:
        raise DataError(f"{dataset.name}: {missing[0]} is missing. {REMEDY}")
    return [file_path for file in dataset.files if (file_path := locate(root / file))]


def _download(dataset: Dataset, root: Path, missing: list[Path]) -> None:
    """Let torchvision fetch the whole set beside its place, then move in what is missing: no half file is ever seen."""
    from torchvision import datasets

    temporary = root / f".download-{uuid.uuid4().hex}"
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        temporary.mkdir(parents=True)
        if dataset.name == "usps":
            for train in (True, False):
                datasets.USPS(temporary / "USPS", train=train, download=True)
        elif dataset.name == "svhn":
            for split in ("train", "test"):
                datasets.SVHN(temporary / "SVHN", split=split, download=True)
        else:
            {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[dataset.name](temporary, download=True)
        for path in missing:
            path.parent.mkdir(parents=True, exist_ok=True)
            if fetched := locate(temporary / path.relative_to(root)):
                fetched.replace(path.with_name(fetched.name))
    except Exception as error:  # no network, half an answer, a wrong checksum, a read-only root
        reason = " ".join(str(error).split())
        raise DataError(f"{dataset.name}: {missing[0]} is missing; the download failed: {reason}. {REMEDY}") from error
    finally:
        socket.setdefaulttimeout(timeout)
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn whatever a parser raises on a bad file into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path} cannot be read: {reason}. If it is damaged or cut short, remove it and run the same command again."
        ) from error


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in MNIST's idx format, gzipped or not: uint8, shape as the header says."""
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


def read_mnist(images: Path, labels: Path) -> Labelled:
    """A pair of idx files."""
    with reading(images):
        grey = read_idx(images)
        count, height, width = grey.shape
    with reading(labels):
        return grey.reshape(count, 1, height, width), read_idx(labels).astype(np.int64).reshape(count)


def read_usps(path: Path) -> Labelled:
    """A bz2 file of libsvm lines: label 1..10 is digit 0..9; 256 values in [-1, 1] become 0..255 as in torchvision."""
    from sklearn.datasets import load_svmlight_file

    with reading(path):
        values, labels = load_svmlight_file(str(path), n_features=256, dtype=np.float32)
        images = ((values.toarray() + 1) / 2 * 255).astype(np.uint8)
        return images.reshape(-1, 1, 16, 16), labels.astype(np.int64) - 1


def read_svhn(path: Path) -> Labelled:
    """A Matlab file with X uint8 [32, 32, 3, N] and y [N, 1], where label 10 is digit 0."""
    from scipy.io import loadmat

    with reading(path):
        content = loadmat(str(path), variable_names=("X", "y"))
        images = np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1))
        return images, content["y"].astype(np.int64).reshape(len(images)) % 10
