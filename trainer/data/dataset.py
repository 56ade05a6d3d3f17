"""What a dataset is: its shape, its splits, and what each kind of source can do. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np

Labelled: TypeAlias = "tuple[np.ndarray, np.ndarray]"  # images uint8 [N, C, H, W], labels int64 [N]
Splits: TypeAlias = "dict[str, Labelled]"

SPLITS = ("train", "validation", "test")
# Names of subfolders, and of arrays before `_images`, that contain a split.
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "val", "valid"), "validation"
)


@dataclass(frozen=True)
class Dataset:
    """A labelled image dataset at its native size."""

    name: str
    size: int | None  # height and width in pixels; None: any that a trial asks for
    channels: int  # 1 grey, 3 RGB
    classes: int  # labels are 0 … classes - 1
    origin: str  # source, and how it is split
    files: tuple[str, ...] = ()  # raw files below the data root, in torchvision's layout; none if nothing is fetched
    recipe: int = 1  # raise it when the samples, splits or pixels change: caches of an older recipe are then not used
    cache_name: str = ""  # of the folder in the cache; default: the name


class Source(Protocol):
    """One kind of dataset: where it comes from and how it is decoded."""

    def describe(self) -> Dataset:
        """Return what is known without decoding; DataError if the dataset is not usable."""

    def fetch(self, root: Path, download: bool) -> None:
        """Check that the raw files are below `root`, and download missing ones if `download`; DataError."""

    def decode(self, root: Path, size: int, left_out: list[str] | None) -> Splits:
        """Return the splits; photographs are cropped and resized to `size`.

        Photographs that cannot be read or are too small are added to `left_out`; if it is None, they are a DataError.
        """

    def fingerprint(self) -> str | None:
        """Return a hash that changes with the user's own files; None if they are always the same."""
