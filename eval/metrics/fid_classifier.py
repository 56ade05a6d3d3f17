"""The distances of eval/metrics/fid.py in the features of a small classifier of the trial's own dataset.

Needs no weights from elsewhere: eval/features/classifier.py trains them. The numbers are not FID and not on its scale.
"""

from pathlib import Path

import torch

from eval.features import classifier
from eval.features.comparison import compare
from eval.features.reference import references
from eval.record import Result
from eval.trial import Subject

SHARED = True  # by all processes: eval/distributed.py


def stage(place: Path, device: torch.device) -> None:
    """Make what is kept of a set, its classifier and its statistics, for all evaluations to come."""
    references(place, classifier.extractor(place, device))


def evaluate(subject: Subject) -> Result:
    """Compare with the lone set, or with the source; ConfigError or DataError says what is missing."""
    subject.capability("sample", "fid_classifier")
    domain = next(iter(subject.domains))
    return compare(subject, domain, classifier.extractor(subject.place(domain), subject.device), "_classifier")
