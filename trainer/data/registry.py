"""Datasets by name. Imports nothing heavy."""

import difflib
from functools import lru_cache

from trainer.data.dataset import Dataset, Source
from trainer.data.sources.celeba import CelebA
from trainer.data.sources.embedded import Digits, Mnist5k, MnistM5k
from trainer.data.sources.folder import Folder
from trainer.data.sources.huggingface import HuggingFace
from trainer.data.sources.idx import Idx
from trainer.data.sources.mnistm import MnistM
from trainer.data.sources.npz import Npz
from trainer.data.sources.svhn import SVHN
from trainer.data.sources.usps import USPS
from trainer.data.sources.webdataset import WebDataset
from trainer.errors import DataError

MNIST = Idx("mnist", "MNIST", "MNIST, 60,000 + 10,000 handwritten digits")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FASHION_MNIST = Idx("fashion_mnist", "FashionMNIST", "Fashion-MNIST, 60,000 + 10,000 pictures of clothes", CLOTHES)
SOURCES: dict[str, Source] = {
    source.describe().name: source
    for source in (
        Mnist5k(), MnistM5k(), Digits(), MNIST, FASHION_MNIST, USPS, SVHN, MnistM(MNIST), CelebA("celeba")
    )
}  # fmt: skip
DATASETS: dict[str, Dataset] = {name: source.describe() for name, source in SOURCES.items()}


def get(name: str) -> Dataset:
    """Return the dataset of that name, see `find`; DataError."""
    return DATASETS[name] if name in DATASETS else find(name).describe()


@lru_cache
def find(name: str) -> Source:
    """Return the source of a dataset; DataError with the nearest name and all names where there is none.

    Besides those of DATASETS there are the user's own files: npz:<path>, folder:<path>, hf:<path>, wds:<pattern>. If a
    dataset has several labels, <name>#<label> selects one.
    """
    name = str(name)
    if name in SOURCES:
        return SOURCES[name]
    for prefix, kind in (
        ("npz:", Npz),
        ("folder:", Folder),
        ("hf:", HuggingFace),
        ("wds:", WebDataset),
        ("celeba#", CelebA),
    ):
        if name.startswith(prefix):
            return kind(name)
    near = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(
        f"unknown dataset {name!r}.{hint} Datasets: {', '.join(sorted(DATASETS))}, npz:<file>, folder:<path>, "
        "hf:<path>, wds:<pattern>"
    )
