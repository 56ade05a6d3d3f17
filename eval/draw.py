"""Samples of a trained method, as bytes: a function of the seed and the place in the row, whoever asks for them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from eval.subject import Subject
from trainer.config import ConfigError
from trainer.loop import seed

CHUNK = 100  # images that are drawn after one seed; the draws of another number would be others


def draw(
    subject: Subject, n: int, number: int, metric: str, labels: Tensor | None = None, share: slice = slice(None)
) -> Iterator[Tensor]:
    """n images, by chunks uint8 [≤ CHUNK, c, size, size] on the device, of the classes `labels` [n] if given.

    `number` seeds them: equal numbers, equal noise, whichever labels, and whichever `share` of the chunks is drawn
    here. ConfigError if the method has no `sample`, or
    its images are not of the run's shape or not finite.
    """
    function = subject.capability("sample", metric)
    channels, size, _ = subject.config.data.shape()
    for start in range(0, n, CHUNK)[share]:
        count = min(CHUNK, n - start)
        seed(number, "samples", start)
        with torch.inference_mode():
            if labels is None:
                images = function(count)
            else:
                images = function(count, labels=labels[start : start + count].to(subject.device))
        where = f"{subject.run.path}: step {subject.step}: sample()"
        if tuple(images.shape) != (count, channels, size, size):
            raise ConfigError(f"{where} made {tuple(images.shape)}, not {(count, channels, size, size)}")
        if not images.isfinite().all():
            raise ConfigError(f"{where} made values that are not finite; train it anew")
        yield to_bytes(images)


def conditional(subject: Subject) -> bool:
    """Whether samples can be asked for by class: the method learns from labels."""
    return any(key.endswith("labels") for key in subject.method.reads)


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1], clipped and rounded to uint8: what a PNG holds of them."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
