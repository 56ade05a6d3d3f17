"""Files of the user's own, byte by byte: exact pixels and labels, or an exact refusal in one line.

The right values are computed by numpy from arrays that a test writes with an encoder of its own (PNG, TIFF, BMP, PNM,
TGA), never by the decoder under test.
"""

import csv
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from jobs import stage as command
from trainer.config.resolve import resolve
from trainer.data.cache import folder, load, origin, stage
from trainer.data.dataset import SPLITS, Findings, Form
from trainer.data.pictures import Pictures, decode_pictures
from trainer.data.registry import get
from trainer.data.sources.listing import list_folder
from trainer.data.store import create_temporary
from trainer.errors import DataError

SIDE = 8
RANDOM = np.random.RandomState(0)
GREY = RANDOM.randint(0, 256, (SIDE, SIDE))
RGB = RANDOM.randint(0, 256, (SIDE, SIDE, 3))
ALPHA = RANDOM.randint(0, 256, (SIDE, SIDE))
DEEP = RANDOM.randint(0, 65536, (SIDE, SIDE))
DEEP_RGB = RANDOM.randint(0, 65536, (SIDE, SIDE, 3))
BITS = RANDOM.randint(0, 2, (SIDE, SIDE))
PALETTE = RANDOM.randint(0, 256, (16, 3))
INDEX = RANDOM.randint(0, 16, (SIDE, SIDE))


def three(grey: np.ndarray) -> np.ndarray:
    return np.dstack([grey] * 3)


def over(colours: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """Return colours blended over a background by the definition, in exact arithmetic."""
    share = alpha[..., None] / 255
    return np.rint(colours * share + np.array(background) * (1 - share)).astype(int)


# Encoders


def png(values: np.ndarray, colour_type: int, depth: int = 8, **chunks: bytes) -> bytes:
    """Encode [h, w(, c)] values of `depth` bits; colour types: 0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGBA."""
    rows = values.reshape(len(values), -1)
    if depth == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    elif depth == 8:
        packed = [row.astype(np.uint8).tobytes() for row in rows]
    else:
        bits = [np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :].ravel() for row in rows]
        packed = [np.packbits(row).tobytes() for row in bits]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour_type, 0, 0, 0)
    body = {"IHDR": header, **chunks, "IDAT": zlib.compress(b"".join(b"\0" + row for row in packed)), "IEND": b""}
    encoded = [name.encode() + data for name, data in body.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in encoded
    )


def orientation(number: int) -> bytes:
    """Return an EXIF block with the tag Orientation."""
    return b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, number, 0) + b"\0\0\0\0"


def tiff(values: np.ndarray, photometric: int, kind: int = 1, order: Literal["<", ">"] = "<", turned: int = 1) -> bytes:
    """Encode one strip; the orientation is `turned`.

    photometric: 0 white is zero, 1 black is zero, 2 RGB, 5 CMYK; kind: 1 unsigned, 2 signed, 3 floating point.
    """
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    channels, bits = (values.shape[2] if values.ndim == 3 else 1), values.dtype.itemsize * 8
    depths = struct.pack(order + "H" * channels, *[bits] * channels)
    tags = [
        *((256, 4, 1, values.shape[1]), (257, 4, 1, values.shape[0]), (258, 3, channels, bits), (259, 3, 1, 1)),
        *(
            (262, 3, 1, photometric),
            (273, 4, 1, 0),
            (274, 3, 1, turned),
            (277, 3, 1, channels),
            (278, 4, 1, values.shape[0]),
        ),
        *((279, 4, 1, len(data)), (284, 3, 1, 1), (339, 3, 1, kind)),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, type_, count, value in tags:
        if tag == 258 and channels > 2:
            value = start
        elif tag == 273:
            value = start + len(depths)
        short = type_ == 3 and not (tag == 258 and channels > 2)
        entries += struct.pack(f"{order}HHI" + ("HH" if short else "I"), tag, type_, count, value, *[0] * short)
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(f"{order}HIH", 42, 8, len(tags)) + entries + bytes(4) + depths + data


def bmp(rgb: np.ndarray) -> bytes:
    """Encode 24 bits a pixel, bottom row first."""
    data = rgb[::-1, :, ::-1].astype(np.uint8).tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, rgb.shape[1], rgb.shape[0], 1, 24, 0, len(data), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54) + header + data


def bmp_palette(index: np.ndarray, palette: np.ndarray) -> bytes:
    """Encode 8 bits a pixel with a palette of 16 colours, top row first."""
    height, width = index.shape
    header = struct.pack("<IiiHHIIiiII", 40, width, -height, 1, 8, 0, index.size, 2835, 2835, 16, 0)
    colours = np.hstack([palette[:, ::-1], np.zeros((16, 1))]).astype(np.uint8).tobytes()
    start = 54 + len(colours)
    data = index.astype(np.uint8).tobytes()
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + colours + data


def tga(colours: np.ndarray, alpha: np.ndarray | None = None, first_row: Literal["top", "bottom"] = "top") -> bytes:
    """Encode uncompressed RGB, perhaps with alpha."""
    height, width = colours.shape[:2]
    kind, order = (24 if alpha is None else 32), (0x20 if first_row == "top" else 0) + (0 if alpha is None else 8)
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, width, height, kind, order)
    pixels = colours[..., ::-1] if alpha is None else np.dstack([colours[..., ::-1], alpha])
    return header + pixels[:: 1 if first_row == "top" else -1].astype(np.uint8).tobytes()


def pnm(kind: int, values: np.ndarray, largest: int) -> bytes:
    """Encode P2 (grey as text), P5 (grey) or P6 (RGB)."""
    head = f"P{kind}\n{values.shape[1]} {values.shape[0]}\n{largest}\n".encode()
    if kind < 4:
        return head + " ".join(map(str, values.ravel())).encode()
    return head + values.astype(">u2" if largest > 255 else np.uint8).tobytes()


def pil(array: np.ndarray, mode: str, kind: str, **options: Any) -> Callable[[Path], None]:
    """Return a function that saves a picture by Pillow, for formats that keep it without loss."""
    return lambda path: Image.frombytes(mode, array.shape[1::-1], array.tobytes()).save(path, kind, **options)


