"""Resolve a document into a Config: fill in defaults, check every value, explain what is wrong."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError, create_model

import models
from trainer.config.document import SWEEP_KEYS, Document, read_settings
from trainer.config.schema import Config
from trainer.config.validators import Section
from trainer.errors import ConfigError, check_known


def load_config(file: Path) -> Config:
    """Read and resolve a run directory's config.yaml; ConfigError."""
    return resolve(read_settings(file), str(file))


def resolve(document: Document, origin: str | Callable[[str], str]) -> Config:
    """Fill in every default and check every value; ConfigError names the key, the remedy and where the key stands:
    `origin`, or what it says of the key."""
    where = (lambda key: origin) if isinstance(origin, str) else origin
    method = known_method(document.get("method"), where)
    schema = config_schema(method)
    try:
        config = schema.model_validate({"model": {}} | document)
    except ValidationError as error:
        key, problem = explain(error, schema)
        raise ConfigError(f"{where(key)}: {key}: {problem}") from None
    try:
        check_combinations(config)
    except ValueError as error:
        raise ConfigError(f"{where(str(error).partition(':')[0])}: {error}") from None
    channels, size, _ = config.data.shape()
    return config.model_copy(update={"data": config.data.model_copy(update={"channels": channels, "size": size})})


def known_method(name: Any, where: Callable[[str], str]) -> str:
    """Check that models/ has a method of that name; ConfigError with the nearest name otherwise."""
    try:
        if name is None:
            raise ValueError(f"missing; give one of {', '.join(models.names())}")
        model_schema(str(name))
        return str(name)
    except ValueError as error:
        raise ConfigError(f"{where('method')}: method: {error}") from None


def check_combinations(config: Config) -> None:
    """Check what concerns several keys at once; ValueError."""
    reads, sets = models.signature(config.method).reads, config.data.datasets()
    for key in reads:
        domain = key.rpartition("_")[0]
        if domain not in sets:
            given = ", ".join(f"{d or 'dataset'}: {n}" for d, n in sets.items()) or "nothing"
            raise ValueError(f"data: {config.method} reads {key!r}: give data.{domain or 'dataset'} (given: {given})")
    try:
        config.data.shape()
    except ValueError as error:
        raise ValueError(f"data: {error}") from None
    if config.data.source is not None and config.data.source == config.data.target:
        raise ValueError(
            f"data.target: {config.data.target!r} is the source, too, so there is nothing to adapt to; give another set"
        )
    if config.data.balanced and not any(key.endswith("labels") for key in reads):
        raise ValueError(
            f"data.balanced: {config.method} reads no labels, so classes cannot be drawn as often; leave it out"
        )
    parts = config.resources.nodes * config.resources.processes() * config.train.micro_batches
    check_batch_size(config.train.batch_size, parts)


def check_batch_size(batch_size: int, parts: int) -> None:
    """ValueError unless the global batch can be cut into `parts` = processes × micro-batches."""
    if batch_size % parts:
        near = max(1, round(batch_size / parts)) * parts
        raise ValueError(
            f"train.batch_size: {batch_size} does not divide by {parts} (processes × train.micro_batches); "
            f"the nearest that does is {near}"
        )


@lru_cache
def model_schema(method: str) -> type[BaseModel]:
    """The schema of the `model:` block, the signature of the method's constructor; ValueError if there is no method
    of that name."""
    check_known(method, models.names(), "method")
    fields: Any = {h.name: (h.annotation, h.default) for h in models.signature(method).hyperparameters}
    return create_model(f"{method} model", __base__=Section, **fields)


@lru_cache
def config_schema(method: str) -> type[Config]:
    """Return Config with the `model:` block of a method."""
    return create_model("Config", __base__=Config, model=(model_schema(method), ...))


def takes_list(method: str, key: str) -> bool:
    """Whether the value of a dotted key is itself a list."""
    block, _, name = key.partition(".")
    section = Config.model_fields.get(block)
    schema = model_schema(method) if block == "model" else section.annotation if section else None
    field = getattr(schema, "model_fields", {}).get(name)
    return field is not None and any(
        get_origin(a) in (list, tuple) for a in (field.annotation, *get_args(field.annotation))
    )


def explain(error: ValidationError, schema: type[BaseModel]) -> tuple[str, str]:
    """The dotted key of the first of pydantic's errors, and `value: what is wrong; what would be right`."""
    first = error.errors(include_url=False)[0]
    # Pydantic puts in what it tried: a validator, a member of a union, the key rather than its value.
    path = [str(p) for p in first["loc"] if not str(p).startswith("function-") and p not in ("str", "int", "[key]")]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        for part in path[:-1]:
            schema = schema.model_fields[part].annotation  # type: ignore[assignment]
        valid = list(schema.model_fields) + (["base", *SWEEP_KEYS] if issubclass(schema, Config) else [])
        try:
            check_known(path[-1], valid, "key")
        except ValueError as unknown:
            return key, str(unknown)
        return key, "must not stand here; it belongs to the top of a sweep file"
    if first["type"] == "missing":
        return key, "missing; give it a value"
    if first["type"].endswith("_type") and first["type"] in ("model_type", "dict_type"):
        return key, f"{first['input']!r}: must be a mapping of keys to values"
    message = first["msg"].removeprefix("Value error, ")
    value = "" if isinstance(first["input"], str) and repr(first["input"]) in message else f"{first['input']!r}: "
    return key, f"{value}{message[:1].lower()}{message[1:]}"
