"""The distances of eval/metrics/fid.py in the features of a small classifier of the trial's own dataset.

No downloaded weights are needed: eval/features/classifier.py trains them. The values are on another scale than FID.
"""

from pathlib import Path

import torch

from eval.features import classifier
from eval.features.comparison import compare
from eval.features.extractor import Extractor
from eval.features.reference import load_references
from eval.metrics import Metric
from eval.record import Result
from eval.trial import TrainedTrial


def stage(folder: Path, device: torch.device) -> None:
    """Train the classifier of a dataset and compute its statistics, for all later evaluations."""
    load_references(folder, classifier.extractor(folder, device))


METRIC = Metric(needs="sample", recipe=2, options=("split", "samples", "real"), shared=True, stage=stage)


def create_extractor(trial: TrainedTrial) -> Extractor:
    """Return the classifier of the only dataset, or of the source, on the trial's device; DataError without labels."""
    return classifier.extractor(trial.cache_folder(next(iter(trial.domains))), trial.device)


def evaluate(trial: TrainedTrial) -> Result:
    """Compare with the only dataset, or with the source; ConfigError or DataError says what is missing."""
    return compare(trial, next(iter(trial.domains)), create_extractor(trial), "_classifier")
