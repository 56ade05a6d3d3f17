"""Accuracy on the test split of every domain, with its Wilson interval and confusion matrix.

Metrics: `accuracy/<domain>` in [0, 1], of the last weights. Where milestones were kept, others say what an earlier
stop would have given on the target (or the only set): `best/…` is of the milestone with the best accuracy on the
source's (or the only set's) validation labels, `infomax/…` of the one whose predictions of the target's validation
images hold the most information, which takes no label, and `oracle/…` of the one with the best accuracy on the
target's validation labels: without these nobody could choose it, hence the name. Of equals the earliest is taken.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, softmax
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from eval import figures
from eval.record import Result
from eval.trial import Subject
from trainer.errors import ConfigError

INFORMATION = "validation/information/target"  # nats


def evaluate(subject: Subject) -> Result:
    """Predict validation and test split at every milestone; ConfigError if the method cannot `predict`."""
    result = Result()
    for milestone in subject.milestones():
        row = result.history.setdefault(milestone.step, {})
        for domain in subject.domains:
            for split in ("validation", "test"):
                true, logits = predictions(milestone, domain, split)
                predicted = logits.argmax(1)
                row[name(split, domain)] = float((true == predicted).mean())
                if (split, domain) == ("validation", "target"):
                    row[INFORMATION] = information(logits)
                if milestone is subject and split == "test":
                    report(subject, domain, true, predicted, result)
    if len(result.history) > 1:
        last = list(subject.domains)[-1]
        rules = {"oracle" if domain == "target" else "best": name("validation", domain) for domain in subject.domains}
        if "target" in subject.domains:
            rules["infomax"] = INFORMATION
        for rule, criterion in rules.items():
            result.choose(rule, name("test", last), criterion, max)
    return result


def information(logits: NDArray[np.floating[Any]]) -> float:
    """Mutual information of image and predicted class, in nats: H(mean p) - mean H(p), from 0 to log(classes).

    High where predictions are sure of themselves and spread over the classes (Bridle et al., NIPS 1991; as a criterion
    of choice without labels: Musgrave et al., 2021). logits [n, classes].
    """
    p = softmax(logits.astype(np.float64), axis=1)
    return float(entr(p.mean(0)).sum() - entr(p).sum(1).mean())


def report(
    subject: Subject, domain: str, true: NDArray[np.int64], predicted: NDArray[np.int64], result: Result
) -> None:
    """Add one domain's accuracy, interval and confusion matrix to the result."""
    key, correct = name("test", domain), int((true == predicted).sum())
    interval = binomtest(correct, len(true)).proportion_ci(0.95, method="wilson")
    result.metrics[key] = correct / len(true)
    result.intervals[key] = (float(interval.low), float(interval.high))
    result.provenance[key] = {"set": subject.domains[domain], "split": "test", "n": len(true), "step": subject.step}
    counts = confusion_matrix(true, predicted, labels=range(subject.config.data.shape()[2]))
    stem = f"confusion_{domain}" if domain else "confusion"
    np.savez(subject.folder / f"{stem}.npz", counts=counts)
    title = f"{subject.domains[domain]}: {result.metrics[key]:.3f} of {len(true)}"
    figures.save(figures.confusion(counts, title), subject.folder / f"{stem}.png")


def predictions(subject: Subject, domain: str, split: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """True classes [n] of a split and the method's logits [n, classes]; ConfigError if the classes are not known."""
    arrays = subject.arrays(domain, split)
    true = np.asarray(arrays.labels)
    if not len(true) or true.min() < 0:
        raise ConfigError(
            f"{subject.run.path}: eval.metrics: accuracy: the {split} split of {subject.domains[domain]} "
            f"({domain or 'dataset'}) has images without a label; leave accuracy out, or choose a labelled set"
        )
    return true, subject.over(subject.capability("predict", "accuracy"), arrays.images)


def name(split: str, domain: str) -> str:
    """Name of a metric: accuracy/target, validation/accuracy/target."""
    metric = f"accuracy/{domain}" if domain else "accuracy"
    return metric if split == "test" else f"{split}/{metric}"
