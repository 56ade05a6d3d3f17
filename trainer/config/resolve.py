"""Resolve settings into a trial's configuration: fill in defaults, check every value, explain errors."""

import re
from contextlib import suppress
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError, create_model

import models
from models.checks import CHECKS, LEAST_BATCHES
from trainer.config.document import SWEEP_KEYS, Document, Settings, find_place, nest, read_settings, to_settings
from trainer.config.evaluation import check_method
from trainer.config.initial import fill_in
from trainer.config.schema import Config, Resources
from trainer.config.validators import Section
from trainer.data import registry
from trainer.errors import ConfigError, check_known


def load_config(file: Path) -> Config:
    """Read and resolve a run directory's config.yaml; ConfigError."""
    return resolve_settings(read_settings(file), str(file))


def resolve(document: Document, place: str) -> Config:
    """Resolve a document; ConfigError, which begins with `place`."""
    return resolve_settings(to_settings(document, place), place)


def resolve_settings(settings: Settings, file: str) -> Config:
    """Fill in every default and check every value.

    ConfigError with place, key, value and remedy; `file` is the place of keys that are not written anywhere.
    """
    method = find_method(settings, file)
    schema = config_schema(method)
    try:
        config = schema.model_validate({"model": {}} | nest(settings))
    except ValidationError as error:
        key, problem = explain(error, schema)
        raise ConfigError(f"{find_place(settings, key, file)}: {key}: {problem}") from None
    try:
        check_combinations(config)
    except ValueError as error:
        raise ConfigError(f"{find_place(settings, str(error).partition(':')[0], file)}: {error}") from None
    channels, size, _ = config.data.shape()
    update: dict[str, Any] = {"data": config.data.model_copy(update={"channels": channels, "size": size})}
    if config.train.init:
        try:
            init = fill_in(config.train.init, method, config.train.steps)
        except ValueError as error:
            key = f"train.init.{str(error).partition(':')[0]}"
            raise ConfigError(f"{find_place(settings, key, file)}: train.init.{error}") from None
        update["train"] = config.train.model_copy(update={"init": init})
    return config.model_copy(update=update)


def find_method(settings: Settings, file: str) -> str:
    """Return the method that settings name; ConfigError if there is none of that name."""
    name = settings["method"].value if "method" in settings else None
    try:
        if name is None:
            raise ValueError(f"missing; give one of {', '.join(models.names())}")
        return check_method(str(name))
    except ValueError as error:
        raise ConfigError(f"{find_place(settings, 'method', file)}: method: {error}") from None


def check_combinations(config: Config) -> None:
    """Check settings that depend on each other; ValueError, which begins with the key."""
    reads, datasets = models.signature(config.method).reads, config.data.datasets()
    for key in reads:
        domain = key.rpartition("_")[0]
        if domain not in datasets:
            current = ", ".join(f"{d or 'dataset'}: {name}" for d, name in datasets.items()) or "nothing"
            raise ValueError(f"data: {config.method} reads {key!r}: give data.{domain or 'dataset'} (given: {current})")
    try:
        config.data.shape()
    except ValueError as error:
        separator = "." if str(error).startswith("classes:") else ": "
        raise ValueError(f"data{separator}{error}") from None
    for key in reads:
        domain, _, kind = key.rpartition("_")
        dataset = registry.get(datasets[domain])
        if (kind or key) == "labels" and (not dataset.classes or "train" in dataset.unlabelled):
            raise ValueError(
                f"data.{domain or 'dataset'}: {dataset.name} has no labels to train on, but {config.method} reads "
                f"{key!r}; choose a labelled dataset, or a method that reads none"
            )
    if config.data.source is not None and config.data.source == config.data.target:
        raise ValueError(
            f"data.target: {config.data.target!r} is also the source, so there is nothing to adapt to; "
            "give another dataset"
        )
    if config.data.balanced and not any(key.endswith("labels") for key in reads):
        raise ValueError(f"data.balanced: {config.method} reads no labels, so classes cannot be balanced; leave it out")
    try:
        config.evaluation_resources()
    except ValidationError as error:
        raise ValueError(f"eval.resources: {explain(error, Resources)[1]}") from None
    check_batch(config, config.resources.nodes * config.resources.processes())
    if check := models.signature(config.method).check:
        CHECKS[check](config.data.shape()[1], config.model_arguments())


