"""Decode pictures on all cores, in constant memory, straight into an array file; an interrupted run is resumed."""

import os
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING

from trainer.data.convert import convert
from trainer.data.dataset import Findings, Form
from trainer.data.rgb import fit, least_side, parse_colour, to_rgb
from trainer.errors import DataError

if TYPE_CHECKING:
    import numpy as np

CHUNK = 64  # pictures that a thread decodes at a time
GROUP = 256  # chunks
PRINTED = 10  # faulty pictures that are named


@dataclass(frozen=True)
class Pictures:
    """Pictures that are decoded one by one: the images of a split."""

    files: Sequence[str]
    open_file: Callable[[int], IO[bytes]]  # of a position in `files`
    where: str  # the folder or archive, for messages
    index: "np.ndarray | None" = None  # positions in `files`; default: all

    def __len__(self) -> int:
        """Return their number."""
        return len(self.files if self.index is None else self.index)

    def __getitem__(self, index: "np.ndarray") -> "Pictures":
        """Return a selection by position."""
        return replace(self, index=index if self.index is None else self.index[index])

    def name(self, position: int) -> str:
        """Return the name of a picture."""
        return self.files[position if self.index is None else self.index[position]]

    def open(self, position: int) -> IO[bytes]:
        """Open a picture."""
        return self.open_file(position if self.index is None else int(self.index[position]))


def decode_pictures(pictures: Pictures, path: Path, form: Form, findings: Findings) -> dict[int, str]:
    """Decode pictures into the array file `path`, uint8 [n, size, size, channels].

    Return position -> problem of those that cannot be used, whose rows are zero. Rows that `<path>.rows` marks as
    written, by an earlier call that was interrupted, are not decoded again.
    """
    import numpy as np
    from PIL import Image

    side, background = form.size or 0, parse_colour(form.background)
    shape = len(pictures), side, side, form.channels or 3
    rows = Path(f"{path}.rows")
    is_resumed = rows.exists() and path.exists()
    array = np.lib.format.open_memmap(path, "r+" if is_resumed else "w+", np.uint8, shape)
    start, row = array.offset, array[0].nbytes
    del array  # rows are written without the memory map, whose pages would count as this process's memory
    if not is_resumed:
        rows.write_bytes(bytes(len(pictures)))
    done, several = rows.read_bytes(), list[str]()
    with path.open("r+b") as file, rows.open("r+b") as marks:

        def decode_chunk(first: int) -> list[tuple[int, str, tuple[int, int]]]:
            positions = [p for p in range(first, min(first + CHUNK, len(pictures))) if not done[p]]
            pixels = np.zeros((CHUNK, *shape[1:]), np.uint8)
            outcomes = [decode_picture(pictures, p, form, background, pixels[p - first], several) for p in positions]
            for position, (problem, _) in zip(positions, outcomes, strict=True):
                if len(positions) < CHUNK and not problem:  # some rows of the chunk are written already
                    os.pwrite(file.fileno(), pixels[position - first].tobytes(), start + position * row)
            if len(positions) == CHUNK:
                os.pwrite(file.fileno(), pixels.data, start + first * row)
            for position, (problem, _) in zip(positions, outcomes, strict=True):
                if not problem:
                    os.pwrite(marks.fileno(), b"\1", position)
            return [(p, problem, size) for p, (problem, size) in zip(positions, outcomes, strict=True)]

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the pictures are the user's own
            faults: dict[int, str] = {}
            # In groups, because a pool holds an object for each chunk that waits.
            starts = range(0, len(pictures), CHUNK)
            groups = (pool.map(decode_chunk, starts[first : first + GROUP]) for first in range(0, len(starts), GROUP))
            chunks = chain.from_iterable(groups)
            for position, problem, size in show_progress(chunks, pictures):
                if size != (0, 0):
                    findings.add_size(*size)
                if problem:
                    faults[position] = problem
        os.fsync(file.fileno())
    findings.ignore("pictures after the first of a file", sorted(several))
    return faults


def drop_faults(path: Path, faults: dict[int, str]) -> "np.ndarray":
    """Remove the rows of faulty pictures from an array file; return the positions of the others."""
    import numpy as np

    Path(f"{path}.rows").unlink()
    images = np.load(path, mmap_mode="r")
    kept = np.delete(np.arange(len(images)), list(faults))
    if faults:
        selected = np.lib.format.open_memmap(f"{path}.kept", "w+", np.uint8, (len(kept), *images.shape[1:]))
        for target, position in enumerate(kept):
            selected[target] = images[position]
        selected.flush()
        Path(f"{path}.kept").replace(path)
    return kept


def report_faults(faults: dict[str, str], count: int, where: str, form: Form, findings: Findings) -> None:
    """Print the first faulty pictures of `count`; DataError if they may not be skipped or if no picture is left."""
    files = sorted(faults)
    for file in files[:PRINTED]:
        print(f"{where}: {printable(file)}: {faults[file]}", file=sys.stderr)
    if files and (not findings.skip or len(files) == count):
        remedy = (
            f"repair them, or, if they are small, set a data.size below {form.size}"
            if len(files) == count
            else "repair or remove them, or leave them out with: python jobs/stage.py <sweep>.yaml --skip-unreadable"
        )
        raise DataError(
            f"{where}: {len(files)} of {count} pictures cannot be used, such as {printable(files[0])}: "
            f"{faults[files[0]]}; {remedy}"
        )
    if files:
        findings.left_out += map(printable, files)
        print(f"{where}: left out {len(files)} of {count} pictures", file=sys.stderr)


def show_progress(
    chunks: Iterator[list[tuple[int, str, tuple[int, int]]]], pictures: Pictures
) -> Iterator[tuple[int, str, tuple[int, int]]]:
    """Yield the outcome of each picture, with a progress bar on a terminal."""
    from rich.progress import track

    total = -(-len(pictures) // CHUNK)
    for chunk in track(chunks, f"decoding {pictures.where}", total=total, disable=not sys.stderr.isatty()):
        yield from chunk


def decode_picture(
    pictures: Pictures,
    position: int,
    form: Form,
    background: tuple[int, int, int],
    pixels: "np.ndarray",
    several: list[str],
) -> tuple[str, tuple[int, int]]:
    """Decode a picture into `pixels` [size, size, channels]; return its problem or '', and its (width, height).

    The first of an animation or of several pages is taken, and the name added to `several`.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    size, shape = form.size or 0, (0, 0)
    try:
        with pictures.open(position) as file, Image.open(file) as picture:
            if getattr(picture, "n_frames", 1) > 1:
                several.append(printable(pictures.name(position)))
            upright = to_rgb(picture, background)
            shape = upright.size
            if least_side(shape, form.crop) < size:
                return f"{shape[0]} x {shape[1]} pixels are less than {size}", shape
            square = np.asarray(fit(upright, size, form.crop, background))
    except UnidentifiedImageError:
        return "cannot be read: is not a picture that Pillow knows", shape
    except Exception as error:  # noqa: BLE001 - a decoder raises anything on a damaged file
        return f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}", shape
    pixels[:] = square if form.channels == 3 else convert(square.transpose(2, 0, 1)[None], size, 1)[0]
    return "", shape


def printable(name: str) -> str:
    """Return a name with bytes that are not UTF-8 as \\\\xNN, and invisible characters such as a new line as \\\\n."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c)[0] == "C" else c for c in text)
