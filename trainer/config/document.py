"""Settings from YAML files and the command line: each value keeps the place where it was written."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import ConfigError

Document = dict[str, Any]  # a YAML mapping as Python reads it
AXES = ("grid", "zip", "random")
SWEEP_KEYS = (*AXES, "trials", "search")  # only allowed at the top level of a sweep file
COMMAND_LINE = "command line"
WHOLE_MAPPINGS = ("data.classes",)  # keys whose value is one mapping, whose keys are not settings
KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")  # of valid keys: text, or <<
INTEGER_TAG, FLOAT_TAG, STRING_TAG = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "str"))
OCTAL = re.compile("[+-]?0[0-7]+")
MAPPING_TAG, NULL_TAG = "tag:yaml.org,2002:map", "tag:yaml.org,2002:null"


@dataclass(frozen=True)
class Setting:
    """A value and the place where it was written, such as "sweeps/dann.yaml:12" or "command line"."""

    value: Any
    place: str


Settings = dict[str, Setting]  # by dotted key, such as model.gamma


def flatten(document: Document) -> Document:
    """Return {dotted key: value} of all values that are not mappings."""
    return dict(_iterate_values(document, ""))


def to_settings(document: Document, place: str) -> Settings:
    """Return the settings of a document, all written in one place."""
    return {key: Setting(value, place) for key, value in flatten(document).items()}


def nest(settings: Settings) -> Document:
    """Return settings as a nested document: model.gamma = 5 becomes {model: {gamma: 5}}."""
    document: Document = {}
    for key, setting in settings.items():
        *blocks, last = key.split(".")
        inner = document
        for block in blocks:
            inner = inner.setdefault(block, {})
        inner[last] = setting.value
    return document


def merge(under: Settings, over: Settings) -> Settings:
    """Return `under` with the settings of `over`, key by key; a value replaces a block, and a block a value."""
    result = dict(under)
    for key, setting in over.items():
        parts = key.split(".")
        for length in range(1, len(parts)):
            result.pop(".".join(parts[:length]), None)
        block = f"{key}."
        inside = () if key in result else [other for other in result if other.startswith(block)]
        if inside and setting.value == {}:
            continue  # An empty block changes nothing.
        for other in inside:
            del result[other]
        result[key] = setting
    return result


def find_place(settings: Settings, key: str, default: str) -> str:
    """Return where a key was written, or the block around it, or a key inside it; `default` if nowhere."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if setting := settings.get(".".join(parts[:length])):
            return setting.place
    places = [setting.place for other, setting in settings.items() if other.startswith(f"{key}.")]
    return COMMAND_LINE if COMMAND_LINE in places else next(iter(places), default)


def parse_overrides(words: list[str]) -> Settings:
    """Parse words such as model.gamma=5 or train.seed=[0,1]; ConfigError."""
    overrides: Settings = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"{COMMAND_LINE}: {word!r} is not key=value, such as train.steps=500")
        if key.split(".")[0] in ("base", *AXES, "trials"):
            raise ConfigError(f"{COMMAND_LINE}: {key}: only a file sets this; name the key itself: train.seed=[0,1,2]")
        try:
            loader = yaml.CSafeLoader(text)
            if (node := loader.get_single_node()) is not None:
                _check_keys(node, COMMAND_LINE)
            value = None if node is None else loader.construct_document(node)
            overrides |= to_settings({key: value}, COMMAND_LINE)
        except yaml.YAMLError:
            raise ConfigError(
                f"{COMMAND_LINE}: {key}: {text!r} is not a YAML value; close its brackets, and quote the whole word "
                f"for the shell: '{key}=[0, 1]'"
            ) from None
    return overrides


def read_settings(path: Path, derived: tuple[Path, ...] = ()) -> Settings:
    """Read a YAML file over the file that its `base:` names, relative to it; ConfigError.

    `derived` are the files that build on this one. An entry of `trials:` is itself of type Settings.
    """
    path = path.resolve()
    if path in derived:
        chain = " → ".join(shorten_path(p) for p in (*derived, path))
        raise ConfigError(f"{shorten_path(path)}: base: circular: {chain}; remove one `base:`")
    settings = _read_file(path, f" (named by base: in {shorten_path(derived[-1])})" if derived else "")
    base = settings.pop("base", None)
    if base is None:
        return settings
    under = read_settings(path.parent / str(base.value), (*derived, path))
    under.pop("name", None)  # A sweep that builds on another one has its own name.
    return merge(under, settings)


