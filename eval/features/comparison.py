"""Compare the samples of a method with its dataset in the features of a network: shared by fid and fid_classifier."""

from importlib import metadata
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval import distributed
from eval.features.distances import density_coverage, frechet, kid, precision_recall
from eval.features.extractor import KEPT, Extractor, Statistics, collect
from eval.features.moments import Moments
from eval.features.reference import load_references
from eval.record import Result
from eval.sampling import CHUNK, draw_samples
from eval.trial import TrainedTrial
from trainer.errors import ConfigError

MAX_SAMPLES = 10_000  # else as many as there are test images
LIBRARIES = ("pytorch-fid", "scipy", "torchvision")


def sample_statistics(trial: TrainedTrial, n: int, metric: str, extractor: Extractor) -> Statistics:
    """Return the statistics of n samples, which all processes share; up to rounding those of a single process."""

    def own_part() -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        samples = draw_samples(trial, n, trial.config.train.seed, metric, shard=distributed.shard())
        try:
            statistics = collect(samples, extractor)
        except ConfigError:
            raise
        except ValueError as error:  # reported here, where each process knows which samples
            raise ConfigError(f"{trial.run.path}: step {trial.step}: {metric}: of samples: {error}") from None
        return statistics.moments.sums.cpu().numpy(), statistics.features.cpu().numpy()

    parts = distributed.gather(own_part)
    sums = np.sum([sums for sums, _ in parts], axis=0)
    # Each process kept the vectors of its first chunks, between which those of the other processes belong.
    chunks = [np.split(features, range(CHUNK, len(features), CHUNK)) for _, features in parts]
    rows = [chunk for group in zip_longest(*chunks) for chunk in group if chunk is not None][: KEPT // CHUNK]
    features = torch.from_numpy(np.concatenate(rows)).to(extractor.device)
    return Statistics(Moments(extractor.width, extractor.device, sums), features)


def compare(trial: TrainedTrial, domain: str, extractor: Extractor, suffix: str = "") -> Result:
    """Compare samples of every milestone with the test split and, to choose among milestones, the validation split.

    Metrics, each with the suffix: fid, kid, precision, recall, density, coverage of the last weights against the test
    split; best/fid of the milestone with the lowest FID against the validation split. FID falls as the number of images
    grows: compare it only between equal numbers.
    """
    validation, test = load_references(trial.cache_folder(domain), extractor)
    n, seed = min(test.moments.count, MAX_SAMPLES), trial.config.train.seed
    result, fid = Result(), f"fid{suffix}"
    try:
        validation_gaussian, test_gaussian = validation.moments.gaussian(), test.moments.gaussian()
    except ValueError as error:
        raise ConfigError(f"{trial.run.path}: {trial.domains[domain]}: {fid}: {error}") from None
    for milestone in trial.milestones():
        try:
            fake = sample_statistics(milestone, n, fid, extractor)
            fake_gaussian = fake.moments.gaussian()
            values = {"fid": frechet(test_gaussian, fake_gaussian), "kid": kid(test.features, fake.features)}
            values["precision"], values["recall"] = precision_recall(test.features, fake.features)
            values["density"], values["coverage"] = density_coverage(test.features, fake.features)
            row = {f"{name}{suffix}": value for name, value in values.items()}
            result.history[milestone.step] = {f"validation/{fid}": frechet(validation_gaussian, fake_gaussian), **row}
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{trial.run.path}: step {milestone.step}: {fid}: {error}") from None
        if milestone is trial:
            result.metrics |= row
    if len(result.history) > 1:
        result.choose("best", fid, f"validation/{fid}")
    facts: dict[str, Any] = {
        "set": trial.domains[domain],
        "split": "test",
        "n_real": test.moments.count,
        "n_real_validation": validation.moments.count,
        "n_fake": n,
        f"{fid} of validation images": round(frechet(test_gaussian, validation_gaussian), 6),  # the floor of the metric
        "extractor": extractor.name,
        "sha256": extractor.sha256,
        "width": extractor.width,
        "resize": extractor.resize,
        "step": trial.step,
        "seed": seed,
        "versions": {library: metadata.version(library) for library in LIBRARIES},
    }
    result.provenance[fid] = facts | extractor.provenance
    return result
