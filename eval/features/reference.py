"""Statistics of the splits that samples are compared with: computed once per dataset, kept under the data root."""

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

from eval.features.cached_file import read_or_compute
from eval.features.extractor import Extractor, Statistics, collect
from eval.features.moments import Moments
from trainer.data import cache
from trainer.errors import DataError

RECIPE = 1  # raise it when the content of the files changes
CHUNK = 500  # images read at a time


def load_references(folder: Path, extractor: Extractor) -> tuple[Statistics, Statistics]:
    """Return the statistics of the validation and of the test split of a dataset in a folder of the cache."""
    return load_reference(folder, "validation", extractor), load_reference(folder, "test", extractor)


def load_reference(folder: Path, split: str, extractor: Extractor, limit: int | None = None) -> Statistics:
    """Return the statistics of a split of the dataset in `<data root>/cache/<dataset>`, or of `limit` random images.

    The same images are taken each time. DataError if there are fewer, the kept file is damaged or belongs to other
    images, or a feature is not finite.
    """
    images = cache.read(folder, split).images
    if limit and limit > len(images):
        raise DataError(f"eval.real: {limit} images, but the {split} split of {folder.name} has {len(images)}")
    order = np.sort(np.random.default_rng(0).permutation(len(images))[:limit])
    images_sha256 = cache.origin(folder)["files"][f"{split}_images.npy"]["sha256"]
    facts = {
        "set": folder.name,
        "split": split,
        "images sha256": images_sha256,
        "images": len(order),
        "shape": list(images.shape[1:]),
        "extractor": extractor.name,
        "extractor sha256": extractor.sha256,
        "width": extractor.width,
        "recipe": RECIPE,
    }

    def batches() -> Iterator[Tensor]:
        title = f"{extractor.name} features of {folder.name}, {split}"
        quiet = not sys.stderr.isatty()
        for start in track(range(0, len(order), CHUNK), title, console=Console(stderr=True), disable=quiet):
            yield torch.from_numpy(np.ascontiguousarray(images[order[start : start + CHUNK]]))

    def compute() -> bytes:
        file = io.BytesIO()
        try:
            statistics = collect(batches(), extractor)
        except ValueError as error:
            raise DataError(f"{folder}: {split} images: {error}") from None
        sums, features = statistics.moments.sums.cpu().numpy(), statistics.features.cpu().numpy()
        np.savez(file, about=np.array(json.dumps(facts)), sums=sums, features=features)
        return file.getvalue()

    part = f"-{limit}" if limit else ""
    name = f"{folder.name}-{split}{part}-{images_sha256[:8]}-{extractor.name}-{extractor.sha256[:8]}-v{RECIPE}.npz"
    path = folder.parents[1] / "statistics" / name
    content = read_or_compute(path, compute)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            kept = json.loads(str(file["about"]))
            sums, features = file["sums"], file["features"]
    except (BadZipFile, KeyError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}; remove it, and it is recomputed") from None
    for key, value in facts.items():
        if kept.get(key) != value:
            raise DataError(f"{path}: {key}: is {kept.get(key)}, not {value}; remove it, and it is recomputed")
    moments = Moments(extractor.width, extractor.device, sums)
    return Statistics(moments, torch.from_numpy(features).to(extractor.device))
