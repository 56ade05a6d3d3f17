"""Files and directories that are replaced as a whole: readers see the old content or the new one, never half of it."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

BLOCK = 1 << 20  # bytes read at a time


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from disk; {} where it is missing or half-written."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a file by a JSON object, as `write_text` does."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file by a text. After a power cut it may hold the old text."""
    with replace_file(path, durable=False) as temporary:
        temporary.write_text(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file by bytes that survive a power cut."""
    with replace_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replace_file(path: Path, check: Callable[[], None] = lambda: None, durable: bool = True) -> Iterator[Path]:
    """Yield the path of a temporary file to write; put it in place of `path` at the end, or remove it after an error.

    `check` is called right before the file is put in place, and may raise to prevent that. `durable` waits until the
    disk holds it. An OSError names `path`.
    """
    temporary = temporary_path(path)
    try:
        with name_file(path):
            yield temporary
            if durable:
                synchronise(temporary)
            check()
            os.replace(temporary, path)
            if durable:
                synchronise(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_directory(path: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """As `replace_file`, for a directory of files, which is durable."""
    temporary = temporary_path(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            synchronise(file)
        synchronise(temporary)
        check()
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
        synchronise(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_path(path: Path) -> Path:
    """Return a path beside `path` that no other process uses; `.*.tmp` finds those of processes that were killed."""
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")


def synchronise(path: Path) -> None:
    """Wait until the disk holds a file, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """Return the sha256 of a file, in constant memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def name_file(path: Path) -> Iterator[None]:
    """Name the file in an OSError inside: the kernel's error about a full disk names none."""
    try:
        yield
    except OSError as error:
        if error.filename or not error.errno:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
