"""Share of samples that a classifier, trained on the dataset, assigns to the requested class.

Metrics: `class_accuracy` in [0, 1] of 100 samples of each class, with Wilson's interval; the accuracy of the classifier
itself on the test split, `class_accuracy/of_test_images`, which good samples come close to, and may exceed;
`seconds_per_1000_samples` with the trial's own settings. class_accuracy.png shows each class. If milestones were
exported, `class_accuracy` of each is in the history.
"""

import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from eval import distributed, figures
from eval.features.classifier import load_judge
from eval.intervals import wilson_interval
from eval.metrics import Metric
from eval.record import Result
from eval.sampling import CHUNK, draw_samples
from eval.trial import TrainedTrial
from trainer.errors import ConfigError

NAME = "class_accuracy"
PER_CLASS = 100


def stage(folder: Path, device: torch.device) -> None:
    """Train the classifier of a dataset, for all later evaluations."""
    load_judge(folder, device)


METRIC = Metric(needs="sample", recipe=2, higher_is_better=True, shared=True, stage=stage)


def evaluate(trial: TrainedTrial) -> Result:
    """Classify samples of each class; ConfigError if the method is not conditional."""
    if not trial.method.conditional:
        raise ConfigError(
            f"{trial.run.path}: eval.metrics: {NAME}: {trial.config.method} learns from no labels; leave it out"
        )
    domain, seed, classes = next(iter(trial.domains)), trial.config.train.seed, trial.classes
    judge = load_judge(trial.cache_folder(domain), trial.device)
    order = torch.tensor(trial.config.data.class_order(domain))  # the judge knows the dataset's own order
    labels = torch.arange(classes).repeat_interleave(PER_CLASS)

    def own_part(milestone: TrainedTrial) -> tuple[NDArray[np.int64], float]:
        """Return counts [requested class, predicted class] of this process's samples, and the seconds they took."""
        shard = distributed.shard()
        requested, predicted, seconds, started = labels.split(CHUNK)[shard], [], 0.0, time.perf_counter()
        for images in draw_samples(milestone, len(labels), seed, NAME, labels, shard=shard):
            if images.is_cuda:
                torch.cuda.synchronize()
            seconds += time.perf_counter() - started
            with torch.inference_mode():
                predicted.append(order[judge.logits(images).argmax(1).cpu()])
            started = time.perf_counter()
        if not predicted:  # there are more processes than chunks
            return np.zeros((classes, classes), np.int64), 0.0
        pairs = torch.cat(requested) * classes + torch.cat(predicted)
        return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).numpy(), seconds

    n, result = len(labels), Result()
    for milestone in trial.milestones():
        parts = distributed.gather(partial(own_part, milestone))
        counts_of_step = np.sum([part for part, _ in parts], axis=0)
        result.history[milestone.step] = {NAME: int(counts_of_step.trace()) / n}
        if milestone is trial:
            counts, seconds = counts_of_step, max(seconds for _, seconds in parts)
    correct = int(counts.trace())
    result.metrics, result.intervals = {NAME: correct / n}, {NAME: wilson_interval(correct, n)}
    result.metrics[f"{NAME}/of_test_images"] = judge.facts["test accuracy"]
    result.metrics["seconds_per_1000_samples"] = 1000 * seconds / n
    if distributed.is_main():
        np.savez(trial.folder / "class_accuracy.npz", counts=counts)
        title = f"class accuracy {correct / n:.3f} of {n} samples, step {trial.step}\n"
        title += f"(test images: {judge.facts['test accuracy']:.3f})"
        figures.save(figures.confusion(counts, title, trial.class_names), trial.folder / "class_accuracy.png")
    by_class = {name: round(counts[label, label] / PER_CLASS, 4) for label, name in enumerate(trial.class_names)}
    facts = {"set": trial.domains[domain], "n": n, "by class": by_class, "step": trial.step, "seed": seed}
    result.provenance[NAME] = {**facts, "classifier sha256": judge.sha256, **judge.facts}
    return result
