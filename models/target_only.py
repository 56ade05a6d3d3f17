"""Target only: the same classifier trained on the target domain's labels; the upper bound of domain adaptation."""

from models.source_only import SourceOnly


class TargetOnly(SourceOnly):
    reads = ("target_images", "target_labels")
    role = "upper_bound"
