"""Fixed subsets of a split, the same ones in every trial of a sweep."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from eval.trial import TrainedTrial
from trainer.data.cache import Arrays


def domain_subsets(trial: TrainedTrial, size: int, split: str = "test") -> Iterator[tuple[Arrays, NDArray[np.int64]]]:
    """Yield a split of each domain and the positions in it of at most `size` images, sorted.

    Domains get different positions: mnistm5k is built from the digits of mnist5k, and such pairs would lie side by side
    and fake alignment of the domains.
    """
    for number, domain in enumerate(trial.domains):
        arrays = trial.arrays(domain, split)
        order = np.random.default_rng(0).permutation(len(arrays.labels))
        yield arrays, np.sort(np.roll(order, -number * size)[:size])
