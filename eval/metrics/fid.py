"""Fréchet Inception distance (Heusel et al., 2017), KID, precision and recall, density and coverage of samples.

In the features of pytorch-fid's Inception network, see eval/features/comparison.py. Without its weights this metric
fails with the remedy, and the other metrics are still computed.
"""

from pathlib import Path

import torch

from eval.features import inception
from eval.features.comparison import compare
from eval.features.extractor import Extractor
from eval.features.reference import load_references
from eval.metrics import Metric
from eval.record import Result
from eval.trial import TrainedTrial


def stage(folder: Path, device: torch.device) -> None:
    """Download the weights if they are missing, and compute a dataset's statistics, for all later evaluations."""
    inception.fetch()
    load_references(folder, inception.extractor(device))


METRIC = Metric(
    needs="sample",
    options=("split", "samples", "real"),
    shared=True,
    stage=stage,
    weights=inception.weights_path,
    substitute="fid_classifier",
)


def create_extractor(trial: TrainedTrial) -> Extractor:
    """Return Inception on the trial's device; DataError if its weights are missing."""
    return inception.extractor(trial.device)


def evaluate(trial: TrainedTrial) -> Result:
    """Compare with the only dataset, or with the source; ConfigError or DataError says what is missing."""
    return compare(trial, next(iter(trial.domains)), create_extractor(trial))
