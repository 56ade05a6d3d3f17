"""Compare the samples of a method with its dataset in the features of a network: shared by fid and fid_classifier."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval import distributed
from eval.features.distances import density_coverage, frechet, frechet_of_halves, kid_estimates, precision_recall
from eval.features.extractor import KEPT, Extractor, Statistics, collect
from eval.features.moments import Moments
from eval.features.reference import load_reference
from eval.record import Result
from eval.sampling import CHUNK, draw_samples
from eval.trial import TrainedTrial
from trainer.errors import ConfigError

MAX_SAMPLES = 10_000  # else as many as there are real images
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
    """Compare samples of every milestone with a split of a domain and, to choose among them, the validation split.

    Metrics, each with the suffix: fid, kid, precision, recall, density, coverage of the last weights against the test
    split, or validation/fid, … against the validation split (eval.split); best/fid of the milestone with the lowest
    FID against the validation split. FID falls as the number of images grows: compare it only between equal numbers.
    """
    options, folder = trial.config.eval, trial.cache_folder(domain)
    validation, real = (load_reference(folder, split, extractor) for split in ("validation", options.split))
    if options.real:
        real = load_reference(folder, options.split, extractor, options.real)
    n = options.samples or min(real.moments.count, MAX_SAMPLES)
    prefix = "" if options.split == "test" else f"{options.split}/"
    result, name = Result(), f"fid{suffix}"
    fid = f"{prefix}{name}"
    try:
        validation_gaussian, real_gaussian = validation.moments.gaussian(), real.moments.gaussian()
    except ValueError as error:
        raise ConfigError(f"{trial.run.path}: {trial.domains[domain]}: {name}: {error}") from None
    warn_few_images(trial, name, extractor, n, real.moments.count)
    spread = dict[str, Any]()
    for milestone in trial.milestones():
        with explain_refusal(milestone, name):
            fake = sample_statistics(milestone, n, name, extractor)
            values, estimates = measure(real, fake)
            row = {f"{prefix}{key}{suffix}": value for key, value in values.items()}
            distance = frechet(validation_gaussian, fake.moments.gaussian())
            result.history[milestone.step] = {f"validation/{name}": distance} | row
            if milestone is trial:
                result.metrics |= row
                spread = measure_spread(real, fake, estimates)
    if len(result.history) > 1:
        result.choose("best", fid, f"validation/{name}")
    facts: dict[str, Any] = {
        "set": trial.domains[domain],
        "split": options.split,
        "n_real": real.moments.count,
        "n_real_validation": validation.moments.count,
        "n_fake": n,
        f"{name} of validation images": round(frechet(real_gaussian, validation_gaussian), 6),  # the metric's floor
        **describe_extractor(extractor),
        "step": trial.step,
        "seed": trial.config.train.seed,
        "versions": {library: metadata.version(library) for library in LIBRARIES},
    }
    result.provenance[fid] = facts | {"spread": spread} | extractor.provenance
    return result


def measure(real: Statistics, fake: Statistics) -> tuple[dict[str, float], list[float]]:
    """Return fid, kid, precision, recall, density and coverage of fake images, and KID on its subsets; ValueError."""
    fid = frechet(real.moments.gaussian(), fake.moments.gaussian())
    precision, recall = precision_recall(real.features, fake.features)
    density, coverage = density_coverage(real.features, fake.features)
    estimates = kid_estimates(real.features, fake.features)
    rest = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
    return {"fid": fid, "kid": float(np.mean(estimates)), **rest}, estimates


def measure_spread(real: Statistics, fake: Statistics, estimates: list[float]) -> dict[str, Any]:
    """Return the standard deviations of KID over its subsets, and of FID over random halves of the samples."""
    spread: dict[str, Any] = {}
    if len(estimates) > 1:
        spread["kid"] = {"std": float(np.std(estimates, ddof=1)), "over": f"{len(estimates)} subsets"}
    if len(fake.features) >= 4:
        halves = frechet_of_halves(real.moments.gaussian(), fake.features)
        over = f"{len(halves)} halves of {len(fake.features)} samples"
        spread["fid"] = {"mean": float(np.mean(halves)), "std": float(np.std(halves, ddof=1)), "over": over}
    return spread


def warn_few_images(trial: TrainedTrial, metric: str, extractor: Extractor, samples: int, real: int) -> None:
    """Warn on stderr, in the main process, where the covariance of fewer images than features is singular."""
    if min(samples, real) < extractor.width and distributed.is_main():
        print(
            f"{trial.run.name}: {metric}: warning: {min(samples, real):,} images are fewer than the "
            f"{extractor.width:,} features of {extractor.name}, so the value is too high; compare it only with "
            "values of as many images",
            file=sys.stderr,
        )


@contextmanager
def explain_refusal(trial: TrainedTrial, metric: str) -> Iterator[None]:
    """Turn the ValueError of a distance into a ConfigError that names the trial, the step and the metric."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{trial.run.path}: step {trial.step}: {metric}: {error}") from None


def describe_extractor(extractor: Extractor) -> dict[str, Any]:
    """Return the facts of a network that decide the value of a distance."""
    return {
        "extractor": extractor.name,
        "sha256": extractor.sha256,
        "width": extractor.width,
        "resize": extractor.resize,
    }
