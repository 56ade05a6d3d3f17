"""The block `search:`: what it resolves to, and every mistake in it as one message with its line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.objective import find_metric, is_maximized, list_objectives
from trainer.config.search import Search, list_checked, load_search
from trainer.config.sweep import load_trials
from trainer.errors import ConfigError

SPACE = {
    "model.lr": {"loguniform": ["1e-4", 0.1]},
    "model.gamma": {"uniform": [1, 20]},
    "train.batch_size": {"integer": [4, 16]},
    "model.net": {"choice": ["slim", "lenet"]},
}
SEARCH = {
    "metric": "validation/accuracy/source",
    "trials": 12,
    "pruner": {"name": "asha", "first": 10, "factor": 3},
    "space": SPACE,
    "enqueue": [{"model.lr": 0.01, "model": {"gamma": 10}}],
}
SWEEP = {
    "name": "s",
    "method": "dann",
    "data": {"source": "mnist5k", "target": "mnistm5k"},
    "train": {"steps": 100},
    "grid": {"train.seed": [0, 1]},
    "search": SEARCH,
}


def load(folder: Path, *words: str, **changes: Any) -> Search:
    file = folder / "s.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in (SWEEP | changes).items() if v is not None}, sort_keys=False))
    search = load_search(file, [*words])
    assert search
    return search


def test_a_search_makes_the_trials_that_a_grid_would(tmp_path: Path) -> None:
    point = {"model.lr": 0.0123456789, "model.gamma": 4.0, "train.batch_size": 8, "model.net": "slim"}
    trials = load(tmp_path).trials(point)
    grid = tmp_path / "grid.yaml"
    model = {"lr": 0.0123457, "gamma": 4.0, "net": "slim"}  # drawn values are rounded to 6 digits, as by `random:`
    content = {k: v for k, v in SWEEP.items() if k != "search"} | {"model": model}
    grid.write_text(yaml.safe_dump(content | {"train": {"steps": 100, "batch_size": 8}}))
    assert [t.identity for t in trials] == [t.identity for t in load_trials(grid, [])]
    assert [t.config.train.seed for t in trials] == [0, 1]
    assert trials[0].label == "dann,seed=0,lr=0.0123457,gamma=4.0,batch_size=8,net=slim"


def test_rungs_are_steps_and_the_last_is_the_trials_own(tmp_path: Path) -> None:
    assert load(tmp_path).rungs() == [10, 30, 90, 100]
    assert load(tmp_path, search=SEARCH | {"pruner": "none"}).rungs() == [100]


def test_a_search_survives_json(tmp_path: Path) -> None:
    search = load(tmp_path, "model.momentum=0.5")
    copy = Search.from_document(json.loads(json.dumps(search.to_document())))
    assert copy == search
    assert copy.trials(copy.starting_points()[0] | {"train.batch_size": 4, "model.net": "slim"})[0].config.train


def test_a_value_on_the_command_line_leaves_less_to_search(tmp_path: Path) -> None:
    search = load(tmp_path, "model.gamma=3", "search.trials=5", search=SEARCH | {"enqueue": []})
    assert "model.gamma" not in search.space
    assert search.options.trials == 5
    assert search.template().model.gamma == 3


def test_corners_and_starting_points_are_what_is_checked(tmp_path: Path) -> None:
    """jobs/submit.py builds the methods of these before it queues slots."""
    configs = list_checked(load(tmp_path, grid=None))
    settings = [(c.model.lr, c.model.gamma, c.train.batch_size, c.model.net) for c in configs]
    assert settings == [
        (1e-4, 1, 4, "slim"),
        *((0.1, 1, 4, "slim"), (1e-4, 20, 4, "slim"), (1e-4, 1, 16, "slim"), (1e-4, 1, 4, "lenet")),
        (0.01, 10, 4, "slim"),
    ]


ENTRIES = [
    {"method": "dann", "space": {"model.gamma": {"uniform": [1, 20]}}},
    {"method": "mcd", "model": {"schedule": "cosine"}, "space": {"model.lr": {"loguniform": [1e-5, 1e-3]}}},
]
SHARED = {"model.lr": {"loguniform": [1e-3, 0.1]}, "model.weight": {"uniform": [0, 1]}}
POINTS = [{"method": "mcd", "model.lr": 1e-4}, {"model.gamma": 10, "model.lr": 0.01}]


def load_entries(folder: Path, entries: Any = ENTRIES, **changes: Any) -> Search:
    return load(folder, method=None, trials=entries, search=SEARCH | {"space": SHARED, "enqueue": POINTS} | changes)


def test_each_entry_of_trials_has_a_space_of_its_own(tmp_path: Path) -> None:
    """What all share reaches the methods that have it, and an entry's own value or range beats it."""
    search = load_entries(tmp_path)
    assert search == Search.from_document(json.loads(json.dumps(search.to_document())))
    assert [*search.dimensions({})] == ["trials"]
    dann, mcd = "dann", "mcd,schedule=cosine"
    assert [*search.dimensions({"trials": dann})] == ["trials", "model.lr", "model.weight", "dann model.gamma"]
    assert [*search.dimensions({"trials": mcd})] == ["trials", f"{mcd} model.lr"]
    assert search.starting_points() == [
        {"trials": mcd, f"{mcd} model.lr": 1e-4},
        {"trials": dann, "dann model.gamma": 10.0, "model.lr": 0.01},
    ]
    first, second = search.trials(search.starting_points()[0])
    assert (first.config.method, first.config.model.lr, first.config.model.schedule) == ("mcd", 1e-4, "cosine")
    assert [first.config.train.seed, second.config.train.seed] == [0, 1]
    grid = tmp_path / "grid.yaml"
    content = {k: v for k, v in SWEEP.items() if k != "search"} | {"method": "mcd"}
    grid.write_text(yaml.safe_dump(content | {"model": {"lr": 1e-4, "schedule": "cosine"}}))
    assert [first.identity, second.identity] == [t.identity for t in load_trials(grid, [])]
    assert {config.method for config in list_checked(search)} == {"dann", "mcd"}


