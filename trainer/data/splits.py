"""Split samples into train, validation and test by fixed permutations, so that the splits never overlap."""

from typing import TYPE_CHECKING

from trainer.data.dataset import SPLITS, Labelled, Splits
from trainer.errors import DataError

if TYPE_CHECKING:
    import numpy as np


SEED = 0  # of every permutation and patch: part of what a dataset's name means, so not configurable
TENTH = "validation is a tenth of the official training set, taken by a fixed permutation; test is the official one"


def split_stratified(images: "np.ndarray", labels: "np.ndarray", validation: int, test: int) -> Splits:
    """Take `validation` and `test` samples of each class, the others for training; shuffle each split."""
    import numpy as np

    random = np.random.RandomState(SEED)
    order = random.permutation(len(labels))
    belongs = np.zeros(len(labels), int)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        belongs[members[:validation]] = SPLITS.index("validation")
        belongs[members[validation : validation + test]] = SPLITS.index("test")
    # A second permutation, because in the first one the samples of a late class would all come last.
    order = random.permutation(len(labels))
    picks = [order[belongs[order] == number] for number in range(len(SPLITS))]
    return {split: (images[pick], labels[pick]) for split, pick in zip(SPLITS, picks, strict=True)}


def split_official(name: str, training: Labelled, test: Labelled) -> Splits:
    """Keep the official test set; take a tenth of the official training set for validation."""
    import numpy as np

    images, labels = training
    if len(labels) < 2:
        raise DataError(f"{name}: {len(labels)} training samples cannot be split into train and validation")
    order = np.random.RandomState(SEED).permutation(len(labels))
    count = max(1, len(labels) // 10)
    return {
        "train": (images[order[count:]], labels[order[count:]]),
        "validation": (images[order[:count]], labels[order[:count]]),
        "test": test,
    }


def split_own(name: str, parts: Splits) -> Splits:
    """Complete the splits of the user's own files.

    Without a test split, the key of `parts` is '': a tenth each becomes test and validation. Without a validation
    split, it is a tenth of the training set.
    """
    import numpy as np

    if "validation" in parts:
        return parts
    if "test" in parts:
        return split_official(name, parts["train"], parts["test"])
    images, labels = parts[""]
    if len(labels) < 3:
        raise DataError(f"{name}: {len(labels)} samples cannot be split into train, validation and test")
    order, count = np.random.RandomState(SEED).permutation(len(labels)), max(1, len(labels) // 10)
    test, rest = order[:count], order[count:]
    return split_official(name, (images[rest], labels[rest]), (images[test], labels[test]))
