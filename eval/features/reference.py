"""Statistics of a split of a staged set, which samples are compared with: made once, kept under the data root."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from eval.features.cached_file import once
from eval.features.extractor import Extractor, Statistics, collect
from eval.features.moments import Moments
from trainer.data import cache
from trainer.errors import DataError

RECIPE = 1  # raise it when what is kept changes
CHUNK = 500  # images read at a time


def references(place: Path, extractor: Extractor) -> tuple[Statistics, Statistics]:
    """Statistics of the validation and of the test split, in the folder of a set in the cache."""
    return reference(place, "validation", extractor), reference(place, "test", extractor)


def reference(place: Path, split: str, extractor: Extractor) -> Statistics:
    """Statistics of all images of a split of the set in a folder of the cache, `<data root>/cache/<set>`.

    DataError if what is kept of it is damaged or of something else, or a feature is not finite.
    """
    images = cache.read(place, split).images
    data = cache.origin(place)["files"][f"{split}_images.npy"]["sha256"]
    about = {
        "set": place.name,
        "split": split,
        "images sha256": data,
        "images": len(images),
        "shape": list(images.shape[1:]),
        "extractor": extractor.name,
        "extractor sha256": extractor.sha256,
        "width": extractor.width,
        "recipe": RECIPE,
    }

    def batches() -> Iterator[Tensor]:
        what = f"{extractor.name} features of {place.name}, {split}"
        quiet = not sys.stderr.isatty()
        for start in track(range(0, len(images), CHUNK), what, console=Console(stderr=True), disable=quiet):
            yield torch.from_numpy(np.ascontiguousarray(images[start : start + CHUNK]))

    def make() -> bytes:
        file = io.BytesIO()
        try:
            found = collect(batches(), extractor)
        except ValueError as error:
            raise DataError(f"{place}: {split} images: {error}") from None
        sums, features = found.moments.sums.cpu().numpy(), found.features.cpu().numpy()
        np.savez(file, about=np.array(json.dumps(about)), sums=sums, features=features)
        return file.getvalue()

    name = f"{place.name}-{split}-{data[:8]}-{extractor.name}-{extractor.sha256[:8]}-v{RECIPE}.npz"
    path = place.parents[1] / "statistics" / name
    content = once(path, make)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            kept = json.loads(str(file["about"]))
            sums, features = file["sums"], file["features"]
    except (BadZipFile, KeyError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}; remove it, and it is made anew") from None
    for key, value in about.items():
        if kept.get(key) != value:
            raise DataError(f"{path}: {key}: is {kept.get(key)}, not {value}; remove it, and it is made anew")
    moments = Moments(extractor.width, extractor.device, sums)
    return Statistics(moments, torch.from_numpy(features).to(extractor.device))
