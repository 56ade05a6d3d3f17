"""How far a method's samples are from its set, in the features of some network: what fid and fid_classifier share."""

from importlib import metadata
from typing import Any

from eval.distances import density_coverage, frechet, kid, precision_recall
from eval.draw import draw
from eval.extractor import Extractor, collect
from eval.record import Result
from eval.reference import reference
from eval.subject import Subject
from trainer.config import ConfigError

LARGEST = 10_000  # samples; else as many as the test split has
LIBRARIES = ("pytorch-fid", "scipy", "torchvision")


def compare(subject: Subject, domain: str, extractor: Extractor, suffix: str = "") -> Result:
    """Compare samples of every milestone with the test split and, to choose among milestones, with the validation one.

    Metrics: fid, kid, precision, recall, density, coverage, each with the suffix, of the last weights against the test
    split; best/fid of the milestone that is nearest to the validation split. FID falls as there are more images:
    compare it between equal numbers only.
    """
    validation, test = (reference(subject, domain, split, extractor) for split in ("validation", "test"))
    n, number = min(test.moments.count, LARGEST), subject.config.train.seed
    result, fid = Result(), f"fid{suffix}"
    try:
        to_choose, real = validation.moments.gaussian(), test.moments.gaussian()
    except ValueError as error:
        raise ConfigError(f"{subject.run.path}: {subject.domains[domain]}: {fid}: {error}") from None
    for milestone in subject.milestones():
        try:
            fake = collect(draw(milestone, n, number, fid), extractor)
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
        best = min(result.history.values(), key=lambda row: row[f"validation/{fid}"])
        result.metrics[f"best/{fid}"] = best[fid]
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
