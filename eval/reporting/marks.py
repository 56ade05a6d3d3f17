"""Mark trials that must not be averaged although their settings are the same, and metrics that a classifier judges."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.reporting.formatting import format_exactly
from trainer.runs.placement import is_of_earlier_revision

if TYPE_CHECKING:
    from eval.reporting.results import Trial


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
