"""Format values for the cells of tables."""

import json
from typing import Any

import numpy as np


def format_number(value: float) -> str:
    """Format an integer exactly, a float with four significant digits, with an exponent only if it is very long."""
    if type(value) is int:
        return str(value)
    if not np.isfinite(value) or value == 0:
        return f"{value:g}"
    rounded = f"{value:.3e}"
    exponent = int(rounded.partition("e")[2])
    return f"{float(rounded):.{max(0, 3 - exponent)}f}" if -5 < exponent < 7 else rounded


def format_deviation(mean: float, std: float) -> str:
    """Format a standard deviation with the decimals of its mean, so that columns align."""
    text = format_number(mean)
    has_decimals = mean != 0 and np.isfinite(mean) and "e" not in text
    return f"{std:.{len(text.partition('.')[2])}f}" if has_decimals else format_number(std)


def format_interval(interval: tuple[float, float] | None) -> str:
    """Format the bounds of an interval; empty without one."""
    return f"[{format_number(interval[0])}, {format_number(interval[1])}]" if interval else ""


def format_difference(value: float) -> str:
    """Format a difference with its sign."""
    return f"+{format_number(value)}" if value > 0 else format_number(value)


def format_exactly(values: dict[str, Any], key: str) -> str:
    """Format a value in full precision: strings unchanged, other types as JSON; empty if absent."""
    value = values.get(key, "")
    return value if isinstance(value, str) else json.dumps(value, default=str)


def format_setting(values: dict[str, Any], key: str) -> str:
    """Format a swept value as `format_exactly` does, but floats with four significant digits."""
    return f"{values[key]:.4g}" if type(values.get(key)) is float else format_exactly(values, key)


def format_duration(seconds: float) -> str:
    """Format a duration in hours, minutes or seconds, whichever is short."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def is_oracle(metric: str) -> bool:
    """Return whether a metric, by its name, is selected with target labels."""
    return "oracle" in metric.lower()


def split_question(abstract: str) -> tuple[str, str]:
    """Return the first paragraph of the head of a sweep's file, on one line, and the rest."""
    question, _, rest = abstract.strip().partition("\n\n")
    return " ".join(question.split()), rest.strip()
