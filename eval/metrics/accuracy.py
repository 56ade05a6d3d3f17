"""Accuracy on the test or validation split of every domain, with Wilson's interval and the confusion matrix.

Metrics: `accuracy/<domain>` in [0, 1], of the last weights; with `eval: {split: validation}` the test split is not
read, and they are `validation/accuracy/<domain>`. If milestones were exported, further metrics give the
accuracy on the target (or the only dataset) of the milestone that a rule selects, the earliest of equal ones:

`best/…`: the highest accuracy on the validation labels of the source (or the only dataset);
`infomax/…`: the most information in the predictions of the target's validation images, so without any label;
`oracle/…`: the highest accuracy on the target's validation labels, unavailable in practice.

The accuracy of a split without labels is left out, which the provenance says. So does a warning if the last weights
classify the source's validation images much worse than earlier ones: the method has lost the source.
"""

import sys

import numpy as np
from numpy.typing import NDArray

from eval import figures
from eval.intervals import wilson_interval
from eval.metrics import Metric
from eval.record import Result
from eval.trial import TrainedTrial
from trainer.errors import ConfigError
from trainer.lost_source import METRIC as SOURCE
from trainer.lost_source import warn_of_lost_source
from trainer.preview import information

METRIC = Metric(needs="predict", higher_is_better=True, options=("split",))
INFORMATION = "validation/information/target"  # nats
LOST_SOURCE = "lost source"  # in the provenance: a warning, if accuracy on the source fell while training


def evaluate(trial: TrainedTrial) -> Result:
    """Predict the validation split, and the measured one, at every milestone; ConfigError if none has labels."""
    result, measured = Result(), trial.config.eval.split
    for milestone in trial.milestones():
        row = result.history.setdefault(milestone.step, {})
        for domain in trial.domains:
            for split in dict.fromkeys(("validation", measured)):
                true, logits = predictions(milestone, domain, split)
                predicted = logits.argmax(1)
                if (split, domain) == ("validation", "target"):
                    row[INFORMATION] = information(logits)
                if true.min() < 0:
                    reason = f"left out: the {split} split of {trial.domains[domain]} has no labels"
                    result.provenance[metric_name(split, domain)] = reason
                    if milestone is trial:
                        print(f"{trial.run.name}: {metric_name(split, domain)}: {reason}", file=sys.stderr)
                    continue
                row[metric_name(split, domain)] = float((true == predicted).mean())
                if milestone is trial and split == measured:
                    add_domain(trial, domain, true, predicted, result)
    if not result.metrics:
        raise ConfigError(
            f"{trial.run.path}: eval.metrics: accuracy: no {measured} split of {' and '.join(trial.domains.values())} "
            "has labels; leave accuracy out, or choose a labelled dataset"
        )
    sources = {step: row[SOURCE] for step, row in result.history.items() if SOURCE in row}
    if "source_labels" in trial.method.reads and (warning := warn_of_lost_source(sources)):
        result.provenance[LOST_SOURCE] = warning
        print(f"{trial.run.name}: {warning}", file=sys.stderr)
    if len(result.history) > 1:
        last = list(trial.domains)[-1]
        rules = {
            "oracle" if domain == "target" else "best": metric_name("validation", domain) for domain in trial.domains
        }
        if "target" in trial.domains:
            rules["infomax"] = INFORMATION
        rows = result.history.values()
        for rule, criterion in rules.items():
            if not all({criterion, metric_name(measured, last)} <= row.keys() for row in rows):
                continue  # without labels there is nothing to choose by, or no result
            result.choose(rule, metric_name(measured, last), criterion, max)
    return result


def add_domain(
    trial: TrainedTrial, domain: str, true: NDArray[np.int64], predicted: NDArray[np.int64], result: Result
) -> None:
    """Add one domain's accuracy, interval and confusion matrix to the result."""
    split = trial.config.eval.split
    key, correct = metric_name(split, domain), int((true == predicted).sum())
    result.metrics[key] = correct / len(true)
    result.intervals[key] = wilson_interval(correct, len(true))
    result.provenance[key] = {"set": trial.domains[domain], "split": split, "n": len(true), "step": trial.step}
    # Not by scikit-learn, whose import takes as long as that of torch.
    counts = np.bincount(true * trial.classes + predicted, minlength=trial.classes**2).reshape(trial.classes, -1)
    stem = f"confusion_{domain}" if domain else "confusion"
    np.savez(trial.folder / f"{stem}.npz", counts=counts)
    title = f"{trial.domains[domain]} {split}: accuracy {result.metrics[key]:.3f} (n = {len(true):,})"
    figures.save(figures.confusion(counts, title, trial.class_names), trial.folder / f"{stem}.png")


def predictions(trial: TrainedTrial, domain: str, split: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return true classes [n] of a split, -1 without labels, and the method's logits [n, classes]."""
    arrays = trial.arrays(domain, split)
    return np.asarray(arrays.labels), trial.apply(trial.capability("predict", "accuracy"), arrays.images)


def metric_name(split: str, domain: str) -> str:
    """Return the name of a metric: accuracy/target, validation/accuracy/target."""
    metric = f"accuracy/{domain}" if domain else "accuracy"
    return metric if split == "test" else f"{split}/{metric}"
