"""A method of adaptation that forgets the source is named while it trains, when it is evaluated, and in the report."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eval.metrics import accuracy
from eval.reporting.marks import describe_lost_sources
from tests.models.test_methods import build_trainer
from tests.processes import SPEC, small
from trainer.config.resolve import resolve
from trainer.lost_source import METRIC, warn_of_lost_source
from trainer.preview import Preview

DOMAINS = {"source": "mnist5k", "target": "mnistm5k"}


@pytest.mark.parametrize(
    ("accuracies", "is_lost"),
    [
        ({}, False),
        ({5: 0.3}, False),
        ({5: 0.9, 10: 0.82}, False),
        ({5: 0.9, 10: 0.8}, True),
        ({5: 0.8, 10: 0.9}, False),
    ],
)
def test_the_source_is_lost_below_nine_tenths_of_its_best_accuracy(accuracies: dict[int, float], is_lost: bool) -> None:
    warning = warn_of_lost_source(accuracies)
    assert bool(warning) == is_lost
    if is_lost:
        assert "0.800 at step 10 and was 0.900 at step 5" in warning


@pytest.mark.parametrize(("reads", "warns"), [(("source_labels",), True), (("target_labels",), False)])
def test_an_evaluation_warns_of_it(
    reads: tuple[str, ...], warns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Of two milestones the first classifies 10 of 10 source images right, the last 5; so a method that reads them."""

    def predict(milestone: Any, domain: str, split: str) -> tuple[Any, Any]:
        wrong = 5 if milestone.step == 10 and domain == "source" else 0
        return np.zeros(10, int), np.eye(2, dtype=np.float32)[[1] * wrong + [0] * (10 - wrong)]

    shared: dict[str, Any] = {"method": SimpleNamespace(reads=reads), "domains": DOMAINS, "classes": 2}
    shared |= {"folder": tmp_path, "run": SimpleNamespace(name="trial", path=tmp_path), "class_names": ["a", "b"]}
    shared["config"] = SimpleNamespace(eval=SimpleNamespace(split="test"))
    trial = SimpleNamespace(step=10, **shared)
    trial.milestones = lambda: iter([SimpleNamespace(step=5, **shared), trial])
    monkeypatch.setattr(accuracy, "predictions", predict)
    result = accuracy.evaluate(trial)  # type: ignore[arg-type]
    assert ("lost source" in result.provenance) == warns
    assert ("trial: the method has lost the source: accuracy" in capsys.readouterr().err) == warns


def test_the_report_warns_of_falls_and_of_figures_below_the_lower_bound() -> None:
    def build(name: str, method: str, value: float, source: str = "mnist", **provenance: str) -> Any:
        config = {"method": method, "data.source": source}
        metrics = {"accuracy/source": value}
        return SimpleNamespace(name=name, method=method, config=config, metrics=metrics, provenance=provenance)

    trials = [
        build("bound", "source_only", 0.98),
        build("bound 2", "source_only", 0.96),
        build("kept", "dann", 0.95),
        build("lost", "mcd", 0.42),
        build("fell", "mcd", 0.95, **{"lost source": "the method has lost the source: …"}),
        build("elsewhere", "mcd", 0.42, source="usps"),
        build("upper", "target_only", 0.1),
    ]
    sentences = describe_lost_sources(trials)
    assert [sentence.partition(":")[0] for sentence in sentences] == ["lost", "fell"]
    assert "0.420, and 0.970 with training on the source alone" in sentences[0]


@pytest.mark.parametrize(("method", "warns"), [("source_only", True), ("target_only", False)])
def test_a_preview_warns_of_it_at_the_step_where_it_happens(
    method: str, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build_trainer(small(method, SPEC))
    preview = Preview(resolve({"name": "x", "method": method, "data": DOMAINS}, "x"))
    warnings = []
    for step, value in ((5, 0.9), (10, 0.4), (15, 0.88)):
        trainer.step = step
        monkeypatch.setattr(Preview, "measure", lambda *_, value=value: {METRIC: value})
        warnings.append(preview.look(trainer)[2])
    assert [bool(warning) for warning in warnings] == [False, warns, False]
