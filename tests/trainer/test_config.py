"""Settings with their places, and single values of a configuration."""

from pathlib import Path

import pytest

from trainer.config.document import Setting, find_place, merge, nest, parse_overrides, read_settings, to_settings
from trainer.config.resolve import resolve
from trainer.config.sweep import load_trials
from trainer.config.validators import parse_slurm_time
from trainer.errors import ConfigError


def test_each_setting_keeps_the_line_that_set_it(tmp_path: Path) -> None:
    base, top = tmp_path / "base.yaml", tmp_path / "top.yaml"
    base.write_text("common: &common\n  a: 1\n  b: 2\nblock:\n  <<: *common\n  b: 3\n  c: {d: 4}\n")
    top.write_text("base: base.yaml\nblock.c: {e: [5]}\nblock.a:\nempty: {}\n")
    settings = read_settings(top)
    assert {key: (s.value, s.place) for key, s in settings.items() if not key.startswith("common")} == {
        "block.a": (1, f"{base}:2"),
        "block.b": (3, f"{base}:6"),
        "block.c.d": (4, f"{base}:7"),
        "block.c.e": ([5], f"{top}:2"),
        "empty": ({}, f"{top}:4"),
    }


def test_the_line_of_a_key_inside_or_around_a_setting_is_known() -> None:
    settings = to_settings({"data": {"source": "a", "target": "b"}, "eval": {"metrics": ["c"]}}, "file:1")
    assert find_place(settings, "eval.metrics.0", "file") == "file:1"
    assert find_place(settings, "train.steps", "file") == "file"
    assert find_place(settings, "data", "file") == "file:1"
    assert find_place(settings | parse_overrides(["data.target=d"]), "data", "file") == "command line"


@pytest.mark.parametrize(
    ("under", "over", "expected"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": {"b": 1, "c": 2}}, {"a": 4}, {"a": 4}),
        ({"a": 4}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": {"b": {"c": 1}}, "ab": 2}, {"a": {"b": 5}}, {"a": {"b": 5}, "ab": 2}),
    ],
)
def test_settings_are_merged_key_by_key(under: dict[str, object], over: object, expected: object) -> None:
    assert isinstance(over, dict)
    assert nest(merge(to_settings(under, "under"), to_settings(over, "over"))) == expected


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("train: {steps: 1e3}", "steps", 1000),
        ("train: {steps: 1.5E+3}", "steps", 1500),
        ("train: {seed: 18446744073709551615}", "seed", 2**64 - 1),
        ("train: {seed: 18446744073709551616}", "seed", "a.yaml:3: train.seed: 18446744073709551616: .* less than"),
        ("train: {seed: 1.5e0}", "seed", "a.yaml:3: train.seed: '1.5e0': .*integer"),
        ("train: {seed: 010}", "seed", "a.yaml:3: 010: YAML reads a leading 0 as octal, 8; write 10 or 8$"),
        ("train: {seed: 007}", "seed", "a.yaml:3: 007: .* octal, 7; write 7$"),
        ("train: {seed: 1:30}", "seed", "a.yaml:3: train.seed: '1:30': .*integer"),
        ("train: {seed: 08}", "seed", "a.yaml:3: train.seed: .*must not begin with 0; remove the zeros"),
        ("train: {seed: 1}\ntrain.seed: 2", "seed", r"a.yaml:4: train.seed: duplicate key \(also under train: at .*:3"),
        ("train.seed: 1\ntrain: {seed: 2}", "seed", "a.yaml:4: train.seed: duplicate key .*; remove one"),
        (
            "grid:\n  train.seed: [1]\n  train: {seed: [2]}",
            "seed",
            r"a.yaml:5: grid.train.seed: duplicate key \(also under train.seed: at a.yaml:4\); remove one",
        ),
    ],
)
def test_ambiguous_numbers_are_refused_or_read_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, key: str, expected: int | str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(f"method: vae\ndata: {{dataset: digits}}\n{text}\n")
    if isinstance(expected, int):
        (trial,) = load_trials(Path("a.yaml"), [])
        assert getattr(trial.config.train, key) == expected
    else:
        with pytest.raises(ConfigError, match=expected):
            load_trials(Path("a.yaml"), [])


def test_a_time_is_read_as_written_without_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("method: vae\ndata: {dataset: digits}\nresources: {time: 10:00:00}\n")
    for words, expected in ([], "10:00:00"), (["resources.time=01:30:00"], "01:30:00"):
        (trial,) = load_trials(tmp_path / "a.yaml", words)
        assert trial.config.resources.time == expected


def test_ambiguous_numbers_of_the_command_line_are_refused() -> None:
    with pytest.raises(ConfigError, match="command line: 010: YAML reads a leading 0 as octal, 8"):
        parse_overrides(["train.seed=[1, 010]"])


def test_an_empty_block_changes_nothing() -> None:
    settings = to_settings({"a": {"b": 1}}, "file")
    assert merge(settings, {"a": Setting({}, "file")}) == settings


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("5:30", 330),
        ("0:07", 7),
        ("02:00:00", 7200),
        ("100:00:01", 360001),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("2-03:04:05", 183845),
    ],
)
def test_slurm_times_are_parsed(text: str, seconds: int) -> None:
    assert parse_slurm_time(text) == seconds


@pytest.mark.parametrize("text", ["", "-", "-5", "1-", "1:2:3:4", "UNLIMITED", "INVALID", "1.5", "02:00:0x", "²", " 5"])
def test_invalid_slurm_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        parse_slurm_time(text)


@pytest.mark.parametrize(("name", "is_valid"), [("a_metric2", True), ("Fid", False), ("a/b", False), ("", False)])
def test_metrics_are_named_like_python_files(name: str, is_valid: bool) -> None:
    """Whether a metric exists is not checked here: only eval/ knows."""
    document = {"name": "a", "method": "dann", "data": {"source": "mnist5k", "target": "mnistm5k"}}
    document |= {"eval": {"metrics": [name]}}
    if is_valid:
        assert resolve(document, "here").eval.metrics == [name]
    else:
        with pytest.raises(ConfigError, match=r"^here: eval\.metrics\.0: .*must be the name of a metric"):
            resolve(document, "here")
