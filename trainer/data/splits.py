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
    split, it is a tenth of the training set. One image of each class stays in the training set. DataError if there are
    too few images for that.
    """
    import numpy as np

    if "validation" in parts:
        return parts
    images, labels = parts.get("train") or parts[""]
    rest, test = np.arange(len(labels)), np.arange(0)
    if "train" not in parts:
        rest, test = _take_tenth(rest, labels)
    train, validation = _take_tenth(rest, labels)
    if not (len(train) and len(validation) and (len(test) or "test" in parts)):
        kind = "images" if "" in parts else "training images"
        raise DataError(
            f"{name}: {len(labels)} {kind} of {len(set(labels.tolist()))} classes are too few to split; add images"
        )
    splits = {"train": train, "validation": validation} | ({} if "test" in parts else {"test": test})
    return {split: (images[part], labels[part]) for split, part in splits.items()} | {
        split: part for split, part in parts.items() if split == "test"
    }


def _take_tenth(positions: "np.ndarray", labels: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
    """Return the others and a tenth of positions, by a fixed permutation; one of each class is among the others."""
    import numpy as np

    order = positions[np.random.RandomState(SEED).permutation(len(positions))]
    count = max(1, len(order) // 10)
    tenth, others = order[:count], order[count:]
    lacking = np.flatnonzero(np.isin(labels[tenth], labels[others], invert=True))
    _, first = np.unique(labels[tenth[lacking]], return_index=True)
    moved = lacking[np.sort(first)]
    return np.concatenate([others, tenth[moved]]), np.delete(tenth, moved)
