"""The code that jobs run: a copy of the checkout, so that editing it changes nothing that is queued or running."""

import errno
import hashlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("eval", "jobs", "models", "sweeps", "trainer")  # what there is to copy where git does not say
LARGEST = 64 << 20  # bytes of a snapshot: more is data that was left lying in the checkout
REDIRECTING = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set inside a git hook: they name another repository


@dataclass(frozen=True)
class Snapshot:
    """A copy of the checkout, and which commit it was at."""

    folder: Path  # absolute; named after a hash of all that is in it
    commit: str | None  # None where git does not know
    dirty: bool | None  # whether the code differs from that commit

    def line(self) -> dict[str, Any]:
        """What submissions.jsonl says of it; `code` is relative to the sweep's directory."""
        return {"code": f"code/{self.folder.name}", "commit": self.commit, "dirty": self.dirty}


@dataclass(frozen=True)
class Entry:
    """One file of a snapshot, or a link to a folder."""

    content: bytes  # of a link: the path that it holds
    kind: str  # file, program or link


def take(sweep: Path, checkout: Path = ROOT, write: bool = True) -> Snapshot:
    """Copy the tracked and the untracked, not ignored files to <sweep>/code/<hash>/, unless they lie there already.

    It appears as a whole; what a former one has lost is put back. ConfigError where the files are too large, cannot be
    read or written, or could not be imported from there. Without `write`, only say where it would lie.
    """
    runs = sweep.parent.resolve()
    entries = read(checkout, sweep.resolve() if runs in (checkout, *checkout.parents) else runs)
    digest = hashlib.sha256()
    for name, entry in sorted(entries.items()):
        content = hashlib.sha256(entry.content).hexdigest()
        digest.update(f"{entry.kind} {content} ".encode() + os.fsencode(name) + b"\0")
    place = sweep.absolute() / "code" / digest.hexdigest()[:12]
    if os.pathsep in str(place) or not str(place).isprintable():
        raise ConfigError(
            f"{place}: Python cannot import from a folder whose path holds {os.pathsep!r} or a control character; "
            "give another --runs"
        )
    if write:
        try:
            publish(place, entries)
        except OSError as error:
            raise ConfigError(f"{place}: cannot copy the code there: {error.strerror or error}") from None
    return Snapshot(place, *version(checkout, runs))


def environment(code: Path) -> dict[str, str]:
    """This process's environment, for one that is to import from `code` before anything else."""
    paths = [str(code), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def read(checkout: Path, left_out: Path) -> dict[str, Entry]:
    """Name -> entry of all that is to be copied, nothing below the folder `left_out`; ConfigError."""
    entries, sizes = {}, {}
    for name in names(checkout):
        path = checkout / name
        whole = path.resolve()
        if left_out in (whole, *whole.parents):
            continue
        if path.is_symlink() and path.is_dir():  # a folder elsewhere is not the checkout's: the link is kept
            inside = checkout in whole.parents
            target = os.path.relpath(whole, path.parent.resolve()) if inside else str(whole)
            entries[name] = Entry(os.fsencode(target), "link")
        elif path.is_file():
            sizes[name] = path.stat().st_size
    if sum(sizes.values()) > LARGEST:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
        raise ConfigError(
            f"{checkout}: jobs run a copy of this checkout, but its files have {sum(sizes.values()) / 2**20:.0f} MiB, "
            f"more than {LARGEST / 2**20:.0f}; the largest: "
            + ", ".join(f"{name} ({sizes[name] / 2**20:.1f} MiB)" for name in largest)
            + "; name what is no code in .gitignore (git rm --cached what is tracked), or move it away"
        )
    for name in sizes:
        try:
            program = os.access(checkout / name, os.X_OK)
            entries[name] = Entry((checkout / name).read_bytes(), "program" if program else "file")
        except OSError as error:
            raise ConfigError(
                f"{checkout / name}: jobs run a copy of this checkout, but this cannot be read: {error.strerror}"
            ) from None
    return entries


def names(checkout: Path) -> Iterator[str]:
    """Paths below the checkout as git knows them, tracked or untracked and not ignored; else those of the rooms."""
    listing = git(checkout, "ls-files", "-co", "--exclude-standard", "-z")
    known = dict.fromkeys(filter(None, (listing or "").split("\0")))
    if "jobs/snapshot.py" in known:
        for name in known:
            folder = checkout / name
            if folder.is_dir() and not folder.is_symlink():  # another repository inside this one
                inner = git(folder, "ls-files", "-co", "--exclude-standard", "-z") or ""
                yield from (os.path.join(name, below) for below in inner.split("\0") if below)
            else:
                yield name
        return
    for room in ROOMS:
        for place, folders, files in os.walk(checkout / room):
            links = [name for name in folders if Path(place, name).is_symlink()]
            folders[:] = [name for name in folders if name != "__pycache__"]
            yield from (os.path.relpath(Path(place, name), checkout) for name in (*files, *links))


def version(checkout: Path, runs: Path) -> tuple[str | None, bool | None]:
    """The commit of a checkout, and whether anything in it but its runs differs from that; None where git is silent."""
    aside = [f":(exclude,literal){runs.relative_to(checkout)}"] if checkout in runs.parents else []
    said = git(checkout, "--no-optional-locks", "status", "--porcelain=v2", "--branch", "-z", "--", ".", *aside)
    tracked = git(checkout, "ls-files", "-z", "--", "jobs/snapshot.py")  # else it lies in somebody else's repository
    if said is None or not tracked:
        return None, None
    lines = said.split("\0")
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    return None if commit == "(initial)" else commit, any(line and not line.startswith("# ") for line in lines)


def git(checkout: Path, *words: str) -> str | None:
    """What git prints, told of no other repository than that in which the folder lies; None where it cannot say."""
    variables = {name: value for name, value in os.environ.items() if name not in REDIRECTING}
    try:
        done = subprocess.run(["git", "-C", str(checkout), *words], env=variables, capture_output=True, check=False)
    except OSError:  # there is no git
        return None
    return None if done.returncode else os.fsdecode(done.stdout)


def publish(place: Path, entries: dict[str, Entry]) -> None:
    """Have all entries at `place`, which comes into being as a whole."""
    if not place.exists():
        aside = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
        try:
            for name, entry in entries.items():
                write_entry(aside / name, entry)
            aside.rename(place)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else: another submission was first
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    for name, entry in entries.items():
        if not holds(place / name, entry):  # tidied away by a scratch disk, or edited
            spare = place / f".{uuid.uuid4().hex}"
            write_entry(spare, entry)
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            spare.replace(place / name)


def holds(path: Path, entry: Entry) -> bool:
    """Whether an entry lies there as it should be."""
    try:
        if entry.kind == "link":
            return os.fsencode(os.readlink(path)) == entry.content
        return path.read_bytes() == entry.content
    except OSError:
        return False


def write_entry(path: Path, entry: Entry) -> None:
    """Write a file that is read-only, so that nobody edits the copy for the checkout, or a link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if entry.kind == "link":
        path.symlink_to(os.fsdecode(entry.content))
    else:
        path.write_bytes(entry.content)
        path.chmod(0o555 if entry.kind == "program" else 0o444)
