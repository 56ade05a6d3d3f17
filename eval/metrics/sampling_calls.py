"""Quality of samples against their cost: at most 5, 10, 20 and 50 calls of the network for an image.

Metrics, each followed by `/5_calls`, …: `class_accuracy` in [0, 1] of 100 samples of each class (if conditional);
`fid_classifier` of these samples against the measured split (eval.split); `seconds_per_1000_samples`. Calls are
counted, not taken from the method: both halves of guidance are one call, and a step of Heun's method has two. The
provenance has the number of steps that each budget allows. Other settings are the trial's own.
"""

import time

import torch

from eval.features.classifier import extractor, load_judge
from eval.features.distances import frechet
from eval.features.extractor import collect
from eval.features.reference import load_reference
from eval.metrics import Metric
from eval.metrics.fid_classifier import stage
from eval.record import Result
from eval.sampling import draw_samples
from eval.sampling_options import sample_options
from eval.trial import TrainedTrial
from trainer.errors import ConfigError

NAME = "sampling_calls"
CALLS = (5, 10, 20, 50)
PER_CLASS = 100
SAMPLES = 1000  # of unconditional methods

METRIC = Metric(needs="sample", recipe=2, options=("split",), stage=stage)


def evaluate(trial: TrainedTrial) -> Result:
    """Sample with each budget; ConfigError if the method does not sample in steps."""
    if "steps" not in sample_options(trial.capability("sample", NAME)):
        raise ConfigError(
            f"{trial.run.path}: eval.metrics: {NAME} needs sample(steps), which {trial.config.method} does not have; "
            f"leave {NAME} out"
        )
    domain, classes = next(iter(trial.domains)), trial.classes if trial.method.conditional else 0
    folder, split = trial.cache_folder(domain), trial.config.eval.split
    judge, features = load_judge(folder, trial.device), extractor(folder, trial.device)
    real = load_reference(folder, split, features).moments.gaussian()
    labels = torch.arange(classes).repeat_interleave(PER_CLASS) if classes else None
    order = torch.tensor(trial.config.data.class_order(domain))  # the judge knows the dataset's own order
    n, prefix, result = len(labels) if labels is not None else SAMPLES, "" if split == "test" else f"{split}/", Result()
    first, second = count_calls(trial, 1), count_calls(trial, 2)
    for budget in CALLS:
        steps, suffix = 1 + (budget - first) // (second - first), f"{budget}_calls"
        started = time.perf_counter()
        images = torch.cat(list(draw_samples(trial, n, trial.config.train.seed, NAME, labels, {"steps": steps})))
        if images.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        result.metrics[f"seconds_per_1000_samples/{suffix}"] = 1000 * seconds / n
        fake = collect(iter(images.split(PER_CLASS)), features).moments.gaussian()
        result.metrics[f"{prefix}fid_classifier/{suffix}"] = frechet(real, fake)
        if labels is not None:
            with torch.inference_mode():
                predicted = torch.cat([order[judge.logits(x).argmax(1).cpu()] for x in images.split(PER_CLASS)])
            result.metrics[f"class_accuracy/{suffix}"] = float((predicted == labels).float().mean())
        result.provenance[f"{NAME}/{suffix}"] = {
            "steps": steps,
            "calls": first + (steps - 1) * (second - first),
            "n": n,
        }
    result.provenance[NAME] = {"set": trial.domains[domain], "split": split, "step": trial.step, **judge.facts}
    return result


def count_calls(trial: TrainedTrial, steps: int) -> int:
    """Return how often the most frequently called network of the method is called to draw an image in some steps."""
    calls: dict[str, int] = {}

    def count(name: str) -> None:
        calls[name] = calls.get(name, 0) + 1

    hooks = [
        network.register_forward_pre_hook(lambda *_, name=name: count(name))
        for name, network in trial.method.named_children()
    ]
    try:
        list(draw_samples(trial, 1, 0, NAME, options={"steps": steps}))
    finally:
        for hook in hooks:
            hook.remove()
    return max(calls.values())