def check_batch(config: Config, processes: int) -> None:
    """Check that the global batch can be split into processes × micro-batches, each of enough images; ValueError."""
    batch_size, parts = config.train.batch_size, processes * config.train.micro_batches
    rule = models.signature(config.method).least_batch
    least = LEAST_BATCHES[rule](config.data.shape()[1], config.model_arguments()) if rule else 1
    if batch_size < parts * least and least > 1:
        raise ValueError(
            f"train.batch_size: {batch_size} is too small: batch norm of {config.method} needs {least} images in each "
            f"process and micro-batch; use {parts * least} or more"
        )
    if batch_size % parts:
        nearest = max(1, round(batch_size / parts)) * parts
        raise ValueError(
            f"train.batch_size: {batch_size} is not divisible by {parts} (processes × train.micro_batches); "
            f"the nearest valid size is {nearest}"
        )


@lru_cache
def model_schema(method: str) -> type[BaseModel]:
    """Return the schema of a method's `model:` block, which is the signature of its constructor."""
    fields: Any = {h.name: (h.annotation, h.default) for h in models.signature(method).hyperparameters}
    return create_model(f"{method} model", __base__=Section, **fields)


@lru_cache
def config_schema(method: str) -> type[Config]:
    """Return Config with the `model:` block of a method."""
    return create_model("Config", __base__=Config, model=(model_schema(method), ...))


def takes_list(method: str, key: str) -> bool:
    """Return whether a single value of a dotted key is itself a list."""
    schema: Any = config_schema(method)
    for name in key.split("."):
        field = getattr(schema, "model_fields", {}).get(name)
        schema = field and field.annotation
    return field is not None and any(
        get_origin(a) in (list, tuple) for a in (field.annotation, *get_args(field.annotation))
    )


def explain(error: ValidationError, schema: type[BaseModel]) -> tuple[str, str]:
    """Return the dotted key of pydantic's first error, and `value: what is wrong; what is valid`."""
    first = error.errors(include_url=False)[0]
    # Pydantic's path also names validators, members of unions and mapping keys.
    path = [str(p) for p in first["loc"] if not str(p).startswith("function-") and p not in ("str", "int", "[key]")]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        for part in path[:-1]:
            annotation = schema.model_fields[part].annotation
            schema = next(kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields"))
        valid = list(schema.model_fields) + (["base", *SWEEP_KEYS] if issubclass(schema, Config) else [])
        try:
            check_known(path[-1], valid, "key")
        except ValueError as unknown:
            name, fields = path[-1], schema.model_fields.items()
            blocks = [block for block, field in fields if name in getattr(field.annotation, "model_fields", {})]
            if issubclass(schema, Config) and not blocks and is_hyperparameter(name):
                blocks = ["model"]
            hint = " or ".join(f"{block}.{name}" for block in blocks)
            return key, f"unknown key {name!r}; did you mean {hint}?" if hint else str(unknown)
        return key, "only allowed at the top level of a sweep file"
    if first["type"] == "missing":
        return key, "missing; give it a value"
    if first["type"] in ("model_type", "dict_type"):
        return key, f"{first['input']!r}: must be a mapping of keys to values"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "literal_error":
        words = re.findall("'([^']*)'", first["ctx"]["expected"])
        guess = get_close_matches(str(first["input"]), words, 1, 0.5)  # such as fp16 for float16
        message += f"; did you mean {guess[0]}?" if guess else ""
    value = "" if isinstance(first["input"], str) and repr(first["input"]) in message else f"{first['input']!r}: "
    return key, f"{value}{message[:1].lower()}{message[1:]}"


def is_hyperparameter(name: str) -> bool:
    """Return whether any method has a hyperparameter of this name."""
    for method in models.names():
        with suppress(TypeError, SyntaxError):  # a method that is being written
            if any(hyperparameter.name == name for hyperparameter in models.signature(method).hyperparameters):
                return True
    return False
