"""What a dataset is: its shape, its splits, and what each kind of source can do. Imports nothing heavy."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "validation", "test")
# Names of subfolders, and of arrays before `_images`, that contain a split.
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "val", "valid"), "validation"
)
UNLABELLED = -1  # label of an image without a class
RECIPE_OWN = 3  # of the user's own files; 3: classes in one order, pictures upright, alpha over a background


def find_split(*names: str) -> str:
    """Return the split that is the first one named by a word of the names, such as `mnist-train-0.tar`; '' if none."""
    words = [word for name in names for word in re.findall("[a-z]+", name.lower())]
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


class Images(Protocol):
    """Images of a split: an array uint8 [N, C, H, W], or pictures that are decoded one by one."""

    def __len__(self) -> int:
        """Return their number."""

    def __getitem__(self, index: "np.ndarray") -> "Images":
        """Return a selection by position, in that order."""


Labelled: TypeAlias = "tuple[Any, np.ndarray]"  # Images, and labels int64 [N]
Splits: TypeAlias = "dict[str, Labelled]"


@dataclass(frozen=True)
class Dataset:
    """An image dataset at its native size."""

    name: str
    size: int | None  # height and width in pixels; None: any that a trial asks for
    channels: int  # 1 grey, 3 RGB
    classes: int  # labels are 0 … classes - 1; 0: it has no labels
    origin: str  # source, and how it is split
    files: tuple[str, ...] = ()  # raw files below the data root, in torchvision's layout; none if nothing is fetched
    recipe: int = 1  # raise it when the samples, splits or pixels change: caches of an older recipe are then not used
    cache_name: str = ""  # of the folder in the cache; default: the name
    class_names: tuple[str, ...] = ()  # in the order of the labels; default: the numbers
    unlabelled: tuple[str, ...] = ()  # splits without labels

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the labels."""
        return self.class_names or tuple(str(number) for number in range(self.classes))

    @property
    def is_own(self) -> bool:
        """Return whether it consists of the user's own files."""
        return bool(self.cache_name)


@dataclass(frozen=True)
class Form:
    """The form to which pictures are brought."""

    size: int | None = None  # height and width, pixels; None: the dataset's own
    channels: int | None = None  # 1 grey (luminance), 3 RGB; None: the dataset's own
    crop: Literal["center", "pad", "stretch"] = "center"  # how a picture becomes square
    background: str = "white"  # under transparent pixels, and around padded pictures: white, black or #rrggbb

    def suffix(self) -> str:
        """Return the part of a cache's name for crop and background; empty for the defaults."""
        parts = [self.crop] * (self.crop != "center") + [self.background.lstrip("#")] * (self.background != "white")
        return "".join(f"-{part}" for part in parts)


@dataclass
class Findings:
    """What a source left out or assumed, for the person who stages the dataset and for the report."""

    skip: bool = False  # leave out pictures that cannot be used; otherwise they are a DataError
    left_out: list[str] = field(default_factory=list)  # pictures that could not be used
    ignored: dict[str, list[str]] = field(default_factory=dict)  # reason -> files that are not part of the dataset
    notes: list[str] = field(default_factory=list)  # assumptions
    least: tuple[int, int] | None = None  # width and height, each of any picture
    largest: tuple[int, int] | None = None

    def add_size(self, width: int, height: int) -> None:
        """Record the size of a picture."""
        least, largest = self.least or (width, height), self.largest or (width, height)
        self.least = min(least[0], width), min(least[1], height)
        self.largest = max(largest[0], width), max(largest[1], height)

    def ignore(self, reason: str, files: Sequence[str]) -> None:
        """Record files that are not part of the dataset."""
        if files:
            self.ignored[reason] = [*self.ignored.get(reason, []), *files]


class Source(Protocol):
    """One kind of dataset: where it comes from and how it is decoded."""

    def describe(self) -> Dataset:
        """Return what is known without decoding; DataError if the dataset is not usable."""

    def fetch(self, root: Path, download: bool) -> None:
        """Check that the raw files are below `root`, and download missing ones if `download`; DataError."""

    def decode(self, root: Path, form: Form, findings: Findings) -> Splits:
        """Return the splits in the dataset's own size, or as pictures that are decoded later; add to `findings`."""

    def fingerprint(self) -> str | None:
        """Return a hash that changes with the user's own files; None if they are always the same."""
