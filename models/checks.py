"""Which image sizes, widths and batches the networks take, without torch, so that a bad sweep is never queued.

A method names its functions by the class attributes `check` and `least_batch`. Networks call the same functions, or are
compared by tests.
"""

from collections.abc import Callable, Mapping
from typing import Any

# Net of models/nets/digits.py -> smallest image, pixels, of which its convolutions and poolings leave something.
LEAST_SIZES = {"lenet": 16, "slim": 8, "compact": 16, "svhn": 4, "usps": 4, "deep": 32, "gta": 1}
# Net of models/ddpm.py -> its published width, and the divisor of a width.
UNETS = {"context_unet": (128, 8), "attention_unet": (64, 4)}


def factor_size(size: int) -> tuple[int, int]:
    """Return the size of the smallest map and the number of doublings up to `size`: 64 -> (4, 4), 28 -> (7, 2).

    ValueError unless `size` is 4 to 7 times a power of two.
    """
    base, doublings = size, 0
    while base >= 8 and base % 2 == 0:
        base, doublings = base // 2, doublings + 1
    if not 4 <= base < 8 or not doublings:
        raise ValueError(f"data.size: {size} must be 4, 5, 6 or 7 times 2, 4, 8, …: 28, 32, 48, 64, 128; set data.size")
    return base, doublings


def check_doublings(size: int, arguments: Mapping[str, Any]) -> None:
    """Check that repeated doubling leads from a map of 4 to 7 pixels to the image; ValueError."""
    factor_size(size)


def check_unet(size: int, arguments: Mapping[str, Any]) -> None:
    """Check that the image can be halved twice and that groups or heads share the channels equally; ValueError."""
    net = arguments["net"]
    published, divisor = UNETS[net]
    if size % 4:
        near = max(1, round(size / 4)) * 4
        raise ValueError(f"data.size: {size} is not divisible by 4 ({net} halves images twice); use {near}")
    if (width := arguments["width"] or published) % divisor:
        near = max(1, round(width / divisor)) * divisor
        raise ValueError(f"model.width: {width} is not divisible by {divisor} ({net} shares channels); use {near}")


def check_digit_net(size: int, arguments: Mapping[str, Any]) -> None:
    """Check that the image is large enough for the net; ValueError."""
    net = arguments["net"]
    if size < LEAST_SIZES[net]:
        raise ValueError(f"data.size: {size} is too small for the net {net}; use {LEAST_SIZES[net]} or more")


CHECKS: dict[str, Callable[[int, Mapping[str, Any]], None]] = {
    "doublings": check_doublings,
    "unet": check_unet,
    "digit_net": check_digit_net,
}

# Fewest images of a batch in training, by image size and arguments: batch norm needs two values of a channel, and of
# one image a hidden layer or a map of one pixel has only one.
LEAST_BATCHES: dict[str, Callable[[int, Mapping[str, Any]], int]] = {
    "pair": lambda size, arguments: 2,
    "digit_net": lambda size, arguments: 1 if arguments["net"] in ("deep", "gta") else 2,  # without domain classifier
    "five_halvings": lambda size, arguments: 2 if size <= 32 else 1,
}
