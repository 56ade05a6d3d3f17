"""Errors about the user's input, and the check of a name against the valid ones."""

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """Bad input: one message that names file, key, value and remedy; commands exit with code 2."""


class DataError(ValueError):
    """Unavailable or invalid data: the message names the dataset or the file and the remedy."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read: the message says what is still intact."""


def check_known(name: str, valid: Iterable[str], kind: str) -> str:
    """Return `name` if it is valid, else raise ValueError with the nearest and all valid names."""
    valid = list(valid)
    if name in valid:
        return name
    guess = get_close_matches(name, valid, 1)
    hint = f"did you mean {guess[0]!r}? " if guess else ""
    raise ValueError(f"unknown {kind} {name!r}; {hint}valid: {', '.join(valid) or 'none'}")
