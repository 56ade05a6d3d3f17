"""Staging: the command, what submit refuses if jobs are offline, and that jobs on Slurm are offline."""

import os
import shlex
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from jobs import stage
from jobs.backends.base import Allocation
from jobs.processes import Task
from jobs.worker import Worker
from tests.jobs.test_submit import DANN, check_refused, command
from tests.trainer.test_data import write_svhn
from trainer.config.schema import Config
from trainer.config.sweep import load_trials
from trainer.data import cache, raw, registry
from trainer.data.dataset import Form
from trainer.errors import ConfigError, DataError
from trainer.runs.attempt import Attempt

NO_NETWORK = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https", "ftp")}


def configs(file: Path, *words: str) -> list[Config]:
    return [trial.config for trial in load_trials(file, list(words))]


@pytest.fixture
def svhn(tmp_path: Path) -> Path:
    """Write a sweep file that needs a dataset which is not bundled."""
    file = tmp_path / "x.yaml"
    file.write_text(f"method: dann\ndata: {{source: svhn, target: mnistm5k, size: 28, root: {tmp_path / 'data'}}}\n")
    return file


def test_the_command_stages_the_datasets_of_all_trials_and_prints_where(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(DANN + "trials: [{method: dann}, {method: source_only, data: {source: digits}}]\n")
    words = [str(tmp_path / "x.yaml"), "data.size=16", "data.channels=1"]
    first = command(str(tmp_path / "data"), *words, program="stage")
    assert first.returncode == 0, first.stderr
    assert sorted(path.name for path in (tmp_path / "data" / "cache").iterdir()) == [
        "digits-16x16x1-v1",
        "mnist5k-16x16x1-v1",
        "mnistm5k-16x16x1-v1",
    ]
    assert len(cache.load("digits", "train", tmp_path / "data", Form(16, 1)).images) == 1297
    for dataset in stage.list_datasets(configs(tmp_path / "x.yaml", *words[1:], f"data.root={tmp_path / 'data'}")):
        assert dataset.is_staged()
        assert f"staging {dataset.name} into {dataset.root}\nstaged {dataset.name} in " in first.stdout
        assert f": {dataset.folder}\n" in first.stdout
    again = command(str(tmp_path / "data"), *words, program="stage")
    assert (again.returncode, again.stdout.count("already staged: "), again.stdout.count("staging")) == (0, 3, 0)


def test_without_a_network_the_command_names_the_missing_file(svhn: Path) -> None:
    result = command("", str(svhn), program="stage", **NO_NETWORK)
    check_refused(result, "x.yaml", "data.source", "train_32x32.mat is missing", "where there is a network")


def test_invalid_input_is_refused(tmp_path: Path) -> None:
    check_refused(command("", str(tmp_path / "x.yaml"), program="stage"), "x.yaml", "No such file")
    (tmp_path / "x.yaml").write_text(DANN)
    check_refused(command("", str(tmp_path / "x.yaml"), "data.sise=3", program="stage"), "data.sise", "'size'")


def test_if_jobs_are_offline_the_weights_of_inception_must_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, weights = tmp_path / "x.yaml", tmp_path / "inception.pth"
    file.write_text("method: vae\ndata: {dataset: digits, size: 28}\neval: {metrics: [fid]}\n")
    monkeypatch.setenv("TURNOUT_INCEPTION", str(weights))
    trials = configs(file, f"data.root={tmp_path}")
    stage_offline = partial(stage.stage_datasets, file, ["train.steps=3"], console=Console(quiet=True), download=False)
    with pytest.raises(ConfigError) as refused:
        stage_offline(trials)
    message = str(refused.value)
    for part in ("eval.metrics: fid", str(weights), f"python jobs/stage.py {file} train.steps=3", "fid_classifier"):
        assert part in message
    assert not (tmp_path / "cache").exists()
    stage_offline(configs(file, f"data.root={tmp_path}", "eval.metrics=[samples]"))
    assert (tmp_path / "cache").exists()
    weights.write_bytes(b"other weights")
    staged = command(str(tmp_path), str(file), program="stage", TURNOUT_INCEPTION=str(weights))
    check_refused(staged, str(weights), "sha256", "remove it")


def test_if_jobs_are_offline_submit_stages_only_bundled_datasets(svhn: Path, tmp_path: Path) -> None:
    words = ["train.seed=[0, 1]"]
    trials = configs(svhn, *words)
    with pytest.raises(ConfigError) as refused:
        stage.stage_datasets(svhn, words, trials, Console(quiet=True), download=False)
    message = str(refused.value)
    assert "data.source: not staged" in message
    assert str(tmp_path / "data/cache/svhn-28x28x3-v1") in message
    assert "mnistm5k" not in message
    assert not (tmp_path / "data").exists(), "nothing is staged that does not suffice"
    # The command in the message helps.
    write_svhn(tmp_path / "data")
    program, script, *arguments = shlex.split(message.partition("with network access: ")[2])
    assert (program, script, arguments) == ("python", "jobs/stage.py", [str(svhn), *words])
    assert command("", *arguments, program="stage", **NO_NETWORK).returncode == 0
    stage.stage_datasets(svhn, words, trials, Console(quiet=True), download=False)
    bundled = configs(svhn, "data.source=mnist5k")
    stage.stage_datasets(svhn, [], bundled, Console(quiet=True), download=False)
    assert all(dataset.is_staged() for dataset in stage.list_datasets(bundled))


def test_nothing_is_downloaded_if_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads: list[str] = []
    monkeypatch.setattr(raw, "_download", lambda dataset, *_: downloads.append(dataset.name))
    for value, expected in (("1", []), ("0", ["svhn"]), ("", ["svhn"])):
        downloads.clear()
        monkeypatch.setenv("TURNOUT_OFFLINE", value)
        with pytest.raises(DataError, match=r"train_32x32.mat is missing"):
            registry.find("svhn").fetch(tmp_path, download=True)
        assert downloads == expected


@pytest.mark.parametrize("slurm", [True, False])
def test_jobs_on_slurm_are_offline(slurm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that the user has set are kept."""
    monkeypatch.delenv("TURNOUT_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    names = ("TURNOUT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    started: list[dict[str, str]] = []
    monkeypatch.setattr("jobs.processes.start", lambda task, variables, *_: started.append(variables))
    task = Task("train", str(tmp_path))
    Worker([task]).start(task, 0, Allocation("7", Attempt("7.0"), offline=slurm), [])
    assert [(os.environ | started[0]).get(n) for n in names] == (["1", "1", "0"] if slurm else [None, None, "0"])
    assert os.environ.get("TURNOUT_OFFLINE") is None
