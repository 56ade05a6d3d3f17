"""Mark trials that must not be averaged although their settings are the same, and metrics that a classifier judges."""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import models
from eval.reporting.formatting import format_exactly
from trainer.lost_source import SHARE
from trainer.runs.placement import is_of_earlier_revision

if TYPE_CHECKING:
    from eval.reporting.trials import Trial

ACCURACY = "accuracy/source"


def mark_data(trials: "Sequence[Trial]") -> None:
    """Make the data a setting of trials on datasets of one name with different content, which are not averaged."""
    contents: dict[tuple[str, ...], set[str]] = {}
    marks: list[tuple[Trial, str, tuple[str, ...], str]] = []
    for trial in trials:
        settings = [f"{key} {format_exactly(trial.config, key)}" for key in trial.config if key.startswith("data.")]
        for domain in ("dataset", "source", "target"):
            if content := trial.provenance.get(f"data.{domain}.fingerprint"):
                group = (domain, *settings)
                contents.setdefault(group, set()).add(content)
                marks.append((trial, domain, group, content))
    for trial, domain, group, content in marks:
        if len(contents[group]) > 1:
            trial.config[f"data.{domain}.content"] = content[:8]


def mark_revisions(trials: "Sequence[Trial]") -> None:
    """Make the revision a setting of trials whose network was corrected after they were trained."""
    for trial in trials:
        if is_of_earlier_revision(trial.run):
            trial.config["revision"] = "before the correction of the network"


def describe_lost_sources(trials: "Sequence[Trial]") -> list[str]:
    """Return a sentence for each trial of adaptation whose last weights classify the source badly.

    Badly: as eval/metrics/accuracy.py says from its own earlier weights, or with a test accuracy below SHARE times the
    mean of the lower bounds on the same source, which were trained on nothing else.
    """
    bounds: dict[str, list[float]] = {}
    for trial in trials:
        if ACCURACY in trial.metrics and read_role(trial.method) == "lower_bound":
            bounds.setdefault(format_exactly(trial.config, "data.source"), []).append(trial.metrics[ACCURACY])
    sentences = []
    for trial in trials:
        bound, accuracy = bounds.get(format_exactly(trial.config, "data.source")), trial.metrics.get(ACCURACY)
        if warning := trial.provenance.get("lost source"):
            sentences.append(f"{trial.name}: {warning}.")
        elif bound and accuracy is not None and not read_role(trial.method) and accuracy < SHARE * fmean(bound):
            sentences.append(
                f"{trial.name}: the method has lost the source: accuracy on its test images is {accuracy:.3f}, and "
                f"{fmean(bound):.3f} with training on the source alone. Do not trust it on the target."
            )
    return sentences


def read_role(method: str) -> str:
    """Return the role that a method declares; empty if its file no longer exists or cannot be read."""
    try:
        return models.signature(method).role if method in models.names() else ""
    except (OSError, SyntaxError, TypeError, ValueError):
        return ""


def describe_judges(trials: "Sequence[Trial]") -> list[str]:
    """Return a sentence for each metric that a trained classifier computes: its accuracy on real test images."""
    judges: dict[str, set[str]] = {}
    for trial in trials:
        for key, accuracy in trial.provenance.items():
            metric, _, name = key.rpartition(".")
            if name == "test accuracy":
                dataset = format_exactly(trial.provenance, f"{metric}.set")
                judges.setdefault(metric, set()).add(f"{accuracy:.4f} on test images of {dataset}")
    return [
        f"{metric}: the classifier's own accuracy is {', '.join(sorted(accuracies))}"
        + ("; compare values of one classifier only." if len(accuracies) > 1 else ".")
        for metric, accuracies in sorted(judges.items())
    ]
