"""Embed the pictures of a sweep's evaluations into the page: the same one of every setting side by side, a wall."""

import base64
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from eval.reporting.seeds import Setting
from eval.reporting.trials import Trial

MAX_WIDTH = 1200  # pixels; wider pictures are embedded at this width
MAX_HEIGHT = 16_000  # pixels of a strip of milestones; WebP has no more
LARGE = 100_000  # bytes of a PNG, above which it is embedded as WebP
MAX_EMBEDDED = 24  # per wall, which keeps the page light; the others are links
BUDGET = 8_000_000  # characters of all embedded pictures; those of the last settings are links
BY_STEP = "_by_step"


@dataclass(frozen=True)
class Picture:
    """A picture of a trial; of `frames` milestones below each other, each of width × height, or one without any."""

    setting: Setting
    trial: Trial
    uri: str
    pdf: str  # the same one as PDF, relative to the run directory; may be empty
    frames: int = 0
    width: int = 0
    height: int = 0


@dataclass
class Wall:
    """The pictures of one file name."""

    title: str
    embedded: list[Picture] = field(default_factory=list)
    linked: list[Trial] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)  # of the milestones; empty without them


def collect_pictures(settings: Sequence[Setting]) -> dict[str, Wall]:
    """Return file name → wall: embedded for the first readable seed of each setting, links for the others."""
    walls: dict[str, Wall] = {}
    spent = 0
    for setting in settings:
        embedded = set()
        for trial in setting.trials:
            strips = {file.removesuffix(f"{BY_STEP}.npz") for file in trial.files if file.endswith(f"{BY_STEP}.npz")}
            names = [file for file in trial.files if file.startswith("eval/") and file.endswith(".png")]
            for name in [n for n in names if n.removesuffix(f"{BY_STEP}.png") not in strips]:
                stem = name.removesuffix(".png")
                wall = walls.setdefault(name, Wall(stem.rpartition("/")[2].replace("_", " ")))
                picture = None
                if name not in embedded and len(wall.embedded) < MAX_EMBEDDED and spent < BUDGET:
                    picture = (stem in strips and read_strip(setting, trial, stem, wall)) or read(setting, trial, name)
                if picture:
                    embedded.add(name)
                    wall.embedded.append(picture)
                    spent += len(picture.uri)
                else:
                    wall.linked.append(trial)
    return dict(sorted(walls.items()))


def read(setting: Setting, trial: Trial, name: str) -> Picture | None:
    """Return a PNG of a trial; None if it is incomplete or damaged."""
    uri, pdf = embed_png(trial.run.path / name), f"{name.removesuffix('.png')}.pdf"
    return Picture(setting, trial, uri, pdf if pdf in trial.files else "") if uri else None


def read_strip(setting: Setting, trial: Trial, stem: str, wall: Wall) -> Picture | None:
    """Return the milestones of a picture below each other; None if they are damaged or of other steps than the wall."""
    try:
        with np.load(trial.run.path / f"{stem}{BY_STEP}.npz", allow_pickle=False) as file:
            steps, pictures = file["steps"], file["pictures"]
        count, height, width, _ = pictures.shape
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    few = np.unique(np.linspace(0, count - 1, max(1, min(count, MAX_HEIGHT // height))).astype(int))
    wall.steps = wall.steps or steps[few].tolist()
    if wall.steps != steps[few].tolist():
        return None
    uri = embed_image(Image.fromarray(np.concatenate(pictures[few])))
    pdf = f"{stem}.pdf"
    return Picture(setting, trial, uri, pdf if pdf in trial.files else "", len(few), width, height)


def embed_png(path: Path) -> str:
    """Return a PNG as data URI, at most MAX_WIDTH wide; empty if it is incomplete or damaged."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            content = path.read_bytes()
            if image.width <= MAX_WIDTH and len(content) < LARGE:
                return embed(content, "png")
            return embed_image(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""


def embed_image(image: Image.Image) -> str:
    """Return an image as data URI, at most MAX_WIDTH wide: PNG, or WebP if that is large."""
    picture = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.width > MAX_WIDTH:
        size = MAX_WIDTH, max(1, round(image.height * MAX_WIDTH / image.width))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "PNG")
    if len(file.getvalue()) < LARGE:
        return embed(file.getvalue(), "png")
    file = io.BytesIO()
    picture.save(file, "WebP", quality=85)
    return embed(file.getvalue(), "webp")


def embed_svg(figure: Mapping[str, bytes]) -> str:
    """Return a figure, by its forms, as data URI; empty if it has none."""
    return embed(figure["svg"], "svg+xml") if figure else ""


def embed(content: bytes, form: str) -> str:
    """Return a picture as data URI."""
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"
