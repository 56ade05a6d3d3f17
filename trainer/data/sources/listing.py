"""List the files of a folder: pictures, and what is not part of the dataset."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data.names import Names, sort_names
from trainer.data.pictures import printable
from trainer.data.sources.paths import accessing

# Endings of the formats that Pillow reads without another program.
PICTURES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jfif", ".jpe", ".apng", ".avif", ".dib", ".jp2", ".j2k", ".jpx", ".pcx", ".qoi", ".sgi", ".tga"),
    *(".dds", ".ico", ".j2c", ".jpc", ".jpf", ".mpo", ".pfm", ".psd", ".ras"),
)
# Folders that systems put beside pictures: thumbnails of NAS systems, archives of macOS, recycle bins.
SYSTEM_FOLDERS = ("@eadir", "@tmp", "__macosx", "#recycle", "#snapshot", "$recycle.bin", "lost+found")
SYSTEM_FILES = ("thumbs.db", "desktop.ini")
TABLE = "attributes.csv"  # in the folder: the file's name in the first column, an attribute in each other one


@dataclass
class Listing:
    """The files below a folder, relative to it and sorted."""

    files: Names = field(default_factory=Names)  # of the endings
    others: list[str] = field(default_factory=list)  # of other endings
    hidden: list[str] = field(default_factory=list)  # hidden files, and folders that are hidden or of the system
    circular: list[str] = field(default_factory=list)  # links to a folder around them
    empty: list[str] = field(default_factory=list)  # folders without such a file at any depth


def list_folder(folder: Path, endings: tuple[str, ...] = PICTURES) -> Listing:
    """List a folder and all below it, also through links; DataError for a folder that may not be listed."""
    listing = Listing()
    with accessing(folder):
        _walk(folder, "", (), endings, listing)
    for names in (listing.others, listing.hidden, listing.circular, listing.empty):
        names.sort()
    return listing


def _walk(
    folder: Path, prefix: str, ancestors: tuple[tuple[int, int], ...], endings: tuple[str, ...], listing: Listing
) -> bool:
    """Add the entries of a folder, without its table, to the listing; return whether there is a file among them."""
    status = folder.stat()
    ancestors = (*ancestors, (status.st_dev, status.st_ino))
    before = len(listing.files)
    # Sorted with / after the names of folders, so that all files are in the order of their paths.
    for name in sort_names(_list_entries(folder, prefix, ancestors, endings, listing)):
        path = f"{prefix}{name}"
        if not name.endswith("/"):
            listing.files.append(path)
        elif not _walk(folder / name, path, ancestors, endings, listing):
            listing.empty.append(path.rstrip("/"))
    return len(listing.files) > before


def _list_entries(
    folder: Path, prefix: str, ancestors: tuple[tuple[int, int], ...], endings: tuple[str, ...], listing: Listing
) -> Iterator[str]:
    """Yield the names of files, and of folders with / after them; add everything else to the listing."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name, path = entry.name, f"{prefix}{entry.name}"
            if entry.is_dir():
                inner = entry.stat()
                if name.startswith(".") or name.lower() in SYSTEM_FOLDERS:
                    listing.hidden.append(printable(f"{path}/"))
                elif (inner.st_dev, inner.st_ino) in ancestors:
                    listing.circular.append(printable(path))
                else:
                    yield f"{name}/"
            elif name.startswith(".") or name.lower() in SYSTEM_FILES:
                listing.hidden.append(printable(path))
            elif name.lower().endswith(endings) and (entry.is_file() or not os.path.exists(entry)):
                yield name
            elif path != TABLE:  # sockets and pipes, too, which would block a reader
                listing.others.append(printable(path))
