"""Proxy A-distance (Ben-David et al., 2006): how easily a linear classifier tells the domains from the features.

Metric: `proxy_a_distance` = 2 (1 - 2 error), from 0 (the domains look the same) to 2 (they are told without error); a
little below 0 where the classifier does worse than chance. The error is that on half of 500 test images of each domain,
of a linear support vector machine that learned from the other half.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from eval.record import Result
from eval.trial import Subject
from trainer.errors import ConfigError

IMAGES = 500  # of each domain, at most
PENALTY = 0.01  # C: small, as there are hardly more images than features


def evaluate(subject: Subject) -> Result:
    """Measure the last weights; ConfigError if the method has no `features` or the run no two domains."""
    if set(subject.domains) != {"source", "target"}:
        raise ConfigError(
            f"{subject.run.path}: eval.metrics: proxy_distance compares two domains, this run has one set; leave it out"
        )
    function = subject.capability("features", "proxy_distance")
    vectors = []
    for number, domain in enumerate(subject.domains):
        images = subject.arrays(domain, "test").images
        # As in tsne: not the same digits of a set and of one that is made of it.
        order = np.random.default_rng(0).permutation(len(images))
        chosen = np.sort(np.roll(order, -number * IMAGES)[:IMAGES])
        vectors.append(subject.over(function, images[chosen]).reshape(len(chosen), -1))
    found, n = distance(*vectors), sum(map(len, vectors))
    how = {"split": "test", "n": n, "classifier": f"linear SVM, C = {PENALTY}", "step": subject.step}
    return Result({"proxy_a_distance": found}, provenance={"proxy_a_distance": how})


def distance(source: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    """2 (1 - 2 error) of telling source [n, d] from target [m, d]; the odd rows teach, the even ones test."""
    # As many of each domain: always saying the same is then wrong half of the time.
    n = min(len(source), len(target))
    x, domain = np.concatenate([source[:n], target[:n]]), np.repeat([0, 1], n)
    test = np.tile(np.arange(n) % 2 == 0, 2)
    model = make_pipeline(StandardScaler(), LinearSVC(C=PENALTY, random_state=0, max_iter=10_000))
    model.fit(x[~test], domain[~test])
    error = float((model.predict(x[test]) != domain[test]).mean())
    return 2 * (1 - 2 * error)
