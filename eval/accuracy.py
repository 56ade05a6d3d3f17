"""Accuracy on the test split of every domain, with its Wilson interval and confusion matrix.

Metrics: `accuracy/<domain>` in [0, 1], of the last weights. Where milestones were kept, `oracle/accuracy/target` is
the test accuracy of the milestone with the best accuracy on the target's validation labels: without target labels
nobody could choose it, hence the name.
"""

from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from eval import figures
from eval.subject import Result, Subject


def evaluate(subject: Subject) -> Result:
    """Predict every test split; ConfigError if the method cannot `predict`."""
    result = Result({})
    for milestone in subject.milestones():
        row = result.history.setdefault(milestone.step, {})
        for domain in subject.domains:
            for split in ("validation", "test"):
                true, predicted = predictions(milestone, domain, split)
                row[name(split, domain)] = float((true == predicted).mean())
                if milestone.step == subject.step and split == "test":
                    report(subject, domain, true, predicted, result)
    if len(result.history) > 1 and "target" in subject.domains:
        best = max(result.history.values(), key=lambda row: row["validation/accuracy/target"])
        result.metrics["oracle/accuracy/target"] = best["accuracy/target"]
    return result


def report(subject: Subject, domain: str, true: Any, predicted: Any, result: Result) -> None:
    """Add one domain's accuracy, interval and confusion matrix to the result."""
    key, correct = name("test", domain), int((true == predicted).sum())
    interval = binomtest(correct, len(true)).proportion_ci(0.95, method="wilson")
    result.metrics[key] = correct / len(true)
    result.intervals[key] = (float(interval.low), float(interval.high))
    result.provenance[key] = {"set": subject.domains[domain], "split": "test", "n": len(true), "weights": subject.step}
    counts = confusion_matrix(true, predicted, labels=range(subject.config.data.shape()[2]))
    stem = f"confusion_{domain}" if domain else "confusion"
    np.savez(subject.folder / f"{stem}.npz", counts=counts)
    title = f"{subject.domains[domain]}: {result.metrics[key]:.3f} of {len(true)}"
    result.figures.append(figures.save(figures.confusion(counts, title), subject.folder / f"{stem}.png"))


def predictions(subject: Subject, domain: str, split: str) -> tuple[Any, Any]:
    """True and predicted classes of a split, int [n] each."""
    arrays = subject.arrays(domain, split)
    logits = subject.over(subject.capability("predict", "accuracy"), arrays.images)
    return np.asarray(arrays.labels), logits.argmax(1)


def name(split: str, domain: str) -> str:
    """Name of a metric: accuracy/target, validation/accuracy/target."""
    metric = f"accuracy/{domain}" if domain else "accuracy"
    return metric if split == "test" else f"{split}/{metric}"
