"""A sweep's directory in one tar file: packed when nobody trains there any more, read without unpacking all of it."""

import atexit
import filecmp
import shutil
import tarfile
import tempfile
from pathlib import Path

from trainer.errors import ConfigError
from trainer.runs.atomic import replace_file

SKIPPED = ("code",)  # folders of a sweep that no reader of results needs


def archive_file(sweep: Path) -> Path:
    """Return the path of a sweep's archive, beside its directory."""
    return sweep.with_name(f"{sweep.name}.tar")


def pack(sweep: Path) -> Path:
    """Move a sweep's directory into its archive, which is compared with it before it is removed; return the archive.

    ConfigError if there already is one, or if a file changes meanwhile.
    """
    archive = archive_file(sweep)
    if archive.exists():
        raise ConfigError(f"{archive}: exists already; move it away, nothing is overwritten")
    with replace_file(archive) as temporary:
        with tarfile.open(temporary, "w") as tar:
            tar.add(sweep, arcname=sweep.name)
        compare(temporary, sweep)
    shutil.rmtree(sweep)
    return archive


def compare(archive: Path, sweep: Path) -> None:
    """Check that an archive holds every file of a sweep's directory as it is; ConfigError."""
    files = [path for path in sweep.rglob("*") if path.is_file() and not path.is_symlink()]
    names = {str(path.relative_to(sweep.parent)) for path in files}
    with tarfile.open(archive) as tar, tempfile.TemporaryDirectory() as folder:
        for member in tar:
            if not (member.isfile() or member.islnk()):
                continue
            copy = Path(folder, "file")
            with tar.extractfile(member) as content, copy.open("wb") as file:  # type: ignore[union-attr]
                shutil.copyfileobj(content, file)
            if not filecmp.cmp(copy, sweep.parent / member.name, shallow=False):
                raise ConfigError(f"{sweep.parent / member.name}: has changed while it was packed; nothing was removed")
            names.remove(member.name)
    if names:
        raise ConfigError(f"{sweep.parent / min(names)}: is not in {archive}; nothing was removed")


def locate(path: Path) -> Path:
    """Return a path as it is or, below an archive such as logs/dann.tar, extracted until this process ends.

    ConfigError if the archive is damaged or has no such path.
    """
    archive = next((part for part in (path, *path.parents) if part.suffix == ".tar" and part.is_file()), None)
    if archive is None:
        return path
    folder = tempfile.mkdtemp(prefix="turnout-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    parts = path.relative_to(archive).parts
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                names = Path(member.name).parts
                is_below = names[1 : len(parts) + 1] == parts and not {*names[1:2]} & {*SKIPPED}
                if is_below and not member.issym():
                    tar.extract(member, folder, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise ConfigError(f"{archive}: cannot be read: {error}") from None
    (*tops,) = Path(folder).iterdir()
    if not tops or not (extracted := tops[0].joinpath(*parts)).exists():
        raise ConfigError(f"{path}: the archive has no such trial; `tar -tf {archive}` lists what it has")
    return extracted
