"""Fréchet Inception distance (Heusel et al., 2017), KID, precision and recall, density and coverage of samples.

In the features of pytorch-fid's Inception network, see eval/features/comparison.py. Without its weights this metric
fails with the remedy, and the other metrics are still computed.
"""

from pathlib import Path

import torch

from eval.features import inception
from eval.features.comparison import compare
from eval.features.reference import references
from eval.record import Result
from eval.trial import Subject

SHARED = True  # by all processes: eval/distributed.py


def stage(place: Path, device: torch.device) -> None:
    """Fetch the weights unless they are there, and make the statistics of a set, for all evaluations to come."""
    inception.fetch()
    references(place, inception.extractor(device))


def evaluate(subject: Subject) -> Result:
    """Compare with the lone set, or with the source; ConfigError or DataError says what is missing."""
    subject.capability("sample", "fid")
    return compare(subject, next(iter(subject.domains)), inception.extractor(subject.device))
