"""The sweep files that ship with Turnout: each resolves, to the trials of version 1; variants take other data."""

import json
from pathlib import Path

import numpy as np
import pytest

import models
from eval.objective import find_metric
from trainer.config.search import load_search
from trainer.config.sweep import Trial, load_trials

ROOT = Path(__file__).parents[1]
SWEEPS = sorted(p for folder in ("sweeps", "sweeps/variants", "sweeps/reports") for p in (ROOT / folder).glob("*.yaml"))
IDENTITIES = json.loads((ROOT / "tests" / "fixtures" / "version1" / "identities.json").read_text())
CHANGED = {
    "mnistm_usps",
    "mnistm_svhn",
    "usps_mnistm",
    "svhn_usps",
}  # other bounds than in version 1, for a fair comparison
FACES = [path for path in SWEEPS if path.stem.endswith("_faces")]


def key(path: Path) -> str:
    return path.relative_to(ROOT / "sweeps").with_suffix("").as_posix()


def is_corrected(trial: Trial) -> bool:
    """Return whether the network of a trial was corrected after version 1, which changes the identity."""
    return models.revision(trial.config.method, trial.config.model_arguments()) > 0


@pytest.mark.parametrize("name", sorted(set(IDENTITIES) - CHANGED))
def test_a_sweep_has_the_trials_of_version_1(name: str) -> None:
    """No trial that version 1 trained is trained again, unless its network was corrected."""
    trials = load_trials(ROOT / "sweeps" / f"{name}.yaml", [])
    assert [trial.label for trial in trials] == [label for label, _ in IDENTITIES[name]]
    for trial, (_, identity) in zip(trials, IDENTITIES[name], strict=True):
        assert (trial.identity != identity) == is_corrected(trial), trial.label


def test_only_these_nets_were_corrected() -> None:
    trials = [trial for path in SWEEPS for trial in load_trials(path, []) if is_corrected(trial)]
    nets = {(trial.config.method, trial.config.model_arguments().get("net", "")) for trial in trials}
    assert nets == {("dcgan", "paper"), ("gta", ""), ("vae_wide", ""), ("ddpm", "attention_unet")}


@pytest.mark.parametrize("name", sorted(CHANGED))
def test_a_sweep_that_was_made_fair_keeps_its_adapted_trials(name: str) -> None:
    """Bounds have other settings than in version 1, or there are more of them; what is adapted keeps its identity."""
    trials = {trial.identity: trial for trial in load_trials(ROOT / "sweeps" / f"{name}.yaml", [])}
    adapted = {identity for label, identity in IDENTITIES[name] if label.startswith("dann,")}
    assert adapted <= set(trials)


@pytest.mark.parametrize("name", sorted(CHANGED))
def test_bounds_share_network_optimizer_and_images_with_dann(name: str) -> None:
    """Those of Generate-To-Adapt have its network, and its images and steps."""
    trials = load_trials(ROOT / "sweeps" / f"{name}.yaml", [])
    bounds = [trial for trial in trials if models.signature(trial.config.method).role]
    assert bounds
    for bound in bounds:
        settings = bound.config.model_arguments()
        peer = "gta" if settings["net"] == "gta" else "dann"
        same = [t for t in trials if (t.config.data, t.config.train) == (bound.config.data, bound.config.train)]
        nets = [t.config.model_arguments() for t in same if t.config.method == peer]
        assert nets, bound.label
        if peer == "dann":
            assert settings in [{key: net[key] for key in settings} for net in nets]


def test_no_sweep_of_version_1_is_lost() -> None:
    assert set(IDENTITIES) <= {key(path) for path in SWEEPS}


@pytest.mark.parametrize("path", [path for path in SWEEPS if path.parent.name == "variants"], ids=key)
def test_a_variant_changes_every_trial_of_its_base(path: Path) -> None:
    base = ROOT / "sweeps" / f"{path.stem.rpartition('_')[0]}.yaml"
    variants, originals = load_trials(path, []), load_trials(base, [])
    assert len(variants) == len(originals)
    assert {trial.identity for trial in variants}.isdisjoint(trial.identity for trial in originals)


def test_the_search_tries_the_papers_setting_first_and_sees_no_label_of_the_target() -> None:
    path = ROOT / "sweeps" / "search_dann.yaml"
    search = load_search(path, [])
    assert search
    assert search.rungs() == [150, 450, 1350]
    assert find_metric(search.options.metric, search.template(), str(path)) == "accuracy"
    (paper,) = search.trials(search.starting_points()[0])
    defaults = models.signature("dann").hyperparameters
    assert paper.config.model_arguments() == {h.name: h.default for h in defaults}
    assert load_search(path, ["name=other", "search.metric=validation/accuracy/source"])


@pytest.mark.parametrize(("name", "rungs"), [("wgan_gp", [100, 300, 900]), ("ddpm", [112, 336, 1000])])
def test_a_search_for_images_goes_by_the_distance_to_the_validation_images(name: str, rungs: list[int]) -> None:
    """It tries the setting of the sweep that shows the method first."""
    search = load_search(ROOT / "sweeps" / f"search_{name}.yaml", [])
    assert search
    assert search.rungs() == rungs
    assert find_metric(search.options.metric, search.template(), "") == "fid_classifier"
    (first,) = search.trials(search.starting_points()[0])
    shown = [trial.config.model_arguments() for trial in load_trials(ROOT / "sweeps" / f"{name}.yaml", [])]
    assert first.config.model_arguments() in shown


@pytest.mark.parametrize("path", FACES, ids=key)
def test_a_variant_for_faces_takes_images_of_the_users_own(path: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "faces.npz", images=np.zeros((4, 64, 64, 3), np.uint8), labels=np.array([0, 1, 0, 1]))
    trials = load_trials(path, [f"data.dataset=npz:{tmp_path}/faces.npz"])
    assert len(trials) == len(load_trials(path, []))
    assert {trial.config.data.dataset for trial in trials} == {f"npz:{tmp_path}/faces.npz"}
    assert all(trial.config.data.flip and trial.config.data.size == 64 for trial in trials)
    assert all({"fid", "face_rate"} <= set(trial.config.eval.metrics) for trial in trials)


@pytest.mark.parametrize("path", SWEEPS, ids=key)
def test_a_sweep_file_opens_with_its_question_command_and_cost(path: Path) -> None:
    header = path.read_text().partition("\nmethod:")[0].split("\n")
    comment = "\n".join(line for line in header if line.startswith("#"))
    assert f"Command:  python jobs/submit.py {path.relative_to(ROOT)}" in comment
    assert "Cost:" in comment
    assert "?" in comment.partition("\n#\n")[0]
