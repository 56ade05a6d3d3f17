"""YAML mappings: errors that name file, line and remedy; base files; dotted keys; command-line overrides."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import ConfigError

Document = dict[str, Any]  # a YAML mapping
SWEEP_KEYS = ("grid", "zip", "random", "trials")  # only allowed at the top level of a sweep file
TEXT = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")  # what YAML takes a key for: words, or <<


def read_settings(path: Path, seen: tuple[Path, ...] = ()) -> Document:
    """Read a mapping and lay it over the file that its `base:` names (relative to it); ConfigError otherwise."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(
            f"{_short(path)}: base: the files name each other: {' → '.join(_short(p) for p in (*seen, path))}; "
            "let one of them do without"
        )
    document = _own(path, f" (named by base: in {_short(seen[-1])})" if seen else "")
    base = document.pop("base", None)
    if base is None:
        return document
    under = read_settings(path.parent / str(base), (*seen, path))
    under.pop("name", None)  # what builds on a sweep is another sweep
    return merge(under, document)


def whence(path: Path, key: str) -> str:
    """The file that has the last word on a key: `path`, or one of its bases where only that one sets the key."""
    file = path.resolve()
    while True:
        document = _own(file)
        if key in document or any(touches(written, key) for written, _ in leaves(document)):
            return _short(file)
        if "base" not in document:
            return _short(path.resolve())
        file = (file.parent / str(document["base"])).resolve()


def touches(written: str, key: str) -> bool:
    """Whether a dotted key, as it is written, sets `key`, a part of it or a block round it, be it as an axis."""
    for axis in SWEEP_KEYS:
        written, key = written.removeprefix(f"{axis}."), key.removeprefix(f"{axis}.")
    return f"{written}.".startswith(f"{key}.") or f"{key}.".startswith(f"{written}.")


def nested(document: Document) -> Document:
    """Spell dotted keys out and leave out keys without a value: {model.gamma: 5, train: } is {model: {gamma: 5}}."""
    result: Document = {}
    for key, value in document.items():
        if value is not None:
            put(result, key, value)
    return result


def merge(under: Document, over: Document) -> Document:
    """Lay one mapping over another, block by block; neither is changed."""
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else deepcopy(value)
    return result


def put(document: Document, key: str, value: Any) -> None:
    """Set a dotted key in place: put(d, "model.gamma", 5); a block is laid over the one that is there."""
    *blocks, last = key.split(".")
    for block in blocks:
        inner = document.get(block)
        document[block] = inner = dict(inner) if isinstance(inner, dict) else {}
        document = inner
    old = document.get(last)
    document[last] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value


def leaves(document: Document, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every (dotted key, value) that is not itself a mapping."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def parse_overrides(words: list[str]) -> Document:
    """Turn `model.gamma=5 train.seed=[0,1]` into {dotted key: value as YAML reads it}; ConfigError."""
    overrides: Document = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"command line: {word!r} is not key=value, such as train.steps=500")
        if key.split(".")[0] in ("base", *SWEEP_KEYS):
            raise ConfigError(f"command line: {key}: only a file sets this; name the key itself: train.seed=[0,1,2]")
        try:
            overrides |= leaves({key: yaml.safe_load(value)})
        except yaml.YAMLError:
            raise ConfigError(f"command line: {key}: {value!r} is not a YAML value; quote it") from None
    return overrides


def _own(path: Path, whose: str = "") -> Document:
    """The mapping that one file holds, without its base's; ConfigError."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(
            f"{_short(path)}: cannot read this file: {error.strerror}{whose}; {near_files(path)}"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{_short(path)}:{line}: is not UTF-8 text; save it as UTF-8") from None
    try:
        _check_keys(yaml.compose(text, Loader=yaml.CSafeLoader), path)
        document = yaml.load(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        tab = mark and "\t" in text.split("\n")[mark.line]
        remedy = "indent with spaces, not with tabs" if tab else "check the indentation and the quotes here"
        raise ConfigError(f"{_short(path)}{where}: not valid YAML: {problem}; {remedy}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{_short(path)}: must be a mapping of keys to values; see sweeps/README.md")
    return nested(document)


def near_files(path: Path) -> str:
    """The remedy for a path that cannot be read: what lies there."""
    beside = sorted(p.name for p in (path if path.is_dir() else path.parent).glob("*.yaml"))
    return f"files there: {', '.join(beside)}" if beside else "check the path"


def _check_keys(node: yaml.Node | None, path: Path, inside: tuple[yaml.Node, ...] = ()) -> None:
    """Refuse what YAML itself would take without a word: a key that stands twice, one that is not text, a loop."""
    if any(node is outer for outer in inside):
        line = inside[-1].start_mark.line + 1
        raise ConfigError(f"{_short(path)}:{line}: an anchor holds itself; write out what is meant")
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag not in TEXT:
                name = key.value if isinstance(key, yaml.ScalarNode) else key.id
                raise ConfigError(f"{_short(path)}:{line}: {name}: a key must be text; put it in quotes")
            if key.value in seen:
                raise ConfigError(
                    f"{_short(path)}:{line}: {key.value}: stands twice (first on line {seen[key.value]}); remove one"
                )
            seen[key.value] = line
            _check_keys(value, path, (*inside, node))
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(value, path, (*inside, node))


def _short(path: Path) -> str:
    """The path as a user would type it from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
