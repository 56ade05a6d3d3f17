"""YAML mappings: errors that name file, line and remedy; base files; dotted keys; command-line overrides."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from trainer.config import ConfigError, Document


def read(path: Path, seen: tuple[Path, ...] = ()) -> Document:
    """Read a mapping and lay it over the file that its `base:` names (relative to it); ConfigError otherwise."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(
            f"{_short(path)}: base: the files name each other: {' → '.join(_short(p) for p in (*seen, path))}"
        )
    try:
        text = path.read_text()
    except OSError as error:
        whence = f" (named by base: in {_short(seen[-1])})" if seen else ""
        remedy = near_files(path)
        raise ConfigError(f"{_short(path)}: cannot read this file: {error.strerror}{whence}; {remedy}") from None
    try:
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
        _check_keys(node, path)
        document = yaml.load(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(
            f"{_short(path)}{where}: not valid YAML: {problem}; check the indentation and the quotes here"
        ) from None
    if not isinstance(document, dict):
        raise ConfigError(f"{_short(path)}: must be a mapping of keys to values; see sweeps/README.md")
    base = document.pop("base", None)
    if base is None:
        return document
    return merge(read(path.parent / str(base), (*seen, path)), document)


def merge(under: Document, over: Document) -> Document:
    """Lay one mapping over another, block by block; neither is changed."""
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else deepcopy(value)
    return result


def put(document: Document, key: str, value: Any) -> None:
    """Set a dotted key in place: put(d, "model.gamma", 5)."""
    *blocks, last = key.split(".")
    for block in blocks:
        inner = document.get(block)
        document[block] = inner = dict(inner) if isinstance(inner, dict) else {}
        document = inner
    document[last] = value


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
        if not equals or not key:
            raise ConfigError(f"command line: {word!r} is not key=value, such as train.steps=500")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"command line: {key}: {value!r} is not a YAML value; quote it") from None
    return overrides


def near_files(path: Path) -> str:
    """The remedy for a path that does not exist: what lies beside it."""
    beside = sorted(p.name for p in path.parent.glob("*.yaml"))
    return f"files there: {', '.join(beside)}" if beside else "check the path"


def _check_keys(node: yaml.Node | None, path: Path) -> None:
    """Refuse a key that stands twice in one mapping: YAML itself would drop the first without a word."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ConfigError(
                    f"{_short(path)}:{line}: {key.value}: stands twice (first on line {seen[key.value]}); remove one"
                )
            seen[key.value] = line
            _check_keys(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(value, path)


def _short(path: Path) -> str:
    """The path as a user would type it from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
