"""MNIST-M's recipe: a digit over a random patch of a photograph, abs(patch - digit) per pixel and channel.

Source: Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, section 5.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainer.data.raw import reading
from trainer.data.registry import SPLITS
from trainer.errors import DataError

SIDE = 28  # pixels of a digit
FOLDERS = {"train": "train", "val": "validation", "test": "test"}  # of BSDS500 -> split that its photographs serve
# Columns of scikit-learn's two photographs, 640 wide: regions about equally hard for a classifier of plain digits.
STRIPES = {
    "train": ((128, 384), (448, 640)),
    "validation": ((0, 64),),
    "test": ((64, 128), (384, 448)),
}

Photographs = dict[str, list[np.ndarray]]  # split -> pictures uint8 [H, W, 3] that share no pixel with another split's


def blend(digits: np.ndarray, photographs: list[np.ndarray], seed: int) -> np.ndarray:
    """uint8 [N, 1, 28, 28] digits over random patches of `photographs`: uint8 [N, 3, 28, 28].

    Every position of a patch in every photograph is equally likely; `seed` fixes the draw.
    """
    positions = np.array([(len(p) - SIDE + 1) * (p.shape[1] - SIDE + 1) for p in photographs])
    ends = positions.cumsum()
    # RandomState, here and for the splits, because numpy promises that its stream never changes.
    drawn = np.random.RandomState(seed).randint(ends[-1], size=len(digits))
    chosen = np.searchsorted(ends, drawn, side="right")
    blended = np.empty((len(digits), 3, SIDE, SIDE), np.uint8)
    for k in np.unique(chosen):
        rows = np.flatnonzero(chosen == k)
        windows = np.lib.stride_tricks.sliding_window_view(photographs[k], (SIDE, SIDE), axis=(0, 1))
        top, left = np.divmod(drawn[rows] - (ends[k] - positions[k]), windows.shape[1])
        blended[rows] = np.abs(windows[top, left].astype(np.int16) - digits[rows])
    return blended


def embedded_photographs() -> Photographs:
    """The stripes of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    pictures = load_sample_images().images
    return {split: [p[:, start:stop] for p in pictures for start, stop in STRIPES[split]] for split in SPLITS}


def bsds500(root: Path) -> Photographs:
    """The BSDS500 photographs below `root`: a folder or tar called like BSDS500 or BSR.

    Its jpgs lie in folders called train, val and test, at any depth. DataError if there is none, or a bad one.
    """
    with reading(root):
        places = sorted(filter(_named_bsds, root.iterdir())) if root.is_dir() else []
    for place in places:
        files = list(_folder(place) if place.is_dir() else _tar(place))
        if not files:
            continue
        photographs: Photographs = {split: [] for split in SPLITS}
        for split, name, content in sorted(files, key=lambda file: file[1]):
            photographs[split].append(_picture(f"{place}: {name}", content))
        if empty := [folder for folder, split in FOLDERS.items() if not photographs[split]]:
            raise DataError(f"{place} holds no jpgs in a folder called {empty[0]!r}: complete BSDS500 or remove it.")
        return photographs
    raise DataError(
        f"mnistm: {root / 'BSDS500'}, a folder or a .tar, .tgz or .tar.gz of the BSDS500 photographs, is missing; they "
        "cannot be downloaded for you. Put them there, or point data.root (or TURNOUT_DATA) at a folder that has them."
    )


def _named_bsds(place: Path) -> bool:
    name = place.name.lower()
    known = place.is_dir() or name.endswith((".tar", ".tgz", ".tar.gz"))
    return known and ("bsds500" in name or name.startswith("bsr"))


def _split(name: str) -> str | None:
    """The split that the file `name` serves by its folder; None if it is no photograph of any."""
    folder, _, file = name.rpartition("/")
    if file.startswith(".") or not file.lower().endswith((".jpg", ".jpeg")):
        return None
    return FOLDERS.get(folder.rpartition("/")[2].lower())


def _folder(place: Path) -> Iterator[tuple[str, str, bytes]]:
    """(split, name below `place`, content) of each photograph."""
    for folder, _, files in os.walk(place, followlinks=True):
        for file in files:
            path = Path(folder, file)
            name = path.relative_to(place).as_posix()
            if split := _split(f"{place.name}/{name}"):
                with reading(path):
                    yield split, name, path.read_bytes()


def _tar(place: Path) -> Iterator[tuple[str, str, bytes]]:
    """(split, name in the tar, content) of each photograph."""
    with reading(place), tarfile.open(place) as archive:
        for member in archive:
            split = _split(member.name)
            if split and member.isfile() and (content := archive.extractfile(member)):
                yield split, member.name, content.read()


def _picture(name: str, content: bytes) -> np.ndarray:
    """A decoded jpg, uint8 [H, W, 3]."""
    from PIL import Image

    with reading(name):
        picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        if min(picture.shape[:2]) < SIDE:
            raise ValueError(f"{picture.shape[1]}x{picture.shape[0]} pixels are less than a patch of {SIDE}x{SIDE}")
        return picture
