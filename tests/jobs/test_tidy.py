"""Tidying a sweep: what goes and what stays, and an archive that the report and open_trial still read."""

import json
import re
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from eval import main as evaluation
from eval import report
from eval.trial import open_trial
from jobs import tidy
from jobs.plan import refuse_archived
from tests import warm
from trainer.errors import ConfigError
from trainer.runs import submissions
from trainer.runs.archive import archive_file, locate, pack
from trainer.runs.directory import RunDirectory, find_runs

ROOT = Path(__file__).parents[2]
STEPS = 30
SETTINGS = [f"train.steps={STEPS}", "train.export_every=10", "train.checkpoint_every=10", "train.batch_size=8"]


def train(runs: Path, data_root: str, *overrides: str) -> Path:
    command = [sys.executable, "trainer/main.py", "sweeps/dann.yaml", *SETTINGS, f"data.root={data_root}", *overrides]
    warm.run([*command, "--runs", str(runs)], cwd=ROOT, check=True, capture_output=True, timeout=120)
    return max(runs.glob("dann/*"), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_root: str) -> Path:
    """A finished trial that is not evaluated; not to be written to."""
    return train(tmp_path_factory.mktemp("trained"), data_root, "eval.metrics=[accuracy]")


@pytest.fixture
def sweep(trained: Path, tmp_path: Path) -> Path:
    """A sweep of one finished trial, not evaluated yet."""
    shutil.copytree(trained.parent, tmp_path / "dann")
    return tmp_path / "dann"


def keep_checkpoints(run: RunDirectory) -> None:
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("  export_every:", "  keep_checkpoints: true\n  export_every:"))


@pytest.mark.parametrize("keep", [False, True])
def test_checkpoints_are_removed_after_a_successful_evaluation(sweep: Path, keep: bool) -> None:
    (run,) = find_runs(sweep)
    assert len([*run.checkpoints.iterdir()]) == 2
    if keep:
        keep_checkpoints(run)
    weights = run.exported_weights()[STEPS]
    content = weights.read_bytes()
    weights.write_bytes(b"damaged")
    assert evaluation.main([str(run.path)]) == 2
    assert len([*run.checkpoints.iterdir()]) == 2, "its evaluation has failed"
    weights.write_bytes(content)
    assert evaluation.main([str(run.path), "--metrics", "tsne"]) == 0
    assert len([*run.checkpoints.iterdir()]) == 2, "accuracy is missing"
    assert evaluation.main([str(run.path)]) == 0
    assert (run.checkpoints.exists(), run.latest_file.exists()) == (keep, keep)
    assert evaluation.main([str(run.path), "--force"]) == 0, "nothing reads them"


def test_checkpoints_of_a_trial_without_metrics_are_removed_when_it_is_done(tmp_path: Path, data_root: str) -> None:
    run = RunDirectory(train(tmp_path, data_root, "eval.metrics=[]"))
    assert (run.is_done(), run.checkpoints.exists()) == (True, False)
    assert "keep_checkpoints" not in run.config_file.read_text()
    kept = RunDirectory(train(tmp_path / "kept", data_root, "eval.metrics=[]", "train.keep_checkpoints=true"))
    assert kept.name == run.name, "the setting is no part of the identity"
    assert len([*kept.checkpoints.iterdir()]) == 2
    assert kept.exported_weights()[STEPS].read_bytes() == run.exported_weights()[STEPS].read_bytes()


def add_jobs(sweep: Path) -> None:
    """Add what jobs leave: scripts and logs, and copies of code of a commit, of an edited checkout and of nothing."""
    jobs = sweep / "slurm" / "7"
    jobs.mkdir(parents=True)
    for name in ("7_0_log.err", "7_submission.sh", "7_0_submitted.pkl", "7_0_result.pkl"):
        (jobs / name).write_text(name)
    for name in ("clean", "dirty", "unknown"):
        (sweep / "code" / name).mkdir(parents=True)
        (sweep / "code" / name / "a.py").write_text("a = 1")
    for name in ("clean", "dirty"):
        submissions.append(sweep, {"code": f"code/{name}", "commit": "abc", "dirty": name == "dirty", "arrays": []})


