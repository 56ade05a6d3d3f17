"""A dataset that changes between trials: resuming, evaluating, submitting and tabling notice it."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from eval.reporting.results import read_sweep
from eval.reporting.tables import format_markdown
from eval.trial import TrainedTrial
from jobs.plan import Submission, check_data
from trainer.config.resolve import resolve
from trainer.config.schema import Config
from trainer.data import registry
from trainer.data.cache import folder, stage
from trainer.data.dataset import Findings, Form
from trainer.errors import ConfigError, DataError
from trainer.runs.atomic import write_json
from trainer.runs.attempt import Attempt
from trainer.runs.directory import RunDirectory
from trainer.session import record_data

IMAGES = np.random.RandomState(0).randint(0, 256, (40, 8, 8), np.uint8)


def write(root: Path, labels: np.ndarray) -> Config:
    """Write and stage a dataset; return the config of a trial on it."""
    np.savez(root / "set.npz", images=IMAGES, labels=labels)
    registry.find.cache_clear()  # what another process would read
    data = {"dataset": f"npz:{root}/set.npz", "root": str(root / "data")}
    config = resolve({"name": "a", "method": "classifier", "data": data}, "a.yaml")
    shutil.rmtree(root / "data", ignore_errors=True)
    stage(data["dataset"], root / "data", form=config.data.form())
    return config


def start(path: Path, config: Config, step: int) -> RunDirectory:
    """Create the directory of a trial that has a checkpoint, if `step` > 0."""
    run = RunDirectory(path)
    path.mkdir(parents=True)
    run.config_file.write_text(config.to_yaml())
    record_data(run, config)
    if step:
        run.latest_file.write_text(f"step-{step:06d}\n")
    return run


def test_a_trial_is_not_resumed_on_other_data(tmp_path: Path) -> None:
    before = write(tmp_path, np.arange(40) % 2)
    started, untouched = start(tmp_path / "b", before, 3), start(tmp_path / "c", before, 0)
    record = started.data()
    assert record["classes"] == ["0", "1"]
    assert record["domains"]["dataset"]["splits"] == {"train": 33, "validation": 3, "test": 4}
    record_data(started, before)  # the same data
    after = write(tmp_path, np.arange(40) // 20)
    message = rf"^{tmp_path}/b: data\.dataset: npz:.*/set\.npz has changed \(40 images, \w+ → 40 images, \w+\) since"
    with pytest.raises(ConfigError, match=message):
        record_data(started, after)
    assert started.data() == record
    record_data(untouched, after)
    assert untouched.data() != record
    record_data(started, write(tmp_path, np.arange(40) % 2))  # restored: the content counts, not the date


@pytest.mark.parametrize("file", ["train_labels.npy", "train_images.npy"])
def test_a_trial_is_not_started_on_a_damaged_cache(tmp_path: Path, file: str) -> None:
    config = write(tmp_path, np.arange(40) % 2)
    (damaged,) = (tmp_path / "data" / "cache").glob(f"*/{file}")
    with damaged.open("r+b") as opened:
        opened.seek(-3, 2)
        opened.write(b"\1\2\3")
    with pytest.raises(DataError, match=rf"^{damaged}: differs from what was staged; remove .* and stage it again"):
        start(tmp_path / "b", config, 0)


def test_a_trial_is_not_evaluated_on_other_data(tmp_path: Path) -> None:
    config = write(tmp_path, np.arange(40) % 2)
    run = start(tmp_path / "b", config, 3)
    trial = TrainedTrial(run, config, {}, 3, cast(Any, None), torch.device("cpu"), tmp_path)
    assert len(trial.arrays("", "test").labels) == 4
    write(tmp_path, np.arange(40) // 20)
    with pytest.raises(
        DataError, match=rf"^{tmp_path}/b: was trained on other data than .* holds \(\w+, not \w+\); re"
    ):
        trial.arrays("", "test")


def test_a_sweep_is_not_continued_on_other_data(tmp_path: Path) -> None:
    config = write(tmp_path, np.arange(40) % 2)
    runs = [start(tmp_path / "b", config, 3), RunDirectory(tmp_path / "c")]
    submission = cast(Submission, SimpleNamespace(trials=[SimpleNamespace(config=config)] * 2, runs=runs))
    check_data(submission)
    write(tmp_path, np.arange(40) // 20)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/b: data\.dataset: .*cannot stand beside new ones; restore"):
        check_data(submission)
    shutil.rmtree(folder(config.data.dataset or "", tmp_path / "data", form=config.data.form()))
    check_data(submission)  # not staged: nothing is trained on it now


def test_renamed_classes_are_noticed_though_pixels_and_labels_are_the_same(tmp_path: Path) -> None:
    started = start(tmp_path / "b", write(tmp_path, np.array(["cat", "dog"] * 20)), 3)
    renamed = write(tmp_path, np.array(["cow", "dog"] * 20))
    with pytest.raises(ConfigError, match=r"/b: data: the names of classes have changed \(cat, dog → cow, dog\) since"):
        record_data(started, renamed)


def test_a_set_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    source = registry.find(write(tmp_path, np.array(["cat", "dog"] * 20)).data.dataset or "")
    source.describe()
    np.savez(tmp_path / "set.npz", images=IMAGES, labels=np.array(["cow", "dog"] * 20))
    with pytest.raises(DataError, match=r"set\.npz: class 'cow' has appeared while it was read; run the same command"):
        source.decode(tmp_path, Form(8, 1), Findings())


def test_trials_on_different_data_are_not_averaged(tmp_path: Path) -> None:
    for seed, labels in enumerate((np.arange(40) % 2, np.arange(40) % 2, np.arange(40) // 20)):
        config = write(tmp_path, labels)
        config = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
        run = start(tmp_path / "sweep" / f"classifier,seed={seed}", config, 3)
        run.finish(Attempt("1"), 3)
        run.evaluation_directory.mkdir()
        write_json(run.evaluation_file, {"step": 3, "metrics": {"accuracy": 0.5 + seed / 10}, "provenance": {}})
    sweep = read_sweep(tmp_path / "sweep")
    assert sweep.keys == ["data.dataset.content"]
    assert sorted(len(setting.trials) for setting in sweep.settings) == [1, 2]
    assert all(setting.label.startswith("classifier · content ") for setting in sweep.settings)
    assert re.search(r"\| 0\.55\d* ± 0\.07\d* +\|", format_markdown(sweep, [], []))
