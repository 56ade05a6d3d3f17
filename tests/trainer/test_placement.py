"""Which run directory belongs to which trial, also after a method has got another hyperparameter."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import models
from tests import warm
from trainer.config import resolve
from trainer.config.document import flatten
from trainer.config.schema import compute_identity
from trainer.config.sweep import Trial, load_trials
from trainer.errors import ConfigError
from trainer.runs import placement
from trainer.runs.directory import RunDirectory
from trainer.runs.placement import compute_written_identity, create_run_directories, locate_trials

ROOT = Path(__file__).parents[2]
VERSION_1 = ROOT / "tests" / "fixtures" / "version1"
HALF_TRAINED = "vae,kl_weight=0.001,seed=0-61227988"  # stopped at step 70 of 120
SHARED: dict[str, Any] = {"method": "dann", "data": {"source": "mnist5k", "target": "mnistm5k"}}

Load = Callable[..., list[Trial]]
Add = Callable[[str, str, Any], None]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write the keyword arguments as a sweep file over SHARED and load it under `key=value` words."""

    def write_and_load(*words: str, **content: Any) -> list[Trial]:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(SHARED | content))
        return load_trials(path, list(words))

    return write_and_load


def clear_caches() -> None:
    for function in (resolve.model_schema, resolve.config_schema, placement._read_config):
        function.cache_clear()


@pytest.fixture
def add_hyperparameter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Add]:
    """Give a method another hyperparameter: add_hyperparameter("dann", "warmup", 0.0)."""

    def add(method: str, name: str, default: Any) -> None:
        read, old = models.signature, models.signature(method)
        hyperparameters = (*old.hyperparameters, models.Hyperparameter(name, float, default, ""))
        monkeypatch.setattr(
            models,
            "signature",
            lambda other: replace(old, hyperparameters=hyperparameters) if other == method else read(other),
        )
        clear_caches()

    yield add
    clear_caches()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# By name and by identity


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"lr": "1e-2"}},
        {"model.lr": 0.010},
        {"model": {"gamma": 10, "weight": 1}},
        {"train": {"precision": False, "steps": "1000", "clip": 0}},  # as YAML reads `precision: no`
        {"data.size": 28, "data.channels": 3},
        {"train.seed": 0, "eval.metrics": ["accuracy"], "resources.gpus_per_node": 8, "train.log_every": 7},
        {"train": None, "model": None, "grid": None, "trials": None},
        {"grid": {"train.seed": [0]}},
    ],
)
def test_the_same_settings_in_other_words_are_the_same_trial(
    load: Load, tmp_path: Path, content: dict[str, Any]
) -> None:
    plain, reworded = load(), load(**content)
    assert [t.identity for t in reworded] == [t.identity for t in plain]
    (path,) = create_run_directories(tmp_path / "logs", plain)
    assert create_run_directories(tmp_path / "logs", reworded) == [path]
    assert names(tmp_path / "logs") == [path.name]


def test_config_yaml_contains_every_setting_of_the_trial(load: Load, tmp_path: Path) -> None:
    trials = load(
        grid={"model.lr": ["1e-4", 0.1], "train.precision": [False, "bf16"]}, resources={"slurm": {"qos": "a"}}
    )
    for trial, path in zip(trials, create_run_directories(tmp_path / "logs", trials), strict=True):
        document = RunDirectory(path).config()
        assert resolve.load_config(path / "config.yaml") == trial.config
        assert None not in flatten({block: document[block] for block in ("model", "train")}).values()
        assert (document["data"]["size"], document["data"]["channels"]) == (28, 3)
        assert compute_written_identity(RunDirectory(path)) == trial.identity


def test_locating_trials_writes_nothing(load: Load, tmp_path: Path) -> None:
    (path,) = locate_trials(tmp_path / "logs", load())
    assert path == tmp_path / "logs" / load()[0].name
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("function", [locate_trials, create_run_directories])
def test_a_directory_with_another_config_is_refused_and_left_unchanged(
    load: Load, tmp_path: Path, function: Callable[..., list[Path]]
) -> None:
    trials = load()
    (path,) = create_run_directories(tmp_path / "logs", trials)
    other = load("train.seed=5")[0].config.to_yaml()
    (path / "config.yaml").write_text(other)
    with pytest.raises(ConfigError, match=rf"^{path}: was made by another config .*move it away, or change name:"):
        function(tmp_path / "logs", trials)
    assert (path / "config.yaml").read_text() == other


def test_config_yaml_of_version_1_is_reproduced_byte_for_byte(tmp_path: Path) -> None:
    shutil.copytree(VERSION_1 / "sweep", tmp_path / "fixture")
    shutil.copy(VERSION_1 / "sweep" / "sweep.yaml", tmp_path / "fixture.yaml")
    trials = load_trials(tmp_path / "fixture.yaml", [])
    before = {path: path.read_bytes() for path in (tmp_path / "fixture").rglob("*") if path.is_file()}
    for trial, path in zip(trials, create_run_directories(tmp_path / "fixture", trials), strict=True):
        assert (path / "config.yaml").read_text() == trial.config.to_yaml()
    assert {path: path.read_bytes() for path in (tmp_path / "fixture").rglob("*") if path.is_file()} == before


