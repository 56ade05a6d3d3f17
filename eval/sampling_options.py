"""Options of a method's `sample`, from the command line: its keyword-only arguments are the schema of `--with`."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import torch
from pydantic import ValidationError, create_model
from torch import Tensor

from trainer.config.document import nest, parse_overrides
from trainer.config.resolve import explain
from trainer.config.validators import Section
from trainer.errors import ConfigError

WATCH = "watch"  # a function that is called with the time reached and the images there, as they come about


def read_options(method: str, function: Callable[..., Tensor], words: list[str]) -> dict[str, Any]:
    """Turn `steps=50 noise=start.npy` into arguments of a method's `sample`; ConfigError with what is valid."""
    given, schema = nest(parse_overrides(words)), {}
    for name, (kind, default) in accepted(function).items():
        schema[name] = (str | None if Tensor in (kind, *get_args(kind)) else kind, default)
    if given and not schema:
        raise ConfigError(f"--with {words[0]}: {method} has no options of sampling; leave it out")
    model = create_model("sampling", __base__=Section, **schema)  # type: ignore[call-overload]
    try:
        values = model.model_validate(given)
    except ValidationError as error:
        key, problem = explain(error, model)
        raise ConfigError(f"--with {key}: {problem}") from None
    kinds = {name: kind for name, (kind, _) in accepted(function).items()}
    tensors = {name for name, kind in kinds.items() if Tensor in (kind, *get_args(kind))}
    return {
        name: read_tensor(given[name], f"--with {name}={given[name]}") if name in tensors else getattr(values, name)
        for name in given
    }


def accepted(function: Callable[..., Tensor]) -> dict[str, tuple[Any, Any]]:
    """Name -> (type, default) of the keyword-only arguments that can be written down."""
    types = get_type_hints(function, include_extras=True)
    keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {
        p.name: (types[p.name], p.default)
        for p in keywords
        if not any(get_origin(part) is Callable or part is Callable for part in get_args(types[p.name]))
        and p.name != WATCH
    }


def watched(function: Callable[..., Tensor]) -> bool:
    """Whether one may look on while it makes images."""
    return WATCH in inspect.signature(function).parameters


def read_tensor(path: str, option: str) -> Tensor:
    """The one array of a .npy or .pt file, float32; nothing in it is run. ConfigError, which begins with `option`."""
    try:
        if Path(path).suffix == ".npy":
            found = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - numpy, zipfile and pickle each have errors of their own
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{option}: cannot be read as .npy or .pt: {reason}") from None
    if not isinstance(found, Tensor) or not found.ndim or not bool(found.float().isfinite().all()):
        raise ConfigError(f"{option}: must hold one array of finite numbers")
    return found.float()
