"""Staging: the command, what submit refuses where jobs are offline, and that jobs are."""

import os
import shlex
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from jobs import stage
from jobs.backends.slurm.allocation import Allocation
from jobs.worker import Launch
from tests.jobs.test_submit import DANN, check_refused, command
from tests.trainer.test_data import write_svhn
from trainer.config.schema import Config
from trainer.config.sweep import load_trials
from trainer.data import cache, raw
from trainer.data.registry import DATASETS
from trainer.errors import ConfigError, DataError

NOBODY = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https", "ftp")}


def configs(file: Path, *words: str) -> list[Config]:
    return [trial.config for trial in load_trials(file, list(words))]


@pytest.fixture
def svhn(tmp_path: Path) -> Path:
    """A sweep file that needs a set which no package brings."""
    file = tmp_path / "x.yaml"
    file.write_text(f"method: dann\ndata: {{source: svhn, target: mnistm5k, size: 28, root: {tmp_path / 'data'}}}\n")
    return file


def test_the_command_stages_what_the_trials_read_and_says_where(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(DANN + "trials: [{method: dann}, {method: source_only, data: {source: digits}}]\n")
    words = [str(tmp_path / "x.yaml"), "data.size=14", "data.channels=1"]
    first = command(str(tmp_path / "data"), *words, program="stage")
    assert first.returncode == 0, first.stderr
    assert sorted(path.name for path in (tmp_path / "data" / "cache").iterdir()) == [
        "digits-14x14x1-v1",
        "mnist5k-14x14x1-v1",
        "mnistm5k-14x14x1-v1",
    ]
    assert len(cache.load("digits", "train", tmp_path / "data", 14, 1).images) == 1297
    for one in stage.needed(configs(tmp_path / "x.yaml", *words[1:], f"data.root={tmp_path / 'data'}")):
        assert one.staged
        assert f"staging {one.name} into {one.root}\nstaged {one.name} in " in first.stdout
        assert f": {one.folder}\n" in first.stdout
    again = command(str(tmp_path / "data"), *words, program="stage")
    assert (again.returncode, again.stdout.count("there already: "), again.stdout.count("staging")) == (0, 3, 0)


def test_without_a_network_the_command_says_what_is_missing(svhn: Path) -> None:
    result = command("", str(svhn), program="stage", **NOBODY)
    check_refused(result, "x.yaml", "data.source", "train_32x32.mat is missing", "where there is a network")


def test_bad_input_is_refused_as_by_submit(tmp_path: Path) -> None:
    check_refused(command("", str(tmp_path / "x.yaml"), program="stage"), "x.yaml", "No such file")
    (tmp_path / "x.yaml").write_text(DANN)
    check_refused(command("", str(tmp_path / "x.yaml"), "data.sise=3", program="stage"), "data.sise", "'size'")


def test_where_jobs_are_offline_the_weights_of_inception_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, weights = tmp_path / "x.yaml", tmp_path / "inception.pth"
    file.write_text("method: vae\ndata: {dataset: digits, size: 28}\neval: {metrics: [fid]}\n")
    monkeypatch.setenv("TURNOUT_INCEPTION", str(weights))
    trials, ready = configs(file, f"data.root={tmp_path}"), partial(stage.make_ready, file, ["train.steps=3"])
    with pytest.raises(ConfigError) as refused:
        ready(trials, False, Console(quiet=True))
    message = str(refused.value)
    for part in ("eval.metrics: fid", str(weights), f"python jobs/stage.py {file} train.steps=3", "fid_classifier"):
        assert part in message
    assert not (tmp_path / "cache").exists()
    ready(configs(file, f"data.root={tmp_path}", "eval.metrics=[samples]"), False, Console(quiet=True))
    assert (tmp_path / "cache").exists()
    weights.write_bytes(b"others")
    staged = command(str(tmp_path), str(file), program="stage", TURNOUT_INCEPTION=str(weights))
    check_refused(staged, str(weights), "sha256", "remove it")


def test_where_jobs_are_offline_only_what_comes_with_packages_is_staged(svhn: Path, tmp_path: Path) -> None:
    words = ["train.seed=[0, 1]"]
    trials = configs(svhn, *words)
    with pytest.raises(ConfigError) as refused:
        stage.make_ready(svhn, words, trials, False, Console(quiet=True))
    message = str(refused.value)
    assert "data.source: not staged" in message
    assert str(tmp_path / "data/cache/svhn-28x28x3-v1") in message
    assert "mnistm5k" not in message
    assert not (tmp_path / "data").exists(), "nothing is begun that does not help"
    # The command that it names is the one that helps.
    write_svhn(tmp_path / "data")
    program, script, *arguments = shlex.split(message.partition("where there is a network: ")[2])
    assert (program, script, arguments) == ("python", "jobs/stage.py", [str(svhn), *words])
    assert command("", *arguments, program="stage", **NOBODY).returncode == 0
    stage.make_ready(svhn, words, trials, False, Console(quiet=True))
    embedded = configs(svhn, "data.source=mnist5k")
    stage.make_ready(svhn, [], embedded, False, Console(quiet=True))
    assert all(one.staged for one in stage.needed(embedded))


def test_offline_means_that_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(raw, "_download", lambda dataset, *_: tried.append(dataset.name))
    for value, expected in (("1", []), ("0", ["svhn"]), ("", ["svhn"])):
        tried.clear()
        monkeypatch.setenv("TURNOUT_OFFLINE", value)
        with pytest.raises(DataError, match=r"train_32x32.mat is missing"):
            raw.fetch(DATASETS["svhn"], tmp_path, download=True)
        assert tried == expected


@pytest.mark.parametrize("slurm", [True, False])
def test_jobs_on_slurm_are_offline(slurm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the user has said otherwise."""
    monkeypatch.delenv("TURNOUT_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    names = ("TURNOUT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    told = tmp_path / "told"
    code = f"import os, pathlib; pathlib.Path({str(told)!r}).write_text(str([os.environ.get(n) for n in {names}]))"
    assert Launch("train", []).follow(["-c", code], Allocation("7", "7.0", slurm=slurm), None) == 0
    assert told.read_text() == str(["1", "1", "0"] if slurm else [None, None, "0"])
    assert os.environ.get("TURNOUT_OFFLINE") is None