def test_a_config_written_by_hand_keeps_its_settings_when_resources_change(load: Load, tmp_path: Path) -> None:
    (trial,) = load(resources={"mem_gb": 3})
    path = tmp_path / "logs" / f"mine-{trial.identity}"
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("name: mine\nmethod: dann\ndata.source: mnist5k\ndata: {target: mnistm5k}\n")
    identity = compute_written_identity(RunDirectory(path))
    assert create_run_directories(tmp_path / "logs", [trial]) == [path]
    assert resolve.load_config(path / "config.yaml") == trial.config
    assert compute_written_identity(RunDirectory(path)) == identity != trial.identity


# After a method has got another hyperparameter


def test_a_trial_keeps_its_directory_when_a_hyperparameter_is_added(
    load: Load, tmp_path: Path, add_hyperparameter: Add
) -> None:
    before = load(grid={"model.gamma": [1, 2]})
    paths = create_run_directories(tmp_path / "logs", before)
    texts = [(path / "config.yaml").read_text() for path in paths]
    add_hyperparameter("dann", "warmup", 0.0)
    after = load(grid={"model.gamma": [2, 1]})
    assert not {t.identity for t in before} & {t.identity for t in after}
    assert locate_trials(tmp_path / "logs", after) == paths[::-1]
    assert create_run_directories(tmp_path / "logs", after) == paths[::-1]
    assert [(path / "config.yaml").read_text() for path in paths] == texts
    add_hyperparameter("dann", "dropout", 0.5)
    assert create_run_directories(tmp_path / "logs", load(grid={"model.gamma": [1, 2]})) == paths
    assert names(tmp_path / "logs") == sorted(path.name for path in paths)


def test_other_resources_change_config_yaml_but_not_the_settings_of_its_identity(
    load: Load, tmp_path: Path, add_hyperparameter: Add
) -> None:
    (path,) = create_run_directories(tmp_path / "logs", load())
    document = RunDirectory(path).config()
    add_hyperparameter("dann", "warmup", 0.0)
    changed = load("resources.mem_gb=3", "eval.metrics=[accuracy]", "train.log_every=7", "data.root=/data")
    assert create_run_directories(tmp_path / "logs", changed) == [path]
    document["resources"]["mem_gb"], document["eval"]["metrics"] = 3.0, ["accuracy"]
    document["train"]["log_every"], document["data"]["root"] = 7, "/data"
    assert RunDirectory(path).config() == document
    assert path.name.endswith(compute_written_identity(RunDirectory(path)))
    assert resolve.load_config(path / "config.yaml") == changed[0].config


def test_another_value_of_the_added_hyperparameter_is_another_trial(
    load: Load, tmp_path: Path, add_hyperparameter: Add
) -> None:
    (path,) = create_run_directories(tmp_path / "logs", load())
    add_hyperparameter("dann", "warmup", 0.0)
    old, new = create_run_directories(tmp_path / "logs", load(grid={"model.warmup": [0.0, 0.5]}))
    assert (old, new.name.partition("-")[0]) == (path, "dann,warmup=0.5")
    assert "warmup" not in RunDirectory(old).config()["model"]
    assert RunDirectory(new).config()["model"]["warmup"] == 0.5


def test_a_directory_of_todays_identity_is_preferred_to_an_older_one(
    load: Load, tmp_path: Path, add_hyperparameter: Add
) -> None:
    create_run_directories(tmp_path / "old", load())
    add_hyperparameter("dann", "warmup", 0.0)
    (path,) = create_run_directories(tmp_path / "logs", load())
    shutil.copytree(tmp_path / "old", tmp_path / "logs", dirs_exist_ok=True)
    assert len(names(tmp_path / "logs")) == 2
    assert create_run_directories(tmp_path / "logs", load()) == [path]


def test_a_config_edited_by_hand_belongs_to_no_trial(load: Load, tmp_path: Path, add_hyperparameter: Add) -> None:
    (path,) = create_run_directories(tmp_path / "logs", load("model.gamma=1"))
    file = path / "config.yaml"
    file.write_text(file.read_text().replace("gamma: 1.0", "gamma: 2.0"))
    add_hyperparameter("dann", "warmup", 0.0)
    trials = load(grid={"model.gamma": [1, 2]})
    assert locate_trials(tmp_path / "logs", trials) == [tmp_path / "logs" / trial.name for trial in trials]


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "method: dann\n", "7: 1\nmethod: dan\n"])
def test_directories_of_other_trials_are_not_matched(load: Load, tmp_path: Path, text: str) -> None:
    (trial,) = load()
    for name in ("report", "slurm", "notes-cafe0123"):
        (tmp_path / "logs" / name).mkdir(parents=True)
        (tmp_path / "logs" / name / "config.yaml").write_text(text)
    (tmp_path / "logs" / "file-cafe0124").touch()
    (tmp_path / "logs" / "empty-cafe0125").mkdir()
    assert locate_trials(tmp_path / "logs", [trial]) == [tmp_path / "logs" / trial.name]