def gif(path: Path) -> None:
    image = Image.fromarray(INDEX.astype(np.uint8))
    image.putpalette(PALETTE.astype(np.uint8).tobytes())
    image.save(path, "GIF", transparency=3)


PLTE = PALETTE.astype(np.uint8).tobytes()
TURNED = {  # how a viewer shows an array whose EXIF orientation is the key
    1: RGB,
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.transpose(1, 0, 2),
    6: RGB.transpose(1, 0, 2)[:, ::-1],
    7: RGB.transpose(1, 0, 2)[::-1, ::-1],
    8: RGB.transpose(1, 0, 2)[::-1],
}
TRANSPARENT_ENTRY = np.where(INDEX == 3, 0, 255)
ENTRY_ALPHA = RANDOM.randint(0, 256, 16)
CMYK = RANDOM.randint(0, 256, (SIDE, SIDE, 4))

# name -> (file or a function that writes it, pixels that it has)
PIXELS: dict[str, tuple[bytes | Callable[[Path], None], np.ndarray]] = {
    "grey.png": (png(GREY, 0), three(GREY)),
    "rgb.png": (png(RGB, 2), RGB),
    "grey 16 bits.png": (png(DEEP, 0, 16), three(DEEP >> 8)),
    "rgb 16 bits.png": (png(DEEP_RGB, 2, 16), DEEP_RGB >> 8),
    "grey 1 bit.png": (png(BITS, 0, 1), three(BITS * 255)),
    "grey 2 bits.png": (png(INDEX % 4, 0, 2), three(INDEX % 4 * 85)),
    "grey 4 bits.png": (png(INDEX, 0, 4), three(INDEX * 17)),
    "grey and alpha.png": (png(np.dstack([GREY, ALPHA]), 4), over(three(GREY), ALPHA)),
    "rgba.png": (png(np.dstack([RGB, ALPHA]), 6), over(RGB, ALPHA)),
    "grey and alpha 16 bits.png": (
        png(np.dstack([DEEP, DEEP.T]), 4, 16),
        over(three(DEEP >> 8), DEEP.T >> 8),
    ),
    "rgba all transparent.png": (png(np.dstack([RGB, ALPHA * 0]), 6), RGB * 0 + 255),
    "rgba all opaque.png": (png(np.dstack([RGB, ALPHA * 0 + 255]), 6), RGB),
    "rgba 16 bits.png": (
        png(np.dstack([DEEP_RGB, DEEP]), 6, 16),
        over(DEEP_RGB >> 8, DEEP >> 8),
    ),
    "palette 4 bits.png": (png(INDEX, 3, 4, PLTE=PLTE), PALETTE[INDEX]),
    "palette 8 bits.png": (png(INDEX, 3, 8, PLTE=PLTE), PALETTE[INDEX]),
    "palette with a transparent entry.png": (
        png(INDEX, 3, 8, PLTE=PLTE, tRNS=b"\xff\xff\xff\0"),
        over(PALETTE[INDEX], TRANSPARENT_ENTRY),
    ),
    "palette with alpha.png": (
        png(INDEX, 3, 8, PLTE=PLTE, tRNS=ENTRY_ALPHA.astype(np.uint8).tobytes()),
        over(PALETTE[INDEX], ENTRY_ALPHA[INDEX]),
    ),
    "grey with a transparent value.png": (
        png(GREY, 0, 8, tRNS=struct.pack(">H", GREY[0, 0])),
        over(three(GREY), np.where(GREY[0, 0] == GREY, 0, 255)),
    ),
    "rgb with a transparent colour.png": (
        png(RGB, 2, 8, tRNS=struct.pack(">HHH", *RGB[0, 0])),
        over(RGB, np.where((RGB[0, 0] == RGB).all(2), 0, 255)),
    ),
    "grey 16 bits with a transparent value.png": (
        png(DEEP, 0, 16, tRNS=struct.pack(">H", DEEP[0, 0])),
        over(three(DEEP >> 8), np.where(DEEP[0, 0] == DEEP, 0, 255)),
    ),
    **{f"orientation {n}.png": (png(RGB, 2, eXIf=orientation(n)), TURNED[n]) for n in TURNED},
    "orientation 6 of 16 bits.png": (png(DEEP, 0, 16, eXIf=orientation(6)), three(DEEP.T[:, ::-1] >> 8)),
    "orientation 6 of rgba.png": (
        png(np.dstack([RGB, ALPHA]), 6, eXIf=orientation(6)),
        over(RGB, ALPHA).transpose(1, 0, 2)[:, ::-1],
    ),
    "grey.tif": (tiff(GREY.astype(np.uint8), 1), three(GREY)),
    "white is zero.tif": (tiff(GREY.astype(np.uint8), 0), three(255 - GREY)),
    "rgb.tiff": (tiff(RGB.astype(np.uint8), 2), RGB),
    "grey 16 bits.tif": (tiff(DEEP.astype(np.uint16), 1), three(DEEP >> 8)),
    "grey 16 bits, big-endian.tif": (tiff(DEEP.astype(np.uint16), 1, order=">"), three(DEEP >> 8)),
    "grey 16 bits, white is zero.tif": (tiff(DEEP.astype(np.uint16), 0), three((65535 - DEEP) >> 8)),
    "cmyk.tif": (
        tiff(CMYK.astype(np.uint8), 5),
        np.rint((255 - CMYK[..., :3]) * (255 - CMYK[..., 3:]) / 255).astype(int),
    ),
    "rgb 16 bits.tif": (tiff(DEEP_RGB.astype(np.uint16), 2), DEEP_RGB >> 8),
    "rgba.tif": (tiff(np.dstack([RGB, ALPHA]).astype(np.uint8), 2), over(RGB, ALPHA)),
    "orientation 6.tif": (tiff(RGB.astype(np.uint8), 2, turned=6), TURNED[6]),
    "orientation 7.tif": (tiff(RGB.astype(np.uint8), 2, turned=7), TURNED[7]),
    "rgb.bmp": (bmp(RGB), RGB),
    "palette, top row first.bmp": (bmp_palette(INDEX, PALETTE), PALETTE[INDEX]),
    "rgb.tga": (tga(RGB), RGB),
    "bottom row first.tga": (tga(RGB, first_row="bottom"), RGB),
    "rgba.tga": (tga(RGB, ALPHA), over(RGB, ALPHA)),
    "text.pgm": (pnm(2, GREY, 255), three(GREY)),
    "grey.pgm": (pnm(5, GREY, 255), three(GREY)),
    "grey 16 bits.pgm": (pnm(5, DEEP, 65535), three(DEEP >> 8)),
    "grey to 15.pgm": (pnm(5, INDEX, 15), three(INDEX * 17)),
    "grey to 1023.pgm": (pnm(5, DEEP % 1024, 1023), three(np.rint(DEEP % 1024 * 65535 / 1023).astype(int) >> 8)),
    "bits.pbm": (
        f"P4\n{SIDE} {SIDE}\n".encode() + np.packbits(BITS.astype(np.uint8), 1).tobytes(),
        three(255 - 255 * BITS),
    ),
    "rgb.ppm": (pnm(6, RGB, 255), RGB),
    "rgb 16 bits.ppm": (pnm(6, DEEP_RGB, 65535), np.rint(DEEP_RGB * 255 / 65535).astype(int)),
    "rgb.pnm": (pnm(6, RGB, 255), RGB),
    "rgba.ico": (pil(np.dstack([RGB, ALPHA]).astype(np.uint8), "RGBA", "ICO"), over(RGB, ALPHA)),
    "lossless.webp": (pil(RGB.astype(np.uint8), "RGB", "WEBP", lossless=True), RGB),
    "palette.gif": (gif, over(PALETTE[INDEX], TRANSPARENT_ENTRY)),
    "ending that does not fit.jpg": (png(RGB, 2), RGB),
    "ENDING.PNG": (png(RGB, 2), RGB),
    "ending.jfif": (pil(np.full((SIDE, SIDE), 77, np.uint8), "L", "JPEG", quality=100), np.full((SIDE, SIDE, 3), 77)),
    "caf\udce9.png": (png(RGB, 2), RGB),  # a name that is not UTF-8
}


