"""Pairs of datasets for domain adaptation: incompatible or missing ones are refused, and how they are drawn counts."""

from pathlib import Path
from typing import Any

import pytest

from trainer.config.resolve import resolve
from trainer.data import registry
from trainer.data.cache import load, stage
from trainer.data.dataset import Dataset, Form
from trainer.errors import ConfigError, DataError

PAIR = {"source": "mnist5k", "target": "mnistm5k"}


def config(**data: Any) -> Any:
    return resolve({"name": "s", "method": "dann", "data": {**PAIR, **data}}, "s.yaml")


def test_a_target_equal_to_the_source_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"s\.yaml: data\.target: 'mnist5k' is also the source, so there is nothing"):
        config(target="mnist5k")


def test_datasets_with_different_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = Dataset("letters", size=28, channels=1, classes=26, origin="a test")
    monkeypatch.setitem(registry.DATASETS, "letters", letters)
    with pytest.raises(
        ConfigError, match=r"data: mnist5k \(10 classes: 0, .*\) and letters \(26 classes: 0, .*\) have different"
    ):
        config(target="letters")


def test_datasets_of_different_size_need_a_common_size() -> None:
    with pytest.raises(ConfigError, match=r"mnist5k \(28 px, .* and usps \(16 px, .* differ in size; set data\.size"):
        config(target="usps")
    assert config(target="usps", size=28).data.shape() == (1, 28, 10)
    assert config(target="usps", size=28, channels=3).data.shape() == (3, 28, 10)
    assert config(channels=1).data.shape() == (1, 28, 10), "colour becomes grey on demand"


def test_a_missing_domain_split_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data: dann reads 'target_images': give data\.target"):
        config(target=None)
    stage("digits", tmp_path, Form(8, 1))
    with pytest.raises(DataError, match="digits has no split 'valid'; splits: train, validation, test"):
        load("digits", "valid", tmp_path, Form(8, 1))
    (file,) = tmp_path.glob("cache/digits-*/test_images.npy")
    file.unlink()
    with pytest.raises(DataError, match=r"digits is not staged: .* is incomplete"):
        load("digits", "train", tmp_path, Form(8, 1))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"dan": [0.1, 0.2]}, "unknown method 'dan'; did you mean 'dann'"),
        ({"dann": [0.2, 0.1]}, r"must be \[lowest, highest\]"),
        ({"dann": 0.5}, r"eval\.reference\.dann: 0\.5: "),
    ],
)
def test_a_reference_is_a_range_for_an_existing_method(reference: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve({"name": "s", "method": "dann", "data": PAIR, "eval": {"reference": reference}}, "s.yaml")


def test_options_that_change_the_drawn_images_change_the_identity() -> None:
    identities = {config(**more).identity() for more in ({}, {"jitter": 0.2}, {"balanced": True}, {"channels": 1})}
    assert len(identities) == 4
    with pytest.raises(ConfigError, match=r"data\.jitter: 1\.0: "):
        config(jitter=1.0)
