"""How far a method's samples are from its set, in the features of some network: what fid and fid_classifier share."""

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
from eval.features.reference import references
from eval.record import Result
from eval.sampling import CHUNK, draw
from eval.trial import Subject
from trainer.errors import ConfigError

LARGEST = 10_000  # samples; else as many as the test split has
LIBRARIES = ("pytorch-fid", "scipy", "torchvision")


def fakes(subject: Subject, n: int, metric: str, extractor: Extractor) -> Statistics:
    """Statistics of n samples, which all processes share in drawing: up to rounding those of a single one."""

    def part() -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        mine = draw(subject, n, subject.config.train.seed, metric, share=distributed.share())
        try:
            found = collect(mine, extractor)
        except ConfigError:
            raise
        except ValueError as error:  # said here, where each process knows which samples
            raise ConfigError(f"{subject.run.path}: step {subject.step}: {metric}: of samples: {error}") from None
        return found.moments.sums.cpu().numpy(), found.features.cpu().numpy()

    parts = distributed.together(part)
    sums = np.sum([sums for sums, _ in parts], axis=0)
    # Each has kept its first vectors: those of its first chunks, which lie between the chunks of the others.
    chunks = [np.split(features, range(CHUNK, len(features), CHUNK)) for _, features in parts]
    rows = [chunk for turn in zip_longest(*chunks) for chunk in turn if chunk is not None][: KEPT // CHUNK]
    features = torch.from_numpy(np.concatenate(rows)).to(extractor.device)
    return Statistics(Moments(extractor.width, extractor.device, sums), features)


def compare(subject: Subject, domain: str, extractor: Extractor, suffix: str = "") -> Result:
    """Compare samples of every milestone with the test split and, to choose among milestones, with the validation one.

    Metrics: fid, kid, precision, recall, density, coverage, each with the suffix, of the last weights against the test
    split; best/fid of the milestone that is nearest to the validation split. FID falls as there are more images:
    compare it between equal numbers only.
    """
    validation, test = references(subject.place(domain), extractor)
    n, number = min(test.moments.count, LARGEST), subject.config.train.seed
    result, fid = Result(), f"fid{suffix}"
    try:
        to_choose, real = validation.moments.gaussian(), test.moments.gaussian()
    except ValueError as error:
        raise ConfigError(f"{subject.run.path}: {subject.domains[domain]}: {fid}: {error}") from None
    for milestone in subject.milestones():
        try:
            fake = fakes(milestone, n, fid, extractor)
            made = fake.moments.gaussian()
            found = {"fid": frechet(real, made), "kid": kid(test.features, fake.features)}
            found["precision"], found["recall"] = precision_recall(test.features, fake.features)
            found["density"], found["coverage"] = density_coverage(test.features, fake.features)
            row = {f"{name}{suffix}": value for name, value in found.items()}
            result.history[milestone.step] = {f"validation/{fid}": frechet(to_choose, made), **row}
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{subject.run.path}: step {milestone.step}: {fid}: {error}") from None
        if milestone is subject:
            result.metrics |= row
    if len(result.history) > 1:
        result.choose("best", fid, f"validation/{fid}")
    facts: dict[str, Any] = {
        "set": subject.domains[domain],
        "split": "test",
        "n_real": test.moments.count,
        "n_real_validation": validation.moments.count,
        "n_fake": n,
        f"{fid} of validation images": round(frechet(real, to_choose), 6),  # what no method can be asked to beat
        "extractor": extractor.name,
        "sha256": extractor.sha256,
        "width": extractor.width,
        "resize": extractor.resize,
        "step": subject.step,
        "seed": number,
        "versions": {library: metadata.version(library) for library in LIBRARIES},
    }
    result.provenance[fid] = facts | extractor.provenance
    return result