def write(path: Path, content: bytes | Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)


def arrays(name: str, root: Path, form: Form) -> tuple[np.ndarray, np.ndarray]:
    """Return images [n, h, w, c] and labels of all splits, staged."""
    stage(name, root, form=form)
    splits = [load(name, split, root, form=form) for split in SPLITS]
    return np.concatenate([s.images.transpose(0, 2, 3, 1) for s in splits]), np.concatenate([s.labels for s in splits])


@pytest.mark.parametrize("name", PIXELS)
def test_a_picture_has_the_pixels_of_its_file(tmp_path: Path, name: str) -> None:
    content, expected = PIXELS[name]
    for number in range(3):  # one for each split
        write(tmp_path / "set" / f"{number} {name}", content)
    images, labels = arrays(f"folder:{tmp_path}/set", tmp_path, Form(SIDE, 3))
    assert labels.tolist() == [-1] * 3
    for image in images:
        np.testing.assert_array_equal(image, expected, err_msg=name)


@pytest.mark.parametrize(("text", "colour"), [("black", (0, 0, 0)), ("#10ff80", (16, 255, 128))])
def test_the_background_can_be_chosen(tmp_path: Path, text: str, colour: tuple[int, int, int]) -> None:
    for number in range(3):
        write(tmp_path / "set" / f"{number}.png", png(np.dstack([RGB, ALPHA]), 6))
    name = f"folder:{tmp_path}/set"
    images, _ = arrays(name, tmp_path, Form(SIDE, 3, background=text))
    for image in images:
        np.testing.assert_array_equal(image, over(RGB, ALPHA, colour))
    assert folder(name, tmp_path, Form(SIDE, 3)) != folder(name, tmp_path, form=Form(SIDE, 3, background=text))


@pytest.mark.parametrize("crop", ["center", "pad", "stretch"])
@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_wide_picture_is_cropped_padded_or_stretched(tmp_path: Path, crop: Any, kind: str) -> None:
    wide = np.full((4, 8, 3), 90)
    wide[:, :2], wide[:, 6:] = 10, 200
    if kind == "folder":
        for number in range(3):
            write(tmp_path / "set" / f"{number}.png", png(wide, 2))
    else:
        np.savez(tmp_path / "set.npz", images=np.stack([wide] * 3).astype(np.uint8))
    name = f"folder:{tmp_path}/set" if kind == "folder" else f"npz:{tmp_path}/set.npz"
    size = {"center": 4, "pad": 8, "stretch": 4}[crop]
    images, _ = arrays(name, tmp_path, Form(size, 3, crop))
    if crop == "center":
        expected = wide[:, 2:6]
    elif crop == "pad":
        expected = np.full((8, 8, 3), 255)
        expected[2:6] = wide
    else:  # a triangle over 4 pixels at half the width: weights 1, 3, 3, 1, renormalised at the borders
        padded = [(wide[:, [0, 1, 2]], (3, 3, 1)), (wide[:, 1:5], (1, 3, 3, 1))]
        columns = [(part * np.array(w)[None, :, None]).sum(1) / sum(w) for part, w in padded]
        mirrored = [(wide[:, 3:7], (1, 3, 3, 1)), (wide[:, [5, 6, 7]], (1, 3, 3))]
        columns += [(part * np.array(w)[None, :, None]).sum(1) / sum(w) for part, w in mirrored]
        expected = np.stack(columns, 1)
    np.testing.assert_allclose(images.astype(int), np.stack([expected] * 3), atol=0.51)


# Arrays

