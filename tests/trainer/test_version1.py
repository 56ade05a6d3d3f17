"""A sweep that version 1 wrote is read, continued, evaluated and reported; see tests/fixtures/version1/README.md."""

import csv
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import warm
from trainer.runs.directory import RunDirectory

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "version1"
EXPECTED = FIXTURE / "expected"
STOPPED, DONE = "vae,kl_weight=0.001,seed=0-61227988", "vae,seed=0,kl_weight=1e-5-b5d5bef9"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURE / "sweep", tmp_path / "logs" / "fixture")
    return tmp_path / "logs" / "fixture"


def run(*command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = warm.run(
        [sys.executable, *command], cwd=ROOT, env=environment, text=True, capture_output=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def losses(lines: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if key not in ("time", "rate")} for line in lines]


def test_states_of_version_1_are_read(sweep: Path) -> None:
    done, stopped = RunDirectory(sweep / DONE), RunDirectory(sweep / STOPPED)
    assert (done.state(), stopped.state()) == ("done", "stopped")
    assert (stopped.status()["step"], stopped.latest_step(), list(stopped.exported_weights())) == (70, 70, [60])
    assert done.evaluation()["step"] == 120


def test_the_report_of_a_version_1_sweep_shows_the_same_results(sweep: Path) -> None:
    run("eval/report.py", str(sweep))
    rows, expected = (
        list(csv.DictReader(file.read_text().splitlines()))
        for file in (sweep / "report" / "results.csv", EXPECTED / "results.csv")
    )
    assert rows == expected, "the order of the columns aside"


def test_a_stopped_trial_of_version_1_is_continued_and_evaluated(sweep: Path, data_root: str, tmp_path: Path) -> None:
    """The losses, weights and metrics are those of version 1, bit for bit where torch and the CPU are the same."""
    copy = shutil.copytree(sweep / STOPPED, tmp_path / "again" / STOPPED)
    os.environ["TURNOUT_DATA"] = data_root
    try:
        assert "resuming from step 70" in run("trainer/main.py", str(sweep / STOPPED))
        run("trainer/main.py", str(copy))
        run("eval/main.py", str(sweep / STOPPED))
    finally:
        del os.environ["TURNOUT_DATA"]
    trial = RunDirectory(sweep / STOPPED)
    weights, expected = load_file(trial.exported_weights()[120]), load_file(EXPECTED / "step-000120.safetensors")
    assert trial.exported_weights()[120].read_bytes() == RunDirectory(copy).exported_weights()[120].read_bytes()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)
    lines = [json.loads(line) for line in (EXPECTED / "metrics.jsonl").read_text().splitlines()]
    for line, reference in zip(losses(trial.metrics()), losses(lines), strict=True):
        assert line == pytest.approx(reference, rel=1e-3)
    if torch.__version__.startswith("2.14.1") and torch.backends.cpu.get_cpu_capability() == "AVX2":
        assert trial.exported_weights()[120].read_bytes() == (EXPECTED / "step-000120.safetensors").read_bytes()
        assert losses(trial.metrics()) == losses(lines)
    metrics = json.loads((EXPECTED / "metrics.json").read_text())["metrics"]
    assert trial.evaluation()["metrics"] == pytest.approx(metrics, rel=1e-3)
