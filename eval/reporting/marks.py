"""Mark trials that must not be averaged although their settings are the same."""

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
