"""Decode a dataset and check the result against its description."""

from pathlib import Path

import numpy as np

from trainer.data import registry
from trainer.data.dataset import UNLABELLED, Findings, Form, Splits
from trainer.errors import DataError


def decode(name: str, root: Path, download: bool, form: Form | None = None, findings: Findings | None = None) -> Splits:
    """Return each split of the dataset `name`: images uint8 [N, C, size, size] or Pictures, and labels int64 [N].

    Raw files are read below `root`; missing ones are downloaded if `download`. DataError if they are missing or
    damaged.
    """
    dataset, source = registry.get(name), registry.find(name)
    form, findings = form or Form(), findings or Findings()
    source.fetch(root, download)
    splits = source.decode(root, form, findings)
    shape = (dataset.channels, dataset.size or form.size, dataset.size or form.size)
    for split, (images, labels) in splits.items():
        if isinstance(images, np.ndarray) and (images.dtype != np.uint8 or images.shape[1:] != shape):
            raise DataError(f"{name}: {split} images are {images.dtype} {images.shape[1:]}, not uint8 {shape}")
        if not len(labels) or labels.max() >= dataset.classes or labels.min() < UNLABELLED:
            raise DataError(f"{name}: {split} has no labels or labels outside 0..{dataset.classes - 1}")
        if labels.min() == UNLABELLED and not dataset.is_own:
            raise DataError(f"{name}: {split} has labels outside 0..{dataset.classes - 1}")
    return splits
