"""The sweep grammar: which trials a file and a command line make, what identifies a trial, and how it is called."""

import math
import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import models
from trainer.config.document import flatten, merge, nest, read_settings, to_settings
from trainer.config.resolve import resolve
from trainer.config.schema import Config
from trainer.config.sweep import Trial, load_single_trial, load_trials, make_label
from trainer.errors import ConfigError
from trainer.runs.placement import create_run_directories, locate_trials

ROOT = Path(__file__).parents[2]
SHARED: dict[str, Any] = {"method": "dann", "data": {"source": "mnist5k", "target": "mnistm5k"}}
OUTSIDE = {"name", "data.root", "train.log_every", "train.checkpoint_every", "train.export_every"}  # and two sections

Load = Callable[..., list[Trial]]


@pytest.fixture
def trials(tmp_path: Path) -> Load:
    """Write the keyword arguments as a sweep file over SHARED and load it under `key=value` words."""

    def write_and_load(*words: str, **content: Any) -> list[Trial]:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(SHARED | content))
        return load_trials(path, list(words))

    return write_and_load


def values(trials: list[Trial], *keys: str) -> list[Any]:
    """Per trial the value of a key, or the tuple of several."""
    rows = [flatten(trial.config.model_dump()) for trial in trials]
    return [tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]] for row in rows]


# Axes


def test_a_grid_is_the_cartesian_product(trials: Load) -> None:
    found = trials(grid={"model.gamma": [1, 5, 10], "train.seed": [0, 1]})
    assert values(found, "model.gamma", "train.seed") == list(product([1, 5, 10], [0, 1]))
    assert trials(grid={"model": {"gamma": [1, 5, 10]}, "train": {"seed": [0, 1]}}) == found


def test_zipped_values_go_together_and_are_crossed_with_the_grid(trials: Load) -> None:
    found = trials(zip={"model.gamma": [1, 5], "train.steps": [10, 50]}, grid={"train.seed": [0, 1]})
    rows = values(found, "model.gamma", "train.steps", "train.seed")
    assert sorted(rows) == [(1, 10, 0), (1, 10, 1), (5, 50, 0), (5, 50, 1)]


def test_a_block_may_be_swept_and_goes_over_the_one_that_is_there(trials: Load) -> None:
    found = trials("data.size=32", grid={"data": [{"source": "usps", "size": 30}, {"target": "svhn"}]})
    expected = [("usps", "mnistm5k", 32), ("mnist5k", "svhn", 32)]
    assert values(found, "data.source", "data.target", "data.size") == expected


