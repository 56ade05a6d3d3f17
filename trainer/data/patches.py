"""MNIST-M's recipe: blend a digit with a random patch of a photograph, abs(patch - digit) per pixel and channel.

Source: Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, section 5.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from trainer.data.dataset import SPLITS, Splits
from trainer.data.raw import reading
from trainer.data.splits import SEED
from trainer.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    # Split -> pictures uint8 [H, W, 3]; no pixel belongs to two splits.
    Photographs: TypeAlias = dict[str, list[np.ndarray]]

SIDE = 28  # pixels of a digit
FOLDERS = {
    "train": "train",
    "val": "validation",
    "test": "test",
}  # of BSDS500 -> split
# Columns of scikit-learn's two photographs, 640 wide: regions about equally hard for a classifier of plain digits.
STRIPES = {
    "train": ((128, 384), (448, 640)),
    "validation": ((0, 64),),
    "test": ((64, 128), (384, 448)),
}


def blend(digits: "np.ndarray", photographs: "list[np.ndarray]", seed: int) -> "np.ndarray":
    """Blend uint8 [N, 1, 28, 28] digits with random patches of `photographs`: uint8 [N, 3, 28, 28].

    Every position of a patch in every photograph is equally likely; `seed` fixes the choice.
    """
    import numpy as np

    positions = np.array([(len(p) - SIDE + 1) * (p.shape[1] - SIDE + 1) for p in photographs])
    ends = positions.cumsum()
    # RandomState, here and for the splits, because numpy promises that its stream never changes.
    chosen_positions = np.random.RandomState(seed).randint(ends[-1], size=len(digits))
    chosen = np.searchsorted(ends, chosen_positions, side="right")
    blended = np.empty((len(digits), 3, SIDE, SIDE), np.uint8)
    for k in np.unique(chosen):
        rows = np.flatnonzero(chosen == k)
        windows = np.lib.stride_tricks.sliding_window_view(photographs[k], (SIDE, SIDE), axis=(0, 1))
        top, left = np.divmod(chosen_positions[rows] - (ends[k] - positions[k]), windows.shape[1])
        blended[rows] = np.abs(windows[top, left].astype(np.int16) - digits[rows])
    return blended


def blend_splits(digits: Splits, photographs: "Photographs") -> Splits:
    """Blend the digits of each split with patches of that split's photographs."""
    return {
        split: (blend(digits[split][0], photographs[split], seed=SEED + number), digits[split][1])
        for number, split in enumerate(SPLITS)
    }


def embedded_photographs() -> "Photographs":
    """Return the regions of scikit-learn's two photographs that each split uses."""
    from sklearn.datasets import load_sample_images

    pictures = load_sample_images().images
    return {split: [p[:, start:stop] for p in pictures for start, stop in STRIPES[split]] for split in SPLITS}


def find_bsds500(root: Path) -> list[Path]:
    """Return the folders and tars below `root` that are called like BSDS500 or BSR; DataError if there are none."""
    with reading(root):
        paths = sorted(filter(_is_bsds500, root.iterdir())) if root.is_dir() else []
    if not paths:
        raise _missing(root)
    return paths


def bsds500(root: Path) -> "Photographs":
    """Read the BSDS500 photographs below `root`: jpgs in folders called train, val and test, at any depth.

    DataError if there are none, or a damaged one.
    """
    for path in find_bsds500(root):
        files = list(_read_folder(path) if path.is_dir() else _read_tar(path))
        if not files:
            continue
        photographs: Photographs = {split: [] for split in SPLITS}
        for split, name, content in sorted(files, key=lambda file: file[1]):
            photographs[split].append(_decode(f"{path}: {name}", content))
        if empty := [folder for folder, split in FOLDERS.items() if not photographs[split]]:
            raise DataError(f"{path} holds no jpgs in a folder called {empty[0]!r}: complete BSDS500 or remove it.")
        return photographs
    raise _missing(root)


def _missing(root: Path) -> DataError:
    return DataError(
        f"mnistm: {root / 'BSDS500'}, a folder or a .tar, .tgz or .tar.gz of the BSDS500 photographs, is missing; they "
        "cannot be downloaded for you. Put them there, or point data.root (or TURNOUT_DATA) at a folder that has them."
    )


def _is_bsds500(path: Path) -> bool:
    name = path.name.lower()
    readable = path.is_dir() or name.endswith((".tar", ".tgz", ".tar.gz"))
    return readable and ("bsds500" in name or name.startswith("bsr"))


def _find_split(name: str) -> str | None:
    """Return the split that uses the file `name`, by its folder; None if it is not a photograph of any."""
    folder, _, file = name.rpartition("/")
    if file.startswith(".") or not file.lower().endswith((".jpg", ".jpeg")):
        return None
    return FOLDERS.get(folder.rpartition("/")[2].lower())


def _read_folder(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield (split, name below `path`, content) of each photograph."""
    for folder, _, files in os.walk(path, followlinks=True):
        for file in files:
            photograph = Path(folder, file)
            name = photograph.relative_to(path).as_posix()
            if split := _find_split(f"{path.name}/{name}"):
                with reading(photograph):
                    yield split, name, photograph.read_bytes()


def _read_tar(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield (split, name in the tar, content) of each photograph."""
    with reading(path), tarfile.open(path) as archive:
        for member in archive:
            split = _find_split(member.name)
            if split and member.isfile() and (content := archive.extractfile(member)):
                yield split, member.name, content.read()


def _decode(name: str, content: bytes) -> "np.ndarray":
    """Decode a jpg to uint8 [H, W, 3]."""
    import numpy as np
    from PIL import Image

    with reading(name):
        picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        if min(picture.shape[:2]) < SIDE:
            raise ValueError(f"{picture.shape[1]}x{picture.shape[0]} pixels are less than a patch of {SIDE}x{SIDE}")
        return picture
