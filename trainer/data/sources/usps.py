"""USPS: bz2 files of libsvm lines."""

from pathlib import Path

from trainer.data.dataset import Dataset, Labelled
from trainer.data.raw import reading
from trainer.data.sources.official import Official
from trainer.data.splits import TENTH


def download_usps(folder: Path) -> None:
    """Download both files."""
    from torchvision.datasets import USPS

    for train in (True, False):
        USPS(folder / "USPS", train=train, download=True)


def read_libsvm(path: Path) -> Labelled:
    """Read libsvm lines: label 1..10 is digit 0..9; values in [-1, 1] become 0..255 as in torchvision. DataError."""
    import numpy as np
    from sklearn.datasets import load_svmlight_file

    with reading(path):
        values, labels = load_svmlight_file(str(path), n_features=256, dtype=np.float32)
        images = ((values.toarray() + 1) / 2 * 255).astype(np.uint8)
        return images.reshape(-1, 1, 16, 16), labels.astype(np.int64) - 1


USPS = Official(
    Dataset(
        name="usps",
        size=16,
        channels=1,
        classes=10,
        origin=f"USPS, 7,291 + 2,007 handwritten digits of postal codes; {TENTH}",
        files=("USPS/usps.bz2", "USPS/usps.t.bz2"),
    ),
    download_usps,
    read_libsvm,
)