def test_methods_are_swept_each_with_the_keys_that_it_has(trials: Load) -> None:
    found = trials(grid={"method": ["dann", "source_only"], "model.gamma": [1, 5], "train.seed": [0, 1]})
    assert [t.config.method for t in found] == ["dann"] * 4 + ["source_only"] * 2
    assert trials("method=[dann,source_only]", grid={"model.gamma": [1, 5], "train.seed": [0, 1]}) == found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"zip": {"model.gamma": [1, 5], "train.seed": [0, 1, 2]}},
            r"zip\.model\.gamma: .* same length, but have model\.gamma 2, train\.seed 3",
        ),
        ({"zip": {"model.gamma": [1, 5], "method": ["dann", "source_only"]}}, r"zip\.method: .*trials:"),
        ({"grid": {"train.seed": 3}}, r"grid\.train\.seed: 3: must be a list"),
        ({"grid": {"train.seed": []}}, r"grid\.train\.seed: \[\]: must be a list of at least one"),
        ({"grid": [1]}, r"grid: must be a mapping"),
        ({"grid": {"train.seed": [0]}, "zip": {"train.seed": [1]}}, r"zip\.train\.seed: is swept twice"),
        ({"grid": {"train.seed": [0, 1, 0]}}, r"two trials are the same: dann,seed=0 and dann,seed=0"),
        ({"grid": {"train.log_every": [1, 2]}}, r"two trials are the same"),
        ({"trials": []}, r"trials: must be a list of mappings"),
        ({"trials": {"method": "dann"}}, r"trials: must be a list of mappings"),
        ({"trials": [{"train.seed": 1}, {"name": "b"}]}, r"name: 'b': the sweep has one name"),
        ({"trials": [{"base": "x.yaml"}, {}]}, r"trials\[0\]: base: only allowed at the top level"),
        ({"random": {"model.lr": {"uniform": [0, 1]}}}, r"random\.draws: None"),
        ({"random": {"draws": True, "model.lr": {"uniform": [0, 1]}}}, r"random\.draws: True"),
        ({"random": {"draws": 3}}, r"random: draws no key"),
        ({"random": {"draws": 3, "model.lr": [0, 1]}}, r"random\.model\.lr: \[0, 1\]: must be one of"),
        ({"random": {"draws": 3, "model.lr": {"normal": [0, 1]}}}, r"random\.model\.lr\.normal: .*loguniform"),
        ({"random": {"draws": 3, "model.lr": {"uniform": [1, 0]}}}, r"uniform: \[1, 0\]: low must be less"),
        ({"random": {"draws": 3, "model.lr": {"uniform": [0, 1, 2]}}}, r"must be \[low, high\]"),
        ({"random": {"draws": 3, "model.lr": {"uniform": ["a", "b"]}}}, r"uniform: \['a', 'b'\]: could not convert"),
        ({"random": {"draws": 3, "model.lr": {"uniform": [0, math.inf]}}}, r"low must be less"),
        ({"random": {"draws": 3, "model.lr": {"loguniform": [0, 1]}}}, r"low must be greater than 0"),
        ({"random": {"draws": 3, "train.seed": {"integer": [0.5, 3]}}}, r"must be whole numbers"),
        ({"random": {"draws": 3, "model.net": {"choice": []}}}, r"choice: \[\]: must contain at least one"),
        ({"random": {"draws": 3, "model.net": {"choice": "lenet"}}}, r"choice: 'lenet': must be a list"),
    ],
)
def test_a_bad_axis_is_an_error_that_names_it(trials: Load, content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^\S*sweep\.yaml(:\d+)?: .*{message}"):
        trials(**content)


# Chance


def drawn(trials: Load, count: int, **specs: Any) -> list[Any]:
    spec = {"model.lr": {"loguniform": ["1e-5", 1e-2]}}
    return values(trials(random={"draws": count, **(spec | specs)}), "model.lr")


def test_a_draw_depends_on_seed_key_and_number_alone(trials: Load) -> None:
    five = drawn(trials, 5)
    assert len(set(five)) == 5
    assert drawn(trials, 5) == five
    assert drawn(trials, 20)[:5] == five
    assert drawn(trials, 5, **{"model.gamma": {"uniform": [1, 2]}}) == five
    assert not set(drawn(trials, 5, seed=1)) & set(five)
    both = trials(random={"draws": 5, "model.gamma": {"uniform": [0.1, 0.9]}, "model.weight": {"uniform": [0.1, 0.9]}})
    assert all(gamma != weight for gamma, weight in values(both, "model.gamma", "model.weight"))


@pytest.mark.parametrize(
    ("spec", "middle"),
    [
        ({"uniform": [0.1234567891, 0.1234567899]}, 0.1234567895),
        ({"uniform": [1, 3]}, 2),
        ({"loguniform": ["1e-6", 1]}, 1e-3),
    ],
)
def test_draws_keep_to_their_bounds_and_spread_evenly(trials: Load, spec: dict[str, Any], middle: float) -> None:
    low, high = (float(bound) for bound in next(iter(spec.values())))
    found = values(trials(random={"draws": 400, "model.lr": spec, "train.seed": {"integer": [0, 10**9]}}), "model.lr")
    assert all(low <= value <= high for value in found)
    if high - low > 1e-6:
        # Of 400 fair coins, fewer than 150 or more than 250 heads come once in two million times.
        assert 150 < sum(value < middle for value in found) < 250


def test_integers_and_choices_reach_every_value_and_what_is_drawn_twice_is_one_trial(trials: Load) -> None:
    found = trials(
        random={"draws": 200, "train.seed": {"integer": [3, 6]}, "model.net": {"choice": ["lenet", "compact"]}}
    )
    assert sorted(values(found, "train.seed", "model.net")) == sorted(product(range(3, 7), ["compact", "lenet"]))


# Trials


def test_trials_have_settings_and_axes_of_their_own(trials: Load) -> None:
    found = trials(
        trials=[
            {"method": "source_only"},
            {"method": "dann", "grid": {"model.gamma": [1, 5]}},
            {"model": {"weight": 0.5}, "model.gamma": 7},
            {"method": "target_only", "grid": {"train.seed": [8, 9]}},
            {"method": "target_only", "train.seed": 7},
        ],
        grid={"train.seed": [0, 1]},
    )
    rows = [
        (
            t.config.method,
            getattr(t.config.model, "gamma", None),
            getattr(t.config.model, "weight", None),
            t.config.train.seed,
        )
        for t in found
    ]
    assert rows == [
        ("source_only", None, None, 0),
        ("source_only", None, None, 1),
        *(("dann", gamma, 1, seed) for gamma in (1, 5) for seed in (0, 1)),
        ("dann", 7, 0.5, 0),
        ("dann", 7, 0.5, 1),
        ("target_only", None, None, 8),  # an own axis takes the place of the shared one
        ("target_only", None, None, 9),
        ("target_only", None, None, 7),  # and so does an own value
    ]


def test_shared_model_keys_reach_the_methods_that_have_them(trials: Load) -> None:
    both = [{"method": "dann"}, {"method": "source_only"}]
    found = trials(trials=both, model={"gamma": 3, "momentum": 0.5})
    assert [getattr(t.config.model, "gamma", None) for t in found] == [3, None]
    assert values(found, "model.momentum") == [0.5, 0.5]
    for word in ("model.gamma=4", "model={gamma: 4}"):
        assert [getattr(t.config.model, "gamma", None) for t in trials(word, trials=both)] == [4, None]
    found = trials(trials=both, random={"draws": 3, "model.gamma": {"uniform": [1, 2]}})
    assert [t.config.method for t in found] == ["dann"] * 3 + ["source_only"]


@pytest.mark.parametrize(
    ("words", "content", "message"),
    [
        ([], {"model": {"gama": 3}}, r"sweep\.yaml:\d+: model\.gama: unknown key .* did you mean 'model\.gamma'"),
        (
            [],
            {"grid": {"model.gama": [3]}},
            r"sweep\.yaml:\d+: model\.gama: unknown key .* did you mean 'model\.gamma'",
        ),
        (["model.gama=3"], {}, r"command line: model\.gama: unknown key .* did you mean 'model\.gamma'"),
        ([], {"trials": [{}, {"model": {"gama": 3}}]}, r"trials\[1\]: model\.gama: unknown key .* 'gamma'"),
        (
            [],
            {"trials": [{"method": "source_only", "grid": {"model.gamma": [1]}}, {}]},
            r"trials\[0\]: model\.gamma: unk",
        ),
    ],
)
def test_a_model_key_that_nobody_has_is_an_error(trials: Load, words: list[str], content: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trials(*words, **content)


# Files


def test_each_level_wins_over_the_one_below(tmp_path: Path) -> None:
    """Signature default < base < file < trial or grid < command line."""
    top, words = tmp_path / "top.yaml", list[str]()
    levels: list[tuple[str, dict[str, Any]]] = [
        ("bottom.yaml", SHARED),
        ("bottom.yaml", {"model": {"gamma": 2}}),
        ("middle.yaml", {"model": {"gamma": 3}}),
        ("top.yaml", {"model": {"gamma": 4}}),
        ("top.yaml", {"trials": [{"model": {"gamma": 5}}]}),
        ("top.yaml", {"trials": [{"model": {"gamma": 5}, "grid": {"model.gamma": [6]}}]}),
    ]
    contents: dict[str, dict[str, Any]] = {
        "bottom.yaml": {},
        "middle.yaml": {"base": "../bottom.yaml"},
        "top.yaml": {"base": "between/middle.yaml"},
    }
    places = {"bottom.yaml": tmp_path, "middle.yaml": tmp_path / "between", "top.yaml": tmp_path}
    (tmp_path / "between").mkdir()
    seen = []
    for name, content in levels:
        contents[name] |= content
        for file, written in contents.items():
            (places[file] / file).write_text(yaml.safe_dump(written))
        seen += values(load_trials(top, words), "model.gamma")
    seen += values(load_trials(top, ["model.gamma=7"]), "model.gamma")
    default = next(h.default for h in models.signature("dann").hyperparameters if h.name == "gamma")
    assert seen == [default, 2, 3, 4, 5, 6, 7]
    assert values([load_single_trial(top, []), load_single_trial(top, ["model.gamma=7"])], "model.gamma") == [4, 7]


def test_a_base_lends_its_blocks_but_not_its_name(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(SHARED | {"name": "other", "train": {"steps": 5, "seed": 3}}))
    (tmp_path / "sweep.yaml").write_text("base: base.yaml\ntrain: {seed: 4}\nmodel:\n")
    (trial,) = load_trials(tmp_path / "sweep.yaml", [])
    assert (trial.config.name, trial.config.train.steps, trial.config.train.seed) == ("sweep", 5, 4)


def test_an_error_names_the_file_of_the_chain_that_wrote_the_key(tmp_path: Path) -> None:
    base, top = tmp_path / "base.yaml", tmp_path / "top.yaml"
    top.write_text("base: base.yaml\ntrain: {steps: 3}\n")
    for wrong in ({"train": {"seeed": 3}}, {"grid": {"train.seeed": [3]}}, {"zip": {"train.seed": 3}}):
        base.write_text(yaml.safe_dump(SHARED | wrong))
        with pytest.raises(ConfigError, match=rf"^{base}:\d+: "):
            load_trials(top, [])
    base.write_text(yaml.safe_dump(SHARED | {"train": {"steps": -1}}))
    assert load_trials(top, [])
    top.write_text("base: base.yaml\ntrain: {steps: -3}\n")
    with pytest.raises(ConfigError, match=rf"^{top}:2: train.steps: -3"):
        load_trials(top, [])


def test_bases_that_name_each_other_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: base: circular: .*a\.yaml → .*b\.yaml → .*a\.yaml; remove one"):
        load_trials(tmp_path / "a.yaml", [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  seed: 1\n  steps: 2\n  seed: 3\n", r":4: seed: duplicate key \(first on line 2\)"),
        ("trials:\n- {seed: 1, seed: 2}\n", r":2: seed: duplicate key"),
        ("train: {seed: 1}\non: 3\n", r":2: on: a key must be text"),
        ("trials: [{7: 1}]\n", r":1: 7: a key must be text"),
        ("? [a]\n: 1\n", r":1: sequence: a key must be text"),
        ("train: &a\n  steps: *a\n", r":1: recursive anchor"),
        ("train: {seed: 1}\n---\nmodel: {}\n", r":2:1: not valid YAML: .*another document"),
        ("name: !!python/name:os.system\n", r":1:7: not valid YAML: could not determine a constructor"),
        ("name: a\x00b\n", r": not valid YAML: .*control characters"),
    ],
)
def test_what_yaml_itself_would_take_or_drop_is_an_error_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^{path}{message}") as caught:
        load_trials(path, [])
    assert "\n" not in str(caught.value)


# The command line


def test_a_value_takes_the_place_of_an_axis_and_a_list_that_of_its_values(trials: Load) -> None:
    axes = {"grid": {"model.gamma": [1, 5], "train.seed": [0, 1]}}
    assert values(trials("model.gamma=3", **axes), "model.gamma", "train.seed") == [(3, 0), (3, 1)]
    found = trials("model.gamma=[3, 4, 6]", **axes)
    assert values(found, "model.gamma", "train.seed") == list(product([3, 4, 6], [0, 1]))
    # A list makes an axis also where the file has none; but where a value is itself a list, it is that value.
    assert values(trials("train.steps=[5,6]"), "train.steps") == [5, 6]
    (trial,) = trials("eval.metrics=[accuracy]")
    assert trial.config.eval.metrics == ["accuracy"]


def test_a_zipped_key_on_the_command_line(trials: Load) -> None:
    axes = {"zip": {"model.gamma": [1, 5], "train.steps": [10, 50]}}
    assert values(trials("model.gamma=3", **axes), "model.gamma", "train.steps") == [(3, 10), (3, 50)]
    assert values(trials("model.gamma=[3,4]", **axes), "model.gamma", "train.steps") == [(3, 10), (4, 50)]
    with pytest.raises(ConfigError, match=r"^command line: model\.gamma: \[3, 4, 6\]: must be a list of 2"):
        trials("model.gamma=[3,4,6]", **axes)


def test_a_drawn_key_on_the_command_line_leaves_the_others_as_they_were(trials: Load) -> None:
    axes = {"random": {"draws": 4, "model.lr": {"uniform": [0.1, 1]}, "model.gamma": {"uniform": [1, 2]}}}
    gammas = values(trials(**axes), "model.gamma")
    assert values(trials("model.lr=[0.5,0.7]", **axes), "model.gamma", "model.lr") == list(product(gammas, [0.5, 0.7]))


def test_a_block_on_the_command_line_is_laid_over_the_files(trials: Load) -> None:
    (trial,) = trials("train={steps: 7}", train={"seed": 3})
    assert (trial.config.train.steps, trial.config.train.seed) == (7, 3)


@pytest.mark.parametrize(
    "word", ["train.steps", "=3", "train..steps=3", "grid.train.seed=[0]", "base=a.yaml", "a=[", "a=}"]
)
def test_a_word_that_is_no_override_is_an_error(trials: Load, word: str) -> None:
    with pytest.raises(ConfigError, match=r"^command line: "):
        trials(word)


def test_a_single_trial_takes_one_value_per_key(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(SHARED | {"grid": {"train.seed": [0, 1]}}))
    assert load_single_trial(path, ["train.seed=4"]).config.train.seed == 4
    with pytest.raises(ConfigError, match="2 trials"):
        load_single_trial(path, ["train.seed=[4,5]"])


# Identity and names


def every_key() -> Iterator[tuple[str, str]]:
    """(method, dotted key) of all that may stand in a resolved config."""
    for block, field in Config.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        if block == "model":
            yield from ((m, f"model.{h.name}") for m in models.names() for h in models.signature(m).hyperparameters)
        elif inner is None:
            yield "dann", block
        else:
            yield from (("dann", f"{block}.{name}") for name in inner)


def other_values(value: Any) -> Iterator[Any]:
    if isinstance(value, int | float):
        yield from (value * 2, value + 1, value / 2)
    yield from (
        1,
        2,
        3,
        0.25,
        "mnist",
        "usps",
        "bf16",
        "01:00:00",
        "other",
        ["accuracy"],
        {"partition": "gpu"},
        {"dann": [0.1, 0.2]},
    )
    yield from (*models.names(), "lenet", "compact", True, False)


@pytest.mark.parametrize(("method", "key"), list(every_key()))
def test_identity_changes_with_all_that_can_change_the_weights_and_with_nothing_else(method: str, key: str) -> None:
    pair = {"source": "mnist5k", "target": "mnistm5k"}
    lone = {"dataset": "mnistm5k"}
    data = lone if "images" in models.signature(method).reads else pair
    start = {"name": "a", "method": method, "data": data | {"size": 28}}
    before = resolve(start, "here")
    old = flatten(before.model_dump()).get(key, before.model_dump().get(key.split(".")[0]))
    choices = {f"model.{h.name}": get_args(h.annotation) for h in models.signature(method).hyperparameters}
    words = [choice for choice in choices.get(key, ()) if isinstance(choice, str)]
    for value in (*words, *other_values(old)):
        changed = resolve(start, "here").model_dump()
        if key == "method":
            changed["model"] = {}
        changed = nest(merge(to_settings(changed, "here"), to_settings({key: value}, "here")))
        try:
            after = resolve(changed, "here")
        except ConfigError:
            continue
        if after != before:
            break
    else:
        pytest.fail(f"no other value of {key} is known to this test")
    counts = key not in OUTSIDE and not key.startswith(("eval.", "resources."))
    assert (after.identity() != before.identity()) == counts


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
def test_a_trial_described_in_other_words_is_the_same_run(
    trials: Load, tmp_path: Path, content: dict[str, Any]
) -> None:
    plain, words = trials(), trials(**content)
    assert [t.identity for t in words] == [t.identity for t in plain]
    (first,) = create_run_directories(tmp_path / "logs", plain)
    assert create_run_directories(tmp_path / "logs", words) == [first]
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [first.name]


def test_yaml_text_that_python_takes_for_a_number_is_that_number(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(SHARED) + "grid: {model.lr: [1e-4]}\n")
    (trial,) = load_trials(path, [])
    assert trial.config.model.lr == 0.0001
    path.write_text(yaml.safe_dump(SHARED) + "model: {lr: 0.0001}\n")
    assert load_trials(path, [])[0].identity == trial.identity
    assert load_trials(path, ["model.lr=1e-4"])[0].identity == trial.identity


def test_config_yaml_says_all_that_the_trial_is(trials: Load, tmp_path: Path) -> None:
    found = trials(
        grid={"model.lr": ["1e-4", 0.1], "train.precision": [False, "bf16"]}, resources={"slurm": {"qos": "a"}}
    )
    for trial, path in zip(found, create_run_directories(tmp_path / "logs", found), strict=True):
        document = nest(read_settings(path / "config.yaml"))
        assert resolve(document, "here") == trial.config
        assert None not in [
            value for key, value in flatten(document).items() if key.split(".")[0] in ("model", "train")
        ]
        assert (document["data"]["size"], document["data"]["channels"]) == (28, 3)


def test_placing_without_writing_writes_nothing_and_another_config_is_left_alone(trials: Load, tmp_path: Path) -> None:
    found = trials()
    locate_trials(tmp_path / "logs", found)
    assert not (tmp_path / "logs").exists()
    (path,) = create_run_directories(tmp_path / "logs", found)
    foreign = trials("train.seed=5")[0].config.to_yaml()
    (path / "config.yaml").write_text(foreign)
    with pytest.raises(ConfigError, match="was made by another config"):
        create_run_directories(tmp_path / "logs", found)
    assert (path / "config.yaml").read_text() == foreign


def test_names_are_readable_distinct_and_safe_as_directories(trials: Load) -> None:
    found = trials("data.root=/a/b", "eval.metrics=[accuracy]", grid={"model.gamma": [1, 5], "model.lr": ["1e-4"]})
    assert [t.label for t in found] == ["dann,gamma=1,lr=1e-4", "dann,gamma=5,lr=1e-4"]
    nasty = ["../..", "a/b", "é ü", "a\nb", "*", "$(x)", "-rf", ".", "", "a" * 300, None, [1, {"b": 2}], "a:b\\c"]
    for value in nasty:
        assert re.fullmatch(
            r"dann[A-Za-z0-9._=,+-]{0,96}", make_label("dann", to_settings({"model.x": value, "train.seed": value}, ""))
        )


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.name)
def test_every_sweep_of_the_house_expands_to_distinct_trials(path: Path) -> None:
    names = [trial.name for trial in load_trials(path, [])]
    assert names
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=,+-]*-[0-9a-f]{8}", name) for name in names)