IMAGES = RANDOM.randint(0, 256, (6, SIDE, SIDE, 3))
DEEP_IMAGES = RANDOM.randint(0, 65536, (6, SIDE, SIDE))
NPZ: dict[str, tuple[np.ndarray, np.ndarray]] = {  # images as they are saved, and as uint8 [n, h, w, c]
    "uint8": (IMAGES.astype(np.uint8), IMAGES),
    "grey with an axis": (IMAGES[..., :1].astype(np.uint8), IMAGES[..., :1]),
    "grey without an axis": (IMAGES[..., 0].astype(np.uint8), IMAGES[..., :1]),
    "channels first": (IMAGES.transpose(0, 3, 1, 2).astype(np.uint8), IMAGES),
    "grey, channels first": (IMAGES[:, None, :, :, 0].astype(np.uint8), IMAGES[..., :1]),
    "int64": (IMAGES, IMAGES),
    "uint16": (DEEP_IMAGES.astype(np.uint16), DEEP_IMAGES[..., None] >> 8),
    "uint16 in Fortran's order": (np.asfortranarray(DEEP_IMAGES.astype(np.uint16)), DEEP_IMAGES[..., None] >> 8),
    "uint16 of 8 bits": (IMAGES.astype(np.uint16), IMAGES),
    "bool": (IMAGES[..., 0] > 99, (IMAGES[..., :1] > 99) * 255),
    "float32 in [0, 1]": ((IMAGES / 255).astype(np.float32), IMAGES),
    "float64 in [-1, 1]": (IMAGES / 127.5 - 1, IMAGES),
    "float16 of integers": (IMAGES.astype(np.float16), IMAGES),
    "big-endian": (IMAGES.astype(">i4"), IMAGES),
    "rgba": (
        np.concatenate([IMAGES, IMAGES[..., :1]], 3).astype(np.uint8),
        np.stack([over(i, i[..., 0]) for i in IMAGES]),
    ),
}


@pytest.mark.parametrize("name", NPZ)
def test_arrays_are_read_by_their_type(tmp_path: Path, name: str) -> None:
    images, expected = NPZ[name]
    np.savez(tmp_path / "a.npz", images=images, labels=[*"ababab"])
    dataset = get(f"npz:{tmp_path}/a.npz")
    assert (dataset.size, dataset.channels, dataset.names) == (SIDE, expected.shape[3], ("a", "b"))
    staged, labels = arrays(dataset.name, tmp_path, Form())
    pairs = {image.astype(np.uint8).tobytes(): i % 2 for i, image in enumerate(expected)}
    assert {image.tobytes(): label for image, label in zip(staged, labels, strict=True)} == pairs


# Labels

Tree = dict[str, int]  # folder -> number of pictures, or path of a single picture -> 0


def build(root: Path, tree: Tree) -> None:
    for path, count in tree.items():
        for name in [path] if not count else [f"{path}/{number}.png".lstrip("/") for number in range(count)]:
            write(root / name, png(RANDOM.randint(0, 256, (SIDE, SIDE)), 0))


LABELLED: dict[str, tuple[Tree, dict[str, int]]] = {  # a folder, and class -> number of pictures
    "two classes": ({"cat": 5, "dog": 6}, {"cat": 5, "dog": 6}),
    "numbers in natural order": ({"10": 3, "9": 4, "1": 5}, {"1": 5, "9": 4, "10": 3}),
    "folders in a class": ({"cats/part1": 3, "cats/part2/deep": 4, "dogs": 3}, {"cats": 7, "dogs": 3}),
    "thumbnails of a NAS": ({"cat": 5, "dog": 5, "cat/@eaDir/0.png": 4, "@eaDir": 3}, {"cat": 5, "dog": 5}),
    "rubbish of macOS": ({"cat": 5, "dog": 5, "__MACOSX/cat": 4, ".thumbnails": 2}, {"cat": 5, "dog": 5}),
    "spaces and case": ({"Big Cat": 5, "dog": 5}, {"Big Cat": 5, "dog": 5}),
    "words and numbers": ({"1": 5, "dog": 5}, {"1": 5, "dog": 5}),
    "splits": ({"train/b": 4, "train/a": 4, "test/a": 2, "test/b": 1}, {"a": 6, "b": 5}),
    "flat splits": ({"train": 4, "test": 2}, {"without label": 6}),
    "a table of a split, which is none": (
        {"train/a": 4, "train/b": 4, "test/a": 2, "test/b": 2, "test/attributes.csv": 0},
        {"a": 6, "b": 6},
    ),
    "an unlabelled test split": ({"train/a": 4, "train/b": 4, "test": 2}, {"a": 4, "b": 4, "without label": 2}),
    "flat": ({"": 7}, {"without label": 7}),
}


@pytest.mark.parametrize("name", LABELLED)
def test_classes_of_a_folder(tmp_path: Path, name: str) -> None:
    tree, expected = LABELLED[name]
    build(tmp_path / "set", tree)
    dataset = get(f"folder:{tmp_path}/set")
    _, labels = arrays(dataset.name, tmp_path, Form(SIDE))
    names = [*dataset.names, "without label"]
    assert list(dataset.names) == [word for word in expected if word != "without label"]
    assert Counter(names[label] for label in labels) == expected


