"""Embed the pictures of a sweep's evaluations into the page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from eval.reporting.results import Trial
from eval.reporting.seeds import Setting

MAX_WIDTH = 1200  # pixels; wider pictures are embedded at this width
MAX_EMBEDDED = 24  # per file name, which keeps the page light; the others are links


@dataclass
class Pictures:
    """The pictures of one file name."""

    embedded: list[tuple[Setting, Trial, str]] = field(default_factory=list)  # with a data URI
    linked: list[Trial] = field(default_factory=list)


def collect_pictures(settings: Sequence[Setting]) -> dict[str, Pictures]:
    """Return file name → pictures: embedded for the first readable seed of each setting, links for the others."""
    pictures: dict[str, Pictures] = {}
    for setting in settings:
        embedded = set()
        for trial in setting.trials:
            for name in [file for file in trial.files if file.startswith("eval/") and file.endswith(".png")]:
                group = pictures.setdefault(name, Pictures())
                is_next = name not in embedded and len(group.embedded) < MAX_EMBEDDED
                if is_next and (uri := embed_png(trial.run.path / name)):
                    embedded.add(name)
                    group.embedded.append((setting, trial, uri))
                else:
                    group.linked.append(trial)
    return dict(sorted(pictures.items()))


def embed_png(path: Path) -> str:
    """Return a PNG as data URI, at most MAX_WIDTH wide; empty if it is incomplete or damaged."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            content = path.read_bytes()
            if image.width > MAX_WIDTH:
                size = MAX_WIDTH, max(1, round(image.height * MAX_WIDTH / image.width))
                colours = image.convert("RGBA" if image.has_transparency_data else "RGB")
                file = io.BytesIO()
                colours.resize(size, Image.Resampling.LANCZOS).save(file, "PNG")
                content = file.getvalue()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""
    return embed(content, "png")


def embed(content: bytes, form: str) -> str:
    """Return a picture as data URI; empty without content."""
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}" if content else ""
