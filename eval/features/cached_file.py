"""Files under the data root that many evaluations want and one makes."""

import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path

from trainer.errors import DataError


def once(path: Path, make: Callable[[], bytes]) -> bytes:
    """The content of a file, made by whoever asks first while others wait; put in place as a whole.

    Where the folder cannot be written it is made for this caller alone, who is told. DataError if it cannot be read.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                content = make()
                temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
                try:
                    with temporary.open("wb") as file:
                        file.write(content)
                        file.flush()
                        os.fsync(file.fileno())
                    os.replace(temporary, path)
                finally:
                    temporary.unlink(missing_ok=True)
                return content
    except OSError as error:
        if not path.exists():
            print(f"{path}: cannot be kept ({error.strerror or error}): it is made anew each time", file=sys.stderr)
            return make()
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; remove it, and it is made anew") from None
