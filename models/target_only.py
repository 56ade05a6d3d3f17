"""Target only: the same classifier trained on labels of the target domain, the upper bound of domain adaptation."""

from models.source_only import SourceOnly


class TargetOnly(SourceOnly):
    reads = ("target_images", "target_labels")
    role = "upper_bound"
