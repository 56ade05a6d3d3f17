"""Turn any picture that Pillow opens into upright 8-bit RGB, or say why its values have no defined colour."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0)}
WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
WITHOUT_ALPHA = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
PHOTOMETRIC, MIN_IS_WHITE = 262, 0  # TIFF tag and its value for inverted grey


def parse_colour(text: str) -> tuple[int, int, int]:
    """Return red, green and blue of white, black or #rrggbb; ValueError."""
    if text in COLOURS:
        return COLOURS[text]
    digits = text.removeprefix("#")
    if len(text) != 7 or len(digits) != 6 or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
        raise ValueError(f"{text!r}: must be white, black or #rrggbb in quotes")
    return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)


def to_rgb(picture: "Image", background: tuple[int, int, int]) -> "Image":
    """Return a picture as mode RGB, turned upright by its EXIF orientation, transparent pixels over `background`.

    16-bit grey becomes 8-bit by its high byte, as Pillow reads 16-bit colour. ValueError for values without a defined
    white: floating point, 32-bit and signed integers, and Lab.
    """
    import numpy as np
    from PIL import Image, ImageOps

    ImageOps.exif_transpose(picture, in_place=True)
    key = picture.info.get("transparency")
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PPM", "PNG")):
        values = np.asarray(picture).astype(np.uint16)
        if picture.format == "TIFF" and picture.tag_v2.get(PHOTOMETRIC) == MIN_IS_WHITE:  # type: ignore[attr-defined]
            values = 65535 - values
        grey = np.dstack([(values >> 8).astype(np.uint8)] * 3)
        if isinstance(key, int):
            grey[values == key] = background
        return Image.fromarray(grey)
    if picture.mode in WITH_ALPHA or (picture.mode in ("1", "L", "P", "RGB") and key is not None):
        if picture.mode in ("La", "RGBa"):
            picture = picture.convert(picture.mode.upper())
        rgba = np.asarray(picture.convert("RGBA")).astype(np.uint32)
        alpha = rgba[..., 3:]
        blended = (rgba[..., :3] * alpha + np.array(background, np.uint32) * (255 - alpha) + 127) // 255
        return Image.fromarray(blended.astype(np.uint8))
    if picture.mode not in WITHOUT_ALPHA:
        raise ValueError(f"pixels of mode {picture.mode} have no defined white; save it with 8 or 16 bits a channel")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def fit(picture: "Image", size: int, crop: str, background: tuple[int, int, int]) -> "Image":
    """Return an RGB picture as a square of `size`, bilinear with antialiasing.

    center: cut to the centre square; pad: keep all, with borders of `background`; stretch: change the aspect.
    """
    from PIL import Image

    width, height = picture.size
    if width == height == size:
        return picture
    bilinear = Image.Resampling.BILINEAR
    if crop == "stretch":
        return picture.resize((size, size), bilinear)
    if crop == "pad":
        longest = max(width, height)
        scaled = [max(1, round(side * size / longest)) for side in (width, height)]
        square = Image.new("RGB", (size, size), background)
        square.paste(
            picture.resize((scaled[0], scaled[1]), bilinear), ((size - scaled[0]) // 2, (size - scaled[1]) // 2)
        )
        return square
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.crop((left, top, left + side, top + side)).resize((size, size), bilinear)


def least_side(size: tuple[int, int], crop: str) -> int:
    """Return the side of a picture that must not be smaller than the requested size."""
    return max(size) if crop == "pad" else min(size)
