"""Before an array is queued, each new setting is built once in a process with torch."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import jobs.plan
import models.checks
from jobs.plan import Submission, build_methods, list_unbuilt
from trainer.config.resolve import resolve
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.runs.directory import RunDirectory


def submission(folder: Path, *configs: Config) -> Submission:
    """Return a submission that trains every config."""
    runs = [RunDirectory(folder / str(number)) for number in range(len(configs))]
    trials = [SimpleNamespace(config=config) for config in configs]
    return cast(Submission, SimpleNamespace(trials=trials, runs=runs, to_train=[*range(len(configs))]))


def config(method: str, **data: Any) -> Config:
    return resolve({"name": "a", "method": method, "data": {"dataset": "mnist5k", **data}}, "a.yaml")


def test_a_setting_that_a_constructor_refuses_is_not_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA", str(tmp_path / "data"))
    monkeypatch.setitem(models.checks.CHECKS, "doublings", lambda size, arguments: None)  # as if it were not declared
    valid, invalid = config("dcgan"), config("dcgan", size=27)
    build_methods([valid, config("vae")], Path("a.yaml"))
    with pytest.raises(ConfigError, match=r"^a\.yaml: model: dcgan cannot be built: .*27 must be .*nothing was queued"):
        build_methods([valid, invalid], Path("a.yaml"))


def test_a_trial_that_has_started_is_not_built_again(tmp_path: Path) -> None:
    started = submission(tmp_path, config("vae"), config("dcgan"))
    started.runs[0].path.mkdir()
    started.runs[0].write_data({"classes": []})
    assert [c.method for c in list_unbuilt(started)] == ["dcgan"]


def test_a_setting_is_built_once_with_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_DATA", str(tmp_path / "data"))
    commands: list[Any] = []

    def run(command: Any, **options: Any) -> SimpleNamespace:
        commands.append(len(json.loads(options["input"])))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr("jobs.plan.subprocess.run", run)
    first, both = [config("vae")], [config("vae"), config("dcgan")]
    for plan in (first, first, both, both):
        build_methods(plan, Path("a.yaml"))
    assert commands == [1, 1], "only what is new"
    monkeypatch.setattr(jobs.plan, "hash_methods", lambda: "after an edit of models/")
    build_methods(both, Path("a.yaml"))
    assert commands == [1, 1, 2]
    (tmp_path / "data" / ".built.json").write_text("{")
    build_methods(first, Path("a.yaml"))
    assert commands == [1, 1, 2, 1]
