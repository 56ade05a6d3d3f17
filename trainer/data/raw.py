"""Official raw files in torchvision's layout: find, download and read them."""

import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from trainer.data.dataset import Dataset
from trainer.errors import DataError

Download: TypeAlias = Callable[[Path], None]  # downloads a dataset to a folder, in torchvision's layout

REMEDY = (
    "Put it there, run the same command where there is a network, "
    "or point data.root (or TURNOUT_DATA) at a folder that has it."
)
TIMEOUT = 30.0  # seconds without a byte after which a download is given up


def locate(path: Path) -> Path | None:
    """Return `path` or `path`.gz, whichever exists."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if os.path.exists(p)), None)


def find_files(dataset: Dataset, root: Path) -> list[Path]:
    """Return the raw files of a dataset that exist below `root`, in the order of its `files`."""
    return [path for file in dataset.files if (path := locate(root / file))]


def fetch_files(dataset: Dataset, root: Path, download: Download | None) -> None:
    """Check that the raw files of a dataset are below `root`; `download(folder)` gets missing ones. DataError."""
    missing = [root / file for file in dataset.files if not locate(root / file)]
    online = os.environ.get("TURNOUT_OFFLINE", "") in ("", "0")  # jobs on Slurm are offline
    if missing and download and online:
        _download(dataset, root, missing, download)
        missing = [path for path in missing if not locate(path)]
    if missing:
        raise DataError(f"{dataset.name}: {missing[0]} is missing. {REMEDY}")


def _download(dataset: Dataset, root: Path, missing: list[Path], download: Download) -> None:
    """Download the whole dataset to a temporary folder, then move missing files in, so that none is ever partial."""
    temporary = root / f".download-{uuid.uuid4().hex}"
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        temporary.mkdir(parents=True)
        download(temporary)
        for path in missing:
            path.parent.mkdir(parents=True, exist_ok=True)
            if fetched := locate(temporary / path.relative_to(root)):
                fetched.replace(path.with_name(fetched.name))
    except Exception as error:  # no network, a partial answer, a wrong checksum, a read-only root
        reason = " ".join(str(error).split())
        raise DataError(f"{dataset.name}: {missing[0]} is missing; the download failed: {reason}. {REMEDY}") from error
    finally:
        socket.setdefaulttimeout(timeout)
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn any error of a parser into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path} cannot be read: {reason}. If it is damaged or cut short, remove it and run the same command again."
        ) from error
