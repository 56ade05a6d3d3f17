"""Decode a dataset and check the result against its description."""

from pathlib import Path

import numpy as np

from trainer.data import registry
from trainer.data.dataset import Splits
from trainer.errors import DataError


def decode(name: str, root: Path, download: bool, size: int | None = None, left_out: list[str] | None = None) -> Splits:
    """Return each split of the dataset `name`: images uint8 [N, C, size, size] and labels int64 [N].

    Raw files are read below `root`; missing ones are downloaded if `download`. `size` is that of photographs, which
    have none of their own. Those that cannot be used are added to `left_out`; if it is None, they are a DataError, as
    are raw files that are missing or damaged.
    """
    dataset, source = registry.get(name), registry.find(name)
    size = dataset.size or size
    if size is None:
        raise DataError(f"{name} has no size of its own; set data.size")
    source.fetch(root, download)
    splits = source.decode(root, size, left_out)
    shape = (dataset.channels, size, size)
    for split, (images, labels) in splits.items():
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise DataError(f"{name}: {split} images are {images.dtype} {images.shape[1:]}, not uint8 {shape}")
        if not len(labels) or labels.min() < 0 or labels.max() >= dataset.classes:
            raise DataError(f"{name}: {split} has no labels or labels outside 0..{dataset.classes - 1}")
    return splits
