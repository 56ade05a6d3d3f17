"""State and updates of methods match version 1, so that its checkpoints and weights still load."""

import json
from pathlib import Path

import pytest

import models
from models.base import DataSpec

STATES = json.loads((Path(__file__).parents[1] / "fixtures" / "version1" / "state_dicts.json").read_text())


def test_all_methods_of_version_1_exist() -> None:
    assert set(STATES) <= set(models.names())


# Method -> where the layers were corrected after version 1; its trials have another identity.
CORRECTED = {"gta": ("discriminator.layers.",), "vae_wide": ("encoder.", "decoder.")}


@pytest.mark.parametrize("name", sorted(STATES))
def test_state_and_updates_match_version_1(name: str) -> None:
    has_width = any(parameter.name == "width" for parameter in models.signature(name).hyperparameters)
    method = models.load(name)(DataSpec(3, 32, 10), **({"width": 8} if has_width else {}))
    shapes = {key: list(tensor.shape) for key, tensor in method.state_dict().items()}
    expected = STATES[name]["state"]
    different = [key for key in shapes.keys() | expected.keys() if shapes.get(key) != expected.get(key)]
    assert all(key.startswith(CORRECTED.get(name, ())) for key in different)
    assert bool(different) == (name in CORRECTED)
    kept = [key for key in expected if key not in different]
    assert [key for key in shapes if key not in different] == kept  # in the same order
    updates = [[update.name, list(update.trains), update.every] for update in method.updates()]
    assert updates == STATES[name]["updates"]
    assert name not in CORRECTED or models.revision(name, {}) > 0
