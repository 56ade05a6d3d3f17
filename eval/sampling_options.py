"""Options of a method's `sample` on the command line: its keyword-only arguments are the schema of `--with`."""

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

WATCH = "watch"  # the argument of a callback that is called with each time reached and the images there


def parse_options(method: str, function: Callable[..., Tensor], words: list[str]) -> dict[str, Any]:
    """Parse `steps=50 noise=start.npy` into arguments of a method's `sample`; ConfigError with what is valid."""
    written, valid = nest(parse_overrides(words)), sample_options(function)
    tensors = {name for name, (kind, _) in valid.items() if Tensor in (kind, *get_args(kind))}
    schema: dict[str, Any] = {
        n: (str | None if n in tensors else kind, default) for n, (kind, default) in valid.items()
    }
    if written and not schema:
        raise ConfigError(f"--with {words[0]}: {method} has no sampling options; leave it out")
    model = create_model("sampling", __base__=Section, **schema)
    try:
        values = model.model_validate(written)
    except ValidationError as error:
        key, problem = explain(error, model)
        raise ConfigError(f"--with {key}: {problem}") from None
    return {
        name: load_tensor(value, f"--with {name}={value}") if name in tensors else getattr(values, name)
        for name, value in written.items()
    }


def sample_options(function: Callable[..., Tensor]) -> dict[str, tuple[Any, Any]]:
    """Return name → (type, default) of the keyword-only arguments that can be given on a command line."""
    types = get_type_hints(function, include_extras=True)
    arguments = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {
        p.name: (types[p.name], p.default)
        for p in arguments
        if not any(get_origin(part) is Callable or part is Callable for part in get_args(types[p.name]))
        and p.name != WATCH
    }


def can_be_watched(function: Callable[..., Tensor]) -> bool:
    """Return whether a `sample` takes a callback."""
    return WATCH in inspect.signature(function).parameters


def load_tensor(path: str, option: str) -> Tensor:
    """Return the one array of a .npy or .pt file as float32, without running code; ConfigError that names `option`."""
    try:
        if Path(path).suffix == ".npy":
            tensor = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - numpy, zipfile and pickle each have errors of their own
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{option}: cannot be read as .npy or .pt: {reason}") from None
    if not isinstance(tensor, Tensor) or not tensor.ndim or not bool(tensor.float().isfinite().all()):
        raise ConfigError(f"{option}: must hold one array of finite numbers")
    return tensor.float()
