"""Confidence intervals of metrics."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri, stdtrit  # scipy.stats takes a second to import

Z = float(ndtri(0.975))


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion."""
    center, half = successes + Z**2 / 2, Z * math.sqrt(successes * (n - successes) / n + Z**2 / 4)
    low, high = (center - half) / (n + Z**2), (center + half) / (n + Z**2)
    return low if successes else 0.0, high if successes < n else 1.0  # without rounding at the ends


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's 95 % interval of the mean of two or more values, of which two give a very wide one."""
    mean, n = float(np.mean(values)), len(values)
    half = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def welch_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return Welch's 95 % interval of the difference of the means of two samples, each of two or more values."""
    errors = [float(np.var(values, ddof=1)) / len(values) for values in (first, second)]
    difference, error = float(np.mean(first) - np.mean(second)), sum(errors)
    if not error:
        return difference, difference
    squares = sum(e**2 / (len(v) - 1) for e, v in zip(errors, (first, second), strict=True))
    half = float(stdtrit(error**2 / squares, 0.975)) * math.sqrt(error)
    return difference - half, difference + half
