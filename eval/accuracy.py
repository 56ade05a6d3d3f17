"""Accuracy on the test split of every domain, with its Wilson interval and confusion matrix.

Metrics: `accuracy/<domain>` in [0, 1], of the last weights. Where milestones were kept, others say what an earlier
stop would have given on the target (or the only set): `best/…` is of the milestone with the best accuracy on the
source's (or the only set's) validation labels, `oracle/…` of the one with the best accuracy on the target's: without
target labels nobody could choose it, hence the name. Of equals the earliest is taken.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from eval import figures
from eval.record import Result
from eval.subject import Subject


def evaluate(subject: Subject) -> Result:
    """Predict validation and test split at every milestone; ConfigError if the method cannot `predict`."""
    result = Result()
    for milestone in subject.milestones():
        row = result.history.setdefault(milestone.step, {})
        for domain in subject.domains:
            for split in ("validation", "test"):
                true, predicted = predictions(milestone, domain, split)
                row[name(split, domain)] = float((true == predicted).mean())
                if milestone is subject and split == "test":
                    report(subject, domain, true, predicted, result)
    if len(result.history) > 1:
        first, *_, last = [*subject.domains, *subject.domains]
        for domain in (first, last) if first != last else (first,):
            rule = "oracle" if domain == "target" else "best"
            chosen = max(result.history.values(), key=lambda row: row[name("validation", domain)])
            result.metrics[f"{rule}/{name('test', last)}"] = chosen[name("test", last)]
    return result


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


def predictions(subject: Subject, domain: str, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and predicted classes of a split, [n] each."""
    arrays = subject.arrays(domain, split)
    logits = subject.over(subject.capability("predict", "accuracy"), arrays.images)
    return np.asarray(arrays.labels), logits.argmax(1)


def name(split: str, domain: str) -> str:
    """Name of a metric: accuracy/target, validation/accuracy/target."""
    metric = f"accuracy/{domain}" if domain else "accuracy"
    return metric if split == "test" else f"{split}/{metric}"
