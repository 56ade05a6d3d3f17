"""The trials that a sweep file and a command line expand to, their identities and their names."""

import math
import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import models
from trainer.config.document import flatten, merge, to_settings
from trainer.config.resolve import resolve, resolve_settings
from trainer.config.schema import Config
from trainer.config.sweep import Trial, load_single_trial, load_trials, make_label
from trainer.errors import ConfigError

ROOT = Path(__file__).parents[2]
SHARED: dict[str, Any] = {"method": "dann", "data": {"source": "mnist5k", "target": "mnistm5k"}}
NOT_IN_IDENTITY = {
    "name",
    "data.root",
    "data.copy_to",
    "train.log_every",
    "train.checkpoint_every",
    "train.export_every",
    "train.keep_checkpoints",
    "train.preview_every",
    "train.async_checkpoints",
}  # with eval and resources

Load = Callable[..., list[Trial]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write the keyword arguments as a sweep file over SHARED and load it under `key=value` words."""

    def write_and_load(*words: str, **content: Any) -> list[Trial]:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(SHARED | content))
        return load_trials(path, list(words))

    return write_and_load


def values(trials: list[Trial], *keys: str) -> list[Any]:
    """Return the value of a key of each trial, or the tuple of several."""
    rows = [flatten(trial.config.model_dump()) for trial in trials]
    return [tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]] for row in rows]


# Axes


def test_a_grid_is_the_cartesian_product(load: Load) -> None:
    trials = load(grid={"model.gamma": [1, 5, 10], "train.seed": [0, 1]})
    assert values(trials, "model.gamma", "train.seed") == list(product([1, 5, 10], [0, 1]))
    assert load(grid={"model": {"gamma": [1, 5, 10]}, "train": {"seed": [0, 1]}}) == trials


def test_zipped_lists_advance_together_and_are_crossed_with_the_grid(load: Load) -> None:
    trials = load(zip={"model.gamma": [1, 5], "train.steps": [10, 50]}, grid={"train.seed": [0, 1]})
    rows = values(trials, "model.gamma", "train.steps", "train.seed")
    assert sorted(rows) == [(1, 10, 0), (1, 10, 1), (5, 50, 0), (5, 50, 1)]


def test_a_swept_block_overrides_keys_of_the_files_block(load: Load) -> None:
    trials = load("data.size=32", grid={"data": [{"source": "usps", "size": 30}, {"target": "svhn"}]})
    expected = [("usps", "mnistm5k", 32), ("mnist5k", "svhn", 32)]
    assert values(trials, "data.source", "data.target", "data.size") == expected


def test_swept_methods_ignore_axes_of_hyperparameters_they_lack(load: Load) -> None:
    trials = load(grid={"method": ["dann", "source_only"], "model.gamma": [1, 5], "train.seed": [0, 1]})
    assert [t.config.method for t in trials] == ["dann"] * 4 + ["source_only"] * 2
    assert load("method=[dann,source_only]", grid={"model.gamma": [1, 5], "train.seed": [0, 1]}) == trials


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
def test_an_invalid_axis_is_refused_by_name(load: Load, content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^\S*sweep\.yaml(:\d+)?: .*{message}"):
        load(**content)


# Random axes


def draw_rates(load: Load, count: int, **specs: Any) -> list[Any]:
    spec = {"model.lr": {"loguniform": ["1e-5", 1e-2]}}
    return values(load(random={"draws": count, **(spec | specs)}), "model.lr")


def test_a_draw_depends_only_on_seed_key_and_number(load: Load) -> None:
    five = draw_rates(load, 5)
    assert len(set(five)) == 5
    assert draw_rates(load, 5) == five
    assert draw_rates(load, 20)[:5] == five
    assert draw_rates(load, 5, **{"model.gamma": {"uniform": [1, 2]}}) == five
    assert not set(draw_rates(load, 5, seed=1)) & set(five)
    both = load(random={"draws": 5, "model.gamma": {"uniform": [0.1, 0.9]}, "model.weight": {"uniform": [0.1, 0.9]}})
    assert all(gamma != weight for gamma, weight in values(both, "model.gamma", "model.weight"))


@pytest.mark.parametrize(
    ("spec", "middle"),
    [
        ({"uniform": [0.1234567891, 0.1234567899]}, 0.1234567895),
        ({"uniform": [1, 3]}, 2),
        ({"loguniform": ["1e-6", 1]}, 1e-3),
    ],
)
def test_draws_stay_within_their_bounds_and_spread_evenly(load: Load, spec: dict[str, Any], middle: float) -> None:
    low, high = (float(bound) for bound in next(iter(spec.values())))
    rates = values(load(random={"draws": 400, "model.lr": spec, "train.seed": {"integer": [0, 10**9]}}), "model.lr")
    assert all(low <= rate <= high for rate in rates)
    if high - low > 1e-6:
        # Fewer than 150 or more than 250 heads in 400 fair coin tosses have a probability of 5e-7.
        assert 150 < sum(rate < middle for rate in rates) < 250


def test_integers_and_choices_reach_every_value_and_equal_draws_are_one_trial(load: Load) -> None:
    trials = load(
        random={"draws": 200, "train.seed": {"integer": [3, 6]}, "model.net": {"choice": ["lenet", "compact"]}}
    )
    assert sorted(values(trials, "train.seed", "model.net")) == sorted(product(range(3, 7), ["compact", "lenet"]))


# Trials


def test_entries_of_trials_have_their_own_settings_and_axes(load: Load) -> None:
    trials = load(
        trials=[
            {"method": "source_only"},
            {"method": "dann", "grid": {"model.gamma": [1, 5]}},
            {"model": {"weight": 0.5}, "model.gamma": 7},
            {"method": "target_only", "grid": {"train.seed": [8, 9]}},
            {"method": "target_only", "train.seed": 7},
        ],
        grid={"train.seed": [0, 1]},
    )
    rows = [(t.config.method, *(t.config.model_arguments().get(n) for n in ("gamma", "weight"))) for t in trials]
    rows = [(*row, seed) for row, seed in zip(rows, values(trials, "train.seed"), strict=True)]
    assert rows == [
        ("source_only", None, None, 0),
        ("source_only", None, None, 1),
        *(("dann", gamma, 1, seed) for gamma in (1, 5) for seed in (0, 1)),
        ("dann", 7, 0.5, 0),
        ("dann", 7, 0.5, 1),
        ("target_only", None, None, 8),  # The entry's own axis replaces the shared one,
        ("target_only", None, None, 9),
        ("target_only", None, None, 7),  # and so does its own value.
    ]


def test_shared_hyperparameters_apply_to_the_methods_that_have_them(load: Load) -> None:
    both = [{"method": "dann"}, {"method": "source_only"}]
    trials = load(trials=both, model={"gamma": 3, "momentum": 0.5})
    assert [t.config.model_arguments().get("gamma") for t in trials] == [3, None]
    assert values(trials, "model.momentum") == [0.5, 0.5]
    for word in ("model.gamma=4", "model={gamma: 4}"):
        assert [t.config.model_arguments().get("gamma") for t in load(word, trials=both)] == [4, None]
    trials = load(trials=both, random={"draws": 3, "model.gamma": {"uniform": [1, 2]}})
    assert [t.config.method for t in trials] == ["dann"] * 3 + ["source_only"]


@pytest.mark.parametrize(
    ("words", "content", "message"),
    [
        ([], {"model": {"gama": 3}}, r"^\S*sweep\.yaml:6: model\.gama: unknown key .* did you mean 'model\.gamma'"),
        ([], {"grid": {"model.gama": [3]}}, r"^\S*sweep\.yaml:5: model\.gama: unknown key .* mean 'model\.gamma'"),
        (["model.gama=3"], {}, r"command line: model\.gama: unknown key .* did you mean 'model\.gamma'"),
        (
            [],
            {"trials": [{}, {"model": {"gama": 3}}]},
            r"^\S*sweep\.yaml:8: trials\[1\]: model\.gama: .* 'gamma'",
        ),
        (
            [],
            {"trials": [{"method": "source_only", "grid": {"model.gamma": [1]}}, {}]},
            r"^\S*sweep\.yaml:7: trials\[0\]: model\.gamma: unknown key",
        ),
    ],
)
def test_a_hyperparameter_that_no_method_has_is_refused(
    load: Load, words: list[str], content: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(*words, **content)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("gamma=3", r"command line: gamma: unknown key 'gamma'; did you mean model\.gamma\?"),
        ("steps=3", r"did you mean train\.steps\?"),
        ("train.precision=float16", "train.precision: 'float16': .*; did you mean fp16"),
        ("train.precision=bfloat16", "did you mean bf16"),
        ("train.seed=[0,1", r"train.seed: '\[0,1' is not a YAML value; close its brackets.*'train.seed=\[0, 1\]'"),
    ],
)
def test_a_word_that_is_nearly_right_is_answered_with_the_right_one(load: Load, word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(word)


def test_the_name_of_a_sweep_is_answered_with_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=r"dann: cannot read this file: .*did you mean sweeps/dann\.yaml\?"):
        load_trials(Path("dann"), [])


# Files


def test_each_level_overrides_the_one_below(tmp_path: Path) -> None:
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


def test_a_sweep_inherits_the_blocks_of_its_base_but_not_its_name(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(SHARED | {"name": "other", "train": {"steps": 5, "seed": 3}}))
    (tmp_path / "sweep.yaml").write_text("base: base.yaml\ntrain: {seed: 4}\nmodel:\n")
    (trial,) = load_trials(tmp_path / "sweep.yaml", [])
    assert (trial.config.name, trial.config.train.steps, trial.config.train.seed) == ("sweep", 5, 4)


def test_an_error_names_the_file_and_line_that_set_the_key(tmp_path: Path) -> None:
    base, top = tmp_path / "base.yaml", tmp_path / "top.yaml"
    top.write_text("base: base.yaml\ntrain: {steps: 3}\n")
    for text in ("train: {seeed: 3}", "grid: {train.seeed: [3]}", "zip: {train.seed: 3}"):
        base.write_text(f"# A comment\n{text}\n{yaml.safe_dump(SHARED)}")
        with pytest.raises(ConfigError, match=rf"^{base}:2: "):
            load_trials(top, [])
    base.write_text(yaml.safe_dump(SHARED | {"train": {"steps": -1}}))
    assert load_trials(top, [])
    top.write_text("base: base.yaml\ntrain: {steps: -3}\n")
    with pytest.raises(ConfigError, match=rf"^{top}:2: train.steps: -3"):
        load_trials(top, [])


def test_circular_bases_are_refused(tmp_path: Path) -> None:
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
        ("grid: [", r":\d:\d: not valid YAML: .*check the indentation and the quotes"),
        ("grid:\n\t- 1\n", r":2:1: not valid YAML: .*not with tabs"),
        ("data: !set {a}\n", r":1:7: not valid YAML: could not determine a constructor"),
    ],
)
def test_invalid_yaml_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^{path}{message}") as error:
        load_trials(path, [])
    assert "\n" not in str(error.value)


# The command line


def test_an_override_replaces_an_axis_and_a_list_replaces_its_values(load: Load) -> None:
    axes = {"grid": {"model.gamma": [1, 5], "train.seed": [0, 1]}}
    assert values(load("model.gamma=3", **axes), "model.gamma", "train.seed") == [(3, 0), (3, 1)]
    trials = load("model.gamma=[3, 4, 6]", **axes)
    assert values(trials, "model.gamma", "train.seed") == list(product([3, 4, 6], [0, 1]))
    # A list is an axis even if the file sweeps no such key, unless a single value of the key is itself a list.
    assert values(load("train.steps=[5,6]"), "train.steps") == [5, 6]
    (trial,) = load("eval.metrics=[accuracy]")
    assert trial.config.eval.metrics == ["accuracy"]


def test_an_overridden_axis_stays_zipped(load: Load) -> None:
    axes = {"zip": {"model.gamma": [1, 5], "train.steps": [10, 50]}}
    assert values(load("model.gamma=3", **axes), "model.gamma", "train.steps") == [(3, 10), (3, 50)]
    assert values(load("model.gamma=[3,4]", **axes), "model.gamma", "train.steps") == [(3, 10), (4, 50)]
    with pytest.raises(ConfigError, match=r"^command line: model\.gamma: \[3, 4, 6\]: must be a list of 2"):
        load("model.gamma=[3,4,6]", **axes)


def test_overriding_one_random_axis_keeps_the_draws_of_the_others(load: Load) -> None:
    axes = {"random": {"draws": 4, "model.lr": {"uniform": [0.1, 1]}, "model.gamma": {"uniform": [1, 2]}}}
    gammas = values(load(**axes), "model.gamma")
    assert values(load("model.lr=[0.5,0.7]", **axes), "model.gamma", "model.lr") == list(product(gammas, [0.5, 0.7]))


def test_a_block_on_the_command_line_overrides_keys_of_the_files_block(load: Load) -> None:
    (trial,) = load("train={steps: 7}", train={"seed": 3})
    assert (trial.config.train.steps, trial.config.train.seed) == (7, 3)


@pytest.mark.parametrize(
    "word", ["train.steps", "=3", "train..steps=3", "grid.train.seed=[0]", "base=a.yaml", "a=[", "a=}"]
)
def test_an_invalid_override_is_refused(load: Load, word: str) -> None:
    with pytest.raises(ConfigError, match=r"^command line: "):
        load(word)


def test_a_single_trial_takes_one_value_per_key(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(SHARED | {"grid": {"train.seed": [0, 1]}}))
    assert load_single_trial(path, ["train.seed=4"]).config.train.seed == 4
    with pytest.raises(ConfigError, match="2 trials"):
        load_single_trial(path, ["train.seed=[4,5]"])


# Identity and names


def every_key() -> Iterator[tuple[str, str]]:
    """Yield (method, dotted key) of every setting of a resolved config."""
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
    yield from (1, 2, 3, 16, 0.25, "mnist", "usps", "bf16", "01:00:00", "other")
    yield from (["accuracy"], ["dann"], {"partition": "gpu"}, {"dann": [0.1, 0.2]}, [*"9876543210"], "pad", "black")
    yield from ("validation", [2, 3], {"times": [5]}, {"time": "00:30:00"}, {"trial": "logs/a/b", "sha256": "0"})
    yield from (*models.names(), "lenet", "compact", True, False)


@pytest.mark.parametrize(("method", "key"), list(every_key()))
def test_identity_depends_on_exactly_the_settings_that_can_change_the_weights(method: str, key: str) -> None:
    pair, single = {"source": "mnist5k", "target": "mnistm5k"}, {"dataset": "mnistm5k"}
    data = single if "images" in models.signature(method).reads else pair
    original = resolve({"name": "a", "method": method, "data": data | {"size": 28}}, "here")
    document = original.model_dump() | ({"model": {}} if key == "method" else {})
    value = flatten(original.model_dump()).get(key, original.model_dump().get(key.split(".")[0]))
    choices = {f"model.{h.name}": get_args(h.annotation) for h in models.signature(method).hyperparameters}
    words = [choice for choice in choices.get(key, ()) if isinstance(choice, str)]
    for other in (*words, *other_values(value)):
        settings = merge(to_settings(document, "here"), to_settings({key: other}, "here"))
        try:
            changed = resolve_settings(settings, "here")
        except ConfigError:
            continue
        if changed != original:
            break
    else:
        pytest.fail(f"this test knows no other valid value of {key}")
    is_part = key not in NOT_IN_IDENTITY and not key.startswith(("eval.", "resources."))
    assert (changed.identity() != original.identity()) == is_part


def test_text_that_python_reads_as_a_number_is_that_number(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(SHARED) + "grid: {model.lr: [1e-4]}\n")
    (trial,) = load_trials(path, [])
    assert trial.config.model.lr == 0.0001
    path.write_text(yaml.safe_dump(SHARED) + "model: {lr: 0.0001}\n")
    assert load_trials(path, [])[0].identity == trial.identity
    assert load_trials(path, ["model.lr=1e-4"])[0].identity == trial.identity


def test_labels_are_readable_and_safe_as_directory_names(load: Load) -> None:
    trials = load("data.root=/a/b", "eval.metrics=[accuracy]", grid={"model.gamma": [1, 5], "model.lr": ["1e-4"]})
    assert [t.label for t in trials] == ["dann,gamma=1,lr=1e-4", "dann,gamma=5,lr=1e-4"]
    unsafe = ["../..", "a/b", "é ü", "a\nb", "*", "$(x)", "-rf", ".", "", "a" * 300, None, [1, {"b": 2}], "a:b\\c"]
    for value in unsafe:
        label = make_label("dann", to_settings({"model.x": value, "train.seed": value}, "here"))
        assert re.fullmatch(r"dann[A-Za-z0-9._=,+-]{0,96}", label)


def test_a_label_has_the_word_that_yaml_reads_as_a_boolean(load: Load) -> None:
    grid = {"train.precision": [False, "bf16"], "data.flip": [False, True]}
    assert [t.label for t in load("train.precision=[no,bf16]", "data.flip=no")] == [
        "dann,precision=no,flip=False",
        "dann,precision=bf16,flip=False",
    ]
    assert [t.label for t in load(grid=grid)][:2] == ["dann,flip=False,precision=no", "dann,flip=False,precision=bf16"]
    (trial,) = load("train.precision=no")
    assert (trial.label, trial.config.train.precision) == ("dann,precision=no", "no")


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_sweep_expands_to_distinct_trials(path: Path) -> None:
    names = [trial.name for trial in load_trials(path, [])]
    assert names
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=,+-]*-[0-9a-f]{8}", name) for name in names)