@pytest.mark.parametrize(
    ("entries", "change", "message"),
    [
        ([{"method": "dann", "grid": {"model.gamma": [1, 2]}}], {}, r"grid.model.gamma: .*no axes; use space:"),
        (
            ENTRIES,
            {"space": SHARED | {"model.noise": {"integer": [1, 9]}}},
            r"s.yaml:\d+: search.space.model.noise: ",
        ),
        ([{"method": "dann"}], {"space": {}}, "search.space: is empty"),
        ([*ENTRIES, {"method": "mcd", "train": {"steps": 7}}], {}, "train.steps differs, but a search needs one"),
        (ENTRIES, {"enqueue": [{"method": "gta"}]}, "search.enqueue.0: method: 'gta': no entry of trials: has it"),
        (ENTRIES, {"enqueue": [{"method": "mcd", "model.gamma": 3}]}, "model.gamma: 3: is not in search.space, which"),
        (
            [{"method": "dann", "space": {"model.gamma": {"uniform": [9, 1]}}}],
            {},
            "model.gamma.*low must be less",
        ),
    ],
)
def test_a_mistake_in_an_entry_is_one_message(
    tmp_path: Path, entries: Any, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_entries(tmp_path, entries, **{"enqueue": []} | change)
    assert re.search(message, str(error.value)), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": {}}, r"s.yaml:19: search.space: is empty"),
        ({"space": {"model.lr": {"loguniform": [0, 1]}}}, r"s.yaml:\d+: search.space.model.lr.loguniform: .*than 0"),
        ({"space": {"model.lr": {"uniform": [1, 0.1]}}}, r"s.yaml:\d+: search.space.*low must be less than high"),
        ({"space": {"model.lr": {"normal": [0, 1]}}}, r"s.yaml:\d+: search.space.*must be one of"),
        ({"space": {"model.depth": {"integer": [1, 3]}}}, r"s.yaml:\d+: model.depth: unknown key 'model.depth'"),
        ({"space": {"model.lr": {"uniform": [-1, 1]}}}, r"s.yaml:\d+: model.lr: -1.0: input should be greater than 0"),
        ({"space": {"train.seed": {"integer": [0, 9]}}}, r"train.seed is not searched.*grid: \{train.seed"),
        ({"space": {"eval.samples": {"integer": [1, 9]}}}, r"eval.samples is not searched"),
        ({"trials": 0}, r"s.yaml:\d+: search.trials: 0: input should be greater than 0"),
        ({"trials": None}, r"s.yaml:\d+: search: has no budget; give trials: 24, device_hours: 10, or both"),
        ({"budget": 3}, r"s.yaml:\d+: search.budget: unknown key 'budget'"),
        ({"sampler": "grid"}, r"s.yaml:\d+: search.sampler: 'grid'"),
        ({"sampler": "gp", "trials": 101}, r"s.yaml:\d+: search.sampler: gp: .*needs search.trials: 100 or fewer"),
        ({"pruner": "asha"}, r"s.yaml:\d+: search.pruner: .*needs the step of its first rung"),
        ({"pruner": {"name": "asha", "first": 100}}, r"s.yaml:\d+: search.pruner.first: 100: .*train.steps: 100"),
        ({"enqueue": [{"model.lr": 1.0}]}, r"search.enqueue.0: model.lr: 1.0: must be in"),
        ({"enqueue": [{"model.weight": 1.0}]}, r"search.enqueue.0: model.weight: 1.0: is not in search.space"),
        ({"trials": 1, "enqueue": [{"model.lr": 0.01}] * 2}, r"2 settings are more than search.trials: 1"),
    ],
)
def test_a_mistake_in_the_block_is_one_message(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    changed = SEARCH | change
    if "space" in change:
        changed["enqueue"] = []
    with pytest.raises(ConfigError) as error:
        load(tmp_path, search=changed)
    assert re.search(message, str(error.value)), error.value
    assert "\n" not in str(error.value)


def test_other_axes_beside_a_search_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"s.yaml:\d+: grid.model.gamma: beside search:, only seeds are crossed"):
        load(tmp_path, grid={"model.gamma": [1, 2]})
    with pytest.raises(ConfigError, match=r"differ in more than train.seed"):
        load(tmp_path, "model.weight=[0.5,1]")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("accuracy/source", "is of the test split, which no search may see"),
        ("accuracy/target", "is of the test split"),
        ("oracle/accuracy/target", "an oracle"),
        ("validation/accuracy/target", "needs labels of the target, which dann does not train on: an oracle"),
        ("validation/fid", "no evaluation of dann gives it"),
        ("accuracies", "use one of validation/accuracy/source, validation/information/target"),
    ],
)
def test_a_search_sees_validation_data_without_target_labels(tmp_path: Path, metric: str, message: str) -> None:
    search = load(tmp_path, search=SEARCH | {"metric": metric})
    with pytest.raises(ConfigError, match=rf"s.yaml:\d+: search.metric: {metric}: .*{message}"):
        find_metric(metric, search.template(), search.metric_place)


def test_the_direction_is_the_metrics_own(tmp_path: Path) -> None:
    config = load(tmp_path).template()
    assert is_maximized(find_metric("validation/information/target", config, ""))
    file = tmp_path / "vae.yaml"
    file.write_text("method: vae\ndata: {dataset: mnist5k}")
    assert list_objectives(load_trials(file, [])[0].config)["validation/fid_classifier"] == "fid_classifier"
    assert not is_maximized("fid_classifier")
