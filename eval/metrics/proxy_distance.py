"""Proxy A-distance (Ben-David et al., 2006): how well a linear classifier tells the domains apart by the features.

Metric: `proxy_a_distance` = 2 (1 - 2 error), from 0 (indistinguishable domains) to 2 (no error), slightly negative if
the classifier is worse than chance. The error is that of a linear support vector machine on half of 500 test images of
each domain, trained on the other half.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from eval.metrics import Metric
from eval.record import Result
from eval.subsets import domain_subsets
from eval.trial import TrainedTrial
from trainer.errors import ConfigError

METRIC = Metric(needs="features")
IMAGES = 500  # of each domain, at most
PENALTY = 0.01  # C: small, because there are hardly more images than features


def evaluate(trial: TrainedTrial) -> Result:
    """Measure the last weights; ConfigError if the trial has only one domain."""
    if set(trial.domains) != {"source", "target"}:
        raise ConfigError(
            f"{trial.run.path}: eval.metrics: proxy_distance compares two domains, this trial has one; leave it out"
        )
    function = trial.capability("features", "proxy_distance")
    vectors = [
        trial.apply(function, arrays.images[chosen]).reshape(len(chosen), -1)
        for arrays, chosen in domain_subsets(trial, IMAGES)
    ]
    if (n := min(map(len, vectors))) < 2:
        raise ConfigError(
            f"{trial.run.path}: eval.metrics: proxy_distance: {n} test image of a domain is too few, it needs 2; "
            "leave proxy_distance out"
        )
    facts = {"split": "test", "n": sum(map(len, vectors)), "classifier": f"linear SVM, C = {PENALTY}"}
    distance = proxy_distance(*vectors)
    return Result({"proxy_a_distance": distance}, provenance={"proxy_a_distance": facts | {"step": trial.step}})


def proxy_distance(source: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    """Return 2 (1 - 2 error) of telling source [n, d] from target [m, d]; odd rows train, even rows test."""
    # Equal numbers, so that a constant classifier has an error of one half.
    n = min(len(source), len(target))
    x, domain = np.concatenate([source[:n], target[:n]]), np.repeat([0, 1], n)
    test = np.tile(np.arange(n) % 2 == 0, 2)
    model = make_pipeline(StandardScaler(), LinearSVC(C=PENALTY, random_state=0, max_iter=10_000))
    model.fit(x[~test], domain[~test])
    error = float((model.predict(x[test]) != domain[test]).mean())
    return 2 * (1 - 2 * error)
