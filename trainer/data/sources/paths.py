"""The user's own files: their names, their folders in the cache, and how a change of them is noticed."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def parse_path(name: str) -> tuple[Path, str]:
    """Return absolute path and label of `<kind>:<path>#<label>`; the label is empty if there is none."""
    text, _, label = name.partition(":")[2].partition("#")
    return Path(text).expanduser().absolute(), label


def name_cache(name: str, path: Path) -> str:
    """Return the start of the name of a dataset's folder in the cache."""
    return f"{name.partition(':')[0]}-{path.stem}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def hash_facts(files: Iterable[tuple[str, Path]]) -> str:
    """Return a hash of the names, sizes and modification times of files."""
    facts = [f"{name} {path.stat().st_size} {path.stat().st_mtime_ns}" for name, path in files]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()
