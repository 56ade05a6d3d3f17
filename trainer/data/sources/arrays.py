"""Arrays of images in the forms that people save: any order of axes, integers or floating point, any shape."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trainer.data.dataset import Findings, Form
from trainer.data.rgb import fit, parse_colour, to_rgb
from trainer.errors import DataError

if TYPE_CHECKING:
    import numpy as np

CHANNELS = (1, 3, 4)


def find_axes(shape: tuple[int, ...]) -> tuple[int, int, int | None] | None:
    """Return the axes of height, width and channels of images [n, …], None for no axis; None if it is ambiguous."""
    if len(shape) == 3:
        return 1, 2, None
    if len(shape) != 4:
        return None
    last = shape[3] in CHANNELS
    first = shape[1] in (1, 3) or (shape[1] in CHANNELS and not last)
    if last and first:  # tiny or odd images: only where the other reading is not square is this one sure
        last, first = shape[1] == shape[2] != shape[3], shape[2] == shape[3] != shape[1]
    return (1, 2, 3) if last and not first else (2, 3, 1) if first and not last else None


def to_bytes(arrays: "Mapping[str, np.ndarray]", where: str, findings: Findings) -> "dict[str, np.ndarray]":
    """Return images of all splits as uint8 [n, height, width, channels], by one rule for all of them.

    Unsigned 16-bit integers keep their high byte; other integers must be in 0 … 255, floating point in [0, 1], [-1, 1]
    or integral in 0 … 255. The rule is added to the notes; DataError where none applies.
    """
    import numpy as np

    shapes = {array.shape[1:] for array in arrays.values()}
    kinds = {array.dtype for array in arrays.values()}
    if len(shapes) > 1 or len(kinds) > 1 or not all(len(array) for array in arrays.values()):
        facts = ", ".join(f"{prefix}images {array.dtype} {array.shape}" for prefix, array in arrays.items())
        raise DataError(f"{where}: the splits differ: {facts}; give all the same type and shape, and no empty split")
    for prefix, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            first = np.argwhere(~np.isfinite(array))[0]
            raise DataError(f"{where}: {prefix}images[{first[0]}] has a value that is not finite; repair or drop it")
    low = min(array.min() for array in arrays.values())
    high = max(array.max() for array in arrays.values())
    dtype = next(iter(kinds))
    scale, rule = None, ""
    if dtype == np.uint8:
        scale = lambda array: array  # noqa: E731
    elif dtype.kind == "b":
        scale, rule = (lambda array: array.astype(np.uint8) * np.uint8(255)), "true is white"
    elif dtype.kind in "ui" and low >= 0 and high <= 255:
        scale, rule = (lambda array: array.astype(np.uint8)), "0 … 255"
    elif dtype == np.uint16:
        scale, rule = (lambda array: (array >> 8).astype(np.uint8)), "65535 is white"
    elif dtype.kind == "f" and low >= 0 and high <= 1:
        scale, rule = (lambda array: np.rint(array * 255.0).astype(np.uint8)), "[0, 1]"
    elif dtype.kind == "f" and low >= -1 and high <= 1:
        scale, rule = (lambda array: np.rint((array + 1.0) * 127.5).astype(np.uint8)), "[-1, 1]"
    elif dtype.kind == "f" and low >= 0 and high <= 255 and all((a == np.rint(a)).all() for a in arrays.values()):
        scale, rule = (lambda array: array.astype(np.uint8)), "0 … 255"
    if scale is None:
        raise DataError(
            f"{where}: images are {dtype} from {low} to {high}, so their white is unknown; save uint8, uint16, "
            "or floating point in [0, 1] or [-1, 1]"
        )
    axes = find_axes(next(iter(arrays.values())).shape)
    if axes is None:
        raise DataError(f"{where}: images have shape {shapes}, so their channels are unknown; save [n, h, w, channels]")
    if rule:
        findings.notes.append(f"images are {dtype}: assumed {rule}")
    if axes[2] == 1:
        findings.notes.append("images are [n, channels, height, width]")
    return {
        prefix: np.stack([scale(image) for image in array]) if array.dtype.kind == "f" else scale(array)
        for prefix, array in (
            (prefix, array[..., None] if axes[2] is None else np.moveaxis(array, axes[2], 3))
            for prefix, array in arrays.items()
        )
    }


def fit_arrays(images: "np.ndarray", form: Form, findings: Findings) -> "np.ndarray":
    """Return images uint8 [n, h, w, c] as [n, 1 or 3, size, size]; square ones keep their size."""
    import numpy as np
    from PIL import Image

    height, width, channels = images.shape[1:]
    findings.add_size(width, height)
    if height == width and channels != 4:
        return images.transpose(0, 3, 1, 2)
    if height != width:
        findings.notes.append(f"images of {width} x {height} pixels are made square by data.crop: {form.crop}")
    background = parse_colour(form.background)
    size = form.size or height
    fitted = np.empty((len(images), size, size, 1 if channels == 1 else 3), np.uint8)
    for image, target in zip(images, fitted, strict=True):
        picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if channels == 1 else image))
        rgb = to_rgb(picture, background)
        square = rgb if height == width == size else fit(rgb, size, form.crop, background)
        target[:] = np.asarray(square)[..., : target.shape[2]]
    return fitted.transpose(0, 3, 1, 2)
