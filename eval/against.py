"""Compare the samples of one trial with any images, and print the result: no file is written or kept.

The protocol of a course, say: 1,000 samples against a given folder of real images.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from eval import distributed, metrics
from eval.features.comparison import MAX_SAMPLES, explain_refusal, measure, measure_spread, sample_statistics
from eval.features.comparison import warn_few_images as warn
from eval.features.extractor import Extractor, collect
from eval.trial import TrainedTrial, open_trial
from trainer.data import cache, registry
from trainer.data.dataset import SPLITS
from trainer.errors import ConfigError

CHUNK = 500  # images read at a time


def compare_with(path: Path, names: list[str], dataset: str, n: int, step: int | None) -> None:
    """Print the distances of n samples of a trial (0: as in its evaluation) from all images of a dataset.

    The images are brought to the trial's form. ConfigError or DataError where a metric has no distances, the dataset
    does not exist, or it is no folder or file of the user's own and not staged.
    """
    trial = open_trial(path, step=step)
    for name in names or ["fid"]:
        create: Callable[[TrainedTrial], Extractor] | None = getattr(metrics.load(name), "create_extractor", None)
        if create is None:
            valid = ", ".join(name for name in metrics.names() if hasattr(metrics.load(name), "create_extractor"))
            raise ConfigError(f"--against: {name} is no distance from other images; give --metrics, of: {valid}")
        extractor = create(trial)
        with stage_temporarily(trial, dataset) as folder, explain_refusal(trial, name):
            parts = [cache.read(folder, split).images for split in SPLITS if (folder / f"{split}_images.npy").exists()]
            chunks = (part[start : start + CHUNK] for part in parts for start in range(0, len(part), CHUNK))
            real = collect((torch.from_numpy(np.ascontiguousarray(chunk)) for chunk in chunks), extractor)
        count = n or trial.config.eval.samples or min(real.moments.count, MAX_SAMPLES)
        warn(trial, name, extractor, count, real.moments.count)
        with explain_refusal(trial, name):
            fake = sample_statistics(trial, count, name, extractor)
            values, estimates = measure(real, fake)
            spread = measure_spread(real, fake, estimates)
        if distributed.is_main():
            print(f"{trial.run.name}: {count:,} samples of step {trial.step} against {real.moments.count:,} images of")
            accuracy = extractor.provenance.get("test accuracy")  # of a classifier that was trained for this
            judge = "" if accuracy is None else f", accuracy {accuracy:.4f} on test images"
            print(f"{dataset}, features of {extractor.name} ({extractor.sha256[:8]}{judge})")
            for key, value in values.items():
                deviation = f"  (std {spread[key]['std']:.4f} over {spread[key]['over']})" if key in spread else ""
                print(f"{key} {value:.4f}{deviation}")


@contextmanager
def stage_temporarily(trial: TrainedTrial, dataset: str) -> Iterator[Path]:
    """Yield the folder of a dataset in the trial's form: that of the cache, or of the user's own files a temporary one.

    DataError if it is not staged, or cannot be.
    """
    form, root = trial.config.data.form(), cache.data_root(trial.config.data.root)
    if not registry.get(dataset).is_own or cache.staged(dataset, root, form):
        yield cache.find(dataset, root, form)
        return
    with TemporaryDirectory(prefix="turnout-") as temporary:
        cache.stage(dataset, Path(temporary), form)
        yield cache.find(dataset, Path(temporary), form)
