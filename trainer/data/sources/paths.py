"""The user's own files: their names, their folders in the cache, and how a change of them is noticed."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.data.pictures import printable
from trainer.errors import DataError


def parse_path(name: str) -> tuple[Path, str]:
    """Return absolute path and label of `<kind>:<path>#<label>`; the label is empty if there is none.

    A path that exists may itself contain #. DataError if there is no path, or if it contains a variable that is not
    set or a home directory that is unknown.
    """
    text = name.partition(":")[2]
    if not text.partition("#")[0]:
        raise DataError(f"{name}: names no path; give one after the colon")
    for whole, label in ((text, ""), text.rpartition("#")[::2]):
        if "#" in whole and os.path.lexists(path := expand_path(whole, name)):
            return path, label
    text, _, label = text.partition("#")
    return expand_path(text, name), label


@contextmanager
def accessing(path: str | Path) -> Iterator[None]:
    """Turn an error of the system about a path, such as a folder that may not be listed, into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{printable(str(error.filename or path))}: cannot be read: {error.strerror}; correct the path, make it "
            "readable or remove it"
        ) from None


def expand_path(text: str, where: str) -> Path:
    """Return an absolute path, with ~ and $VARIABLES replaced; DataError if one of them is unknown."""
    try:
        path = os.path.expandvars(Path(text).expanduser())
    except RuntimeError:
        raise DataError(f"{where}: the home directory is unknown; set HOME or give an absolute path") from None
    if "$" in path and not os.path.exists(path):
        raise DataError(f"{where}: {path[path.index('$') :].split('/')[0]} is not set; set it or give the whole path")
    return Path(path).absolute()


def name_cache(name: str, path: Path) -> str:
    """Return the start of the name of a dataset's folder in the cache."""
    return f"{name.partition(':')[0]}-{path.stem}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def hash_facts(files: Iterable[str]) -> str:
    """Return a hash of the paths, sizes and modification times of files; of a dangling link, of itself. DataError."""
    digest = hashlib.sha256()
    for path in files:
        try:
            status = os.stat(path)
        except OSError:
            with accessing(path):
                status = os.lstat(path)
        digest.update(os.fsencode(f"{path} {status.st_size} {status.st_mtime_ns}\n"))
    return digest.hexdigest()
