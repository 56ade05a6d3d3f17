"""Errors that the user can fix, and the check of a name against the valid ones."""

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """Bad input: one message with file, key, value and remedy; commands exit with code 2."""


class DataError(ValueError):
    """Unavailable or invalid data: the message names the dataset or file and the remedy."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read: the message says what is still intact."""


def check_known(name: str, valid: Iterable[str], kind: str) -> str:
    """Return `name` if it is valid; ValueError with the nearest and all valid names otherwise."""
    valid = list(valid)
    if name in valid:
        return name
    guess = get_close_matches(name, valid, 1)
    hint = f"did you mean {guess[0]!r}? " if guess else ""
    raise ValueError(f"unknown {kind} {name!r}; {hint}valid: {', '.join(valid) or 'none'}")
