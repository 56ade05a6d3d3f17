"""SVHN, format 2 (cropped digits): Matlab files."""

from pathlib import Path

from trainer.data.dataset import Dataset, Labelled
from trainer.data.raw import reading
from trainer.data.sources.official import Official
from trainer.data.splits import TENTH


def download_svhn(folder: Path) -> None:
    """Download both files."""
    from torchvision.datasets import SVHN

    for split in ("train", "test"):
        SVHN(folder / "SVHN", split=split, download=True)


def read_matlab(path: Path) -> Labelled:
    """Read X uint8 [32, 32, 3, N] and y [N, 1], where label 10 is digit 0; DataError."""
    import numpy as np
    from scipy.io import loadmat

    with reading(path):
        content = loadmat(str(path), variable_names=("X", "y"))
        images = np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1))
        return images, content["y"].astype(np.int64).reshape(len(images)) % 10


SVHN = Official(
    Dataset(
        name="svhn",
        size=32,
        channels=3,
        classes=10,
        origin=f"SVHN, 73,257 + 26,032 cropped photographs of house numbers; {TENTH}",
        files=("SVHN/train_32x32.mat", "SVHN/test_32x32.mat"),
    ),
    download_svhn,
    read_matlab,
)
