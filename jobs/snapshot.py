"""Copy the code of the checkout for the jobs of a submission, so that later edits do not affect them."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.runs.atomic import replace_file, temporary_path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("eval", "jobs", "models", "sweeps", "trainer")  # folders to copy from a checkout without git
MAX_BYTES = 64 << 20  # a larger snapshot would contain stray data
GIT_OVERRIDES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # a git hook sets these to its own repository


@dataclass(frozen=True)
class Snapshot:
    """A copy of the code and the commit it was taken from."""

    folder: Path  # absolute; its name is a hash of the contents
    commit: str | None  # None if git does not know the checkout
    dirty: bool | None  # whether the code differs from the commit

    def record(self) -> dict[str, Any]:
        """Return the entries for submissions.jsonl; `code` is relative to the sweep's directory."""
        return {"code": f"code/{self.folder.name}", "commit": self.commit, "dirty": self.dirty}


@dataclass(frozen=True)
class Entry:
    """A file of a snapshot, or a link to a folder."""

    content: bytes  # for a link: its target path
    kind: str  # file, program (executable) or link; part of the hash


def take(sweep: Path, checkout: Path = ROOT, write: bool = True) -> Snapshot:
    """Copy all files that git tracks or would add to <sweep>/code/<hash>/, unless that copy exists.

    The copy appears as a whole; files that an existing copy has lost are restored. Without `write` only the path is
    computed. ConfigError if the files are too large or unreadable, if the folder is not writable, or if Python cannot
    import from it.
    """
    runs = sweep.parent.resolve()
    entries = read_entries(checkout, sweep.resolve() if runs in (checkout, *checkout.parents) else runs)
    digest = hashlib.sha256()
    for name, entry in sorted(entries.items()):
        content = hashlib.sha256(entry.content).hexdigest()
        digest.update(f"{entry.kind} {content} ".encode() + os.fsencode(name) + b"\0")
    folder = sweep.absolute() / "code" / digest.hexdigest()[:12]
    if os.pathsep in str(folder) or not str(folder).isprintable():
        raise ConfigError(
            f"{folder}: Python cannot import from a path that contains {os.pathsep!r} or a control character; "
            "give another --runs"
        )
    if write:
        try:
            publish(folder, entries)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot copy the code there: {error.strerror or error}") from None
    return Snapshot(folder, *read_version(checkout, {runs, Path(os.path.abspath(sweep.parent))}))


def import_environment(code: Path) -> dict[str, str]:
    """Return this process's environment, changed so that Python imports from `code` before anything else."""
    paths = [str(code), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def write_report(code: Path, sweep: Path) -> tuple[int, str]:
    """Write the report of a sweep by some code; return the exit code and the text for a terminal."""
    command = [sys.executable, str(code / "eval" / "report.py"), str(sweep)]
    environment = import_environment(code)
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    return result.returncode, result.stdout


def read_entries(checkout: Path, excluded: Path) -> dict[str, Entry]:
    """Return name -> entry of all files to copy, without those below the folder `excluded`; ConfigError."""
    entries, sizes = {}, {}
    for name in list_files(checkout):
        path = checkout / name
        target = path.resolve()
        if excluded in (target, *target.parents):
            continue
        if path.is_symlink() and path.is_dir():  # The folder may lie outside the checkout, so only the link is copied.
            inside = checkout in target.parents
            link = os.path.relpath(target, path.parent.resolve()) if inside else str(target)
            entries[name] = Entry(os.fsencode(link), "link")
        elif path.is_file():
            sizes[name] = path.stat().st_size
    if sum(sizes.values()) > MAX_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
        raise ConfigError(
            f"{checkout}: jobs run a copy of this checkout, but its files have {sum(sizes.values()) / 2**20:.0f} MiB, "
            f"more than {MAX_BYTES / 2**20:.0f}; the largest: "
            + ", ".join(f"{name} ({sizes[name] / 2**20:.1f} MiB)" for name in largest)
            + "; add files that are not code to .gitignore (git rm --cached if tracked), or move them away"
        )
    for name in sizes:
        try:
            program = os.access(checkout / name, os.X_OK)
            entries[name] = Entry((checkout / name).read_bytes(), "program" if program else "file")
        except OSError as error:
            raise ConfigError(
                f"{checkout / name}: jobs run a copy of this checkout, but this file cannot be read: {error.strerror}"
            ) from None
    return entries


def list_files(checkout: Path) -> Iterator[str]:
    """Yield the relative paths that git tracks or would add; without git, all files in PACKAGES."""
    listing = git(checkout, "ls-files", "-co", "--exclude-standard", "-z")
    names = dict.fromkeys(filter(None, (listing or "").split("\0")))
    if "jobs/snapshot.py" in names:
        for name in names:
            folder = checkout / name
            if folder.is_dir() and not folder.is_symlink():  # a nested repository
                nested = git(folder, "ls-files", "-co", "--exclude-standard", "-z") or ""
                yield from (os.path.join(name, path) for path in nested.split("\0") if path)
            else:
                yield name
        return
    for package in PACKAGES:
        for parent, folders, files in os.walk(checkout / package):
            links = [name for name in folders if Path(parent, name).is_symlink()]
            folders[:] = [name for name in folders if name != "__pycache__"]
            yield from (os.path.relpath(Path(parent, name), checkout) for name in (*files, *links))


def read_version(checkout: Path, runs: set[Path]) -> tuple[str | None, bool | None]:
    """Return the commit of a checkout and whether its files, except below `runs`, differ from it; None without git."""
    exclude = [f":(exclude,literal){path.relative_to(checkout)}" for path in runs if checkout in path.parents]
    status = git(checkout, "--no-optional-locks", "status", "--porcelain=v2", "--branch", "-z", "--", ".", *exclude)
    # An untracked checkout may lie inside an unrelated repository, whose commit says nothing about this code.
    tracked = git(checkout, "ls-files", "-z", "--", "jobs/snapshot.py")
    if status is None or not tracked:
        return None, None
    lines = status.split("\0")
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    return None if commit == "(initial)" else commit, any(line and not line.startswith("# ") for line in lines)


def git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git in a folder's own repository; None if git is missing or fails."""
    variables = {name: value for name, value in os.environ.items() if name not in GIT_OVERRIDES}
    command = ["git", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, env=variables, capture_output=True, check=False)
    except OSError:
        return None
    return None if result.returncode else os.fsdecode(result.stdout)


def publish(folder: Path, entries: dict[str, Entry]) -> None:
    """Create the folder as a whole with all entries, or restore entries that an existing one has lost."""
    if not folder.exists():
        temporary = temporary_path(folder)
        try:
            for name, entry in entries.items():
                write_entry(temporary / name, entry)
            temporary.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another submission has just created it
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    for name, entry in entries.items():
        if not is_intact(folder / name, entry):  # removed by the clean-up of a scratch disk, or edited
            with replace_file(folder / name, durable=False) as temporary:
                write_entry(temporary, entry)


def is_intact(path: Path, entry: Entry) -> bool:
    """Return whether the file or link at `path` has the entry's content."""
    try:
        if entry.kind == "link":
            return os.fsencode(os.readlink(path)) == entry.content
        return path.read_bytes() == entry.content
    except OSError:
        return False


def write_entry(path: Path, entry: Entry) -> None:
    """Write a link or a read-only file: so that the copy is not edited instead of the checkout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if entry.kind == "link":
        path.symlink_to(os.fsdecode(entry.content))
    else:
        path.write_bytes(entry.content)
        path.chmod(0o555 if entry.kind == "program" else 0o444)
