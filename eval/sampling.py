"""Samples of a trained method as uint8, deterministic in seed, number and position."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from eval import distributed
from eval.sampling_options import WATCH, can_be_watched
from eval.trial import TrainedTrial
from trainer.data.pixels import to_bytes
from trainer.errors import ConfigError
from trainer.seeds import seed_torch

CHUNK = 100  # images that are drawn with one seed; changing this changes all samples


def draw_samples(
    trial: TrainedTrial,
    n: int,
    seed: int,
    metric: str,
    labels: Tensor | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    shard: slice = slice(None),
) -> Iterator[Tensor]:
    """Yield n images in chunks, uint8 [≤ CHUNK, c, size, size] on the device, of the classes `labels` [n] if not None.

    Equal seeds give equal noise for any labels and any `shard` of the chunks. `options` are further arguments of the
    method's `sample`; a tensor among them has a row for each image. ConfigError if the method has no `sample`, refuses
    its arguments, or its images are not finite or have another shape. On a terminal a bar shows the progress of the
    main process.
    """
    function, shape = trial.capability("sample", metric), trial.image_shape
    where = f"{trial.run.path}: step {trial.step}: sample()"
    rows = {key: value for key, value in options.items() if isinstance(value, Tensor)}
    rows |= {} if labels is None else {"labels": labels}
    for key, value in rows.items():
        if len(value) != n:
            raise ConfigError(f"{where}: {key}: has {len(value)} rows for {n} images; give as many")
    starts, console = range(0, n, CHUNK)[shard], Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not (console.is_terminal and distributed.is_main()))
    task = bar.add_task(f"{metric}: samples", total=sum(min(CHUNK, n - start) for start in starts))
    finished, first_time = 0, 0

    def watch(t: int, x: Tensor) -> None:
        """Count images in progress by the share of their timesteps that is done."""
        nonlocal first_time
        first_time = max(first_time, t)
        bar.update(task, completed=finished + (1 - (t + 1) / (first_time + 1)) * len(x))

    watching = {} if bar.disable or not can_be_watched(function) else {WATCH: watch}
    with bar:
        for start in starts:
            count = min(CHUNK, n - start)
            seed_torch(seed, "samples", start)
            own = {key: value[start : start + count].to(trial.device) for key, value in rows.items()}
            try:
                with torch.inference_mode():
                    images = function(count, **{**watching, **options, **own})
            except ValueError as error:
                raise ConfigError(f"{where}: {error}") from None
            if tuple(images.shape) != (count, *shape):
                raise ConfigError(f"{where} returned {tuple(images.shape)}, not {(count, *shape)}")
            if not images.isfinite().all():
                raise ConfigError(f"{where} returned values that are not finite; train it again")
            finished += count
            bar.update(task, completed=finished)
            yield to_bytes(images)
