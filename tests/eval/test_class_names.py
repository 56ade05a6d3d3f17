"""Names of classes in figures and tables; images without a class."""

import numpy as np

from eval import figures
from eval.reporting.domain_pairs import DomainPair, Row
from eval.reporting.tables import _format_pair


def test_a_confusion_matrix_names_its_classes() -> None:
    axes = figures.confusion(np.array([[3, 1], [0, 4]]), "title", ("a cat", "a very long name of a dog")).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a cat", "a very long…"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a cat  75 %", "a very long…  100 %"]


def test_images_without_a_class_have_a_colour_of_their_own() -> None:
    names, colours = figures.legend(np.array([0, 1, -1]), ("cat", "dog"))
    assert (names, len(colours), len(set(colours))) == (["cat", "dog", "without label"], 3, 3)
    assert figures.legend(np.array([0, 1]), ("cat", "dog")) == (["cat", "dog"], colours[:2])
    points, domains = np.zeros((4, 2), np.float32), np.array([0, 0, 1, 1])
    sets = {"source": "a", "target": "b"}
    axes = figures.embedding(points, np.array([0, 1, -1, -1]), ("cat", "dog"), domains, sets, "test images").axes[0]
    assert axes.get_title() == "test images, by class"
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["cat", "dog", "without label"]


def test_recalls_are_listed_by_the_names_of_classes() -> None:
    pair = DomainPair("a", "b", ["last"], [Row("dann", 1, ["0.7"], "", [0.5, 0.9])], None, ["cat", "dog"])
    assert "| recall of class | cat   | dog   |" in "\n".join(_format_pair(pair))
