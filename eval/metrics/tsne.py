"""t-SNE (van der Maaten & Hinton, 2008) of the features of test images, coloured by class and by domain.

500 images of each domain and 500 steps of gradient descent: half of the paper's 1,000, for half of the time and a
divergence 4 % higher on the features of dann.
"""

import numpy as np
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from eval import figures
from eval.record import Result
from eval.trial import Subject

IMAGES = 500  # of each domain
STEPS = 500
PERPLEXITY = 30.0  # of few points less: a third of them at most


def evaluate(subject: Subject) -> Result:
    """Draw tsne.png and keep tsne.npz; ConfigError if the method has no `features`. No metric comes of it."""
    function = subject.capability("features", "tsne")
    vectors, labels, domains, images = [], [], [], []
    for number, domain in enumerate(subject.domains):
        arrays = subject.arrays(domain, "test")
        # A fixed choice of images: the same ones in every trial of a sweep, but not the same digits in mnist5k and
        # in mnistm5k, which is made of them: such pairs would lie side by side and feign agreement of the domains.
        order = np.random.default_rng(0).permutation(len(arrays.labels))
        chosen = np.sort(np.roll(order, -number * IMAGES)[:IMAGES])
        vectors.append(subject.over(function, arrays.images[chosen]).reshape(len(chosen), -1))
        labels.append(np.asarray(arrays.labels[chosen]))
        domains.append(np.full(len(chosen), number))
        images.append(chosen)
    x, y, d = np.concatenate(vectors), np.concatenate(labels), np.concatenate(domains)
    perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
    # One thread: the picture would depend on their number, and on cores that others use, too, two threads wait for
    # each other and take eight times as long as one.
    with threadpool_limits(1):
        points = TSNE(perplexity=perplexity, max_iter=STEPS, init="pca", random_state=0).fit_transform(x)
    # For each of n points: where it is [n, 2], features [n, d], label, place of its domain, place in the test split.
    found = {"points": points, "features": x, "labels": y, "domains": d, "images": np.concatenate(images)}
    np.savez(subject.folder / "tsne.npz", **found)
    figure = figures.embedding(points, y, subject.config.data.shape()[2], d, subject.domains)
    figures.save(figure, subject.folder / "tsne.png")
    how = {"split": "test", "n": len(x), "perplexity": perplexity, "steps": STEPS, "seed": 0, "step": subject.step}
    return Result(provenance={"tsne": how})
