"""MNIST-M by the published recipe: the digits of MNIST over the photographs of BSDS500."""

from dataclasses import dataclass
from pathlib import Path

from trainer.data.dataset import Dataset, Findings, Form, Splits
from trainer.data.patches import blend_splits, bsds500, find_bsds500
from trainer.data.sources.idx import Idx


@dataclass(frozen=True)
class MnistM:
    """MNIST blended with photographs, which nobody can download for the user."""

    digits: Idx

    def describe(self) -> Dataset:
        """Return the dataset."""
        return Dataset(
            name="mnistm",
            size=28,
            channels=3,
            classes=10,
            origin="MNIST-M: the digits of mnist, split for split, as |patch - digit| over random patches of the "
            "BSDS500 photographs; train, val and test photographs serve train, validation and test",
            files=(*self.digits.describe().files, "BSDS500"),
        )

    def fetch(self, root: Path, download: bool) -> None:
        """Check the photographs, then the files of MNIST, which are downloaded if `download`; DataError."""
        find_bsds500(root)
        self.digits.fetch(root, download)

    def decode(self, root: Path, form: Form, findings: Findings) -> Splits:
        """Return the splits; DataError for a damaged file."""
        return blend_splits(self.digits.decode(root, form, findings), bsds500(root))

    def fingerprint(self) -> None:
        """Return None: the files are official."""
