"""Copy a split of a staged dataset from the shared disk to a disk of the node, once for all processes there."""

import os
import re
import shutil
import sys
from pathlib import Path

from filelock import FileLock

from trainer.data.cache import origin
from trainer.data.provenance import compute_fingerprint
from trainer.errors import DataError
from trainer.runs.atomic import hash_file, replace_directory

RESERVE = 1 << 30  # bytes of the node's disk that stay free


def copy_split(folder: Path, split: str, parent: str | None) -> Path:
    """Return a folder below `parent` with a split of the dataset in this folder of the cache.

    Variables such as $TMPDIR are expanded on the node. The first process copies and checks sizes and hashes, the others
    wait for it; a later trial finds the copy. Without `parent`, or if the copy is not possible, return `folder` itself
    and say why on stderr.
    """
    if parent is None:
        return folder
    try:
        return _copy_split(folder, split, expand(parent))
    except (OSError, NotImplementedError, DataError) as error:  # NotImplementedError: a disk without locks
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"data.copy_to: {parent}: {error}; reading {folder} instead", file=sys.stderr, flush=True)
        return folder


def expand(parent: str) -> Path:
    """Return an existing directory with its variables replaced; DataError if a variable is not set."""
    path = os.path.expanduser(os.path.expandvars(parent))
    if missing := re.search(r"\$\{?\w+", path):
        raise DataError(f"{missing[0].replace('{', '')} is not set here")
    return Path(path).resolve(strict=True)


def _copy_split(folder: Path, split: str, parent: Path) -> Path:
    files = {name: facts for name, facts in origin(folder)["files"].items() if name.startswith(f"{split}_")}
    copy = parent / "turnout" / f"{folder.name}-{split}-{compute_fingerprint(folder, None)}"
    copy.parent.mkdir(exist_ok=True)
    with FileLock(f"{copy}.lock"):
        if all((copy / name).is_file() and (copy / name).stat().st_size == f["bytes"] for name, f in files.items()):
            return copy
        size, free = sum(facts["bytes"] for facts in files.values()), shutil.disk_usage(parent).free
        if size + RESERVE > free:
            raise DataError(f"{size / 2**30:.1f} GiB and a reserve do not fit into the {free / 2**30:.1f} GiB left")
        with replace_directory(copy) as temporary:
            for name in files:
                shutil.copyfile(folder / name, temporary / name)
                if hash_file(temporary / name) != files[name]["sha256"]:
                    raise DataError(f"the copy of {name} differs from what was staged")
    return copy
