"""t-SNE (van der Maaten & Hinton, 2008) of the features of test images, coloured by class and by domain.

`eval: {split: validation}` shows validation images instead.

500 images of each domain and 500 steps of gradient descent, half of the paper's 1,000: half the time, and a divergence
that is 4 % higher on the features of dann. No metric, only a figure.
"""

import numpy as np
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from eval import figures
from eval.metrics import Metric
from eval.record import Result
from eval.subsets import domain_subsets
from eval.trial import TrainedTrial
from trainer.errors import ConfigError

METRIC = Metric(needs="features", options=("split",))
IMAGES = 500  # of each domain
STEPS = 500
LEAST = 4  # images, for a perplexity of 1
PERPLEXITY = 30.0  # at most a third of the points


def evaluate(trial: TrainedTrial) -> Result:
    """Draw tsne.png and keep tsne.npz."""
    function, split = trial.capability("features", "tsne"), trial.config.eval.split
    vectors, labels, domains, images = [], [], [], []
    for number, (arrays, chosen) in enumerate(domain_subsets(trial, IMAGES, split)):
        vectors.append(trial.apply(function, arrays.images[chosen]).reshape(len(chosen), -1))
        labels.append(np.asarray(arrays.labels[chosen]))
        domains.append(np.full(len(chosen), number))
        images.append(chosen)
    if (n := sum(map(len, labels))) < LEAST:
        raise ConfigError(
            f"{trial.run.path}: eval.metrics: tsne: {n} {split} images are too few, it needs {LEAST}; leave tsne out"
        )
    x, y, d = np.concatenate(vectors), np.concatenate(labels), np.concatenate(domains)
    perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
    # One thread: the result depends on their number, and on busy cores two threads that wait for each other take eight
    # times as long as one.
    with threadpool_limits(1):
        points = TSNE(perplexity=perplexity, max_iter=STEPS, init="pca", random_state=0).fit_transform(x)
    # For each of n points: position [n, 2], features [n, d], label, number of its domain, position in the split.
    arrays_by_name = {"points": points, "features": x, "labels": y, "domains": d, "images": np.concatenate(images)}
    np.savez(trial.folder / "tsne.npz", **arrays_by_name)
    figure = figures.embedding(points, y, trial.class_names, d, trial.domains, f"{split} images")
    figures.save(figure, trial.folder / "tsne.png")
    facts = {"split": split, "n": len(x), "perplexity": perplexity, "steps": STEPS, "seed": 0, "step": trial.step}
    return Result(provenance={"tsne": facts})