def shorten_path(path: Path) -> str:
    """Return a path as a user would type it from the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _iterate_values(document: Document, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict) and f"{prefix}{key}" not in WHOLE_MAPPINGS:
            yield from _iterate_values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_file(path: Path, reason: str) -> Settings:
    """Read the settings of one file, without its base; ConfigError, with `reason` why it was to be read."""
    name = shorten_path(path)
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{name}: cannot read this file: {error.strerror}{reason}; {_suggest_files(path)}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}:{line}: is not UTF-8 text; save it as UTF-8") from None
    try:
        loader = yaml.CSafeLoader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{name}: must be a mapping of keys to values; see sweeps/README.md")
        _check_keys(root, name)
        return _read_mapping(loader, root, name)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        position = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        lines = text.split("\n")[mark.line : mark.line + 1] if mark else []  # none if the end of the file is missing
        tab = "\t" in "".join(lines)
        remedy = "indent with spaces, not with tabs" if tab else "check the indentation and the quotes here"
        raise ConfigError(f"{name}{position}: not valid YAML: {problem}; {remedy}") from None


def _read_mapping(loader: yaml.CSafeLoader, root: yaml.MappingNode, name: str, suffix: str = "") -> Settings:
    """Return the settings of a mapping; a key without a value, such as `train:`, is ignored."""
    settings: Settings = {}
    notations: dict[str, tuple[str, str]] = {}  # setting -> the key of this mapping that it was written under, place
    loader.flatten_mapping(root)  # resolves <<
    for key, node in root.value:
        if node.tag == NULL_TAG:
            continue
        place = f"{name}:{key.start_mark.line + 1}{suffix}"
        if key.value == "trials":
            settings["trials"] = Setting(_read_trials(loader, node, name), place)
        else:
            inner = dict(_iterate_nodes(loader, key.value, node, place, name, suffix))
            for setting in inner:
                _check_notation(notations, setting, key.value, inner[setting].place)
            settings = merge(settings, inner)
    return settings


def _check_notation(notations: dict[str, tuple[str, str]], setting: str, key: str, place: str) -> None:
    """Refuse a setting that was written under another key of the same mapping, such as a.b: 1 beside a: {b: 2}."""
    other, first = notations.setdefault(setting, (key, place))
    if other != key:
        raise ConfigError(f"{place}: {setting}: duplicate key (also under {other}: at {first}); remove one")


def _read_trials(loader: yaml.CSafeLoader, root: yaml.Node, name: str) -> Any:
    """Return the entries of `trials:`; if there are several, every place says which one it is in."""
    if not isinstance(root, yaml.SequenceNode):
        return loader.construct_object(root, deep=True)
    return [
        _read_mapping(loader, node, name, f": trials[{number}]" if len(root.value) > 1 else "")
        if isinstance(node, yaml.MappingNode)
        else loader.construct_object(node, deep=True)
        for number, node in enumerate(root.value)
    ]


def _iterate_nodes(
    loader: yaml.CSafeLoader, key: str, node: yaml.Node, place: str, name: str, suffix: str
) -> Iterator[tuple[str, Setting]]:
    """Yield the settings below a key, each with its own line; an empty mapping is a value."""
    is_block = isinstance(node, yaml.MappingNode) and node.tag == MAPPING_TAG and key not in WHOLE_MAPPINGS
    if not isinstance(node, yaml.MappingNode) or not is_block or not node.value:
        yield key, Setting(loader.construct_object(node, deep=True), place)
        return
    loader.flatten_mapping(node)
    notations: dict[str, tuple[str, str]] = {}
    for inner, value in node.value:
        line = f"{name}:{inner.start_mark.line + 1}{suffix}"
        for setting, content in _iterate_nodes(loader, f"{key}.{inner.value}", value, line, name, suffix):
            _check_notation(notations, setting, inner.value, content.place)
            yield setting, content


def _suggest_files(path: Path) -> str:
    """Return the remedy for a path that cannot be read: the YAML files beside it."""
    near = Path("sweeps", path.name).with_suffix(".yaml")
    if not path.exists() and near.exists():
        return f"did you mean {near}?"
    names = sorted(p.name for p in (path if path.is_dir() else path.parent).glob("*.yaml"))
    return f"files there: {', '.join(names)}" if names else "check the path"


def _check_keys(node: yaml.Node, name: str, outer: tuple[yaml.Node, ...] = (), is_whole: bool = False) -> None:
    """Refuse what YAML accepts silently: duplicate keys, keys that are not text, recursive anchors, octal numbers.

    Numbers to base 60 become text: nobody means 90 by 1:30.
    """
    if any(node is ancestor for ancestor in outer):
        raise ConfigError(f"{name}:{outer[-1].start_mark.line + 1}: recursive anchor; write the value out")
    if isinstance(node, yaml.ScalarNode) and node.tag == INTEGER_TAG and OCTAL.fullmatch(node.value):
        line = node.start_mark.line + 1
        place = name if name == COMMAND_LINE else f"{name}:{line}"
        octal, decimal = int(node.value, 8), int(node.value)
        remedy = f"{decimal} or {octal}" if octal != decimal else f"{decimal}"
        raise ConfigError(f"{place}: {node.value}: YAML reads a leading 0 as octal, {octal}; write {remedy}")
    if isinstance(node, yaml.ScalarNode) and node.tag in (INTEGER_TAG, FLOAT_TAG) and ":" in node.value:
        node.tag = STRING_TAG
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag not in KEY_TAGS and not is_whole:
                text = key.value if isinstance(key, yaml.ScalarNode) else key.id
                raise ConfigError(f"{name}:{line}: {text}: a key must be text; put it in quotes")
            if key.value in lines:
                first = lines[key.value]
                raise ConfigError(f"{name}:{line}: {key.value}: duplicate key (first on line {first}); remove one")
            lines[key.value] = line
            is_classes = str(key.value).rpartition(".")[2] == "classes"
            _check_keys(value, name, (*outer, node), is_classes)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(value, name, (*outer, node))
