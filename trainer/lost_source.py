"""Warn when a method of adaptation loses the source, which needs no label of the target. Imports no torch."""

from collections.abc import Mapping

METRIC = "validation/accuracy/source"
SHARE = 0.9  # of the accuracy that it is compared with: below, a method has lost the source


def warn_of_lost_source(accuracies: Mapping[int, float]) -> str:
    """Return a warning if the accuracy on the source, by step, ends below SHARE times its best; else "".

    Accuracy on the target needs labels that nobody has, but a method that forgets what it was taught predicts the
    target by chance.
    """
    if not accuracies:
        return ""
    last, best = max(accuracies), max(accuracies, key=lambda step: accuracies[step])
    if accuracies[last] >= SHARE * accuracies[best]:
        return ""
    return (
        f"the method has lost the source: accuracy on its validation images is {accuracies[last]:.3f} at step {last} "
        f"and was {accuracies[best]:.3f} at step {best}. Do not trust it on the target; try a lower learning rate, or "
        "batch norm over both domains where the method has it"
    )