def test_3000_older_directories_are_matched(load: Load, tmp_path: Path, add_hyperparameter: Add) -> None:
    grid = {"model.gamma": [1, 2, 3], "train.seed": list(range(1000))}
    paths = create_run_directories(tmp_path / "logs", load(grid=grid))
    add_hyperparameter("dann", "warmup", 0.0)
    trials = load(grid=grid)
    assert not {path.name for path in paths} & {trial.name for trial in trials}
    assert create_run_directories(tmp_path / "logs", trials) == paths
    assert len(names(tmp_path / "logs")) == 3000


# A trial that version 1 left half trained


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project in which the method vae has another hyperparameter."""
    copy = tmp_path_factory.mktemp("checkout")
    for room in ("eval", "jobs", "models", "trainer"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    method = copy / "models" / "vae.py"
    before, end, after = method.read_text().partition("    ) -> None:\n")
    method.write_text(f"{before}        warmup: NonNegativeFloat = 0.0,  # not used\n{end}{after}")
    shutil.copy(VERSION_1 / "sweep" / "sweep.yaml", copy / "fixture.yaml")
    return copy


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Return a copy of version 1's sweep directory, logs/fixture."""
    sweep = Path(shutil.copytree(VERSION_1 / "sweep", tmp_path / "logs" / "fixture"))
    for file in sweep.glob("*/eval/metrics.json"):
        file.touch()  # It must be newer than the weights, but a checkout is written in any order.
    return sweep


def run(checkout: Path, sweep: Path, *command: str, code: int = 0) -> str:
    """Run a command in the copy, for run directories beside `sweep`; return its output."""
    environment = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "TURNOUT_DATA": str(checkout / "data")}
    words = [sys.executable, *command, "--runs", str(sweep.parent)]
    result = warm.run(
        words, cwd=checkout, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def check_finished(path: Path) -> None:
    """Check that the half-trained trial was resumed at step 70 and ends as in version 1."""
    assert [line["step"] for line in RunDirectory(path).metrics()] == [20, 40, 60, 80, 100, 120]
    weights = load_file(path / "weights" / "step-000120.safetensors")
    expected = load_file(VERSION_1 / "expected" / "step-000120.safetensors")
    assert set(weights) == set(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert (path / "config.yaml").read_bytes() == (VERSION_1 / "sweep" / path.name / "config.yaml").read_bytes()


def test_the_trainer_resumes_a_trial_of_the_old_signature(checkout: Path, sweep: Path) -> None:
    before = names(sweep)
    run(checkout, sweep, "trainer/main.py", "fixture.yaml", "model.kl_weight=1e-3")
    check_finished(sweep / HALF_TRAINED)
    files = sorted((sweep / HALF_TRAINED).glob("checkpoints/*/manifest.json"))
    manifests = [json.loads(file.read_text()) for file in files]
    assert [(m["step"], m["identity"]) for m in manifests] == [(70, "61227988"), (80, "61227988")]
    assert names(sweep) == before


def test_submit_resumes_and_evaluates_a_trial_of_the_old_signature(checkout: Path, sweep: Path) -> None:
    before = {path.name for path in sweep.glob("vae*")}
    output = run(checkout, sweep, "jobs/submit.py", "fixture.yaml", "--cluster", "local")
    assert "2 trials (1 done, 1 stopped); 1 to train, 0 to evaluate" in output
    check_finished(sweep / HALF_TRAINED)
    assert RunDirectory(sweep / HALF_TRAINED).evaluation()["step"] == 120
    assert not RunDirectory(sweep / HALF_TRAINED).checkpoints.exists(), "it is finished and evaluated"
    assert {path.name for path in sweep.glob("vae*")} == before
    output = run(checkout, sweep, "jobs/submit.py", "fixture.yaml", "model.warmup=0.5", "--dry-run")
    assert "2 trials (2 pending)" in output
    output = run(checkout, sweep, "jobs/submit.py", "fixture.yaml", "model.warmup=0", "--dry-run")
    assert "2 trials (2 done); 0 to train, 0 to evaluate" in output


def test_a_half_trained_trial_whose_config_was_edited_is_refused(checkout: Path, sweep: Path) -> None:
    file = sweep / HALF_TRAINED / "config.yaml"
    file.write_text(file.read_text().replace("kl_weight: 0.001", "kl_weight: 0.002"))
    output = run(checkout, sweep, "trainer/main.py", str(file.parent), code=2)
    assert "step-000070: belongs to another config (61227988, not " in output
    assert compute_identity(RunDirectory(file.parent).config()) in output
    output = run(checkout, sweep, "jobs/submit.py", "fixture.yaml", "model.kl_weight=0.002", "--dry-run")
    assert "1 trials (1 pending)" in output
