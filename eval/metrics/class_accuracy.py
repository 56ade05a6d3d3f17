"""Whether samples are of the class that was asked for: the share that a classifier trained on the set recognises.

Metrics: `class_accuracy` in [0, 1] of 100 samples of each class, with Wilson's interval; beside it the accuracy of
the classifier itself on the test split, `class_accuracy/of_test_images`, which good samples come near to, and may
exceed; `seconds_per_1000_samples` with the run's own settings. class_accuracy.png shows each class.
"""

import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from eval import distributed, figures
from eval.features.classifier import judge
from eval.record import Result
from eval.sampling import CHUNK, conditional, draw
from eval.trial import Subject
from trainer.errors import ConfigError

METRIC = "class_accuracy"
PER_CLASS = 100
SHARED = True  # by all processes: eval/distributed.py


def stage(place: Path, device: torch.device) -> None:
    """Train the classifier of a set, for all evaluations to come."""
    judge(place, device)


def evaluate(subject: Subject) -> Result:
    """Draw samples of each class and have them named; ConfigError if the method cannot draw a class."""
    subject.capability("sample", METRIC)
    if not conditional(subject):
        raise ConfigError(
            f"{subject.run.path}: eval.metrics: {METRIC}: {subject.config.method} learns from no labels; leave it out"
        )
    domain, number = next(iter(subject.domains)), subject.config.train.seed
    classifier, classes = judge(subject.place(domain), subject.device), subject.config.data.shape()[2]
    wanted = torch.arange(classes).repeat_interleave(PER_CLASS)

    def mine() -> tuple[NDArray[np.int64], float]:
        """Counts [class asked for, class seen] of this process's share of the samples, and the seconds they took."""
        share = distributed.share()
        asked, named, seconds, began = wanted.split(CHUNK)[share], [], 0.0, time.perf_counter()
        for images in draw(subject, len(wanted), number, METRIC, wanted, share=share):
            if images.is_cuda:
                torch.cuda.synchronize()
            seconds += time.perf_counter() - began
            with torch.inference_mode():
                named.append(classifier.logits(images).argmax(1).cpu())
            began = time.perf_counter()
        if not named:  # more processes than chunks
            return np.zeros((classes, classes), np.int64), 0.0
        return confusion_matrix(torch.cat(asked).numpy(), torch.cat(named).numpy(), labels=range(classes)), seconds

    parts = distributed.together(mine)
    counts, seconds = np.sum([part for part, _ in parts], axis=0), max(seconds for _, seconds in parts)
    correct = int(counts.trace())
    interval = binomtest(correct, len(wanted)).proportion_ci(0.95, method="wilson")
    result = Result(intervals={METRIC: (float(interval.low), float(interval.high))})
    result.metrics[METRIC] = correct / len(wanted)
    result.metrics[f"{METRIC}/of_test_images"] = classifier.facts["test accuracy"]
    result.metrics["seconds_per_1000_samples"] = 1000 * seconds / len(wanted)
    if distributed.leads():
        np.savez(subject.folder / "class_accuracy.npz", counts=counts)
        title = f"{correct / len(wanted):.3f} of {len(wanted)} samples of step {subject.step}"
        figures.save(figures.confusion(counts, title), subject.folder / "class_accuracy.png")
    by_class = {str(c): round(counts[c, c] / PER_CLASS, 4) for c in range(classes)}
    how = {"set": subject.domains[domain], "n": len(wanted), "by class": by_class, "step": subject.step, "seed": number}
    result.provenance[METRIC] = {**how, "classifier sha256": classifier.sha256, **classifier.facts}
    return result
