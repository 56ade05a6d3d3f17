"""Fréchet Inception distance (Heusel et al., 2017), KID, precision and recall, density and coverage of samples.

In the features of pytorch-fid's Inception network, as eval/comparison.py says; where its weights are missing this
evaluation fails with the remedy, and the others go on.
"""

from pathlib import Path

import torch

from eval import inception
from eval.comparison import compare
from eval.record import Result
from eval.reference import references
from eval.subject import Subject

SHARED = True  # by all processes: eval/processes.py


def stage(place: Path, device: torch.device) -> None:
    """Fetch the weights unless they are there, and make the statistics of a set, for all evaluations to come."""
    inception.fetch()
    references(place, inception.extractor(device))


def evaluate(subject: Subject) -> Result:
    """Compare with the lone set, or with the source; ConfigError or DataError says what is missing."""
    subject.capability("sample", "fid")
    return compare(subject, next(iter(subject.domains)), inception.extractor(subject.device))