def files(sweep: Path) -> set[str]:
    return {str(path.relative_to(sweep)) for path in sweep.rglob("*") if path.is_file()} - {".submitting"}


def test_tidying_removes_only_what_nothing_needs(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = find_runs(sweep)
    keep_checkpoints(run)
    assert evaluation.main([str(run.path)]) == 0
    run.config_file.write_text(run.config_file.read_text().replace("  keep_checkpoints: true\n", ""))
    half = sweep / "dann,half-00000000"
    shutil.copytree(run.path, half)
    (half / "done").unlink()
    add_jobs(sweep)
    record = run.evaluation()
    record["provenance"]["best/accuracy/target"] = {"chosen at step": 20, "chosen by": "validation/accuracy/source"}
    run.evaluation_file.write_text(json.dumps(record))
    before = files(sweep)

    assert tidy.main([str(sweep)]) == 0
    assert files(sweep) == before, "the dry run"
    output = capsys.readouterr().out
    assert re.search(r"checkpoints of finished trials +2 ", output)
    assert "with --yes" in output

    assert tidy.main([str(sweep), "--yes"]) == 0
    removed = before - files(sweep)
    assert {name for name in removed if "/checkpoints/" not in name} == {
        f"{run.name}/latest",
        f"{run.name}/weights/step-000010.safetensors",
        "slurm/7/7_submission.sh",
        "slurm/7/7_0_submitted.pkl",
        "slurm/7/7_0_result.pkl",
        "code/clean/a.py",
        "code/unknown/a.py",
    }
    assert not any(name.startswith(half.name) for name in removed), "it is not finished"
    assert tidy.main([str(sweep), "--yes"]) == 0
    assert evaluation.main([str(run.path), "--force"]) == 0


def test_tidying_keeps_scripts_and_code_of_a_running_sweep(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_jobs(sweep)
    monkeypatch.setattr(tidy, "describe_activity", lambda sweep: "slurm job 7 waits or runs")
    before = files(sweep)
    assert tidy.main([str(sweep), "--yes"]) == 0
    assert files(sweep) == before, "nor the checkpoints of a trial that is not evaluated"
    assert tidy.main([str(sweep), "--archive", "--yes"]) == 2
    assert "slurm job 7 waits or runs" in capsys.readouterr().err
    assert sweep.exists()


def test_report_and_open_trial_read_an_archive(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = find_runs(sweep)
    add_jobs(sweep)
    (sweep / "link").symlink_to("/etc")
    assert evaluation.main([str(run.path)]) == 0
    report.write_report(sweep)
    results = (sweep / "report" / "results.csv").read_text()
    weights = {name: value.clone() for name, value in open_trial(run.path, step=20).method.state_dict().items()}
    archive = archive_file(sweep)

    assert tidy.main([str(sweep), "--archive"]) == 0
    assert (sweep.exists(), archive.exists()) == (True, False), "the dry run"
    pack(sweep)
    assert not sweep.exists()
    with pytest.raises(ConfigError, match=r"dann\.tar; unpack it by: tar -xf"):
        refuse_archived(sweep)
    trial = open_trial(archive / run.name, step=20)
    assert all(torch.equal(value, weights[name]) for name, value in trial.method.state_dict().items())
    assert report.main([str(archive)]) == 0
    assert (sweep / "report" / "results.csv").read_text() == results
    with pytest.raises(ConfigError, match="the archive has no such trial"):
        open_trial(archive / "other")
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"dann\.tar"):
        locate(archive)


def test_a_file_that_changes_while_it_is_archived_is_kept(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = tarfile.TarFile.add

    def add_and_write(tar: tarfile.TarFile, *arguments: Any, **options: Any) -> None:
        add(tar, *arguments, **options)
        (sweep / "late").write_text("x")

    monkeypatch.setattr(tarfile.TarFile, "add", add_and_write)
    with pytest.raises(ConfigError, match="late: is not in"):
        pack(sweep)
    assert ((sweep / "late").exists(), archive_file(sweep).exists()) == (True, False)
