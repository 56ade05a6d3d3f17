"""Files under the data root that many evaluations need and one of them computes."""

import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from trainer.errors import DataError
from trainer.runs.atomic import write_bytes


def read_or_compute(path: Path, compute: Callable[[], bytes]) -> bytes:
    """Return the content of a file, computed once under a lock; it appears as a whole.

    If the folder cannot be written, compute the content for this caller alone and say so. DataError if the file cannot
    be read.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                content = compute()
                write_bytes(path, content)
                return content
    except OSError as error:
        if not path.exists():
            print(f"{path}: cannot be kept ({error.strerror or error}): recomputed each time", file=sys.stderr)
            return compute()
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; remove it, and it is recomputed") from None
