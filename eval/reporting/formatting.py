"""How a value is written into a cell of a table."""

import json
from typing import Any

import numpy as np


def digits(value: float) -> str:
    """Four significant digits, without an exponent where one can read it without."""
    if type(value) is int:
        return str(value)
    rounded = f"{value:.3e}"
    if not np.isfinite(value) or value == 0:
        return f"{value:g}"
    exponent = int(rounded.partition("e")[2])
    return f"{float(rounded):.{max(0, 3 - exponent)}f}" if -5 < exponent < 7 else rounded


def deviation(mean: float, std: float) -> str:
    """A standard deviation with as many decimals as `digits` gives the mean, so that columns line up."""
    text = digits(mean)
    exact = mean == 0 or not np.isfinite(mean) or "e" in text
    return digits(std) if exact else f"{std:.{len(text.partition('.')[2])}f}"


def cell(values: dict[str, Any], key: str) -> str:
    """A value exactly: text as it is, everything else as JSON; empty where it is absent."""
    value = values.get(key, "")
    return value if isinstance(value, str) else json.dumps(value, default=str)


def shown(values: dict[str, Any], key: str) -> str:
    """A hyperparameter for the eye: as `cell`, but four significant digits are enough."""
    return f"{values[key]:.4g}" if type(values.get(key)) is float else cell(values, key)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever says it in few digits."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def oracle(metric: str) -> bool:
    """Whether the metric was chosen with target labels, which its name then says."""
    return "oracle" in metric.lower()