COLUMNS: dict[str, tuple[list[str], list[int], tuple[str, ...]]] = {  # cells of six rows, their labels, the classes
    "words": (["b", "a"] * 3, [1, 0] * 3, ("a", "b")),
    "numbers": (["10", "9"] * 3, [1, 0] * 3, ("9", "10")),
    "1.0 and 1": (["1.0", "1", "0", "0.0", "1", "0"], [1, 1, 0, 0, 1, 0], ("0", "1")),
    "spaces": ([" a", "a ", "b", " b ", "a", "b"], [0, 0, 1, 1, 0, 1], ("a", "b")),
    "minus one and one": (["-1", "1"] * 3, [0, 1] * 3, ("-1", "1")),
    "all empty": ([""] * 6, [-1] * 6, ()),
    "all NaN": (["NaN", "nan", ""] * 2, [-1] * 6, ()),
    "all minus one": (["-1"] * 6, [-1] * 6, ()),
    "all NA, None or null": (["NA", "None", "null", "<NA>", "N/A", "NULL"], [-1] * 6, ()),
    "large integers": (
        ["9007199254740993", "9007199254740992"] * 3,
        [1, 0] * 3,
        ("9007199254740992", "9007199254740993"),
    ),
    "numbers beyond floating point": (["1e400", "1"] * 3, [1, 0] * 3, ("1", "1e400")),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("kind", ["table", "npz"])
def test_labels_of_a_column(tmp_path: Path, name: str, kind: str) -> None:
    cells, expected, classes = COLUMNS[name]
    pictures = [np.full((SIDE, SIDE), value) for value in range(6)]
    if kind == "table":
        for number, picture in enumerate(pictures):
            write(tmp_path / "set" / f"{number}.png", png(picture, 0))
        with (tmp_path / "set" / "attributes.csv").open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([["file", "x"], *([f"{i}.png", cell] for i, cell in enumerate(cells))])
        source = f"folder:{tmp_path}/set#x"
    else:
        np.savez(tmp_path / "a.npz", images=np.stack(pictures).astype(np.uint8), labels=np.array(cells))
        source = f"npz:{tmp_path}/a.npz"
    assert get(source).names == classes
    images, labels = arrays(source, tmp_path, Form(SIDE, 1))
    assert {int(image[0, 0, 0]): label for image, label in zip(images, labels, strict=True)} == dict(
        enumerate(expected)
    )


ROWS = [f"{number}.png,{'ab'[number % 2]}" for number in range(6)]
TABLES: dict[str, tuple[str, tuple[str, ...]]] = {  # attributes.csv as programs write it, and the classes
    "byte order mark": ("\ufeff" + "\n".join(["file,x", *ROWS]), ("a", "b")),
    "lines of Windows": ("\r\n".join(["file,x", *ROWS, ""]), ("a", "b")),
    "lines of old Macs": ("\r".join(["file,x", *ROWS]), ("a", "b")),
    "an empty last column": (",\n".join(["file,x", *ROWS, ""]), ("a", "b")),
    "quoted commas": (
        "\n".join(['"file","x"', *ROWS]).replace(",a", ',"a, b"').replace(",b", ',"c ""d"""'),
        ("a, b", 'c "d"'),
    ),
    "paths with dots": ("\n./".join(["file,x", *ROWS]), ("a", "b")),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_programs_write_them(tmp_path: Path, name: str) -> None:
    content, classes = TABLES[name]
    for number in range(6):
        write(tmp_path / "set" / f"{number}.png", png(np.full((SIDE, SIDE), number), 0))
    write(tmp_path / "set" / "attributes.csv", content.encode())
    assert get(f"folder:{tmp_path}/set").names == classes
    images, labels = arrays(f"folder:{tmp_path}/set", tmp_path, Form(SIDE, 1))
    assert {int(image[0, 0, 0]): label for image, label in zip(images, labels, strict=True)} == {
        number: number % 2 for number in range(6)
    }


@pytest.mark.parametrize("folder", ["a #1", "it's", "caf\u00e9", "~", "a:b", "{a,b}", "[x]*"])
def test_a_path_may_contain_any_character(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build(tmp_path / folder, {"": 3})
    (tmp_path / folder / "attributes.csv").write_text("file,x,y\n0.png,a,1\n1.png,b,2\n2.png,c,3\n")
    for place in (tmp_path / folder, *([Path(folder)] if folder != "~" else [])):
        assert get(f"folder:{place}").names == ("a", "b", "c")
        assert get(f"folder:{place}#y").names == ("1", "2", "3")


def test_one_hot_rows_are_their_index(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES.astype(np.uint8), labels=np.eye(3)[[0, 1, 2, 2, 1, 0]])
    staged, labels = arrays(f"npz:{tmp_path}/a.npz", tmp_path, Form())
    pairs = {image.astype(np.uint8).tobytes(): k for image, k in zip(IMAGES, [0, 1, 2, 2, 1, 0], strict=True)}
    assert {image.tobytes(): label for image, label in zip(staged, labels, strict=True)} == pairs
    record = origin(folder(f"npz:{tmp_path}/a.npz", tmp_path))
    assert record["found"]["notes"] == ["labels: one-hot rows, read as their index"]


def test_the_classes_of_the_target_can_be_mapped_to_those_of_the_source(tmp_path: Path) -> None:
    build(tmp_path / "words", {"zero": 4, "one": 4})
    np.savez(tmp_path / "a.npz", images=IMAGES.astype(np.uint8), labels=[0, 1] * 3)
    pair = {"source": f"npz:{tmp_path}/a.npz", "target": f"folder:{tmp_path}/words", "size": SIDE}
    config = resolve(
        {"name": "a", "method": "dann", "model.net": "slim", "data": pair | {"classes": {"zero": 0, "one": 1}}},
        "a.yaml",
    )
    assert config.data.class_names() == ("0", "1")
    assert (config.data.class_order("source"), config.data.class_order("target")) == ([0, 1], [1, 0])
    target = config.data.target or ""
    stage(target, tmp_path, form=config.data.form())
    for split in SPLITS:
        own, shared = (
            load(target, split, tmp_path, form=config.data.form(), order=order).labels for order in (None, [1, 0])
        )
        assert (own + shared == 1).all()


# Staging that is interrupted


def test_an_interrupted_call_is_continued_where_it_stopped(tmp_path: Path) -> None:
    images = RANDOM.randint(0, 256, (200, SIDE, SIDE), np.uint8)
    files = {f"{number:03}.png": png(image, 0) for number, image in enumerate(images)}
    names, opened = [*files], list[int]()

    def stopping(position: int) -> io.BytesIO:
        opened.append(position)
        if position == 150:
            raise KeyboardInterrupt
        return io.BytesIO(files[names[position]])

    path, form = tmp_path / "images.npy", Form(SIDE, 1)
    with pytest.raises(KeyboardInterrupt):
        decode_pictures(Pictures(names, stopping, "here"), path, form, Findings())
    done = sum(Path(f"{path}.rows").read_bytes())
    assert 0 < done < 200
    opened.clear()

    def counting(position: int) -> io.BytesIO:
        opened.append(position)
        return io.BytesIO(files[names[position]])

    pictures = Pictures(names, counting, "here")
    assert decode_pictures(pictures, path, form, Findings()) == {}
    assert len(opened) == 200 - done
    np.testing.assert_array_equal(np.load(path)[..., 0], images)


def test_the_folder_of_a_dead_process_is_continued_if_it_decoded_the_same(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "set-8x8x3-v3"
    mine = create_temporary(target, "key")
    assert create_temporary(target, "key") != mine, "its process, this one, is alive"
    for key, kept in (("key", True), ("other", False)):
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        left = create_temporary(target, "key")
        (left / "train_images.npy").write_bytes(b"rows")
        dead = left.with_name(left.name.replace(f"~{os.getpid()}~", f"~{child.pid}~"))
        left.rename(dead)
        again = create_temporary(target, key)
        assert (again / "train_images.npy").exists() == kept
        assert not dead.exists()


# What is left out is counted


@pytest.mark.parametrize("kind", ["gif", "tiff", "webp", "png"])
def test_of_several_pictures_in_a_file_the_first_is_taken_and_the_others_are_counted(tmp_path: Path, kind: str) -> None:
    (tmp_path / "set").mkdir()
    frames = [Image.fromarray(np.full((SIDE, SIDE, 3), value, np.uint8)) for value in (40, 200, 90)]
    for number in range(3):
        options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
        frames[0].save(tmp_path / "set" / f"{number}.{kind}", save_all=True, append_images=frames[1:], **options)
    name, form = f"folder:{tmp_path}/set", Form(SIDE, 3)
    images, _ = arrays(name, tmp_path, form)
    assert (images == 40).all()
    ignored = origin(folder(name, tmp_path, form=form))["found"]["ignored"]
    assert ignored["pictures after the first of a file"]["count"] == 3


def test_files_outside_the_dataset_are_named_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNOUT_DATA", str(tmp_path / "data"))
    build(tmp_path / "set", {"cat": 8, "dog": 8, "cat/@eaDir": 2})
    build(tmp_path / "elsewhere", {"": 4})
    (tmp_path / "set" / "fox").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "cat" / "loop").symlink_to(tmp_path / "set")
    for name in ("cat/notes.txt", "cat/raw.heic", "Thumbs.db", "dog/._0.png"):
        (tmp_path / "set" / name).write_bytes(b"?")
    (tmp_path / "set" / "dog" / "broken.png").write_bytes(png(GREY, 0)[:60])
    sweep = tmp_path / "a.yaml"
    sweep.write_text(f"method: classifier\ndata: {{dataset: 'folder:{tmp_path}/set', size: {SIDE}}}\n")
    assert command.main([str(sweep), "--skip-unreadable"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  classes: cat 8, dog 8, fox 4" in lines
    assert "  20 images: train 16, validation 2, test 2" in lines or "  20 images: train 17" in "\n".join(lines)
    assert f"  sizes: {SIDE} x {SIDE} pixels" in lines
    assert "  ignored: 2 not pictures, such as cat/notes.txt" in lines
    assert "  ignored: 3 hidden or of the system, such as Thumbs.db" in lines
    assert "  ignored: 1 circular links, such as cat/loop" in lines
    assert "  left out: 1 pictures that cannot be used, such as dog/broken.png" in lines
    assert command.main([str(sweep), "--verify"]) == 0
    assert "verified: every file" in capsys.readouterr().out
    (cached,) = (tmp_path / "data" / "cache").glob("*/train_images.npy")
    with cached.open("r+b") as file:
        file.seek(200)
        file.write(b"\1\2\3")
    assert command.main([str(sweep), "--verify"]) == 2
    assert f"error: {cached}: differs from what was staged; remove" in capsys.readouterr().err


def test_names_are_sorted_and_shared_in_few_bytes(tmp_path: Path) -> None:
    paths = [
        "b/c.png",
        "b.png",
        "b-/x.png",
        "b0/x.png",
        "b/c/d.png",
        "b/c-.png",
        "a\udce9.png",
        "\u00e9/1.png",
        "b/c.png.png",
    ]
    for path in paths:
        write(tmp_path / path, b"")
    names = list_folder(tmp_path).files
    assert list(names) == sorted(paths)
    assert list(names[2:5]) == sorted(paths)[2:5]
    assert names[-1] == sorted(paths)[-1]
    assert list(names[5:2]) == []


# Refusals

Builder = Callable[[Path], str]  # writes into a folder, returns the name of the dataset


def tree(**content: int) -> Builder:
    def builder(root: Path) -> str:
        build(root / "set", {path.replace("__", "/"): count for path, count in content.items()})
        return f"folder:{root}/set"

    return builder


def picture(content: bytes) -> Builder:
    def builder(root: Path) -> str:
        for number in range(3):
            write(root / "set" / f"{number}.tif", content)
        return f"folder:{root}/set"

    return builder


def table(*rows: str) -> Builder:
    def builder(root: Path) -> str:
        build(root / "set", {"": 4})
        (root / "set" / "attributes.csv").write_bytes("\n".join(rows).encode("latin-1"))
        return f"folder:{root}/set"

    return builder


def npz(**content: Any) -> Builder:
    def builder(root: Path) -> str:
        np.savez(root / "a.npz", **content)
        return f"npz:{root}/a.npz"

    return builder


def large(root: Path) -> str:
    """Write a picture of more pixels than Pillow opens, as the test sets its limit."""
    build(root / "set", {"": 3})
    write(root / "set" / "large.png", png(np.zeros((20, 20)), 0))
    return f"folder:{root}/set"


def no_archive(root: Path) -> str:
    (root / "a.npz").write_bytes(b"no")
    return f"npz:{root}/a.npz"


def preview(root: Path) -> str:
    build(root / "set", {"cat": 3, "dog": 3, "preview.png": 0})
    return f"folder:{root}/set"


def empty_class(root: Path) -> str:
    build(root / "set", {"cat": 3, "dog": 3})
    (root / "set" / "fox").mkdir()
    return f"folder:{root}/set"


def dangling(root: Path) -> str:
    build(root / "set", {"cat": 3, "dog": 3})
    os.symlink(root / "set" / "dog" / "0.png", root / "set" / "dog" / "dangling.png")
    (root / "set" / "dog" / "0.png").unlink()
    return f"folder:{root}/set"


def deflated(root: Path) -> str:
    """Write compressed arrays whose first stream is damaged."""
    np.savez_compressed(root / "a.npz", images=np.tile(EIGHT, (9, 1, 1, 1)), labels=np.arange(36) % 2)
    content = bytearray((root / "a.npz").read_bytes())
    content[60:90] = bytes(30)
    (root / "a.npz").write_bytes(content)
    return f"npz:{root}/a.npz"


def pipe(root: Path) -> str:
    """Make the only second class a named pipe, which blocks each reader."""
    build(root / "set", {"cat": 3, "dog": 3})
    (root / "set" / "fox").mkdir()
    os.mkfifo(root / "set" / "fox" / "0.png")
    return f"folder:{root}/set"


def dangling_table(root: Path) -> str:
    build(root / "set", {"": 4})
    (root / "set" / "attributes.csv").symlink_to(root / "nowhere")
    return f"folder:{root}/set"


EIGHT = IMAGES[:4].astype(np.uint8)
LABELS = np.array([0, 1, 0, 1])
REFUSED: dict[str, tuple[Builder, str]] = {
    "a picture beside classes": (
        preview,
        r"/set: preview\.png and 0 more pictures are beside the folders of classes \(cat, dog\); move them",
    ),
    "an empty class": (
        empty_class,
        r"/set: fox/ holds no pictures; add some, or remove this folder",
    ),
    "one class of several": (
        tree(images__cat=3, images__dog=3),
        r"all pictures are in images/, so there is one class; if its folders \(cat, dog\) are .*/set/images",
    ),
    "case of folders": (tree(Cat=3, cat=3), r"folder cat: class 'cat' is also spelt 'Cat' \(folder Cat\); spell it in"),
    "case across splits": (tree(train__Cat=3, test__cat=3), r"test/cat/\d\.png: class 'cat' is also spelt 'Cat'"),
    "zeros": (tree(**{"01": 3, "1": 3}), r"folder 1: class '1' is also spelt '01' \(folder 01\)"),
    "a class of test only": (
        tree(train__a=3, test__a=1, test__b=1),
        r"test/b/0\.png: class 'b' is in test but not in train, which has: a; move, rename or remove",
    ),
    "tiny imagenet": (
        tree(train__n01__images=3, train__n02__images=3, test__images=3),
        r"test/images/0\.png: class 'images' is in test but not in train",
    ),
    "half a split": (tree(train__a=3, a=3), r"is split incompletely: pictures are in train, none in test, others in a"),
    "too few": (tree(a=1, b=1), r"2 images of 2 classes are too few to split; add images"),
    "a dangling link": (dangling, r"1 of 6 pictures cannot be used, such as dog/dangling\.png: .*No such file"),
    "floating point": (picture(tiff(GREY.astype(np.float32), 1, 3)), r"0\.tif: cannot be read: pixels of mode F have"),
    "32 bits": (
        picture(tiff(GREY.astype(np.int32), 1, 2)),
        r"0\.tif: cannot be read: pixels of mode I have no defined",
    ),
    "signed 16 bits": (picture(tiff(GREY.astype(np.int16), 1, 2)), r"0\.tif: cannot be read: pixels of mode I"),
    "a cut picture": (picture(png(RGB, 2)[:-60]), r"3 of 3 pictures cannot be used, such as 0\.tif: cannot be read"),
    "no picture": (picture(b"<html>not found</html>"), r"0\.tif: cannot be read: is not a picture that Pillow"),
    "an empty cell": (
        table("file,x", "0.png,a", "1.png,", "2.png,a", "3.png,b"),
        r"/attributes\.csv: line 3 \(1\.png\): has no label \(empty, NaN, NA, None, null or -1\), and 0 more; give",
    ),
    "NaN": (table("file,x", "0.png,1", "1.png,NaN", "2.png,0", "3.png,0"), r"csv: line 3 \(1\.png\): has no label"),
    "minus one": (
        table("file,x", "0.png,1", "1.png,-1", "2.png,0", "3.png,0"),
        r"csv: line 3 \(1\.png\): has no label",
    ),
    "a missing row": (table("file,x", "0.png,a", "1.png,b"), r"csv: says nothing of 2\.png and 1 more pictures; add"),
    "contradicting rows": (
        table("file,x", "0.png,a", "1.png,b", "2.png,a", "3.png,b", "0.png,b"),
        r"csv:6: 0\.png is labelled 'b', and 'a' on line 2; keep one of these rows",
    ),
    "a cut table": (table("file,x,y", "0.png,a,1", "1.png,b"), r"csv:3: has 2 cells, the header 3; complete this row"),
    "case of cells": (
        table("file,x", "0.png,a", "1.png,A", "2.png,a", "3.png,b"),
        r"picture 2\.png: class 'a' is also spelt 'A' \(picture 1\.png\)",
    ),
    "semicolons": (
        table("file;x", "0.png;a"),
        r"csv: has no column ''; it has: none; its cells must be separated by c",
    ),
    "latin-1": (table("file,x", "caf\xe9.png,a"), r"csv: cannot be read: .*; save it as UTF-8"),
    "pickled arrays": (npz(images=np.array([{}, {}]), labels=LABELS[:2]), r"a\.npz: images are object \(2,\); they mu"),
    "floats beyond": (
        npz(images=EIGHT / 50, labels=LABELS),
        r"a\.npz: images are float64 from 0\.\d+ to 5\.\d+, so th",
    ),
    "negative": (npz(images=EIGHT.astype(int) - 9, labels=LABELS), r"a\.npz: images are int64 from -\d+ to \d+, so th"),
    "not finite": (
        npz(images=EIGHT * np.array([1, 1, np.nan]), labels=LABELS),
        r"images\[0\] has a value that is not f",
    ),
    "no channels": (
        npz(images=EIGHT[..., :2], labels=LABELS),
        r"images are uint8 \(4, 8, 8, 2\); they must be numbers",
    ),
    "ambiguous axes": (npz(images=EIGHT[:, :3, :, :], labels=LABELS), r"images are uint8 \(4, 3, 8, 3\); they must be"),
    "other lengths": (npz(images=EIGHT, labels=LABELS[:3]), r"a\.npz: 4 images and 3 labels"),
    "no such array": (npz(images=EIGHT, label=LABELS), r"a\.npz: holds no 'labels'; it has: images, label; #<name>"),
    "missing labels": (npz(images=EIGHT, labels=[0, -1, 2, 1]), r"a\.npz: labels\[1\]: has no label"),
    "words that miss": (npz(images=EIGHT, labels=["a", "b", "nan", ""]), r"labels\[2\]: has no label .* and 1 more"),
    "infinite labels": (npz(images=EIGHT, labels=[0, np.inf, 1, 1]), r"labels\[1\] is inf, which is no class"),
    "soft labels": (npz(images=EIGHT, labels=np.full((4, 2), 0.5)), r"labels are float64 \(4, 2\), but not one-hot"),
    "splits of two types": (
        npz(train_images=EIGHT, train_labels=LABELS, test_images=EIGHT / 255, test_labels=LABELS),
        r"the splits differ: train_images uint8 \(4, 8, 8, 3\), test_images float64 \(4, 8, 8, 3\)",
    ),
    "a class of test only, npz": (
        npz(train_images=EIGHT, train_labels=LABELS, test_images=EIGHT, test_labels=LABELS + 1),
        r"test_labels\[1\]: class '2' is in test but not in train, which has: 0, 1",
    ),
    "no archive": (
        no_archive,
        r"cannot be read as npz",
    ),
    "damaged compression": (deflated, r"a\.npz: cannot be read as npz: .*; write it again"),
    "a pipe": (pipe, r"/set: fox/ holds no pictures; add some, or remove this folder"),
    "a link to no table": (dangling_table, r"/attributes\.csv: cannot be read: .*; repair or remove it"),
    "NA": (table("file,x", "0.png,a", "1.png,NA", "2.png,b", "3.png,b"), r"csv: line 3 \(1\.png\): has no label"),
    "None": (npz(images=EIGHT, labels=["a", "None", "b", "b"]), r"labels\[1\]: has no label .* and 0 more"),
    "two encodings of an accent": (
        tree(**{"caf\u00e9": 3, "cafe\u0301": 3}),
        r"folder .*: class '.*' is also spelt '.*'; spell it in one way|is also spelt",
    ),
    "an invisible character": (
        npz(images=EIGHT, labels=["cat", "cat\u200b"] * 2),
        r"labels\[\d\]: class 'cat\\u200b' is also spelt 'cat'",
    ),
    "two columns of one name": (
        table("file,x,x", "0.png,a,b", "1.png,b,a", "2.png,a,a", "3.png,b,b"),
        r"csv: has several columns 'x'; rename all but one",
    ),
    "an unset variable": (lambda root: "folder:$UNSET_FOLDER/set", r"\$UNSET_FOLDER is not set; set it or give the"),
    "an empty path": (lambda root: "folder:", r"folder:: names no path; give one after the colon"),
    "a long name": (lambda root: f"npz:{root}/{'x' * 300}", r"x: cannot be read: File name too long; correct the path"),
    "no pixels": (
        npz(images=EIGHT[:, :0, :0], labels=LABELS),
        r"images are uint8 \(4, 0, 0, 3\); they must be numbers",
    ),
    "a decompression bomb": (large, r"1 of 4 pictures cannot be used, such as large\.png: .* exceeds limit of 100 pix"),
    "no path": (lambda root: f"folder:{root}/nowhere", r"there is no folder .*/nowhere; give the path of one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_ambiguous_or_damaged_files_are_refused_in_one_line(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNOUT_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("UNSET_FOLDER", raising=False)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # Pillow warns of more, and refuses twice as many
    builder, message = REFUSED[case]
    name = builder(tmp_path)
    sweep = tmp_path / "a.yaml"
    sweep.write_text(f"method: vae\nmodel: {{width: 4}}\ndata: {{dataset: '{name}', size: {SIDE}}}\n")
    assert command.main([str(sweep)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    with pytest.raises(DataError, match=message):
        raise DataError(errors[0])
    assert not list(tmp_path.glob("data/cache/*"))


NOBODY = 65534


def write_all(root: Path) -> str:
    """Write two classes, beside which there are arrays, tars and tables; return the name of a dataset of them."""
    build(root / "set", {"cat": 3, "dog": 3})
    np.savez(root / "set" / "a.npz", images=EIGHT, labels=LABELS)
    for kind in ("cat", "dog"):
        for ending in ("tar", "parquet"):
            write(root / "set" / kind / f"a.{ending}", b"")
    return f"folder:{root}/set"


UNREADABLE: dict[str, tuple[str, int, str]] = {  # what the user may not use, its mode, and the message
    "folder:{}/set": ("set/cat", 0, "set/cat: cannot be read: Permission denied; correct the path, make it readable"),
    "folder:{}/set/": ("set", 0, "set: cannot be read: Permission denied"),
    "folder:{}/set/cat": ("set", 0, "set/cat: cannot be read: Permission denied"),
    "folder:{}/./set": ("set/cat", 0o444, r"set/cat/0\.png: cannot be read: Permission denied"),
    "folder:{}/set/.": ("set/cat/0.png", 0, r"1 of 6 pictures cannot be used, such as cat/0\.png: .*Permission denied"),
    "npz:{}/set/a.npz": ("set", 0, r"set/a\.npz: cannot be read: Permission denied"),
    "npz:{}/./set/a.npz": ("set/a.npz", 0, r"set/a\.npz: cannot be read as npz: .*Permission denied"),
    "hf:{}/set": ("set/dog", 0, "set/dog: cannot be read: Permission denied"),
    "wds:{}/*/*/*.tar": ("set/dog", 0, "set/dog: cannot be read: Permission denied; make it readable or name other"),
    "wds:{}/set/*/a.tar": ("set/dog", 0o444, "set/dog: cannot be read: Permission denied; make it readable or name"),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not read a folder")
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_may_not_be_read_is_named(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as temporary:  # the parents of tmp_path are root's alone
        root = Path(temporary)
        arrays(write_all(root), root, Form(SIDE))  # so that all modules are imported
        shutil.rmtree(root / "cache")
        monkeypatch.setenv("TURNOUT_DATA", str(root / "data"))
        sweep = root / "a.yaml"
        sweep.write_text(f"method: vae\nmodel: {{width: 4}}\ndata: {{dataset: '{name.format(root)}', size: {SIDE}}}\n")
        os.chown(root, NOBODY, NOBODY)
        hidden, mode, message = UNREADABLE[name]
        (root / hidden).chmod(mode)
        os.seteuid(NOBODY)
        try:
            assert command.main([str(sweep)]) == 2
        finally:
            os.seteuid(0)
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert re.search(message, error), error
