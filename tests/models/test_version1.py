"""State and updates of methods match version 1, so that its checkpoints and weights still load."""

import json
from pathlib import Path

import pytest

import models
from models.base import DataSpec

STATES = json.loads((Path(__file__).parents[1] / "fixtures" / "version1" / "state_dicts.json").read_text())


def test_all_methods_of_version_1_exist() -> None:
    assert set(STATES) <= set(models.names())


@pytest.mark.parametrize("name", sorted(STATES))
def test_state_and_updates_match_version_1(name: str) -> None:
    has_width = any(parameter.name == "width" for parameter in models.signature(name).hyperparameters)
    method = models.load(name)(DataSpec(3, 32, 10), **({"width": 8} if has_width else {}))
    shapes = {key: list(tensor.shape) for key, tensor in method.state_dict().items()}
    assert list(shapes.items()) == list(STATES[name]["state"].items())
    updates = [[update.name, list(update.trains), update.every] for update in method.updates()]
    assert updates == STATES[name]["updates"]
