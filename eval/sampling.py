"""Samples of a trained method, as bytes: a function of the seed, of how many, and of the place in the row."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from eval import distributed
from eval.sampling_options import WATCH, watched
from eval.trial import Subject
from trainer.errors import ConfigError
from trainer.seeds import seed_torch

CHUNK = 100  # images that are drawn after one seed; the draws of another number would be others


def draw(
    subject: Subject,
    n: int,
    number: int,
    metric: str,
    labels: Tensor | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    share: slice = slice(None),
) -> Iterator[Tensor]:
    """n images, by chunks uint8 [≤ CHUNK, c, size, size] on the device, of the classes `labels` [n] if given.

    `number` seeds them: equal numbers, equal noise, whichever labels, and whichever `share` of the chunks is drawn
    here. `options` are further arguments of the method's `sample`; a tensor among them has a row for each image.
    ConfigError if the method has no `sample`, it refuses what it is given, or its images are not of the run's shape
    or not finite. On a terminal a bar shows how far the first process is.
    """
    function = subject.capability("sample", metric)
    channels, size, _ = subject.config.data.shape()
    starts, console = range(0, n, CHUNK)[share], Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not (console.is_terminal and distributed.leads()))
    task, done, first = bar.add_task(f"{metric}: samples", total=sum(min(CHUNK, n - start) for start in starts)), 0, 0

    def watch(t: int, x: Tensor) -> None:
        """Count images in the making as the part of them that their times have come down."""
        nonlocal first
        first = max(first, t)
        bar.update(task, completed=done + (1 - (t + 1) / (first + 1)) * len(x))

    watching = {} if bar.disable or not watched(function) else {WATCH: watch}
    with bar:
        for start in starts:
            count = min(CHUNK, n - start)
            seed_torch(number, "samples", start)
            where = f"{subject.run.path}: step {subject.step}: sample()"
            rows = {key: value for key, value in options.items() if isinstance(value, Tensor)}
            rows |= {} if labels is None else {"labels": labels}
            for key, value in rows.items():
                if len(value) != n:
                    raise ConfigError(f"{where}: {key}: has {len(value)} rows for {n} images; give as many")
                rows[key] = value[start : start + count].to(subject.device)
            try:
                with torch.inference_mode():
                    images = function(count, **{**watching, **options, **rows})
            except ValueError as error:
                raise ConfigError(f"{where}: {error}") from None
            if tuple(images.shape) != (count, channels, size, size):
                raise ConfigError(f"{where} made {tuple(images.shape)}, not {(count, channels, size, size)}")
            if not images.isfinite().all():
                raise ConfigError(f"{where} made values that are not finite; train it anew")
            done += count
            bar.update(task, completed=done)
            yield to_bytes(images)


def conditional(subject: Subject) -> bool:
    """Whether samples can be asked for by class: the method learns from labels."""
    return any(key.endswith("labels") for key in subject.method.reads)


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1], clipped and rounded to uint8: what a PNG holds of them."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
