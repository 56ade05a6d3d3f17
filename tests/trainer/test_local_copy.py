"""Copies of training data on a disk of the node: checked, made once, and never a reason to fail."""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests import warm
from trainer.data import local_copy
from trainer.data.cache import find, read
from trainer.data.dataset import Form
from trainer.data.local_copy import copy_split
from trainer.runs.directory import RunDirectory

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(data_root: str) -> Path:
    """The folder of a dataset in the cache."""
    return find("mnist5k", Path(data_root), Form(28, 3))


def test_the_copy_has_the_same_content_and_is_made_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    copied: list[Path] = []
    copyfile = shutil.copyfile

    def copy_file(source: Path, target: Path) -> None:
        copied.append(source)
        copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy_file)
    with ThreadPoolExecutor(8) as pool:
        copies = {*pool.map(lambda _: copy_split(folder, "train", "${NODE_DISK}"), range(8))}
    (copy,) = copies
    assert tmp_path in copy.parents
    assert sorted(path.name for path in copied) == ["train_images.npy", "train_labels.npy"]
    assert np.array_equal(read(copy, "train").images, read(folder, "train").images)
    assert np.array_equal(read(copy, "train").labels, read(folder, "train").labels)
    (copy / "train_images.npy").write_bytes(b"cut short")
    assert copy_split(folder, "train", "$NODE_DISK") == copy
    assert np.array_equal(read(copy, "train").images, read(folder, "train").images)
    assert copy_split(folder, "train", None) == folder
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("problem", ["not set", "missing", "full", "damaged", "read-only"])
def test_if_copying_fails_the_shared_disk_is_read(
    folder: Path, tmp_path: Path, problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NODE_DISK", raising=False)
    parent, message = str(tmp_path), problem
    if problem == "not set":
        parent, message = "$NODE_DISK/x", "$NODE_DISK is not set here"
    elif problem == "missing":
        parent, message = str(tmp_path / "nowhere"), "No such file"
    elif problem == "full":
        monkeypatch.setattr(local_copy, "RESERVE", 1 << 60)
        message = "do not fit"
    elif problem == "damaged":
        monkeypatch.setattr("shutil.copyfile", lambda source, target: target.write_bytes(source.read_bytes()[::-1]))
        message = "the copy of train_images.npy differs from what was staged"
    else:
        (tmp_path / "turnout").write_text("a file where a directory should be")
        message = "File exists"
    assert copy_split(folder, "train", parent) == folder
    error = capsys.readouterr().err
    assert message in error
    assert f"reading {folder} instead" in error
    assert not list(tmp_path.glob("turnout/*.npy"))


def test_a_trial_trains_the_same_from_the_copy(tmp_path: Path, data_root: str) -> None:
    weights = []
    for number, words in enumerate(([], ["data.copy_to=$NODE_DISK"])):
        settings = ["train.steps=3", "train.batch_size=8", f"data.root={data_root}", *words]
        runs = tmp_path / str(number)
        command = [sys.executable, "trainer/main.py", "sweeps/dann.yaml", *settings, "--runs", str(runs)]
        environment = os.environ | {"NODE_DISK": str(tmp_path)}
        warm.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=240)
        (path,) = runs.glob("dann/*")
        weights.append((path.name, RunDirectory(path).exported_weights()[3].read_bytes()))
        assert ("copy_to" in RunDirectory(path).config_file.read_text()) == bool(words)
    assert weights[0] == weights[1], "neither name nor weights depend on where the data are read"
    assert len([*tmp_path.glob("turnout/*/train_images.npy")]) == 2
