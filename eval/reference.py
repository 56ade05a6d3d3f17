"""Statistics of a split of a set, which samples are compared with: made once, kept under the data root."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from eval.extractor import Extractor, Statistics, collect
from eval.moments import Moments
from eval.once import once
from eval.subject import Subject
from trainer.data.cache import data_root, folder
from trainer.data.registry import DataError

RECIPE = 1  # raise it when what is kept changes
CHUNK = 500  # images read at a time


def reference(subject: Subject, domain: str, split: str, extractor: Extractor) -> Statistics:
    """Statistics of all images of a split; DataError if what is kept of it is damaged or of something else."""
    images = subject.arrays(domain, split).images
    place = cached(subject, domain)
    data = fingerprint(place, f"{split}_images.npy")
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
        for start in range(0, len(images), CHUNK):
            yield torch.from_numpy(np.ascontiguousarray(images[start : start + CHUNK]))

    def make() -> bytes:
        found, file = collect(batches(), extractor), io.BytesIO()
        sums, features = found.moments.sums.cpu().numpy(), found.features.cpu().numpy()
        np.savez(file, about=np.array(json.dumps(about)), sums=sums, features=features)
        return file.getvalue()

    name = f"{place.name}-{split}-{data[:8]}-{extractor.name}-{extractor.sha256[:8]}-v{RECIPE}.npz"
    path = data_root(subject.config.data.root) / "statistics" / name
    try:
        with np.load(io.BytesIO(once(path, make)), allow_pickle=False) as file:
            kept = json.loads(str(file["about"]))
            sums, features = file["sums"], file["features"]
    except (BadZipFile, KeyError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}; remove it, and it is made anew") from None
    for key, value in about.items():
        if kept.get(key) != value:
            raise DataError(f"{path}: {key}: is {kept.get(key)}, not {value}; remove it, and it is made anew")
    moments = Moments(extractor.width, extractor.device, sums)
    return Statistics(moments, torch.from_numpy(features).to(extractor.device))


def cached(subject: Subject, domain: str) -> Path:
    """The folder of a domain's set in the cache."""
    channels, size, _ = subject.config.data.shape()
    return folder(subject.domains[domain], data_root(subject.config.data.root), size, channels)


def fingerprint(place: Path, file: str) -> str:
    """The sha256 of an array of a set, as it was written down when the set was staged."""
    digest: str = json.loads((place / "origin.json").read_text())["files"][file]["sha256"]
    return digest
