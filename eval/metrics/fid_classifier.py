"""The distances of eval/metrics/fid.py in the features of a small classifier of the trial's own dataset.

No downloaded weights are needed: eval/features/classifier.py trains them. The values are on another scale than FID.
"""

from pathlib import Path

import torch

from eval.features import classifier
from eval.features.comparison import compare
from eval.features.reference import load_references
from eval.metrics import Metric
from eval.record import Result
from eval.trial import TrainedTrial


def stage(folder: Path, device: torch.device) -> None:
    """Train the classifier of a dataset and compute its statistics, for all later evaluations."""
    load_references(folder, classifier.extractor(folder, device))


METRIC = Metric(needs="sample", shared=True, stage=stage)


def evaluate(trial: TrainedTrial) -> Result:
    """Compare with the only dataset, or with the source; ConfigError or DataError says what is missing."""
    domain = next(iter(trial.domains))
    return compare(trial, domain, classifier.extractor(trial.cache_folder(domain), trial.device), "_classifier")
