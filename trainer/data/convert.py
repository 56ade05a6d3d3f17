"""Convert images to the size and channels of a trial, in the cache's memory order."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def convert(images: "np.ndarray", size: int, channels: int) -> "np.ndarray":
    """Convert uint8 [N, C, H, W], C in {1, 3}, to uint8 [N, size, size, channels], contiguous.

    RGB to grey is the luminance of ITU-R 601, grey to RGB is replicated, a new size is bilinear with antialiasing.
    """
    import numpy as np

    pixels = images.transpose(0, 2, 3, 1)
    if channels < pixels.shape[3]:
        weights = np.array([19595, 38470, 7471], np.uint32)  # 0.299, 0.587, 0.114 in 16 bits, as in PIL's "L"
        pixels = ((pixels @ weights + 0x8000) >> 16).astype(np.uint8)[..., None]
    if pixels.shape[1:3] != (size, size):
        pixels = _resize(pixels, size)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:3], channels)))


def _resize(pixels: "np.ndarray", size: int) -> "np.ndarray":
    """Resize uint8 [N, H, W, C] to uint8 [N, size, size, C], one picture at a time by PIL."""
    import numpy as np
    from PIL import Image

    grey = pixels.shape[3] == 1
    resized = np.empty((len(pixels), size, size, pixels.shape[3]), np.uint8)
    for source, target in zip(pixels, resized, strict=True):
        picture = Image.fromarray(np.ascontiguousarray(source[..., 0] if grey else source))
        target[:] = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)).reshape(target.shape)
    return resized
