"""t-SNE (van der Maaten & Hinton, 2008) of the features of test images, coloured by class and by domain."""

import numpy as np
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from eval import figures
from eval.subject import Result, Subject

IMAGES = 500  # of each domain


def evaluate(subject: Subject) -> Result:
    """Draw tsne.png and keep tsne.npz; ConfigError if the method has no `features`. No metric comes of it."""
    function = subject.capability("features", "tsne")
    vectors, labels, domains = [], [], []
    for number, domain in enumerate(subject.domains):
        arrays = subject.arrays(domain, "test")
        # A fixed choice of images: the same ones in every trial of a sweep.
        chosen = np.sort(np.random.default_rng(0).permutation(len(arrays.labels))[:IMAGES])
        vectors.append(subject.over(function, arrays.images[chosen]).reshape(len(chosen), -1))
        labels.append(np.asarray(arrays.labels[chosen]))
        domains.append(np.full(len(chosen), number))
    x, y, d = np.concatenate(vectors), np.concatenate(labels), np.concatenate(domains)
    perplexity = min(30.0, (len(x) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(x)
    np.savez(subject.folder / "tsne.npz", points=points, features=x, labels=y, domains=d)

    names = list(subject.domains.values())
    classes = [str(c) for c in range(subject.config.data.shape()[2])]
    figure = Figure(figsize=(5.2 * min(len(names), 2) + 0.6, 4.4), layout="constrained")
    panels = figure.subplots(1, 2 if len(names) > 1 else 1, squeeze=False)[0]
    figures.scatter(panels[0], points, y, classes, "class")
    if len(names) > 1:
        figures.scatter(panels[1], points, d, [f"{k}: {v}" for k, v in subject.domains.items()], "domain")
    path = figures.save(figure, subject.folder / "tsne.png")
    return Result({}, figures=[path], provenance={"tsne": {"images": len(x), "perplexity": perplexity, "seed": 0}})
