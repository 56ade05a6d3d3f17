"""Decode photographs: center-cropped to a square and resized, antialiased, to the size that a trial asks for."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import IO, TYPE_CHECKING

from trainer.errors import DataError

if TYPE_CHECKING:
    import numpy as np

Opened = Callable[[str], IO[bytes]]


def pictures(
    files: Sequence[str], opened: Opened, size: int, where: str, left_out: list[str] | None
) -> "tuple[np.ndarray, list[str]]":
    """Decode pictures, center-cropped and resized: uint8 [n, 3, size, size], and the names of these n.

    Pictures that cannot be used are added to `left_out`; without it, or if no picture is left, DataError.
    """
    import numpy as np

    images = np.empty((len(files), size, size, 3), np.uint8)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        faults = dict(faulty(pool.map(partial(decode_into, images, files, opened), range(len(files)))))
    for position, problem in [*faults.items()][:10]:
        print(f"{where}: {files[position]}: {problem}", file=sys.stderr)
    if faults and (left_out is None or len(faults) == len(files)):
        first = min(faults)
        remedy = (
            f"repair them, or, if they are small, set a data.size below {size}"
            if len(faults) == len(files)
            else "repair or remove them, or leave them out with: python jobs/stage.py <sweep>.yaml --skip-unreadable"
        )
        raise DataError(
            f"{where}: {len(faults)} of {len(files)} pictures cannot be used, such as {files[first]}: {faults[first]}; "
            f"{remedy}"
        )
    if left_out is not None and faults:
        left_out += [files[position] for position in faults]
        print(f"{where}: left out {len(faults)} of {len(files)} pictures", file=sys.stderr)
    kept = [position for position in range(len(files)) if position not in faults]
    images = images[kept] if faults else images
    return images.transpose(0, 3, 1, 2), [files[position] for position in kept]


def faulty(problems: "Iterator[str]") -> "Iterator[tuple[int, str]]":
    """Yield (position, problem) of each picture that could not be decoded, with a progress bar on a terminal."""
    from rich.progress import track

    shown = track(problems, "decoding", disable=not sys.stderr.isatty())
    yield from ((position, problem) for position, problem in enumerate(shown) if problem)


def decode_into(images: "np.ndarray", files: Sequence[str], opened: Opened, position: int) -> str:
    """Decode one picture into its row of `images`; return what is wrong with it, or ''."""
    import numpy as np
    from PIL import Image

    size = images.shape[1]
    try:
        with opened(files[position]) as file, Image.open(file) as picture:
            width, height = picture.size
            side = min(width, height)
            if side < size:
                return f"{width} x {height} pixels are less than {size}"
            left, top = (width - side) // 2, (height - side) // 2
            square = picture.convert("RGB").crop((left, top, left + side, top + side))
            images[position] = np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
    except Exception as error:  # noqa: BLE001 - a decoder raises anything on a damaged file
        return f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
    return ""
